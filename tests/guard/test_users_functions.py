"""The loop's own functions raise: before training it is told, in the middle of it the run goes on."""

from __future__ import annotations

import logging
import sys

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from klguard import Guard  # noqa: E402
from tests.guard.loop import Loop, run  # noqa: E402

torch.set_num_threads(1)


class Mine(Exception):
    """Nothing that the guard would raise itself."""


def fails(*_, **__):
    raise Mine("my own")


BEFORE = ("score", "reference_score", "kl_loss", "accumulate", "reward", "gae", "packed")


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", BEFORE)
def test_what_a_function_of_the_preflight_raises_is_raised(name, strict, recwarn):
    loop = Loop()
    guard = Guard(loop.policy, loop.reference, loop.tokenizer, on_violation="record", strict=strict)
    functions = {"score": loop.score} if name == "packed" else {}
    modes = [module.training for module in loop.policy.modules()]
    state = torch.get_rng_state()
    with pytest.raises(Mine, match="my own") as raised:
        guard.preflight(**functions, **{name: fails})
    assert guard.failure is None and not recwarn.list
    assert modes == [module.training for module in loop.policy.modules()]
    assert torch.equal(state, torch.get_rng_state())
    if sys.version_info >= (3, 11):
        assert f"`{name}`" in raised.value.__notes__[0]
    guard.preflight(reward=loop.total_reward)
    assert guard.failure is None and "KLG826" in guard.exercised, "the guard goes on"


def test_a_cause_that_the_user_gave_is_kept():
    def chained(*_):
        try:
            raise KeyError("first")
        except KeyError as error:
            raise Mine("my own") from error

    with pytest.raises(Mine) as raised:
        Guard(Loop().policy).preflight(reward=chained)
    assert isinstance(raised.value.__cause__, KeyError)


class FailingReward(Loop):
    calls = 0

    def recompute(self, texts):
        type(self).calls += 1
        fails()

    def tell_rewards(self, batch):
        self.guard.rewards(
            batch.scores,
            texts=self.texts(batch.responses, batch.mask),
            recompute=self.recompute,
            mask=batch.mask,
        )


class WordsForRewards(FailingReward):
    def recompute(self, texts):
        type(self).calls += 1
        return ["good"] * len(texts)


@pytest.mark.parametrize("kind", [FailingReward, WordsForRewards])
@pytest.mark.parametrize("strict", [False, True])
def test_a_recompute_that_raises_costs_its_own_check_only(kind, strict, caplog, monkeypatch, recwarn):
    monkeypatch.setattr("klguard.guard.invariants.signals.RewardOfAnother.EACH", 1)
    monkeypatch.setattr(kind, "calls", 0)
    with caplog.at_level(logging.WARNING, logger="klguard"):
        guard = run(kind, steps=3, strict=strict)
    assert guard.failure is None and guard.findings == []
    assert kind.calls == 1
    assert len([record for record in caplog.records if "recompute" in record.getMessage()]) == 1
    assert not [w for w in recwarn.list if "stepped aside" in str(w.message)]
    assert guard._works.run.step == 3


def test_rewards_are_still_looked_at_after_a_recompute_that_raised():
    class NotFinite(FailingReward):
        def tell_rewards(self, batch):
            batch.scores[0] = torch.nan
            super().tell_rewards(batch)

    assert "KLG864" in {finding.code for finding in run(NotFinite, steps=1).findings}


@pytest.mark.parametrize("strict", [False, True])
def test_a_logger_that_raises_is_not_called_again(strict, caplog, tmp_path, recwarn):
    calls = []

    def logger(figures, step):
        calls.append(step)
        fails()

    journal = tmp_path / "run.jsonl"
    with caplog.at_level(logging.WARNING, logger="klguard"):
        guard = run(Loop, steps=3, strict=strict, logger=logger, journal=journal)
    assert calls == [0]
    assert guard.failure is None and guard.findings == []
    assert len([record for record in caplog.records if "logger" in record.getMessage()]) == 1
    assert guard.metrics["klguard/tokens"] > 0, "they can still be asked for"
    assert journal.read_text().count('"kind":"step"') == 3
    assert not [w for w in recwarn.list if "stepped aside" in str(w.message)]
