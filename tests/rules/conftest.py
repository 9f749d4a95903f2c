"""Settings built by hand, completed by the engine's tables: what a rule sees at a site."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from klguard.engines import ENGINES, NEWEST
from klguard.rules import RULES, Hazard
from klguard.settings import (
    Absent,
    Default,
    Known,
    Layer,
    LayerKind,
    OneOf,
    Settings,
    SiteKind,
    Unknown,
    Value,
)


def as_value(written: Any) -> Value:
    return written if isinstance(written, Known | Default | Unknown | OneOf | Absent) else Known(written)


def settings_at(
    engine: str = "transformers",
    kind: SiteKind = SiteKind.GENERATE,
    *,
    class_name: str = "",
    versions: Mapping[str, str] | None = None,
    facts: Mapping[str, Any] | None = None,
    layers: tuple[Layer, ...] = (),
    rest: Unknown | None = None,
    mitigations: Mapping[str, str] | None = None,
    **written: Any,
) -> Settings:
    """The settings in force where `written` are the keyword arguments of a site, over further `layers`."""
    versions = {**NEWEST, **(versions or {})}
    kwargs = Layer(LayerKind.KWARGS, {name: as_value(value) for name, value in written.items()}, rest)
    all_layers = (kwargs, *layers) if written or rest else layers
    resolved = ENGINES[engine].resolve(all_layers, versions, kind=kind, class_name=class_name)
    return Settings(
        engine=engine,
        kind=kind,
        values=resolved.values,
        layers=all_layers,
        facts={**resolved.facts, **{name: as_value(value) for name, value in (facts or {}).items()}},
        mitigations={**resolved.mitigations, **(mitigations or {})},
        versions=versions,
        class_name=class_name,
    )


def hazards_at(code: str, *args: Any, **kwargs: Any) -> list[Hazard]:
    """What rule `code` says of such settings."""
    return list(RULES[code].check(settings_at(*args, **kwargs)))


@pytest.fixture
def at() -> Callable[..., Settings]:
    return settings_at


@pytest.fixture
def hazards() -> Callable[..., list[Hazard]]:
    return hazards_at
