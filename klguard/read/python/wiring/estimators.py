"""The form of a hand-written KL term, where it is one that is known to mislead.

k1 = log pi - log ref has the right mean as a reward; differentiated as a loss its expected gradient is zero,
since E[grad log pi] = 0. |k1| and max(k1, 0) are biased upwards, most where the policies are close.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Container, Iterator
from typing import NamedTuple

from klguard.read.python.project import Project
from klguard.read.python.scopes import parameters
from klguard.read.python.source import FunctionInfo, Module, called_name, dotted
from klguard.read.python.trees import walk_level
from klguard.read.python.wiring.bindings import Scope, ancestors, definitions, exclusive, own_nodes, start
from klguard.read.python.wiring.loops import REFERENCE, flows_into, takes_gradient, uses
from klguard.read.python.wiring.options import Modules, handed, is_taken, returned
from klguard.read.python.wiring.trails import graph_of
from klguard.read.python.wiring.words import LOG_PROB, OLD, Assigned, assigned_once, scorers, word
from klguard.settings import Hop, HopKind, Known, Value

TOTAL = re.compile(r"loss|reward|penalt|return|score|objective|advantage", re.IGNORECASE)
LOSS = re.compile(r"loss|objective", re.IGNORECASE)
AVERAGES = frozenset({"mean", "sum", "masked_mean", "masked_sum", "nanmean"})
BENDS = frozenset(
    "exp expm1 square pow abs clamp clip clamp_min relu huber_loss softplus logsigmoid log_sigmoid sigmoid tanh "
    "binary_cross_entropy_with_logits mse_loss smooth_l1_loss".split()
)


MAX_CALLS = 3
"""Calls through which log-probs are followed back to where they are computed."""

Scopes = list[tuple[Module, Scope]]


def kl_estimator(project: Project, scopes: Scopes, learns: bool) -> Value | None:
    """Known('k1-loss' | 'abs' | 'clamp') where a function that a rollout is used in has such a KL term.

    learns   whether the gradient is taken of the losses that they return.
    """
    score = scorers(scopes)
    modules = frozenset(where for where, _ in scopes)
    for where, scope in scopes:
        known = assigned_once(scope, score)
        ratios: dict[str, ast.Assign] = {}
        for node in own_nodes(scope):
            if isinstance(node, ast.Assign) and (name := dotted(node.targets[0])):
                term = _made(project, modules, where, scope, node, known)
                form = _form(term.value, ratios, term.known)
                if form and _an_option(project, modules, where, node, scope):
                    form = None
                made = next((ratios[n] for n in ratios if uses(node.value, n)), node)
                ratios.pop(name, None)
                if form == "k1-loss":
                    ratios[name] = made
                    if made is not node:
                        term = _Term(where, scope, made.value, known)
                    if _without_gradient(where, made, scope) or not (
                        _linear(scope, name) and _differentiated(project, scopes, term)
                    ):
                        continue
                if form and _enters(where, scope, name, form, learns):
                    hop = Hop(HopKind.LITERAL, where.ast_place(node.value), where.segment(node.value))
                    return Known(form, (hop,))
    return None


class _Term(NamedTuple):
    """An expression, and the function in which it stands."""

    module: Module
    scope: Scope
    value: ast.expr
    known: Assigned


def _made(
    project: Project,
    modules: Modules,
    where: Module,
    scope: Scope,
    node: ast.Assign,
    known: Assigned,
) -> _Term:
    """What is assigned; of a call of a function that has log-probs handed to it, what it hands back."""
    call = node.value
    if isinstance(call, ast.Call) and sum(bool(LOG_PROB.search(word(a, known))) for a in call.args) > 1:
        target = graph_of(project).target(where, call)
        if isinstance(target, FunctionInfo):
            module, made = target.module, target.node
            given = {name: (where, value) for name, value in handed(call, made).items()}
            value = returned(project, modules, module, made, given)
            if value is not None:
                return _Term(module, made, value, assigned_once(made))
    return _Term(where, scope, call, known)


def _an_option(project: Project, modules: Modules, module: Module, node: ast.Assign, scope: Scope) -> bool:
    """Whether another branch computes the same variable otherwise, and this is not known to be the one taken."""
    others = definitions(module, scope).get(dotted(node.targets[0]), [])
    if not any(exclusive(module, d.node, node, scope) for d in others if d.node is not node):
        return False
    return not is_taken(project, modules, module, scope, node, {})


def _form(value: ast.expr, ratios: Container[str], known: Assigned) -> str | None:
    """abs, clamp, or the plain log-ratio, for an expression over the log-probs of policy and reference."""
    found = [n for n in walk_level(value) if _log_ratio(n, known) or _names(n, ratios)]
    if len(found) != 1:
        return None
    around = [n for n in walk_level(value) if n is not found[0] and found[0] in set(walk_level(n))]
    calls = [n for n in around if isinstance(n, ast.Call)]
    names = [called_name(n) for n in calls]
    if names[-1:] == ["abs"]:
        return "abs"
    if any(_floors(n) for n in calls):
        return "clamp"
    plain = set(names) <= AVERAGES and not any(
        isinstance(n, ast.BinOp) and isinstance(n.op, ast.Pow) for n in around
    )
    return "k1-loss" if plain else None


def _names(node: ast.AST, ratios: Container[str]) -> bool:
    return isinstance(node, (ast.Name, ast.Attribute)) and dotted(node) in ratios


def _linear(scope: Scope, name: str) -> bool:
    """Whether neither the log-ratio nor what is made of it is exponentiated, squared or cut, as in k2 and k3, or
    put through a sigmoid, as in the losses over pairs."""
    made = {each for each in flows_into(scope, name) if not LOSS.search(each.rpartition(".")[2])} | {name}
    for node in own_nodes(scope):
        bends = isinstance(node, ast.Call) and called_name(node) in BENDS
        powers = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow)
        if (bends or powers) and any(uses(node, each) for each in made):
            return False
    return True


def _log_ratio(node: ast.AST, known: Assigned) -> bool:
    """`logp - ref_logp`, either way round."""
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub)):
        return False
    one, other = word(node.left, known), word(node.right, known)
    if not (one and other and LOG_PROB.search(one) and LOG_PROB.search(other)):
        return False
    return bool(REFERENCE.search(one)) != bool(REFERENCE.search(other))


def _floors(call: ast.Call) -> bool:
    """`clamp(min=0)`, `clamp(x, 0)`, `relu(x)`: negative estimates are cut off."""
    name = called_name(call)
    if name == "relu":
        return True
    if name not in ("clamp", "clamp_min", "clip", "maximum"):
        return False
    given = [k.value for k in call.keywords if k.arg == "min"] + list(call.args)
    return any(
        isinstance(a, ast.Constant) and a.value in (0, 0.0) and not isinstance(a.value, bool) for a in given
    )


def _enters(module: Module, scope: Scope, name: str, form: str, learns: bool) -> bool:
    """Whether the variable becomes part of a reward or a loss; for k1, of a loss whose gradient is taken."""
    reached = flows_into(scope, name)
    if form != "k1-loss":
        return any(TOTAL.search(each.rpartition(".")[2]) for each in reached - {name})
    if any(uses(call, each) for call in takes_gradient(scope) for each in reached):
        return True
    function = module.by_node.get(scope)
    return learns and any(
        _returned(node.value, reached, function.qualname if function else "")
        for node in own_nodes(scope)
        if isinstance(node, ast.Return) and node.value is not None
    )


def _returned(value: ast.expr, reached: set[str], function: str) -> bool:
    """Whether a function, or the class whose method it is, hands back a loss that the variable is part of, alone or
    first in a tuple."""
    if isinstance(value, ast.Tuple) and value.elts:
        value = value.elts[0]
    while isinstance(value, ast.Call) and called_name(value) in AVERAGES:
        inner = value.func.value if isinstance(value.func, ast.Attribute) else None
        if inner is None or dotted(inner) in ("torch", "F"):
            inner = value.args[0] if value.args else None
        if inner is None:
            return False
        value = inner
    if dotted(value):
        return dotted(value) in reached and bool(LOSS.search(dotted(value)))
    return (
        isinstance(value, ast.BinOp)
        and bool(LOSS.search(function))
        and any(uses(value, each) for each in reached)
    )


def _differentiated(project: Project, scopes: Scopes, term: _Term) -> bool:
    """Whether a gradient flows through the policy's log-probs of a log-ratio."""
    ratio = next((n for n in walk_level(term.value) if _log_ratio(n, term.known)), None)
    if not isinstance(ratio, ast.BinOp) or _without_gradient(term.module, term.value, term.scope):
        return False
    policy = next(side for side in (ratio.left, ratio.right) if not REFERENCE.search(word(side, term.known)))
    if OLD.search(word(policy, term.known)):
        return False
    return _carries_gradient(project, scopes, term.module, term.scope, policy, MAX_CALLS)


def _carries_gradient(
    project: Project, scopes: Scopes, module: Module, scope: Scope, value: ast.expr, left: int
) -> bool:
    """Whether log-probs are computed with their gradient, where a function is handed them by all its callers."""
    if isinstance(value, ast.Call):
        return _computes(value) and not _without_gradient(module, value, scope)
    name = dotted(value)
    found = definitions(module, scope).get(name, [])
    made = [d for d in found if d.position < start(value) and d.value is not None]
    if made:
        computed = made[-1].value
        assert computed is not None
        return not any(_without_gradient(module, d.node, scope) for d in made) and _computes(computed)
    given_by = list(_callers(project, scopes, scope, name)) if left and name in parameters(scope) else []
    return bool(given_by) and all(
        _carries_gradient(project, scopes, where, around, given, left - 1)
        for where, around, given in given_by
    )


def _computes(value: ast.expr) -> bool:
    parts = list(walk_level(value))
    stops = any(
        isinstance(n, ast.Call) and called_name(n) in ("detach", "numpy", "tolist", "item") for n in parts
    )
    return not stops and any(isinstance(n, (ast.Call, ast.BinOp)) for n in parts)


def _callers(
    project: Project, scopes: Scopes, scope: Scope, name: str
) -> Iterator[tuple[Module, Scope, ast.expr]]:
    """What the callers hand over for a parameter, with where they do."""
    graph = graph_of(project)
    for where, around in scopes:
        for call in own_nodes(around):
            target = graph.target(where, call) if isinstance(call, ast.Call) else None
            if isinstance(call, ast.Call) and isinstance(target, FunctionInfo) and target.node is scope:
                given = handed(call, scope)
                if name in given:
                    yield where, around, given[name]


def _without_gradient(module: Module, node: ast.AST, scope: Scope) -> bool:
    """Whether the node stands under `no_grad()` or `inference_mode()`, as a block or a decorator."""
    blocks = [p for p, _ in ancestors(module, node) if isinstance(p, (ast.With, ast.AsyncWith))]
    texts = [ast.unparse(item.context_expr) for block in blocks for item in block.items]
    texts += [ast.unparse(d) for d in getattr(scope, "decorator_list", ())]
    return any("no_grad" in text or "inference_mode" in text for text in texts)
