"""Findings: what klguard says, as plain data that can be cached, sent between processes and fingerprinted."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from klguard.settings import Context, Hop, Place

INTERNAL_ERROR = ("KLG006", "internal-error")
"""Code and name of a finding about klguard's own failure: no rule has it, and nothing selects or ignores it."""


class Severity(str, Enum):
    """error: the distribution is certainly not the policy's. warning: depends on something not visible,
    or the loop is fragile. note: worth knowing, never fails a gate on its own."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Confidence(str, Enum):
    """high: every possible value is hazardous. medium: some are. low: the value is not known."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


class Applicability(str, Enum):
    """safe: cannot change the distribution of the rollout. unsafe: changes it (that is its purpose)."""

    SAFE = "safe"
    UNSAFE = "unsafe"


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace the text at `place` by `content`."""

    place: Place
    content: str


@dataclass(frozen=True, slots=True)
class Fix:
    """Edits that belong together, and whether they may be applied without asking."""

    applicability: Applicability
    edits: tuple[Edit, ...]


@dataclass(frozen=True, slots=True)
class SiteRef:
    """The site a finding is about. `why` is the reason for `context`, in words."""

    place: Place
    call: str
    engine: str
    context: Context
    enclosing: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """What the guard measured of a running loop. A figure that is not known is None.

    step        number of the step, from 0.
    cause       how the tokens were really drawn, as the evidence names it (`top_k=50`), and `weight`, its posterior.
    nats_per_sequence, standard_error   bias of the KL estimate: the harm done.
    reward      the same in reward per sequence: minus the KL coefficient times the bias.
    value, limit   the figure that broke a bound, and the bound.
    """

    step: int
    cause: str = ""
    weight: float | None = None
    nats_per_sequence: float | None = None
    standard_error: float | None = None
    reward: float | None = None
    value: float | None = None
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing wrong, at one place, with the reason, the history of the value and what to write instead."""

    code: str
    name: str
    severity: Severity
    confidence: Confidence
    message: str
    place: Place
    help: str = ""
    site: SiteRef | None = None
    setting: str = ""
    value: str = ""
    origin: tuple[Hop, ...] = ()
    fix: Fix | None = None
    url: str = ""
    related: tuple[Place, ...] = field(default=())
    measured: Measured | None = None

    @property
    def fingerprint(self) -> str:
        """Stable across edits elsewhere in the file: rule, path, enclosing name, setting and value; no line numbers."""
        import hashlib  # not needed by a run that only prints

        path = self.site.place.path if self.site else self.place.path
        enclosing = self.site.enclosing if self.site else ""
        key = "\0".join((self.code, path, enclosing, self.setting, self.value))
        return hashlib.sha256(key.encode()).hexdigest()[:16]

    @property
    def sort_key(self) -> tuple:
        """Path, cell, line, column, code: the order of every output."""
        cell = -1 if self.place.cell is None else self.place.cell
        site = self.site.place if self.site else self.place
        return (
            self.place.path,
            cell,
            self.place.line,
            self.place.column,
            self.code,
            site.path,
            -1 if site.cell is None else site.cell,
            site.line,
            site.column,
            self.setting,
            self.message,
        )
