"""A line plot in text: braille dots, or plain ASCII where the terminal's encoding has none."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from klguard.output.terminal import Paint


@dataclass(frozen=True)
class Alphabet:
    """What a plot is drawn with, and how many dots across and down one character holds."""

    across: int
    down: int
    band: str
    axis: str
    tick: str
    corner: str
    floor: str
    mark: str


BRAILLE = Alphabet(2, 4, "┄", "│", "┤", "└", "─", "▲")
ASCII = Alphabet(1, 1, "-", "|", "+", "+", "-", "^")

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of the braille patterns by row and column (Unicode 15, section 21.1)."""


def alphabet(encoding: str | None) -> Alphabet:
    """BRAILLE where `encoding` has its characters, else ASCII."""
    try:
        "⣿┄│┤└─▲±".encode(encoding or "ascii")
    except (UnicodeError, LookupError):
        return ASCII
    return BRAILLE


Points = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Frame:
    """The part of the plane that is shown, and the room for it in characters."""

    left: int
    right: int
    low: float
    high: float
    columns: int
    rows: int

    def across(self, step: float, dots: int) -> int:
        """Column of dots of `step`, from the left."""
        width = self.columns * dots - 1
        return round(width * (step - self.left) / max(1, self.right - self.left))

    def up(self, value: float, dots: int) -> int:
        """Row of dots of `value`, from the bottom."""
        height = self.rows * dots - 1
        # Halves first: the distance between two finite numbers may be infinite.
        share = (value / 2 - self.low / 2) / (self.high / 2 - self.low / 2)
        return round(height * min(1.0, max(0.0, share)))


def draw(
    points: Points,
    *,
    band: tuple[float, float] | None = None,
    marks: Sequence[int] = (),
    flagged: Collection[int] = (),
    width: int = 78,
    height: int = 10,
    paint: Paint,
    using: Alphabet = BRAILLE,
) -> Iterator[str]:
    """The lines of a plot of (step, value) `points`, `width` columns wide with its labels.

    Values that are not finite leave a gap. The bounds of `band` are drawn across; `marks` are steps pointed at
    from below, and the values of `flagged` ones are red. Without a finite value there is nothing to draw.
    """
    values = [value for _, value in points if math.isfinite(value)]
    if not values:
        return
    bounds = [bound for bound in band or () if math.isfinite(bound)]
    low, high = _room(min(values + bounds), max(values + bounds))
    steps = [step for step, _ in points] + list(marks)
    labels = _labels(low, high, bounds, height)
    gutter = max(len(text) for text in labels.values())
    frame = Frame(min(steps), max(steps), low, high, max(8, width - gutter - 2), height)
    yield from _rows(frame, points, bounds, flagged, labels, gutter, paint, using)
    yield from _foot(frame, marks, gutter, paint, using)


def _room(low: float, high: float) -> tuple[float, float]:
    """The two with some room between them where they are one."""
    if low < high:
        return low, high
    room = max(abs(low) * 0.05, 0.5)
    return max(low - room, -sys.float_info.max), min(high + room, sys.float_info.max)


def _labels(low: float, high: float, bounds: Sequence[float], height: int) -> dict[int, str]:
    """Row -> what is written beside it: the ends and the bounds, and round values where there is room."""
    frame = Frame(0, 1, low, high, 1, height)
    labels: dict[int, str] = {}
    for value in (*bounds, low, high):
        labels.setdefault(frame.up(value, 1), f"{value:.4g}")
    for value in _round_values(low, high):
        row = frame.up(value, 1)
        if not any(near in labels for near in (row - 1, row, row + 1)):
            labels[row] = f"{value:.4g}"
    return labels


def _round_values(low: float, high: float, wanted: int = 4) -> list[float]:
    """About `wanted` multiples of 1, 2 or 5 times a power of ten between the two."""
    rough = (high / wanted) - (low / wanted)
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 0.0
    unit = next((factor * power for factor in (1, 2, 5, 10) if factor * power >= rough), 0.0)
    if not unit or not math.isfinite(unit) or not math.isfinite(low / unit) or not math.isfinite(high / unit):
        return []
    first, last = math.ceil(low / unit), math.floor(high / unit)
    return [count * unit for count in range(first, last + 1)] if last - first < 50 else []


def _rows(
    frame: Frame,
    points: Points,
    bounds: Sequence[float],
    flagged: Collection[int],
    labels: dict[int, str],
    gutter: int,
    paint: Paint,
    using: Alphabet,
) -> Iterator[str]:
    cells, red = _curve(frame, points, flagged, using)
    lines = {frame.up(bound, 1) for bound in bounds}
    for row in reversed(range(frame.rows)):
        text = []
        for column in range(frame.columns):
            if bits := cells.get((row, column)):
                glyph = chr(0x2800 + bits) if using.down > 1 else "*"
                text.append(paint(glyph, *(("red", "bold") if (row, column) in red else ("cyan",))))
            else:
                text.append(paint(using.band, "yellow") if row in lines else " ")
        label = labels.get(row, "")
        axis = using.tick if label else using.axis
        yield f"{label.rjust(gutter)} {paint(axis, 'dim')}{''.join(text).rstrip()}"


def _curve(
    frame: Frame, points: Points, flagged: Collection[int], using: Alphabet
) -> tuple[dict[tuple[int, int], int], set[tuple[int, int]]]:
    """(row, column) -> bits of its dots, and the characters that hold the value of a flagged step."""
    cells: dict[tuple[int, int], int] = {}
    red: set[tuple[int, int]] = set()
    before: tuple[int, int] | None = None
    for step, value in points:
        if not math.isfinite(value):
            before = None
            continue
        here = frame.across(step, using.across), frame.up(value, using.down)
        for x, y in _between(before, here):
            cell = y // using.down, x // using.across
            bit = _DOTS[using.down - 1 - y % using.down][x % using.across] if using.down > 1 else 1
            cells[cell] = cells.get(cell, 0) | bit
        if step in flagged:
            red.add((here[1] // using.down, here[0] // using.across))
        before = here
    return cells, red


def _between(start: tuple[int, int] | None, end: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The dots from after `start` to `end`."""
    if start is None or start == end:
        yield end
        return
    across, up = end[0] - start[0], end[1] - start[1]
    count = max(abs(across), abs(up))
    for index in range(1, count + 1):
        yield start[0] + round(across * index / count), start[1] + round(up * index / count)


def _foot(frame: Frame, marks: Sequence[int], gutter: int, paint: Paint, using: Alphabet) -> Iterator[str]:
    """The axis with its marks, and the first and last step below."""
    marked = {frame.across(mark, using.across) // using.across for mark in marks}
    floor = [
        paint(using.mark, "red", "bold") if column in marked else paint(using.floor, "dim")
        for column in range(frame.columns)
    ]
    yield f"{' ' * gutter} {paint(using.corner, 'dim')}{''.join(floor)}"
    left, right = str(frame.left), str(frame.right)
    below = left if left == right else left + right.rjust(frame.columns - len(left))
    yield f"{' ' * gutter}  {below}"
