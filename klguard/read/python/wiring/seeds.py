"""The random state a rollout starts from: whether a loop sets it to the same one each time."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from klguard.read.python.source import Module, called_name, dotted
from klguard.read.python.wiring.bindings import (
    Scope,
    definitions,
    dominates,
    end,
    inside,
    loops,
    own_nodes,
    scope_of,
    start,
)
from klguard.settings import Hop, HopKind, Known, Value

SETTERS = frozenset({"manual_seed", "manual_seed_all", "set_seed", "seed_everything", "seed_all"})
TORCH = frozenset({"torch", "torch.cuda", "torch.random"})
SEED = re.compile(r"seed", re.IGNORECASE)


def reseeded(module: Module, call: ast.Call) -> Value | None:
    """Known(True) when each pass of a loop sets the same seed before it samples at `call`.

    The loop is one around both, or one around the calls of the function in which both stand.
    """
    scope = scope_of(module, call)
    for node in _setters(module, scope):
        if not (
            end(node) <= start(call) and dominates(module, node, call, scope) and _same(module, node, scope)
        ):
            continue
        around = [loop for loop in loops(module, call, scope) if inside(node, loop)]
        if around or (not loops(module, node, scope) and _called_in_a_loop(module, scope)):
            return Known(True, (Hop(HopKind.LITERAL, module.ast_place(node), module.segment(node)),))
    return None


def _setters(module: Module, scope: Scope) -> Iterator[ast.Call]:
    """Calls in the scope itself that set the seed torch draws with."""
    for node in own_nodes(scope):
        if not isinstance(node, ast.Call) or called_name(node) not in SETTERS or len(node.args) != 1:
            continue
        owner = dotted(node.func).rpartition(".")[0]
        if owner in TORCH if called_name(node).startswith("manual_seed") else isinstance(node.func, ast.Name):
            yield node


def _same(module: Module, node: ast.Call, scope: Scope) -> bool:
    """Whether the seed is one number throughout: written out, or a name called a seed that nothing here changes."""
    seed = node.args[0]
    if isinstance(seed, ast.Constant):
        return isinstance(seed.value, int) and not isinstance(seed.value, bool)
    name = dotted(seed)
    if not SEED.search(name.rpartition(".")[2]):
        return False
    if isinstance(seed, ast.Attribute):
        return not any(
            _binds(each, name) for each in module.of(ast.Assign, ast.AugAssign, ast.AnnAssign, ast.For)
        )
    found = definitions(module, scope).get(name) or definitions(module, module.tree).get(name, [])
    return (
        len(found) == 1 and isinstance(found[0].value, ast.Constant) and isinstance(found[0].node, ast.Assign)
    )


def _binds(node: ast.AST, name: str) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]  # type: ignore[attr-defined]
    return any(dotted(target) == name for target in targets)


def _called_in_a_loop(module: Module, scope: Scope) -> bool:
    """Whether the function is called in a loop of the same module."""
    calls = module.calls.get(getattr(scope, "name", ""), ())
    return any(loops(module, each, scope_of(module, each)) for each in calls)
