"""A KL penalty in the reward of a loop written by hand that comes with a plus.

The reward that is left is score - beta * (log p - log ref): log p has the minus, log ref the plus. Only sums are told
that can be taken apart down to the two log-probs, with the reward beside them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from klguard.read.python.source import called_name, dotted
from klguard.read.python.wiring.bindings import Scope, own_nodes
from klguard.read.python.wiring.loops import REFERENCE
from klguard.read.python.wiring.signs import Part, parts
from klguard.read.python.wiring.words import LOG_PROB, Assigned, word

EARNED = re.compile(r"^(\w+_)?(rewards?|returns?|scores?|adv|advantages?)(_\w+)?$", re.IGNORECASE)
NEGATIVE = re.compile(r"(^|_)(neg\w*|minus|nll|loss|penalt\w*|cost)(_|$)", re.IGNORECASE)


def kl_bonus(scope: Scope, made: Assigned) -> ast.expr | None:
    """The expression that pays the policy for leaving its reference; None where there is none."""
    added = {name for name, _ in _added(scope)}
    for node in own_nodes(scope):
        match node:
            case ast.Return(value=ast.expr() as value):
                each = value.elts if isinstance(value, ast.Tuple) else [value]
                paid = next((one for one in each if _pays(one, made, 1, False)), None)
                if paid is not None and not NEGATIVE.search(getattr(scope, "name", "")):
                    return paid
                continue
            case ast.Assign(targets=[target], value=value):
                name, sign = _earned(target), 1
            case ast.AugAssign(target=target, op=ast.Add() | ast.Sub() as op, value=value):
                name, sign = _earned(target), 1 if isinstance(op, ast.Add) else -1
            case _:
                continue
        if not name or NEGATIVE.search(name):
            continue
        beside = isinstance(node, ast.AugAssign) or name in added
        if _pays(value, made, sign, beside):
            return value
    return None


def _pays(value: ast.expr, made: Assigned, sign: int, beside: bool) -> bool:
    """Whether a sum holds + log p - log ref, and a reward with a plus, here or `beside` it."""
    policy, reference, earned = [], [], 0
    for own, term in _terms(value, made, sign):
        name = word(term, made) or (called_name(term) if isinstance(term, ast.Call) else "")
        if LOG_PROB.search(name) and not EARNED.search(name):
            (reference if REFERENCE.search(name) else policy).append(own)
        elif EARNED.search(name) and not NEGATIVE.search(name) and own > 0:
            earned += 1
        else:
            return False
    return policy == [1] and reference == [-1] and (earned == 1 or (beside and not earned))


def _terms(value: ast.expr, made: Assigned, sign: int) -> Iterator[Part]:
    """The terms of a sum with their signs. Nobody takes a gradient of a reward: detaching changes nothing."""
    for own, term in parts(value, made, lambda name: _named(name, made)):
        match term:
            case ast.Call(func=ast.Attribute(value=inner, attr="detach" | "clone" | "cpu")):
                yield from _terms(inner, made, own * sign)
            case _:
                yield own * sign, term


def _named(name: str, made: Assigned) -> bool:
    """Whether a variable is what it is called, and not taken apart."""
    last = name.rpartition(".")[2]
    return bool(name in made.log_probs or EARNED.search(last) or LOG_PROB.search(last))


def _earned(target: ast.expr) -> str:
    """The name that is assigned to, where it is that of a reward: `rewards` of `rewards[:, -1]`."""
    while isinstance(target, ast.Subscript):
        target = target.value
    name = dotted(target).rpartition(".")[2]
    return name if EARNED.search(name) else ""


def _added(scope: Scope) -> Iterator[tuple[str, ast.expr]]:
    """Rewards to which another reward is added in place."""
    for node in own_nodes(scope):
        if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add):
            name = _earned(node.target)
            if name and EARNED.search(word(node.value)):
                yield name, node.value
