"""The journal: what the guard measured and said, one JSON object a line, written so that a kill leaves it whole.

Every record is written by one call of os.write on a descriptor opened for appending: after a kill at any moment
the file holds all records but perhaps the last, and nothing that was there before is touched. (What the operating
system had not yet written out when the power failed is another matter: there is no fsync in a training loop.)
Records have a `kind`: `run` opens the file and every resumption (schema, version, start, the guard's settings),
`step` and `violation` are what happened, `end` closes an orderly run. The JSON is strict; numbers that are not
finite are the strings "NaN", "Infinity" and "-Infinity", as in protobuf's JSON, and `read` turns them back.

Floats keep 7 significant digits. A step with all of its figures takes about 0.75 KB: 20,000 steps are 15 MB.

Free of torch: a journal is read on machines that have none.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from klguard import __version__
from klguard.findings import Finding
from klguard.guard.jsonlines import described, line, parsed, setting
from klguard.guard.metrics import emit, flat

__all__ = ["Journal", "JournalError", "Run", "Segment", "emit", "flat", "read"]

SCHEMA = 1

_OPENING = b'{"kind":"run"'
"""How every journal begins: nothing else is appended to, or read."""


class Journal:
    """Appends records to the file `path`, made with its directory where there is none.

    `settings` are those of the guard, for the header. With `append` False what is in the file is discarded.
    One process writes: of several ranks only rank 0 may make a Journal, in the process that trains. Several
    threads may use it. In a process forked from the one that made it (a data loader's) it writes nothing.

    Raises OSError, with what to do, when the file cannot be written, and ValueError when it holds something other
    than a journal. An error while writing (disk full) is raised from the call it happened in; the next record
    starts on a line of its own.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, append: bool = True, settings: Mapping[str, Any] | None = None
    ) -> None:
        self.path = Path(path).expanduser()
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._clock = time.monotonic()
        self._steps = 0
        self._descriptor, self._torn = _open(self.path, append)
        header = {name: setting(name, value) for name, value in (settings or {}).items()}
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        try:
            self._write(
                {
                    "kind": "run",
                    "schema": SCHEMA,
                    "klguard": __version__,
                    "started": started,
                    "settings": header,
                }
            )
        except OSError as error:
            os.close(self._descriptor)
            raise _unwritable(error, self.path) from error

    def step(self, record: Mapping[str, Any]) -> None:
        """Write the figures of one step; fields that are None are left out, and `time` and `seconds` (since the
        journal was opened) are added. Raises TypeError for a value that is not plain data (a tensor: reading it
        here would wait for the device)."""
        known = {name: value for name, value in record.items() if value is not None}
        moment = {"time": time.time(), "seconds": time.monotonic() - self._clock}
        self._write({**moment, **known, "kind": "step"})

    def violation(self, finding: Finding, record: Mapping[str, Any] | None = None) -> None:
        """Write `finding` and what was measured with it; `record` adds to that (step, cause, weight, harm) or
        replaces it. The line of source it points at goes in as well, as it is now."""
        self._write({"time": time.time(), **described(finding), **(record or {}), "kind": "violation"})

    def event(self, kind: str, **fields: Any) -> None:
        """Write a record of another kind."""
        if kind in ("run", "step", "violation", "end"):
            raise ValueError(f"`{kind}` is a kind that the journal writes itself; name the event differently")
        self._write({"time": time.time(), **fields, "kind": kind})

    def close(self, outcome: str = "finished", **fields: Any) -> None:
        """Write the last record and close the file. Closing again does nothing."""
        if os.getpid() != self._process:
            return
        with self._lock:
            if self._descriptor < 0:
                return
            try:
                seconds = time.monotonic() - self._clock
                self._write(
                    {
                        "kind": "end",
                        "time": time.time(),
                        "outcome": outcome,
                        "steps": self._steps,
                        "seconds": seconds,
                    }
                    | fields
                )
            finally:
                os.close(self._descriptor)
                self._descriptor = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.close("raised", error=kind.__name__)

    def _write(self, record: Mapping[str, Any]) -> None:
        # Asked before the lock is: in a forked process a thread that is not there may hold it for ever.
        if os.getpid() != self._process:
            return
        data = line(record)
        with self._lock:
            if self._descriptor < 0:
                raise ValueError(f"the journal {self.path} is closed")
            data = b"\n" + data if self._torn else data
            written = 0
            try:
                # A second time only where the system took a part; if the disk is full, it says so then.
                while written < len(data):
                    written += os.write(self._descriptor, data[written:])
            finally:
                if written:
                    self._torn = written < len(data)
            self._steps += record["kind"] == "step"


def _open(path: Path, append: bool) -> tuple[int, bool]:
    """A descriptor at the end of the file, and whether its last line is without an end."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            code = errno.EISDIR if path.is_dir() else errno.EINVAL
            raise OSError(code, "it is a directory" if path.is_dir() else "it is not a regular file")
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags | (0 if append else os.O_TRUNC), 0o644)
    except OSError as error:
        raise _unwritable(error, path) from error
    try:
        size = os.fstat(descriptor).st_size
        if not size:
            return descriptor, False
        os.lseek(descriptor, 0, os.SEEK_SET)
        if not _begins_a_journal(os.read(descriptor, len(_OPENING))):
            raise ValueError(
                f"{path} holds something other than a klguard journal, and nothing was written to it: "
                "give journal= a path of its own"
            )
        os.lseek(descriptor, -1, os.SEEK_END)
        return descriptor, os.read(descriptor, 1) != b"\n"
    except BaseException:
        os.close(descriptor)
        raise


def _unwritable(error: OSError, path: Path) -> OSError:
    return OSError(
        error.errno,
        f"the journal cannot be written ({error.strerror or error}): give journal= a file in a directory that can "
        "be written to, or journal=None",
        str(path),
    )


def _begins_a_journal(start: bytes) -> bool:
    """Whether a file that starts so may be a journal: its very first line may be torn too."""
    first = start.split(b"\n")[0][: len(_OPENING)]
    return bool(first) and _OPENING.startswith(first)


# --- reading --------------------------------------------------------------------------------------


class JournalError(ValueError):
    """The file is not a journal, or not one that this version reads; the message names the line."""


@dataclass
class Segment:
    """From one opening of the journal to the next: its header, the number of its first step (None before there
    is one), the seconds to its last step, and its `end` record (None when the run was killed, or is still going).
    """

    header: dict[str, Any]
    first_step: int | None = None
    seconds: float | None = None
    end: dict[str, Any] | None = None


@dataclass
class Run:
    """A journal, read.

    steps       one record for each step number, in order; where a resumed run repeated steps, the later ones.
    violations  all of them, in the order they were written.
    events      records of other kinds.
    torn_lines  numbers of the lines that were cut off by a kill, and left out.
    """

    path: Path
    segments: list[Segment] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    violations: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    torn_lines: tuple[int, ...] = ()

    @property
    def header(self) -> dict[str, Any]:
        """The header written last; {} where a kill left none."""
        return self.segments[-1].header if self.segments else {}

    @property
    def settings(self) -> dict[str, Any]:
        """The guard's settings, of the last header."""
        settings = self.header.get("settings")
        return settings if isinstance(settings, dict) else {}

    @property
    def restarts(self) -> int:
        """How often the run was resumed."""
        return max(0, len(self.segments) - 1)

    @property
    def torn(self) -> int:
        """Number of lines cut off by a kill."""
        return len(self.torn_lines)

    @property
    def end(self) -> dict[str, Any] | None:
        """The `end` record, or None: the run was killed, or is still going."""
        return self.segments[-1].end if self.segments else None


def read(path: str | os.PathLike[str]) -> Run:
    """The journal at `path`. Lines cut off by a kill are left out and counted.

    Raises OSError when the file cannot be read, and JournalError, with the line, when it is not a journal or one
    of a later schema.
    """
    run = Run(Path(path))
    steps: dict[int, dict[str, Any]] = {}
    torn: list[int] = []
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            record = parsed(raw)
            if number == 1 and not (_kind(record) == "run" if record is not None else _begins_a_journal(raw)):
                raise JournalError(f"{path}:1: not a klguard journal: it does not begin with a `run` record")
            if not raw.strip():
                continue
            if record is None:
                torn.append(number)
            else:
                _enter(run, steps, record, f"{path}:{number}")
    run.steps = [steps[number] for number in sorted(steps)]
    run.torn_lines = tuple(torn)
    return run


def _kind(record: Any) -> str | None:
    kind = record.get("kind") if isinstance(record, dict) else None
    return kind if isinstance(kind, str) else None


def _enter(run: Run, steps: dict[int, dict[str, Any]], record: Any, where: str) -> None:
    kind = _kind(record)
    if kind is None:
        raise JournalError(
            f"{where}: not a record of a klguard journal: an object with a `kind` was expected"
        )
    if kind == "run":
        if record.get("schema") != SCHEMA:
            raise JournalError(
                f"{where}: schema {record.get('schema')!r} is not one that klguard {__version__} reads (it reads "
                f"{SCHEMA}): use the klguard that wrote the journal, or a later one"
            )
        run.segments.append(Segment(record))
    elif kind == "step":
        step = record.get("step")
        if isinstance(step, bool) or not isinstance(step, int) or abs(step) > 2**53:
            raise JournalError(f"{where}: a step record without the number of its step")
        steps[step] = record
        if run.segments:
            _extend(run.segments[-1], step, record.get("seconds"))
    elif kind == "violation":
        run.violations.append(record)
    elif kind == "end" and run.segments:
        run.segments[-1].end = record
    else:
        run.events.append(record)


def _extend(segment: Segment, step: int, seconds: Any) -> None:
    if segment.first_step is None:
        segment.first_step = step
    if isinstance(seconds, (int, float)) and 0 <= seconds < 1e10:
        segment.seconds = float(seconds)
