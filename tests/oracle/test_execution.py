"""Execution as the oracle: wherever the reader claims to know a setting, the run must agree."""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, Phase, given, settings

from .compare import judge
from .programs import programs

PROGRAMS = 300


def test_the_reader_agrees_with_the_run_wherever_it_says_known(capsys):
    """Hypothesis draws the programs; a disagreement is shrunk to a small program and printed."""
    total: Counter = Counter()

    @settings(max_examples=PROGRAMS, derandomize=True, database=None, deadline=None,
              suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink), print_blob=False)
    @given(programs())
    def agree(source):
        verdict = judge(source)
        assert not verdict.wrong, "\n".join([*map(str, verdict.wrong), str(source)])
        kind = "opaque" if source.opaque else "plain"
        total.update({"programs": 1, "sites": verdict.sites, "missed": verdict.missed,
                      f"{kind} settings": verdict.settings, f"{kind} unknown": verdict.unknown})

    agree()
    known, hidden = (total[f"{kind} unknown"] / max(1, total[f"{kind} settings"]) for kind in ("plain", "opaque"))
    with capsys.disabled():
        print(f"\n{total['programs']} programs, {total['sites']} sites ({total['missed']} not seen), 0 wrong values; "
              f"unknown: {known:.1%} of {total['plain settings']} settings, "
              f"{hidden:.1%} where code that is not visible takes part")
    assert total["programs"] >= PROGRAMS
