"""What every terminal output needs: colour that can be switched off, and text that cannot move the cursor."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Mapping
from typing import IO

Paint = Callable[..., str]
"""`paint(text, "red", "bold")` gives the text in that style, or as it is where colour is off."""

_CODES = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33, "blue": 34, "cyan": 36}

_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that reorder what is on the screen: with them a line can read otherwise than it runs."""

TAB = "    "


def painter(color: bool) -> Paint:
    """A Paint that colours, or one that leaves every text alone."""

    def paint(text: str, *styles: str) -> str:
        if not color or not text or not styles:
            return text
        codes = ";".join(str(_CODES[style]) for style in styles)
        return f"\x1b[{codes}m{text}\x1b[0m"

    return paint


def wants_color(choice: str, stream: IO[str], environ: Mapping[str, str] = os.environ) -> bool:
    """Whether to colour `stream`: what was asked for, then FORCE_COLOR, then NO_COLOR, then whether it is a
    terminal.

    An empty variable counts as unset (no-color.org, force-color.org).
    """
    if choice != "auto":
        return choice == "always"
    if environ.get("FORCE_COLOR"):
        return True
    if environ.get("NO_COLOR") or environ.get("TERM") == "dumb":
        return False
    return stream.isatty()


def visible(char: str) -> str:
    """`char` as it may be printed: what would move the cursor or reorder the line is written as an escape."""
    if char == "\t":
        return TAB
    if char in _BIDI or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp"):
        return char.encode("unicode_escape").decode("ascii")
    return char


def clean(text: str) -> str:
    """`text` on one line with nothing in it that a terminal would obey."""
    return text if text.isascii() and text.isprintable() else "".join(visible(char) for char in text)


def width(text: str) -> int:
    """Columns that `text`, already clean, takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(_width(char) for char in text)


def _width(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1


def plural(count: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
