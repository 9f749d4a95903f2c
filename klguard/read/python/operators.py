"""Arithmetic on plain values, with limits, so that a constant in the analysed code cannot cost time or memory."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

MAX_BITS = 4096
MAX_TEXT = 20_000

BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add, "Subtract": operator.sub, "Multiply": operator.mul, "Divide": operator.truediv,
    "FloorDivide": operator.floordiv, "Modulo": operator.mod, "Power": operator.pow,
    "LeftShift": operator.lshift, "RightShift": operator.rshift,
    "BitAnd": operator.and_, "BitOr": operator.or_, "BitXor": operator.xor,
}

COMPARISON: dict[str, Callable[[Any, Any], Any]] = {
    "Equal": operator.eq, "NotEqual": operator.ne, "LessThan": operator.lt, "LessThanEqual": operator.le,
    "GreaterThan": operator.gt, "GreaterThanEqual": operator.ge,
    "In": lambda a, b: a in b, "NotIn": lambda a, b: a not in b,
    "Is": lambda a, b: a is b or (type(a) is type(b) and a == b and isinstance(a, (bool, int, str, type(None)))),
    "IsNot": lambda a, b: not COMPARISON["Is"](a, b),
}

UNARY: dict[str, Callable[[Any], Any]] = {
    "Minus": operator.neg, "Plus": operator.pos, "BitInvert": operator.invert, "Not": operator.not_,
}


class NotComputed(Exception):
    """The operation fails, or its result would be too large."""


def compute(name: str, left: Any, right: Any) -> Any:
    """`left <name> right` for plain values; raises NotComputed."""
    if name in ("Power", "LeftShift", "Multiply"):
        _check_size(name, left, right)
    try:
        return (BINARY.get(name) or COMPARISON[name])(left, right)
    except Exception as error:
        raise NotComputed(str(error)) from None


def _check_size(name: str, left: Any, right: Any) -> None:
    if isinstance(left, (str, bytes)) or isinstance(right, (str, bytes)):
        text, count = (left, right) if isinstance(left, (str, bytes)) else (right, left)
        if isinstance(count, int) and len(text) * max(count, 0) > MAX_TEXT:
            raise NotComputed("too long")
        return
    if not (isinstance(left, int) and isinstance(right, int)):
        return
    bits = max(left.bit_length(), 1)
    size = {"Power": bits * max(right, 0), "LeftShift": bits + max(right, 0)}.get(name, bits + right.bit_length())
    if size > MAX_BITS:
        raise NotComputed("too large")


def compute_unary(name: str, operand: Any) -> Any:
    """`<name> operand` for a plain value; raises NotComputed."""
    try:
        return UNARY[name](operand)
    except Exception as error:
        raise NotComputed(str(error)) from None
