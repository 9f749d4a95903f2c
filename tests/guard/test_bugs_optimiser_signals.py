"""Rows 35 to 42, 45, 50 to 53 and 55 to 58: the correct loop is silent, and each planted bug is told by its code."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from klguard.guard.invariants.signals import EntropyDrift, ValueHead  # noqa: E402
from tests.guard.loop import EOS, RESPONSE, GroupLoop, Loop, run  # noqa: E402

torch.set_num_threads(1)


def codes(kind, steps=2, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about the scheduler that is planted wrong
        return {finding.code for finding in run(kind, steps, strict=True, **options).findings}


# --- rows 35 to 40 --------------------------------------------------------------------------------------------


class DetachedLayer(Loop):
    """Row 35: what comes before the second layer gets no gradient."""

    def make_policy(self):
        policy = super().make_policy()
        policy.transformer.h[1].register_forward_pre_hook(lambda _, inputs: (inputs[0].detach(), *inputs[1:]))
        return policy


class Poisoned(Loop):
    """Row 35: the last update of the step uses a gradient with a NaN."""

    def clip_gradient(self):
        norm = super().clip_gradient()
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == self.epochs * self.minibatches:
            self.policy.transformer.wpe.weight.grad[0, 0] = float("nan")
        return norm


class OptimizerOfACopy(Loop):
    """Row 36: the optimizer was made before the policy was copied."""

    def make_optimizer(self):
        other = [*copy.deepcopy(self.policy).parameters(), *self.value_head.parameters()]
        return torch.optim.AdamW(other, lr=self.learning_rate)

    def tell_minibatch(self, *_):
        """The ratio never moves either; row 36 is about the reason."""


class ForgottenLayer(Loop):
    """Row 36: the optimizer was made without the last layer, which is meant to be trained."""

    def make_optimizer(self):
        last = {id(p) for p in self.policy.transformer.h[-1].parameters()}
        return torch.optim.AdamW([p for p in self.parameters() if id(p) not in last], lr=self.learning_rate)


class Unclipped(Loop):
    """Row 37: max_grad_norm is a dead field."""

    max_grad_norm = 0.05

    def clip_gradient(self):
        return torch.stack([p.grad.norm() for p in self.parameters() if p.grad is not None]).norm()


class MeanOfMeans(Loop):
    """Row 38: each micro-batch is divided by its own number of tokens."""

    def accumulate(self, micro_batches):
        for rows in micro_batches:
            batch = self.take(self.probe, torch.tensor(rows))
            _, new, values = self.rescore(batch)
            loss = (self.token_loss(batch, new, values) * batch.mask).sum() / batch.mask.sum()
            (loss / len(micro_batches)).backward()


class ZeroGradOfThePolicy(Loop):
    """Row 39: the value head is another module of the optimizer, and keeps its gradients."""

    def zero_gradient(self):
        self.policy.zero_grad()


class SchedulerOfAnother(Loop):
    """Row 40: the optimizer was made again after the scheduler."""

    def make_scheduler(self):
        return torch.optim.lr_scheduler.LambdaLR(self.make_optimizer(), lambda update: 1.0)


class ForeignChange(Loop):
    """Row 40: an average of the weights is copied back into them by a hook on the optimizer."""

    def make_optimizer(self):
        optimizer = super().make_optimizer()
        optimizer.register_step_post_hook(self.copy_back)
        return optimizer

    @torch.no_grad()
    def copy_back(self, *_):
        for parameter in self.policy.parameters():
            parameter.view(-1)[0] += 5e-3


# --- rows 42 and 45 -------------------------------------------------------------------------------------------


class Engine(Loop):
    """A loop that also tells the log-probs its engine returned."""

    def engine_logprobs(self, batch):
        return batch.old

    def tell_scoring(self, batch):
        self.guard.logprobs(
            batch.logits,
            batch.responses,
            batch.mask,
            reference_logits=batch.reference_logits,
            sampler_logprobs=self.engine_logprobs(batch),
        )

    def make_prompts(self):
        prompts, attention, groups = super().make_prompts()
        return prompts.repeat(4, 1), attention.repeat(4, 1), groups.repeat(4)


class Shortest(Engine):
    """Row 42: the engine returned the log-probs of its likeliest tokens. The evidence says as well, and rightly,
    that no distribution with such log-probs drew the tokens (KLG702): that is put aside here."""

    def engine_logprobs(self, batch):
        return batch.logits.log_softmax(-1).amax(-1)


class NeverSynced(Loop):
    """Row 45: the engine keeps the weights it began with."""

    def tell_rollout(self, batch):
        self.guard.rollout(
            batch.responses,
            batch.mask,
            stop_token_ids=(EOS,),
            rows=batch.rows,
            weights_version=self.version(),
            allowed_lag=0,
        )

    def version(self):
        return 0


class Synced(NeverSynced):
    def version(self):
        return self.number


# --- rows 50 to 53 --------------------------------------------------------------------------------------------


class IdleValueHead(Loop):
    """Row 50: the value head's group has no learning rate, so its random beginning stays."""

    epochs, minibatches = 1, 1

    def make_value_head(self):
        head = super().make_value_head()
        torch.nn.init.normal_(head.weight, std=0.2)
        return head

    def make_optimizer(self):
        groups = [{"params": self.policy.parameters()}, {"params": self.value_head.parameters(), "lr": 0.0}]
        return torch.optim.AdamW(groups, lr=self.learning_rate)


class Sharpened(Loop):
    """Row 51: each update multiplies the logits a little, as a merge of an adapter that is done twice would."""

    epochs, minibatches = 1, 1

    def apply(self):
        super().apply()
        with torch.no_grad():
            self.policy.transformer.ln_f.weight.mul_(1.4)
            self.policy.transformer.ln_f.bias.mul_(1.4)


class CutOff(Loop):
    """Row 52: max_new_tokens is far too low."""

    def sampling(self):
        return super().sampling() | {"max_new_tokens": 4}

    def response_mask(self, responses):
        return super().response_mask(responses) & (torch.arange(RESPONSE) < 4)


class NaNReward(Loop):
    """Row 53: the reward of one row could not be computed; nothing else uses it."""

    def tell_rewards(self, batch):
        scores = batch.scores.clone()
        scores[3] = float("nan")
        self.guard.rewards(scores)

    def log(self, batch, updates):
        return super().log(batch, updates) | {"rewards": batch.scores}


class RewardOfTheNextRow(Loop):
    """Row 53: rewards are stored one row off."""

    def scores(self, batch):
        return super().scores(batch).roll(1)


# --- rows 55 to 58 --------------------------------------------------------------------------------------------


class MaskOfAnother(Loop):
    """Row 55: the loss of a minibatch uses masks in the rollout's order."""

    def tell_minibatch(self, batch, new, entropy, epoch, values=None):
        super().tell_minibatch(self.mistaken(batch), new, entropy, epoch, values)

    def mean(self, loss, batch):
        return super().mean(loss, self.mistaken(batch))

    def mistaken(self, batch):
        return replace(batch, mask=self.response_mask(self.whole.responses)[: len(batch.rows)])

    def advantages(self, batch):
        self.whole = super().advantages(batch)
        return self.whole


class WholeRowOfAnother(Loop):
    """Row 55: everything but the ids is shuffled."""

    def tell_minibatch(self, batch, new, entropy, epoch, values=None):
        super().tell_minibatch(replace(batch, rows=batch.rows.roll(1)), new, entropy, epoch, values)


class Retokenised(Loop):
    """Row 56: the trained ids went through text and back, and one came out as another."""

    def advantages(self, batch):
        batch = super().advantages(batch)
        return replace(batch, responses=batch.responses - (batch.responses > 30) * (batch.responses % 2))

    def rollout(self):
        self.sampled = super().rollout()
        return self.sampled

    def tell_rollout(self, batch):
        super().tell_rollout(replace(batch, responses=self.sampled.responses))

    def tell_scoring(self, batch):
        super().tell_scoring(replace(batch, responses=self.sampled.responses))

    def tell_minibatch(self, batch, new, entropy, epoch, values=None):
        """The ratio is off as well: without the old log-probs only the ids can tell."""
        self.guard.minibatch(
            new, new.detach(), batch.mask, tokens=batch.responses, rows=batch.rows, epoch=epoch
        )

    def log(self, batch, updates):
        return {}


class SteppedForEachMinibatch(Loop):
    """Row 40: the schedule was made for four iterations, and goes on with each minibatch."""

    def make_scheduler(self):
        return torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda count: max(0.0, 1 - count / 4))

    def tell_minibatch(self, *arguments):
        """The ratio is 1 once the learning rate is 0."""


class SteppedForEachIteration(SteppedForEachMinibatch):
    """Correct: the schedule lasts as long as the run."""

    def apply(self):
        self.optimizer.step()

    def step(self):
        super().step()
        self.scheduler.step()


class SummedInBrain16(Loop):
    """Row 15: ratios are added up in bfloat16, one after the other."""

    def make_prompts(self):
        prompts, attention, groups = super().make_prompts()
        return prompts.repeat(8, 1), attention.repeat(8, 1), torch.arange(8 * len(groups))

    minibatches = 1

    def reported(self, batch, new, entropy):
        total = torch.zeros((), dtype=torch.bfloat16)
        for ratio in (new - batch.old).detach().exp()[batch.mask].bfloat16():
            total = total + ratio
        return {"ratio": (total / batch.mask.sum()).float()}


class SummedInFull(SummedInBrain16):
    reported = Loop.reported


class WithReplacement(Loop):
    """Row 57: minibatches are drawn independently."""

    def minibatch_rows(self, count):
        for _ in range(self.minibatches):
            yield torch.randint(count, (count // self.minibatches,))


class LastDropped(Loop):
    """Row 57: the last minibatch is dropped because it would be smaller."""

    def minibatch_rows(self, count):
        yield from torch.randperm(count).split(6)[:-1]


class FilteredBeforeScoring(Loop):
    """Row 58: rows whose responses were cut off are not scored for the guard."""

    def tell_scoring(self, batch):
        kept = (batch.responses == EOS).any(1).nonzero()[:-1, 0]
        super().tell_scoring(self.take(batch, kept))


class FilteredBeforeTheGuard(Loop):
    """Row 58: and it says so itself."""

    def tell_rollout(self, batch):
        self.guard.rollout(batch.responses, batch.mask, stop_token_ids=(EOS,), rows=batch.rows, filtered=3)


@pytest.mark.parametrize(
    ("kind", "steps", "expected"),
    [
        (DetachedLayer, 1, {"KLG841"}),
        (Poisoned, 1, {"KLG841"}),
        (OptimizerOfACopy, 3, {"KLG842"}),
        (ForgottenLayer, 3, {"KLG842"}),
        (Unclipped, 1, {"KLG843"}),
        (MeanOfMeans, 1, {"KLG844"}),
        (ZeroGradOfThePolicy, 1, {"KLG845"}),
        (SchedulerOfAnother, 2, {"KLG846"}),
        (ForeignChange, 1, {"KLG846"}),
        (SteppedForEachMinibatch, 4, {"KLG846"}),
        (SteppedForEachIteration, 4, set()),
        (SummedInBrain16, 1, {"KLG813"}),
        (SummedInFull, 2, set()),
        (Engine, 3, set()),
        (NeverSynced, 2, {"KLG852"}),
        (Synced, 3, set()),
        (CutOff, 5, {"KLG863"}),
        (NaNReward, 1, {"KLG864"}),
        (RewardOfTheNextRow, 3, {"KLG864"}),
        (MaskOfAnother, 1, {"KLG866"}),
        (WholeRowOfAnother, 1, {"KLG866"}),
        (Retokenised, 1, {"KLG867"}),
        (WithReplacement, 1, {"KLG868"}),
        (LastDropped, 1, {"KLG868"}),
        (FilteredBeforeScoring, 2, {"KLG869"}),
        (FilteredBeforeTheGuard, 1, {"KLG869"}),
    ],
)
def test_a_planted_bug_is_told_by_its_code_and_no_other(kind, steps, expected):
    assert codes(kind, steps) == expected


def test_log_probs_of_the_likeliest_token_are_foreign():
    assert codes(Shortest, 2, ignore=("KLG702",)) == {"KLG851"}


def test_a_value_head_that_does_not_learn_is_told(monkeypatch):
    monkeypatch.setattr(ValueHead, "WINDOW", 4)
    monkeypatch.setattr(ValueHead, "LATE", 6)
    assert codes(IdleValueHead, 6) == {"KLG861"}
    assert codes(Loop, 6) == set()


def test_a_collapsing_entropy_is_told(monkeypatch):
    monkeypatch.setattr(EntropyDrift, "FIRST", 1)
    monkeypatch.setattr(EntropyDrift, "STEPS", 2)
    assert codes(Sharpened, 6, kl_range=(0.0, 1000.0)) == {"KLG862"}
    assert codes(Loop, 6) == set()


MINE = {f"KLG{n}" for n in (841, 842, 843, 844, 845, 846, 862, 863, 864, 866, 867, 868, 869)}


@pytest.mark.parametrize("kind", [Loop, GroupLoop])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_correct_loops_are_silent_and_everything_was_looked_at(kind, seed):
    guard = run(type("Seeded", (kind,), {"seed": seed}), 6, strict=True)
    assert guard.findings == []
    assert guard.exercised >= MINE


class OwnMasters(torch.optim.AdamW):
    """Keeps master weights of its own, and copies them to the parameters behind the step of its parent."""

    off = 0.0

    def __init__(self, parameters, **options):
        parameters = list(parameters)
        super().__init__(parameters, **options)
        self.masters = [(p, p.detach() + self.off) for p in parameters]

    @torch.no_grad()
    def step(self, closure=None):
        before = [p.clone() for p, _ in self.masters]
        super().step(closure)
        for (parameter, master), old in zip(self.masters, before, strict=True):
            master += parameter - old
            parameter.copy_(master)


class StaleOwnMasters(OwnMasters):
    """Made before the parameters were loaded."""

    off = 0.05


@pytest.mark.parametrize(("kind", "codes"), [(OwnMasters, set()), (StaleOwnMasters, {"KLG846"})])
def test_what_a_subclass_does_behind_its_parents_step_belongs_to_the_step(kind, codes):
    class Masters(Loop):
        def make_optimizer(self):
            # an AdamW was made before: torch has hooked the parent's step() too, and calls the hooks inside step()
            super().make_optimizer()
            return kind(self.parameters(), lr=self.learning_rate)

    assert {finding.code for finding in run(Masters).findings} == codes


def test_a_step_that_failed_does_not_hide_the_next_one():
    class Failing(OwnMasters):
        failed = False

        def step(self, closure=None):
            super().step(closure)
            if not self.failed:
                self.failed = True
                raise FloatingPointError

    class Retries(Loop):
        def make_optimizer(self):
            super().make_optimizer()
            return Failing(self.parameters(), lr=self.learning_rate)

        def apply(self):
            try:
                super().apply()
            except FloatingPointError:
                super().apply()

    guard = run(Retries)
    assert guard._works.run.version == 2 * 4
    assert not guard.findings


class NeverSteps(Loop):
    """step() of the optimizer does nothing: a subclass of the trainer overrides it."""

    def apply(self):
        pass


class StepsUnseen(NeverSteps):
    """An engine of its own updates the weights; the optimizer that was named holds no state."""

    def apply(self):
        with torch.no_grad():
            for parameter in self.parameters():
                parameter -= self.learning_rate * parameter.grad if parameter.grad is not None else 0.0


class AccumulatesOverRollouts(NeverSteps):
    """One epoch each, whose gradients are kept for the update after the last rollout."""

    epochs = 1

    def zero_gradient(self):
        pass


def test_an_optimizer_that_never_steps_is_named():
    assert {finding.code for finding in run(NeverSteps, steps=3).findings} == {"KLG842"}
    assert not run(NeverSteps, steps=2).findings
    assert not run(AccumulatesOverRollouts, steps=4).findings
    assert "KLG842" not in {finding.code for finding in run(StepsUnseen, steps=4).findings}
