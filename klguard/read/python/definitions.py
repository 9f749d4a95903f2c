"""Definitions that were evaluated when somebody first read them: what each made, and which others it stands on.

A definition is evaluated once, perhaps on a path that is dropped later. Wherever else it is read, what it made is
brought there, and with it what the definitions made that it refers to: a class needs its bases.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from klguard.read.python.state import State
from klguard.read.python.values import (
    Abstract,
    Alt,
    ClassObj,
    DictObj,
    Func,
    InstObj,
    ListObj,
    Method,
    Mod,
    Object,
    Partial,
    Ref,
    Tup,
)


@dataclass(slots=True, eq=False)
class Definition:
    """A value, with the objects and the frames that its evaluation made, and the definitions that these refer to."""

    value: Abstract
    objects: dict[Any, Object] = field(default_factory=dict)
    frames: dict[Any, dict[str, Abstract]] = field(default_factory=dict)
    needs: tuple[Definition, ...] = ()


class Definitions:
    """Those that were evaluated so far, by what identifies them."""

    def __init__(self) -> None:
        self._known: dict[tuple, Definition] = {}
        self._makers: dict[Any, Definition] = {}  # by the oid, or the frame, that it made

    def get(self, key: tuple) -> Definition | None:
        return self._known.get(key)

    def begin(self, key: tuple, meanwhile: Abstract) -> None:
        """A definition is being evaluated; who reads it before it is there gets `meanwhile`."""
        self._known[key] = Definition(meanwhile)

    def add(self, key: tuple, found: Definition) -> None:
        self._known[key] = found
        for made in (*found.objects, *found.frames):
            self._makers.setdefault(made, found)
        makers = (self._makers.get(one) for one in _mentioned(found))
        found.needs = tuple({id(maker): maker for maker in makers if maker not in (None, found)}.values())

    def bring(self, found: Definition, state: State) -> None:
        """Make what a definition refers to known in a state."""
        waiting, seen = [found], {id(found)}
        while waiting:
            one = waiting.pop()
            state.bring(one.frames, one.objects.items())
            fresh = [need for need in one.needs if id(need) not in seen]
            seen.update(map(id, fresh))
            waiting.extend(fresh)


def _mentioned(found: Definition) -> Iterator[Any]:
    """Oids and frames that a definition's value, and what it made, refer to."""
    yield from _in_values([found.value])
    for obj in found.objects.values():
        match obj:
            case DictObj():
                yield from _in_values(obj.entries.values())
            case ListObj():
                yield from _in_values(obj.items or ())
            case ClassObj():
                yield obj.attrs
                yield from _in_values(obj.bases)
            case InstObj():
                yield obj.attrs
                yield from _in_values([] if obj.cls is None else [obj.cls])


def _in_values(values: Iterable[Abstract]) -> Iterator[Any]:
    stack = list(values)
    while stack:
        value = stack.pop()
        match value:
            case Ref():
                yield value.oid
            case Mod():
                yield ("module", value.module.path)
            case Func():
                yield from value.closure
                stack.extend(value.code.defaults.values())
                stack.extend([] if value.bound is None else [value.bound])
            case Alt():
                stack.extend(value.values)
            case Tup():
                stack.extend(value.items)
            case Method():
                stack.append(value.owner)
            case Partial():
                stack.extend((value.func, value.kwargs, *value.args))
