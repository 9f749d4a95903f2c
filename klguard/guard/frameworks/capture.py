"""What transformers prepares inside generate(): the settings in force, the logits processors it builds, and
where each row stops.

The methods that prepare these are wrapped on the instance for the duration of one call. What they are given
and what they return is passed through; only a stopping criterion beside transformers' own is put into a
wrapper that takes note of the rows it ends.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

PREPARES = "_prepare_generation_config"
BUILDS = ("_get_logits_processor", "_get_logits_warper")
STOPS = "_get_stopping_criteria"
BY_LENGTH_OR_TOKEN = frozenset({"MaxLengthCriteria", "EosTokenCriteria", "MaxTimeCriteria"})
"""Criteria after which the mask is known from the tokens: the length is that of the array, time ends all rows."""


class Stopped:
    """The length (B,) at which each row was first ended by a criterion of its own; -1 where by none."""

    def __init__(self) -> None:
        self.lengths: Tensor | None = None

    def note(self, length: int, done: Any) -> None:
        """`done` (B,) bool, as a criterion returned it when rows were `length` ids long."""
        if not isinstance(done, Tensor) or done.dim() != 1:
            return
        done = done.detach().bool()
        if self.lengths is None:
            self.lengths = torch.full_like(done, -1, dtype=torch.int64)
        if self.lengths.shape == done.shape:
            self.lengths = torch.where(done & (self.lengths < 0), length, self.lengths)


class Noted:
    """A stopping criterion that says to `stopped` what it answers; all else is that of the criterion itself."""

    def __init__(self, criterion: Any, stopped: Stopped) -> None:
        self._criterion, self._stopped = criterion, stopped

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        done = self._criterion(input_ids, scores, **kwargs)
        self._stopped.note(input_ids.shape[1], done)
        return done

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_criterion", "_stopped"):
            raise AttributeError(name)
        return getattr(self._criterion, name)


@dataclass
class Prepared:
    """What one call of generate() prepared; None where this release was not seen preparing it.

    config      the GenerationConfig right after the merge of arguments, object, checkpoint and defaults.
    final       the same object as decoding left it, with its length adjusted to the prompt.
    processors  the logits processors that were built, in order; criteria the stopping criteria.
    """

    config: Any = None
    final: Any = None
    processors: list[Any] | None = None
    criteria: list[Any] | None = None
    stopped: Stopped = field(default_factory=Stopped)

    def take_config(self, result: Any) -> None:
        """Note the first merge of a call; later ones are those of nested calls."""
        config = result[0] if isinstance(result, tuple) else result
        if self.config is None and hasattr(config, "do_sample"):
            self.config, self.final = copy.copy(config), config

    def take_processors(self, result: Any) -> None:
        """Note processors, and those of a second list where a release builds two."""
        self.processors = [*(self.processors or ()), *result]

    def take_criteria(self, result: Any) -> None:
        """Note criteria, and watch those that end rows by something else than length or token."""
        if self.criteria is not None:
            return
        self.criteria = list(result)
        if isinstance(result, list):
            for number, criterion in enumerate(self.criteria):
                if type(criterion).__name__ not in BY_LENGTH_OR_TOKEN:
                    result[number] = Noted(criterion, self.stopped)


def _tapped(original: Callable[..., Any], take: Callable[[Any], None]) -> Callable[..., Any]:
    """`original`, whose result is also handed to `take`."""

    def tapped(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        take(result)
        return result

    return tapped


@contextmanager
def capturing(
    model: nn.Module, prepared: Prepared, attempt: Callable[..., Any] = lambda work, *args: work(*args)
) -> Iterator[None]:
    """Wrap the preparing methods of `model`, as instance attributes, for the time of the context.

    `attempt(work, *args)` runs klguard's own part, so that the caller decides what becomes of its failures. A
    release without one of the methods is left alone; so is an attribute somebody changed meanwhile.
    """
    takes = {PREPARES: prepared.take_config, STOPS: prepared.take_criteria}
    takes |= dict.fromkeys(BUILDS, prepared.take_processors)
    own = vars(model)
    before: dict[str, Any] = {}
    placed: dict[str, Any] = {}
    try:
        for name, take in takes.items():
            original = getattr(model, name, None)
            if callable(original):
                before[name] = own.get(name)
                placed[name] = own[name] = _tapped(original, lambda result, take=take: attempt(take, result))
        yield
    finally:
        for name, wrapper in placed.items():
            if own.get(name) is wrapper:
                if before[name] is None:
                    del own[name]
                else:
                    own[name] = before[name]
