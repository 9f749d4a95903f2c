"""The sign of a KL penalty in a reward, in the layouts people write it in."""

import ast

import pytest

from klguard.read.python.wiring.bonus import kl_bonus
from klguard.read.python.wiring.words import assigned_once

KL = "kl = logprobs - ref_logprobs\n"
LAST = "rewards[:, -1] += scores\n"

PAYS = [
    KL + "rewards = scores + beta * kl",
    KL + "rewards = scores - (-beta * kl)",
    "rewards = scores - beta * (ref_logprobs - logprobs)",
    "rewards = scores + self.kl_coef * (logprobs - ref_logprobs).detach()",
    KL + "rewards = kl_coef * kl\n" + LAST,
    KL + "rewards += 0.05 * kl",
    KL + "total_rewards = reward_fn(text) + 0.05 * (kl * mask).sum(-1)",
    "old = self.log_prob(self.actor, ids)\nsft = self.log_prob(self.sft, ids)\n"
    "kl = ((sft - old) * mask).sum(1)\nreturn ids, old, scores - beta * kl",
    "now, frozen = logps(policy, ids), logps(ref_model, ids)\nreturn score + beta * (now - frozen)",
]
FINE = [
    KL + "rewards = scores - beta * kl",
    "rewards = scores + beta * (ref_logprobs - logprobs)",
    KL + "rewards = -kl_coef * kl\n" + LAST,
    KL + "rewards -= beta * kl",
    KL + "rewards = beta * kl\nrewards = scores - rewards",
    KL + "rewards = scores + sign * kl",
    KL + "kl_penalty = beta * kl\nneg_rewards = kl_penalty - scores",
    "kl = compute_kl(logprobs, ref_logprobs)\nrewards = scores + beta * kl",
    "rewards = scores + beta * (logprobs - old_logprobs)",
    KL + "loss = policy_loss + beta * kl.mean()",
    KL + "penalty_reward = beta * kl",
    "old = self.log_prob(self.actor, ids)\nsft = self.log_prob(self.sft, ids)\n"
    "kl = ((old - sft) * mask).sum(1)\nreturn ids, old, scores - beta * kl",
    "a, b = read(policy), read(ref_model)\nreturn scores - beta * (b - a)",
    "a = kl_of_logprobs(policy)\nb = logprob_loss(ref_model)\nreturn scores - beta * (b - a)",
]


def told(text):
    scope = ast.parse("def f():\n" + "".join(f"    {line}\n" for line in text.splitlines())).body[0]
    return kl_bonus(scope, assigned_once(scope))


@pytest.mark.parametrize("text", PAYS)
def test_a_plus_is_told(text):
    assert told(text) is not None


@pytest.mark.parametrize("text", FINE)
def test_a_minus_and_what_cannot_be_taken_apart_are_not(text):
    assert told(text) is None
