"""KLG702, KLG851 and KLG852: an inference engine beside the trainer."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from klguard.findings import Severity
from klguard.guard.events import Event, Rollout, Scoring, Update
from klguard.guard.invariants.invariant import Breach, Invariant, Run
from klguard.guard.invariants.measuring import Consecutive
from klguard.guard.kl import valid_tokens
from klguard.guard.ledger import Readings

LARGEST = 20.0
"""Nats at which a log-ratio is cut before it is exponentiated."""

ENOUGH = 200
"""Tokens a step needs before anything is said of the engine's log-probabilities."""


def _differences(event: Scoring) -> tuple[Tensor, Tensor]:
    """log p_trainer - log p_engine (B, T), nats, float64, at most LARGEST in size; and where it is known."""
    d = event.logprobs.double() - event.sampler_logprobs.double()
    known = valid_tokens(event.mask) & d.isfinite()
    return torch.where(known, d, 0.0).clamp(-LARGEST, LARGEST), known


class _Compared(Invariant):
    """Sums over the tokens of a step whose log-probability both the engine and the trainer have."""

    watches = (Scoring,)
    sums = ("tokens", "absolute", "multiple", "k3", "ratio", "ratio_squares")
    WINDOW, ERRORS, LIMIT = 10, 5.0, 0.05

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._window: deque[tuple[float, float, float]] = deque(maxlen=self.WINDOW)

    def measure(self, event: Event) -> None:
        if event.sampler_logprobs is None:
            return
        self.exercised = True
        d, known = _differences(event)
        ratio = torch.where(known, d.exp(), 0.0)
        self.add("tokens", known.sum())
        self.add("absolute", d.abs())
        self.add("multiple", torch.where(known, d.abs().exp(), 0.0))
        self.add("k3", torch.expm1(d) - d)
        self.add("ratio", ratio)
        self.add("ratio_squares", ratio.square())

    def off_balance(self, readings: Readings) -> tuple[float, float, float] | None:
        """Mean of p_trainer / p_engine over the tokens of this step or of ten, its standard error, and the
        number of tokens; None where the mean is 1.

        For tokens drawn from q, E_q[p / q] = 1 whatever the two distributions are, as long as log q is that of
        the drawn token and q is the distribution that drew it. So weights that are behind, another precision or
        another temperature keep the mean at 1; the log-prob of another token does not.
        """
        if readings["tokens"] < ENOUGH:
            return None
        self._window.append((readings["tokens"], readings["ratio"], readings["ratio_squares"]))
        for steps in ([self._window[-1]], self._window):
            tokens, total, squares = map(sum, zip(*steps, strict=True))
            mean = total / tokens
            error = (max(squares / tokens - mean**2, 0.0) / tokens) ** 0.5
            if abs(mean - 1) > max(self.ERRORS * error, self.LIMIT):
                return mean, error, tokens
        return None

    def state_dict(self) -> dict[str, Any]:
        return {"window": [list(step) for step in self._window]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._window = deque((tuple(step) for step in state["window"]), maxlen=self.WINDOW)


class SamplerMismatch(_Compared):
    """How far the trainer's log-probs of the sampled tokens are from the engine's, by thresholds. The evidence
    tests the same with a bound on false alarms; this is for what it tolerates.

    Steps count in a row, since single tokens of a mixture of experts may be far off in a healthy run. The
    engine's precision is not known, so the limits are those of half precision: NeMo-RL stops at a mean
    exp|d| of 1.1 and calls 1.05 high; Liu and Li et al. 2025 report a k3 near 1e-3 in healthy runs, rising
    before a collapse. A mismatch that grows five-fold after the first updates is one of missing syncs: TRL's
    issue 5312 saw 0.015 become 0.2. Rollouts that may lag behind are not judged.
    """

    code = "KLG702"
    watches = (Scoring, Rollout)
    sums = (*_Compared.sums, "lagging")
    K3_HIGH, K3, MULTIPLE_HIGH, MULTIPLE, GROWTH, ABSOLUTE = 3e-3, 1e-2, 1.05, 1.1, 5.0, 0.05

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._high, self._far, self._grown = Consecutive(5), Consecutive(3), Consecutive(2)
        self._first: float | None = None

    def measure(self, event: Event) -> None:
        if isinstance(event, Rollout):
            self.add("lagging", 1.0 if event.allowed_lag else 0.0)
        else:
            super().measure(event)

    def judge(self, readings: Readings) -> Iterator[Breach]:
        tokens = readings["tokens"]
        foreign = self.off_balance(readings) is not None
        if tokens < ENOUGH or readings["lagging"] or foreign:
            return
        absolute, multiple, k3 = (readings[name] / tokens for name in ("absolute", "multiple", "k3"))
        if self._first is None:
            self._first = absolute
        far = self._far.see(k3 > self.K3 or multiple > self.MULTIPLE)
        high = self._high.see(k3 > self.K3_HIGH and multiple > self.MULTIPLE_HIGH)
        grown = self._grown.see(absolute > max(self.GROWTH * self._first, self.ABSOLUTE))
        if not (far or high or grown):
            return
        history = f", {self._first:.3g} in the first step" if grown else ""
        yield Breach(
            f"log p of the sampled tokens differs by {absolute:.3g} nats on average between engine and"
            f" trainer{history}: a factor of {multiple:.3g}, and k3 {k3:.2g} (limits {self.MULTIPLE:g} and"
            f" {self.K3:g} over {self._far.steps} steps)",
            value=k3,
            limit=self.K3,
            key="thresholds",
            severity=Severity.ERROR if far or grown else Severity.WARNING,
        )

    def state_dict(self) -> dict[str, Any]:
        runs = {"high": self._high, "far": self._far, "grown": self._grown}
        return super().state_dict() | {
            "first": self._first,
            **{name: run.state_dict() for name, run in runs.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._first = state["first"]
        for name, run in (("high", self._high), ("far", self._far), ("grown", self._grown)):
            run.load_state_dict(state[name])


class ForeignLogprobs(_Compared):
    """The mean of p_trainer / p_engine over sampled tokens is 1 whatever the mismatch, when the engine's
    log-prob is that of the sampled token under the distribution that sampled it: see `off_balance`. Off by more
    than five standard errors and a twentieth it is something else's: the likeliest token's, a neighbour's, or one
    taken before or after the engine cut the distribution."""

    code = "KLG851"

    def judge(self, readings: Readings) -> Iterator[Breach]:
        found = self.off_balance(readings)
        if found is None:
            return
        mean, error, tokens = found
        yield Breach(
            f"the engine's log-probabilities do not fit the tokens: p_trainer / p_engine is {mean:.3g} ± {error:.2g}"
            f" on average over {tokens:.0f} sampled tokens, where any two distributions give 1",
            value=mean, limit=1.0,
        )  # fmt: skip


class PolicyLag(Invariant):
    """Where the loop tells the version of the weights that sampled and the lag it allows: the newest version
    told so far is at most that much newer, and no version is sampled from for longer than that many steps
    with updates. A version is the number of the step whose weights the sampler has."""

    code = "KLG852"
    watches = (Rollout, Update)
    maxima = ("excess", "lag", "allowed")

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._newest: int | None = None
        self._since: dict[int, int] = {}
        self._updates = 0
        self._updated_in: int | None = None

    def measure(self, event: Event) -> None:
        if isinstance(event, Update):
            if event.after and self._updated_in != self.run.step:
                self._updated_in = self.run.step
                self._updates += 1
            return
        if event.version is None:
            return
        version = int(event.version)
        self._newest = version if self._newest is None else max(version, self._newest)
        first = self._since.setdefault(version, self._updates)
        self._since = dict(sorted(self._since.items())[-1000:])
        if event.allowed_lag is None:
            return
        self.exercised = True
        lag = max(self._newest - version, self._updates - first)
        self.highest("excess", float(lag - event.allowed_lag))
        self.highest("lag", float(lag))
        self.highest("allowed", float(event.allowed_lag))

    def judge(self, readings: Readings) -> Iterator[Breach]:
        excess = readings.maximum("excess")
        if excess is not None and excess > 0:
            yield Breach(
                f"tokens were sampled with weights that are {readings['lag']:.0f} steps old, and"
                f" {readings['allowed']:.0f} are allowed",
                value=readings["lag"], limit=readings["allowed"],
            )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {
            "newest": self._newest,
            "since": [list(p) for p in self._since.items()],
            "updates": self._updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._newest, self._updates = state["newest"], state["updates"]
        self._since = {version: first for version, first in state["since"]}
