"""Python source to sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from klguard.read.python.project import Project
    from klguard.settings import Site


def read_sites(
    project: Project,
    paths: Sequence[str],
    versions: Mapping[str, str] | None = None,
    *,
    functions: Sequence[str] = (),
    trainers: Mapping[str, str] | None = None,
) -> list[Site]:
    """The sites of `paths` (as reported), in the order of the paths and of the source."""
    from klguard.engines import NEWEST
    from klguard.read.python.sites import SiteReader

    reader = SiteReader(project, functions, trainers)
    reader.prepare(paths)
    return [site for path in paths for site in reader.read(path, versions or NEWEST)]
