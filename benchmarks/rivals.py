"""The alarms of others, as rules over one batch of rollouts: what the guard is compared with.

Each rule sees what its library sees: log-probs of the sampled tokens under the policy, under the reference and,
where it compares engine and trainer, as the engine reports them. Engines report either *processed* log-probs
(after temperature, penalties and truncation) or *raw* ones (of the model's own logits; vLLM's default since
its V1 engine); a rule is tried with both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

TRL_LIMIT = -1.0
"""trl 0.11.4, PPOTrainer: warns when the batch mean of the sequences' k1 is below this, nats per sequence."""
VERL_RATIO = 2.0
"""verl 0.9.1: rollout_is_threshold, the importance ratio beyond which a token is clamped or dropped."""
NEMO_MULTIPLICATIVE = 1.05
"""NeMo-RL: the limit its documentation gives for token_mult_prob_error at equal precision."""
NEMO_KL = 1e-3
"""NeMo-RL: gen_kl_error, documented as acceptable below this, nats per token."""


@dataclass(frozen=True)
class Batch:
    """Log-probs (B, T) of the sampled tokens, nats, and which of them count.

    engine   as the sampling engine reports them; None where it has none (beam search).
    """

    logprobs: Tensor
    reference: Tensor
    mask: Tensor
    engine: Tensor | None = None

    def mean(self, values: Tensor) -> float:
        """The mean over valid tokens."""
        return (values.masked_fill(~self.mask, 0.0).sum() / self.mask.sum().clamp(min=1)).item()


def trl_negative_kl(batch: Batch) -> bool:
    """The batch mean of the sequences' summed k1 is below -1."""
    k1 = (batch.logprobs - batch.reference).masked_fill(~batch.mask, 0.0)
    return k1.sum(-1).mean().item() < TRL_LIMIT


def mean_below_zero(batch: Batch) -> bool:
    """The mean of k1 over the batch is negative."""
    return batch.mean(batch.logprobs - batch.reference) < 0


def verl_ratio(batch: Batch) -> bool:
    """Some token's ratio of trainer to engine is beyond the threshold, in either direction."""
    far = (batch.logprobs - batch.engine).masked_fill(~batch.mask, 0.0).abs()
    return far.max().item() > torch.tensor(VERL_RATIO).log().item()


def nemo_multiplicative(batch: Batch) -> bool:
    """The mean of exp(|trainer - engine|) is beyond the limit."""
    return batch.mean((batch.logprobs - batch.engine).abs().exp()) > NEMO_MULTIPLICATIVE


def nemo_kl(batch: Batch) -> bool:
    """The mean k3 of trainer against engine is beyond the limit."""
    d = batch.logprobs - batch.engine
    return batch.mean(torch.expm1(d) - d) > NEMO_KL


RULES: Mapping[str, Callable[[Batch], bool]] = {
    "trl: KL < -1": trl_negative_kl,
    "mean KL < 0": mean_below_zero,
}
ENGINE_RULES: Mapping[str, Callable[[Batch], bool]] = {
    "verl: ratio > 2": verl_ratio,
    "nemo: mult > 1.05": nemo_multiplicative,
    "nemo: k3 > 1e-3": nemo_kl,
}


def verdicts(
    logprobs: Tensor,
    reference: Tensor,
    mask: Tensor,
    *,
    processed: Tensor | None,
    raw: Tensor | None,
) -> dict[str, bool]:
    """Which rules alarm on this batch. Rules about the engine appear once with each kind of its log-probs."""
    alarms = {name: rule(Batch(logprobs, reference, mask)) for name, rule in RULES.items()}
    for kind, engine in (("processed", processed), ("raw", raw)):
        if engine is not None:
            batch = Batch(logprobs, reference, mask, engine)
            alarms |= {f"{name} ({kind})": rule(batch) for name, rule in ENGINE_RULES.items()}
    return alarms
