"""Sampling from the policy, and scoring what was sampled: the half of PPO that takes no gradient.

Shapes: B rows, P prompt tokens (padded on the left), T response tokens (padded on the right), L = P + T,
V vocabulary, H hidden size. Log-probs are natural and in fp32 whatever the model computes in.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from klguard import pure_sampling

Prompts = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
"""(count, generator) -> ids (B, P), padded on the left, and their attention mask (B, P)."""


@dataclass(frozen=True)
class Batch:
    """A rollout with all that is computed from it before the first update. The first dimension is the rows."""

    prompts: Tensor  # (B, P)
    attention: Tensor  # (B, P) of the prompts
    responses: Tensor  # (B, T)
    mask: Tensor  # (B, T) bool: the tokens that the policy chose
    numbers: Tensor  # (B,) which row of the step each is
    old: Tensor | None = None  # (B, T) log-probs under the policy that sampled
    reference: Tensor | None = None  # (B, T)
    values: Tensor | None = None  # (B, T) before each response token
    exact_kl: Tensor | None = None  # (B, T) over the vocabulary
    scores: Tensor | None = None  # (B,) of the reward function
    kl: Tensor | None = None  # (B, T) the estimate that is penalised: log p - log ref
    rewards: Tensor | None = None  # (B, T) of each token: penalty, and the score at the last one
    raw: Tensor | None = None  # (B, T) advantages before whitening
    returns: Tensor | None = None  # (B, T)
    advantages: Tensor | None = None  # (B, T) as they enter the loss

    def take(self, rows: Tensor) -> Batch:
        """These rows of everything."""
        known = {f.name: getattr(self, f.name) for f in fields(self)}
        return Batch(**{name: None if value is None else value[rows] for name, value in known.items()})

    def sequences(self) -> tuple[Tensor, Tensor]:
        """Prompts and responses as one: ids (B, L) and attention mask (B, L), without what nobody sampled."""
        ids = torch.cat([self.prompts, self.responses], 1)
        return ids, torch.cat([self.attention, self.mask.to(self.attention.dtype)], 1)


def response_mask(responses: Tensor, stops: Tensor) -> Tensor:
    """(B, T) bool, true up to the first stop token, itself included: it was a choice of the policy too.

    By position, not by comparing with the pad id, which may be the stop token's or be sampled like any other.
    """
    stopped = (responses[..., None] == stops).any(-1).long()
    return stopped.cumsum(1) - stopped == 0


def stop_tokens(policy: nn.Module, tokenizer: Any) -> list[int]:
    """Every id that ends a response. ValueError where neither tokenizer nor checkpoint has one."""
    for owner in (getattr(policy, "generation_config", None), tokenizer, getattr(policy, "config", None)):
        found = getattr(owner, "eos_token_id", None)
        if found is not None:
            return list(found) if isinstance(found, (list, tuple)) else [found]
    raise ValueError("no end-of-sequence token: set tokenizer.eos_token_id")


def sampling_settings(
    policy: nn.Module, tokenizer: Any, max_new_tokens: int, **others: Any
) -> dict[str, Any]:
    """Keywords of generate(): every setting that could bend the distribution switched off, then `others`.

    They are passed to the call, where they win over what the checkpoint's own generation config says.
    """
    stops = stop_tokens(policy, tokenizer)
    pad = getattr(tokenizer, "pad_token_id", None)
    lengths = {"max_new_tokens": max_new_tokens, "eos_token_id": stops}
    settings = pure_sampling(**lengths, pad_token_id=stops[0] if pad is None else pad) | others
    if settings.get("min_new_tokens"):
        settings.pop("min_length", None)  # the same in other words: transformers warns of both, at every call
    return settings


def sample(policy: nn.Module, prompts: Tensor, attention: Tensor, settings: dict[str, Any]) -> Tensor:
    """Responses (B, T) of the policy as it is, T = max_new_tokens, padded on the right."""
    ids = policy.generate(input_ids=prompts, attention_mask=attention, **settings)
    responses = ids[:, prompts.shape[1] :]
    missing = settings["max_new_tokens"] - responses.shape[1]
    return nn.functional.pad(responses, (0, missing), value=settings["pad_token_id"])


def forward(model: nn.Module, ids: Tensor, attention: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Logits (B, L - first, V) that predict the tokens from `first` on, and the hidden states (B, L - first, H)
    they are made of. Logits at one place predict the token at the next."""
    inputs = {"input_ids": ids, "attention_mask": attention}
    if _takes_positions(model):
        # rows are padded on the left: positions count from the first real token, as in generate()
        inputs["position_ids"] = (attention.long().cumsum(1) - 1).clamp(min=0)
    output = model(**inputs, use_cache=False, output_hidden_states=True)
    return output.logits[:, first - 1 : -1], output.hidden_states[-1][:, first - 1 : -1]


def _takes_positions(model: nn.Module) -> bool:
    return "position_ids" in inspect.signature(getattr(model, "module", model).forward).parameters
