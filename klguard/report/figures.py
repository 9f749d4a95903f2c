"""The plots of a run as plotly.js takes them: plain dicts. Colours of paper and ink are the page's business.

Every name and text that comes from the journal is escaped: plotly reads a little HTML in them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from klguard.findings import Severity
from klguard.guard.journal import Run
from klguard.report.summary import band, causes, outside, series, threshold
from klguard.report.violations import Reported

Figure = dict[str, Any]
"""`name`, `title`, `caption`, `wide`, and what plotly calls `data` and `layout`."""

BLUE, ORANGE, GREEN, PURPLE, RED, AMBER = "#3b7dd8", "#d9772b", "#2f9e6e", "#8d6bd6", "#d84a4a", "#b98a16"
GREY = "#8a8f98"
SHADES = (BLUE, ORANGE, GREEN, PURPLE, AMBER, "#c7548f", "#3aa3b5", "#7f9a3a")

CAUSES = len(SHADES)
"""Causes shown with a colour of their own; the rest are one."""

LINES = 50
"""Most vertical lines in a plot: violations, or resumptions."""


def figures(run: Run, found: Sequence[Reported]) -> list[Figure]:
    """The plots for which the journal has figures."""
    made = [
        _kl(run, found),
        _lines(
            run,
            "exact",
            "Exact KL and estimators, per token",
            "nats per token",
            (
                ("exact_kl_per_token", "exact, over the vocabulary", GREEN),
                ("k3_per_token", "k3", ORANGE),
                ("kl_per_token", "k1", BLUE),
            ),
        ),
        _lines(run, "reward", "Reward", "mean per sequence", (("reward", "reward", GREEN),)),
        _lines(run, "entropy", "Entropy of the policy", "nats per token", (("entropy", "entropy", PURPLE),)),
        _evidence(run),
        _causes(run),
        _bias(run),
    ]
    kept = [figure for figure in made if figure is not None]
    for figure in kept:
        figure["layout"]["shapes"] = [*figure["layout"].get("shapes", ()), *_verticals(run, found)]
    return kept


def _kl(run: Run, found: Sequence[Reported]) -> Figure | None:
    points = series(run, "kl_per_sequence")
    if not points:
        return None
    data = [
        *_ribbon(points, dict(series(run, "kl_standard_error")), BLUE),
        line(points, "KL, mean of k1", BLUE, width=2),
    ]
    if flags := _flags(found, dict(points)):
        data.append(flags)
    caption, shapes = _described(points, "nats per sequence"), []
    if limits := band(run):
        caption += (
            f" The band is {limits[0]:g} to {limits[1]:g}; {len(outside(run))} of {len(points)} steps are outside"
            " by more than three standard errors."
        )
        shapes = list(_band(limits))
    figure = figure_of("kl", "KL per sequence", caption, "nats per sequence", data, wide=True)
    figure["layout"]["shapes"] = shapes
    return figure


def _band(limits: tuple[float, float]) -> Iterator[dict[str, Any]]:
    """The band as an area, and its finite bounds as lines."""
    across = {"xref": "paper", "x0": 0, "x1": 1, "layer": "below"}
    if all(map(math.isfinite, limits)):
        fill = {"type": "rect", "fillcolor": GREEN, "opacity": 0.09, "line": {"width": 0}}
        yield {**across, **fill, "y0": limits[0], "y1": limits[1]}
    for bound in limits:
        if math.isfinite(bound):
            line = {"type": "line", "line": {"color": GREEN, "width": 1.2, "dash": "dot"}}
            yield {**across, **line, "y0": bound, "y1": bound}


def _flags(found: Sequence[Reported], values: dict[int, float]) -> dict[str, Any] | None:
    """A cross at every step with a violation, on the curve where it has a value there."""
    at: dict[int, list[str]] = {}
    for one in found:
        if one.step is not None and one.finding.severity is not Severity.NOTE:
            words = f"{one.finding.code} [{one.finding.name}]" + (f": {one.cause}" if one.cause else "")
            at.setdefault(one.step, []).append(escape(words))
    if not at:
        return None
    steps = sorted(at)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "violation",
        "x": steps,
        "y": [_json(values.get(step, 0.0)) or 0.0 for step in steps],
        "text": ["<br>".join(at[step][:10]) for step in steps],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"symbol": "x", "size": 10, "color": RED},
    }


def _evidence(run: Run) -> Figure | None:
    points = series(run, "log_evidence")
    if not points:
        return None
    data, caption = [line(points, "log evidence", BLUE, width=2)], _described(points, "nats")
    if (limit := threshold(run)) is not None:
        name = f"alarm at {limit:.3g}"
        ends = [(points[0][0], limit), (points[-1][0], limit)]
        data.append(line(ends, name, RED, dash="dash"))
        above = next((step for step, value in points if value >= limit), None)
        reached = "never reached" if above is None else f"reached at step {above}"
        caption += f" The alarm threshold of {limit:.3g} nats is {reached}."
    return figure_of("evidence", "Evidence against pure sampling", caption, "nats", data)


def _causes(run: Run) -> Figure | None:
    """Posterior weights stacked: the largest causes of the run, and the others as one."""
    weights = [(record["step"], causes(record)) for record in run.steps]
    weights = [(step, known) for step, known in weights if known]
    if not weights:
        return None
    largest: dict[str, float] = {}
    for _, known in weights:
        for name, weight in known.items():
            largest[name] = largest.get(name, 0.0) + weight
    names = sorted(largest, key=lambda name: -largest[name])[:CAUSES]
    shown = [
        (name, shade, [known.get(name, 0.0) for _, known in weights])
        for name, shade in zip(names, SHADES, strict=False)
    ]
    others = [max(0.0, 1.0 - sum(known.get(name, 0.0) for name in names)) for _, known in weights]
    stack = [
        {
            "type": "scatter",
            "mode": "lines",
            "stackgroup": "causes",
            "name": escape(name),
            "x": [step for step, _ in weights],
            "y": list(map(_json, values)),
            "line": {"width": 0.5, "color": shade},
            "hovertemplate": "%{y:.1%}",
        }
        for name, shade, values in [*shown, ("all others", GREY, others)]
    ]
    final = weights[-1][1]
    top = next(iter(final))
    caption = f"Likeliest at the end: {top} ({final[top]:.0%})."
    figure = figure_of("causes", "Likeliest causes", caption, "posterior weight", stack)
    figure["layout"]["yaxis"] |= {"range": [0, 1], "tickformat": ".0%"}
    return figure


def _bias(run: Run) -> Figure | None:
    points = series(run, "bias_per_sequence")
    if not points:
        return None
    data = [
        *_ribbon(points, dict(series(run, "bias_standard_error")), ORANGE),
        line(points, "mean k1 minus mean exact KL", ORANGE, width=2),
    ]
    caption = _described(points, "nats per sequence")
    return figure_of("bias", "Bias of the KL estimate", caption, "nats per sequence", data)


# --- parts ----------------------------------------------------------------------------------------


def _lines(
    run: Run, name: str, title: str, unit: str, wanted: Sequence[tuple[str, str, str]]
) -> Figure | None:
    """A plot of several figures; None where the journal has none of them."""
    known = [(series(run, field), label, color) for field, label, color in wanted]
    known = [entry for entry in known if entry[0]]
    if not known:
        return None
    caption = " ".join(
        _described(points, unit, label if len(known) > 1 else "") for points, label, _ in known
    )
    data = [line(points, label, color) for points, label, color in known]
    return figure_of(name, title, caption, unit, data)


def line(
    points: Sequence[tuple[int, float]], name: str, color: str, *, width: float = 1.6, dash: str = "solid"
) -> dict[str, Any]:
    return {
        "type": "scatter",
        # One point alone has no line.
        "mode": "lines" if len(points) > 1 else "markers",
        "name": name,
        "x": [step for step, _ in points],
        "y": [_json(value) for _, value in points],
        "line": {"color": color, "width": width, "dash": dash},
        "marker": {"color": color},
        "hovertemplate": "%{y:.4g}",
    }


def _ribbon(
    points: Sequence[tuple[int, float]], errors: dict[int, float], color: str
) -> list[dict[str, Any]]:
    """One standard error to both sides, as an area."""
    known = [(step, value, errors[step]) for step, value in points if step in errors]
    known = [entry for entry in known if math.isfinite(entry[1]) and math.isfinite(entry[2])]
    if not known:
        return []
    steps = [step for step, _, _ in known]
    upper = [value + error for _, value, error in known]
    lower = [value - error for _, value, error in known]
    area = {
        "type": "scatter",
        "mode": "lines",
        "name": "± standard error",
        "x": [*steps, *reversed(steps)],
        "y": [*map(_json, upper), *map(_json, reversed(lower))],
        "fill": "toself",
        "fillcolor": color,
        "opacity": 0.22,
        "line": {"width": 0},
        "hoverinfo": "skip",
    }
    return [area]


def figure_of(
    name: str, title: str, caption: str, unit: str, data: list[dict[str, Any]], *, wide: bool = False
) -> Figure:
    layout = {
        "xaxis": {"title": {"text": "step", "standoff": 6}, "zeroline": False},
        "yaxis": {"title": {"text": unit}},
        "hovermode": "x unified",
        "showlegend": len(data) > 1,
        "legend": {"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top", "traceorder": "normal"},
        "margin": {"l": 64, "r": 16, "t": 32, "b": 44},
    }
    return {"name": name, "title": title, "caption": caption, "wide": wide, "data": data, "layout": layout}


def _verticals(run: Run, found: Sequence[Reported]) -> Iterator[dict[str, Any]]:
    """A line at each step with a violation, and at each step the run was resumed at."""
    steps = {one.step for one in found if one.finding.severity is not Severity.NOTE and one.step is not None}
    resumed = [part.first_step for part in run.segments[1:] if part.first_step is not None]
    for at, color in [*((s, RED) for s in sorted(steps)[:LINES]), *((s, GREY) for s in resumed[:LINES])]:
        line = {"color": color, "width": 1, "dash": "dot" if color == RED else "dash"}
        yield {
            "type": "line",
            "yref": "paper",
            "x0": at,
            "x1": at,
            "y0": 0,
            "y1": 1,
            "line": line,
            "opacity": 0.6,
        }


def _described(points: Sequence[tuple[int, float]], unit: str, name: str = "") -> str:
    """A curve in one sentence, for those who cannot see it; a short one where it is `name` among others."""
    known = [(value, step) for step, value in points if math.isfinite(value)]
    subject = f"{name}: " if name else ""
    if not known:
        return f"{subject}no finite value."
    low, high = min(known), max(known)
    gaps = len(points) - len(known)
    missing = f"; {gaps} without a finite value" if gaps else ""
    whole = f"{subject}{known[0][0]:.3g} at step {known[0][1]}, {known[-1][0]:.3g} at step {known[-1][1]}"
    if name:
        return f"{whole}{missing}."
    extremes = f"lowest {low[0]:.3g} at step {low[1]}, highest {high[0]:.3g} at step {high[1]}"
    return f"{whole} ({unit}); {extremes}{missing}."


def _json(value: float) -> float | None:
    """`value` where it is finite; a gap in the curve otherwise."""
    return value if math.isfinite(value) else None
