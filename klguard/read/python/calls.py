"""Calls: their arguments, and functions of the project run in place, on the caller's state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from klguard.read.python import nodes
from klguard.read.python.control import BudgetSpent, Frame
from klguard.read.python.expressions import Expressions
from klguard.read.python.state import State, join_states
from klguard.read.python.values import (
    Abstract,
    ClassObj,
    Code,
    DictObj,
    Ext,
    Func,
    InstObj,
    Later,
    Missing,
    Partial,
    Ref,
    Step,
    Tup,
    Unk,
    join,
    members,
    with_step,
)
from klguard.settings import HopKind, Reason

if TYPE_CHECKING:
    from klguard.read.python.project import Project

MODULE_COST = 60
"""Statements that entering another module counts for: it has to be read and parsed."""

RETURNS_ITSELF = frozenset(
    "to eval train cuda cpu half float double bfloat16 requires_grad_ share_memory merge_and_unload".split()
)
"""Methods of a model that return it."""

RETURNS_ARGUMENTS = frozenset("prepare prepare_model unwrap_model unwrap_model_for_generation".split())
"""Functions that return the models they are given, wrapped or unwrapped."""

IDENTITY_DECORATORS = frozenset(
    {
        "staticmethod",
        "classmethod",
        "property",
        "wraps",
        "no_grad",
        "inference_mode",
        "contextmanager",
        "abstractmethod",
        "override",
        "final",
        "singledispatch",
        "asynccontextmanager",
        "total_ordering",
        "dataclass",
        "command",
        "main",
        "remote",
        "jit",
        "compile",
        "setter",
        "option",
        "argument",
        "group",
        "callback",
        "task",
        "fixture",
        "parametrize",
        "enable_grad",
        "torch_no_grad",
        "cached_property",
        "overload",
        "runtime_checkable",
        "cache",
        "lru_cache",
    }
)


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
    instantiate: Callable[..., Abstract]
    class_attribute: Callable[..., Abstract | None]
    invoke: Callable[..., Abstract]
    leads_to_site: Callable[[Code], bool]
    mro: Callable[[Abstract, State], list[Abstract]]
    force: Callable[..., Abstract]
    super_proxy: Callable[[State, Frame], Abstract]

    def __init__(self, project: Project) -> None:
        super().__init__()
        self.project = project
        self.steps_left = 0
        self.constructions: dict[Any, list[tuple[Arguments, State]]] = {}
        self.visited: set[Any] = set()
        self.unfollowed: dict[Any, Any] = {}
        """Identity of a value nobody can know -> the function (`FunctionInfo`) that was not followed to it."""
        self.too_long: set[Any] = set()
        self._cached: dict[tuple, Abstract] = {}
        self._counting: dict[Code, list[tuple[int, tuple]]] = {}
        self._counted: dict[Code, int] = {}

    def spend(self) -> None:  # type: ignore[override]
        self.steps_left -= 1
        if self.steps_left < 0:
            raise BudgetSpent

    # -- calls -------------------------------------------------------------------------------------------------

    def _eval_Call(self, node: nodes.Call, state: State, frame: Frame) -> Abstract:
        callee = self.eval(node.func, state, frame)
        if isinstance(callee, Ext) and callee.name == "builtins.super":
            return self.super_proxy(state, frame)
        arguments = self._arguments(node, state, frame)
        return self.call(callee, arguments, node, state, frame)

    def _arguments(self, node: nodes.Call, state: State, frame: Frame) -> Arguments:
        found = Arguments()
        for arg in node.args:
            value = self.eval(arg.value, state, frame)
            if arg.star == "*":
                items = self.items_of(value, state)
                if items is None:
                    found.more_positional = (
                        value if isinstance(value, Unk) else Unk(Reason.RUNTIME, self.text(arg.value))
                    )
                elif found.more_positional is None:
                    found.positional.extend(items)
            elif arg.star == "**":
                self._splat(arg, value, found, state, frame)
            elif arg.keyword is not None:
                step = Step(HopKind.KWARG, frame.unit, arg, f"passed as {arg.keyword}=")
                found.keywords[arg.keyword] = with_step(value, step)
            elif found.more_positional is None:
                found.positional.append(value)
            else:
                # Its position is not known, but it is passed all the same.
                found.keywords[f"*{len(found.keywords)}"] = value
        return found

    def _splat(self, arg: nodes.Arg, value: Abstract, found: Arguments, state: State, frame: Frame) -> None:
        text = self.text(arg.value)
        source = self.contents(value, state)
        if source is None:
            doubt = value if isinstance(value, Unk) else Unk(Reason.RUNTIME, text)
            if not self.holds_inputs(arg.value):
                found.rest = replace(doubt, detail=doubt.detail or text)
            return
        step = Step(HopKind.SPLAT, frame.unit, arg, f"passed by {self.text(arg)}")
        for key, entry in source.entries.items():
            if isinstance(key, str):
                found.keywords.setdefault(
                    key, with_step(entry, step) if not isinstance(entry, Missing) else entry
                )
        if source.rest is not None and not self.holds_inputs(arg.value):
            found.rest = replace(source.rest, detail=source.rest.detail or text)

    holds_inputs: Callable[..., bool]

    def call(  # type: ignore[override]
        self, callee: Abstract, arguments: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        """Call every possibility of `callee`, each on its own copy of the state."""
        options = members(callee)
        token = self.observe(node, callee, arguments, state, frame)
        self._spot = (frame.unit, node)
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
        self, callee: Abstract, arguments: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        if isinstance(callee, Later):
            callee = self.force(callee, state)
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
        self, callee: Partial, arguments: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        given = self.dict_of(callee.kwargs, state) or DictObj()
        first = {k: v for k, v in given.entries.items() if isinstance(k, str)}
        if arguments.rest is not None:
            first = {name: join((value, arguments.rest)) for name, value in first.items()}
        for name, value in arguments.keywords.items():
            # Where the call leaves a keyword out, the one given before is in force.
            passed = [member for member in members(value) if not isinstance(member, Missing)]
            if len(passed) == len(members(value)) or name not in first:
                first[name] = value
            else:
                first[name] = join((*passed, first[name]))
        merged = replace(
            arguments,
            positional=[*callee.args, *arguments.positional],
            keywords=first,
            rest=arguments.rest or given.rest,
        )
        return self.call(callee.func, merged, node, state, frame)

    def opaque_call(
        self, callee: Abstract, arguments: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        """A call of code that is not visible: what it returns is unknown, what it can reach may be changed."""
        text = self.text(node.func)
        self._inherited_call(callee, state, frame)
        same = self._same_object(callee, arguments, text)
        if same is not None:
            return same
        quiet = self.harmless(callee, text) or self._inherits_quietly(callee, state)
        if not quiet:
            running = {entry[0] for entry in frame.chain}
            given = [member for value in arguments.all() for member in members(value)]
            # a function can only be called, which is looked at below
            kept = [one for one in given if not isinstance(one, Func) or one.code in running]
            self.escape(kept, f"passed to {text}()", state)
        for value in arguments.all():
            self.call_back(value, state, frame, quiet)
        return Unk(
            Reason.INVISIBLE_CALL if not isinstance(callee, Ext) else Reason.RUNTIME,
            self.text(node),
            oid=("call", next(self._fresh)),
        )

    def _same_object(self, callee: Abstract, arguments: Arguments, text: str) -> Abstract | None:
        """The object itself where a call only moves, wraps or unwraps it: `model.to(device)`, `prepare(model)`."""
        last = text.rpartition(".")[2]
        owner = callee.owner if isinstance(callee, Unk) else None
        if last in RETURNS_ITSELF and isinstance(owner, Ref):
            return owner
        if last in RETURNS_ARGUMENTS and arguments.more_positional is None and arguments.positional:
            values = arguments.positional
            if any(isinstance(value, Ref) for value in values):
                return values[0] if len(values) == 1 or last != "prepare" else Tup(tuple(values))
        return None

    harmless: Callable[..., bool]

    def call_back(self, value: Abstract, state: State, frame: Frame, quiet: bool) -> None:
        """A function handed to unseen code may run, with any arguments: look at it so, on a branch. A library that
        only reads what it is given is taken to call no function that visible code calls."""
        for member in members(value):
            if isinstance(member, Func) and not (
                quiet and (member.code in self.visited or member.code.info is not None)
            ):
                self._run_with_anything(member, state, frame)

    def _run_with_anything(self, function: Func, state: State, frame: Frame) -> None:
        if any(entry[0] is function.code for entry in frame.chain):
            return
        unknown = Unk(Reason.INVISIBLE_CALL, function.code.name)
        for _ in range(2):  # where it changes something, it may be called again after that
            branch = state.copy()
            with branch.heap.watched() as written:
                self.invoke(function, Arguments(rest=unknown, more_positional=unknown), None, branch, frame)
            changed = self._doubt_changes(branch, written, f"changed by {function.code.name}()", state)
            state.absorb(branch)
            if not changed:
                break

    def _inherits_quietly(self, callee: Abstract, state: State) -> bool:
        """Whether a method comes from an unseen base class of a library that only reads what it is given:
        `super().__init__(model=model, args=args)` in a subclass of transformers' Trainer."""
        owner = callee.owner if isinstance(callee, Unk) else None
        obj = state.heap.get(owner.oid) if isinstance(owner, Ref) else None
        if not isinstance(obj, InstObj) or not isinstance(obj.cls, Ref):
            return False
        bases = [base for base in self.mro(obj.cls, state) if isinstance(base, (Ext, Unk))]
        return bool(bases) and all(isinstance(base, Ext) and self.harmless(base, "") for base in bases)

    def _inherited_call(self, callee: Abstract, state: State, frame: Frame) -> None:
        """A method that an unseen base class brings may change the instance, and call its other methods."""
        owner = callee.owner if isinstance(callee, Unk) else None
        obj = state.heap.get(owner.oid) if isinstance(owner, Ref) else None
        if not isinstance(obj, InstObj) or not isinstance(obj.cls, Ref):
            return
        bases = [base for base in self.mro(obj.cls, state) if isinstance(base, (Ext, Unk))]
        if not bases or all(self.harmless(base, "") for base in bases):
            return
        self.escape([owner], f"changed by an inherited {callee.name}()", state)  # type: ignore[union-attr,list-item]
        cls = state.heap.get(obj.cls.oid)
        assert isinstance(cls, ClassObj)
        for name in cls.info.methods:
            method = self.class_attribute(obj.cls, name, state)
            if isinstance(method, Func) and self.leads_to_site(method.code):
                self._run_with_anything(replace(method, bound=owner), state, frame)
