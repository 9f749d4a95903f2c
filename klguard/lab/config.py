"""What a run of the loop is told: one frozen dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of a run. ValueError for numbers that make no run.

    steps           PPO steps: a rollout and the updates made from it.
    rows            responses of a step, on each rank.
    max_new_tokens  longest response, in tokens.
    sampling        keywords of generate() on top of pure sampling. Anything that bends the distribution makes
                    the loop wrong: that is what it is for.
    kl_coef         weight of the KL estimate in the reward, reward per nat.
    gamma, lam      discount, and the lambda of generalised advantage estimation (Schulman et al., 2016).
    whiten          give the advantages mean 0 and variance 1 over the valid tokens of all ranks.
    clip_range      of PPO's ratio (Schulman et al., 2017).
    epochs, minibatches   passes over a rollout, and updates in each.
    micro_batch     rows in one forward and backward pass; gradients of a minibatch accumulate over them. None
                    for the whole minibatch.
    precision       "bf16" computes under autocast, with weights as they come; "fp32" computes in the weights' own
                    precision.
    shard           FSDP2: each rank holds a part of the policy, the reference and the optimizer's state.
    measure_exact_kl   also compute the KL over the vocabulary at each sampled prefix, which nothing is trained on.
    seed            of sampling (on rank r: seed + r), of prompts and of the order of rows.
    """

    steps: int = 100
    rows: int = 32
    max_new_tokens: int = 32
    sampling: Mapping[str, Any] = field(default_factory=dict)
    kl_coef: float = 0.05
    gamma: float = 1.0
    lam: float = 0.95
    whiten: bool = True
    clip_range: float = 0.2
    value_coef: float = 0.1
    epochs: int = 2
    minibatches: int = 2
    micro_batch: int | None = None
    learning_rate: float = 1e-5
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: str = "fp32"
    shard: bool = False
    measure_exact_kl: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "rows", "max_new_tokens", "epochs", "minibatches"):
            _at_least_one(name, getattr(self, name))
        if self.micro_batch is not None:
            _at_least_one("micro_batch", self.micro_batch)
        if self.rows % self.minibatches:
            raise ValueError(
                f"rows={self.rows} cannot be divided into minibatches={self.minibatches} of one size: choose a"
                " divisor, so that every update of every rank sees equally many responses"
            )
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision={self.precision!r} is not known: choose 'fp32' or 'bf16'")
        for name in ("gamma", "lam"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}={getattr(self, name)!r} must lie in [0, 1]")
        for name in ("learning_rate", "max_grad_norm", "clip_range"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name}={getattr(self, name)!r} must be above 0")
        if self.kl_coef < 0.0:
            raise ValueError(
                f"kl_coef={self.kl_coef!r} would reward the distance from the reference: use 0 or more"
            )

    @property
    def updates(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps * self.epochs * self.minibatches


def _at_least_one(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
