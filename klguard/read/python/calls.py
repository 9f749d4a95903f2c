"""Calls: arguments, functions of the project run in place, classes and their instances, modules and imports."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import libcst as cst

from klguard.read.python.expressions import Expressions
from klguard.read.python.flow import BudgetSpent, Frame
from klguard.read.python.source import ClassInfo, FunctionInfo, Module, TooComplex, shorten
from klguard.read.python.values import (
    Abstract, ClassObj, Code, Const, DictObj, Ext, Func, InstObj, Method, Missing, Mod, Object, Partial, Ref,
    State, Step, Tup, Unk, identity, join, join_states, members, with_step,
)
from klguard.settings import HopKind, Reason

if TYPE_CHECKING:
    from klguard.read.python.project import Project

MAX_CHAIN = 12
"""Deepest chain of calls that is followed."""

RECURSION_DEPTH = 2
"""Activations of one function that are told apart."""

ASIDE_BUDGET = 400
"""Statements executed of a function behind which there is no site."""

MAX_WRITERS = 6
"""Other methods run for the attributes they set."""

MAX_CONSTRUCTIONS = 4
"""Visible constructor calls for which a method without visible callers is run."""

IDENTITY_DECORATORS = frozenset({
    "staticmethod", "classmethod", "property", "wraps", "no_grad", "inference_mode", "contextmanager", "abstractmethod",
    "override", "final", "singledispatch", "asynccontextmanager", "total_ordering", "dataclass", "command", "main",
    "remote", "jit", "compile", "setter", "option", "argument", "group", "callback", "task", "fixture", "parametrize",
    "enable_grad", "torch_no_grad", "cached_property", "overload", "runtime_checkable", "cache", "lru_cache",
})

MODELLED = frozenset({
    "argparse.ArgumentParser", "transformers.HfArgumentParser", "transformers.GenerationConfig", "dict-like",
    "namespace", "open", "path",
})
"""Kinds of library objects whose methods `models` and `libraries` know."""

MODEL_BASES = ("BaseModel", "NamedTuple", "BaseSettings", "TrainingArguments")


@dataclass(eq=False)
class Arguments:
    """What a call passes: values by position and name, and whether more may come from an unknown splat."""

    positional: list[Abstract] = field(default_factory=list)
    keywords: dict[str, Abstract] = field(default_factory=dict)
    more_positional: Unk | None = None
    rest: Unk | None = None

    def get(self, name: str, position: int | None = None) -> Abstract | None:
        if name in self.keywords:
            return self.keywords[name]
        if position is not None and position < len(self.positional) and self.more_positional is None:
            return self.positional[position]
        return None

    def all(self) -> list[Abstract]:
        """What the callee gets hold of: a dict that is unpacked stays the caller's own, its values do not."""
        return [*self.positional, *self.keywords.values()]


class Calls(Expressions):
    """Evaluation of calls. What library functions do is in `models`, what a site is in `sites`."""

    observe: Callable[..., Any]
    observed: Callable[..., None]
    model_call: Callable[..., Abstract | None]

    def __init__(self, project: Project) -> None:
        super().__init__()
        self.project = project
        self._modules: dict[str, State] = {}
        self._running: list[str] = []
        self.steps_left = 0
        self.constructions: dict[Any, list[tuple[Arguments, State]]] = {}
        self.visited: set[Any] = set()
        self.too_long: set[Any] = set()

    def spend(self) -> None:  # type: ignore[override]
        self.steps_left -= 1
        if self.steps_left < 0:
            raise BudgetSpent

    # -- calls -------------------------------------------------------------------------------------------------

    def _eval_Call(self, node: cst.Call, state: State, frame: Frame) -> Abstract:
        callee = self.eval(node.func, state, frame)
        if isinstance(callee, Ext) and callee.name == "builtins.super":
            return self._super(state, frame)
        arguments = self._arguments(node, state, frame)
        return self.call(callee, arguments, node, state, frame)

    def _arguments(self, node: cst.Call, state: State, frame: Frame) -> Arguments:
        found = Arguments()
        for arg in node.args:
            value = self.eval(arg.value, state, frame)
            if arg.star == "*":
                items = self.items_of(value, state)
                if items is None:
                    found.more_positional = value if isinstance(value, Unk) else Unk(Reason.RUNTIME, self.text(arg.value))
                elif found.more_positional is None:
                    found.positional.extend(items)
            elif arg.star == "**":
                self._splat(arg, value, found, state, frame)
            elif arg.keyword is not None:
                step = Step(HopKind.KWARG, frame.unit, arg, f"passed as {arg.keyword.value}=")
                found.keywords[arg.keyword.value] = with_step(value, step)
            elif found.more_positional is None:
                found.positional.append(value)
            else:
                # Its position is not known, but it is passed all the same.
                found.keywords[f"*{len(found.keywords)}"] = value
        return found

    def _splat(self, arg: cst.Arg, value: Abstract, found: Arguments, state: State, frame: Frame) -> None:
        text = self.text(arg.value)
        source = self.dict_of(value, state)
        if source is None:
            doubt = value if isinstance(value, Unk) else Unk(Reason.RUNTIME, text)
            if not self.holds_inputs(arg.value):
                found.rest = replace(doubt, detail=doubt.detail or text)
            return
        step = Step(HopKind.SPLAT, frame.unit, arg, f"passed by **{text}")
        for key, entry in source.entries.items():
            if isinstance(key, str):
                found.keywords.setdefault(key, with_step(entry, step) if not isinstance(entry, Missing) else entry)
        if source.rest is not None and not self.holds_inputs(arg.value):
            found.rest = replace(source.rest, detail=source.rest.detail or text)

    holds_inputs: Callable[..., bool]

    def call(  # type: ignore[override]
        self, callee: Abstract, arguments: Arguments, node: cst.Call, state: State, frame: Frame
    ) -> Abstract:
        """Call every possibility of `callee`, each on its own copy of the state."""
        options = members(callee)
        token = self.observe(node, callee, arguments, state, frame)
        if len(options) == 1:
            result = self._call_one(callee, arguments, node, state, frame)
        else:
            states, results = [], []
            for option in options:
                branch = state.copy()
                results.append(self._call_one(option, arguments, node, branch, frame))
                states.append(branch)
            merged = join_states(states)
            assert merged is not None
            state.become(merged)
            result = join(results)
        self.observed(token, node, callee, arguments, state, frame)
        return result

    def _call_one(
        self, callee: Abstract, arguments: Arguments, node: cst.Call, state: State, frame: Frame
    ) -> Abstract:
        if isinstance(callee, Func):
            return self.invoke(callee, arguments, node, state, frame)
        if isinstance(callee, Partial):
            return self._call_partial(callee, arguments, node, state, frame)
        if isinstance(callee, Ref):
            obj = state.heap.get(callee.oid)
            if isinstance(obj, ClassObj):
                return self.instantiate(callee, obj, arguments, node, state, frame)
            if isinstance(obj, InstObj) and obj.cls is not None:
                method = self.class_attribute(obj.cls, "__call__", state)
                if isinstance(method, Func):
                    return self.invoke(replace(method, bound=callee), arguments, node, state, frame)
        if (result := self.model_call(callee, arguments, node, state, frame)) is not None:
            return result
        return self.opaque_call(callee, arguments, node, state, frame)

    def _call_partial(
        self, callee: Partial, arguments: Arguments, node: cst.Call, state: State, frame: Frame
    ) -> Abstract:
        given = self.dict_of(callee.kwargs, state) or DictObj()
        merged = replace(
            arguments, positional=[*callee.args, *arguments.positional],
            keywords={**{k: v for k, v in given.entries.items() if isinstance(k, str)}, **arguments.keywords},
            rest=arguments.rest or given.rest,
        )
        return self.call(callee.func, merged, node, state, frame)

    def opaque_call(
        self, callee: Abstract, arguments: Arguments, node: cst.Call, state: State, frame: Frame
    ) -> Abstract:
        """A call of code that is not visible: what it returns is unknown, what it can reach may be changed."""
        text = self.text(node.func)
        quiet = self.harmless(callee, text)
        if not quiet:
            self.escape(arguments.all(), f"passed to {text}()", state)
        self._inherited_call(callee, state, frame)
        for value in arguments.all():
            self.call_back(value, state, frame, quiet)
        return Unk(Reason.INVISIBLE_CALL if not isinstance(callee, Ext) else Reason.RUNTIME, self.text(node),
                   oid=("call", next(self._fresh)))

    harmless: Callable[..., bool]

    def call_back(self, value: Abstract, state: State, frame: Frame, quiet: bool) -> None:
        """A function handed to unseen code may run, with any arguments: look at it so, on a branch. A library that
        only reads what it is given is taken to call no function that visible code calls."""
        for member in members(value):
            if isinstance(member, Func) and not (quiet and (member.code in self.visited or member.code.info is not None)):
                self._run_with_anything(member, state, frame)

    def _run_with_anything(self, function: Func, state: State, frame: Frame) -> None:
        if any(entry[0] is function.code for entry in frame.chain):
            return
        unknown = Unk(Reason.INVISIBLE_CALL, function.code.name)
        branch = state.copy()
        self.invoke(function, Arguments(rest=unknown, more_positional=unknown), None, branch, frame)
        merged = join_states([state, branch])
        assert merged is not None
        state.become(merged)

    def _inherited_call(self, callee: Abstract, state: State, frame: Frame) -> None:
        """A method that an unseen base class brings may change the instance, and call its other methods."""
        owner = callee.owner if isinstance(callee, Unk) else None
        obj = state.heap.get(owner.oid) if isinstance(owner, Ref) else None
        if not isinstance(obj, InstObj) or not isinstance(obj.cls, Ref):
            return
        bases = [base for base in self._order(obj.cls, state) if isinstance(base, (Ext, Unk))]
        if not bases or all(self.harmless(base, "") for base in bases):
            return
        self.escape([owner], f"changed by an inherited {callee.name}()", state)  # type: ignore[union-attr,list-item]
        cls = state.heap.get(obj.cls.oid)
        assert isinstance(cls, ClassObj)
        for name in cls.info.methods:
            method = self.class_attribute(obj.cls, name, state)
            if isinstance(method, Func) and self.leads_to_site(method.code):
                self._run_with_anything(replace(method, bound=owner), state, frame)

    # -- functions ---------------------------------------------------------------------------------------------

    def define(  # type: ignore[override]
        self, node: cst.FunctionDef, state: State, frame: Frame, owner: Any = None, info: FunctionInfo | None = None
    ) -> Abstract:
        assert frame.unit is not None
        code = Code(
            node.name.value, (f"{frame.code.qualname}." if frame.code else "") + node.name.value, frame.module,
            frame.unit, node.params, node.body, owner=owner, info=info,
            is_generator=_yields(node.body, frame.module), is_async=node.asynchronous is not None,
            decorators=tuple(self.text(d.decorator) for d in node.decorators),
        )
        code.defaults = self._defaults(node.params, state, frame)
        frame.captured[0] = True
        value: Abstract = Func(code, frame.scopes)
        for decorator in reversed(node.decorators):
            value = self._decorate(value, decorator.decorator, state, frame)
        return value

    def _defaults(self, params: cst.Parameters, state: State, frame: Frame) -> dict[str, Abstract]:
        found = {}
        for param in (*params.posonly_params, *params.params, *params.kwonly_params):
            if param.default is not None:
                step = Step(HopKind.DEFAULT, frame.unit, param, f"default of parameter {param.name.value}")
                found[param.name.value] = with_step(self.eval(param.default, state, frame), step)
        return found

    def _decorate(self, value: Abstract, decorator: cst.BaseExpression, state: State, frame: Frame) -> Abstract:
        last = self.text(decorator.func if isinstance(decorator, cst.Call) else decorator).rpartition(".")[2]
        if last in IDENTITY_DECORATORS:
            return value
        applied = self.eval(decorator, state, frame)
        if isinstance(applied, Func) and isinstance(value, Func):
            call = cst.Call(decorator, [])
            return self.call(applied, Arguments([value]), call, state, frame)
        if isinstance(value, Func) and not self.harmless(applied, last):
            return replace(value, code=replace(value.code, wrapped=last))
        return value

    def invoke(
        self, callee: Func, arguments: Arguments, node: cst.Call | None, state: State, frame: Frame
    ) -> Abstract:
        """Run a function of the project on the caller's state, as Python would."""
        code = callee.code
        link = (code, node, frame.module, frame.unit)
        depth = sum(1 for entry in frame.chain if entry[0] is code)
        leads = self.leads_to_site(code)
        if depth == RECURSION_DEPTH and leads:
            # Deeper calls may bring anything: one visit with unknown arguments stands for them all.
            unknown = Unk(Reason.RECURSION, f"{code.name}()")
            self.escape(arguments.all(), f"passed to {code.name}()", state)
            arguments = Arguments(rest=unknown, more_positional=unknown)
        elif depth >= RECURSION_DEPTH or len(frame.chain) >= MAX_CHAIN or not self.worth(code, frame):
            reason = Reason.RECURSION if depth else Reason.BUDGET
            self.escape(arguments.all(), f"passed to {code.name}()", state)
            return Unk(reason, f"{code.name}()", oid=("call", next(self._fresh)))
        self.visited.add(code)
        if not leads:
            return self._invoke_aside(callee, arguments, link, state, frame)
        return self._enter_function(callee, arguments, link, state, frame)

    leads_to_site: Callable[[Code], bool]

    def _invoke_aside(
        self, callee: Func, arguments: Arguments, link: tuple[Any, ...], state: State, frame: Frame
    ) -> Abstract:
        """Run a function behind which there is no site, for what it returns and changes, within a small budget."""
        code = callee.code
        before, limit = self.steps_left, min(self.steps_left, ASIDE_BUDGET)
        branch = state.copy()
        self.steps_left = limit
        catchers, self.catchers = self.catchers, []
        try:
            result = self._enter_function(callee, arguments, link, branch, frame)
        except BudgetSpent:
            self.too_long.add(code.info or code)
            self.escape(arguments.all(), f"passed to {code.name}()", state)
            return Unk(Reason.BUDGET, f"{code.name}()", oid=("call", next(self._fresh)))
        finally:
            self.catchers = catchers
            self.steps_left = before - (limit - max(self.steps_left, 0))
        state.become(branch)
        return result

    def _enter_function(
        self, callee: Func, arguments: Arguments, link: tuple[Any, ...], state: State, frame: Frame
    ) -> Abstract:
        code = callee.code
        inner = Frame(("call", next(self._fresh)), (), code.module, code.unit, (*frame.chain, link), code)
        inner.scopes = (inner.id, *callee.closure)
        inner.dead = frame.dead
        self.bind_parameters(callee, arguments, state, inner)
        result = self._run_body(code, arguments, state, inner)
        if not inner.captured[0]:
            state.frames.pop(inner.id, None)
        if any("cache" in decorator for decorator in code.decorators):
            self.escape([result], f"cached by {code.name}()", state)
        if code.wrapped:
            self.escape([*arguments.all(), result], f"passed through @{code.wrapped}", state)
            return Unk(Reason.INVISIBLE_CALL, f"{code.name}(), decorated by @{code.wrapped}")
        return result

    worth: Callable[[Code, Frame], bool]

    def _run_body(self, code: Code, arguments: Arguments, state: State, inner: Frame) -> Abstract:
        if isinstance(code.body, cst.BaseExpression):
            return self.eval(code.body, state, inner)
        if code.is_generator:
            return self._run_generator(code, arguments, state, inner)
        alive = self.run_suite(code.body, state, inner)
        ends = [left for left, _ in inner.returns] + ([state.copy()] if alive else [])
        merged = join_states(ends)
        if merged is None:
            return Unk(Reason.RUNTIME, f"{code.name}(), which does not return")
        state.become(merged)
        return join([*(value for _, value in inner.returns), *([Const(None)] if alive else [])])

    def _run_generator(self, code: Code, arguments: Arguments, state: State, inner: Frame) -> Abstract:
        """A generator runs when it is iterated over, so unless its body only reads, its effects are unknown."""
        branch = state.copy()
        inner.yields = []
        alive = self.run_suite(code.body, branch, inner)  # type: ignore[arg-type]
        pure = all(branch.heap.get(oid) is obj for oid, obj in state.heap.items())
        if not pure:
            self.escape(arguments.all(), f"passed to the generator {code.name}()", state)
            return Unk(Reason.RUNTIME, f"{code.name}()")
        for oid, obj in branch.heap.items():
            state.heap.setdefault(oid, obj)
        if inner.yields is None or not alive or inner.returns or any("contextmanager" in d for d in code.decorators):
            return Unk(Reason.RUNTIME, f"{code.name}()") if not inner.yields else Tup(tuple(inner.yields[:1]))
        if _conditional_yield(code.body):
            return Unk(Reason.RUNTIME, f"{code.name}()")
        return Tup(tuple(inner.yields))

    def bind_parameters(self, callee: Func, arguments: Arguments, state: State, inner: Frame) -> None:
        params = callee.code.params
        positional = list(arguments.positional)
        if callee.bound is not None:
            positional.insert(0, callee.bound)
        keywords = dict(arguments.keywords)
        names = [*params.posonly_params, *params.params]
        for index, param in enumerate(names):
            name = param.name.value
            if index < len(positional):
                value = self._parameter_step(positional[index], name, inner)
            else:
                value = self._by_keyword(callee, param, keywords, arguments, inner, index >= len(positional))
            state.bind(inner.id, name, self._typed_parameter(param, value, state, inner))
        for param in params.kwonly_params:
            value = self._by_keyword(callee, param, keywords, arguments, inner, False)
            state.bind(inner.id, param.name.value, self._typed_parameter(param, value, state, inner))
        if isinstance(params.star_arg, cst.Param):
            extra = Tup(tuple(positional[len(names):]))
            star: Abstract = extra if arguments.more_positional is None else arguments.more_positional
            state.bind(inner.id, params.star_arg.name.value, star)
        if params.star_kwarg is not None:
            state.bind(inner.id, params.star_kwarg.name.value, self.new_dict(keywords, state, arguments.rest))

    def _by_keyword(
        self, callee: Func, param: cst.Param, keywords: dict[str, Abstract], arguments: Arguments, inner: Frame,
        by_position: bool,
    ) -> Abstract:
        name = param.name.value
        default = callee.code.defaults.get(name)
        passed = keywords.pop(name, None)
        unknown = arguments.rest or (arguments.more_positional if by_position else None)
        absent = default if default is not None else Unk(
            Reason.PARAMETER if unknown is None else unknown.reason, name, oid=("param", inner.id, name))
        if passed is None:
            if unknown is None or default is None:
                return absent if unknown is None else replace(unknown, detail=unknown.detail or name,
                                                              oid=("param", inner.id, name))
            return join((default, unknown))
        given = [member for member in members(passed) if not isinstance(member, Missing)]
        if len(given) < len(members(passed)):
            given.append(absent)
        return self._parameter_step(join(given), name, inner)

    def _typed_parameter(self, param: cst.Param, value: Abstract, state: State, inner: Frame) -> Abstract:
        """A parameter that is not known, but whose annotation names a class of the project: an instance of it,
        whose fields hold their defaults or something else."""
        if not isinstance(value, Unk) or param.annotation is None:
            return value
        annotation: cst.BaseExpression = param.annotation.annotation
        if isinstance(annotation, cst.Subscript) and self.text(annotation.value).endswith("Optional"):
            element = annotation.slice[0].slice
            annotation = element.value if isinstance(element, cst.Index) else annotation
        if isinstance(annotation, cst.SimpleString):
            annotation = cst.Name(str(annotation.evaluated_value)) if str(
                annotation.evaluated_value).isidentifier() else annotation
        if not isinstance(annotation, (cst.Name, cst.Attribute)):
            return value
        cls = self.eval(annotation, state, replace(inner, scopes=inner.scopes[1:]))
        obj = state.heap.get(cls.oid) if isinstance(cls, Ref) else None
        if not isinstance(obj, ClassObj) or not isinstance(cls, Ref) or obj.flavour in ("enum", "namedtuple"):
            return value
        name = param.name.value
        if obj.flavour != "dataclass" or self.class_attribute(cls, "__init__", state) is not None:
            return self.new_instance("", {}, state, cls=cls, rest=Unk(Reason.PARAMETER, name), text=name)
        instance = self.instantiate(cls, obj, Arguments(), None, state, inner)
        self._weaken(instance, name, state)
        return instance

    def _weaken(self, instance: Abstract, name: str, state: State) -> None:
        """The fields of an instance that came from elsewhere hold their defaults, or not."""
        obj = state.heap.get(instance.oid) if isinstance(instance, Ref) else None
        attrs = state.heap.get(obj.attrs) if isinstance(obj, InstObj) else None
        if not isinstance(obj, InstObj) or not isinstance(attrs, DictObj):
            return
        entries: dict[Any, Abstract] = {}
        for key, value in attrs.entries.items():
            inner = state.heap.get(value.oid) if isinstance(value, Ref) else None
            if isinstance(inner, InstObj) and inner.cls is not None:
                self._weaken(value, f"{name}.{key}", state)
                entries[key] = value
            else:
                entries[key] = join((value, Unk(Reason.PARAMETER, f"{name}.{key}")))
        state.heap[obj.attrs] = DictObj(entries, attrs.rest)

    def _parameter_step(self, value: Abstract, name: str, inner: Frame) -> Abstract:
        if isinstance(value, Missing) or inner.code is None:
            return value
        return with_step(value, Step(HopKind.PARAMETER, None, None, f"parameter {name} of {inner.code.name}()"))

    def _eval_Lambda(self, node: cst.Lambda, state: State, frame: Frame) -> Abstract:
        assert frame.unit is not None
        code = Code("<lambda>", "<lambda>", frame.module, frame.unit, node.params, node.body)
        code.defaults = self._defaults(node.params, state, frame)
        frame.captured[0] = True
        return Func(code, frame.scopes)

    def run_root(self, info: FunctionInfo) -> None:
        """Run a function nobody visible calls, with the default or an unknown value for every parameter."""
        state = self.module_state(info.module)
        frame = Frame(("root",), (("module", info.module.path),), info.module, None)
        unknown = Arguments(rest=Unk(Reason.PARAMETER, ""), more_positional=Unk(Reason.PARAMETER, ""))
        made = self.constructions.get(info.cls, []) if info.cls is not None else []
        for arguments, snapshot in made[:MAX_CONSTRUCTIONS] or [(unknown, None)]:
            current = state.copy()
            if snapshot is not None:
                current.absorb(snapshot)
            owner = self._root_self(info, arguments, current)
            callee = self.function_of(info, current, owner)
            if callee is not None:
                self.invoke(callee, unknown, None, current, frame)

    def function_of(self, info: FunctionInfo, state: State, owner: Abstract | None) -> Func | None:
        """The Func of a top-level function or method, found where its definition left it."""
        home = ("module", info.module.path)
        if info.parent is not None:
            return None
        if info.cls is None:
            value = state.variables(home).get(info.name)
        else:
            cls = self.class_of(info.cls, state)
            value = self.class_attribute(cls, info.name, state) if cls is not None else None
        if not isinstance(value, Func) or value.code.info is not info:
            value = self.load_function(info, state)
        if isinstance(value, Func) and owner is not None and not _is_static(value.code):
            return replace(value, bound=owner)
        return value if isinstance(value, Func) else None

    def _root_self(self, info: FunctionInfo, arguments: Arguments, state: State) -> Abstract | None:
        if info.cls is None:
            return None
        cls = self.class_of(info.cls, state)
        if cls is None:
            return Unk(Reason.PARAMETER, "self", oid=("self", info.cls.qualname))
        obj = state.heap[cls.oid]
        assert isinstance(obj, ClassObj)
        frame = Frame(("root", "init"), (("module", info.module.path),), info.module, None)
        if info.name == "__init__":
            return self.new_instance("", {}, state, cls=cls, rest=Unk(Reason.RUNTIME, "self"))
        instance = self.instantiate(cls, obj, arguments, None, state, frame)
        self._other_writes(info, instance, state)
        return instance

    def _other_writes(self, info: FunctionInfo, instance: Abstract, state: State) -> None:
        """Attributes that other methods set: run those methods, as if each may have run before this one or not."""
        obj = state.heap.get(instance.oid) if isinstance(instance, Ref) else None
        if not isinstance(obj, InstObj) or info.cls is None:
            return
        wanted = _self_attributes(info.node, ast.Load)
        unknown = Arguments(rest=Unk(Reason.PARAMETER, ""), more_positional=Unk(Reason.PARAMETER, ""))
        frame = Frame(("root", "other"), (("module", info.module.path),), info.module, None)
        writers = [
            method for name, method in info.cls.methods.items()
            if name not in ("__init__", "__post_init__", info.name) and _self_attributes(method.node, ast.Store) & wanted
        ]
        for method in writers[:MAX_WRITERS]:
            callee = self.function_of(method, state, instance)
            if callee is None:
                continue
            branch = state.copy()
            link = (callee.code, None, info.module, None)
            self._invoke_aside(callee, unknown, link, branch, frame)
            before, after = state.heap.get(obj.attrs), branch.heap.get(obj.attrs)
            if isinstance(before, DictObj) and isinstance(after, DictObj):
                fresh = {name: value for name, value in after.entries.items() if name not in before.entries}
                merged = {n: join((v, after.entries.get(n, v))) for n, v in before.entries.items()}
                state.absorb(branch)
                state.heap[obj.attrs] = DictObj({**merged, **fresh}, before.rest)

    # -- classes -----------------------------------------------------------------------------------------------

    def define_class(self, node: cst.ClassDef, state: State, frame: Frame) -> Abstract:  # type: ignore[override]
        qualname = (f"{frame.code.qualname}." if frame.code else "") + node.name.value
        info = frame.module.classes.get(qualname)
        if info is None:
            return Unk(Reason.UNSUPPORTED, node.name.value)
        bases = tuple(self.eval(base.value, state, frame) for base in node.bases if base.keyword is None)
        flavour = self._flavour(node, bases, state)
        attrs = self.new_dict({}, state)
        ref = self.new(ClassObj(info, attrs.oid, bases, (), flavour), state)
        body = Frame(("class", next(self._fresh)), (), frame.module, frame.unit, frame.chain, frame.code)
        body.scopes = (body.id, *frame.scopes)
        fields: list[str] = [name for base in bases for name in self._fields(base, state)]
        state.frames[body.id] = {}
        for statement in node.body.body:
            self._run_class_statement(statement, info, ref, state, body, frame)
            fields.extend(name for name in _annotated(statement) if name not in fields)
        if flavour == "enum":
            fields = [name for name, v in state.variables(body.id).items() if not isinstance(v, Func)]
            self._make_enum(info, ref, body, state)
        state.heap[attrs.oid] = DictObj(dict(state.variables(body.id)))
        state.frames.pop(body.id, None)
        state.heap[ref.oid] = ClassObj(info, attrs.oid, bases, tuple(fields), flavour)
        return ref

    def _run_class_statement(
        self, statement: Any, info: ClassInfo, ref: Ref, state: State, body: Frame, around: Frame
    ) -> None:
        if not isinstance(statement, cst.FunctionDef):
            self.run_block([statement], state, body)
            return
        # A method does not see the names of its class body.
        scope = replace(body, scopes=around.scopes)
        method = info.methods.get(statement.name.value)
        value = self.define(statement, state, scope, owner=ref, info=method)
        if isinstance(value, Func) and any(d.endswith(".setter") for d in value.code.decorators):
            return
        state.bind(body.id, statement.name.value, value)

    def _make_enum(self, info: ClassInfo, ref: Ref, body: Frame, state: State) -> None:
        for name, value in list(state.variables(body.id).items()):
            if not isinstance(value, Func):
                member = self.new_instance("enum", {"value": value, "name": Const(name)}, state, cls=ref)
                state.bind(body.id, name, member)

    def _flavour(self, node: cst.ClassDef, bases: Sequence[Abstract], state: State) -> str:
        decorators = " ".join(self.text(d.decorator) for d in node.decorators)
        names = [base.name.rpartition(".")[2] for base in bases if isinstance(base, Ext)]
        if "dataclass" in decorators or "attrs." in decorators or "define" in decorators or "attr.s" in decorators:
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
        obj = state.heap.get(base.oid) if isinstance(base, Ref) else None
        return obj.fields if isinstance(obj, ClassObj) else ()

    def class_of(self, info: ClassInfo, state: State) -> Ref | None:
        """The class object of a class statement, found where its definition left it."""
        parts = info.qualname.split(".")
        value: Abstract | None = state.variables(("module", info.module.path)).get(parts[0])
        for part in parts[1:]:
            value = self.class_attribute(value, part, state) if isinstance(value, Ref) else None
        obj = state.heap.get(value.oid) if isinstance(value, Ref) else None
        return value if isinstance(value, Ref) and isinstance(obj, ClassObj) and obj.info is info else None

    def class_attribute(self, cls: Abstract, name: str, state: State, skip: Ref | None = None) -> Abstract | None:
        """An attribute of a class or its bases, in method resolution order (depth first); `skip` starts behind it."""
        order = self._order(cls, state)
        if skip is not None:
            own = [index for index, base in enumerate(order) if isinstance(base, Ref) and base.oid == skip.oid]
            order = order[own[0] + 1:] if own else order[1:]
        for base in order:
            obj = state.heap.get(base.oid) if isinstance(base, Ref) else None
            attrs = state.heap.get(obj.attrs) if isinstance(obj, ClassObj) else None
            if isinstance(attrs, DictObj) and name in attrs.entries:
                return attrs.entries[name]
        return None

    def _order(self, cls: Abstract, state: State, depth: int = 0) -> list[Abstract]:
        obj = state.heap.get(cls.oid) if isinstance(cls, Ref) else None
        if not isinstance(obj, ClassObj) or depth > 8:
            return [cls]
        lists = [self._order(base, state, depth + 1) for base in obj.bases]
        flat = [base for order in lists for base in order]
        last = {identity(base): index for index, base in enumerate(flat)}
        return [cls, *(base for index, base in enumerate(flat) if last[identity(base)] == index)]

    def has_foreign_base(self, cls: Abstract, state: State) -> bool:
        return any(not isinstance(base, Ref) and not (isinstance(base, Ext) and base.name == "builtins.object")
                   for base in self._order(cls, state))

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

    def _bind_method(self, value: Func, owner: Ref, obj: Object | None, state: State, frame: Frame) -> Abstract:
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

    def _super(self, state: State, frame: Frame) -> Abstract:
        code = frame.code
        if code is not None and code.owner is not None and code.params.params:
            first = code.params.params[0].name.value
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
        self, cls: Ref, obj: ClassObj, arguments: Arguments, node: cst.Call | None, state: State, frame: Frame
    ) -> Abstract:
        if node is not None:
            self.constructions.setdefault(obj.info, []).append((arguments, state.copy()))
        if obj.flavour == "enum":
            return self._enum_member(obj, arguments, state)
        text = self.text(node) if node is not None else f"{obj.info.name}(...)"
        foreign = self.has_foreign_base(cls, state)
        rest = Unk(Reason.RUNTIME, obj.info.name) if foreign and obj.flavour != "dataclass" else None
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
                value = self.call(attrs.entries["default_factory"], Arguments(), cst.Call(cst.Name("factory")), state, frame)
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
                if isinstance(home, DictObj) and identity(home.entries.get("value", Missing())) == identity(wanted):
                    return member
        return Unk(Reason.RUNTIME, obj.info.name)

    # -- modules -----------------------------------------------------------------------------------------------

    def module_state(self, module: Module) -> State:
        """The state after the module's body ran, as an importer sees it. A copy: the caller may change it."""
        if module.path not in self._modules:
            self._modules[module.path] = State({("module", module.path): {}})
            self._running.append(module.path)
            catchers, self.catchers = self.catchers, []
            try:
                self._run_module(module)
            finally:
                self._running.pop()
                self.catchers = catchers
        return self._modules[module.path].copy()

    def _run_module(self, module: Module) -> None:
        home = ("module", module.path)
        state = State({home: {}})
        self._modules[module.path] = state
        frame = Frame(home, (home,), module, None)
        frame.loops = []
        try:
            self._module_body(module, state, frame)
        except BudgetSpent:
            self.steps_left = 0

    def run_program(self, module: Module) -> None:
        """Run a module as a program: its own state, with the part behind `if __name__ == "__main__"`."""
        home = ("module", module.path)
        frame = Frame(home, (home,), module, None)
        self._running.append(module.path)
        try:
            self._module_body(module, State({home: {}}), frame, main=True)
        finally:
            self._running.pop()
            self.catchers = []

    def _module_body(self, module: Module, state: State, frame: Frame, main: bool = False) -> None:
        alive = True
        for first, last in _groups(module.tree.body):
            target = state if alive else state.copy()
            frame.dead = not alive
            if isinstance(first, (ast.Import, ast.ImportFrom)) and first is last:
                self._import_statement(first, target, frame)
                continue
            if isinstance(first, ast.If) and first is last and _is_main(first.test):
                if main:
                    self._module_statement(module, first, last, target, frame)
                continue
            alive = self._module_statement(module, first, last, target, frame) and alive

    def _module_statement(
        self, module: Module, first: ast.stmt, last: ast.stmt, state: State, frame: Frame
    ) -> bool:
        try:
            unit = module.unit(first, last)
        except TooComplex:
            self.too_complex(module, first)
            for name in _bound_names(first):
                state.bind(frame.id, name, Unk(Reason.BUDGET, name))
            return True
        frame.unit = unit
        if isinstance(first, (ast.FunctionDef, ast.AsyncFunctionDef)) and first is last:
            info = module.by_node[first]
            node = unit.body[0]
            assert isinstance(node, cst.FunctionDef)
            self.bind(first.name, self.define(node, state, frame, info=info), state, frame)
            return True
        if isinstance(first, ast.If) and _is_main(first.test) and isinstance(unit.body[0], cst.If):
            self.run_suite(unit.body[0].body, state, frame)
            return True
        return self.run_block(unit.body, state, frame)

    too_complex: Callable[[Module, ast.stmt], None]

    def load_function(self, info: FunctionInfo, state: State) -> Func | None:
        """The Func of a definition that running its module did not leave behind (conditional, decorated away)."""
        try:
            unit = info.module.unit(info.node)
        except TooComplex:
            self.too_complex(info.module, info.node)
            return None
        home = ("module", info.module.path)
        frame = Frame(home, (home,), info.module, unit)
        node = next((n for n in unit.body if isinstance(n, cst.FunctionDef)), None)
        if node is None:
            return None
        owner = self.class_of(info.cls, state) if info.cls is not None else None
        code = Code(
            info.name, info.qualname, info.module, unit, node.params, node.body, owner=owner, info=info,
            is_generator=_yields(node.body, info.module), decorators=tuple(self.text(d.decorator) for d in node.decorators),
        )
        code.defaults = self._defaults(node.params, state, frame)
        return Func(code, (home,))

    def _import_statement(self, node: ast.Import | ast.ImportFrom, state: State, frame: Frame) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                head = alias.name.split(".")[0]
                value = self.import_name(alias.name, "", state, frame)
                bound = value if alias.asname else self.import_name(head, "", state, frame)
                self.bind(alias.asname or head, bound, state, frame)
            return
        base = "." * node.level + (node.module or "")
        for alias in node.names:
            if alias.name == "*":
                self.import_star(base, state, frame)
            else:
                self.bind(alias.asname or alias.name, self.import_name(base, alias.name, state, frame), state, frame)

    def import_name(self, base: str, name: str, state: State, frame: Frame) -> Abstract:  # type: ignore[override]
        """What `from base import name` (or `import base`, without a name) binds."""
        found = self.project.find_module(base, frame.module)
        if found is None and isinstance(frame.module, Module) and base == frame.module.name:
            found = frame.module
        if found is None:
            if name and base.strip("."):
                return Ext(f"{base}.{name}")
            if name and (sibling := self.project.find_module(f"{base}{name}", frame.module)) is not None:
                return self._enter_module(sibling, state)
            return Ext(f"{base}.{name}" if name else base)
        module = self._enter_module(found, state)
        if not name:
            return module
        value = state.variables(("module", found.path)).get(name)
        if value is not None:
            return with_step(value, Step(HopKind.IMPORT, None, None, f"imported from {found.name}"))
        inner = self.project.find_module(f"{base}.{name}" if base.strip(".") else base + name, frame.module)
        if inner is not None and inner is not found:
            return self._enter_module(inner, state)
        resolved = self.project.resolve(name, found)
        if isinstance(resolved, str) and resolved != name:
            return Ext(resolved.lstrip("."))
        return Unk(Reason.RUNTIME, f"{base}.{name}", oid=("name", found.path, name))

    def _enter_module(self, found: Module, state: State) -> Mod:
        if ("module", found.path) not in state.frames:
            state.absorb(self.module_state(found))
        return Mod(found)

    def module_variable(self, name: str, state: State, frame: Frame) -> Abstract | None:  # type: ignore[override]
        """A module-level name that running the module has not bound (yet): a definition further down."""
        info = frame.module.functions.get(name)
        if info is not None and info.parent is None and frame.module.path in self._running:
            return self.load_function(info, state)
        return None


def _groups(body: list[ast.stmt]) -> list[tuple[ast.stmt, ast.stmt]]:
    """Statements that share a line must be cut together: (first, last) of each group."""
    groups: list[tuple[ast.stmt, ast.stmt]] = []
    for statement in body:
        if groups and statement.lineno <= (groups[-1][1].end_lineno or 0):
            groups[-1] = (groups[-1][0], statement)
        else:
            groups.append((statement, statement))
    return groups


def _is_main(test: ast.expr) -> bool:
    return "__name__" in ast.dump(test) and "__main__" in ast.dump(test)


def _bound_names(statement: ast.stmt) -> list[str]:
    return [node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]


def _yields(body: cst.BaseSuite, module: Module) -> bool:
    if "yield" not in module.text:
        return False
    stack: list[cst.CSTNode] = [body]
    while stack:
        node = stack.pop()
        if isinstance(node, cst.Yield):
            return True
        if not isinstance(node, (cst.FunctionDef, cst.ClassDef, cst.Lambda, cst.Name, cst.SimpleString)):
            stack.extend(node.children)
    return False


def _conditional_yield(body: cst.BaseSuite | cst.BaseExpression) -> bool:
    """Whether a yield stands under an `if`, `try` or `while`, where it may not run."""
    stack: list[tuple[cst.CSTNode, bool]] = [(body, False)]
    while stack:
        node, under = stack.pop()
        if isinstance(node, cst.Yield) and under:
            return True
        if isinstance(node, (cst.FunctionDef, cst.ClassDef, cst.Lambda)):
            continue
        inside = under or isinstance(node, (cst.If, cst.Try, cst.While, cst.Match))
        stack.extend((child, inside) for child in node.children)
    return False


def _annotated(statement: Any) -> list[str]:
    if not isinstance(statement, cst.SimpleStatementLine):
        return []
    return [
        part.target.value for part in statement.body
        if isinstance(part, cst.AnnAssign) and isinstance(part.target, cst.Name)
        and "ClassVar" not in cst.Module([]).code_for_node(part.annotation.annotation)
    ]


def _self_attributes(node: ast.AST, context: type) -> set[str]:
    """Names of `self.x` that a method reads or sets; a call of another method of its own reads what that one reads."""
    return {
        inner.attr for inner in ast.walk(node)
        if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name) and inner.value.id == "self"
        and isinstance(inner.ctx, context)
    }


def _is_static(code: Code) -> bool:
    return any(d == "staticmethod" for d in code.decorators)

