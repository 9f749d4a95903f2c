"""What a guard is given: checked, and completed from the policy and the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from klguard.guard.models import inner


def check_options(
    alpha: float, tolerance: float | None, kl_range: tuple[float, float], sample_tokens: int
) -> None:
    """ValueError for a number that makes no sense."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha!r} is a probability: choose it between 0 and 1, such as 1e-6")
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"tolerance={tolerance!r} is in nats per token: 0 or more, such as 1e-4")
    if len(kl_range) != 2 or not kl_range[0] < kl_range[1]:
        raise ValueError(
            f"kl_range={kl_range!r} has to be (low, high) in nats per sequence, such as (0.0, 10.0)"
        )
    if not isinstance(sample_tokens, int) or sample_tokens < 1:
        raise ValueError(f"sample_tokens={sample_tokens!r} counts positions to test in a step: at least 1")


def token_ids(value: int | Sequence[int] | Tensor) -> tuple[int, ...]:
    """One id, several, or a tensor of them, as a sorted tuple."""
    if isinstance(value, Tensor):
        value = value.flatten().tolist()
    return (value,) if isinstance(value, int) else tuple(sorted({int(one) for one in value}))


def stop_ids(policy: nn.Module | None, tokenizer: Any) -> tuple[int, ...] | None:
    """The tokens that end a response, from the policy's generation config, else from the tokenizer."""
    config = getattr(inner(policy), "generation_config", None)
    for owner in (config, tokenizer):
        value = getattr(owner, "eos_token_id", None)
        if value is not None:
            return token_ids(value)
    return None


def vocabulary(policy: nn.Module | None) -> int | None:
    """Number of logits of the policy, where its output layer tells."""
    find = getattr(inner(policy), "get_output_embeddings", None)
    weight = getattr(find() if find else None, "weight", None)
    return None if weight is None else int(weight.shape[0])
