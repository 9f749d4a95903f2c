"""Made-up rollouts: logits that nobody had to compute, and tokens drawn from them in ways that are known."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from klguard.guard import Guard

Sampler = Callable[[Tensor], Tensor]
"""Logits (B, T, V) as the policy has them -> logits that the tokens are drawn from."""


def pure(logits: Tensor) -> Tensor:
    return logits


def top_k(k: int) -> Sampler:
    return lambda logits: logits.masked_fill(logits < logits.topk(k).values[..., -1:], -math.inf)


def min_p(share: float) -> Sampler:
    return lambda logits: logits.masked_fill(
        logits < logits.amax(-1, keepdim=True) + math.log(share), -math.inf
    )


def temperature(value: float) -> Sampler:
    return lambda logits: logits / value


def banned(token: int) -> Sampler:
    return lambda logits: logits.index_fill(-1, torch.tensor([token]), -math.inf)


def _smallest_set(logits: Tensor, order: Tensor, mass: float) -> Tensor:
    """The first tokens in `order` (ids) until they have `mass`."""
    probabilities = logits.softmax(-1).gather(-1, order)
    before = probabilities.cumsum(-1) - probabilities
    outside = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= mass)
    return logits.masked_fill(outside, -math.inf)


def top_p(mass: float) -> Sampler:
    return lambda logits: _smallest_set(logits, logits.argsort(-1, descending=True), mass)


def typical_p(mass: float) -> Sampler:
    def sampler(logits: Tensor) -> Tensor:
        surprise = -logits.log_softmax(-1)
        entropy = (surprise * logits.softmax(-1)).sum(-1, keepdim=True)
        return _smallest_set(logits, (surprise - entropy).abs().argsort(-1), mass)

    return sampler


def eos_suppressed(eos: int, first: int) -> Sampler:
    def sampler(logits: Tensor) -> Tensor:
        logits = logits.clone()
        logits[:, :first, eos] = -math.inf
        return logits

    return sampler


def draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Tokens (B, T), each from its own logits (B, T, V)."""
    batch, time, vocabulary = logits.shape
    flat = logits.softmax(-1).view(-1, vocabulary)
    return torch.multinomial(flat, 1, generator=generator).view(batch, time)


def play(
    guard: Guard,
    sampler: Sampler = pure,
    *,
    steps: int = 20,
    rows: int = 8,
    time: int = 32,
    vocabulary: int = 60,
    spread: float = 2.0,
    seed: int = 0,
) -> Guard:
    """A loop that draws by `sampler` and scores by the policy, for `steps` steps or until something is found."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        logits = spread * torch.randn(rows, time, vocabulary, generator=generator)
        guard.logprobs(logits, draw(sampler(logits), generator))
        guard.step()
        if guard.findings:
            break
    return guard
