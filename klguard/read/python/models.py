"""What built-in and standard library code does to the values klguard follows: the table, and what is
called by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from klguard.read.python import nodes
from klguard.read.python.calls import Arguments
from klguard.read.python.containers import DICT_LIKE_KINDS
from klguard.read.python.control import Frame
from klguard.read.python.conversions import CALLABLE, CONVERSIONS, TEXT_READERS, Conversions
from klguard.read.python.memory import MAX_ITEMS
from klguard.read.python.methods import READING
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
    Method,
    Mod,
    Partial,
    Ref,
    Step,
    Tup,
    Unk,
    join,
    members,
)
from klguard.settings import HopKind, Reason

SAFE_MATH = frozenset(
    "ceil floor trunc sqrt exp log log2 log10 log1p fabs isnan isinf isfinite isclose "
    "copysign fmod hypot sin cos tan "
    "tanh sinh cosh atan degrees radians gcd fsum prod".split()
)

DICTS = frozenset({"builtins.dict", "collections.OrderedDict", "OrderedDict", "typing.Dict"})

DICT_LIKE = frozenset(
    {
        "omegaconf.OmegaConf.create",
        "omegaconf.DictConfig",
        "easydict.EasyDict",
        "box.Box",
        "addict.Dict",
        "munch.Munch",
        "ml_collections.ConfigDict",
        "ml_collections.config_dict.ConfigDict",
        "transformers.utils.ModelOutput",
        "transformers.BatchEncoding",
    }
)

NAMESPACES = frozenset({"types.SimpleNamespace", "argparse.Namespace"})


OWNERS = frozenset("dict list str set frozenset bytes".split())
"""Built-in classes whose methods may be called through the class: `dict.update(kw, top_k=5)`."""

EXECUTORS = frozenset(
    {"builtins.exec", "builtins.eval", "builtins.compile", "runpy.run_path", "runpy.run_module"}
)


class Models(Conversions):
    """The table of modelled functions, constructors, conversions, and texts that hold data."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._library |= {
            **dict.fromkeys(DICTS, self._make_dict),
            **dict.fromkeys(DICT_LIKE, self._make_dict_like),
            **dict.fromkeys(NAMESPACES, self._make_namespace),
            **dict.fromkeys(EXECUTORS, self._execute),
            "collections.defaultdict": self._make_defaultdict,
            "collections.ChainMap": self._make_chain_map,
            "types.MappingProxyType": self._first,
            "builtins.dict.fromkeys": self._from_keys,
            "collections.OrderedDict.fromkeys": self._from_keys,
            "builtins.list": self._make_list,
            "builtins.tuple": self._make_tuple,
            "builtins.range": self._make_range,
            "builtins.len": self._len,
            "builtins.min": self._extreme,
            "builtins.max": self._extreme,
            "builtins.pow": self._pow,
            "builtins.open": self._open,
            "io.open": self._open,
            "builtins.callable": self._callable,
            "copy.copy": self._copy,
            "copy.deepcopy": self._deepcopy,
            "functools.partial": self._partial,
            "functools.wraps": self._wraps,
            "klguard.identity": self._first,
            "typing.cast": self._cast,
            "contextlib.nullcontext": self._nullcontext,
            "os.getenv": self._getenv,
            "os.environ.get": self._getenv,
            "operator.or_": self._merge_two,
            "operator.ior": self._merge_two,
            "operator.getitem": self._get_by_call,
            "operator.setitem": self._set_by_call,
            "operator.delitem": self._delete_by_call,
            "json.dumps": self._dumps,
            "importlib.import_module": self._import_module,
            "builtins.__import__": self._import_module,
            "random.choice": self._choice,
            "random.shuffle": self._shuffle,
        }

    def model_call(  # type: ignore[override]
        self, callee: Abstract, arguments: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract | None:
        if isinstance(callee, Method):
            return self.call_of_method(callee, arguments, node, state, frame)
        if isinstance(callee, Ref):
            return self._call_object(callee, arguments, node, state, frame)
        if isinstance(callee, Unk) and callee.owner is not None:
            return self._method_of_object(callee, arguments, node, state, frame)
        if not isinstance(callee, Ext):
            return None
        model = self._library.get(callee.name)
        if model is not None:
            return model(arguments, node, state, frame)
        package, _, name = callee.name.rpartition(".")
        if package == "builtins" and name in CONVERSIONS:
            return self._convert(name, arguments, node, state)
        if package == "math" and name in SAFE_MATH:
            return self._compute_one(
                getattr(math, name), arguments.positional, arguments.keywords, node, state
            )
        if (
            package.startswith("builtins.")
            and package.removeprefix("builtins.") in OWNERS
            and arguments.positional
        ):
            owner, *rest = arguments.positional
            return self.call(Method(owner, name), replace(arguments, positional=rest), node, state, frame)
        if callee.name in TEXT_READERS and (
            read := self.parse(TEXT_READERS[callee.name], arguments, node, state, frame)
        ):
            return read
        return self.library_call(callee, arguments, node, state, frame)

    library_call: Callable[..., Abstract | None]
    is_quiet: Callable[[str, str], bool]

    def _call_object(
        self, callee: Ref, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract | None:
        kind = self.kind_of(callee, state)
        if kind in ("itemgetter", "attrgetter"):
            return self.call_getter(callee, kind, args, node, state, frame)
        return self.call_namedtuple(callee, args, node, state) if kind == "namedtuple-type" else None

    def _method_of_object(
        self, callee: Unk, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract | None:
        """A method nobody defined visibly: of something unknown, or of an instance of a library's class."""
        owner = callee.owner
        obj = state.heap.get(owner.oid) if isinstance(owner, Ref) else None
        if (
            isinstance(obj, ClassObj)
            and obj.flavour == "namedtuple"
            and callee.name == "_make"
            and args.positional
        ):
            items = self.items_of(args.positional[0], state)
            return None if items is None else self.call(owner, Arguments(list(items)), node, state, frame)
        if isinstance(obj, InstObj) and isinstance(owner, Ref):
            if obj.made_by == "namedtuple":
                return self.namedtuple_method(owner, callee.name, args, node, state)
            if obj.cls is not None and callee.name in ("model_dump", "dict", "model_copy", "copy"):
                return self._pydantic_method(owner, callee.name, args, node, state, frame)
            if obj.cls is None and not self.is_quiet(obj.made_by, callee.name):
                self.doubt_attributes(owner, state, f"{self.text(node.func)}()")
        return self.unknown_method(callee, args, node, state, frame)

    def _pydantic_method(
        self, owner: Ref, name: str, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract | None:
        """`model_dump()` and `model_copy(update=...)` of a pydantic model."""
        cls = self._class_object(owner, state)
        models = cls is not None and any(
            isinstance(base, Ext) and base.name.endswith("BaseModel") for base in self.mro(cls[0], state)
        )
        if not models or set(args.keywords) - {"update", "deep"} or args.rest is not None:
            return None
        if name in ("model_dump", "dict"):
            return None if args.keywords else self._asdict(Arguments([owner]), node, state, frame)
        twin = self.duplicate(owner, state, {}, deep=args.keywords.get("deep") is not None)
        home = state.heap[twin.oid]  # type: ignore[union-attr]
        if (update := args.keywords.get("update")) is not None:
            self.merge_into(Ref(home.attrs), update, state, self.text(node))  # type: ignore[union-attr]
        return twin

    def object_call(
        self, callee: Method, kind: str, args: Arguments, node: nodes.Call, state: State
    ) -> Abstract | None:
        """A method of a library object that no model knows: unless it only reads, the object is unknown
        after it."""
        if kind == "namedtuple" and isinstance(callee.owner, Ref):
            return self.namedtuple_method(callee.owner, callee.name, args, node, state)
        if callee.name not in READING and not self.is_quiet(kind, callee.name):
            self.escape([callee.owner], f"{self.text(node.func)}()", state)
        return None

    # -- constructors ----------------------------------------------------------------------------------------

    def _make_dict(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract:
        ref = self.new_dict({}, state, steps=(Step(HopKind.LITERAL, frame.unit, node, "written here"),))
        if args.positional:
            self.merge_into(ref, args.positional[0], state, self.text(node))
        elif args.more_positional is not None:
            self.merge_into(ref, args.more_positional, state, self.text(node))
        self.merge_keywords(ref, args, state)
        return ref

    def _make_dict_like(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract:
        first = args.get("obj", 0)
        if isinstance(first, Const) and isinstance(first.value, str):
            read = self.parse("yaml", Arguments([first]), node, state, frame)
            args = replace(
                args, positional=[read] if read is not None else [Unk(Reason.RUNTIME, self.text(node))]
            )
        return self.dict_like(self._make_dict(args, node, state, frame), state)

    def dict_like(self, value: Abstract, state: State) -> Abstract:
        """A copy as an object whose items are also its attributes (OmegaConf, EasyDict), nested ones too."""
        obj = self.dict_of(value, state)
        if not isinstance(value, Ref) or obj is None:
            return value
        home = self.new_dict(
            {key: self._entry_like_dict(v, state) for key, v in obj.entries.items()}, state, obj.rest
        )
        return self.new(InstObj(None, "dict-like", home.oid), state, value.steps)

    def _entry_like_dict(self, value: Abstract, state: State) -> Abstract:
        if isinstance(value, Alt):
            return join(self._entry_like_dict(member, state) for member in value.values)
        if isinstance(value, Const) and isinstance(value.value, str) and "${" in value.value:
            return Unk(Reason.RUNTIME, value.value, value.steps)
        obj = state.heap.get(value.oid) if isinstance(value, Ref) else None
        nested = isinstance(obj, DictObj) or self.kind_of(value, state) == "dict-like"
        return self.dict_like(value, state) if nested else self.duplicate(value, state, {}, deep=True)

    def _make_namespace(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract:
        made = self.new_instance("namespace", args.keywords, state, rest=args.rest, text=self.text(node))
        for value in args.positional[:1]:
            self.merge_into(Ref(state.heap[made.oid].attrs), value, state, self.text(node))  # type: ignore[union-attr]
        return made

    def _make_defaultdict(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract:
        made = self._make_dict(replace(args, positional=args.positional[1:]), node, state, frame)
        if args.positional and isinstance(made, Ref):
            state.heap[("factory", made.oid)] = ListObj((args.positional[0],))
        return made

    def _make_chain_map(
        self, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract | None:
        if args.more_positional is not None:
            return None
        return self.make(
            "chain-map", Tup(tuple(args.positional) or (self.new_dict({}, state),)), state, self.text(node)
        )

    def _from_keys(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract:
        keys = self.unordered(args.positional[0], state) if args.positional else None
        value = args.get("value", 1) or Const(None)
        ref = self.new_dict({}, state, Unk(Reason.RUNTIME, self.text(node)) if keys is None else None)
        for key in keys or ():
            self.set_item(ref, key, value, state)
        return ref

    def _merge_two(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        if len(args.positional) != 2:
            return None
        in_place = self.text(node.func).endswith("ior")
        return self.binary(
            "BitOr", args.positional[0], args.positional[1], node, state, frame, in_place=in_place
        )

    def _get_by_call(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        known = len(args.positional) == 2
        return (
            self.get_item(args.positional[0], args.positional[1], state, self.text(node)) if known else None
        )

    def _set_by_call(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        if len(args.positional) != 3:
            self.escape(args.all(), self.text(node), state)
            return None
        self.set_item(args.positional[0], args.positional[1], args.positional[2], state)
        return Const(None)

    def _delete_by_call(
        self, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract | None:
        if len(args.positional) != 2:
            self.escape(args.all(), self.text(node), state)
            return None
        self.delete_item(args.positional[0], args.positional[1], state)
        return Const(None)

    def _make_list(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract:
        empty = not args.positional and args.more_positional is None
        return self.new(ListObj(() if empty else self.sequence(args, state)), state)

    def _make_tuple(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract:
        empty = not args.positional and args.more_positional is None
        items = () if empty else self.sequence(args, state)
        return Tup(items) if items is not None else Unk(Reason.RUNTIME, self.text(node))

    def _make_range(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        bounds = [a.value for a in args.positional if isinstance(a, Const) and type(a.value) is int]
        if len(bounds) != len(args.positional) or not bounds or args.more_positional is not None:
            return None
        try:
            numbers = range(*bounds)
        except (TypeError, ValueError):
            return None
        return Tup(tuple(Const(n) for n in numbers)) if len(numbers) <= MAX_ITEMS else None

    # -- other functions -------------------------------------------------------------------------------------

    def _execute(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract:
        """Code given as a text may do anything to the variables around, unless it is given its own."""
        first = args.positional[0] if args.positional else None
        if (
            self.text(node.func) == "eval"
            and (read := self.parse("python", args, node, state, frame)) is not None
        ):
            return read
        if not self.text(node.func).endswith("compile") and first is not None:
            where = f"{self.text(node.func)}()"
            given = args.get("globals", 1)
            if isinstance(given, Ref) and isinstance(state.heap.get(given.oid), DictObj):
                # its variables are those of this dict: `exec(answer, {})`
                self.escape(args.all(), where, state)
                return Unk(Reason.RUNTIME, self.text(node), oid=("call", next(self._fresh)))
            for scope in frame.scopes:
                variables = state.variables(scope)
                self.escape(
                    [v for v in variables.values() if not isinstance(v, (Func, Mod, Ext))], where, state
                )
                if self.text(node.func) == "eval":  # an expression assigns to no name
                    continue
                for name, value in list(variables.items()):
                    if isinstance(value, (Const, Tup, Alt)):
                        state.bind(scope, name, Unk(Reason.ESCAPED, where, value.steps))
        return Unk(Reason.RUNTIME, self.text(node), oid=("call", next(self._fresh)))

    def _import_module(
        self, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract | None:
        """A module by its full name."""
        name = args.get("name", 0)
        whole = isinstance(name, Const) and isinstance(name.value, str) and not name.value.startswith(".")
        if not whole or len(args.positional) + len(args.keywords) != 1:
            return None
        wanted = name.value  # type: ignore[union-attr]
        if self.text(node.func).endswith("__import__"):
            wanted = wanted.split(".")[0]
        return self.import_name(wanted, "", state, frame)

    def _choice(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        items = self.sequence(args, state)
        return join(items) if items else None

    def _shuffle(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract:
        for value in args.positional[:1]:
            items = self.items_of(value, state)
            for member in members(value):
                if isinstance(member, Ref) and isinstance(state.heap.get(member.oid), ListObj):
                    state.heap[member.oid] = ListObj(tuple(join(items) for _ in items) if items else None)
        return Const(None)

    def _nullcontext(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract:
        value = args.get("enter_result", 0) or Const(None)
        return self.new_instance("nullcontext", {"enter_result": value}, state, text=self.text(node))

    def _open(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        path = args.get("file", 0)
        return (
            self.new_instance("open", {"path": path}, state, text=self.text(node))
            if path is not None
            else None
        )

    def _callable(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        value = args.get("", 0)
        return Const(True) if isinstance(value, CALLABLE) else None

    def _first(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        return args.get("", 0)

    def _wraps(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract:
        return Ext("klguard.identity")

    def _cast(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        return args.get("val", 1)

    def _copy(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        value = args.get("x", 0)
        return self.duplicate(value, state, {}, deep=False) if value is not None else None

    def _deepcopy(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        value = args.get("x", 0)
        return self.duplicate(value, state, {}, deep=True) if value is not None else None

    def _partial(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        if not args.positional:
            return None
        kwargs = self.new_dict(dict(args.keywords), state, args.rest)
        return Partial(args.positional[0], tuple(args.positional[1:]), kwargs)

    def _getenv(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract:
        unknown = Unk(Reason.RUNTIME, self.text(node))
        default = args.get("default", 1)
        return join((default, unknown)) if default is not None else unknown


__all__ = ["DICT_LIKE_KINDS", "Models"]
