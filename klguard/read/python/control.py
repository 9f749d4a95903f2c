"""Where control goes: frames, the states that leave a loop or a try, and what one round of a loop changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from klguard.read.python.state import State, join_states
from klguard.read.python.values import (
    Abstract,
    DictObj,
    InstObj,
    ListObj,
    Missing,
    Ref,
    Tup,
    Unk,
    identity,
    members,
)
from klguard.settings import Reason

if TYPE_CHECKING:
    from klguard.read.python.source import Module, Unit
    from klguard.read.python.values import (
        Code,
    )


class BudgetSpent(Exception):
    """The analysis of one root took too many steps."""


@dataclass(eq=False)
class Loop:
    breaks: list[State] = field(default_factory=list)
    continues: list[State] = field(default_factory=list)


class Catcher:
    """The join of all states in which the body of a `try` may be left; what is `raised` in it and where, as far as it
    is seen, and whether something runs in it, or on the way to it, that is `unseen`."""

    def __init__(self, state: State) -> None:
        self.raised: list[tuple[Abstract | None, State]] = []
        self.unseen = False
        self.state = state.copy()
        self._written: set[Any] = set()
        self._watchers = state.heap.watchers
        self._watchers.append(self._written)

    def see(self, state: State) -> None:
        written = list(self._written)
        self._written.clear()
        self.state.include(state, written)
        self._written.clear()

    def close(self) -> None:
        self._watchers[:] = [watcher for watcher in self._watchers if watcher is not self._written]


@dataclass(eq=False)
class Frame:
    """One activation of a function or module body. `scopes` are the frames a name is looked up in, inner first."""

    id: Any
    scopes: tuple[Any, ...]
    module: Module
    unit: Unit | None
    chain: tuple[Any, ...] = ()
    code: Code | None = None
    returns: list[tuple[State, Abstract]] = field(default_factory=list)
    loops: list[Loop] = field(default_factory=list)
    outer: dict[str, Any] = field(default_factory=dict)
    yields: list[Abstract] | None = None
    dead: bool = False
    captured: list[bool] = field(default_factory=lambda: [False])


def arrive(state: State, arrived: list[State]) -> bool:
    """Let `state` be the join of the states that arrive; False when none does."""
    merged = join_states(arrived)
    if merged is None:
        return False
    state.become(merged)
    return True


Change = tuple[str, Any, Any, Abstract | None]


def changes(start: State, end: State) -> list[Change]:
    """What one round of a loop changed in the variables and objects that were there before it:
    ("name", frame, variable, new value), ("entry", oid, key, new value), ("list", oid, grown, None)."""
    found: list[Change] = []
    for frame, known in start.frames.items():
        variables = end.frames.get(frame, known)
        if variables is known:
            continue
        for name, value in variables.items():
            if name in known and value is not known[name] and not _covered(value, end, known[name], start):
                found.append(("name", frame, name, value))
    for oid, before, obj in start.heap.apart(end.heap):
        if before is None or obj is None:
            continue
        if isinstance(obj, DictObj) and isinstance(before, DictObj):
            for key in {**before.entries, **obj.entries}:
                value = obj.entries.get(key, obj.rest or Missing())
                if not _covered(value, end, before.entries.get(key, before.rest or Missing()), start):
                    found.append(("entry", oid, key, value))
        elif isinstance(obj, ListObj) and isinstance(before, ListObj) and before.items is not None:
            same = obj.items is not None and len(obj.items) == len(before.items)
            if not same or not all(
                _covered(a, end, b, start) for a, b in zip(obj.items or (), before.items, strict=False)
            ):
                found.append(("list", oid, not same, None))
    return found


def widen(changed: list[Change], merged: State, counters_only: bool) -> State:
    """Make unknown what a loop changes; in the first round only what grows with every round, counters and lists."""
    for kind, home, key, value in changed:
        if kind == "list":
            if key or not counters_only:
                merged.heap[home] = ListObj(None)
            continue
        assert value is not None
        if counters_only and not any("computed by" in step.text for step in value.steps):
            continue
        unknown = Unk(Reason.RUNTIME, f"{key}, changed in a loop", value.steps)
        if kind == "name":
            merged.bind(home, key, unknown)
        else:
            obj = merged.heap[home]
            assert isinstance(obj, DictObj)
            merged.heap[home] = DictObj({**obj.entries, key: unknown}, obj.rest)
    return merged


def _covered(value: Abstract, state: State, known: Abstract, before: State, depth: int = 4) -> bool:
    """Whether every possibility of `value` was already one of `known`, looking into fresh but equal objects."""
    options = members(known)
    names = {identity(option) for option in options}
    for member in members(value):
        if identity(member) in names:
            if not isinstance(member, Ref):
                continue
            options_here: tuple[Abstract, ...] = (member,)
        else:
            options_here = options
        if isinstance(member, Unk) and any(isinstance(o, Unk) and o.reason == member.reason for o in options):
            continue
        if not any(_same(member, state, option, before, depth) for option in options_here):
            return False
    return True


def _same(value: Abstract, state: State, other: Abstract, before: State, depth: int) -> bool:
    if isinstance(value, Tup) and isinstance(other, Tup) and len(value.items) == len(other.items):
        return all(
            _covered(a, state, b, before, depth - 1) for a, b in zip(value.items, other.items, strict=False)
        )
    if not (isinstance(value, Ref) and isinstance(other, Ref)):
        return identity(value) == identity(other)
    if value.oid == other.oid:
        # Changes inside an object that was there before are widened in place, entry by entry.
        return True
    if depth == 0:
        return False
    mine, theirs = state.heap.get(value.oid), before.heap.get(other.oid)
    if isinstance(mine, DictObj) and isinstance(theirs, DictObj):
        if mine.entries.keys() != theirs.entries.keys() or (mine.rest is None) != (theirs.rest is None):
            return False
        return all(_covered(v, state, theirs.entries[k], before, depth - 1) for k, v in mine.entries.items())
    if isinstance(mine, ListObj) and isinstance(theirs, ListObj):
        if mine.items is None or theirs.items is None:
            return mine.items is theirs.items
        if len(mine.items) != len(theirs.items):
            return False
        return all(
            _covered(a, state, b, before, depth - 1) for a, b in zip(mine.items, theirs.items, strict=False)
        )
    if isinstance(mine, InstObj) and isinstance(theirs, InstObj):
        return mine.made_by == theirs.made_by and _same(
            Ref(mine.attrs), state, Ref(theirs.attrs), before, depth - 1
        )
    return False
