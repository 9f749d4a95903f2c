"""Functions of the project: what defining one makes, and running one in place, on the caller's state."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from klguard.read.python import nodes
from klguard.read.python.calls import IDENTITY_DECORATORS, Arguments
from klguard.read.python.control import BudgetSpent, Frame
from klguard.read.python.doubts import Doubts
from klguard.read.python.source import FunctionInfo, Module
from klguard.read.python.state import State, join_states
from klguard.read.python.trees import SCOPES, children
from klguard.read.python.values import (
    Abstract,
    ClassObj,
    Code,
    Const,
    DictObj,
    Func,
    InstObj,
    Later,
    Missing,
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

MAX_CHAIN = 12
"""Deepest chain of calls that is followed."""

RECURSION_DEPTH = 2
"""Activations of one function that are told apart."""

COUNTED_DEPTH = 10
"""Activations of one function that are told apart while every one has other constants for arguments: a recursion
that counts ends by itself."""

COUNTED_ENTRIES = 60
"""Times a function is entered deeper than RECURSION_DEPTH: one that calls itself twice soon has too many."""

ASIDE_BUDGET = 400
"""Statements executed of a function behind which there is no site."""


class Functions(Doubts):
    """Definitions, activations and parameters."""

    def define(  # type: ignore[override]
        self,
        node: nodes.FunctionDef,
        state: State,
        frame: Frame,
        owner: Any = None,
        info: FunctionInfo | None = None,
    ) -> Abstract:
        assert frame.unit is not None
        code = Code(
            node.name,
            (f"{frame.code.qualname}." if frame.code else "") + node.name,
            frame.module,
            frame.unit,
            node.params,
            node.body,
            owner=owner,
            info=info,
            is_generator=info in frame.module.generators
            if info is not None
            else _yields(node.body, frame.module),
            is_async=node.asynchronous,
            decorators=tuple(self.text(d) for d in node.decorators),
        )
        code.defaults = self._defaults(node.params, state, frame)
        frame.captured[0] = True
        value: Abstract = Func(code, frame.scopes)
        for decorator in reversed(node.decorators):
            value = self._decorate(value, decorator, state, frame)
        return value

    def _defaults(self, params: nodes.Parameters, state: State, frame: Frame) -> dict[str, Abstract]:
        found = {}
        for param in (*params.posonly_params, *params.params, *params.kwonly_params):
            if param.default is not None:
                step = Step(HopKind.DEFAULT, frame.unit, param, f"default of parameter {param.name}")
                found[param.name] = with_step(self.eval(param.default, state, frame), step)
        return found

    def _decorate(self, value: Abstract, decorator: nodes.Expression, state: State, frame: Frame) -> Abstract:
        last = self.text(decorator.func if isinstance(decorator, nodes.Call) else decorator).rpartition(".")[
            2
        ]
        if last in IDENTITY_DECORATORS:
            return value
        applied = self.eval(decorator, state, frame)
        if isinstance(applied, Func) and isinstance(value, Func):
            call = nodes.Call(func=decorator, args=())
            made = self.call(applied, Arguments([value]), call, state, frame)
            if not isinstance(made, Unk) or made.oid not in self.unfollowed:
                return made
        if isinstance(value, Func) and not self.harmless(applied, last):
            self._run_with_anything(value, state, frame)
            return replace(value, code=replace(value.code, wrapped=last))
        return value

    def invoke(
        self, callee: Func, arguments: Arguments, node: nodes.Call | None, state: State, frame: Frame
    ) -> Abstract:
        """Run a function of the project on the caller's state, as Python would."""
        code = callee.code
        link = (code, node, frame.module, frame.unit)
        depth = sum(1 for entry in frame.chain if entry[0] is code)
        leads = self.leads_to_site(code)
        limit = self._depth_limit(code, depth, arguments, frame)
        if depth == limit and leads:
            # Deeper calls may bring anything: one visit with unknown arguments stands for them all.
            unknown = Unk(Reason.RECURSION, f"{code.name}()")
            self._unseen()
            self.escape(arguments.all(), f"passed to {code.name}()", state)
            arguments = Arguments(rest=unknown, more_positional=unknown)
        elif depth >= limit or len(frame.chain) >= MAX_CHAIN or not self.worth(code, frame):
            reason = Reason.RECURSION if depth else Reason.BUDGET
            self._unseen()
            self._doubt_unfollowed(callee, arguments, state)
            return self._unfollowed(code, reason)
        self.visited.add(code)
        if any("cache" in decorator for decorator in code.decorators) and not code.wrapped:
            return self._invoke_cached(callee, arguments, link, state, frame)
        if not leads:
            return self._invoke_aside(callee, arguments, link, state, frame)
        return self._enter_function(callee, arguments, link, state, frame)

    def _depth_limit(self, code: Code, depth: int, arguments: Arguments, frame: Frame) -> int:
        """Activations of a function that are told apart. Notes the constants that this one is called with."""
        constants = tuple(
            (place, identity(value))
            for place, value in (*enumerate(arguments.positional), *arguments.keywords.items())
            if isinstance(value, Const)
        )
        around = [entry for entry in self._counting.get(code, ()) if entry[0] < depth]
        counts = bool(constants) and all(constants != before for _, before in around)
        self._counting[code] = [*around, (depth, constants)]
        if depth < RECURSION_DEPTH or not counts or len(around) < depth:
            return RECURSION_DEPTH
        self._counted[code] = self._counted.get(code, 0) + 1
        return COUNTED_DEPTH if self._counted[code] <= COUNTED_ENTRIES else RECURSION_DEPTH

    def _invoke_cached(
        self, callee: Func, arguments: Arguments, link: tuple[Any, ...], state: State, frame: Frame
    ) -> Abstract:
        """A cached function gives the same object for the same arguments."""
        key = (
            id(callee.code),
            tuple(map(identity, arguments.positional)),
            tuple((name, identity(value)) for name, value in sorted(arguments.keywords.items())),
        )
        known = self._cached.get(key)
        if known is not None and all(not isinstance(m, Ref) or m.oid in state.heap for m in members(known)):
            return known
        result = self._enter_function(callee, arguments, link, state, frame)
        if known is not None or arguments.rest is not None or arguments.more_positional is not None:
            self.escape([result], f"cached by {callee.code.name}()", state)
        self._cached[key] = result
        return result

    leads_to_site: Callable[[Code], bool]

    def _invoke_aside(
        self, callee: Func, arguments: Arguments, link: tuple[Any, ...], state: State, frame: Frame
    ) -> Abstract:
        """Run a function behind which there is no site, for what it returns and changes, within a small budget."""
        code = callee.code
        before, limit = self.steps_left, min(self.steps_left, ASIDE_BUDGET)
        branch = state.copy()
        self.steps_left = limit
        result = None
        try:
            result = self._enter_function(callee, arguments, link, branch, frame)
        except BudgetSpent:
            pass
        finally:
            self.steps_left = before - (limit - max(self.steps_left, 0))
        if result is not None:
            state.become(branch)
            return result
        if self.leads_to_site(code):  # as it turned out
            return self._enter_function(callee, arguments, link, state, frame)
        self._unseen()
        self.too_long.add(code.info or code)
        self._doubt_unfollowed(callee, arguments, state)
        return self._unfollowed(code, Reason.BUDGET)

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
        if code.wrapped:
            self.escape([*arguments.all(), result], f"passed through @{code.wrapped}", state)
            return Unk(Reason.INVISIBLE_CALL, f"{code.name}(), decorated by @{code.wrapped}")
        return result

    worth: Callable[[Code, Frame], bool]

    def _run_body(self, code: Code, arguments: Arguments, state: State, inner: Frame) -> Abstract:
        if isinstance(code.body, nodes.Expression):
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
        with branch.heap.watched() as written:
            alive = self.run_suite(code.body, branch, inner)  # type: ignore[arg-type]
        later = Unk(Reason.RUNTIME, f"{code.name}()", oid=("generator", next(self._fresh)))
        if self._doubt_changes(branch, written, f"changed by the generator {code.name}()", state):
            self.escape(arguments.all(), f"passed to the generator {code.name}()", state)
            return later
        state.absorb(branch)
        yielded = inner.yields
        if any("contextmanager" in d for d in code.decorators):
            return Tup(tuple(yielded[:1])) if yielded else later
        if yielded is None or not alive or inner.returns or _conditional_yield(code.body):
            return later
        if self.leads_to_site(code) or (
            len(yielded) > 1 and any(isinstance(m, Ref) for v in yielded for m in members(v))
        ):
            self.escape(yielded, f"changed by the generator {code.name}()", state)
            return later
        return Tup(tuple(yielded))

    def _doubt_changes(self, branch: State, written: set[Any], where: str, state: State) -> bool:
        """Make unknown what code changes that runs nobody knows when: False where it changes nothing. `written` are
        the objects that were written to while it ran on `branch`."""
        changed = False
        gone = Unk(Reason.ESCAPED, where)
        for oid in list(written):
            obj = state.heap.get(oid)
            if obj is not None and branch.heap.get(oid, obj) is not obj:
                changed = True
                self.escape([Ref(oid)], where, state)
        for frame, variables in list(state.frames.items()):
            after = branch.frames.get(frame, variables)
            if after is not variables:
                for name in variables:
                    old, new = variables[name], after.get(name)
                    if new is not None and new is not old and not isinstance(old, Later):
                        changed = True
                        state.bind(frame, name, gone)
        return changed

    def bind_parameters(self, callee: Func, arguments: Arguments, state: State, inner: Frame) -> None:
        params = callee.code.params
        positional = list(arguments.positional)
        if callee.bound is not None:
            positional.insert(0, callee.bound)
        keywords = dict(arguments.keywords)
        names = [*params.posonly_params, *params.params]
        for index, param in enumerate(names):
            name = param.name
            if index < len(positional):
                value = self._parameter_step(positional[index], name, inner)
            else:
                value = self._by_keyword(callee, param, keywords, arguments, inner, index >= len(positional))
            state.bind(inner.id, name, self._typed_parameter(param, value, state, inner))
        for param in params.kwonly_params:
            value = self._by_keyword(callee, param, keywords, arguments, inner, False)
            state.bind(inner.id, param.name, self._typed_parameter(param, value, state, inner))
        if params.star_arg is not None:
            extra = Tup(tuple(positional[len(names) :]))
            star: Abstract = extra if arguments.more_positional is None else arguments.more_positional
            state.bind(inner.id, params.star_arg.name, star)
        if params.star_kwarg is not None:
            rest = arguments.rest
            if rest is not None and not rest.steps:
                name = params.star_kwarg.name
                ends = Step(
                    HopKind.END, callee.code.unit, params.star_kwarg, f"**{name} of {callee.code.name}()"
                )
                rest = replace(rest, steps=(ends,))
            state.bind(inner.id, params.star_kwarg.name, self.new_dict(keywords, state, rest))

    def _by_keyword(
        self,
        callee: Func,
        param: nodes.Param,
        keywords: dict[str, Abstract],
        arguments: Arguments,
        inner: Frame,
        by_position: bool,
    ) -> Abstract:
        name = param.name
        default = callee.code.defaults.get(name)
        passed = keywords.pop(name, None)
        unknown = arguments.rest or (arguments.more_positional if by_position else None)
        ends = Step(HopKind.END, callee.code.unit, param, f"parameter {name} of {callee.code.name}()")
        absent = (
            default
            if default is not None
            else Unk(
                Reason.PARAMETER if unknown is None else unknown.reason,
                name,
                (ends,) if unknown is None or not unknown.steps else unknown.steps,
                oid=("param", inner.id, name),
            )
        )
        if passed is None:
            if unknown is None or default is None:
                return (
                    absent
                    if unknown is None
                    else replace(
                        unknown,
                        detail=unknown.detail or name,
                        steps=unknown.steps or (ends,),
                        oid=("param", inner.id, name),
                    )
                )
            return join((default, unknown))
        given = [member for member in members(passed) if not isinstance(member, Missing)]
        if len(given) < len(members(passed)):
            given.append(absent)
        return self._parameter_step(join(given), name, inner)

    def _typed_parameter(self, param: nodes.Param, value: Abstract, state: State, inner: Frame) -> Abstract:
        """A parameter that is not known, but whose annotation names a class of the project: an instance of it,
        whose fields hold their defaults or something else."""
        if not isinstance(value, Unk) or param.annotation is None:
            return value
        annotation = param.annotation
        if isinstance(annotation, nodes.Subscript) and self.text(annotation.value).endswith("Optional"):
            annotation = annotation.slice[0]
        if isinstance(annotation, nodes.Literal) and str(annotation.value).isidentifier():
            annotation = nodes.Name(value=str(annotation.value))
        if not isinstance(annotation, (nodes.Name, nodes.Attribute)):
            return value
        cls = self.eval(annotation, state, replace(inner, scopes=inner.scopes[1:]))
        obj = state.heap.get(cls.oid) if isinstance(cls, Ref) else None
        if not isinstance(obj, ClassObj) or not isinstance(cls, Ref) or obj.flavour in ("enum", "namedtuple"):
            return value
        name = param.name
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
        return with_step(
            value, Step(HopKind.PARAMETER, None, None, f"parameter {name} of {inner.code.name}()")
        )

    def _eval_Lambda(self, node: nodes.Lambda, state: State, frame: Frame) -> Abstract:
        assert frame.unit is not None
        code = Code("<lambda>", "<lambda>", frame.module, frame.unit, node.params, node.body)
        code.defaults = self._defaults(node.params, state, frame)
        frame.captured[0] = True
        return Func(code, frame.scopes)


_MAY_SKIP = (ast.If, ast.Try, ast.While, ast.Match)


def _yields(body: nodes.Block, module: Module) -> bool:
    if "yield" not in module.text:
        return False
    stack = list[ast.AST](body.origin)
    while stack:
        node = stack.pop()
        if isinstance(node, (ast.Yield, ast.YieldFrom)):
            return True
        if not isinstance(node, SCOPES):
            stack.extend(children(node))
    return False


def _conditional_yield(body: nodes.Block) -> bool:
    """Whether a yield stands under an `if`, `try` or `while`, where it may not run."""
    stack: list[tuple[ast.AST, bool]] = [(statement, False) for statement in body.origin]
    while stack:
        node, under = stack.pop()
        if isinstance(node, (ast.Yield, ast.YieldFrom)) and under:
            return True
        if isinstance(node, SCOPES):
            continue
        inside = under or isinstance(node, _MAY_SKIP)
        stack.extend((child, inside) for child in children(node))
    return False
