"""Healthy runs: the guard speaks in at most alpha of them. The full version is benchmarks/guard_false_alarms.py."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
false_alarms = pytest.importorskip(
    "benchmarks.guard_false_alarms", reason="benchmarks are not in the source package"
)

RUNS, TOGETHER = 200, 20
SETUPS = tuple(
    false_alarms.Setup(vocabulary, entropy, batch, length, steps, dtype, sample_tokens=tested)
    for vocabulary, entropy, batch, length, steps, dtype, tested in (
        (100, 2.5, 8, 16, 6, "float32", 1024),
        (100, 2.5, 8, 16, 6, "bfloat16", 1024),
        (64, 0.5, 6, 20, 10, "float32", 64),
        (200, 4.5, 6, 16, 6, "bfloat16", 1024),
        (300, 5.0, 6, 12, 5, "float32", 1024),
    )
)


@pytest.fixture(scope="module")
def runs():
    threads = torch.get_num_threads()
    yield false_alarms.simulate(RUNS, TOGETHER, SETUPS, thorough=10)
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_healthy_runs_alarm_in_at_most_alpha_of_cases_in_all_and_by_family(runs):
    figures = false_alarms.figures(runs)
    assert false_alarms.too_many(figures) == [], figures


@pytest.mark.slow
def test_the_evidence_reaches_one_over_any_level_in_at_most_that_share_of_runs(runs):
    """Ville's inequality at levels where 200 runs can show a breach of it."""
    for level in (0.5, 0.2, 0.1):
        reached = sum(run.highest >= -math.log(level) for run in runs) / len(runs)
        assert reached <= level + 3 * math.sqrt(level * (1 - level) / len(runs)), level


def test_what_counts_as_too_many_is_three_standard_errors_above_alpha():
    setup = SETUPS[0]
    clean = [false_alarms.Healthy((), (), 0.0, 1, setup)] * 180
    alarming = [false_alarms.Healthy(("KLG701",), ("text",), 9.0, 1, setup)] * 20
    assert false_alarms.allowed(200) == pytest.approx(0.0962, abs=1e-4)
    assert false_alarms.too_many(false_alarms.figures(clean + alarming)) == ["ever", "KLG701 to KLG704"]
    assert false_alarms.too_many(false_alarms.figures(clean + alarming[:19])) == []
