"""Arithmetic on plain values, with limits, so that a constant in the analysed code cannot cost time or
memory."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

MAX_BITS = 4096
MAX_TEXT = 20_000

BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add,
    "Subtract": operator.sub,
    "Multiply": operator.mul,
    "Divide": operator.truediv,
    "FloorDivide": operator.floordiv,
    "Modulo": operator.mod,
    "Power": operator.pow,
    "LeftShift": operator.lshift,
    "RightShift": operator.rshift,
    "BitAnd": operator.and_,
    "BitOr": operator.or_,
    "BitXor": operator.xor,
}

COMPARISON: dict[str, Callable[[Any, Any], Any]] = {
    "Equal": operator.eq,
    "NotEqual": operator.ne,
    "LessThan": operator.lt,
    "LessThanEqual": operator.le,
    "GreaterThan": operator.gt,
    "GreaterThanEqual": operator.ge,
    "In": lambda a, b: a in b,
    "NotIn": lambda a, b: a not in b,
    "Is": lambda a, b: (
        a is b or (type(a) is type(b) and a == b and isinstance(a, (bool, int, str, type(None))))
    ),
    "IsNot": lambda a, b: not COMPARISON["Is"](a, b),
}

SET_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "Subtract": operator.sub,
    "BitAnd": operator.and_,
    "BitOr": operator.or_,
    "BitXor": operator.xor,
}

UNARY: dict[str, Callable[[Any], Any]] = {
    "Minus": operator.neg,
    "Plus": operator.pos,
    "BitInvert": operator.invert,
    "Not": operator.not_,
}

_WIDE = re.compile(r"\d{5,}|\*|\{[^{}]*\{")
"""A width or precision of a format that is large, or taken from an argument."""


class NotComputed(Exception):
    """The operation fails, or its result would be too large."""


def compute(name: str, left: Any, right: Any) -> Any:
    """`left <name> right` for plain values; raises NotComputed."""
    if name in ("Power", "LeftShift", "Multiply", "Add", "Modulo"):
        _check_size(name, left, right)
    try:
        return (BINARY.get(name) or COMPARISON[name])(left, right)
    except Exception as error:
        raise NotComputed(str(error)) from None


def _check_size(name: str, left: Any, right: Any) -> None:
    if isinstance(left, (str, bytes)) or isinstance(right, (str, bytes)):
        _check_text(name, left, right)
        return
    if name in ("Add", "Modulo") or not (isinstance(left, int) and isinstance(right, int)):
        return
    bits = max(left.bit_length(), 1)
    size = {"Power": bits * max(right, 0), "LeftShift": bits + max(right, 0)}.get(
        name, bits + right.bit_length()
    )
    if size > MAX_BITS:
        raise NotComputed("too large")


def _check_text(name: str, left: Any, right: Any) -> None:
    text, other = (left, right) if isinstance(left, (str, bytes)) else (right, left)
    if name == "Modulo":
        too_long = is_wide_format(left)
    elif isinstance(other, int):
        too_long = len(text) * max(other, 0) > MAX_TEXT
    else:
        too_long = isinstance(other, (str, bytes)) and len(text) + len(other) > MAX_TEXT
    if too_long:
        raise NotComputed("too long")


def is_wide_format(template: Any) -> bool:
    """Whether formatting with this template may give a text of any length: `"%99999d"`, `"{:{}}"`."""
    text = template.decode("latin-1") if isinstance(template, bytes) else template
    return isinstance(text, str) and _WIDE.search(text) is not None


def compute_unary(name: str, operand: Any) -> Any:
    """`<name> operand` for a plain value; raises NotComputed."""
    try:
        return UNARY[name](operand)
    except Exception as error:
        raise NotComputed(str(error)) from None
