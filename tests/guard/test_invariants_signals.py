"""KLG861 to KLG864: windows over many steps, against streams of figures that are healthy or not."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from klguard.findings import Severity  # noqa: E402
from klguard.guard.events import Advantages, Minibatch, Rewards, Rollout, Scoring, StepEnd  # noqa: E402
from klguard.guard.invariants import Run  # noqa: E402
from klguard.guard.invariants.signals import (  # noqa: E402
    CompletionLength,
    EntropyDrift,
    RewardOfAnother,
    ValueHead,
)

from .harness import Player, play  # noqa: E402

torch.set_num_threads(1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# --- KLG861 ---------------------------------------------------------------------------------------------------


def values(returns, guess, mask=None):
    mask = torch.ones_like(returns, dtype=torch.bool) if mask is None else mask
    return Advantages(advantages=returns - guess, mask=mask, values=guess, returns=returns)


def stream(worth, steps, rows=16, seed=0):
    """Values that explain `worth(step)` of the variance, noise included."""
    source = generator(seed)
    for step in range(steps):
        returns = torch.randn(rows, 8, generator=source)
        noise = torch.randn(rows, 8, generator=source) * max(0.0, 1 - worth(step)) ** 0.5
        yield [values(returns, returns - noise)]


def test_explained_variance_is_that_of_valid_tokens():
    returns = torch.randn(16, 8, generator=generator(), dtype=torch.float64)
    guess = 0.5 * returns + 3
    mask = torch.arange(8) < 5
    mask = mask.expand(16, 8).clone()
    player = Player(ValueHead)
    player.step([values(torch.where(mask, returns, 99.0), guess, mask)])
    assert player.invariant._recent[-1] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("worth", "steps", "told"),
    [
        (lambda step: -20 + step, 60, False),  # bad at first, and learning
        (lambda step: 0.0, 80, False),  # returns that nothing explains
        (lambda step: -0.3, 80, False),
        (lambda step: -1.0, 60, True),
        (lambda step: -1.0 - step / 10, 21, True),
    ],
)
def test_a_value_head_may_be_bad_as_long_as_it_learns(worth, steps, told):
    assert bool(play(ValueHead, stream(worth, steps))) == told


def test_few_values_constant_returns_and_nothing_told_say_nothing():
    assert play(ValueHead, stream(lambda step: -5.0, 60, rows=2)) == []
    constant = [[values(torch.ones(16, 8), torch.randn(16, 8, generator=generator()))] for _ in range(60)]
    assert play(ValueHead, constant) == []
    assert play(ValueHead, [[StepEnd()]] * 60) == []
    assert play(ValueHead, [[StepEnd(explained_variance=torch.tensor(-3.0))]] * 60) != []


# --- KLG862 ---------------------------------------------------------------------------------------------------


def entropies(figures, source="told", tokens=128):
    for figure in figures:
        whole = torch.full((1, tokens), float(figure))
        mask = torch.ones(1, tokens, dtype=torch.bool)
        yield [
            StepEnd(entropy=figure)
            if source == "told"
            else Minibatch(new=-whole, old=-whole, mask=mask, entropy=whole)
            if source == "exact"
            else Scoring(logprobs=-whole, mask=mask)
        ]


@pytest.mark.parametrize("source", ["told", "exact", "sampled"])
@pytest.mark.parametrize(
    ("figures", "key"),
    [
        ([2.0] * 5 + [0.7] * 40, ""),
        ([2.0] * 5 + [0.1] * 19 + [1.0] + [0.1] * 19, ""),
        ([2.0] * 5 + [0.1] * 20, "low"),
        ([1.0] * 5 + [2.5] * 20, "high"),
        ([0.05] * 5 + [0.4] * 40, ""),  # nearly certain at first: half a nat is nothing
    ],
)
def test_entropy_has_to_stay_off_for_twenty_steps(source, figures, key):
    found = {breach.key for _, breach in play(EntropyDrift, entropies(figures, source))}
    assert found == ({key} if key else set())


def test_padding_and_infinite_log_probs_do_not_count_as_entropy():
    logprobs = torch.full((1, 128), -2.0)
    logprobs[0, :10], logprobs[0, 10:20] = -torch.inf, 7.0
    mask = torch.ones(1, 128, dtype=torch.bool)
    mask[0, 10:20] = False
    player = Player(EntropyDrift)
    player.step([Scoring(logprobs=logprobs, mask=mask)])
    assert player.invariant._first["sampled"] == [pytest.approx(2.0)]


# --- KLG863 ---------------------------------------------------------------------------------------------------


def rollout(lengths, width=12, ended=True, **more):
    """Rows of these lengths; the last token of each is the stop token, 1, where `ended`."""
    responses = torch.full((len(lengths), width), 5)
    for row, length in enumerate(lengths):
        if ended and length:
            responses[row, length - 1] = 1
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    return Rollout(responses=responses, mask=mask, stop_ids=(1,), max_new_tokens=width, **more)


def test_lengths():
    def keys(event):
        return {breach.key for _, breach in play(CompletionLength, [[event]] * 6)}

    assert keys(rollout([6] * 8)) == set()
    assert keys(rollout([12] * 8, ended=False)) == {"cut off"}
    assert keys(rollout([1, 2] * 4)) == {"short"}
    assert keys(rollout([1] * 8, width=2)) == set()  # an answer of one token is all there is room for
    assert keys(rollout([1] * 4)) == set()  # too few rows
    assert keys(rollout([6] * 8 + [0] * 40)) == set()  # rows without a response do not count
    assert keys(StepEnd(truncated=torch.ones(8, dtype=torch.bool))) == {"cut off"}
    assert keys(StepEnd(truncated=torch.tensor(1.0))) == set()


def padded(lengths, width=6, masked=(), **more):
    """A rollout of these lengths, padded with 0; rows in `masked` are left out of the mask."""
    place = torch.arange(width)
    there = place < torch.tensor(lengths)[:, None]
    mask = there.clone()
    for row in masked:
        mask[row] = False
    event = Rollout(
        responses=torch.where(there, 5, 0), mask=mask, stop_ids=(1,), max_new_tokens=width, **more
    )
    return event


def emptiness(event, pad=0, stops=(1,)):
    run = Run(tokenizer=SimpleNamespace(pad_token_id=pad), stop_ids=stops)
    return {(breach.key, breach.severity) for _, breach in play(CompletionLength, [[event]], run)}


def test_responses_without_a_token():
    assert emptiness(padded([3, 1, 6])) == set()
    assert emptiness(padded([3, 0, 6])) == {("empty", Severity.WARNING)}
    assert emptiness(padded([0, 0, 0])) == {("empty", Severity.ERROR)}
    nothing = torch.zeros(3, 0, dtype=torch.long)
    for mask in (None, nothing.bool()):
        assert emptiness(Rollout(responses=nothing, mask=mask)) == {("empty", Severity.ERROR)}
    assert emptiness(Rollout(responses=nothing[:0], mask=None)) == set()  # no rows on this rank


def test_rows_that_a_filter_masks_are_not_empty():
    assert emptiness(padded([3, 4, 6], masked=(0, 2))) == set()
    assert emptiness(padded([3, 4, 6], masked=(0, 1, 2))) == {("all masked", None)}
    assert emptiness(padded([3, 0, 6], masked=(0, 2))) == {("empty", Severity.WARNING), ("all masked", None)}


def test_rows_that_fill_up_a_batch_are_not_responses():
    attention = torch.tensor([[1, 1], [0, 0], [0, 1]])
    assert emptiness(padded([3, 0, 6], attention_mask=attention)) == set()
    assert emptiness(padded([3, 6, 0], attention_mask=attention)) == {("empty", Severity.WARNING)}


def test_a_row_of_stop_tokens_that_pad_may_be_a_stop_at_once():
    assert emptiness(padded([3, 0, 6]), pad=0, stops=(0,)) == set()
    assert emptiness(padded([3, 0, 6]), pad=None) == set()


def test_four_steps_of_cut_off_responses_are_not_enough():
    bad, good = [rollout([12] * 8, ended=False)], [rollout([6] * 8)]
    assert play(CompletionLength, ([bad] * 4 + [good]) * 3) == []
    assert [step for step, _ in play(CompletionLength, [bad] * 5)] == [4]


# --- KLG864 ---------------------------------------------------------------------------------------------------


def length_of(texts):
    return [float(len(text)) for text in texts]


TEXTS = ["a" * length for length in (3, 9, 1, 14, 6, 2, 11, 5)]


def rewards(scores, recompute=length_of, texts=TEXTS):
    return Rewards(scores=torch.as_tensor(scores), texts=texts, recompute=recompute)


def test_rewards_of_their_own_rows_pass_and_those_of_others_do_not():
    scores = torch.tensor(length_of(TEXTS))
    assert play(RewardOfAnother, [[rewards(scores)]] * 3) == []
    assert (
        play(RewardOfAnother, [[rewards(scores + 0.2)]] * 3) == []
    )  # a model in half precision: spread is 4.4
    ((_, breach),) = play(RewardOfAnother, [[rewards(scores.roll(1))]])
    assert breach.key == "another" and breach.value > 1


def swapped():
    """Two rows of the four that are looked at have each other's reward."""
    scores = torch.tensor(length_of(TEXTS))
    scores[[0, 7]] = scores[[7, 0]]
    return [rewards(scores)]


def test_where_some_rows_differ_it_takes_three_steps():
    ((step, breach),) = play(RewardOfAnother, [swapped()] * 4)
    assert step == 2 and breach.key == "another" and breach.value == 2


def test_a_step_whose_rewards_are_right_begins_the_count_again():
    right, wrong = [rewards(torch.tensor(length_of(TEXTS)))], swapped()
    found = play(RewardOfAnother, [wrong, wrong, right] + [wrong] * 52)
    assert [step for step, _ in found] == [54]  # asked again 50 steps after the right one, and twice more


def test_a_reward_that_is_random_cannot_be_checked_and_no_random_state_moves():
    scores = torch.tensor(length_of(TEXTS))
    python, state = random.getstate(), torch.get_rng_state()
    calls = []

    def judge(texts):
        calls.append(len(texts))
        return [random.gauss(0, 10) + float(torch.rand(())) for _ in texts]

    assert play(RewardOfAnother, [[rewards(scores, judge)]] * 60) == []
    assert random.getstate() == python and torch.equal(torch.get_rng_state(), state)
    assert calls == [4, 4]


@pytest.mark.parametrize("flips", [0.02, 0.1, 0.3, 0.5])
def test_a_judge_that_sometimes_changes_its_mind_raises_no_alarm(flips):
    """Right or wrong of a verifier that samples: two answers often agree and differ from the stored third."""
    dice = random.Random(0)

    def judge(texts):
        return [float((len(text) > 5) != (dice.random() < flips)) for text in texts]

    runs = 100
    alarms = sum(
        bool(play(RewardOfAnother, [[rewards(judge(TEXTS), judge)] for _ in range(60)])) for _ in range(runs)
    )
    assert alarms <= 0.03 * runs


def test_it_is_computed_again_in_the_first_step_and_every_fiftieth():
    calls = []

    def counted(texts):
        calls.append(len(texts))
        return length_of(texts)

    play(RewardOfAnother, [[rewards(torch.tensor(length_of(TEXTS)), counted)]] * 101)
    assert calls == [4, 4] * 3


def test_rewards_that_are_not_finite_are_told_and_nothing_given_is_no_error():
    ((_, breach),) = play(RewardOfAnother, [[Rewards(scores=torch.tensor([1.0, float("nan")]))]])
    assert breach.key == "not finite" and breach.value == 1
    assert play(RewardOfAnother, [[Rewards(scores=torch.zeros(0))], [rewards([1.0], texts=["a"])]]) == []


# --- across a restart -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        (ValueHead, list(stream(lambda step: -1.0 - step / 10, 24))),
        (EntropyDrift, list(entropies([2.0] * 5 + [0.1] * 20))),
        (CompletionLength, [[rollout([12] * 8, ended=False)]] * 6),
        (RewardOfAnother, [swapped()] * 4),
    ],
)
def test_a_restart_changes_no_decision(kind, steps):
    straight = play(kind, steps)
    first = Player(kind)
    second = Player(kind, first.run)
    cut = len(steps) // 2
    found = [(i, b) for i in range(cut) for b in first.step(steps[i])]
    second.invariant.load_state_dict(first.invariant.state_dict())
    found += [(i, b) for i in range(cut, len(steps)) for b in second.step(steps[i])]
    assert found == straight and straight
