"""A small, correct, readable PPO loop, and a GRPO one. Every piece is a method of its own.

A planted bug is a subclass that overrides one piece:

    class PromptInMask(Loop):
        def response_mask(self, responses): return torch.ones_like(responses, dtype=torch.bool)

    assert {finding.code for finding in run(PromptInMask).findings} == {"KLG811"}

What the loop tells the guard, it tells in the `tell_*` methods, which can be overridden to tell less.
Shapes: B rows, P prompt tokens (left-padded), T response tokens (right-padded), V vocabulary.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

PAD, EOS, VOCABULARY, HIDDEN = 0, 1, 64, 32
ROWS, PROMPT, RESPONSE = 16, 8, 16


class Tokenizer:
    """As much of a tokenizer as a loop needs: ids are written as numbers."""

    pad_token_id, eos_token_id = PAD, EOS
    pad_token, eos_token = "<pad>", "<eos>"

    def __init__(self) -> None:
        self.padding_side = "left"

    def __len__(self) -> int:
        return VOCABULARY

    def decode(self, ids: Any, skip_special_tokens: bool = False) -> str:
        numbers = [int(i) for i in ids]
        return " ".join(str(i) for i in numbers if not (skip_special_tokens and i in (PAD, EOS)))


@functools.lru_cache(maxsize=1)
def _model() -> GPT2LMHeadModel:
    """Two layers with random weights, large enough to make a distribution with a shape, and no dropout.

    The bias of the last layer norm points to the stop token's embedding, so that responses end by themselves
    after about seven tokens although output and input embeddings are tied.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        config = GPT2Config(
            vocab_size=VOCABULARY, n_positions=64, n_embd=HIDDEN, n_layer=2, n_head=2,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.2,
            bos_token_id=EOS, eos_token_id=EOS, pad_token_id=PAD,
        )  # fmt: skip
        model = GPT2LMHeadModel(config)
        with torch.no_grad():
            stop = model.transformer.wte.weight[EOS]
            model.transformer.ln_f.bias.copy_(2.3 * stop / stop.square().sum())
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=RESPONSE,
        eos_token_id=EOS, pad_token_id=PAD, bos_token_id=EOS,
    )  # fmt: skip
    return model


@dataclass(frozen=True)
class Batch:
    """A rollout and all that is computed from it. Every tensor's first dimension is the rows."""

    prompts: Tensor  # (B, P)
    attention: Tensor  # (B, P) of the prompts
    responses: Tensor  # (B, T)
    mask: Tensor  # (B, T) bool
    logits: Tensor  # (B, T, V) of the policy when it scored
    old: Tensor  # (B, T) log-probs when scored
    reference_logits: Tensor  # (B, T, V)
    reference: Tensor  # (B, T) log-probs
    rows: Tensor  # (B,)
    groups: Tensor  # (B,) number of the prompt
    values: Tensor | None = None  # (B, T)
    scores: Tensor | None = None  # (B,)
    kl: Tensor | None = None  # (B, T), k1
    token_rewards: Tensor | None = None  # (B, T)
    raw: Tensor | None = None  # (B, T) advantages before whitening
    returns: Tensor | None = None  # (B, T)
    advantages: Tensor | None = None  # (B, T) or (B,)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over valid entries."""
    return (values * mask).sum() / mask.sum()


class Loop:
    """PPO with a value head, KL in the reward, and everything told to the guard."""

    gamma, lam = 1.0, 0.95
    clip_range, value_coef, beta = 0.2, 0.1, 0.05
    epochs, minibatches = 2, 2
    learning_rate, max_grad_norm = 1e-4, 1.0
    group_size: int | None = None
    seed = 0

    def __init__(self) -> None:
        torch.manual_seed(self.seed)
        self.tokenizer = Tokenizer()
        self.policy = self.make_policy()
        self.reference = self.make_reference()
        self.value_head = self.make_value_head()
        self.optimizer = self.make_optimizer()
        self.scheduler = self.make_scheduler()
        self.guard: Any = None
        self.number = 0
        self.logs: list[dict[str, Any]] = []

    # ---------------------------------------------------------------------------------- construction

    def make_policy(self) -> nn.Module:
        return copy.deepcopy(_model())

    def make_reference(self) -> nn.Module:
        return copy.deepcopy(self.policy).eval().requires_grad_(False)

    def make_value_head(self) -> nn.Module | None:
        head = nn.Linear(HIDDEN, 1)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return head

    def parameters(self) -> list[nn.Parameter]:
        """Everything that is trained."""
        head = [] if self.value_head is None else list(self.value_head.parameters())
        return [*self.policy.parameters(), *head]

    def make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=0.01)

    def make_scheduler(self) -> Any:
        return torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda update: max(0.1, 1 - update / 1000))

    # --------------------------------------------------------------------------------------- rollout

    def make_prompts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ids (B, P) with padding on the left, attention mask (B, P), number of the prompt (B,)."""
        repeat = self.group_size or 1
        count = ROWS // repeat
        ids = torch.randint(2, VOCABULARY, (count, PROMPT))
        lengths = torch.randint(3, PROMPT + 1, (count,))
        attention = (torch.arange(PROMPT) >= PROMPT - lengths[:, None]).long()
        ids = torch.where(attention.bool(), ids, PAD)
        groups = torch.arange(count).repeat_interleave(repeat)
        return ids[groups], attention[groups], groups

    def sample(self, prompts: Tensor, attention: Tensor) -> Tensor:
        """Responses (B, T), sampled from the policy as it is; padded on the right."""
        self.policy.eval()
        with torch.no_grad():
            ids = self.policy.generate(input_ids=prompts, attention_mask=attention, **self.sampling())
        responses = ids[:, prompts.shape[1] :]
        return nn.functional.pad(responses, (0, RESPONSE - responses.shape[1]), value=PAD)

    def sampling(self) -> dict[str, Any]:
        """Keywords of generate()."""
        return {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}

    def response_mask(self, responses: Tensor) -> Tensor:
        """True up to the first stop token, itself included. By position: the pad id can be sampled too."""
        stopped = (responses == EOS).long()
        return stopped.cumsum(1) - stopped == 0

    # --------------------------------------------------------------------------------------- scoring

    def position_ids(self, attention: Tensor) -> Tensor:
        return (attention.long().cumsum(1) - 1).clamp(min=0)

    def forward(self, model: nn.Module, ids: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, L-1, V) in fp32 that predict tokens 1.., and the hidden states (B, L-1, H) they come from."""
        output = model(
            input_ids=ids,
            attention_mask=attention,
            position_ids=self.position_ids(attention),
            use_cache=False,
            output_hidden_states=True,
        )
        return output.logits[:, :-1].float(), output.hidden_states[-1][:, :-1]

    def scale(self, logits: Tensor) -> Tensor:
        """Logits divided by the temperature of the rollout, which is 1."""
        return logits

    def token_log_probs(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """(B, T) log-probs of the tokens that the logits predict."""
        return logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]

    def score_responses(
        self, model: nn.Module, prompts: Tensor, attention: Tensor, responses: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, T, V), log-probs (B, T) and hidden states (B, T, H) of the responses."""
        ids = torch.cat([prompts, responses], 1)
        logits, hidden = self.forward(model, ids, torch.cat([attention, mask.long()], 1))
        start = prompts.shape[1] - 1
        logits = self.scale(logits[:, start:])
        return logits, self.token_log_probs(logits, responses), hidden[:, start:]

    def values(self, hidden: Tensor) -> Tensor | None:
        """(B, T) the value before each response token."""
        return None if self.value_head is None else self.value_head(hidden)[..., 0]

    def score(self, ids: Tensor, attention: Tensor) -> Tensor:
        """(B, L-1) log-probs of tokens 1.. under the policy: for the preflight."""
        return self.token_log_probs(self.scale(self.forward(self.policy, ids, attention)[0]), ids[:, 1:])

    def reference_score(self, ids: Tensor, attention: Tensor) -> Tensor:
        """(B, L-1) log-probs of tokens 1.. under the reference: for the preflight."""
        return self.token_log_probs(self.scale(self.forward(self.reference, ids, attention)[0]), ids[:, 1:])

    @torch.no_grad()
    def rollout(self) -> Batch:
        """Sample, and score by policy and reference."""
        prompts, attention, groups = self.make_prompts()
        responses = self.sample(prompts, attention)
        mask = self.response_mask(responses)
        arguments = prompts, attention, responses, mask
        logits, old, hidden = self.score_responses(self.policy, *arguments)
        reference_logits, reference, _ = self.score_responses(self.reference, *arguments)
        return Batch(
            prompts, attention, responses, mask, logits, old, reference_logits, reference,
            rows=torch.arange(len(prompts)), groups=groups, values=self.values(hidden),
        )  # fmt: skip

    # ------------------------------------------------------------------------- rewards and advantages

    def texts(self, responses: Tensor, mask: Tensor) -> list[str]:
        return [self.tokenizer.decode(row[valid]) for row, valid in zip(responses, mask, strict=True)]

    def reward_function(self, texts: Sequence[str]) -> Tensor:
        """(B,) mean of +1 for each id of the upper half of the vocabulary and -1 for others, less a little for length;
        the stop token does not count."""
        ids = [[int(word) for word in text.split()] for text in texts]
        signs = [[1 if i >= VOCABULARY // 2 else -1 for i in row if i != EOS] for row in ids]
        return torch.tensor([sum(row) / max(1, len(row)) - len(row) / 100 for row in signs])

    def scores(self, batch: Batch) -> Tensor:
        return self.reward_function(self.texts(batch.responses, batch.mask))

    def kl(self, logprobs: Tensor, reference: Tensor) -> Tensor:
        """(B, T) k1: log p - log ref."""
        return logprobs - reference

    def total_reward(self, score: Tensor, kl: Tensor) -> Tensor:
        """(B,) of a sequence, from its score and its KL: for the preflight."""
        return score - self.beta * kl

    def token_rewards(self, scores: Tensor, kl: Tensor, mask: Tensor) -> Tensor:
        """(B, T) -beta * KL at each token, and the score at the last one."""
        rewards = -self.beta * kl * mask
        last = mask.sum(1) - 1
        return rewards.scatter_add(1, last[:, None], scores[:, None])

    def gae(self, rewards: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """(B, T) generalised advantage estimates; nothing follows the last valid token."""
        advantages, following, after = torch.zeros_like(rewards), 0.0, 0.0
        for t in reversed(range(rewards.shape[1])):
            delta = rewards[:, t] + self.gamma * after - values[:, t]
            following = (delta + self.gamma * self.lam * following) * mask[:, t]
            after = values[:, t] * mask[:, t]
            advantages[:, t] = following
        return advantages

    def whiten(self, values: Tensor, mask: Tensor) -> Tensor:
        """Mean 0 and variance 1 over valid tokens; 0 elsewhere."""
        mean = masked_mean(values, mask)
        variance = masked_mean((values - mean) ** 2, mask)
        return (values - mean) * torch.rsqrt(variance + 1e-8) * mask

    def advantages(self, batch: Batch) -> Batch:
        """The batch with KL, rewards and advantages."""
        scores, kl = self.scores(batch), self.kl(batch.old, batch.reference)
        rewards = self.token_rewards(scores, kl, batch.mask)
        raw = self.gae(rewards, batch.values, batch.mask)
        return replace(
            batch, scores=scores, kl=kl, token_rewards=rewards, raw=raw,
            returns=(raw + batch.values) * batch.mask, advantages=self.whiten(raw, batch.mask),
        )  # fmt: skip

    # ---------------------------------------------------------------------------------------- updates

    def minibatch_rows(self, count: int) -> Iterator[Tensor]:
        """Row numbers of the minibatches of one epoch."""
        yield from torch.randperm(count).chunk(self.minibatches)

    def take(self, batch: Batch, rows: Tensor) -> Batch:
        """These rows of everything."""
        picked = {f.name: getattr(batch, f.name) for f in fields(batch)}
        return Batch(**{name: None if value is None else value[rows] for name, value in picked.items()})

    def rescore(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits (B, T, V), log-probs (B, T) with gradient under the current weights, and values (B, T)."""
        logits, new, hidden = self.score_responses(
            self.policy, batch.prompts, batch.attention, batch.responses, batch.mask
        )
        return logits, new, self.values(hidden)

    def ratio(self, new: Tensor, old: Tensor) -> Tensor:
        return (new - old).exp()

    def policy_loss(self, new: Tensor, old: Tensor, advantages: Tensor) -> Tensor:
        """(B, T) clipped objective of PPO."""
        ratio = self.ratio(new, old)
        clipped = ratio.clamp(1 - self.clip_range, 1 + self.clip_range)
        return torch.maximum(-advantages * ratio, -advantages * clipped)

    def value_loss(self, values: Tensor, returns: Tensor) -> Tensor:
        """(B, T)"""
        return 0.5 * (values - returns) ** 2

    def kl_loss(self, new: Tensor, reference: Tensor) -> Tensor | None:
        """(B, T) KL term of the loss, or None when the KL is in the reward."""
        return None

    def entropy(self, logits: Tensor) -> Tensor:
        """(B, T) exact entropy of each distribution, nats."""
        logprobs = logits.log_softmax(-1)
        return -(logprobs.exp() * logprobs).sum(-1)

    def token_loss(self, batch: Batch, new: Tensor, values: Tensor | None) -> Tensor:
        """(B, T) everything that is minimised."""
        advantages = batch.advantages if batch.advantages.dim() == 2 else batch.advantages[:, None]
        loss = self.policy_loss(new, batch.old, advantages)
        if values is not None:
            loss = loss + self.value_coef * self.value_loss(values, batch.returns)
        kl = self.kl_loss(new, batch.reference)
        return loss if kl is None else loss + self.beta * kl

    def mean(self, loss: Tensor, batch: Batch) -> Tensor:
        """Of the token losses (B, T) of a minibatch."""
        return masked_mean(loss, batch.mask)

    def accumulate(self, micro_batches: Sequence[Sequence[int]]) -> None:
        """Backward over micro-batches of the probing batch: token losses over all valid tokens."""
        whole = self.probe.mask[[row for rows in micro_batches for row in rows]].sum()
        for rows in micro_batches:
            batch = self.take(self.probe, torch.tensor(rows))
            _, new, values = self.rescore(batch)
            ((self.token_loss(batch, new, values) * batch.mask).sum() / whole).backward()

    def clip_gradient(self) -> Tensor:
        return nn.utils.clip_grad_norm_(self.parameters(), self.max_grad_norm)

    def zero_gradient(self) -> None:
        self.optimizer.zero_grad()

    def apply(self) -> None:
        self.optimizer.step()
        self.scheduler.step()

    def reported(self, batch: Batch, new: Tensor, entropy: Tensor) -> dict[str, Tensor]:
        """What the loop logs of a minibatch: means over valid tokens."""
        ratio, d = self.ratio(new, batch.old), new - batch.old
        return {
            "ratio": masked_mean(ratio, batch.mask),
            "approx_kl": masked_mean(torch.expm1(d) - d, batch.mask),
            "entropy": masked_mean(entropy, batch.mask),
            "clip_fraction": masked_mean(((ratio - 1).abs() > self.clip_range).float(), batch.mask),
        }

    def update(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """One minibatch: forward, loss, backward, clip, step."""
        logits, new, values = self.rescore(batch)
        entropy = self.entropy(logits.detach())
        self.tell_minibatch(batch, new, entropy, epoch, values)
        loss = self.mean(self.token_loss(batch, new, values), batch)
        self.zero_gradient()
        loss.backward()
        norm = self.clip_gradient()
        self.apply()
        return {"loss": loss.detach(), "grad_norm": norm, "entropy": masked_mean(entropy, batch.mask)}

    # ------------------------------------------------------------------------------ the guard is told

    def guard_arguments(self) -> dict[str, Any]:
        """What the guard is made with."""
        return {
            "on_violation": "record",
            "strict": True,
            "eos_token_id": EOS,
            "kl_coef": self.beta,
            "max_grad_norm": self.max_grad_norm,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "group_size": self.group_size,
        }

    def tell_preflight(self) -> None:
        self.guard.preflight(
            score=self.score,
            reference_score=self.reference_score,
            accumulate=self.accumulate,
            reward=self.total_reward,
            gae=self.gae,
        )

    def tell_rollout(self, batch: Batch) -> None:
        self.guard.rollout(
            batch.responses,
            batch.mask,
            prompts=batch.prompts,
            attention_mask=batch.attention,
            stop_token_ids=(EOS,),
            max_new_tokens=RESPONSE,
            groups=batch.groups if self.group_size else None,
            rows=batch.rows,
            temperature=1.0,
        )

    def tell_scoring(self, batch: Batch) -> None:
        self.guard.logprobs(
            batch.logits,
            batch.responses,
            batch.mask,
            reference_logits=batch.reference_logits,
            context_ids=batch.prompts,
        )

    def tell_rewards(self, batch: Batch) -> None:
        self.guard.rewards(
            batch.scores,
            texts=self.texts(batch.responses, batch.mask),
            recompute=self.reward_function,
            token_rewards=batch.token_rewards,
            kl=batch.kl,
            kl_coef=self.beta,
            mask=batch.mask,
        )

    def tell_kl(self, batch: Batch) -> None:
        self.guard.kl(batch.old, batch.reference, batch.mask, estimator="k1")

    def tell_advantages(self, batch: Batch) -> None:
        self.guard.advantages(
            batch.advantages,
            batch.mask,
            raw=batch.raw,
            values=batch.values,
            rewards=batch.token_rewards,
            returns=batch.returns,
            gamma=self.gamma,
            lam=self.lam,
            whitened=True,
        )

    def tell_minibatch(
        self, batch: Batch, new: Tensor, entropy: Tensor, epoch: int, values: Tensor | None = None
    ) -> None:
        self.guard.minibatch(
            new,
            batch.old,
            batch.mask,
            advantages=batch.advantages,
            tokens=batch.responses,
            rows=batch.rows,
            epoch=epoch,
            clip_range=self.clip_range,
            reported=self.reported(batch, new.detach(), entropy),
            entropy=entropy,
            values=values,
            returns=batch.returns,
            kl_term=self.kl_loss(new, batch.reference),
        )

    def log(self, batch: Batch, updates: list[dict[str, Tensor]]) -> dict[str, Any]:
        """The step's figures as the loop logs them."""
        logs = {name: torch.stack([u[name] for u in updates]).mean() for name in updates[0]}
        lengths = batch.mask.sum(1)
        ended = (batch.responses == EOS).any(1)
        kl = self.kl(batch.old, batch.reference)
        logs |= {
            "rewards": batch.scores,
            "kl": (kl * batch.mask).sum(1).mean(),
            "lengths": lengths,
            "truncated": ~ended,
        }
        if batch.values is not None:
            valid = batch.mask
            residual = (batch.returns - batch.values)[valid].var()
            logs["explained_variance"] = 1 - residual / batch.returns[valid].var()
        return logs

    def tell_step(self, logs: dict[str, Any]) -> None:
        self.guard.step(kl_unit="sequence", kl_estimator="k1", kl_coef=self.beta, **logs)

    # ---------------------------------------------------------------------------------------- running

    def step(self) -> None:
        """Rollout, scoring, rewards, advantages, epochs of minibatches."""
        batch = self.advantages(self.rollout())
        for tell in (
            self.tell_rollout,
            self.tell_scoring,
            self.tell_kl,
            self.tell_rewards,
            self.tell_advantages,
        ):
            tell(batch)
        self.policy.train()
        updates = [
            self.update(self.take(batch, rows), epoch)
            for epoch in range(self.epochs)
            for rows in self.minibatch_rows(len(batch.prompts))
        ]
        self.logs.append(self.log(batch, updates))
        self.tell_step(self.logs[-1])
        self.number += 1

    def run(self, guard: Any, steps: int) -> None:
        """Train under the guard."""
        self.guard = guard
        self.probe = self.advantages(self.rollout())
        with guard:
            self.tell_preflight()
            for _ in range(steps):
                self.step()


class GroupLoop(Loop):
    """GRPO: groups of responses to a prompt, no values, KL (k2) in the loss."""

    group_size = 4

    def make_value_head(self) -> None:
        return None

    def advantages(self, batch: Batch) -> Batch:
        """Scores minus the group's mean, over its standard deviation; one for each sequence."""
        scores = self.scores(batch)
        grouped = scores.view(-1, self.group_size)
        centred = grouped - grouped.mean(1, keepdim=True)
        return replace(
            batch,
            scores=scores,
            kl=self.kl(batch.old, batch.reference),
            advantages=(centred / (grouped.std(1, keepdim=True) + 1e-4)).flatten(),
        )

    def kl_loss(self, new: Tensor, reference: Tensor) -> Tensor:
        """k2, whose gradient is that of the reverse KL."""
        return 0.5 * (new - reference) ** 2

    def tell_preflight(self) -> None:
        self.guard.preflight(
            score=self.score,
            reference_score=self.reference_score,
            accumulate=self.accumulate,
            kl_loss=self.kl_loss,
        )

    def tell_rewards(self, batch: Batch) -> None:
        texts = self.texts(batch.responses, batch.mask)
        self.guard.rewards(batch.scores, texts=texts, recompute=self.reward_function)

    def tell_advantages(self, batch: Batch) -> None:
        self.guard.advantages(
            batch.advantages,
            batch.mask,
            groups=batch.groups,
            group_size=self.group_size,
            scores=batch.scores,
        )


def run(kind: type[Loop] = Loop, steps: int = 2, **guard_options: Any) -> Any:
    """A guard that has watched `steps` steps of a new loop; nothing is raised."""
    from klguard.guard import Guard

    loop = kind()
    guard = Guard(loop.policy, loop.reference, loop.tokenizer, **(loop.guard_arguments() | guard_options))
    loop.run(guard, steps)
    return guard
