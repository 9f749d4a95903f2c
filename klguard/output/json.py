"""The JSON that other programs rely on. Schema 1: keys may be added, none changes its meaning or goes
away."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from klguard.findings import Finding, Fix
from klguard.literals import default_text, json_value
from klguard.settings import Default, Hop, HopKind, Known, OneOf, Place, Site, Unknown, Value, members

SCHEMA = 1


def findings(found: Iterable[Finding]) -> str:
    """All findings, one for each site that a value reaches."""
    return _dump({"schema": SCHEMA, "findings": [_finding(finding) for finding in found]})


def sites(found: Iterable[Site], codes: Mapping[Place, Iterable[str]]) -> str:
    """All sites with every effective setting; `codes` has the findings at each place."""
    return _dump(
        {"schema": SCHEMA, "sites": [_site(site, sorted(codes.get(site.place, ()))) for site in found]}
    )


def _dump(document: dict[str, Any]) -> str:
    # ASCII throughout: nothing in it depends on the encoding of the terminal or the pipe.
    return json.dumps(document, indent=2, allow_nan=False)


def _start(place: Place | None) -> dict[str, Any]:
    if place is None:
        return {"path": None, "cell": None, "line": None, "column": None}
    return {"path": place.path, "cell": place.cell, "line": place.line, "column": place.column}


def _span(place: Place) -> dict[str, Any]:
    return {**_start(place), "end_line": place.end_line, "end_column": place.end_column}


def _finding(finding: Finding) -> dict[str, Any]:
    site = finding.site
    return {
        "code": finding.code,
        "name": finding.name,
        "severity": finding.severity.value,
        "confidence": finding.confidence.value,
        "message": finding.message,
        "help": finding.help,
        **_span(finding.place),
        "site": site
        and {**_start(site.place), "call": site.call, "engine": site.engine, "context": site.context.value},
        "origin": [_hop(hop) for hop in finding.origin],
        "fix": finding.fix and _fix(finding.fix),
        "url": finding.url,
    }


def _hop(hop: Hop) -> dict[str, Any]:
    return {**_start(hop.place), "text": hop.text}


def _fix(fix: Fix) -> dict[str, Any]:
    edits = [{**_span(edit.place), "content": edit.content} for edit in fix.edits]
    return {"applicability": fix.applicability.value, "edits": edits}


def _site(site: Site, codes: list[str]) -> dict[str, Any]:
    settings = site.settings
    return {
        **_start(site.place),
        "call": site.call,
        "kind": settings.kind.value,
        "engine": settings.engine,
        "context": settings.context.value,
        "why": site.why,
        "settings": {name: _setting(value) for name, value in sorted(settings.values.items())},
        "findings": codes,
    }


def _setting(value: Value) -> dict[str, Any]:
    origin = [step for member in members(value) for step in _origin(member)]
    match value:
        case OneOf(values):
            return {"values": [_member(member) for member in values], "origin": origin}
        case Unknown():
            return {"unknown": str(value), "origin": origin}
        case _:
            return {"value": _member(value), "origin": origin}


def _member(value: Value) -> Any:
    match value:
        case Known(plain) | Default(plain):
            return json_value(plain)
        case _:
            return {"unknown": str(value)}


def _origin(value: Value) -> list[dict[str, Any]]:
    hops = [_hop(hop) for hop in value.hops]
    if isinstance(value, Default):
        hops.append(_hop(Hop(HopKind.DEFAULT, None, default_text(value))))
    return hops
