"""A run that is resumed goes on as if nothing had happened, to the bit."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from klguard.guard.journal import read  # noqa: E402
from klguard.lab.checkpoint import found, resume, save  # noqa: E402
from tests.lab.runs import differing, short, weights  # noqa: E402

OPTIONS = {"steps": 6, "micro_batch": 4}


def guarded(loop, path):
    return loop.guarded(on_violation="record", strict=True, journal=path)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    whole = short(**OPTIONS)
    guard = guarded(whole, tmp_path / "whole.jsonl")
    whole.run(guard)

    first = short(**OPTIONS)
    part = guarded(first, tmp_path / "parts.jsonl")

    def until_three(loop):
        if loop.number == 3:
            save(tmp_path / "checkpoints", loop, part)
            return True

    first.run(part, after_step=until_three)
    torch.manual_seed(99)
    second = short(**OPTIONS)
    rest = guarded(second, tmp_path / "parts.jsonl")
    assert resume(tmp_path / "checkpoints", second, rest)
    assert second.number == 3 and len(second.logs) == 3
    second.run(rest)

    assert differing(weights(whole), weights(second)) == []
    assert whole.logs == second.logs
    assert whole.scheduler.state_dict() == second.scheduler.state_dict()
    assert rest.evidence.log_evidence == guard.evidence.log_evidence
    assert rest.evidence.tokens == guard.evidence.tokens and rest.version == guard.version
    assert rest.findings == guard.findings == []
    journal = read(tmp_path / "parts.jsonl")
    assert [step["step"] for step in journal.steps] == list(range(6)) and journal.restarts == 1


def test_without_its_guard_a_checkpoint_resumes_the_run(tmp_path):
    whole, first, second = (short(steps=4) for _ in range(3))
    whole.run()
    first.run(after_step=lambda loop: loop.number == 2)
    save(tmp_path, first)
    resume(tmp_path, second)
    second.run()
    assert differing(weights(whole), weights(second)) == []


def test_nothing_is_resumed_from_nothing(tmp_path):
    assert resume(tmp_path / "none", short()) is False


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    loop = short(steps=2)
    loop.run(after_step=lambda loop: loop.number == 1)
    save(tmp_path, loop)

    def killed(*args):
        raise KeyboardInterrupt

    loop.number = 2
    monkeypatch.setattr("klguard.lab.checkpoint.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, loop)
    monkeypatch.undo()
    assert [path.name for path in found(tmp_path)] == ["step-00000001"]
    other = short(steps=2)
    assert resume(tmp_path, other) and other.number == 1
    save(tmp_path, loop)
    assert [path.name for path in found(tmp_path)] == ["step-00000001", "step-00000002"]


def test_only_the_last_checkpoints_are_kept(tmp_path):
    loop = short()
    for loop.number in range(5):
        save(tmp_path, loop, keep=2)
    assert [path.name for path in found(tmp_path)] == ["step-00000003", "step-00000004"]


def test_another_number_of_ranks_is_refused(tmp_path):
    loop = short()
    saved = save(tmp_path, loop) / "run.pt"
    shared = torch.load(saved, weights_only=True)
    torch.save(shared | {"ranks": 4}, saved)
    with pytest.raises(ValueError, match="4 ranks and there are 1"):
        resume(tmp_path, short())
