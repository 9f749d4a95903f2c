"""What becomes unknown where a function is not followed: what it returns, and what it may change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from klguard.read.python.calls import Arguments, Calls
from klguard.read.python.only_reads import only_reads
from klguard.read.python.state import State
from klguard.read.python.unfollowed import touched
from klguard.read.python.values import (
    Abstract,
    ClassObj,
    Code,
    DictObj,
    Func,
    InstObj,
    Later,
    Mod,
    Ref,
    Unk,
    join,
    members,
)
from klguard.settings import Reason


class Doubts(Calls):
    """Functions that are not followed to their end."""

    lookup: Callable[[Any, str, State], Abstract | None]

    def _unfollowed(self, code: Code, reason: Reason) -> Unk:
        """What a function returns that was not followed to its end."""
        result = Unk(reason, f"{code.name}()", oid=("call", next(self._fresh)))
        if code.info is not None:
            self.unfollowed[result.oid] = code.info
        return result

    def _doubt_unfollowed(self, callee: Func, arguments: Arguments, state: State) -> None:
        """Make unknown what a function that is not followed may change: what it is passed, and what it reaches by
        name."""
        code = callee.code
        where = f"passed to {code.name}()"
        self._doubt_arguments(code, callee.bound is not None, arguments, where, state)
        places = touched(code.info) if code.info is not None else ()
        for name, attribute, rebound in places:
            is_self = callee.bound is not None and bool(code.params.params)
            if is_self and name == code.params.params[0].name:
                value, scope = callee.bound, None
            else:
                scope = next((s for s in callee.closure if name in state.variables(s)), None)
                value = state.variables(scope).get(name) if scope is not None else None
            if isinstance(value, Later) and value.kind == "import":
                value = self.lookup(scope, name, state)
            if value is None or isinstance(value, Later):
                continue
            gone = Unk(Reason.ESCAPED, f"changed by {code.name}()")
            if rebound and not attribute and scope is not None:
                state.bind(scope, name, gone)
            elif attribute:
                self._doubt_attribute(value, attribute, gone if rebound else None, where, state)
            else:
                self.escape([value], where, state)

    def _doubt_arguments(
        self, code: Code, bound: bool, arguments: Arguments, where: str, state: State
    ) -> None:
        """Make unknown what a function may change of its arguments. Of one of which it only reads attributes or keys,
        that is what these hold."""
        params = (*code.params.posonly_params, *code.params.params)[bound:]
        names = {param.name for param in (*params, *code.params.kwonly_params)}
        named = [(param.name, value) for param, value in zip(params, arguments.positional, strict=False)]
        named += [(name, value) for name, value in arguments.keywords.items() if name in names]
        whole = arguments.positional[len(params) :]
        whole += [value for name, value in arguments.keywords.items() if name not in names]
        for name, value in named:
            plain = code.info is not None and not code.wrapped
            read = only_reads(code.info, name) if plain and isinstance(value, Ref) else None
            if read is None:
                whole.append(value)
            else:
                self.escape(self._held(value, read, state), where, state)
        self.escape(whole, where, state)

    def _held(self, owner: Abstract, names: Iterable[str], state: State) -> list[Abstract]:
        """What attributes, or keys of a dict, hold; the owner itself where it is no such object, and where it may be
        changed by what it gives: a method."""
        obj = state.heap.get(owner.oid) if isinstance(owner, Ref) else None
        entries = state.heap.get(obj.attrs) if isinstance(obj, InstObj) else obj
        if not isinstance(entries, DictObj):
            return [owner]
        found: list[Abstract] = []
        for name in names:
            held = entries.entries.get(name)
            if held is None and isinstance(obj, InstObj):
                held = self.class_attribute(obj.cls, name, state) if obj.cls is not None else owner
            if isinstance(held, Func) or (obj is entries and hasattr(dict, name)):
                return [owner]
            found += [] if held is None else [held]
        return found

    def _doubt_attribute(
        self, owner: Abstract, name: str, gone: Unk | None, where: str, state: State
    ) -> None:
        """An attribute may have another value, or what it holds may be changed."""
        for member in members(owner):
            if isinstance(member, Mod):
                home = ("module", member.module.path)
                held = self.lookup(home, name, state)
                if gone is not None:
                    state.bind(home, name, gone if held is None else join((held, gone)))
                elif held is not None:
                    self.escape([held], where, state)
            obj = state.heap.get(member.oid) if isinstance(member, Ref) else None
            attrs = state.heap.get(obj.attrs) if isinstance(obj, (InstObj, ClassObj)) else None
            if not isinstance(obj, (InstObj, ClassObj)) or not isinstance(attrs, DictObj):
                continue
            held = attrs.entries.get(name)
            if held is None and isinstance(obj, InstObj) and obj.cls is not None:
                held = self.class_attribute(obj.cls, name, state)
            if gone is not None:
                entry = gone if held is None else join((held, gone))
                state.heap[obj.attrs] = DictObj({**attrs.entries, name: entry}, attrs.rest)
            elif held is not None:
                self.escape([held], where, state)

    def _unseen(self) -> None:
        """Something of the project runs that is not followed: it may raise anything."""
        for catcher in self.catchers:
            catcher.unseen = True
