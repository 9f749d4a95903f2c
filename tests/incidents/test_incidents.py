"""Every replay is named by klguard, its fixed counterpart by nothing, and the page says the same."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.incidents.registry import INCIDENTS, REPLAYS, SIBLINGS, UNNAMED  # noqa: E402
from tests.incidents.replay import STAGES  # noqa: E402
from tests.incidents.table import page  # noqa: E402

ALL = [pytest.param(replay, id=f"{replay.incident}-{replay.stage}") for replay in (*REPLAYS, *SIBLINGS)]


@pytest.mark.parametrize("replay", ALL)
def test_the_root_cause_is_named(replay):
    assert replay.expected <= replay.broken()


@pytest.mark.parametrize("replay", ALL)
def test_nothing_is_said_without_it(replay):
    assert replay.correct() == frozenset()


def test_each_incident_is_replayed_or_explained():
    replayed = {replay.incident for replay in REPLAYS}
    assert sorted([*replayed, *UNNAMED]) == sorted(INCIDENTS)
    assert {replay.stage for replay in REPLAYS} == set(STAGES)


def test_the_replays_cover_the_causes():
    causes = {INCIDENTS[replay.incident]["cause_class"] for replay in REPLAYS}
    assert causes == {incident["cause_class"] for incident in INCIDENTS.values()}


def test_the_page_is_current():
    written = Path(__file__).parents[2] / "docs" / "incidents.md"
    assert written.read_text(encoding="utf-8") == page()
