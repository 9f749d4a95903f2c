"""Generators and context managers: their bodies run where, and as often as, their consumer asks for more.

A `for` over a generator, a `with` over a context manager made of one, and `list()`, `next()` and their kin run the
generator's body on the consumer's state: at each `yield` the consumer goes on (the body of the loop, the block of the
`with`), then the generator does. What a consumer cannot follow is left to `Functions._run_generator`, which doubts
everything the generator may change.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from klguard.read.python import nodes
from klguard.read.python.calls import Arguments
from klguard.read.python.control import Frame, Loop, arrive
from klguard.read.python.iteration import Iteration
from klguard.read.python.loops import is_generator
from klguard.read.python.state import State, join_states
from klguard.read.python.trees import SCOPES, children
from klguard.read.python.values import (
    Abstract,
    Alt,
    Code,
    Const,
    Ext,
    Ref,
    Tup,
    Unk,
    join,
    members,
)
from klguard.settings import Reason

Consumer = Callable[[Abstract, State], bool]
"""What goes on at a yield, with the value yielded: False where the generator is never resumed."""

TAKES_ALL = frozenset(
    f"builtins.{name}" for name in "list tuple dict set frozenset sorted sum max min".split()
)
"""Functions that run an iterable to its end before they return."""

STACKS = frozenset({"contextlib.ExitStack", "contextlib.AsyncExitStack"})
"""Objects that leave other managers when they are left."""

GUARDS = (ast.Try, getattr(ast, "TryStar", ast.Try), ast.With, ast.AsyncWith)
"""Statements out of which a generator that is never resumed does not simply vanish."""

TAKEN = "<taken>"
"""The variable of a generator's frame that holds what it has yielded: joined and widened like every other."""


@dataclass(eq=False)
class Pending:
    """A generator that was called and has not run yet: its parameters are bound in `inner`."""

    code: Code
    arguments: Arguments
    inner: Frame


END = "end"


@dataclass
class Exits:
    """The ways in which the block of a `with` was left (its end, return, break, continue), the one that is followed,
    "" for all, and the values returned."""

    ways: set[str]
    only: str = ""
    values: list[Abstract] = field(default_factory=list)


class Generators(Iteration):
    """Running generators in step with what consumes them."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._awaited: nodes.Call | None = None
        self._pending: dict[Any, Pending] = {}
        self._doubted: dict[Any, Pending] = {}
        self._stacked: dict[Any, list[tuple[str, Abstract, Arguments, nodes.Call]]] = {}
        self._instead: dict[nodes.Call, Abstract] = {}
        self._consumers: dict[Any, Consumer] = {}
        self._shapes: dict[nodes.Node, tuple[bool, bool]] = {}
        self._left = False

    # -- a call whose consumer runs the body -----------------------------------------------------------------

    def _eval_lazily(
        self, node: nodes.Expression, state: State, frame: Frame
    ) -> tuple[Abstract, Pending | None]:
        """The value of an expression; of a generator's call, the generator before it has begun."""
        if not isinstance(node, nodes.Call):
            return self.eval(node, state, frame), None
        around, self._awaited = self._awaited, node
        try:
            value = self.eval(node, state, frame)
        finally:
            self._awaited = around
        found = [
            self._pending.pop(member.oid, None) if isinstance(member, Unk) else None
            for member in members(value)
        ]
        if isinstance(value, Alt) and any(found):
            # One of several functions: each is run as if nobody knew when.
            values = [
                member if pending is None else self._doubtful(pending, state)
                for member, pending in zip(value.values, found, strict=True)
            ]
            return join(values), None
        return value, found[0]

    def _run_generator(self, code: Code, arguments: Arguments, state: State, inner: Frame) -> Abstract:
        node, pending = inner.chain[-1][1], Pending(code, arguments, inner)
        if node is None or node is not self._awaited or code.is_async or code.wrapped:
            return self._doubtful(pending, state)
        inner.captured[0] = True
        oid = ("pending", next(self._fresh))
        self._pending[oid] = pending
        return Unk(Reason.RUNTIME, f"{code.name}()", oid=oid)

    def _doubtful(self, pending: Pending, state: State) -> Abstract:
        """Run a generator whose consumer cannot be followed."""
        pending.inner.returns = []
        result = super()._run_generator(pending.code, pending.arguments, state, pending.inner)
        if is_generator(result):
            assert isinstance(result, Unk)
            pending.inner.captured[0] = True
            self._doubted[result.oid] = pending
        return result

    def resume(self, value: Abstract, state: State) -> None:  # type: ignore[override]
        """Somebody may ask a generator for more, or close it: what its body does, it may do now."""
        for member in members(value):
            if isinstance(member, Unk) and (pending := self._doubted.get(member.oid)) is not None:
                self._doubtful(pending, state)

    def call(
        self, callee: Abstract, arguments: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        if self._doubted:
            owners = [m.owner for m in members(callee) if isinstance(m, Unk) and m.owner is not None]
            for value in (*owners, *arguments.all()):
                self.resume(value, state)
        return super().call(callee, arguments, node, state, frame)

    def _comp_for(self, clause: nodes.CompFor, produce: Any, state: State, frame: Frame) -> bool:
        if self._doubted:
            self.resume(self._peek(clause.iter, state, frame), state)
        return super()._comp_for(clause, produce, state, frame)

    def _peek(self, node: nodes.Expression, state: State, frame: Frame) -> Abstract:
        """The value of a name; of anything else nothing, since it must not be evaluated twice."""
        return self.eval(node, state, frame) if isinstance(node, nodes.Name) else Const(None)

    def _drive(self, pending: Pending, consumer: Consumer, state: State) -> bool:
        """Run a generator to its end, `consumer` at each yield; False when the end is not reached."""
        inner = pending.inner
        inner.returns = []
        self._consumers[inner.id] = consumer
        state.bind(inner.id, TAKEN, Tup(()))
        try:
            alive = self.run_suite(pending.code.body, state, inner)  # type: ignore[arg-type]
        finally:
            del self._consumers[inner.id]
            self._left = False
        return arrive(state, [left for left, _ in inner.returns] + ([state.copy()] if alive else []))

    def _eval_Yield(self, node: nodes.Yield, state: State, frame: Frame) -> Abstract:
        consumer = self._consumers.get(frame.id)
        if consumer is None or frame.dead:
            return super()._eval_Yield(node, state, frame)
        value = Const(None) if node.value is None else self.eval(node.value, state, frame)
        if not consumer(value, state):
            self._left = True
        return Const(None)

    def _eval_YieldFrom(self, node: nodes.YieldFrom, state: State, frame: Frame) -> Abstract:
        consumer = self._consumers.get(frame.id)
        if consumer is None or frame.dead:
            return super()._eval_YieldFrom(node, state, frame)
        if not consumer(Unk(Reason.UNSUPPORTED, self.text(node)), state):
            self._left = True
        return Const(None)

    def _run_Expr(self, node: nodes.Expr, state: State, frame: Frame) -> bool:
        return super()._run_Expr(node, state, frame) and not self._has_left()

    def _run_Assign(self, node: nodes.Assign, state: State, frame: Frame) -> bool:
        return super()._run_Assign(node, state, frame) and not self._has_left()

    def _has_left(self) -> bool:
        """Whether the statement that has just run was a yield after which its generator is never resumed."""
        left, self._left = self._left, False
        return left

    def _shape(self, code: Code) -> tuple[bool, bool]:
        """(Whether all yields of a function are statements or assigned, whether one stands in a `try` or `with`)."""
        found = self._shapes.get(code.body)
        if found is None:
            found = self._shapes[code.body] = _shape_of(code.body)
        return found

    # -- with ------------------------------------------------------------------------------------------------

    def _run_With(self, node: nodes.With, state: State, frame: Frame) -> bool:
        if node.asynchronous or frame.dead:
            return super()._run_With(node, state, frame)
        return self._enter_item(node, 0, state, frame)

    def _enter_item(self, node: nodes.With, index: int, state: State, frame: Frame) -> bool:
        """Enter the managers from `index` on, run the block, and leave them again."""
        if index == len(node.items):
            return self.run_suite(node.body, state, frame)
        item = node.items[index]
        target = item.target

        def block(current: State) -> bool:
            return self._enter_item(node, index + 1, current, frame)

        value, pending = self._eval_lazily(item.item, state, frame)
        if pending is not None:
            if any("contextmanager" in d for d in pending.code.decorators) and self._shape(pending.code)[0]:
                return self._managed(pending, target, block, state, frame)
            value = self._doubtful(pending, state)
        return self.run_managed(item, value, block, state, frame)

    def _managed(
        self,
        pending: Pending,
        target: nodes.Expression | None,
        block: Callable[[State], bool],
        state: State,
        frame: Frame,
    ) -> bool:
        """A `with` whose manager is a generator: the block runs at its yield. Where it is left in several ways, the rest
        of the generator runs once for each."""
        ways: set[str] = set()
        first = state.copy()
        alive, value = self._managed_one(pending, target, block, first, frame, Exits(ways))
        if len(ways) < 2:
            state.become(first)
            return alive and self._leave_by(next(iter(ways), END), value, state, frame)
        arrived = []
        for way in sorted(ways):
            current = state.copy()
            alive, value = self._managed_one(pending, target, block, current, frame, Exits(set(), way))
            if alive and self._leave_by(way, value, current, frame):
                arrived.append(current)
        return arrive(state, arrived)

    def _managed_one(
        self,
        pending: Pending,
        target: nodes.Expression | None,
        block: Callable[[State], bool],
        state: State,
        frame: Frame,
        exits: Exits,
    ) -> tuple[bool, Abstract]:
        def consumer(value: Abstract, current: State) -> bool:
            if target is not None:
                self.assign(target, value, current, frame)
            return self._block_end(block, exits, current, frame)

        alive = self._drive(pending, consumer, state)
        return alive, join(exits.values) if exits.values else Const(None)

    def _leave_by(self, way: str, value: Abstract, state: State, frame: Frame) -> bool:
        """Go on where a block was left to: True behind it."""
        if way == "return":
            frame.returns.append((state.copy(), value))
        elif way == "break":
            frame.loops[-1].breaks.append(state.copy())
        elif way == "continue":
            frame.loops[-1].continues.append(state.copy())
        return way == END

    def _block_end(self, block: Callable[[State], bool], exits: Exits, state: State, frame: Frame) -> bool:
        """Run a block, note how it is left, and let the state be the one there."""
        returns, frame.returns = frame.returns, []
        loops = frame.loops
        frame.loops = [*loops[:-1], Loop()] if loops else loops
        try:
            alive = block(state)
            left = {
                END: [state.copy()] if alive else [],
                "return": [each for each, _ in frame.returns],
                "break": list(frame.loops[-1].breaks) if loops else [],
                "continue": list(frame.loops[-1].continues) if loops else [],
            }
            exits.values += [value for _, value in frame.returns]
        finally:
            frame.returns, frame.loops = returns, loops
        exits.ways.update(way for way, states in left.items() if states)
        wanted = [each for way, states in left.items() if exits.only in ("", way) for each in states]
        return arrive(state, wanted)

    # -- for -------------------------------------------------------------------------------------------------

    def _run_For(self, node: nodes.For, state: State, frame: Frame) -> bool:
        if node.asynchronous or frame.dead:
            return super()._run_For(node, state, frame)
        value, pending = self._eval_lazily(node.iter, state, frame)
        if pending is not None:
            statements, guarded = self._shape(pending.code)
            if statements and not guarded:
                return self._in_step(pending, node, state, frame)
            value = self._doubtful(pending, state)
        return self.run_over(node, value, state, frame)

    def _in_step(self, pending: Pending, node: nodes.For, state: State, frame: Frame) -> bool:
        """A `for` over a generator: the loop's body runs at each yield."""
        loop = Loop()

        def consumer(value: Abstract, current: State) -> bool:
            self.assign(node.target, value, current, frame)
            return self._round(node.body, loop, current, frame)

        alive = self._drive(pending, consumer, state)
        return self._after_loop(node, [state.copy()] if alive else [], loop, state, frame)

    # -- list(), next() --------------------------------------------------------------------------------------

    def _eval_Call(self, node: nodes.Call, state: State, frame: Frame) -> Abstract:
        if node in self._instead:
            return self._instead.pop(node)
        inner = node.args[0].value if node.args and not node.args[0].star else None
        if isinstance(inner, nodes.Call) and isinstance(node.func, nodes.Name) and not frame.dead:
            callee = self.eval(node.func, state, frame)
            if isinstance(callee, Ext) and (callee.name in TAKES_ALL or callee.name == "builtins.next"):
                return self._consume(node, inner, callee.name == "builtins.next", state, frame)
        if isinstance(inner, nodes.Call) and isinstance(node.func, nodes.Attribute) and not frame.dead:
            if node.func.attr == "enter_context":
                return self._enter_stacked(node, inner, state, frame)
        return super()._eval_Call(node, state, frame)

    def _enter_stacked(self, node: nodes.Call, inner: nodes.Call, state: State, frame: Frame) -> Abstract:
        """`stack.enter_context(manager())`: the generator runs up to its yield; the rest, when the stack is left."""
        assert isinstance(node.func, nodes.Attribute)
        stack = self._peek(node.func.value, state, frame)
        value, pending = self._eval_lazily(inner, state, frame)
        if pending is not None and self.kind_of(stack, state) in STACKS and self._shape(pending.code)[0]:
            assert isinstance(stack, Ref)
            later = Unk(Reason.RUNTIME, f"{pending.code.name}()", oid=("generator", next(self._fresh)))
            self._doubted[later.oid] = pending
            self._stacked.setdefault(stack.oid, []).append(("enter_context", later, Arguments(), node))
            return self._first_taken(pending, state)
        self._instead[inner] = value if pending is None else self._doubtful(pending, state)
        try:
            return super()._eval_Call(node, state, frame)
        finally:
            self._instead.pop(inner, None)

    def _consume(
        self, node: nodes.Call, inner: nodes.Call, one: bool, state: State, frame: Frame
    ) -> Abstract:
        """`list(generator())` or `next(generator())`."""
        value, pending = self._eval_lazily(inner, state, frame)
        if pending is not None:
            statements, guarded = self._shape(pending.code)
            if not statements or guarded:
                value = self._doubtful(pending, state)
            elif one:
                return self._first_taken(pending, state)
            else:
                value = self._taken(pending, state)
        self._instead[inner] = value
        try:
            return super()._eval_Call(node, state, frame)
        finally:
            self._instead.pop(inner, None)

    def _taken(self, pending: Pending, state: State) -> Abstract:
        """What a generator gives that is run to its end."""
        home = pending.inner.id

        def take(value: Abstract, current: State) -> bool:
            before = current.variables(home).get(TAKEN) or Tup(())
            known = [each for each in members(before) if isinstance(each, Tup)]
            if len(known) == len(members(before)):
                current.bind(home, TAKEN, join(Tup((*each.items, value)) for each in known))
            return True

        taken = state.variables(home).get(TAKEN) if self._drive(pending, take, state) else None
        if isinstance(taken, Tup):
            return self.make("iterator", taken, state, pending.code.name)
        return Unk(Reason.RUNTIME, f"{pending.code.name}()", oid=("call", next(self._fresh)))

    def _first_taken(self, pending: Pending, state: State) -> Abstract:
        """What a generator gives first; the state becomes the one at that yield."""
        firsts: list[tuple[State, Abstract]] = []

        def take(value: Abstract, current: State) -> bool:
            firsts.append((current.copy(), value))
            return False

        alive = self._drive(pending, take, state)
        # A generator that ends without a yield raises StopIteration, or leaves the default.
        merged = join_states([left for left, _ in firsts] + ([state.copy()] if alive else []))
        if merged is not None:
            state.become(merged)
        unknown = Unk(Reason.RUNTIME, f"next({pending.code.name}())")
        return join([*(value for _, value in firsts), *([unknown] if alive or not firsts else [])])


def _shape_of(body: nodes.Block) -> tuple[bool, bool]:
    statements, guarded = True, False
    stack: list[tuple[ast.AST, bool, bool]] = [(statement, False, False) for statement in body.origin]
    while stack:
        node, plain, inside = stack.pop()
        if isinstance(node, SCOPES):
            continue
        if isinstance(node, (ast.Yield, ast.YieldFrom)):
            statements = statements and plain and isinstance(node, ast.Yield)
            guarded = guarded or inside
        inside = inside or isinstance(node, GUARDS)
        here = isinstance(node, (ast.Expr, ast.Assign))
        stack.extend((child, here, inside) for child in children(node))
    return statements, guarded
