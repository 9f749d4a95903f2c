"""Sites of many files: from the cache where an answer still holds, in this process when they are few, in
several processes when they are many. The answer about a file is the same whichever way it came."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from klguard.cache import Cache, Trail
from klguard.findings import Finding
from klguard.judge import internal_error, start_of
from klguard.settings import Site

WORTH_PROCESSES = 300_000
"""Bytes of source from which on several processes are faster than one: starting them costs some 0.3 s."""

Progress = Callable[[int, int], None]
"""`progress(done, total)`."""


@dataclass(frozen=True)
class Target:
    """What a reader needs to know besides which files to read.

    files     reported path -> where it lies, for every file of the project
    versions  path -> library -> version, for every file that is asked about
    text      path -> content, for what is not read from disk
    """

    root: Path
    files: Mapping[str, Path]
    versions: Mapping[str, Mapping[str, str]]
    text: Mapping[str, bytes]
    generate_functions: tuple[str, ...]
    trainer_classes: Mapping[str, str]
    max_file_size: int


@dataclass(frozen=True)
class Answer:
    """The sites of one file, and what kept the reader from finding more."""

    sites: tuple[Site, ...] = ()
    failures: tuple[Finding, ...] = ()


class Reader:
    """Reads files of one project, each once, however many answers depend on it."""

    def __init__(self, target: Target) -> None:
        from klguard.read.python.project import Project

        self.target = target
        self.project = Project(target.root, target.files, target.text, target.max_file_size)

    def answers(self, paths: Sequence[str]) -> Iterator[tuple[Answer, Trail]]:
        """The answer about each of `paths`; what several of them depend on is worked out once."""
        self.reader.prepare(paths)
        return map(self.answer, paths)

    def answer(self, path: str) -> tuple[Answer, Trail]:
        """The sites in `path`, and what else they depend on: all that the project has opened so far, to be on
        the safe side, since what was worked out for one file may have served for another."""
        try:
            answer = self._read(path)
        except Exception as error:  # noqa: BLE001  one file that breaks the reader must not cost the others
            answer = Answer((), (internal_error(error, start_of(path), "reading this file"),))
        return answer, Trail(frozenset(self.project.read_paths), frozenset(self.project.words))

    def _read(self, path: str) -> Answer:
        from klguard.read.python.sites import SiteReader

        target = self.target
        # A reader remembers what it met on the way, also in other files: a new one for each file keeps the
        # answer about it independent of which files came before.
        reader = SiteReader(self.project, target.generate_functions, target.trainer_classes)
        sites = reader.read(path, target.versions[path])
        failures = [failure.finding() for failure in self.project.failures.get(path, ())]
        return Answer(tuple(sites), (*failures, *reader.failures.get(path, {}).values()))


def read_all(
    target: Target, sizes: Mapping[str, int], jobs: int, cache: Cache | None, progress: Progress
) -> list[Answer]:
    """The answer about each file in `sizes`, which has their lengths in bytes; in its order."""
    answers = {path: _kept(cache, path, target) for path in sizes}
    missing = [path for path, answer in answers.items() if answer is None]
    done = len(answers) - len(missing)
    several = jobs > 1 and len(missing) > 1 and sum(sizes[path] for path in missing) >= WORTH_PROCESSES
    for path, (answer, trail) in _parallel(missing, target, jobs) if several else _serial(missing, target):
        answers[path] = answer
        if cache and not answer.failures:
            cache.put(path, (dict(target.versions[path]), answer.sites), trail)
        done += 1
        progress(done, len(answers))
    if cache:
        cache.save()
    return [answer for answer in answers.values() if answer is not None]


def _kept(cache: Cache | None, path: str, target: Target) -> Answer | None:
    versions, sites = (cache and cache.get(path)) or (None, ())
    return Answer(sites) if versions == target.versions[path] else None


def _serial(paths: Sequence[str], target: Target) -> Iterator[tuple[str, tuple[Answer, Trail]]]:
    if paths:
        reader = Reader(target)
        yield from zip(paths, reader.answers(paths), strict=True)


# --- processes ------------------------------------------------------------------------------------

_reader: Reader | None = None


def _start(target: Target) -> None:
    global _reader
    _reader = Reader(target)


def _answers(paths: Sequence[str]) -> list[tuple[Answer, Trail]]:
    assert _reader is not None
    return list(_reader.answers(paths))


def _parallel(paths: Sequence[str], target: Target, jobs: int) -> Iterator[tuple[str, tuple[Answer, Trail]]]:
    """Neighbours go to the same process: they import the same files."""
    share = max(1, min(16, len(paths) // (jobs * 4)))
    shares = [paths[start : start + share] for start in range(0, len(paths), share)]
    with ProcessPoolExecutor(jobs, initializer=_start, initargs=(target,)) as pool:
        pending = [(some, pool.submit(_answers, some)) for some in shares]
        for some, future in pending:
            yield from zip(some, _result(some, future, target), strict=True)


def _result(
    paths: Sequence[str], future: Future[list[tuple[Answer, Trail]]], target: Target
) -> list[tuple[Answer, Trail]]:
    try:
        return future.result()
    except BrokenProcessPool:
        return [_alone(path, target) for path in paths]


def _alone(path: str, target: Target) -> tuple[Answer, Trail]:
    """The answer about one file in a process of its own, after one of the pool has died (of memory, or a
    crash of the interpreter): whatever it was about one file must not cost the others."""
    with ProcessPoolExecutor(1, initializer=_start, initargs=(target,)) as pool:
        try:
            return pool.submit(_answers, [path]).result()[0]
        except BrokenProcessPool as error:
            return Answer((), (internal_error(error, start_of(path), "reading this file"),)), Trail()
