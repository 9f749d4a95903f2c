"""The pipeline: which files, what is in force at their sites, what the rules say of it, what is
suppressed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from klguard.findings import INTERNAL_ERROR, Finding, Severity
from klguard.gate import Gate, Look, markers
from klguard.read.files import ENDINGS, Failure, SourceText, discover, load, read, read_bytes, reported
from klguard.settings import Context, Place, Site

if TYPE_CHECKING:
    from klguard.cache import Cache
    from klguard.config import Config
    from klguard.reading import Answer, Target
    from klguard.suppress import Applied

ALWAYS = frozenset({"KLG001", "KLG002", INTERNAL_ERROR[0]})
"""Reported whatever is selected, unless ignored by name: what could not be read was not checked."""

PROJECT_MARKERS = (".git", "pyproject.toml", "setup.py")

NO_TEXT: Mapping[str, bytes] = MappingProxyType({})


class MissingPaths(Exception):
    """Paths that do not exist: the run cannot be what was asked for."""


@dataclass(frozen=True)
class Report:
    """The outcome of a run.

    findings    what is reported, in the order of every output
    sites       every site in the files, of all contexts
    files       number of files looked at
    suppressed  number of findings that comments hold back
    excluded    number of paths that were named and left out on request
    sources     the text of the files, for code frames
    """

    findings: tuple[Finding, ...]
    sites: tuple[Site, ...]
    files: int
    suppressed: int = 0
    excluded: int = 0
    sources: Sources = field(default_factory=lambda: Sources())

    @property
    def fails(self) -> bool:
        """Whether there is more to say than notes, which never fail a gate."""
        return any(finding.severity is not Severity.NOTE for finding in self.findings)

    @property
    def rollouts(self) -> int:
        return sum(site.settings.context is Context.ROLLOUT for site in self.sites)

    @cached_property
    def codes(self) -> dict[Place, set[str]]:
        """Place of a site -> codes of the findings about it."""
        found: dict[Place, set[str]] = {}
        for finding in self.findings:
            if finding.site is not None:
                found.setdefault(finding.site.place, set()).add(finding.code)
        return found


class Sources:
    """Text of files by the path they are reported under, read when somebody asks and kept."""

    def __init__(
        self, files: Mapping[str, Path] = MappingProxyType({}), text: Mapping[str, bytes] = NO_TEXT
    ) -> None:
        self._files = files
        self._text = text
        self._read: dict[str, SourceText | Failure] = {}

    def get(self, path: str) -> SourceText | None:
        """The text of a file, None where it cannot be read."""
        if path not in self._read:
            content = self._text.get(path)
            self._read[path] = (
                read(self._files.get(path, Path(path))) if content is None else read_bytes(content, path)
            )
        source = self._read[path]
        return source if isinstance(source, SourceText) else None

    def lines(self, path: str, cell: int | None) -> list[str] | None:
        """The lines of a file or of one cell, as its author sees them; None where they cannot be read."""
        source = self.get(path)
        if source is None or cell is None:
            return source and source.lines
        span = next((span for span in source.cells or () if span.index == cell), None)
        return span and source.lines[span.first_line - 1 : span.first_line - 1 + span.lines]


def check_paths(
    paths: Sequence[str | os.PathLike[str]],
    config: Config,
    *,
    text: Mapping[str, bytes] = NO_TEXT,
    jobs: int = 1,
    cache: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Check files and directories. `text` holds sources that are not read from disk, by path (stdin).

    Raises MissingPaths.
    """
    found = discover(
        [path for path in paths if os.path.lexists(path) or reported(path) not in text],
        exclude=config.exclude,
        respect_gitignore=config.respect_gitignore,
        force_exclude=config.force_exclude,
        root=config.root,
    )
    if found.errors:
        raise MissingPaths("\n".join(found.errors))
    files = {reported(file): file for file in found.files}
    files |= {path: Path(path) for path in text if not os.path.lexists(path)}
    run = _Run(config, files, text)
    findings = [failure.finding() for failure in (*found.failures, *run.failures)]
    sites: list[Site] = []
    if run.candidates:
        for answer in run.answers(jobs, cache, progress):
            sites += answer.sites
            findings += answer.failures
    sites.sort(key=lambda site: site.place)
    return run.report(sites, findings, found.excluded)


def check_source(
    source: str, filename: str = "example.py", versions: Mapping[str, str] = MappingProxyType({})
) -> list[Finding]:
    """What klguard reports about one piece of source on its own, by default for the newest known releases."""
    from klguard.config import Config, known_rules
    from klguard.engines import NEWEST

    content = source.encode("utf-8", "surrogatepass")
    config = Config(Path("."), rules=known_rules(), target_versions={**NEWEST, **versions})
    run = _Run(config, {}, {filename: content}, alone=True)
    findings = [failure.finding() for failure in run.failures]
    sites: list[Site] = []
    if run.candidates:
        for answer in run.answers(jobs=1, cache=False):
            sites += answer.sites
            findings += answer.failures
    return list(run.report(sites, findings, 0).findings)


class _Run:
    """One run over files that are known by now. `alone`: what else lies around them is not looked at."""

    def __init__(
        self, config: Config, files: Mapping[str, Path], text: Mapping[str, bytes], alone: bool = False
    ) -> None:
        self.config = config
        self.files = files
        self.text = text
        self.alone = alone
        self.sources = Sources(files, text)
        words = markers((*config.generate_functions, *config.trainer_classes))
        self._gate = Gate(words, config.max_file_size)
        self._enabled_for: dict[tuple[bool, str], frozenset[str]] = {}
        self.looks = {path: self._look(path) for path in sorted({*files, *text})}

    def _look(self, path: str) -> Look:
        content = self.text.get(path)
        return self._gate.look(self.files[path]) if content is None else self._gate.look_at(content, path)

    @property
    def failures(self) -> Iterator[Failure]:
        return (failure for look in self.looks.values() for failure in look.failures)

    @cached_property
    def candidates(self) -> list[Look]:
        """Files that hold the word of a site."""
        return [look for look in self.looks.values() if look.has_site]

    # -- reading --------------------------------------------------------------------------------------------

    @cached_property
    def root(self) -> Path:
        return project_root([Path(path) for path in (*self.files.values(), *self.text)])

    @cached_property
    def project(self) -> dict[str, Path]:
        """Reported path -> place of every file that imports can lead to, or callers be found in."""
        if self.alone:
            return {}
        around = _around(self.root, self.files, self.config)
        return dict(sorted({**{reported(file): file for file in around}, **self.files}.items()))

    def answers(
        self, jobs: int, cache: bool, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> list[Answer]:
        """What is read in the candidates."""
        from klguard.reading import Target, read_all

        target = Target(
            self.root,
            self.project,
            self._versions(),
            dict(self.text),
            self.config.generate_functions,
            dict(self.config.trainer_classes),
            self.config.max_file_size,
        )
        return read_all(target, jobs, self._cache(target) if cache else None, progress)

    def _versions(self) -> dict[str, dict[str, str]]:
        """Path -> library -> version, for every candidate."""
        if self.alone:
            return {look.path: dict(self.config.target_versions) for look in self.candidates}
        from klguard.versions import Targets

        targets = Targets(self.root, self.config)
        found = {look.path: targets.for_file(self.files[look.path]) for look in self.candidates}
        return {path: {name: target.version for name, target in each.items()} for path, each in found.items()}

    def _cache(self, target: Target) -> Cache:
        from klguard.cache import FOLDER, Cache, digest, identity

        def content(path: str) -> bytes:
            return self.project.get(path, Path(path)).read_bytes()

        contents = ((path, load(file, limit=target.max_file_size)) for path, file in self.project.items())
        digests = {path: b"" if isinstance(data, Failure) else digest(data) for path, data in contents}
        key = identity(
            reported(self.root), target.generate_functions, target.trainer_classes, target.max_file_size
        )
        folder = self.config.cache_dir or self.root / FOLDER
        name = digest(os.path.abspath(self.root).encode("utf-8", "surrogateescape")).hex()
        return Cache(folder / name, key, digests, content)

    # -- judging --------------------------------------------------------------------------------------------

    def report(self, sites: Sequence[Site], failures: Iterable[Finding], excluded: int) -> Report:
        wanted = [site for site in sites if site.settings.context in self.config.contexts]
        others = [site for site in sites if site.settings.context not in self.config.contexts]
        found = [*failures, *self._judged(wanted)]
        kept, suppressed = self._suppressed([f for f in found if self._selected(f)], others)
        ordered = tuple(sorted(dict.fromkeys(kept), key=lambda finding: finding.sort_key))
        return Report(ordered, tuple(sites), len(self.looks), suppressed, excluded, self.sources)

    def _judged(self, sites: Sequence[Site]) -> Iterable[Finding]:
        if not sites:
            return ()
        from klguard.judge import judge
        from klguard.rules import RULES

        enabled = self.config.enabled
        return judge(sites, (rule for code, rule in RULES.items() if code in enabled))

    def _selected(self, finding: Finding) -> bool:
        paths = {finding.place.path, finding.site.place.path if finding.site else finding.place.path}
        config = self._unreadable_config if finding.code in ALWAYS else self.config
        return all(finding.code in self._enabled(config, path) for path in paths)

    @cached_property
    def _unreadable_config(self) -> Config:
        """The configuration with every rule selected and only what is ignored taken away."""
        from klguard.config import Selection

        selections = tuple(Selection(ignore=selection.ignore) for selection in self.config.selections)
        return replace(self.config, selections=selections, rules={**self.config.rules, INTERNAL_ERROR[0]: ""})

    def _enabled(self, config: Config, path: str) -> frozenset[str]:
        key = (config is self.config, path)
        if key not in self._enabled_for:
            self._enabled_for[key] = config.enabled_for(path)
        return self._enabled_for[key]

    def _suppressed(self, findings: list[Finding], others: Sequence[Site]) -> tuple[list[Finding], int]:
        """`findings` without those that comments hold back, and with the comments that hold nothing back."""
        mentioned = {f.place.path for f in findings} | {f.site.place.path for f in findings if f.site}
        mentioned |= {hop.place.path for f in findings for hop in f.origin if hop.place}
        commented = {look.path for look in self.looks.values() if look.has_suppression}
        if not (mentioned or commented):
            return findings, 0
        from klguard.suppress import apply, read_suppressions

        texts = {path: self.sources.get(path) for path in sorted(mentioned | commented)}
        comments = {path: read_suppressions(text) for path, text in texts.items() if text is not None}
        if not any(comments.values()):
            return findings, 0

        def applied(found: Iterable[Finding]) -> Applied:
            return apply(
                found,
                comments,
                rules=self.config.rules,
                checked=self._complete - {f.place.path for f in findings if f.code == INTERNAL_ERROR[0]},
                enabled_for=lambda path: self._enabled(self.config, path),
            )

        first = applied(findings)
        # A comment may be there for a site whose context was not asked for in this run.
        unused = applied([*findings, *self._judged(others)]).unused if first.unused else []
        return [*first.kept, *unused], first.suppressed

    @cached_property
    def _complete(self) -> frozenset[str]:
        """Files of which every finding is known: none, where a site outside the run may be what a comment
        is about."""
        outside = [file for path, file in self.project.items() if path not in self.looks]
        contents = (load(file, limit=self.config.max_file_size) for file in outside)
        if any(isinstance(content, bytes) and self._gate.has_site(content) for content in contents):
            return frozenset()
        return frozenset(self.looks)


# --- the project around the files -----------------------------------------------------------------


def project_root(files: Iterable[Path]) -> Path:
    """The directory whose files can import one another: the nearest one upward that looks like a project's,
    else the innermost one that holds all of `files`.

    A home directory is no project, even where somebody keeps it in git.
    """
    directories = {os.path.dirname(os.path.abspath(file)) for file in files} or {os.getcwd()}
    try:
        common = Path(os.path.commonpath(directories))
    except ValueError:  # different drives
        return Path.cwd()
    for directory in (common, *common.parents):
        if directory in (Path.home(), directory.parent):
            break
        if any((directory / marker).exists() for marker in PROJECT_MARKERS):
            return directory
    return common


def _around(root: Path, files: Mapping[str, Path], config: Config) -> Iterable[Path]:
    """The files of the project at `root`. Without a project: those beside the given ones, not the whole
    tree."""
    if any((root / marker).exists() for marker in PROJECT_MARKERS):
        return discover([root], respect_gitignore=config.respect_gitignore).files
    directories = {os.path.dirname(path) or "." for path in map(os.fspath, files.values())}
    return [
        Path(entry.path)
        for directory in sorted(directories)
        if os.path.isdir(directory)
        for entry in os.scandir(directory)
        if entry.name.endswith(ENDINGS) and entry.is_file()
    ]
