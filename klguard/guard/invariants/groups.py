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


def numbered(groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of group ids (B,): the order (B,) that brings a group's rows together, the number of the group (B,) of each
    row in that order, from 0, and the size (B,) of each group by its number, 0 for numbers that none has."""
    order = groups.argsort(stable=True)
    sorted_ids = groups[order]
    differs = (sorted_ids[1:] != sorted_ids[:-1]).long()
    number = torch.cat([torch.zeros_like(sorted_ids[:1]), differs.cumsum(0)])
    size = torch.zeros(len(groups), dtype=torch.float64, device=groups.device)
    return order, number, size.index_add(0, number, torch.ones_like(size))


def ends_of(values: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) lowest and (B,) highest of `values` (B,) in each group; inf and -inf for numbers that none has."""
    lowest = torch.full_like(values, math.inf).scatter_reduce(0, number, values, "amin")
    return lowest, torch.full_like(values, -math.inf).scatter_reduce(0, number, values, "amax")


def one_each(advantages: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The advantage of each row (B,) in float64, of one for each row (B,) or each token (B, T); how many tokens have
    another than the first of their row; how many rows have no token."""
    if advantages.dim() == 1:
        none = torch.zeros((), device=advantages.device)
        return torch.where(advantages.isfinite(), advantages.double(), 0.0), none, none
    one = kept(advantages, valid & (valid.cumsum(1) == 1)).sum(1)
    differs = (advantages.double() - one[:, None]).abs() > 1e-6 * (1 + one[:, None].abs())
    return one, (differs & valid).sum(), (~valid.any(1)).sum()


def hashed(prompts: Tensor, attention_mask: Tensor | None) -> Tensor:
    """(B,) a number for each prompt (B, P) that is the same wherever padding is put."""
    tokens = prompts.long()
    real = torch.ones_like(tokens) if attention_mask is None else attention_mask.long()[:, : tokens.shape[1]]
    place = real.cumsum(1)
    # a polynomial in each token's own place: wraps around modulo 2^64
    code = ((tokens + 1) * 0x5851F42D4C957F2D ^ (place * 0x2545F4914F6CDD1D)) * 0x5851F42D4C957F2D
    return ((code ^ (code >> 29)) * real).sum(1)


def against_others(one: Tensor, scores: Tensor, groups: Tensor) -> Tensor:
    """(B,) rows of groups in which every advantage is the row's score minus the mean of the others, over the standard
    deviation of these: the one usual baseline under which a group does not add up to 0."""
    order, number, size = numbered(groups)
    values = torch.where(scores.isfinite(), scores.detach().double(), 0.0).to(one.device)[order]
    total = torch.zeros_like(size).index_add(0, number, values)[number]
    squares = torch.zeros_like(size).index_add(0, number, values.square())[number]
    others = (size[number] - 1).clamp(min=1)
    mean = (total - values) / others
    variance = ((squares - values.square()) / others - mean.square()).clamp(min=0)
    unbiased = variance * others / (others - 1).clamp(min=1)
    advantages, found = one[order], torch.zeros_like(values, dtype=torch.bool)
    for spread in (variance.sqrt(), unbiased.sqrt()):
        expected = torch.where(spread > 1e-6, (values - mean) / spread.clamp(min=1e-6), values - mean)
        found |= (advantages - expected).abs() <= 1e-2 * expected.abs() + 1e-6
    wrong = torch.zeros_like(size).index_add(0, number, (~found | (size[number] < 3)).double())
    return torch.empty_like(found).index_copy(0, order, wrong[number] == 0)


def rounding(absolute: float, rows: float, half: bool) -> float:
    """How far from 0 the mean of a group's advantages may be."""
    return (1e-2 if half else 1e-4) * max(1.0, absolute / rows)


class CompleteGroups(Invariant):
    """A group may be spread over calls and ranks, and its rows over the batch. So rows and advantages are
    added up in 64 buckets by group id: if all groups are complete, each bucket holds a multiple of the group
    size, and if each group adds up to 0, so does each bucket. Baselines with and without the row itself and
    with or without a division by the standard deviation all add up to 0, but for a division by that of the other
    rows alone: rows that come out so are taken for 0. Where groups differ in size and nobody said how large they are,
    a row may stand for a part of a response, and a sum that is not 0 is a warning.

    Sums are judged where the scores were given and every row has one advantage, unless it was whitened over
    the batch afterwards. Prompts are compared inside a rollout's call.

    A group that was divided by its own standard deviation has a spread of about 1, whatever its rewards, and one
    that was not has that of its rewards. A group with a hundred times both, while the others have not, was divided
    by what rounding left of a standard deviation of 0.
    """

    code = "KLG822"
    watches = (Advantages, Rollout)
    sums = (
        "rows", "inconstant", "empty", "absolute", "whole", "half", "size", "calls", "prompts", "prompt_rows", "uneven",
        "blown_up",
        *(f"count.{bucket}" for bucket in range(_BUCKETS)),
        *(f"sum.{bucket}" for bucket in range(_BUCKETS)),
        *(f"scored.{bucket}" for bucket in range(_BUCKETS)),
    )  # fmt: skip

    maxima = ("spread",)
    BLOWN_UP = 100.0

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
            self._measure_sums(event, valid, groups, buckets)
            self._measure_spread(event.advantages, event.scores, groups)

    def _measure_spread(self, advantages: Tensor, scores: Tensor, groups: Tensor) -> None:
        """Range of the advantages (B,) of each group against that of its scores (B,) and of the other groups."""
        if advantages.dim() != 1 or scores.shape != advantages.shape:
            return
        order, numbers, size = numbered(groups)
        spreads = []
        for values in (advantages.detach().double(), scores.detach().double().to(advantages.device)):
            lowest, highest = ends_of(torch.where(values.isfinite(), values, 0.0)[order], numbers)
            spreads.append(torch.where(size > 1, highest - lowest, 0.0))
        others = torch.where(size > 1, spreads[0], torch.nan).nanmedian()
        limit = self.BLOWN_UP * torch.maximum(spreads[1].clamp(min=1.0), others)
        # one row that differs in a batch of n, whitened over the batch, is sqrt(n) from the others
        limit = limit.clamp(min=8 * math.sqrt(len(groups)))
        self.add("blown_up", (spreads[0] > limit).sum())
        self.highest("spread", spreads[0])

    def _measure_sums(self, event: Advantages, valid: Tensor, groups: Tensor, buckets: Tensor) -> None:
        self.exercised = True
        one, inconstant, empty = one_each(event.advantages, valid)
        if event.scores.shape == one.shape:
            one = torch.where(against_others(one, event.scores, groups), 0.0, one)
        _, _, size = numbered(groups)
        self.add("uneven", size.amax() > torch.where(size > 0, size, torch.inf).amin())
        self.add("inconstant", inconstant)
        self.add("empty", empty)
        self.add("absolute", one.abs().sum())
        self.add("half", float(event.advantages.dtype in HALF))
        self._spread("sum", buckets, one)
        self._spread("scored", buckets, torch.ones_like(one))

    def _spread(self, slot: str, buckets: Tensor, figures: Tensor) -> None:
        sums = torch.zeros(_BUCKETS, dtype=torch.float64, device=figures.device).index_add(
            0, buckets, figures
        )
        for bucket, figure in enumerate(sums.unbind()):
            self.add(f"{slot}.{bucket}", figure)

    def _measure_prompts(self, event: Rollout) -> None:
        """Rows of one group whose prompts differ."""
        if event.prompts is None or not event.prompts.numel():
            return
        self.exercised = True
        hashes = hashed(event.prompts, event.attention_mask)
        groups = ids(event.groups, hashes.device)
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
        if readings["blown_up"]:
            yield Breach(
                f"the advantages of {readings['blown_up']:,.0f} groups spread over up to {readings['spread']:.4g}, a"
                " hundred times their rewards and the other groups' advantages",
                value=readings["spread"],
                key="blown up",
                severity=Severity.WARNING,
                help="a standard deviation of 0 is not exactly 0 in fp32: leave a group alone whose rewards, or those"
                " that a row is compared with, are all equal, or add 1e-4 to the divisor",
            )

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
        limit = rounding(readings["absolute"], rows, bool(readings["half"]))
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
                severity=Severity.WARNING if readings["uneven"] and not readings["calls"] else None,
            )


class GroupSpread(Invariant):
    """Group-relative advantages are 0 where all rewards of a group are equal. Counted are groups that are
    complete inside a call; where only their size was given, rows that follow each other. A warning when more than
    0.8 of at least 10 groups in five steps in a row have no spread; an error when since the start of the run none of
    at least 32 groups has had any, for five steps or more. Hard prompts alone can make groups of equal rewards
    common, so fewer groups say nothing, and a run whose rewards once differed may have solved its task: it is warned,
    and not ended."""

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
        expected = event.group_size or self.run.group_size
        if event.scores is None:
            return
        scores = event.scores.double().flatten()
        if event.groups is not None:
            groups = ids(event.groups, scores.device)
        elif expected and expected > 1 and len(scores) % expected == 0:
            groups = torch.arange(len(scores), device=scores.device) // expected
        else:
            return
        self.exercised = True
        order, number, size = numbered(groups)
        lowest, highest = ends_of(scores[order], number)
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
