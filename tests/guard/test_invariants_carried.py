"""KLG866 to KLG869: rows between rollout and minibatch, in every layout a loop may use."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch.nn.functional import pad  # noqa: E402

from klguard.findings import Severity  # noqa: E402
from klguard.guard.events import Advantages, Minibatch, Rollout, Scoring, StepEnd  # noqa: E402
from klguard.guard.invariants.carried import (  # noqa: E402
    FilteredFirst,
    MinibatchCoverage,
    OtherTokens,
    ReorderedRows,
)
from klguard.settings import Place  # noqa: E402

from .harness import Player, play  # noqa: E402

torch.set_num_threads(1)

HERE = Place("loop.py", None, 1, 1, 1, 1)
ROWS, TIME = 8, 6
TOKENS = torch.randint(0, 50, (ROWS, TIME), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([6, 2, 4, 3, 5, 1, 6, 4])
MASK = torch.arange(TIME) < LENGTHS[:, None]


def rollout(**more):
    return Rollout(**{"responses": TOKENS, "mask": MASK, "rows": list(range(ROWS))} | more)


def minibatch(rows, tokens=None, mask=None, epoch=0):
    rows = torch.tensor(rows)
    tokens, mask = TOKENS[rows] if tokens is None else tokens, MASK[rows] if mask is None else mask
    zeros = torch.zeros(mask.shape)
    return Minibatch(new=zeros, old=zeros, mask=mask, tokens=tokens, rows=rows, epoch=epoch)


def told(*events):
    """Codes of the two that compare rows; they share a table, as in the guard."""
    first = Player(ReorderedRows)
    second = Player(OtherTokens, first.run)
    found = [kind.invariant.code for kind in (first, second) for _ in kind.step(events)]
    assert first.invariant.exercised == second.invariant.exercised
    first.run.step = 0
    return found, first.invariant.exercised


def test_rows_in_any_order_and_layout_are_their_own():
    rows = [5, 0, 3, 2]
    assert told(rollout(), minibatch(rows)) == ([], True)
    assert told(rollout(rows=None), minibatch(rows)) == ([], True)
    assert told(rollout(rows=torch.arange(ROWS)), minibatch(rows)) == ([], True)
    tokens, mask = TOKENS[rows], MASK[rows]
    assert told(rollout(), minibatch(rows, pad(tokens, (0, 3)), pad(mask, (0, 3)))) == ([], True)
    assert told(rollout(), minibatch(rows, pad(tokens, (4, 0)), pad(mask, (4, 0)))) == ([], True)
    short = [5, 1, 3]
    assert told(rollout(), minibatch(short, TOKENS[short, :3], MASK[short, :3])) == ([], True)
    assert told(rollout(), minibatch(rows, torch.where(mask, tokens, 49), mask)) == ([], True)


def test_a_loop_may_train_on_fewer_tokens_than_it_sampled():
    mask = MASK.clone()
    mask[:, 1::2] = False
    mask[3] = False
    assert told(rollout(), minibatch(list(range(ROWS)), TOKENS, mask)) == ([], True)


def test_a_whole_batch_needs_no_numbers_where_its_tokens_are_the_rollouts():
    zeros = torch.zeros(MASK.shape)

    def whole(tokens, mask):
        return Minibatch(new=zeros, old=zeros, mask=mask, tokens=tokens)

    assert told(rollout(), whole(TOKENS, MASK)) == ([], True)
    assert told(rollout(), whole(TOKENS, ~MASK)) == (["KLG866"], True)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    assert told(rollout(), whole(TOKENS[order], MASK[order])) == ([], True)
    assert told(rollout(), whole(TOKENS[:, :4], MASK[:, :4])) == ([], False)


def test_masks_and_rows_of_others():
    rows = list(range(ROWS))
    assert told(rollout(), minibatch(rows, TOKENS, MASK.roll(1, 0))) == (["KLG866"], True)
    assert told(rollout(), minibatch(rows, TOKENS.roll(1, 0), MASK.roll(1, 0))) == (["KLG866"], True)
    wide = pad(TOKENS.roll(1, 0), (0, 2)), pad(MASK.roll(1, 0), (0, 2))
    assert "KLG866" in told(rollout(), minibatch(rows, *wide))[0]
    assert told(rollout(), minibatch(rows, TOKENS, torch.ones_like(MASK))) == (["KLG866"], True)


def test_one_other_token_is_enough():
    rows = list(range(ROWS))
    tokens = TOKENS.clone()
    tokens[4, 2] += 1
    assert told(rollout(), minibatch(rows, tokens)) == (["KLG867"], True)
    assert told(rollout(), minibatch(rows, pad(tokens, (2, 0)), pad(MASK, (2, 0)))) == (["KLG867"], True)
    assert told(rollout(mask=None), minibatch(rows, tokens)) == (["KLG867"], True)
    swapped = TOKENS.clone()
    swapped[0, [0, 1]] = swapped[0, [1, 0]]
    assert told(rollout(), minibatch(rows, swapped)) == (["KLG867"], True)


def test_what_cannot_be_told_apart_is_left_alone():
    rows, other = list(range(ROWS)), TOKENS.roll(1, 0)
    assert told(rollout(rows=None), rollout(rows=None), minibatch(rows, other)) == ([], False)
    assert told(minibatch(rows, other)) == ([], False)
    assert told(rollout(rows=[0] * ROWS), minibatch([0] * ROWS, other)) == ([], True)
    assert told(rollout(), minibatch([100 + row for row in rows], other, MASK)) == ([], True)


def test_several_rollouts_with_ids_are_one_table():
    first = rollout(responses=TOKENS[:4], mask=MASK[:4], rows=[0, 1, 2, 3])
    second = rollout(responses=TOKENS[4:, :5], mask=MASK[4:, :5], rows=[4, 5, 6, 7])
    mask = MASK.clone()
    mask[6, 5] = False
    assert told(first, second, minibatch([7, 0, 2], mask=mask[[7, 0, 2]])) == ([], True)
    assert told(first, second, minibatch([7, 0], TOKENS[[0, 7]], mask[[0, 7]]))[0] == ["KLG866"]


def test_the_rows_of_the_step_before_are_forgotten():
    players = [Player(ReorderedRows), Player(OtherTokens)]
    for player in players:
        assert player.step([rollout(), minibatch([0, 1])]) == []
        other = rollout(responses=TOKENS + 1)
        assert player.step([other, minibatch([0, 1], TOKENS[:2] + 1)]) == []


# --- KLG868 ---------------------------------------------------------------------------------------------------


def coverage(*minibatches, steps=1):
    events = [rollout(), *minibatches, StepEnd()]
    return [(step, b.key, b.severity) for step, b in play(MinibatchCoverage, [events] * steps)]


ALL = list(range(ROWS))


def test_epochs_that_cover_everything_once_and_those_stopped_early_pass():
    halves = [minibatch(ALL[4:], epoch=e) for e in (0, 1)] + [minibatch(ALL[:4], epoch=e) for e in (0, 1)]
    assert coverage(*halves) == []
    assert coverage(minibatch(ALL), minibatch(ALL[:4], epoch=1)) == []
    assert coverage(minibatch(ALL[:4])) == []  # stopped in the first epoch
    assert coverage(minibatch(ALL[:3]), minibatch(ALL[3:6]), minibatch(ALL[6:])) == []


def test_rows_that_come_twice_never_or_are_dropped():
    assert coverage(minibatch([0, 1, 2, 2])) == [(0, "twice", None)]
    assert coverage(minibatch(ALL[:4]), minibatch(ALL[:4])) == [(0, "twice", None)]
    missing = coverage(minibatch(ALL[:3]), minibatch(ALL, epoch=1))
    assert missing == [(0, "missing", Severity.WARNING)]
    assert coverage(minibatch([0]), minibatch([1], epoch=1)) == [(0, "missing", Severity.WARNING)]
    assert coverage(minibatch(ALL[:3]), minibatch(ALL[3:6]), steps=4) == [
        (2, "missing", Severity.WARNING),
        (3, "missing", Severity.WARNING),
    ]


def advantages(values):
    return Advantages(advantages=torch.tensor(values), mask=MASK[: len(values)])


def test_rows_left_out_on_purpose_are_no_news():
    """Groups without spread have nothing to teach; other filters drop rows before advantages are made."""
    some = minibatch(ALL[:4]), minibatch(ALL[:4], epoch=1)
    assert coverage(advantages([1.0, -1.0, 0.5, -0.5, 0.0, 0.0, 0.0, 0.0]), *some) == []
    assert coverage(advantages([1.0, -1.0, 0.5, -0.5]), *some) == []
    told = coverage(advantages([1.0, -1.0, 0.5, -0.5, 0.0, 0.0, 0.0, 0.1]), *some)
    assert told == [(0, "missing", Severity.WARNING)]
    assert coverage(advantages([1.0, -1.0, 0.5, -0.5, 0.1]), *some) == [(0, "missing", Severity.WARNING)]


# --- KLG869 ---------------------------------------------------------------------------------------------------


def scored(rows, place=HERE):
    zeros = torch.zeros(rows, TIME)
    return Scoring(logprobs=zeros, mask=zeros == 0, place=place)


def test_rows_that_are_dropped_before_they_are_scored():
    assert play(FilteredFirst, [[rollout(), scored(4), scored(4)]] * 3) == []
    assert play(FilteredFirst, [[rollout(), scored(8), scored(8)]] * 3) == []
    assert play(FilteredFirst, [[rollout()]] * 3) == []
    assert [step for step, _ in play(FilteredFirst, [[rollout(), scored(5)]] * 2)] == [1]
    assert [breach.key for _, breach in play(FilteredFirst, [[rollout(filtered=2), scored(8)]])] == [
        "filtered"
    ]
    watched = rollout(handle=0)
    assert play(FilteredFirst, [[watched, rollout(), scored(8)], [watched, watched, scored(4)]] * 2) == []
    assert play(FilteredFirst, [[rollout(), scored(3, place=None)]] * 3) == []
