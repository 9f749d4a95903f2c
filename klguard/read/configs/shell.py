"""Command lines in shell scripts: options and overrides, with variables that the script itself sets.

No shell is run. A command is a line with those it is continued on, or a part of the text that `bash -c`, `eval` and
the like are given; an array of arguments (`ARGS=(...)`), and a text of several words, belongs to every command that
names it. What a variable holds is known where the script assigns it once, or gives a default (`${TOP_P:-0.9}`, also to
itself or to an argument of the script); a value that is not known is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from klguard.read.configs.written import Written, literal
from klguard.settings import Hop, HopKind, Known, Place

MAX_COMMANDS = 200

MAX_VALUE = 1_000
"""Characters of a value."""

MAX_WORDS = 5_000
"""Words of a command, with those of the arrays and texts that it names."""

SEPARATORS = ";&|()"
QUOTES = "'\""
SHELLS = frozenset({"-c", "-lc", "-ic", "-lic", "eval", "--wrap"})
"""What stands before a text that is a script of its own."""

_SCRIPT = re.compile(r"(?<!\S)(?:-l?i?c|eval|--wrap)[ \t]+[\"']")
_WORD = re.compile(r"""(?:"(?:\\.|[^"\\])*"|'[^']*'|\\.|\$\{[^}]*\}|[^\s"'\\;&|()])+|[;&|()]+""", re.DOTALL)
_ASSIGNMENT = re.compile(
    r"^[ \t]*(?:export[ \t]+|local[ \t]+)?([A-Za-z_]\w*)(\+?)=(\"[^\"]*\"|'[^']*'|[^\s(]\S*)?[ \t]*(?:#.*)?$",
    re.M,
)
_ARRAY = re.compile(r"^[ \t]*(?:export[ \t]+|local[ \t]+)?([A-Za-z_]\w*)\+?=\(", re.M)
_OVERRIDE = re.compile(r"\+{0,2}([A-Za-z_][\w.\-/@]*)=(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:\{(\d+|[A-Za-z_]\w*)(?::?[-=]([^}]*))?\}|([A-Za-z_]\w*))")
_USE = re.compile(r"\$\{([A-Za-z_]\w*)\[[@*]\]\}")
_ALL = re.compile(r"\$(?:[@*]|\{[@*]\}|\{[A-Za-z_]\w*\[[@*]\]\})")
"""Any number of words: all arguments of the script, or an array."""
_UNNAMED = re.compile(r"\+{0,2}\$[^/\s]*=|--?\$")
"""An option whose name is not known."""
_OPTION = re.compile(r"--?([A-Za-z][\w.\-]*)(?:=(.*))?", re.DOTALL)


class _Word(NamedTuple):
    text: str
    start: int


Placing = Callable[[int, str], Place]
"""Where a word is written, from its offset in the text and its first line."""


def commands(text: str, path: str, place: Placing | None = None) -> Iterator[Written]:
    """The commands of a script that have options, in their order.

    place   where its words are written, if the text is not a file of its own.
    """
    plain = re.sub(r"\\\r?\n", lambda found: " " * len(found[0]), _without_comments(text))
    assigned = list(_ASSIGNMENT.finditer(plain))
    variables = _Variables(_assigned(assigned))
    lists = _texts(assigned)
    found: list[list[_Word]] = []
    for array, words in _statements(plain, 0, len(plain)):
        if array:
            lists.setdefault(array, []).extend(words)
        elif len(found) < MAX_COMMANDS:
            found.append(words)
    known = _Lists(lists)
    for words in found:
        written = _written(known.splice(words), variables, place or in_text(text, path))
        if written is not None:
            yield written


def _without_comments(text: str) -> str:
    """The script with blanks in place of its comments, so that places stay."""
    return re.sub(r"(?m)(?:^|(?<=\s))#[^\n]*", lambda found: " " * len(found[0]), text)


def _assigned(assignments: Sequence[re.Match[str]]) -> dict[str, str | None]:
    """Name -> value of what is assigned; None where that differs."""
    found: dict[str, str | None] = {}
    for name, added, value in (assignment.groups("") for assignment in assignments):
        bare = value.strip("'\"")
        found[name] = bare if not added and found.get(name, bare) == bare else None
    return found


def _texts(assignments: Sequence[re.Match[str]]) -> dict[str, list[_Word]]:
    """Name -> words of the texts of several words, with what is added to them. One that is assigned twice is left
    out."""
    found: dict[str, list[_Word]] = {}
    twice: set[str] = set()
    for assignment in assignments:
        name, start, end = assignment[1], assignment.start(3), assignment.end(3)
        quoted = (assignment[3] or "")[:1] in ("'", '"')
        words = _words(assignment.string, start + quoted, end - quoted) if assignment[3] else []
        words = [word for word in words if word.text[0] not in SEPARATORS]
        grows = bool(words) and _names(words[0]) == name
        if not assignment[2] and not grows and name in found:
            twice.add(name)
        found.setdefault(name, []).extend(words[grows:])
    return {name: words for name, words in found.items() if len(words) > 1 and name not in twice}


def _statements(text: str, start: int, end: int) -> Iterator[tuple[str, list[_Word]]]:
    """(name of the array, or "", words) for each array and each command."""
    position = start
    while position < end:
        array = _ARRAY.match(text, position, end)
        if array:
            closing = _closing(text, array.end())
            yield array[1], _words(text, array.end(), closing)
            position = closing + 1
            continue
        line = _end_of_line(text, position, end)
        words: list[_Word] = []
        for word in _words(text, position, line):
            if word.text[0] in SEPARATORS:
                if words:
                    yield "", words
                words = []
            elif words and words[-1].text in SHELLS and word.text[0] in QUOTES:
                yield from _statements(text, word.start + 1, word.start + len(word.text) - 1)
            else:
                words.append(word)
        if words:
            yield "", words
        position = line + 1


def _end_of_line(text: str, start: int, end: int) -> int:
    """Where a command ends: at the end of its line, or of the one on which a script that it is given ends."""
    line = text.find("\n", start, end)
    line = end if line < 0 else line
    opened = _SCRIPT.search(text, start, line)
    quoted = opened and _WORD.match(text, opened.end() - 1, end)
    if not quoted or quoted.end() <= line:
        return line
    line = text.find("\n", quoted.end(), end)
    return end if line < 0 else line


def _closing(text: str, start: int) -> int:
    """Where the parenthesis of an array closes."""
    for found in _WORD.finditer(text, start):
        if found[0].startswith(")"):
            return found.start()
    return len(text)


def _words(text: str, start: int, end: int) -> list[_Word]:
    return [_Word(found[0], found.start()) for found in _WORD.finditer(text, start, end)]


class _Lists:
    """Arrays and texts of several words: name -> words, with those of others that they name."""

    def __init__(self, lists: Mapping[str, list[_Word]]) -> None:
        self._lists = lists
        self._known: dict[str, list[_Word]] = {}

    def splice(self, words: Sequence[_Word]) -> list[_Word]:
        """The words, and in place of each that names a list the words of that; at most `MAX_WORDS`."""
        found: list[_Word] = []
        for word in words:
            used = _USE.search(word.text)
            name = _names(word) if used is None else used[1]
            found += self._of(name) if name in self._lists else [word]
            if len(found) > MAX_WORDS:
                break
        return found[:MAX_WORDS]

    def _of(self, name: str) -> list[_Word]:
        if name not in self._known:
            self._known[name] = []  # for one that is made of itself
            self._known[name] = self.splice(self._lists[name])
        return self._known[name]


def _names(word: _Word) -> str:
    """The variable that is all of a word, "" where there is none."""
    found = _VARIABLE.fullmatch(word.text.strip("'\""))
    return "" if found is None else found[1] or found[3]


def _written(words: list[_Word], variables: _Variables, place: Placing) -> Written | None:
    """The options and overrides of one command; None without any."""
    values: dict[str, Known] = {}
    unknown: set[str] = set()
    command: list[str] = []
    unseen = False
    for number, word in enumerate(words):
        bare = word.text.strip("'\"")
        option = _OPTION.fullmatch(bare)
        override = None if option else _OVERRIDE.fullmatch(bare)
        if option:
            name = option[1].replace("-", "_")
            following = words[number + 1].text if number + 1 < len(words) else "--none"
            given = option[2]
            if given is None:
                bare_option = _OPTION.fullmatch(following.strip("'\"")) or _ALL.search(following)
                given = "true" if bare_option else following
        elif override:
            name, given = override[1], override[2]
        else:
            command.append(bare)
            before = _OPTION.fullmatch(words[number - 1].text) if number else None
            is_value = before is not None and before[2] is None
            many = _ALL.search(bare) or _UNNAMED.match(bare) or (_names(word) and not is_value)
            unseen = unseen or bool(many)
            continue
        value = variables.expand(given)
        unknown.discard(name)
        if value is not None:
            hop = Hop(HopKind.FLAG, place(word.start, word.text.split("\n", 1)[0]), bare)
            values[name] = Known(literal(value), (hop,))
        else:
            values.pop(name, None)
            unknown.add(name)
    if not values:
        return None
    start = place(words[0].start, words[0].text.split("\n", 1)[0])
    return Written(start, tuple(command), values, frozenset(unknown), unseen)


class _Variables:
    """What the variables of a script hold, each worked out once."""

    def __init__(self, assigned: Mapping[str, str | None]) -> None:
        self._assigned = assigned
        self._known: dict[str, str | None] = {}
        self._under_way: set[str] = set()

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
        if (
            name not in self._assigned or name in self._under_way
        ):  # `T=${T:-1.0}`, unless the environment has it
            return None if fallback is None else self.expand(fallback)
        if name not in self._known:
            self._under_way.add(name)
            value = self._assigned[name]
            self._known[name] = None if value is None else self.expand(value)
            self._under_way.discard(name)
        return self._known[name]


def in_text(text: str, path: str, cell: int | None = None) -> Placing:
    """The places in a text that is a file, or a cell of one."""

    def place(start: int, word: str) -> Place:
        line = text.count("\n", 0, start) + 1
        column = start - text.rfind("\n", 0, start)
        return Place(path, cell, line, column, line, column + len(word))

    return place
