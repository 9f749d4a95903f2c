"""The figures of a step as a flat dict of numbers, handed to whatever logger the loop already has.

Free of torch: trackers are recognised by what they offer, not by their class.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from numbers import Real
from typing import Any

Sink = Callable[[Mapping[str, float], int], None]
"""Takes the figures of one step, and the number of the step."""

PREFIX = "klguard/"

_NOT_FIGURES = frozenset(("kind", "step", "time"))

_UNWELCOME = re.compile(r"[^-\w./]")
"""What TensorBoard would replace in a tag: done here, so that a figure has one name in every tracker."""

_ACCEPTED = (
    "a torch SummaryWriter, a W&B run, the wandb or trackio module, an accelerate Accelerator or tracker, "
    "a logging.Logger, a function of (dict, step), or a dict to collect (step, value) pairs in"
)


def flat(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a journal record under `klguard/...` names; what is missing or no number is left out.

    Nested figures keep their path: the weight of the cause `top_k=50` is `klguard/causes/top_k_50`. A violation
    becomes a 1 under `klguard/violations/<code>`. Numbers that are not finite stay as they are: trackers show
    them as gaps.
    """
    if record.get("kind") == "violation":
        return {_tag(PREFIX + f"violations/{record.get('code')}"): 1.0}
    return {
        _tag(PREFIX + name): value
        for field, content in record.items()
        if field not in _NOT_FIGURES
        for name, value in _numbers(field, content)
    }


def emit(logger: Any, metrics: Mapping[str, float], step: int) -> None:
    """Hand `metrics` of `step` to `logger`; see `sink` for what that may be. Raises TypeError for anything else."""
    sink(logger)(metrics, step)


def sink(logger: Any) -> Sink:
    """How to hand figures to `logger`, found out once and before training.

    Each is called in the way it documents: `add_scalar(name, value, step)` of a SummaryWriter,
    `log(dict, step=step)` of W&B, trackio and accelerate, one line at level INFO of a logging.Logger,
    `logger(dict, step)` of a function; a dict gets `(step, value)` appended to the list under each name. W&B
    drops figures of a step lower than the last one it saw: a loop that logs to it without step numbers should
    pass a function that does the same.

    Raises TypeError for any other object.
    """
    if isinstance(logger, type):
        raise TypeError(f"klguard cannot log to the class {logger.__name__}: give an object of it")
    if isinstance(logger, logging.Logger):
        return lambda metrics, step: logger.info("klguard step %d: %s", step, _line(metrics))
    if callable(getattr(logger, "add_scalar", None)):
        return lambda metrics, step: _add_scalars(logger, metrics, step)
    if isinstance(logger, MutableMapping):
        return lambda metrics, step: _collect(logger, metrics, step)
    if callable(getattr(logger, "log", None)):
        # A copy: some trackers add entries of their own to what they are given.
        return lambda metrics, step: logger.log(dict(metrics), step=step)
    if callable(logger):
        return lambda metrics, step: logger(dict(metrics), step)
    raise TypeError(f"klguard cannot log to a {type(logger).__name__}; give {_ACCEPTED}")


def _numbers(name: str, content: Any) -> Iterator[tuple[str, float]]:
    if isinstance(content, Mapping):
        for part, inner in content.items():
            yield from _numbers(f"{name}/{part}", inner)
    elif isinstance(content, Real):
        yield name, float(content)


def _tag(name: str) -> str:
    return _UNWELCOME.sub("_", name)


def _line(metrics: Mapping[str, float]) -> str:
    return " ".join(f"{name.removeprefix(PREFIX)}={value:.6g}" for name, value in metrics.items())


def _add_scalars(writer: Any, metrics: Mapping[str, float], step: int) -> None:
    for name, value in metrics.items():
        writer.add_scalar(name, value, step)


def _collect(history: MutableMapping[str, Any], metrics: Mapping[str, float], step: int) -> None:
    for name, value in metrics.items():
        history.setdefault(name, []).append((step, value))
