"""What the guard says, and what happens then: breaches become findings, findings become a reaction."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Literal

from klguard.findings import INTERNAL_ERROR, Confidence, Finding, Measured, Severity
from klguard.guard.caller import depth
from klguard.guard.catalogue import CATALOGUE, Entry
from klguard.guard.invariants.invariant import Breach, Harm
from klguard.rules import RULES
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


def _ignored(ignore: Collection[str]) -> tuple[str, ...]:
    """The words of `ignore`, in capitals. A word that fits nothing would silence nothing, unnoticed; a lone string
    would be taken letter by letter, and silence everything."""
    if isinstance(ignore, str):
        raise TypeError(f"ignore={ignore!r} has to be a list: write [{ignore!r}]")
    things = [*CATALOGUE, *RULES.values()]
    known = [INTERNAL_ERROR, *((thing.code, thing.name) for thing in things)]
    words = tuple(str(word).strip().upper() for word in ignore)
    for word in words:
        fits = any(code.startswith(word) or name.upper() == word for code, name in known)
        if len(word) < len("KLG") or not fits:
            raise ValueError(
                f"ignore={word!r} is no code, beginning of a code, or name: write KLG834, KLG83 or logged-kl;"
                " docs/invariants.md and docs/rules list them"
            )
    return words


class Reporter:
    """Keeps what was found, each thing once, and reacts to it."""

    def __init__(self, reaction: Reaction, ignore: Collection[str]) -> None:
        if reaction not in REACTIONS and not callable(reaction):
            raise ValueError(
                f"on_violation={reaction!r}: choose one of {', '.join(REACTIONS)}, or give a function that takes a"
                " Finding"
            )
        self.reaction = reaction
        self.findings: list[Finding] = []
        self.seen: set[tuple[str, str]] = set()
        self._ignore = _ignored(ignore)

    def ignores(self, finding: Finding) -> bool:
        """Whether the user asked not to hear of it, by code, beginning of a code, or name."""
        return any(finding.code.startswith(word) or finding.name == word.lower() for word in self._ignore)

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
                warnings.warn(describe(item), GuardWarning, stacklevel=depth())
        if self.reaction == "raise" and errors:
            raise Violation(errors)
