"""PPO on a causal language model of transformers, from top to bottom.

    loop = PPO(policy, tokenizer, prompts, reward, Config(steps=200))
    guard = loop.guarded(on_violation="raise", journal="run.jsonl")
    loop.run(guard)

A step is `collect` (rollout, scores, advantages), then `epochs` passes of minibatch updates over it. Runs under
`torchrun` or `accelerate launch` as it stands: each rank samples its own prompts, and gradients, whitening and
losses are those of all ranks together.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from klguard.guard import kl
from klguard.guard.models import text_config
from klguard.lab import parallel
from klguard.lab.advantages import gae, kl_estimate, token_rewards, whitened
from klguard.lab.config import Config
from klguard.lab.rollout import (
    Batch,
    Prompts,
    forward,
    response_mask,
    sample,
    sampling_settings,
    stop_tokens,
)
from klguard.lab.telling import Silent, Telling
from klguard.lab.update import figures, mean, policy_loss, value_loss

if TYPE_CHECKING:
    from klguard.guard import Guard

Reward = Callable[[Sequence[str]], Tensor]
"""The texts of B responses -> scores (B,)."""


class PPO:
    """A policy with its reference, value head, optimizer and data, and the loop over them.

    policy     a causal model of transformers. It is trained in place; the reference is a copy of it.
    tokenizer  has decode(), eos_token_id and, where it is another one, pad_token_id.
    prompts    makes prompts: (count, generator) -> ids (B, P), padded on the left, and attention mask (B, P).
    reward     the texts of responses, without special tokens -> scores (B,).
    """

    def __init__(
        self,
        policy: nn.Module,
        tokenizer: Any,
        prompts: Prompts,
        reward: Reward,
        config: Config,
        *,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.config, self.tokenizer, self.prompts, self.reward = config, tokenizer, prompts, reward
        self.accelerator = Accelerator() if accelerator is None else accelerator
        self.device = self.accelerator.device
        self.stops = stop_tokens(policy, tokenizer)
        self.sampling = sampling_settings(policy, tokenizer, config.max_new_tokens, **config.sampling)
        self._stops = torch.tensor(self.stops, device=self.device)
        self._make_models(policy)
        parameters = [p for p in self.trained.parameters() if p.requires_grad]
        self.parameters = parameters
        self.optimizer = torch.optim.AdamW(
            parameters, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        # down to a tenth of the learning rate at the end of the run
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda update: 1.0 - 0.9 * min(1.0, update / config.updates)
        )
        self.number = 0
        self.logs: list[dict[str, float]] = []
        # data is drawn from a generator of its own: what else draws random numbers does not change it
        self.generator = torch.Generator().manual_seed(config.seed + self.accelerator.process_index)

    def _make_models(self, policy: nn.Module) -> None:
        # always in eval mode: gradients flow as in train mode, and with dropout the scores of a rollout would be
        # those of another network than the one that sampled it
        policy.eval()
        reference = copy.deepcopy(policy).requires_grad_(False)
        width = text_config(policy.config).hidden_size
        head = nn.utils.skip_init(nn.Linear, width, 1)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        shard = self.config.shard
        self.policy = parallel.place(self.accelerator, policy, shard=shard, trained=True)
        self.reference = parallel.place(self.accelerator, reference, shard=shard, trained=False)
        self.value_head = parallel.place(self.accelerator, head, shard=shard, trained=True)
        self.trained = nn.ModuleDict({"policy": self.policy, "value_head": self.value_head})

    def guarded(self, **options: Any) -> Guard:
        """A guard that knows the parts of this loop; `options` are those of klguard.Guard."""
        from klguard.guard import Guard

        known = {
            "eos_token_id": self.stops,
            "kl_coef": self.config.kl_coef,
            "max_grad_norm": self.config.max_grad_norm,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
        }
        return Guard(self.policy, self.reference, self.tokenizer, **known | options)

    # ------------------------------------------------------------------------------------- the loop

    def run(self, guard: Guard | None = None, *, after_step: Callable[[PPO], Any] | None = None) -> None:
        """Train until `config.steps`, under the guard where there is one; `after_step(loop)` ends each step, and
        ends the run by returning True."""
        if self.number == 0:
            set_seed(self.config.seed, device_specific=True)
        tell = Silent() if guard is None else Telling(guard, self)
        with tell.watching():
            tell.preflight()
            while self.number < self.config.steps:
                self.step(tell)
                if after_step is not None and after_step(self) is True:
                    return

    def step(self, tell: Silent) -> None:
        """A rollout, and the updates made from it."""
        batch = self.collect(tell, self.generator)
        updates = [
            self.update(batch, rows, tell, epoch)
            for epoch in range(self.config.epochs)
            for rows in self.minibatches()
        ]
        logs = self.figures_of(batch, updates)
        tell.step(batch, logs)
        self.number += 1
        # one copy to the host for all figures
        self.logs.append(dict(zip(logs, torch.stack(list(logs.values())).tolist(), strict=True)))

    # -------------------------------------------------------------------------- rollout to advantages

    @torch.no_grad()
    def collect(self, tell: Silent, generator: torch.Generator) -> Batch:
        """Sample, score by policy and reference, and compute rewards and advantages."""
        prompts, attention = (part.to(self.device) for part in self.prompts(self.config.rows, generator))
        with self.autocast():
            policy = self.accelerator.unwrap_model(self.policy)
            # with shards all ranks run each forward pass together, until the last of them is done
            settings = self.sampling | {
                "synced_gpus": self.config.shard and self.accelerator.num_processes > 1
            }
            responses = sample(policy, prompts, attention, settings)
        mask = response_mask(responses, self._stops)
        numbers = torch.arange(len(prompts), device=self.device)
        batch = Batch(prompts, attention, responses, mask, numbers)
        tell.rollout(batch)
        return self.add_advantages(self.add_scores(batch, tell), tell)

    def add_scores(self, batch: Batch, tell: Silent) -> Batch:
        """The batch with log-probs and values, a few rows at a time: logits of all at once may be large."""
        parts = []
        for rows in batch.numbers.split(self.config.micro_batch or len(batch.numbers)):
            part = batch.take(rows)
            logits, hidden = self.forward(self.policy, part)
            reference_logits, _ = self.forward(self.reference, part)
            old = tell.logprobs(logits, part.responses, part.mask, reference_logits, part.prompts)
            reference = kl.token_log_probs(reference_logits, part.responses)
            exact = kl.exact_kl(logits, reference_logits) if self.config.measure_exact_kl else None
            parts.append((old, reference, self.values(hidden), exact))
        old, reference, values, exact = zip(*parts, strict=True)
        return replace(
            batch,
            old=torch.cat(old),
            reference=torch.cat(reference),
            values=torch.cat(values) * batch.mask,
            exact_kl=None if exact[0] is None else torch.cat(exact) * batch.mask,
        )

    def add_advantages(self, batch: Batch, tell: Silent) -> Batch:
        """The batch with scores, KL, rewards and advantages."""
        config, mask = self.config, batch.mask
        texts = self.texts(batch)
        scores = self.reward(texts).to(self.device, torch.float32)
        estimate = kl_estimate(batch.old, batch.reference, mask)
        rewards = token_rewards(scores, estimate, mask, config.kl_coef)
        raw = gae(rewards, batch.values, mask, config.gamma, config.lam)
        batch = replace(
            batch,
            scores=scores,
            kl=estimate,
            rewards=rewards,
            raw=raw,
            returns=(raw + batch.values) * mask,
            advantages=whitened(raw, mask, self.total) if config.whiten else raw,
        )
        tell.advantages(batch, texts)
        return batch

    def texts(self, batch: Batch) -> list[str]:
        """The responses as the reward function reads them."""
        lengths = batch.mask.sum(1).tolist()
        rows = zip(batch.responses.tolist(), lengths, strict=True)
        return [self.tokenizer.decode(ids[:length], skip_special_tokens=True) for ids, length in rows]

    # ---------------------------------------------------------------------------------------- updates

    def minibatches(self) -> Iterator[Tensor]:
        """Row numbers of the minibatches of one epoch, in an order of their own on each rank."""
        order = torch.randperm(self.config.rows, generator=self.generator).to(self.device)
        yield from order.split(self.config.rows // self.config.minibatches)

    def update(self, batch: Batch, rows: Tensor, tell: Silent, epoch: int) -> dict[str, Tensor]:
        """One optimizer step on these rows; the figures of it."""
        self.optimizer.zero_grad()
        logs = self.backward(batch, list(rows.split(self.config.micro_batch or len(rows))), tell, epoch)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        return logs | {"grad_norm": parallel.whole(norm)}

    def backward(
        self, batch: Batch, micro_batches: Sequence[Tensor], tell: Silent, epoch: int
    ) -> dict[str, Tensor]:
        """The gradient of the mean loss over all valid tokens of all micro-batches on all ranks.

        Every token counts the same, whichever micro-batch or rank it is in: losses are summed, and divided by the
        number of tokens of the whole minibatch. DDP and FSDP2 average over ranks, hence the factor.
        """
        valid = torch.stack([batch.mask[rows].sum() for rows in micro_batches]).sum()
        scale = self.accelerator.num_processes / self.total(valid)
        parts, config = [], self.config
        for index, rows in enumerate(micro_batches):
            quiet = index + 1 < len(micro_batches)
            with parallel.without_reduction((self.policy, self.value_head), quiet):
                part = batch.take(rows)
                logits, hidden = self.forward(self.policy, part)
                new, values = kl.token_log_probs(logits, part.responses), self.values(hidden)
                entropy = kl.entropy(logits.detach())
                logs = figures(new.detach(), part.old, part.mask, entropy, config.clip_range)
                tell.minibatch(part, new, values, entropy, logs, epoch)
                losses = policy_loss(new, part.old, part.advantages, config.clip_range)
                losses = losses + config.value_coef * value_loss(values, part.returns)
                loss = (losses * part.mask).sum() * scale
                loss.backward()
            parts.append(logs | {"loss": loss.detach()})
        count = len(parts)
        sums = {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}
        return {name: value if name == "loss" else value / count for name, value in sums.items()}

    # ------------------------------------------------------------------------------------------ models

    def autocast(self) -> torch.autocast:
        """The precision that every pass of policy and reference runs in."""
        return parallel.autocast(self.accelerator, self.config.precision)

    def forward(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits (B, T, V) of the response tokens, and the hidden states (B, T, H)."""
        ids, attention = batch.sequences()
        with self.autocast():
            return forward(model, ids, attention, batch.prompts.shape[1])

    def values(self, hidden: Tensor) -> Tensor:
        """(B, T) the value before each response token, in fp32."""
        return self.value_head(hidden.float())[..., 0]

    def score(self, model: nn.Module, ids: Tensor, attention: Tensor) -> Tensor:
        """(B, L-1) log-probs of the tokens from the second on."""
        with self.autocast():
            logits, _ = forward(model, ids, attention, 1)
        return kl.token_log_probs(logits, ids[:, 1:])

    # ------------------------------------------------------------------------------------------ figures

    def total(self, value: Tensor) -> Tensor:
        """`value` summed over all ranks."""
        return parallel.total(self.accelerator, value)

    def truncated(self, batch: Batch) -> Tensor:
        """(B,) bool: the response was cut off at max_new_tokens."""
        return ~(batch.responses[..., None] == self._stops).any(-1).any(-1)

    def figures_of(self, batch: Batch, updates: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """What is logged of a step: scalars on the device. KL in nats per sequence; on this rank's rows."""
        logs = {name: torch.stack([update[name] for update in updates]).mean() for name in updates[0]}
        residual = mean((batch.returns - batch.values).square(), batch.mask)
        spread = mean((batch.returns - mean(batch.returns, batch.mask)).square(), batch.mask)
        logs |= {
            "kl": batch.kl.sum(1).mean(),
            "score": batch.scores.mean(),
            "total_reward": batch.rewards.sum(1).mean(),
            "length": batch.mask.sum(1).float().mean(),
            "tokens": batch.mask.sum().float(),
            "explained_variance": 1 - residual / spread.clamp(min=1e-12),
        }
        if batch.exact_kl is not None:
            logs["exact_kl"] = batch.exact_kl.sum(1).mean()
        return logs
