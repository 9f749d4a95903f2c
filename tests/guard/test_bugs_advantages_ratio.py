"""Bugs planted in a correct loop, one piece each: the guard says this code and no other. Rows 1, 2, 20 to 34."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from .loop import EOS, GroupLoop, Loop, masked_mean, run  # noqa: E402

OURS = {"KLG601", "KLG602"} | {f"KLG82{n}" for n in range(1, 8)} | {f"KLG83{n}" for n in range(1, 9)}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def codes(guard):
    return {finding.code for finding in guard.findings}


class NaiveK3(GroupLoop):
    """k3 as exp(d) - 1 - d in bf16."""

    def tell_kl(self, batch):
        d = (batch.reference - batch.old + 1e-3).bfloat16()
        self.guard.kl(batch.old, batch.reference, batch.mask, estimator="k3", values=d.exp() - 1 - d)


class WhitensPadding(Loop):
    """Mean and variance over all positions."""

    def whiten(self, values, mask):
        return (values - values.mean()) * torch.rsqrt(values.var() + 1e-8) * mask


class AddsMeanBack(Loop):
    """Scales and does not centre, as torchtune's whiten does by default."""

    def whiten(self, values, mask):
        mean = masked_mean(values, mask)
        return super().whiten(values, mask) + mean * mask


class LeavesPadding(Loop):
    """Whitened right over valid tokens, but padding is not set to 0."""

    def whiten(self, values, mask):
        whitened = super().whiten(values, mask)
        return torch.where(mask, whitened, -1.0)


class GroupsAcross(GroupLoop):
    """Reshaped with rows and columns exchanged: compared across prompts."""

    def advantages(self, batch):
        batch = super().advantages(batch)
        grouped = batch.scores.view(self.group_size, -1)
        return replace(batch, advantages=(grouped - grouped.mean(0)).flatten())


class DropsARow(GroupLoop):
    """A length filter drops one row after the groups were made."""

    def tell_advantages(self, batch):
        keep = torch.arange(1, len(batch.scores))
        self.guard.advantages(
            batch.advantages[keep],
            batch.mask[keep],
            groups=batch.groups[keep],
            group_size=self.group_size,
        )


class RepeatsWrongly(GroupLoop):
    """Prompts are tiled while group numbers are interleaved."""

    def tell_rollout(self, batch):
        size = self.group_size
        wrong = torch.arange(len(batch.groups)) % (len(batch.groups) // size)
        super().tell_rollout(replace(batch, groups=wrong))


class FlatRewards(GroupLoop):
    """A reward that is the same for all responses of a prompt, but for one prompt that keeps the gradient alive."""

    group_size = 2

    def reward_function(self, texts):
        scores = super().reward_function(texts)
        return torch.cat([scores[:2], torch.ones_like(scores[2:])])

    def tell_rewards(self, batch):
        """Its rewards depend on the place in the batch: not told, or each would be called another's."""


class BootstrapsPadding(Loop):
    """The value after the last token is that of the first padding token."""

    def make_value_head(self):
        return torch.nn.Linear(32, 1)

    def gae(self, rewards, values, mask):
        advantages, following, after = torch.zeros_like(rewards), 0.0, 0.0
        for t in reversed(range(rewards.shape[1])):
            delta = rewards[:, t] + self.gamma * after - values[:, t]
            following = (delta + self.gamma * self.lam * following) * mask[:, t]
            after = values[:, t]
            advantages[:, t] = following
        return advantages


class BootstrapsUnseen(BootstrapsPadding):
    """The same, in a loop that gives the guard no function to try."""

    def tell_preflight(self):
        pass


class ScoreAtTheEnd(Loop):
    """The score is added at the last position of the batch, not of the row."""

    def token_rewards(self, scores, kl, mask):
        rewards = -self.beta * kl * mask
        rewards[:, -1] += scores
        return rewards


class ScoreTwice(Loop):
    def token_rewards(self, scores, kl, mask):
        return super().token_rewards(2 * scores, kl, mask)


class RewardsKL(Loop):
    """The penalty has the wrong sign."""

    def token_rewards(self, scores, kl, mask):
        return super().token_rewards(scores, -kl, mask)


class RewardsKLInTheory(Loop):
    def total_reward(self, score, kl):
        return score + self.beta * kl


class Adaptive(Loop):
    """A loop with an adaptive controller, its target in nats per sequence."""

    def controller_input(self, logs):
        return logs["kl"]

    def tell_step(self, logs):
        self.guard.step(
            kl_unit="sequence",
            kl_coef=self.beta,
            controller_kl=self.controller_input(logs),
            **logs,
        )


class ControllerPerToken(Adaptive):
    def controller_input(self, logs):
        return logs["kl"] / logs["lengths"].float().mean()


class OtherTemperature(Loop):
    """Minibatches are scored at another temperature than the rollout."""

    epochs = 1

    def rescore(self, batch):
        logits, _, values = super().rescore(batch)
        logits = logits / 0.98
        return logits, self.token_log_probs(logits, batch.responses), values


class HugeSteps(Loop):
    """A learning rate that throws the policy far from the rollout's; the guard is not told the clip range."""

    learning_rate = 8e-3

    def tell_minibatch(self, batch, new, entropy, epoch, values=None):
        self.guard.minibatch(new, batch.old, batch.mask, rows=batch.rows, epoch=epoch)


class ClipsMost(Loop):
    """Steps too large for its narrow clip range."""

    clip_range = 0.003


class RecomputesOld(Loop):
    """The old log-probs are made anew from the current weights for each minibatch."""

    def take(self, batch, rows):
        picked = super().take(batch, rows)
        return replace(picked, old=self.rescore(picked)[1].detach())


class LogsK3(Loop):
    """k1 is penalised, k3 is logged."""

    def log(self, batch, updates):
        d = batch.reference - batch.old
        return super().log(batch, updates) | {"kl": ((d.exp() - 1 - d) * batch.mask).sum(1).mean()}


class LogsDiluted(Loop):
    """A mean per token that divides by the padded length."""

    def log(self, batch, updates):
        return super().log(batch, updates) | {"kl": (batch.kl * batch.mask).mean()}

    def tell_step(self, logs):
        self.guard.step(kl_unit="token", kl_estimator="k1", kl_coef=self.beta, **logs)


class K1Loss(GroupLoop):
    def kl_loss(self, new, reference):
        return new - reference


class K3Loss(GroupLoop):
    """k3 without the importance ratio, the GRPO of 2024."""

    def kl_loss(self, new, reference):
        d = reference - new
        return torch.expm1(d) - d


class DetachedLoss(GroupLoop):
    """The KL term is computed from detached log-probs. Without a preflight, that would say KLG835 as well."""

    def kl_loss(self, new, reference):
        return super().kl_loss(new.detach(), reference)

    def tell_preflight(self):
        pass


class ForeignReference(Loop):
    """The KL is computed, after the first step, against a reference that cannot stop. The guard is given no reference
    logits to see it by."""

    def tell_scoring(self, batch):
        self.guard.logprobs(batch.logits, batch.responses, batch.mask)

    def kl(self, logprobs, reference):
        return logprobs - reference

    def tell_kl(self, batch):
        wrong = torch.where((batch.responses == EOS) & (self.number > 0), -30.0, batch.reference)
        self.guard.kl(batch.old, wrong, batch.mask, estimator="k3")


class NegativeLogLikelihood(Loop):
    """What minibatches call log-probs has the other sign."""

    def tell_minibatch(self, batch, new, entropy, epoch, values=None):
        self.guard.minibatch(-new, -batch.old, batch.mask, epoch=epoch)


BUGS = [
    (NaiveK3, "KLG602", 1),
    (WhitensPadding, "KLG821", 1),
    (AddsMeanBack, "KLG821", 1),
    (LeavesPadding, "KLG821", 1),
    (GroupsAcross, "KLG822", 1),
    (DropsARow, "KLG822", 1),
    (RepeatsWrongly, "KLG822", 1),
    (FlatRewards, "KLG823", 5),
    (BootstrapsPadding, "KLG824", 1),
    (BootstrapsUnseen, "KLG824", 1),
    (ScoreAtTheEnd, "KLG825", 1),
    (ScoreTwice, "KLG825", 1),
    (RewardsKL, "KLG826", 2),
    (RewardsKLInTheory, "KLG826", 1),
    (ControllerPerToken, "KLG827", 5),
    (OtherTemperature, "KLG831", 1),
    (HugeSteps, "KLG832", 1),
    (ClipsMost, "KLG833", 3),
    (RecomputesOld, "KLG833", 3),
    (LogsK3, "KLG834", 4),
    (LogsDiluted, "KLG834", 5),
    (K1Loss, "KLG835", 1),
    (K3Loss, "KLG835", 1),
    (DetachedLoss, "KLG836", 1),
    (ForeignReference, "KLG837", 3),
    (NegativeLogLikelihood, "KLG838", 1),
]


@pytest.mark.parametrize(("bug", "code", "steps"), BUGS, ids=lambda value: getattr(value, "__name__", None))
def test_a_planted_bug_is_named_and_nothing_else_is(bug, code, steps):
    guard = run(bug, steps)
    assert codes(guard) == {code}, [(f.code, f.message) for f in guard.findings]


@pytest.mark.parametrize("kind", [Loop, GroupLoop, Adaptive])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_correct_loop_has_no_findings(kind, seed):
    guard = run(type(kind.__name__, (kind,), {"seed": seed}), 6)
    assert [(f.code, f.message) for f in guard.findings] == []


def test_both_loops_exercise_every_row():
    seen = run(Adaptive, 1).exercised | run(GroupLoop, 1).exercised
    assert OURS - seen == {"KLG602"}  # k3 is not computed by either
    assert "KLG602" in run(NaiveK3, 1).exercised
