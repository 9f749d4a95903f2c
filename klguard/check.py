"""The pipeline: which files, what is in force at their sites, what the rules say of it, what is
suppressed."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from klguard.configurations import Configurations, is_configuration, read_launched
from klguard.findings import INTERNAL_ERROR, Finding, Severity
from klguard.gate import Gate, Look, markers
from klguard.read.files import (
    CONFIGS,
    ENDINGS,
    Failure,
    SourceText,
    discover,
    load,
    read,
    read_bytes,
    reported,
)
from klguard.roots import common_directory, is_project, project_documents, project_files, project_root
from klguard.settings import Context, Place, Site

if TYPE_CHECKING:
    from klguard.cache import Cache
    from klguard.config import Config
    from klguard.reading import Answer, Target
    from klguard.seen import Seen
    from klguard.suppress import Applied

FEW = 40
"""Files that are looked at sooner than what is kept about them: a pre-commit run."""

FOLDER = ".klguard_cache"
"""Where answers are kept, in the root of the project."""

ALWAYS = frozenset({"KLG001", "KLG002", INTERNAL_ERROR[0]})
"""Reported whatever is selected, unless ignored by name: what could not be read was not checked."""

Progress = Callable[[int, int], None]
"""`progress(done, total)`, in files."""

NO_TEXT: Mapping[str, bytes] = MappingProxyType({})


class MissingPaths(Exception):
    """Paths that do not exist: the run cannot be what was asked for."""


@dataclass(frozen=True)
class Report:
    """The outcome of a run.

    findings    what is reported, in the order of every output
    sites       every site in the files; of contexts that were not asked for without the settings in force
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
        if source is None:
            return None
        if cell is None:
            return source.lines
        for span in source.cells or ():
            if span.index == cell:
                return source.lines[span.first_line - 1 : span.first_line - 1 + span.lines]
        return None


def check_paths(
    paths: Sequence[str | os.PathLike[str]],
    config: Config | None = None,
    *,
    text: Mapping[str, bytes] = NO_TEXT,
    jobs: int = 1,
    cache: bool = False,
    progress: Progress = lambda done, total: None,
) -> Report:
    """Check files and directories, by default with the configuration nearest to them.

    `text` holds sources that are not read from disk, by path (stdin). Raises MissingPaths and ConfigError.
    """
    if config is None:
        from klguard.config import load as load_config

        config = load_config(common_directory(paths))
    found = discover(
        [path for path in paths if os.path.lexists(path) or reported(path) not in text],
        exclude=config.exclude,
        respect_gitignore=config.respect_gitignore,
        force_exclude=config.force_exclude,
        root=config.root,
        endings=(*ENDINGS, *CONFIGS),
    )
    if found.errors:
        raise MissingPaths("\n".join(found.errors))
    files = {reported(file): file for file in found.files}
    files |= {path: Path(path) for path in text if not os.path.lexists(path)}
    named = {*text, *(reported(path) for path in paths if not os.path.isdir(path))}
    run = _Run(config, files, text, named, cache=cache)
    answers = run.read(jobs, progress)
    report = run.report(answers, found.failures, found.excluded)
    run.save()
    return report


def check_source(
    source: str, filename: str = "example.py", versions: Mapping[str, str] = MappingProxyType({})
) -> list[Finding]:
    """What klguard reports about one piece of source on its own, by default for the newest known releases."""
    from klguard.config import Config, known_rules
    from klguard.engines import NEWEST

    content = source.encode("utf-8", "surrogatepass")
    config = Config(Path("."), rules=known_rules(), target_versions={**NEWEST, **versions})
    run = _Run(config, {}, {filename: content}, {filename}, alone=True)
    return list(run.report(run.read()).findings)


class _Run:
    """One run over files that are known by now. `named`: the paths of those that were named one by one. `alone`: what
    else lies around them is not looked at."""

    def __init__(
        self,
        config: Config,
        files: Mapping[str, Path],
        text: Mapping[str, bytes],
        named: Collection[str],
        alone: bool = False,
        cache: bool = False,
    ) -> None:
        self.config = config
        self.files = {path: place for path, place in files.items() if not is_configuration(path)}
        self.text = {path: content for path, content in text.items() if not is_configuration(path)}
        self.alone = alone
        self.sources = Sources(files, text)
        words = markers((*config.generate_functions, *config.trainer_classes))
        self._gate = Gate(words, config.max_file_size)
        self.configurations = Configurations(self._gate, files, text, named)
        self._enabled_for: dict[tuple[bool, str], frozenset[str]] = {}
        self._folder = self._cache_folder() if cache else None
        self._few = len(self.files) <= FEW
        self._jobs = 1
        self.looks = {path: self._look(path) for path in sorted({*self.files, *self.text})}

    def _look(self, path: str) -> Look:
        if (content := self.text.get(path)) is not None:
            return self._gate.look_at(content, path)
        seen = None if self._few else self._seen
        return seen.look(path, self.files[path]) if seen else self._gate.look(self.files[path])

    @cached_property
    def candidates(self) -> list[str]:
        """Paths of the files that hold the word of a site."""
        return [look.path for look in self.looks.values() if look.has_site]

    # -- reading --------------------------------------------------------------------------------------------

    @cached_property
    def root(self) -> Path:
        return project_root([*self.files.values(), *self.text] or self.configurations.places)

    @cached_property
    def project(self) -> dict[str, Path]:
        """Reported path -> place of every file that imports can lead to, or callers be found in."""
        if self.alone:
            return {}
        around = project_files(self.root, self.files.values(), self.config.respect_gitignore)
        return dict(sorted({**{reported(file): file for file in around}, **self.files}.items()))

    def read(
        self,
        jobs: int = 1,
        progress: Progress = lambda done, total: None,
        contexts: frozenset[Context] | None = None,
    ) -> list[Answer]:
        """What is in the candidates, by default in the contexts that are reported."""
        if not self.candidates:
            return []
        from klguard.reading import Target, read_all

        self._jobs = jobs
        target = Target(
            self.root,
            self.project,
            self._versions(),
            dict(self.text),
            self.config.generate_functions,
            dict(self.config.trainer_classes),
            self.config.max_file_size,
            self.config.contexts if contexts is None else contexts,
        )
        return read_all(target, jobs, self._cache(target), progress)

    def _versions(self) -> dict[str, dict[str, str]]:
        """Path -> library -> version, for every candidate."""
        return self._versions_for(self.candidates)

    def _versions_for(self, paths: Sequence[str]) -> dict[str, dict[str, str]]:
        if self.alone:
            return {path: dict(self.config.target_versions) for path in paths}
        from klguard.versions import Targets

        targets = Targets(self.root, self.config)
        places = {**self.configurations.files, **self.files}
        found = {path: targets.for_file(places[path]) for path in paths}
        return {path: {name: target.version for name, target in each.items()} for path, each in found.items()}

    def _cache_folder(self) -> Path | None:
        """Where answers are kept; nowhere for a stray script, beside which nobody wants a new folder."""
        return self.config.cache_dir or (self.root / FOLDER if is_project(self.root) else None)

    def _cache_file(self, ending: str = "") -> Path:
        from klguard.cache import digest

        assert self._folder is not None
        name = digest(os.path.abspath(self.root).encode("utf-8", "surrogateescape")).hex()
        return self._folder / (name + ending)

    def _cache(self, target: Target) -> Cache | None:
        """The answers of earlier runs."""
        documents = project_documents(self.root) if self._seen else None
        if self._seen is None or documents is None:
            return None
        from klguard.cache import Cache, identity

        def content(path: str) -> bytes:
            return self.project.get(path, Path(path)).read_bytes()

        digests = {path: self._seen.digest(path, file) for path, file in self.project.items()}
        options = (target.generate_functions, target.trainer_classes, target.max_file_size)
        key = identity(reported(self.root), options, documents)
        return Cache(self._cache_file(), key, digests, content)

    @cached_property
    def _seen(self) -> Seen | None:
        """What earlier runs saw in the files; None without a cache."""
        if self._folder is None:
            return None
        from klguard.cache import identity
        from klguard.seen import Seen

        key = identity(reported(self.root), self._gate.markers, self.config.max_file_size)
        return Seen(self._cache_file(".files"), key, self._gate)

    def save(self) -> None:
        """Keep what was seen in the files for the next run."""
        if (seen := self.__dict__.get("_seen")) is not None:
            seen.save()

    # -- judging --------------------------------------------------------------------------------------------

    def report(
        self, answers: Sequence[Answer], failures: Iterable[Failure] = (), excluded: int = 0
    ) -> Report:
        read_sites = [site for answer in answers for site in answer.sites]
        config_sites, config_failures = self.configurations.read(self._versions_for)
        launch_sites, launch_failures = read_launched(self._launching(), self._versions_for)
        sites = sorted([*read_sites, *config_sites, *launch_sites], key=lambda site: site.place)
        wanted = [site for site in sites if site.settings.context in self.config.contexts]
        found = [*config_failures, *launch_failures, *(failure.finding() for failure in failures)]
        found += [failure.finding() for look in self.looks.values() for failure in look.failures]
        found += [finding for answer in answers for finding in answer.failures]
        found += self._judged(wanted)
        kept, suppressed = self._suppressed([f for f in found if self._selected(f)])
        ordered = tuple(sorted(dict.fromkeys(kept), key=lambda finding: finding.sort_key))
        files = len(self.looks) + len(self.configurations.looked_at)
        return Report(ordered, tuple(sites), files, suppressed, excluded, self.sources)

    def _launching(self) -> dict[str, bytes]:
        """Path -> bytes of the Python that may start a training framework."""
        limit = self.config.max_file_size
        found = {
            path: self.text[path] if path in self.text else load(self.files[path], limit=limit)
            for path, look in self.looks.items()
            if look.has_launch
        }
        return {path: content for path, content in found.items() if isinstance(content, bytes)}

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

    def _other_sites(self) -> list[Site]:
        """The sites of contexts that were not asked for, with what is in force there."""
        asked = self.config.contexts
        every = frozenset(Context)
        answers = self.read(self._jobs, contexts=every) if asked != every else []
        return [site for answer in answers for site in answer.sites if site.settings.context not in asked]

    def _suppressed(self, findings: list[Finding]) -> tuple[list[Finding], int]:
        """`findings` without those that comments hold back, and with the comments that hold nothing back."""
        mentioned = {f.place.path for f in findings} | {f.site.place.path for f in findings if f.site}
        mentioned |= {hop.place.path for f in findings for hop in f.origin if hop.place}
        commented = {look.path for look in self.looks.values() if look.has_suppression}
        commented |= self.configurations.commented
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
        unused = applied([*findings, *self._judged(self._other_sites())]).unused if first.unused else []
        return [*first.kept, *unused], first.suppressed

    @cached_property
    def _complete(self) -> frozenset[str]:
        """Files of which every finding is known: none, where a site outside the run may be what a comment
        is about."""
        outside = [file for path, file in self.project.items() if path not in self.looks]
        if self._seen:
            if any(self._seen.has_site(reported(file), file) for file in outside):
                return frozenset()
            return frozenset(self.looks)
        contents = ((load(file, limit=self.config.max_file_size), file) for file in outside)
        if any(
            isinstance(content, bytes) and self._gate.has_site(content, file.name)
            for content, file in contents
        ):
            return frozenset()
        return frozenset(self.looks)
