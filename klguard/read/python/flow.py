"""Statements: how the state changes from line to line, through branches, loops, exceptions and matches.

`Flow` executes libcst statements on a `State`. Where the code may go either way both ways are taken and the states
are joined; a loop over unknown items runs until nothing new appears, and what still changes then is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import libcst as cst

from klguard.read.python.source import Unit, shorten
from klguard.read.python.values import (
    Abstract, Alt, Const, DictObj, Ext, Func, InstObj, ListObj, Missing, Mod, Ref, State, Step, Tup, Unk, identity, join, join_states, members, truth, with_step,
)
from klguard.settings import HopKind, Reason

if TYPE_CHECKING:
    from klguard.read.python.source import Module
    from klguard.read.python.values import Code

UNROLL = 32
"""Longest known iterable whose loop is run item by item."""

ROUNDS = 3
"""Times a loop over unknown items runs at most; what changed in the second round is unknown in the third."""

_SOURCE = cst.Module([])

_EFFECTIVE = (cst.Assign, cst.AnnAssign, cst.AugAssign, cst.Expr, cst.Del)
"""Statements after which the state may differ; the compound ones are made of these."""


class BudgetSpent(Exception):
    """The analysis of one root took too many steps."""


@dataclass(eq=False)
class Loop:
    breaks: list[State] = field(default_factory=list)
    continues: list[State] = field(default_factory=list)


class Catcher:
    """The join of all states in which the body of a `try` may be left."""

    def __init__(self, state: State) -> None:
        self.state = state.copy()
        self._written: set[Any] = set()
        self._watchers = state.heap.watchers
        self._watchers.append(self._written)

    def see(self, state: State) -> None:
        written = list(self._written)
        self._written.clear()
        self.state.include(state, written)
        self._written.clear()

    def close(self) -> None:
        self._watchers[:] = [watcher for watcher in self._watchers if watcher is not self._written]


@dataclass(eq=False)
class Frame:
    """One activation of a function or module body. `scopes` are the frames a name is looked up in, inner first."""

    id: Any
    scopes: tuple[Any, ...]
    module: Module
    unit: Unit | None
    chain: tuple[Any, ...] = ()
    code: Code | None = None
    returns: list[tuple[State, Abstract]] = field(default_factory=list)
    loops: list[Loop] = field(default_factory=list)
    outer: dict[str, Any] = field(default_factory=dict)
    yields: list[Abstract] | None = None
    dead: bool = False
    captured: list[bool] = field(default_factory=lambda: [False])


class Flow:
    """Execution of statements. Expressions and calls are the subclasses' business."""

    eval: Callable[[cst.BaseExpression, State, Frame], Abstract]
    define: Callable[..., Abstract]
    define_class: Callable[..., Abstract]
    import_name: Callable[..., Abstract]
    enter: Callable[..., Abstract]
    new: Callable[..., Ref]
    escape: Callable[..., None]
    get_item: Callable[..., Abstract]
    set_item: Callable[..., None]
    set_attribute: Callable[..., None]
    delete_item: Callable[..., None]
    items_of: Callable[..., tuple[Abstract, ...] | None]
    binary: Callable[..., Abstract]
    spend: Callable[[], None]
    settle_imports: Callable[[str, State], None]
    harmless: Callable[..., bool]
    call_back: Callable[..., None]

    def __init__(self) -> None:
        self.catchers: list[Catcher] = []
        self._texts: dict[cst.CSTNode, str] = {}

    # -- blocks ------------------------------------------------------------------------------------------------

    def run_block(self, body: Sequence[cst.BaseStatement | cst.BaseSmallStatement], state: State, frame: Frame) -> bool:
        """Execute statements in order; False when control does not arrive at their end.

        What stands behind a return or raise is still looked at, on a copy, so that its sites are seen.
        """
        alive = True
        for index, statement in enumerate(body):
            self.spend()
            handler = getattr(self, "_run_" + type(statement).__name__, None)
            alive = handler(statement, state, frame) if handler else True
            if self.catchers and isinstance(statement, _EFFECTIVE):
                for catcher in self.catchers:
                    catcher.see(state)
            if not alive:
                self.run_dead(body[index + 1:], state, frame)
                return False
        return alive

    def run_dead(self, body: Sequence[Any], state: State, frame: Frame) -> None:
        """Look at code that is not reached: its sites are recorded, its effects are dropped."""
        if frame.dead or not body:
            return
        frame.dead = True
        saved = (self.catchers, frame.loops, frame.returns, frame.yields)
        self.catchers, frame.loops, frame.returns = [], [Loop()], []
        try:
            self.run_block(body, state.copy(), frame)
        finally:
            self.catchers, frame.loops, frame.returns, frame.yields = saved
            frame.dead = False

    def _run_SimpleStatementLine(self, node: cst.SimpleStatementLine, state: State, frame: Frame) -> bool:
        return self.run_block(node.body, state, frame)

    def _run_SimpleStatementSuite(self, node: cst.SimpleStatementSuite, state: State, frame: Frame) -> bool:
        return self.run_block(node.body, state, frame)

    def run_suite(self, suite: cst.BaseSuite, state: State, frame: Frame) -> bool:
        return self.run_block(suite.body, state, frame)

    # -- simple statements -------------------------------------------------------------------------------------

    def _run_Expr(self, node: cst.Expr, state: State, frame: Frame) -> bool:
        self.eval(node.value, state, frame)
        return not _is_exit(node.value)

    def _run_Assign(self, node: cst.Assign, state: State, frame: Frame) -> bool:
        value = self.eval(node.value, state, frame)
        for target in node.targets:
            self.assign(target.target, value, state, frame)
        return True

    def _run_AnnAssign(self, node: cst.AnnAssign, state: State, frame: Frame) -> bool:
        if node.value is not None:
            self.assign(node.target, self.eval(node.value, state, frame), state, frame)
        return True

    def _run_AugAssign(self, node: cst.AugAssign, state: State, frame: Frame) -> bool:
        current = self.eval(node.target, state, frame)
        operand = self.eval(node.value, state, frame)
        operator = type(node.operator).__name__.removesuffix("Assign")
        self.assign(node.target, self.binary(operator, current, operand, node, state, frame, in_place=True), state, frame)
        return True

    def _run_Return(self, node: cst.Return, state: State, frame: Frame) -> bool:
        value = self.eval(node.value, state, frame) if node.value is not None else Const(None)
        frame.returns.append((state.copy(), value))
        return False

    def _run_Raise(self, node: cst.Raise, state: State, frame: Frame) -> bool:
        if node.exc is not None:
            self.eval(node.exc, state, frame)
        return False

    def _run_Break(self, node: cst.Break, state: State, frame: Frame) -> bool:
        if frame.loops:
            frame.loops[-1].breaks.append(state.copy())
        return False

    def _run_Continue(self, node: cst.Continue, state: State, frame: Frame) -> bool:
        if frame.loops:
            frame.loops[-1].continues.append(state.copy())
        return False

    def _run_Assert(self, node: cst.Assert, state: State, frame: Frame) -> bool:
        self.eval(node.test, state, frame)
        self.narrow(node.test, True, state, frame)
        return True

    def _run_Del(self, node: cst.Del, state: State, frame: Frame) -> bool:
        targets = [e.value for e in node.target.elements] if isinstance(node.target, cst.Tuple) else [node.target]
        for target in targets:
            if isinstance(target, cst.Name):
                state.unbind(self._frame_of(target.value, frame), target.value)
            elif isinstance(target, cst.Subscript):
                owner = self.eval(target.value, state, frame)
                self.delete_item(owner, self.subscript_key(target, state, frame), state)
            elif isinstance(target, cst.Attribute):
                owner = self.eval(target.value, state, frame)
                self.set_attribute(owner, target.attr.value, Missing(), state)
        return True

    def _run_Global(self, node: cst.Global, state: State, frame: Frame) -> bool:
        for item in node.names:
            frame.outer[item.name.value] = frame.scopes[-1]
            self.settle_imports(item.name.value, state)
        return True

    def _run_Nonlocal(self, node: cst.Nonlocal, state: State, frame: Frame) -> bool:
        for item in node.names:
            name = item.name.value
            holders = [scope for scope in frame.scopes[1:-1] if name in state.variables(scope)]
            if holders:
                frame.outer[name] = holders[0]
        return True

    def _run_Import(self, node: cst.Import, state: State, frame: Frame) -> bool:
        for alias in node.names:
            name = _dotted(alias.name)
            if alias.asname is not None and isinstance(alias.asname.name, cst.Name):
                self.bind(alias.asname.name.value, self.import_name(name, "", state, frame), state, frame)
            else:
                head = name.split(".")[0]
                self.import_name(name, "", state, frame)
                self.bind(head, self.import_name(head, "", state, frame), state, frame)
        return True

    def _run_ImportFrom(self, node: cst.ImportFrom, state: State, frame: Frame) -> bool:
        base = "." * len(node.relative) + (_dotted(node.module) if node.module else "")
        if isinstance(node.names, cst.ImportStar):
            self.import_star(base, state, frame)
            return True
        for alias in node.names:
            name = _dotted(alias.name)
            bound = alias.asname.name.value if alias.asname and isinstance(alias.asname.name, cst.Name) else name
            self.bind(bound, self.import_name(base, name, state, frame), state, frame)
        return True

    def import_star(self, base: str, state: State, frame: Frame) -> None:
        source = self.import_name(base, "", state, frame)
        if isinstance(source, Mod):
            for name, value in state.variables(("module", source.module.path)).items():
                if not name.startswith("_"):
                    self.bind(name, value, state, frame)

    # -- definitions -------------------------------------------------------------------------------------------

    def _run_FunctionDef(self, node: cst.FunctionDef, state: State, frame: Frame) -> bool:
        self.bind(node.name.value, self.define(node, state, frame), state, frame)
        return True

    def _run_ClassDef(self, node: cst.ClassDef, state: State, frame: Frame) -> bool:
        self.bind(node.name.value, self.define_class(node, state, frame), state, frame)
        return True

    # -- branches ----------------------------------------------------------------------------------------------

    def _run_If(self, node: cst.If, state: State, frame: Frame) -> bool:
        taken = self.decide(self.eval(node.test, state, frame), state)
        other = node.orelse
        arrived: list[State] = []
        for polarity, branch in ((True, node.body), (False, other)):
            if taken is not None and taken is not polarity:
                if branch is not None:
                    dead = branch.body if not isinstance(branch, cst.If) else branch
                    self.run_dead([branch] if isinstance(branch, cst.If) else _statements(dead), state, frame)
                continue
            branch_state = state.copy()
            self.narrow(node.test, polarity, branch_state, frame)
            if branch is None or self._run_branch(branch, branch_state, frame):
                arrived.append(branch_state)
        return _arrive(state, arrived)

    def _run_branch(self, branch: Any, state: State, frame: Frame) -> bool:
        if isinstance(branch, cst.If):
            self.spend()
            return self._run_If(branch, state, frame)
        return self.run_suite(branch.body if isinstance(branch, cst.Else) else branch, state, frame)

    def decide(self, value: Abstract, state: State) -> bool | None:
        """Whether a condition is certain. One that a command line can change is not."""
        if any(step.kind is HopKind.ARGPARSE for member in members(value) for step in member.steps):
            return None
        return truth(value, state)

    def narrow(self, test: cst.BaseExpression, polarity: bool, state: State, frame: Frame) -> None:
        """Drop the alternatives of a variable that a condition rules out: `x is None`, `x`, `not x`, `x == 1`, and."""
        match test:
            case cst.UnaryOperation(operator=cst.Not()):
                self.narrow(test.expression, not polarity, state, frame)
            case cst.BooleanOperation(operator=cst.And()) if polarity:
                self.narrow(test.left, True, state, frame)
                self.narrow(test.right, True, state, frame)
            case cst.BooleanOperation(operator=cst.Or()) if not polarity:
                self.narrow(test.left, False, state, frame)
                self.narrow(test.right, False, state, frame)
            case cst.Name():
                self._keep(test, lambda v: truth(v, state) is not (not polarity), state, frame)
            case cst.Comparison(left=cst.Name() as name, comparisons=[cst.ComparisonTarget() as target]):
                self._narrow_comparison(name, target, polarity, state, frame)

    def _narrow_comparison(
        self, name: cst.Name, target: cst.ComparisonTarget, polarity: bool, state: State, frame: Frame
    ) -> None:
        if isinstance(target.operator, (cst.IsNot, cst.NotEqual)):
            polarity = not polarity
        elif not isinstance(target.operator, (cst.Is, cst.Equal)):
            return
        wanted = self.eval(target.comparator, state, frame)
        if not isinstance(wanted, Const):
            return

        def possible(value: Abstract) -> bool:
            if isinstance(value, Const):
                same = type(value.value) is type(wanted.value) and value.value == wanted.value
                return same is polarity or (type(value.value) is not type(wanted.value) and value.value == wanted.value)
            certainly_other = isinstance(value, (Ref, Tup, Func, Mod)) and wanted.value is None
            return not (certainly_other and polarity)

        self._keep(name, possible, state, frame)

    def _keep(self, name: cst.Name, possible: Callable[[Abstract], bool], state: State, frame: Frame) -> None:
        home = self._frame_of(name.value, frame)
        value = state.variables(home).get(name.value)
        if isinstance(value, Alt):
            kept = tuple(member for member in value.values if possible(member))
            if kept and len(kept) < len(value.values):
                state.bind(home, name.value, join(kept))

    # -- loops -------------------------------------------------------------------------------------------------

    def _run_For(self, node: cst.For, state: State, frame: Frame) -> bool:
        iterable = self.eval(node.iter, state, frame)
        items = None if node.asynchronous else self.items_of(iterable, state)
        if items is not None and self._unrolls(node, items):
            return self._unroll(node, items, state, frame)
        item = self._item(iterable, items, node.iter, state, frame)
        stepwise = _is_generator(iterable)

        def bind_item(start: State) -> None:
            if stepwise:
                # The generator's body runs between the rounds: what it does, it may do now.
                self.eval(node.iter, start, frame)
            self.assign(node.target, item, start, frame)

        return self._repeat(node, bind_item, state, frame, endless=False)

    def _unrolls(self, node: cst.For, items: Sequence[Abstract]) -> bool:
        """Whether a loop over known items runs item by item: not a long one, nor mere repetition around other loops."""
        if not _has_loop(node.body):
            return len(items) <= UNROLL
        return len(items) <= 4 and not all(isinstance(i, Const) and isinstance(i.value, int) for i in items)

    def _item(self, iterable: Abstract, items: Any, source: cst.CSTNode, state: State, frame: Frame) -> Abstract:
        if items:
            return join(items)
        text = f"an item of {self.text(source)}"
        oid = ("item", identity(iterable)) if isinstance(iterable, Unk) and iterable.oid else None
        return Unk(Reason.RUNTIME, text, oid=oid)

    def _unroll(self, node: cst.For, items: Sequence[Abstract], state: State, frame: Frame) -> bool:
        loop = Loop()
        for item in items:
            self.assign(node.target, item, state, frame)
            alive = self._round(node.body, loop, state, frame)
            if not alive:
                return self._after_loop(node, [], loop, state, frame)
        return self._after_loop(node, [state.copy()], loop, state, frame)

    def _round(self, body: cst.BaseSuite, loop: Loop, state: State, frame: Frame) -> bool:
        """One pass through a loop body; the state becomes the one at its end."""
        loop.continues = []
        frame.loops.append(loop)
        try:
            alive = self.run_suite(body, state, frame)
        finally:
            frame.loops.pop()
        return _arrive(state, ([state.copy()] if alive else []) + loop.continues)

    def _after_loop(
        self, node: cst.For | cst.While, finished: list[State], loop: Loop, state: State, frame: Frame
    ) -> bool:
        arrived = list(loop.breaks)
        if finished and (end := join_states(finished)) is not None:
            if node.orelse is None or self.run_suite(node.orelse.body, end, frame):
                arrived.append(end)
        elif node.orelse is not None:
            self.run_dead(_statements(node.orelse.body), state, frame)
        return _arrive(state, arrived)

    def _run_While(self, node: cst.While, state: State, frame: Frame) -> bool:
        loop = Loop()
        endless = isinstance(node.test, cst.Name) and node.test.value == "True"
        for _ in range(UNROLL):
            if endless:
                break
            taken = self.decide(self.eval(node.test, state, frame), state)
            if taken is None:
                break
            if taken is False:
                return self._after_loop(node, [state.copy()], loop, state, frame)
            if not self._round(node.body, loop, state, frame):
                return self._after_loop(node, [], loop, state, frame)
        return self._repeat(node, lambda start: None, state, frame, endless=endless, loop=loop)

    def _repeat(
        self, node: cst.For | cst.While, before: Callable[[State], None], state: State, frame: Frame, *,
        endless: bool, loop: Loop | None = None,
    ) -> bool:
        """Run a loop body an unknown number of times."""
        loop = loop or Loop()
        start = state.copy()
        finished = [] if endless else [state.copy()]
        for turn in range(ROUNDS):
            current = start.copy()
            before(current)
            if isinstance(node, cst.While) and turn:
                self.eval(node.test, current, frame)
            if isinstance(node, cst.While):
                self.narrow(node.test, True, current, frame)
            if not self._round(node.body, loop, current, frame):
                break
            if not endless:
                finished.append(current.copy())
            changed = _changes(start, current)
            if not changed:
                break
            merged = join_states([start, current])
            assert merged is not None
            start = _widen(changed, merged, counters_only=turn == 0)
        if not endless:
            finished.append(start)
        return self._after_loop(node, finished, loop, state, frame)

    # -- exceptions, with, match -------------------------------------------------------------------------------

    def _run_Try(self, node: cst.Try | cst.TryStar, state: State, frame: Frame) -> bool:
        marks = (len(frame.returns), [(len(x.breaks), len(x.continues)) for x in frame.loops])
        arrived = self._try_and_handlers(node, state, frame)
        if node.finalbody is None:
            return _arrive(state, arrived)
        for index in range(marks[0], len(frame.returns)):
            left, value = frame.returns[index]
            self.run_suite(node.finalbody.body, left, frame)
            frame.returns[index] = (left, value)
        for current, (breaks, continues) in zip(frame.loops, marks[1]):
            for left in current.breaks[breaks:] + current.continues[continues:]:
                self.run_suite(node.finalbody.body, left, frame)
        if not _arrive(state, arrived):
            self.run_dead(_statements(node.finalbody.body), state, frame)
            return False
        return self.run_suite(node.finalbody.body, state, frame)

    _run_TryStar = _run_Try

    def _try_and_handlers(self, node: cst.Try | cst.TryStar, state: State, frame: Frame) -> list[State]:
        catcher, alive = self._run_caught(node.body, state, frame)
        arrived: list[State] = []
        if alive and (node.orelse is None or self.run_suite(node.orelse.body, state, frame)):
            arrived.append(state.copy())
        for handler in node.handlers:
            caught = catcher.copy()
            if handler.name is not None and isinstance(handler.name.name, cst.Name):
                self.bind(handler.name.name.value, Unk(Reason.RUNTIME, "the exception"), caught, frame)
            if self.run_suite(handler.body, caught, frame):
                arrived.append(caught)
        return arrived

    def _run_caught(self, body: cst.BaseSuite, state: State, frame: Frame) -> tuple[State, bool]:
        """Run a block out of which an exception may come after any statement: (the join of the states there,
        whether its end is reached)."""
        catcher = Catcher(state)
        self.catchers.append(catcher)
        try:
            alive = self.run_suite(body, state, frame)
        finally:
            self.catchers.remove(catcher)
            catcher.close()
        return catcher.state, alive

    def _run_With(self, node: cst.With, state: State, frame: Frame) -> bool:
        swallows = False
        managers: list[cst.BaseExpression] = []
        for item in node.items:
            value = self.eval(item.item, state, frame)
            if _is_generator(value):
                managers.append(item.item)
            swallows = swallows or self.text(item.item).startswith(("suppress(", "contextlib.suppress("))
            entered = self.enter(value, state, frame)
            if item.asname is not None:
                self.assign(item.asname.name, entered, state, frame)
        if not swallows:
            alive = self.run_suite(node.body, state, frame)
            for manager in managers:
                # What stands behind the yield runs when the block ends.
                self.eval(manager, state, frame)
            return alive
        caught, alive = self._run_caught(node.body, state, frame)
        return _arrive(state, [state.copy(), caught] if alive else [caught])

    def _run_Match(self, node: cst.Match, state: State, frame: Frame) -> bool:
        subject = self.eval(node.subject, state, frame)
        arrived: list[State] = []
        for index, case in enumerate(node.cases):
            matched = self.matches(case.pattern, subject, state, frame)
            if matched is False:
                self.run_dead(_statements(case.body), state, frame)
                continue
            branch = state.copy()
            self._bind_pattern(case.pattern, subject, branch, frame)
            if case.guard is not None:
                guard = self.decide(self.eval(case.guard, branch, frame), branch)
                matched = guard if matched else (None if guard is not False else False)
                if matched is False:
                    continue
            if self.run_suite(case.body, branch, frame):
                arrived.append(branch)
            if matched:
                for later in node.cases[index + 1:]:
                    self.run_dead(_statements(later.body), state, frame)
                return _arrive(state, arrived)
        return _arrive(state, [*arrived, state.copy()])

    def matches(self, pattern: cst.MatchPattern, subject: Abstract, state: State, frame: Frame) -> bool | None:
        """Whether a pattern matches, None when that cannot be known."""
        match pattern:
            case cst.MatchAs(pattern=None):
                return True
            case cst.MatchAs():
                return self.matches(pattern.pattern, subject, state, frame)
            case cst.MatchOr():
                answers = [self.matches(e.pattern, subject, state, frame) for e in pattern.patterns]
                return True if True in answers else (None if None in answers else False)
            case cst.MatchValue() | cst.MatchSingleton():
                wanted = self.eval(pattern.value, state, frame)
                if isinstance(subject, Const) and isinstance(wanted, Const):
                    if any(step.kind is HopKind.ARGPARSE for step in subject.steps):
                        return None
                    return subject.value == wanted.value
        return None

    def _bind_pattern(self, pattern: Any, subject: Abstract, state: State, frame: Frame) -> None:
        if isinstance(pattern, cst.MatchAs):
            if pattern.pattern is not None:
                self._bind_pattern(pattern.pattern, subject, state, frame)
            if pattern.name is not None:
                self.bind(pattern.name.value, subject, state, frame)
            return
        if isinstance(pattern, (cst.MatchValue, cst.MatchSingleton)) or pattern is None:
            return
        if self._bind_parts(pattern, subject, state, frame):
            return
        for name in _captured(pattern):
            self.bind(name, Unk(Reason.UNSUPPORTED, f"{name}, captured by a pattern"), state, frame)

    def _bind_parts(self, pattern: Any, subject: Abstract, state: State, frame: Frame) -> bool:
        """Bind what a sequence or mapping pattern captures from a subject whose parts are known."""
        if isinstance(pattern, (cst.MatchList, cst.MatchTuple)):
            items = self.items_of(subject, state)
            if items is None or len(items) != len(pattern.patterns) or any(
                    isinstance(part, cst.MatchStar) for part in pattern.patterns):
                return False
            for part, item in zip(pattern.patterns, items):
                self._bind_pattern(part.value, item, state, frame)
            return True
        if isinstance(pattern, cst.MatchMapping) and pattern.rest is None:
            for element in pattern.elements:
                key = self.eval(element.key, state, frame)
                self._bind_pattern(element.pattern, self.get_item(subject, key, state, "a matched key"), state, frame)
            return True
        return False

    # -- targets -----------------------------------------------------------------------------------------------

    def bind(self, name: str, value: Abstract, state: State, frame: Frame) -> None:
        state.bind(self._frame_of(name, frame), name, value)

    def _frame_of(self, name: str, frame: Frame) -> Any:
        return frame.outer.get(name, frame.id)

    def assign(self, target: cst.BaseExpression, value: Abstract, state: State, frame: Frame) -> None:
        match target:
            case cst.Name():
                self.bind(target.value, value, state, frame)
            case cst.Attribute():
                step = Step(HopKind.ATTRIBUTE, frame.unit, target, f"assigned to {self.text(target)}")
                owner = self.eval(target.value, state, frame)
                self.set_attribute(owner, target.attr.value, with_step(value, step), state)
                if isinstance(owner, Ext) and not self.harmless(owner, ""):
                    self.call_back(value, state, frame, False)
                self.note_assignment(target, owner, value, state, frame)
            case cst.Subscript():
                step = Step(HopKind.UPDATE, frame.unit, target, f"stored as {self.text(target)}")
                owner = self.eval(target.value, state, frame)
                self.set_item(owner, self.subscript_key(target, state, frame), with_step(value, step), state)
            case cst.Tuple() | cst.List():
                self._unpack(target.elements, value, state, frame)

    def note_assignment(
        self, target: cst.Attribute, owner: Abstract, value: Abstract, state: State, frame: Frame
    ) -> None:
        """Hook: `x.generation_config.top_k = 5` is a site of its own."""

    def _unpack(self, elements: Sequence[Any], value: Abstract, state: State, frame: Frame) -> None:
        items = self.items_of(value, state)
        starred = next((i for i, e in enumerate(elements) if isinstance(e, cst.StarredElement)), None)
        if items is None or (len(items) < len(elements) - 1 if starred is not None else len(items) != len(elements)):
            for index, element in enumerate(elements):
                oid = ("item", value.oid, index) if isinstance(value, Unk) and value.oid else None
                unknown = Unk(Reason.RUNTIME, f"part of {_detail(value)}", value.steps, oid)
                self.assign(element.value, unknown, state, frame)
            return
        if starred is None:
            for element, item in zip(elements, items):
                self.assign(element.value, item, state, frame)
            return
        tail = len(elements) - starred - 1
        middle = items[starred: len(items) - tail]
        for element, item in zip(elements[:starred], items):
            self.assign(element.value, item, state, frame)
        self.assign(elements[starred].value, self.new(ListObj(tuple(middle)), state), state, frame)
        for element, item in zip(elements[starred + 1:], items[len(items) - tail:]):
            self.assign(element.value, item, state, frame)

    def subscript_key(self, node: cst.Subscript, state: State, frame: Frame) -> Abstract:
        if len(node.slice) == 1 and isinstance(node.slice[0].slice, cst.Index):
            return self.eval(node.slice[0].slice.value, state, frame)
        return Unk(Reason.DYNAMIC_KEY, self.text(node))

    def text(self, node: cst.CSTNode) -> str:
        """The source text of a node, on one line, shortened."""
        found = self._texts.get(node)
        if found is None:
            found = self._texts[node] = shorten(_SOURCE.code_for_node(node))
        return found


def _statements(suite: Any) -> Sequence[Any]:
    return suite.body if isinstance(suite, (cst.IndentedBlock, cst.SimpleStatementSuite)) else suite


def _arrive(state: State, arrived: list[State]) -> bool:
    """Let `state` be the join of the states that arrive; False when none does."""
    merged = join_states(arrived)
    if merged is None:
        return False
    state.become(merged)
    return True


def _is_generator(value: Abstract) -> bool:
    """A generator of the project whose body does more than to yield."""
    return isinstance(value, Unk) and isinstance(value.oid, tuple) and value.oid[0] == "generator"


def _is_exit(node: cst.BaseExpression) -> bool:
    """`sys.exit()` and its kin do not come back."""
    return isinstance(node, cst.Call) and _dotted(node.func) in ("sys.exit", "exit", "quit", "os._exit")


def _dotted(node: cst.BaseExpression) -> str:
    parts: list[str] = []
    while isinstance(node, cst.Attribute):
        parts.append(node.attr.value)
        node = node.value
    if not isinstance(node, cst.Name):
        return ""
    return ".".join([node.value, *reversed(parts)])


def _detail(value: Abstract) -> str:
    return value.detail if isinstance(value, Unk) else "a value"


def _has_loop(body: cst.BaseSuite) -> bool:
    stack: list[cst.CSTNode] = [body]
    while stack:
        node = stack.pop()
        if isinstance(node, (cst.For, cst.While)):
            return True
        if isinstance(node, (cst.BaseSuite, cst.If, cst.Else, cst.Try, cst.With, cst.ExceptHandler, cst.Finally)):
            stack.extend(node.children)
    return False


def _captured(pattern: cst.CSTNode) -> list[str]:
    names: list[str] = []
    stack: list[cst.CSTNode] = [pattern]
    while stack:
        node = stack.pop()
        if isinstance(node, (cst.MatchAs, cst.MatchStar)) and node.name is not None:
            names.append(node.name.value)
        if isinstance(node, cst.MatchMapping) and node.rest is not None:
            names.append(node.rest.value)
        stack.extend(node.children)
    return names


Change = tuple[str, Any, Any, Abstract | None]


def _changes(start: State, end: State) -> list[Change]:
    """What one round of a loop changed in the variables and objects that were there before it:
    ("name", frame, variable, new value), ("entry", oid, key, new value), ("list", oid, grown, None)."""
    found: list[Change] = []
    for frame, known in start.frames.items():
        variables = end.frames.get(frame, known)
        if variables is known:
            continue
        for name, value in variables.items():
            if name in known and value is not known[name] and not _covered(value, end, known[name], start):
                found.append(("name", frame, name, value))
    for oid, before in start.heap.items():
        obj = end.heap.get(oid, before)
        if obj is before:
            continue
        if isinstance(obj, DictObj) and isinstance(before, DictObj):
            for key in {**before.entries, **obj.entries}:
                value = obj.entries.get(key, obj.rest or Missing())
                if not _covered(value, end, before.entries.get(key, before.rest or Missing()), start):
                    found.append(("entry", oid, key, value))
        elif isinstance(obj, ListObj) and isinstance(before, ListObj) and before.items is not None:
            same = obj.items is not None and len(obj.items) == len(before.items)
            if not same or not all(_covered(a, end, b, start) for a, b in zip(obj.items or (), before.items)):
                found.append(("list", oid, not same, None))
    return found


def _widen(changed: list[Change], merged: State, counters_only: bool) -> State:
    """Make unknown what a loop changes; in the first round only what grows with every round, counters and lists."""
    for kind, home, key, value in changed:
        if kind == "list":
            if key or not counters_only:
                merged.heap[home] = ListObj(None)
            continue
        assert value is not None
        if counters_only and not any("computed by" in step.text for step in value.steps):
            continue
        unknown = Unk(Reason.RUNTIME, f"{key}, changed in a loop", value.steps)
        if kind == "name":
            merged.bind(home, key, unknown)
        else:
            obj = merged.heap[home]
            assert isinstance(obj, DictObj)
            merged.heap[home] = DictObj({**obj.entries, key: unknown}, obj.rest)
    return merged


def _covered(value: Abstract, state: State, known: Abstract, before: State, depth: int = 4) -> bool:
    """Whether every possibility of `value` was already one of `known`, looking into fresh but equal objects."""
    options = members(known)
    names = {identity(option) for option in options}
    for member in members(value):
        if identity(member) in names:
            if not isinstance(member, Ref):
                continue
            options_here: tuple[Abstract, ...] = (member,)
        else:
            options_here = options
        if isinstance(member, Unk) and any(isinstance(o, Unk) and o.reason == member.reason for o in options):
            continue
        if not any(_same(member, state, option, before, depth) for option in options_here):
            return False
    return True


def _same(value: Abstract, state: State, other: Abstract, before: State, depth: int) -> bool:
    if isinstance(value, Tup) and isinstance(other, Tup) and len(value.items) == len(other.items):
        return all(_covered(a, state, b, before, depth - 1) for a, b in zip(value.items, other.items))
    if not (isinstance(value, Ref) and isinstance(other, Ref)):
        return identity(value) == identity(other)
    if value.oid == other.oid:
        # Changes inside an object that was there before are widened in place, entry by entry.
        return True
    if depth == 0:
        return False
    mine, theirs = state.heap.get(value.oid), before.heap.get(other.oid)
    if isinstance(mine, DictObj) and isinstance(theirs, DictObj):
        if mine.entries.keys() != theirs.entries.keys() or (mine.rest is None) != (theirs.rest is None):
            return False
        return all(_covered(v, state, theirs.entries[k], before, depth - 1) for k, v in mine.entries.items())
    if isinstance(mine, ListObj) and isinstance(theirs, ListObj):
        if mine.items is None or theirs.items is None:
            return mine.items is theirs.items
        if len(mine.items) != len(theirs.items):
            return False
        return all(_covered(a, state, b, before, depth - 1) for a, b in zip(mine.items, theirs.items))
    if isinstance(mine, InstObj) and isinstance(theirs, InstObj):
        return mine.made_by == theirs.made_by and _same(Ref(mine.attrs), state, Ref(theirs.attrs), before, depth - 1)
    return False

