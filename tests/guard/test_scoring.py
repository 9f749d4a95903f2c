"""From scored logits to the rows that the hypotheses are tried on."""

import pytest

torch = pytest.importorskip("torch")

from klguard.guard import scoring  # noqa: E402
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
