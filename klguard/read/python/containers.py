"""Containers that are not plain dicts, lists and tuples: sets, views, namespaces seen as dicts, iterators.

Each is an instance (`InstObj`) without a class, whose `made_by` is its kind and whose parts have names that
no attribute can have, so that copying, joining and losing track of it work as for every other object.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from typing import Any

from klguard.read.python import nodes
from klguard.read.python.control import Frame
from klguard.read.python.roots import Roots
from klguard.read.python.state import State, reached
from klguard.read.python.values import (
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
    Ref,
    Step,
    Steps,
    Tup,
    Unk,
    join,
    members,
)
from klguard.settings import MAX_ALTERNATIVES, HopKind, Reason

SETS = frozenset({"set", "frozenset"})
VIEWS = frozenset({"dict_keys", "dict_values", "dict_items"})
MAPPINGS = frozenset({"module-dict", "chain-map"})
"""Mappings whose contents are kept elsewhere: in a module's variables, in other dicts."""

CONTAINERS = (
    SETS
    | VIEWS
    | MAPPINGS
    | {"iterator", "itemgetter", "attrgetter", "namedtuple", "namedtuple-type", "subparsers"}
)

DICT_LIKE_KINDS = frozenset({"dict-like", "transformers.GenerationConfig"})


class NotPlain:
    """Marks a value that is not plain data."""


NOT_PLAIN = NotPlain()


class Containers(Roots):
    """Reading and writing containers, and the operators that work on them."""

    call_instance: Callable[..., Abstract | None]
    defining: int

    # -- kinds and parts -------------------------------------------------------------------------------------

    def kind_of(self, value: Abstract, state: State) -> str:
        """The kind of a library object; empty for instances of the project's classes and everything else."""
        obj = state.heap.get(value.oid) if isinstance(value, Ref) else None
        return obj.made_by if isinstance(obj, InstObj) and obj.cls is None else ""

    def make(self, kind: str, part: Abstract, state: State, text: str = "", steps: Steps = ()) -> Ref:
        """A container of this kind, around what it holds."""
        home = self.new(DictObj({_PART: part}), state)
        return self.new(InstObj(None, kind, home.oid, text), state, steps)

    def part(self, value: Ref, state: State) -> Abstract:
        """What a container holds."""
        obj = state.heap[value.oid]
        attrs = state.heap.get(obj.attrs) if isinstance(obj, InstObj) else None
        return attrs.entries.get(_PART, Missing()) if isinstance(attrs, DictObj) else Missing()

    def set_part(self, value: Ref, part: Abstract, state: State) -> None:
        obj = state.heap[value.oid]
        assert isinstance(obj, InstObj)
        state.heap[obj.attrs] = DictObj({_PART: part})

    def make_set(
        self,
        elements: dict[Any, Abstract] | None,
        state: State,
        text: str,
        kind: str = "set",
        steps: Steps = (),
    ) -> Ref:
        """A set of known elements; None makes one of which nothing is known."""
        part: Abstract = Unk(Reason.RUNTIME, text) if elements is None else Tup(tuple(elements.values()))
        return self.make(kind, part, state, text, steps)

    def elements_of(self, value: Abstract, state: State) -> dict[Any, Abstract] | None:
        """The elements a set made of this value has, by their plain values, in no particular order."""
        items = self.unordered(value, state)
        if items is None:
            return None
        found: dict[Any, Abstract] = {}
        for item in items:
            plain = self.plain(item, state)
            try:
                found.setdefault(plain, item)
            except TypeError:
                return None
        return None if NOT_PLAIN in found else found

    def unordered(self, value: Abstract, state: State) -> tuple[Abstract, ...] | None:
        """What iterating gives where the order does not matter."""
        if self.kind_of(value, state) in SETS:
            assert isinstance(value, Ref)
            part = self.part(value, state)
            return part.items if isinstance(part, Tup) else None
        return self.items_of(value, state)

    def plain(self, value: Abstract, state: State, depth: int = 8) -> Any:
        """The Python value of fully known data; NOT_PLAIN where something in it is not."""
        obj = state.heap.get(value.oid) if isinstance(value, Ref) else None
        if isinstance(value, Const):
            return value.value
        if depth == 0:
            return NOT_PLAIN
        if isinstance(value, Tup):
            items = self._plain_items(value.items, state, depth)
            return NOT_PLAIN if items is None else tuple(items)
        if isinstance(obj, ListObj):
            items = self._plain_items(obj.items, state, depth)
            return NOT_PLAIN if items is None else items
        if isinstance(obj, DictObj) and obj.rest is None:
            values = self._plain_items(tuple(obj.entries.values()), state, depth)
            return (
                NOT_PLAIN
                if values is None or _has_objects(obj)
                else dict(zip(obj.entries, values, strict=True))
            )
        return NOT_PLAIN

    def _plain_items(self, items: Sequence[Abstract] | None, state: State, depth: int) -> list[Any] | None:
        if items is None:
            return None
        found = [self.plain(item, state, depth - 1) for item in items]
        return None if any(item is NOT_PLAIN for item in found) else found

    def from_plain(self, value: Any, state: State, steps: Steps) -> Abstract:
        """The abstract value of Python data."""
        if isinstance(value, dict):
            entries = {key: self.from_plain(inner, state, steps) for key, inner in value.items()}
            return self.new_dict(entries, state, steps=steps)
        if isinstance(value, list):
            return self.new(
                ListObj(tuple(self.from_plain(item, state, steps) for item in value)), state, steps
            )
        if isinstance(value, tuple):
            return Tup(tuple(self.from_plain(item, state, steps) for item in value), steps)
        if isinstance(value, (set, frozenset)):
            elements = {item: self.from_plain(item, state, steps) for item in value}
            return self.make_set(elements, state, repr(value), type(value).__name__, steps)
        simple = value is None or isinstance(value, (bool, int, float, complex, str, bytes))
        return Const(value, steps) if simple else Unk(Reason.UNSUPPORTED, f"a {type(value).__name__}", steps)

    # -- what is inside --------------------------------------------------------------------------------------

    def items_of(self, value: Abstract, state: State) -> tuple[Abstract, ...] | None:  # type: ignore[override]
        """What iterating over a value gives. An iterator is used up, by how much is not known."""
        if isinstance(value, Alt):
            columns = [self.items_of(member, state) for member in value.values]
            known = [column for column in columns if column is not None]
            if len(known) < len(columns) or len({len(column) for column in known}) != 1:
                return None
            return tuple(join(row) for row in zip(*known, strict=False))
        kind = self.kind_of(value, state)
        if not kind:
            return self._items_of_project_object(value, state)
        assert isinstance(value, Ref)
        if kind == "iterator":
            part = self.part(value, state)
            self.set_part(value, Unk(Reason.RUNTIME, "what is left of an iterator"), state)
            return part.items if isinstance(part, Tup) else None
        if kind in SETS:
            part = self.part(value, state)
            return part.items if isinstance(part, Tup) and len(part.items) <= 1 else None
        if kind in VIEWS:
            return self._view_items(kind, self.part(value, state), state)
        if kind in MAPPINGS or kind == "dict-like":
            return super().items_of(self.as_dict(value, state), state)
        return super().items_of(value, state)

    def _items_of_project_object(self, value: Abstract, state: State) -> tuple[Abstract, ...] | None:
        obj = state.heap.get(value.oid) if isinstance(value, Ref) else None
        if isinstance(obj, InstObj) and obj.cls is not None and obj.made_by == "namedtuple":
            if self.class_attribute(obj.cls, "__iter__", state) is not None:
                return None
        items = super().items_of(value, state)
        if (
            items is not None
            and isinstance(obj, DictObj)
            and any(isinstance(key, tuple) for key in obj.entries)
        ):
            return tuple(_key(key) for key in obj.entries)
        return items

    def _view_items(self, kind: str, owner: Abstract, state: State) -> tuple[Abstract, ...] | None:
        keys = super().items_of(self.as_dict(owner, state), state)
        obj = self.dict_of(owner, state)
        if keys is None or obj is None:
            return None
        values = tuple(obj.entries.values())
        if kind == "dict_values":
            return values
        keys = tuple(_key(key) for key in obj.entries)
        return keys if kind == "dict_keys" else tuple(Tup(pair) for pair in zip(keys, values, strict=False))

    def dict_of(self, value: Abstract, state: State) -> DictObj | None:
        if any(self.kind_of(member, state) in MAPPINGS for member in members(value)):
            value = join(self.as_dict(member, state) for member in members(value))
        return super().dict_of(value, state)

    def as_dict(self, value: Abstract, state: State) -> Abstract:
        """The dict behind a mapping: its own, or a fresh one with the same contents."""
        kind = self.kind_of(value, state)
        if kind in DICT_LIKE_KINDS:
            obj = state.heap[value.oid]  # type: ignore[union-attr]
            return Ref(obj.attrs, value.steps)  # type: ignore[union-attr]
        if kind not in MAPPINGS:
            return value
        assert isinstance(value, Ref)
        part = self.part(value, state)
        if kind == "module-dict" and isinstance(part, Mod):
            doubt = Unk(Reason.RUNTIME, f"the names of {part.module.name}")
            home = ("module", part.module.path)
            names = {}
            for name, held in list(state.variables(home).items()):
                # inside a definition, what waits may depend on it: a subclass of the class whose body this is
                waits = isinstance(held, Later) and self.defining > 0
                names[name] = doubt if waits else self.lookup(home, name, state) or doubt
            return self.new_dict(names, state, doubt)
        merged = self.new_dict({}, state)
        for mapping in reversed(part.items) if isinstance(part, Tup) else (part,):
            if isinstance(mapping, Ref) and ("factory", mapping.oid) in state.heap:
                # a defaultdict has every key that it is asked for
                self.escape([merged], "hidden by a defaultdict", state)
            self.merge_into(merged, mapping, state, "ChainMap")
        return merged

    # -- subscripts ------------------------------------------------------------------------------------------

    def _eval_Subscript(self, node: nodes.Subscript, state: State, frame: Frame) -> Abstract:
        owner = self.eval(node.value, state, frame)
        if len(node.slice) == 1 and isinstance(node.slice[0], nodes.Slice):
            part = node.slice[0]
            bounds = [
                Const(None) if b is None else self.eval(b, state, frame)
                for b in (part.lower, part.upper, part.step)
            ]
            return self.slice_of(owner, bounds, self.text(node), state)
        key = self.subscript_key(node, state, frame)
        special = self._special_item(owner, key, node, state, frame)
        return special if special is not None else self.get_item(owner, key, state, self.text(node))

    def _special_item(
        self, owner: Abstract, key: Abstract, node: nodes.Subscript, state: State, frame: Frame
    ) -> Abstract | None:
        """What `__getitem__` of the project or the factory of a defaultdict gives."""
        obj = state.heap.get(owner.oid) if isinstance(owner, Ref) else None
        if isinstance(obj, InstObj) and obj.cls is not None:
            method = self.class_attribute(obj.cls, "__getitem__", state)
            if isinstance(method, Func):
                call = nodes.Call(func=node.value, args=())
                return self.call_method(replace(method, bound=owner), [key], call, state, frame)
        factory = state.heap.get(("factory", owner.oid)) if isinstance(owner, Ref) else None
        if isinstance(obj, DictObj) and isinstance(factory, ListObj) and factory.items:
            plain, known = self.hashable(key)
            if known and plain not in obj.entries and obj.rest is None:
                made = self.call_method(
                    factory.items[0], [], nodes.Call(func=node.value, args=()), state, frame
                )
                self.set_item(owner, key, made, state)
                return made
            if not known or obj.rest is not None or isinstance(obj.entries[plain], (Alt, Missing)):
                self.escape([owner], self.text(node), state)
        return None

    call_method: Callable[..., Abstract]

    def slice_of(self, owner: Abstract, bounds: Sequence[Abstract], text: str, state: State) -> Abstract:
        """`owner[a:b:c]`."""
        if isinstance(owner, Alt):
            return join(self.slice_of(member, bounds, text, state) for member in owner.values)
        plain = [bound.value if isinstance(bound, Const) else NOT_PLAIN for bound in bounds]
        unknown = Unk(Reason.RUNTIME, text, owner.steps)
        obj = state.heap.get(owner.oid) if isinstance(owner, Ref) else None
        if any(bound is NOT_PLAIN for bound in plain):
            return self.new(ListObj(None), state) if isinstance(obj, ListObj) else unknown
        where = slice(*plain)
        try:
            if isinstance(owner, Const) and isinstance(owner.value, (str, bytes)):
                return replace(owner, value=owner.value[where])
            if isinstance(owner, Tup):
                return replace(owner, items=owner.items[where])
            if isinstance(obj, ListObj):
                return self.new(ListObj(None if obj.items is None else obj.items[where]), state, owner.steps)
        except (TypeError, ValueError):
            return unknown
        return unknown

    def get_item(self, owner: Abstract, key: Abstract, state: State, text: str = "") -> Abstract:  # type: ignore[override]
        kind = self.kind_of(owner, state)
        if kind in MAPPINGS or kind == "dict-like":
            return self.get_item(self.as_dict(owner, state), key, state, text)
        if kind in SETS | VIEWS or kind == "iterator":
            return Unk(Reason.RUNTIME, text)
        if isinstance(key, Unk) and (chosen := self._any_item(owner, state)) is not None:
            return chosen
        obj = state.heap.get(owner.oid) if isinstance(owner, Ref) else None
        if isinstance(obj, ClassObj) and obj.flavour == "enum" and isinstance(key, Const):
            attrs = state.heap.get(obj.attrs)
            if isinstance(attrs, DictObj) and key.value in obj.fields and key.value in attrs.entries:
                return attrs.entries[key.value]
        found = super().get_item(owner, key, state, text)
        if any(isinstance(member, Missing) for member in members(found)):
            found = join(Unk(Reason.RUNTIME, text) if isinstance(m, Missing) else m for m in members(found))
        return found

    def _any_item(self, owner: Abstract, state: State) -> Abstract | None:
        """What a subscript that is not known gives: one of the items, where they are few."""
        obj = state.heap.get(owner.oid) if isinstance(owner, Ref) else None
        values: tuple[Abstract, ...] = ()
        if isinstance(obj, DictObj) and obj.rest is None and ("factory", owner.oid) not in state.heap:  # type: ignore[union-attr]
            values = tuple(obj.entries.values())
        elif isinstance(owner, Tup):
            values = owner.items
        elif isinstance(obj, ListObj):
            values = obj.items or ()
        present = [member for value in values for member in members(value) if not isinstance(member, Missing)]
        if not present or len(present) > MAX_ALTERNATIVES:
            return None
        return join(present)

    def _set_one(self, target: Abstract, key: Abstract, value: Abstract, state: State, weak: bool) -> None:
        kind = self.kind_of(target, state)
        if kind == "module-dict":
            assert isinstance(target, Ref)
            self._set_global(self.part(target, state), key, value, state, weak)
        elif kind == "chain-map":
            assert isinstance(target, Ref)
            self._set_first(self.part(target, state), key, value, state, weak)
        elif kind in DICT_LIKE_KINDS:
            super()._set_one(self.as_dict(target, state), key, value, state, weak)
        elif isinstance(target, Unk) and target.oid is not None and not self.hashable(key)[1]:
            self.doubt_items(target, "", state)
        elif isinstance(target, Ref) and isinstance(obj := state.heap.get(target.oid), InstObj):
            if obj.made_by not in CONTAINERS:
                self.doubt_attributes(target, state, "[...] = ...")
        else:
            super()._set_one(target, key, value, state, weak)

    def _set_global(self, module: Abstract, key: Abstract, value: Abstract, state: State, weak: bool) -> None:
        if not isinstance(module, Mod):
            return
        if isinstance(key, Const) and isinstance(key.value, str):
            self._assign_module(module, key.value, value, state, weak)
            return
        home = ("module", module.module.path)
        for name in list(state.variables(home)):
            old = self.lookup(home, name, state) or Missing()
            state.bind(home, name, join((old, Unk(Reason.DYNAMIC_KEY, "a global name"))))

    def _set_first(self, maps: Abstract, key: Abstract, value: Abstract, state: State, weak: bool) -> None:
        first = maps.items[0] if isinstance(maps, Tup) and maps.items else maps
        for member in members(first):
            self._set_one(member, key, value, state, weak or isinstance(first, Alt))

    def delete_item(self, owner: Abstract, key: Abstract, state: State) -> None:  # type: ignore[override]
        weak = isinstance(owner, Alt)
        for target in members(owner):
            kind = self.kind_of(target, state)
            obj = state.heap.get(target.oid) if isinstance(target, Ref) else None
            plain, known = self.hashable(key)
            if kind == "module-dict":
                unknown = Unk(Reason.DYNAMIC_KEY, "a deleted global name")
                self._set_one(target, key, unknown, state, True)
            elif kind == "chain-map":
                self.escape([target], "del", state)
            elif kind in DICT_LIKE_KINDS:
                super().delete_item(self.as_dict(target, state), key, state)
            elif isinstance(target, Unk):
                self._delete_unknown(target, plain, known, state, weak)
            elif isinstance(obj, ListObj) and not weak and known and _in_range(plain, obj.items):
                assert isinstance(target, Ref) and obj.items is not None
                items = list(obj.items)
                del items[plain]
                state.heap[target.oid] = ListObj(tuple(items))
            elif isinstance(obj, InstObj) and obj.made_by not in CONTAINERS:
                self.doubt_attributes(target, state, "del [...]")
            else:
                super().delete_item(Alt((target,)) if weak else target, key, state)

    def _delete_unknown(self, target: Unk, plain: Any, known: bool, state: State, weak: bool) -> None:
        if target.oid is None:
            return
        if known and ("items", target.oid) in state.heap:
            self._store(("items", target.oid), plain, Missing(), state, weak)
        elif known:
            state.heap[("items", target.oid)] = DictObj({plain: Missing()}, replace(target, oid=None))
        else:
            self.doubt_items(target, "", state)

    def doubt_items(self, owner: Abstract, text: str, state: State) -> None:
        """What is known of the items of a dict that itself is not known does not hold any more."""
        for member in members(owner):
            overlay = state.heap.get(("items", member.oid)) if isinstance(member, Unk) else None
            if isinstance(overlay, DictObj) and isinstance(member, Unk):
                rest = overlay.rest or replace(member, oid=None)
                gone = replace(rest, detail=text or rest.detail)
                entries = {key: replace(gone, steps=value.steps) for key, value in overlay.entries.items()}
                state.heap[("items", member.oid)] = DictObj(entries, rest)

    def doubt_attributes(self, owner: Abstract, state: State, text: str) -> None:
        """Any attribute of an object may have been set to something else."""
        for member in members(owner):
            obj = state.heap.get(member.oid) if isinstance(member, Ref) else None
            attrs = state.heap.get(obj.attrs) if isinstance(obj, (InstObj, ClassObj)) else None
            if isinstance(obj, (InstObj, ClassObj)) and isinstance(attrs, DictObj):
                doubt = Unk(Reason.DYNAMIC_KEY, text)
                state.heap[obj.attrs] = DictObj(
                    {k: join((v, doubt)) for k, v in attrs.entries.items()}, doubt
                )

    def escape(self, values: Sequence[Abstract], where: str, state: State) -> None:  # type: ignore[override]
        held = {value.oid for value in reached(values, state)} if state.heap.unseen else set()
        super().escape(values, where, state)
        for kind, owner in list(state.heap.unseen) if held else ():
            if kind == "items" and _belongs(owner, held):
                self.doubt_items(Unk(Reason.ESCAPED, where, oid=owner), where, state)

    def instance_attribute(  # type: ignore[override]
        self, owner: Ref, obj: Object | None, name: str, state: State, frame: Frame
    ) -> Abstract:
        if isinstance(obj, InstObj) and obj.cls is None and obj.made_by in CONTAINERS:
            if name == "_fields" and obj.made_by == "namedtuple":
                attrs = state.heap.get(obj.attrs)
                return (
                    Tup(tuple(Const(key) for key in attrs.entries))
                    if isinstance(attrs, DictObj)
                    else Method(owner, name)
                )
            return Method(owner, name)
        return super().instance_attribute(owner, obj, name, state, frame)

    def soft_steps(self, values: Sequence[Abstract], state: State) -> Steps:
        """The steps of these values, and of what is in them, that say a command line can change them."""
        found: list[Step] = []
        for value in values:
            for member in members(value):
                found.extend(step for step in member.steps if step.kind is HopKind.ARGPARSE)
                obj = state.heap.get(member.oid) if isinstance(member, Ref) else None
                inner = (
                    member.items if isinstance(member, Tup) else obj.items if isinstance(obj, ListObj) else ()
                )
                found.extend(self.soft_steps(inner or (), state))
        return tuple(found[:4])


def _belongs(oid: Any, held: Container[Any]) -> bool:
    """Whether an unknown value is one of those that are held, or an attribute or a part of one."""
    while oid not in held:
        if type(oid) is not tuple or oid[0] not in ("attr", "item"):
            return False
        oid = oid[1]
    return True


_PART = "<part>"


def _key(key: Any) -> Abstract:
    """The abstract value of a dict's key; an object that is a key is known by its identity only."""
    if isinstance(key, tuple):
        if len(key) == 2 and key[0] == "object":
            return Ref(key[1])
        return Tup(tuple(_key(part) for part in key))
    return Const(key)


def _has_objects(obj: DictObj) -> bool:
    return any(isinstance(_key(key), (Ref, Tup)) for key in obj.entries)


def _in_range(index: Any, items: Sequence[Any] | None) -> bool:
    return items is not None and isinstance(index, int) and -len(items) <= index < len(items)
