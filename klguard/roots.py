"""Where a project begins: whose files can import one another, and where its configuration is looked for."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from klguard.read.files import DEFAULT_EXCLUDES, ENDINGS, discover

PROJECT_MARKERS = (".git", "pyproject.toml", "setup.py")

DOCUMENTS = (".yaml", ".yml", ".json", ".toml")
MAX_ENTRIES = 200_000


def common_directory(paths: Iterable[str | os.PathLike[str]]) -> Path:
    """The innermost directory that holds all of `paths`; a directory holds itself."""
    absolute = {os.path.abspath(path) for path in paths}
    directories = [path if os.path.isdir(path) else os.path.dirname(path) for path in absolute]
    try:
        return Path(os.path.commonpath(directories))
    except ValueError:  # no paths at all, or different drives
        return Path.cwd()


def project_root(files: Iterable[str | os.PathLike[str]]) -> Path:
    """The nearest directory upward that looks like a project's, else the innermost one that holds all
    `files`.

    A home directory is no project, even where somebody keeps it in git.
    """
    common = common_directory(files)
    for directory in (common, *common.parents):
        if directory in (Path.home(), directory.parent):
            break
        if is_project(directory):
            return directory
    return common


def project_files(root: Path, files: Iterable[Path], respect_gitignore: bool) -> list[Path]:
    """The files that imports can lead to from `files`, and callers be found in: all of the project at `root`,
    else those beside the given ones. (To walk the whole tree below a stray script could take for ever.)"""
    if is_project(root):
        return discover([root], respect_gitignore=respect_gitignore).files
    directories = {os.path.dirname(os.path.abspath(file)) for file in files}
    found: list[Path] = []
    for directory in sorted(directories):
        with suppress(OSError):  # no directory, or not one that may be read
            names = sorted(name for name in os.listdir(directory) if name.endswith(ENDINGS))
            paths = (os.path.join(directory, name) for name in names)
            found += [Path(path) for path in paths if os.path.isfile(path)]
    return found


def project_documents(root: Path) -> list[tuple[str, int, int]] | None:
    """Path, size and time of change of each file of settings that code below `root` could load; None where
    there are too many files to tell."""
    found: list[tuple[str, int, int]] = []
    seen = 0
    for directory, names, files in os.walk(root):
        names[:] = sorted(name for name in names if name not in DEFAULT_EXCLUDES and not name.startswith("."))
        seen += len(names) + len(files)
        if seen > MAX_ENTRIES:
            return None
        for name in sorted(files):
            if name.endswith(DOCUMENTS) and name != "klguard.toml":
                path = os.path.join(directory, name)
                with suppress(OSError):
                    status = os.stat(path)
                    found.append((path, status.st_size, status.st_mtime_ns))
    return found


def is_project(directory: Path) -> bool:
    """Whether there is what marks the top of a project."""
    return any((directory / marker).exists() for marker in PROJECT_MARKERS)
