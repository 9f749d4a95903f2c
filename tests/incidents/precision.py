"""Rounding, and gradients that are not finite."""

from __future__ import annotations

from dataclasses import replace

import torch

from tests.guard.loop import Loop
from tests.incidents.replay import loop


class DependsOnTheBatch(Loop):
    """Kernels whose rounding depends on how many rows are computed together; rollouts are scored all at once."""

    def forward(self, model, ids, attention):
        logits, hidden = super().forward(model, ids, attention)
        noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(len(ids)))
        return logits + (0.3 * noise if len(ids) > 8 else 0.0), hidden


class AdapterTrained(Loop):
    """A correct loop that trains everything but the first block."""

    def make_policy(self):
        policy = super().make_policy()
        policy.transformer.h[0].requires_grad_(False)
        return policy

    def parameters(self):
        return [parameter for parameter in super().parameters() if parameter.requires_grad]


class MergedAndUnmerged(AdapterTrained):
    """The frozen weights come back rounded from each merge."""

    def apply(self):
        super().apply()
        weight = self.policy.transformer.h[0].mlp.c_fc.weight.data
        weight.copy_((weight + 1.0) - 1.0)


class SteppedAllTheSame(Loop):
    """optimizer.step() is called although the gradient is not finite."""

    def clip_gradient(self):
        norm = super().clip_gradient()
        self.policy.transformer.wpe.weight.grad[0, 0] = float("inf")
        return norm


class LogSoftmaxInBrain16(Loop):
    """Log-probs are normalised in bf16."""

    def token_log_probs(self, logits, tokens):
        return super().token_log_probs(logits.bfloat16(), tokens).float()


class LongEpochs(Loop):
    """All rows in one minibatch, many tokens of them."""

    minibatches = 1

    def make_prompts(self):
        prompts, attention, groups = super().make_prompts()
        return prompts.repeat(8, 1), attention.repeat(8, 1), torch.arange(8 * len(groups))


class RatioAddedUpInBrain16(LongEpochs):
    """The mean ratio is a running sum in bf16."""

    def reported(self, batch, new, entropy):
        total = torch.zeros((), dtype=torch.bfloat16)
        for ratio in self.ratio(new, batch.old)[batch.mask].bfloat16():
            total = total + ratio
        return {"ratio": (total / batch.mask.sum()).float()}


REPLAYS = (
    loop("prime-rl-568", "KLG813", RatioAddedUpInBrain16, LongEpochs),
    loop("verl-2996", "KLG831", DependsOnTheBatch, Loop),
    loop("trl-6688", "KLG804", MergedAndUnmerged, AdapterTrained),
    loop("verl-789", "KLG841", SteppedAllTheSame, Loop),
)


class RolloutScoredInBrain16(Loop):
    """The pass over the rollout keeps its logits in bf16; the loss converts them to fp32 first."""

    def rollout(self):
        batch = super().rollout()
        return replace(batch, old=self.token_log_probs(batch.logits.bfloat16().float(), batch.responses))


class AboveZero(Loop):
    """Logit minus log-sum-exp, each rounded for itself: log-probs above 0."""

    def make_policy(self):
        policy = super().make_policy()
        with torch.no_grad():
            policy.transformer.ln_f.weight.mul_(6.0)  # nearly certain of each token
        return policy


class RoundedAlone(AboveZero):
    def tell_minibatch(self, batch, new, entropy, epoch, values=None):
        rounded = [
            logits.gather(-1, batch.responses[..., None])[..., 0].bfloat16()
            - logits.logsumexp(-1).bfloat16()
            + 0.03
            for logits in [batch.logits]
        ]
        self.guard.minibatch(rounded[0].float(), rounded[0].float(), batch.mask, rows=batch.rows, epoch=epoch)


SIBLINGS = (
    loop("openrlhf-634", "KLG854", LogSoftmaxInBrain16, Loop),
    loop("prime-rl-664", "KLG854", LogSoftmaxInBrain16, Loop),
    loop("xtuner-1108", "KLG831", RolloutScoredInBrain16, Loop),
    loop("maxtext-5231", "KLG838", RoundedAlone, AboveZero),
)
