"""Expressions: literals, displays and comprehensions, each by its own kind of node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from klguard.read.python import nodes
from klguard.read.python.control import Frame
from klguard.read.python.memory import MAX_ITEMS
from klguard.read.python.operations import Operations
from klguard.read.python.state import State, truth
from klguard.read.python.values import (
    Abstract,
    Const,
    DictObj,
    ListObj,
    Missing,
    Ref,
    Step,
    Tup,
    Unk,
    join,
    members,
    with_step,
    with_steps,
)
from klguard.settings import HopKind, Reason


class Expressions(Operations):
    """Evaluation of everything but calls."""

    call: Callable[..., Abstract]
    contents: Callable[[Abstract, State], DictObj | None]

    def __init__(self) -> None:
        super().__init__()
        self._handlers: dict[type, Any] = {}
        self._sure = True
        self._filters_exactly = True

    def eval(self, node: nodes.Expression, state: State, frame: Frame) -> Abstract:  # type: ignore[override]
        handler = self._handlers.get(type(node))
        if handler is None:
            handler = self._handlers[type(node)] = getattr(self, "_eval_" + type(node).__name__, None)
        if handler is None:
            return Unk(Reason.UNSUPPORTED, self.text(node))
        value = handler(node, state, frame)
        if type(value) is Unk and not value.steps:
            return with_steps(value, (Step(HopKind.END, frame.unit, node, "not known from here on"),))
        return value

    # -- literals and displays ---------------------------------------------------------------------------------

    def _eval_Literal(self, node: nodes.Literal, state: State, frame: Frame) -> Abstract:
        found = self._literals.get(node)
        if found is None:
            found = self._literals[node] = Const(node.value, self._literal(node, frame))
        return found

    def _elements(self, elements: Sequence[Any], state: State, frame: Frame) -> tuple[Abstract, ...] | None:
        found: list[Abstract] | None = []
        for element in elements:
            starred = isinstance(element, nodes.Starred)
            value = self.eval(element.value if starred else element, state, frame)
            if starred:
                items = self.items_of(value, state)
                found = None if items is None or found is None else [*found, *items]
            elif found is not None:
                found.append(value)
        return tuple(found) if found is not None else None

    def _eval_Tuple(self, node: nodes.Tuple, state: State, frame: Frame) -> Abstract:
        items = self._elements(node.elements, state, frame)
        return (
            Tup(items, self._literal(node, frame))
            if items is not None
            else Unk(Reason.RUNTIME, self.text(node))
        )

    def _eval_List(self, node: nodes.List, state: State, frame: Frame) -> Abstract:
        return self.new(
            ListObj(self._elements(node.elements, state, frame)), state, self._literal(node, frame)
        )

    def _eval_Dict(self, node: nodes.Dict, state: State, frame: Frame) -> Abstract:
        ref = self.new_dict({}, state, steps=self._literal(node, frame))
        for element in node.elements:
            if isinstance(element, nodes.DictElement):
                key = self.eval(element.key, state, frame)
                value = self.eval(element.value, state, frame)
                self.set_item(ref, key, value, state)
            else:
                step = Step(HopKind.SPLAT, frame.unit, element, f"unpacked by {self.text(element)}")
                self.merge_into(
                    ref, self.eval(element.value, state, frame), state, self.text(element.value), step
                )
        return ref

    def merge_into(
        self, ref: Ref, value: Abstract, state: State, text: str, step: Step | None = None, weak: bool = False
    ) -> None:
        """`ref.update(value)`: what `value` certainly holds wins, what it may hold joins."""
        target = state.heap[ref.oid]
        assert isinstance(target, DictObj)
        source = self.contents(value, state)
        if source is None and (pairs := self._pairs(value, state)) is not None:
            source = DictObj(pairs)
        entries = dict(target.entries)
        if source is None:
            doubt = value if isinstance(value, Unk) else Unk(Reason.RUNTIME, text)
            doubt = replace(doubt, detail=doubt.detail or text, oid=None)
            entries = {k: join((v, doubt)) for k, v in entries.items()}
            state.heap[ref.oid] = DictObj(entries, doubt)
            return
        if source.rest is not None:
            entries = {k: (v if k in source.entries else join((v, source.rest))) for k, v in entries.items()}
        for key, incoming in source.entries.items():
            arriving = (
                with_step(incoming, step)
                if step is not None and not isinstance(incoming, Missing)
                else incoming
            )
            old = entries.get(key, target.rest or Missing())
            maybe = [m for m in members(arriving) if not isinstance(m, Missing)]
            certain = len(maybe) == len(members(arriving)) and not weak
            entries[key] = arriving if certain else join((*maybe, old))
        state.heap[ref.oid] = DictObj(entries, target.rest or source.rest)

    def _pairs(self, value: Abstract, state: State) -> dict[Any, Abstract] | None:
        """A dict's contents given as an iterable of known (key, value) pairs."""
        items = self.items_of(value, state)
        if items is None or isinstance(value, Const):
            return None
        entries: dict[Any, Abstract] = {}
        for item in items:
            pair = self.items_of(item, state)
            if pair is None or len(pair) != 2:
                return None
            plain, known = self.hashable(pair[0])
            if not known:
                return None
            entries[plain] = pair[1]
        return entries

    # -- comprehensions ----------------------------------------------------------------------------------------

    def _eval_ListComp(self, node: nodes.ListComp, state: State, frame: Frame) -> Abstract:
        found: list[Abstract] = []
        certain = self._comprehend(
            node.for_in, lambda s, f: found.append(self.eval(node.elt, s, f)), state, frame
        )
        return self.new(ListObj(tuple(found) if certain else None), state, self._literal(node, frame))

    def _eval_GeneratorExp(self, node: nodes.GeneratorExp, state: State, frame: Frame) -> Abstract:
        found: list[Abstract] = []
        certain = self._comprehend(
            node.for_in, lambda s, f: found.append(self.eval(node.elt, s, f)), state, frame
        )
        return Tup(tuple(found)) if certain else Unk(Reason.RUNTIME, self.text(node))

    def _eval_DictComp(self, node: nodes.DictComp, state: State, frame: Frame) -> Abstract:
        ref = self.new_dict({}, state, steps=self._literal(node, frame))

        def add(inner: State, scope: Frame) -> None:
            key = self.eval(node.key, inner, scope)
            value = self.eval(node.value, inner, scope)
            self.set_item(ref, key, value if self._sure else join((value, Missing())), inner)

        if not self._comprehend(node.for_in, add, state, frame, filtered=True):
            state.heap[ref.oid] = DictObj({}, Unk(Reason.RUNTIME, self.text(node)))
        return ref

    def _comprehend(
        self,
        clause: nodes.CompFor,
        produce: Callable[[State, Frame], Any],
        state: State,
        frame: Frame,
        filtered: bool = False,
    ) -> bool:
        """Run a comprehension; False when what it runs over is not known, or, unless `filtered`, what it filters by.
        While `produce` runs, `_sure` says whether the item is certainly kept."""
        inner = replace(frame, id=("comp", next(self._fresh)), outer=dict(frame.outer))
        inner.scopes = (inner.id, *frame.scopes)
        inner.returns, inner.loops = frame.returns, frame.loops
        around = self._sure, self._filters_exactly
        self._sure, self._filters_exactly = True, True
        certain = self._comp_for(clause, produce, state, inner) and (filtered or self._filters_exactly)
        self._sure, self._filters_exactly = around
        state.frames.pop(inner.id, None)
        return certain

    def _comp_for(
        self, clause: nodes.CompFor, produce: Callable[..., Any], state: State, frame: Frame
    ) -> bool:
        iterable = self.eval(clause.iter, state, frame)
        items = self.items_of(iterable, state)
        certain = items is not None and len(items) <= MAX_ITEMS and not clause.asynchronous
        if not certain:
            items = (
                (join(items),) if items else (Unk(Reason.RUNTIME, f"an item of {self.text(clause.iter)}"),)
            )
        assert items is not None
        for item in items:
            self.spend()
            self.assign(clause.target, item, state, frame)
            keep: bool | None = True
            for condition in clause.ifs:
                answer = truth(self.eval(condition, state, frame), state)
                keep = False if answer is False else (None if answer is None and keep is not False else keep)
                if keep is False:
                    break
            if keep is False:
                continue
            sure, self._sure = self._sure, self._sure and keep is True
            self._filters_exactly = self._filters_exactly and keep is True
            if clause.inner_for_in is not None:
                certain = self._comp_for(clause.inner_for_in, produce, state, frame) and certain
            else:
                produce(state, frame)
            self._sure = sure
        return certain
