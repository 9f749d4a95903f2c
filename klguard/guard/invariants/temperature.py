"""KLG705: tokens are scored at the temperature they were drawn at."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from klguard.findings import Severity
from klguard.guard import models
from klguard.guard.events import Event, Minibatch, Rollout, Scoring, StepEnd
from klguard.guard.invariants.invariant import HALF, Breach, Invariant, Run
from klguard.guard.invariants.measuring import kept
from klguard.guard.kl import valid_tokens
from klguard.guard.ledger import Readings
from klguard.guard.rescoring import SLOTS, diagnosis, nearness, rescoring

_REMEMBERED = 8
"""Rollouts of a step whose temperature is compared, at most."""

_ENTROPY = ("entropy_tokens", "entropy", "surprise", "entropy_squares")
"""Tokens whose entropy was told, the sum of these entropies, that of -log p, and of the squares of the difference."""


class ScoringTemperature(Invariant):
    """The logits are divided by the temperature of the rollout before they are scored.

    Two ways to see that they are not. What the loop says of its logits differs from what it, or generate(),
    says of the rollout. And one row of the first rollout, scored by hand, has the loop's log-probs at another
    temperature than the sampler's, and not at that one. (Where no row can be scored by hand, the likelihood
    ratios of the evidence bound the error.) A pass that was only watched says nothing: what the loop does with
    its logits afterwards is not seen.

    The entropy that such a loop tells is that of the divided logits too: over tokens drawn from a distribution the
    mean of -log p is its entropy. A warning, once the two are apart by six standard errors and 3 %.
    """

    code = "KLG705"
    watches = (Rollout, Scoring, Minibatch, StepEnd)
    sums = (*SLOTS, "other", "other_drawn", "other_scored", *_ENTROPY)
    TOKENS, CLEAR, APART = 500, 6.0, 0.03

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.spoken = False
        self._half = False
        self._step = run.step
        self._told: list[float] = []
        self._watched: deque[tuple[float, Tensor]] = deque(maxlen=_REMEMBERED)
        self._entropy = dict.fromkeys(_ENTROPY, 0.0)

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
        elif isinstance(event, Minibatch):
            self._compare_entropy(event)
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

    def _compare_entropy(self, event: Minibatch) -> None:
        """The entropy of each distribution beside -log p of the token that was drawn from it, before any update."""
        tempered = bool(self._told) and not any(_equal(one, 1.0) for one in self._told)
        if not (tempered and event.first) or event.entropy is None or event.entropy.shape != event.mask.shape:
            return
        valid = valid_tokens(event.mask) & event.entropy.isfinite() & event.new.isfinite()
        entropy, surprise = kept(event.entropy, valid), kept(-event.new, valid)
        for name, figure in zip(
            _ENTROPY, (valid, entropy, surprise, (surprise - entropy).square()), strict=True
        ):
            self.add(name, figure.sum())

    def _judge_entropy(self, readings: Readings) -> Iterator[Breach]:
        for name in _ENTROPY:
            self._entropy[name] += readings[name]
        tokens, entropy, surprise, squares = self._entropy.values()
        if not readings["entropy_tokens"] or tokens < self.TOKENS or self.run.rejected:
            return
        off = (surprise - entropy) / tokens
        error = math.sqrt(max(squares / tokens - off**2, 0.0) / tokens)
        if abs(off) > max(self.CLEAR * error, self.APART * abs(entropy) / tokens):
            yield Breach(
                f"the entropy that the loop tells is {entropy / tokens:.3g} nats per token, and the mean of -log p over"
                f" {tokens:,.0f} tokens {surprise / tokens:.3g} ± {error:.1g}: it is the entropy of another"
                " distribution, perhaps of the undivided logits",
                value=entropy / tokens,
                limit=surprise / tokens,
                key="entropy",
                severity=Severity.WARNING,
                help="take the entropy of the logits after they were divided by the temperature",
            )

    def judge(self, readings: Readings) -> Iterator[Breach]:
        yield from self._judge_entropy(readings)
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
        return {"spoken": self.spoken, "entropy": dict(self._entropy)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.spoken = state["spoken"]
        self._entropy |= state.get("entropy", {})


def _equal(one: float, other: float) -> bool:
    """Whether two temperatures are one, up to rounding to fp32."""
    return abs(one - other) <= 1e-5 * max(abs(one), abs(other))
