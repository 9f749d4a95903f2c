"""Operators on containers: joining lists and tuples, set algebra, formatting, comparison, membership."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from klguard.read.python import nodes
from klguard.read.python.containers import (
    DICT_LIKE_KINDS,
    MAPPINGS,
    NOT_PLAIN,
    SETS,
    VIEWS,
)
from klguard.read.python.control import Frame
from klguard.read.python.mappings import Mappings
from klguard.read.python.memory import MAX_ITEMS
from klguard.read.python.operators import SET_OPERATIONS, NotComputed, compute
from klguard.read.python.state import State, join_states
from klguard.read.python.values import (
    Abstract,
    Alt,
    Const,
    ListObj,
    Ref,
    Step,
    Steps,
    Tup,
    Unk,
    join,
)
from klguard.settings import HopKind, Reason

_SET_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "Equal": lambda a, b: a == b,
    "NotEqual": lambda a, b: a != b,
    "LessThan": lambda a, b: a < b,
    "LessThanEqual": lambda a, b: a <= b,
    "GreaterThan": lambda a, b: a > b,
    "GreaterThanEqual": lambda a, b: a >= b,
}


class Algebra(Mappings):
    """What `+`, `*`, `|`, `&`, `-`, `^`, `%`, `==` and `in` give for containers."""

    def _eval_Set(self, node: nodes.Set, state: State, frame: Frame) -> Abstract:
        items = self._elements(node.elements, state, frame)
        elements = self.elements_of(Tup(items), state) if items is not None else None
        return self.make_set(elements, state, self.text(node), steps=self._literal(node, frame))

    def binary(  # type: ignore[override]
        self,
        name: str,
        left: Abstract,
        right: Abstract,
        node: nodes.Node,
        state: State,
        frame: Frame,
        in_place: bool = False,
    ) -> Abstract:
        """An operation that changes one of several objects in place changes each on a path of its own."""
        if not (
            in_place and isinstance(left, Alt) and any(isinstance(member, Ref) for member in left.values)
        ):
            return super().binary(name, left, right, node, state, frame, in_place)
        states, results = [], []
        for member in left.values:
            branch = state.copy()
            results.append(super().binary(name, member, right, node, branch, frame, True))
            states.append(branch)
        merged = join_states(states)
        assert merged is not None
        state.become(merged)
        return join(results)

    def _binary_one(
        self,
        name: str,
        left: Abstract,
        right: Abstract,
        node: nodes.Node,
        state: State,
        frame: Frame,
        in_place: bool,
    ) -> Abstract:
        kinds = (self.kind_of(left, state), self.kind_of(right, state))
        if name in SET_OPERATIONS and (kinds[0] in SETS | VIEWS or kinds[1] in SETS | VIEWS):
            return self.set_operation(name, left, right, kinds[0], node, state, in_place)
        if kinds[0] in MAPPINGS | DICT_LIKE_KINDS and name == "BitOr" and not in_place:
            left = self.as_dict(left, state)
        if name in ("Add", "Multiply") and (
            result := self._sequence_operation(name, left, right, state, in_place)
        ):
            return result
        if name == "Modulo" and isinstance(left, Const) and not isinstance(right, Const):
            return self._format(left, right, node, state, frame)
        return super()._binary_one(name, left, right, node, state, frame, in_place)

    def _format(self, left: Const, right: Abstract, node: nodes.Node, state: State, frame: Frame) -> Abstract:
        plain = self.plain(right, state)
        if plain is NOT_PLAIN or not isinstance(left.value, (str, bytes)):
            return Unk(Reason.RUNTIME, self.text(node))
        try:
            result = compute("Modulo", left.value, plain)
        except NotComputed:
            return Unk(Reason.RUNTIME, self.text(node))
        soft = self.soft_steps([left, right], state)
        return Const(
            result, (Step(HopKind.LITERAL, frame.unit, node, f"computed by {self.text(node)}"), *soft)
        )

    def _sequence_operation(
        self, name: str, left: Abstract, right: Abstract, state: State, in_place: bool
    ) -> Abstract | None:
        """`list + list`, `list * 2`, `list += anything`, and the same of tuples."""
        obj = state.heap.get(left.oid) if isinstance(left, Ref) else None
        if not isinstance(left, Tup) and not isinstance(obj, ListObj):
            return None
        items = left.items if isinstance(left, Tup) else obj.items  # type: ignore[union-attr]
        if name == "Multiply":
            times = right.value if isinstance(right, Const) and type(right.value) is int else None
            joined = (
                None if times is None or items is None or len(items) * times > MAX_ITEMS else items * times
            )
        else:
            more = self.items_of(right, state)
            joined = (
                None
                if items is None or more is None or len(items) + len(more) > 4 * MAX_ITEMS
                else (*items, *more)
            )
        if isinstance(left, Tup):
            return Tup(joined, left.steps) if joined is not None else None
        if not in_place:
            return self.new(ListObj(joined), state)
        assert isinstance(left, Ref)
        state.heap[left.oid] = ListObj(joined)
        return left

    def set_operation(
        self,
        name: str,
        left: Abstract,
        right: Abstract,
        kind: str,
        node: nodes.Node,
        state: State,
        in_place: bool,
    ) -> Abstract:
        """`a - b`, `a & b`, `a | b`, `a ^ b` of sets and views."""
        mine, theirs = self.elements_of(left, state), self.elements_of(right, state)
        result: dict[Any, Abstract] | None = None
        if mine is not None and theirs is not None:
            kept = SET_OPERATIONS[name](mine.keys(), theirs.keys())
            result = {key: value for key, value in {**theirs, **mine}.items() if key in kept}
        if in_place and kind == "set":
            assert isinstance(left, Ref)
            part: Abstract = (
                Unk(Reason.RUNTIME, self.text(node)) if result is None else Tup(tuple(result.values()))
            )
            self.set_part(left, part, state)
            return left
        return self.make_set(result, state, self.text(node), kind if kind in SETS else "set")

    def _compare(self, name: str, left: Abstract, right: Abstract, state: State) -> Const | None:
        kinds = (self.kind_of(left, state), self.kind_of(right, state))
        if name in _SET_COMPARISONS and all(
            kind in SETS or kind in ("dict_keys", "dict_items") for kind in kinds
        ):
            mine, theirs = self.elements_of(left, state), self.elements_of(right, state)
            if mine is None or theirs is None:
                return None
            return Const(
                _SET_COMPARISONS[name](mine.keys(), theirs.keys()), self.soft_steps([left, right], state)
            )
        answer = super()._compare(name, left, right, state)
        if answer is None and name in _SET_COMPARISONS:
            a, b = self.plain(left, state), self.plain(right, state)
            if a is not NOT_PLAIN and b is not NOT_PLAIN:
                try:
                    return Const(_SET_COMPARISONS[name](a, b), self.soft_steps([left, right], state))
                except TypeError:
                    return None
        return answer

    def _contains(
        self, positive: bool, left: Abstract, right: Abstract, state: State, soft: Steps
    ) -> Const | None:
        kind = self.kind_of(right, state)
        if kind == "iterator":
            self.items_of(right, state)
            return None
        if kind == "dict_keys":
            assert isinstance(right, Ref)
            return self._contains(positive, left, self.part(right, state), state, soft)
        if kind in MAPPINGS:
            return super()._contains(positive, left, self.as_dict(right, state), state, soft)
        if kind in SETS | VIEWS:
            items = self.unordered(right, state)
            wanted = self.plain(left, state)
            values = [self.plain(item, state) for item in items] if items is not None else [NOT_PLAIN]
            if wanted is NOT_PLAIN or any(value is NOT_PLAIN for value in values):
                return None
            return Const((wanted in values) is positive, soft)
        return super()._contains(positive, left, right, state, soft)
