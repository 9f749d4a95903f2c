"""What becomes unknown where a function is not followed: what it returns, and what it may change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from klguard.read.python.calls import Arguments, Calls
from klguard.read.python.state import State
from klguard.read.python.unfollowed import touched
from klguard.read.python.uses import Uses, uses_of
from klguard.read.python.values import (
    MISSING,
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
            if isinstance(value, Later) and value.kind in ("import", "class"):
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
        """Make unknown what a function may change of its arguments. Of one of which it only reads and sets attributes
        or keys, these are what it may change, and what those hold that it reads."""
        params = (*code.params.posonly_params, *code.params.params)[bound:]
        names = {param.name for param in (*params, *code.params.kwonly_params)}
        named = [(param.name, value) for param, value in zip(params, arguments.positional, strict=False)]
        named += [(name, value) for name, value in arguments.keywords.items() if name in names]
        whole = arguments.positional[len(params) :]
        whole += [value for name, value in arguments.keywords.items() if name not in names]
        for name, value in named:
            plain = code.info is not None and not code.wrapped
            uses = uses_of(code.info, name) if plain and isinstance(value, Ref) else None
            held = None if uses is None else self._held(value, uses, state)
            if uses is None or held is None:
                whole.append(value)
                continue
            self.escape(held, where, state)
            gone = Unk(Reason.ESCAPED, f"changed by {code.name}()")
            self._doubt_entries(value, uses.attributes_set | uses.keys_set, gone, state)
        self.escape(whole, where, state)

    def _held(self, owner: Ref, uses: Uses, state: State) -> list[Abstract] | None:
        """What the attributes or keys hold that are read. None where the owner is no such object, or may change
        otherwise by what is read or set: through a method, a property, a dunder method."""
        obj = state.heap.get(owner.oid)
        is_dict = isinstance(obj, DictObj)
        entries = state.heap.get(obj.attrs) if isinstance(obj, InstObj) else obj
        if not isinstance(entries, DictObj) or (uses.attributes_set if is_dict else uses.keys_set):
            return None
        cls = obj.cls if isinstance(obj, InstObj) else None
        if cls is not None and uses.attributes_set and self.class_attribute(cls, "__setattr__", state):
            return None
        plain = is_dict or isinstance(obj, InstObj) and obj.made_by == "namespace"
        found: list[Abstract] = []
        for name in uses.read | uses.attributes_set:
            held = entries.entries.get(name)
            if held is None and cls is not None:
                held = self.class_attribute(cls, name, state)
            elif held is None and not plain:
                return None
            if isinstance(held, Func) or (is_dict and hasattr(dict, name)):
                return None
            if held is not None and name in uses.read:
                found.append(held)
        return found

    def _doubt_entries(self, owner: Ref, names: Iterable[str], gone: Unk, state: State) -> None:
        """Attributes of an object, or keys of a dict, may have other values."""
        obj = state.heap[owner.oid]
        oid = obj.attrs if isinstance(obj, InstObj) else owner.oid
        entries = state.heap[oid]
        if isinstance(entries, DictObj):
            new = {name: join((entries.entries.get(name, MISSING), gone)) for name in names}
            state.heap[oid] = DictObj({**entries.entries, **new}, entries.rest)

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
