"""From scored logits to the rows that the hypotheses are tried on."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from klguard.guard import kl, scoring  # noqa: E402
from klguard.guard.events import Scoring  # noqa: E402
from klguard.guard.evidence import Evidence  # noqa: E402


def scored(valid):
    """A pass over 6 rows of 20 tokens, of which the share `valid` was sampled."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(6, 20, 60, generator=generator)
    tokens = torch.multinomial(logits.softmax(-1).view(-1, 60), 1, generator=generator).view(6, 20)
    mask = torch.arange(20) < (20 * torch.linspace(0, valid, 6)[:, None]).round()
    logprobs = logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    return Scoring(logits=logits, tokens=tokens, mask=mask, logprobs=logprobs, context_ids=tokens[:, :4])


def counted(event):
    """(the sums of the evidence, how many rows were looked at)"""
    evidence, rows = Evidence(), 0
    for part in scoring.tested(event, torch.arange(event.tokens.numel()), torch.tensor([0]), 2**26):
        evidence.gather(part.rows, eps=1e-4)
        rows += len(part.rows.tokens)
    return evidence.pending, rows


def test_on_the_host_only_sampled_positions_are_looked_at_and_the_sums_are_those_of_all(monkeypatch):
    event = scored(valid=0.9)
    here, rows = counted(event)
    monkeypatch.setattr(
        scoring, "at_hand", lambda device: False
    )  # as on a GPU, where the mask cannot be read
    there, every = counted(event)
    assert rows == int(event.mask.sum()) < every == event.mask.numel()
    torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-9, equal_nan=True)


def test_a_pass_over_rows_that_were_counted_before_costs_nothing():
    assert counted(scored(valid=0.0))[1] == 0


@pytest.mark.parametrize("temperature", [None, 0.7])
def test_logits_that_stand_at_other_columns_in_each_row_give_the_same(temperature):
    """A row that was moved within the pass is scored from where it is: by columns, without a copy of all logits."""
    event = replace(scored(valid=0.9), divisor=temperature)
    offset = torch.tensor([3, 0, 5, 5, 1, 2])
    columns = offset[:, None] + torch.arange(20)
    whole = torch.randn(6, 30, 60)
    whole[torch.arange(6)[:, None], columns] = event.logits
    logprobs = kl.token_log_probs(event.logits, event.tokens, temperature=temperature)
    for budget in (200, 2**20):
        again = kl.token_log_probs_at(whole, event.tokens, columns, temperature=temperature, budget=budget)
        assert torch.equal(again, logprobs)
    event = replace(event, logprobs=logprobs)
    here, rows = counted(event)
    moved, same = counted(replace(event, logits=whole, columns=columns))
    assert rows == same > 0 and torch.equal(here.isnan(), moved.isnan())
    assert torch.equal(here.nan_to_num(), moved.nan_to_num())
