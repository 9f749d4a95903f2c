"""Where a response ends."""

from __future__ import annotations

from dataclasses import replace

import torch

from klguard.rules.programs import by_hand
from tests.guard.loop import EOS, Loop
from tests.incidents.replay import loop, script

PURE = "do_sample=True, top_k=0, max_new_tokens=32"


class OnePositionTooMany(Loop):
    """The mask ends one position behind the stop token."""

    def tell_rollout(self, batch):
        longer = torch.cat([torch.ones_like(batch.mask[:, :1]), batch.mask[:, :-1]], 1)
        super().tell_rollout(replace(batch, mask=batch.mask | longer))


class AnotherStopRule(Loop):
    """Rollouts stop at a token that the tokenizer does not call a stop."""

    def make_policy(self):
        policy = super().make_policy()
        policy.generation_config.eos_token_id = [EOS, 2]
        return policy


class ErasedWithTheStop(Loop):
    """Behind the first stop, everything is overwritten by the stop token, and the mask is where no pad is."""

    def sample(self, prompts, attention):
        responses = super().sample(prompts, attention)
        return torch.where((responses == EOS).cumsum(1) > 0, EOS, responses)

    def response_mask(self, responses):
        return responses != 0


class NoStopInTheGenerationConfig(Loop):
    """generate() knows no stop token, and responses are cut at the first one afterwards."""

    def make_policy(self):
        policy = super().make_policy()
        policy.generation_config.eos_token_id = None
        return policy


REPLAYS = (
    loop("trl-2387", "KLG817", NoStopInTheGenerationConfig, Loop),
    loop("dschat-672", "KLG811", OnePositionTooMany, Loop),
    script(
        "trl-6357",
        "KLG309",
        by_hand(
            PURE + ", pad_token_id=tokenizer.eos_token_id",
            before="tokenizer.pad_token = tokenizer.eos_token",
            mask="mask = (tokens[:, 1:] != tokenizer.pad_token_id).float()",
            loss="-((score(tokens) - 0.1 * kl.detach()) * logprobs * mask[..., None]).sum() / mask.sum()",
        ),
        by_hand(PURE, loss="-((score(tokens) - 0.1 * kl.detach()) * logprobs).mean()"),
    ),
    loop("lightrft-53", "KLG817", AnotherStopRule, Loop, steps=0),
)


class StopIsNotTrained(Loop):
    """The mask ends before the stop token. A response that is only a stop keeps it."""

    def response_mask(self, responses):
        mask = super().response_mask(responses) & (responses != EOS)
        mask[:, 0] = True
        return mask


class OneStopOfTwo(AnotherStopRule):
    """The trainer compares with the tokenizer's stop token alone; token 2 ends a turn too."""

    def tell_scoring(self, batch):
        """Behind token 2 comes padding that was not sampled."""


SIBLINGS = (
    loop("memgen-33", "KLG811", ErasedWithTheStop, Loop),
    loop("reasoning-from-scratch-185", "KLG812", StopIsNotTrained, Loop),
    loop("trl-7039", "KLG817", OneStopOfTwo, Loop),
)
