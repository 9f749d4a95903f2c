"""Rules explained: one page, or a line for each."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator
from typing import Any

from klguard.output.terminal import Paint
from klguard.output.text import STYLES
from klguard.rules import page
from klguard.rules.pages import summary
from klguard.rules.rule import Example, Rule


def explain(rule: Rule, paint: Paint) -> Iterator[str]:
    """The page of a rule, its headings in bold."""
    for line in page(rule).splitlines():
        yield paint(line, "bold") if line.startswith("#") else line


def listing(rules: Iterable[Rule], paint: Paint) -> Iterator[str]:
    """A line per rule: code, name, severity and the hazard in one sentence."""
    rows = [(rule, summary(rule.__doc__ or "")) for rule in rules]
    names = max((len(rule.name) for rule, _ in rows), default=0)
    for rule, sentence in rows:
        severity = paint(f"{rule.severity.value:<7}", *STYLES[rule.severity])
        yield f"{paint(rule.code, 'bold')}  {rule.name:<{names}}  {severity}  {sentence}"


def as_json(rules: Iterable[Rule]) -> str:
    return json.dumps({"schema": 1, "rules": [_rule(rule) for rule in rules]}, indent=2)


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "code": rule.code,
        "name": rule.name,
        "severity": rule.severity.value,
        "summary": summary(rule.__doc__ or ""),
        "explanation": inspect.cleandoc(rule.__doc__ or ""),
        "examples": {
            "invalid": [_example(example) for example in rule.INVALID],
            "valid": [_example(example) for example in rule.VALID],
        },
    }


def _example(example: Example) -> dict[str, Any]:
    return {"source": inspect.cleandoc(example.source), "versions": dict(example.versions)}
