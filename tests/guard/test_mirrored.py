"""Which temperature live settings draw at, by handle, and how a finding about it is told."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from klguard.findings import Severity  # noqa: E402
from klguard.guard.live import findings, read_object  # noqa: E402
from klguard.guard.mirrored import Temperatures, temperature_of, unseen  # noqa: E402
from klguard.settings import Place  # noqa: E402

PLACE = Place("loop.py", None, 3, 1, 3, 9)


def site(engine, **settings):
    return read_object(settings, place=PLACE, engine=engine)


@pytest.mark.parametrize(
    ("engine", "settings", "temperature"),
    [
        ("transformers", {"do_sample": True, "temperature": 0.7}, 0.7),
        ("transformers", {"do_sample": True}, 1.0),
        ("transformers", {"do_sample": False, "temperature": 0.7}, None),
        ("transformers", {"temperature": 0.7}, None),
        ("vllm", {"temperature": 0.6, "max_tokens": 8}, 0.6),
        ("vllm", {"max_tokens": 8}, 1.0),
        ("vllm", {"temperature": 0.0, "max_tokens": 8}, None),
        ("sglang", {"temperature": 2, "max_new_tokens": 8}, 2.0),
    ],
)
def test_the_temperature_of_settings(engine, settings, temperature):
    assert temperature_of(site(engine, **settings).settings) == temperature


def test_divisors_are_kept_for_the_latest_rollouts_and_only_where_they_change_something():
    kept = Temperatures()
    for handle, temperature in enumerate([0.5, 1.0, None, math.inf, 0.0, 2.0]):
        kept.remember(handle, temperature)
    assert [kept.divisor(handle) for handle in range(7)] == [0.5, None, None, None, None, 2.0, None]
    kept.remember(0, None)
    assert kept.divisor(0) is None, "the same handle, of other settings"
    for handle in range(100, 400):
        kept.remember(handle, 0.7)
    assert kept.divisor(5) is None and kept.divisor(399) == 0.7
    assert len(kept._by_handle) == 64


def test_a_temperature_becomes_a_warning_and_nothing_else_changes():
    found = findings(site("transformers", do_sample=True, temperature=0.7, top_k=5))
    told = unseen(found)
    assert [item.code for item in told] == [item.code for item in found] == ["KLG101", "KLG106"]
    assert told[0] is found[0] and found[1].severity is Severity.ERROR
    assert told[1].severity is Severity.WARNING and "`temperature=0.7`" in told[1].message
    assert (told[1].place, told[1].origin) == (found[1].place, found[1].origin)
