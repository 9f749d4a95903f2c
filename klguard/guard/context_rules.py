"""Samplers whose rule looks at the tokens so far, or at how many there are: bans of repeated n-grams, a favour for
what the prompt says, and a stop token that is made likelier as the response grows or forced at its end."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from klguard.guard.hypotheses import Hypothesis, penalised_ratios
from klguard.guard.rows import SLACK, Rows, constants

LIMITS = (16, 20, 24, 32, 48, 50, 53, 64, 80, 96, 100, 128, 150, 160, 192, 200, 250, 256, 300, 320, 384,
          400, 500, 512, 600, 640, 700, 768, 800, 1000, 1024, 1200, 1280, 1500, 1536, 2000, 2048, 3000, 3072,
          4000, 4096, 6144, 8192, 10240, 12288, 16384, 20480, 24576, 30720, 32768)  # fmt: skip
"""Values of max_new_tokens that people set."""


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
        if rows.context is None:
            return _no_opinion(rows, len(self.values))
        return _banned_ratios(rows, rows.context, self.values)


class PromptNgram(Hypothesis):
    """No token that would complete an n-gram of the prompt (encoder_no_repeat_ngram_size=n); n = 1 bans every id of
    the prompt."""

    needs = "prompt"

    def __init__(self, values: Sequence[int] = (1, 2, 3, 4), prior: float = 0.03) -> None:
        for value in values:
            if value < 1:
                raise ValueError(
                    f"encoder_no_repeat_ngram_size={value} bans nothing: give a size of at least 1"
                )
        self.values = tuple(int(value) for value in values)
        names = [f"encoder_no_repeat_ngram={n}" for n in self.values]
        super().__init__("encoder_no_repeat_ngram", names, prior)

    def log_ratio(self, rows: Rows) -> Tensor:
        if rows.context is None or rows.prompt is None:
            return _no_opinion(rows, len(self.values))
        return _banned_ratios(rows, rows.context, self.values, rows.prompt)


class PromptFavoured(Hypothesis):
    """encoder_repetition_penalty=r: transformers' repetition penalty of 1/r on the ids of the prompt only. Above 1
    it makes them likelier, below 1 less likely."""

    needs = "prompt"

    def __init__(self, values: Sequence[float] = (1.1, 1.2, 1.3, 1.5), prior: float = 0.03) -> None:
        for value in values:
            if not 0.0 < value < math.inf or value == 1.0:
                raise ValueError(
                    f"encoder_repetition_penalty={value} is no sampler: it must be positive, finite and not 1"
                )
        self.values = tuple(float(value) for value in values)
        names = [f"encoder_repetition_penalty={value:g}" for value in self.values]
        super().__init__("encoder_repetition_penalty", names, prior)

    def log_ratio(self, rows: Rows) -> Tensor:
        if rows.prompt is None:
            return _no_opinion(rows, len(self.values))
        return penalised_ratios(rows, rows.prompt, [1.0 / value for value in self.values])


class ForcedEos(Hypothesis):
    """At the last position that max_new_tokens allows, a stop token is certain (forced_eos_token_id). How many tokens
    are allowed is a property of the run that no response tells before it is drawn, so usual limits are tried, and the
    name tells which one fits. A max_length that counts prompts of different lengths has no such position."""

    needs = "eos"

    def __init__(self, limits: Sequence[int] = LIMITS, prior: float = 0.03) -> None:
        for limit in limits:
            if limit < 1:
                raise ValueError(f"limits={tuple(limits)}: a response of {limit} tokens has no last position")
        self.limits = tuple(int(limit) for limit in limits)
        super().__init__("forced_eos", [f"forced_eos={limit}" for limit in self.limits], prior)

    def log_ratio(self, rows: Rows) -> Tensor:
        if rows.eos is None:
            return _no_opinion(rows, len(self.limits))
        mass, ends = _stopping(rows, rows.eos)
        ratio = torch.where(ends, -(mass + SLACK).log(), -math.inf)
        last = constants(tuple(limit - 1.0 for limit in self.limits), mass.device)
        return torch.where(rows.position.unsqueeze(1) == last, ratio, math.nan)


def _no_opinion(rows: Rows, components: int) -> Tensor:
    return torch.full_like(rows.spectrum.total, math.nan).unsqueeze(1).expand(-1, components)


def _banned_ratios(rows: Rows, context: Tensor, sizes: Sequence[int], prompt: Tensor | None = None) -> Tensor:
    """(n, len(sizes)) log L where no n-gram of the context, or only of `prompt` (n, P), may occur again."""
    total, past = rows.spectrum.total, context if prompt is None else prompt
    places = torch.arange(1, context.shape[1] + 1, device=context.device)
    length = torch.where(context >= 0, places, 0).amax(1, keepdim=True) if len(places) else None
    ratios = []
    for size in sizes:
        if length is None or past.shape[1] < size:
            ratios.append(torch.zeros_like(total))
            continue
        ids = _followers(past, context, length, size).sort(1).values
        counts = (ids >= 0) & (ids < rows.vocabulary)
        counts[:, 1:] &= ids[:, 1:] != ids[:, :-1]
        mass = rows.spectrum.probabilities.gather(1, ids.clamp(0, rows.vocabulary - 1)).to(torch.float64)
        others = (total - (mass * counts).sum(1)).clamp_(min=0.0) + SLACK
        banned = (ids == rows.tokens.unsqueeze(1)).any(1)
        ratios.append(torch.where(banned, -math.inf, -others.log()))
    return torch.stack(ratios, 1)


def _followers(past: Tensor, context: Tensor, length: Tensor, size: int) -> Tensor:
    """(n, p - size + 1) the id after each occurrence in `past` (n, p) of the last size - 1 ids of the context, -1
    where there is none. length: (n, 1) end of the context."""
    windows = past.shape[1] - size + 1
    match = past[:, size - 1 :] >= 0
    for offset in range(size - 1):
        last = context.gather(1, (length - (size - 1) + offset).clamp(min=0))
        last = torch.where(length >= size - 1, last, -1)
        match = match & (past[:, offset : offset + windows] == last) & (last >= 0)
    return past[:, size - 1 :].masked_fill(~match, -1)


def _stopping(rows: Rows, eos: Tensor) -> tuple[Tensor, Tensor]:
    """(n, 1) the probability of the stop tokens together, float64, and (n, 1) whether the token is one."""
    ids = eos.sort().values
    counts = (ids >= 0) & (ids < rows.vocabulary)
    counts = counts & torch.cat([torch.ones_like(counts[:1]), ids[1:] != ids[:-1]])
    mass = rows.spectrum.probabilities[:, ids.clamp(0, rows.vocabulary - 1)].to(torch.float64)
    return (mass * counts).sum(1, keepdim=True), (rows.tokens.unsqueeze(1) == ids).any(1, keepdim=True)


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
        total = rows.spectrum.total
        if rows.eos is None:
            return _no_opinion(rows, len(self.starts))
        mass, ends = _stopping(rows, rows.eos)
        boosts = constants(self.boosts, total.device)
        ratio = torch.where(ends, boosts, 0.0) - (total.unsqueeze(1) + mass * boosts.expm1()).log()
        return torch.where(
            rows.position.unsqueeze(1) >= constants(self.starts, total.device), ratio, math.nan
        )
