"""What is worked out once while files are read, and forgotten with them: trees take a hundred times the room of the
text they are made of."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import ParamSpec, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")

_FORGETTING: list[Callable[[], None]] = []


def remembered(function: Callable[P, T]) -> Callable[P, T]:
    """The function, which works out each answer once until `forget()`."""
    cached = lru_cache(maxsize=None)(function)
    _FORGETTING.append(cached.cache_clear)
    return cast("Callable[P, T]", cached)


def on_forget(act: Callable[[], None]) -> None:
    """Have something else done at `forget()`."""
    _FORGETTING.append(act)


def forget() -> None:
    """Let go of every answer, and so of the files they are about."""
    for act in _FORGETTING:
        act()
