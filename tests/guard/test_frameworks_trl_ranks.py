"""GRPO and RLOO in two processes under DDP: both decide alike, nothing hangs, and what one process says is said."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
trl = pytest.importorskip("trl", reason="TRL is not installed")

if not hasattr(trl, "GRPOTrainer"):
    pytest.skip("this release of TRL has no GRPOTrainer", allow_module_level=True)

from tests.guard.trl_ranks_worker import RUNS  # noqa: E402
from tests.guard.trl_trainers import ALWAYS, GROUPS  # noqa: E402

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch is built without torch.distributed"
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What both ranks say of all runs."""
    out = tmp_path_factory.mktemp("ranks") / "out"
    common = {"PYTHONPATH": str(ROOT), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.guard.trl_ranks_worker", str(rank), str(out)],
            cwd=ROOT,
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)[-3000:]
    return [json.loads(Path(f"{out}.{rank}").read_text(encoding="utf-8")) for rank in range(2)]


def test_the_trainers_really_ran_on_two_ranks(answers):
    assert {one["wrapped"] for answer in answers for one in answer.values()} == {"DistributedDataParallel"}


def test_both_ranks_say_the_same(answers):
    assert answers[0] == answers[1]


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("safe")])
def test_a_safe_run_is_silent_with_its_checks_exercised(answers, name):
    one = answers[0][name]
    assert (one["found"], one["failure"], one["steps"]) == ([], None, 4)
    assert set(one["exercised"]) >= (ALWAYS | GROUPS) - {"KLG822", "KLG823"}
    assert one["evidence"] < 5 and one["tokens"] > 250


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("top_k")])
def test_top_k_is_named(answers, name):
    one = answers[0][name]
    assert {"KLG101", "KLG701"} <= {code for code, _ in one["found"]}
    assert one["causes"] == ["top_k=10"] and one["failure"] is None


def test_both_ranks_raise_at_the_same_step(answers):
    assert [(one["raising"]["raised"], one["raising"]["steps"]) for one in answers] == [("KLG101", 1)] * 2
