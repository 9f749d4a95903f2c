"""KLG822 and KLG823: the groups of responses that rewards are compared in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from klguard.findings import Severity
from klguard.guard.events import Advantages, Event, Rollout
from klguard.guard.invariants.invariant import HALF, Breach, Invariant, Run
from klguard.guard.invariants.measuring import ids, kept
from klguard.guard.kl import valid_tokens
from klguard.guard.ledger import Readings

_BUCKETS = 64


def bucket_of(groups: Tensor) -> Tensor:
    """(B,) a bucket from 0 to 63 for each group id (B,) int64, the same on all ranks."""
    mixed = (
        groups * 0x5851F42D4C957F2D
    )  # wraps around; Knuth's multiplier spreads close ids over the high bits
    return (mixed >> 33) & (_BUCKETS - 1)


class CompleteGroups(Invariant):
    """A group may be spread over calls and ranks, and its rows over the batch. So rows and advantages are
    added up in 64 buckets by group id: if all groups are complete, each bucket holds a multiple of the group
    size, and if each group adds up to 0, so does each bucket. Baselines with and without the row itself and
    with or without a division by the standard deviation all add up to 0.

    Sums are judged where the scores were given and every row has one advantage, unless it was whitened over
    the batch afterwards. Prompts are compared inside a rollout's call.
    """

    code = "KLG822"
    watches = (Advantages, Rollout)
    sums = (
        "rows", "inconstant", "empty", "absolute", "whole", "half", "size", "calls", "prompts", "prompt_rows",
        *(f"count.{bucket}" for bucket in range(_BUCKETS)),
        *(f"sum.{bucket}" for bucket in range(_BUCKETS)),
        *(f"scored.{bucket}" for bucket in range(_BUCKETS)),
    )  # fmt: skip

    def measure(self, event: Event) -> None:
        if event.groups is None:
            return
        if isinstance(event, Rollout):
            self._measure_prompts(event)
            return
        valid = valid_tokens(event.mask)
        groups = ids(event.groups, valid.device)
        buckets = bucket_of(groups)
        self._spread("count", buckets, torch.ones_like(groups, dtype=torch.float64))
        self.add("rows", float(len(groups)))
        size = event.group_size or self.run.group_size
        if size:
            self.exercised = True
            self.add("size", float(size))
            self.add("calls", 1.0)
        if event.scores is not None and not event.whitened:
            self._measure_sums(event.advantages, valid, buckets)

    def _measure_sums(self, advantages: Tensor, valid: Tensor, buckets: Tensor) -> None:
        self.exercised = True
        if advantages.dim() == 2:
            first = valid & (valid.cumsum(1) == 1)
            one = kept(advantages, first).sum(1)
            differs = (advantages.double() - one[:, None]).abs() > 1e-6 * (1 + one[:, None].abs())
            self.add("inconstant", (differs & valid).sum())
            self.add("empty", (~valid.any(1)).sum())
        else:
            one = torch.where(advantages.isfinite(), advantages.double(), 0.0)
        self.add("absolute", one.abs().sum())
        self.add("half", float(advantages.dtype in HALF))
        self._spread("sum", buckets, one)
        self._spread("scored", buckets, torch.ones_like(one))

    def _spread(self, slot: str, buckets: Tensor, figures: Tensor) -> None:
        sums = torch.zeros(_BUCKETS, dtype=torch.float64, device=figures.device).index_add(
            0, buckets, figures
        )
        for bucket, figure in enumerate(sums.unbind()):
            self.add(f"{slot}.{bucket}", figure)

    def _measure_prompts(self, event: Rollout) -> None:
        """Rows of one group whose prompts differ, by a hash of each prompt that ignores padding's place."""
        if event.prompts is None or not event.prompts.numel():
            return
        self.exercised = True
        prompts = event.prompts.long()
        real = torch.ones_like(prompts) if event.attention_mask is None else event.attention_mask.long()
        real = real[:, : prompts.shape[1]]
        place = real.cumsum(1)
        # a polynomial in each token's own place: wraps around modulo 2^64
        code = ((prompts + 1) * 0x5851F42D4C957F2D ^ (place * 0x2545F4914F6CDD1D)) * 0x5851F42D4C957F2D
        code = (code ^ (code >> 29)) * real
        hashes = code.sum(1)
        groups = ids(event.groups, prompts.device)
        order = groups.argsort(stable=True)
        groups, hashes = groups[order], hashes[order]
        differ = (groups[1:] == groups[:-1]) & (hashes[1:] != hashes[:-1])
        self.add("prompts", differ.sum())
        self.add("prompt_rows", float(len(groups)))

    def judge(self, readings: Readings) -> Iterator[Breach]:
        if readings["prompts"]:
            yield Breach(
                f"the prompts of a group differ, {readings['prompts']:,.0f} times among"
                f" {readings['prompt_rows']:,.0f} rows",
                value=readings["prompts"],
                limit=0.0,
                key="prompts",
            )
        if readings["calls"]:
            yield from self._sizes(readings, readings["size"] / readings["calls"])
        if not readings["inconstant"] and not readings["empty"]:
            yield from self._sums(readings)

    @staticmethod
    def _sizes(readings: Readings, size: float) -> Iterator[Breach]:
        if size < 2:
            yield Breach(
                f"groups have {size:g} response each: there is nothing to compare it with",
                value=size,
                limit=2.0,
                key="size",
            )
            return
        left = sum(readings[f"count.{bucket}"] % size for bucket in range(_BUCKETS))
        if left:
            yield Breach(
                f"the {readings['rows']:,.0f} rows of the step do not make whole groups of {size:g}: at least"
                f" {left:,.0f} rows belong to incomplete or oversized groups",
                value=left,
                limit=0.0,
                key="size",
            )

    @staticmethod
    def _sums(readings: Readings) -> Iterator[Breach]:
        rows = sum(readings[f"scored.{bucket}"] for bucket in range(_BUCKETS))
        if not rows:
            return
        scale = max(1.0, readings["absolute"] / rows)
        limit = (1e-2 if readings["half"] else 1e-4) * scale
        means = [
            readings[f"sum.{bucket}"] / readings[f"scored.{bucket}"]
            for bucket in range(_BUCKETS)
            if readings[f"scored.{bucket}"]
        ]
        worst = max(means, key=abs)
        if abs(worst) > limit:
            wrong = sum(abs(mean) > limit for mean in means)
            yield Breach(
                f"the advantages of a group do not add up to 0: their mean is {worst:.3g} (and off in {wrong} of"
                f" {len(means)} sets of groups)",
                value=worst,
                limit=limit,
                key="sum",
            )


class GroupSpread(Invariant):
    """Group-relative advantages are 0 where all rewards of a group are equal. Counted are groups that are
    complete inside a call. A warning when more than 0.8 of at least 10 groups in five steps in a row have no
    spread; an error when since the start of the run none of at least 32 groups has had any, for five steps or
    more. Hard prompts alone can make groups of equal rewards common, so fewer groups say nothing, and a run whose
    rewards once differed may have solved its task: it is warned, and not ended."""

    code = "KLG823"
    watches = (Advantages,)
    sums = ("groups", "flat")
    STEPS, SHARE, FEWEST, CERTAIN, SPREAD = 5, 0.8, 10, 32, 1e-6

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._window: list[tuple[float, float]] = []
        self._all_flat = [0.0, 0.0]
        self._spread_seen = False

    def measure(self, event: Event) -> None:
        if event.groups is None or event.scores is None:
            return
        self.exercised = True
        scores = event.scores.double().flatten()
        groups = ids(event.groups, scores.device)
        order = groups.argsort(stable=True)
        groups, scores = groups[order], scores[order]
        same = groups[1:] == groups[:-1]
        number = torch.cat([torch.zeros_like(groups[:1]), (~same).long().cumsum(0)])
        blank = torch.zeros_like(scores)
        size = blank.index_add(0, number, torch.ones_like(scores))
        highest = torch.full_like(scores, -math.inf).scatter_reduce(0, number, scores, "amax")
        lowest = torch.full_like(scores, math.inf).scatter_reduce(0, number, scores, "amin")
        expected = event.group_size or self.run.group_size
        whole = size == expected if expected and expected > 1 else size > 1
        # a standard deviation of s needs a range of at least 2 s
        flat = whole & (highest - lowest < 2 * self.SPREAD)
        self.add("groups", whole.sum())
        self.add("flat", flat.sum())

    def judge(self, readings: Readings) -> Iterator[Breach]:
        groups, flat = readings["groups"], readings["flat"]
        if not groups:
            return
        self._window = [*self._window, (groups, flat)][-self.STEPS :]
        steps, seen = self._all_flat
        self._all_flat = [steps + 1, seen + groups] if flat == groups else [0.0, 0.0]
        self._spread_seen = self._spread_seen or flat < groups
        if not self._spread_seen and self._all_flat[0] >= self.STEPS and self._all_flat[1] >= self.CERTAIN:
            yield Breach(
                f"in {self._all_flat[0]:.0f} steps in a row not one of {self._all_flat[1]:,.0f} groups has two"
                " different rewards: all advantages are 0",
                value=1.0,
                limit=self.SHARE,
                key="all",
                severity=Severity.ERROR,
            )
            return
        total, without = map(sum, zip(*self._window, strict=True))
        shares = [one / count for count, one in self._window]
        if len(shares) == self.STEPS and min(shares) > self.SHARE and total >= self.FEWEST:
            yield Breach(
                f"the rewards are all equal in {without:,.0f} of {total:,.0f} groups of the last {self.STEPS} steps",
                value=without / total,
                limit=self.SHARE,
                key="most",
            )

    def state_dict(self) -> dict[str, Any]:
        return {
            "window": [list(entry) for entry in self._window],
            "all_flat": list(self._all_flat),
            "spread_seen": self._spread_seen,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._window = [tuple(entry) for entry in state["window"]]
        self._all_flat = list(state["all_flat"])
        self._spread_seen = state.get("spread_seen", False)
