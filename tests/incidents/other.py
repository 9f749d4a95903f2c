"""Modes."""

from __future__ import annotations

from tests.guard.loop import Loop
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


REPLAYS = (loop("trl-3234", "KLG805", DropoutInScoring, Loop, steps=0),)
