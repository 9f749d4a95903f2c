"""The programs under fixtures/: what each is expected to be told stands in a comment at its line.

`# expect: KLG101` at the end of the line of a finding, several codes separated by commas;
`# expect: nothing, because ...` where a line or the one below it looks wrong and is not. Notes are not
compared, since they never fail a gate.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from klguard.check import check_paths, check_source
from klguard.config import load
from klguard.engines import NEWEST
from klguard.findings import Finding, Severity

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "fixtures"
TRAPS = sorted(file for file in (FIXTURES / "traps").iterdir() if file.suffix in (".py", ".ipynb"))
HAZARDS = sorted(file for file in (FIXTURES / "hazards").iterdir() if file.suffix in (".py", ".ipynb"))
EXPECTED = re.compile(r"# expect: (KLG\d{3}(?:, KLG\d{3})*)\s*$")


Told = tuple[int | None, int, str]
"""Cell in a notebook, line, code."""


def lines_of(file: Path) -> list[tuple[int | None, int, str]]:
    """(cell, line, text) of every line of a program or notebook."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        return [(None, number, line) for number, line in enumerate(text.splitlines(), 1)]
    return [
        (cell, number, line)
        for cell, content in enumerate(json.loads(text)["cells"])
        for number, line in enumerate("".join(content["source"]).splitlines(), 1)
    ]


def expectations(file: Path) -> set[Told]:
    """What a fixture announces."""
    found = ((cell, number, EXPECTED.search(line)) for cell, number, line in lines_of(file))
    return {(cell, number, code) for cell, number, match in found if match for code in match[1].split(", ")}


def loud(findings: Iterable[Finding]) -> set[Told]:
    """Errors and warnings; the same place may be reported for several sites."""
    return {(f.place.cell, f.place.line, f.code) for f in findings if f.severity is not Severity.NOTE}


@pytest.mark.parametrize("file", [*TRAPS, *HAZARDS], ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_fixture_is_told_what_it_expects(file: Path):
    assert loud(check_source(file.read_text(encoding="utf-8"), file.name)) == expectations(file)


@pytest.mark.parametrize("folder", ["traps", "hazards"])
def test_the_same_holds_where_they_lie_beside_one_another(folder: str, tmp_path: Path):
    files = TRAPS if folder == "traps" else HAZARDS
    shutil.copytree(FIXTURES / folder, tmp_path / folder)
    config = replace(load(tmp_path), target_versions=dict(NEWEST))
    report = check_paths([tmp_path / folder], config)
    by_file = {file.name: expectations(file) for file in files}
    assert {
        file.name: loud(f for f in report.findings if Path(f.place.path).name == file.name) for file in files
    } == by_file
    for file in files:
        assert any(Path(site.place.path).name == file.name for site in report.sites), f"{file} holds no site"


def test_every_trap_says_why_and_expects_nothing():
    for file in TRAPS:
        text = file.read_text(encoding="utf-8")
        assert "# expect: nothing, because " in text, file
        assert not expectations(file), file


def test_every_hazard_expects_something():
    for file in HAZARDS:
        assert expectations(file), file
