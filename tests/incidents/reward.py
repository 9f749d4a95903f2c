"""Rewards, and what the policy makes of them."""

from __future__ import annotations

from dataclasses import replace

import torch

from tests.guard.loop import EOS, RESPONSE, GroupLoop, Loop
from tests.incidents.replay import loop


class OnlyTheEnd(Loop):
    """The policy has learnt that the stop token alone is paid."""

    epochs, minibatches = 1, 1

    def make_policy(self):
        policy = super().make_policy()
        with torch.no_grad():
            stop = policy.transformer.wte.weight[EOS]
            policy.transformer.ln_f.bias.add_(6 * stop / stop.square().sum())
        return policy


class AnswersShuffled(Loop):
    """Answers are shuffled once more than prompts."""

    def scores(self, batch):
        return super().scores(batch)[torch.randperm(len(batch.prompts))]


class ZeroIsMissing(Loop):
    """`score or fallback`: a score of 0 is taken for none."""

    def reward_function(self, texts):
        return torch.tensor([float(len(text.split()) > 3) for text in texts])

    def scores(self, batch):
        return torch.tensor([float(score) or -0.5 for score in super().scores(batch)])


class ZeroIsAScore(ZeroIsMissing):
    def scores(self, batch):
        return Loop.scores(self, batch)


class NoSpread(GroupLoop):
    """The reward function fails for all and returns the same number."""

    def reward_function(self, texts):
        return torch.zeros(len(texts))


class GroupsTiled(GroupLoop):
    """Prompts are repeated one after the other, group numbers are tiled."""

    def tell_rollout(self, batch):
        wrong = torch.arange(len(batch.groups)) % (len(batch.groups) // self.group_size)
        super().tell_rollout(replace(batch, groups=wrong))


class StrideOverPartialGroups(GroupLoop):
    """A group has lost a response, and groups are recovered by a fixed stride all the same."""

    def tell_rollout(self, batch):
        shifted = torch.cat([batch.groups[1:], batch.groups[-1:] + 1])
        super().tell_rollout(replace(batch, groups=shifted))


class WellWeighted(Loop):
    """One token is paid for wherever it stands, and the KL is weighed against it."""

    learning_rate, beta = 1e-3, 1.0

    def reward_function(self, texts):
        return torch.tensor([10 * text.split().count("40") / RESPONSE for text in texts])


class WeighedTooLittle(WellWeighted):
    """The same with a coefficient that hardly counts: in the end all responses are that token."""

    beta = 1e-4


class AloneAgainstEquals(GroupLoop):
    """A row is compared with the others of its group, whose rewards are equal, and those of the first group are not
    numbers that fp32 holds exactly: what is left of their standard deviation divides."""

    residue = 1.6e-4

    def reward_function(self, texts):
        scores = super().reward_function(texts)
        scores[: self.group_size] = torch.tensor([0.35, 0.35, 0.35, 1.0])
        return scores

    def advantages(self, batch):
        batch = super().advantages(batch)
        first = batch.scores[: self.group_size]
        blown = batch.advantages.clone()
        blown[: self.group_size] = (first - first.mean()) / max(self.residue, float(first[:3].std()))
        return replace(batch, advantages=blown)

    def tell_rewards(self, batch):
        self.guard.rewards(batch.scores)


class LeftAlone(AloneAgainstEquals):
    """Below a floor the deviation does not divide."""

    residue = 1.0


REPLAYS = (
    loop("trl-204", "KLG604 KLG862", WeighedTooLittle, WellWeighted, steps=40),
    loop("dschat-887", "KLG863", OnlyTheEnd, Loop, steps=5),
    loop("open-instruct-1484", "KLG864", AnswersShuffled, Loop, steps=3),
    loop("openrlhf-1219", "KLG864", ZeroIsMissing, ZeroIsAScore, steps=3),
)
SIBLINGS = (
    loop("nemo-rl-4161", "KLG822", AloneAgainstEquals, LeftAlone),
    loop("flat-reward", "KLG823", NoSpread, GroupLoop, steps=5),
    loop("areal-1419", "KLG822", StrideOverPartialGroups, GroupLoop),
    loop("prime-rl-600", "KLG822", GroupsTiled, GroupLoop),
)
