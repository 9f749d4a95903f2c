"""Operators: arithmetic, comparison and logic on possibilities, and the merging of dicts."""

from __future__ import annotations

from dataclasses import replace

from klguard.read.python import nodes
from klguard.read.python.control import Frame
from klguard.read.python.memory import Memory
from klguard.read.python.operators import NotComputed, compute, compute_unary
from klguard.read.python.state import State, join_states, truth
from klguard.read.python.values import (
    Abstract,
    Const,
    DictObj,
    Func,
    InstObj,
    Missing,
    Mod,
    Partial,
    Ref,
    Step,
    Steps,
    Tup,
    Unk,
    join,
    members,
)
from klguard.settings import HopKind, Reason


class Operations(Memory):
    """Evaluation of operators."""

    # -- operators ---------------------------------------------------------------------------------------------

    def _eval_UnaryOperation(self, node: nodes.UnaryOperation, state: State, frame: Frame) -> Abstract:
        operand = self.eval(node.expression, state, frame)
        name = node.operator
        results: list[Abstract] = []
        for member in members(operand):
            if name == "Not" and (answer := truth(member, state)) is not None:
                results.append(Const(not answer, _soft(member.steps)))
            elif isinstance(member, Const):
                try:
                    own = () if name == "Not" else self._literal(node, frame)
                    results.append(Const(compute_unary(name, member.value), own + _soft(member.steps)))
                except NotComputed:
                    results.append(Unk(Reason.RUNTIME, self.text(node)))
            else:
                results.append(Unk(Reason.RUNTIME, self.text(node)))
        return join(results)

    def _eval_BinaryOperation(self, node: nodes.BinaryOperation, state: State, frame: Frame) -> Abstract:
        left, right = self.eval(node.left, state, frame), self.eval(node.right, state, frame)
        return self.binary(node.operator, left, right, node, state, frame)

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
        if in_place and isinstance(left, Ref) and len(members(right)) > 1:
            return self._change_in_place(name, left, right, node, state, frame)
        results = [
            self._binary_one(name, a, b, node, state, frame, in_place)
            for a in members(left)
            for b in members(right)
        ]
        return join(results)

    def _change_in_place(
        self, name: str, left: Ref, right: Abstract, node: nodes.Node, state: State, frame: Frame
    ) -> Abstract:
        """`kw |= a if x else b`: one object, changed in one of several ways."""
        if name == "BitOr" and isinstance(state.heap.get(left.oid), DictObj):
            step = Step(HopKind.UPDATE, frame.unit, node, f"merged by {self.text(node)}")
            self.merge_into(left, right, state, self.text(node), step)
        else:
            self.escape([left], self.text(node), state)
        return left

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
        if isinstance(left, Const) and isinstance(right, Const):
            try:
                steps = (Step(HopKind.LITERAL, frame.unit, node, f"computed by {self.text(node)}"),)
                soft = _soft(left.steps) + _soft(right.steps)
                return Const(compute(name, left.value, right.value), steps + soft)
            except NotComputed:
                return Unk(Reason.RUNTIME, self.text(node))
        obj = state.heap.get(left.oid) if isinstance(left, Ref) else None
        if name == "BitOr" and isinstance(obj, DictObj):
            ref = (
                left
                if in_place and isinstance(left, Ref)
                else self.new_dict(dict(obj.entries), state, obj.rest)
            )
            step = Step(HopKind.UPDATE, frame.unit, node, f"merged by {self.text(node)}")
            self.merge_into(ref, right, state, self.text(node), step)
            return ref
        if name == "BitOr" and isinstance(left, Unk) and self.dict_of(right, state) is not None:
            ref = self.new_dict({}, state, replace(left, oid=None))
            self.merge_into(ref, right, state, self.text(node))
            return ref
        return Unk(Reason.RUNTIME, self.text(node))

    def _eval_BooleanOperation(self, node: nodes.BooleanOperation, state: State, frame: Frame) -> Abstract:
        left = self.eval(node.left, state, frame)
        stops_at = node.operator == "Or"
        results: list[Abstract] = []
        goes_on = False
        for member in members(left):
            answer = truth(member, state)
            if answer is stops_at or answer is None:
                results.append(member)
            goes_on = goes_on or answer is not stops_at
        if goes_on:
            right_state = state.copy()
            self.narrow(node.left, not stops_at, right_state, frame)
            right = self.eval(node.right, right_state, frame)
            if results:
                merged = join_states([state, right_state])
                assert merged is not None
                state.become(merged)
            else:
                state.become(right_state)
            results.append(right)
        return join(results)

    def _eval_Comparison(self, node: nodes.Comparison, state: State, frame: Frame) -> Abstract:
        left = self.eval(node.left, state, frame)
        answer: Abstract = Const(True)
        for target in node.comparisons:
            right = self.eval(target.comparator, state, frame)
            results = [
                self._compare(target.operator, a, b, state) for a in members(left) for b in members(right)
            ]
            step = join(Unk(Reason.RUNTIME, self.text(node)) if r is None else r for r in results)
            answer = (
                step
                if truth(answer, state) is True
                else (answer if truth(answer, state) is False else Unk(Reason.RUNTIME, self.text(node)))
            )
            left = right
        return answer

    def _compare(self, name: str, left: Abstract, right: Abstract, state: State) -> Const | None:
        soft = _soft(left.steps) + _soft(right.steps)
        if isinstance(left, Const) and isinstance(right, Const):
            try:
                return Const(bool(compute(name, left.value, right.value)), soft)
            except NotComputed:
                return None
        if name in ("In", "NotIn"):
            return self._contains(name == "In", left, right, state, soft)
        if name in ("Is", "IsNot", "Equal", "NotEqual"):
            negative = name in ("IsNot", "NotEqual")
            if isinstance(left, Ref) and isinstance(right, Ref) and left.oid == right.oid:
                return Const(not negative, soft)
            pair = (left, right)
            none = any(isinstance(v, Const) and v.value is None for v in pair)
            solid = any(isinstance(v, (Ref, Tup, Func, Mod, Partial)) for v in pair)
            if none and solid:
                return Const(negative, soft)
        return None

    def _contains(
        self, positive: bool, left: Abstract, right: Abstract, state: State, soft: Steps
    ) -> Const | None:
        plain, known = self.hashable(left)
        obj = state.heap.get(right.oid) if isinstance(right, Ref) else None
        if isinstance(obj, InstObj) and obj.made_by == "dict-like":
            obj = state.heap.get(obj.attrs)
        if known and isinstance(obj, DictObj):
            value = obj.entries.get(plain)
            if value is None:
                return Const(not positive, soft) if obj.rest is None else None
            missing = [isinstance(member, Missing) for member in members(value)]
            if not any(missing):
                return Const(positive, soft)
            return Const(not positive, soft) if all(missing) else None
        items = self.items_of(right, state)
        if known and items is not None and all(isinstance(item, Const) for item in items):
            return Const(any(item.value == plain for item in items) is positive, soft)  # type: ignore[union-attr]
        return None

    def _eval_IfExp(self, node: nodes.IfExp, state: State, frame: Frame) -> Abstract:
        taken = truth(self.eval(node.test, state, frame), state)
        if taken is not None:
            return self.eval(node.body if taken else node.orelse, state, frame)
        yes, no = state.copy(), state.copy()
        self.narrow(node.test, True, yes, frame)
        self.narrow(node.test, False, no, frame)
        value = join((self.eval(node.body, yes, frame), self.eval(node.orelse, no, frame)))
        merged = join_states([yes, no])
        assert merged is not None
        state.become(merged)
        return value

    def _eval_NamedExpr(self, node: nodes.NamedExpr, state: State, frame: Frame) -> Abstract:
        value = self.eval(node.value, state, frame)
        self.assign(node.target, value, state, frame)
        return value

    def _eval_Await(self, node: nodes.Await, state: State, frame: Frame) -> Abstract:
        return self.eval(node.value, state, frame)

    def _eval_Yield(self, node: nodes.Yield, state: State, frame: Frame) -> Abstract:
        value = None if node.value is None else self.eval(node.value, state, frame)
        if value is not None and frame.yields is not None:
            frame.yields.append(value)
        return Unk(Reason.RUNTIME, "what is sent to a generator")

    def _eval_YieldFrom(self, node: nodes.YieldFrom, state: State, frame: Frame) -> Abstract:
        items = self.items_of(self.eval(node.value, state, frame), state)
        frame.yields = None if items is None or frame.yields is None else [*frame.yields, *items]
        return Unk(Reason.RUNTIME, "what is sent to a generator")


def _soft(steps: Steps) -> Steps:
    """The steps that say a command line can change the value; they survive every operation."""
    return tuple(step for step in steps if step.kind is HopKind.ARGPARSE)
