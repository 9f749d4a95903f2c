"""Tests on plain values: the words in which tables say which values are off and which are faulty.

Each is a function from a value to bool. A comparison that Python refuses (`"a" > 0`) counts as False,
because a value of a wrong type is never a neutral one; so does any test of an object that cannot be looked
into.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from klguard.settings import Opaque

Predicate = Callable[[Any], bool]

LARGER_THAN_ANY_VOCABULARY = 1_000_000
HARMLESS_PROCESSORS = frozenset({"LogitsProcessorList", "InfNanRemoveLogitsProcessor", "LogitNormalization"})


def _quiet(test: Predicate) -> Predicate:
    """`test`, with False for values it cannot be asked about."""

    def asked(value: Any) -> bool:
        if isinstance(value, Opaque):
            return False
        try:
            return bool(test(value))
        except (TypeError, ValueError):
            return False

    return asked


def always(value: Any) -> bool:
    """Every value: the setting cannot change which tokens are drawn."""
    return True


def none(value: Any) -> bool:
    """None and nothing else."""
    return value is None


def truthy(value: Any) -> bool:
    """Python truth; an object that is certainly there counts as true."""
    return bool(value)


def falsy(value: Any) -> bool:
    """Python falsehood: None, False, 0, an empty list."""
    return not value


def one_of(*values: Any) -> Predicate:
    """Equal to one of `values`, as Python compares them; None only to None."""

    def equals(value: Any, wanted: Any) -> bool:
        return value is None if wanted is None else value is not None and value == wanted

    return _quiet(lambda value: any(equals(value, wanted) for wanted in values))


def about_one(value: Any) -> bool:
    """1, or 1 up to a guard against division by zero, as in TRL's `args.temperature + 1e-7`."""
    return isinstance(value, int | float) and abs(value - 1) < 1e-5


def at_least(bound: float) -> Predicate:
    """A number not below `bound`."""
    return _quiet(lambda value: value >= bound)


def at_most(bound: float) -> Predicate:
    """A number not above `bound`."""
    return _quiet(lambda value: value <= bound)


def below(bound: float) -> Predicate:
    """A number below `bound`."""
    return _quiet(lambda value: value < bound)


def above(bound: float) -> Predicate:
    """A number above `bound`."""
    return _quiet(lambda value: value > bound)


def outside(low: float, high: float) -> Predicate:
    """A number not strictly between `low` and `high`."""
    return _quiet(lambda value: not low < value < high)


def not_an_int(value: Any) -> bool:
    """A number that is not an int: engines that check `isinstance(value, int)` refuse it."""
    return isinstance(value, float)


def not_a_float(value: Any) -> bool:
    """A number that is not a float: engines that check `isinstance(value, float)` refuse it."""
    return isinstance(value, int)


def empty(value: Any) -> bool:
    """An empty list, tuple, dict or set."""
    return isinstance(value, list | tuple | dict | set) and not value


def either(*tests: Predicate) -> Predicate:
    """One of `tests` holds."""
    return lambda value: any(test(value) for test in tests)


def both(*tests: Predicate) -> Predicate:
    """All of `tests` hold."""
    return lambda value: all(test(value) for test in tests)


def negate(test: Predicate) -> Predicate:
    """`test` does not hold, for a value that can be asked."""
    return lambda value: not isinstance(value, Opaque) and not test(value)


def harmless_processors(value: Any) -> bool:
    """No logits processors, or visibly only ones that leave the softmax of finite logits as it is."""
    if not isinstance(value, Opaque):
        return falsy(value)
    called = set(re.findall(r"(\w+)\s*\(", value.text))
    left = re.sub(r"[\w.]+\s*\(|[\s()\[\],]", "", value.text)  # a variable or argument would remain
    return bool(called) and called <= HARMLESS_PROCESSORS and not left
