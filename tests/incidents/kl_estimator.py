"""How the KL is estimated, logged, and put into reward, loss and controller."""

from __future__ import annotations

import torch

from klguard.rules.programs import by_hand
from tests.guard.loop import GroupLoop, Loop
from tests.incidents.replay import config, loop, script


class K3WithoutTheRatio(GroupLoop):
    """k3 as a plain loss."""

    def kl_loss(self, new, reference):
        d = reference - new
        return torch.expm1(d) - d


class K1AsALoss(GroupLoop):
    """log p - log ref, differentiated: the reference drops out of the gradient."""

    def kl_loss(self, new, reference):
        return new - reference


class KlIsRewarded(GroupLoop):
    """The KL term is subtracted from a loss that is minimised."""

    def kl_loss(self, new, reference):
        return -super().kl_loss(new, reference)


class Controlled(Loop):
    """A loop with an adaptive controller."""

    def controller_kl(self, batch, logs):
        return logs["kl"]

    def log(self, batch, updates):
        logs = super().log(batch, updates)
        return logs | {"controller_kl": self.controller_kl(batch, logs)}


class ControllerFedTheUpdate(Controlled):
    """The controller is fed the KL between the weights before and after the updates."""

    def controller_kl(self, batch, logs):
        with torch.no_grad():
            new = self.rescore(batch)[1]
        return ((batch.old - new) * batch.mask).sum(1).mean()


class PenaltyAtEveryToken(Loop):
    """The KL of the sequence is taken off as one scalar at each token, and the score is not placed."""

    def token_rewards(self, scores, kl, mask):
        total = scores - self.beta * (kl * mask).sum(1)
        return total[:, None] * mask


class ScoreBehindTheStop(Loop):
    """The score is added at the first padding token."""

    def token_rewards(self, scores, kl, mask):
        rewards = -self.beta * kl * mask
        last = mask.sum(1).clamp(max=mask.shape[1] - 1)
        return rewards.scatter_add(1, last[:, None], scores[:, None])


class PenaltyOfTheWrongSign(Loop):
    def token_rewards(self, scores, kl, mask):
        return super().token_rewards(scores, -kl, mask)

    def total_reward(self, score, kl):
        return score + self.beta * kl


class LogsAnotherEstimator(Loop):
    """The penalty is |log p - log ref|, and k1 is computed anew for the log."""

    def kl(self, logprobs, reference):
        return 0.5 * (logprobs - reference) ** 2

    def tell_kl(self, batch):
        self.guard.kl(batch.old, batch.reference, batch.mask, estimator="k2", values=batch.kl)

    def log(self, batch, updates):
        logs = super().log(batch, updates)
        return logs | {"kl": ((batch.old - batch.reference) * batch.mask).sum(1).mean()}

    def tell_step(self, logs):
        self.guard.step(kl_unit="sequence", kl_coef=self.beta, **logs)


class K3InBrain16(GroupLoop):
    """k3 as exp(d) - 1 - d in bf16."""

    def tell_kl(self, batch):
        d = (batch.reference - batch.old + 1e-3).bfloat16()
        self.guard.kl(batch.old, batch.reference, batch.mask, estimator="k3", values=d.exp() - 1 - d)


REPLAYS = (
    loop("trl-6503", "KLG835", K3WithoutTheRatio, GroupLoop, steps=0),
    loop("trlx-361", "KLG827", ControllerFedTheUpdate, Controlled, steps=5),
    loop("verl-179", "KLG835", KlIsRewarded, GroupLoop, steps=0),
    loop("open-instruct-535", "KLG835", K1AsALoss, GroupLoop, steps=0),
    loop("trl-2575", "KLG825", PenaltyAtEveryToken, Loop),
)


class PaidTwice(Loop):
    """The KL is subtracted from the reward, and a term of it is in the loss as well."""

    def kl_loss(self, new, reference):
        return 0.5 * (new - reference) ** 2


class NeverSubtracted(Loop):
    """A KL is computed, and the reward does not contain it."""

    def token_rewards(self, scores, kl, mask):
        return super().token_rewards(scores, 0 * kl, mask)


VERL = """\
algorithm: {{adv_estimator: grpo, use_kl_in_reward: {reward}}}
actor_rollout_ref:
  actor: {{use_kl_loss: true, kl_loss_type: low_var_kl, kl_loss_coef: 0.001}}
  rollout: {{name: vllm, n: {n}}}
"""
K3 = "torch.exp(ref_logprobs - logprobs) - (ref_logprobs - logprobs) - 1"
K3_TURNED = "(torch.exp(logprobs - ref_logprobs) - 1) - (logprobs - ref_logprobs)"
POLICY = "rewards = score(tokens)\n    policy_loss = -(rewards * logprobs).mean()"
CLIPPED = """\
mask, rewards = tokens != 0, score(tokens)
    ratio = torch.exp(logprobs - logprobs.detach())
    clipped = ratio.clamp(1 - 0.2, 1 + 0.2)
    token_loss = -(torch.min(ratio * advantages, clipped * advantages) - 0.1 * kl) * mask"""
PURE = "do_sample=True, top_k=0, max_new_tokens=32"

SIBLINGS = (
    config(
        "verl-3276", "KLG408", "verl.yaml", VERL.format(reward="true", n=8), VERL.format(reward="false", n=8)
    ),
    config(
        "rm-r1-9", "KLG409", "verl.yaml", VERL.format(reward="false", n=1), VERL.format(reward="false", n=8)
    ),
    script(
        "kl-off-the-loss",
        "KLG410",
        by_hand(PURE, kl=K3, mask=POLICY, loss="policy_loss - 0.1 * kl.mean()"),
        by_hand(PURE, kl=K3, mask=POLICY, loss="policy_loss + 0.1 * kl.mean()"),
    ),
    script(
        "mlx-examples-1233",
        "KLG405",
        by_hand(PURE, kl=K3_TURNED, mask=POLICY, loss="policy_loss + 0.1 * kl.mean()"),
        by_hand(PURE, kl=K3, mask=POLICY, loss="policy_loss + 0.1 * kl.mean()"),
    ),
    script(
        "fla-1073",
        "KLG410",
        by_hand(PURE, kl=K3, mask=CLIPPED, loss="-token_loss.sum() / mask.sum()"),
        by_hand(PURE, kl=K3, mask=CLIPPED, loss="token_loss.sum() / mask.sum()"),
    ),
    script(
        "rlhf-book-125",
        "KLG410",
        by_hand(PURE, kl=K3, mask=POLICY.replace("-(", "("), loss="policy_loss + 0.1 * kl.mean()"),
        by_hand(PURE, kl=K3, mask=POLICY, loss="policy_loss + 0.1 * kl.mean()"),
    ),
    loop("verl-265", "KLG836", PaidTwice, Loop),
    loop("slime-397", "KLG825", NeverSubtracted, Loop, steps=3),
    loop("trl-3750", "KLG825", ScoreBehindTheStop, Loop),
    loop("toolrl-52", "KLG835", KlIsRewarded, GroupLoop, steps=0),
    loop("trl-1180", "KLG834", LogsAnotherEstimator, Loop, steps=4),
    loop("optimate-298", "KLG826", PenaltyOfTheWrongSign, Loop, steps=0),
    loop("openrlhf-620", "KLG602", K3InBrain16, GroupLoop),
)
