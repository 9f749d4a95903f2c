"""Objects with named fields: dataclasses, named tuples, and what asks an object for its class or
attributes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from klguard.read.python import nodes
from klguard.read.python.calls import Arguments
from klguard.read.python.control import Frame
from klguard.read.python.coroutines import Coroutines
from klguard.read.python.state import State
from klguard.read.python.values import (
    Abstract,
    Alt,
    ClassObj,
    Const,
    DictObj,
    Ext,
    Func,
    InstObj,
    ListObj,
    Missing,
    Mod,
    Object,
    Ref,
    Step,
    Tup,
    Unk,
    identity,
    join,
    members,
    with_step,
)
from klguard.settings import HopKind, Reason

_ABSTRACT = {
    "Mapping",
    "MutableMapping",
    "Sequence",
    "MutableSequence",
    "Iterable",
    "Callable",
    "Number",
    "Real",
    "Integral",
    "Sized",
    "Collection",
    "Hashable",
    "Set",
}
"""Names of abstract classes, of which built-in values are instances in ways that are not followed here."""


class Records(Coroutines):
    """Models of the functions that look into objects."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._library |= {
            "dataclasses.field": self._field,
            "pydantic.Field": self._field,
            "attr.ib": self._field,
            "attrs.field": self._field,
            "dataclasses.asdict": self._asdict,
            "attrs.asdict": self._asdict,
            "attr.asdict": self._asdict,
            "dataclasses.astuple": self._astuple,
            "dataclasses.fields": self._fields_of,
            "dataclasses.replace": self._replace,
            "attrs.evolve": self._replace,
            "copy.replace": self._replace,
            "dataclasses.is_dataclass": self._is_dataclass,
            "collections.namedtuple": self._namedtuple_type,
            "builtins.isinstance": self._isinstance,
            "builtins.type": self._type,
            "builtins.getattr": self._getattr,
            "builtins.setattr": self._setattr,
            "builtins.delattr": self._delattr,
            "builtins.hasattr": self._hasattr,
            "object.__setattr__": self._setattr,
            "builtins.object.__setattr__": self._setattr,
            "builtins.vars": self._vars,
            "builtins.globals": self._globals,
            "builtins.locals": self._locals,
        }

    # -- named tuples ----------------------------------------------------------------------------------------

    def _namedtuple_type(
        self, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract | None:
        names, defaults = args.get("field_names", 1), args.get("defaults") or Tup(())
        plain = self.plain(names, state) if names is not None else None
        fields = plain.replace(",", " ").split() if isinstance(plain, str) else plain
        given = self.items_of(defaults, state) if not isinstance(defaults, Const) else ()
        extra = set(args.keywords) - {"defaults", "field_names", "typename", "module"}
        if not isinstance(fields, (list, tuple)) or given is None or extra or args.rest is not None:
            return None
        if not all(isinstance(name, str) for name in fields) or len(given) > len(fields):
            return None
        filled: list[Abstract] = [*[Missing()] * (len(fields) - len(given)), *given]
        pairs = tuple(Tup((Const(name), value)) for name, value in zip(fields, filled, strict=False))
        return self.make("namedtuple-type", Tup(pairs), state, self.text(node))

    def call_namedtuple(
        self, callee: Ref, args: Arguments, node: nodes.Call, state: State
    ) -> Abstract | None:
        """Make an instance of what `collections.namedtuple` returned."""
        pairs = self.part(callee, state)
        if not isinstance(pairs, Tup) or args.more_positional is not None or args.rest is not None:
            return None
        entries: dict[str, Abstract] = {}
        for index, pair in enumerate(pairs.items):
            name, default = pair.items[0].value, pair.items[1]  # type: ignore[union-attr]
            entries[name] = (
                args.positional[index] if index < len(args.positional) else args.keywords.get(name, default)
            )
        if any(isinstance(member, Missing) for value in entries.values() for member in members(value)):
            return None
        return self.new_instance("namedtuple", entries, state, text=self.text(node))

    def _namedtuple_attrs(self, value: Abstract, state: State) -> DictObj | None:
        obj = state.heap.get(value.oid) if isinstance(value, Ref) else None
        attrs = (
            state.heap.get(obj.attrs) if isinstance(obj, InstObj) and obj.made_by == "namedtuple" else None
        )
        return attrs if isinstance(attrs, DictObj) else None

    def namedtuple_method(
        self, owner: Ref, name: str, args: Arguments, node: nodes.Call, state: State
    ) -> Abstract | None:
        """`_asdict` and `_replace`; other methods of a named tuple cannot change it."""
        obj, attrs = state.heap.get(owner.oid), self._namedtuple_attrs(owner, state)
        if attrs is None or not isinstance(obj, InstObj):
            return None
        if name == "_asdict":
            return self.new_dict(dict(attrs.entries), state, attrs.rest)
        if name == "_replace":
            twin = self._duplicate_object(owner, state, {}, False)
            home = state.heap[twin.oid]  # type: ignore[union-attr]
            self.merge_keywords(Ref(home.attrs), args, state)  # type: ignore[union-attr]
            return twin
        return None

    def instance_attribute(  # type: ignore[override]
        self, owner: Ref, obj: Object | None, name: str, state: State, frame: Frame
    ) -> Abstract:
        if isinstance(obj, ClassObj) and obj.flavour == "namedtuple" and name == "_fields":
            return Tup(tuple(Const(field) for field in obj.fields))
        if (
            isinstance(obj, InstObj)
            and obj.cls is not None
            and obj.made_by == "namedtuple"
            and name == "_fields"
        ):
            return self.instance_attribute(obj.cls, state.heap.get(obj.cls.oid), name, state, frame)
        return super().instance_attribute(owner, obj, name, state, frame)

    # -- dataclasses -----------------------------------------------------------------------------------------

    def _field(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract:
        entries = dict(args.keywords)
        if args.positional and not (
            isinstance(args.positional[0], Const) and args.positional[0].value is ...
        ):
            entries.setdefault("default", args.positional[0])
        if "factory" in entries:
            entries.setdefault("default_factory", entries["factory"])
        return self.new_instance("field", entries, state)

    def _class_object(self, value: Abstract, state: State) -> tuple[Ref, ClassObj] | None:
        """The class of an instance, or the class itself."""
        obj = state.heap.get(value.oid) if isinstance(value, Ref) else None
        ref = obj.cls if isinstance(obj, InstObj) else value
        cls = state.heap.get(ref.oid) if isinstance(ref, Ref) else None
        return (ref, cls) if isinstance(ref, Ref) and isinstance(cls, ClassObj) else None

    def _fields_of(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        value = args.get("class_or_instance", 0)
        found = self._class_object(value, state) if value is not None else None
        if found is None or found[1].flavour != "dataclass" or self.has_foreign_base(found[0], state):
            return None
        made = []
        for name in found[1].fields:
            info: dict[str, Abstract] = {"name": Const(name)}
            default = self.class_attribute(found[0], name, state)
            if isinstance(default, Const):
                info["default"] = default
            made.append(self.new_instance("dataclass-field", info, state, rest=Unk(Reason.RUNTIME, name)))
        return Tup(tuple(made))

    def _is_dataclass(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        value = args.get("obj", 0)
        found = self._class_object(value, state) if value is not None else None
        return (
            Const(True)
            if found is not None
            and found[1].flavour == "dataclass"
            and not self.has_foreign_base(found[0], state)
            else None
        )

    def _field_values(self, value: Abstract, state: State) -> tuple[dict[Any, Abstract], Unk | None] | None:
        """The fields of a dataclass instance, and what else it may have."""
        obj = state.heap.get(value.oid) if isinstance(value, Ref) else None
        cls = self._class_object(value, state)
        if not isinstance(obj, InstObj) or cls is None:
            return None
        attrs = state.heap.get(obj.attrs)
        if not isinstance(attrs, DictObj):
            return None
        foreign = [base for base in self.mro(cls[0], state) if isinstance(base, Ext)]
        whole = all(
            base.name.rpartition(".")[2]
            in ("object", "BaseModel", "NamedTuple", "ABC", "Generic", "Protocol")
            for base in foreign
        )
        rest = attrs.rest or (None if whole else Unk(Reason.RUNTIME, f"the fields of {foreign[0].name}"))
        return {name: attrs.entries[name] for name in cls[1].fields if name in attrs.entries}, rest

    def _asdict(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        value = args.get("obj", 0) or args.get("instance") or args.get("inst")
        found = self._field_values(value, state) if value is not None else None
        if found is None or set(args.keywords) - {"obj", "instance", "inst"}:
            return None
        return self.new_dict({k: self._plain_copy(v, state) for k, v in found[0].items()}, state, found[1])

    def _astuple(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        value = args.get("obj", 0)
        found = self._field_values(value, state) if value is not None else None
        if found is None or found[1] is not None or args.keywords:
            return None
        values = [self._plain_copy(item, state) for item in found[0].values()]
        nested = any(
            isinstance(state.heap.get(m.oid), DictObj)
            for v in found[0].values()
            for m in members(v)
            if isinstance(m, Ref)
        )
        return None if nested else Tup(tuple(values))

    def _plain_copy(self, value: Abstract, state: State, depth: int = 6) -> Abstract:
        """A deep copy in which instances of dataclasses are dicts."""
        if isinstance(value, Alt):
            return join(self._plain_copy(member, state, depth) for member in value.values)
        if depth == 0:
            return Unk(Reason.BUDGET, "asdict")
        obj = state.heap.get(value.oid) if isinstance(value, Ref) else None
        if isinstance(obj, DictObj):
            return self.new_dict(
                {k: self._plain_copy(v, state, depth - 1) for k, v in obj.entries.items()}, state, obj.rest
            )
        if isinstance(obj, ListObj):
            items = (
                None if obj.items is None else tuple(self._plain_copy(i, state, depth - 1) for i in obj.items)
            )
            return self.new(ListObj(items), state, value.steps)
        cls = self._class_object(value, state) if isinstance(obj, InstObj) else None
        found = (
            self._field_values(value, state) if cls is not None and cls[1].flavour == "dataclass" else None
        )
        if found is not None:
            entries = {k: self._plain_copy(v, state, depth - 1) for k, v in found[0].items()}
            return self.new_dict(entries, state, found[1])
        return self.duplicate(value, state, {}, deep=True)

    def _replace(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        """A new instance, whose `__post_init__` runs again."""
        if not args.positional:
            return None
        source = args.positional[0]
        cls = self._class_object(source, state)
        post = self.class_attribute(cls[0], "__post_init__", state) if cls is not None else None
        twin = self.duplicate(source, state, {}, deep=False)
        obj = state.heap.get(twin.oid) if isinstance(twin, Ref) else None
        if not isinstance(obj, InstObj) or not isinstance(twin, Ref):
            return None
        self.merge_keywords(Ref(obj.attrs), args, state)
        if isinstance(post, Func):
            self.invoke(replace(post, bound=twin), Arguments(), node, state, frame)
        return twin

    # -- classes ---------------------------------------------------------------------------------------------

    def has_foreign_base(self, cls: Abstract, state: State) -> bool:
        if super().has_foreign_base(cls, state):
            return True
        return any(
            not isinstance(state.heap.get(base.oid), ClassObj)
            for base in self.mro(cls, state)
            if isinstance(base, Ref)
        )

    def _isinstance(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        value, kind = args.get("", 0), args.get("", 1)
        if value is None or kind is None:
            return None
        kinds = kind.items if isinstance(kind, Tup) else (kind,)
        answers = [self._is_instance(member, kinds, state) for member in members(value)]
        if None in answers:
            return None
        return join(Const(answer, self.soft_steps([value], state)) for answer in answers)

    def _is_instance(self, value: Abstract, kinds: tuple[Abstract, ...], state: State) -> bool | None:
        answers = [self._is_of(value, kind, state) for kind in kinds]
        return True if True in answers else None if None in answers else False

    def _is_of(self, value: Abstract, kind: Abstract, state: State) -> bool | None:
        """Whether a value is an instance of a class, None when that is not known."""
        obj = state.heap.get(value.oid) if isinstance(value, Ref) else None
        if isinstance(kind, Ref) and isinstance(state.heap.get(kind.oid), ClassObj):
            if not isinstance(obj, InstObj):
                return (
                    False if isinstance(value, (Const, Tup)) or isinstance(obj, (DictObj, ListObj)) else None
                )
            if obj.cls is None:
                return None
            if any(identity(base) == identity(kind) for base in self.mro(obj.cls, state)):
                return True
            return None if self.has_foreign_base(obj.cls, state) else False
        if not isinstance(kind, Ext):
            return None
        name = kind.name.removeprefix("builtins.")
        if isinstance(value, Const):
            known = kind.name.startswith("builtins.") or name in ("torch.Tensor", "types.NoneType")
            return any(base.__name__ == name for base in type(value.value).__mro__) if known else None
        names = {
            "Tup": {"tuple", "object"},
            "ListObj": {"list", "object"},
            "DictObj": {"dict", "object"},
        }.get(type(obj).__name__ if obj is not None else type(value).__name__)
        if names is None:
            return self._is_builtin_kind(value, name, state)
        if kind.name.rpartition(".")[2] in _ABSTRACT or not kind.name.startswith("builtins."):
            is_mapping = isinstance(obj, DictObj) and kind.name.rpartition(".")[2] in (
                "Mapping",
                "MutableMapping",
            )
            return True if is_mapping else None
        return name in names

    def _is_builtin_kind(self, value: Abstract, name: str, state: State) -> bool | None:
        kind = self.kind_of(value, state)
        if kind in ("set", "frozenset") and name in (
            "set",
            "frozenset",
            "list",
            "dict",
            "tuple",
            "str",
            "int",
            "float",
        ):
            return kind == name
        return None

    def _type(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        if len(args.positional) != 1:
            return None
        return join(self._type_of(member, state, self.text(node)) for member in members(args.positional[0]))

    def _type_of(self, value: Abstract, state: State, text: str) -> Abstract:
        obj = state.heap.get(value.oid) if isinstance(value, Ref) else None
        if isinstance(obj, InstObj) and obj.cls is not None:
            return obj.cls
        if isinstance(value, Const) and value.value is not None and value.value is not ...:
            return Ext(f"builtins.{type(value.value).__name__}")
        if isinstance(value, Tup):
            return Ext("builtins.tuple")
        if (
            isinstance(value, Ref)
            and isinstance(obj, (DictObj, ListObj))
            and ("factory", value.oid) not in state.heap
        ):
            return Ext("builtins.dict" if isinstance(obj, DictObj) else "builtins.list")
        return Unk(Reason.RUNTIME, text)

    # -- attributes by name ----------------------------------------------------------------------------------

    def _getattr(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        owner, name, default = (args.get("", i) for i in range(3))
        if owner is None or name is None:
            return None
        options = [m.value for m in members(name) if isinstance(m, Const) and isinstance(m.value, str)]
        if len(options) != len(members(name)):
            return None
        return join(
            self._getattr_one(m, option, default, node, state, frame)
            for m in members(owner)
            for option in options
        )

    def _getattr_one(
        self,
        owner: Abstract,
        name: str,
        default: Abstract | None,
        node: nodes.Call,
        state: State,
        frame: Frame,
    ) -> Abstract:
        found = self.has_attribute(owner, name, state)
        if found is False and default is not None:
            return default
        value = self.get_attribute(owner, name, state, frame, node)
        if found or default is None:
            return value
        step = Step(HopKind.DEFAULT, frame.unit, node, f"fallback of {self.text(node)}")
        return join((with_step(default, step), value))

    def has_attribute(self, owner: Abstract, name: str, state: State) -> bool | None:
        """Whether an object certainly has an attribute, certainly has not, or None."""
        if isinstance(owner, Mod):
            return True if name in state.variables(("module", owner.module.path)) else None
        obj = state.heap.get(owner.oid) if isinstance(owner, Ref) else None
        if isinstance(obj, (InstObj, ClassObj)):
            attrs = state.heap.get(obj.attrs)
            cls = obj.cls if isinstance(obj, InstObj) else owner
            if isinstance(attrs, DictObj) and name in attrs.entries:
                missing = [isinstance(m, Missing) for m in members(attrs.entries[name])]
                return None if any(missing) else True
            if cls is not None and self.class_attribute(cls, name, state) is not None:
                return True
            closed = isinstance(attrs, DictObj) and attrs.rest is None and not name.startswith("_")
            plain = isinstance(obj, InstObj) and obj.made_by in ("", "namespace", "namedtuple")
            if cls is not None and self.class_attribute(cls, "__getattr__", state) is not None:
                return None
            return (
                False if closed and plain and (cls is None or not self.has_foreign_base(cls, state)) else None
            )
        return None

    def _setattr(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract:
        owner, name, value = (args.get("", i) for i in range(3))
        if owner is None or value is None:
            return Const(None)
        if isinstance(name, Const) and isinstance(name.value, str):
            step = Step(HopKind.ATTRIBUTE, frame.unit, node, f"set by {self.text(node)}")
            self.set_attribute(owner, name.value, with_step(value, step), state)
        else:
            self._doubt_all(owner, state, self.text(node))
        return Const(None)

    def _doubt_all(self, owner: Abstract, state: State, text: str) -> None:
        """An attribute whose name is not known was set or deleted."""
        self.doubt_attributes(owner, state, text)
        for member in members(owner):
            if isinstance(member, Mod):
                self._set_global(member, Unk(Reason.DYNAMIC_KEY, text), Const(None), state, True)

    def _delattr(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract:
        owner, name = args.get("", 0), args.get("", 1)
        if owner is not None and isinstance(name, Const) and isinstance(name.value, str):
            self.set_attribute(owner, name.value, Missing(), state)
        elif owner is not None:
            self._doubt_all(owner, state, self.text(node))
        return Const(None)

    def _hasattr(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        owner, name = args.get("", 0), args.get("", 1)
        if owner is None or not isinstance(name, Const) or not isinstance(name.value, str):
            return None
        found = {self.has_attribute(member, name.value, state) for member in members(owner)}
        return Const(found.pop()) if len(found) == 1 and None not in found else None

    def _vars(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        owner = args.get("", 0)
        if owner is None:
            return self._locals(args, node, state, frame)
        return join(self._vars_of(member, node, state) for member in members(owner))

    def _vars_of(self, owner: Abstract, node: nodes.Call, state: State) -> Abstract:
        obj = state.heap.get(owner.oid) if isinstance(owner, Ref) else None
        if isinstance(obj, InstObj):
            return Ref(obj.attrs)
        if isinstance(owner, Mod):
            return self.make("module-dict", owner, state, self.text(node))
        attrs = state.heap.get(obj.attrs) if isinstance(obj, ClassObj) and obj.flavour != "enum" else None
        unknown = Unk(
            Reason.RUNTIME,
            self.text(node),
            oid=("vars", owner.oid) if isinstance(owner, Unk) and owner.oid else None,
        )
        if not isinstance(attrs, DictObj):
            return unknown
        hidden = {name: unknown for name in ("__module__", "__dict__", "__weakref__", "__doc__")}
        own = {name: self.class_attribute(owner, name, state) or unknown for name in attrs.entries}
        return self.new_dict({**hidden, **own}, state, attrs.rest)

    def _globals(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract:
        return self.make("module-dict", Mod(frame.module), state, self.text(node))

    def _locals(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract:
        if frame.id == ("module", frame.module.path):
            return self._globals(args, node, state, frame)
        names = list(state.variables(frame.id))
        return self.new_dict({name: self.lookup(frame.id, name, state) or Missing() for name in names}, state)

    # -- copies ----------------------------------------------------------------------------------------------

    def duplicate(self, value: Abstract, state: State, done: dict[Any, Ref], *, deep: bool) -> Abstract:
        """A copy of an object, with (`deep`) or without copies of what is in it."""
        if isinstance(value, Alt):
            return join(self.duplicate(member, state, done, deep=deep) for member in value.values)
        if isinstance(value, Tup) and deep:
            return replace(value, items=tuple(self.duplicate(i, state, done, deep=True) for i in value.items))
        if isinstance(value, Ref):
            return self._duplicate_object(value, state, done, deep)
        return self._duplicate_unknown(value, state) if isinstance(value, Unk) else value

    def _duplicate_unknown(self, value: Unk, state: State) -> Unk:
        """What is set on the copy of an object that is not known does not change the object."""
        if value.oid is None:
            return value
        twin = replace(value, oid=("copy", next(self._fresh)))
        for kind in ("items", "overlay"):
            if (kind, value.oid) in state.heap:
                state.heap[(kind, twin.oid)] = state.heap[(kind, value.oid)]
        return twin

    def _duplicate_object(self, value: Ref, state: State, done: dict[Any, Ref], deep: bool) -> Abstract:
        if value.oid in done:
            return done[value.oid]
        obj = state.heap.get(value.oid)
        if obj is None or isinstance(obj, ClassObj) or (isinstance(obj, InstObj) and obj.made_by == "enum"):
            return value
        twin = done[value.oid] = self.new(obj, state, value.steps)

        def inner(item: Abstract) -> Abstract:
            return self.duplicate(item, state, done, deep=True) if deep else item

        if isinstance(obj, DictObj):
            state.heap[twin.oid] = DictObj({k: inner(v) for k, v in obj.entries.items()}, obj.rest)
            if ("factory", value.oid) in state.heap:
                state.heap[("factory", twin.oid)] = state.heap[("factory", value.oid)]
        elif isinstance(obj, ListObj):
            state.heap[twin.oid] = ListObj(
                tuple(inner(i) for i in obj.items) if obj.items is not None else None
            )
        elif isinstance(obj, InstObj):
            attrs = self.duplicate(Ref(obj.attrs), state, done if deep else {}, deep=deep)
            assert isinstance(attrs, Ref)
            state.heap[twin.oid] = replace(obj, attrs=attrs.oid)
        return twin
