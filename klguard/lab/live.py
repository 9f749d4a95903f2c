"""What `klguard demo` shows while it runs: a table that is redrawn on a terminal, lines elsewhere."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import IO

from klguard.lab.experiment import LIMIT, Alarm, Outcome
from klguard.output.terminal import Paint, painter, wants_color

_LEVELS = "▁▂▃▄▅▆▇█"
_PLAIN = ".:-=+*#@"
EVERY = 4
"""Steps from one line to the next where nothing is redrawn."""


class Live:
    """Shows outcomes as they grow: on a terminal in place, otherwise as lines that a log can keep."""

    def __init__(self, stream: IO[str] = sys.stdout, *, steps: int, color: str = "auto") -> None:
        self.stream, self.steps = stream, steps
        self.paint = painter(wants_color(color, stream))
        self.redraws = stream.isatty()
        self.levels = _levels(stream.encoding)
        self._shown = 0

    def line(self, text: str) -> None:
        """A line that stays."""
        self.stream.write(text + "\n")
        self.stream.flush()
        self._shown = 0

    def reading(self, step: int, steps: int, loss: float) -> None:
        """How far the policy is in learning the grammar."""
        if self.redraws:
            words = f"a small GPT-2 learns the grammar: batch {step + 1} of {steps}, {loss:.2f} nats per word"
            self._draw([words])

    def update(self, outcomes: Sequence[Outcome]) -> None:
        """The runs so far, the last of them still going."""
        if self.redraws:
            self._draw(frame(outcomes, self.steps, self.paint, self.levels))
        else:
            step = len(outcomes[-1].figures)
            if step == 1 or step % EVERY == 0 or step == self.steps:
                self.line(record(outcomes[-1]))

    def settle(self) -> None:
        """What is on the screen stays."""
        self._shown = 0

    def _draw(self, lines: Sequence[str]) -> None:
        up = f"\x1b[{self._shown}A" if self._shown else ""
        self.stream.write(up + "".join(f"\r\x1b[K{line}\n" for line in lines))
        # a shorter picture leaves no lines of the one before
        self.stream.write("\x1b[J")
        self.stream.flush()
        self._shown = len(lines)


def _levels(encoding: str | None) -> str:
    try:
        _LEVELS.encode(encoding or "ascii")
    except (UnicodeError, LookupError):
        return _PLAIN
    return _LEVELS


def frame(outcomes: Sequence[Outcome], steps: int, paint: Paint, levels: str = _LEVELS) -> list[str]:
    """The table: for each run a heading, its figures with a curve each, and what the guard says."""
    lines: list[str] = []
    for outcome in outcomes:
        last, done = outcome.figures[-1], len(outcome.figures)
        lines.append(paint(f"{outcome.name}: step {done} of {steps}", "bold"))
        rows = (
            ("KL estimate", "kl", "nats per sequence", last["kl"] < 0),
            ("exact KL", "exact_kl", "nats per sequence", False),
            ("total reward", "total_reward", "score - beta * KL", False),
            ("true reward", "score", "the same for every response", False),
        )
        for label, field, unit, alarming in rows:
            value = f"{last[field]:9.2f}"
            curve = sparkline(outcome.column(field), levels)
            lines.append(
                f"  {label:<13}{paint(value, 'red') if alarming else value}  {curve:<{steps}}  {unit}"
            )
        if outcome.guarded:
            lines.append(f"  {'evidence':<13}{last['log_evidence']:9.1f}  {evidence(outcome, paint)}")
        lines.append("")
    return lines[:-1]


def evidence(outcome: Outcome, paint: Paint) -> str:
    """The evidence in words: below the alarm, or the likeliest causes with their weights."""
    last = outcome.figures[-1]
    if last["log_evidence"] < LIMIT:
        return paint(f"nats; the guard stops a run at {LIMIT:.1f}", "dim")
    causes = ", ".join(
        f"{name} {weight:.0%}" for name, weight in list(last["causes"].items())[:2] if weight > 0.01
    )
    return paint(f"nats of {LIMIT:.1f}: {causes}", "red")


def sparkline(values: Sequence[float], levels: str = _LEVELS) -> str:
    """Values as characters of different heights, the lowest to the highest."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    # a curve that hardly moves is drawn flat, not as noise blown up
    spread = max(high - low, 0.05 * max(abs(low), abs(high)), 1e-9)
    top = len(levels) - 1
    return "".join(
        levels[round(top * (value - low) / spread)] if math.isfinite(value) else " " for value in values
    )


def record(outcome: Outcome) -> str:
    """The last step on one line."""
    last = outcome.figures[-1]
    words = (
        f"{outcome.name}: step {len(outcome.figures) - 1}, KL estimate {last['kl']:.2f}, exact KL"
        f" {last['exact_kl']:.2f}, total reward {last['total_reward']:.2f}, true reward {last['score']:.2f}"
    )
    if outcome.guarded:
        top = next(iter(last["causes"]), "")
        cause = f" ({top})" if last["log_evidence"] >= LIMIT and top else ""
        words += f", evidence {last['log_evidence']:.1f} nats{cause}"
    return words


def conclusions(safe: Outcome, unsafe: Outcome) -> list[str]:
    """What was seen, in sentences."""
    return [*_conclusion(safe), *_conclusion(unsafe), *_mechanism(unsafe)]


def _conclusion(outcome: Outcome) -> list[str]:
    lines = []
    if outcome.guarded:
        if outcome.guard is None:
            top = max(outcome.column("log_evidence"))
            lines.append(
                f"{outcome.name}: the guard never stops it (evidence at most {top:.1f} of {LIMIT:.1f} nats)"
            )
        else:
            lines.append(f"{outcome.name}: the guard stops it {when(outcome.guard)}")
    words = "never warns" if outcome.trl is None else f"warns {when(outcome.trl)}"
    lines.append(f"{outcome.name}: TRL's rule, mean KL below -1 nat, {words}")
    return lines


def _mechanism(outcome: Outcome) -> list[str]:
    kl, exact, total = (outcome.column(name) for name in ("kl", "exact_kl", "total_reward"))
    lowest = min(range(len(kl)), key=lambda step: kl[step])
    if kl[lowest] >= 0:
        return [f"{outcome.name}: the KL estimate stayed above zero in these {len(kl)} steps"]
    return [
        f"{outcome.name}: at step {lowest} the KL estimate is {kl[lowest]:.1f} nats per sequence and the exact KL"
        f" {exact[lowest]:.1f}; total reward went from {total[0]:.2f} to {total[lowest]:.2f} while the true reward"
        f" is {outcome.figures[0]['score']:.2f} throughout"
    ]


def when(alarm: Alarm) -> str:
    """After which step and how many tokens, and why."""
    why = f": {', '.join(alarm.codes)}" if alarm.codes else ""
    cause = f", {alarm.cause}" if alarm.cause else ""
    return f"after step {alarm.step}, {alarm.tokens} tokens{why}{cause}"
