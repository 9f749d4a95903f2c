"""The sign with which the parts of a loss enter it, where the loss of a hand-written loop is a visible sum.

A loss is minimised, so the clipped objective min(r A, clip(r) A) has to come with a minus, and a KL with a plus. The
sign is followed through sums, products with numbers, masks and coefficients, averages, and names that are assigned once;
where anything else stands in between, nothing is said.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping

from klguard.read.python.source import called_name, dotted
from klguard.read.python.wiring.bindings import Scope, own_nodes
from klguard.read.python.wiring.loops import takes_gradient

POSITIVE = re.compile(
    r"(^|_)(masks?|coefs?|coeffs?|coefficients?|beta|lambda|alpha|weights?|num|count|steps|lengths?|accumulation|scale|"
    r"kl_ctl|len|size|n|denom\w*|total|tokens)(_|$|\d)",
    re.IGNORECASE,
)
KEEPS = frozenset(
    "mean sum masked_mean masked_sum nanmean float to squeeze unsqueeze contiguous view reshape flatten backward".split()
)
WRAPPERS = frozenset({"masked_mean", "masked_sum", "mean", "sum", "agg_loss", "aggregate_loss"})
COUNTS = frozenset({"sum", "len", "numel", "clamp", "size", "max", "clamp_min"})
MAX_NAMES = 6

Part = tuple[int, ast.expr]


def losses(scope: Scope) -> Iterator[tuple[ast.expr, str]]:
    """What a function minimises: what it takes the gradient of; and what it returns under the name of a loss, with the
    function's name."""
    for call in takes_gradient(scope):
        if isinstance(call.func, ast.Attribute) and not call.args:
            yield call.func.value, ""
        elif len(call.args) == 1:  # accelerator.backward(loss)
            yield call.args[0], ""
    for node in own_nodes(scope):
        if isinstance(node, ast.Return) and node.value is not None:
            value = (
                node.value.elts[0] if isinstance(node.value, ast.Tuple) and node.value.elts else node.value
            )
            function = getattr(scope, "name", "")
            if re.search(r"(^|_)loss(_fn)?$", dotted(value) or function):
                yield value, function


def parts(node: ast.expr, made: Mapping[str, ast.expr], whole: Callable[[str], object]) -> Iterator[Part]:
    """The terms of a loss with their signs; a term that cannot be taken apart is handed out as it is, and so is a
    name that is `whole`."""
    yield from _parts(node, made, whole, 1, MAX_NAMES)


def _parts(
    node: ast.expr, made: Mapping[str, ast.expr], whole: Callable[[str], object], sign: int, left: int
) -> Iterator[Part]:
    match node:
        case ast.BinOp(left=one, op=ast.Add() | ast.Sub() as op, right=other):
            yield from _parts(one, made, whole, sign, left)
            yield from _parts(other, made, whole, sign if isinstance(op, ast.Add) else -sign, left)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            yield from _parts(inner, made, whole, -sign, left)
        case ast.BinOp(left=one, op=ast.Div(), right=other) if positive(other):
            yield from _parts(one, made, whole, sign, left)
        case ast.BinOp(left=one, op=ast.Mult(), right=other):
            yield from _product(node, one, other, made, whole, sign, left)
        case ast.Call(func=ast.Attribute(value=inner, attr=name)) if name in KEEPS and dotted(inner) not in (
            "torch",
            "F",
            "core_algos",
            "self",
        ):
            yield from _parts(inner, made, whole, sign, left)
        case ast.Call(args=[inner, *_]) if called_name(node) in WRAPPERS:
            yield from _parts(inner, made, whole, sign, left)
        case ast.Subscript(value=inner):
            yield from _parts(inner, made, whole, sign, left)
        case ast.Name() | ast.Attribute() if left and dotted(node) in made and not whole(dotted(node)):
            yield from _parts(made[dotted(node)], made, whole, sign, left - 1)
        case _:
            yield sign, node


def _product(
    node: ast.expr,
    one: ast.expr,
    other: ast.expr,
    made: Mapping[str, ast.expr],
    whole: Callable[[str], object],
    sign: int,
    left: int,
) -> Iterator[Part]:
    for factor, rest in ((one, other), (other, one)):
        number = _number(factor)
        if number is not None and number != 0:
            yield from _parts(rest, made, whole, sign if number > 0 else -sign, left)
            return
        if positive(factor):
            yield from _parts(rest, made, whole, sign, left)
            return
        if isinstance(factor, ast.UnaryOp) and isinstance(factor.op, ast.USub) and positive(factor.operand):
            yield from _parts(rest, made, whole, -sign, left)
            return
    yield sign, node


def _number(node: ast.expr) -> float | None:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
    return None


def positive(node: ast.expr) -> bool:
    """Whether a factor or a divisor is a number above 0, a mask, a coefficient or a count."""
    number = _number(node)
    if number is not None:
        return number > 0
    match node:
        case ast.Call() if called_name(node) in COUNTS | {"float", "to"}:
            return not any(isinstance(n, ast.USub) for n in ast.walk(node))
        case ast.BinOp(left=one, op=ast.Add(), right=other):
            return positive(one) and positive(other)
        case ast.Subscript(value=inner):
            return positive(inner)
    return bool(POSITIVE.search(dotted(node).rpartition(".")[2]))
