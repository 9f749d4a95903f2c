"""Train and eval mode: what the model was last put into before it samples, and whether a reference learns."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from klguard.read.python.project import Project
from klguard.read.python.source import FunctionInfo, Module, called_name, dotted
from klguard.read.python.trees import walk_level
from klguard.read.python.wiring.bindings import (
    Scope,
    definitions,
    dominates,
    end,
    exclusive,
    inside,
    loops,
    own_nodes,
    scope_of,
    start,
)
from klguard.read.python.wiring.samplers import bare
from klguard.read.python.wiring.trails import graph_of
from klguard.settings import Hop, HopKind, Known, Value

REFERENCE_NAME = re.compile(
    r"^(self\.)?_?((ref|reference)(_(model|policy|actor|lm|net))?|(model|policy|actor)_ref(erence)?)$"
)
OPTIMIZER = re.compile(
    r"(Adam\w*|SGD|Optimizer|Lion|Adafactor|RMSprop|Adagrad|Muon)$|^(build|create|make|get)_optimizers?$"
)


def bare_name(node: ast.expr) -> str:
    """`self.policy` for `self.policy.module`, `accelerator.unwrap_model(self.policy)`; "" for no name."""
    return dotted(bare(node))


def train_mode(project: Project, module: Module, model: ast.expr, call: ast.Call) -> Value | None:
    """Known(True) when `model` was last put into train(), Known(False) after eval(), None where it varies."""
    name = bare_name(model)
    if not name:
        return None
    scope = scope_of(module, call)
    switches = list(_switches(scope, name))
    if switches:
        return _last(project, module, switches, name, call, scope)
    return _of_module(module, name, scope)


def _switches(scope: Scope, name: str) -> Iterator[ast.Call]:
    """`name.train()` and `name.eval()` in the scope itself."""
    for node in own_nodes(scope):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("train", "eval")
        ):
            if bare_name(node.func.value) == name:
                yield node


def _mode(switch: ast.Call) -> bool | None:
    """True for `train()`, False for `eval()` and `train(False)`, None for a mode computed at run time."""
    assert isinstance(switch.func, ast.Attribute)
    if switch.func.attr == "eval":
        return False
    given = [*switch.args, *(k.value for k in switch.keywords)]
    if not given:
        return True
    return given[0].value if isinstance(given[0], ast.Constant) and isinstance(given[0].value, bool) else None


def _last(
    project: Project, module: Module, switches: list[ast.Call], name: str, call: ast.Call, scope: Scope
) -> Value | None:
    before = [s for s in switches if end(s) <= start(call) and not exclusive(module, s, call, scope)]
    base = next((s for s in reversed(before) if dominates(module, s, call, scope)), None)
    if base is None or before[-1] is not base:
        return None
    around = [loop for loop in loops(module, call, scope) if not inside(base, loop)]
    if any(inside(s, loop) for s in switches for loop in around):
        return None
    if any(_may_switch(project, module, node, name) for node in _run_between(scope, base, call, around)):
        return None
    return _value(module, base)


def _run_between(scope: Scope, base: ast.Call, call: ast.Call, around: list[ast.AST]) -> Iterator[ast.Call]:
    """Calls that may run after the switch and before the sampling, on this or an earlier pass of a loop."""
    for node in own_nodes(scope):
        if isinstance(node, ast.Call) and node is not call and node is not base:
            if end(base) <= start(node) < start(call) or any(inside(node, loop) for loop in around):
                yield node


def _may_switch(project: Project, module: Module, node: ast.Call, name: str) -> bool:
    """Whether a call that gets hold of the model changes its mode: a trainer's step, or visible code."""
    words = dotted(node.func)
    if re.search(r"trainer\.(step|train|fit)$", words):
        return True
    holds = any(dotted(argument) == name for argument in (*node.args, *(k.value for k in node.keywords)))
    owns = words.startswith("self.") and name.startswith("self.")
    if not holds and not owns:
        return False
    target = graph_of(project).target(module, node)
    if not isinstance(target, FunctionInfo):
        return False
    return any(
        isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr in ("train", "eval")
        for n in walk_level(target.node)
    )


def _of_module(module: Module, name: str, scope: Scope) -> Value | None:
    """A global model that only the top level of the module ever switches, always to the same mode."""
    if isinstance(scope, ast.Module) or "." in name or name in definitions(module, scope):
        return None
    top = list(_switches(module.tree, name))
    everywhere = _everywhere(module, name)
    if not top or len(everywhere) != len(top) or len({_mode(s) for s in top}) != 1:
        return None
    return _value(module, top[-1])


def _value(module: Module, switch: ast.Call) -> Value | None:
    mode = _mode(switch)
    if mode is None:
        return None
    return Known(mode, (Hop(HopKind.ATTRIBUTE, module.ast_place(switch), module.segment(switch)),))


def in_optimizer(module: Module, name: str) -> Value | None:
    """Known('in the optimizer') when the parameters of the model `name` are handed to one."""
    for node in module.calls.get("parameters", ()) if name else ():
        if isinstance(node.func, ast.Attribute) and bare_name(node.func.value) == name:
            optimizer = _optimizer_around(module, node)
            if optimizer is not None:
                hop = Hop(HopKind.KWARG, module.ast_place(node), module.segment(optimizer))
                return Known("in the optimizer", (hop,))
    return None


def _optimizer_around(module: Module, node: ast.AST) -> ast.Call | None:
    parent = module.parents.get(node)
    while parent is not None and not isinstance(parent, (ast.stmt, ast.Lambda)):
        if isinstance(parent, ast.Call) and OPTIMIZER.search(called_name(parent)):
            return parent
        parent = module.parents.get(parent)
    return None


def loop_reference(module: Module) -> Value | None:
    """How the reference of a loop written by hand may learn or drop out: in the optimizer, or in train mode.

    It is known by its name, and by being called or switched as only a model is: reference answers are no models.
    """
    called = {dotted(node.func) for calls in module.calls.values() for node in calls}
    switched = {
        bare_name(node.func.value)
        for word in ("train", "eval", "parameters", "requires_grad_")
        for node in module.calls.get(word, ())
        if isinstance(node.func, ast.Attribute)
    }
    for name in sorted(name for name in called | switched if REFERENCE_NAME.search(name)):
        found = in_optimizer(module, name) or _in_train_mode(module, name)
        if found is not None:
            return found
    return None


def _in_train_mode(module: Module, name: str) -> Value | None:
    switches = _everywhere(module, name)
    if not switches or not all(_mode(switch) is True for switch in switches):
        return None
    hop = Hop(HopKind.ATTRIBUTE, module.ast_place(switches[0]), module.segment(switches[0]))
    return Known("train mode", (hop,))


def _everywhere(module: Module, name: str) -> list[ast.Call]:
    """Every switch of the model `name` in the module."""
    return [
        node
        for word in ("train", "eval")
        for node in module.calls.get(word, ())
        if isinstance(node.func, ast.Attribute) and bare_name(node.func.value) == name
    ]
