"""What a rule is: a pure function from the settings at one site to hazards, with its page and examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from klguard.findings import Confidence, Severity
from klguard.settings import Default, HopKind, Known, Settings, Value, members

_LOUDNESS = {Severity.NOTE: 0, Severity.WARNING: 1, Severity.ERROR: 2}


@dataclass(frozen=True, slots=True)
class Hazard:
    """One thing wrong with the settings of a site, before it has a place.

    message     what is wrong and what it does to the KL.
    help        what to write instead, in this engine and version.
    setting     the setting it is about; "" where it is about how the loop is wired.
    values      the offending possibilities; their hops say where they were written.
    safe        source text of the neutral value, where a single one is certain.
    in_loop     the fault is in the loop that trains on the site's tokens, not at the site.
    """

    message: str
    help: str
    setting: str
    severity: Severity
    confidence: Confidence
    values: tuple[Value, ...] = ()
    safe: str | None = None
    in_loop: bool = False


@dataclass(frozen=True, slots=True)
class Example:
    """A small program on which a rule is tried.

    message     a fragment of the message it must give rise to, for a program the rule reports.
    versions    libraries pinned for it; the newest known where left empty.
    filename    what it is saved as.
    """

    source: str
    message: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    filename: str = "example.py"


class Rule:
    """One hazard. A subclass names it, and its docstring is its page.

    `VALID` programs pass, `INVALID` ones are reported; both are run by the tests.
    """

    code: ClassVar[str]
    name: ClassVar[str]
    severity: ClassVar[Severity] = Severity.ERROR
    VALID: ClassVar[tuple[Example, ...]] = ()
    INVALID: ClassVar[tuple[Example, ...]] = ()

    def check(self, settings: Settings) -> Iterator[Hazard]:
        """The hazards in `settings`; none for a rule about something else than settings."""
        return iter(())


@dataclass(frozen=True, slots=True)
class Verdict:
    """How bad a value is, how sure that is, which of its possibilities offend, and whether all of them do."""

    severity: Severity
    confidence: Confidence
    offenders: tuple[Value, ...]
    certain: bool


def _left_alone(value: Value) -> bool:
    """Whether nobody in the code wrote the value."""
    return isinstance(value, Default) or any(hop.kind is HopKind.CHECKPOINT for hop in value.hops)


def milder(*severities: Severity) -> Severity:
    """The least loud of them."""
    return min(severities, key=_LOUDNESS.__getitem__)


def judge(
    value: Value | None, is_hazard: Callable[[object], bool], severity: Severity = Severity.ERROR
) -> Verdict | None:
    """Try `is_hazard` on every possibility of `value`.

    All of them hazardous: `severity`, high confidence. Some: at most a warning, medium confidence. What is
    not known never offends by itself: KLG003 reports what could not be followed, once for each site. Nor does
    a default or a checkpoint's value beside it, which holds only if the unseen code left the setting alone.
    """
    if value is None:
        return None
    possible = members(value)
    seen = tuple(m for m in possible if isinstance(m, Known | Default))
    judged = seen if len(seen) == len(possible) else tuple(m for m in seen if not _left_alone(m))
    offenders = tuple(m for m in judged if is_hazard(m.value))
    if not offenders:
        return None
    if len(offenders) == len(possible):
        return Verdict(severity, Confidence.HIGH, offenders, True)
    return Verdict(milder(severity, Severity.WARNING), Confidence.MEDIUM, offenders, False)
