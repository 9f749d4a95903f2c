"""Rules explained: one page, or a line for each."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator
from typing import Any

from klguard.guard.catalogue import Entry
from klguard.guard.pages import section
from klguard.output.terminal import Paint
from klguard.output.text import STYLES
from klguard.rules import page
from klguard.rules.pages import summary
from klguard.rules.rule import Example, Rule


def explain(rule: Rule | Entry, paint: Paint) -> Iterator[str]:
    """The page of a rule or of a code of the guard, its headings in bold."""
    text = f"# {section(rule)}" if isinstance(rule, Entry) else page(rule)
    for line in text.splitlines():
        yield paint(line, "bold") if line.startswith("#") else line


def listing(rules: Iterable[Rule | Entry], paint: Paint) -> Iterator[str]:
    """A line per rule: code, name, severity and the hazard in one sentence. Codes of the guard say what holds."""
    rows = [(rule, _summary(rule)) for rule in rules]
    names = max((len(rule.name) for rule, _ in rows), default=0)
    for rule, sentence in rows:
        severity = paint(f"{rule.severity.value:<7}", *STYLES[rule.severity])
        yield f"{paint(rule.code, 'bold')}  {rule.name:<{names}}  {severity}  {sentence}"


def as_json(rules: Iterable[Rule | Entry]) -> str:
    return json.dumps({"schema": 1, "rules": [_described(rule) for rule in rules]}, indent=2)


def _summary(rule: Rule | Entry) -> str:
    return f"Guard: {rule.holds}." if isinstance(rule, Entry) else summary(rule.__doc__ or "")


def _described(rule: Rule | Entry) -> dict[str, Any]:
    return _entry(rule) if isinstance(rule, Entry) else _rule(rule)


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "code": entry.code,
        "name": entry.name,
        "severity": entry.severity.value,
        "summary": _summary(entry),
        "explanation": section(entry),
        "examples": {"invalid": [], "valid": []},
    }


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
