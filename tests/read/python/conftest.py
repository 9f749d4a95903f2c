"""Helpers for tests of the reader: a program in, the settings of its call of generate() out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from klguard.read.python import read_sites
from klguard.read.python.project import Project
from klguard.settings import Absent, Known, LayerKind, OneOf, Unknown, Value

UNKNOWN = "unknown"
ABSENT = "absent"


def _shown(value: Value) -> Any:
    """A value in a form that is easy to compare: plain data, a set of alternatives, or a word."""
    if isinstance(value, OneOf):
        shown = [_shown(member) for member in value.values]
        return UNKNOWN if UNKNOWN in shown else {repr(each) for each in shown}
    if isinstance(value, Known):
        return value.value
    return UNKNOWN if isinstance(value, Unknown) else ABSENT


def _generated(tmp_path: Path, source: str, files: dict[str, str] | None = None) -> dict[str, Any]:
    """The settings that the only call of generate() in a program is given, and "*" when there may be
    others."""
    for name, text in {"main.py": source, **(files or {})}.items():
        (tmp_path / name).write_text(text)
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        sites = read_sites(Project(tmp_path), ["main.py"])
    finally:
        os.chdir(before)
    (site,) = [site for site in sites if not site.call.endswith("GenerationConfig")]
    layer = next((each for each in site.settings.layers if each.kind is LayerKind.KWARGS), None)
    if layer is None:
        return {}
    shown = {name: _shown(value) for name, value in layer.values.items() if not isinstance(value, Absent)}
    shown.pop("inputs", None)
    return {**shown, **({"*": UNKNOWN} if layer.rest is not None else {})}


@pytest.fixture
def generated(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`generated(source, files)`: the settings of the only call of generate() in a program, as plain data."""
    return lambda source, files=None: _generated(tmp_path, source, files)
