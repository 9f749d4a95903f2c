"""The journal: strict JSON lines that survive a kill, and what the reader makes of them. Free of torch."""

from __future__ import annotations

import errno
import json
import math
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from klguard import __version__
from klguard.findings import Confidence, Finding, Measured, Severity
from klguard.guard.journal import Journal, JournalError, read
from klguard.settings import Hop, HopKind, Place

ROOT = Path(__file__).parent.parent.parent

STEP = {
    "seconds": 1234.56789,
    "tokens": 1024000,
    "sequences": 16000,
    "kl_per_token": 0.0123456789,
    "kl_per_sequence": 1.23456789,
    "kl_standard_error": 0.0456789123,
    "exact_kl_per_token": 0.0132456789,
    "k3_per_token": 0.0132456789,
    "reward": 0.987654321,
    "entropy": 2.34567891,
    "log_evidence": -7.65432198,
    "causes": {
        "top_k=50": 0.412345678,
        "eos_suppressed<16": 0.212345678,
        "repetition_penalty=1.05": 0.112345678,
        "temperature=0.95": 0.0512345678,
        "reference": 0.0212345678,
    },
    "bias_per_sequence": 0.0123456789,
    "bias_standard_error": 0.0234567891,
    "grad_norm": 1.23456789,
    "loss": -0.0123456789,
    "response_length": 48.1234567,
    "truncated_share": 0.123456789,
    "ratio_mean": 1.00012345,
    "clip_fraction": 0.0312345678,
    "weights_version": 499,
    "ranks": 8,
    "guard_seconds": 0.0212345678,
}
"""A step with every figure the guard has."""

FINDING = Finding(
    code="KLG701",
    name="not-the-policy",
    severity=Severity.ERROR,
    confidence=Confidence.HIGH,
    message="the tokens were not drawn from the policy",
    place=Place(__file__, None, 1, 1, 1, 4),
    help="write `top_k=0`",
    origin=(
        Hop(HopKind.LIVE, None, "written here"),
        Hop(HopKind.KWARG, Place("a.py", None, 3, 5, 3, 9), "passed"),
    ),
    measured=Measured(7, "top_k=50", 0.97, -0.42, 0.05, 0.021, value=14.2, limit=13.8),
)


def python(program: str, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", program, *arguments], env=environment)


def numbers(path: Path) -> list[int]:
    return [record["step"] for record in read(path).steps]


# --- what is written ------------------------------------------------------------------------------


def test_a_run_comes_back_as_it_was_written(tmp_path: Path):
    path = tmp_path / "deep" / "er" / "run.jsonl"
    with Journal(
        path, settings={"alpha": 1e-6, "kl_range": (0.0, math.inf), "on_violation": print}
    ) as journal:
        journal.step({"step": 0, **STEP})
        journal.violation(FINDING, {"step": 7})
        journal.event("note", words="here")
    run = read(path)
    assert run.header["klguard"] == __version__ and run.header["schema"] == 1
    assert run.settings == {"alpha": 1e-6, "kl_range": [0.0, math.inf], "on_violation": "<print>"}
    (step,) = run.steps
    assert run.segments[0].seconds == pytest.approx(1234.56789)
    assert step.pop("kind") == "step" and abs(step.pop("time") - time.time()) < 60 and step.pop("step") == 0
    assert step.keys() == STEP.keys()
    for name, value in STEP.items():
        assert step[name] == pytest.approx(value, rel=5e-7)
    (violation,) = run.violations
    assert (violation["code"], violation["severity"], violation["cause"]) == ("KLG701", "error", "top_k=50")
    assert violation["harm"] == {"nats_per_sequence": -0.42, "standard_error": 0.05, "reward": 0.021}
    first = Path(__file__).read_text(encoding="utf-8").splitlines()[0]
    assert violation["place"]["line"] == 1 and violation["place"]["source"] == first
    assert [hop["text"] for hop in violation["origin"]] == ["written here", "passed"]
    assert run.events[0]["kind"] == "note" and run.events[0]["words"] == "here"
    assert run.end is not None and run.end["outcome"] == "finished" and run.end["steps"] == 1
    assert (run.restarts, run.torn) == (0, 0)


def test_every_line_is_strict_json_that_says_its_kind_first(tmp_path: Path):
    path = tmp_path / "run.jsonl"
    with Journal(path) as journal:
        journal.step(
            {"step": 0, "reward": math.nan, "loss": math.inf, "causes": {"a\n\u2028\ud800": -math.inf}}
        )
        journal.violation(FINDING)

    def refuse(token: str) -> None:
        raise AssertionError(token)

    for line in path.read_bytes().splitlines():
        record = json.loads(line, parse_constant=refuse)
        assert line.startswith(b'{"kind":"') and line.isascii() and isinstance(record, dict)
    (step,) = read(path).steps
    assert math.isnan(step["reward"]) and step["loss"] == math.inf
    assert step["causes"] == {"a\n\u2028\ud800": -math.inf}


def test_words_that_look_like_numbers_stay_words(tmp_path: Path):
    with Journal(tmp_path / "run.jsonl") as journal:
        journal.violation(FINDING, {"message": "NaN", "cause": "Infinity", "weight": math.nan})
    (violation,) = read(tmp_path / "run.jsonl").violations
    assert (violation["message"], violation["cause"]) == ("NaN", "Infinity")
    assert math.isnan(violation["weight"])


def test_counts_and_times_are_not_rounded(tmp_path: Path):
    with Journal(tmp_path / "run.jsonl") as journal:
        journal.step({"step": 0, "tokens": 12345678901, "sequences": 12345678901.0, "time": 1795382383.893})
    (step,) = read(tmp_path / "run.jsonl").steps
    assert (step["tokens"], step["sequences"], step["time"]) == (12345678901, 12345678901.0, 1795382383.893)


def test_figures_that_are_none_are_left_out(tmp_path: Path):
    with Journal(tmp_path / "run.jsonl") as journal:
        journal.step({"step": 0, "reward": None, "loss": 0.5})
    assert read(tmp_path / "run.jsonl").steps[0].keys() == {"kind", "step", "loss", "time", "seconds"}


def test_a_value_that_is_no_plain_data_is_refused_and_the_journal_goes_on(tmp_path: Path):
    with Journal(tmp_path / "run.jsonl") as journal:
        with pytest.raises(TypeError, match="`loss` of a journal record is of type object"):
            journal.step({"step": 0, "loss": object()})
        journal.step({"step": 1})
    assert numbers(tmp_path / "run.jsonl") == [1]


def test_numbers_of_numpy_are_numbers(tmp_path: Path):
    numpy = pytest.importorskip("numpy")
    with Journal(tmp_path / "run.jsonl") as journal:
        journal.step({"step": numpy.int64(3), "reward": numpy.float32(0.5), "loss": numpy.float64("nan")})
    (step,) = read(tmp_path / "run.jsonl").steps
    assert step["step"] == 3 and step["reward"] == 0.5 and math.isnan(step["loss"])


def test_an_exception_that_ends_the_run_is_in_the_last_record(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), Journal(tmp_path / "run.jsonl"):
        raise KeyboardInterrupt
    end = read(tmp_path / "run.jsonl").end
    assert end is not None and (end["outcome"], end["error"]) == ("raised", "KeyboardInterrupt")


def test_closing_twice_is_fine_and_writing_after_it_is_not(tmp_path: Path):
    journal = Journal(tmp_path / "run.jsonl")
    journal.close()
    journal.close()
    with pytest.raises(ValueError, match="is closed"):
        journal.step({"step": 0})
    assert len((tmp_path / "run.jsonl").read_bytes().splitlines()) == 2


def test_one_record_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    journal = Journal(tmp_path / "run.jsonl")
    written: list[bytes] = []
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: written.append(data) or real(descriptor, data))
    journal.step({"step": 0, **STEP})
    journal.violation(FINDING)
    journal.close()
    assert len(written) == 3 and all(data.count(b"\n") == 1 and data.endswith(b"\n") for data in written)


def test_two_journals_on_one_file_by_mistake_do_not_write_over_each_other(tmp_path: Path):
    one, other = Journal(tmp_path / "run.jsonl"), Journal(tmp_path / "run.jsonl")
    for step in range(10):
        (one, other)[step % 2].step({"step": step})
    one.close()
    other.close()
    assert numbers(tmp_path / "run.jsonl") == list(range(10)) and read(tmp_path / "run.jsonl").torn == 0


def test_without_append_the_file_is_begun_anew(tmp_path: Path):
    for step in (1, 2):
        with Journal(tmp_path / "run.jsonl", append=False) as journal:
            journal.step({"step": step})
    assert numbers(tmp_path / "run.jsonl") == [2]


# --- paths that cannot be -------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["file/run.jsonl", "directory", "directory/" + "n" * 300], ids=str)
def test_a_path_that_cannot_be_written_is_one_clear_error_at_once(tmp_path: Path, path: str):
    (tmp_path / "file").write_text("")
    (tmp_path / "directory").mkdir()
    with pytest.raises(
        OSError, match=r"the journal cannot be written \(.+\): give journal= a file in a directory"
    ) as e:
        Journal(tmp_path / path)
    assert e.value.filename == str(tmp_path / path) and e.value.errno


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        Journal(tmp_path / "pipe")


@pytest.mark.parametrize("content", ["epoch,loss\n0,1.5\n", '{"loss": 1}\n', "\n", '{"kind":"step"}\n'])
def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path, content: str):
    path = tmp_path / "train.log"
    path.write_text(content)
    with pytest.raises(ValueError, match="holds something other than a klguard journal"):
        Journal(path)
    assert path.read_text() == content
    with pytest.raises(JournalError, match=r"train\.log:1: not a klguard journal"):
        read(path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[1, 2]", "not a record"),
        ('{"step": 3}', "not a record"),
        ('{"kind": 3}', "not a record"),
        ('{"kind": "step"}', "without the number of its step"),
        ('{"kind": "step", "step": "1"}', "without the number of its step"),
        ('{"kind": "step", "step": true}', "without the number of its step"),
        ('{"kind": "run", "schema": 2}', "schema 2 is not one that klguard"),
    ],
)
def test_what_no_kill_can_have_done_is_an_error_with_its_line(tmp_path: Path, line: str, words: str):
    path = tmp_path / "run.jsonl"
    Journal(path).close()
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(JournalError, match=rf"run\.jsonl:3: .*{words}"):
        read(path)


def test_a_later_klguard_may_write_kinds_and_fields_that_this_one_does_not_know(tmp_path: Path):
    path = tmp_path / "run.jsonl"
    with Journal(path) as journal:
        journal.step({"step": 0, "curvature": 3.0, "nested": {"deep": [1, {"x": None}]}})
        journal.event("checkpoint", file="a.pt")
    run = read(path)
    assert run.steps[0]["nested"] == {"deep": [1, {"x": None}]} and run.events[0]["file"] == "a.pt"


# --- kills ----------------------------------------------------------------------------------------

WRITER = """
import mmap, struct, sys
from klguard.guard.journal import Journal
path, shared, first, padding = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
with open(shared, "r+b") as file:
    written = mmap.mmap(file.fileno(), 8)
journal = Journal(path)
for step in range(first, 10**9):
    journal.step({"step": step, "check": step * 7, "padding": "x" * padding})
    written[:] = struct.pack("q", step)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_kill_at_any_moment_loses_at_most_the_last_line(tmp_path: Path):
    path, shared = tmp_path / "run.jsonl", tmp_path / "written"
    shared.write_bytes(struct.pack("q", -1))
    moments = random.Random(0)
    before, torn = b"", 0
    with shared.open("rb") as file, mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ) as written:

        def last() -> int:
            return struct.unpack("q", written[:])[0]

        for attempt in range(20):
            first = last() + 1
            # Long records are in the making for longer: some kills come in the middle of a write.
            writer = python(WRITER, str(path), str(shared), str(first), str((0, 200_000)[attempt % 2]))
            limit = time.monotonic() + 60
            while last() < first:
                assert writer.poll() is None and time.monotonic() < limit
                time.sleep(0.001)
            time.sleep(moments.uniform(0.0, 0.02))
            writer.kill()
            writer.wait()
            content = path.read_bytes()
            assert content.startswith(before), "what was there before has changed"
            run = read(path)
            steps = [record["step"] for record in run.steps]
            assert steps == list(range(len(steps))), "a step in the middle is missing"
            assert last() <= steps[-1] <= last() + 1, "more than the last line is lost"
            assert all(record["check"] == record["step"] * 7 for record in run.steps)
            assert run.end is None and run.restarts == attempt
            torn += not content.endswith(b"\n")
            assert run.torn <= torn
            before = content
    assert numbers(path)[-1] >= 19


def test_cut_off_after_any_byte_a_journal_is_read_and_goes_on(tmp_path: Path):
    path = tmp_path / "run.jsonl"
    with Journal(path, settings={"alpha": 1e-6}) as journal:
        journal.step({"step": 0, "reward": 1.5})
        journal.step({"step": 1, "reward": 2.5})
    whole = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        complete = sum(end - 1 <= length for end in ends)  # a line that lacks only its end is whole
        run = read(path)
        assert len(run.steps) == max(0, min(2, complete - 1))
        assert run.torn == (length not in (0, *ends) and length + 1 not in ends)
        with Journal(path) as resumed:
            resumed.step({"step": 2, "reward": 3.5})
        assert path.read_bytes().startswith(whole[:length])
        again = read(path)
        assert [record["reward"] for record in again.steps] == [1.5, 2.5][: len(run.steps)] + [3.5]
        assert again.torn == run.torn
        assert again.torn_lines == ((complete + 1,) if run.torn else ())


def test_blocks_of_zeros_after_a_power_failure_are_left_out(tmp_path: Path):
    path = tmp_path / "run.jsonl"
    with Journal(path) as journal:
        journal.step({"step": 0})
    with path.open("ab") as file:
        file.write(b"\0" * 4096)
    with Journal(path) as journal:
        journal.step({"step": 1})
    assert numbers(path) == [0, 1] and read(path).torn_lines == (4,)


FULL = """
import resource, sys
from klguard.guard.journal import Journal
path = sys.argv[1]
journal = Journal(path)
journal.step({"step": 0})
import os
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(path) + int(sys.argv[2]), hard))
for step in (1, 2):
    try:
        journal.step({"step": step, "padding": "x" * 500})
    except OSError as error:
        print(error.errno)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
journal.step({"step": 3})
journal.close()
"""


@pytest.mark.parametrize(("room", "torn"), [(0, 0), (1, 1), (100, 1)])
def test_a_full_disk_is_an_error_of_its_record_alone(tmp_path: Path, room: int, torn: int):
    pytest.importorskip("resource", reason="this system has no limits on the size of files")
    path = tmp_path / "run.jsonl"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", FULL, str(path), str(room)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(errno.EFBIG)] * 2, done.stderr
    assert numbers(path) == [0, 3] and read(path).torn == torn
    assert read(path).end is not None


# --- resuming -------------------------------------------------------------------------------------


def test_a_resumed_run_keeps_the_later_of_two_records_of_a_step(tmp_path: Path):
    path = tmp_path / "run.jsonl"
    for first, until in ((0, 6), (4, 9), (7, 8)):
        journal = Journal(path, settings={"seed": first})
        for step in range(first, until):
            journal.step({"step": step, "reward": float(first)})
        if first == 4:
            journal.close()
    run = read(path)
    assert [record["reward"] for record in run.steps] == [0, 0, 0, 0, 4, 4, 4, 7, 4]
    assert [record["step"] for record in run.steps] == list(range(9))
    assert run.restarts == 2 and run.settings == {"seed": 7}
    assert [part.first_step for part in run.segments] == [0, 4, 7]
    assert [part.end is not None for part in run.segments] == [False, True, False] and run.end is None


# --- threads and processes ------------------------------------------------------------------------


def test_threads_do_not_mix_their_lines(tmp_path: Path):
    with Journal(tmp_path / "run.jsonl") as journal:

        def write(start: int) -> None:
            for step in range(start, start + 200):
                journal.step({"step": step, "check": step * 7, "padding": "x" * 5000})

        threads = [threading.Thread(target=write, args=(200 * index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    run = read(tmp_path / "run.jsonl")
    assert [record["check"] for record in run.steps] == [step * 7 for step in range(1600)] and run.torn == 0
    assert run.end is not None and run.end["steps"] == 1600


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_writes_nothing_and_does_not_wait(tmp_path: Path):
    program = """
import os, sys, threading, warnings
warnings.simplefilter("ignore")
from klguard.guard.journal import Journal
with Journal(sys.argv[1]) as journal:
    journal.step({"step": 0})
    with journal._lock:  # as if another thread were writing when the process forks
        child = os.fork()
        if child == 0:
            thread = threading.Thread(target=lambda: (journal.step({"step": 1}), journal.close()))
            thread.start()
            thread.join(20)
            os._exit(1 if thread.is_alive() else 0)
        status = os.waitpid(child, 0)[1]
    journal.step({"step": 2})
sys.exit(os.waitstatus_to_exitcode(status))
"""
    assert python(program, str(tmp_path / "run.jsonl")).wait() == 0
    assert numbers(tmp_path / "run.jsonl") == [0, 2]
    end = read(tmp_path / "run.jsonl").end
    assert end is not None and end["steps"] == 2


# --- size and cost --------------------------------------------------------------------------------


def test_20000_steps_stay_small_and_are_read_in_seconds(tmp_path: Path):
    path = tmp_path / "run.jsonl"
    journal = Journal(path)
    begun = time.process_time()
    for step in range(20_000):
        journal.step({"step": step, **STEP})
    writing = (time.process_time() - begun) / 20_000
    journal.close()
    assert path.stat().st_size / 20_000 < 1000  # bytes a step: what the module's docstring says
    begun = time.process_time()
    assert len(read(path).steps) == 20_000
    assert time.process_time() - begun < 5.0
    assert writing < 1e-3


def test_the_journal_and_the_report_need_no_torch():
    program = """
import sys
sys.modules["torch"] = None
import klguard.guard.journal, klguard.guard.metrics
import klguard.report.html, klguard.report.terminal, klguard.report.summary
assert not {"numpy", "transformers", "plotly"} & sys.modules.keys(), sorted(sys.modules)
"""
    assert python(program).wait() == 0


def test_events_cannot_pass_for_the_journals_own_records(tmp_path: Path):
    with Journal(tmp_path / "run.jsonl") as journal:
        for kind in ("run", "step", "violation", "end"):
            with pytest.raises(ValueError, match=f"`{kind}` is a kind that the journal writes itself"):
                journal.event(kind)


def test_a_record_cannot_change_its_kind(tmp_path: Path):
    fields: dict[str, Any] = {"kind": "run", "step": 0}
    with Journal(tmp_path / "run.jsonl") as journal:
        journal.step(fields)
        journal.violation(FINDING, {"kind": "end"})
    run = read(tmp_path / "run.jsonl")
    assert len(run.steps) == 1 and len(run.violations) == 1 and run.restarts == 0
