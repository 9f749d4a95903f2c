"""Rounding, and gradients that are not finite."""

from __future__ import annotations

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


REPLAYS = (
    loop("verl-2996", "KLG831", DependsOnTheBatch, Loop),
    loop("trl-6688", "KLG804", MergedAndUnmerged, AdapterTrained),
    loop("verl-789", "KLG841", SteppedAllTheSame, Loop),
)
SIBLINGS = (loop("openrlhf-634", "KLG854", LogSoftmaxInBrain16, Loop),)
