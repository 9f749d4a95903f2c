"""Can a value come out of a function for one caller? Tests on parameters that it gives a constant."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from klguard.read.python.callers import default, positional
from klguard.read.python.scopes import parameters, scopes_of
from klguard.read.python.source import FunctionInfo
from klguard.read.python.spots import Spot


def branches(spot: Spot) -> Iterator[tuple[ast.expr, bool]]:
    """The tests of the `if` statements around a node, each with the arm the node stands in."""
    for child, parent in scopes_of(spot.module).ancestry(spot.node):
        if isinstance(parent, (ast.If, ast.IfExp)) and child is not parent.test:
            orelse = parent.orelse
            in_else = child in orelse if isinstance(orelse, list) else child is orelse
            yield parent.test, not in_else


def decide(test: ast.expr, info: FunctionInfo, call: ast.Call) -> bool | None:
    """The truth of a test on one parameter, where the caller passes a constant for it; None where it is open."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = decide(test.operand, info, call)
        return None if inner is None else not inner
    if isinstance(test, ast.Name):
        value = _constant(test, info, call)
        return None if value is None else bool(value.value)
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.comparators[0], ast.Constant):
        value = _constant(test.left, info, call)
        if value is not None and isinstance(test.ops[0], (ast.Eq, ast.Is, ast.NotEq, ast.IsNot)):
            equal = value.value == test.comparators[0].value
            return equal if isinstance(test.ops[0], (ast.Eq, ast.Is)) else not equal
    return None


def _constant(expr: ast.expr, info: FunctionInfo, call: ast.Call) -> ast.Constant | None:
    if not isinstance(expr, ast.Name) or expr.id not in parameters(info.node):
        return None
    if any(isinstance(a, ast.Starred) for a in call.args):
        return None
    names = positional(info, call)
    value = next((k.value for k in call.keywords if k.arg == expr.id), None)
    if value is None and expr.id in names and names.index(expr.id) < len(call.args):
        value = call.args[names.index(expr.id)]
    value = value if value is not None else default(info, expr.id)
    return value if isinstance(value, ast.Constant) else None
