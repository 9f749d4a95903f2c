"""What a replay is: a faulty program, its fixed counterpart, and the codes each gives.

A replay is one of three: a script that `klguard check` reads, a document (a configuration or a command line), or
the loop of the guard's tests with one bug planted.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

CHECK, DOCUMENTS, BEFORE, FIRST, LATER = (
    "check",
    "documents",
    "before training",
    "first rollout",
    "later",
)
STAGES = (CHECK, DOCUMENTS, BEFORE, FIRST, LATER)

Codes = frozenset[str]


@dataclass(frozen=True)
class Replay:
    """One incident, replayed.

    incident    its id in incidents.jsonl
    expected    the codes that name it; more may be said, since one thing leads to another
    stage       the earliest of STAGES at which they are said
    broken      codes of warnings and errors for the program with the incident's root cause
    correct     the same for the program without it: none
    """

    incident: str
    expected: Codes
    stage: str
    broken: Callable[[], Codes]
    correct: Callable[[], Codes]


def _loud(files: Mapping[str, str]) -> Codes:
    """Codes of warnings and errors when `klguard check` reads a project of these files."""
    from klguard.check import check_paths
    from klguard.findings import Severity

    with TemporaryDirectory() as folder:
        for name, text in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        report = check_paths([folder])
    return frozenset(f.code for f in report.findings if f.severity is not Severity.NOTE)


def _project(incident: str, expected: str, stage: str, broken: Mapping[str, str], correct: Mapping[str, str]):
    return Replay(
        incident,
        frozenset(expected.split()),
        stage,
        functools.partial(_loud, broken),
        functools.partial(_loud, correct),
    )


def script(
    incident: str, expected: str, broken: str, correct: str, beside: Mapping[str, str] | None = None
) -> Replay:
    """A program in Python; `beside` are files of the project that belong to the faulty one."""
    return _project(
        incident,
        expected,
        CHECK,
        {"train.py": broken, **(beside or {})},
        {"train.py": correct, **(beside or {})},
    )


def document(incident: str, expected: str, program: str, name: str, broken: str, correct: str) -> Replay:
    """A configuration file, `name`, that the same program reads in both."""
    faulty, right = ({"train.py": program, name: text} for text in (broken, correct))
    return _project(incident, expected, DOCUMENTS, faulty, right)


def config(incident: str, expected: str, name: str, broken: str, correct: str) -> Replay:
    """A configuration of a training framework, which no Python of the project reads."""
    return _project(incident, expected, DOCUMENTS, {name: broken}, {name: correct})


@functools.cache
def _found(kind: type, steps: int) -> Codes:
    """Codes of what the guard finds in a loop, after the preflight and so many steps."""
    from tests.guard.loop import run

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about schedulers that are planted wrong
        return frozenset(finding.code for finding in run(kind, steps).findings)


def loop(incident: str, expected: str, kind: type, correct: type, steps: int = 1) -> Replay:
    """A loop with one bug, and the one without: found before its first step, in it, or later."""
    stage = LATER if steps > 1 else FIRST if steps else BEFORE
    return Replay(
        incident,
        frozenset(expected.split()),
        stage,
        functools.partial(_found, kind, steps),
        functools.partial(_found, correct, max(steps, 1)),
    )
