"""From scores and log-probs to advantages: all tensors (B, T) unless said otherwise, 0 where the mask is false."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Total = Callable[[Tensor], Tensor]
"""Sums a tensor over all ranks."""


def kl_estimate(logprobs: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """k1 = log p - log ref of each sampled token, nats: its mean is the KL only if p drew the token."""
    return (logprobs - reference).masked_fill(~mask, 0.0)


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """-kl_coef * KL at every token, and the score (B,) of the response at its last one (Ziegler et al., 2019)."""
    last = mask.sum(1, keepdim=True) - 1
    return (-kl_coef * kl * mask).scatter_add(1, last, scores[:, None])


def total_reward(scores: Tensor, kl: Tensor, kl_coef: float) -> Tensor:
    """(B,) what a response is paid in all: its score (B,) less kl_coef times its KL (B,)."""
    return scores - kl_coef * kl


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimates (Schulman et al., 2016):

        A[t] = delta[t] + gamma * lam * A[t + 1],   delta[t] = r[t] + gamma * V[t + 1] - V[t]

    Nothing follows the last valid token: A and V are 0 behind it.
    """
    advantages = torch.zeros_like(rewards)
    following, next_value = torch.zeros_like(rewards[:, 0]), torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = (delta + gamma * lam * following) * mask[:, t]
        next_value = values[:, t] * mask[:, t]
        advantages[:, t] = following
    return advantages


def whitened(values: Tensor, mask: Tensor, total: Total) -> Tensor:
    """Mean 0 and variance 1 over the valid tokens of all ranks."""
    valid = values.double() * mask
    count, summed = total(torch.stack([mask.sum().double(), valid.sum()]))
    centred = (values.double() - summed / count) * mask
    variance = total(centred.square().sum()) / count
    return (centred * torch.rsqrt(variance + 1e-8)).to(values.dtype)
