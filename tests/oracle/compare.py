"""Hold a reader's answer against what really happened."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from klguard.read.files import reported
from klguard.read.python import read_sites
from klguard.read.python.project import Project
from klguard.read.python.sites import UNREACHED
from klguard.settings import (
    Absent,
    Default,
    Known,
    LayerKind,
    OneOf,
    Opaque,
    Site,
    Unknown,
    Value,
    join,
    members,
)

from .programs import Source
from .recorder import Observation
from .runner import RUNS, observe, written
from .scope import KINDS

Reader = Callable[[Path, list[Path]], Iterable[Site]]
OBJECT = "generation_config"
_MISSING = object()


@dataclass(frozen=True)
class Wrong:
    """The reader claims something that the run refutes."""

    place: str
    setting: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.place}: {self.setting}: the run had {self.expected}, the reader says {self.got}"


@dataclass
class Verdict:
    """What became of one program.

    `settings` counts the settings of all observed sites, `unknown` those the reader did not know,
    `wide` those for which it allows values that no run showed; `missed` are observed calls without a site.
    """

    wrong: list[Wrong] = field(default_factory=list)
    sites: int = 0
    missed: int = 0
    settings: int = 0
    unknown: int = 0
    wide: int = 0
    reasons: Counter = field(default_factory=Counter)


def read(root: Path, paths: list[Path]) -> Iterable[Site]:
    """The static reader, as it works when started in the folder of the program."""
    before = os.getcwd()
    os.chdir(root)
    try:
        return read_sites(Project(root), [reported(path) for path in paths])
    finally:
        os.chdir(before)


def judge(source: Source, reader: Reader = read, runs: Iterable[int] = RUNS) -> Verdict:
    """Run the program, read it, and compare."""
    with written(source) as root:
        observations = [each for run in runs for each in observe(root, source.main, run)]
        sites = list(reader(root, [root / path for path in source.files if path.endswith((".py", ".ipynb"))]))
    return compare(sites, observations, root)


def compare(sites: Iterable[Site], observations: Iterable[Observation], root: Path) -> Verdict:
    """Every observation must be among the values its site allows."""
    verdict = Verdict()
    by_file: dict[str, list[Site]] = {}
    for site in sites:
        by_file.setdefault(_file(site, root), []).append(site)
    grouped: dict[int, tuple[Site, list[Observation]]] = {}
    unseen = set()
    for seen in observations:
        site = _innermost(by_file.get(seen.file, ()), seen.line)
        if site is None:
            unseen.add((seen.file, seen.line))
        else:
            grouped.setdefault(id(site), (site, []))[1].append(seen)
    verdict.missed = len(unseen)
    verdict.sites = len(grouped) + len(unseen)
    for site, calls in grouped.values():
        _compare_site(site, calls, verdict)
    return verdict


def _file(site: Site, root: Path) -> str:
    path = Path(site.place.path)
    text = str((path if path.is_absolute() else root / path).resolve().relative_to(root))
    return text if site.place.cell is None else f"{text}#cell{site.place.cell}"


def _innermost(sites: Iterable[Site], line: int) -> Site | None:
    """The site of a call on this line; where sites are nested, the smallest."""
    around = [site for site in sites if site.place.line <= line <= site.place.end_line and _is_call(site)]
    return min(around, key=lambda site: site.place.end_line - site.place.line, default=None)


def _is_call(site: Site) -> bool:
    """A partial is a site too, but what is in force is seen where it is called."""
    return site.settings.kind.value == "generate" and not site.call.endswith("partial")


def _compare_site(site: Site, calls: list[Observation], verdict: Verdict) -> None:
    _compare_layer(site, LayerKind.KWARGS, [each.kwargs for each in calls], verdict)
    _compare_layer(site, LayerKind.OBJECT, [_inside(each.kwargs.get(OBJECT)) for each in calls], verdict)
    _compare_layer(site, LayerKind.CHECKPOINT, [each.own for each in calls], verdict)


def _inside(config: Any) -> dict[str, Any]:
    """What is set in a GenerationConfig: None means unset."""
    return (
        {} if config is None else {name: value for name, value in vars(config).items() if value is not None}
    )


def _compare_layer(site: Site, kind: LayerKind, calls: list[dict[str, Any]], verdict: Verdict) -> None:
    layer = next((each for each in site.settings.layers if each.kind is kind), None)
    values: Mapping[str, Value] = layer.values if layer else {}
    absent: Value = layer.rest if layer and layer.rest is not None else _unreached(site) or Absent()
    if kind is LayerKind.OBJECT:
        values = {name: _unset(value) for name, value in values.items()}
    names = [name for name in KINDS if name in values or any(name in each for each in calls)]
    for name in names:
        value = values.get(name, absent)
        possible = members(value)
        verdict.settings += 1
        if any(isinstance(each, Unknown) for each in possible):
            verdict.unknown += 1
            verdict.reasons.update(str(each) for each in possible if isinstance(each, Unknown))
            continue
        shown = [each.get(name, _MISSING) for each in calls]
        refuted = [each for each in shown if not any(_agrees(member, each) for member in possible)]
        if refuted:
            place = f"{site.place.path}:{site.place.line}"
            verdict.wrong.append(Wrong(place, name, _text(refuted[0]), describe(value)))
        elif not all(any(_agrees(member, each) for each in shown) for member in possible):
            verdict.wide += 1


def _unreached(site: Site) -> Value | None:
    """What is said of everything at a call that the analysis did not get to: of the call alone, which decides."""
    (call, *others) = site.settings.layers or (None,)
    return call.rest if call is not None and not others and UNREACHED in str(call.rest) else None


def _unset(value: Value) -> Value:
    """In a settings object None is no setting."""
    return join(
        Absent() if isinstance(each, (Known, Default)) and each.value is None else each
        for each in members(value)
    )


def _agrees(claim: Value, seen: Any) -> bool:
    match claim:
        case Absent():
            return seen is _MISSING
        case Known(Opaque()):
            return seen is not _MISSING and seen is not None
        case Known(value) | Default(value):
            return seen is not _MISSING and _same(value, seen)
    return False


def _same(a: Any, b: Any) -> bool:
    """Equal, with equal types all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return repr(a) == repr(b)


def _text(seen: Any) -> str:
    return "no such argument" if seen is _MISSING else repr(seen)


def describe(value: Value) -> str:
    """A reader's value in a few words."""
    match value:
        case OneOf(values):
            return " or ".join(describe(each) for each in values)
        case Known(known) | Default(known):
            return repr(known)
        case Unknown():
            return f"unknown ({value})"
        case _:
            return "no such argument"
