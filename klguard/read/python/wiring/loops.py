"""The code a rollout is trained on by, where somebody wrote the loop by hand."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from klguard.read.python.memo import remembered
from klguard.read.python.project import Project
from klguard.read.python.source import FunctionInfo, Module, called_name, dotted
from klguard.read.python.trees import walk_level
from klguard.read.python.wiring.bindings import Scope, own_nodes, scope_of
from klguard.read.python.wiring.trails import graph_of

REFERENCE = re.compile(r"(^|_)(ref|reference|sft|base|init|initial|anchor)(_|$)", re.IGNORECASE)
"""Words for the model the policy is held close to."""

MAX_CALLERS = 4
MAX_PASSES = 6
NUMBERS = frozenset({"item", "detach", "float", "cpu", "tolist", "append", "numpy"})
"""Calls that take a number out of a tensor and leave its gradient behind."""


def training_scopes(project: Project, module: Module, call: ast.Call) -> list[tuple[Module, Scope]]:
    """The functions that handle the rollout, with their modules.

    Those around the call, their callers, methods of the same class that call backward, and what these call.
    """
    found: dict[Scope, Module] = {}
    info = module.enclosing(call)
    if info is None:
        found[module.tree] = module
    graph = graph_of(project)
    while info is not None:
        found[info.node] = module
        for caller, site in graph.callers(info)[:MAX_CALLERS]:
            found[scope_of(caller, site)] = caller
        info = info.parent
    own = graph.own_class(module, call)
    for backward in module.calls.get("backward", ()) if own is not None else ():
        if graph.own_class(module, backward) is own:
            found[scope_of(module, backward)] = module
    for scope in list(found):
        for target in _visible_callees(project, found[scope], scope):
            found.setdefault(target.node, target.module)
    return [(where, scope) for scope, where in found.items()]


def _visible_callees(project: Project, module: Module, scope: Scope) -> Iterator[FunctionInfo]:
    for node in own_nodes(scope):
        if isinstance(node, ast.Call):
            target = graph_of(project).target(module, node)
            if isinstance(target, FunctionInfo):
                yield target


@remembered
def takes_gradient(scope: Scope) -> list[ast.Call]:
    """The backward calls of a function."""
    return [n for n in own_nodes(scope) if isinstance(n, ast.Call) and called_name(n) == "backward"]


def uses(value: ast.AST, name: str) -> bool:
    """Whether the variable or attribute `name` stands in an expression."""
    return any(isinstance(n, (ast.Name, ast.Attribute)) and dotted(n) == name for n in walk_level(value))


def names_in(value: ast.AST) -> set[str]:
    """Every variable and attribute in an expression, by dotted name."""
    return {dotted(n) for n in walk_level(value) if isinstance(n, (ast.Name, ast.Attribute))} - {""}


def flows_into(scope: Scope, name: str) -> set[str]:
    """The variables of a function that are computed from `name`, with its gradient; `name` too."""
    assigned = [(target, names_in(value), value) for target, value in _assigned(scope)]
    found = {name}
    for _ in range(MAX_PASSES):
        before = len(found)
        for target, names, value in assigned:
            if target not in found and any(not _detached(value, each) for each in names & found):
                found.add(target)
        if len(found) == before:
            break
    return found


def _assigned(scope: Scope) -> Iterator[tuple[str, ast.expr]]:
    for node in own_nodes(scope):
        match node:
            case ast.Assign(targets=targets, value=value):
                yield from ((name, value) for t in targets if (name := _base(t)))
            case (
                ast.AugAssign(target=target, value=value)
                | ast.AnnAssign(target=target, value=ast.expr() as value)
            ):
                if name := _base(target):
                    yield name, value


def _base(target: ast.expr) -> str:
    """`rewards` for `rewards[:, -1]`."""
    while isinstance(target, ast.Subscript):
        target = target.value
    return dotted(target)


def _detached(value: ast.AST, name: str) -> bool:
    """Whether the value only takes a number out of the variable (`kl.item()`, `kl.detach()`, `float(kl)`)."""
    return any(
        isinstance(n, ast.Call) and called_name(n) in NUMBERS and uses(n, name) for n in walk_level(value)
    )
