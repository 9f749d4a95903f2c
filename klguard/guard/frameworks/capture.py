"""What transformers prepares inside generate(): the settings in force, the logits processors it builds, and
where each row stops.

The methods that prepare these are wrapped on the instance for the duration of one call. What they are given
and what they return is passed through; only a stopping criterion beside transformers' own is put into a
wrapper that takes note of the rows it ends.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

PREPARES = "_prepare_generation_config"
BUILDS = ("_get_logits_processor", "_get_logits_warper")
STOPS = "_get_stopping_criteria"
BY_LENGTH_OR_TOKEN = frozenset({"MaxLengthCriteria", "EosTokenCriteria", "MaxTimeCriteria"})
"""Criteria after which the mask is known from the tokens: the length is that of the array, time ends all rows."""


Attempt = Callable[..., Any]


def _at_once(work: Callable[..., Any], *args: Any) -> Any:
    """What `work` returns, failures included."""
    return work(*args)


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
    """A stopping criterion that tells `note` what it answers; all else is that of the criterion itself."""

    def __init__(self, criterion: Any, note: Callable[[int, Any], None]) -> None:
        self._criterion, self._note = criterion, note

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        done = self._criterion(input_ids, scores, **kwargs)
        self._note(input_ids.shape[1], done)
        return done

    def __deepcopy__(self, memo: dict) -> Any:
        return copy.deepcopy(self._criterion, memo)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_criterion", "_note"):
            raise AttributeError(name)
        return getattr(self._criterion, name)


@dataclass
class Prepared:
    """What one call of generate() prepared; None where this release was not seen preparing it.

    config      the GenerationConfig right after the merge of arguments, object, checkpoint and defaults.
    final       the same object as decoding left it, with its length adjusted to the prompt.
    processors  the logits processors that were built, in order; criteria the stopping criteria.
    prompt_length  how many ids of a row were there before the first new one.
    attempt     runs klguard's own part inside of the call: `attempt(work, *arguments)`.
    """

    config: Any = None
    final: Any = None
    processors: list[Any] | None = None
    criteria: list[Any] | None = None
    prompt_length: int | None = None
    attempt: Attempt = _at_once
    stopped: Stopped = field(default_factory=Stopped)

    def take_config(self, result: Any, arguments: Mapping[str, Any]) -> None:
        """Note the first merge of a call; later ones are those of nested calls."""
        config = result[0] if isinstance(result, tuple) else result
        if self.config is None and hasattr(config, "do_sample"):
            self.config, self.final = copy.copy(config), config

    def take_processors(self, result: Any, arguments: Mapping[str, Any]) -> None:
        """Note processors, those of a second list too where a release builds two, and the length they start at."""
        length = arguments.get("input_ids_seq_length")
        self.prompt_length = length if isinstance(length, int) else self.prompt_length
        self.processors = [*(self.processors or ()), *result]

    def take_criteria(self, result: Any, arguments: Mapping[str, Any]) -> None:
        """Note criteria, and watch those that end rows by something else than length or token."""
        if self.criteria is not None:
            return
        self.criteria = list(result)
        if isinstance(result, list):
            for number, criterion in enumerate(self.criteria):
                if type(criterion).__name__ not in BY_LENGTH_OR_TOKEN:
                    result[number] = Noted(criterion, self._note)

    def _note(self, length: int, done: Any) -> None:
        self.attempt(self.stopped.note, length, done)


def _tapped(original: Callable[..., Any], take: Callable[..., None], attempt: Attempt) -> Callable[..., Any]:
    """`original`, whose result and keyword arguments are also handed to `take`."""

    def tapped(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        attempt(take, result, kwargs)
        return result

    return tapped


class Capture:
    """Wraps the preparing methods of a model, as instance attributes, between `begin` and `end`.

    A release without one of the methods is left alone; so is an attribute that somebody changed meanwhile.
    """

    def __init__(self, model: nn.Module, prepared: Prepared) -> None:
        self.model, self.prepared = model, prepared
        self._placed: list[tuple[str, Any, Any]] = []

    def begin(self) -> None:
        """Place the wrappers."""
        takes = {PREPARES: self.prepared.take_config, STOPS: self.prepared.take_criteria}
        takes |= dict.fromkeys(BUILDS, self.prepared.take_processors)
        own = vars(self.model)
        for name, take in takes.items():
            original = getattr(self.model, name, None)
            if callable(original):
                wrapper = _tapped(original, take, self.prepared.attempt)
                self._placed.append((name, wrapper, own.get(name)))
                own[name] = wrapper

    def end(self) -> None:
        """Put back what was there; also after a beginning that failed half way."""
        own = vars(self.model)
        for name, wrapper, before in self._placed:
            if own.get(name) is wrapper:
                if before is None:
                    del own[name]
                else:
                    own[name] = before
        self._placed = []
