"""The report as one page that needs nothing else: plotly.js and the figures are inside it.

What the journal says is text on this page, never markup or code. The page forbids itself any connection, and
any script but its own two, by a content security policy.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from klguard import __version__
from klguard.guard.journal import Run
from klguard.output.terminal import clean
from klguard.report import table
from klguard.report.fields import number
from klguard.report.figures import Figure, figures
from klguard.report.summary import causes, facts, lapses, verdict
from klguard.report.violations import Repeated, Reported, details, fails, repeated

ROWS = 30
"""Steps in the table of the page, besides those with a violation."""


class MissingPlotly(RuntimeError):
    """plotly is not installed; the message names the extra that brings it."""


def write(path: str | os.PathLike[str], run: Run, found: Sequence[Reported]) -> None:
    """Write the page of `run` to `path`: all of it, or nothing. Raises OSError, and MissingPlotly."""
    save(path, page(run, found))


def save(path: str | os.PathLike[str], text: str) -> None:
    """Write a page to `path`: all of it, or nothing. Raises OSError."""
    target = Path(os.path.realpath(path))
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def page(run: Run, found: Sequence[Reported]) -> str:
    """The page as text. Raises MissingPlotly."""
    drawn = figures(run, found)
    sections = (
        *_header(run, found),
        *_violations(found),
        *plots(drawn),
        *_steps(run, found),
        *_settings(run),
    )
    return document(f"klguard report: {run.path.name}", sections, drawn)


def document(title: str, sections: Iterable[str], drawn: Sequence[Figure]) -> str:
    """A page that needs nothing else: markup of the sections, and the figures they have places for. Raises
    MissingPlotly."""
    plotly, own = _plotly(), _asset("page.js")
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_policy(plotly, own)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta name="generator" content="klguard {__version__}">',
            f"<title>{word(title)}</title>",
            f"<style>\n{_asset('page.css')}</style>",
            "</head>",
            "<body>",
            "<main>",
            *sections,
            f"<footer>Written by klguard {__version__}.</footer>",
            "</main>",
            f'<script type="application/json" id="figures">{_data(drawn)}</script>',
            f"<script>{plotly}</script>",
            f"<script>{own}</script>",
            "</body>",
            "</html>",
            "",
        )
    )


# --- what is not from the journal -----------------------------------------------------------------


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingPlotly(
            "a page needs plotly, which is not installed: pip install 'klguard[report]'"
        ) from error
    return get_plotlyjs()


def _asset(name: str) -> str:
    return files("klguard.report").joinpath(name).read_text(encoding="utf-8")


def _policy(*scripts: str) -> str:
    """Nothing is loaded, and only `scripts` run. Plotly sets styles and makes pictures to save."""
    sums = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{one}'" for one in sums)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _data(drawn: Sequence[Figure]) -> str:
    """The figures for the page's script: JSON in which nothing ends the element it stands in."""
    wanted = [{key: figure[key] for key in ("name", "data", "layout")} for figure in drawn]
    text = json.dumps(wanted, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def word(text: Any) -> str:
    """Text of the journal for the page: nothing in it is markup, reorders the line, or is invisible."""
    return escape(clean(str(text)))


# --- sections -------------------------------------------------------------------------------------


def _header(run: Run, found: Sequence[Reported]) -> Iterator[str]:
    outcome = "violations" if fails(found) else "clean"
    yield "<header>"
    yield "<h1>klguard report</h1>"
    yield f'<p class="path"><code>{word(run.path)}</code></p>'
    yield f'<p class="card verdict {outcome}" role="status">{word(verdict(run, found))}</p>'
    yield from _list([*facts(run), *(("journal", words) for words in lapses(run))])
    yield "</header>"


def _list(entries: Iterable[tuple[str, Any]]) -> Iterator[str]:
    yield '<dl class="card">'
    yield from (f"<dt>{word(name)}</dt><dd>{word(value)}</dd>" for name, value in entries)
    yield "</dl>"


def _violations(found: Sequence[Reported]) -> Iterator[str]:
    yield '<section aria-labelledby="violations">'
    yield '<h2 id="violations">Violations</h2>'
    if found:
        yield '<div class="scroll" role="region" aria-labelledby="violations" tabindex="0"><table>'
        yield "<caption>Each once, with the steps it was found at; harm is in nats per sequence.</caption>"
        heads = ("Rule", "Severity", "Step", "What was found, and what to do", "Cause", "Harm", "Where")
        columns = "".join(f'<th scope="col">{head}</th>' for head in heads)
        yield f"<thead><tr>{columns}</tr></thead>"
        yield "<tbody>"
        yield from map(_violation, repeated(found))
        yield "</tbody></table></div>"
    else:
        yield "<p>None.</p>"
    yield "</section>"


def _violation(one: Repeated) -> str:
    last = one.last
    finding, known = last.finding, dict(details(one))
    severity = finding.severity.value
    what = [f"<p>{word(finding.message)}</p>"]
    what += [f'<p class="help">Help: {word(line)}</p>' for line in finding.help.splitlines()[:20]]
    if "origin" in known:
        chain = word(known["origin"])
        what.append(f'<p class="origin">Origin: {chain}</p>')
    where = f"<code>{word(finding.place)}</code>" if last.placed else ""
    if last.placed and last.source:
        where += f"<pre>{word(last.source.strip())}</pre>"
    cells = (
        f'<td class="{severity}">{severity}</td>',
        f'<td class="step">{word(known.get("step", ""))}</td>',
        '<td class="what">' + "".join(what) + "</td>",
        f'<td class="short">{word(known.get("cause", ""))}</td>',
        f'<td class="short">{word(known.get("harm", ""))}</td>',
        f'<td class="where">{where}</td>',
    )
    rule = f'<th scope="row" class="rule"><code>{word(finding.code)}</code><br>{word(finding.name)}</th>'
    return f"<tr>{rule}{''.join(cells)}</tr>"


def plots(drawn: Sequence[Figure]) -> Iterator[str]:
    if not drawn:
        return
    yield '<section aria-labelledby="plots">'
    yield '<h2 id="plots">Plots</h2>'
    yield "<noscript><p>The plots need JavaScript; the table below has the figures.</p></noscript>"
    yield '<div class="plots">'
    for figure in drawn:
        name = figure["name"]
        yield f'<figure class="{"wide" if figure["wide"] else "half"}" aria-labelledby="title-{name}">'
        yield f'<figcaption><h3 id="title-{name}">{word(figure["title"])}</h3>'
        yield f"<p>{word(figure['caption'])}</p></figcaption>"
        yield f'<div class="plot" id="plot-{name}"></div>'
        yield "</figure>"
    yield "</div>"
    yield "</section>"


def _steps(run: Run, found: Sequence[Reported]) -> Iterator[str]:
    if not run.steps:
        return
    flagged = {one.step for one in found}
    records = {record["step"]: record for record in run.steps}
    extra = [step for step in records if step in flagged][: table.FOUND]
    rows = [records[step] for step in sorted({*table.sample(list(records), ROWS), *extra})]
    columns = []
    for column in table.COLUMNS:
        values = [number(row.get(column.field)) for row in rows]
        if any(value is not None for value in values):
            columns.append((column, table.figures(values, column.share)))
    heads = "".join(
        f'<th scope="col" class="number">{word(column.head.replace("+-", "±"))}<br>{word(column.unit)}</th>'
        for column, _ in columns
    )
    yield '<section aria-labelledby="steps">'
    yield '<h2 id="steps">Steps</h2>'
    yield '<div class="scroll" role="region" aria-labelledby="steps" tabindex="0"><table>'
    yield f"<caption>{len(rows)} of {len(records)} steps.</caption>"
    yield f'<thead><tr><th scope="col" class="number">Step</th>{heads}<th scope="col">Likeliest cause</th></tr></thead>'
    yield "<tbody>"
    for index, row in enumerate(rows):
        cells = "".join(f'<td class="number">{word(texts[index])}</td>' for _, texts in columns)
        cause = next(iter(causes(row)), "")
        mark = ' class="flagged"' if row["step"] in flagged else ""
        yield f'<tr{mark}><th scope="row" class="number">{row["step"]}</th>{cells}<td>{word(cause)}</td></tr>'
    yield "</tbody></table></div>"
    yield "</section>"


def _settings(run: Run) -> Iterator[str]:
    yield '<section aria-labelledby="settings">'
    yield '<h2 id="settings">Settings of the guard</h2>'
    if run.settings:
        yield from _list((name, _setting(value)) for name, value in run.settings.items())
    else:
        yield "<p>The journal has none.</p>"
    yield "</section>"


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
