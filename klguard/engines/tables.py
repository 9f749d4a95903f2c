"""The rows of which an engine's tables are made.

An engine file is data that can be checked line by line against the upstream source it names; these are its
words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packaging.version import Version

from klguard.engines.predicates import Predicate, always
from klguard.engines.versions import within


@dataclass(frozen=True, slots=True)
class During:
    """One row of a table by version: `value` holds in `versions`, a specifier set; "" is every version."""

    versions: str
    value: Any


@dataclass(frozen=True, slots=True)
class Fault:
    """Values that the engine rejects, or reads otherwise than they are meant (KLG505)."""

    when: Predicate
    why: str
    versions: str = ""


@dataclass(frozen=True, slots=True)
class Setting:
    """One name an engine listens to.

    default        the value in force when nobody writes one, by version; first row that fits wins.
    off            which values leave the model's own distribution alone; or rows of such tests, by version.
    safe           source text of the neutral value to write.
    faults         values that are rejected or misread.
    sampling_only  inert while decoding is greedy.
    versions       releases that have the setting.
    argument       an argument of the call that is no field of the engine's configuration object.
    shown          listed among the effective settings even where nobody wrote it.
    source         the upstream symbol the row was read from.
    doc            what it does to the distribution, in words.
    """

    name: str
    default: tuple[During, ...] | Any = None
    off: Predicate | tuple[During, ...] = always
    safe: str = ""
    faults: tuple[Fault, ...] = ()
    sampling_only: bool = False
    versions: str = ""
    argument: bool = False
    shown: bool = True
    source: str = ""
    doc: str = ""


def during(rows: Any, version: Version) -> During | None:
    """The row of a table by version that holds for `version`; a bare value is a table of one row."""
    if not (isinstance(rows, tuple) and rows and isinstance(rows[0], During)):
        return During("", rows)
    return next((row for row in rows if within(version, row.versions)), None)


def table(*settings: Setting) -> dict[str, Setting]:
    """Settings by name."""
    return {setting.name: setting for setting in settings}


def harmless(names: str, **common: Any) -> tuple[Setting, ...]:
    """Settings that cannot change which tokens are drawn; named at a site only where written."""
    return tuple(Setting(name, off=always, shown=False, **common) for name in names.split())


def shaping(settings: Mapping[str, Setting]) -> frozenset[str]:
    """The settings of which some value changes the distribution."""
    return frozenset(name for name, setting in settings.items() if setting.off is not always)
