"""The report on the terminal: the run in a few lines, a table, KL and reward as plots, and every violation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from klguard.findings import Severity
from klguard.guard.journal import Run
from klguard.output import text
from klguard.output.frame import Mark, frame
from klguard.output.terminal import Paint, clean
from klguard.report import plot, table
from klguard.report.summary import band, facts, lapses, outside, series, verdict
from klguard.report.violations import Repeated, Reported, details, repeated

HEIGHT = 10
"""Rows of a plot."""

WIDEST = 160


def render(
    run: Run, found: Sequence[Reported], *, width: int, paint: Paint, using: plot.Alphabet
) -> Iterator[str]:
    """The lines of the report, for a terminal `width` columns wide."""
    width = max(40, min(width, WIDEST))
    yield from heading(run, paint)
    yield ""
    if run.steps:
        yield from table.render(run, found, width, paint)
        yield ""
        yield from _plots(run, found, width, paint, using)
    for one in repeated(found):
        yield from violation(one, paint, using)
        yield ""
    yield verdict(run, found)


def heading(run: Run, paint: Paint) -> Iterator[str]:
    """What run this is, how far it went and how it ended."""
    yield paint(clean(str(run.path)), "bold")
    for name, value in facts(run):
        yield f"  {paint(name.ljust(9), 'blue', 'bold')} {clean(value)}"
    for words in lapses(run):
        yield f"  {paint('journal'.ljust(9), 'blue', 'bold')} {clean(words)}"


def violation(one: Repeated, paint: Paint, using: plot.Alphabet) -> Iterator[str]:
    """One violation as `klguard check` shows a finding, with the steps it was seen at, its cause and its harm."""
    last = one.last
    finding = last.finding
    yield text.heading(finding, paint)
    if last.placed:
        mark = Mark(finding.place, primary=True)
        yield from frame([mark], _sources(last), paint, text.STYLES[finding.severity][0])
    for name, words in details(one, "±" if using is plot.BRAILLE else "+-"):
        yield f"{paint(name + ':', 'blue', 'bold')} {clean(words)}"
    yield from text.helping(finding, paint)


def _plots(
    run: Run, found: Sequence[Reported], width: int, paint: Paint, using: plot.Alphabet
) -> Iterator[str]:
    serious = [one for one in found if one.finding.severity is not Severity.NOTE]
    marks = sorted({one.step for one in serious if one.step is not None})
    pointer = f"; {using.mark} violation" if marks else ""
    limits = band(run)
    within = f"; {using.band * 3} {limits[0]:g} to {limits[1]:g}" if limits else ""
    shared = {"marks": marks, "width": width, "height": HEIGHT, "paint": paint, "using": using}
    kl = plot.draw(series(run, "kl_per_sequence"), band=limits, flagged=outside(run), **shared)
    reward = plot.draw(series(run, "reward"), **shared)
    for title, drawn in (
        (f"KL, nats per sequence{within}{pointer}", kl),
        (f"reward, mean per sequence{pointer}", reward),
    ):
        if rows := list(drawn):
            yield paint(title, "bold")
            yield from rows
            yield ""


class _OneLine(Sequence[str]):
    """A file of which one line is known, the last."""

    def __init__(self, number: int, source: str) -> None:
        self._number, self._source = number, source

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index):  # type: ignore[no-untyped-def, override]
        return self._source if index == self._number - 1 else ""


def _sources(one: Reported):  # type: ignore[no-untyped-def]
    """The lines for a code frame: from the journal alone. A report never opens a file that a journal names."""
    return lambda path, cell: _OneLine(one.finding.place.line, one.source) if one.source else None
