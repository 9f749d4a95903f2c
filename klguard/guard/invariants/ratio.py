"""KLG831, KLG832, KLG833 and KLG838: log-probabilities of minibatches, and the ratio made from them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from klguard.findings import Severity
from klguard.guard.events import KL, Event, Minibatch, Rollout, Scoring
from klguard.guard.invariants.invariant import HALF, Breach, Invariant, Run
from klguard.guard.invariants.measuring import Consecutive, ids, kept, scalar
from klguard.guard.kl import irregular, k3, valid_tokens
from klguard.guard.ledger import Readings

_LARGEST = 50.0
"""Nats at which the log-ratio is cut before it is exponentiated: exp(50) is large enough for every limit."""


def _log_ratio(event: Minibatch) -> Tensor:
    """log p_new - log p_old (B, T), nats, float64; 0 where masked or not finite."""
    return kept(event.new.double() - event.old.double(), event.mask)


def _tf32() -> bool:
    """Whether matrix products of fp32 on CUDA are rounded to TF32. In torch 2.9 and later the older ways to ask
    raise an error where the newer way to set it was used."""
    matmul = torch.backends.cuda.matmul
    precision = getattr(matmul, "fp32_precision", None)
    return matmul.allow_tf32 if precision is None else precision not in ("ieee", "none")


class FirstRatio(Invariant):
    """Nothing was updated yet, so the same function of the same weights and tokens gave both log-probs.

    In fp32 two passes with other batch shapes differ by some 1e-5 nats. In half precision, under autocast and
    in TF32 they differ by thousandths on average, with a tail: there the mean and k3 decide, and the maximum
    only where it is far beyond rounding. Where `old` is `new` itself there is nothing to compare, nor where it is what
    the engine returned of earlier weights: of a rollout that may lag behind, rows are left out whose old log-probs
    are the engine's.
    """

    code = "KLG831"
    watches = (Rollout, Scoring, Minibatch)
    sums = ("tokens", "absolute", "k3")
    maxima = ("exact", "coarse")
    EXACT, MEAN, K3, MAXIMUM = 1e-4, 1e-2, 1e-3, 1.0

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._step: int | None = None
        self._lags = False
        self._engine: Tensor | None = None

    def measure(self, event: Event) -> None:
        if self.run.step != self._step:
            self._step, self._lags, self._engine = self.run.step, False, None
        if isinstance(event, Rollout):
            self._lags = self._lags or bool(event.allowed_lag)
        elif isinstance(event, Scoring):
            self._engine = event.sampler_logprobs if self._lags else None
        elif event.first and not event.by_construction:
            self._compare(event)

    def _compare(self, event: Minibatch) -> None:
        self.exercised = True
        d = _log_ratio(event)
        foreign = self._from_engine(event)
        if foreign is not None:
            d = torch.where(foreign[:, None], 0.0, d)
        if not self._rough(event):
            self.highest("exact", d.abs())
            return
        self.highest("coarse", d.abs())
        self.add("tokens", valid_tokens(event.mask).sum())
        self.add("absolute", d.abs().sum())
        self.add("k3", k3(torch.zeros_like(d), d.clamp(max=_LARGEST)).sum())

    def _from_engine(self, event: Minibatch) -> Tensor | None:
        """(B,) rows whose old log-probs are those that the engine returned; None where these are not known."""
        engine = self._engine
        if engine is None or engine.shape[1] != event.old.shape[1]:
            return None
        if event.rows is not None:
            rows = ids(event.rows, engine.device)
            engine = engine[rows.clamp(0, len(engine) - 1)]
        if engine.shape != event.old.shape:
            return None
        engine = engine.to(event.old.device)
        return ((engine.to(event.old.dtype) == event.old) | ~valid_tokens(event.mask)).all(1)

    def _rough(self, event: Minibatch) -> bool:
        """Whether the two passes may differ by more than the rounding of fp32."""
        if event.dtype in HALF or event.new.dtype in HALF or event.old.dtype in HALF:
            return True
        policy = self.run.policy
        if policy is not None and "_original_forward" in vars(policy):
            return (
                True  # accelerate runs such a model under autocast inside its own forward, and returns fp32
            )
        return event.new.is_cuda and _tf32()

    def judge(self, readings: Readings) -> Iterator[Breach]:
        exact, coarse = readings.maximum("exact"), readings.maximum("coarse")
        if exact is not None and exact > self.EXACT:
            yield Breach(
                f"before the first update of the step, log p under the same weights differs by up to {exact:.3g}"
                " nats between rollout and minibatch (fp32)",
                value=exact,
                limit=self.EXACT,
            )
        if coarse is None:
            return
        mean, penalty = readings.mean("absolute", "tokens") or 0.0, readings.mean("k3", "tokens") or 0.0
        if mean > self.MEAN or penalty > self.K3 or coarse > self.MAXIMUM:
            yield Breach(
                f"before the first update of the step, log p under the same weights differs by {mean:.3g} nats"
                f" on average, {coarse:.3g} at most, with k3 {penalty:.2g}, between rollout and minibatch (half"
                " precision, autocast or TF32)",
                value=mean,
                limit=self.MEAN,
            )


class RatioBounded(Invariant):
    """A mean ratio of 2, or k3 of half a nat, is told at once; smaller excesses when three steps in a row
    have them. The largest ratio of a step is reported when more than a stray token has it."""

    code = "KLG832"
    watches = (Minibatch,)
    sums = ("tokens", "ratio", "k3", "large")
    maxima = ("largest",)
    LARGE, SHARE = 10.0, 1e-3

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._outside = Consecutive(3)

    def measure(self, event: Event) -> None:
        self.exercised = True
        d = _log_ratio(event).clamp(max=_LARGEST)
        valid = valid_tokens(event.mask)
        ratio = torch.where(valid, d.exp(), 0.0)
        self.add("tokens", valid.sum())
        self.add("ratio", ratio.sum())
        # the ratio is new / old, drawn from old: k3(old, new) = ratio - 1 - log ratio
        self.add("k3", k3(torch.zeros_like(d), d).sum())
        self.add("large", (ratio >= self.LARGE).sum())
        self.highest("largest", ratio)

    def judge(self, readings: Readings) -> Iterator[Breach]:
        tokens = readings["tokens"]
        if not tokens:
            return
        mean, penalty, large = (readings[name] / tokens for name in ("ratio", "k3", "large"))
        outside = not 0.8 <= mean <= 1.25 or penalty > 0.05 or large > self.SHARE
        lasting = self._outside.see(outside)
        if lasting or not 0.5 <= mean <= 2 or penalty > 0.5:
            yield Breach(
                f"the mean ratio is {mean:.3g}, the largest {readings['largest']:.3g} (10 or more at"
                f" {readings['large']:,.0f} of {tokens:,.0f} tokens), and k3(old, new) {penalty:.3g} nats per"
                f" token{', outside the limits for three steps' if lasting else ''}",
                value=penalty,
                limit=0.05,
            )

    def state_dict(self) -> dict[str, Any]:
        return self._outside.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._outside.load_state_dict(state)


class ClipFraction(Invariant):
    """Above 0.3 for three steps, the updates are too large. A small learning rate clips nothing for long and
    is healthy, so for a share of 0 the ratio itself is looked at: exactly 1 after updates, for three steps,
    says that the old log-probs are made anew from the current weights. The share that the loop reports has to
    be 0 before the first update, like the ratio's."""

    code = "KLG833"
    watches = (Minibatch,)
    sums = ("tokens", "clipped", "later", "first_tokens", "first_clipped")
    maxima = ("moved", "first_reported")
    LIMIT, STEPS = 0.3, 3

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._high, self._still = Consecutive(self.STEPS), Consecutive(self.STEPS)

    def measure(self, event: Event) -> None:
        d, valid = _log_ratio(event), valid_tokens(event.mask)
        again = event.epoch is not None and event.epoch > 0
        if event.clip_range is None and not again:
            return  # without a clip and a second look at the rows, a loop may do without the ratio
        self.exercised = True
        if not event.first:
            self.add("later", valid.sum())
            self.highest("moved", d.abs())
        if event.clip_range is None:
            return
        below, above = event.clip_range
        off = d.clamp(max=_LARGEST).exp() - 1
        clipped = ((off < -below) | (off > above)) & valid
        self.add("tokens", valid.sum())
        self.add("clipped", clipped.sum())
        if event.first and "clip_fraction" in event.reported:
            self.add("first_clipped", clipped.sum())
            self.highest("first_reported", scalar(event.reported["clip_fraction"]))

    def judge(self, readings: Readings) -> Iterator[Breach]:
        share = readings.mean("clipped", "tokens")
        if share is not None and self._high.see(share > self.LIMIT, share):
            shares = ", ".join(f"{one:.2f}" for one in self._high.figures)
            yield Breach(
                f"the share of clipped tokens was {shares} in the last {self.STEPS} steps",
                value=share,
                limit=self.LIMIT,
                key="high",
            )
        if readings["later"] and self._still.see(readings["moved"] == 0, readings["later"]):
            yield Breach(
                f"the ratio is exactly 1 at all {sum(self._still.figures):,.0f} tokens that came after an update,"
                f" for {self.STEPS} steps: nothing corrects for them, and nothing is ever clipped",
                value=0.0,
                limit=0.0,
                key="still",
            )
        reported = readings.maximum("first_reported")
        if reported is not None and reported > 1e-6 and not readings["first_clipped"]:
            yield Breach(
                f"a clip fraction of {reported:.3g} is reported before the first update of the step, where no"
                " ratio is outside the clip range",
                value=reported,
                limit=0.0,
                key="first",
            )

    def state_dict(self) -> dict[str, Any]:
        return {"high": self._high.state_dict(), "still": self._still.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._high.load_state_dict(state["high"])
        self._still.load_state_dict(state["still"])


_NAMES = {
    "policy": "log-probs of the policy",
    "reference": "log-probs of the reference",
    "sampler": "log-probs of the engine",
    "stale": "log-probs of earlier weights",
    "new": "new log-probs of a minibatch",
    "old": "old log-probs of a minibatch",
}


class WellFormedLogProbs(Invariant):
    """NaN, infinity and probabilities above 1 each have causes of their own, so each is told by itself. A
    log-softmax in fp32 over 152,000 tokens can exceed 0 by 7e-5. Masked positions may hold anything."""

    code = "KLG838"
    watches = (Scoring, KL, Minibatch)
    sums = (
        *(f"{name}.{part}" for name in _NAMES for part in ("tokens", "nan", "high", "low", "above")),
        "mask.entries",
        "mask.negative",
        "mask.others",
    )
    maxima = tuple(f"{name}.largest" for name in _NAMES)
    LIMIT = 1e-4

    def inspect(self, event: Event) -> Iterator[Breach]:
        for name, values in self._given(event):
            if values.shape != event.mask.shape:
                yield Breach(
                    f"the {_NAMES[name]} have shape {tuple(values.shape)}, the tokens {tuple(event.mask.shape)}",
                    key=f"{name}-shape",
                    help="pass one log-prob for each token: shift logits and tokens against each other once",
                )

    def measure(self, event: Event) -> None:
        valid = valid_tokens(event.mask)
        for name, values in self._given(event):
            if values.shape != valid.shape:
                continue
            self.exercised = True
            self.add(f"{name}.tokens", valid.sum())
            self.add(f"{name}.nan", (values.isnan() & valid).sum())
            self.add(f"{name}.high", (values.isposinf() & valid).sum())
            self.add(f"{name}.low", (values.isneginf() & valid).sum())
            self.add(f"{name}.above", ((values > self.LIMIT) & valid).sum())
            finite = torch.where(valid & values.isfinite(), values.double(), -math.inf)
            self.highest(f"{name}.largest", finite)

    def masked(self, mask: Tensor) -> None:
        """A mask (B, T) of numbers, as the loop handed it over: 0 and 1 are what it may hold."""
        negative = (mask < 0).sum()
        self.add("mask.entries", float(mask.numel()))
        self.add("mask.negative", negative)
        self.add("mask.others", irregular(mask) - negative)

    @staticmethod
    def _given(event: Event) -> Iterator[tuple[str, Tensor]]:
        if isinstance(event, Minibatch):
            yield from (("new", event.new), ("old", event.old))
        elif isinstance(event, KL):
            yield from (("policy", event.logprobs), ("reference", event.reference_logprobs))
        else:
            yield "policy", event.logprobs
            others = (event.reference_logprobs, event.sampler_logprobs, event.stale_logprobs)
            for name, values in zip(("reference", "sampler", "stale"), others, strict=True):
                if values is not None:
                    yield name, values

    def judge(self, readings: Readings) -> Iterator[Breach]:
        yield from self._judge_masks(readings.of("mask"))
        for name, words in _NAMES.items():
            figures = readings.of(name)
            tokens = figures["tokens"]
            of = f"of {tokens:,.0f} {words}"
            if figures["nan"]:
                yield Breach(
                    f"{figures['nan']:,.0f} {of} are NaN",
                    value=figures["nan"],
                    limit=0.0,
                    key=f"{name}-nan",
                    # some engines give NaN for a token they have no figure of
                    severity=Severity.WARNING if name == "sampler" else None,
                    help="look for a row that is masked whole, or for infinite logits, before the log-softmax",
                )
            if figures["high"]:
                yield Breach(
                    f"{figures['high']:,.0f} {of} are +inf: no probability is infinite",
                    value=figures["high"],
                    limit=0.0,
                    key=f"{name}-inf",
                    help="look for an overflow in half precision; take log_softmax in fp32",
                )
            if figures["low"]:
                yield Breach(
                    f"{figures['low']:,.0f} {of} are -inf: a token that was sampled has a probability",
                    value=figures["low"],
                    limit=0.0,
                    key=f"{name}-zero",
                    help="score with raw logits, not with those that a sampler has filtered; check the mask",
                )
            finite_above = figures["above"] - figures["high"]
            if finite_above:
                yield Breach(
                    f"{finite_above:,.0f} {of} are above 0, up to {figures['largest']:.3g} nats: a probability is"
                    " at most 1",
                    value=figures["largest"],
                    limit=self.LIMIT,
                    key=f"{name}-above",
                    help="these look like logits or losses; take log_softmax in fp32 at the sampled token",
                )

    @staticmethod
    def _judge_masks(figures: Readings) -> Iterator[Breach]:
        of = f"of {figures['entries']:,.0f} entries of masks"
        if figures["negative"]:
            yield Breach(
                f"{figures['negative']:,.0f} {of} are negative: that is a mask which is added to attention scores,"
                " and no token in it counts as sampled",
                value=figures["negative"],
                limit=0.0,
                key="mask-additive",
                help="pass True (or 1) where the policy sampled the token and False (or 0) elsewhere",
            )
        if figures["others"]:
            yield Breach(
                f"{figures['others']:,.0f} {of} are neither 0 nor 1: klguard takes everything above 0 for a sampled"
                " token, the loop weighs it",
                value=figures["others"],
                limit=0.0,
                key="mask-weights",
                help="pass the mask of sampled tokens, and multiply the loss by the weights outside it",
            )
