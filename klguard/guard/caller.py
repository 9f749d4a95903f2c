"""Where in the user's code something happens: the frame that called into klguard or a library it watches."""

from __future__ import annotations

import linecache
import os
import sys
from dataclasses import dataclass
from types import CodeType, FrameType

from klguard.settings import Place

LIBRARIES = frozenset(
    "klguard torch transformers trl accelerate peft deepspeed contextlib functools threading concurrent".split()
)
"""Packages whose frames are not the user's code."""


@dataclass(frozen=True)
class Spot:
    """A call in the user's code: where it is, the callee as written, and the function around it."""

    place: Place
    call: str = "generate"
    enclosing: str = ""


def caller() -> Place:
    """Where the user's code is: the innermost frame outside klguard and the libraries it watches.

    Paths below the working directory are relative to it. The columns are those of the call that is being made,
    from Python 3.11 on; before that they are those of the first character of the line.
    """
    return spot().place


def depth() -> int:
    """The `stacklevel` with which a warning, given by the function that asks, points at the user's code."""
    frame: FrameType | None = sys._getframe(1)
    level = 1
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in LIBRARIES:
        frame, level = frame.f_back, level + 1
    return level


def spot() -> Spot:
    """`caller()`, with the callee as it is written there and the dotted name of what is around it."""
    frame: FrameType | None = sys._getframe(1)
    outermost = frame
    while frame is not None:
        outermost = frame
        if frame.f_globals.get("__name__", "").partition(".")[0] not in LIBRARIES:
            break
        frame = frame.f_back
    assert outermost is not None
    return _spot(outermost)


def _spot(frame: FrameType) -> Spot:
    code = frame.f_code
    span = _span(code, frame.f_lasti, frame.f_lineno)
    place = Place(_shown(code.co_filename), None, *span)
    name = getattr(code, "co_qualname", code.co_name).replace(".<locals>", "")
    return Spot(place, _callee(code.co_filename, place) or "generate", "" if name == "<module>" else name)


def _span(code: CodeType, instruction: int, line: int) -> tuple[int, int, int, int]:
    """Line and column of the start and of the end of what is being executed, from 1, in characters."""
    if hasattr(code, "co_positions") and instruction >= 0:
        found = list(code.co_positions())[instruction // 2]
        if None not in found:
            first, last, start, end = found
            return first, _column(code, first, start), last, _column(code, last, end)
    return line, 1, line, 2


def _column(code: CodeType, line: int, offset: int) -> int:
    """The column, from 1, of a byte of a line."""
    text = linecache.getline(code.co_filename, line).encode()
    return len(text[:offset].decode(errors="replace")) + 1 if text else offset + 1


def _shown(path: str) -> str:
    """A path as it is reported: relative where it lies below the working directory."""
    if path.startswith("<"):
        return path
    try:
        relative = os.path.relpath(path)
    except ValueError:  # another drive
        return path
    return path if relative.startswith(os.pardir) else relative.replace(os.sep, "/")


def _callee(filename: str, place: Place) -> str:
    """What is called at `place`, as written: `policy.generate`; "" where the source is not at hand."""
    lines = [linecache.getline(filename, line) for line in range(place.line, place.end_line + 1)]
    if place.end_column - place.column < 2 and place.line == place.end_line or not all(lines):
        return ""
    lines[-1] = lines[-1][: place.end_column - 1]
    text = "".join(lines)[place.column - 1 :]
    name = text.partition("(")[0]
    return " ".join(name.split()) if 0 < len(name) <= 80 else ""
