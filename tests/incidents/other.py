"""Templates, metrics, and modes."""

from __future__ import annotations

import torch

from tests.guard.loop import Loop
from tests.incidents.replay import loop


class EmptySlices(Loop):
    """The template returned something whose slices are empty: no response has a token."""

    def tell_rollout(self, batch):
        nothing = batch.responses[:, :0]
        self.guard.rollout(nothing, nothing.bool(), prompts=batch.prompts, attention_mask=batch.attention, rows=batch.rows)

    def tell_scoring(self, batch):
        """There is nothing to score."""

    tell_kl = tell_rewards = tell_advantages = tell_scoring

    def tell_minibatch(self, *_):
        """Nor to train."""

    def log(self, batch, updates):
        return {"lengths": torch.zeros(len(batch.prompts))}


class ScaledTwice(Loop):
    """Metrics are divided by the number of micro-batches twice."""

    def reported(self, batch, new, entropy):
        return {name: value / 4 for name, value in super().reported(batch, new, entropy).items()}


class DropoutInScoring(Loop):
    """There is no switch for dropout, and scoring runs in train mode."""

    def make_policy(self):
        policy = super().make_policy()
        policy.transformer.drop.p = 0.1
        return policy

    def score(self, ids, attention):
        self.policy.train()
        return super().score(ids, attention)


REPLAYS = (
    loop("marin-6335", "KLG863", EmptySlices, Loop, steps=5),
    loop("verl-4711", "KLG813", ScaledTwice, Loop),
    loop("trl-3234", "KLG805", DropoutInScoring, Loop, steps=0),
)
