"""Modes, slices and metrics."""

from __future__ import annotations

import torch

from tests.guard.loop import RESPONSE, Loop
from tests.incidents.replay import loop


class DropoutInScoring(Loop):
    """There is no switch for dropout, and scoring runs in train mode."""

    def make_policy(self):
        policy = super().make_policy()
        policy.transformer.drop.p = 0.1
        return policy

    def score(self, ids, attention):
        self.policy.train()
        return super().score(ids, attention)


class NothingLeft(Loop):
    """The prompt's length is that of another type, and the slice behind it is empty."""

    def step(self):
        prompts, attention, _ = self.make_prompts()
        nothing = self.sample(prompts, attention)[:, RESPONSE:]
        self.guard.rollout(nothing, nothing.bool(), prompts=prompts, attention_mask=attention)
        self.guard.step()


class LoggedByMicroBatch(Loop):
    """The KL is computed, and logged, in micro-batches: each adds its share of the mean."""

    parts = 4

    def tell_kl(self, batch):
        for rows in torch.arange(len(batch.rows)).chunk(self.parts):
            super().tell_kl(self.take(batch, rows))

    def log(self, batch, updates):
        logs = super().log(batch, updates)
        return logs | {"kl": sum(self.share(kl) for kl in (batch.kl * batch.mask).sum(1).chunk(self.parts))}

    def share(self, kl):
        return kl.mean() / self.parts


class DividedTwice(LoggedByMicroBatch):
    """Each share is divided by the number of micro-batches once more."""

    def share(self, kl):
        return super().share(kl) / self.parts


REPLAYS = (
    loop("trl-3234", "KLG805", DropoutInScoring, Loop, steps=0),
    loop("marin-6335", "KLG863", NothingLeft, Loop),
    loop("verl-4711", "KLG834", DividedTwice, LoggedByMicroBatch, steps=4),
)
