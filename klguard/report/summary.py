"""What a journal amounts to: the series of its figures, what was asserted, and the whole in a few numbers.

A journal may have been edited, or written by a later klguard: whatever is not of the expected type counts as
missing, and nothing here trusts a string.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from klguard.findings import Severity
from klguard.guard import shares
from klguard.guard.journal import Run
from klguard.output.terminal import plural
from klguard.report.fields import finite, number
from klguard.report.violations import Reported, fails, repeated

SCHEMA = 1

FIGURES = (
    "kl_per_sequence",
    "kl_standard_error",
    "kl_per_token",
    "exact_kl_per_token",
    "k3_per_token",
    "bias_per_sequence",
    "bias_standard_error",
    "log_evidence",
    "reward",
    "entropy",
    "loss",
    "grad_norm",
    "ratio_mean",
    "clip_fraction",
    "response_length",
    "truncated_share",
    "explained_variance",
    "guard_seconds",
)
"""Figures of a step that are summed up over the run."""


def series(run: Run, figure: str) -> list[tuple[int, float]]:
    """(step, value) of every step that has the figure; a value may be non-finite."""
    values = ((record["step"], number(record.get(figure))) for record in run.steps)
    return [(step, value) for step, value in values if value is not None]


def band(run: Run) -> tuple[float, float] | None:
    """The range that the KL per sequence was asserted to stay in, in nats; a bound may be infinite."""
    given = run.settings.get("kl_range")
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != 2:
        return None
    low, high = (number(bound) for bound in given)
    return None if low is None or high is None or math.isnan(low + high) or low >= high else (low, high)


def outside(run: Run) -> set[int]:
    """Steps whose KL is outside of the band by more than three standard errors.

    Short of that a step tells nothing: the mean of k1 over one batch is below 0 all the time in a healthy run.
    """
    limits = band(run)
    if limits is None:
        return set()
    errors = dict(series(run, "kl_standard_error"))
    found = set()
    for step, value in series(run, "kl_per_sequence"):
        room = 3 * errors.get(step, 0.0)
        if value + room < limits[0] or value - room > limits[1]:
            found.add(step)
    return found


def threshold(run: Run) -> float | None:
    """The evidence, in nats, at which the guard alarms: ln(1 / alpha) with the share of alpha that this test has.
    A healthy run ever reaches it with that probability at most."""
    alpha = finite(run.settings.get("alpha"))
    return shares.threshold(alpha, shares.EVIDENCE) if alpha is not None and 0 < alpha < 1 else None


def causes(record: Mapping[str, Any]) -> dict[str, float]:
    """Posterior weights of the likeliest causes at a step, largest first."""
    given = record.get("causes")
    known = {str(name): finite(weight) for name, weight in given.items()} if isinstance(given, dict) else {}
    weights = {name: weight for name, weight in known.items() if weight is not None}
    return dict(sorted(weights.items(), key=lambda item: -item[1]))


def facts(run: Run) -> list[tuple[str, str]]:
    """What run this is, how far it went, how it ended and what was asserted: name and words."""
    begun = ", ".join(part for part in (started(run), _writer(run)) if part)
    named = (
        ("started", begun),
        ("length", extent(run)),
        ("ended", ending(run)),
        ("asserted", _asserted(run)),
    )
    return [(name, words) for name, words in named if words]


def _writer(run: Run) -> str:
    version = run.header.get("klguard")
    return f"klguard {version}" if isinstance(version, str) else ""


def _asserted(run: Run) -> str:
    """The promises of the guard that the figures can be read against."""
    words = []
    if limits := band(run):
        words.append(f"KL of {limits[0]:g} to {limits[1]:g} nats per sequence")
    if (limit := threshold(run)) is not None:
        words.append(f"evidence below {limit:.4g} nats (alpha {run.settings['alpha']:g})")
    return ", ".join(words)


def ending(run: Run) -> str:
    """How the run ended, in words."""
    if run.end is None:
        return "no end record: the run was killed, or is still going"
    if run.end.get("outcome") == "raised":
        error = run.end.get("error")
        return f"stopped by {error}" if isinstance(error, str) and error else "stopped by an exception"
    return "in good order"


def started(run: Run) -> str:
    """When the run began first, as `2026-11-22 21:19:43 UTC`; "" where that is not known."""
    try:
        when = datetime.fromisoformat(run.segments[0].header["started"]).astimezone(timezone.utc)
    except (IndexError, KeyError, TypeError, ValueError, OverflowError):
        return ""
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"


def extent(run: Run) -> str:
    """How long the run is: `steps 0 to 499, 2 h 13 min, 8 ranks, 1,024,000 tokens tested, 16,000 sequences`.

    Seconds count from the opening of the journal, and are added up over resumptions; sequences are those of each
    step, tokens those tested so far.
    """
    if not run.steps:
        return "no step"
    last = run.steps[-1]
    first, final = run.steps[0]["step"], last["step"]
    parts = [f"step {first}" if first == final else f"steps {first} to {final}"]
    if final - first + 1 != len(run.steps):
        parts[0] += f" ({len(run.steps)} recorded)"
    spent = [part.seconds for part in run.segments if part.seconds is not None]
    if spent:
        parts.append(duration(sum(spent)))
    sequences = [value for _, value in series(run, "sequences") if math.isfinite(value)]
    for count, one, many in (
        (finite(last.get("ranks")), "rank", "ranks"),
        (finite(last.get("tokens")), "token tested", "tokens tested"),
        (math.fsum(sequences) if sequences else None, "sequence", "sequences"),
    ):
        if count is not None:
            parts.append(f"{count:,.0f} {one if count == 1 else many}")
    return ", ".join(parts)


def lapses(run: Run) -> list[str]:
    """What is unusual about the journal itself: resumed, torn lines."""
    words = []
    if run.restarts:
        at = [str(part.first_step) for part in run.segments[1:] if part.first_step is not None]
        where = f", at step {', '.join(at[:8])}{', ...' if len(at) > 8 else ''}" if at else ""
        words.append(f"resumed {plural(run.restarts, 'time')}{where}")
    if run.torn:
        numbers = ", ".join(str(line) for line in run.torn_lines[:8]) + (", ..." if run.torn > 8 else "")
        words.append(f"{plural(run.torn, 'line')} cut off by a kill and left out: line {numbers}")
    return words


def duration(seconds: float) -> str:
    """`42 s`, `12 min 5 s`, `3 h 20 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def verdict(run: Run, found: Sequence[Reported]) -> str:
    """One sentence: what was found, in how many steps."""
    counts = Counter(one.last.finding.severity for one in repeated(found))
    said = ", ".join(plural(counts[severity], severity.value) for severity in Severity if counts[severity])
    steps = plural(len(run.steps), "step")
    ends = "" if run.end else " The journal has no end record: the run was killed, or is still going."
    return (f"Found {said}: {steps}." if said else f"Nothing found: {steps}.") + ends


def as_json(run: Run, found: Sequence[Reported]) -> dict[str, Any]:
    """The run in a few numbers, for other programs. Schema 1: keys may be added, none changes its meaning or goes
    away. Numbers that are not finite are null."""
    return _strict(
        {
            "schema": SCHEMA,
            "journal": str(run.path),
            "outcome": "violations" if fails(found) else "clean",
            "ended": run.end and run.end.get("outcome"),
            "klguard": run.header.get("klguard"),
            "started": run.segments[0].header.get("started") if run.segments else None,
            "settings": run.settings,
            "steps": len(run.steps),
            "first_step": run.steps[0]["step"] if run.steps else None,
            "last_step": run.steps[-1]["step"] if run.steps else None,
            "restarts": run.restarts,
            "torn_lines": list(run.torn_lines),
            "figures": {name: figures for name in FIGURES if (figures := _figures(series(run, name)))},
            "last": run.steps[-1] if run.steps else None,
            "violations": run.violations,
        }
    )


def dumps(run: Run, found: Sequence[Reported]) -> str:
    """`as_json` as text, ASCII throughout."""
    return json.dumps(as_json(run, found), indent=2, allow_nan=False)


def _figures(points: Sequence[tuple[int, float]]) -> dict[str, Any] | None:
    """First, last, smallest, largest and mean value; the last three over finite values."""
    if not points:
        return None
    values = [value for _, value in points if math.isfinite(value)]
    return {
        "first": points[0][1],
        "last": points[-1][1],
        "lowest": min(values, default=None),
        "highest": max(values, default=None),
        "mean": math.fsum(values) / len(values) if values else None,
        "not_finite": len(points) - len(values),
    }


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _strict(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
