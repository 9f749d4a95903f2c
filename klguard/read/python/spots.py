"""What a data flow is made of: a value at an expression, and how the flow came there."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cached_property
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

    @cached_property
    def key(self) -> tuple[int, ...]:
        return tuple(id(call) for _, call in self.entered)


NOWHERE = Frame()
"""Where a flow begins."""


@dataclass(eq=False, slots=True)
class Spot:
    """A value at an expression; never changed once it is made (frozen would make each twice as dear)."""

    module: Module
    node: ast.AST
    path: Path = ()
    frame: Frame = NOWHERE
    scored: bool = False
    """The value has become a log-probability; names no longer tell that it is about something else."""


class Watcher(Protocol):
    """What a flow looks for and records. A true result of the first four methods stops the flow there."""

    @property
    def settled(self) -> bool:
        """Is enough recorded to answer with, whatever else the flow would meet?"""
        ...

    def argument(self, spot: Spot, call: ast.Call, slot: int | str | None, value: ast.expr) -> bool:
        """The value is passed at a position or keyword (`**` for a splat, None for a starred one)."""
        ...

    def compare(self, spot: Spot, node: ast.Compare) -> None:
        """A comparison of the value."""
        ...

    def method(self, spot: Spot, call: ast.Call) -> bool:
        """A method of the value is called."""
        ...

    def result(self, spot: Spot, call: ast.Call, path: Path) -> bool:
        """`call`, which got the value or returned it, is about to hold it at `path`."""
        ...

    def returned(self, spot: Spot, info: FunctionInfo) -> bool:
        """The function returns or yields the value."""
        ...

    def uncalled(self, spot: Spot, info: FunctionInfo) -> None:
        """The function that returns the value has no visible caller."""
        ...

    def keeps(self, name: str) -> bool:
        """May a variable, field or parameter of this name hold what is followed?"""
        ...

    def transparent(self, name: str) -> bool:
        """Does an invisible function of this name return what is made of its arguments?"""
        ...

    def scores(self, call: ast.Call) -> bool:
        """Does `call` turn tokens into log-probabilities?"""
        ...


def read(path: Path, name: str) -> Path | None:
    """The path inside field `name` of what has the value at `path`; None when the field lacks it."""
    if not path:
        return ()
    if path[0] == name:
        return path[1:]
    if name.isdigit() and not path[0].isdigit():
        return path  # an element of a list whose elements have the field
    return path if path[0].isdigit() and not name.isdigit() else None
