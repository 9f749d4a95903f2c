"""Loops that score only some of the rows they sample, and what the guard then still says of the sampler."""

import copy
import logging

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from klguard import Guard  # noqa: E402
from tests.guard.loop import EOS, _model  # noqa: E402

PROMPT, RESPONSE = 6, 16
PURE = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "max_new_tokens": RESPONSE}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def everything(responses):
    return [range(len(responses))]


def those_that_stop(responses):
    """A filter of what was cut off: all that is left holds a stop token."""
    return [(responses == EOS).any(1).nonzero().squeeze(1)]


def minibatches(responses):
    """Two updates: the second half is scored under weights that did not draw it."""
    return torch.randperm(len(responses)).chunk(2)


def run(choose, steps=8, settings=None, evaluate=False, guard=None):
    """A loop of sampling and updates. The guard."""
    policy = copy.deepcopy(_model())
    reference = copy.deepcopy(policy).eval().requires_grad_(False)
    optimizer = torch.optim.SGD(policy.parameters(), lr=1e-3)
    guard = guard or Guard(
        policy, reference, optimizer=optimizer, on_violation="record", strict=True, ignore=["KLG1"]
    )
    with guard:
        for _ in range(steps):
            prompts = torch.randint(2, 64, (16, PROMPT))
            given = {"input_ids": prompts, "attention_mask": torch.ones_like(prompts)}
            with torch.no_grad():
                if evaluate:
                    policy.generate(**given, **PURE)
                ids = policy.generate(**given, **PURE | (settings or {}))
            responses = ids[:, PROMPT:]
            mask = (responses == EOS).cumsum(1) - (responses == EOS).long() == 0
            for rows in choose(responses):
                rows = torch.as_tensor(rows)
                logits = policy(ids[rows], use_cache=False).logits[:, PROMPT - 1 : -1]
                with torch.no_grad():
                    reference(ids[rows])
                new = logits.log_softmax(-1).gather(-1, responses[rows][..., None])[..., 0]
                loss = -(new * mask[rows]).sum() / mask[rows].sum() * 0.01
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return guard


@pytest.mark.parametrize("evaluate", [False, True])
def test_all_rows_are_evidence(evaluate):
    guard = run(everything, settings={"top_k": 8}, evaluate=evaluate)
    assert not guard.evidence.closed
    assert "KLG701" in {finding.code for finding in guard.findings}


def test_rows_scored_after_an_update_are_not_dropped():
    guard = run(minibatches, steps=12, settings={"top_k": 8})
    assert not guard.evidence.closed
    assert "KLG701" in {finding.code for finding in guard.findings}


def test_rows_chosen_by_what_they_say_are_no_evidence(caplog):
    """Without the rule these loops alarm: what is left of their rows has more stop tokens than the policy draws."""
    with caplog.at_level(logging.WARNING, logger="klguard"):
        guard = run(those_that_stop, steps=60)
    assert guard.findings == []
    assert guard.evidence.closed
    assert sum("Score all rows" in record.getMessage() for record in caplog.records) == 1
    assert all("dropped" in why for why in guard.evidence.blind.values())


def test_it_stays_so_after_a_restart():
    first = run(those_that_stop, steps=3)
    assert first.evidence.closed
    again = Guard(on_violation="record", strict=True)
    again.load_state_dict(first.state_dict())
    assert again.evidence.closed
