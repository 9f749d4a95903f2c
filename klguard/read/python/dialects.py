"""Python files that the running interpreter cannot parse although they are no mistakes: a notebook exported with its
shell commands left in, and f-strings as Python 3.12 reads them."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from klguard.read.f_strings import older_readings
from klguard.read.python.source import parse

if TYPE_CHECKING:
    from klguard.read.files import SourceText

_SHELL = re.compile(r"^[ \t]*[!%]|=[ \t]*[!%]", re.MULTILINE)


def parse_script(source: SourceText) -> tuple[SourceText, ast.Module]:
    """A file with the text that was parsed, and its tree. Lines and columns are those of the file.

    Raises SyntaxError, as the file itself gives it, for what is no Python in any of these readings.
    """
    try:
        return source, parse(source.text)
    except SyntaxError as error:
        for text in _readings(source.text):
            try:
                return replace(source, text=text), parse(text)
            except SyntaxError:
                continue
        raise error from None


def _readings(text: str) -> list[str]:
    """What the text may have been meant as, the likeliest first."""
    found = []
    if _SHELL.search(text):
        from klguard.read.notebook import without_shell_commands

        found.append(without_shell_commands(text))
    return [*found, *(older for reading in [text, *found] for older in older_readings(reading))]
