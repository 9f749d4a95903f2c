"""Several processes: the same numbers as one, the same decision at the same step, and nobody waits for ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from klguard.guard.ranks import Ranks  # noqa: E402

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch is built without torch.distributed"
)


def run(case, size, folder):
    """What each process of the case answers."""
    # accelerate reads the rank from the environment; MASTER_* are unused with a file store
    common = os.environ | {"PYTHONPATH": str(ROOT), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": "29511", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    store, out = folder / f"store{size}", folder / f"out{size}"
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.guard.ranks_worker",
                str(rank),
                str(size),
                str(store),
                case,
                str(out),
            ],
            cwd=ROOT,
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * size, "\n".join(outputs)[-3000:]
    return [json.loads(Path(f"{out}.{rank}").read_text()) for rank in range(size)]


def numbers(answer):
    """All numbers in it, in order, with where they stand."""
    if isinstance(answer, dict):
        for name in sorted(answer):
            yield from ((f"{name}.{where}", number) for where, number in numbers(answer[name]))
    elif isinstance(answer, list):
        for index, entry in enumerate(answer):
            yield from ((f"{index}.{where}", number) for where, number in numbers(entry))
    else:
        yield "", answer


@pytest.mark.parametrize("size", [2, 4])
def test_the_same_numbers_as_one_process_on_all_the_data(size, tmp_path):
    (alone,) = run("same_numbers", 1, tmp_path)
    together = run("same_numbers", size, tmp_path)
    assert together[1:] == together[:-1], "ranks differ"
    expected, found = dict(numbers(alone)), dict(numbers(together[0]))
    assert expected.keys() == found.keys()
    for where, value in expected.items():
        close = value if isinstance(value, str) else pytest.approx(value, rel=1e-9, abs=1e-9)
        assert found[where] == close, where
    assert "KLG701" in alone[-1][3] and alone[2][3] == []


@pytest.mark.parametrize("size", [2, 4])
def test_all_ranks_raise_at_the_same_step(size, tmp_path):
    answers = run("all_raise", size, tmp_path)
    assert answers[1:] == answers[:-1]
    assert answers[0] is not None and answers[0][1] == "KLG701"


def test_what_one_rank_sees_all_ranks_raise(tmp_path):
    assert run("local_fault", 4, tmp_path) == [[2, "KLG811"]] * 4


@pytest.mark.parametrize("size", [2, 4])
def test_a_rank_with_nothing_or_nan_neither_hangs_nor_spoils_the_rest(size, tmp_path):
    answers = run("nothing_to_say", size, tmp_path)
    assert answers[1:] == answers[:-1]
    codes, evidence, tokens = answers[0]
    assert "KLG701" in codes and "KLG838" in codes
    assert evidence == evidence and tokens > 0


@pytest.mark.parametrize("size", [2, 4])
def test_when_one_guard_fails_all_step_aside_together(size, tmp_path):
    for aside, told in run("one_fails", size, tmp_path):
        assert aside == [False, False, True, True, True, True]
        assert told == 1


@pytest.mark.parametrize("case", ["wrapped", "prepared", "sharded"])
def test_wrapped_models(case, tmp_path):
    if case == "prepared":
        pytest.importorskip("accelerate")
    if case == "sharded":
        pytest.importorskip("torch.distributed.fsdp", reason="FSDP2 came with torch 2.6")
    answers = run(case, 2, tmp_path)
    for findings, tokens, version, evidence in answers:
        assert findings == []
        assert tokens > 100, "the scoring passes were not recognised"
        assert version == 12
        assert evidence < 3
    assert answers[0] == answers[1]


def test_alone_nothing_is_reduced():
    sums, maxima = torch.tensor([1.0]), torch.tensor([2.0])
    assert not Ranks().active
    assert Ranks().combine(sums, maxima) == (sums, maxima)
