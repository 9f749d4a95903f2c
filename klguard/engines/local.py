"""A project's own sampler whose arguments carry transformers' names, such as a `generate` written by hand.

The names keep their meaning and their off-values. There are no defaults, because nothing is in force that was
not written, and no value is an error, because there is no library to reject it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from klguard.engines.engine import NOTHING, Engine, Resolved
from klguard.engines.layers import verdict, walk
from klguard.engines.predicates import truthy
from klguard.engines.transformers import SETTINGS
from klguard.settings import Default, Layer, SiteKind, Value

LEFT_ALONE = Default(None, "")


class Local(Engine):
    """An engine without defaults."""

    def resolve(
        self,
        layers: Sequence[Layer],
        versions: Mapping[str, str],
        *,
        kind: SiteKind,
        class_name: str = "",
        facts: Mapping[str, Value] = NOTHING,
    ) -> Resolved:
        """Only what was written, and what an unseen splat may hold."""
        unseen = any(layer.rest is not None for layer in layers)
        written = {name for layer in layers for name in layer.values}
        names = [n for n, setting in self.settings.items() if n in written or (unseen and setting.shown)]
        return Resolved({name: walk(name, layers, LEFT_ALONE) for name in names})

    def is_off(self, setting: str, value: Any, versions: Mapping[str, str]) -> bool:
        """As in transformers; None, which stands for a setting left alone, is always off, and so is what turns
        a setting off in the engines that may stand behind."""
        if value is None or (setting == "top_k" and value == -1):  # off in vLLM and SGLang
            return True
        return super().is_off(setting, value, versions)

    def sampling(self, values: Mapping[str, Value], versions: Mapping[str, str] = NOTHING) -> bool | None:
        """Whether tokens are drawn at random: assumed, unless a do_sample that was written says otherwise."""
        return verdict(values.get("do_sample", LEFT_ALONE), lambda value: value is None or truthy(value))


LOCAL = Local(
    name="local",
    settings={name: replace(s, default=None, faults=(), versions="") for name, s in SETTINGS.items()},
)
