"""Notebooks: the code cells as one Python text, line for line, with what only IPython understands kept out.

The cells of a notebook share one namespace, so they are read as one module, in the order of the file. Lines
are never added or dropped and columns never move, so a place in the text is a place in its cell.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from klguard.read.f_strings import older_readings


@dataclass(frozen=True, slots=True)
class CellSpan:
    """The lines of one code cell in the joined text.

    `index` counts all cells of the notebook from 0, markdown included; `first_line` counts from 1.
    """

    index: int
    first_line: int
    lines: int


@dataclass(frozen=True, slots=True)
class BadCell:
    """A cell that is not Python even without its magics. Line and column count from 1 inside the cell."""

    cell: int
    line: int
    column: int
    message: str


@dataclass(frozen=True, slots=True)
class Notebook:
    """The code cells: `text` is what is analysed, `original` what the author sees, line for line."""

    text: str
    original: str
    cells: tuple[CellSpan, ...]
    bad: tuple[BadCell, ...]


class NotANotebook(ValueError):
    """The file is not JSON, or not a notebook. Line and column count from 1."""

    def __init__(self, message: str, line: int = 1, column: int = 1) -> None:
        super().__init__(message)
        self.line = line
        self.column = column


def parse(text: str) -> Notebook:
    """The notebook in `text` (nbformat 3 and 4). Raises NotANotebook."""
    document = _json(text)
    python = _is_python(document)
    texts: list[str] = []
    originals: list[str] = []
    spans: list[CellSpan] = []
    bad: list[BadCell] = []
    line = 1
    for index, cell in enumerate(_cells(document)):
        if not isinstance(cell, dict) or cell.get("cell_type") != "code":
            continue
        original = _source(cell)
        source = keep_python(original) if python and _is_python_cell(cell) else _blank(original)
        error = _syntax_error(source, index)
        if error is not None:
            older = next(
                (each for each in older_readings(source) if _syntax_error(each, index) is None), None
            )
            source, error = (source, error) if older is None else (older, None)
        if error is not None:
            bad.append(error)
            source = _blank(source)
        spans.append(CellSpan(index, line, source.count("\n")))
        line += source.count("\n")
        texts.append(source)
        originals.append(original)
    return Notebook("".join(texts), "".join(originals), tuple(spans), tuple(bad))


# --- the document ------------------------------------------------------------------------------------------


def _json(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise NotANotebook(f"not a notebook: {error.msg}", error.lineno, error.colno) from None
    except (ValueError, RecursionError) as error:
        # An integer of more digits than Python converts, or lists nested deeper than the stack.
        raise NotANotebook(f"not a notebook: {error}") from None
    if not isinstance(document, dict) or not ("cells" in document or "worksheets" in document):
        raise NotANotebook("not a notebook: it has no list of cells")
    return document


def _cells(document: dict[str, Any]) -> Iterator[Any]:
    """All cells in order. nbformat 3 keeps them in worksheets, of which there is only one in practice."""
    sheets = [document] if "cells" in document else document["worksheets"]
    for sheet in sheets if isinstance(sheets, list) else [None]:
        cells = sheet.get("cells") if isinstance(sheet, dict) else None
        if not isinstance(cells, list):
            raise NotANotebook("not a notebook: it has no list of cells")
        yield from cells


def _source(cell: dict[str, Any]) -> str:
    """The text of a cell, ending in a newline: a string or a list of lines; nbformat 3 calls it `input`."""
    source = cell.get("source", cell.get("input", ""))
    if isinstance(source, list):
        source = "".join(line for line in source if isinstance(line, str))
    if not isinstance(source, str):
        source = ""
    source = source.replace("\r\n", "\n").replace("\r", "\n")
    # JSON may escape half of a surrogate pair, which no file could hold.
    source = source.encode("utf-8", "replace").decode("utf-8")
    return source if source.endswith("\n") else source + "\n"


def _is_python(document: dict[str, Any]) -> bool:
    """Whether the kernel runs Python. A notebook that does not say is taken for one that does."""
    metadata = document.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    for section, key in (("language_info", "name"), ("kernelspec", "language")):
        entry = metadata.get(section)
        language = entry.get(key) if isinstance(entry, dict) else None
        if isinstance(language, str) and language:
            return "python" in language.lower() or "pyspark" in language.lower()
    return True


def _is_python_cell(cell: dict[str, Any]) -> bool:
    """Whether a cell is in the notebook's language: nbformat 3 and VS Code can say otherwise for each one."""
    metadata = cell.get("metadata")
    editor = metadata.get("vscode") if isinstance(metadata, dict) else None
    languages = (cell.get("language"), editor.get("languageId") if isinstance(editor, dict) else None)
    return all("python" in name.lower() for name in languages if isinstance(name, str))


def _blank(source: str) -> str:
    return "\n" * source.count("\n")


def _syntax_error(source: str, index: int) -> BadCell | None:
    """Why `source` is not Python; None when it is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(source)
    except SyntaxError as error:
        line = min(max(error.lineno or 1, 1), max(source.count("\n"), 1))
        return BadCell(index, line, max(error.offset or 1, 1), error.msg)
    except (ValueError, RecursionError, MemoryError) as error:
        return BadCell(index, 1, 1, str(error) or "too deeply nested")
    return None


# --- IPython -----------------------------------------------------------------------------------------------

PYTHON_CELL_MAGICS = frozenset(
    "capture debug heat ipytest lprun memit memray_flamegraph mprun prun pypy python python3 scalene snakeviz"
    " time timeit wandb".split()
)
"""Cell magics whose body is Python of the same notebook; the body of any other (`%%bash`) is not."""

_OPTIONS_WITH_ARGUMENT = {"time": "", "timeit": "nrp", "prun": "lsTD", "memit": "rt"}
"""Line magics that run a Python statement -> their one-letter options that take an argument."""

_CELL_MAGIC = re.compile(r"%%(\w*)")
_ESCAPE = re.compile(r"([ \t]*)[%!?,;/]")
_COMMAND = re.compile(r"([ \t]*)[%!]")
_ASSIGNED = re.compile(r"([ \t]*[^\s#\"'=!<>:()][^#\"'=!<>()\n]*=[ \t]*)(?:!|%[ \t]*[A-Za-z_])")
_HELP = re.compile(r"[ \t]*%{0,2}[\w*][\w*.\[\]\"'-]*\?{1,2}[ \t]*\Z")
_STATEMENT_MAGIC = re.compile(r"([ \t]*)%(\w+)[ \t]+(?=\S)")
_OPTION = re.compile(r"-(\w)(\S*)[ \t]+(?=\S)")
_ARGUMENT = re.compile(r"\S+[ \t]*")
_NOT_SIMPLE = re.compile(r"(?:if|for|while|with|try|def|class|async)\b|[@!%?]")

# What matters for finding the end of a logical line. An open triple quote runs to the end of the cell.
_TOKEN = re.compile(
    r"""
      \#[^\n]*
    | \"\"\"[^"\\]*(?:(?:\\.|"(?!""))[^"\\]*)*(?:\"\"\"|\Z)
    | '''[^'\\]*(?:(?:\\.|'(?!''))[^'\\]*)*(?:'''|\Z)
    | "[^"\\\n]*(?:\\.[^"\\\n]*)*"?
    | '[^'\\\n]*(?:\\.[^'\\\n]*)*'?
    | \\\n
    | [()\[\]{}\n]
    """,
    re.VERBOSE | re.DOTALL,
)


def keep_python(source: str) -> str:
    """The Python in a cell: magics, shell commands and help requests become statements of as many lines.

    `%time f(x)` keeps `f(x)` in its column. A `%` or `!` at the start of a line that continues an expression
    or a string is Python and stays. The result has as many lines as `source`.
    """
    head, body, python = _cell_magics(_without_leading_indent(source))
    return head + ("".join(_statements(body)) if python else _blank(body))


def without_shell_commands(source: str) -> str:
    """The Python in a notebook that was exported as a script with its `!pip install` and `%cd` left in.

    Only lines that begin with `!` or `%`, or assign what such a command gives, are replaced.
    """
    return "".join(_statements(source, _COMMAND))


def _without_leading_indent(source: str) -> str:
    """As IPython runs it, a cell whose first line of code is indented is moved to the left by as much. (Columns in
    such a cell are told as they are after that. A form feed begins a line anew: what is before it indents nothing.)"""
    lines = source.split("\n")
    first = next((line for line in lines if line.strip() and not line.lstrip().startswith("#")), "")
    indent = first[: len(first) - len(first.lstrip(" \t"))]
    indented = indent and not first.startswith("\f", len(indent))
    return "\n".join(line.removeprefix(indent) for line in lines) if indented else source


def _cell_magics(source: str) -> tuple[str, str, bool]:
    """The lines up to the last leading cell magic, magics left blank; the rest; whether that is Python."""
    head = ""
    while True:
        lines = source.split("\n")
        skipped = sum(1 for _ in takewhile(lambda line: not line.strip() or line.startswith("#"), lines[:-1]))
        magic = _CELL_MAGIC.match(lines[skipped])
        if not magic:
            return head, source, True
        head += "".join(line + "\n" for line in lines[:skipped]) + "\n" * (len(lines) > skipped + 1)
        source = "\n".join(lines[skipped + 1 :])
        if magic[1] not in PYTHON_CELL_MAGICS:
            return head, source, False


def _statements(source: str, escape: re.Pattern[str] = _ESCAPE) -> Iterator[str]:
    """The logical lines of `source`, with a stand-in for those that are not Python."""
    start = 0
    while start < len(source):
        stop = _end_of_line(source, start)
        line = source[start:stop]
        if escape.match(line) or _ASSIGNED.match(line):
            while line.endswith("\\") and stop < len(source):
                stop = _end_of_line(source, stop + 1)
                line = source[start:stop]
            yield _stand_in(line)
        elif escape is _ESCAPE and _HELP.match(line):
            yield _stand_in(line)
        else:
            stop = _end_of_statement(source, start)
            yield source[start:stop]
        yield source[stop : stop + 1]
        start = stop + 1


def _end_of_line(source: str, start: int) -> int:
    stop = source.find("\n", start)
    return len(source) if stop < 0 else stop


def _end_of_statement(source: str, start: int) -> int:
    """The position of the newline that ends the logical line at `start`, or of the end of the source."""
    depth = 0
    for token in _TOKEN.finditer(source, start):
        text = token[0]
        if text in "([{":
            depth += 1
        elif text in ")]}":
            depth = max(0, depth - 1)
        elif text == "\n" and not depth:
            return token.start()
    return len(source)


def _stand_in(line: str) -> str:
    """Python of as many lines as the magic `line` that does nothing, or gives a value nobody can know."""
    more = "\n" * line.count("\n")
    assigned = _ASSIGNED.match(line)
    if assigned:
        return f"{assigned[1]}get_ipython()" + more
    indentation = line[: len(line) - len(line.lstrip(" \t"))]
    return _timed_statement(line) or f"{indentation}pass" + more


def _timed_statement(line: str) -> str | None:
    """`%time f(x)` as `pass;` and `f(x)` in the same column; None for any other magic.

    A compound statement cannot follow a semicolon and is given up.
    """
    magic = _STATEMENT_MAGIC.match(line)
    if not magic or magic[2] not in _OPTIONS_WITH_ARGUMENT:
        return None
    position = magic.end()
    while option := _OPTION.match(line, position):
        position = option.end()
        takes_argument = option[1] in _OPTIONS_WITH_ARGUMENT[magic[2]] and not option[2]
        if takes_argument and (argument := _ARGUMENT.match(line, position)):
            position = argument.end()
    if position >= len(line) or _NOT_SIMPLE.match(line, position):
        return None
    return f"{magic[1]}pass;".ljust(position) + line[position:]
