"""What happens in a training loop, as the guard hears of it. Invariants watch these events.

Tensors are the loop's own, detached: nobody changes them and nobody keeps them beyond the step. `place` is
the line of the loop that gave rise to the event.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from klguard.guard.gradients import Arrival
from klguard.settings import Place, Settings


@dataclass(frozen=True, kw_only=True)
class Event:
    """Anything that happens. `place` is where, in the user's code."""

    place: Place | None = None


@dataclass(frozen=True, kw_only=True)
class Setup(Event):
    """Training is about to begin: what the guard was given (policy, reference and tokenizer are on the run)."""


@dataclass(frozen=True, kw_only=True)
class Preflight(Event):
    """The loop's own functions, to be tried before training. Those not given are None.

    score       (input_ids (B, L), attention_mask (B, L)) -> log-probs (B, L-1) of tokens 1.. under the policy.
    reference_score   likewise under the reference.
    kl_loss     (logprobs (N,), reference_logprobs (N,)) -> scalar or (N,) loss term, as the loop adds it.
    accumulate  (micro_batches: list of lists of row numbers) -> None; runs the loop's backward over them and
                leaves the gradient on the parameters, without stepping.
    reward      (score (B,), kl (B,)) -> total reward (B,) of each sequence.
    gae         (rewards (B, T), values (B, T), mask (B, T)) -> advantages (B, T), before whitening.
    packed      (list of 1-D id tensors) -> list of log-probs of tokens 1.. of each, scored in one packed pass.
    batch       (input_ids (B, L), attention_mask (B, L)) to try them on; the guard makes one up when None.
    """

    score: Callable[..., Tensor] | None = None
    reference_score: Callable[..., Tensor] | None = None
    kl_loss: Callable[..., Tensor] | None = None
    accumulate: Callable[..., Any] | None = None
    reward: Callable[..., Tensor] | None = None
    gae: Callable[..., Tensor] | None = None
    packed: Callable[..., Sequence[Tensor]] | None = None
    batch: tuple[Tensor, Tensor] | None = None
    gamma: float = 1.0
    lam: float = 0.95
    rows: int = 4


@dataclass(frozen=True, kw_only=True)
class Rollout(Event):
    """Responses came back from the sampler.

    responses   (B, T) ids; prompts (B, P) ids or None; mask (B, T) bool, the loop's own response mask, or
                None when the loop has not built one yet; attention_mask (B, P) of the prompts or None.
    tool_mask   (B, T) True where a tool or environment wrote the token.
    stop_ids    every token that ends a response; None where not known.
    groups      (B,) prompt number of each row, a list or a tensor, or None.
    rows        ids of the rows, or None for 0..B-1.
    settings    what was in force, from the live objects, or None.
    temperature of the sampler, None where not known.
    filtered    rows that the loop dropped after sampling and before this event.
    version     version of the weights that sampled, where the loop counts them; lag what it allows.
    handle      number of the settings in force, where generate() was watched: calls with the same settings
                from the same line under the same weights share one, and the passes that score them name it.
    """

    responses: Tensor
    mask: Tensor | None = None
    prompts: Tensor | None = None
    attention_mask: Tensor | None = None
    tool_mask: Tensor | None = None
    stop_ids: tuple[int, ...] | None = None
    max_new_tokens: int | None = None
    groups: Sequence[int] | Tensor | None = None
    rows: Sequence[int] | Tensor | None = None
    settings: Settings | None = None
    temperature: float | None = None
    texts: Sequence[str] | None = None
    filtered: int = 0
    version: int | None = None
    allowed_lag: int | None = None
    handle: int | None = None


@dataclass(frozen=True, kw_only=True)
class Scoring(Event):
    """The policy scored sampled tokens.

    tokens (B, T); mask (B, T) bool; logprobs (B, T) fp32; logits (B, T, V) or None where only log-probs are
    known; columns (B, T), where given, are where the logits (B, L, V) of a whole pass have those of the tokens;
    reference_logprobs, sampler_logprobs, stale_logprobs (B, T) or None; reference_logits or None.
    temperature that the logits were already divided by, None where not said.
    divisor     of a pass that was only watched: the sampler's temperature, by which the logits, which are raw,
                are divided for the guard, as a loop does that mirrors it. `logprobs` are taken after it. With
                `temperature` the logits are raw too, and `logprobs` are the loop's own.
    rows        (B,) which rows of the rollout these are, counted from 0, where not all of them in order.
    dtype       precision in which the policy computed (of the logits, or of the parameters).
    """

    logprobs: Tensor
    mask: Tensor
    tokens: Tensor | None = None
    logits: Tensor | None = None
    columns: Tensor | None = None
    reference_logits: Tensor | None = None
    reference_logprobs: Tensor | None = None
    sampler_logprobs: Tensor | None = None
    stale_logprobs: Tensor | None = None
    context_ids: Tensor | None = None
    temperature: float | None = None
    divisor: float | None = None
    rows: Tensor | None = None
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True, kw_only=True)
class Pairs(Event):
    """Sampled tokens with their log-probs (B, T) under policy and reference: each token once in a step, but for `again`.

    eps is the tolerance for numeric noise, in nats per token. `again`: the models were seen to score these tokens
    before the loop told what it made of it, and they have been counted.
    """

    logprobs: Tensor
    reference_logprobs: Tensor
    mask: Tensor
    eps: float
    again: bool = False


@dataclass(frozen=True, kw_only=True)
class KL(Event):
    """The loop computed its KL estimate: values (B, T), by `estimator`, from the two log-probs (B, T)."""

    values: Tensor
    logprobs: Tensor
    reference_logprobs: Tensor
    mask: Tensor
    estimator: str
    requires_grad: bool = False


@dataclass(frozen=True, kw_only=True)
class Rewards(Event):
    """Scores (B,) of the responses; `texts` they are stored with; `recompute(texts) -> scores` to check some.

    token_rewards (B, T): scores minus kl_coef times kl, before any whitening or clipping; kl (B, T) the penalty's KL.
    requires_grad   whether token_rewards or kl had a gradient when they were handed over.
    """

    scores: Tensor
    texts: Sequence[str] | None = None
    recompute: Callable[[Sequence[str]], Any] | None = None
    token_rewards: Tensor | None = None
    kl: Tensor | None = None
    kl_coef: float | None = None
    mask: Tensor | None = None
    requires_grad: bool = False


@dataclass(frozen=True, kw_only=True)
class Advantages(Event):
    """Advantages (B, T), or (B,) one for each sequence, as they enter the loss.

    raw         (B, T) before whitening, for the recursion's check; values, rewards, returns (B, T), as they
                entered the recursion with gamma and lam.
    whitened    the loop means them to have mean 0 and variance 1 over valid tokens.
    groups      (B,) prompt number of each row for group baselines; scores (B,) what they are made from.
    group_size  responses for each prompt, where their rewards are compared with each other; without `groups`,
                rows of a prompt follow each other or lie in as many parts of the batch.
    """

    advantages: Tensor
    mask: Tensor
    raw: Tensor | None = None
    values: Tensor | None = None
    rewards: Tensor | None = None
    returns: Tensor | None = None
    gamma: float | None = None
    lam: float | None = None
    whitened: bool = False
    groups: Sequence[int] | Tensor | None = None
    group_size: int | None = None
    scores: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Minibatch(Event):
    """One minibatch's forward pass, before its update.

    new, old    (B, T) log-probs under the current weights and under those of the rollout, detached.
    first       no update happened since the rollout was scored.
    by_construction  old is the very memory of new: the ratio is 1 whatever the loop does.
    rows        ids of the rows; epoch from 0.
    clip_range  how far below and above 1 the ratio may go.
    reported    the loop's own figures: any of ratio, approx_kl (k3 of old and new), entropy (its mean), kl (the
                mean of kl_term), clip_fraction.
    entropy     (B, T) exact entropy per token, where the loop has it.
    kl_term     (B, T) the KL term as it enters the loss, detached; kl_loss_requires_grad its gradient flag, kl_slope
                (B, T) its derivative by the new log-probs.
    values, returns   (B, T), or (B,) one for each row, as they enter the value loss: values under the current weights.
    arrivals    what backward() will bring to the loop's own tensors new, old, advantages, values, returns and entropy,
                by these names: those that have a gradient.
    """

    new: Tensor
    old: Tensor
    mask: Tensor
    first: bool = False
    by_construction: bool = False
    advantages: Tensor | None = None
    tokens: Tensor | None = None
    rows: Sequence[int] | Tensor | None = None
    epoch: int | None = None
    clip_range: tuple[float, float] | None = None
    reported: Mapping[str, float | Tensor] = field(default_factory=dict)
    entropy: Tensor | None = None
    kl_term: Tensor | None = None
    kl_loss_requires_grad: bool | None = None
    new_requires_grad: bool | None = None
    kl_slope: Tensor | None = None
    values: Tensor | None = None
    returns: Tensor | None = None
    arrivals: Mapping[str, Arrival] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True, kw_only=True)
class Dropped(Event):
    """A watched rollout is over: () from the prompts of how many of its rows, none of which the policy scored, it scored
    other tokens."""

    rewritten: Tensor | float


@dataclass(frozen=True, kw_only=True)
class Update(Event):
    """optimizer.step() is about to run (`after` False) or has run (`after` True)."""

    optimizer: torch.optim.Optimizer
    after: bool


@dataclass(frozen=True, kw_only=True)
class StepEnd(Event):
    """The loop ended a step: its own figures, where given. Tensors may still be on the device.

    rewards (B,) or scalar; loss, grad_norm, entropy scalars; kl the KL the loop logs, in nats per `kl_unit`
    ("token" or "sequence", None where not said) by `kl_estimator` (None for that of the step's KL events).
    kl_coef in force; controller_kl what an adaptive controller was fed, in nats per `controller_unit`, the unit
    of its target.
    lengths (B,) of the responses; truncated (B,) bool; values, returns for the value head.
    """

    rewards: Tensor | None = None
    loss: Tensor | float | None = None
    grad_norm: Tensor | float | None = None
    entropy: Tensor | float | None = None
    kl: Tensor | float | None = None
    kl_unit: str | None = None
    kl_estimator: str | None = None
    kl_coef: float | None = None
    controller_kl: Tensor | float | None = None
    controller_unit: str = "sequence"
    lengths: Tensor | None = None
    truncated: Tensor | None = None
    explained_variance: Tensor | float | None = None
