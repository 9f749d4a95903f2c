"""Execution as the oracle: wherever the reader claims to know a setting, the run must agree."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from klguard.read.python import functions

from .compare import judge
from .minimise import minimise
from .programs import Source, programs, seeded

SEEDS = range(300)


def wrong(source: Source) -> bool:
    return bool(judge(source).wrong)


def test_the_reader_agrees_with_the_run_wherever_it_says_known(capsys):
    """The programs of fixed seeds, in which every style occurs."""
    total: Counter = Counter()
    for seed in SEEDS:
        source = seeded(seed)
        verdict = judge(source)
        if verdict.wrong:
            small = minimise(source, wrong, seconds=20)
            raise AssertionError("\n".join([f"seed {seed}", *map(str, judge(small).wrong), str(small)]))
        kind = "opaque" if source.opaque else "plain"
        total.update({"sites": verdict.sites, "missed": verdict.missed})
        total.update({f"{kind} settings": verdict.settings, f"{kind} unknown": verdict.unknown})
    kinds = ("plain", "opaque")
    shares = [total[f"{kind} unknown"] / max(1, total[f"{kind} settings"]) for kind in kinds]
    with capsys.disabled():
        print(
            f"\n{len(SEEDS)} programs, {total['sites']} sites, {total['missed']} not seen, 0 wrong values; "
            f"unknown: {shares[0]:.1%} of {total['plain settings']} settings, "
            f"{shares[1]:.1%} where code that is not visible takes part"
        )
    assert total["sites"] > 2 * len(SEEDS)
    assert total["missed"] == 0
    # A reader that says "unknown" to everything is never wrong: this is how much it may say so.
    assert shares[0] < 0.1


@pytest.mark.parametrize(("statements", "first"), [(1, 20_000_000), (12, 30_011_800)])
def test_what_is_not_followed_is_unknown_and_never_wrong(statements, first, monkeypatch):
    """As where functions behind which there is no site are too long to follow."""
    monkeypatch.setattr(functions, "ASIDE_BUDGET", statements)
    for seed in range(first, first + 100):
        source = seeded(seed)
        assert not judge(source).wrong, f"seed {seed}\n{minimise(source, wrong, seconds=20)}"


@settings(
    max_examples=100,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate, Phase.shrink),
)
@given(programs())
def test_hypothesis_finds_no_program_on_which_they_disagree(source):
    verdict = judge(source)
    assert not verdict.wrong, "\n".join([*map(str, verdict.wrong), str(source)])
