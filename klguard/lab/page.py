"""The experiment as one page that needs nothing else, with the figures and frame of `klguard report --html`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path

from klguard.lab.experiment import LIMIT, TRL_LIMIT, Outcome
from klguard.lab.live import conclusions
from klguard.report.figures import BLUE, CAUSES, GREEN, ORANGE, RED, SHADES, Figure, figure_of, line
from klguard.report.html import document, plots, save, word


def write(path: str | os.PathLike[str], safe: Outcome, unsafe: Outcome) -> Path:
    """Write the page of both runs. Raises OSError, and MissingPlotly of the report."""
    drawn = [figure for outcome in (safe, unsafe) for figure in _figures(outcome)]
    sections = [*_header(safe, unsafe), *plots(drawn)]
    save(path, document("klguard demo", sections, drawn))
    return Path(path)


def _header(safe: Outcome, unsafe: Outcome) -> Iterator[str]:
    yield "<header>"
    yield "<h1>klguard demo</h1>"
    yield "<p>PPO on a small GPT-2 with a reward that is the same for every response: nothing can be learnt.</p>"
    yield '<div class="card" style="padding: 0.2rem 1rem">'
    yield from (f"<p>{word(sentence)}</p>" for sentence in conclusions(safe, unsafe))
    yield "</div>"
    yield "</header>"


def _figures(outcome: Outcome) -> Iterator[Figure]:
    makers: Sequence[Callable[[Outcome], Figure]] = (_kl, _reward, _evidence, _causes)
    for maker in makers if outcome.guarded else makers[:2]:
        figure = maker(outcome)
        figure["name"] += "-unsafe" if outcome.sampling else "-safe"
        if outcome.guard is not None:
            figure["layout"]["shapes"] = [_vertical(outcome.guard.step)]
        yield figure


def _points(outcome: Outcome, name: str) -> list[tuple[int, float]]:
    return list(enumerate(outcome.column(name)))


def _kl(outcome: Outcome) -> Figure:
    points, exact = _points(outcome, "kl"), _points(outcome, "exact_kl")
    ends = [(0, TRL_LIMIT), (len(points) - 1, TRL_LIMIT)]
    data = [
        line(exact, "exact KL", GREEN),
        line(points, "KL estimate, mean k1", BLUE, width=2),
        line(ends, "TRL warns below -1", ORANGE, dash="dot"),
    ]
    low = min(points, key=lambda point: point[1])
    caption = f"The estimate is lowest at step {low[0]}: {low[1]:.3g}, where the exact KL is {exact[low[0]][1]:.3g}."
    return figure_of("kl", f"{outcome.name}: KL", caption, "nats per sequence", data)


def _reward(outcome: Outcome) -> Figure:
    total = _points(outcome, "total_reward")
    data = [
        line(total, "total: score - beta * KL", BLUE, width=2),
        line(_points(outcome, "score"), "true reward, constant", GREEN),
    ]
    caption = f"Total reward is {total[0][1]:.3g} at first and {total[-1][1]:.3g} at last."
    return figure_of("reward", f"{outcome.name}: reward", caption, "reward per sequence", data)


def _evidence(outcome: Outcome) -> Figure:
    points = _points(outcome, "log_evidence")
    data = [
        line(points, "log evidence", BLUE, width=2),
        line([(0, LIMIT), (len(points) - 1, LIMIT)], f"the guard stops at {LIMIT:.1f}", RED, dash="dash"),
    ]
    reached = next((step for step, value in points if value >= LIMIT), None)
    words = "never reached" if reached is None else f"reached after step {reached}"
    return figure_of("evidence", f"{outcome.name}: evidence", f"The alarm is {words}.", "nats", data)


def _causes(outcome: Outcome) -> Figure:
    """Posterior weights of the likeliest causes; before there is evidence they are near the prior."""
    weights: list[dict[str, float]] = outcome.column("causes")  # type: ignore[assignment]
    largest = {name for step in weights for name in list(step)[:3]}
    names = sorted(largest, key=lambda name: -sum(step.get(name, 0.0) for step in weights))[:CAUSES]
    data = [
        line([(step, known.get(name, 0.0)) for step, known in enumerate(weights)], escape(name), shade)
        for name, shade in zip(names, SHADES, strict=False)
    ]
    top = next(iter(weights[-1].items()), ("none", 0.0))
    caption = f"Likeliest at the end: {top[0]} ({top[1]:.0%}). Without evidence these are near the prior."
    return figure_of("causes", f"{outcome.name}: likeliest causes", caption, "posterior weight", data)


def _vertical(step: int) -> dict:
    """A line where the guard stops the run."""
    style = {"color": RED, "width": 1.5, "dash": "dot"}
    return {"type": "line", "yref": "paper", "x0": step, "x1": step, "y0": 0, "y1": 1, "line": style}
