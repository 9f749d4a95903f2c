"""Where the generator's decisions come from: hypothesis in the tests, a seeded generator in benchmarks."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

from hypothesis import strategies as st

T = TypeVar("T")


@cache
def _index(bound: int) -> st.SearchStrategy[int]:
    return st.integers(0, bound - 1)


class Choices:
    """Every decision is one integer below a bound; 0 is the simplest, so that hypothesis shrinks to it."""

    def __init__(self, below: Callable[[int], int]) -> None:
        self._below = below

    @classmethod
    def drawn(cls, draw: Callable[[st.SearchStrategy[Any]], Any]) -> Choices:
        """Decisions drawn by hypothesis."""
        return cls(lambda bound: draw(_index(bound)))

    @classmethod
    def seeded(cls, seed: int) -> Choices:
        """Decisions from a seed: as wide, without shrinking, and several times faster."""
        return cls(random.Random(seed).randrange)

    def below(self, bound: int) -> int:
        """An integer from 0 to bound - 1."""
        return 0 if bound <= 1 else self._below(bound)

    def pick(self, options: Sequence[T]) -> T:
        """One of `options`."""
        return options[self.below(len(options))]

    def chance(self, percent: int) -> bool:
        """True in about `percent` of 100 cases."""
        return self.below(100) >= 100 - percent

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different ones of `options`, in any order."""
        left = list(options)
        return [left.pop(self.below(len(left))) for _ in range(min(count, len(left)))]
