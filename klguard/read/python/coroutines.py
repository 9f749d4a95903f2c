"""Coroutines: the body of an `async def` runs where it is awaited, not where it is called.

A call that is awaited on the spot, or handed on the spot to what runs it, runs in place. Any other is kept, its
effects are taken for possible from then on, and it runs again where it is awaited.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from klguard.read.python import nodes
from klguard.read.python.calls import Arguments
from klguard.read.python.control import Frame
from klguard.read.python.generators import Generators
from klguard.read.python.state import State, join_states
from klguard.read.python.values import (
    Abstract,
    Ext,
    Func,
    ListObj,
    Ref,
    Tup,
    Unk,
    join,
    members,
)
from klguard.settings import Reason

RUNS = frozenset({"asyncio.run", "run_until_complete", "asyncio.wait_for", "asyncio.shield"})
"""Functions and methods that run a coroutine and give its result."""

STARTS = frozenset({"asyncio.create_task", "asyncio.ensure_future", "create_task"})
"""Functions and methods that give something to await in its place."""


@dataclass(eq=False)
class Deferred:
    """A coroutine that was made and not awaited yet."""

    callee: Func
    arguments: Arguments
    node: nodes.Call


class Coroutines(Generators):
    """`await`, and the functions of asyncio that run what they are given."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._direct: set[nodes.Call] = set()
        self._deferred: dict[Any, Deferred] = {}

    def invoke(
        self, callee: Func, arguments: Arguments, node: nodes.Call | None, state: State, frame: Frame
    ) -> Abstract:
        code = callee.code
        if not code.is_async or code.is_generator or node is None or node in self._direct:
            return super().invoke(callee, arguments, node, state, frame)
        branch = state.copy()
        super().invoke(callee, arguments, node, branch, frame)
        merged = join_states([state, branch])
        assert merged is not None
        state.become(merged)
        oid = ("coroutine", next(self._fresh))
        self._deferred[oid] = Deferred(callee, arguments, node)
        return Unk(Reason.RUNTIME, f"{code.name}()", oid=oid)

    def _eval_Await(self, node: nodes.Await, state: State, frame: Frame) -> Abstract:
        call = node.value
        if isinstance(call, nodes.Call):
            self._direct.add(call)
        return self._resume(self.eval(call, state, frame), state, frame)

    def _eval_Call(self, node: nodes.Call, state: State, frame: Frame) -> Abstract:
        name = node.name
        if name in ("run", "run_until_complete") or (
            node in self._direct and name in ("gather", "wait_for", "shield")
        ):
            self._direct.update(arg.value for arg in node.args if isinstance(arg.value, nodes.Call))
        return super()._eval_Call(node, state, frame)

    def opaque_call(
        self, callee: Abstract, arguments: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        name = callee.name if isinstance(callee, Ext) else node.name
        given = arguments.positional
        if arguments.more_positional is None and given:
            if name in RUNS:
                return self._resume(given[0], state, frame)
            if name in STARTS:
                return given[0]
            if name == "asyncio.gather":
                return Tup(tuple(self._resume(value, state, frame) for value in given))
        for value in arguments.all():
            self._resume(value, state, frame)
        return super().opaque_call(callee, arguments, node, state, frame)

    def _resume(self, value: Abstract, state: State, frame: Frame) -> Abstract:
        """What awaiting a value gives: the result of the coroutine that it is."""
        options = members(value)
        if len(options) > 1 and any(isinstance(m, Unk) and m.oid in self._deferred for m in options):
            states, results = [], []
            for option in options:
                branch = state.copy()
                results.append(self._resume(option, branch, frame))
                states.append(branch)
            merged = join_states(states)
            assert merged is not None
            state.become(merged)
            return join(results)
        if isinstance(value, Unk) and value.oid in self._deferred:
            kept = self._deferred[value.oid]
            return super().invoke(kept.callee, kept.arguments, kept.node, state, frame)
        obj = state.heap.get(value.oid) if isinstance(value, Ref) else None
        items = value.items if isinstance(value, Tup) else obj.items if isinstance(obj, ListObj) else None
        for item in items or ():
            self._resume(item, state, frame)
        return value
