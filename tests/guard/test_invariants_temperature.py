"""KLG705 by itself: which temperature a row was scored at, and what loop and sampler say of it."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from klguard.guard.events import Minibatch, Rollout, Scoring, StepEnd  # noqa: E402
from klguard.guard.invariants import Run  # noqa: E402
from klguard.guard.invariants.temperature import ScoringTemperature  # noqa: E402
from klguard.guard.rescoring import SLOTS, Given, diagnosis  # noqa: E402
from tests.guard.harness import NoSynchronisation, Player  # noqa: E402


def given(logits, temperature, noise=0.0, tokens=None):
    generator = torch.Generator().manual_seed(1)
    scaled = (logits / temperature).double().log_softmax(-1)
    if tokens is None:
        tokens = torch.multinomial(scaled.exp(), 1, generator=generator)[:, 0]
    values = scaled.gather(-1, tokens[:, None])[:, 0]
    values = values + noise * torch.randn(values.shape, generator=generator)
    return Given(values, tokens, torch.ones(len(tokens), dtype=torch.bool))


@pytest.mark.parametrize("temperature", [0.08, 0.13, 0.4, 0.6, 0.73, 0.95, 1.0, 1.08, 1.37, 2.5, 4.0, 7.0])
@pytest.mark.parametrize("seed", range(3))
def test_any_temperature_is_fitted_exactly(temperature, seed):
    logits = 2 * torch.randn(32, 500, generator=torch.Generator().manual_seed(seed))
    row = given(logits, temperature)
    with NoSynchronisation():
        fitted, left = row.fitted(logits)
    assert float(fitted) == pytest.approx(temperature, rel=1e-3)
    assert float(left) / 32 < 1e-4
    assert float(row.distance(logits / temperature)) / 32 < 1e-4


def test_tokens_that_do_not_count_and_logits_of_minus_infinity():
    logits = 2 * torch.randn(16, 50, generator=torch.Generator().manual_seed(0))
    logits[:, 40:] = -math.inf
    whole = given(logits, 0.7)
    broken = whole.logprobs.clone()
    broken[8:] = math.nan
    row = Given(broken, whole.tokens, torch.arange(16) < 8)
    fitted, left = row.fitted(logits)
    assert float(fitted) == pytest.approx(0.7, rel=1e-3) and float(left) < 1e-3


def readings(off, temperature, *, asked=1.0, tokens=20.0, **others):
    figures = dict.fromkeys(SLOTS, 0.0) | {name: tokens * 5.0 for name in SLOTS[2:6]} | {"rescored": tokens}
    figures |= {"off": tokens * off, "temperature": tokens * temperature, "asked": tokens * asked, **others}
    return figures


def test_when_a_temperature_explains_the_difference():
    assert diagnosis(readings(0.4, 1e-5), half=False) == "temperature"
    assert diagnosis(readings(0.4, 1e-5, asked=0.0), half=False) == "right", (
        "nobody said which is the right one"
    )
    assert diagnosis(readings(0.4, 0.03), half=False) == "temperature", "under autocast that nobody saw"
    assert diagnosis(readings(0.4, 0.05), half=False) == "unexplained", "fitted, and still not near"
    assert diagnosis(readings(0.03, 2e-3), half=False) == "unexplained", "autocast alone is as far off"
    assert diagnosis(readings(0.4, 5e-3), half=True) == "temperature"
    assert diagnosis(readings(5e-4, 1e-5), half=False) == "right"
    assert diagnosis(readings(0.02, 1e-4), half=True) == "right", (
        "rounding in half precision is no temperature"
    )
    assert diagnosis(readings(0.4, 1e-5, tokens=3.0), half=False) == "unexplained", (
        "three tokens agree by chance"
    )
    assert diagnosis(readings(0.4, 1e-5, after=0.0), half=False) == "after"


def scoring(temperature, tokens=None, **more):
    tokens = torch.arange(12).view(3, 4) if tokens is None else tokens
    ones = torch.ones(tokens.shape, dtype=torch.bool)
    return Scoring(
        logprobs=-torch.ones(tokens.shape), mask=ones, tokens=tokens, temperature=temperature, **more
    )


def rollout(temperature, handle=None):
    return Rollout(responses=torch.arange(12).view(3, 4), temperature=temperature, handle=handle)


def found(*events):
    return Player(ScoringTemperature, Run()).step(events)


@pytest.mark.parametrize("handle", [None, 3], ids=["told", "watched"])
def test_sampler_and_loop_say_the_same(handle):
    assert found(rollout(0.7, handle), scoring(0.7)) == []
    assert found(rollout(0.7, handle), scoring(0.7 + 1e-8)) == []
    assert found(rollout(0.7, handle), scoring(None)) == []
    assert found(rollout(None, handle), scoring(0.7)) == []
    assert found(rollout(0.0, handle), scoring(0.7)) == [], "greedy search has no temperature"
    (breach,) = found(rollout(0.7, handle), scoring(1.0))
    assert (breach.limit, breach.value) == pytest.approx((0.7, 1.0))


def test_a_watched_rollout_counts_only_where_its_tokens_are_scored():
    """generate() may have been an evaluation, at a temperature of its own."""
    other = torch.arange(12).view(3, 4) + 1
    assert found(rollout(1.0, 3), scoring(0.7, other)) == []
    assert found(rollout(1.0, 3), scoring(0.7, other[:2])) == []
    assert found(rollout(1.0, 3), rollout(0.7), scoring(0.7, other)) == []


def test_one_of_several_rollouts_of_a_step_is_enough_and_a_step_forgets():
    assert found(rollout(0.7), rollout(1.0), scoring(0.7), scoring(1.0)) == []
    player = Player(ScoringTemperature, Run())
    assert player.step([rollout(0.7), scoring(0.7), StepEnd()]) == []
    assert player.step([scoring(1.0)]) == [], "of this step's rollout nothing is known"


def test_a_pass_that_was_only_watched_says_nothing():
    assert found(rollout(0.7), scoring(None, divisor=0.5)) == []


def test_what_was_said_survives_a_restart():
    first, second = (ScoringTemperature(Run()) for _ in range(2))
    first.spoken = True
    second.load_state_dict(first.state_dict())
    assert second.spoken


def entropies(divided, temperature=0.7, steps=4, drawn=0.7):
    """The keys of each step of a loop at a temperature, that tells the entropy of logits divided by `divided`."""
    player = Player(ScoringTemperature)
    told = []
    for step in range(steps):
        random = torch.Generator().manual_seed(step)
        logits = 2 * torch.randn(16, 20, 50, generator=random)
        scaled = (logits / drawn).log_softmax(-1)
        tokens = torch.multinomial(scaled.exp().flatten(0, 1), 1, generator=random).view(16, 20)
        new = scaled.gather(-1, tokens[..., None])[..., 0]
        other = (logits / divided).log_softmax(-1)
        mask = torch.ones(16, 20, dtype=torch.bool)
        rollout = Rollout(responses=tokens, mask=mask, temperature=temperature)
        minibatch = Minibatch(new=new, old=new, mask=mask, first=True, entropy=-(other.exp() * other).sum(-1))
        told.append([breach.key for breach in player.step([rollout, minibatch, StepEnd()])])
    return told


def test_the_entropy_of_undivided_logits_is_told():
    assert entropies(0.7) == [[]] * 4
    assert entropies(1.0) == [[], ["entropy"], ["entropy"], ["entropy"]]
    assert entropies(1.0, temperature=1.0, drawn=1.0) == entropies(1.0, temperature=None) == [[]] * 4
