"""What docs/journal.md says is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from klguard.cli import cli
from klguard.findings import Confidence, Finding, Severity
from klguard.guard.journal import Journal
from klguard.report import summary, table
from klguard.settings import Place

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "journal.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = Place("train.py", None, 1, 1, 1, 2)
    with Journal("runs/a/klguard.jsonl", settings={"alpha": 1e-6}) as journal:
        journal.step({"step": 0, "kl_per_sequence": 0.1})
        journal.violation(Finding("KLG701", "a", Severity.ERROR, Confidence.HIGH, "b", place), {"step": 0})


@pytest.mark.parametrize(
    "command", [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
)
def test_every_command_runs(command: str):
    if "--html" in command:
        pytest.importorskip("plotly", reason="plotly (the report extra) is not installed")
    result = CliRunner().invoke(cli, command.split("#")[0].split()[1:], prog_name="klguard")
    assert result.exit_code == 1, result.output


def test_the_program_runs():
    (program,) = [text for kind, text in BLOCKS if kind == "python"]
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{program}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "1 0 0 ['KLG701']\n", done.stderr


def test_every_figure_of_a_report_is_explained():
    explained = set(re.findall(r"`([a-z0-9_]+)`", PAGE))
    assert {*summary.FIGURES, *(column.field for column in table.COLUMNS)} <= explained
