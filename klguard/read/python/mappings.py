"""Objects of the project that `**value`, `dict(value)` and `update(value)` take for a mapping: by their methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from klguard.read.python.calls import Arguments
from klguard.read.python.containers import Containers
from klguard.read.python.control import Frame
from klguard.read.python.project import Project
from klguard.read.python.state import State
from klguard.read.python.values import (
    MISSING,
    Abstract,
    ClassObj,
    Const,
    DictObj,
    Ext,
    Func,
    InstObj,
    Ref,
    Unk,
    join,
)
from klguard.settings import Reason

BASES = frozenset(
    f"{package}.{name}" for package in ("collections.abc", "typing") for name in ("Mapping", "MutableMapping")
)
"""Bases whose `keys` are what `__iter__` gives."""


class Mappings(Containers):
    """The mapping protocol: `keys()`, then an item for each."""

    def __init__(self, project: Project) -> None:
        super().__init__(project)
        self._unfolding: set[Any] = set()

    rows_of: Callable[..., tuple[list[tuple[Abstract, bool]] | None, Unk | None]]

    def contents(self, value: Abstract, state: State) -> DictObj | None:  # type: ignore[override]
        """What a mapping holds, None where it is not known to be one."""
        found = self.dict_of(value, state)
        return self._by_methods(value, state) if found is None and isinstance(value, Ref) else found

    def _by_methods(self, value: Ref, state: State) -> DictObj | None:
        obj = state.heap.get(value.oid)
        cls = obj.cls if isinstance(obj, InstObj) else None
        made_of = state.heap.get(cls.oid) if isinstance(cls, Ref) else None
        if not isinstance(made_of, ClassObj) or value.oid in self._unfolding:
            return None
        by_iteration = any(isinstance(base, Ext) and base.name in BASES for base in self.mro(cls, state))
        keys = self.class_attribute(cls, "keys", state)
        if not isinstance(keys, Func) and by_iteration:
            keys = self.class_attribute(cls, "__iter__", state)
        item = self.class_attribute(cls, "__getitem__", state)
        if not isinstance(keys, Func) or not isinstance(item, Func):
            return None
        module = made_of.info.module
        frame = Frame(("mapping", next(self._fresh)), (("module", module.path),), module, None)
        self._unfolding.add(value.oid)
        try:
            return self._item_by_item(value, keys, item, state, frame)
        finally:
            self._unfolding.discard(value.oid)

    def _item_by_item(self, owner: Ref, keys: Func, item: Func, state: State, frame: Frame) -> DictObj | None:
        listed = self.invoke(replace(keys, bound=owner), Arguments(), None, state, frame)
        rows, rest = self.rows_of(listed, False, state)
        if rows is None or not all(isinstance(key, Const) and isinstance(key.value, str) for key, _ in rows):
            return None
        entries: dict[Any, Abstract] = {}
        for key, certain in rows:
            value = self.invoke(replace(item, bound=owner), Arguments([key]), None, state, frame)
            entries[key.value] = value if certain else join((value, MISSING))  # type: ignore[union-attr]
        more = None if rest is None else Unk(Reason.RUNTIME, f"{frame.module.name}, keys of an object")
        return DictObj(entries, more)
