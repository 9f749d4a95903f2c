"""What the reference is."""

from __future__ import annotations

import copy

import torch

from tests.guard.loop import Loop
from tests.incidents.replay import loop


class AdapterDropout(Loop):
    """The adapter's dropout is on while the policy scores; the reference has none."""

    def make_policy(self):
        policy = super().make_policy()
        policy.transformer.drop.p = 0.05
        return policy

    def score_responses(self, model, *arguments):
        model.train(model is self.policy)
        return super().score_responses(model, *arguments)


class TheSameObject(Loop):
    def make_reference(self):
        return self.policy


class FollowsThePolicy(Loop):
    """The reference is updated with the policy."""

    def apply(self):
        super().apply()
        with torch.no_grad():
            for mine, theirs in zip(self.policy.parameters(), self.reference.parameters(), strict=True):
                theirs.lerp_(mine, 0.1)


class ShallowCopy(Loop):
    """The reference's blocks are those of the policy."""

    def make_reference(self):
        reference = copy.deepcopy(self.policy).requires_grad_(False)
        reference.transformer.h = copy.copy(self.policy.transformer.h)
        return reference.eval()


REPLAYS = (loop("trl-925", "KLG805", AdapterDropout, Loop, steps=0),)
SIBLINGS = (
    loop("same-object", "KLG803", TheSameObject, Loop, steps=0),
    loop("moving-reference", "KLG802", FollowsThePolicy, Loop),
    loop("shallow-copy", "KLG803", ShallowCopy, Loop, steps=0),
)
