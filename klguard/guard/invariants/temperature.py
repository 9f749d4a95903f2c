"""KLG705: tokens are scored at the temperature they were drawn at."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from klguard.guard import models
from klguard.guard.events import Event, Rollout, Scoring, StepEnd
from klguard.guard.invariants.invariant import HALF, Breach, Invariant, Run
from klguard.guard.ledger import Readings
from klguard.guard.rescoring import SLOTS, diagnosis, nearness, rescoring

_REMEMBERED = 8
"""Rollouts of a step whose temperature is compared, at most."""


class ScoringTemperature(Invariant):
    """The logits are divided by the temperature of the rollout before they are scored.

    Two ways to see that they are not. What the loop says of its logits differs from what it, or generate(),
    says of the rollout. And one row of the first rollout, scored by hand, has the loop's log-probs at another
    temperature than the sampler's, and not at that one. (Where no row can be scored by hand, the likelihood
    ratios of the evidence bound the error.) A pass that was only watched says nothing: what the loop does with
    its logits afterwards is not seen.
    """

    code = "KLG705"
    watches = (Rollout, Scoring, StepEnd)
    sums = (*SLOTS, "other", "other_drawn", "other_scored")

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.spoken = False
        self._half = False
        self._step = run.step
        self._told: list[float] = []
        self._watched: deque[tuple[float, Tensor]] = deque(maxlen=_REMEMBERED)

    def _remember(self, event: Rollout) -> None:
        if not event.temperature:
            return
        if event.handle is None:
            self._told.append(event.temperature)
        else:
            self._watched.append((event.temperature, event.responses))

    def _forget(self) -> None:
        self._told.clear()
        self._watched.clear()
        self._step = self.run.step

    def inspect(self, event: Event) -> Iterator[Breach]:
        if isinstance(event, StepEnd) or self._step != self.run.step:
            self._forget()
        if isinstance(event, Rollout):
            self._remember(event)
        elif isinstance(event, Scoring) and event.temperature and self._told:
            self.exercised = True
            if not any(_equal(event.temperature, drawn) for drawn in self._told):
                yield self._said_apart(self._told[-1], event.temperature)

    def measure(self, event: Event) -> None:
        if isinstance(event, Rollout):
            rescoring(self.run).see(self.run, event)
        elif isinstance(event, Scoring):
            self._compare_watched(event)
            self._half = event.dtype in HALF or models.precision(self.run.policy) in HALF
            result = rescoring(self.run).of(self.run, event)
            if result is not None:
                self.exercised = True
                for name, figure in result.figures.items():
                    self.add(name, figure)

    def _compare_watched(self, event: Scoring) -> None:
        """generate() was watched, and the loop says by what it divided the logits: are these its tokens?"""
        for drawn, responses in self._watched if event.temperature and event.tokens is not None else ():
            if responses.shape != event.tokens.shape:
                continue
            self.exercised = True
            if not _equal(event.temperature, drawn):
                tokens = event.tokens.to(responses.device, non_blocking=True)
                mask = event.mask.to(responses.device, non_blocking=True)
                same = (((responses == tokens) | ~mask).all() & mask.any()).double()
                self.add("other", same)
                self.add("other_drawn", same * drawn)
                self.add("other_scored", same * event.temperature)

    def judge(self, readings: Readings) -> Iterator[Breach]:
        if readings["other"]:
            drawn, scored = (readings[name] / readings["other"] for name in ("other_drawn", "other_scored"))
            yield self._said_apart(drawn, scored)
        elif diagnosis(readings, self._half) == "temperature":
            off, expected, fitted = (
                readings[name] / readings["rescored"] for name in ("off", "expected", "fitted")
            )
            yield Breach(
                f"the log-probabilities of the rollout are those of temperature {fitted:.3g}, but its temperature is"
                f" {expected:.3g}: they are {off:.2g} nats per token off",
                value=off,
                limit=nearness(self._half),
                key="temperature",
            )

    @staticmethod
    def _said_apart(drawn: float, scored: float) -> Breach:
        return Breach(
            f"the rollout was drawn at temperature {drawn:.6g}, and its logits were divided by {scored:.6g} before"
            " they were scored",
            value=scored,
            limit=drawn,
            key="temperature",
        )

    def state_dict(self) -> dict[str, Any]:
        return {"spoken": self.spoken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.spoken = state["spoken"]


def _equal(one: float, other: float) -> bool:
    """Whether two temperatures are one, up to rounding to fp32."""
    return abs(one - other) <= 1e-5 * max(abs(one), abs(other))
