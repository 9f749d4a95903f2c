"""Configurations of training frameworks, which no Python need load, and what Python starts one with."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from klguard.read.files import CONFIGS, Failure, load

if TYPE_CHECKING:
    from klguard.findings import Finding
    from klguard.gate import Gate
    from klguard.settings import Site

Versions = Callable[[Sequence[str]], dict[str, dict[str, str]]]
"""Path -> library -> version, of some paths."""


def is_configuration(path: str) -> bool:
    """Whether a file is read as the configuration of a framework, by its ending."""
    return path.endswith((*CONFIGS, ".json"))


class Configurations:
    """Those among `files` and `text`, path -> where it lies or what is in it. `named`: the paths that were named one
    by one."""

    def __init__(
        self, gate: Gate, files: Mapping[str, Path], text: Mapping[str, bytes], named: Collection[str]
    ) -> None:
        self.gate = gate
        self.files = {path: place for path, place in files.items() if is_configuration(path)}
        self.text = {path: content for path, content in text.items() if is_configuration(path)}
        self.named = {path for path in named if is_configuration(path)}

    @property
    def places(self) -> list[str | Path]:
        return [*self.files.values(), *self.text]

    @cached_property
    def _loads(self) -> dict[str, bytes | Failure]:
        limit = self.gate.limit
        return {path: load(place, limit=limit) for path, place in self.files.items()} | self.text

    @cached_property
    def _contents(self) -> dict[str, bytes]:
        """Path -> bytes of those that may be of a framework, by the words in them."""
        return {
            path: content
            for path, content in self._loads.items()
            if isinstance(content, bytes) and self.gate.has_config(content, path)
        }

    @property
    def looked_at(self) -> set[str]:
        """Those that count as checked: of what lies below a directory, only what may be of a framework."""
        return self.named | self._contents.keys()

    @property
    def commented(self) -> set[str]:
        """Those with a comment that holds findings back."""
        return {path for path, content in self._contents.items() if self.gate.has_suppression(content)}

    def read(self, versions: Versions) -> tuple[list[Site], list[Finding]]:
        """The sites, and what kept klguard from reading a file. One that cannot be opened is told of where it was
        named: below a directory it may be anything."""
        found = [
            content.finding()
            for path, content in self._loads.items()
            if path in self.named and isinstance(content, Failure)
        ]
        if not self._contents:
            return [], found
        from klguard.read.configs import read_config

        sites, failures = _each(self._contents, versions, read_config)
        return sites, [*found, *failures]


def read_launched(contents: Mapping[str, bytes], versions: Versions) -> tuple[list[Site], list[Finding]]:
    """The sites in what Python starts a framework with, and what kept klguard from reading a file."""
    if not contents:
        return [], []
    from klguard.read.configs import read_launches

    return _each(contents, versions, read_launches)


def _each(
    contents: Mapping[str, bytes],
    versions: Versions,
    read: Callable[[bytes, str, Mapping[str, str]], list[Site]],
) -> tuple[list[Site], list[Finding]]:
    """What `read` finds in each; one that breaks it does not cost the others."""
    from klguard.judge import internal_error, start_of

    assumed = versions(list(contents))
    sites: list[Site] = []
    failures: list[Finding] = []
    for path, content in contents.items():
        try:
            sites += read(content, path, assumed[path])
        except Exception as error:  # noqa: BLE001
            failures.append(internal_error(error, start_of(path), "reading this file"))
    return sites, failures
