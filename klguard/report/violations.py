"""The violations of a journal as objects, and equal ones put together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from klguard.findings import Confidence, Finding, Severity
from klguard.guard.journal import Run
from klguard.output.terminal import plural
from klguard.report.fields import count, finite, member, step, text
from klguard.settings import Hop, HopKind, Place


@dataclass(frozen=True)
class Reported:
    """One violation as the journal has it. `harm` and its standard error are in nats per sequence, `reward` is
    what the policy is paid for it per sequence, `weight` the posterior probability of `cause`."""

    finding: Finding
    step: int | None
    cause: str = ""
    weight: float | None = None
    harm: float | None = None
    harm_error: float | None = None
    reward: float | None = None
    source: str = ""

    @property
    def placed(self) -> bool:
        """Whether a line of source is known."""
        return bool(self.finding.place.path)


@dataclass(frozen=True)
class Repeated:
    """The same violation at one step or at many: the one said last, and the steps."""

    last: Reported
    steps: tuple[int, ...]
    times: int


def violations(run: Run) -> list[Reported]:
    """Every violation of the run, in the order they were written."""
    return [_reported(record) for record in run.violations]


def repeated(found: Iterable[Reported]) -> list[Repeated]:
    """Violations of one rule with one cause at one place as one; notes after everything else."""
    groups: dict[tuple, list[Reported]] = {}
    for one in found:
        key = (one.finding.code, one.finding.name, one.cause, one.finding.place, one.finding.severity)
        groups.setdefault(key, []).append(one)
    merged = [
        Repeated(group[-1], tuple(sorted({one.step for one in group if one.step is not None})), len(group))
        for group in groups.values()
    ]
    return sorted(merged, key=lambda group: group.last.finding.severity is Severity.NOTE)


def fails(found: Iterable[Reported]) -> bool:
    """Whether any violation is more than a note."""
    return any(one.finding.severity is not Severity.NOTE for one in found)


def details(one: Repeated, plus_minus: str = "±") -> Iterator[tuple[str, str]]:
    """What is known of a violation besides its message: steps, cause, harm, origin."""
    last = one.last
    if one.steps:
        yield "step", _steps(one)
    if last.cause:
        weight = "" if last.weight is None else f" (posterior weight {last.weight:.3g})"
        yield "cause", last.cause + weight
    if last.harm is not None:
        error = "" if last.harm_error is None else f" {plus_minus} {last.harm_error:.2g}"
        paid = "" if last.reward is None else f", worth {last.reward:+.3g} reward to the policy"
        yield "harm", f"{last.harm:+.3g}{error} nats per sequence{paid}"
    steps = [hop.text + (f" at {hop.place}" if hop.place else "") for hop in last.finding.origin]
    if steps:
        yield "origin", " -> ".join(steps)


def _steps(one: Repeated) -> str:
    if len(one.steps) == 1:
        return str(one.steps[0])
    return f"{one.steps[0]} to {one.steps[-1]}, {plural(one.times, 'time')}; in the words of the last"


def _reported(record: Mapping[str, Any]) -> Reported:
    place, source = _place(record.get("place"))
    harm = record.get("harm")
    harm = harm if isinstance(harm, dict) else {}
    return Reported(
        finding=Finding(
            code=text(record.get("code")) or "KLG000",
            name=text(record.get("name")) or "unknown",
            severity=member(Severity, record.get("severity"), Severity.ERROR),
            confidence=member(Confidence, record.get("confidence"), Confidence.HIGH),
            message=text(record.get("message")),
            place=place,
            help=text(record.get("help")),
            origin=_hops(record.get("origin")),
        ),
        step=step(record.get("step")),
        cause=text(record.get("cause")),
        weight=finite(record.get("weight")),
        harm=finite(harm.get("nats_per_sequence")),
        harm_error=finite(harm.get("standard_error")),
        reward=finite(harm.get("reward")),
        source=source,
    )


def _place(record: Any) -> tuple[Place, str]:
    """The place, and the line of source that was there; a Place with path "" where there is none."""
    record = record if isinstance(record, dict) else {}
    line, column = count(record.get("line"), 1), count(record.get("column"), 1)
    cell = record.get("cell")
    place = Place(
        path=text(record.get("path")),
        cell=cell if isinstance(cell, int) and not isinstance(cell, bool) else None,
        line=line,
        column=column,
        end_line=count(record.get("end_line"), line),
        end_column=count(record.get("end_column"), column + 1),
    )
    return place, text(record.get("source"))


def _hops(records: Any) -> tuple[Hop, ...]:
    hops = []
    for record in records if isinstance(records, list) else ():
        if isinstance(record, dict):
            place, _ = _place(record)
            hops.append(Hop(HopKind.LIVE, place if place.path else None, text(record.get("text"))))
        elif isinstance(record, str):
            hops.append(Hop(HopKind.LIVE, None, record))
    return tuple(hops)
