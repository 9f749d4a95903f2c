"""What the loop tells the guard, one method for each event. `Silent` stands in where there is no guard.

Everything here only hands over what the loop has anyway: with a guard and without it the same numbers are
computed, and the weights are the same bit by bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from klguard.guard.kl import token_log_probs
from klguard.lab.advantages import gae, total_reward
from klguard.lab.rollout import Batch

if TYPE_CHECKING:
    from klguard.guard import Guard
    from klguard.lab.loop import PPO


class Silent:
    """Nobody listens."""

    def watching(self) -> AbstractContextManager[Any]:
        """Surrounds the training."""
        return nullcontext()

    def preflight(self) -> None:
        """Before the first step."""

    def rollout(self, batch: Batch) -> None:
        """Responses were sampled."""

    def logprobs(
        self, logits: Tensor, tokens: Tensor, mask: Tensor, reference_logits: Tensor, prompts: Tensor
    ) -> Tensor:
        """Log-probs (B, T) of the sampled tokens, from logits (B, T, V)."""
        return token_log_probs(logits, tokens)

    def advantages(self, batch: Batch, texts: list[str]) -> None:
        """KL, rewards and advantages are computed."""

    def minibatch(
        self,
        batch: Batch,
        new: Tensor,
        values: Tensor,
        entropy: Tensor,
        reported: Mapping[str, Tensor],
        epoch: int,
    ) -> None:
        """A forward pass of an update, before its backward pass."""

    def step(self, batch: Batch, logs: Mapping[str, Tensor]) -> None:
        """The step is over."""


class Telling(Silent):
    """Tells a guard."""

    def __init__(self, guard: Guard, loop: PPO) -> None:
        self.guard, self.loop = guard, loop

    def watching(self) -> AbstractContextManager[Any]:
        return self.guard

    def preflight(self) -> None:
        loop, config = self.loop, self.loop.config
        with torch.random.fork_rng(devices=[loop.device] if loop.device.type == "cuda" else []):
            probe = loop.collect(Silent(), torch.Generator().manual_seed(config.seed))

        def accumulate(micro_batches: list[list[int]]) -> None:
            rows = [torch.tensor(rows, device=loop.device) for rows in micro_batches]
            loop.backward(probe, rows, Silent(), epoch=0)

        self.guard.preflight(
            score=lambda ids, attention: loop.score(loop.policy, ids, attention),
            reference_score=lambda ids, attention: loop.score(loop.reference, ids, attention),
            accumulate=accumulate,
            reward=lambda score, kl: total_reward(score, kl, config.kl_coef),
            gae=lambda rewards, values, mask: gae(rewards, values, mask, config.gamma, config.lam),
            gamma=config.gamma,
            lam=config.lam,
        )

    def rollout(self, batch: Batch) -> None:
        self.guard.rollout(
            batch.responses,
            batch.mask,
            prompts=batch.prompts,
            attention_mask=batch.attention,
            stop_token_ids=self.loop.stops,
            max_new_tokens=self.loop.config.max_new_tokens,
            rows=batch.numbers,
            settings=self.loop.sampling,
        )

    def logprobs(
        self, logits: Tensor, tokens: Tensor, mask: Tensor, reference_logits: Tensor, prompts: Tensor
    ) -> Tensor:
        return self.guard.logprobs(
            logits, tokens, mask, reference_logits=reference_logits, context_ids=prompts, temperature=1.0
        )

    def advantages(self, batch: Batch, texts: list[str]) -> None:
        config = self.loop.config
        self.guard.kl(batch.old, batch.reference, batch.mask, estimator="k1", values=batch.kl)
        self.guard.rewards(
            batch.scores,
            texts=texts,
            recompute=self.loop.reward,
            token_rewards=batch.rewards,
            kl=batch.kl,
            kl_coef=config.kl_coef,
            mask=batch.mask,
        )
        self.guard.advantages(
            batch.advantages,
            batch.mask,
            raw=batch.raw,
            values=batch.values,
            rewards=batch.rewards,
            returns=batch.returns,
            gamma=config.gamma,
            lam=config.lam,
            whitened=config.whiten,
        )

    def minibatch(
        self,
        batch: Batch,
        new: Tensor,
        values: Tensor,
        entropy: Tensor,
        reported: Mapping[str, Tensor],
        epoch: int,
    ) -> None:
        self.guard.minibatch(
            new,
            batch.old,
            batch.mask,
            advantages=batch.advantages,
            tokens=batch.responses,
            rows=batch.numbers,
            epoch=epoch,
            clip_range=self.loop.config.clip_range,
            reported=reported,
            entropy=entropy,
            values=values,
            returns=batch.returns,
        )

    def step(self, batch: Batch, logs: Mapping[str, Tensor]) -> None:
        self.guard.step(
            rewards=batch.scores,
            loss=logs["loss"],
            grad_norm=logs["grad_norm"],
            entropy=logs["entropy"],
            explained_variance=logs["explained_variance"],
            kl=logs["kl"],
            kl_unit="sequence",
            kl_estimator="k1",
            kl_coef=self.loop.config.kl_coef,
            lengths=batch.mask.sum(1),
            truncated=self.loop.truncated(batch),
        )
