"""Which branch of a function is taken, where an option decides that nobody but its default, or the call, sets."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from itertools import takewhile

from klguard.read.python.project import Project
from klguard.read.python.scopes import parameters
from klguard.read.python.source import Module, dotted
from klguard.read.python.wiring.bindings import Scope, conditions, own_nodes
from klguard.read.python.wiring.roles import constant

Given = Mapping[str, tuple[Module, ast.expr]]
"""Parameter -> what a call hands over for it, and the module of the call."""

Modules = frozenset[Module]


def handed(call: ast.Call, function: Scope) -> dict[str, ast.expr]:
    """Parameter -> what a call hands over for it."""
    names = parameters(function)
    if names[:1] in (["self"], ["cls"]):
        names = names[1:]
    plain = takewhile(lambda argument: not isinstance(argument, ast.Starred), call.args)
    named = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    return dict(zip(names, plain, strict=False)) | named


def is_taken(
    project: Project, modules: Modules, module: Module, scope: Scope, node: ast.AST, given: Given
) -> bool | None:
    """Whether the branches that a node of a function stands in are the ones taken; None where that is not known.

    modules   those in which an option may be given another value than its default.
    """
    taken: bool | None = True
    for around, arm in conditions(module, node, scope):
        if not isinstance(around, ast.If):
            if arm != "body":
                return None
            continue
        holds = _holds(project, modules, module, around.test, given)
        if holds is None:
            taken = None
        elif holds is not (arm == "body"):
            return False
    return taken


def returned(
    project: Project, modules: Modules, module: Module, scope: Scope, given: Given
) -> ast.expr | None:
    """The expression that a function hands back when it is given these arguments; None where that is not known."""
    for node in own_nodes(scope):
        if isinstance(node, ast.Return):
            taken = is_taken(project, modules, module, scope, node, given)
            if taken is None:
                return None
            if taken:
                return node.value
    return None


def _holds(project: Project, modules: Modules, module: Module, test: ast.expr, given: Given) -> bool | None:
    match test:
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            inside = _holds(project, modules, module, inner, given)
            return None if inside is None else not inside
        case ast.Compare(
            left=left, ops=[ast.Eq() | ast.NotEq() | ast.In() | ast.NotIn() as how], comparators=[right]
        ):
            value, plain = _value(project, modules, module, left, given), _plain(right)
            if value is None or plain is None:
                return None
            same = value in plain if isinstance(plain, tuple) else value == plain
            return same is isinstance(how, ast.Eq | ast.In)
    return None


def _plain(node: ast.expr) -> str | tuple[str, ...] | None:
    """The words that an option is compared with."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        words = [_plain(item) for item in node.elts]
        return tuple(word for word in words if isinstance(word, str)) if None not in words else None
    return None


def _value(project: Project, modules: Modules, module: Module, node: ast.expr, given: Given) -> str | None:
    """The word that an option is."""
    if isinstance(node, ast.Name) and node.id in given:
        module, node = given[node.id]
    found = constant(project, module, node)
    if found is None or not isinstance(found.value, str):
        return None
    name = dotted(node).rpartition(".")[2]
    others = {value for where in modules for value in _set(where, name)}
    return found.value if others <= {found.value} else None


def _set(module: Module, name: str) -> Iterator[str | None]:
    """What a keyword, or an attribute, of that name is given in a module; None for what is no word."""
    for keyword in module.of(ast.keyword):
        if keyword.arg == name and dotted(keyword.value).rpartition(".")[2] != name:
            yield _word(keyword.value)
    for node in module.of(ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Attribute) and target.attr == name:
                yield _word(node.value)


def _word(node: ast.expr) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None
