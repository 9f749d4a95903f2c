"""The bytes of a project's files, and which of them hold a word: what is found without parsing."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

LONGEST = 80
"""Bytes of the longest word that is indexed; what is longer are mostly pieces of the pictures in notebooks."""

_WORDS_ONLY = bytes(
    code if code > 127 or chr(code).isalnum() or code == ord("_") else ord(" ") for code in range(256)
)
"""For bytes.translate: whatever is no part of a word becomes a space."""


class Texts:
    """The contents of files by reported path, read when somebody asks, once."""

    def __init__(self, paths: Mapping[str, Path], given: Mapping[str, bytes]) -> None:
        """`given` is the content of those that are not read from disk."""
        self.paths = paths
        self.given = given
        self._read: dict[str, bytes] = {}

    def content(self, path: str) -> bytes:
        """The bytes of a file; none where it cannot be read."""
        if path in self.given:
            return self.given[path]
        if path not in self._read:
            try:
                self._read[path] = self.paths[path].read_bytes()
            except OSError:
                self._read[path] = b""
        return self._read[path]

    def holding(self, word: str) -> list[str]:
        """Paths whose text holds `word` as a whole word, in order."""
        looked_for = word.encode()
        if len(looked_for) > LONGEST:
            return [path for path in self._order if looked_for in self.content(path)]
        return [self._order[number] for number in self._numbers.get(looked_for, ())]

    @cached_property
    def _numbers(self) -> dict[bytes, list[int]]:
        """Word -> the files that hold it, by their place in the order. One pass over all bytes is worth a few dozen
        searches through them."""
        numbers: dict[bytes, list[int]] = {}
        for number, path in enumerate(self._order):
            content = self.content(path)
            if path.endswith(".ipynb"):
                content = content.replace(b"\\n", b" ")
            for word in set(content.translate(_WORDS_ONLY).split()):
                if len(word) <= LONGEST:
                    numbers.setdefault(word, []).append(number)
        return numbers

    @cached_property
    def _order(self) -> list[str]:
        return sorted(self.paths)
