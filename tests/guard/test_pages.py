"""The page of the invariants: complete, true of the source, and committed as it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from klguard.guard.catalogue import BY_CODE, BY_ROW, CATALOGUE, SETTINGS_ROW, UNCHECKED, find
from klguard.guard.pages import ROWS, checked, page, section, table

COMMITTED = Path(__file__).parents[2] / "docs" / "invariants.md"


def test_the_committed_page_is_current():
    assert COMMITTED.read_text(encoding="utf-8") == page(), (
        "run `python -m klguard.guard.pages docs/invariants.md`"
    )


def test_every_row_has_one_line_and_every_code_a_section():
    rows = [line for line in table() if line.split("|")[1].strip().isdigit()]
    assert [int(line.split("|")[1]) for line in rows] == list(range(1, ROWS + 1))
    assert {*BY_ROW, SETTINGS_ROW, *UNCHECKED} == set(range(1, ROWS + 1))
    assert not set(BY_ROW) & {SETTINGS_ROW, *UNCHECKED}
    assert all(section(entry) in page() for entry in CATALOGUE)


def test_the_state_is_that_of_the_classes():
    watched = checked()
    try:
        from klguard.guard.invariants import INVARIANTS
    except ImportError:  # no torch here: then the source alone is what there is
        return
    for kind in INVARIANTS:
        events = tuple(event for event in watched[kind.code] if event != "evidence")
        assert events == tuple(event.__name__ for event in kind.watches), kind.code
    assert {code for code, events in watched.items() if "evidence" not in events} <= {
        k.code for k in INVARIANTS
    }
    assert "evidence" in watched["KLG701"]


def test_names_and_codes_are_found_in_any_case_and_are_unique():
    assert find("klg831") is find("First-Ratio") is BY_CODE["KLG831"]
    assert find("nothing") is None
    assert len({entry.name for entry in CATALOGUE}) == len(CATALOGUE) == len(BY_CODE)


def test_no_torch_is_needed():
    program = "import sys, klguard.guard.pages as p; p.page(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
