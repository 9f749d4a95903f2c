"""KLG603 to KLG606: what the KL estimate of a whole run can and cannot be."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from klguard.findings import Severity
from klguard.guard import shares
from klguard.guard.events import Event, Pairs
from klguard.guard.evidence import StartTimes
from klguard.guard.invariants.invariant import USUAL_RANGE, Breach, Harm, Invariant, Run
from klguard.guard.ledger import Readings

WINDOW = 10
"""Steps over which KLG604 looks at the KL per sequence."""

ENOUGH_SEQUENCES = 32
"""Sequences a window needs before its standard error means anything."""

STANDARD_ERRORS = 5.0
"""By which the mean of a window must clear the range: one in three million for a normal mean."""

PER_TOKEN = 0.5
"""Nats per token that the default range allows, where responses are so long that this is more than 10 nats per
sequence: 10 nats over 20 tokens. Long responses reach 10 nats at a distance per token that harms nothing."""

_HARM_WINDOW = 20
_CLEAR, _ROUNDING = 4.0, 1e-5
"""Standard errors, and nats per token, by which a bias has to clear 0."""


def _k1(event: Pairs) -> Tensor:
    """k1 (B, T), nats, 0 at masked tokens."""
    difference = event.logprobs.double() - event.reference_logprobs.double()
    return torch.where(event.mask, difference, 0.0)


class CumulativeKL(Invariant):
    """exp(-(sum of k1)) is a non-negative martingale of mean 1 when the tokens come from the policy: its
    likelihood ratio of reference to policy. With the mixture over start times, Ville's inequality bounds the
    probability that it ever exceeds 1 / alpha (STATISTICS: Ville 1939; Shin, Ramdas and Rinaldo 2022)."""

    code = "KLG603"
    watches = (Pairs,)
    sums = ("k1", "tokens", "tolerance")

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._process = StartTimes(1)
        self.total = 0.0
        self.tokens = 0.0

    def measure(self, event: Event) -> None:
        if event.again:
            return
        count = event.mask.sum()
        self.add("k1", _k1(event))
        self.add("tokens", count)
        self.add("tolerance", count * math.log1p(event.eps))

    def judge(self, readings: Readings) -> Iterator[Breach]:
        self.exercised = self.exercised or readings["tokens"] > 0
        self.total += readings["k1"]
        self.tokens += readings["tokens"]
        self._process.advance(torch.tensor([-readings["k1"] - readings["tolerance"]], dtype=torch.float64))
        evidence = float(self._process.log_values[0])
        limit = shares.threshold(self.run.alpha, shares.CUMULATIVE)
        if evidence >= limit:
            yield Breach(
                f"the sum of k1 over the {self.tokens:,.0f} tokens of the run is {self.total:.2f} nats: tokens"
                f" drawn from the policy make it so low with probability below {self.run.alpha:g}",
                value=self.total,
                limit=-limit,
            )

    @property
    def log_evidence(self) -> float:
        """Nats against the policy as the sampler, from k1 alone."""
        return float(self._process.log_values[0])

    def state_dict(self) -> dict[str, Any]:
        return {"process": self._process.state_dict(), "total": self.total, "tokens": self.tokens}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._process.load_state_dict(state["process"])
        self.total, self.tokens = state["total"], state["tokens"]


class KLRange(Invariant):
    """The mean over a window clears the range by five of its own standard errors. Below a range that starts
    at or under 0, chance is ruled out exactly: exp(-(sum of k1)) over a window fixed in advance has mean at
    most 1, and window j may use 6 / (pi^2 j^2) of its share of alpha.

    How far a policy may go is for its user to say: above the default range is a warning, and the default grows
    with the length of responses."""

    code = "KLG604"
    watches = (Pairs,)
    sums = ("k1", "squares", "sequences", "tolerance", "tokens")

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._window: deque[tuple[float, ...]] = deque(maxlen=WINDOW)
        self._steps = 0

    def measure(self, event: Event) -> None:
        if event.again:
            return
        per_sequence = _k1(event).sum(1)
        counted = event.mask.any(1)
        self.add("k1", per_sequence)
        self.add("squares", per_sequence.square())
        self.add("sequences", counted.sum())
        self.add("tolerance", event.mask.sum() * math.log1p(event.eps))
        self.add("tokens", event.mask.sum())

    def judge(self, readings: Readings) -> Iterator[Breach]:
        if not readings["sequences"]:
            return
        self.exercised = True
        self._steps += 1
        self._window.append(tuple(readings[name] for name in self.sums))
        total, squares, sequences, tolerance, tokens = map(sum, zip(*self._window, strict=True))
        if len(self._window) < WINDOW or sequences < ENOUGH_SEQUENCES:
            return
        mean = total / sequences
        error = math.sqrt(max(squares / sequences - mean**2, 0.0) / sequences)
        low, high = self.run.kl_range
        usual = tuple(self.run.kl_range) == USUAL_RANGE
        high = max(high, PER_TOKEN * tokens / sequences) if usual else high
        where = f"over {WINDOW} steps and {sequences:.0f} sequences"
        if mean - STANDARD_ERRORS * error > high:
            yield Breach(
                f"KL is {mean:.2f} ± {error:.2f} nats per sequence {where}, above {high:g}",
                value=mean, limit=high, key="above", severity=Severity.WARNING if usual else None,
            )  # fmt: skip
        elif mean + STANDARD_ERRORS * error < low and (low > 0 or self._impossible(total, tolerance)):
            yield Breach(
                f"KL is {mean:.2f} ± {error:.2f} nats per sequence {where}, below {low:g}",
                value=mean, limit=low, key="below",
            )  # fmt: skip

    def _impossible(self, total: float, tolerance: float) -> bool:
        spent = shares.threshold(self.run.alpha, shares.WINDOW) - math.log(6 / math.pi**2)
        return -total - tolerance >= spent + 2 * math.log(self._steps)

    def state_dict(self) -> dict[str, Any]:
        return {"window": [list(entry) for entry in self._window], "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        entries = (tuple(entry) for entry in state["window"] if len(entry) == len(self.sums))
        self._window = deque(entries, maxlen=WINDOW)
        self._steps = state["steps"]


class KLBias(Invariant):
    """Bias of k1 at the tested tokens: the mean of k1 minus the exact KL at the same prefixes. Under pure
    sampling the difference is a martingale difference with variance Var_p[log p - log ref], which gives the
    standard error (Amini, Vieira and Cotterell 2025). Without the reference's logits a KL estimate below 0 is
    itself a lower bound of the harm. Reported once the evidence has rejected the policy as the sampler, so
    its false alarms are those of the evidence."""

    code = "KLG605"
    watches = (Pairs,)
    sums = ("k1", "exact", "variance", "tested", "all_k1", "all_squares", "tokens", "sequences")

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._window: deque[tuple[float, ...]] = deque(maxlen=_HARM_WINDOW)

    def measure(self, event: Event) -> None:
        if event.again:
            return
        per_sequence = _k1(event).sum(1)
        self.add("all_k1", per_sequence)
        self.add("all_squares", per_sequence.square())
        self.add("tokens", event.mask.sum())
        self.add("sequences", event.mask.any(1).sum())

    def tested(self, k1: Tensor, exact: Tensor, variance: Tensor, valid: Tensor) -> None:
        """Figures (n,) of tested tokens, in nats and nats squared; those that are not `valid` do not count."""
        usable = valid & k1.isfinite() & exact.isfinite() & variance.isfinite()
        for slot, figure in (("k1", k1), ("exact", exact), ("variance", variance)):
            self.add(slot, torch.where(usable, figure, 0.0).double().sum())
        self.add("tested", usable.sum())

    def judge(self, readings: Readings) -> Iterator[Breach]:
        self._window.append(tuple(readings[name] for name in self.sums))
        bias = self._bias()
        self.exercised = self.exercised or bias is not None
        self.run.harm = self._harm(*bias) if bias else self._negative_estimate()
        if bias is None or not self.run.rejected or not self.run.harm.certain:
            return
        mean, error = self.run.harm.nats_per_sequence, self.run.harm.standard_error
        yield Breach(
            f"the KL estimate is off by {mean:+.3g} ± {error:.2g} nats per sequence: the mean of k1 against the"
            " exact KL at the same tokens",
            value=mean,
            limit=0.0,
        )

    def _totals(self) -> dict[str, float]:
        return dict(zip(self.sums, map(sum, zip(*self._window, strict=True)), strict=True))

    def _bias(self) -> tuple[float, float] | None:
        """Bias and standard error, nats per token."""
        total = self._totals()
        if total["tested"] < 2:
            return None
        mean = (total["k1"] - total["exact"]) / total["tested"]
        return mean, math.sqrt(max(total["variance"], 0.0)) / total["tested"]

    def _harm(self, bias: float, error: float) -> Harm:
        total = self._totals()
        length = total["tokens"] / total["sequences"] if total["sequences"] else 1.0
        return self._priced(bias * length, error * length, _ROUNDING * length)

    def _negative_estimate(self) -> Harm | None:
        total = self._totals()
        count = total["sequences"]
        if not count or total["all_k1"] >= 0:
            return None
        mean = total["all_k1"] / count
        error = math.sqrt(max(total["all_squares"] / count - mean**2, 0.0) / count)
        return self._priced(mean, error, _ROUNDING * total["tokens"] / count)

    def _priced(self, nats: float, error: float, rounding: float) -> Harm:
        coefficient = self.run.kl_coef
        reward = None if coefficient is None else -coefficient * nats
        return Harm(nats, error, reward, abs(nats) > max(_CLEAR * error, rounding))

    def state_dict(self) -> dict[str, Any]:
        return {"window": [list(entry) for entry in self._window]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._window = deque((tuple(entry) for entry in state["window"]), maxlen=_HARM_WINDOW)


class FreeReward(Invariant):
    """The bias of KLG605 times minus the KL coefficient. Judged after KLG605, from the same figures."""

    code = "KLG606"
    watches = (Pairs,)

    def judge(self, readings: Readings) -> Iterator[Breach]:
        harm = self.run.harm
        self.exercised = self.exercised or (harm is not None and harm.reward is not None)
        if harm is None or harm.reward is None or not self.run.rejected or harm.reward <= 0:
            return
        if not harm.certain:
            return
        yield Breach(
            f"the policy is paid {harm.reward:.3g} per sequence for something the reward model never saw:"
            f" {self.run.kl_coef:g} times a bias of {harm.nats_per_sequence:.3g} nats",
            value=harm.reward,
            limit=0.0,
        )
