"""Samplers whose rule looks at the tokens so far, or at how many there are: bans of repeated n-grams, and a stop
token that is made likelier as the response grows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from klguard.guard.hypotheses import Hypothesis
from klguard.guard.rows import SLACK, Rows, constants


class NoRepeatNgram(Hypothesis):
    """No token that would complete an n-gram the context already has (no_repeat_ngram_size=n): L = 1 / (1 - p(S))
    outside the set S of ids that followed the last n - 1 ids before, 0 inside. The prompt counts, and so does its
    padding where the context holds it, as in transformers."""

    needs = "context"

    def __init__(self, values: Sequence[int] = (2, 3, 4), prior: float = 0.04) -> None:
        for value in values:
            if value < 2:
                raise ValueError(f"no_repeat_ngram_size={value} cannot be tested: give a size of at least 2")
        self.values = tuple(int(value) for value in values)
        super().__init__("no_repeat_ngram", [f"no_repeat_ngram={n}" for n in self.values], prior)

    def log_ratio(self, rows: Rows) -> Tensor:
        total, context = rows.spectrum.total, rows.context
        if context is None:
            return torch.full_like(total, math.nan).unsqueeze(1).expand(-1, len(self.values))
        places = torch.arange(1, context.shape[1] + 1, device=context.device)
        length = torch.where(context >= 0, places, 0).amax(1, keepdim=True) if len(places) else None
        ratios = []
        for size in self.values:
            if length is None or context.shape[1] < size:
                ratios.append(torch.zeros_like(total))
                continue
            ids = _followers(context, length, size).sort(1).values
            counts = (ids >= 0) & (ids < rows.vocabulary)
            counts[:, 1:] &= ids[:, 1:] != ids[:, :-1]
            mass = rows.spectrum.probabilities.gather(1, ids.clamp(0, rows.vocabulary - 1)).to(torch.float64)
            others = (total - (mass * counts).sum(1)).clamp_(min=0.0) + SLACK
            banned = (ids == rows.tokens.unsqueeze(1)).any(1)
            ratios.append(torch.where(banned, -math.inf, -others.log()))
        return torch.stack(ratios, 1)


def _followers(context: Tensor, length: Tensor, size: int) -> Tensor:
    """(n, c - size + 1) the id after each earlier occurrence of the last size - 1 ids of the context, -1 where
    there is none. length: (n, 1) end of the context."""
    windows = context.shape[1] - size + 1
    match = context[:, size - 1 :] >= 0
    for offset in range(size - 1):
        last = context.gather(1, (length - (size - 1) + offset).clamp(min=0))
        last = torch.where(length >= size - 1, last, -1)
        match = match & (context[:, offset : offset + windows] == last) & (last >= 0)
    return context[:, size - 1 :].masked_fill(~match, -1)


class EosBoosted(Hypothesis):
    """The stop tokens' logits are raised by b nats from position m of the response on. What grows with the length,
    as exponential_decay_length_penalty does, shows as the nearest m and b; the name tells m."""

    needs = "eos"

    def __init__(
        self,
        starts: Sequence[int] = (0, 8, 16, 32),
        boosts: Sequence[float] = (1.0, 2.0, 4.0),
        prior: float = 0.03,
    ) -> None:
        if not all(start >= 0 for start in starts):
            raise ValueError(f"starts={tuple(starts)}: a position in the response is at least 0")
        if not all(boost > 0 and math.isfinite(boost) for boost in boosts):
            raise ValueError(f"boosts={tuple(boosts)}: a boost is a finite number of nats above 0")
        self.starts = tuple(float(start) for start in starts for _ in boosts)
        self.boosts = tuple(float(boost) for _ in starts for boost in boosts)
        super().__init__("eos_boosted", [f"eos_boosted>={start:g}" for start in self.starts], prior)

    def log_ratio(self, rows: Rows) -> Tensor:
        total, eos = rows.spectrum.total, rows.eos
        if eos is None:
            return torch.full_like(total, math.nan).unsqueeze(1).expand(-1, len(self.starts))
        ids = eos.sort().values
        counts = (ids >= 0) & (ids < rows.vocabulary)
        counts = counts & torch.cat([torch.ones_like(counts[:1]), ids[1:] != ids[:-1]])
        mass = rows.spectrum.probabilities[:, ids.clamp(0, rows.vocabulary - 1)].to(torch.float64)
        mass = (mass * counts).sum(1, keepdim=True)
        boosts = constants(self.boosts, total.device)
        ends = (rows.tokens.unsqueeze(1) == ids).any(1, keepdim=True)
        ratio = torch.where(ends, boosts, 0.0) - (total.unsqueeze(1) + mass * boosts.expm1()).log()
        return torch.where(
            rows.position.unsqueeze(1) >= constants(self.starts, total.device), ratio, math.nan
        )
