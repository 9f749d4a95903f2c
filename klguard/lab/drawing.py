"""The experiment as a picture: PNG or SVG, by matplotlib."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from klguard.lab.experiment import LIMIT, TRL_LIMIT, Outcome

BLUE, ORANGE, GREEN, RED, GREY = "#3b7dd8", "#d9772b", "#2f9e6e", "#d84a4a", "#8a8f98"


class MissingMatplotlib(RuntimeError):
    """matplotlib is not installed; the message names the extra that brings it."""


def draw(path: str | os.PathLike[str], outcomes: Sequence[Outcome]) -> Path:
    """A picture with a column for each run: KL, reward and, with a guard, evidence. Raises MissingMatplotlib and
    OSError."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingMatplotlib(
            "a picture needs matplotlib, which is not installed: pip install 'klguard[demo]'"
        ) from error
    rows = [_kl, _reward, _evidence] if any(outcome.guarded for outcome in outcomes) else [_kl, _reward]
    figure = Figure(figsize=(4.6 * len(outcomes), 2.3 * len(rows) + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(outcomes), sharex=True, sharey="row", squeeze=False)
    for column, outcome in enumerate(outcomes):
        axes[0][column].set_title(outcome.name, fontsize=11)
        for row, plot in enumerate(rows):
            plot(axes[row][column], outcome)
            _stop(axes[row][column], outcome)
            axes[row][column].grid(alpha=0.25)
            axes[row][column].tick_params(labelsize=8)
        axes[-1][column].set_xlabel("PPO step", fontsize=9)
    for row in axes:
        row[0].set_ylabel(row[0].get_ylabel(), fontsize=9)
        for other in row[1:]:
            other.set_ylabel("")
    target = Path(path)
    figure.savefig(target, dpi=110, metadata={"Software": None} if target.suffix == ".png" else None)
    return target


def _steps(outcome: Outcome) -> range:
    return range(len(outcome.figures))


def _kl(axes: Any, outcome: Outcome) -> None:
    axes.plot(_steps(outcome), outcome.column("exact_kl"), color=GREEN, label="exact KL")
    axes.plot(_steps(outcome), outcome.column("kl"), color=BLUE, label="KL estimate, mean k1")
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.axhline(TRL_LIMIT, color=ORANGE, linewidth=0.8, linestyle=":", label="TRL warns below -1")
    # near zero it is linear, so that the sign of the estimate shows beside an exact KL that is a hundred
    axes.set_yscale("symlog", linthresh=10)
    axes.set_yticks([-10, -5, 0, 5, 10, 100], ["-10", "-5", "0", "5", "10", "100"])
    axes.set_ylabel("nats per sequence")
    axes.legend(fontsize=7, loc="upper left")


def _reward(axes: Any, outcome: Outcome) -> None:
    axes.plot(_steps(outcome), outcome.column("total_reward"), color=BLUE, label="total: score - beta * KL")
    axes.plot(_steps(outcome), outcome.column("score"), color=GREEN, label="true reward, constant")
    axes.set_ylabel("reward per sequence")
    axes.legend(fontsize=7, loc="upper left")


def _evidence(axes: Any, outcome: Outcome) -> None:
    axes.set_ylabel("evidence, nats")
    if not outcome.guarded:
        axes.text(0.5, 0.5, "no guard", ha="center", va="center", transform=axes.transAxes, color=GREY)
        return
    axes.plot(_steps(outcome), outcome.column("log_evidence"), color=BLUE, label="against pure sampling")
    axes.axhline(LIMIT, color=RED, linewidth=0.9, linestyle="--", label=f"the guard stops at {LIMIT:.1f}")
    axes.set_yscale("symlog", linthresh=20)
    axes.legend(fontsize=7, loc="center right")


def _stop(axes: Any, outcome: Outcome) -> None:
    """Where the guard stops the run."""
    if outcome.guard is not None:
        axes.axvline(outcome.guard.step, color=RED, linewidth=1.2, alpha=0.7)
