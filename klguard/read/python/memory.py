"""Memory: how names, attributes and items are read and written, and what becomes of objects that unseen code gets."""

from __future__ import annotations

import builtins
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from klguard.read.python import nodes
from klguard.read.python.blocks import Blocks
from klguard.read.python.control import Frame
from klguard.read.python.source import shorten
from klguard.read.python.state import State, reachable
from klguard.read.python.values import (
    Abstract,
    Alt,
    ClassObj,
    Const,
    DictObj,
    Ext,
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
    Step,
    Steps,
    Tup,
    Unk,
    join,
    members,
    with_steps,
)
from klguard.settings import HopKind, Reason

BUILTINS = frozenset(dir(builtins))
KEYWORDS = {"True": True, "False": False, "None": None}
MAX_ITEMS = 256


class Memory(Blocks):
    """The heap, and the variables, attributes and items that lead to it."""

    instance_attribute: Callable[..., Abstract]
    module_variable: Callable[..., Abstract | None]
    super_method: Callable[..., Abstract | None]
    harmless: Callable[[Abstract, str], bool]
    lookup: Callable[[Any, str, State], Abstract | None]
    class_attribute: Callable[..., Abstract | None]

    def __init__(self) -> None:
        super().__init__()
        self._fresh = itertools.count()
        self._literals: dict[nodes.Node, Const] = {}
        self._spot: tuple[Any, nodes.Node] | None = None

    # -- heap --------------------------------------------------------------------------------------------------

    def new(self, obj: Object, state: State, steps: Steps = ()) -> Ref:  # type: ignore[override]
        oid = next(self._fresh)
        state.heap[oid] = obj
        return Ref(oid, steps)

    def new_dict(
        self, entries: dict[Any, Abstract], state: State, rest: Unk | None = None, steps: Steps = ()
    ) -> Ref:
        return self.new(DictObj(entries, rest), state, steps)

    def new_instance(
        self,
        made_by: str,
        attrs: dict[str, Abstract],
        state: State,
        *,
        cls: Ref | None = None,
        rest: Unk | None = None,
        text: str = "",
        steps: Steps = (),
    ) -> Ref:
        home = self.new_dict(dict(attrs), state, rest)
        return self.new(InstObj(cls, made_by, home.oid, text), state, steps)

    def dict_of(self, value: Abstract, state: State) -> DictObj | None:
        """The contents of a dict value; those of several joined. None when it is not known to be a dict."""
        found: list[DictObj] = []
        for member in members(value):
            obj = state.heap.get(member.oid) if isinstance(member, Ref) else None
            if isinstance(obj, InstObj) and obj.made_by in ("dict-like", "transformers.GenerationConfig"):
                obj = state.heap.get(obj.attrs)
            if isinstance(member, Unk) and ("items", member.oid) in state.heap:
                obj = state.heap[("items", member.oid)]
            if not isinstance(obj, DictObj):
                return None
            found.append(obj)
        if len(found) == 1:
            return found[0]
        entries: dict[Any, Abstract] = {}
        for key in dict.fromkeys(key for obj in found for key in obj.entries):
            entries[key] = join(obj.entries.get(key, obj.rest or Missing()) for obj in found)
        return DictObj(entries, next((obj.rest for obj in found if obj.rest is not None), None))

    def escape(self, values: Sequence[Abstract], where: str, state: State) -> None:  # type: ignore[override]
        """Somebody unseen may have changed everything reachable from `values`."""
        ends = () if self._spot is None else (Step(HopKind.END, *self._spot, where),)
        gone = Unk(Reason.ESCAPED, where, ends)
        for oid in list(reachable(values, state)):
            obj = state.heap[oid]
            if isinstance(obj, DictObj):
                state.heap[oid] = DictObj(
                    {k: with_steps(gone, (*v.steps, *ends)) for k, v in obj.entries.items()}, gone
                )
            elif isinstance(obj, ListObj):
                state.heap[oid] = ListObj(None)

    # -- names and attributes ----------------------------------------------------------------------------------

    def _eval_Name(self, node: nodes.Name, state: State, frame: Frame) -> Abstract:
        name = node.value
        if name in KEYWORDS:
            found = self._literals.get(node)
            if found is None:
                found = self._literals[node] = Const(KEYWORDS[name], self._literal(node, frame))
            return found
        home = frame.outer.get(name)
        for scope in (home,) if home is not None else frame.scopes:
            value = state.variables(scope).get(name)
            if isinstance(value, Later):
                return self.lookup(scope, name, state)
            if value is not None:
                return value
        if (found := self.module_variable(name, state, frame)) is not None:
            return found
        if name in BUILTINS:
            return Ext(f"builtins.{name}")
        if name == "__name__":
            return Const(frame.module.name)
        return Unk(Reason.RUNTIME, name, oid=("name", frame.module.path, name))

    def _literal(self, node: nodes.Expression, frame: Frame) -> Steps:
        return (Step(HopKind.LITERAL, frame.unit, node, "written here"),)

    def _eval_Attribute(self, node: nodes.Attribute, state: State, frame: Frame) -> Abstract:
        owner = self.eval(node.value, state, frame)
        return self.get_attribute(owner, node.attr, state, frame, node)

    def get_attribute(
        self, owner: Abstract, name: str, state: State, frame: Frame, node: nodes.Node | None = None
    ) -> Abstract:
        if isinstance(owner, Alt):
            return join(self.get_attribute(member, name, state, frame, node) for member in owner.values)
        match owner:
            case Ref():
                return self._ref_attribute(owner, name, state, frame)
            case Mod():
                found = self.lookup(("module", owner.module.path), name, state)
                return found if found is not None else self.import_name(owner.module.name, name, state, frame)
            case Ext():
                return Ext(f"{owner.name}.{name}")
            case Unk():
                return self._unknown_attribute(owner, name, state)
            case Partial() if name == "keywords":
                return owner.kwargs
            case Func() if name in ("__name__", "__qualname__"):
                return Const(owner.code.name)
        return Method(owner, name)

    def _unknown_attribute(self, owner: Unk, name: str, state: State) -> Abstract:
        if owner.oid is not None:
            overlay = state.heap.get(("overlay", owner.oid))
            if isinstance(overlay, DictObj) and name in overlay.entries:
                return overlay.entries[name]
        return Unk(
            owner.reason,
            shorten(f"{owner.detail}.{name}") if owner.detail else name,
            owner.steps,
            ("attr", owner.oid, name) if owner.oid is not None else None,
            owner,
            name,
        )

    def _ref_attribute(self, owner: Ref, name: str, state: State, frame: Frame) -> Abstract:
        obj = state.heap.get(owner.oid)
        if isinstance(obj, (DictObj, ListObj)):
            return Method(owner, name)
        if isinstance(obj, InstObj) and obj.made_by == "super":
            return self.super_method(obj, name, state) or Unk(
                Reason.RUNTIME, f"super().{name}", (), None, owner, name
            )
        if isinstance(obj, InstObj):
            if name == "__dict__":
                return Ref(obj.attrs)
            attrs = state.heap.get(obj.attrs)
            if isinstance(attrs, DictObj) and name in attrs.entries:
                value = attrs.entries[name]
                if not isinstance(value, (Missing, Alt)):
                    return value
                present = [m for m in members(value) if not isinstance(m, Missing)]
                if present and len(present) < len(members(value)):
                    present += self._without(owner, obj, name, state, frame)
                if present:
                    return join(present)
            rest = attrs.rest if isinstance(attrs, DictObj) else None
            if rest is not None and rest.reason is Reason.ESCAPED:
                return self._hidden(owner, obj, name, rest, state, frame)
        return self.instance_attribute(owner, obj, name, state, frame)

    def _hidden(self, owner: Ref, obj: InstObj, name: str, rest: Unk, state: State, frame: Frame) -> Abstract:
        """An attribute of an object that unseen code had: it may have been set there, and hide that of the class.
        Methods are not taken to be."""
        value = self.instance_attribute(owner, obj, name, state, frame)
        return with_steps(rest, value.steps) if isinstance(value, (Const, Ref, Tup, Alt)) else value

    def _without(self, owner: Ref, obj: InstObj, name: str, state: State, frame: Frame) -> list[Abstract]:
        """What an attribute is where it was not set: that of the class, or of the library that made the object. A read
        that would raise has no value."""
        if obj.cls is not None:
            inherited = self.class_attribute(obj.cls, name, state)
            return [] if inherited is None or isinstance(inherited, Func) else [inherited]
        return [self.instance_attribute(owner, obj, name, state, frame)] if obj.made_by else []

    def set_attribute(self, owner: Abstract, name: str, value: Abstract, state: State) -> None:  # type: ignore[override]
        targets = members(owner)
        for target in targets:
            key: Any = None
            if isinstance(target, Ref):
                obj = state.heap.get(target.oid)
                key = obj.attrs if isinstance(obj, (InstObj, ClassObj)) else None
                if (
                    isinstance(obj, InstObj)
                    and obj.cls is not None
                    and (self.class_attribute(obj.cls, f"{name}.setter", state) is not None)
                ):
                    self.escape([target], f"changed by the setter of {name}", state)
                    continue
            elif isinstance(target, Unk) and target.oid is not None:
                key = ("overlay", target.oid)
            elif isinstance(target, Ext) and not self.harmless(target, name):
                self.escape([value], f"stored as {target.name}.{name}", state)
            elif isinstance(target, Mod):
                self._assign_module(target, name, value, state, weak=len(targets) > 1)
            if key is not None:
                self._store(key, name, value, state, weak=len(targets) > 1)

    def _assign_module(self, module: Mod, name: str, value: Abstract, state: State, weak: bool) -> None:
        home = ("module", module.module.path)
        self.settle_imports(name, state)
        old = state.variables(home).get(name)
        state.bind(home, name, join((old, value)) if weak and old is not None else value)

    def _store(self, oid: Any, key: Any, value: Abstract, state: State, weak: bool) -> None:
        obj = state.heap.get(oid, DictObj())
        if not isinstance(obj, DictObj):
            return
        old = obj.entries.get(key, obj.rest or Missing())
        entries = dict(obj.entries)
        if isinstance(value, Missing) and not weak and obj.rest is None:
            entries.pop(key, None)
        else:
            entries[key] = join((old, value)) if weak else value
        state.heap[oid] = DictObj(entries, obj.rest)

    # -- items -------------------------------------------------------------------------------------------------

    def get_item(self, owner: Abstract, key: Abstract, state: State, text: str = "") -> Abstract:  # type: ignore[override]
        if isinstance(owner, Alt):
            return join(self.get_item(member, key, state, text) for member in owner.values)
        if isinstance(key, Alt):
            return join(self.get_item(owner, member, state, text) for member in key.values)
        if isinstance(owner, Ext):
            return owner if owner.name.startswith(("typing.", "builtins.")) else Unk(Reason.RUNTIME, text)
        plain, known = self.hashable(key)
        obj = state.heap.get(owner.oid) if isinstance(owner, Ref) else None
        if isinstance(obj, InstObj) and obj.made_by == "dict-like":
            obj = state.heap.get(obj.attrs)
        if isinstance(obj, DictObj):
            return self._entry_of_dict(obj, plain, known, text)
        items = self.items_of(owner, state)
        if items and not known and isinstance(key, Unk):
            return join(items)
        if (
            isinstance(items, tuple)
            and known
            and isinstance(plain, int)
            and -len(items) <= plain < len(items)
        ):
            if not isinstance(obj, DictObj):
                return items[plain]
        if isinstance(owner, Const) and known and isinstance(owner.value, (str, bytes)):
            try:
                return Const(owner.value[plain], owner.steps)
            except (IndexError, TypeError):
                pass
        if isinstance(owner, Unk) and known:
            overlay = state.heap.get(("items", owner.oid)) if owner.oid is not None else None
            if isinstance(overlay, DictObj) and plain in overlay.entries:
                return overlay.entries[plain]
            return Unk(
                owner.reason,
                text or f"{owner.detail}[{plain!r}]",
                owner.steps,
                ("item", owner.oid, plain) if owner.oid is not None else None,
            )
        return Unk(Reason.DYNAMIC_KEY if not known else Reason.RUNTIME, text)

    def _entry_of_dict(self, obj: DictObj, plain: Any, known: bool, text: str) -> Abstract:
        if not known:
            options = [
                m for value in obj.entries.values() for m in members(value) if not isinstance(m, Missing)
            ]
            return join(options) if options and obj.rest is None else Unk(Reason.DYNAMIC_KEY, text)
        value = obj.entries.get(plain, obj.rest)
        if value is None:
            return Unk(Reason.RUNTIME, text)
        present = [member for member in members(value) if not isinstance(member, Missing)]
        return join(present) if present else Unk(Reason.RUNTIME, text)

    def hashable(self, key: Abstract) -> tuple[Any, bool]:
        """(the plain value of a key, whether it is known)."""
        if isinstance(key, Const):
            return key.value, True
        if isinstance(key, Tup):
            parts = [self.hashable(item) for item in key.items]
            return tuple(p for p, _ in parts), all(known for _, known in parts)
        if isinstance(key, Ref):
            return ("object", key.oid), True
        return None, False

    def set_item(self, owner: Abstract, key: Abstract, value: Abstract, state: State) -> None:  # type: ignore[override]
        targets = members(owner)
        keys = members(key)
        weak = len(targets) > 1 or len(keys) > 1
        for target in targets:
            for option in keys:
                self._set_one(target, option, value, state, weak)

    def _set_one(self, target: Abstract, key: Abstract, value: Abstract, state: State, weak: bool) -> None:
        plain, known = self.hashable(key)
        if isinstance(target, Unk) and target.oid is not None and known:
            self._store(("items", target.oid), plain, value, state, weak)
            state.heap[("items", target.oid)] = replace(
                state.heap[("items", target.oid)],
                rest=replace(target, oid=None),  # type: ignore[arg-type]
            )
            return
        if not isinstance(target, Ref):
            return
        obj = state.heap.get(target.oid)
        if isinstance(obj, DictObj):
            if known:
                self._store(target.oid, plain, value, state, weak)
            else:
                doubt = Unk(Reason.DYNAMIC_KEY, key.detail if isinstance(key, Unk) else "")
                entries = {k: join((v, doubt)) for k, v in obj.entries.items()}
                state.heap[target.oid] = DictObj(entries, doubt)
        elif isinstance(obj, ListObj) and obj.items is not None:
            items = list(obj.items)
            if known and isinstance(plain, int) and -len(items) <= plain < len(items):
                items[plain] = join((items[plain], value)) if weak else value
                state.heap[target.oid] = ListObj(tuple(items))
            else:
                state.heap[target.oid] = ListObj(None)

    def delete_item(self, owner: Abstract, key: Abstract, state: State) -> None:  # type: ignore[override]
        plain, known = self.hashable(key)
        for target in members(owner):
            obj = state.heap.get(target.oid) if isinstance(target, Ref) else None
            if isinstance(obj, DictObj) and known:
                if obj.rest is None and not isinstance(owner, Alt):
                    entries = {k: v for k, v in obj.entries.items() if k != plain}
                    state.heap[target.oid] = DictObj(entries)  # type: ignore[union-attr]
                else:
                    self._store(target.oid, plain, Missing(), state, isinstance(owner, Alt))  # type: ignore[union-attr]
            elif isinstance(obj, DictObj):
                entries = {k: join((v, Missing())) for k, v in obj.entries.items()}
                state.heap[target.oid] = DictObj(entries, obj.rest)  # type: ignore[union-attr]
            elif isinstance(obj, ListObj):
                state.heap[target.oid] = ListObj(None)  # type: ignore[union-attr]

    def items_of(self, value: Abstract, state: State) -> tuple[Abstract, ...] | None:  # type: ignore[override]
        """What iterating over a value gives, when all of it is known."""
        match value:
            case Tup():
                return value.items
            case Const(value=str() as text) if len(text) <= MAX_ITEMS:
                return tuple(Const(char, value.steps) for char in text)
            case Ref():
                obj = state.heap.get(value.oid)
                if isinstance(obj, ListObj):
                    return obj.items
                if isinstance(obj, DictObj) and obj.rest is None:
                    if all(not isinstance(m, Missing) for v in obj.entries.values() for m in members(v)):
                        return tuple(
                            Const(key) if not isinstance(key, tuple) else Unk(Reason.RUNTIME, "a key")
                            for key in obj.entries
                        )
                if isinstance(obj, ClassObj) and obj.flavour == "enum":
                    attrs = state.heap.get(obj.attrs)
                    if isinstance(attrs, DictObj):
                        return tuple(
                            v for k, v in attrs.entries.items() if isinstance(v, Ref) and k in obj.fields
                        )
                if isinstance(obj, InstObj) and obj.made_by == "namedtuple":
                    attrs = state.heap.get(obj.attrs)
                    return tuple(attrs.entries.values()) if isinstance(attrs, DictObj) else None
        return None
