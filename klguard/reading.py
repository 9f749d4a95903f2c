"""Sites of many files: from the cache where an answer still holds, else in one process or in several.

Files are read in shares that depend on nothing but their number and order, and a share is also what is
cached: so the answer about a file is the same however many processes there are and whatever was known
before.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from klguard.cache import Cache, Trail
from klguard.findings import INTERNAL_ERROR, Finding
from klguard.judge import internal_error, start_of
from klguard.settings import Context, Site

if TYPE_CHECKING:
    from concurrent.futures import Future

    from klguard.read.python.project import Project

SHARE = 256
"""Files that are read together: what they share is worked out once, and callers among them are found."""


@dataclass(frozen=True)
class Target:
    """What a reader needs to know besides which files to read.

    files     reported path -> where it lies, for every file of the project
    versions  path -> library -> version, for every file that is to be read
    text      path -> content, for what is not read from disk
    contexts  contexts of the sites of which the settings in force are asked for
    """

    root: Path
    files: Mapping[str, Path]
    versions: Mapping[str, Mapping[str, str]]
    text: Mapping[str, bytes]
    generate_functions: tuple[str, ...]
    trainer_classes: Mapping[str, str]
    max_file_size: int
    contexts: frozenset[Context] = frozenset(Context)


@dataclass(frozen=True)
class Answer:
    """The sites of one share, and what kept the reader from finding more."""

    sites: tuple[Site, ...] = ()
    failures: tuple[Finding, ...] = ()

    def __add__(self, other: Answer) -> Answer:
        return Answer(self.sites + other.sites, self.failures + other.failures)


def read_all(
    target: Target, jobs: int, cache: Cache | None, progress: Callable[[int, int], None]
) -> list[Answer]:
    """The answers about all files in `target.versions`, in their order."""
    paths = tuple(target.versions)
    shares = [paths[start : start + SHARE] for start in range(0, len(paths), SHARE)]
    answers = {share: _kept(cache, share, target) for share in shares}
    missing = [share for share, answer in answers.items() if answer is None]
    done = len(paths) - sum(map(len, missing))
    progress(done, len(paths))
    for share, (answer, trail) in _parallel(missing, target, jobs) if jobs > 1 else _serial(missing, target):
        answers[share] = answer
        if cache and not any(failure.code == INTERNAL_ERROR[0] for failure in answer.failures):
            cache.put(_question(share, target), (answer.sites, answer.failures), trail)
        done += len(share)
        progress(done, len(paths))
    if cache:
        cache.save()
    return [answer for answer in answers.values() if answer is not None]


Share = tuple[str, ...]


def _question(share: Share, target: Target) -> str:
    """What a cached answer is filed under: the files of the share, the versions they are read for, the contexts."""
    contexts = sorted(context.value for context in target.contexts)
    return repr((contexts, [(path, sorted(target.versions[path].items())) for path in share]))


def _kept(cache: Cache | None, share: Share, target: Target) -> Answer | None:
    kept = cache.get(_question(share, target)) if cache else None
    return None if kept is None else Answer(*kept)


def _serial(shares: Iterable[Share], target: Target) -> Iterator[tuple[Share, tuple[Answer, Trail]]]:
    project = project_of(target)
    return ((share, read_share(share, target, project)) for share in shares)


# --- one share ------------------------------------------------------------------------------------


def project_of(target: Target) -> Project:
    """The project that the shares are read in."""
    from klguard.read.python.project import Project

    return Project(target.root, target.files, target.text, target.max_file_size)


def read_share(share: Share, target: Target, project: Project) -> tuple[Answer, Trail]:
    """The answer about the files of one share, and what else it depends on. Of the project, what is known of the bytes
    of its files is used, and nothing that was parsed before."""
    from klguard.read.python.memo import forget

    project = project.fresh()
    forget()
    if not gc.isenabled():
        gc.collect()  # the trees of the share before
    answer = _read(share, target, project)
    failures = [failure.finding() for path in share for failure in project.failures.get(path, ())]
    trail = Trail(frozenset(project.read_paths.union(share)), frozenset(project.words))
    return answer + Answer((), tuple(failures)), trail


def _read(share: Share, target: Target, project: Project) -> Answer:
    from klguard.read.python.sites import SiteReader

    reader = SiteReader(project, target.generate_functions, target.trainer_classes, target.contexts)
    try:
        reader.prepare(share)
    except Exception as error:  # noqa: BLE001  files that break the reader must not cost the others
        if len(share) == 1:
            return Answer((), (_broken(error, share[0]),))
        half = len(share) // 2
        return _read(share[:half], target, project) + _read(share[half:], target, project)
    sites: list[Site] = []
    failures = [_broken(error, path) for path, error in reader.errors.items()]
    for path in share:
        try:
            sites += reader.read(path, target.versions[path])
        except Exception as error:  # noqa: BLE001  likewise
            failures.append(_broken(error, path))
        failures += reader.failures.get(path, {}).values()
    return Answer(tuple(sites), tuple(failures))


def _broken(error: BaseException, path: str) -> Finding:
    return internal_error(error, start_of(path), "reading this file")


# --- processes ------------------------------------------------------------------------------------

_reading: tuple[Target, Project] | None = None
"""What a process of the pool reads in."""


def _begin(target: Target) -> None:
    global _reading
    _reading = target, project_of(target)


def _read_here(share: Share) -> tuple[Answer, Trail]:
    assert _reading is not None
    return read_share(share, *_reading)


def _parallel(
    shares: Sequence[Share], target: Target, jobs: int
) -> Iterator[tuple[Share, tuple[Answer, Trail]]]:
    if len(shares) < 2:
        yield from _serial(shares, target)
        return
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import (
        BrokenProcessPool,  # few runs need them, and loading them takes time
    )

    with ProcessPoolExecutor(min(jobs, len(shares)), initializer=_begin, initargs=(target,)) as pool:
        pending: list[Future[tuple[Answer, Trail]]] = []
        with suppress(BrokenProcessPool):  # a process may have died before the last share was handed out
            for share in shares:
                pending.append(pool.submit(_read_here, share))
        for number, share in enumerate(shares):
            try:
                answer = pending[number].result() if number < len(pending) else None
            except BrokenProcessPool:
                answer = None
            yield share, answer or _alone(share, target)


def _alone(share: Share, target: Target) -> tuple[Answer, Trail]:
    """The answer about a share in a process of its own, after one of the pool has died (of memory, or a
    crash of the interpreter); halved until the file is found that kills it, which must not cost the
    others."""
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    with ProcessPoolExecutor(1, initializer=_begin, initargs=(target,)) as pool:
        try:
            return pool.submit(_read_here, share).result()
        except BrokenProcessPool as error:
            if len(share) == 1:
                return Answer((), (_broken(error, share[0]),)), Trail()
    half = len(share) // 2
    (first, _), (second, _) = _alone(share[:half], target), _alone(share[half:], target)
    return first + second, Trail()
