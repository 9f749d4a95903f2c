"""What holds in a correct loop, one file for each group. A new class in a file of this package is found by itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules

from klguard.guard.invariants.invariant import Breach, Harm, Invariant, Run, tolerance


def _found() -> Iterator[type[Invariant]]:
    for module in iter_modules(__path__):
        loaded = import_module(f"{__name__}.{module.name}")
        for kind in vars(loaded).values():
            if inspect.isclass(kind) and issubclass(kind, Invariant) and kind.__module__ == loaded.__name__:
                if hasattr(kind, "code"):
                    yield kind


INVARIANTS: tuple[type[Invariant], ...] = tuple(sorted(_found(), key=lambda kind: kind.code))

__all__ = ["INVARIANTS", "Breach", "Harm", "Invariant", "Run", "tolerance"]
