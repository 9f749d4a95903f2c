"""Expressions: what each evaluates to in a state, and how dicts, lists and instances are read and written."""

from __future__ import annotations

import builtins
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import libcst as cst

from klguard.read.python.flow import Flow, Frame
from klguard.read.python.operators import NotComputed, compute, compute_unary
from klguard.read.python.source import shorten
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
    State,
    Step,
    Steps,
    Tup,
    Unk,
    identity,
    join,
    join_states,
    members,
    reachable,
    truth,
    with_step,
)
from klguard.settings import HopKind, Reason

if TYPE_CHECKING:
    pass

BUILTINS = frozenset(dir(builtins))
KEYWORDS = {"True": True, "False": False, "None": None}
MAX_ITEMS = 256


class Expressions(Flow):
    """Evaluation of everything but calls."""

    call: Callable[..., Abstract]
    instance_attribute: Callable[..., Abstract]
    module_variable: Callable[..., Abstract | None]
    super_method: Callable[..., Abstract | None]
    harmless: Callable[[Abstract, str], bool]
    lookup: Callable[[Any, str, State], Abstract | None]
    class_attribute: Callable[..., Abstract | None]

    def __init__(self) -> None:
        super().__init__()
        self._fresh = itertools.count()
        self._literals: dict[cst.CSTNode, Const] = {}
        self._handlers: dict[type, Any] = {}
        self._sure = True
        self._filters_exactly = True

    def eval(self, node: cst.BaseExpression, state: State, frame: Frame) -> Abstract:  # type: ignore[override]
        handler = self._handlers.get(type(node))
        if handler is None:
            handler = self._handlers[type(node)] = getattr(self, "_eval_" + type(node).__name__, None)
        if handler is None:
            return Unk(Reason.UNSUPPORTED, self.text(node))
        return handler(node, state, frame)

    # -- heap --------------------------------------------------------------------------------------------------

    def new(self, obj: Object, state: State, steps: Steps = ()) -> Ref:  # type: ignore[override]
        oid = next(self._fresh)
        state.heap[oid] = obj
        return Ref(oid, steps)

    def new_dict(self, entries: dict[Any, Abstract], state: State, rest: Unk | None = None, steps: Steps = ()) -> Ref:
        return self.new(DictObj(entries, rest), state, steps)

    def new_instance(
        self, made_by: str, attrs: dict[str, Abstract], state: State, *, cls: Ref | None = None,
        rest: Unk | None = None, text: str = "", steps: Steps = (),
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
        gone = Unk(Reason.ESCAPED, where)
        for oid in list(reachable(values, state)):
            obj = state.heap[oid]
            if isinstance(obj, DictObj):
                state.heap[oid] = DictObj({k: replace(gone, steps=v.steps) for k, v in obj.entries.items()}, gone)
            elif isinstance(obj, ListObj):
                state.heap[oid] = ListObj(None)

    # -- names and attributes ----------------------------------------------------------------------------------

    def _eval_Name(self, node: cst.Name, state: State, frame: Frame) -> Abstract:
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

    def _literal(self, node: cst.BaseExpression, frame: Frame) -> Steps:
        return (Step(HopKind.LITERAL, frame.unit, node, "written here"),)

    def _eval_Attribute(self, node: cst.Attribute, state: State, frame: Frame) -> Abstract:
        owner = self.eval(node.value, state, frame)
        return self.get_attribute(owner, node.attr.value, state, frame, node)

    def get_attribute(
        self, owner: Abstract, name: str, state: State, frame: Frame, node: cst.CSTNode | None = None
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
            owner.reason, shorten(f"{owner.detail}.{name}") if owner.detail else name, owner.steps,
            ("attr", owner.oid, name) if owner.oid is not None else None, owner, name,
        )

    def _ref_attribute(self, owner: Ref, name: str, state: State, frame: Frame) -> Abstract:
        obj = state.heap.get(owner.oid)
        if isinstance(obj, (DictObj, ListObj)):
            return Method(owner, name)
        if isinstance(obj, InstObj) and obj.made_by == "super":
            return self.super_method(obj, name, state) or Unk(Reason.RUNTIME, f"super().{name}", (), None, owner, name)
        if isinstance(obj, InstObj):
            if name == "__dict__":
                return Ref(obj.attrs)
            attrs = state.heap.get(obj.attrs)
            if isinstance(attrs, DictObj) and name in attrs.entries:
                value = attrs.entries[name]
                if not isinstance(value, (Missing, Alt)):
                    return value
                present = [m for m in members(value) if not isinstance(m, Missing)]
                if present:
                    return join(present)
        return self.instance_attribute(owner, obj, name, state, frame)

    def set_attribute(self, owner: Abstract, name: str, value: Abstract, state: State) -> None:  # type: ignore[override]
        targets = members(owner)
        for target in targets:
            key: Any = None
            if isinstance(target, Ref):
                obj = state.heap.get(target.oid)
                key = obj.attrs if isinstance(obj, (InstObj, ClassObj)) else None
                if isinstance(obj, InstObj) and obj.cls is not None and (
                        self.class_attribute(obj.cls, f"{name}.setter", state) is not None):
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

    def _eval_Subscript(self, node: cst.Subscript, state: State, frame: Frame) -> Abstract:
        owner = self.eval(node.value, state, frame)
        key = self.subscript_key(node, state, frame)
        return self.get_item(owner, key, state, self.text(node))

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
            return self._dict_item(obj, plain, known, text)
        items = self.items_of(owner, state)
        if items and not known and isinstance(key, Unk):
            return join(items)
        if isinstance(items, tuple) and known and isinstance(plain, int) and -len(items) <= plain < len(items):
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
            return Unk(owner.reason, text or f"{owner.detail}[{plain!r}]", owner.steps,
                       ("item", owner.oid, plain) if owner.oid is not None else None)
        return Unk(Reason.DYNAMIC_KEY if not known else Reason.RUNTIME, text)

    def _dict_item(self, obj: DictObj, plain: Any, known: bool, text: str) -> Abstract:
        if not known:
            options = [m for value in obj.entries.values() for m in members(value) if not isinstance(m, Missing)]
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
                state.heap[("items", target.oid)], rest=replace(target, oid=None)  # type: ignore[arg-type]
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
                        return tuple(Const(key) if not isinstance(key, tuple) else Unk(Reason.RUNTIME, "a key")
                                     for key in obj.entries)
                if isinstance(obj, ClassObj) and obj.flavour == "enum":
                    attrs = state.heap.get(obj.attrs)
                    if isinstance(attrs, DictObj):
                        return tuple(v for k, v in attrs.entries.items() if isinstance(v, Ref) and k in obj.fields)
                if isinstance(obj, InstObj) and obj.made_by == "namedtuple":
                    attrs = state.heap.get(obj.attrs)
                    return tuple(attrs.entries.values()) if isinstance(attrs, DictObj) else None
        return None

    # -- literals and displays ---------------------------------------------------------------------------------

    def _eval_Integer(self, node: Any, state: State, frame: Frame) -> Abstract:
        found = self._literals.get(node)
        if found is None:
            found = self._literals[node] = Const(node.evaluated_value, self._literal(node, frame))
        return found

    _eval_Float = _eval_Imaginary = _eval_SimpleString = _eval_Integer

    def _eval_ConcatenatedString(self, node: cst.ConcatenatedString, state: State, frame: Frame) -> Abstract:
        left, right = self.eval(node.left, state, frame), self.eval(node.right, state, frame)
        return self.binary("Add", left, right, node, state, frame)

    def _eval_FormattedString(self, node: cst.FormattedString, state: State, frame: Frame) -> Abstract:
        text = ""
        for part in node.parts:
            if isinstance(part, cst.FormattedStringText):
                text += part.value.replace("{{", "{").replace("}}", "}")
                if "\\" in part.value:
                    return Unk(Reason.UNSUPPORTED, self.text(node))
                continue
            value = self.eval(part.expression, state, frame)
            plain = isinstance(value, Const) and part.format_spec is None and part.equal is None
            if not plain or part.conversion not in (None, "s"):
                return Unk(Reason.RUNTIME, self.text(node))
            text += str(value.value)  # type: ignore[union-attr]
        return Const(text, self._literal(node, frame))

    def _eval_Ellipsis(self, node: cst.Ellipsis, state: State, frame: Frame) -> Abstract:
        return Const(...)

    def _elements(self, elements: Sequence[Any], state: State, frame: Frame) -> tuple[Abstract, ...] | None:
        found: list[Abstract] | None = []
        for element in elements:
            value = self.eval(element.value, state, frame)
            if isinstance(element, cst.StarredElement):
                items = self.items_of(value, state)
                found = None if items is None or found is None else [*found, *items]
            elif found is not None:
                found.append(value)
        return tuple(found) if found is not None else None

    def _eval_Tuple(self, node: cst.Tuple, state: State, frame: Frame) -> Abstract:
        items = self._elements(node.elements, state, frame)
        return Tup(items, self._literal(node, frame)) if items is not None else Unk(Reason.RUNTIME, self.text(node))

    def _eval_List(self, node: cst.List, state: State, frame: Frame) -> Abstract:
        return self.new(ListObj(self._elements(node.elements, state, frame)), state, self._literal(node, frame))

    def _eval_Set(self, node: cst.Set, state: State, frame: Frame) -> Abstract:
        self._elements(node.elements, state, frame)
        return Unk(Reason.UNSUPPORTED, self.text(node))

    def _eval_Dict(self, node: cst.Dict, state: State, frame: Frame) -> Abstract:
        ref = self.new_dict({}, state, steps=self._literal(node, frame))
        for element in node.elements:
            if isinstance(element, cst.DictElement):
                key = self.eval(element.key, state, frame)
                value = self.eval(element.value, state, frame)
                self.set_item(ref, key, value, state)
            else:
                step = Step(HopKind.SPLAT, frame.unit, element, f"unpacked by {self.text(element)}".rstrip(", "))
                self.merge_into(ref, self.eval(element.value, state, frame), state, self.text(element.value), step)
        return ref

    def merge_into(
        self, ref: Ref, value: Abstract, state: State, text: str, step: Step | None = None, weak: bool = False
    ) -> None:
        """`ref.update(value)`: what `value` certainly holds wins, what it may hold joins."""
        target = state.heap[ref.oid]
        assert isinstance(target, DictObj)
        source = self.dict_of(value, state)
        if source is None and (pairs := self._pairs(value, state)) is not None:
            source = DictObj(pairs)
        entries = dict(target.entries)
        if source is None:
            doubt = value if isinstance(value, Unk) else Unk(Reason.RUNTIME, text)
            doubt = replace(doubt, detail=doubt.detail or text, oid=None)
            entries = {k: join((v, doubt)) for k, v in entries.items()}
            state.heap[ref.oid] = DictObj(entries, doubt)
            return
        if source.rest is not None:
            entries = {k: (v if k in source.entries else join((v, source.rest))) for k, v in entries.items()}
        for key, incoming in source.entries.items():
            arriving = with_step(incoming, step) if step is not None and not isinstance(incoming, Missing) else incoming
            old = entries.get(key, target.rest or Missing())
            maybe = [m for m in members(arriving) if not isinstance(m, Missing)]
            certain = len(maybe) == len(members(arriving)) and not weak
            entries[key] = arriving if certain else join((*maybe, old))
        state.heap[ref.oid] = DictObj(entries, target.rest or source.rest)

    def _pairs(self, value: Abstract, state: State) -> dict[Any, Abstract] | None:
        """A dict's contents given as an iterable of known (key, value) pairs."""
        items = self.items_of(value, state)
        if items is None or isinstance(value, Const):
            return None
        entries: dict[Any, Abstract] = {}
        for item in items:
            pair = self.items_of(item, state)
            if pair is None or len(pair) != 2:
                return None
            plain, known = self.hashable(pair[0])
            if not known:
                return None
            entries[plain] = pair[1]
        return entries

    # -- operators ---------------------------------------------------------------------------------------------

    def _eval_UnaryOperation(self, node: cst.UnaryOperation, state: State, frame: Frame) -> Abstract:
        operand = self.eval(node.expression, state, frame)
        name = type(node.operator).__name__
        results: list[Abstract] = []
        for member in members(operand):
            if name == "Not" and (answer := truth(member, state)) is not None:
                results.append(Const(not answer, _soft(member.steps)))
            elif isinstance(member, Const):
                try:
                    own = () if name == "Not" else self._literal(node, frame)
                    results.append(Const(compute_unary(name, member.value), own + _soft(member.steps)))
                except NotComputed:
                    results.append(Unk(Reason.RUNTIME, self.text(node)))
            else:
                results.append(Unk(Reason.RUNTIME, self.text(node)))
        return join(results)

    def _eval_BinaryOperation(self, node: cst.BinaryOperation, state: State, frame: Frame) -> Abstract:
        left, right = self.eval(node.left, state, frame), self.eval(node.right, state, frame)
        return self.binary(type(node.operator).__name__, left, right, node, state, frame)

    def binary(  # type: ignore[override]
        self, name: str, left: Abstract, right: Abstract, node: cst.CSTNode, state: State, frame: Frame,
        in_place: bool = False,
    ) -> Abstract:
        if in_place and isinstance(left, Ref) and len(members(right)) > 1:
            return self._change_in_place(name, left, right, node, state, frame)
        results = [
            self._binary_one(name, a, b, node, state, frame, in_place) for a in members(left) for b in members(right)
        ]
        return join(results)

    def _change_in_place(
        self, name: str, left: Ref, right: Abstract, node: cst.CSTNode, state: State, frame: Frame
    ) -> Abstract:
        """`kw |= a if x else b`: one object, changed in one of several ways."""
        if name == "BitOr" and isinstance(state.heap.get(left.oid), DictObj):
            step = Step(HopKind.UPDATE, frame.unit, node, f"merged by {self.text(node)}")
            self.merge_into(left, right, state, self.text(node), step)
        else:
            self.escape([left], self.text(node), state)
        return left

    def _binary_one(
        self, name: str, left: Abstract, right: Abstract, node: cst.CSTNode, state: State, frame: Frame, in_place: bool
    ) -> Abstract:
        if isinstance(left, Const) and isinstance(right, Const):
            try:
                steps = (Step(HopKind.LITERAL, frame.unit, node, f"computed by {self.text(node)}"),)
                soft = _soft(left.steps) + _soft(right.steps)
                return Const(compute(name, left.value, right.value), steps + soft)
            except NotComputed:
                return Unk(Reason.RUNTIME, self.text(node))
        obj = state.heap.get(left.oid) if isinstance(left, Ref) else None
        if name == "BitOr" and isinstance(obj, DictObj):
            ref = left if in_place and isinstance(left, Ref) else self.new_dict(dict(obj.entries), state, obj.rest)
            step = Step(HopKind.UPDATE, frame.unit, node, f"merged by {self.text(node)}")
            self.merge_into(ref, right, state, self.text(node), step)
            return ref
        if name == "BitOr" and isinstance(left, Unk) and self.dict_of(right, state) is not None:
            ref = self.new_dict({}, state, replace(left, oid=None))
            self.merge_into(ref, right, state, self.text(node))
            return ref
        if name == "Add" and isinstance(left, (Ref, Tup)):
            a, b = self.items_of(left, state), self.items_of(right, state)
            joined = None if a is None or b is None else (*a, *b)
            if isinstance(left, Tup):
                return Tup(joined, left.steps) if joined is not None else Unk(Reason.RUNTIME, self.text(node))
            if isinstance(obj, ListObj):
                if in_place:
                    state.heap[left.oid] = ListObj(joined)
                    return left
                return self.new(ListObj(joined), state)
        if name == "Multiply" and isinstance(obj, ListObj):
            return self.new(ListObj(None), state)
        return Unk(Reason.RUNTIME, self.text(node))

    def _eval_BooleanOperation(self, node: cst.BooleanOperation, state: State, frame: Frame) -> Abstract:
        left = self.eval(node.left, state, frame)
        stops_at = isinstance(node.operator, cst.Or)
        results: list[Abstract] = []
        goes_on = False
        for member in members(left):
            answer = truth(member, state)
            if answer is stops_at or answer is None:
                results.append(member)
            goes_on = goes_on or answer is not stops_at
        if goes_on:
            right_state = state.copy()
            self.narrow(node.left, not stops_at, right_state, frame)
            right = self.eval(node.right, right_state, frame)
            if results:
                merged = join_states([state, right_state])
                assert merged is not None
                state.become(merged)
            else:
                state.become(right_state)
            results.append(right)
        return join(results)

    def _eval_Comparison(self, node: cst.Comparison, state: State, frame: Frame) -> Abstract:
        left = self.eval(node.left, state, frame)
        answer: Abstract = Const(True)
        for target in node.comparisons:
            right = self.eval(target.comparator, state, frame)
            results = [
                self._compare(type(target.operator).__name__, a, b, state) for a in members(left) for b in members(right)
            ]
            step = join(Unk(Reason.RUNTIME, self.text(node)) if r is None else r for r in results)
            answer = step if truth(answer, state) is True else (answer if truth(answer, state) is False else Unk(
                Reason.RUNTIME, self.text(node)))
            left = right
        return answer

    def _compare(self, name: str, left: Abstract, right: Abstract, state: State) -> Const | None:
        soft = _soft(left.steps) + _soft(right.steps)
        if isinstance(left, Const) and isinstance(right, Const):
            try:
                return Const(bool(compute(name, left.value, right.value)), soft)
            except NotComputed:
                return None
        if name in ("In", "NotIn"):
            return self._contains(name == "In", left, right, state, soft)
        if name in ("Is", "IsNot", "Equal", "NotEqual"):
            negative = name in ("IsNot", "NotEqual")
            if isinstance(left, Ref) and isinstance(right, Ref) and left.oid == right.oid:
                return Const(not negative, soft)
            pair = (left, right)
            none = any(isinstance(v, Const) and v.value is None for v in pair)
            solid = any(isinstance(v, (Ref, Tup, Func, Mod, Partial)) for v in pair)
            if none and solid:
                return Const(negative, soft)
        return None

    def _contains(self, positive: bool, left: Abstract, right: Abstract, state: State, soft: Steps) -> Const | None:
        plain, known = self.hashable(left)
        obj = state.heap.get(right.oid) if isinstance(right, Ref) else None
        if isinstance(obj, InstObj) and obj.made_by == "dict-like":
            obj = state.heap.get(obj.attrs)
        if known and isinstance(obj, DictObj):
            value = obj.entries.get(plain)
            if value is None:
                return Const(not positive, soft) if obj.rest is None else None
            missing = [isinstance(member, Missing) for member in members(value)]
            if not any(missing):
                return Const(positive, soft)
            return Const(not positive, soft) if all(missing) else None
        items = self.items_of(right, state)
        if known and items is not None and all(isinstance(item, Const) for item in items):
            return Const(any(item.value == plain for item in items) is positive, soft)  # type: ignore[union-attr]
        return None

    def _eval_IfExp(self, node: cst.IfExp, state: State, frame: Frame) -> Abstract:
        taken = truth(self.eval(node.test, state, frame), state)
        if taken is not None:
            return self.eval(node.body if taken else node.orelse, state, frame)
        yes, no = state.copy(), state.copy()
        self.narrow(node.test, True, yes, frame)
        self.narrow(node.test, False, no, frame)
        value = join((self.eval(node.body, yes, frame), self.eval(node.orelse, no, frame)))
        merged = join_states([yes, no])
        assert merged is not None
        state.become(merged)
        return value

    def _eval_NamedExpr(self, node: cst.NamedExpr, state: State, frame: Frame) -> Abstract:
        value = self.eval(node.value, state, frame)
        self.assign(node.target, value, state, frame)
        return value

    def _eval_Await(self, node: cst.Await, state: State, frame: Frame) -> Abstract:
        return self.eval(node.expression, state, frame)

    def _eval_Yield(self, node: cst.Yield, state: State, frame: Frame) -> Abstract:
        if isinstance(node.value, cst.From):
            value = self.eval(node.value.item, state, frame)
            items = self.items_of(value, state)
            frame.yields = None if items is None or frame.yields is None else [*frame.yields, *items]
        elif node.value is not None:
            value = self.eval(node.value, state, frame)
            if frame.yields is not None:
                frame.yields.append(value)
        return Unk(Reason.RUNTIME, "what is sent to a generator")

    # -- comprehensions ----------------------------------------------------------------------------------------

    def _eval_ListComp(self, node: cst.ListComp, state: State, frame: Frame) -> Abstract:
        found: list[Abstract] = []
        certain = self._comprehend(node.for_in, lambda s, f: found.append(self.eval(node.elt, s, f)), state, frame)
        return self.new(ListObj(tuple(found) if certain else None), state, self._literal(node, frame))

    def _eval_GeneratorExp(self, node: cst.GeneratorExp, state: State, frame: Frame) -> Abstract:
        found: list[Abstract] = []
        certain = self._comprehend(node.for_in, lambda s, f: found.append(self.eval(node.elt, s, f)), state, frame)
        return Tup(tuple(found)) if certain else Unk(Reason.RUNTIME, self.text(node))

    def _eval_SetComp(self, node: cst.SetComp, state: State, frame: Frame) -> Abstract:
        self._comprehend(node.for_in, lambda s, f: self.eval(node.elt, s, f), state, frame)
        return Unk(Reason.UNSUPPORTED, self.text(node))

    def _eval_DictComp(self, node: cst.DictComp, state: State, frame: Frame) -> Abstract:
        ref = self.new_dict({}, state, steps=self._literal(node, frame))

        def add(inner: State, scope: Frame) -> None:
            key = self.eval(node.key, inner, scope)
            value = self.eval(node.value, inner, scope)
            self.set_item(ref, key, value if self._sure else join((value, Missing())), inner)

        if not self._comprehend(node.for_in, add, state, frame, filtered=True):
            state.heap[ref.oid] = DictObj({}, Unk(Reason.RUNTIME, self.text(node)))
        return ref

    def _comprehend(
        self, clause: cst.CompFor, produce: Callable[[State, Frame], Any], state: State, frame: Frame,
        filtered: bool = False,
    ) -> bool:
        """Run a comprehension; False when what it runs over is not known, or, unless `filtered`, what it filters by.
        While `produce` runs, `_sure` says whether the item is certainly kept."""
        inner = replace(frame, id=("comp", next(self._fresh)), outer=dict(frame.outer))
        inner.scopes = (inner.id, *frame.scopes)
        inner.returns, inner.loops = frame.returns, frame.loops
        around = self._sure, self._filters_exactly
        self._sure, self._filters_exactly = True, True
        certain = self._comp_for(clause, produce, state, inner) and (filtered or self._filters_exactly)
        self._sure, self._filters_exactly = around
        state.frames.pop(inner.id, None)
        return certain

    def _comp_for(self, clause: cst.CompFor, produce: Callable[..., Any], state: State, frame: Frame) -> bool:
        iterable = self.eval(clause.iter, state, frame)
        items = self.items_of(iterable, state)
        certain = items is not None and len(items) <= MAX_ITEMS and clause.asynchronous is None
        if not certain:
            items = (join(items),) if items else (Unk(Reason.RUNTIME, f"an item of {self.text(clause.iter)}"),)
        assert items is not None
        for item in items:
            self.spend()
            self.assign(clause.target, item, state, frame)
            keep: bool | None = True
            for condition in clause.ifs:
                answer = truth(self.eval(condition.test, state, frame), state)
                keep = False if answer is False else (None if answer is None and keep is not False else keep)
                if keep is False:
                    break
            if keep is False:
                continue
            sure, self._sure = self._sure, self._sure and keep is True
            self._filters_exactly = self._filters_exactly and keep is True
            if clause.inner_for_in is not None:
                certain = self._comp_for(clause.inner_for_in, produce, state, frame) and certain
            else:
                produce(state, frame)
            self._sure = sure
        return certain


def _soft(steps: Steps) -> Steps:
    """The steps that say a command line can change the value; they survive every operation."""
    return tuple(step for step in steps if step.kind is HopKind.ARGPARSE)


__all__ = ["Expressions", "identity"]
