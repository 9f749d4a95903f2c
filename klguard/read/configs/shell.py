"""Command lines in shell scripts: options and overrides, with variables that the script itself sets.

No shell is run. A command is a line with those it is continued on; an array of arguments (`ARGS=(...)`) belongs to
every command that names it. What a variable holds is known where the script assigns it once, or gives a default
(`${TOP_P:-0.9}`); a value that is not known is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from klguard.read.configs.written import Written, literal
from klguard.settings import Hop, HopKind, Known, Place

MAX_COMMANDS = 200

MAX_VALUE = 1_000
"""Characters of a value."""

_WORD = re.compile(r"""(?:"(?:\\.|[^"\\])*"|'[^']*'|\\.|\$\{[^}]*\}|[^\s"'\\;&|()])+|[;&|()]+""", re.DOTALL)
_ASSIGNMENT = re.compile(
    r"^[ \t]*(?:export[ \t]+|local[ \t]+)?([A-Za-z_]\w*)=([^\s(]\S*|\"[^\"\n]*\")?[ \t]*(?:#.*)?$", re.M
)
_ARRAY = re.compile(r"^[ \t]*(?:export[ \t]+|local[ \t]+)?([A-Za-z_]\w*)\+?=\(", re.M)
_OVERRIDE = re.compile(r"\+{0,2}([A-Za-z_][\w.\-/@]*)=(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_]\w*)(?::?[-=]([^}]*))?\}|([A-Za-z_]\w*))")
_USE = re.compile(r"\$\{([A-Za-z_]\w*)\[[@*]\]\}")
_OPTION = re.compile(r"--?([A-Za-z][\w.\-]*)(?:=(.*))?", re.DOTALL)


class _Word(NamedTuple):
    text: str
    start: int


def commands(text: str, path: str) -> Iterator[Written]:
    """The commands of a script that have options, in their order."""
    plain = _without_comments(text)
    variables = _Variables(_assigned(plain))
    arrays: dict[str, list[_Word]] = {}
    found: list[list[_Word]] = []
    for array, words in _statements(plain):
        if array:
            arrays.setdefault(array, []).extend(words)
        else:
            found.append(words)
    for words in found[:MAX_COMMANDS]:
        spliced = [inner for word in words for inner in _spliced(word, arrays)]
        written = _written(spliced, variables, text, path)
        if written is not None:
            yield written


def _without_comments(text: str) -> str:
    """The script with blanks in place of its comments, so that places stay."""
    return re.sub(r"(?m)(?:^|(?<=\s))#[^\n]*", lambda found: " " * len(found[0]), text)


def _assigned(text: str) -> dict[str, str | None]:
    """Name -> value of what is assigned; None where that differs."""
    found: dict[str, str | None] = {}
    for name, value in _ASSIGNMENT.findall(text):
        bare = value.strip("'\"")
        found[name] = bare if found.get(name, bare) == bare else None
    return found


def _statements(text: str) -> Iterator[tuple[str, list[_Word]]]:
    """(name of the array, or "", words) for each array and each command."""
    position = 0
    joined = re.sub(r"\\\r?\n", lambda found: " " * len(found[0]), text)
    while position < len(joined):
        array = _ARRAY.match(joined, position)
        if array:
            end = _closing(joined, array.end())
            yield array[1], _words(joined, array.end(), end)
            position = end + 1
            continue
        end = joined.find("\n", position)
        end = len(joined) if end < 0 else end
        words: list[_Word] = []
        for word in _words(joined, position, end):
            if word.text[0] in ";&|()":
                if words:
                    yield "", words
                words = []
            else:
                words.append(word)
        if words:
            yield "", words
        position = end + 1


def _closing(text: str, start: int) -> int:
    """Where the parenthesis of an array closes."""
    for found in _WORD.finditer(text, start):
        if found[0].startswith(")"):
            return found.start()
    return len(text)


def _words(text: str, start: int, end: int) -> list[_Word]:
    return [_Word(found[0], found.start()) for found in _WORD.finditer(text, start, end)]


def _spliced(word: _Word, arrays: Mapping[str, list[_Word]]) -> list[_Word]:
    used = _USE.search(word.text)
    return [word] if used is None else arrays.get(used[1], [])


def _written(words: list[_Word], variables: _Variables, text: str, path: str) -> Written | None:
    """The options and overrides of one command; None without any."""
    values: dict[str, Known] = {}
    command: list[str] = []
    for number, word in enumerate(words):
        bare = word.text.strip("'\"")
        option = _OPTION.fullmatch(bare)
        override = None if option else _OVERRIDE.fullmatch(bare)
        if option:
            name = option[1].replace("-", "_")
            following = words[number + 1].text if number + 1 < len(words) else "--none"
            given = option[2]
            if given is None:
                given = "true" if _OPTION.fullmatch(following.strip("'\"")) else following
        elif override:
            name, given = override[1], override[2]
        else:
            command.append(bare)
            continue
        value = variables.expand(given)
        if value is not None:
            hop = Hop(HopKind.FLAG, _place(text, path, word), bare)
            values[name] = Known(literal(value), (hop,))
        else:
            values.pop(name, None)
    if not values:
        return None
    return Written(_place(text, path, words[0]), tuple(command), values)


class _Variables:
    """What the variables of a script hold, each worked out once."""

    def __init__(self, assigned: Mapping[str, str | None]) -> None:
        self._assigned = assigned
        self._known: dict[str, str | None] = {}

    def expand(self, text: str) -> str | None:
        """The text with its variables filled in; None where one of them is not known, or the whole too long."""
        if "$(" in text or "`" in text:
            return None
        missing = False

        def fill(found: re.Match[str]) -> str:
            nonlocal missing
            value = self._value(found[1] or found[3], found[2])
            missing = missing or value is None
            return value or ""

        filled = _VARIABLE.sub(fill, text.strip("'\""))
        return None if missing or "$" in filled or len(filled) > MAX_VALUE else filled

    def _value(self, name: str, fallback: str | None) -> str | None:
        if name not in self._assigned:
            return None if fallback is None else self.expand(fallback)
        if name not in self._known:
            self._known[name] = None  # for one that is made of itself
            value = self._assigned[name]
            self._known[name] = None if value is None else self.expand(value)
        return self._known[name]


def _place(text: str, path: str, word: _Word) -> Place:
    line = text.count("\n", 0, word.start) + 1
    column = word.start - text.rfind("\n", 0, word.start)
    length = len(word.text.split("\n", 1)[0])
    return Place(path, None, line, column, line, column + length)
