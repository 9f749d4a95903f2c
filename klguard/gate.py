"""The first look at a file: by its bytes alone, whether it can hold a site at all.

Most files of a project hold none, and to find that out by parsing them would cost fifty times as much.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from klguard.read.files import DEFAULT_LIMIT, Failure, load, read_bytes, reported

MARKERS = tuple(
    b"generate respond_to_batch trlx BeamSearchParams GRPOConfig GRPOTrainer GenerationConfig"
    b" NashMDConfig NashMDTrainer OnlineDPOConfig OnlineDPOTrainer PPOConfig PPOTrainer PPOv2Config"
    b" PPOv2Trainer RLOOConfig RLOOTrainer SamplingParams TRLConfig XPOConfig XPOTrainer".split()
)
"""Words without one of which a file holds no site: those that the reader of Python looks for, written out,
since most runs end here and importing the reader would take them longer than all the rest."""

SUPPRESSION = b"klguard"
"""In every comment that holds findings back, and in few other files."""

SYNTAX_BUDGET = 1_000_000
"""Bytes of source without a site that are parsed all the same, in the order of their paths, to report what
is not Python: all of an ordinary project, and the first files of a very large one."""


@dataclass(frozen=True, slots=True)
class Look:
    """What the bytes of one file say."""

    path: str
    has_site: bool = False
    has_suppression: bool = False
    failures: tuple[Failure, ...] = ()


@dataclass
class Gate:
    """Looks at files one after the other. `markers` as the function of that name gives them."""

    markers: tuple[bytes, ...]
    limit: int = DEFAULT_LIMIT
    _budget: int = field(default=SYNTAX_BUDGET)

    def look(self, file: Path) -> Look:
        content = load(file, limit=self.limit)
        if isinstance(content, Failure):
            return Look(content.path, failures=(content,))
        return self.look_at(content, reported(file))

    def look_at(self, content: bytes, path: str) -> Look:
        has_site = self.has_site(content)
        failures = () if has_site else self._failures(content, path)
        return Look(path, has_site, SUPPRESSION in content, failures)

    def has_site(self, content: bytes) -> bool:
        return any(marker in content for marker in self.markers)

    def _failures(self, content: bytes, path: str) -> tuple[Failure, ...]:
        """Why a file without a site is no Python, as long as the budget lasts."""
        if len(content) > self._budget:
            return ()
        self._budget -= len(content)
        source = read_bytes(content, path)
        if isinstance(source, Failure):
            return (source,)
        if source.cells is not None:
            return source.failures
        from klguard.read.python.source import parse

        try:
            parse(source.text)
        except SyntaxError as error:
            return (_syntax_error(error, path),)
        return ()


def _syntax_error(error: SyntaxError, path: str) -> Failure:
    line, column = max(error.lineno or 1, 1), max(error.offset or 1, 1)
    return Failure("KLG001", error.msg or "invalid syntax", path, None, line, column)


def markers(names: Iterable[str]) -> tuple[bytes, ...]:
    """MARKERS, and the last part of each of `names` (dotted ones of in-house functions and classes)."""
    return (*MARKERS, *(name.rpartition(".")[2].encode() for name in names))
