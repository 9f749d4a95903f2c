"""Chunks cover every row once, stay within the budget, and never copy what they look at."""

from __future__ import annotations

import json
import math

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from klguard.guard import kl, vocabulary  # noqa: E402
from klguard.guard.vocabulary import DEFAULT_BUDGET, blocks, chunks, rows_per_chunk  # noqa: E402

MIB = 2**20


@pytest.fixture(autouse=True)
def one_thread():
    """One thread: the tensors are small, and tests run side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@given(st.integers(0, 300), st.integers(1, 5000), st.sampled_from([2, 4, 8]), st.integers(1, 10**6))
@settings(max_examples=60, deadline=None)
def test_chunks_cover_every_row_once_within_the_budget(n, vocabulary_size, itemsize, budget):
    covered = []
    for part in chunks(n, vocabulary_size, itemsize, budget, copies=3):
        rows = list(range(n))[part]
        covered += rows
        assert len(rows) == 1 or len(rows) * vocabulary_size * itemsize * 3 <= budget
        assert rows, "a chunk is empty"
    assert covered == list(range(n))


def test_an_accelerator_gets_chunks_as_large_as_the_budget():
    rows = rows_per_chunk(50257, 4, 64 * MIB, copies=3, device="cuda")
    assert 64 * MIB - 9 * 50257 * 12 < rows * 50257 * 12 <= 64 * MIB


def test_the_cpu_gets_chunks_that_fit_its_cache():
    assert rows_per_chunk(50257, 4, 64 * MIB, copies=2) == 8
    assert rows_per_chunk(151_936, 4, 64 * MIB, copies=2) == 3
    torch.set_num_threads(2)
    assert rows_per_chunk(50257, 4, 64 * MIB, copies=2) == 16


def test_large_chunks_keep_rows_aligned():
    """A chunk that starts on a multiple of 8 rows starts on 16 bytes, whatever the width of the vocabulary."""
    for part in chunks(200, 50257, 2, 8 * MIB, copies=3, device="cuda"):
        assert part.start * 50257 * 2 % 16 == 0


def test_one_row_larger_than_the_budget_is_still_one_row():
    assert list(chunks(3, 1000, 4, budget=10)) == [slice(0, 1), slice(1, 2), slice(2, 3)]


@pytest.mark.parametrize("wrong", [{"budget": 0}, {"copies": 0}, {"itemsize": 0}])
def test_a_budget_of_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match="at least 1"):
        rows_per_chunk(10, **wrong)


@given(st.lists(st.integers(0, 7), max_size=3), st.integers(1, 40))
@settings(max_examples=80, deadline=None)
def test_blocks_cover_every_element_once(leading, rows):
    seen = torch.zeros(leading, dtype=torch.int64)
    for box in blocks(tuple(leading), rows):
        assert seen[box].numel() <= rows
        seen[box] += 1
    assert bool((seen == 1).all())


def peak_bytes(tmp_path, work) -> int:
    """The most that was allocated at once while `work` ran, counted by torch's own profiler."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        work()
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    held = highest = 0
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    memory = [event for event in events if event.get("name") == "[memory]"]
    for event in sorted(memory, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        highest = max(highest, held)
    return highest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shifted", [False, True], ids=["contiguous", "view"])
@pytest.mark.parametrize("budget", [MIB, MIB // 16], ids=["rows", "parts of a row"])
def test_memory_stays_within_the_budget(tmp_path, dtype, shifted, budget):
    logits = torch.randn(4, 17, 20_000).to(dtype)
    other = torch.randn(4, 17, 20_000).to(dtype)
    tokens = torch.randint(20_000, (4, 17))
    if shifted:
        logits, other, tokens = logits[:, :-1], other[:, :-1], tokens[:, 1:]
    small = 4 * 17 * 8 * 8  # results and per-token bookkeeping
    assert peak_bytes(tmp_path, lambda: kl.exact_kl(logits, other, budget=budget)) <= budget + small
    assert peak_bytes(tmp_path, lambda: kl.entropy(logits, budget=budget)) <= budget + small
    if budget >= 8 * 20_000:  # token_log_probs takes whole rows, to be bit-identical
        assert (
            peak_bytes(tmp_path, lambda: kl.token_log_probs(logits, tokens, budget=budget)) <= budget + small
        )
    whole = peak_bytes(tmp_path, lambda: torch.log_softmax(logits.float(), -1))
    assert whole > 4 * MIB, "the measurement sees allocations"


def test_the_default_budget_is_64_mib():
    assert DEFAULT_BUDGET == 64 * MIB


def test_the_scratch_hands_out_the_callers_rows_only_when_they_can_be_read_as_they_are():
    scratch = vocabulary.Scratch(1, 100, torch.device("cpu"))
    rows = torch.randn(4, 20)
    assert scratch.fp32(0, rows).data_ptr() == rows.data_ptr()
    assert scratch.fp32(0, rows[:, ::2]).data_ptr() != rows.data_ptr()
    assert torch.equal(scratch.fp32(0, rows[:, ::2]), rows[:, ::2])
    assert scratch.fp32(0, rows.half()).dtype == torch.float32


def test_the_largest_logit_of_parts_is_that_of_the_row():
    rows = torch.tensor(
        [[1.0, 5.0, 2.0, 9.0], [-math.inf, -math.inf, -3.0, -math.inf], [0.0, math.nan, 0.0, 1.0]]
    )
    largest = vocabulary.largest_logits(rows, [slice(0, 2), slice(2, 3), slice(3, 4)])
    torch.testing.assert_close(largest, rows.amax(-1, keepdim=True), equal_nan=True)
    assert vocabulary.largest_logits(rows.bfloat16(), [slice(0, 4)]).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_copy_in_the_scratch_can_be_written_over(dtype):
    scratch = vocabulary.Scratch(1, 100, torch.device("cpu"))
    rows = torch.ones(4, 20, dtype=dtype)
    scratch.fp32_copy(0, rows).zero_()
    assert bool((rows == 1).all())
