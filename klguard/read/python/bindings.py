"""Which names get a value: parameters, targets of assignments and loops, other names of one object."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from klguard.read.python.callers import callee_name, positional
from klguard.read.python.source import FunctionInfo
from klguard.read.python.spots import Path, read

SEQUENCES = frozenset(
    "list tuple reversed sorted iter next set copy deepcopy asdict dict tqdm shuffle".split()
)
"""Calls whose result holds what they are given, field by field."""


def received(
    info: FunctionInfo, call: ast.Call, slot: int | str | None, path: Path
) -> Iterator[tuple[str, Path]]:
    """The parameters of `info` that get what `call` passes at `slot`."""
    args = info.node.args
    names = positional(info, call)
    known = {a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)}
    if isinstance(slot, int):
        if slot < len(names):
            yield names[slot], path
        elif args.vararg is not None:
            yield args.vararg.arg, path
    elif slot == "**" and path and path[0] in known:
        yield path[0], path[1:]
    elif slot in known:
        yield str(slot), path
    elif isinstance(slot, str) and args.kwarg is not None:
        yield args.kwarg.arg, path if slot == "**" else (slot, *path)
    elif slot in (None, "**"):
        yield from ((name, ()) for name in names)


def aliased(statement: ast.stmt, store: ast.Name) -> Iterator[ast.expr]:
    """What a variable is an element or another name of: `for state in self.states`, `batch = batches[i]`."""
    if isinstance(statement, ast.Assign) and store in statement.targets:
        if isinstance(statement.value, (ast.Attribute, ast.Subscript)):
            yield statement.value
    elif isinstance(statement, (ast.For, ast.AsyncFor)):
        elements: list[tuple[ast.expr, ast.expr]] = [(statement.target, statement.iter)]
        while elements:
            target, source = elements.pop()
            if isinstance(source, ast.Call) and source.args:
                name = callee_name(source)
                if name == "enumerate" and isinstance(target, ast.Tuple) and len(target.elts) == 2:
                    elements.append((target.elts[1], source.args[0]))
                elif name == "zip" and isinstance(target, ast.Tuple):
                    elements += zip(target.elts, source.args, strict=False)
                elif name in SEQUENCES:
                    elements.append((target, source.args[0]))
            elif target is store and isinstance(source, (ast.Name, ast.Attribute, ast.Subscript)):
                yield source


def key_of(node: ast.expr) -> str:
    """A constant subscript as a field name, "" for anything else."""
    if (
        isinstance(node, ast.Constant)
        and isinstance(node.value, (str, int))
        and not isinstance(node.value, bool)
    ):
        return str(node.value)
    return ""


def unpacked(target: ast.expr, path: Path) -> Iterator[tuple[str, Path]]:
    """The names of a loop target that get the value, each with its path."""
    if isinstance(target, ast.Name):
        yield target.id, path
    elif isinstance(target, (ast.Tuple, ast.List)):
        for index, element in enumerate(target.elts):
            inner = read(path, str(index)) if path[:1] and path[0].isdigit() else path
            if inner is not None:
                yield from unpacked(element, inner)
    elif isinstance(target, ast.Starred):
        yield from unpacked(target.value, path)
