"""Names within one file: which scope owns them, and which uses a definition reaches.

An approximation of reaching definitions that needs no control-flow graph: source order, the blocks that
enclose a statement, and the loops that bring a value round again.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from klguard.read.python.memo import remembered
from klguard.read.python.source import Module
from klguard.read.python.trees import walk_level

Scope = ast.AST
"""A function, or the `ast.Module` for the top level (class bodies belong to the scope around them)."""

Position = tuple[int, int]

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
LOOPS = (ast.For, ast.AsyncFor, ast.While)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
KILLERS = (ast.Assign, ast.AnnAssign, ast.For, ast.AsyncFor, ast.With, ast.AsyncWith)
"""Statements after which the old value of their target is gone."""


@remembered
def scopes_of(module: Module) -> ScopeTable:
    """The table of `module`, built once."""
    return ScopeTable(module)


def position(node: ast.AST) -> Position:
    return (node.lineno, node.col_offset)  # type: ignore[attr-defined]


def parameters(scope: Scope) -> list[str]:
    """Parameter names in order; `*args` and `**kwargs` last."""
    if not isinstance(scope, FUNCTIONS):
        return []
    args = scope.args
    names = [a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
    return names + [a.arg for a in (args.vararg, args.kwarg) if a is not None]


class ScopeTable:
    """Every use and definition of every name of a module, by the scope that owns the name."""

    def __init__(self, module: Module) -> None:
        self._tree = module.tree
        self._parents = module.parents
        self._owner: dict[ast.AST, Scope] = {}
        self._loads: dict[tuple[Scope, str], list[ast.Name]] = {}
        self._stores: dict[tuple[Scope, str], list[ast.Name]] = {}
        self._globals: set[tuple[Scope, str]] = set()
        self._taken: dict[Scope, frozenset[str]] = {}
        self.attributes: dict[str, list[ast.Attribute]] = {}
        """Reads of an attribute of that name."""
        self.handed: dict[str, list[ast.Call]] = {}
        """Calls that have something of that name, perhaps in a list, among their arguments."""
        self._comprehended: set[str] = set()
        self._fields: dict[ast.AST, dict[ast.AST, str]] = {}
        self._known_arms: dict[ast.AST, tuple[tuple[ast.If, str], ...]] = {}
        self._known_blocks: dict[ast.AST, frozenset[tuple[int, str]]] = {}
        self._known_loops: dict[ast.AST, list[ast.AST]] = {}
        names = self._assign_owners(module)
        for name in names:
            if not isinstance(name.ctx, ast.Load) and self.comprehension_of(name) is None:
                self._stores.setdefault((self._owner[name], name.id), []).append(name)
        for name in names:
            if isinstance(name.ctx, ast.Load) and self.comprehension_of(name) is None:
                owner = self.owner_of_name(self._owner[name], name.id)
                self._loads.setdefault((owner, name.id), []).append(name)

    def _assign_owners(self, module: Module) -> list[ast.Name]:
        owner, parents = self._owner, self._parents
        for node in module.nodes:
            parent = parents.get(node)
            if parent is None:
                owner[node] = module.tree
            elif parent.__class__ in FUNCTIONS and node not in parent.decorator_list:
                owner[node] = parent
            else:
                owner[node] = owner[parent]
        for node in module.of(ast.Global, ast.Nonlocal):
            self._globals.update((owner[node], name) for name in node.names)
        for node in module.of(ast.comprehension):
            self._comprehended.update(n.id for n in walk_level(node.target) if isinstance(n, ast.Name))
        for node in module.of(ast.Attribute):
            if node.ctx.__class__ is ast.Load:
                self.attributes.setdefault(node.attr, []).append(node)
        for node in module.of(ast.Call):
            for name in _arguments(node):
                self.handed.setdefault(name, []).append(node)
        names: list[ast.Name] = module.of(ast.Name)
        return names

    def scope(self, node: ast.AST) -> Scope:
        """The scope in which `node` is evaluated."""
        return self._owner[node]

    def owner_of_name(self, scope: Scope, name: str) -> Scope:
        """The scope whose variable `name` means when it is read in `scope`."""
        current = scope
        while isinstance(current, FUNCTIONS):
            taken = self._taken.get(current)
            if taken is None:
                taken = self._taken[current] = frozenset(parameters(current))
            bound = name in taken or (current, name) in self._stores
            if bound and (current, name) not in self._globals:
                return current
            current = self._owner[current]
        return self._tree

    def stores(self, scope: Scope, name: str) -> list[ast.Name]:
        """Where `name` is assigned in `scope`, in source order."""
        return self._stores.get((scope, name), [])

    def comprehension_of(self, name: ast.Name) -> ast.AST | None:
        """The comprehension whose own variable `name` is, if it is one."""
        if name.id not in self._comprehended:
            return None
        child: ast.AST = name
        current = self._parents.get(name)
        while current is not None and not isinstance(current, (ast.stmt, ast.Module)):
            if isinstance(current, COMPREHENSIONS) and _binds(current, name.id):
                if child is not current.generators[0] or not _inside(
                    name, current.generators[0].iter, self._parents
                ):
                    return current
            child, current = current, self._parents.get(current)
        return None

    def statement(self, node: ast.AST) -> ast.stmt:
        """The innermost statement around `node`."""
        while not isinstance(node, ast.stmt):
            node = self._parents[node]
        return node

    def uses(self, scope: Scope, name: str, definition: ast.AST | None) -> Iterator[ast.Name]:
        """Reads of `name` that a value given to it at `definition` (None: on entry) may reach."""
        for use in self._loads.get((scope, name), ()):
            if self._owner[use] is not scope:
                yield use  # a function inside: called who knows when
            elif definition is None:
                if not self._killed(use, scope, name, (0, 0)):
                    yield use
            elif self._owner[definition] is not scope or self.reaches(definition, use, scope, name):
                yield use

    def reaches(self, definition: ast.AST, use: ast.Name, scope: Scope, name: str) -> bool:
        """Can the value given at `definition` still be there at `use` (both in `scope`)?"""
        start = _effect(self.statement(definition), definition)
        if position(use) > start and not self._exclusive(definition, use):
            if not self._killed(use, scope, name, start):
                return True
        loop = self._common_loop(definition, use)
        return loop is not None and not self._killed(use, scope, name, position(loop))

    def _killed(self, use: ast.Name, scope: Scope, name: str, start: Position) -> bool:
        """Is `name` certainly assigned anew between `start` and `use`?"""
        blocks: frozenset[tuple[int, str]] | None = None
        for store in self._stores.get((scope, name), ()):
            statement = self.statement(store)
            if not isinstance(statement, KILLERS) or not start < _effect(statement, store) < position(use):
                continue
            if isinstance(statement, ast.AnnAssign) and statement.value is None:
                continue  # `x: int` says what x is, and leaves it as it was
            if isinstance(statement, (ast.For, ast.AsyncFor)):
                if not _within(use, statement.body, self._parents):
                    continue
                return True
            if blocks is None:
                blocks = self._blocks(use)
            if self._block(statement) in blocks:
                return True
        return False

    def _block(self, statement: ast.stmt) -> tuple[int, str]:
        """The block a statement stands in; the body of `with` counts as part of the block around it."""
        parent = self._parents[statement]
        while isinstance(parent, (ast.With, ast.AsyncWith)):
            statement, parent = parent, self._parents[parent]
        return id(parent), self._field(parent, statement)

    def _field(self, parent: ast.AST, child: ast.AST) -> str:
        """The field of `parent` in which `child` stands."""
        fields = self._fields.get(parent)
        if fields is None:
            fields = self._fields[parent] = {}
            for name, value in ast.iter_fields(parent):
                for item in value if isinstance(value, list) else (value,):
                    if isinstance(item, ast.AST):
                        fields.setdefault(item, name)
        return fields.get(child, "")

    def _blocks(self, node: ast.AST) -> frozenset[tuple[int, str]]:
        """The blocks around `node` in its own scope."""
        if node not in self._known_blocks:
            self._known_blocks[node] = frozenset(self._find_blocks(node))
        return self._known_blocks[node]

    def _find_blocks(self, node: ast.AST) -> Iterator[tuple[int, str]]:
        current: ast.AST | None = node
        while current is not None and not isinstance(current, (*FUNCTIONS, ast.Module)):
            if isinstance(current, ast.stmt):
                yield self._block(current)
            current = self._parents.get(current)
        if isinstance(current, FUNCTIONS):
            yield id(current), "body"

    def _exclusive(self, one: ast.AST, other: ast.AST) -> bool:
        """Do the two stand in different arms of the same `if`?"""
        arms = dict(self._arms(one))
        return any(arms.get(branch, arm) != arm for branch, arm in self._arms(other))

    def _arms(self, node: ast.AST) -> tuple[tuple[ast.If, str], ...]:
        """The `if` statements around `node` in its own scope, each with the arm that holds it."""
        if node not in self._known_arms:
            self._known_arms[node] = tuple(
                (parent, self._field(parent, child))
                for child, parent in self.ancestry(node)
                if isinstance(parent, ast.If) and child is not parent.test
            )
        return self._known_arms[node]

    def ancestry(self, node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
        """(child, parent) pairs from `node` up to the scope that holds it."""
        child, parent = node, self._parents.get(node)
        while parent is not None:
            yield child, parent
            if isinstance(parent, FUNCTIONS):
                return
            child, parent = parent, self._parents.get(parent)

    def _common_loop(self, one: ast.AST, other: ast.AST) -> ast.AST | None:
        loops = self.loops(one)
        return next((loop for loop in self.loops(other) if loop in loops), None) if loops else None

    def loops(self, node: ast.AST) -> list[ast.AST]:
        """The loops around `node` in its own scope, innermost first."""
        found = self._known_loops.get(node)
        if found is None:
            found = [parent for _, parent in self.ancestry(node) if isinstance(parent, LOOPS)]
            self._known_loops[node] = found
        return found


def _arguments(call: ast.Call) -> set[str]:
    """Last components of the names among the arguments of a call, lists and tuples looked into."""
    values = [*call.args, *(keyword.value for keyword in call.keywords)]
    values += [e for value in values if isinstance(value, (ast.List, ast.Tuple)) for e in value.elts]
    names = {value.id for value in values if isinstance(value, ast.Name)}
    return names | {value.attr for value in values if isinstance(value, ast.Attribute)}


def _effect(statement: ast.stmt, store: ast.AST) -> Position:
    """Where an assignment takes effect: loops and `with` at their target, others at their end."""
    if isinstance(statement, (ast.For, ast.AsyncFor, ast.With, ast.AsyncWith, ast.If, ast.While)):
        return position(store)
    return (statement.end_lineno or 0, statement.end_col_offset or 0)


def _binds(comprehension: ast.AST, name: str) -> bool:
    return any(
        isinstance(node, ast.Name) and node.id == name
        for generator in comprehension.generators  # type: ignore[attr-defined]
        for node in walk_level(generator.target)
    )


def _inside(node: ast.AST, ancestor: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    current: ast.AST | None = node
    while current is not None and current is not ancestor:
        current = parents.get(current)
    return current is not None


def _within(node: ast.AST, block: list[ast.stmt], parents: dict[ast.AST, ast.AST]) -> bool:
    return any(_inside(node, statement, parents) for statement in block)
