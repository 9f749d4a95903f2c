"""Methods of sets and frozensets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from klguard.read.python import nodes
from klguard.read.python.algebra import Algebra
from klguard.read.python.calls import Arguments
from klguard.read.python.operators import SET_OPERATIONS
from klguard.read.python.state import State
from klguard.read.python.values import (
    Abstract,
    Const,
    Ref,
    Tup,
    Unk,
)
from klguard.settings import Reason

_SET_PURE = {
    "union": "BitOr",
    "intersection": "BitAnd",
    "difference": "Subtract",
    "symmetric_difference": "BitXor",
    "__or__": "BitOr",
    "__and__": "BitAnd",
    "__sub__": "Subtract",
    "__xor__": "BitXor",
}
_SET_UPDATES = {
    "update": "BitOr",
    "intersection_update": "BitAnd",
    "difference_update": "Subtract",
    "symmetric_difference_update": "BitXor",
}
SET_QUESTIONS: dict[str, Callable[[Any, Any], bool]] = {
    "issubset": lambda a, b: a <= b,
    "issuperset": lambda a, b: a >= b,
    "isdisjoint": lambda a, b: not a & b,
}


class Sets(Algebra):
    """Calls of methods of sets. One that is not modelled makes the set unknown."""

    def set_method(
        self, owner: Ref, kind: str, name: str, args: Arguments, node: nodes.Call, state: State
    ) -> Abstract | None:
        if name in SET_QUESTIONS:
            return self.ask_set(owner, SET_QUESTIONS[name], args, state)
        mine = self.elements_of(owner, state)
        if name == "copy" or (name in _SET_PURE and mine is not None):
            result = mine if name == "copy" else self._combine(_SET_PURE[name], mine or {}, args, state)
            return self.make_set(result, state, self.text(node), kind)
        if name == "__contains__" and args.positional:
            return self._contains(True, args.positional[0], owner, state, ())
        changed: dict[Any, Abstract] | None = None
        if name == "clear":
            changed = {}
        elif mine is not None and name in _SET_UPDATES:
            changed = self._combine(_SET_UPDATES[name], mine, args, state)
        elif mine is not None and name in ("add", "discard", "remove") and len(args.positional) == 1:
            changed = self._combine(
                "BitOr" if name == "add" else "Subtract", mine, Arguments([Tup((args.positional[0],))]), state
            )
        if kind == "set":
            self.set_part(
                owner,
                Unk(Reason.RUNTIME, self.text(node)) if changed is None else Tup(tuple(changed.values())),
                state,
            )
        return Const(None) if name in ("add", "discard", "remove", "clear") or name in _SET_UPDATES else None

    def _combine(
        self, operation: str, mine: dict[Any, Abstract], args: Arguments, state: State
    ) -> dict[Any, Abstract] | None:
        """The elements after an operation with each argument in turn; None when one of them is not known."""
        if args.more_positional is not None:
            return None
        for value in args.positional:
            theirs = self.elements_of(value, state)
            if theirs is None:
                return None
            kept = SET_OPERATIONS[operation](mine.keys(), theirs.keys())
            mine = {key: element for key, element in {**theirs, **mine}.items() if key in kept}
        return mine

    def ask_set(
        self, owner: Ref, question: Callable[[Any, Any], bool], args: Arguments, state: State
    ) -> Abstract | None:
        mine = self.elements_of(owner, state)
        theirs = self.elements_of(args.positional[0], state) if args.positional else None
        return None if mine is None or theirs is None else Const(question(mine.keys(), set(theirs)))
