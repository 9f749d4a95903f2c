"""docs/guard.md: its loop runs as it stands, and its figures are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from klguard.guard import Guard, shares  # noqa: E402
from klguard.guard.catalogue import CATALOGUE, UNCHECKED  # noqa: E402
from klguard.guard.invariants.kl import _EXACT_LIMIT  # noqa: E402
from klguard.guard.listening import HALF_PRECISION, SEPARATE_ENGINE, SINGLE_PRECISION  # noqa: E402
from klguard.guard.vocabulary import DEFAULT_BUDGET  # noqa: E402

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guard.md").read_text(encoding="utf-8")
WORDS = " ".join(GUIDE.split())
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_loop_of_the_guide_runs_and_is_clean(tmp_path, monkeypatch):
    (loop,) = [block for block in BLOCKS if "for step in range" in block]
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "guide"}
    exec(compile(loop, "guide.py", "exec"), names)
    guard = names["guard"]
    assert guard.failure is None and guard.findings == []
    assert guard.evidence.tokens > 4 * 16 and set(guard.evidence.blind) <= {"sampler", "stale"}
    assert (tmp_path / "klguard.jsonl").exists()
    told = {
        "KLG601",
        "KLG603",
        "KLG811",
        "KLG825",
        "KLG831",
        "KLG834",
        "KLG838",
        "KLG842",
        "KLG843",
        "KLG868",
    }
    assert told <= guard.exercised
    assert len(guard.exercised) > 30


def test_the_same_loop_with_top_k_is_not(tmp_path, monkeypatch):
    (loop,) = [block for block in BLOCKS if "for step in range" in block]
    monkeypatch.chdir(tmp_path)
    spoilt = loop.replace("**sampling)", "**sampling | {'top_k': 5})").replace(
        "**options", "**options, on_violation='record'"
    )
    assert spoilt.count("'top_k'") == spoilt.count("'record'") == 1
    names = {"__name__": "guide"}
    exec(compile(spoilt, "guide.py", "exec"), names)
    found = {f.code: f for f in names["guard"].findings}
    assert found["KLG701"].measured.cause == "top_k=5"


def test_its_figures_are_those_of_the_code():
    for share in (shares.EVIDENCE, shares.CUMULATIVE, shares.WINDOW):
        assert f"{share:.0%}".replace("%", " %") in WORDS
    assert shares.EVIDENCE + shares.CUMULATIVE + shares.WINDOW == pytest.approx(1.0)
    assert f"{shares.threshold(1e-6, shares.EVIDENCE):.1f} nats by default" in WORDS
    assert (SINGLE_PRECISION, HALF_PRECISION, SEPARATE_ENGINE) == (1e-4, 1e-3, 1e-2)
    assert "1e-4 in fp32, 1e-3 in half precision, and 1e-2" in WORDS
    assert _EXACT_LIMIT == 1e-5 and DEFAULT_BUDGET == 64 * 2**20
    assert set(UNCHECKED) == {44, 49}


def test_its_names_exist():
    codes = {entry.code for entry in CATALOGUE}
    assert set(re.findall(r"KLG[678]\d\d", GUIDE)) <= codes
    guard = Guard(on_violation="record")
    for name in re.findall(r"\bguard\.([a-z_]+)(?:\.([a-z_]+))?", GUIDE):
        if name[0] == "md":
            continue
        thing = getattr(guard, name[0])
        assert not name[1] or hasattr(thing, name[1]), name
    for target in re.findall(r"\]\(([\w./-]+)\)", GUIDE):
        assert (ROOT / "docs" / target).exists(), target
    for name in re.findall(r"`(guard_\w+)\.json`", GUIDE):
        assert (ROOT / "benchmarks" / f"{name}.py").exists()


def test_it_has_no_long_dashes():
    assert "\u2014" not in GUIDE and "\u2013" not in GUIDE
