"""KLG803 from log-probs: the policy scored in place of its reference, with adapters and without."""

import dataclasses

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from klguard.findings import Severity  # noqa: E402
from klguard.guard import Guard  # noqa: E402

from .adapters import Adapted, AdapterStillOn, KeptAdapter, TrainedBefore  # noqa: E402
from .loop import Loop, run  # noqa: E402

torch.set_num_threads(1)


class Resumed(TrainedBefore):
    """The same adapter, with the optimizer's state of the steps that trained it."""

    def make_optimizer(self):
        optimizer = super().make_optimizer()
        for parameter in self.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        return optimizer


class Swapped(Loop):
    """There is a reference, and the policy is scored where it should be."""

    learning_rate = 1e-3

    def rollout(self):
        batch = super().rollout()
        return dataclasses.replace(batch, reference=batch.old, reference_logits=batch.logits)


class NotSwapped(Loop):
    learning_rate = 1e-3


class StandsStill(Swapped):
    """Updates that change nothing: the reference's log-probs are the policy's by right."""

    learning_rate = 0.0

    def tell_minibatch(self, *arguments):
        """The ratio does not move either."""


class ReferenceSetAnew(Swapped):
    """The reference is set to the policy at each rollout, on purpose."""

    def rollout(self):
        self.reference.load_state_dict(self.policy.state_dict())
        return Loop.rollout(self)


def codes(kind, steps=4, **options):
    return {finding.code for finding in run(kind, steps=steps, **options).findings}


@pytest.mark.parametrize("kind", (Adapted, NotSwapped), ids=lambda kind: kind.__name__)
def test_a_reference_that_is_scored_is_right(kind):
    guard = run(kind, steps=4)
    assert guard.findings == [] and "KLG803" in guard.exercised


@pytest.mark.parametrize("kind", (AdapterStillOn, Swapped), ids=lambda kind: kind.__name__)
def test_the_policy_in_place_of_the_reference_is_found_and_nothing_else(kind):
    assert codes(kind) == {"KLG803"}


@pytest.mark.parametrize(("kind", "expected"), [(Adapted, set()), (AdapterStillOn, {"KLG803"})])
def test_the_policy_given_as_its_own_reference(kind, expected):
    loop = kind()
    guard = Guard(loop.policy, loop.policy, loop.tokenizer, **loop.guard_arguments())
    loop.run(guard, 4)
    assert {finding.code for finding in guard.findings} == expected


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(TrainedBefore, {"KLG801"}), (KeptAdapter, set()), (Resumed, set())],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_adapter_that_was_trained_before(kind, expected):
    findings = run(kind, steps=2).findings
    assert {finding.code for finding in findings} == expected
    assert all(finding.severity is Severity.WARNING for finding in findings)


def test_without_an_update_nobody_knows_whether_the_run_is_fresh():
    class NotTrained(TrainedBefore):
        def apply(self):
            pass

    assert codes(NotTrained, steps=1) == set()


def test_value_heads_in_both_models_do_not_tell_them_apart():
    """Only the head learns at first: log-probs are equal by right, and the heads of both began at random."""
    loop = StandsStill()
    for model in (loop.policy, loop.reference):
        model.v_head = torch.nn.Linear(32, 32, bias=False)
    guard = Guard(loop.policy, loop.reference, loop.tokenizer, **loop.guard_arguments())
    loop.run(guard, 4)
    assert "KLG803" not in {finding.code for finding in guard.findings}


def test_what_to_do_depends_on_the_adapter():
    (found,) = run(AdapterStillOn, steps=4).findings
    assert "disable_adapter" in found.help and "adapter is not 0" in found.message
    (found,) = run(Swapped, steps=4).findings
    assert "reference model" in found.help


def test_equal_weights_give_equal_log_probs():
    assert "KLG803" not in codes(StandsStill)


def test_a_reference_that_follows_on_purpose_is_not_this():
    assert codes(ReferenceSetAnew, ignore=["KLG802"]) == set()


def test_a_kl_of_weight_zero_has_no_reference():
    assert codes(AdapterStillOn, kl_coef=0.0) == set()


def test_a_restart_between_two_steps_changes_nothing():
    loop = AdapterStillOn()
    guard = Guard(loop.policy, loop.reference, loop.tokenizer, **loop.guard_arguments())
    loop.run(guard, 3)
    assert guard.findings == []
    again = Guard(loop.policy, loop.reference, loop.tokenizer, **loop.guard_arguments())
    again.load_state_dict(guard.state_dict())
    loop.run(again, 1)
    assert {finding.code for finding in again.findings} == {"KLG803"}
