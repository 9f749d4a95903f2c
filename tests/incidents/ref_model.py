"""What the reference is."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from tests.guard.adapters import Adapted, AdapterStillOn, KeptAdapter, TrainedBefore
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


class PolicyScoredTwice(Loop):
    """The reference exists, and the policy is scored in its place."""

    learning_rate = 1e-3

    def rollout(self):
        batch = super().rollout()
        return replace(batch, reference=batch.old, reference_logits=batch.logits)


class LearnsFaster(Loop):
    learning_rate = 1e-3


REPLAYS = (
    loop("trl-925", "KLG805", AdapterDropout, Loop, steps=0),
    loop("trl-4723", "KLG801", TrainedBefore, KeptAdapter),
    loop("trl-6591", "KLG801", TrainedBefore, KeptAdapter),
)
SIBLINGS = (
    loop("trl-3194", "KLG801", TrainedBefore, KeptAdapter),
    loop("trl-495", "KLG801", TrainedBefore, KeptAdapter),
    loop("adapter-left-on", "KLG803", AdapterStillOn, Adapted, steps=4),
    loop("policy-scored-twice", "KLG803", PolicyScoredTwice, LearnsFaster, steps=4),
    loop("same-object", "KLG803", TheSameObject, Loop, steps=0),
    loop("moving-reference", "KLG802", FollowsThePolicy, Loop),
    loop("shallow-copy", "KLG803", ShallowCopy, Loop, steps=0),
)
