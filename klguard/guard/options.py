"""What a guard is given: checked, and completed from the policy and the tokenizer."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from torch import nn

from klguard.guard.models import inner
from klguard.guard.told import token_ids


def check_models(policy: Any, reference: Any) -> None:
    """TypeError for what is no model."""
    for name, model in (("policy", policy), ("reference", reference)):
        if model is None or isinstance(model, nn.Module):
            continue
        kind = f"{name} is a {type(model).__name__}, not a torch.nn.Module"
        if isinstance(model, str):
            raise TypeError(f"{kind}: load it first, AutoModelForCausalLM.from_pretrained({model!r})")
        if callable(model):
            raise TypeError(
                f"{kind}: a guard is made of models, and then put around the loop: guard = klguard.Guard(policy,"
                " reference, tokenizer), and @guard above the function that trains"
            )
        raise TypeError(f"{kind}: the order is Guard(policy, reference, tokenizer)")


def check_options(alpha: Any, tolerance: Any, kl_range: Any, sample_tokens: Any, seed: Any) -> None:
    """ValueError for a number that makes no sense, TypeError for what is no number."""
    if not isinstance(alpha, Real) or not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha!r} is a probability: choose it between 0 and 1, such as 1e-6")
    noise = isinstance(tolerance, Real) and math.isfinite(tolerance) and tolerance >= 0
    if tolerance is not None and not noise:
        raise ValueError(f"tolerance={tolerance!r} is in nats per token: 0 or more, such as 1e-4")
    pair = kl_range if isinstance(kl_range, (tuple, list)) else ()
    if len(pair) != 2 or not all(isinstance(one, Real) for one in pair) or not pair[0] < pair[1]:
        raise ValueError(
            f"kl_range={kl_range!r} has to be (low, high) in nats per sequence, such as (0.0, 10.0)"
        )
    if not isinstance(sample_tokens, int) or sample_tokens < 1:
        raise ValueError(f"sample_tokens={sample_tokens!r} counts positions to test in a step: at least 1")
    if not isinstance(seed, int):
        raise TypeError(f"seed={seed!r} has to be a whole number; the global random state is never used")


def stop_ids(policy: nn.Module | None, tokenizer: Any) -> tuple[int, ...] | None:
    """The tokens that end a response, from the policy's generation config, else from the tokenizer."""
    config = getattr(inner(policy), "generation_config", None)
    for owner in (config, tokenizer):
        value = getattr(owner, "eos_token_id", None)
        if value is not None:
            return token_ids("eos_token_id", value)
    return None


def vocabulary(policy: nn.Module | None) -> int | None:
    """Number of logits of the policy, where its output layer tells."""
    find = getattr(inner(policy), "get_output_embeddings", None)
    weight = getattr(find() if find else None, "weight", None)
    return None if weight is None else int(weight.shape[0])
