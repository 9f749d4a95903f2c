"""KLG841 to KLG846 on their own: what a healthy optimizer does in unusual runs, and what they leave behind."""

from __future__ import annotations

import copy
import math
import random

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from klguard.guard.events import Advantages, Preflight, Update  # noqa: E402
from klguard.guard.invariants import Run  # noqa: E402
from klguard.guard.invariants.accumulation import Accumulation  # noqa: E402
from klguard.guard.invariants.leftover import LeftoverGradient  # noqa: E402
from klguard.guard.invariants.optimiser import (  # noqa: E402
    DeadGradient,
    OptimizerParameters,
    UnclippedGradient,
)
from klguard.guard.invariants.scheduling import Scheduling  # noqa: E402
from klguard.guard.invariants.updates import measured  # noqa: E402

from .harness import Player  # noqa: E402

torch.set_num_threads(1)


class Training:
    """Steps of an optimizer, with its events told to one invariant."""

    def __init__(self, kind, policy=None, *, optimizer=None, others=(), **run):
        torch.manual_seed(0)
        self.policy = policy or nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        parameters = [*self.policy.parameters(), *(p for module in others for p in module.parameters())]
        self.optimizer = optimizer or torch.optim.AdamW(parameters, lr=1e-3)
        self.player = Player(kind, Run(policy=self.policy, **run))

    @property
    def invariant(self):
        return self.player.invariant

    def loss(self):
        return self.policy(torch.randn(16, 4, dtype=next(self.policy.parameters()).dtype)).square().sum()

    def update(self):
        self.optimizer.zero_grad()
        self.loss().backward()
        self.prepare()
        yield from self.apply()

    def prepare(self):
        pass

    def apply(self):
        yield Update(optimizer=self.optimizer, after=False)
        self.optimizer.step()
        yield Update(optimizer=self.optimizer, after=True)

    def step(self, updates=2, before=()):
        return self.player.step([*before, *()] if not updates else self._events(updates, before))

    def _events(self, updates, before):
        yield from before
        for _ in range(updates):
            yield from self.update()


def found(training, steps=4, **options):
    return [breach for _ in range(steps) for breach in training.step(**options)]


# --- KLG841 ---------------------------------------------------------------------------------------------------


class Adapted(nn.Module):
    """A low-rank adapter: until B moved, A has no gradient."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.zeros(2, 2))
        self.base = nn.Linear(4, 2).requires_grad_(False)

    def forward(self, inputs):
        return self.base(inputs) + inputs @ self.a @ self.b


def test_an_adapter_whose_first_factor_waits_is_alive():
    training = Training(DeadGradient, Adapted())
    assert found(training, updates=1, steps=6) == []
    assert training.invariant.exercised


def test_a_tensor_that_never_gets_a_gradient_is_named():
    class Half(Training):
        def prepare(self):
            self.policy[0].weight.grad = None

    (breach,) = found(Half(DeadGradient), steps=2)
    assert (
        breach.key == "dead" and breach.message.endswith("0.weight") and breach.value == pytest.approx(0.25)
    )
    assert breach.severity.value == "warning"


class Clipped(Training):
    """Clips to a norm of 0, until `released`."""

    released = False

    def prepare(self):
        if not self.released:
            nn.utils.clip_grad_norm_(self.policy.parameters(), 0.0)


def test_a_gradient_that_is_0_from_the_start_is_found():
    training = Clipped(DeadGradient)
    assert found(training, steps=4) == []
    (breach,) = found(training, steps=3)
    assert (breach.key, breach.severity.value) == ("zero", "warning") and "clip" in breach.help


def test_a_gradient_of_0_after_others_is_not():
    training = Clipped(DeadGradient)
    training.released = True
    assert found(training, steps=1) == []
    training.released = False
    assert found(training, steps=8) == []


def test_experts_may_wait_for_tokens():
    class Routed(Training):
        def loss(self):
            return self.policy.dense(torch.randn(16, 4)).square().sum()

    policy = nn.ModuleDict({"dense": nn.Linear(4, 4), "experts": nn.ModuleList([nn.Linear(4, 4)] * 2)})
    policy = nn.ModuleDict({"layer": policy, "dense": policy["dense"]})
    assert found(Routed(DeadGradient, policy)) == []


def test_a_gradient_of_zero_is_told_only_where_the_advantages_are_not_zero():
    class Flat(Training):
        def loss(self):
            return super().loss() * 0

    def told(size):
        values = torch.full((2, 3), size)
        return found(Flat(DeadGradient), before=[Advantages(advantages=values, mask=torch.ones(2, 3))])

    assert told(0.0) == []
    assert {breach.key for breach in told(1.0)} == {"zero"}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_told_at_once(bad):
    class Poisoned(Training):
        def prepare(self):
            self.policy[0].bias.grad[1] = bad

    (breach,) = Poisoned(DeadGradient).step(updates=1)
    assert breach.key == "not finite"


def test_a_step_that_a_scaler_may_skip_is_not_judged():
    class Overflowed(Training):
        def prepare(self):
            self.policy[0].bias.grad[1] = float("inf")
            self.optimizer.found_inf = torch.ones(())

    class Skipping(torch.optim.SGD):
        def step(self, closure=None):
            return None

    policy = nn.Sequential(nn.Linear(4, 2))
    for kind in (DeadGradient, UnclippedGradient, OptimizerParameters):
        optimizer = Skipping(policy.parameters(), lr=0.1)
        assert found(Overflowed(kind, policy, optimizer=optimizer, max_grad_norm=1.0)) == []


def test_norms_are_those_of_float64_in_every_precision():
    for dtype, limit in ((torch.float32, 1e-6), (torch.bfloat16, 1e-6), (torch.float16, 1e-6)):
        parameters = [
            nn.Parameter(torch.zeros(50, 7, dtype=dtype)),
            nn.Parameter(torch.zeros(3, dtype=dtype)),
        ]
        parameters[0].grad = (torch.randn(50, 7) * 300).to(dtype)
        expected = parameters[0].grad.double().norm()
        found = measured(parameters)
        assert abs(float(found.norms[0]) / float(expected) - 1) < limit and float(found.norms[1]) == 0


# --- KLG842 ---------------------------------------------------------------------------------------------------


def test_no_learning_rate_no_gradient_and_no_change_in_bf16_for_a_while_are_healthy():
    policy = nn.Sequential(nn.Linear(4, 2))
    idle = torch.optim.AdamW(policy.parameters(), lr=0.0)
    assert found(Training(OptimizerParameters, policy, optimizer=idle)) == []

    class Flat(Training):
        def loss(self):
            return super().loss() * 0

    assert found(Flat(OptimizerParameters)) == []
    rough = nn.Sequential(nn.Linear(4, 2)).bfloat16()
    slow = torch.optim.AdamW(rough.parameters(), lr=1e-9)
    training = Training(OptimizerParameters, rough, optimizer=slow)
    assert found(training, steps=18) == []
    assert training.invariant.share == 0.0
    assert {b.severity.value for b in found(training, steps=3)} == {"warning"}


def test_masters_in_higher_precision_are_not_taken_for_another_model():
    class Masters(Training):
        def apply(self):
            for own, master in zip(self.policy.parameters(), self.masters, strict=True):
                master.grad = own.grad.float()
            yield from super().apply()
            with torch.no_grad():
                for own, master in zip(self.policy.parameters(), self.masters, strict=True):
                    own.copy_(master)

    policy = nn.Sequential(nn.Linear(4, 2)).bfloat16()
    masters = [nn.Parameter(p.detach().float()) for p in policy.parameters()]
    training = Masters(OptimizerParameters, policy, optimizer=torch.optim.AdamW(masters, lr=1e-2))
    training.masters = masters
    assert found(training) == [] and training.invariant.share > 0.5


def test_a_value_head_with_an_optimizer_of_its_own_is_owned():
    class Two(Training):
        def apply(self):
            yield from super().apply()
            yield Update(optimizer=self.second, after=False)
            self.second.step()
            yield Update(optimizer=self.second, after=True)

    policy = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    training = Two(OptimizerParameters, policy, optimizer=torch.optim.Adam(policy[0].parameters()))
    training.second = torch.optim.Adam(policy[1].parameters())
    assert found(training, steps=5) == []
    alone = Training(OptimizerParameters, policy, optimizer=torch.optim.Adam(policy[0].parameters()))
    assert [breach.key for breach in found(alone, steps=5)] == ["not owned"]


def test_updates_of_a_value_model_say_nothing_about_the_policy():
    critic = torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1)
    training = Training(OptimizerParameters)
    training.step(updates=1)  # its gradients stay where they are
    player = training.player
    for _ in range(4):
        assert player.step([Update(optimizer=critic, after=after) for after in (False, True)] * 3) == []


@pytest.mark.parametrize(("rate", "keys"), [(1e-6, {"rounded"}), (1e-2, set())])
def test_updates_that_half_precision_rounds_away_are_told(rate, keys):
    policy = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2)).bfloat16()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.fill_(0.5)
    training = Training(
        OptimizerParameters, policy, optimizer=torch.optim.AdamW(policy.parameters(), lr=rate)
    )
    with torch.no_grad():
        policy[0].bias[:1] = 1e-6  # a few weights near 0 do move
    assert {breach.key for breach in found(training, steps=13)} == keys


# --- KLG843 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_clipped_gradient_passes_and_an_unclipped_one_does_not(dtype):
    class Clipped(Training):
        def prepare(self):
            nn.utils.clip_grad_norm_(self.policy.parameters(), 0.1)

    policy = nn.Sequential(nn.Linear(4, 64), nn.Linear(64, 2)).to(dtype)
    optimizer = torch.optim.SGD(policy.parameters(), lr=1e-4)
    assert found(Clipped(UnclippedGradient, policy, optimizer=optimizer, max_grad_norm=0.1)) == []
    breaches = found(Training(UnclippedGradient, policy, optimizer=optimizer, max_grad_norm=0.1), steps=1)
    assert breaches[0].value > 0.1


def test_a_value_head_beside_the_policy_may_go_unclipped():
    head = nn.Linear(4, 1)

    class WithHead(Training):
        def loss(self):
            return super().loss() + 1000 * head(torch.randn(16, 4)).square().sum()

        def prepare(self):
            nn.utils.clip_grad_norm_(self.policy.parameters(), 0.1)

    assert found(WithHead(UnclippedGradient, others=[head], max_grad_norm=0.1)) == []


# --- KLG844 ---------------------------------------------------------------------------------------------------


def accumulation(weights, noise=0.0, **run):
    torch.manual_seed(0)
    policy = nn.Sequential(nn.Linear(4, 2), nn.Dropout(noise), nn.BatchNorm1d(2, affine=False))
    policy[2].eval()
    data = torch.randn(4, 4)

    def accumulate(batches):
        random.random()
        for rows in batches:
            policy.train()
            policy[2].eval()
            (policy(data[rows]).square().sum() * weights(rows)).backward()

    return policy, accumulate


def test_sums_over_the_whole_batch_accumulate_and_means_of_micro_batches_do_not():
    for weights, size in ((lambda rows: 1 / 4, 0), (lambda rows: 1 / len(rows), 1)):
        policy, accumulate = accumulation(weights)
        player = Player(Accumulation, Run(policy=policy))
        assert len(player.step([Preflight(accumulate=accumulate)])) == size
        assert player.invariant.exercised


def test_noise_is_not_taken_for_a_wrong_division():
    policy, accumulate = accumulation(lambda rows: 1 / 4, noise=0.5)
    player = Player(Accumulation, Run(policy=policy))
    assert player.step([Preflight(accumulate=accumulate)]) == [] and not player.invariant.exercised


def test_a_trial_leaves_nothing_behind():
    policy, accumulate = accumulation(lambda rows: 1 / 4, noise=0.5)
    head = nn.Linear(2, 1)
    policy[0].weight.grad = kept = torch.ones_like(policy[0].weight)
    policy.eval()
    state, python = torch.get_rng_state(), random.getstate()

    def with_head(batches):
        accumulate(batches)
        head(policy(torch.randn(3, 4))).sum().backward()
        with torch.no_grad():
            policy[2].running_mean.add_(1)

    Player(Accumulation, Run(policy=policy)).step([Preflight(accumulate=with_head)])
    assert policy[0].weight.grad is kept and torch.equal(kept, torch.ones_like(kept))
    assert policy[0].bias.grad is None and head.weight.grad is None
    assert not any(module.training for module in policy.modules())
    assert torch.equal(torch.get_rng_state(), state) and random.getstate() == python
    assert torch.equal(policy[2].running_mean, torch.zeros(2))


# --- KLG845 ---------------------------------------------------------------------------------------------------


class MicroBatches(Training):
    set_to_none = True

    def update(self):
        self.optimizer.zero_grad(set_to_none=self.set_to_none)
        for _ in range(3):
            self.loss().backward()
        yield from self.apply()


@pytest.mark.parametrize("none", [True, False])
def test_micro_batches_are_no_leftovers(none):
    training = MicroBatches(LeftoverGradient)
    training.set_to_none = none
    assert found(training) == [] and training.invariant.exercised


@pytest.mark.parametrize("none", [True, False])
def test_micro_batches_whose_gradients_are_thrown_away_are_told(none):
    class ZeroedEach(MicroBatches):
        def update(self):
            for _ in range(3):
                self.optimizer.zero_grad(set_to_none=self.set_to_none)
                self.loss().backward()
            yield from self.apply()

    training, right = ZeroedEach(Accumulation), MicroBatches(Accumulation)
    training.set_to_none = right.set_to_none = none
    assert {breach.key for breach in found(training)} == {"gone"}
    assert found(right) == [] and right.invariant.exercised


def test_a_gradient_that_is_clipped_after_each_micro_batch_is_told():
    class ClippedEach(MicroBatches):
        def update(self):
            self.optimizer.zero_grad()
            for _ in range(3):
                self.loss().backward()
                nn.utils.clip_grad_norm_(self.policy.parameters(), 1e-3)
            yield from self.apply()

    class RunningMean(MicroBatches):
        """Each micro-batch joins the mean of those before it."""

        def update(self):
            self.optimizer.zero_grad()
            for count in range(3):
                for parameter in self.policy.parameters():
                    if parameter.grad is not None:
                        parameter.grad.mul_(count / (count + 1))
                (self.loss() / (count + 1)).backward()
            yield from self.apply()

    assert {breach.key for breach in found(ClippedEach(Accumulation))} == {"scaled"}
    right = RunningMean(Accumulation)
    assert found(right) == [] and right.invariant.exercised


def test_one_backward_for_each_update_and_gradients_that_are_asked_for_aside_are_no_loss():
    class Aside(Training):
        def update(self):
            self.optimizer.zero_grad()
            torch.autograd.grad(self.loss(), list(self.policy.parameters()))
            torch.autograd.grad(self.loss(), list(self.policy.parameters()))
            self.loss().backward()
            yield from self.apply()

    for kind in (Training, Aside):
        training = kind(Accumulation)
        assert found(training) == [] and not training.invariant.exercised


def test_an_update_whose_gradients_are_dropped_once_is_no_habit():
    class Skips(MicroBatches):
        def update(self):
            self.count = getattr(self, "count", 0) + 1
            self.optimizer.zero_grad()
            self.loss().backward()
            if self.count % 2:
                self.optimizer.zero_grad()
            self.loss().backward()
            yield from self.apply()

    assert found(Skips(Accumulation), steps=7) == []


def test_gradients_that_stay_are_told_and_the_hooks_change_nothing_and_go():
    class Never(Training):
        def update(self):
            self.loss().backward()
            yield from self.apply()

    watched, free = Never(LeftoverGradient), Never(DeadGradient)
    torch.manual_seed(5)
    breaches = found(watched)
    torch.manual_seed(5)
    found(free)
    assert breaches and breaches[0].value > 0
    assert breaches[0].message.endswith(("weight", "bias"))
    assert not any(p._backward_hooks for p in copy.deepcopy(watched.policy).parameters())
    for one, other in zip(watched.policy.parameters(), free.policy.parameters(), strict=True):
        assert torch.equal(one, other)
    watched.invariant.close()
    assert not any(p._backward_hooks for p in watched.policy.parameters())


def test_a_failure_in_a_hook_is_raised_when_the_step_is_judged(monkeypatch):
    training = Training(LeftoverGradient)
    training.step()

    def fail(*_):
        raise RuntimeError("planted")

    monkeypatch.setattr(training.invariant, "add", fail)
    with pytest.raises(RuntimeError, match="planted"):
        training.step()


# --- KLG846 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"betas": (0.0, 0.999)}, {"weight_decay": 10.0}, {"amsgrad": True}])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_adam_never_moves_further_than_its_limit(kind, options):
    policy = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    optimizer = kind(policy.parameters(), lr=0.05, **options)

    class Bursts(Training):
        def loss(self):  # gradients that are tiny for long, and then large
            self.count = getattr(self, "count", 0) + 1
            return super().loss() * (1e4 if self.count % 20 == 0 else 1e-4)

    training = Bursts(Scheduling, policy, optimizer=optimizer)
    assert found(training, steps=30) == [] and training.invariant.exercised


def test_another_change_inside_the_step_is_told():
    training = Training(Scheduling)
    training.optimizer.register_step_post_hook(lambda *_: training.policy[0].weight.data.mul_(0.5))
    assert {breach.key for breach in found(training, steps=1)} == {"change"}


def test_schedulers_of_the_same_of_another_and_of_an_old_optimizer():
    training = Training(Scheduling)
    own = torch.optim.lr_scheduler.LambdaLR(training.optimizer, lambda _: 1.0)
    training.player.run.scheduler = own
    assert found(training) == []

    training = Training(Scheduling)
    stale = torch.optim.AdamW(training.policy.parameters(), lr=1.0)
    training.player.run.scheduler = torch.optim.lr_scheduler.LambdaLR(stale, lambda _: 1.0)
    assert [breach.key for breach in found(training)] == ["another optimizer"]

    training = Training(Scheduling)
    training.player.run.scheduler = torch.optim.lr_scheduler.LambdaLR(training.optimizer, lambda _: 1.0)
    training.optimizer.add_param_group({"params": nn.Linear(2, 2).parameters()})
    assert [breach.key for breach in found(training)] == ["groups"]


def test_a_scheduler_of_the_value_model_is_left_alone_once_that_steps():
    training = Training(Scheduling)
    critic = torch.optim.AdamW(nn.Linear(2, 1).parameters(), lr=1.0)
    training.player.run.scheduler = torch.optim.lr_scheduler.LambdaLR(critic, lambda _: 1.0)
    critic.step()
    assert found(training) == []


def at_rates(rates):
    """The findings of a run whose steps have these learning rates."""
    training, keys = Training(Scheduling), []
    for rate in rates:
        training.optimizer.param_groups[0]["lr"] = rate
        keys.append([breach.key for breach in training.step()])
    return keys


def test_a_schedule_that_has_come_to_its_end():
    assert at_rates([1e-3, 0.0, 0.0, 0.0]) == [[], [], [], ["spent"]]
    assert at_rates([1e-3, 5e-4, 0.0, 0.0]) == [[]] * 4  # the last steps of a run
    assert at_rates([0.0, 0.0, 0.0, 0.0, 1e-3]) == [[]] * 5  # a warm-up, or a critic that learns first
    assert at_rates([1e-3, 0.0, 0.0, 1e-3, 0.0, 0.0]) == [[]] * 6
    assert at_rates([1e-3, 1e-9, 1e-9, 1e-9, 1e-9]) == [[]] * 5


@pytest.mark.parametrize(
    ("rate", "keys"),
    [
        (lambda i: max(0.0, 0.5 * (1 + math.cos(math.pi * i / 8))), {"climbs"}),  # steps four times as often
        (lambda i: max(0.0, 0.5 * (1 + math.cos(math.pi * min(i, 8) / 8))), set()),
        (lambda i: 0.5 * (1 + math.cos(math.pi * (i % 9) / 8)), set()),  # hard restarts
        (lambda i: min(1.0, i / 5), set()),  # a warm-up
        (lambda i: 0.5 + 0.4 * math.cos(i), set()),
    ],
)
def test_a_schedule_beyond_its_end_climbs_again(rate, keys):
    class Scheduled(Training):
        def update(self):
            number = self.number = getattr(self, "number", -1) + 1
            self.optimizer.param_groups[0]["lr"] = 1e-3 * rate(number)
            yield from super().update()

    assert {breach.key for breach in found(Scheduled(Scheduling), steps=16)} - {"spent"} == keys


def test_a_rate_that_is_zero_from_the_start():
    assert at_rates([0.0] * 12) == [[]] * 9 + [["never"], ["never"], ["never"]]


def resumed(first, *, states=()):
    """The keys of a run that takes up the state of the guard after `first`, and that of `states`."""
    second = Training(Scheduling)
    second.player.run.scheduler = torch.optim.lr_scheduler.LambdaLR(second.optimizer, decay)
    second.invariant.load_state_dict(first.invariant.state_dict())
    if "optimizer" in states:
        second.optimizer.load_state_dict(first.optimizer.state_dict())
    if "scheduler" in states:
        second.player.run.scheduler.load_state_dict(first.player.run.scheduler.state_dict())
    return [breach.key for breach in found(second, steps=3)]


def test_what_is_not_taken_up_after_a_restart():
    first = Training(Scheduling)
    first.player.run.scheduler = torch.optim.lr_scheduler.LambdaLR(first.optimizer, decay)
    assert resumed(first) == []  # saved before the first update
    for _ in range(3):
        assert found(first, steps=1) == []
        first.player.run.scheduler.step()
    assert resumed(first, states=("optimizer", "scheduler")) == []
    assert resumed(first, states=("optimizer",)) == ["fresh schedule"]
    assert resumed(first, states=("scheduler",)) == ["fresh optimizer"]


def test_a_rate_of_zero_of_one_group_is_no_end():
    training = Training(Scheduling)
    training.optimizer.add_param_group({"params": nn.Linear(2, 2).parameters(), "lr": 0.0})
    assert found(training, steps=6) == []


def test_an_end_is_found_across_a_restart():
    first, second = Training(Scheduling), Training(Scheduling)
    for rate in (1e-3, 0.0, 0.0):
        first.optimizer.param_groups[0]["lr"] = rate
        assert found(first, steps=1) == []
    second.invariant.load_state_dict(first.invariant.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.optimizer.param_groups[0]["lr"] = 0.0
    assert [breach.key for breach in found(second, steps=1)] == ["spent"]


def decay(update):
    return max(0.0, 1 - update / 100)


@pytest.mark.parametrize(
    ("schedule", "every", "keys"),
    [
        (decay, None, ["forgotten"]),
        (decay, 1, []),
        (decay, 15, []),  # once in a while
        (lambda update: 1.0, None, []),  # a constant is the same whether it is stepped or not
    ],
)
def test_a_schedule_that_is_never_stepped(schedule, every, keys):
    training, told = Training(Scheduling), []
    scheduler = torch.optim.lr_scheduler.LambdaLR(training.optimizer, schedule)
    training.player.run.scheduler = scheduler
    for step in range(1, 26):
        told += [breach.key for breach in training.step()]
        if every and step % every == 0:
            scheduler.step()
    assert sorted(set(told)) == keys


# --- an optimizer that steps without a gradient -----------------------------------------------------------------


@pytest.mark.parametrize("kind", [DeadGradient, OptimizerParameters, UnclippedGradient, Scheduling])
def test_a_step_without_any_gradient_is_measured(kind):
    training = Training(kind, max_grad_norm=1.0)
    training.prepare = training.optimizer.zero_grad
    assert found(training, steps=3) == []  # without advantages nobody knows whether there should be one


def test_steps_without_any_gradient_are_told_where_there_is_a_signal():
    training = Training(DeadGradient)
    training.prepare = training.optimizer.zero_grad
    advantages = Advantages(advantages=torch.ones(4, 3), mask=torch.ones(4, 3, dtype=torch.bool))
    assert "zero" in {breach.key for breach in found(training, steps=3, before=(advantages,))}
