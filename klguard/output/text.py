"""The full output: for each finding its rule, a code frame, where the value came from and what to write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from klguard.findings import Finding, Severity, SiteRef
from klguard.output.frame import Lines, Mark, frame
from klguard.output.groups import Group
from klguard.output.terminal import Paint, clean, painter
from klguard.settings import Context, Place

STYLES = {Severity.ERROR: ("red", "bold"), Severity.WARNING: ("yellow", "bold"), Severity.NOTE: ("cyan",)}


def render(groups: Iterable[Group], lines: Lines, paint: Paint) -> Iterator[str]:
    """The lines of the whole report; an empty one after each finding."""
    for group in groups:
        if group.first.severity is Severity.NOTE:
            yield from (paint(line, "dim") for line in _finding(group, lines, painter(False)))
        else:
            yield from _finding(group, lines, paint)
        yield ""


def _finding(group: Group, lines: Lines, paint: Paint) -> Iterator[str]:
    finding, sites = group.first, group.sites
    style = STYLES[finding.severity]
    yield heading(finding, paint)
    yield from frame(_marks(finding), lines, paint, style[0])
    if chain := origin(finding):
        yield f"{paint('origin:', 'blue', 'bold')} {clean(chain)}"
    for site in sites[1:]:
        where = f"{site.place} {site.call}(...), {_use(site)}"
        yield f"{paint('also reaches:', 'blue', 'bold')} {clean(where)}"
    yield from helping(finding, paint)


def heading(finding: Finding, paint: Paint) -> str:
    """The first line: rule, severity, message, and how sure klguard is where it is not."""
    style = STYLES[finding.severity]
    low = "" if finding.confidence.value == "high" else f" ({finding.confidence.value} confidence)"
    return (
        f"{paint(clean(finding.code), *style)} [{clean(finding.name)}] {paint(finding.severity.value, *style)}: "
        f"{paint(clean(finding.message), 'bold')}{low}"
    )


def helping(finding: Finding, paint: Paint) -> Iterator[str]:
    """The last lines: what to do."""
    if finding.help:
        first, *rest = finding.help.splitlines()
        yield f"{paint('help:', 'green', 'bold')} {clean(first)}"
        yield from (f"      {clean(line)}" for line in rest)


def _marks(finding: Finding) -> list[Mark]:
    """What to underline: where the value was written, where else it was, and the site with why it counts."""
    site = finding.site
    if site is not None and site.place == finding.place:
        return [Mark(site.place, _use(site), primary=True)]
    marks = [Mark(finding.place, primary=True), *(Mark(place, "and here") for place in finding.related)]
    return marks if site is None else [*marks, Mark(site.place, _use(site))]


def _use(site: SiteRef) -> str:
    """What the site is to training, and why klguard thinks so."""
    what = "unknown use" if site.context is Context.UNKNOWN else site.context.value
    return f"{what}: {site.why}" if site.why else what


def origin(finding: Finding) -> str:
    """The history of the value in one line; "" when all of it is on the lines of the call."""
    site = finding.site
    if site is None or all(hop.place is None or _inside(hop.place, site.place) for hop in finding.origin):
        return ""
    return " -> ".join([*_steps(finding), f"{site.call}(...)"])


def _inside(place: Place, site: Place) -> bool:
    return (place.path, place.cell) == (site.path, site.cell) and site.line <= place.line <= site.end_line


def _steps(finding: Finding) -> Iterator[str]:
    """Each hop in words, with its place where that is not on the line named last."""
    line = _line(finding.place)
    for hop in finding.origin:
        moved = hop.place is not None and _line(hop.place) != line
        yield f"{hop.text} at {hop.place}" if moved else hop.text
        line = _line(hop.place) if hop.place else line


def _line(place: Place) -> tuple[str, int | None, int]:
    return place.path, place.cell, place.line
