"""KLG822 where only the size of the groups is known: which rows belong together is seen from the advantages."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from klguard.findings import Severity
from klguard.guard.events import Advantages, Event, Rollout
from klguard.guard.invariants.groups import against_others, hashed, one_each, rounding
from klguard.guard.invariants.invariant import HALF, Breach, Invariant
from klguard.guard.invariants.updates import world
from klguard.guard.kl import valid_tokens
from klguard.guard.ledger import Readings

SAY = "if the rows of a prompt lie otherwise, say which with `groups`; else "


class ImpliedGroups(Invariant):
    """B rows in groups of n lie together (n rows for the first prompt, then n for the next) or apart (every prompt
    once, n times over). Advantages that are relative to the group add up to 0 in one of the two, and there the
    prompts have to be the same. Judged where the scores were given and every row has one advantage, unless it was
    whitened over the batch afterwards; under several ranks not at all, since a group may be spread over them.
    """

    code = "KLG822"
    watches = (Advantages, Rollout)
    sums = (
        "implied.rows",
        "implied.skipped",
        "implied.absolute",
        "implied.half",
        "together.prompts",
        "apart.prompts",
    )
    maxima = ("together.mean", "apart.mean", "implied.size")

    def measure(self, event: Event) -> None:
        size = (event.group_size if isinstance(event, Advantages) else None) or self.run.group_size
        if event.groups is not None or not size or size < 2 or world() > 1:
            return
        if isinstance(event, Rollout):
            self._measure_prompts(event, size)
        elif event.scores is not None and not event.whitened and len(event.advantages) % size == 0:
            self._measure_sums(event, size)

    def _measure_sums(self, event: Advantages, size: int) -> None:
        if not len(event.advantages):
            return
        self.exercised = True
        one, inconstant, empty = one_each(event.advantages, valid_tokens(event.mask))
        self.add("implied.skipped", inconstant + empty)
        self.add("implied.rows", float(len(one)))
        self.add("implied.absolute", one.abs().sum())
        self.add("implied.half", float(event.advantages.dtype in HALF))
        self.highest("implied.size", float(size))
        place = torch.arange(len(one), device=one.device)
        for lie, groups in (("together", place // size), ("apart", place % (len(one) // size))):
            rest = one
            if event.scores.shape == one.shape:
                rest = torch.where(against_others(one, event.scores, groups), 0.0, one)
            parts = rest.view(-1, size) if lie == "together" else rest.view(size, -1).T
            self.highest(f"{lie}.mean", parts.mean(1).abs())

    def _measure_prompts(self, event: Rollout, size: int) -> None:
        if event.prompts is None or not event.prompts.numel() or len(event.prompts) % size:
            return
        prompts = hashed(event.prompts, event.attention_mask)
        self.add("together.prompts", _differing(prompts.view(-1, size)))
        self.add("apart.prompts", _differing(prompts.view(size, -1).T))

    def judge(self, readings: Readings) -> Iterator[Breach]:
        rows, size = readings["implied.rows"], readings.maximum("implied.size")
        if not rows or not size or readings["implied.skipped"]:
            return
        limit = rounding(readings["implied.absolute"], rows, bool(readings["implied.half"]))
        means = {lie: readings.maximum(f"{lie}.mean") or 0.0 for lie in ("together", "apart")}
        right = [lie for lie, mean in means.items() if mean <= limit]
        if not right:
            yield Breach(
                f"the advantages of a group of {size:g} do not add up to 0, be its rows those that follow each other"
                f" or one from each of {size:g} parts of the batch: their mean is up to {min(means.values()):.3g}",
                value=min(means.values()),
                limit=limit,
                key="sum",
                severity=Severity.WARNING,
                help=f"{SAY}take the mean of a prompt's own rewards off each of them",
            )
        elif len(right) == 1 and readings[f"{right[0]}.prompts"]:
            yield Breach(
                f"the advantages add up to 0 over groups of {size:g} that lie {right[0]}, but the prompts in these"
                f" differ, {readings[f'{right[0]}.prompts']:,.0f} times",
                value=readings[f"{right[0]}.prompts"],
                limit=0.0,
                key="prompts",
                severity=Severity.WARNING,
                help=f"{SAY}repeat the prompts in the order in which the rewards are grouped",
            )


def _differing(groups: Tensor) -> Tensor:
    """How many rows have another prompt than the first of their group, of hashes (groups, size)."""
    return (groups != groups[:, :1]).sum()
