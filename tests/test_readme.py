"""What README says is so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from klguard.rules import RULES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines() if line.strip()]


def run(command: str) -> str:
    """What a klguard command of README prints."""
    assert command.startswith("klguard ")
    done = subprocess.run(
        [sys.executable, "-m", *command.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "FORCE_COLOR": ""},
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def test_one_line_installs_and_checks_and_one_line_installs_and_tests():
    (first,) = [line for line in COMMANDS if line.endswith("klguard check fixtures/")]
    (second,) = [line for line in COMMANDS if "pytest" in line]
    assert first.startswith("pip install ") and "&&" in first
    assert second.startswith("pip install ") and "-c constraints.txt" in second and "'.[test]'" in second


def test_continuous_integration_runs_the_test_command_of_readme():
    script = (ROOT / ".ci" / "run").read_text()
    (pattern,) = re.findall(r"grep -m 1 -E '([^']*)' README\.md", script)
    found = [line for line in README.splitlines() if re.search(pattern, line)]
    assert found[0] == next(line for line in COMMANDS if "pytest" in line)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_picture_is_what_klguard_prints_today():
    (picture,) = [text for kind, text in BLOCKS if kind == "text"]
    first, rest = picture.split("\n", 1)
    assert first.startswith("$ ")
    assert rest == run(first.removeprefix("$ ") + " --no-cache")


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("klguard ")])
def test_every_example_runs(command: str):
    command = command.split("#")[0].strip()
    reads_code = command.startswith(("klguard check", "klguard sites"))
    run(command + " --no-cache" if reads_code else command)


def test_every_rule_and_file_that_is_named_exists():
    assert {code for code in re.findall(r"KLG\d{3}", README)} <= set(RULES)
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_constraints_pin_every_test_dependency():
    names = {re.split(r"[=<>; ]", line)[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    text = (ROOT / "pyproject.toml").read_text()
    wanted = re.findall(r'"([\w-]+)>=', text.split("dependencies = [")[1].split("]")[0])
    wanted += re.findall(r'"([\w-]+)>=', text.split("test = [")[1].split("]")[0])
    assert {name.lower() for name in wanted} <= names
