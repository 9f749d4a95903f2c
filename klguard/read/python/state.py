"""The state that the interpreter keeps: variables by frame and a heap of objects, copied at every branch and joined
where paths meet."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from klguard.read.python.memo import on_forget
from klguard.read.python.values import (
    MISSING,
    Abstract,
    Alt,
    ClassObj,
    Const,
    DictObj,
    Func,
    InstObj,
    Later,
    ListObj,
    Method,
    Missing,
    Mod,
    Object,
    Partial,
    Ref,
    Tup,
    Unk,
    identity,
    join,
    members,
)
from klguard.settings import Reason


class Heap:
    """Objects by oid. Every write, in whichever copy, is told to the `watchers`, which all copies share, as they do
    the oids under which something is known of objects that are `unseen` themselves.

    Copies share what neither side has written since, and so know quickly in what they differ. They share also how
    objects were when they came `in_from` an import or a definition, which are looked at when somebody asks: on a path
    where nobody did, they are that still.
    """

    __slots__ = ("_shared", "_own", "watchers", "unseen", "in_from")

    def __init__(self) -> None:
        self._shared: dict[Any, Object] = {}
        self._own: dict[Any, Object] = {}
        self.watchers: list[set[Any]] = []
        self.unseen: set[tuple] = set()
        self.in_from: dict[Any, Object] = {}

    def copy(self) -> Heap:
        if len(self._own) > FEW_WRITES and len(self._own) * 4 > len(self._shared):
            self._shared, self._own = {**self._shared, **self._own}, {}
        return self._twin()

    def _twin(self) -> Heap:
        twin = Heap.__new__(Heap)
        twin._shared, twin._own = self._shared, self._own.copy()
        twin.watchers, twin.unseen, twin.in_from = self.watchers, self.unseen, self.in_from
        return twin

    def add(self, objects: Iterable[tuple[Any, Object]]) -> None:
        """Take in the objects that this heap does not have yet."""
        for oid, obj in objects:
            if oid not in self:
                self[oid] = obj

    def get(self, oid: Any, default: Object | None = None) -> Object | None:
        found = self._own.get(oid)
        return self._shared.get(oid, default) if found is None else found

    def __getitem__(self, oid: Any) -> Object:
        found = self._own.get(oid)
        return self._shared[oid] if found is None else found

    def __setitem__(self, oid: Any, obj: Object) -> None:
        self._own[oid] = obj
        if type(oid) is tuple:
            self.unseen.add(oid)
        for watcher in self.watchers:
            watcher.add(oid)

    def __contains__(self, oid: Any) -> bool:
        return oid in self._own or oid in self._shared

    def items(self) -> Collection[tuple[Any, Object]]:
        return {**self._shared, **self._own}.items()

    def oids(self) -> set[Any]:
        return {*self._shared, *self._own}

    def apart(self, other: Heap) -> list[tuple[Any, Object | None, Object | None]]:
        """Where this heap and another hold different objects: the oid, and what is under it here and there."""
        if self._shared is other._shared:
            shared, mine, others = self._shared, self._own, other._own
        else:
            shared, mine, others = {}, {**self._shared, **self._own}, {**other._shared, **other._own}
        found = []
        for oid, left in mine.items():
            right = others.get(oid)
            if right is not left:
                right = shared.get(oid) if right is None else right
                if right is not left:
                    found.append((oid, left, right))
        for oid, right in others.items():
            if oid not in mine:
                left = shared.get(oid)
                if right is not left:
                    found.append((oid, left, right))
        return found

    def before(self, oid: Any) -> Object | None:
        """What is under `oid` on a path that never wrote there; None where that path has no such object."""
        return self.in_from.get(oid, _UNTOUCHED if type(oid) is tuple else None)

    def joined(self, other: Heap) -> Heap:
        """The objects where two paths meet."""
        both = self._twin()
        for oid, left, right in self.apart(other):
            if left is None or right is None:
                before = self.before(oid)
                left, right = left or before or right, right or before or left
            both[oid] = left if left is right else _join_objects(left, right)
        return both

    @contextmanager
    def watched(self) -> Iterator[set[Any]]:
        """Collect the oids that are written to, in this heap or a copy, while the block runs."""
        written: set[Any] = set()
        self.watchers.append(written)
        try:
            yield written
        finally:
            self.watchers[:] = [watcher for watcher in self.watchers if watcher is not written]


FEW_WRITES = 24
"""Objects that a copy of a heap holds for itself before it is worth while to share them."""


Frames = dict[Any, dict[str, Abstract]]


class State:
    """Variables by frame, and the heap. Copies share what neither side has written since, and how the variables of a
    module were when they came `in_from` an import."""

    __slots__ = ("frames", "heap", "in_from", "_owned")

    def __init__(self, frames: Frames | None = None, heap: Heap | None = None, in_from: Frames | None = None):
        self.frames = frames if frames is not None else {}
        self.heap = heap if heap is not None else Heap()
        self.in_from = in_from if in_from is not None else {}
        self._owned: set[Any] = set()

    def copy(self) -> State:
        self._owned = set()
        return State(dict(self.frames), self.heap.copy(), self.in_from)

    def include(self, other: State, written: Iterable[Any]) -> None:
        """Join another state into this one, which differ in no objects but those `written`."""
        self.frames = self._joined_frames(other)
        for oid in written:
            obj, mine_obj = other.heap.get(oid), self.heap.get(oid)
            if obj is not None and obj is not mine_obj:
                mine_obj = mine_obj or self.heap.before(oid)
                self.heap[oid] = obj if mine_obj is None else _join_objects(mine_obj, obj)
        other._owned = set()
        self._owned = set()

    def joined(self, other: State) -> State:
        """The state where two paths meet."""
        return State(self._joined_frames(other), self.heap.joined(other.heap), self.in_from)

    def _joined_frames(self, other: State) -> Frames:
        frames = dict(self.frames)
        for frame, variables in other.frames.items():
            mine = frames.get(frame) or self.in_from.get(frame)
            if mine is not variables:
                frames[frame] = variables if mine is None else _join_variables(mine, variables)
        for frame in self.in_from.keys() & (frames.keys() - other.frames.keys()):
            frames[frame] = _join_variables(frames[frame], self.in_from[frame])
        return frames

    def become(self, other: State) -> None:
        """Take over the contents of another state (the result of a branch)."""
        self.frames, self.heap, self._owned = other.frames, other.heap, other._owned
        self.in_from = other.in_from

    def variables(self, frame: Any) -> dict[str, Abstract]:
        return self.frames.get(frame, {})

    def bind(self, frame: Any, name: str, value: Abstract) -> None:
        self._own(frame)[name] = value

    def unbind(self, frame: Any, name: str) -> None:
        self._own(frame).pop(name, None)

    def _own(self, frame: Any) -> dict[str, Abstract]:
        if frame not in self._owned:
            self.frames[frame] = dict(self.frames.get(frame, ()))
            self._owned.add(frame)
        return self.frames[frame]

    def absorb(self, other: State) -> None:
        """Add frames and objects this state does not have yet."""
        for frame, variables in other.frames.items():
            self.frames.setdefault(frame, variables)
        self.heap.add(other.heap.items())

    def bring(self, frames: Frames, objects: Collection[tuple[Any, Object]]) -> None:
        """Take in frames and objects of an import or a definition, but for those that are here."""
        for frame, variables in frames.items():
            self.in_from.setdefault(frame, variables)
            self.frames.setdefault(frame, variables)
        for oid, obj in objects:
            self.heap.in_from.setdefault(oid, obj)
        self.heap.add(objects)


def join_states(states: Iterable[State]) -> State | None:
    """The state where paths meet; None when no path arrives."""
    result: State | None = None
    for state in states:
        result = state.copy() if result is None else result.joined(state)
    return result


_UNTOUCHED = DictObj({}, Unk(Reason.RUNTIME, "as it was before"))
"""What is known of an unknown object on a path that writes nothing to it (oids of such objects are tuples)."""


def _join_variables(left: dict[str, Abstract], right: dict[str, Abstract]) -> dict[str, Abstract]:
    """A variable bound on one path only would raise on the other, so where it is read it has its one value."""
    changed: dict[str, Abstract] = {}
    for name, value in right.items():
        mine = left.get(name)
        if mine is value:
            continue
        if mine is None or isinstance(mine, Later):
            changed[name] = value
        elif not isinstance(value, Later) and (met := _meet(mine, value)) is not mine:
            changed[name] = met
    return {**left, **changed} if changed else left


_met: dict[tuple[int, int], tuple[Any, Any, Any]] = {}
"""What was joined before, by the ids of both sides, which are kept so that no id is used twice."""
on_forget(_met.clear)


def _remembered(left: Any, right: Any, make: Callable[[Any, Any], Any]) -> Any:
    key = (id(left), id(right))
    found = _met.get(key)
    if found is None:
        if len(_met) > 100_000:
            _met.clear()
        found = _met[key] = (left, right, make(left, right))
    return found[2]


def _meet(left: Abstract, right: Abstract) -> Abstract:
    """join((left, right)), and `left` itself where the right side adds nothing."""
    return left if left is right else _remembered(left, right, _meet_new)


def _meet_new(left: Abstract, right: Abstract) -> Abstract:
    both = join((left, right))
    return left if identity(both) == identity(left) else both


def _join_objects(left: Object, right: Object) -> Object:
    return _remembered(left, right, _join_objects_new)


def _join_objects_new(left: Object, right: Object) -> Object:
    if isinstance(left, DictObj) and isinstance(right, DictObj):
        entries = {key: _join_entry(left, right, key) for key in {**left.entries, **right.entries}}
        rest = left.rest or right.rest
        same = rest is left.rest and len(entries) == len(left.entries)
        return (
            left if same and all(entries[k] is v for k, v in left.entries.items()) else DictObj(entries, rest)
        )
    if isinstance(left, ListObj) and isinstance(right, ListObj):
        if left.items is None or right.items is None or len(left.items) != len(right.items):
            return left if left.items is None else ListObj(None)
        items = tuple(_meet(a, b) for a, b in zip(left.items, right.items, strict=False))
        return left if all(a is b for a, b in zip(items, left.items, strict=False)) else ListObj(items)
    return left


def _join_entry(left: DictObj, right: DictObj, key: Any) -> Abstract:
    a = left.entries.get(key) or left.rest or MISSING
    b = right.entries.get(key) or right.rest or MISSING
    return _meet(a, b)


def reachable(values: Iterable[Abstract], state: State) -> Iterator[Any]:
    """Oids of the mutable objects that somebody holding `values` can get at."""
    return (value.oid for value in reached(values, state) if isinstance(value, Ref))


def reached(values: Iterable[Abstract], state: State) -> Iterator[Ref | Unk]:
    """The mutable objects, and the unknown values, that somebody holding `values` can get at."""
    seen: set[Any] = set()
    stack = list(values)
    while stack:
        value = stack.pop()
        match value:
            case Alt():
                stack.extend(value.values)
            case Tup():
                stack.extend(value.items)
            case Func() if value.bound is not None:
                stack.append(value.bound)
            case Method():
                stack.append(value.owner)
            case Partial():
                stack.extend((value.func, value.kwargs, *value.args))
            case Ref() if value.oid not in seen:
                seen.add(value.oid)
                obj = state.heap.get(value.oid)
                if isinstance(obj, DictObj):
                    stack.extend(obj.entries.values())
                elif isinstance(obj, ListObj):
                    stack.extend(obj.items or ())
                elif isinstance(obj, InstObj):
                    stack.append(Ref(obj.attrs))
                if obj is not None:
                    yield value
            case Unk() if value.oid is not None:
                yield value


def truth(value: Abstract, state: State) -> bool | None:
    """Whether `if value:` is taken, None when it may go either way."""
    answers = {_truth(member, state) for member in members(value)}
    return answers.pop() if len(answers) == 1 else None


def _truth(value: Abstract, state: State) -> bool | None:
    match value:
        case Const():
            return bool(value.value)
        case Tup():
            return bool(value.items)
        case Func() | Mod() | Method() | Partial():
            return True
        case Ref():
            match state.heap.get(value.oid):
                case DictObj(entries, rest):
                    if any(not _may_miss(v) for v in entries.values()):
                        return True
                    return None if rest is not None or entries else False
                case ListObj(items):
                    return None if items is None else bool(items)
                case ClassObj():
                    return True
                case InstObj(cls=None, made_by="set" | "frozenset", attrs=home):
                    parts = state.heap.get(home)
                    held = parts.entries.get("<part>") if isinstance(parts, DictObj) else None
                    return bool(held.items) if isinstance(held, Tup) else None
                case InstObj(cls=Ref() as cls):
                    made_of = state.heap.get(cls.oid)
                    plain = isinstance(made_of, ClassObj) and not made_of.bases
                    return (
                        True if plain and not {"__bool__", "__len__"} & made_of.info.methods.keys() else None
                    )
    return None


def _may_miss(value: Abstract) -> bool:
    return any(isinstance(member, Missing) for member in members(value))
