"""The losses of PPO, token by token; all (B, T)."""

from __future__ import annotations

import torch
from torch import Tensor


def policy_loss(new: Tensor, old: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """The clipped objective, to be minimised (Schulman et al., 2017): the worse of ratio and clipped ratio."""
    ratio = (new - old).exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(-advantages * ratio, -advantages * clipped)


def value_loss(values: Tensor, returns: Tensor) -> Tensor:
    """Half the squared error."""
    return 0.5 * (values - returns).square()


def mean(values: Tensor, mask: Tensor) -> Tensor:
    """Scalar mean over the valid tokens."""
    return (values * mask).sum() / mask.sum()


def figures(new: Tensor, old: Tensor, mask: Tensor, entropy: Tensor, clip_range: float) -> dict[str, Tensor]:
    """What is logged of a forward pass, scalars: the mean ratio, k3 of new against old, the share of clipped
    tokens, the entropy (B, T) of the policy."""
    d = new - old
    return {
        "ratio": mean(d.exp(), mask),
        "approx_kl": mean(torch.expm1(d) - d, mask),
        "clip_fraction": mean(((d.exp() - 1).abs() > clip_range).float(), mask),
        "entropy": mean(entropy, mask),
    }
