"""A Python file as the analyser sees it: its `ast`, an index of that, and the statements that an answer depends on
as the nodes that code is judged on (`nodes`)."""

from __future__ import annotations

import ast
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from klguard.read.python.trees import Index, children, index
from klguard.settings import Place

if TYPE_CHECKING:
    from klguard.read.files import SourceText
    from klguard.read.python import nodes
    from klguard.read.python.nodes.spans import Span

MAX_DEPTH = 150
"""Deepest statement that is executed: evaluation recurses."""


class TooComplex(Exception):
    """A statement that is nested too deeply to be executed."""


@dataclass(eq=False)
class FunctionInfo:
    """A function or method, by its `ast` node. `cls` is the class it is a method of, `parent` the function around it."""

    name: str
    qualname: str
    node: ast.FunctionDef | ast.AsyncFunctionDef
    module: Module
    cls: ClassInfo | None = None
    parent: FunctionInfo | None = None


@dataclass(eq=False)
class ClassInfo:
    """A class statement, its base expressions as dotted text, and its own methods."""

    name: str
    qualname: str
    node: ast.ClassDef
    module: Module
    bases: tuple[str, ...] = ()
    methods: dict[str, FunctionInfo] = field(default_factory=dict)


def dotted(node: ast.expr) -> str:
    """`a.b.c` for names and attributes, "" for anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    parts.append(node.id)
    return ".".join(reversed(parts))


def called_name(call: ast.Call) -> str:
    """The last component of the callee: `generate` for `trainer.model.generate(...)`, "" if it has none."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


@dataclass(eq=False)
class Unit:
    """A statement of a module that is executed."""

    module: Module
    statement: nodes.Statement

    def span(self, node: nodes.Node) -> Span:
        """Where a node stands in its module. Raises KeyError for one that stands nowhere."""
        return node.span()

    def place(self, node: nodes.Node) -> Place:
        return self.module.place(*self.span(node))


class Module:
    """One file (or notebook), parsed as a whole."""

    def __init__(self, source: SourceText, name: str, tree: ast.Module) -> None:
        self.source = source
        self.path = source.path
        self.name = name
        self.tree = tree
        self.text = source.text
        self._units: dict[ast.stmt, Unit] = {}
        self.functions: dict[str, FunctionInfo] = {}
        self.classes: dict[str, ClassInfo] = {}
        self.by_node: dict[ast.AST, FunctionInfo] = {}
        self._index(tree.body, "", None, None)

    def __repr__(self) -> str:
        return f"Module({self.path!r})"

    @cached_property
    def lines(self) -> list[str]:
        return self.text.split("\n")

    def line(self, number: int) -> str:
        """A line of the text, from 1; "" behind its end, where `ast` sees parts of some f-strings."""
        return self.lines[number - 1] if number <= len(self.lines) else ""

    def _index(
        self, body: list[ast.stmt], prefix: str, cls: ClassInfo | None, parent: FunctionInfo | None
    ) -> None:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                qualname = prefix + node.name
                info = FunctionInfo(node.name, qualname, node, self, cls, parent)
                self.functions[qualname] = info
                self.by_node[node] = info
                if cls is not None:
                    cls.methods[node.name] = info
                self._index(node.body, qualname + ".", None, info)
            elif isinstance(node, ast.ClassDef):
                qualname = prefix + node.name
                bases = tuple(dotted(base) for base in node.bases)
                inner = ClassInfo(node.name, qualname, node, self, bases)
                self.classes[qualname] = inner
                self._index(node.body, qualname + ".", inner, parent)
            else:
                for block in _blocks(node):
                    self._index(block, prefix, cls, parent)

    @cached_property
    def imports(self) -> dict[str, str]:
        """Name -> dotted target for every import statement anywhere in the file; relative ones start with dots."""
        found: dict[str, str] = {}
        for node in self.of(ast.Import, ast.ImportFrom):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.asname:
                        found[alias.asname] = alias.name
                    else:
                        found.setdefault(alias.name.split(".")[0], alias.name.split(".")[0])
            elif isinstance(node, ast.ImportFrom):
                base = "." * node.level + (node.module or "")
                for alias in node.names:
                    if alias.name != "*":
                        found[alias.asname or alias.name] = (
                            f"{base}.{alias.name}" if base.strip(".") else base + alias.name
                        )
        return found

    @cached_property
    def star_imports(self) -> list[str]:
        """Dotted targets of `from x import *`, in order."""
        return [
            "." * node.level + (node.module or "")
            for node in self.of(ast.ImportFrom)
            if any(alias.name == "*" for alias in node.names)
        ]

    @cached_property
    def _tree_index(self) -> Index:
        return index(self.tree)

    @property
    def nodes(self) -> list[ast.AST]:
        """Every node of the file but contexts and operators, in source order of their statements."""
        return self._tree_index.nodes

    @property
    def parents(self) -> dict[ast.AST, ast.AST]:
        return self._tree_index.parents

    def of(self, *kinds: type) -> list[Any]:
        """The nodes of some types, in source order."""
        by_kind = self._tree_index.kinds
        if len(kinds) == 1:
            return by_kind.get(kinds[0], [])
        return (
            [node for node in self.nodes if node.__class__ in kinds]
            if any(k in by_kind for k in kinds)
            else []
        )

    @cached_property
    def calls(self) -> dict[str, list[ast.Call]]:
        """Last component of the callee -> calls, in source order."""
        found: dict[str, list[ast.Call]] = {}
        for node in self.of(ast.Call):
            if name := called_name(node):
                found.setdefault(name, []).append(node)
        return found

    @cached_property
    def mentions(self) -> dict[str, list[ast.expr]]:
        """Name -> the names and attributes that read it, in source order; an imported name under its own name too."""
        found: dict[str, list[ast.expr]] = {}
        for node in self.of(ast.Attribute, ast.Name):
            if isinstance(node, ast.Attribute):
                found.setdefault(node.attr, []).append(node)
            elif isinstance(node.ctx, ast.Load):
                found.setdefault(node.id, []).append(node)
                real = self.imports.get(node.id, "").rpartition(".")[2]
                if real and real != node.id:
                    found.setdefault(real, []).append(node)
        return found

    @cached_property
    def generators(self) -> set[FunctionInfo]:
        """The functions that yield."""
        yields = self.of(ast.Yield, ast.YieldFrom)
        return {function for node in yields if (function := self.enclosing(node)) is not None}

    def enclosing(self, node: ast.AST) -> FunctionInfo | None:
        """The innermost function around `node`."""
        current: ast.AST | None = self.parents.get(node)
        while current is not None:
            if current in self.by_node:
                return self.by_node[current]
            current = self.parents.get(current)
        return None

    def enclosing_name(self, node: ast.AST) -> str:
        """Qualified name of the innermost function or class around `node`, "" at the top level."""
        current: ast.AST | None = self.parents.get(node)
        while current is not None:
            if current in self.by_node:
                return self.by_node[current].qualname
            if isinstance(current, ast.ClassDef):
                return next(c.qualname for c in self.classes.values() if c.node is current)
            current = self.parents.get(current)
        return ""

    def segment(self, node: ast.expr) -> str:
        """The source text of an ast expression, on one line, shortened."""
        return shorten(ast.unparse(node))

    def place(self, line: int, column: int, end_line: int, end_column: int) -> Place:
        """A Place for a span of the module's text (lines from 1, columns from 0)."""
        cell, own = self.source.locate(line)
        _, own_end = self.source.locate(end_line)
        return Place(self.path, cell, own, column + 1, own_end, end_column + 1)

    def ast_span(self, node: ast.expr | ast.stmt) -> tuple[int, int, int, int]:
        """As `Unit.span`: ast counts columns in UTF-8 bytes, klguard in characters."""
        assert node.end_lineno is not None and node.end_col_offset is not None
        return (
            node.lineno,
            self._characters(node.lineno, node.col_offset),
            node.end_lineno,
            self._characters(node.end_lineno, node.end_col_offset),
        )

    def ast_place(self, node: ast.expr | ast.stmt) -> Place:
        return self.place(*self.ast_span(node))

    def _characters(self, line: int, offset: int) -> int:
        text = self.line(line)
        if text.isascii():
            return offset
        return len(text.encode()[:offset].decode(errors="replace"))

    def unit(self, origin: ast.stmt) -> Unit:
        """A statement to execute. Raises TooComplex when that would recurse too deeply."""
        from klguard.read.python.nodes import statement  # most files are never executed

        found = self._units.get(origin)
        if found is None:
            if depth(origin, MAX_DEPTH) > MAX_DEPTH:
                raise TooComplex
            found = self._units[origin] = Unit(self, statement(origin, self))
        return found


def _blocks(node: ast.stmt) -> Iterator[list[ast.stmt]]:
    for name in ("body", "orelse", "finalbody"):
        block = getattr(node, name, None)
        if isinstance(block, list):
            yield block
    for handler in getattr(node, "handlers", ()):
        yield handler.body
    for case in getattr(node, "cases", ()):
        yield case.body


def depth(tree: ast.AST, limit: int) -> int:
    """Nesting depth of the tree, counted iteratively; stops counting above `limit`."""
    level, nodes = 0, [tree]
    while nodes and level <= limit:
        level += 1
        if any(node.__class__ is ast.BoolOp and len(node.values) > limit for node in nodes):  # type: ignore[attr-defined]
            return limit + 1  # `a or b or c` is (a or b) or c
        nodes = [child for node in nodes for child in children(node)]
    return level


def shorten(text: str, width: int = 80) -> str:
    """One line of at most `width` characters."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 3] + "..."


def parse(text: str) -> ast.Module:
    """`ast.parse` whose failures are all SyntaxError: deep nesting otherwise ends in MemoryError or RecursionError."""
    limit = sys.getrecursionlimit()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except (MemoryError, RecursionError) as error:
            raise SyntaxError(
                f"nested too deeply to parse ({type(error).__name__})", ("", 1, 1, "")
            ) from None
        except ValueError as error:
            raise SyntaxError(str(error), ("", 1, 1, "")) from None
        finally:
            sys.setrecursionlimit(limit)
