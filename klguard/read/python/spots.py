"""What a data flow is made of: a value at an expression, and how the flow came there."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Protocol

from klguard.read.python.source import FunctionInfo, Module

Path = tuple[str, ...]
CallSite = tuple[Module, ast.expr]
"""A call, or another expression that runs a function (`for x in engine` runs `__iter__`)."""


@dataclass(frozen=True)
class Frame:
    """How the flow came here: `entered` are calls it went down into, `climbed` the callers it returned to."""

    entered: tuple[CallSite, ...] = ()
    climbed: tuple[CallSite, ...] = ()

    @property
    def key(self) -> tuple[int, ...]:
        return tuple(id(call) for _, call in self.entered)


@dataclass(frozen=True)
class Spot:
    """A value at an expression."""

    module: Module
    node: ast.AST
    path: Path = ()
    frame: Frame = field(default_factory=Frame)
    scored: bool = False
    """The value has become a log-probability; names no longer tell that it is about something else."""


class Watcher(Protocol):
    """What a flow looks for. Each method may record what it saw; a true result stops the flow there."""

    def argument(self, spot: Spot, call: ast.Call, slot: int | str | None, value: ast.expr) -> bool: ...
    def method(self, spot: Spot, call: ast.Call) -> bool: ...
    def result(self, spot: Spot, call: ast.Call, path: Path) -> bool: ...
    def returned(self, spot: Spot, info: FunctionInfo) -> bool: ...
    def uncalled(self, spot: Spot, info: FunctionInfo) -> None: ...
    def keeps(self, name: str) -> bool: ...
    def transparent(self, name: str) -> bool: ...
    def scores(self, call: ast.Call) -> bool: ...


def read(path: Path, name: str) -> Path | None:
    """The path inside field `name` of a value that has the flow at `path`; None when the field does not have
    it.
    """
    if not path:
        return ()
    if path[0] == name:
        return path[1:]
    if name.isdigit() and not path[0].isdigit():
        return path  # an element of a list whose elements have the field
    return path if path[0].isdigit() and not name.isdigit() else None
