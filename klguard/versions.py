"""Target versions: which release of each library the code that is checked will run with.

The configuration decides, then the project's own files (a lock before a pin before a range), then what is
installed, then the newest release the knowledge base knows. Files that make no sense are passed over: no
check may end because a version could not be found.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from klguard.config import LIBRARIES, Config
from klguard.engines import NEWEST
from klguard.read.files import reported

if sys.version_info >= (3, 11):
    import tomllib
else:  # the same code under its earlier name
    import tomli as tomllib

RELEASES: Mapping[str, tuple[str, ...]] = {
    "transformers": tuple(
        "2.11.0 3.0.2 3.1.0 3.2.0 3.3.1 3.4.0 3.5.1 4.0.1 4.1.1 4.2.2 4.3.3 4.4.2 4.5.1 4.6.1 4.7.0 4.8.2"
        " 4.9.2 4.10.3 4.11.3 4.12.5 4.13.0 4.14.1 4.15.0 4.16.2 4.17.0 4.18.0 4.19.4 4.20.1 4.21.3 4.22.2"
        " 4.23.1 4.24.0 4.25.1 4.26.1 4.27.4 4.28.1 4.29.2 4.30.2 4.31.0 4.32.1 4.33.3 4.34.1 4.35.2 4.36.2"
        " 4.37.2 4.38.2 4.39.3 4.40.2 4.41.2 4.42.4 4.43.4 4.44.2 4.45.2 4.46.3 4.47.1 4.48.3 4.49.0 4.50.3"
        " 4.51.3 4.52.4 4.53.3 4.54.1 4.55.4 4.56.2 4.57.6 5.0.0 5.1.0 5.2.0 5.3.0 5.4.0 5.5.4 5.6.2 5.7.0"
        " 5.8.1 5.9.0 5.10.4 5.11.0 5.12.1 5.13.1 5.14.1 5.15.1 5.16.1 5.17.0 5.18.0 5.19.0 5.20.2 5.21.1"
        " 5.22.2 5.23.0".split()
    ),
    "trl": tuple(
        "0.1.0 0.2.1 0.3.1 0.4.7 0.5.0 0.6.0 0.7.11 0.8.6 0.9.6 0.10.1 0.11.4 0.12.2 0.13.0 0.14.0 0.15.2"
        " 0.16.1 0.17.0 0.18.2 0.19.1 0.20.0 0.21.0 0.22.2 0.23.1 0.24.0 0.25.1 0.26.2 0.27.2 0.28.0 0.29.1"
        " 1.0.0 1.1.0 1.2.0 1.3.0 1.4.0 1.5.1 1.6.0 1.7.1 1.8.0 1.9.2 1.10.0 1.11.0 1.12.0 1.13.0 1.14.2"
        " 1.15.0 1.16.0".split()
    ),
    "vllm": tuple(
        "0.1.7 0.2.7 0.3.3 0.4.3 0.5.5 0.6.6.post1 0.7.3 0.8.5.post1 0.9.2 0.10.2 0.11.2 0.12.0 0.13.0 0.14.1"
        " 0.15.1 0.16.0 0.17.1 0.18.1 0.19.1 0.20.2 0.21.0 0.22.1 0.23.0 0.24.0 0.25.1 0.26.0 0.27.1 0.28.0"
        " 0.29.0 0.30.0 0.31.0 0.32.0 0.33.0".split()
    ),
    "sglang": tuple(
        "0.1.26 0.2.15 0.3.6.post3 0.4.0.post2 0.4.1.post7 0.4.2.post4 0.4.3.post4 0.4.4.post4 0.4.5.post3"
        " 0.4.6.post5 0.4.7.post1 0.4.8.post1 0.4.9.post6 0.4.10.post2 0.5.1.post3 0.5.2 0.5.3.post3"
        " 0.5.4.post3 0.5.5.post3 0.5.6.post2 0.5.7 0.5.8.post1 0.5.9 0.5.10.post1 0.5.11 0.5.12.post1"
        " 0.5.13.post1 0.5.14 0.5.15.post1 0.5.16 0.5.17 0.5.18 0.5.19 0.5.20 0.5.21 0.5.22 0.5.23".split()
    ),
    "trlx": ("0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0"),
}
"""The last release of each series, from the package index (trlx: its tags), to find the newest in a range."""

_SIZE_LIMIT = 20_000_000
_NAMES = "|".join(sorted(LIBRARIES, key=len, reverse=True))


@dataclass(frozen=True, slots=True)
class TargetVersion:
    """A version, and in words what it was taken from."""

    version: str
    source: str


@dataclass(frozen=True, slots=True)
class _Declared:
    """What one file asks for: `exact` where it fixes the version, else `allowed`."""

    library: str
    exact: str | None
    allowed: SpecifierSet
    source: str


@dataclass(frozen=True, slots=True)
class _Level:
    """What the files of one directory say, strongest first, and what its virtual environment holds."""

    declared: tuple[_Declared, ...]
    installed: Mapping[str, TargetVersion]


def target_versions(root: Path, config: Config) -> dict[str, str]:
    """Library -> version for a project at `root`; every library is there."""
    return plain(Targets(root, config).for_directory(root))


def plain(targets: Mapping[str, TargetVersion]) -> dict[str, str]:
    """Library -> version, without the sources."""
    return {library: target.version for library, target in targets.items()}


class Targets:
    """The target versions for every file below `root`, and where they come from. Each directory is read once.

    In a repository of several projects the files nearest to a source file decide, up to the root of the
    repository; outside a repository, up to `root`.
    """

    def __init__(self, root: Path, config: Config) -> None:
        root = Path(os.path.abspath(root))
        self.root = root if root.is_dir() else root.parent
        self.config = config
        self._levels: dict[Path, _Level] = {}
        self._found: dict[Path, Mapping[str, TargetVersion]] = {}

    def for_file(self, file: Path) -> Mapping[str, TargetVersion]:
        """Library -> target version for the code in `file`."""
        return self.for_directory(Path(os.path.abspath(file)).parent)

    def for_directory(self, directory: Path) -> Mapping[str, TargetVersion]:
        """Library -> target version for the code in a directory."""
        directory = Path(os.path.abspath(directory))
        if directory not in self._found:
            level = self._level(directory)
            if not level.declared and not level.installed and not self._is_boundary(directory):
                self._found[directory] = self.for_directory(directory.parent)
            else:
                chain = tuple(self._chain(directory))
                self._found[directory] = {library: self._target(library, chain) for library in LIBRARIES}
        return self._found[directory]

    def _chain(self, directory: Path) -> Iterator[_Level]:
        """What is said from `directory` up to the boundary of its project, nearest first."""
        yield self._level(directory)
        while not self._is_boundary(directory):
            directory = directory.parent
            yield self._level(directory)

    def _level(self, directory: Path) -> _Level:
        if directory not in self._levels:
            self._levels[directory] = _read_level(directory)
        return self._levels[directory]

    def _is_boundary(self, directory: Path) -> bool:
        if _is_repository(directory) or directory == directory.parent:
            return True
        outside = self.root != directory and self.root not in directory.parents
        return (outside or directory == self.root) and not any(map(_is_repository, directory.parents))

    def _target(self, library: str, chain: Iterable[_Level]) -> TargetVersion:
        if library in self.config.target_versions:
            file = "the command line" if self.config.file is None else reported(self.config.file)
            return TargetVersion(self.config.target_versions[library], f"target-versions, {file}")
        return (
            _from_files(library, chain)
            or _from_environment(library, chain)
            or TargetVersion(NEWEST[library], "the newest release known")
        )


def _is_repository(directory: Path) -> bool:
    return os.path.lexists(directory / ".git")


def _from_files(library: str, chain: Iterable[_Level]) -> TargetVersion | None:
    """The nearest exact version; else the newest release that the nearest range allows.

    A lock further up is passed over where it contradicts a range nearer by: it locks another project.
    """
    ranges: list[_Declared] = []
    for level in chain:
        declared = [entry for entry in level.declared if entry.library == library]
        for entry in declared:
            if entry.exact and all(_allows(nearer.allowed, entry.exact) for nearer in ranges):
                return TargetVersion(entry.exact, entry.source)
        ranges += [entry for entry in declared if not entry.exact]
    for entry in ranges:
        version = _newest_allowed(library, entry.allowed)
        if version:
            return TargetVersion(version, f"the newest known for {entry.source}")
    return None


def _allows(allowed: SpecifierSet, version: str) -> bool:
    return allowed.contains(version, prereleases=True)


@lru_cache(maxsize=256)
def _newest_allowed(library: str, allowed: SpecifierSet) -> str | None:
    """The newest known release in a range, else the lower end of the range itself (`>=4.45.0,<4.45.1`)."""
    newest = Version(NEWEST[library])
    releases = (*RELEASES[library], NEWEST[library])
    known = [v for v in releases if Version(v) <= newest and _allows(allowed, v)]
    ends = {s.version.removesuffix(".*"): s.operator for s in allowed if s.operator != "!="}
    inside = [v for v in ends if _is_version(v) and _allows(allowed, v)]
    lower = [v for v, operator in ends.items() if _is_version(v) and operator not in ("<", "<=")]
    return max(known or inside or lower, key=Version, default=None)


def _from_environment(library: str, chain: Iterable[_Level]) -> TargetVersion | None:
    """What is installed in the project's virtual environment, else beside klguard."""
    for level in chain:
        if library in level.installed:
            return level.installed[library]
    try:
        return TargetVersion(metadata.version(library), "installed beside klguard")
    except metadata.PackageNotFoundError:
        return None


# --- one directory ----------------------------------------------------------------------------------------


def _read_level(directory: Path) -> _Level:
    names = _listing(directory)
    if "requirements" in names:
        names += [f"requirements/{name}" for name in _listing(directory / "requirements")]
    declared: list[_Declared] = []
    for pattern, parse in _PARSERS:
        matching = (name for name in names if pattern.fullmatch(name))
        # The shortest name first: requirements.txt, then requirements-dev.txt and requirements/docs.txt.
        for name in sorted(matching, key=lambda name: (name.count("/"), len(name), name)):
            declared += _declarations(directory / name, parse)
    environments = (directory / name for name in (".venv", "venv") if name in names)
    installed = {name: target for environment in environments for name, target in _installed(environment)}
    return _Level(tuple(declared), installed)


def _listing(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _declarations(file: Path, parse: Callable[[str], Iterable[str]]) -> Iterator[_Declared]:
    """The libraries' versions in one file; nothing when it cannot be read or makes no sense."""
    try:
        if file.stat().st_size > _SIZE_LIMIT or not file.is_file():
            return
        text = file.read_bytes().decode("utf-8-sig", "replace").replace("\r\n", "\n")
        requirements = list(parse(text)) if _MENTION.search(text) else []
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return
    for requirement in requirements:
        if found := _requirement(requirement):
            yield _Declared(*found, f"{' '.join(requirement.split())} in {reported(file)}")


_MENTION = re.compile(_NAMES, re.IGNORECASE)
_DIST_INFO = re.compile(rf"({_NAMES})-([^-]+)\.dist-info")


def _installed(environment: Path) -> Iterator[tuple[str, TargetVersion]]:
    """The libraries in a virtual environment, by the names of their metadata."""
    for pattern in ("lib*/python*/site-packages", "Lib/site-packages"):
        for packages in environment.glob(pattern):
            for entry in _listing(packages):
                found = _DIST_INFO.fullmatch(entry)
                if found and _is_version(found[2]):
                    yield found[1], TargetVersion(found[2], f"installed in {reported(environment)}")


# --- requirements -----------------------------------------------------------------------------------------

_TRAINING_MACHINE = {
    "os_name": "posix",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
}
"""Markers are evaluated for where models are trained, so that a check does not depend on who runs it."""

_TAG = re.compile(r"v?(\d+(?:\.\d+)+(?:\.?(?:post|rc|dev|a|b)\d+)?)")
_REPOSITORY = re.compile(
    r"(?:\A([\w.-]+)(?:\[[^\]]*\])?\s*@\s*)?"  # the name it is installed as
    r"git\+\w+://[^/\s]+/[^\s#;]*?([^/\s@#;]+?)(?:\.git)?(?:@([^\s#;]+))?(?=[\s#;]|\Z)"
)
_WHEEL = re.compile(rf"\b({_NAMES})-(\d[^-/\s]*)-[^/\s]*\.whl", re.IGNORECASE)

_Parsed = tuple[str, str | None, SpecifierSet]


def _requirement(text: str) -> _Parsed | None:
    """(library, exact version, allowed versions) of one requirement; None when it says nothing of interest.

    A bare name allows every version, which is to say nothing.
    """
    text = re.sub(r"(?:^|\s)#.*", "", text).split(" --")[0].strip()
    if wheel := _WHEEL.search(text):
        library, version = canonicalize_name(wheel[1]), wheel[2]
        return (library, version, SpecifierSet()) if _is_version(version) else None
    if repository := _REPOSITORY.search(text):
        return _at_ref(canonicalize_name(repository[1] or repository[2]), repository[3])
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        return None
    library = canonicalize_name(requirement.name)
    if library not in LIBRARIES or not requirement.specifier or not _applies(requirement):
        return None
    pins = (s.version for s in requirement.specifier if s.operator in ("==", "==="))
    return library, next(filter(_is_version, pins), None), requirement.specifier


def _at_ref(library: str, ref: str | None) -> _Parsed | None:
    """A tag is a version; a repository without one is its newest code; a commit could be anything."""
    if library not in LIBRARIES:
        return None
    tag = _TAG.fullmatch(ref or "")
    if tag and _is_version(tag[1]):
        return library, tag[1], SpecifierSet()
    return (library, NEWEST[library], SpecifierSet()) if ref in (None, "main", "master") else None


def _applies(requirement: Requirement) -> bool:
    try:
        return requirement.marker is None or requirement.marker.evaluate(_TRAINING_MACHINE)
    except (ValueError, KeyError):  # a comparison that packaging cannot make
        return True


def _is_version(text: str) -> bool:
    try:
        Version(text)
    except InvalidVersion:
        return False
    return True


# --- formats ----------------------------------------------------------------------------------------------
# Each gives the requirements in a file as PEP 508 strings; whatever it raises means that there are none.

# The lock of a project with torch in it is megabytes, which a TOML parser in Python takes a second for.
_LOCKED = re.compile(
    rf'^name = "({_NAMES})"\n(?:(?!\[)[^\n]*\n)*?version = "([^"\n]+)"', re.MULTILINE | re.IGNORECASE
)
_STRING = re.compile(rf"""["']((?:{_NAMES})\b[^"'\n]*)["']""", re.IGNORECASE)
_ASSIGNED = re.compile(r"\s*(?:-e\s+|--editable[=\s]\s*|\w+\s*=\s*(?=[A-Za-z]))")
_CONDA = re.compile(r"""^\s*-\s*["']?(?:[\w.-]+::)?([^"'\n#]+)""", re.MULTILINE)


def _lock(text: str) -> Iterable[str]:
    """uv.lock, poetry.lock, pdm.lock, pylock.toml. Of versions for several platforms the newest is first."""
    found = (match for match in _LOCKED.finditer(text) if _is_version(match[2]))
    newest_first = sorted(found, key=lambda match: Version(match[2]), reverse=True)
    return [f"{match[1]}=={match[2]}" for match in newest_first]


def _pipfile_lock(text: str) -> Iterator[str]:
    document = json.loads(text)
    for section in ("default", "develop"):
        for name, entry in document.get(section, {}).items():
            if "version" in entry:
                yield f"{name}{entry['version']}"
            elif "git" in entry:
                yield _git(name, entry["git"], entry.get("ref"))


def _lines(text: str) -> Iterator[str]:
    """requirements.txt, constraints.txt, and the lists in setup.cfg."""
    for line in text.replace("\\\n", " ").split("\n"):
        if _MENTION.search(line):
            assigned = _ASSIGNED.match(line)
            yield line[assigned.end() :] if assigned else line


def _strings(text: str) -> Iterable[str]:
    """setup.py, which must not be run: every string that begins with the name of a library."""
    return _STRING.findall(text)


def _conda(text: str) -> Iterator[str]:
    """environment.yml: conda's `- trl=0.7.4=py_0` and `- trl=0.7`, and pip's own lines."""
    for line in _CONDA.findall(text):
        name, equals, version = line.strip().partition("=")
        if not equals or version.startswith("=") or name.endswith(("<", ">", "!", "~")) or "git+" in line:
            yield line.strip()
        else:
            version = version.split("=")[0].removesuffix(".*")
            yield f"{name}=={version}" + ("" if version.count(".") > 1 else ".*")


def _pyproject(text: str) -> Iterable[str]:
    """Every list of requirements there is (project, extras, groups, tools), and Poetry's tables."""
    document = tomllib.loads(text)
    document.get("tool", {}).pop("klguard", None)
    return _requirements_in(document)


def _requirements_in(node: Any, name: str = "") -> Iterator[str]:
    """All requirements in a TOML value, which is the value of the key `name`."""
    is_library = canonicalize_name(name) in LIBRARIES
    if isinstance(node, list):
        for element in node:
            if isinstance(element, str):
                yield element
            else:
                yield from _requirements_in(element, name)
    elif is_library and isinstance(node, (str, dict)):
        yield from _poetry(name, {"version": node} if isinstance(node, str) else node)
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _requirements_in(value, key)


def _poetry(name: str, entry: Mapping[str, Any]) -> Iterator[str]:
    """`{version = "~0.9.4"}` or `{git = "...", tag = "v0.9.4"}`; uv's sources look alike."""
    if "git" in entry:
        yield _git(name, entry["git"], entry.get("tag") or entry.get("rev") or entry.get("branch"))
    elif "version" in entry:
        parts = (_pep440(part.strip()) for part in entry["version"].split("||")[-1].split(","))
        yield name + ",".join(part for part in parts if part)


def _git(name: str, url: str, ref: str | None) -> str:
    if "://" not in url:  # git@host:owner/name
        url = "ssh://" + url.replace(":", "/")
    return f"{name} @ git+{url}" + (f"@{ref}" if ref else "")


def _pep440(constraint: str) -> str:
    """One of Poetry's constraints: ^ keeps all up to the first number that is not 0, ~ the first two."""
    operator, version = constraint[:1], constraint[1:].strip()
    if operator in ("^", "~") and _is_version(version):
        release = Version(version).release
        nonzero = (place for place, number in enumerate(release) if number)
        raised = next(nonzero, len(release) - 1) if operator == "^" else min(1, len(release) - 1)
        above = (*release[:raised], release[raised] + 1)
        return f">={version},<{'.'.join(map(str, above))}"
    if constraint == "*":
        return ""
    return f"=={constraint}" if operator.isdigit() else constraint


_PARSERS: tuple[tuple[re.Pattern[str], Callable[[str], Iterable[str]]], ...] = (
    (re.compile(r"uv\.lock|poetry\.lock|pdm\.lock|pylock(\.[^.]+)?\.toml"), _lock),
    (re.compile(r"Pipfile\.lock"), _pipfile_lock),
    (re.compile(r"requirements?[\w.-]*\.txt|[\w.-]+[-_]requirements?\.txt|requirements/[^/]+\.txt"), _lines),
    (re.compile(r"constraints?[\w.-]*\.txt"), _lines),
    (re.compile(r"pyproject\.toml"), _pyproject),
    (re.compile(r"setup\.cfg"), _lines),
    (re.compile(r"setup\.py"), _strings),
    (re.compile(r"(environment|conda|env)[\w.-]*\.ya?ml"), _conda),
)
"""File names -> parser, strongest first."""
