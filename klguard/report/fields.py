"""Values of a journal, taken as what they should be: one that is something else counts as missing."""

from __future__ import annotations

import math
from enum import Enum
from typing import Any, TypeVar

Member = TypeVar("Member", bound=Enum)

MOST = 10**9
"""No file has more lines."""


def number(value: Any) -> float | None:
    """`value` as a float, or None where it is no number."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:  # JSON has whole numbers of any size
        return None


def finite(value: Any) -> float | None:
    """`value` as a float, or None where it is no finite number."""
    known = number(value)
    return known if known is not None and math.isfinite(known) else None


def text(value: Any) -> str:
    """`value` where it is a string, else ""."""
    return value if isinstance(value, str) else ""


def member(kind: type[Member], value: Any, otherwise: Member) -> Member:
    """The member of `kind` that `value` names."""
    try:
        return kind(value)
    except ValueError:
        return otherwise


def step(value: Any) -> int | None:
    """`value` where it is the number of a step."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and abs(value) <= 2**53 else None


def count(value: Any, otherwise: int) -> int:
    """`value` where it is a line or column of a file."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and 1 <= value <= MOST else otherwise
