"""Library versions: the newest that the tables know, and whether a version lies in a range."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

NEWEST: dict[str, str] = {
    "transformers": "5.23.0",
    "trl": "1.16.0",
    "vllm": "0.33.0",
    "sglang": "0.5.23",
    "trlx": "0.7.0",
}
"""The newest release of each library whose source the tables were checked against."""


@lru_cache(maxsize=1024)
def parse(version: str) -> Version | None:
    """The version, without its local part; None where the text is not one (`main`, `${VERSION}`)."""
    try:
        return Version(Version(version).public)
    except InvalidVersion:
        return None


def version_of(library: str, versions: Mapping[str, str]) -> Version:
    """The version `library` is judged for: the one given, else the newest known."""
    return parse(versions.get(library, "")) or parse(NEWEST.get(library, "")) or Version("0")


@lru_cache(maxsize=4096)
def within(version: Version, ranges: str) -> bool:
    """Whether `version` lies in `ranges`, a specifier set such as `>=4.50,<5`; an empty one holds everywhere.

    A development or release candidate counts as its release: `5.0.0rc1` has the semantics of 5.0.
    """
    return not ranges or SpecifierSet(ranges).contains(version.base_version, prereleases=True)
