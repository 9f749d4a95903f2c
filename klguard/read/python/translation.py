"""From what the interpreter computes with to what the rules judge: values with places, and plain data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from klguard.read.python.libraries import Libraries
from klguard.read.python.state import State
from klguard.read.python.values import (
    Abstract,
    ClassObj,
    Const,
    DictObj,
    Ext,
    Func,
    InstObj,
    ListObj,
    Method,
    Missing,
    Mod,
    Partial,
    Ref,
    Step,
    Steps,
    Tup,
    Unk,
    members,
)
from klguard.settings import (
    Absent,
    Hop,
    Known,
    Opaque,
    Reason,
    Unknown,
    Value,
    join,
)

if TYPE_CHECKING:
    pass


class Translation(Libraries):
    """Abstract values as `klguard.settings` has them."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._hops: dict[int, tuple[Step, Hop]] = {}

    def hop(self, step: Step) -> Hop:
        found = self._hops.get(id(step))
        if found is None or found[0] is not step:
            place = step.place
            if place is None and step.unit is not None and step.node is not None:
                try:
                    place = step.unit.place(step.node)
                except KeyError:
                    place = None
            found = self._hops[id(step)] = (step, Hop(step.kind, place, step.text))
        return found[1]

    def hops(self, steps: Steps) -> tuple[Hop, ...]:
        return tuple(self.hop(step) for step in steps)

    def _unknown(self, value: Unk) -> Unknown:
        return Unknown(value.reason, value.detail, self.hops(value.steps))

    def to_value(self, value: Abstract, state: State) -> Value:
        """An abstract value as the rules see it."""
        return join(self._member_value(member, state) for member in members(value))

    def _member_value(self, value: Abstract, state: State) -> Value:
        hops = self.hops(value.steps)
        if isinstance(value, Const):
            return Known(value.value, hops)
        if isinstance(value, Missing):
            return Absent(hops)
        if isinstance(value, Unk):
            return self._unknown(value)
        plain = self._plain_value(value, state)
        if plain is not None:
            return Known(plain[0], hops)
        return self._opaque(value, state, hops)

    def _plain_value(self, value: Abstract, state: State, depth: int = 6) -> tuple[Any] | None:
        """(the Python value,) of a fully known structure."""
        if isinstance(value, Const):
            return (value.value,)
        if depth == 0:
            return None
        obj = state.heap.get(value.oid) if isinstance(value, Ref) else None
        if isinstance(obj, DictObj) and obj.rest is None:
            pairs = {k: self._plain_value(v, state, depth - 1) for k, v in obj.entries.items()}
            return (
                None
                if any(v is None for v in pairs.values())
                else ({k: v[0] for k, v in pairs.items() if v},)
            )
        items = value.items if isinstance(value, Tup) else obj.items if isinstance(obj, ListObj) else None
        if items is None:
            return None
        parts = [self._plain_value(item, state, depth - 1) for item in items]
        if any(part is None for part in parts):
            return None
        plain = [part[0] for part in parts if part is not None]
        return (tuple(plain),) if isinstance(value, Tup) else (plain,)

    def _opaque(self, value: Abstract, state: State, hops: tuple[Hop, ...]) -> Value:
        match value:
            case Ext():
                return Known(Opaque(value.name, value.name), hops)
            case Func():
                return Known(Opaque(value.code.name, value.code.qualname), hops)
            case Mod():
                return Known(Opaque(value.module.name), hops)
            case Partial():
                return Known(Opaque("functools.partial(...)", "functools.partial"), hops)
            case Method():
                return Known(Opaque(value.name), hops)
            case Tup():
                return Known(Opaque("(...)", "tuple"), hops)
        obj = state.heap.get(value.oid) if isinstance(value, Ref) else None
        if isinstance(obj, InstObj):
            name = obj.made_by
            if obj.cls is not None:
                cls = state.heap.get(obj.cls.oid)
                name = cls.info.qualname if isinstance(cls, ClassObj) else name
            return Known(Opaque(obj.text or name or "an object", name), hops)
        if isinstance(obj, DictObj):
            return Known(Opaque("{...}", "dict"), hops)
        if isinstance(obj, ListObj):
            return Known(Opaque("[...]", "list"), hops)
        if isinstance(obj, ClassObj):
            return Known(Opaque(obj.info.name, obj.info.qualname), hops)
        return Unknown(Reason.UNSUPPORTED, "", hops)
