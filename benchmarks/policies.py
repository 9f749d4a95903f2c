"""Small policies with known properties, real sampling from them and PPO-like updates, for the guard's benchmarks.

A policy is a GPT-2 of transformers with random weights. Its head is scaled until the mean entropy at the
contexts it visits itself is the one asked for, and the bias of its stop token until that token has the
probability asked for. Vocabulary entries follow a Zipf law on top, so that tokens come back as they do in
text. Tokens are drawn by `generate()` with its own settings; scoring is a separate forward pass over the whole
sequence, as in a training loop.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

PURE: Mapping[str, Any] = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
"""Sampling from the policy itself; everything else is neutral in a model that was just made."""

LEFT_OUT = ...
"""A setting that is not passed to generate() at all, so that the library's default holds."""

ZIPF = 0.5
"""Exponent of the law that the biases of the vocabulary follow before scaling."""
UNUSED = -30.0
"""Logit of the pad token, which no policy here ever says."""


@dataclass(frozen=True)
class Rollout:
    """B responses to prompts, as a loop holds them before scoring.

    sequences       (B, P + T) ids, left-padded prompts first.
    attention_mask  (B, P + T) 1 for prompt and response up to the first stop token.
    prompt_length   P.
    mask            (B, T) bool: response tokens up to and including the first stop token.
    scores          (B, T, V) logits after generate()'s processors, or None where they were not asked for or
                    mean something else (beam search).
    processed, raw  (B, T) log-probs that an engine could report: after the processors, and of the model's own
                    logits. None where there are no scores.
    """

    sequences: Tensor
    attention_mask: Tensor
    prompt_length: int
    mask: Tensor
    scores: Tensor | None = None
    processed: Tensor | None = None
    raw: Tensor | None = None

    @property
    def tokens(self) -> Tensor:
        """(B, T) response ids."""
        return self.sequences[:, self.prompt_length :]

    @property
    def prompts(self) -> Tensor:
        """(B, P) prompt ids."""
        return self.sequences[:, : self.prompt_length]

    def rows(self, part: slice) -> Rollout:
        """Some of its responses."""
        optional = [None if v is None else v[part] for v in (self.scores, self.processed, self.raw)]
        return Rollout(
            self.sequences[part], self.attention_mask[part], self.prompt_length, self.mask[part], *optional
        )

    def until(self, time: slice) -> Rollout:
        """The first tokens of each response."""
        optional = [None if v is None else v[:, time] for v in (self.scores, self.processed, self.raw)]
        end = self.prompt_length + time.stop
        return Rollout(
            self.sequences[:, :end],
            self.attention_mask[:, :end],
            self.prompt_length,
            self.mask[:, time],
            *optional,
        )


@dataclass
class Policy:
    """A model with the ids of its stop and pad tokens."""

    model: GPT2LMHeadModel
    stop: int
    pad: int

    @property
    def vocabulary(self) -> int:
        return self.model.config.vocab_size

    def copy(self, dtype: torch.dtype | None = None) -> Policy:
        """An independent copy, in another precision if asked for."""
        model = copy.deepcopy(self.model)
        return Policy(model if dtype is None else model.to(dtype), self.stop, self.pad)

    def frozen(self) -> Policy:
        """An independent copy that is not trained: a reference."""
        other = self.copy()
        other.model.requires_grad_(False)
        return other

    def prompts(
        self, batch: int, length: int, generator: torch.Generator, *, ragged: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Random prompts (batch, length) and their attention mask; ragged ones are padded on the left."""
        ids = torch.randint(0, self.vocabulary - 2, (batch, length), generator=generator)
        mask = torch.ones_like(ids)
        if ragged:
            padding = torch.randint(0, length, (batch, 1), generator=generator)
            mask = (torch.arange(length) >= padding).long()
            ids = ids.masked_fill(mask == 0, self.pad)
        return ids, mask

    def rollout(
        self,
        prompts: Tensor,
        attention_mask: Tensor,
        length: int,
        *,
        keep_scores: bool = False,
        **settings: Any,
    ) -> Rollout:
        """Samples up to `length` tokens for each prompt by generate(): pure sampling but for `settings`."""
        chosen = {**PURE, "eos_token_id": self.stop, "pad_token_id": self.pad, **settings}
        chosen = {name: value for name, value in chosen.items() if value is not LEFT_OUT}
        keep = keep_scores and chosen.get("num_beams", 1) == 1
        with torch.no_grad():
            made = self.model.generate(
                prompts,
                attention_mask=attention_mask,
                max_new_tokens=length,
                return_dict_in_generate=True,
                output_scores=keep,
                output_logits=keep,
                **chosen,
            )
        sequences, width = made.sequences, prompts.shape[1]
        tokens = sequences[:, width:]
        mask = up_to_stop(tokens, self.stop)
        kept = (torch.stack(made.scores, 1), *_reported(made, tokens)) if keep else (None, None, None)
        return Rollout(sequences, torch.cat([attention_mask, mask.long()], 1), width, mask, *kept)

    def logits(self, rollout: Rollout, shift: int = 1) -> Tensor:
        """(B, T, V) logits that score the response: a prefill over prompt and response, shifted by one.

        Another `shift` is a mistake that can be made on purpose: 0 forgets it, 2 does it twice.
        """
        positions = (rollout.attention_mask.cumsum(-1) - 1).clamp(min=0)
        made = self.model(
            rollout.sequences, attention_mask=rollout.attention_mask, position_ids=positions, use_cache=False
        )
        first = rollout.prompt_length - shift
        return made.logits[:, first : first + rollout.tokens.shape[1]]


def _reported(made: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T) log-probs of the tokens after generate()'s processors and before them."""
    columns = tokens.T[..., None]
    return tuple(
        torch.cat([step.log_softmax(-1).gather(-1, at) for step, at in zip(steps, columns, strict=True)], 1)
        for steps in (made.scores, made.logits)
    )


def up_to_stop(tokens: Tensor, stop: int) -> Tensor:
    """(B, T) bool: tokens up to and including the first stop token."""
    ended = (tokens == stop).long()
    return (ended.cumsum(-1) - ended) == 0


# ------------------------------------------------------------------------------------------ making a policy


def make_policy(
    vocabulary: int,
    entropy: float,
    *,
    seed: int,
    stop: float = 0.03,
    layers: int = 2,
    width: int = 32,
    heads: int = 2,
    positions: int = 128,
) -> Policy:
    """A policy with this mean entropy (nats per token) and mean probability of its stop token.

    The last coordinate of the final hidden state is held at 1, so that the head's last column is a bias.
    """
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=positions,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.2,
        tie_word_embeddings=False,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 2,
        pad_token_id=vocabulary - 1,
    )
    policy = Policy(GPT2LMHeadModel(config).eval(), vocabulary - 2, vocabulary - 1)
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(vocabulary, width - 1, generator=generator) / (width - 1) ** 0.5
    ranks = torch.randperm(vocabulary, generator=generator) + 1
    bias = -ZIPF * ranks.log()
    with torch.no_grad():
        final = policy.model.transformer.ln_f
        final.weight[-1], final.bias[-1] = 0.0, 1.0
        for _ in range(3):  # the contexts it visits change with its head
            _fit_head(policy, directions, bias, entropy, stop, generator)
    return policy


def _fit_head(
    policy: Policy, directions: Tensor, bias: Tensor, entropy: float, stop: float, generator: torch.Generator
) -> None:
    """Sets the head so that entropy and stop probability are right at contexts sampled with the present one."""
    prompts, attention_mask = policy.prompts(48, 4, generator)
    rollout = policy.rollout(prompts, attention_mask, 16)
    seen = {"attention_mask": rollout.attention_mask}
    hidden = policy.model.transformer(rollout.sequences, **seen).last_hidden_state[:, 3:-1][rollout.mask]
    hidden = hidden[torch.randperm(len(hidden), generator=generator)[:256], :-1]
    shape = hidden @ directions.T
    low, high = 0.0, 40.0
    for _ in range(16):
        scale = (low + high) / 2
        logits, _ = _with_stop(policy, scale * shape + bias, stop)
        log_p = logits.log_softmax(-1)
        mean = -(log_p.exp() * log_p).sum(-1).mean().item()
        low, high = (scale, high) if mean > entropy else (low, scale)
    _, offset = _with_stop(policy, scale * shape + bias, stop)
    head = policy.model.lm_head.weight
    head[:, :-1] = scale * directions
    head[policy.stop, :-1] = 0.0
    head[policy.pad, :-1] = 0.0
    head[:, -1] = bias
    head[policy.stop, -1] = offset
    head[policy.pad, -1] = UNUSED


def _with_stop(policy: Policy, logits: Tensor, stop: float) -> tuple[Tensor, float]:
    """Logits with a constant for the stop token that gives it the mean probability `stop`, and that constant."""
    logits[:, policy.pad] = UNUSED
    logits[:, policy.stop] = -torch.inf
    others = logits.logsumexp(-1)
    low, high = -60.0, 60.0
    for _ in range(40):
        offset = (low + high) / 2
        mean = torch.sigmoid(offset - others).mean().item()
        low, high = (offset, high) if mean < stop else (low, offset)
    logits[:, policy.stop] = offset
    return logits, offset


def perturbed(policy: Policy, kl: float, *, seed: int) -> Policy:
    """A frozen neighbour of the policy at KL(policy || neighbour) of about `kl` nats per token: a reference."""
    generator = torch.Generator().manual_seed(seed)
    prompts, attention_mask = policy.prompts(32, 4, generator)
    torch.manual_seed(seed)
    rollout = policy.rollout(prompts, attention_mask, 16)
    head = policy.model.lm_head.weight
    noise = torch.randn(head.shape, generator=generator)
    noise[:, -1] = 0.0
    low, high = 0.0, 4.0
    with torch.no_grad():
        log_p = policy.logits(rollout).log_softmax(-1)[rollout.mask]
        for _ in range(14):
            scale = (low + high) / 2
            other = policy.frozen()
            other.model.lm_head.weight.add_(scale * noise)
            log_r = other.logits(rollout).log_softmax(-1)[rollout.mask]
            mean = (log_p.exp() * (log_p - log_r)).sum(-1).mean().item()
            low, high = (scale, high) if mean < kl else (low, scale)
    return other


# ------------------------------------------------------------------------------------------ training a little


def token_log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """(B, T) log-probs of the tokens in fp32: the expression that every loop has."""
    return logits.float().log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)


def whitened(values: Tensor, mask: Tensor) -> Tensor:
    """`values` (B, T) with mean 0 and variance 1 over the valid tokens, 0 elsewhere."""
    weights = mask.to(values.dtype)
    count = weights.sum().clamp(min=2)
    mean = (values * weights).sum() / count
    variance = ((values - mean).square() * weights).sum() / (count - 1)
    return (values - mean) * torch.rsqrt(variance + 1e-8) * weights


def clipped_loss(new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, clip: float = 0.2) -> Tensor:
    """PPO's clipped objective, mean over valid tokens (Schulman et al., 2017)."""
    ratio = (new - old).exp()
    worst = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))
    return (worst * mask).sum() / mask.sum().clamp(min=1)
