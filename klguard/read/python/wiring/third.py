"""k3 written by hand, where a sign of it is turned.

With d = log ref - log p of a token drawn from p, k3 = exp(d) - d - 1 has the KL as its mean, since E[exp(d)] = 1
(http://joschu.net/blog/kl-approx.html). exp(-d) + d - 1 has not: E[exp(-d)] is one more than the chi-squared divergence,
and a few tokens the reference finds unlikely decide it. With one sign turned it is not even non-negative.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from klguard.read.python.source import Module, called_name, dotted
from klguard.read.python.wiring.bindings import Scope, own_nodes
from klguard.read.python.wiring.loops import REFERENCE
from klguard.read.python.wiring.objective import KL
from klguard.read.python.wiring.words import LOG_PROB, Assigned, assigned_once, scorers, word
from klguard.settings import Hop, HopKind, Known, Value

SHAPES = frozenset({"contiguous", "float", "detach", "to", "squeeze", "unsqueeze"})
BOUNDS = frozenset({"clamp", "clip"})
MAX_NAMES = 4

Term = tuple[int, ast.expr]
"""A sign, +1 or -1, and what it stands before."""


def turned_third(scopes: list[tuple[Module, Scope]]) -> Value | None:
    """Known('k3-turned' | 'k3-mixed') where a function that a rollout is used in estimates the KL so."""
    score = scorers(scopes)
    for where, scope in scopes:
        made = assigned_once(scope, score)
        for node in own_nodes(scope):
            match node:
                case ast.Assign(targets=[target], value=value):
                    name = dotted(target)
                case ast.Return(value=ast.expr() as value):
                    name = getattr(scope, "name", "")
                case _:
                    continue
            form = _form(value, made) if KL.search(name.rpartition(".")[2]) else None
            if form:
                return Known(form, (Hop(HopKind.LITERAL, where.ast_place(value), where.segment(value)),))
    return None


def _form(value: ast.expr, made: Assigned) -> str | None:
    """'k3-turned' for exp(-d) + d - 1, 'k3-mixed' where the sign of one term alone is turned; None for k3 as it should
    be, and for everything else. `made`: name -> expression of the variables that are assigned in one place."""
    terms = list(_terms(value, 1, made))
    ones = [sign for sign, term in terms if _is_one(term)]
    exponents = [(sign, inner) for sign, term in terms if (inner := _exponent(term)) is not None]
    if ones != [-1] or len(exponents) != 1 or exponents[0][0] != 1:
        return None
    linear = [(sign, term) for sign, term in terms if not _is_one(term) and _exponent(term) is None]
    inside, outside = _ratio(list(_terms(exponents[0][1], 1, made)), made), _ratio(linear, made)
    if inside is None or outside is None or inside[1:] != outside[1:]:
        return None
    return {(1, -1): None, (-1, 1): "k3-turned"}.get((inside[0], outside[0]), "k3-mixed")


def _is_one(term: ast.expr) -> bool:
    return isinstance(term, ast.Constant) and term.value in (1, 1.0)


def _terms(node: ast.expr, sign: int, made: Assigned, left: int = MAX_NAMES) -> Iterator[Term]:
    """The terms of a sum, through the names of sums that were made before."""
    match node:
        case ast.BinOp(left=one, op=ast.Add() | ast.Sub() as op, right=other):
            yield from _terms(one, sign, made, left)
            yield from _terms(other, sign if isinstance(op, ast.Add) else -sign, made, left)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            yield from _terms(inner, -sign, made, left)
        case ast.Call(func=ast.Attribute(value=inner, attr=name)) if name in SHAPES:
            yield from _terms(inner, sign, made, left)
        case ast.Call(func=ast.Attribute(value=inner, attr=name)) if (
            name in BOUNDS and dotted(inner) != "torch"
        ):
            yield from _terms(inner, sign, made, left)
        case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr=name), args=[inner, *_]) if (
            name in BOUNDS
        ):
            yield from _terms(inner, sign, made, left)
        case ast.Name() | ast.Attribute() if left and _is_sum(made.get(dotted(node))):
            yield from _terms(made[dotted(node)], sign, made, left - 1)
        case _:
            yield sign, node


def _is_sum(node: ast.expr | None) -> bool:
    """Whether what a name stands for is more than a name for log-probs: a sum, or an exponential."""
    if isinstance(node, ast.Call):
        return called_name(node) in SHAPES | BOUNDS | {"exp"}
    return isinstance(node, ast.BinOp | ast.UnaryOp)


def _exponent(term: ast.expr) -> ast.expr | None:
    """What a term is the exponential of."""
    if not (isinstance(term, ast.Call) and called_name(term) == "exp"):
        return None
    if term.args:
        return term.args[0]
    return term.func.value if isinstance(term.func, ast.Attribute) else None


def _ratio(terms: list[Term], made: Assigned) -> tuple[int, str, str] | None:
    """(sign, policy, reference) of log ref - log p or its negative, from its two terms; the sign is that of log ref."""
    if len(terms) != 2 or terms[0][0] == terms[1][0]:
        return None
    names = [(sign, word(term, made)) for sign, term in terms]
    if not all(name and LOG_PROB.search(name) for _, name in names):
        return None
    references = [(sign, name) for sign, name in names if REFERENCE.search(name)]
    policies = [name for _, name in names if not REFERENCE.search(name)]
    if len(references) != 1:
        return None
    return references[0][0], policies[0].removesuffix("_detached"), references[0][1].removesuffix("_detached")
