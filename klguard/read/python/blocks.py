"""`try`, `with` and `match`: blocks that may be left in the middle, and patterns."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from klguard.read.python import nodes
from klguard.read.python.control import Catcher, Frame, arrive
from klguard.read.python.loops import Loops
from klguard.read.python.state import State, join_states
from klguard.read.python.trees import walk
from klguard.read.python.values import (
    Abstract,
    Const,
    Ext,
    Ref,
    Tup,
    Unk,
    join,
    members,
)
from klguard.settings import HopKind, Reason


class Blocks(Loops):
    """Exceptions, context managers and structural matching."""

    def _run_Try(self, node: nodes.Try | nodes.TryStar, state: State, frame: Frame) -> bool:
        marks = (len(frame.returns), [(len(x.breaks), len(x.continues)) for x in frame.loops])
        if node.finalbody is None:
            return arrive(state, self._try_and_handlers(node, state, frame))
        guarded = bool(self.catchers)
        if guarded:
            catcher = Catcher(state)
            self.catchers.append(catcher)
        try:
            arrived = self._try_and_handlers(node, state, frame)
        finally:
            if guarded:
                self.catchers.remove(catcher)
                catcher.close()
        if guarded:
            self._passed_by(catcher)
            # Somebody further out catches what passes by: on its way the last block runs too.
            if self.run_suite(node.finalbody, catcher.state, frame):
                self._see(catcher.state)
        for index in range(marks[0], len(frame.returns)):
            left, value = frame.returns[index]
            self.run_suite(node.finalbody, left, frame)
            frame.returns[index] = (left, value)
        for current, (breaks, continues) in zip(frame.loops, marks[1], strict=False):
            for left in current.breaks[breaks:] + current.continues[continues:]:
                self.run_suite(node.finalbody, left, frame)
        if not arrive(state, arrived):
            self.run_dead(node.finalbody.body, state, frame)
            return False
        return self.run_suite(node.finalbody, state, frame)

    _run_TryStar = _run_Try

    def _passed_by(self, catcher: Catcher) -> None:
        """What is raised changes something on its way out: further out it is not as it was where it was raised."""
        for outer in self.catchers if catcher.raised else ():
            outer.unseen = True

    def _see(self, state: State) -> None:
        """What is raised goes on with this state."""
        for outer in self.catchers:
            outer.see(state)

    def _try_and_handlers(self, node: nodes.Try | nodes.TryStar, state: State, frame: Frame) -> list[State]:
        catcher, alive = self.run_caught(lambda s: self.run_suite(node.body, s, frame), state)
        arrived: list[State] = []
        if alive and (node.orelse is None or self.run_suite(node.orelse, state, frame)):
            arrived.append(state.copy())
        for handler in node.handlers:
            caught, raised = self._caught(node, handler, catcher, frame)
            if handler.name is not None:
                self.bind(handler.name, raised, caught, frame)
            if self.run_suite(handler.body, caught, frame):
                arrived.append(caught)
        return arrived

    def _caught(
        self, node: nodes.Try | nodes.TryStar, handler: Any, catcher: Catcher, frame: Frame
    ) -> tuple[State, Abstract]:
        """(The state, the exception) with which a handler begins. A class of the project comes from those places only
        where it is seen to be raised, others from everywhere."""
        unknown = Unk(Reason.RUNTIME, "the exception")
        anywhere = catcher.state.copy(), unknown
        if catcher.unseen or handler.type is None or isinstance(node, nodes.TryStar):
            return anywhere
        wanted = self.eval(handler.type, anywhere[0], frame)
        if isinstance(wanted, Ext) and (only := self._only_raise(node.body)) is not None:
            return self._arguments_raised(only, wanted, catcher, frame) or anywhere
        if not isinstance(wanted, Ref):
            return anywhere
        states: list[State] = []
        found: list[Abstract] = []
        for raised, state in catcher.raised:
            for member in members(raised) if raised is not None else (None,):
                fits = None if member is None else self.is_made_of(member, wanted, state)
                if fits is None or member is None:
                    return anywhere
                if fits:
                    found.append(member)
                    states.append(state)
        merged = join_states(states)
        return anywhere if merged is None else (merged.copy(), join(found))

    def _only_raise(self, body: nodes.Block) -> nodes.Call | None:
        """`raise Error(a, b)` where nothing else in the block can raise an exception."""
        only = body.body[0] if len(body.body) == 1 else None
        call = only.exc if isinstance(only, nodes.Raise) else None
        plain = isinstance(call, nodes.Call) and all(
            isinstance(arg.value, nodes.Name) and not arg.star and arg.keyword is None for arg in call.args
        )
        return call if plain and isinstance(call, nodes.Call) else None

    def _arguments_raised(
        self, call: nodes.Call, wanted: Ext, catcher: Catcher, frame: Frame
    ) -> tuple[State, Abstract] | None:
        made_of = self.eval(call.func, catcher.state, frame)
        if not isinstance(made_of, Ext) or made_of.name != wanted.name or len(catcher.raised) != 1:
            return None
        state = catcher.raised[0][1].copy()
        given = Tup(tuple(self.eval(arg.value, state, frame) for arg in call.args))
        return state, self.new_instance(wanted.name, {"args": given}, state, text=wanted.name)

    new_instance: Callable[..., Ref]
    is_made_of: Callable[[Abstract, Ref, State], bool | None]

    def run_caught(self, block: Callable[[State], bool], state: State) -> tuple[Catcher, bool]:
        """Run a block out of which an exception may come after any statement: (what is caught there, whether its end
        is reached)."""
        catcher = Catcher(state)
        self.catchers.append(catcher)
        try:
            alive = block(state)
        finally:
            self.catchers.remove(catcher)
            catcher.close()
        return catcher, alive

    def _run_With(self, node: nodes.With, state: State, frame: Frame) -> bool:
        def enter(index: int, current: State) -> bool:
            if index == len(node.items):
                return self.run_suite(node.body, current, frame)
            item = node.items[index]
            value = self.eval(item.item, current, frame)
            return self.run_managed(item, value, lambda s: enter(index + 1, s), current, frame)

        return enter(0, state)

    def run_managed(
        self,
        item: nodes.WithItem,
        manager: Abstract,
        block: Callable[[State], bool],
        state: State,
        frame: Frame,
    ) -> bool:
        """Enter a manager, run the block, and leave it again."""
        entered = self.enter(manager, state, frame)
        if item.target is not None:
            self.assign(item.target, entered, state, frame)
        if self.text(item.item).startswith(("suppress(", "contextlib.suppress(")):
            caught, alive = self.run_caught(block, state)
            return arrive(state, [state.copy(), caught.state] if alive else [caught.state])
        if self.leaves_quietly(manager, state):
            alive = block(state)
            # What stands behind the yield of a generator runs when the block ends.
            self.resume(manager, state)
            return alive
        return self._run_left(manager, block, state, frame)

    leaves_quietly: Callable[[Abstract, State], bool]
    leave: Callable[[Abstract, bool, State, Frame], bool | None]

    def _run_left(
        self, manager: Abstract, block: Callable[[State], bool], state: State, frame: Frame
    ) -> bool:
        """A block behind which a method of the project runs, however it is left."""
        returns, loops = len(frame.returns), [(len(x.breaks), len(x.continues)) for x in frame.loops]
        catcher, alive = self.run_caught(block, state)
        caught = catcher.state
        self._passed_by(catcher)
        for left, _ in frame.returns[returns:]:
            self.leave(manager, False, left, frame)
        for current, (breaks, continues) in zip(frame.loops, loops, strict=False):
            for left in current.breaks[breaks:] + current.continues[continues:]:
                self.leave(manager, False, left, frame)
        arrived = []
        if alive:
            self.leave(manager, False, state, frame)
            arrived.append(state.copy())
        swallowed = self.leave(manager, True, caught, frame)
        if swallowed is not False:
            arrived.append(caught)
        if swallowed is not True:
            self._see(caught)
        return arrive(state, arrived)

    def _run_Match(self, node: nodes.Match, state: State, frame: Frame) -> bool:
        subject = self.eval(node.subject, state, frame)
        arrived: list[State] = []
        for index, case in enumerate(node.cases):
            matched = self.matches(case.pattern, subject, state, frame)
            if matched is False:
                self.run_dead(case.body.body, state, frame)
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
                for later in node.cases[index + 1 :]:
                    self.run_dead(later.body.body, state, frame)
                return arrive(state, arrived)
        return arrive(state, [*arrived, state.copy()])

    def matches(self, pattern: nodes.Pattern, subject: Abstract, state: State, frame: Frame) -> bool | None:
        """Whether a pattern matches, None when that cannot be known."""
        match pattern:
            case nodes.MatchAs(pattern=None):
                return True
            case nodes.MatchAs():
                return self.matches(pattern.pattern, subject, state, frame)
            case nodes.MatchOr():
                answers = [self.matches(each, subject, state, frame) for each in pattern.patterns]
                return True if True in answers else (None if None in answers else False)
            case nodes.MatchValue():
                wanted = self.eval(pattern.value, state, frame)
                if isinstance(subject, Const) and isinstance(wanted, Const):
                    if any(step.kind is HopKind.ARGPARSE for step in subject.steps):
                        return None
                    return subject.value == wanted.value
        return None

    def _bind_pattern(self, pattern: Any, subject: Abstract, state: State, frame: Frame) -> None:
        if isinstance(pattern, nodes.MatchAs):
            if pattern.pattern is not None:
                self._bind_pattern(pattern.pattern, subject, state, frame)
            if pattern.name is not None:
                self.bind(pattern.name, subject, state, frame)
            return
        if isinstance(pattern, nodes.MatchValue):
            return
        if self._bind_parts(pattern, subject, state, frame):
            return
        for name in _captured(pattern.origin):
            self.bind(name, Unk(Reason.UNSUPPORTED, f"{name}, captured by a pattern"), state, frame)

    def _bind_parts(self, pattern: Any, subject: Abstract, state: State, frame: Frame) -> bool:
        """Bind what a sequence or mapping pattern captures from a subject whose parts are known."""
        if isinstance(pattern, nodes.MatchSequence):
            items = self.items_of(subject, state)
            if (
                items is None
                or len(items) != len(pattern.patterns)
                or any(isinstance(part, nodes.MatchStar) for part in pattern.patterns)
            ):
                return False
            for part, item in zip(pattern.patterns, items, strict=False):
                self._bind_pattern(part, item, state, frame)
            return True
        if isinstance(pattern, nodes.MatchMapping) and pattern.rest is None:
            for wanted, part in zip(pattern.keys, pattern.patterns, strict=True):
                key = self.eval(wanted, state, frame)
                self._bind_pattern(part, self.get_item(subject, key, state, "a matched key"), state, frame)
            return True
        return False


def _captured(pattern: ast.pattern) -> list[str]:
    found = [
        node.rest if isinstance(node, ast.MatchMapping) else getattr(node, "name", None)
        for node in walk(pattern)
    ]
    return [name for name in found if name is not None]
