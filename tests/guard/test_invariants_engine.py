"""KLG702, KLG851 and KLG852: what an engine may differ by, and what no distribution explains."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from klguard.guard.events import Rollout, Scoring, Update  # noqa: E402
from klguard.guard.invariants.engine import ForeignLogprobs, PolicyLag, SamplerMismatch  # noqa: E402

from .harness import Player, play  # noqa: E402

torch.set_num_threads(1)

ROWS, TIME, VOCABULARY = 32, 32, 50


def scoring(engine=lambda logits: logits, trainer=lambda logits: logits, told=None, seed=0):
    """Tokens drawn from softmax(engine(logits)), scored under softmax(trainer(logits)); the engine tells
    `told(its log-probs (B, T, V), tokens)`."""
    source = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(ROWS, TIME, VOCABULARY, generator=source)
    drawn, scored = engine(logits).log_softmax(-1), trainer(logits).log_softmax(-1)
    tokens = torch.multinomial(drawn.exp().view(-1, VOCABULARY), 1, generator=source).view(ROWS, TIME)
    pick = lambda values: values.gather(-1, tokens[..., None])[..., 0]  # noqa: E731
    returned = pick(drawn) if told is None else told(drawn, tokens)
    mask = torch.ones(ROWS, TIME, dtype=torch.bool)
    return Scoring(logprobs=pick(scored), sampler_logprobs=returned, mask=mask)


def noisy(size):
    noise = torch.randn(ROWS, TIME, VOCABULARY, generator=torch.Generator().manual_seed(9))
    return lambda logits: logits + size * noise


def keys(kind, events):
    return [breach.key for _, breach in play(kind, [[event] for event in events])]


@pytest.mark.parametrize(
    "engine",
    [
        lambda logits: logits,
        noisy(0.02),
        noisy(0.3),
        noisy(1.0),
        lambda x: x / 0.7,
        lambda x: x.bfloat16().float(),
    ],
)
def test_whatever_distribution_the_engine_samples_from_its_log_probs_are_not_foreign(engine):
    assert keys(ForeignLogprobs, [scoring(engine, seed=seed) for seed in range(20)]) == []


@pytest.mark.parametrize(
    "told",
    [
        lambda drawn, tokens: drawn.amax(-1),
        lambda drawn, tokens: (drawn / 0.5).log_softmax(-1).gather(-1, tokens[..., None])[..., 0],
    ],
)
def test_log_probs_of_other_tokens_or_of_another_distribution_are(told):
    assert len(keys(ForeignLogprobs, [scoring(told=told)])) == 1
    assert keys(SamplerMismatch, [scoring(told=told)] * 6) == []  # said by the other, which knows more


def test_log_probs_of_the_neighbour_are_told_within_ten_steps():
    neighbour = lambda drawn, tokens: drawn.gather(-1, tokens.roll(1, 1)[..., None])[..., 0]  # noqa: E731
    assert keys(ForeignLogprobs, [scoring(told=neighbour, seed=seed) for seed in range(10)])


def test_a_mismatch_is_judged_over_steps():
    assert keys(SamplerMismatch, [scoring(noisy(0.02))] * 10) == []
    assert keys(SamplerMismatch, [scoring(noisy(0.4))] * 2) == []
    assert set(keys(SamplerMismatch, [scoring(noisy(0.4))] * 3)) == {"thresholds"}


def test_a_mismatch_that_grows_after_the_first_step_is_one_of_missing_syncs():
    fresh, stale = scoring(noisy(0.005)), scoring(noisy(0.09))
    assert keys(SamplerMismatch, [fresh] * 6) == []
    ((step, breach),) = play(SamplerMismatch, [[fresh], [stale], [stale]])
    assert step == 2 and "in the first step" in breach.message
    rollout = Rollout(responses=torch.zeros(1, 1, dtype=torch.long), allowed_lag=1)
    assert play(SamplerMismatch, [[fresh], [rollout, stale], [rollout, stale]]) == []


def test_one_wild_token_few_tokens_and_missing_ones_are_no_mismatch():
    wild = scoring(noisy(0.01))
    wild.sampler_logprobs[0, 0] -= 9
    assert keys(SamplerMismatch, [scoring(noisy(0.01)), wild, scoring(noisy(0.01))]) == []
    assert keys(ForeignLogprobs, [wild]) == []
    gaps = scoring()
    gaps.sampler_logprobs[:, ::2] = float("nan")
    assert keys(SamplerMismatch, [gaps] * 4) == keys(ForeignLogprobs, [gaps] * 4) == []
    few = scoring(told=lambda drawn, tokens: drawn.amax(-1))
    few.mask[4:] = False
    assert keys(ForeignLogprobs, [few]) == []


# --- KLG852 ---------------------------------------------------------------------------------------------------


def lags(versions, allowed, updates=True):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    ids = torch.zeros(1, 1, dtype=torch.long)
    steps = [
        [Rollout(responses=ids, version=version, allowed_lag=allowed)]
        + ([Update(optimizer=optimizer, after=True)] * 4 if updates else [])
        for version in versions
    ]
    return [(step, breach.value) for step, breach in play(PolicyLag, steps)]


def test_lag_is_counted_in_steps_with_updates():
    assert lags([0, 1, 2, 3], 0) == []
    assert lags([0, 0, 1, 2], 0) == [(1, 1.0)]
    assert lags([0, 0, 1, 1], 1) == []
    assert lags([0, 0, 0], 1) == [(2, 2.0)]
    assert lags([0, 5, 3], 1) == [(2, 2.0)]
    assert lags([0, 0, 0], 0, updates=False) == []
    assert lags([0, 0, 0], None) == []


def test_a_restart_keeps_the_lag():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    ids = torch.zeros(1, 1, dtype=torch.long)
    events = [Rollout(responses=ids, version=3, allowed_lag=0), Update(optimizer=optimizer, after=True)]
    first, second = Player(PolicyLag), Player(PolicyLag)
    assert first.step(events) == []
    second.invariant.load_state_dict(first.invariant.state_dict())
    assert [breach.value for breach in second.step(events)] == [1.0]
