"""f-strings as Python 3.12 reads them, for the interpreters before it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

NEWER = sys.version_info >= (3, 12)
"""Whether `ast` reads f-strings as PEP 701 has them: any quote, comment or line break inside the braces."""

_F_STRING = re.compile(r"\b[fF][rR]?[\"']|\b[rR][fF][\"']")
_PREFIX = re.compile(r"[A-Za-z]*\Z")
_QUOTES = re.compile(r"\"\"\"|'''|\"|'")
_OUTSIDE = re.compile(r"#[^\n]*|\"\"\"|'''|\"|'")


def older_readings(text: str) -> Iterator[str]:
    """The text as an interpreter before 3.12 can read it, where that may make a difference."""
    if not NEWER and _F_STRING.search(text):
        yield with_empty_f_strings(text)


def with_empty_f_strings(text: str) -> str:
    """The text with blanks in place of the f-strings whose braces hold quotes of the kind that is around them.

    Every character becomes one space, so that the rest of a line stays in its columns.
    """
    parts: list[str] = []
    position = 0
    while opened := _OUTSIDE.search(text, position):
        start = opened.end()
        if opened[0].startswith("#"):
            parts.append(text[position:start])
            position = start
            continue
        prefix = _PREFIX.search(text[max(0, opened.start() - 3) : opened.start()])
        kind = prefix[0].lower() if prefix else ""
        nested = False
        if "f" in kind and len(kind) <= 2:
            end, nested = _end_of_f_string(text, start, opened[0], "r" in kind)
        else:
            end = _end_of_string(text, start, opened[0])
        body = text[start:end]
        closed = min(len(text), end + len(opened[0]))
        parts += [text[position:start], _blank(body) if nested else body, text[end:closed]]
        position = closed
    parts.append(text[position:])
    return "".join(parts)


def _blank(body: str) -> str:
    return "".join("\n" if mark == "\n" else " " for mark in body)


def _end_of_string(text: str, position: int, quote: str) -> int:
    """Where the closing quote of a string stands whose body begins at `position`; the end of its line or of the text
    when there is none."""
    while position < len(text):
        if text[position] == "\\":
            position += 2
        elif text.startswith(quote, position) or (text[position] == "\n" and len(quote) == 1):
            return position
        else:
            position += 1
    return len(text)


def _end_of_f_string(text: str, position: int, quote: str, raw: bool) -> tuple[int, bool]:
    """The same of an f-string, and whether a string inside its braces has a quote of its own kind."""
    nested = False
    depth = 0
    while position < len(text):
        mark = text[position]
        if not depth:
            if mark == "\\" and not (raw and text[position + 1 : position + 2] in "{}"):
                position += 2
                continue
            if text.startswith(quote, position) or (mark == "\n" and len(quote) == 1):
                return position, nested
            if mark == "{" and text.startswith("{{", position):
                position += 2
                continue
            depth += mark == "{"
            position += 1
            continue
        if opened := _QUOTES.match(text, position):
            inner = opened[0]
            nested = nested or inner[0] == quote[0]
            kind = (_PREFIX.search(text[max(0, position - 3) : position]) or [""])[0].lower()
            if "f" in kind and len(kind) <= 2:
                end, _ = _end_of_f_string(text, opened.end(), inner, "r" in kind)
            else:
                end = _end_of_string(text, opened.end(), inner)
            position = end + len(inner)
            continue
        if mark == "\n" and len(quote) == 1:
            return position, nested
        depth += (mark in "{[(") - (mark in "}])")
        position += 1
    return len(text), nested
