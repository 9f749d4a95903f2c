"""Loops: item by item where the items are known, else until nothing new appears, and what still changes is unknown."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import Any

from klguard.read.python import nodes
from klguard.read.python.control import Frame, Loop, arrive, changes, widen
from klguard.read.python.flow import Flow
from klguard.read.python.state import State, join_states
from klguard.read.python.trees import children
from klguard.read.python.values import (
    Abstract,
    Const,
    Unk,
    identity,
    join,
)
from klguard.settings import Reason

UNROLL = 32
"""Longest known iterable whose loop is run item by item."""

ROUNDS = 3
"""Times a loop over unknown items runs at most; what changed in the second round is unknown in the third."""


class Loops(Flow):
    """`for` and `while`."""

    def _run_For(self, node: nodes.For, state: State, frame: Frame) -> bool:
        return self.run_over(node, self.eval(node.iter, state, frame), state, frame)

    resume: Callable[[Abstract, State], None]

    def run_over(self, node: nodes.For, iterable: Abstract, state: State, frame: Frame) -> bool:
        """A `for` whose iterable has been evaluated."""
        items = None if node.asynchronous else self.items_of(iterable, state)
        if items is not None and self._unrolls(node, items):
            return self._unroll(node, items, state, frame)
        item = self._item(iterable, items, node.iter, state, frame)
        stepwise = is_generator(iterable)

        def bind_item(start: State) -> None:
            if stepwise:
                # The generator's body runs between the rounds: what it does, it may do now.
                self.resume(iterable, start)
            self.assign(node.target, item, start, frame)

        return self._repeat(node, bind_item, state, frame, endless=False)

    def _unrolls(self, node: nodes.For, items: Sequence[Abstract]) -> bool:
        """Whether a loop over known items runs item by item: not a long one, nor mere repetition around other loops."""
        if not _has_loop(node.body):
            return len(items) <= UNROLL
        return len(items) <= 4 and not all(isinstance(i, Const) and isinstance(i.value, int) for i in items)

    def _item(
        self, iterable: Abstract, items: Any, source: nodes.Node, state: State, frame: Frame
    ) -> Abstract:
        if items:
            return join(items)
        text = f"an item of {self.text(source)}"
        oid = ("item", identity(iterable)) if isinstance(iterable, Unk) and iterable.oid else None
        return Unk(Reason.RUNTIME, text, oid=oid)

    def _unroll(self, node: nodes.For, items: Sequence[Abstract], state: State, frame: Frame) -> bool:
        loop = Loop()
        for item in items:
            self.assign(node.target, item, state, frame)
            alive = self._round(node.body, loop, state, frame)
            if not alive:
                return self._after_loop(node, [], loop, state, frame)
        return self._after_loop(node, [state.copy()], loop, state, frame)

    def _round(self, body: nodes.Block, loop: Loop, state: State, frame: Frame) -> bool:
        """One pass through a loop body; the state becomes the one at its end."""
        loop.continues = []
        frame.loops.append(loop)
        try:
            alive = self.run_suite(body, state, frame)
        finally:
            frame.loops.pop()
        return arrive(state, ([state.copy()] if alive else []) + loop.continues)

    def _after_loop(
        self, node: nodes.For | nodes.While, finished: list[State], loop: Loop, state: State, frame: Frame
    ) -> bool:
        arrived = list(loop.breaks)
        if finished and (end := join_states(finished)) is not None:
            if node.orelse is None or self.run_suite(node.orelse, end, frame):
                arrived.append(end)
        elif node.orelse is not None:
            self.run_dead(node.orelse.body, state, frame)
        return arrive(state, arrived)

    def _run_While(self, node: nodes.While, state: State, frame: Frame) -> bool:
        loop = Loop()
        endless = isinstance(node.test, nodes.Name) and node.test.value == "True"
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
        self,
        node: nodes.For | nodes.While,
        before: Callable[[State], None],
        state: State,
        frame: Frame,
        *,
        endless: bool,
        loop: Loop | None = None,
    ) -> bool:
        """Run a loop body an unknown number of times."""
        loop = loop or Loop()
        start = state.copy()
        finished = [] if endless else [state.copy()]
        for turn in range(ROUNDS):
            current = start.copy()
            before(current)
            if isinstance(node, nodes.While) and turn:
                self.eval(node.test, current, frame)
            if isinstance(node, nodes.While):
                self.narrow(node.test, True, current, frame)
            if not self._round(node.body, loop, current, frame):
                break
            if not endless:
                finished.append(current.copy())
            changed = changes(start, current)
            if not changed:
                break
            merged = join_states([start, current])
            assert merged is not None
            start = widen(changed, merged, counters_only=turn == 0)
        if not endless:
            finished.append(start)
        return self._after_loop(node, finished, loop, state, frame)


def _has_loop(body: nodes.Block) -> bool:
    stack = list[ast.AST](body.origin)
    while stack:
        node = stack.pop()
        if isinstance(node, (ast.For, ast.AsyncFor, ast.While)):
            return True
        if isinstance(node, (ast.If, ast.Try, ast.With, ast.AsyncWith, ast.ExceptHandler)):
            stack.extend(children(node))
    return False


def is_generator(value: Abstract) -> bool:
    """A generator of the project whose body does more than to yield."""
    return isinstance(value, Unk) and isinstance(value.oid, tuple) and value.oid[0] == "generator"
