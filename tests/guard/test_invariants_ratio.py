"""KLG831 to KLG833 and KLG838: the ratio and what it is made of."""

import math
import subprocess
import sys
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from klguard.findings import Severity  # noqa: E402
from klguard.guard.events import KL, Minibatch, Rollout, Scoring  # noqa: E402
from klguard.guard.invariants import Run  # noqa: E402
from klguard.guard.invariants.ratio import (  # noqa: E402
    ClipFraction,
    FirstRatio,
    RatioBounded,
    WellFormedLogProbs,
)

from .harness import Player, play  # noqa: E402

SHAPE = (8, 50)


def draw(shape=SHAPE, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def minibatch(difference=0.0, *, dtype=torch.float32, **details):
    """New log-probs that are `difference` above the old ones; NaN in the last column, which is masked."""
    old = -draw().abs() - 1.0
    new = old + difference
    mask = torch.ones(SHAPE, dtype=torch.bool)
    mask[:, -1] = False
    old[:, -1], new[:, -1] = torch.nan, 3.0
    return Minibatch(new=new, old=old, mask=mask, dtype=dtype, **details)


def found(kind, *events, run=None):
    return [breach for _, breach in play(kind, [events], run)]


# --------------------------------------------------------------------------------------------------- first ratio


@pytest.mark.parametrize(
    ("noise", "dtype", "passes"),
    [
        (0.0, torch.float32, True),
        (1e-5, torch.float32, True),
        (1e-3, torch.float32, False),
        (4e-3, torch.bfloat16, True),
        (1e-2, torch.float16, True),
        (0.1, torch.bfloat16, False),
    ],
)
def test_noise_of_the_precision_passes(noise, dtype, passes):
    event = minibatch(noise * draw(seed=1), dtype=dtype, first=True)
    assert (found(FirstRatio, event) == []) is passes


def test_dropout_and_temperature_are_found_in_half_precision():
    for difference in (0.3 * draw(seed=1), 0.02 * draw(seed=2).abs()):
        (breach,) = found(FirstRatio, minibatch(difference, dtype=torch.bfloat16, first=True))
        assert "half precision" in breach.message


def test_a_single_token_beyond_rounding_is_found():
    one = torch.zeros(SHAPE)
    one[3, 4] = 1.5
    assert len(found(FirstRatio, minibatch(one, dtype=torch.bfloat16, first=True))) == 1


def test_old_log_probs_of_an_engine_that_may_lag_behind_are_no_recomputation():
    event = minibatch(0.3 * draw(seed=1), first=True)
    responses = torch.zeros(SHAPE, dtype=torch.long)
    scoring = Scoring(logprobs=event.new, mask=event.mask, sampler_logprobs=event.old)
    order = torch.randperm(SHAPE[0], generator=torch.Generator().manual_seed(2))
    part = order[:5]
    shuffled = replace(event, new=event.new[part], old=event.old[part], mask=event.mask[part], rows=part)
    for told in (event, shuffled):
        assert found(FirstRatio, Rollout(responses=responses, allowed_lag=1), scoring, told) == []
        assert len(found(FirstRatio, Rollout(responses=responses), scoring, told)) == 1
        other = replace(scoring, sampler_logprobs=event.old + 0.1)
        assert len(found(FirstRatio, Rollout(responses=responses, allowed_lag=1), other, told)) == 1


def test_a_ratio_that_stays_1_over_epochs_is_told_without_a_clip_range():
    def steps(**told):
        later = minibatch(0.0, by_construction=True, **told)
        return [breach.key for _, breach in play(ClipFraction, [[later]] * 3)]

    assert steps(epoch=1) == ["still"]
    assert steps(epoch=0) == [] and steps() == []


def test_later_minibatches_and_ratios_by_construction_are_not_looked_at():
    player = Player(FirstRatio)
    assert player.step([minibatch(1.0), minibatch(1.0, first=True, by_construction=True)]) == []
    assert not player.invariant.exercised


def test_a_model_that_accelerate_runs_under_autocast_counts_as_half_precision():
    policy = torch.nn.Linear(1, 1)
    event = minibatch(3e-3 * draw(seed=1), first=True)
    assert len(found(FirstRatio, event, run=Run(policy=policy))) == 1
    policy._original_forward = policy.forward
    assert found(FirstRatio, event, run=Run(policy=policy)) == []


TF32 = """
import torch
from klguard.guard.invariants.ratio import _tf32
matmul = torch.backends.cuda.matmul
print(_tf32())
matmul.allow_tf32 = True
print(_tf32())
matmul.allow_tf32 = False
print(_tf32())
if hasattr(matmul, "fp32_precision"):
    matmul.fp32_precision = "tf32"  # from here on, matmul.allow_tf32 raises
    print(_tf32())
"""


def test_tf32_is_seen_in_whatever_way_it_was_set():
    """In a process of its own, for torch keeps the state."""
    said = subprocess.run([sys.executable, "-c", TF32], capture_output=True, text=True, check=True).stdout
    newer = hasattr(torch.backends.cuda.matmul, "fp32_precision")
    assert said.split() == ["False", "True", "False"] + ["True"] * newer


def test_an_empty_mask_passes():
    empty = Minibatch(new=draw(), old=draw(seed=1), mask=torch.zeros(SHAPE, dtype=torch.bool), first=True)
    for kind in (FirstRatio, RatioBounded, ClipFraction, WellFormedLogProbs):
        assert play(kind, [[empty]] * 6) == []


# ------------------------------------------------------------------------------------------------ bounded ratio


def test_small_updates_pass():
    assert play(RatioBounded, [[minibatch(0.1 * draw(seed=k))] for k in range(6)]) == []


def test_an_excess_has_to_last_unless_it_is_extreme():
    middling, extreme = minibatch(0.35), minibatch(1.2)
    result = play(RatioBounded, [[middling]] * 4)
    assert [step for step, _ in result] == [2, 3]
    assert "three steps" in result[0][1].message
    assert play(RatioBounded, [[middling], [middling], [minibatch(0.0)], [middling]]) == []
    assert [step for step, _ in play(RatioBounded, [[extreme]])] == [0]


def test_an_extreme_spread_around_a_mean_of_one_is_told_at_once():
    apart = torch.where(torch.arange(SHAPE[1]) % 2 == 0, 0.6, -2.5).expand(SHAPE)
    (breach,) = found(RatioBounded, minibatch(apart))
    assert breach.value > 0.5 and "mean ratio is 0.9" in breach.message


def test_a_stray_token_passes_and_an_overflow_is_told():
    one = torch.zeros(SHAPE)
    one[0, 0] = math.log(12)
    quiet = [minibatch(0.0) for _ in range(4)]
    assert play(RatioBounded, [[*quiet, minibatch(one)]] * 5) == []
    one[0, 0] = 1000.0
    assert len(found(RatioBounded, minibatch(one))) == 1


# ------------------------------------------------------------------------------------------------- clip fraction


def test_many_clipped_tokens_for_three_steps():
    high = minibatch(0.5, clip_range=(0.2, 0.2))
    result = play(ClipFraction, [[high]] * 3)
    assert [(step, breach.key) for step, breach in result] == [(2, "high")]
    assert "1.00, 1.00, 1.00" in result[0][1].message
    low = minibatch(0.05, clip_range=(0.2, 0.2))
    assert play(ClipFraction, [[high], [high], [low], [high], [high]]) == []


def test_a_ratio_that_never_moves():
    still = [minibatch(0.0, first=True, clip_range=(0.2, 0.2)), minibatch(0.0, clip_range=(0.2, 0.2))]
    result = play(ClipFraction, [still] * 3)
    assert [(step, breach.key) for step, breach in result] == [(2, "still")]
    on_policy = [minibatch(0.0, first=True, clip_range=(0.2, 0.2))]
    assert play(ClipFraction, [on_policy] * 6) == []
    tiny = [minibatch(1e-6, clip_range=(0.2, 0.2))]
    assert play(ClipFraction, [tiny] * 6) == []


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_a_reported_fraction_before_the_first_update(kind):
    def first(difference, reported):
        return minibatch(
            difference, first=True, clip_range=(0.2, 0.2), reported={"clip_fraction": kind(reported)}
        )

    (breach,) = found(ClipFraction, first(0.0, 0.25))
    assert breach.key == "first"
    assert found(ClipFraction, first(0.0, 0.0)) == []
    assert found(ClipFraction, first(0.5, 1.0)) == []  # KLG831's business
    later = minibatch(0.1, clip_range=(0.2, 0.2), reported={"clip_fraction": kind(0.25)})
    assert found(ClipFraction, later) == []


def test_windows_survive_a_restart():
    for kind, event in (
        (ClipFraction, minibatch(0.5, clip_range=(0.2, 0.2))),
        (RatioBounded, minibatch(0.35)),
    ):
        player, fresh = Player(kind), Player(kind)
        assert player.step([event]) == player.step([event]) == []
        fresh.invariant.load_state_dict(player.invariant.state_dict())
        assert len(fresh.step([event])) == 1


# ------------------------------------------------------------------------------------------------- log-probs


def scoring(change=None, name="policy"):
    values = {key: -draw().abs() for key in ("policy", "reference", "sampler", "stale")}
    mask = torch.ones(SHAPE, dtype=torch.bool)
    mask[:, -1] = False
    for tensor in values.values():
        tensor[:4, -1] = torch.tensor([torch.nan, torch.inf, 5.0, -torch.inf])
    if change is not None:
        values[name][2, 3] = change
    return Scoring(
        logprobs=values["policy"],
        mask=mask,
        reference_logprobs=values["reference"],
        sampler_logprobs=values["sampler"],
        stale_logprobs=values["stale"],
    )


@pytest.mark.parametrize("value", [None, 0.0, 7e-5, -1e30])
def test_log_probs_pass(value):
    assert found(WellFormedLogProbs, scoring(value)) == []


@pytest.mark.parametrize("name", ["policy", "reference", "sampler", "stale"])
@pytest.mark.parametrize(
    ("value", "key"), [(torch.nan, "nan"), (torch.inf, "inf"), (-torch.inf, "zero"), (0.5, "above")]
)
def test_each_malformation_has_its_message(name, value, key):
    (breach,) = found(WellFormedLogProbs, scoring(value, name))
    assert breach.key == f"{name}-{key}"
    assert breach.message.startswith("1 of 392")
    assert (breach.severity is Severity.WARNING) is (name == "sampler" and key == "nan")


def test_minibatches_and_kl_are_looked_at_too():
    event = minibatch(2.0 + 0.1 * draw())
    keys = {breach.key for breach in found(WellFormedLogProbs, event)}
    assert keys == {"new-above"}
    good = -draw().abs()
    kl = KL(values=good, logprobs=good, reference_logprobs=-good, mask=event.mask, estimator="k1")
    assert {breach.key for breach in found(WellFormedLogProbs, kl)} == {"reference-above"}


def test_another_number_of_log_probs_than_tokens():
    mask = torch.ones(SHAPE, dtype=torch.bool)
    event = Scoring(logprobs=-draw().abs()[:, 1:], mask=mask)
    (breach,) = found(WellFormedLogProbs, event)
    assert breach.key == "policy-shape" and "(8, 49)" in breach.message
