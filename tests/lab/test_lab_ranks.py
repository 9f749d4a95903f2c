"""The loop under torchrun: four gloo processes with FSDP2, one of them slow, one of them killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("torch.distributed.fsdp", reason="FSDP2 came with torch 2.6")

from klguard.guard.journal import read  # noqa: E402

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed"),
]


def torchrun(case, folder, *more, size=4, dies=False):
    """What each rank answers; nothing where the launch has to fail. A hang is a failure: it ends after minutes."""
    folder.mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    launch = ["--standalone", "--nproc-per-node", str(size)]
    launch += ["-m", "tests.lab.ranks_worker", case, str(folder), *more]
    process = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *launch],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert (process.returncode != 0) is dies, process.stderr[-3000:]
    if dies:
        return []
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(size)]


SHARED = ("raised", "steps", "log_evidence", "tokens", "version", "failure", "findings", "weights")


def agreed(answers):
    """The first answer, after a check that all ranks say the same where they have to."""
    for answer in answers:
        assert {name: answer[name] for name in SHARED} == {name: answers[0][name] for name in SHARED}
    return answers[0]


def test_a_sharded_run_is_clean_and_one_killed_rank_costs_nothing_but_time(tmp_path):
    whole = torchrun("fsdp", tmp_path / "whole")
    torchrun("fsdp", tmp_path / "killed", "3", dies=True)
    killed = torchrun("fsdp", tmp_path / "killed")
    one, other = agreed(whole), agreed(killed)
    assert one["findings"] == [] and one["failure"] is None and one["steps"] == 5
    assert one["tokens"] > 300 and len(one["exercised"]) > 35
    assert sum(answer["held"] for answer in whole) == one["all"], "each rank holds a part"
    assert not one["resumed"] and other["resumed"]
    for name in SHARED:
        assert one[name] == other[name], f"{name} after a kill and a resume"
    journal = read(tmp_path / "killed" / "run.jsonl")
    assert [step["step"] for step in journal.steps] == list(range(5))
    assert journal.restarts == 1 and journal.torn == 0 and journal.end["outcome"] == "finished"


def test_ranks_that_hold_the_whole_model_agree_too(tmp_path):
    answers = torchrun("ddp", tmp_path / "ddp", size=2)
    one = agreed(answers)
    assert one["findings"] == [] and one["failure"] is None and one["steps"] == 5
    assert all(answer["held"] == one["all"] for answer in answers)


def test_all_ranks_stop_at_the_same_step_when_one_of_them_samples_otherwise(tmp_path):
    one = agreed(torchrun("bent", tmp_path / "bent"))
    assert one["raised"] is not None and one["raised"][1] == "KLG701" and one["raised"][0] <= 2
    journal = read(tmp_path / "bent" / "run.jsonl")
    assert [violation["code"] for violation in journal.violations][:1] == ["KLG701"]
    assert journal.end["outcome"] == "raised"
