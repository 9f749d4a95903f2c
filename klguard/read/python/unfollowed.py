"""What a function that is not followed may change of what it does not get as an argument: globals, and its object."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator, Mapping

from klguard.read.python.source import FunctionInfo, dotted
from klguard.read.python.trees import walk_level

CHANGING = frozenset(
    "update pop popitem clear setdefault append extend insert remove sort reverse add discard"
    " __setitem__ __delitem__ __ior__ __iadd__ __setattr__ __delattr__".split()
)
"""Methods that change the object they belong to."""

CHANGERS = frozenset("setattr delattr setitem delitem ior iconcat".split())
"""Builtins, and functions of `operator`, that change their first argument."""

Place = tuple[str, str, bool]
"""A name, an attribute of it or "", and whether it gets another value (else what it holds is changed)."""


def touched(function: ast.AST, functions: Mapping[str, FunctionInfo]) -> set[Place]:
    """The names, and attributes of names, that the body of a function assigns to, changes or passes on, and those that
    the `functions` of its module do which it calls."""
    found: set[Place] = set()
    waiting, entered = [function], {function}
    while waiting:
        here = waiting.pop()
        found |= _touched_here(here)
        called = (functions.get(name) for name in _called(here))
        fresh = {info.node for info in called if info is not None and info.parent is None} - entered
        entered |= fresh
        waiting.extend(fresh)
    return found


def _called(function: ast.AST) -> set[str]:
    return {
        node.func.id
        for node in walk_level(function)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }


def _touched_here(function: ast.AST) -> set[Place]:
    found: set[Place] = set()
    declared = {name for node in walk_level(function) if isinstance(node, ast.Global) for name in node.names}
    for node, rebound in _changed(function):
        name, attribute, deeper = _root(node)
        if name and (attribute or not rebound or deeper or name in declared):
            found.add((name, attribute, rebound and not deeper))
    return found


def _changed(function: ast.AST) -> Iterator[tuple[ast.AST, bool]]:
    for node in walk_level(function):
        yield from ((value, False) for value in _renamed(node))
        if isinstance(node, (ast.Name, ast.Attribute, ast.Subscript)) and not isinstance(node.ctx, ast.Load):
            yield node, True
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and node.func.attr in CHANGING:
                yield node.func.value, False
            if node.args and dotted(node.func).rpartition(".")[2] in CHANGING | CHANGERS:
                yield node.args[0], False
            if isinstance(node.func, ast.Name) and not hasattr(builtins, node.func.id):
                for value in (*node.args, *(keyword.value for keyword in node.keywords)):
                    yield value, False


def _renamed(node: ast.AST) -> Iterator[ast.expr]:
    """What a statement or expression gives another name, under which it may be changed, or hands back."""
    match node:
        case ast.Assign() | ast.AnnAssign() | ast.NamedExpr() | ast.Return() | ast.Yield() if (
            node.value is not None
        ):
            yield node.value
        case ast.For() | ast.AsyncFor() | ast.comprehension() | ast.YieldFrom():
            yield node.value if isinstance(node, ast.YieldFrom) else node.iter
        case ast.List() | ast.Tuple() | ast.Set():
            yield from node.elts
        case ast.Dict():
            yield from node.values
        case ast.withitem():
            yield node.context_expr


def _root(node: ast.AST) -> tuple[str, str, bool]:
    """(The name an access path begins with, the attribute of it, whether the path goes on behind it)."""
    parts: list[str] = []
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        parts.append(node.attr if isinstance(node, ast.Attribute) else "")
        node = node.value
    if not isinstance(node, ast.Name):
        return "", "", False
    attribute = parts[-1] if parts else ""
    return node.id, attribute, len(parts) > (1 if attribute else 0)
