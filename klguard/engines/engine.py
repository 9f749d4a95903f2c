"""What an engine is: its tables, and the questions that rules ask of them."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from klguard.engines.layers import verdict, walk
from klguard.engines.tables import Setting, during
from klguard.engines.versions import version_of, within
from klguard.settings import Default, Layer, SiteKind, Value

__all__ = ["NOTHING", "Engine", "Resolved", "Setting", "verdict"]

NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Resolved:
    """What is in force at a site.

    values       the settings of the site, each with its effective value (never Absent).
    mitigations  setting -> words, where the trainer itself makes the setting harmless.
    facts        plain data about the resolution. `overwritten`: setting -> (value in the object, value of the
                 checkpoint that silently replaced it); `none_means_unset`: setting -> value that a None in an
                 object became; `flavour`: which meaning of a trainer's class was found.
    """

    values: Mapping[str, Value]
    mitigations: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Engine:
    """One engine or framework.

    name       its name, and that of the library whose version decides.
    packages   top-level packages the real names come from.
    sites      bare name of a class or function -> what sort of site a call of it is.
    settings   every name it listens to.
    orders     bare name of a class or function -> names of its positional parameters, by version.
    """

    name: str
    packages: tuple[str, ...] = ()
    sites: Mapping[str, SiteKind] = field(default_factory=dict)
    settings: Mapping[str, Setting] = field(default_factory=dict)
    orders: Mapping[str, Any] = field(default_factory=dict)

    def resolve(
        self,
        layers: Sequence[Layer],
        versions: Mapping[str, str],
        *,
        kind: SiteKind,
        class_name: str = "",
        facts: Mapping[str, Value] = NOTHING,
    ) -> Resolved:
        """What is in force, from what was written: the strongest layer that has a setting wins.

        `facts` are those the reader found at the site; a trainer's `classic` decides which class is meant.
        """
        return Resolved({n: walk(n, layers, self.default(n, versions)) for n in self.listed(layers)})

    def listed(self, layers: Iterable[Layer], *, arguments: bool = True) -> list[str]:
        """The settings worth naming at a site: what can change the tokens, and whatever was written."""
        written = {name for layer in layers for name in layer.values}
        return [
            name
            for name, setting in self.settings.items()
            if (setting.shown or name in written) and (arguments or not setting.argument)
        ]

    def default(self, name: str, versions: Mapping[str, str]) -> Default:
        """What the library uses for `name` when it is left alone."""
        setting = self.settings[name]
        row = during(setting.default, version_of(self.name, versions))
        if row is None:
            return Default(None, self.name)
        return Default(row.value, self.name, row.versions or setting.versions)

    def is_off(self, setting: str, value: Any, versions: Mapping[str, str]) -> bool:
        """Whether `value` leaves the model's own distribution alone; so does a name nobody listens to."""
        found = self.settings.get(setting)
        row = during(found.off, version_of(self.name, versions)) if found else None
        return row is None or row.value(value)

    def error(self, setting: str, value: Any, versions: Mapping[str, str]) -> str | None:
        """Why the engine rejects or misreads `value`, or None where it does what it says."""
        found = self.settings.get(setting)
        version = version_of(self.name, versions)
        faults = (f for f in found.faults if within(version, f.versions) and f.when(value)) if found else ()
        return next((fault.why for fault in faults), None)

    def nearest(self, name: str) -> str | None:
        """The setting that an unknown name was probably meant to be; None for real and far-off names."""
        if name in self.settings:
            return None
        bare = {real.replace("_", ""): real for real in self.settings}
        close = get_close_matches(name.lower().replace("_", "").replace("-", ""), bare, n=1, cutoff=0.8)
        return bare[close[0]] if close else None

    def safe(self, setting: str, versions: Mapping[str, str]) -> str:
        """Source text of the neutral value to write; "" where no single value is neutral."""
        found = self.settings.get(setting)
        return found.safe if found else ""

    def neutral(self, versions: Mapping[str, str]) -> dict[str, Any]:
        """Every setting of this version that can bend the distribution, with its neutral value."""
        version = version_of(self.name, versions)
        return {
            name: ast.literal_eval(setting.safe)
            for name, setting in self.settings.items()
            if setting.safe and within(version, setting.versions)
        }

    def constructor_order(self, class_name: str, versions: Mapping[str, str]) -> tuple[str, ...]:
        """Names of the positional parameters of a site's class or function; empty where none are known."""
        row = during(self.orders.get(class_name.rpartition(".")[2], ()), version_of(self.name, versions))
        return tuple(row.value) if row else ()

    def sampling(self, values: Mapping[str, Value], versions: Mapping[str, str] = NOTHING) -> bool | None:
        """True when every possibility draws at random, False when none does, None when that is not known."""
        return True

    def active(
        self, setting: str, values: Mapping[str, Value], versions: Mapping[str, str] = NOTHING
    ) -> bool | None:
        """Whether `setting` is listened to, given the others; None when that is not known.

        What only shapes sampling is inert in greedy search.
        """
        found = self.settings.get(setting)
        return self.sampling(values, versions) if found is not None and found.sampling_only else True
