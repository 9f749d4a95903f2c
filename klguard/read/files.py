"""Files: which ones are checked, and their text.

`discover` walks directories as git would see them; `read` turns bytes into text the way Python does. Whatever
is wrong with a file is data (a `Failure`), never an exception: the other files are still checked.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import stat
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from klguard.findings import Confidence, Finding, Severity
from klguard.settings import Place

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

    from klguard.read.notebook import CellSpan

ENDINGS = (".py", ".ipynb")
"""Source that is picked up below a directory. Stubs (.pyi) hold no calls."""

SCRIPTS = (".sh", ".bash", ".slurm", ".sbatch")
"""Shell scripts, those of a batch system among them."""

CONFIGS = (".yaml", ".yml", ".toml", *SCRIPTS)
"""What may be the configuration of a training framework, likewise. JSON is read where it is named: below a directory
most of it is data."""

DEFAULT_LIMIT = 10_000_000
"""Bytes. A larger source file is generated, and reading it would cost more than it can tell."""

DEFAULT_EXCLUDES = frozenset(
    ".bzr .direnv .eggs .git .hg .idea .ipynb_checkpoints .mypy_cache .nox .pants.d .pyenv .pytest_cache"
    " .pytype .ruff_cache .svn .tox .venv .vscode __pycache__ __pypackages__ _build buck-out build dist"
    " node_modules site-packages unsloth_compiled_cache venv".split()
)
"""Names of directories that are not entered unless they are asked for: caches, environments, builds."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a file, or one cell of a notebook, could not be read; `code` is KLG001 (syntax) or KLG002."""

    code: str
    message: str
    path: str
    cell: int | None = None
    line: int = 1
    column: int = 1

    def finding(self) -> Finding:
        """The same as a finding."""
        return Finding(
            code=self.code,
            name={"KLG001": "syntax-error", "KLG002": "unreadable-file"}[self.code],
            severity=Severity.ERROR,
            confidence=Confidence.HIGH,
            message=self.message,
            place=Place(self.path, self.cell, self.line, self.column, self.line, self.column + 1),
        )


@dataclass(frozen=True)
class SourceText:
    r"""The text of one file, with `\n` for every line ending and no byte order mark.

    path      as it is reported: relative to the current directory where it lies below it, with slashes.
    text      Python; of a notebook, its code cells one after the other, magics replaced line for line.
    original  what the author sees, for code frames: as `text`, but with the magics and the broken cells.
    cells     where the cells of a notebook are in `text`; None for any other file.
    failures  cells that were left blank because they are not Python.
    """

    path: str
    text: str
    original: str
    cells: tuple[CellSpan, ...] | None = None
    failures: tuple[Failure, ...] = ()

    @cached_property
    def lines(self) -> list[str]:
        """The lines of `original`, without their ends. (`str.splitlines` would also split at form feeds.)"""
        return self.original.split("\n")

    def locate(self, line: int) -> tuple[int | None, int]:
        """Cell index and line in the cell of a line of `text`; (None, line) outside notebooks."""
        if not self.cells:
            return None, line
        span = self.cells[max(0, bisect_right(self._first_lines, line) - 1)]
        return span.index, line - span.first_line + 1

    def row(self, cell: int | None, line: int) -> int:
        """The line of `text` at a line of a cell: the inverse of `locate`."""
        if cell is None or not self.cells:
            return line
        return self.cells[self._positions[cell]].first_line + line - 1

    @cached_property
    def _first_lines(self) -> list[int]:
        return [span.first_line for span in self.cells or ()]

    @cached_property
    def _positions(self) -> dict[int, int]:
        return {span.index: position for position, span in enumerate(self.cells or ())}


def reported(path: str | os.PathLike[str]) -> str:
    """`path` as it is reported: relative to the current directory where it lies below it, with slashes.

    Bytes of a name that are not text are written out (`\\udcff`), so that every output can carry it.
    """
    absolute = os.path.abspath(path)
    relative = _relative(absolute, os.getcwd())
    name = absolute.replace(os.sep, "/") if relative is None else relative or "."
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


# --- text --------------------------------------------------------------------------------------------------


class _Undecodable(ValueError):
    def __init__(self, message: str, line: int = 1, column: int = 1) -> None:
        super().__init__(message)
        self.line = line
        self.column = column


def read(path: str | os.PathLike[str], *, limit: int = DEFAULT_LIMIT) -> SourceText | Failure:
    """The text of the file at `path`, at most `limit` bytes."""
    data = load(path, limit=limit)
    return data if isinstance(data, Failure) else read_bytes(data, reported(path))


def load(path: str | os.PathLike[str], *, limit: int = DEFAULT_LIMIT) -> bytes | Failure:
    """The bytes of the file at `path`, for those who look at them before they ask for text."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            return Failure("KLG002", "is a directory", reported(path))
        if not stat.S_ISREG(status.st_mode):
            return Failure("KLG002", "is not a regular file", reported(path))
        if status.st_size > limit:
            size = f"{status.st_size / 1e6:.1f} MB, over the limit of {limit / 1e6:g} MB (max-file-size)"
            return Failure("KLG002", f"is {size}", reported(path))
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        dangling = os.path.islink(path)
        return Failure("KLG002", "is a link to nothing" if dangling else "does not exist", reported(path))
    except OSError as error:
        return Failure("KLG002", f"cannot be read: {error.strerror or error}", reported(path))


def read_bytes(data: bytes, path: str) -> SourceText | Failure:
    """The text in `data`, as if it came from `path`. Python source in the encoding it declares (PEP 263)."""
    try:
        text = _decode(data, "utf-8" if path.endswith(".ipynb") else None)
    except _Undecodable as error:
        return Failure("KLG002", str(error), path, None, error.line, error.column)
    return read_text(text, path)


def read_text(text: str, path: str) -> SourceText | Failure:
    """The same for text that is decoded already, such as an editor's buffer."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    odd = _NOT_TEXT.search(text)
    if odd:
        line, column = _position(text, odd.start())
        what = "a NUL character" if odd[0] == "\0" else "half of a surrogate pair"
        return Failure("KLG002", f"is not text: {what}", path, None, line, column)
    if not path.endswith(".ipynb"):
        return SourceText(path, text, text)
    from klguard.read.notebook import NotANotebook
    from klguard.read.notebook import parse as parse_notebook

    try:
        notebook = parse_notebook(text)
    except NotANotebook as error:
        return Failure("KLG002", str(error), path, None, error.line, error.column)
    failures = tuple(Failure("KLG001", b.message, path, b.cell, b.line, b.column) for b in notebook.bad)
    return SourceText(path, notebook.text, notebook.original, notebook.cells, failures)


_NOT_TEXT = re.compile("[\0\ud800-\udfff]")


def _position(text: str, offset: int) -> tuple[int, int]:
    """Line and column, from 1, of the character at `offset`."""
    return text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)


def _position_after(data: bytes, encoding: str) -> tuple[int, int]:
    """Line and column of what follows `data`."""
    try:
        text = data.decode(encoding)
    except UnicodeError:  # some codecs (`idna`) do not stop at the end of what they could decode
        text = data.decode("latin-1")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _position(text, len(text))


def _decode(data: bytes, encoding: str | None) -> str:
    """`data` as text. Raises _Undecodable at the first byte that is not in the encoding."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise _Undecodable("is UTF-16, which Python does not run: save it as UTF-8")
    encoding = encoding or _declared_encoding(data)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        message = f"is not {encoding}: byte 0x{data[error.start]:02x} at offset {error.start}"
        raise _Undecodable(message, *_position_after(data[: error.start], encoding)) from None
    except (ValueError, LookupError) as error:
        # Codecs that are not encodings of text (`rot13`), and those that always fail (`undefined`).
        raise _Undecodable(f"cannot be decoded as {encoding}: {error}") from None


def _declared_encoding(data: bytes) -> str:
    """The encoding that a byte order mark or a comment in the first two lines declares, else UTF-8."""
    import tokenize

    head = io.BytesIO(b"\n".join(data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n", 2)[:2]))
    try:
        return tokenize.detect_encoding(head.readline)[0]
    except SyntaxError as error:
        if "declaration" in str(error):  # the first two lines are not UTF-8 and do not say what they are
            return "utf-8"
        raise _Undecodable(str(error)) from None


# --- discovery ---------------------------------------------------------------------------------------------


@dataclass
class Discovery:
    """What is to be checked.

    files     sorted by the path they are reported under, each once.
    errors    paths that do not exist: the run cannot be what was asked for.
    failures  directories that could not be entered.
    excluded  number of named paths that `force_exclude` left out.
    """

    files: list[Path] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    excluded: int = 0


def discover(
    paths: Iterable[str | os.PathLike[str]],
    *,
    exclude: Sequence[str] = (),
    respect_gitignore: bool = True,
    force_exclude: bool = False,
    root: str | os.PathLike[str] | None = None,
    endings: tuple[str, ...] = ENDINGS,
) -> Discovery:
    """The files that `paths` mean: a file stands for itself, a directory for the files with these endings in it, by
    default the Python and notebooks.

    `exclude` holds patterns as in a .gitignore, relative to `root` (the current directory). It has the last
    word: `!build/` enters a directory that is left out by default. A path that is named is taken, whatever
    excludes it, unless `force_exclude` (pre-commit names every changed file). Links to directories are not
    followed.
    """
    base = os.path.abspath(root if root is not None else os.curdir)
    excluded = _spec(exclude)
    found = Discovery()
    named: dict[str, str] = {}
    links: list[str] = []
    for path in dict.fromkeys(os.fspath(path) for path in paths):
        if not os.path.lexists(path):
            found.errors.append(f"{path}: no such file or directory")
        elif force_exclude and _is_excluded(path, base, excluded):
            found.excluded += 1
        elif os.path.isdir(path):
            walk = _Walk(path, _exclusion(path, base, excluded), respect_gitignore, endings)
            shown, real = path.rstrip("/"), os.path.realpath(path).rstrip("/")
            named.update((real + file, shown + file) for file in walk.files())
            links += [shown + link for link in walk.links]
            found.failures += walk.failures
        else:
            named[os.path.realpath(path)] = path
    for link in sorted(links):
        named.setdefault(os.path.realpath(link), link)
    found.files = [Path(path) for path in sorted(named.values(), key=reported)]
    return found


class _Nothing(NamedTuple):
    """A pattern file without a pattern, for which pathspec need not be imported."""

    include: None = None
    patterns: tuple[()] = ()

    def check_file(self, path: str) -> _Nothing:
        return self


def _spec(lines: Sequence[str]) -> GitIgnoreSpec | _Nothing:
    if not any(line.strip() and not line.startswith("#") for line in lines):
        return _Nothing()
    from pathspec import GitIgnoreSpec

    return GitIgnoreSpec.from_lines(lines)


class _Patterns(NamedTuple):
    """Patterns of one file, and how a path below the walked directory reads from where that file is."""

    spec: GitIgnoreSpec | _Nothing
    prefix: str
    cut: int

    def verdict(self, path: str) -> bool | None:
        """True: left out. False: explicitly taken in. None: not mentioned."""
        return self.spec.check_file(self.prefix + path[self.cut :]).include


class _Walk:
    """The files below one directory. Paths are relative to it and begin with a slash."""

    def __init__(
        self, top: str, exclusion: _Patterns, respect_gitignore: bool, endings: tuple[str, ...]
    ) -> None:
        self.top = top
        self.endings = endings
        self.exclusion = exclusion
        self.respect_gitignore = respect_gitignore
        self.links: list[str] = []
        self.failures: list[Failure] = []

    def files(self) -> Iterator[str]:
        """Regular files; links to files are put into `links`."""
        pending = [("", _enclosing(self.top) if self.respect_gitignore else ())]
        while pending:
            directory, ignores = pending.pop()
            try:
                with os.scandir(self.top + directory) as scan:
                    entries = {entry.name: entry for entry in scan}
            except OSError as error:
                message = f"cannot be entered: {error.strerror or error}"
                self.failures.append(Failure("KLG002", message, reported(self.top + directory)))
                continue
            if directory and "pyvenv.cfg" in entries:
                continue
            if self.respect_gitignore and ".gitignore" in entries:
                spec = _gitignore(self.top + directory + "/.gitignore")
                ignores = (*ignores, _Patterns(spec, "", len(directory) + 1))
            for name, entry in entries.items():
                path = f"{directory}/{name}"
                if entry.is_dir(follow_symlinks=False):
                    if self._enters(path, name, ignores):
                        pending.append((path, ignores))
                elif name.endswith(self.endings) and not name.startswith(".#") and self._takes(path, ignores):
                    # Names that begin with .# are the locks of an editor, links to nothing.
                    if entry.is_symlink():
                        self._link(path)
                    elif entry.is_file():
                        yield path

    def _link(self, path: str) -> None:
        if not os.path.isdir(self.top + path):
            self.links.append(path)

    def _enters(self, path: str, name: str, ignores: tuple[_Patterns, ...]) -> bool:
        verdict = self.exclusion.verdict(path + "/")
        if verdict is None:
            return name not in DEFAULT_EXCLUDES and not _ignored(path + "/", ignores)
        return not verdict

    def _takes(self, path: str, ignores: tuple[_Patterns, ...]) -> bool:
        verdict = self.exclusion.verdict(path)
        return not _ignored(path, ignores) if verdict is None else not verdict


def _ignored(path: str, ignores: tuple[_Patterns, ...]) -> bool:
    """Whether git ignores `path`: the innermost .gitignore that mentions it decides."""
    for patterns in reversed(ignores):
        verdict = patterns.verdict(path)
        if verdict is not None:
            return verdict
    return False


def _relative(path: str, base: str) -> str | None:
    """`path` as seen from the directory `base`, "" for itself, with slashes; None when it is not below."""
    if path == base:
        return ""
    below = os.path.join(base, "")
    return path[len(below) :].replace(os.sep, "/") if path.startswith(below) else None


def _exclusion(top: str, base: str, excluded: GitIgnoreSpec | _Nothing) -> _Patterns:
    relative = _relative(os.path.abspath(top), base)
    return _overruled(excluded, relative) if relative else _Patterns(excluded, "", 1)


def _overruled(spec: GitIgnoreSpec | _Nothing, relative: str) -> _Patterns:
    """The patterns of `spec` as seen from the directory `relative`, which was named on the command line.

    To name a directory overrules the patterns that would leave it out; the others stay in force inside it.
    """
    if isinstance(spec, _Nothing):
        return _Patterns(spec, relative + "/", 1)
    from pathspec import GitIgnoreSpec

    kept = [pattern for pattern in spec.patterns if pattern.match_file(relative + "/") is None]
    return _Patterns(GitIgnoreSpec(kept), relative + "/", 1)


def _is_excluded(path: str, base: str, excluded: GitIgnoreSpec | _Nothing) -> bool:
    """Whether a named path is left out under `force_exclude`, by a pattern or by one of the default names."""
    relative = _relative(os.path.abspath(path), base)
    if not relative:
        return False
    directory = os.path.isdir(path)
    verdict = excluded.check_file(relative + "/" * directory).include
    if verdict is None:
        names = relative.split("/")
        return not DEFAULT_EXCLUDES.isdisjoint(names if directory else names[:-1])
    return verdict


def _enclosing(top: str) -> tuple[_Patterns, ...]:
    """What the repository around the directory `top` ignores, outermost first; nothing outside a repository.

    The user's own ignore file (core.excludesFile) is left out: a check must not depend on who runs it.
    """
    absolute = os.path.abspath(top)
    directories = [absolute]
    while not os.path.exists(os.path.join(directories[-1], ".git")):
        parent = os.path.dirname(directories[-1])
        if parent == directories[-1]:
            return ()
        directories.append(parent)
    repository = directories[-1]
    found: list[_Patterns] = []
    sources = [(repository, _exclude_file(repository))]
    sources += [(d, os.path.join(d, ".gitignore")) for d in reversed(directories) if d != absolute]
    for directory, file in sources:
        if os.path.isfile(file):
            relative = _relative(absolute, directory)
            spec = _gitignore(file)
            found.append(_overruled(spec, relative) if relative else _Patterns(spec, "", 1))
    return tuple(found)


def _exclude_file(repository: str) -> str:
    """The path of info/exclude. In a worktree or submodule `.git` is a file that names the directory."""
    git = os.path.join(repository, ".git")
    try:
        if os.path.isfile(git):
            git = os.path.join(repository, _line_of(git).removeprefix("gitdir:").strip())
        common = os.path.join(git, "commondir")
        if os.path.isfile(common):
            git = os.path.join(git, _line_of(common))
    except OSError:
        pass
    return os.path.join(git, "info", "exclude")


def _line_of(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.readline().strip()


def _gitignore(path: str) -> GitIgnoreSpec | _Nothing:
    """The patterns in a file. Those that make no sense are passed over, as git does."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            lines = file.read().split("\n")
    except OSError:
        return _Nothing()
    try:
        return _spec(lines)
    except (ValueError, re.error):
        return _spec([line for line in lines if _is_pattern(line)])


def _is_pattern(line: str) -> bool:
    try:
        _spec([line])
    except (ValueError, re.error):
        return False
    return True
