"""The run as a table in text: some of its steps, and as many of its figures as the terminal has room for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from klguard.guard.journal import Run
from klguard.output.terminal import Paint, clean, plural
from klguard.output.terminal import width as columns_of
from klguard.report.fields import number
from klguard.report.summary import causes
from klguard.report.violations import Reported

SAMPLES = 22
"""Steps shown of a long run, besides those with a violation."""

FOUND = 50
"""Most steps shown for their violation."""


@dataclass(frozen=True)
class Column:
    """One figure: the two lines of its heading, the field of the record, and whether it is a share of 1."""

    head: str
    unit: str
    field: str
    share: bool = False


COLUMNS = (
    Column("KL", "nats/seq", "kl_per_sequence"),
    Column("+-", "nats/seq", "kl_standard_error"),
    Column("reward", "mean", "reward"),
    Column("evidence", "nats", "log_evidence"),
    Column("exact KL", "nats/tok", "exact_kl_per_token"),
    Column("entropy", "nats/tok", "entropy"),
    Column("length", "tokens", "response_length"),
    Column("bias", "nats/seq", "bias_per_sequence"),
    Column("loss", "", "loss"),
    Column("gradient", "norm", "grad_norm"),
    Column("ratio", "mean", "ratio_mean"),
    Column("explained", "variance", "explained_variance"),
    Column("clipped", "", "clip_fraction", share=True),
    Column("cut off", "", "truncated_share", share=True),
    Column("tested", "tokens", "tokens"),
    Column("k3", "nats/tok", "k3_per_token"),
    Column("guard", "s in all", "guard_seconds"),
)
"""In the order of their worth: the ones behind are left out first."""


def render(run: Run, found: Sequence[Reported], width: int, paint: Paint) -> Iterator[str]:
    """The lines of the table, none wider than `width`: first and last step, about 20 between, and the steps at
    which something was found."""
    codes = _codes(found)
    records = {record["step"]: record for record in run.steps}
    flagged = sorted(step for step in codes if step is not None)
    shown = sorted({*sample(list(records), SAMPLES), *flagged[:FOUND]})
    if not shown:
        return
    rows = [records.get(step, {}) for step in shown]
    cells = _columns(shown, rows, codes, width)
    yield from _lines(cells, [step in codes for step in shown], paint)
    if len(flagged) > FOUND:
        yield paint(f"and {plural(len(flagged) - FOUND, 'more step')} with a violation", "dim")


def sample(steps: Sequence[int], wanted: int) -> list[int]:
    """At most `wanted` of the steps, evenly spread, the first and the last among them."""
    if len(steps) <= wanted:
        return list(steps)
    return [steps[round(index * (len(steps) - 1) / (wanted - 1))] for index in range(wanted)]


def figures(values: Sequence[float | None], share: bool = False) -> list[str]:
    """The values of one column with their points below each other; "" for a missing one."""
    if share:
        return ["" if value is None else _special(value) or f"{value * 100:.1f}%" for value in values]
    known = [value for value in values if value is not None and math.isfinite(value)]
    form = _form(max(map(abs, known), default=0.0), all(value.is_integer() for value in known))
    return ["" if value is None else _special(value) or format(value, form) for value in values]


def _form(largest: float, whole: bool) -> str:
    """How to write numbers up to `largest`: the same decimals for all, about four digits of the largest."""
    if largest >= 1e12 or (largest >= 1e6 and not whole) or 0 < largest < 1e-4:
        return ".2e"
    if whole:
        return ",.0f"
    for least, decimals in ((100, 1), (10, 2), (0.1, 3)):
        if largest >= least:
            return f",.{decimals}f"
    return f".{2 - math.floor(math.log10(largest))}f"


def _special(value: float) -> str:
    return "" if math.isfinite(value) else str(value)


def _codes(found: Sequence[Reported]) -> dict[int | None, str]:
    """Step -> the code found there, and how many others."""
    by_step: dict[int | None, list[str]] = {}
    for one in found:
        codes = by_step.setdefault(one.step, [])
        if one.finding.code not in codes:
            codes.append(one.finding.code)
    return {
        step: clean(codes[0])[:12] + (f" +{len(codes) - 1}" if len(codes) > 1 else "")
        for step, codes in by_step.items()
    }


Cells = tuple[str, str, list[str], bool]
"""A column as text: its two headings, its values, and whether they are words."""


def _columns(
    steps: Sequence[int], rows: Sequence[Mapping[str, Any]], codes: Mapping[int | None, str], width: int
) -> list[Cells]:
    """The step, as many figures as fit, and at the right what was found and the likeliest cause."""
    left: Cells = ("", "step", [str(step) for step in steps], False)
    right = [("", "found", [codes.get(step, "") for step in steps], True)] if any(codes) else []
    likely = [_likeliest(row) for row in rows]
    if any(likely):
        right.append(("likeliest", "cause", likely, True))
    chosen = [left]
    for column in COLUMNS:
        values = [number(row.get(column.field)) for row in rows]
        if all(value is None for value in values):
            continue
        cells = (column.head, column.unit, figures(values, column.share), False)
        if _total([*chosen, cells, *right]) > width:
            break
        chosen.append(cells)
    return [*chosen, *right]


def _likeliest(record: Mapping[str, Any]) -> str:
    """The first cause and its weight; names are short, but a journal may hold anything."""
    for name, weight in causes(record).items():
        return f"{clean(name)[:22]} {weight:.0%}"
    return ""


def _width(column: Cells) -> int:
    return max(columns_of(text) for text in (column[0], column[1], *column[2]))


def _total(columns: Sequence[Cells]) -> int:
    return sum(_width(column) for column in columns) + 2 * (len(columns) - 1)


def _lines(columns: Sequence[Cells], flagged: Sequence[bool], paint: Paint) -> Iterator[str]:
    widths = [_width(column) for column in columns]

    def line(texts: Sequence[str]) -> str:
        placed = []
        for text, width, column in zip(texts, widths, columns, strict=True):
            room = " " * (width - columns_of(text))
            placed.append(text + room if column[3] else room + text)
        return "  ".join(placed).rstrip()

    heads = line([column[0] for column in columns])
    if heads:
        yield paint(heads, "bold")
    yield paint(line([column[1] for column in columns]), "bold")
    for index, marked in enumerate(flagged):
        yield paint(line([column[2][index] for column in columns]), *(("red",) if marked else ()))
