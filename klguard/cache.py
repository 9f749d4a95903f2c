"""What was read out of files in earlier runs, kept for as long as it could not have changed.

An answer about some files depends on those files, on the ones the reader opened on the way (imports,
callers), and, because callers are found by the words in a file, on no other file having begun to use one of
the words it looked for. All of that is checked by content before an answer is used again. A file that
appears or goes away can change what an import means, so it ends all answers.

The cache lies inside the project, where a stranger may have put it: it is unpickled with nothing but
klguard's own data classes in reach, and anything unexpected in it counts as no cache.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import klguard
from klguard import findings, settings

_MAGIC = b"klguard cache 1\n"
_DIGEST = 16

MAX_ANSWERS = 64
"""Answers kept for one project: runs on other files of it are other questions, as in a pre-commit hook."""

Read = Callable[[str], bytes]
"""The content of a file by its reported path; raises OSError."""


@dataclass(frozen=True, slots=True)
class Trail:
    """What an answer depends on: the paths that were opened, and the words that were looked for in all
    files."""

    paths: frozenset[str] = frozenset()
    words: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _Entry:
    answer: Any
    trail: Trail
    others: tuple[tuple[str, bytes], ...]


def digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST).digest()


def identity(*parts: object) -> bytes:
    """A key that changes with klguard itself and with anything in `parts` that has another repr."""
    code = [(entry, os.stat(entry).st_mtime_ns, os.stat(entry).st_size) for entry in _own_files()]
    return digest(repr((klguard.__version__, code, parts)).encode("utf-8", "surrogatepass"))


def _own_files() -> list[str]:
    return sorted(str(path) for path in Path(__file__).parent.rglob("*.py"))


class Cache:
    """The answers for one project. `files` has the digest of every file a reader could open, by path."""

    def __init__(self, file: Path, key: bytes, files: Mapping[str, bytes], read: Read) -> None:
        self.file = file
        self.key = key
        self.files = dict(files)
        self._read = read
        self._changed = False
        before, self._entries = _load(file, key)
        if before.keys() != self.files.keys():
            self._entries = {}
        elif self._entries:
            self._drop({path for path, found in self.files.items() if before[path] != found})

    def _drop(self, changed: Set[str]) -> None:
        """Forget every answer that the files in `changed` could have altered."""
        texts = [self._content(path) for path in changed]
        for question, entry in list(self._entries.items()):
            words = entry.trail.words
            if changed & entry.trail.paths or any(_mentions(text, words) for text in texts):
                del self._entries[question]

    def _content(self, path: str) -> bytes:
        try:
            return self._read(path)
        except OSError:
            return b""

    def get(self, question: str) -> Any:
        """The answer to `question`, None where there is none that still holds."""
        entry = self._entries.get(question)
        if entry is None or any(digest(self._content(other)) != known for other, known in entry.others):
            return None
        return entry.answer

    def put(self, question: str, answer: Any, trail: Trail) -> None:
        others = sorted(trail.paths - self.files.keys())
        known = tuple((other, digest(self._content(other))) for other in others)
        self._entries[question] = _Entry(answer, trail, known)
        self._changed = True

    def save(self) -> None:
        """Write what changed, whole or not at all. A folder that cannot be written to is no reason to
        fail."""
        if not self._changed:
            return
        newest = list(self._entries.items())[-MAX_ANSWERS:]
        entries = {question: (e.answer, e.trail.paths, e.trail.words, e.others) for question, e in newest}
        save_data(self.file, _MAGIC + self.key, (self.files, entries))


def save_data(file: Path, head: bytes, data: object) -> None:
    """Write plain data and klguard's own data classes, whole or not at all."""
    import tempfile

    body = pickle.dumps(data, protocol=pickle.HIGHEST_PROTOCOL)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if not (ignore := file.parent / ".gitignore").exists():
            ignore.write_text("*\n", encoding="ascii")
        handle, name = tempfile.mkstemp(dir=file.parent)
        with os.fdopen(handle, "wb") as stream:
            stream.write(head + digest(body) + body)
        os.replace(name, file)
    except OSError:
        return


def load_data(file: Path, head: bytes) -> Any:
    """What `save_data` wrote under the same head; None where that cannot be told."""
    try:
        content = file.read_bytes()
        body = content[len(head) + _DIGEST :]
        if content[: len(head) + _DIGEST] != head + digest(body):
            return None
        return _DataOnly(io.BytesIO(body)).load()
    except Exception:  # noqa: BLE001  whatever is wrong with a cache, the answer is to do without
        return None


def _mentions(text: bytes, words: Iterable[str]) -> bool:
    """Whether one of `words` stands in `text` as a whole word."""
    return any(
        re.search(rb"(?<!\w)" + re.escape(word.encode()) + rb"(?!\w)", text)
        for word in words
        if word.encode() in text
    )


def _load(file: Path, key: bytes) -> tuple[dict[str, bytes], dict[str, _Entry]]:
    try:
        files, entries = load_data(file, _MAGIC + key)
        return files, {
            question: _Entry(answer, Trail(paths, words), others)
            for question, (answer, paths, words, others) in entries.items()
        }
    except Exception:  # noqa: BLE001  whatever is wrong with a cache, the answer is to do without
        return {}, {}


_DATA: dict[tuple[str, str], type] = {
    (module.__name__, name): kind
    for module in (settings, findings)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and kind.__module__ == module.__name__
}
_DATA.update({("builtins", kind.__name__): kind for kind in (complex, range, slice, bytearray)})


class _DataOnly(pickle.Unpickler):
    """Builds klguard's data classes and plain containers, and refuses to name anything else."""

    def find_class(self, module: str, name: str) -> type:
        try:
            return _DATA[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a cache") from None
