"""What built-in and standard library code does to the values klguard follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import libcst as cst

from klguard.read.python.calls import Arguments, Calls
from klguard.read.python.flow import Frame
from klguard.read.python.operators import MAX_TEXT
from klguard.read.python.values import (
    Abstract, ClassObj, Const, DictObj, Ext, Func, InstObj, ListObj, Method, Missing, Mod, Partial, Ref, State, Step,
    Tup, Unk, join, members, truth, with_step,
)
from klguard.settings import HopKind, Reason

Model = Callable[..., "Abstract | None"]

CONVERSIONS: dict[str, Callable[..., Any]] = {
    "int": int, "float": float, "bool": bool, "str": str, "len": len, "abs": abs, "round": round, "min": min, "max": max,
    "sum": sum, "repr": repr, "complex": complex, "divmod": divmod, "pow": None, "ord": ord, "chr": chr,  # type: ignore
}

SAFE_TEXT_METHODS = frozenset(
    "lower upper strip lstrip rstrip split rsplit replace startswith endswith join format title capitalize removeprefix "
    "removesuffix partition rpartition casefold isdigit isnumeric isalpha splitlines encode decode count find".split()
)

DICTS = frozenset({"builtins.dict", "collections.OrderedDict", "OrderedDict", "typing.Dict"})

DICT_LIKE = frozenset({
    "omegaconf.OmegaConf.create", "omegaconf.DictConfig", "easydict.EasyDict", "box.Box", "addict.Dict", "munch.Munch",
    "ml_collections.ConfigDict", "ml_collections.config_dict.ConfigDict", "transformers.utils.ModelOutput",
    "transformers.BatchEncoding",
})

NAMESPACES = frozenset({"types.SimpleNamespace", "argparse.Namespace"})

IDENTITIES = frozenset({
    "typing.cast", "builtins.iter", "builtins.print", "builtins.id", "omegaconf.OmegaConf.to_container",
    "omegaconf.OmegaConf.structured", "functools.wraps", "functools.update_wrapper",
})


class Models(Calls):
    """Calls of built-ins and of methods of dicts, lists and strings."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._library: dict[str, Model] = {
            **dict.fromkeys(DICTS, self._make_dict), **dict.fromkeys(DICT_LIKE, self._make_dict_like),
            **dict.fromkeys(NAMESPACES, self._make_namespace),
            "collections.defaultdict": self._make_defaultdict, "collections.ChainMap": self._make_chain_map,
            "builtins.list": self._make_list, "builtins.tuple": self._make_tuple,
            "builtins.range": self._make_range, "builtins.enumerate": self._enumerate, "builtins.zip": self._zip,
            "builtins.sorted": self._sorted, "builtins.reversed": self._reversed,
            "builtins.isinstance": self._isinstance, "builtins.getattr": self._getattr,
            "builtins.setattr": self._setattr, "builtins.hasattr": self._hasattr, "builtins.vars": self._vars,
            "builtins.globals": self._globals, "builtins.locals": self._locals, "builtins.any": self._any,
            "builtins.all": self._all, "builtins.map": self._map, "builtins.next": self._next,
            "builtins.open": self._open, "builtins.callable": self._callable,
            "copy.copy": self._copy, "copy.deepcopy": self._deepcopy, "functools.partial": self._partial,
            "functools.wraps": self._wraps, "klguard.identity": self._first,
            "typing.cast": self._cast, "dataclasses.field": self._field, "dataclasses.asdict": self._asdict,
            "pydantic.Field": self._field, "dataclasses.replace": self._replace,
            "os.getenv": self._getenv, "os.environ.get": self._getenv,
            "operator.or_": self._merge_two,
        }

    def model_call(  # type: ignore[override]
        self, callee: Abstract, arguments: Arguments, node: cst.Call, state: State, frame: Frame
    ) -> Abstract | None:
        if isinstance(callee, Method):
            return self._method(callee, arguments, node, state, frame)
        if isinstance(callee, Unk) and callee.owner is not None:
            return self._unknown_method(callee, arguments, node, state, frame)
        if not isinstance(callee, Ext):
            return None
        model = self._library.get(callee.name)
        if model is not None:
            return model(arguments, node, state, frame)
        package, _, name = callee.name.rpartition(".")
        if package == "builtins" and name in CONVERSIONS:
            return self._convert(name, arguments, node, state)
        return self.library_call(callee, arguments, node, state, frame)

    library_call: Callable[..., Abstract | None]

    # -- constructors ------------------------------------------------------------------------------------------

    def _make_dict(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract:
        ref = self.new_dict({}, state, steps=(Step(HopKind.LITERAL, frame.unit, node, "written here"),))
        if args.positional:
            self.merge_into(ref, args.positional[0], state, self.text(node))
        elif args.more_positional is not None:
            self.merge_into(ref, args.more_positional, state, self.text(node))
        self._merge_keywords(ref, args, state)
        return ref

    def _merge_keywords(self, ref: Ref, args: Arguments, state: State) -> None:
        keywords = self.new_dict(dict(args.keywords), state, args.rest)
        self.merge_into(ref, keywords, state, "")

    def _make_dict_like(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract:
        return self.dict_like(self._make_dict(args, node, state, frame), state)

    def dict_like(self, value: Abstract, state: State) -> Abstract:
        """An object whose items are also its attributes (OmegaConf, EasyDict), nested ones too."""
        obj = self.dict_of(value, state)
        if not isinstance(value, Ref) or obj is None:
            return value
        entries = {
            key: self.dict_like(entry, state) if isinstance(entry, Ref) and isinstance(state.heap.get(entry.oid), DictObj)
            else entry for key, entry in obj.entries.items()
        }
        state.heap[value.oid] = DictObj(entries, obj.rest)
        return self.new(InstObj(None, "dict-like", value.oid), state, value.steps)

    def _make_namespace(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract:
        return self.new_instance("namespace", args.keywords, state, rest=args.rest, text=self.text(node))

    def _make_defaultdict(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract:
        return self._make_dict(replace(args, positional=args.positional[1:]), node, state, frame)

    def _make_chain_map(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract:
        ref = self.new_dict({}, state)
        for mapping in reversed(args.positional):
            self.merge_into(ref, mapping, state, self.text(node))
        return ref

    def _merge_two(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract | None:
        if len(args.positional) != 2:
            return None
        return self.binary("BitOr", args.positional[0], args.positional[1], node, state, frame)

    def _sequence(self, args: Arguments, state: State) -> tuple[Abstract, ...] | None:
        if args.more_positional is not None:
            return None
        return self.items_of(args.positional[0], state) if args.positional else ()

    def _make_list(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract:
        return self.new(ListObj(self._sequence(args, state)), state)

    def _make_tuple(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract:
        items = self._sequence(args, state)
        return Tup(items) if items is not None else Unk(Reason.RUNTIME, self.text(node))

    def _make_range(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract | None:
        bounds = [a.value for a in args.positional if isinstance(a, Const) and type(a.value) is int]
        if len(bounds) != len(args.positional) or not bounds or args.more_positional is not None:
            return None
        try:
            numbers = range(*bounds)
        except (TypeError, ValueError):
            return None
        return Tup(tuple(Const(n) for n in numbers)) if len(numbers) <= 256 else None

    def _enumerate(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract | None:
        items = self._sequence(args, state)
        start = args.get("start", 1)
        if items is None or (start is not None and not isinstance(start, Const)):
            return None
        first = start.value if isinstance(start, Const) else 0
        return Tup(tuple(Tup((Const(first + index), item)) for index, item in enumerate(items)))

    def _zip(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract | None:
        columns = [self.items_of(value, state) for value in args.positional]
        if not columns or any(c is None for c in columns) or args.more_positional is not None:
            return None
        return Tup(tuple(Tup(row) for row in zip(*columns)))  # type: ignore[arg-type]

    def _sorted(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract | None:
        items = self._sequence(args, state)
        if items is None or args.keywords or not all(_sort_key(i, self, state) is not None for i in items):
            return self.new(ListObj(None), state)
        try:
            ordered = sorted(items, key=lambda item: _sort_key(item, self, state))  # type: ignore[arg-type,return-value]
        except TypeError:
            return self.new(ListObj(None), state)
        return self.new(ListObj(tuple(ordered)), state)

    def _reversed(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract | None:
        items = self._sequence(args, state)
        return Tup(tuple(reversed(items))) if items is not None else None

    def _convert(self, name: str, args: Arguments, node: cst.Call, state: State) -> Abstract | None:
        if args.more_positional is not None or args.rest is not None:
            return None
        if name in ("len", "bool") and args.positional:
            answer = self._length(args.positional[0], state)
            if name == "bool" and (known := truth(args.positional[0], state)) is not None:
                return Const(known)
            return Const(answer) if answer is not None and name == "len" else None
        results: list[Abstract] = []
        values = args.positional
        if name in ("min", "max", "sum") and len(values) == 1:
            items = self.items_of(values[0], state)
            if items is None:
                return None
            values = [Tup(items)]
        if len(values) == 1 and not args.keywords:
            for member in members(values[0]):
                results.append(self._convert_one(name, [member], {}, node))
            return join(results)
        return self._convert_one(name, values, args.keywords, node)

    def _convert_one(
        self, name: str, values: list[Abstract], keywords: dict[str, Abstract], node: cst.Call
    ) -> Abstract:
        plain = [_plain(value) for value in values]
        named = {key: _plain(value) for key, value in keywords.items()}
        if any(p is _NOT_PLAIN for p in (*plain, *named.values())) or name == "pow":
            return Unk(Reason.RUNTIME, self.text(node))
        try:
            result = CONVERSIONS[name](*plain, **named)
        except Exception:
            return Unk(Reason.RUNTIME, self.text(node))
        steps = values[0].steps if values else ()
        return Const(result, steps) if not isinstance(result, tuple) else Tup(tuple(Const(r) for r in result))

    def _length(self, value: Abstract, state: State) -> int | None:
        items = self.items_of(value, state)
        if isinstance(value, Const) and isinstance(value.value, str):
            return len(value.value)
        return len(items) if items is not None else None

    # -- attributes and scopes ---------------------------------------------------------------------------------

    def _isinstance(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract | None:
        value, kind = args.get("", 0), args.get("", 1)
        kinds = kind.items if isinstance(kind, Tup) else (kind,)
        if not all(isinstance(k, Ext) and k.name.startswith("builtins.") for k in kinds) or value is None:
            return None
        names = {k.name.removeprefix("builtins.") for k in kinds}  # type: ignore[union-attr]
        answers = {self._is_instance(member, names, state) for member in members(value)}
        answer = answers.pop() if len(answers) == 1 else None
        return Const(answer) if answer is not None else None

    def _is_instance(self, value: Abstract, names: set[str], state: State) -> bool | None:
        if isinstance(value, Const):
            return any(base.__name__ in names for base in type(value.value).__mro__)
        if isinstance(value, Tup):
            return "tuple" in names
        obj = state.heap.get(value.oid) if isinstance(value, Ref) else None
        if isinstance(obj, DictObj):
            return "dict" in names
        if isinstance(obj, ListObj):
            return "list" in names
        return None

    def _getattr(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract | None:
        owner, name, default = (args.get("", i) for i in range(3))
        if owner is None or not (isinstance(name, Const) and isinstance(name.value, str)):
            return None
        return join(self._getattr_one(m, name.value, default, node, state, frame) for m in members(owner))

    def _getattr_one(
        self, owner: Abstract, name: str, default: Abstract | None, node: cst.Call, state: State, frame: Frame
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
            closed = isinstance(attrs, DictObj) and attrs.rest is None
            plain = isinstance(obj, InstObj) and obj.made_by in ("", "namespace", "namedtuple")
            return False if closed and plain and (cls is None or not self.has_foreign_base(cls, state)) else None
        return None

    def _setattr(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract:
        owner, name, value = (args.get("", i) for i in range(3))
        if owner is None or value is None:
            return Const(None)
        if isinstance(name, Const) and isinstance(name.value, str):
            step = Step(HopKind.ATTRIBUTE, frame.unit, node, f"set by {self.text(node)}")
            self.set_attribute(owner, name.value, with_step(value, step), state)
        else:
            self._doubt_attributes(owner, state, self.text(node))
        return Const(None)

    def _doubt_attributes(self, owner: Abstract, state: State, text: str) -> None:
        for member in members(owner):
            obj = state.heap.get(member.oid) if isinstance(member, Ref) else None
            attrs = state.heap.get(obj.attrs) if isinstance(obj, InstObj) else None
            if isinstance(obj, InstObj) and isinstance(attrs, DictObj):
                doubt = Unk(Reason.DYNAMIC_KEY, text)
                state.heap[obj.attrs] = DictObj({k: join((v, doubt)) for k, v in attrs.entries.items()}, doubt)

    def _hasattr(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract | None:
        owner, name = args.get("", 0), args.get("", 1)
        if owner is None or not isinstance(name, Const):
            return None
        found = self.has_attribute(owner, name.value, state)
        return Const(found) if found is not None else None

    def _vars(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract | None:
        owner = args.get("", 0)
        obj = state.heap.get(owner.oid) if isinstance(owner, Ref) else None
        return Ref(obj.attrs) if isinstance(obj, InstObj) else None

    def _globals(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract:
        return self.new_dict(dict(state.variables(("module", frame.module.path))), state)

    def _locals(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract:
        return self.new_dict(dict(state.variables(frame.id)), state)

    def _any(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract | None:
        return self._quantify(args, state, True)

    def _all(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract | None:
        return self._quantify(args, state, False)

    def _quantify(self, args: Arguments, state: State, wanted: bool) -> Abstract | None:
        items = self._sequence(args, state)
        if items is None:
            return None
        answers = [truth(item, state) for item in items]
        if wanted in answers:
            return Const(wanted)
        return None if None in answers else Const(not wanted)

    def _map(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract | None:
        if len(args.positional) != 2 or (items := self.items_of(args.positional[1], state)) is None:
            return None
        return Tup(tuple(self.call(args.positional[0], Arguments([item]), node, state, frame) for item in items))

    def _next(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract | None:
        return None

    def _open(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract | None:
        path = args.get("file", 0)
        return self.new_instance("open", {"path": path}, state, text=self.text(node)) if path is not None else None

    def _callable(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract | None:
        value = args.get("", 0)
        return Const(True) if isinstance(value, (Func, Partial)) else None

    # -- copies and wrappers -----------------------------------------------------------------------------------

    def _first(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract | None:
        return args.get("", 0)

    def _wraps(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract:
        return Ext("klguard.identity")

    def _cast(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract | None:
        return args.get("val", 1)

    def _copy(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract | None:
        value = args.get("x", 0)
        return self.duplicate(value, state, {}, deep=False) if value is not None else None

    def _deepcopy(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract | None:
        value = args.get("x", 0)
        return self.duplicate(value, state, {}, deep=True) if value is not None else None

    def duplicate(self, value: Abstract, state: State, done: dict[Any, Ref], *, deep: bool) -> Abstract:
        """A copy of an object, with (`deep`) or without copies of what is in it."""
        if not deep and not isinstance(value, Ref):
            return value if not (hasattr(value, "values")) else join(
                self.duplicate(m, state, done, deep=deep) for m in members(value))
        match value:
            case Tup():
                return replace(value, items=tuple(self.duplicate(i, state, done, deep=True) for i in value.items))
            case Ref():
                return self._duplicate_object(value, state, done, deep)
            case _ if len(members(value)) > 1:
                return join(self.duplicate(m, state, done, deep=deep) for m in members(value))
        return value

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
        elif isinstance(obj, ListObj):
            state.heap[twin.oid] = ListObj(tuple(inner(i) for i in obj.items) if obj.items is not None else None)
        elif isinstance(obj, InstObj):
            attrs = self.duplicate(Ref(obj.attrs), state, done if deep else {}, deep=deep)
            assert isinstance(attrs, Ref)
            state.heap[twin.oid] = replace(obj, attrs=attrs.oid)
        return twin

    def _partial(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract | None:
        if not args.positional:
            return None
        kwargs = self.new_dict(dict(args.keywords), state, args.rest)
        return Partial(args.positional[0], tuple(args.positional[1:]), kwargs)

    def _field(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract:
        entries = dict(args.keywords)
        if args.positional and not (isinstance(args.positional[0], Const) and args.positional[0].value is ...):
            entries.setdefault("default", args.positional[0])
        return self.new_instance("field", entries, state)

    def _asdict(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract | None:
        value = args.get("obj", 0)
        obj = state.heap.get(value.oid) if isinstance(value, Ref) else None
        if not isinstance(obj, InstObj):
            return None
        attrs = self.dict_of(Ref(obj.attrs), state)
        cls = state.heap.get(obj.cls.oid) if obj.cls is not None else None
        if attrs is None or not isinstance(cls, ClassObj):
            return None
        fields = {name: attrs.entries[name] for name in cls.fields if name in attrs.entries}
        return self.new_dict({k: self._plain_copy(v, state) for k, v in fields.items()}, state, attrs.rest)

    def _plain_copy(self, value: Abstract, state: State) -> Abstract:
        obj = state.heap.get(value.oid) if isinstance(value, Ref) else None
        if isinstance(obj, InstObj) and obj.cls is not None:
            attrs = self.dict_of(Ref(obj.attrs), state)
            if attrs is not None:
                return self.new_dict({k: self._plain_copy(v, state) for k, v in attrs.entries.items()}, state, attrs.rest)
        return self.duplicate(value, state, {}, deep=True)

    def _replace(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract | None:
        if not args.positional:
            return None
        twin = self.duplicate(args.positional[0], state, {}, deep=False)
        obj = state.heap.get(twin.oid) if isinstance(twin, Ref) else None
        if not isinstance(obj, InstObj):
            return None
        self._merge_keywords(Ref(obj.attrs), args, state)
        return twin

    def _getenv(self, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract:
        unknown = Unk(Reason.RUNTIME, self.text(node))
        default = args.get("default", 1)
        return join((default, unknown)) if default is not None else unknown

    # -- methods of dicts, lists, strings ----------------------------------------------------------------------

    def _method(
        self, callee: Method, args: Arguments, node: cst.Call, state: State, frame: Frame
    ) -> Abstract | None:
        owner = callee.owner
        if isinstance(owner, Const) and isinstance(owner.value, (str, bytes)):
            return self._text_method(owner, callee.name, args, node, state)
        obj = state.heap.get(owner.oid) if isinstance(owner, Ref) else None
        if isinstance(obj, InstObj) and obj.made_by == "dict-like" and hasattr(self, f"_dict_{callee.name}"):
            owner, obj = Ref(obj.attrs), state.heap.get(obj.attrs)
        kind = "dict" if isinstance(obj, DictObj) else "list" if isinstance(obj, ListObj) else None
        if kind is None:
            return self.object_method(callee, obj, args, node, state, frame)
        handler = getattr(self, f"_{kind}_{callee.name}", None)
        if handler is None:
            if kind == "list" and callee.name in ("index", "count"):
                return None
            self.escape([owner], f"{self.text(node.func)}()", state)
            return None
        return handler(owner, obj, args, node, state, frame)

    object_method: Callable[..., Abstract | None]

    def _text_method(
        self, owner: Const, name: str, args: Arguments, node: cst.Call, state: State
    ) -> Abstract | None:
        values = [self._deep_plain(value, state) for value in args.positional]
        named = {key: self._deep_plain(value, state) for key, value in args.keywords.items()}
        if name not in SAFE_TEXT_METHODS or any(v is _NOT_PLAIN for v in (*values, *named.values())):
            return None
        if args.more_positional is not None or args.rest is not None or len(owner.value) > MAX_TEXT:
            return None
        try:
            result = getattr(owner.value, name)(*values, **named)
        except Exception:
            return None
        if isinstance(result, (list, tuple)):
            items = tuple(Const(part, owner.steps) for part in result)
            return self.new(ListObj(items), state) if isinstance(result, list) else Tup(items)
        return Const(result, owner.steps)

    def _deep_plain(self, value: Abstract, state: State) -> Any:
        items = self.items_of(value, state) if not isinstance(value, Const) else None
        if items is not None:
            plain = [_plain(item) for item in items]
            return _NOT_PLAIN if any(p is _NOT_PLAIN for p in plain) else plain
        return _plain(value)

    def _dict_get(self, owner: Ref, obj: DictObj, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract:
        key, default = args.get("key", 0), args.get("default", 1) or Const(None)
        plain, known = self.hashable(key) if key is not None else (None, False)
        step = Step(HopKind.DEFAULT, frame.unit, node, f"fallback of {self.text(node)}")
        fallback = with_step(default, step) if not isinstance(default, Missing) else default
        if not known:
            return Unk(Reason.DYNAMIC_KEY, self.text(node))
        value = obj.entries.get(plain)
        if value is None:
            if obj.rest is None:
                return fallback
            return join((fallback, replace(obj.rest, detail=self.text(node), oid=None)))
        present = [member for member in members(value) if not isinstance(member, Missing)]
        return join(present if len(present) == len(members(value)) else [*present, fallback])

    def _dict_setdefault(
        self, owner: Ref, obj: DictObj, args: Arguments, node: cst.Call, state: State, frame: Frame
    ) -> Abstract:
        key, default = args.get("key", 0), args.get("default", 1) or Const(None)
        plain, known = self.hashable(key) if key is not None else (None, False)
        if not known or key is None:
            self.escape([owner], self.text(node), state)
            return Unk(Reason.DYNAMIC_KEY, self.text(node))
        step = Step(HopKind.UPDATE, frame.unit, node, f"stored by {self.text(node)}")
        value = obj.entries.get(plain, obj.rest or Missing())
        present = [m for m in members(value) if not isinstance(m, Missing)]
        settled = join([*present, with_step(default, step)] if len(present) < len(members(value)) or obj.rest is value
                       else present)
        self.set_item(owner, key, settled, state)
        return settled

    def _dict_pop(self, owner: Ref, obj: DictObj, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract:
        value = self._dict_get(owner, obj, args, node, state, frame)
        key = args.get("key", 0)
        if key is not None:
            self.delete_item(owner, key, state)
            for member in members(key):
                if not self.hashable(member)[1]:
                    return Unk(Reason.DYNAMIC_KEY, self.text(node))
        return value

    def _dict_popitem(
        self, owner: Ref, obj: DictObj, args: Arguments, node: cst.Call, state: State, frame: Frame
    ) -> Abstract:
        certain = obj.rest is None and not any(isinstance(m, Missing) for v in obj.entries.values() for m in members(v))
        if not obj.entries or not certain:
            self.escape([owner], self.text(node), state)
            return Unk(Reason.RUNTIME, self.text(node))
        key, value = list(obj.entries.items())[-1]
        state.heap[owner.oid] = DictObj({k: v for k, v in obj.entries.items() if k != key})
        return Tup((Const(key), value))

    def _dict_update(self, owner: Ref, obj: DictObj, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract:
        step = Step(HopKind.UPDATE, frame.unit, node, f"updated by {self.text(node)}")
        if args.positional:
            self.merge_into(owner, args.positional[0], state, self.text(node), step)
        elif args.more_positional is not None:
            self.merge_into(owner, args.more_positional, state, self.text(node), step)
        self._merge_keywords(owner, args, state)
        return Const(None)

    def _dict_copy(self, owner: Ref, obj: DictObj, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract:
        return self.new_dict(dict(obj.entries), state, obj.rest, owner.steps)

    def _dict_clear(self, owner: Ref, obj: DictObj, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract:
        state.heap[owner.oid] = DictObj()
        return Const(None)

    def _dict_keys(self, owner: Ref, obj: DictObj, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract:
        items = self.items_of(owner, state)
        return Tup(items) if items is not None else Unk(Reason.RUNTIME, self.text(node))

    def _dict_values(self, owner: Ref, obj: DictObj, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract:
        known = self.items_of(owner, state) is not None
        return Tup(tuple(obj.entries.values())) if known else Unk(Reason.RUNTIME, self.text(node))

    def _dict_items(self, owner: Ref, obj: DictObj, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract:
        keys = self.items_of(owner, state)
        if keys is None:
            return Unk(Reason.RUNTIME, self.text(node))
        return Tup(tuple(Tup((key, value)) for key, value in zip(keys, obj.entries.values())))

    def _list_append(self, owner: Ref, obj: ListObj, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract:
        if obj.items is not None and args.positional:
            state.heap[owner.oid] = ListObj((*obj.items, args.positional[0]))
        return Const(None)

    def _list_extend(self, owner: Ref, obj: ListObj, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract:
        more = self._sequence(args, state)
        state.heap[owner.oid] = ListObj(None if more is None or obj.items is None else (*obj.items, *more))
        return Const(None)

    def _list_pop(self, owner: Ref, obj: ListObj, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract:
        index = args.get("", 0) or Const(-1)
        items = obj.items
        if items and isinstance(index, Const) and type(index.value) is int and -len(items) <= index.value < len(items):
            rest = list(items)
            value = rest.pop(index.value)
            state.heap[owner.oid] = ListObj(tuple(rest))
            return value
        state.heap[owner.oid] = ListObj(None)
        return Unk(Reason.RUNTIME, self.text(node))

    def _list_copy(self, owner: Ref, obj: ListObj, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract:
        return self.new(obj, state)

    def _unknown_method(
        self, callee: Unk, args: Arguments, node: cst.Call, state: State, frame: Frame
    ) -> Abstract | None:
        """A method of an object that is not known, where its name says enough: `cfg.get(key, default)`."""
        owner = callee.owner
        if callee.name == "get" and args.positional:
            value = self.get_item(owner, args.positional[0], state, self.text(node))
            if not isinstance(value, Unk):
                return value
            default = args.get("default", 1)
            unknown = replace(value, detail=self.text(node))
            if default is None:
                return unknown
            step = Step(HopKind.DEFAULT, frame.unit, node, f"fallback of {self.text(node)}")
            return join((with_step(default, step), unknown))
        if callee.name == "update" and isinstance(owner, Unk) and owner.oid is not None:
            self._update_unknown(owner, args, node, state)
            return Const(None)
        return None

    def _update_unknown(self, owner: Unk, args: Arguments, node: cst.Call, state: State) -> None:
        key = ("items", owner.oid)
        state.heap.setdefault(key, DictObj({}, replace(owner, oid=None)))
        for value in args.positional:
            self.merge_into(Ref(key), value, state, self.text(node))
        self._merge_keywords(Ref(key), args, state)


class _NotPlain:
    """Marks a value that is not plain data."""


_NOT_PLAIN = _NotPlain()


def _plain(value: Abstract) -> Any:
    """The Python value of an abstract one, _NOT_PLAIN where there is none."""
    if isinstance(value, Const):
        return value.value
    if isinstance(value, Tup):
        items = [_plain(item) for item in value.items]
        return _NOT_PLAIN if any(item is _NOT_PLAIN for item in items) else tuple(items)
    return _NOT_PLAIN


def _sort_key(item: Abstract, models: Models, state: State) -> Any:
    if isinstance(item, Const) and isinstance(item.value, (int, float, str)):
        return item.value
    if isinstance(item, Tup) and item.items:
        return _sort_key(item.items[0], models, state)
    return None
