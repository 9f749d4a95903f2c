"""Code frames: source lines with their numbers, and underlines with words below them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from klguard.output.terminal import Paint, clean, width
from klguard.settings import Place

Lines = Callable[[str, "int | None"], "Sequence[str] | None"]
"""The lines of a file, or of one cell of a notebook; None where they cannot be read."""

CONTEXT = 2
"""Lines shown around a primary mark."""

CROP = 140
"""Longest piece of a source line that is shown: generated files and notebooks have lines of many
thousands."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A span to underline, with a word about it. The primary mark is what the finding is about."""

    place: Place
    label: str = ""
    primary: bool = False


def frame(marks: Sequence[Mark], lines: Lines, paint: Paint, style: str) -> Iterator[str]:
    """The lines of a frame over `marks`: one block per file or cell, the one of the first mark first."""
    blocks: dict[tuple[str, int | None], list[Mark]] = {}
    for mark in marks:
        blocks.setdefault((mark.place.path, mark.place.cell), []).append(mark)
    texts = {key: lines(*key) for key in blocks}
    shown = {key: _shown(block, texts[key]) for key, block in blocks.items()}
    gutter = max((len(str(number)) for numbers in shown.values() for number in numbers), default=1)
    for index, (key, block) in enumerate(blocks.items()):
        arrow = "-->" if index == 0 else ":::"
        yield f"{' ' * gutter}{paint(arrow, 'blue')} {clean(str(block[0].place))}"
        text = texts[key]
        if text is not None and shown[key]:
            yield from _block(block, text, shown[key], gutter, paint, style)


def _shown(block: Sequence[Mark], text: Sequence[str] | None) -> list[int]:
    """Numbers of the lines to show: those with a mark, and the context of primary ones, blank edges left
    out."""
    if text is None:
        return []
    numbers: set[int] = set()
    for mark in block:
        line = mark.place.line
        if not 1 <= line <= len(text):
            continue
        first, last = (
            (max(1, line - CONTEXT), min(len(text), line + CONTEXT)) if mark.primary else (line, line)
        )
        while first < line and not text[first - 1].strip():
            first += 1
        while last > line and not text[last - 1].strip():
            last -= 1
        numbers.update(range(first, last + 1))
    return sorted(numbers)


def _block(
    block: Sequence[Mark], text: Sequence[str], numbers: Sequence[int], gutter: int, paint: Paint, style: str
) -> Iterator[str]:
    bar = paint("|", "blue")
    by_line = {
        line: sorted(marks, key=lambda mark: (not mark.primary, mark.place))
        for line, marks in groupby(
            sorted(block, key=lambda mark: mark.place.line), key=lambda mark: mark.place.line
        )
    }
    yield f"{' ' * gutter} {bar}"
    previous = numbers[0] - 1
    for number in numbers:
        if number != previous + 1:
            yield paint("...", "blue")
        previous = number
        source, marks = text[number - 1], by_line.get(number, [])
        start = _crop_start(source, marks)
        shown, cut = _crop(source, start)
        yield f"{paint(str(number).rjust(gutter), 'blue')} {bar} {shown}".rstrip()
        for mark in marks:
            yield f"{' ' * gutter} {bar} {_underline(source, mark, start, cut, paint, style)}"
    yield f"{' ' * gutter} {bar}"


def _crop_start(source: str, marks: Sequence[Mark]) -> int:
    """Index of the first character to show, so that the first mark is in sight."""
    if len(source) <= CROP or not marks:
        return 0
    column = marks[0].place.column - 1
    return 0 if column < CROP * 3 // 4 else column - CROP // 4


def _crop(source: str, start: int) -> tuple[str, str]:
    """The piece of `source` to show from `start` on, and the mark that stands for what was cut in front of
    it."""
    cut = "..." if start else ""
    end = start + CROP
    return cut + clean(source[start:end].rstrip("\r\n")) + ("..." if len(source) > end else ""), cut


def _underline(source: str, mark: Mark, start: int, cut: str, paint: Paint, style: str) -> str:
    place = mark.place
    stripped = source.rstrip()
    first = min(max(place.column - 1, start), start + CROP)
    last = place.end_column - 1 if place.end_line == place.line else len(stripped)
    last = min(max(last, first), start + CROP)
    indent = " " * (len(cut) + width(clean(source[start:first])))
    line = ("^" if mark.primary else "-") * max(1, width(clean(source[first:last])))
    label = f" {clean(mark.label)}" if mark.label else ""
    return indent + paint(line + label, style if mark.primary else "blue")
