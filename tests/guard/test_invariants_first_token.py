"""KLG818."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from klguard.guard.events import Minibatch, Rollout  # noqa: E402
from klguard.guard.invariants import Run  # noqa: E402
from klguard.guard.invariants.first_token import FirstTokenMasked  # noqa: E402

from .harness import Player, play  # noqa: E402

PAD = 0


def tokens(seed, rows=8, time=10):
    return torch.randint(2, 30, (rows, time), generator=torch.Generator().manual_seed(seed))


def lengths(seed, rows=8, time=10, least=2):
    count = torch.randint(least, time + 1, (rows, 1), generator=torch.Generator().manual_seed(seed + 100))
    return torch.arange(time) < count


def late(mask):
    return mask & (torch.arange(mask.shape[1]) > 0)


def rollout(seed, ids=None, mask=None, **more):
    ids = tokens(seed) if ids is None else ids
    mask = lengths(seed, *ids.shape) if mask is None else mask
    told = {"prompts": tokens(seed + 1, len(ids), 3)} | more
    return Rollout(responses=torch.where(lengths(seed, *ids.shape), ids, PAD), mask=mask, **told)


def minibatch(ids, mask):
    values = torch.full(ids.shape, -2.0)
    return Minibatch(new=values, old=values, mask=mask, tokens=ids)


def said(events, model=None):
    run = Run(model, tokenizer=SimpleNamespace(pad_token_id=PAD))
    return [breach.message for _, breach in play(FirstTokenMasked, [list(events)], run)]


@pytest.mark.parametrize("seed", range(10))
def test_a_mask_from_the_first_token_on_is_right(seed):
    event = rollout(seed)
    assert said([event, minibatch(event.responses, event.mask)]) == []


@pytest.mark.parametrize("seed", range(10))
def test_a_mask_that_begins_at_the_second_token(seed):
    (message,) = said([rollout(seed, mask=late(lengths(seed)))])
    assert "first response token in all 8 rows" in message


def test_a_mask_over_whole_sequences():
    event = rollout(0)
    prompt = torch.zeros_like(event.prompts, dtype=torch.bool)
    assert said([rollout(0, mask=torch.cat([prompt, event.mask], 1))]) == []
    assert said([rollout(0, mask=torch.cat([prompt, late(event.mask)], 1))])


def test_some_rows_are_no_mask_that_is_off_by_one():
    mask = lengths(0)
    mask[:7] = late(mask[:7])
    assert said([rollout(0, mask=mask)]) == []
    mask[7] = False  # a row that a filter left out says nothing
    assert said([rollout(0, mask=mask)])


def test_what_was_not_sampled_may_be_left_out():
    forced = tokens(0)
    forced[:, 0] = 9
    assert said([rollout(0, forced, late(lengths(0)))]) == []  # the same in all rows
    padding = tokens(0)
    padding[:, 0] = PAD
    assert said([rollout(0, padding, late(lengths(0)))]) == []
    tool = torch.zeros(8, 10, dtype=torch.bool)
    tool[:, 0] = True
    assert said([rollout(0, mask=late(lengths(0)), tool_mask=tool)]) == []
    model = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=True), modules=lambda: iter(()))
    start = torch.nn.Module()
    start.config = model.config
    assert said([rollout(0, mask=late(lengths(0)))], start) == []


def test_without_prompts_the_first_column_may_be_one():
    assert said([rollout(0, mask=late(lengths(0)), prompts=None)]) == []


def test_a_longer_beginning_that_is_masked_is_meant():
    mask = lengths(0, least=4) & (torch.arange(10) > 1)
    assert said([rollout(0, mask=mask)]) == []


def test_a_few_rows_are_not_enough():
    assert said([rollout(0, tokens(0, rows=3), late(lengths(0, rows=3)))]) == []


def test_the_mask_of_the_loss():
    event = rollout(0)
    (message,) = said([event, minibatch(event.responses, late(event.mask))])
    assert "mask of the minibatches" in message
    rows = torch.tensor([3, 1, 7, 0, 2])
    assert said([event, minibatch(event.responses[rows], late(event.mask)[rows])])
    assert said([event, minibatch(event.responses[rows], event.mask[rows])]) == []


def test_a_loss_over_other_columns_is_not_judged():
    """The last prompt token stands before the response, or the first response token was cut off."""
    event = rollout(0)
    before = torch.cat([event.prompts[:, -1:], event.responses[:, :-1]], 1)
    mask = torch.cat([torch.zeros(8, 1, dtype=torch.bool), event.mask[:, :-1]], 1)
    assert said([event, minibatch(before, mask)]) == []
    assert said([event, minibatch(event.responses[:, 1:], event.mask[:, 1:])]) == []


def test_a_loss_that_keeps_one_first_token_has_it():
    event = rollout(0)
    mask = late(event.mask)
    mask[4, 0] = True
    assert said([event, minibatch(event.responses, mask)]) == []


def test_a_first_turn_that_is_never_trained():
    ids, time = tokens(3, 8, 12), torch.arange(12).expand(8, 12)
    tool = (time >= 4) & (time < 7)
    told = dict(ids=ids, tool_mask=tool)
    (message,) = said([rollout(3, mask=time >= 7, **told)])
    assert "first turn is never trained" in message
    assert said([rollout(3, mask=~tool, **told)]) == []
    last_alone = (time >= 7) | (torch.arange(8)[:, None] == 5) & ~tool  # but for one row
    assert said([rollout(3, mask=last_alone, **told)]) == []
    assert said([rollout(3, mask=time >= 7, ids=ids, tool_mask=time < 7)]) == []  # the tool spoke first
    assert said([rollout(3, mask=time >= 7, ids=ids, tool_mask=torch.zeros_like(tool))]) == []


def test_the_minibatches_of_another_step_are_not_compared():
    player = Player(FirstTokenMasked, Run())
    event = rollout(0)
    assert player.step([event]) == []
    assert player.step([minibatch(event.responses, late(event.mask))]) == []
