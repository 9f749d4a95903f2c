"""One record of the journal as a line of strict JSON, and back.

Numbers that are not finite are the strings "NaN", "Infinity" and "-Infinity", as in protobuf's JSON; floats keep 7
significant digits.
"""

from __future__ import annotations

import json
import linecache
import math
import os
from collections.abc import Mapping
from enum import Enum
from numbers import Integral, Real
from typing import Any

from klguard.findings import Finding, Measured
from klguard.settings import Place

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

_TEXTS = frozenset(
    ("kind", "code", "name", "message", "help", "cause", "path", "text", "source", "error", "url")
)
"""Fields that hold words: "NaN" there is a word."""

_NOWHERE = ("", "<unknown>")
"""Paths of a place that is not known."""

_LONGEST_SOURCE = 400


def line(record: Mapping[str, Any]) -> bytes:
    """`record` as one line, its kind first. Raises TypeError, naming the field, for what is not plain data."""
    plain = {"kind": record["kind"]} | {name: _plain(name, value) for name, value in record.items()}
    return json.dumps(plain, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def _plain(name: str, value: Any) -> Any:
    """`value` as JSON can hold it. Raises TypeError, naming the field, for what is not plain data."""
    if isinstance(value, Enum):
        return _plain(name, value.value)
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return _rounded(name, float(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(str(key), inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(name, inner) for inner in value]
    if isinstance(value, Place):
        return _place(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(
        f"`{name}` of a journal record is of type {type(value).__name__}: give it as plain Python data"
    )


def _rounded(name: str, value: float) -> float | str:
    """7 significant digits; counts and times keep all they need."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    if name == "time":
        return round(value, 3)
    return value if value.is_integer() and abs(value) < 2**53 else float(f"{value:.7g}")


def setting(name: str, value: Any) -> Any:
    """A setting of the guard for the header: one that is an object shows as its class."""
    try:
        return _plain(name, value)
    except TypeError:
        return f"<{getattr(value, '__qualname__', type(value).__qualname__)}>"


def described(finding: Finding) -> dict[str, Any]:
    """What a `violation` record says of its finding."""
    return {
        "code": finding.code,
        "name": finding.name,
        "severity": finding.severity,
        "confidence": finding.confidence,
        "message": finding.message,
        "help": finding.help,
        "setting": finding.setting,
        "value": finding.value,
        "place": None if finding.place.path in _NOWHERE else _place(finding.place),
        "related": [_place(place) for place in finding.related],
        "origin": [{"text": hop.text, **(_place(hop.place) if hop.place else {})} for hop in finding.origin],
        **(_measured(finding.measured) if finding.measured else {}),
    }


def _measured(measured: Measured) -> dict[str, Any]:
    harm = {
        "nats_per_sequence": measured.nats_per_sequence,
        "standard_error": measured.standard_error,
        "reward": measured.reward,
    }
    return {
        "step": measured.step,
        "cause": measured.cause,
        "weight": measured.weight,
        "harm": None if measured.nats_per_sequence is None else harm,
        "measured": measured.value,
        "limit": measured.limit,
    }


def _place(place: Place) -> dict[str, Any]:
    """A place with the line of source it points at: the file may read otherwise when the journal is looked at."""
    source = "" if place.cell is not None else linecache.getline(place.path, place.line).rstrip("\r\n")
    return {
        "path": place.path,
        "cell": place.cell,
        "line": place.line,
        "column": place.column,
        "end_line": place.end_line,
        "end_column": place.end_column,
        "source": source[:_LONGEST_SOURCE],
    }


def parsed(raw: bytes) -> Any:
    """What the line holds, or None where it does not hold whole JSON."""
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return _restored("", record) if b'"NaN"' in raw or b'Infinity"' in raw else record


def _restored(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return value if name in _TEXTS else _NON_FINITE.get(value, value)
    if isinstance(value, dict):
        return {key: _restored(key, inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_restored(name, inner) for inner in value]
    return value
