"""A temperature that the loop may divide by: what the live settings may say of it, and where the loop is seen to."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any

from klguard.findings import Finding, Severity
from klguard.settings import Default, Known, Settings, Site

CODE = "KLG106"
"""Of the rule that a rollout's temperature is 1, or that of the logits that are scored."""

_REMEMBERED = 64


class Temperatures:
    """The temperatures of watched rollouts, by handle: the latest few."""

    def __init__(self) -> None:
        self._by_handle: dict[int | None, float] = {}

    def remember(self, handle: int | None, temperature: float | None) -> None:
        """The rollout with this handle was drawn at `temperature`."""
        self._by_handle.pop(handle, None)
        if temperature is not None and temperature > 0 and math.isfinite(temperature):
            self._by_handle[handle] = temperature
            while len(self._by_handle) > _REMEMBERED:
                del self._by_handle[next(iter(self._by_handle))]

    def divisor(self, handle: int | None) -> float | None:
        """By what the logits that score this rollout have to be divided; None where that changes nothing, or
        where the temperature is not known."""
        found = self._by_handle.get(handle, 1.0)
        return None if found == 1.0 else found


def temperature_of(settings: Settings) -> float | None:
    """The temperature that tokens are drawn at under `settings`, None where it is not certain, or nothing is
    drawn at random."""
    value = _certain(settings, "temperature")
    if settings.engine == "transformers" and _certain(settings, "do_sample") is not True:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and value > 0 else None


def _certain(settings: Settings, name: str) -> Any:
    value = settings.get(name)
    return value.value if isinstance(value, Known | Default) else None


def undivided(site: Site, found: list[Finding]) -> list[Finding]:
    """`found` about a rollout, without its temperature where the source shows that the loop divides the logits it
    scores by the same one: what the guard cannot see from outside `klguard check` may read."""
    if all(item.code != CODE for item in found) or not _divided(site.place.path, site.place.line):
        return found
    return [item for item in found if item.code != CODE]


@lru_cache(maxsize=32)
def _divided(path: str, line: int) -> bool:
    with suppress(Exception):  # a source that cannot be read answers nothing
        from klguard.check import check_paths

        sites = [s for s in check_paths([path]).sites if s.place.line <= line <= s.place.end_line]
        return bool(sites) and all("temperature" in site.settings.mitigations for site in sites)
    return False


def unseen(found: Iterable[Finding]) -> list[Finding]:
    """Findings about live settings, for a loop whose log-probs the guard does not see: whether it divides its
    logits by the temperature is the loop's own affair, so that a temperature is a warning."""
    return [_softer(item) if item.code == CODE else item for item in found]


def _softer(item: Finding) -> Finding:
    return replace(
        item,
        severity=Severity.WARNING,
        message=f"`{item.setting}={item.value}` draws from logits divided by {item.value}: that is right only if"
        " the loop divides the logits of policy and reference by the same number before it takes log-probs,"
        " which is not seen from outside",
        help="have it checked: score with guard.logprobs(logits, tokens, mask, temperature=...); or"
        " write `temperature=1.0`",
    )
