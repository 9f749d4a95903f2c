"""What the guard says, and what happens then: breaches become findings, findings become a reaction."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Literal

from klguard.findings import Confidence, Finding, Measured, Severity
from klguard.guard.catalogue import Entry
from klguard.guard.invariants.invariant import Breach, Harm
from klguard.settings import Hop, Place

Reaction = Literal["raise", "warn", "record"] | Callable[[Finding], object]
REACTIONS = ("raise", "warn", "record")

NOWHERE = Place("<unknown>", None, 1, 1, 1, 1)


class GuardWarning(UserWarning):
    """Something the guard found that does not stop the run, or its own failure."""


class Violation(AssertionError):
    """The run is not what it claims to be.

    finding    the gravest finding of the step; `findings` all of them.
    code, cause, weight, help   of that finding; cause is "" where the evidence names none.
    nats_per_sequence, standard_error, reward   the harm; None where not known.
    place      the line that set the cause, else the line of the loop that was running.
    """

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        self.finding = self.findings[0]
        measured = self.finding.measured or Measured(0)
        self.code = self.finding.code
        self.cause = measured.cause
        self.weight = measured.weight
        self.nats_per_sequence = measured.nats_per_sequence
        self.standard_error = measured.standard_error
        self.reward = measured.reward
        self.place = self.finding.place
        self.help = self.finding.help
        super().__init__("\n".join(map(describe, self.findings)))

    def __reduce__(self):
        return type(self), (self.findings,)


def describe(finding: Finding) -> str:
    """A finding in a few lines, for an exception, a warning or a log."""
    lines = [f"{finding.code} [{finding.name}] {finding.severity.value}: {finding.message}"]
    if finding.place != NOWHERE:
        lines.append(f"  --> {finding.place}")
    measured = finding.measured
    if measured and measured.nats_per_sequence is not None and finding.code not in ("KLG605", "KLG606"):
        error = "" if measured.standard_error is None else f" ± {measured.standard_error:.2g}"
        worth = "" if measured.reward is None else f", worth {measured.reward:+.3g} reward"
        lines.append(
            f"  harm: the KL estimate is off by {measured.nats_per_sequence:+.3g}{error} nats per sequence{worth}"
        )
    if finding.help:
        lines.append(f"  help: {finding.help}")
    return "\n".join(lines)


def finding(
    entry: Entry,
    breach: Breach,
    *,
    step: int,
    place: Place | None,
    harm: Harm | None = None,
    cause: str = "",
    weight: float | None = None,
    origin: tuple[Hop, ...] = (),
    related: tuple[Place, ...] = (),
) -> Finding:
    """A breach of `entry` at `step` as a finding."""
    return Finding(
        code=entry.code,
        name=entry.name,
        severity=breach.severity or entry.severity,
        confidence=Confidence.HIGH,
        message=breach.message,
        place=place or NOWHERE,
        help=breach.help or entry.help,
        setting=breach.key,
        origin=origin,
        related=related,
        measured=Measured(
            step,
            cause,
            weight,
            harm.nats_per_sequence if harm else None,
            harm.standard_error if harm else None,
            harm.reward if harm else None,
            breach.value,
            breach.limit,
        ),
    )


class Reporter:
    """Keeps what was found, each thing once, and reacts to it."""

    def __init__(self, reaction: Reaction, ignore: Collection[str]) -> None:
        if reaction not in REACTIONS and not callable(reaction):
            raise ValueError(
                f"on_violation={reaction!r}: choose one of {', '.join(REACTIONS)}, or give a function that takes a Finding"
            )
        self.reaction = reaction
        self.findings: list[Finding] = []
        self.seen: set[tuple[str, str]] = set()
        self._ignore = tuple(ignore)

    def ignores(self, finding: Finding) -> bool:
        """Whether the user asked not to hear of it, by code, beginning of a code, or name."""
        return any(finding.code.startswith(word.upper()) or finding.name == word for word in self._ignore)

    def take(self, found: Sequence[Finding]) -> list[Finding]:
        """Those of `found` that are new, kept."""
        new = []
        for item in found:
            key = (item.code, item.setting)
            if key not in self.seen and not self.ignores(item):
                self.seen.add(key)
                new.append(item)
        self.findings.extend(new)
        return new

    def react(self, new: Sequence[Finding]) -> None:
        """What the user asked for. Violation is raised for errors only; milder findings are warnings then."""
        if self.reaction == "record" or not new:
            return
        if callable(self.reaction):
            for item in new:
                self.reaction(item)
            return
        errors = [item for item in new if item.severity is Severity.ERROR]
        for item in new:
            if self.reaction == "warn" or item not in errors:
                warnings.warn(describe(item), GuardWarning, stacklevel=4)
        if self.reaction == "raise" and errors:
            raise Violation(errors)
