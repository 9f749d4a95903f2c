"""`try`, `with` and `match`: blocks that may be left in the middle, and patterns."""

from __future__ import annotations

from typing import Any

import libcst as cst

from klguard.read.python.control import Catcher, Frame, arrive, statements
from klguard.read.python.loops import Loops, is_generator
from klguard.read.python.values import Abstract, Const, State, Unk
from klguard.settings import HopKind, Reason


class Blocks(Loops):
    """Exceptions, context managers and structural matching."""

    def _run_Try(self, node: cst.Try | cst.TryStar, state: State, frame: Frame) -> bool:
        marks = (len(frame.returns), [(len(x.breaks), len(x.continues)) for x in frame.loops])
        arrived = self._try_and_handlers(node, state, frame)
        if node.finalbody is None:
            return arrive(state, arrived)
        for index in range(marks[0], len(frame.returns)):
            left, value = frame.returns[index]
            self.run_suite(node.finalbody.body, left, frame)
            frame.returns[index] = (left, value)
        for current, (breaks, continues) in zip(frame.loops, marks[1], strict=False):
            for left in current.breaks[breaks:] + current.continues[continues:]:
                self.run_suite(node.finalbody.body, left, frame)
        if not arrive(state, arrived):
            self.run_dead(statements(node.finalbody.body), state, frame)
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
            if is_generator(value):
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
        return arrive(state, [state.copy(), caught] if alive else [caught])

    def _run_Match(self, node: cst.Match, state: State, frame: Frame) -> bool:
        subject = self.eval(node.subject, state, frame)
        arrived: list[State] = []
        for index, case in enumerate(node.cases):
            matched = self.matches(case.pattern, subject, state, frame)
            if matched is False:
                self.run_dead(statements(case.body), state, frame)
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
                    self.run_dead(statements(later.body), state, frame)
                return arrive(state, arrived)
        return arrive(state, [*arrived, state.copy()])

    def matches(
        self, pattern: cst.MatchPattern, subject: Abstract, state: State, frame: Frame
    ) -> bool | None:
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
            if (
                items is None
                or len(items) != len(pattern.patterns)
                or any(isinstance(part, cst.MatchStar) for part in pattern.patterns)
            ):
                return False
            for part, item in zip(pattern.patterns, items, strict=False):
                self._bind_pattern(part.value, item, state, frame)
            return True
        if isinstance(pattern, cst.MatchMapping) and pattern.rest is None:
            for element in pattern.elements:
                key = self.eval(element.key, state, frame)
                self._bind_pattern(
                    element.pattern, self.get_item(subject, key, state, "a matched key"), state, frame
                )
            return True
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
