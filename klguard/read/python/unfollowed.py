"""What a function that is not followed may change of what it does not get as an argument: globals, and its object."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable, Iterator

from klguard.read.python.memo import remembered
from klguard.read.python.quiet import QUIET_METHODS, QUIET_PACKAGES
from klguard.read.python.source import FunctionInfo, Module, dotted
from klguard.read.python.trees import SCOPES, children, walk_level

CHANGING = frozenset(
    "update pop popitem clear setdefault append extend insert remove sort reverse add discard"
    " __setitem__ __delitem__ __ior__ __iadd__ __setattr__ __delattr__".split()
)
"""Methods that change the object they belong to."""

CHANGERS = frozenset("setattr delattr setitem delitem ior iconcat".split())
"""Builtins, and functions of `operator`, that change their first argument."""


Place = tuple[str, str, bool]
"""A name, an attribute of it or "", and whether it gets another value (else what it holds is changed)."""


@remembered
def touched(function: FunctionInfo) -> set[Place]:
    """The names, and attributes of names, that the body of a function assigns to, changes or passes on, and those that
    the functions of its module and the methods of its class do which it calls."""
    found: set[Place] = set()
    waiting, entered = [function], {function}
    while waiting:
        here = waiting.pop()
        found |= _touched_here(here)
        fresh = {info for info in _called(here) if info.parent is None} - entered
        entered |= fresh
        waiting.extend(fresh)
    return found


def _called(function: FunctionInfo) -> Iterator[FunctionInfo]:
    """Functions of the same module that are called by name, and methods of the same class by the name of the object,
    which all of them have to know it by."""
    methods, own = ({}, "") if function.cls is None else (function.cls.methods, _first_parameter(function))
    for node in walk_level(function.node):
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in function.module.functions:
                yield function.module.functions[name]
            case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=name)) if owner == own:
                if name in methods and _first_parameter(methods[name]) == own:
                    yield methods[name]


def _first_parameter(function: FunctionInfo) -> str:
    taken = [*function.node.args.posonlyargs, *function.node.args.args]
    return taken[0].arg if taken else ""


def _touched_here(function: FunctionInfo) -> set[Place]:
    found: set[Place] = set()
    nodes, own = walk_level(function.node), _bound_here(function)
    declared = {name for node in nodes if isinstance(node, ast.Global) for name in node.names}
    for node, rebound in _changed(nodes, function.module):
        name, attribute, deeper = _root(node)
        if name and name not in own and (attribute or not rebound or deeper or name in declared):
            found.add((name, attribute, rebound and not deeper))
    return found


def _bound_here(function: FunctionInfo) -> set[str]:
    """The names of a function's own variables, but for the object that a method is bound to."""
    taken = function.node.args
    every = [*taken.posonlyargs, *taken.args, *taken.kwonlyargs, taken.vararg, taken.kwarg]
    found = {one.arg for one in every if one is not None}
    if function.cls is not None:
        found.discard(_first_parameter(function))
    others: set[str] = set()
    waiting: list[ast.AST] = [*function.node.body]
    for node in waiting:  # grows while it is gone through
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            others.update(node.names)
        if not isinstance(node, (*SCOPES, *_COMPREHENSIONS)):
            waiting += children(node)
    return found - others


_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def _changed(nodes: Iterable[ast.AST], module: Module) -> Iterator[tuple[ast.AST, bool]]:
    for node in nodes:
        yield from ((value, False) for given in _renamed(node) for value in _alternatives(given))
        if isinstance(node, (ast.Name, ast.Attribute, ast.Subscript)) and not isinstance(node.ctx, ast.Load):
            yield node, True
        elif isinstance(node, ast.Attribute) and node.attr in CHANGING:
            yield node.value, False
        elif isinstance(node, ast.Call):
            if node.args and dotted(node.func).rpartition(".")[2] in CHANGING | CHANGERS:
                yield node.args[0], False
            if not _is_quiet(node.func, module):
                for given in (*node.args, *(keyword.value for keyword in node.keywords)):
                    yield from ((value, False) for value in _alternatives(given))


def _alternatives(node: ast.expr) -> Iterator[ast.expr]:
    """The expressions one of which gives another its value."""
    match node:
        case ast.IfExp():
            yield from (*_alternatives(node.body), *_alternatives(node.orelse))
        case ast.BoolOp():
            for value in node.values:
                yield from _alternatives(value)
        case ast.NamedExpr() | ast.Starred() | ast.Await():
            yield from _alternatives(node.value)
        case _:
            yield node


def _is_quiet(callee: ast.expr, module: Module) -> bool:
    """Whether a call leaves what it is given as it is: one of a builtin, of a library, or of a method by its name."""
    name = dotted(callee)
    home = module.imports.get(name.split(".")[0], "builtins" if hasattr(builtins, name) else "")
    return home.split(".")[0] in QUIET_PACKAGES or "." in name and name.rpartition(".")[2] in QUIET_METHODS


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
