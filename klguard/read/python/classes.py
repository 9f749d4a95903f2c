"""Classes of the project, their attributes by method resolution order, and their instances."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from klguard.read.python import nodes
from klguard.read.python.calls import Arguments
from klguard.read.python.control import Frame
from klguard.read.python.functions import Functions
from klguard.read.python.source import ClassInfo, shorten
from klguard.read.python.state import State
from klguard.read.python.values import (
    Abstract,
    ClassObj,
    Const,
    DictObj,
    Ext,
    Func,
    InstObj,
    Later,
    Method,
    Missing,
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

MODELLED = frozenset(
    {
        "argparse.ArgumentParser",
        "transformers.HfArgumentParser",
        "transformers.GenerationConfig",
        "dict-like",
        "open",
        "path",
    }
)
"""Kinds of library objects whose methods `models` and `libraries` know."""

DICT_BASES = frozenset({"builtins.dict", "collections.OrderedDict", "collections.UserDict", "typing.Dict"})
"""Bases that make a class a dict, most often one whose items are attributes too."""

PLAIN_BASES = frozenset(
    "builtins.object abc.ABC typing.Generic typing.Protocol torch.nn.Module torch.nn.modules.module.Module"
    " torch.utils.data.Dataset transformers.Trainer transformers.trainer.Trainer".split()
)
"""Bases whose attributes are none that decide how text is generated."""

MODEL_BASES = ("BaseModel", "NamedTuple", "BaseSettings", "TrainingArguments")


class Classes(Functions):
    """Class statements, attribute look-up and construction."""

    lookup: Callable[[Any, str, State], Abstract | None]

    def define_class(self, node: nodes.ClassDef, state: State, frame: Frame) -> Abstract:  # type: ignore[override]
        qualname = (f"{frame.code.qualname}." if frame.code else "") + node.name
        info = frame.module.classes.get(qualname)
        if info is None:
            return Unk(Reason.UNSUPPORTED, node.name)
        bases = tuple(self.eval(base, state, frame) for base in node.bases)
        decorators = " ".join(self.text(d) for d in node.decorators)

        def run(statement: Any, ref: Ref, body: Frame) -> list[str]:
            self._run_class_statement(statement, info, ref, state, body, frame)
            return _annotated(statement)

        return self._build_class(info, bases, decorators, node.body.body, run, state, frame)

    def define_top_class(self, info: ClassInfo, state: State, frame: Frame) -> Abstract:
        """A class at the top level of a module, whose methods are defined when they are first read."""
        node = info.node
        bases = tuple(self.eval(nodes.expression(base, None), state, frame) for base in node.bases)
        decorators = " ".join(ast.unparse(decorator) for decorator in node.decorator_list)

        def run(statement: ast.stmt, ref: Ref, body: Frame) -> list[str]:
            method = info.module.by_node.get(statement)
            if method is not None:
                marks = {ast.unparse(d).rpartition(".")[2] for d in method.node.decorator_list}
                name = method.name if not marks & {"setter", "deleter"} else f"{method.name}.setter"
                state.bind(body.id, name, Later("method", info.module, method, ref))
                return []
            if isinstance(statement, ast.Expr):
                return []
            unit = info.module.unit(statement)
            body.unit = unit
            self._run_class_statement(unit.statement, info, ref, state, body, frame)
            return _annotated(unit.statement)

        return self._build_class(info, bases, decorators, node.body, run, state, frame)

    def _build_class(
        self,
        info: ClassInfo,
        bases: tuple[Abstract, ...],
        decorators: str,
        statements: Sequence[Any],
        run: Callable[[Any, Ref, Frame], list[str]],
        state: State,
        frame: Frame,
    ) -> Ref:
        """Run a class body; `run` executes one statement and says which fields it declares."""
        bases = tuple(self._base(base) for base in bases)
        flavour = self._flavour(decorators, bases, state)
        attrs = self.new_dict({}, state)
        ref = self.new(ClassObj(info, attrs.oid, bases, (), flavour), state)
        body = Frame(("class", next(self._fresh)), (), frame.module, frame.unit, frame.chain, frame.code)
        body.scopes = (body.id, *frame.scopes)
        fields: list[str] = [name for base in bases for name in self._fields(base, state)]
        state.frames[body.id] = {}
        for statement in statements:
            fields.extend(name for name in run(statement, ref, body) if name not in fields)
        if flavour == "enum":
            fields = [n for n, v in state.variables(body.id).items() if not isinstance(v, (Func, Later))]
            self._make_enum(info, ref, body, state)
        state.heap[attrs.oid] = DictObj(dict(state.variables(body.id)))
        state.frames.pop(body.id, None)
        state.heap[ref.oid] = ClassObj(info, attrs.oid, bases, tuple(fields), flavour)
        return ref

    def _base(self, value: Abstract) -> Abstract:
        """The one of the alternatives that a class can be made from: `None`, say, stands in where an import fails."""
        able = [one for one in members(value) if not isinstance(one, (Const, Missing, Tup))]
        if len(able) > 1:
            return Unk(Reason.RUNTIME, "one of several bases")
        return able[0] if able else value

    def _run_class_statement(
        self, statement: Any, info: ClassInfo, ref: Ref, state: State, body: Frame, around: Frame
    ) -> None:
        if not isinstance(statement, nodes.FunctionDef):
            self.run_block([statement], state, body)
            return
        # A method does not see the names of its class body.
        scope = replace(body, scopes=around.scopes)
        method = info.methods.get(statement.name)
        value = self.define(statement, state, scope, owner=ref, info=method)
        setter = isinstance(value, Func) and any(
            d.endswith((".setter", ".deleter")) for d in value.code.decorators
        )
        state.bind(body.id, f"{statement.name}.setter" if setter else statement.name, value)

    def _make_enum(self, info: ClassInfo, ref: Ref, body: Frame, state: State) -> None:
        for name, value in list(state.variables(body.id).items()):
            if not isinstance(value, (Func, Later)):
                member = self.new_instance("enum", {"value": value, "name": Const(name)}, state, cls=ref)
                state.bind(body.id, name, member)

    def _flavour(self, decorators: str, bases: Sequence[Abstract], state: State) -> str:
        names = [base.name.rpartition(".")[2] for base in bases if isinstance(base, Ext)]
        if (
            "dataclass" in decorators
            or "attrs." in decorators
            or "define" in decorators
            or "attr.s" in decorators
        ):
            return "dataclass"
        if "NamedTuple" in names:
            return "namedtuple"
        if any(name in ("Enum", "IntEnum", "StrEnum", "Flag") for name in names):
            return "enum"
        if any(name in MODEL_BASES for name in names):
            return "dataclass"
        for base in bases:
            obj = state.heap.get(base.oid) if isinstance(base, Ref) else None
            if isinstance(obj, ClassObj) and obj.flavour:
                return obj.flavour
        return ""

    def _fields(self, base: Abstract, state: State) -> tuple[str, ...]:
        """The fields a class inherits: those of a base that is a dataclass itself."""
        obj = state.heap.get(base.oid) if isinstance(base, Ref) else None
        return obj.fields if isinstance(obj, ClassObj) and obj.flavour else ()

    def class_of(self, info: ClassInfo, state: State) -> Ref | None:
        """The class object of a class statement, found where its definition left it."""
        parts = info.qualname.split(".")
        value = self.lookup(("module", info.module.path), parts[0], state)
        for part in parts[1:]:
            value = self.class_attribute(value, part, state) if isinstance(value, Ref) else None
        obj = state.heap.get(value.oid) if isinstance(value, Ref) else None
        return value if isinstance(value, Ref) and isinstance(obj, ClassObj) and obj.info is info else None

    def class_attribute(
        self, cls: Abstract, name: str, state: State, skip: Ref | None = None
    ) -> Abstract | None:
        """An attribute of a class or its bases, in method resolution order (depth first); `skip` starts behind it."""
        order = self.mro(cls, state)
        if skip is not None:
            own = [
                index for index, base in enumerate(order) if isinstance(base, Ref) and base.oid == skip.oid
            ]
            order = order[own[0] + 1 :] if own else order[1:]
        for base in order:
            obj = state.heap.get(base.oid) if isinstance(base, Ref) else None
            attrs = state.heap.get(obj.attrs) if isinstance(obj, ClassObj) else None
            if isinstance(attrs, DictObj) and name in attrs.entries:
                value = attrs.entries[name]
                return self.force(value, state) if isinstance(value, Later) else value
        return None

    def mro(self, cls: Abstract, state: State, depth: int = 0) -> list[Abstract]:
        obj = state.heap.get(cls.oid) if isinstance(cls, Ref) else None
        if not isinstance(obj, ClassObj) or depth > 8:
            return [cls]
        lists = [self.mro(base, state, depth + 1) for base in obj.bases]
        flat = [base for order in lists for base in order]
        last = {identity(base): index for index, base in enumerate(flat)}
        return [cls, *(base for index, base in enumerate(flat) if last[identity(base)] == index)]

    def has_foreign_base(self, cls: Abstract, state: State) -> bool:
        return any(
            not isinstance(base, Ref) and not (isinstance(base, Ext) and base.name == "builtins.object")
            for base in self.mro(cls, state)
        )

    def _has_plain_bases(self, cls: Abstract, state: State) -> bool:
        """Whether an attribute that the project sets on one path alone is not there on the other."""
        foreign = [base for base in self.mro(cls, state) if not isinstance(base, Ref)]
        return all(isinstance(base, Ext) and base.name in PLAIN_BASES for base in foreign)

    def instance_attribute(  # type: ignore[override]
        self, owner: Ref, obj: Object | None, name: str, state: State, frame: Frame
    ) -> Abstract:
        cls: Abstract | None = None
        if isinstance(obj, InstObj):
            cls = obj.cls
        elif isinstance(obj, ClassObj):
            cls = owner
        value = self.class_attribute(cls, name, state) if cls is not None else None
        if isinstance(value, Func):
            return self._bind_method(value, owner, obj, state, frame)
        if value is not None:
            return value
        if isinstance(obj, ClassObj) and name == "__name__":
            return Const(obj.info.name)
        if isinstance(obj, InstObj) and obj.made_by in MODELLED:
            return Method(owner, name)
        text = obj.text if isinstance(obj, InstObj) and obj.text else ""
        key = ("attr", owner.oid, name)
        overlay = state.heap.get(("overlay", owner.oid))
        if isinstance(overlay, DictObj) and name in overlay.entries:
            return overlay.entries[name]
        return Unk(Reason.RUNTIME, shorten(f"{text}.{name}") if text else name, (), key, owner, name)

    def _bind_method(
        self, value: Func, owner: Ref, obj: Object | None, state: State, frame: Frame
    ) -> Abstract:
        decorators = value.code.decorators
        if any(d == "staticmethod" for d in decorators):
            return value
        if any(d == "classmethod" for d in decorators):
            cls = obj.cls if isinstance(obj, InstObj) and obj.cls is not None else owner
            return replace(value, bound=cls)
        if isinstance(obj, ClassObj):
            return value
        bound = replace(value, bound=owner)
        if any(d == "property" or d.endswith("cached_property") for d in decorators):
            return self.invoke(bound, Arguments(), None, state, frame)
        return bound

    def super_proxy(self, state: State, frame: Frame) -> Abstract:
        code = frame.code
        if code is not None and code.owner is not None and code.params.params:
            first = code.params.params[0].name
            me = next((found for scope in frame.scopes if (found := state.variables(scope).get(first))), None)
            if me is not None:
                home = self.new_dict({"__self__": me}, state)
                return self.new(InstObj(code.owner, "super", home.oid), state)
        return Unk(Reason.RUNTIME, "super()")

    def super_method(self, proxy: InstObj, name: str, state: State) -> Abstract | None:
        """What `super().name` is: looked up behind the class whose method is running, bound to the instance."""
        attrs = state.heap[proxy.attrs]
        assert isinstance(attrs, DictObj) and proxy.cls is not None
        me = attrs.entries["__self__"]
        obj = state.heap.get(me.oid) if isinstance(me, Ref) else None
        cls: Abstract = obj.cls if isinstance(obj, InstObj) and obj.cls is not None else proxy.cls
        value = self.class_attribute(cls, name, state, skip=proxy.cls)
        return replace(value, bound=me) if isinstance(value, Func) else value

    def instantiate(
        self,
        cls: Ref,
        obj: ClassObj,
        arguments: Arguments,
        node: nodes.Call | None,
        state: State,
        frame: Frame,
    ) -> Abstract:
        if node is not None:
            self.constructions.setdefault(obj.info, []).append((arguments, state.copy()))
        if obj.flavour == "enum":
            return self._enum_member(obj, arguments, state)
        text = self.text(node) if node is not None else f"{obj.info.name}(...)"
        foreign = self.has_foreign_base(cls, state)
        open_ended = foreign and obj.flavour != "dataclass" and not self._has_plain_bases(cls, state)
        rest = Unk(Reason.RUNTIME, obj.info.name) if open_ended else None
        if any(isinstance(base, Ext) and base.name in DICT_BASES for base in self.mro(cls, state)) and (
            not isinstance(self.class_attribute(cls, "__init__", state), Func)
        ):
            made = self.model_call(
                Ext("omegaconf.OmegaConf.create"), arguments, node or _call_of("dict"), state, frame
            )
            if made is not None:
                return made
        made_by = "namedtuple" if obj.flavour == "namedtuple" else ""
        instance = self.new_instance(made_by, {}, state, cls=cls, rest=rest, text=text)
        init = self.class_attribute(cls, "__init__", state)
        if isinstance(init, Func):
            self.invoke(replace(init, bound=instance), arguments, node, state, frame)
        elif obj.flavour in ("dataclass", "namedtuple"):
            self._fill_fields(cls, obj, instance, arguments, state, frame)
            post = self.class_attribute(cls, "__post_init__", state)
            if isinstance(post, Func):
                self.invoke(replace(post, bound=instance), Arguments(), node, state, frame)
        elif foreign:
            if any(isinstance(base, Unk) for base in self.mro(cls, state)):
                self.escape(arguments.all(), f"passed to {text}", state)
            home = state.heap[instance.oid].attrs  # type: ignore[union-attr]
            state.heap[home] = DictObj(dict(arguments.keywords), rest)
        return instance

    def _fill_fields(
        self, cls: Ref, obj: ClassObj, instance: Ref, arguments: Arguments, state: State, frame: Frame
    ) -> None:
        positional = list(arguments.positional)
        entries: dict[str, Abstract] = {}
        for index, name in enumerate(obj.fields):
            default = self._field_default(cls, name, state, frame)
            passed = arguments.keywords.get(name)
            if index < len(positional):
                entries[name] = positional[index]
            elif passed is not None:
                given = [m for m in members(passed) if not isinstance(m, Missing)]
                entries[name] = join(given if len(given) == len(members(passed)) else [*given, default])
            elif arguments.rest is not None or arguments.more_positional is not None:
                entries[name] = join((default, arguments.rest or arguments.more_positional or default))
            else:
                entries[name] = default
        extra = {k: v for k, v in arguments.keywords.items() if k not in entries}
        home = state.heap[instance.oid].attrs  # type: ignore[union-attr]
        state.heap[home] = DictObj({**entries, **extra}, None)

    def _field_default(self, cls: Ref, name: str, state: State, frame: Frame) -> Abstract:
        value = self.class_attribute(cls, name, state)
        if value is None:
            return Unk(Reason.RUNTIME, name)
        obj = state.heap.get(value.oid) if isinstance(value, Ref) else None
        if isinstance(obj, InstObj) and obj.made_by == "field":
            attrs = state.heap[obj.attrs]
            assert isinstance(attrs, DictObj)
            if "default" in attrs.entries:
                value = attrs.entries["default"]
            elif "default_factory" in attrs.entries:
                value = self.call(
                    attrs.entries["default_factory"], Arguments(), _call_of("factory"), state, frame
                )
            else:
                return Unk(Reason.RUNTIME, name)
        return with_step(value, Step(HopKind.DEFAULT, None, None, f"default of field {name}"))

    def _enum_member(self, obj: ClassObj, arguments: Arguments, state: State) -> Abstract:
        attrs = state.heap.get(obj.attrs)
        wanted = arguments.positional[0] if arguments.positional else None
        if isinstance(attrs, DictObj) and isinstance(wanted, Const):
            for member in attrs.entries.values():
                inst = state.heap.get(member.oid) if isinstance(member, Ref) else None
                home = state.heap.get(inst.attrs) if isinstance(inst, InstObj) else None
                if isinstance(home, DictObj) and identity(home.entries.get("value", Missing())) == identity(
                    wanted
                ):
                    return member
        return Unk(Reason.RUNTIME, obj.info.name)


def _annotated(statement: nodes.Statement) -> list[str]:
    if not isinstance(statement, nodes.AnnAssign) or not isinstance(statement.target, nodes.Name):
        return []
    return [] if "ClassVar" in statement.annotation.text() else [statement.target.value]


def _call_of(name: str) -> nodes.Call:
    """A call that is not written anywhere."""
    return nodes.Call(func=nodes.Name(value=name), args=())
