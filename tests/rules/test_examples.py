"""The examples of the rules, through the whole pipeline: what is documented is what happens."""

from __future__ import annotations

import pytest

from klguard.check import check_source
from klguard.findings import Severity
from klguard.rules import RULES

READ = (".py", ".ipynb", ".yaml", ".json")
"""Examples in other formats are for the readers of those formats."""


BESIDES = {
    "KLG203": {"KLG201"},  # contrastive search is greedy search, too
    "KLG504": {"KLG102"},  # what was to be turned off is left alone
}
"""What else is reported of an invalid program, since one thing leads to another."""


def examples(kind: str) -> list:
    return [
        pytest.param(rule, example, id=f"{rule.code}-{number}")
        for rule in RULES.values()
        for number, example in enumerate(getattr(rule, kind))
        if example.filename.endswith(READ)
    ]


@pytest.mark.parametrize(("rule", "example"), examples("INVALID"))
def test_an_invalid_program_is_reported(rule, example):
    findings = check_source(example.source, example.filename, example.versions)
    own = [finding for finding in findings if finding.code == rule.code]
    assert own, f"{rule.code} is silent; reported: {[(f.code, f.message) for f in findings]}"
    assert any(example.message in finding.message for finding in own), [finding.message for finding in own]


@pytest.mark.parametrize(("rule", "example"), examples("INVALID"))
def test_an_invalid_program_has_one_thing_wrong(rule, example):
    findings = check_source(example.source, example.filename, example.versions)
    loud = {finding.code for finding in findings if finding.severity is not Severity.NOTE}
    assert loud <= {rule.code} | BESIDES.get(rule.code, set())


@pytest.mark.parametrize(("rule", "example"), examples("VALID"))
def test_a_valid_program_passes(rule, example):
    findings = check_source(example.source, example.filename, example.versions)
    assert rule.code not in {finding.code for finding in findings}
    assert [f.message for f in findings if f.severity is not Severity.NOTE] == []
