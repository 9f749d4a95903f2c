"""Methods of dicts, lists, sets and strings. One that is not modelled makes its owner unknown."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from klguard.read.python import nodes
from klguard.read.python.calls import Arguments
from klguard.read.python.containers import DICT_LIKE_KINDS, MAPPINGS, NOT_PLAIN, SETS, VIEWS
from klguard.read.python.control import Frame
from klguard.read.python.operators import MAX_TEXT, is_wide_format
from klguard.read.python.sets import SET_QUESTIONS, Sets
from klguard.read.python.state import State
from klguard.read.python.values import (
    Abstract,
    Const,
    DictObj,
    ListObj,
    Method,
    Missing,
    Ref,
    Step,
    Tup,
    Unk,
    identity,
    join,
    members,
    with_step,
)
from klguard.settings import HopKind, Reason

SAFE_TEXT_METHODS = frozenset(
    "lower upper strip lstrip rstrip split rsplit replace startswith endswith join format "
    "title capitalize removeprefix "
    "removesuffix partition rpartition casefold isdigit isnumeric isalpha splitlines encode "
    "decode count find rfind "
    "index rindex zfill ljust rjust center swapcase isalnum isspace isidentifier isupper "
    "islower istitle isascii "
    "isdecimal expandtabs format_map __len__ __contains__ __getitem__ __add__ __eq__".split()
)

RECEIVED = re.compile(r"\.(get|get_nowait|recv|recv_pyobj|pop|popleft)\(\)$")
"""A message taken from a queue: what it holds is for its sender to say, and a fallback is seldom what happens."""

READING = frozenset(
    "get items keys values copy __getitem__ __contains__ __len__ __iter__ __or__ __eq__ "
    "to_dict as_dict has_key dict "
    "model_dump json index count".split()
)
"""Methods that, by their name, leave a dict or an object as it is."""


Found = "Abstract | None"


class Methods(Sets):
    """Calls of `Method` values."""

    object_method: Callable[..., Abstract | None]
    sort_items: Callable[..., tuple[Abstract, ...] | None]

    def call_of_method(
        self, callee: Method, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract | None:
        owner = callee.owner
        if isinstance(owner, Const) and isinstance(owner.value, (str, bytes)):
            return self._text_method(owner, callee.name, args, state)
        kind = self.kind_of(owner, state)
        if isinstance(owner, Tup):
            return self._tuple_method(owner, callee.name, args, state)
        if isinstance(owner, Ref) and kind in SETS:
            return self.set_method(owner, kind, callee.name, args, node, state)
        if isinstance(owner, Ref) and kind in MAPPINGS:
            return self._mapping_method(owner, kind, callee.name, args, node, state, frame)
        if isinstance(owner, Ref) and kind in VIEWS:
            pure = SET_QUESTIONS.get(callee.name)
            return None if pure is None else self.ask_set(owner, pure, args, state)
        if kind in DICT_LIKE_KINDS and hasattr(self, f"_dict_{callee.name}") and isinstance(owner, Ref):
            if callee.name != "update" or kind == "dict-like":
                owner = self.as_dict(owner, state)
        obj = state.heap.get(owner.oid) if isinstance(owner, Ref) else None
        if not isinstance(obj, (DictObj, ListObj)) or not isinstance(owner, Ref):
            return self.object_method(callee, obj, args, node, state, frame)
        return self._container_method(owner, obj, callee.name, args, node, state, frame)

    def _container_method(
        self, owner: Ref, obj: Any, name: str, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract | None:
        kind = "dict" if isinstance(obj, DictObj) else "list"
        handler = getattr(self, f"_{kind}_{name.strip('_') if name.startswith('__') else name}", None)
        if handler is None or (name.startswith("__") and name not in _DUNDERS):
            self.escape([owner], f"{self.text(node.func)}()", state)
            return None
        return handler(owner, obj, args, node, state, frame)

    def _tuple_method(self, owner: Tup, name: str, args: Arguments, state: State) -> Abstract | None:
        if name == "__getitem__" and args.positional:
            return self.get_item(owner, args.positional[0], state, "")
        if name == "__len__":
            return Const(len(owner.items))
        if name in ("index", "count") and args.positional:
            return self._search(name, owner.items, args.positional[0], state)
        return None

    def _search(
        self, name: str, items: tuple[Abstract, ...], wanted: Abstract, state: State
    ) -> Abstract | None:
        plain = [self.plain(item, state) for item in items]
        value = self.plain(wanted, state)
        if value is NOT_PLAIN or any(item is NOT_PLAIN for item in plain):
            return None
        if name == "count":
            return Const(plain.count(value))
        return Const(plain.index(value)) if value in plain else None

    # -- strings ---------------------------------------------------------------------------------------------

    def _text_method(self, owner: Const, name: str, args: Arguments, state: State) -> Abstract | None:
        if args.more_positional is not None or args.rest is not None or name not in SAFE_TEXT_METHODS:
            return None
        values = [self._text_argument(value, state) for value in args.positional]
        named = {key: self._text_argument(value, state) for key, value in args.keywords.items()}
        everything = [*values, *named.values()]
        if any(v is NOT_PLAIN for v in everything) or not _small(owner.value, name, everything):
            return None
        try:
            result = getattr(owner.value, name)(*values, **named)
        except Exception:
            return None
        steps = (*owner.steps, *self.soft_steps(args.all(), state))
        if isinstance(result, (list, tuple)):
            items = tuple(Const(part, steps) for part in result)
            return self.new(ListObj(items), state) if isinstance(result, list) else Tup(items)
        return Const(result, steps) if result is not NotImplemented else None

    def _text_argument(self, value: Abstract, state: State) -> Any:
        """The plain value of an argument; an iterator is the list of what it gives."""
        if self.kind_of(value, state) in VIEWS | {"iterator"}:
            items = self.items_of(value, state)
            return NOT_PLAIN if items is None else self.plain(Tup(items), state)
        return self.plain(value, state)

    # -- dicts -----------------------------------------------------------------------------------------------

    def _dict_get(
        self, owner: Ref, obj: DictObj, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        key, default = args.get("key", 0), args.get("default", 1) or Const(None)
        step = Step(HopKind.DEFAULT, frame.unit, node, f"fallback of {self.text(node)}")
        fallback = with_step(default, step) if not isinstance(default, Missing) else default
        if key is None or args.rest is not None:
            return Unk(Reason.DYNAMIC_KEY, self.text(node))
        return join(self._get_one(obj, member, fallback, node) for member in members(key))

    def _get_one(self, obj: DictObj, key: Abstract, fallback: Abstract, node: nodes.Call) -> Abstract:
        plain, known = self.hashable(key)
        if not known:
            if obj.rest is not None:
                return Unk(Reason.DYNAMIC_KEY, self.text(node))
            found = [
                m for value in obj.entries.values() for m in members(value) if not isinstance(m, Missing)
            ]
            both = join([*found, fallback])
            return Unk(Reason.DYNAMIC_KEY, self.text(node)) if isinstance(both, Unk) else both
        value = obj.entries.get(plain)
        if value is None:
            if obj.rest is None:
                return fallback
            return join((fallback, replace(obj.rest, detail=self.text(node), oid=None)))
        present = [member for member in members(value) if not isinstance(member, Missing)]
        return join(present if len(present) == len(members(value)) else [*present, fallback])

    def _dict_setdefault(
        self, owner: Ref, obj: DictObj, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        key, default = args.get("key", 0), args.get("default", 1) or Const(None)
        plain, known = self.hashable(key) if key is not None else (None, False)
        if not known or key is None:
            self.escape([owner], self.text(node), state)
            return Unk(Reason.DYNAMIC_KEY, self.text(node))
        step = Step(HopKind.UPDATE, frame.unit, node, f"stored by {self.text(node)}")
        value = obj.entries.get(plain, obj.rest or Missing())
        present = [m for m in members(value) if not isinstance(m, Missing)]
        settled = join(
            [*present, with_step(default, step)]
            if len(present) < len(members(value)) or obj.rest is value
            else present
        )
        self.set_item(owner, key, settled, state)
        return settled

    def _dict_pop(
        self, owner: Ref, obj: DictObj, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        value = self._dict_get(owner, obj, args, node, state, frame)
        key = args.get("key", 0)
        if key is None:
            self.escape([owner], self.text(node), state)
            return Unk(Reason.DYNAMIC_KEY, self.text(node))
        self.delete_item(owner, key, state)
        return value

    def _dict_popitem(
        self, owner: Ref, obj: DictObj, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        keys = self.items_of(owner, state)
        if not keys or args.all():
            self.escape([owner], self.text(node), state)
            return Unk(Reason.RUNTIME, self.text(node))
        *rest, (plain, value) = obj.entries.items()
        state.heap[owner.oid] = DictObj(dict(rest))
        return Tup((keys[-1], value))

    def _dict_update(
        self, owner: Ref, obj: DictObj, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        step = Step(HopKind.UPDATE, frame.unit, node, f"updated by {self.text(node)}")
        if args.positional:
            self.merge_into(owner, args.positional[0], state, self.text(node), step)
        elif args.more_positional is not None:
            self.merge_into(owner, args.more_positional, state, self.text(node), step)
        self.merge_keywords(owner, args, state)
        return Const(None)

    def merge_keywords(self, ref: Ref, args: Arguments, state: State) -> None:
        """`d.update(**kwargs)`."""
        keywords = self.new_dict(dict(args.keywords), state, args.rest)
        self.merge_into(ref, keywords, state, "")

    def _dict_ior(
        self, owner: Ref, obj: DictObj, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        self._dict_update(owner, obj, args, node, state, frame)
        return owner

    def _dict_or(
        self, owner: Ref, obj: DictObj, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        twin = self.new_dict(dict(obj.entries), state, obj.rest)
        self._dict_update(twin, obj, args, node, state, frame)
        return twin

    def _dict_copy(
        self, owner: Ref, obj: DictObj, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        return self.new_dict(dict(obj.entries), state, obj.rest, owner.steps)

    def _dict_clear(
        self, owner: Ref, obj: DictObj, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        state.heap[owner.oid] = DictObj()
        return Const(None)

    def _dict_move_to_end(
        self, owner: Ref, obj: DictObj, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        key, last = args.get("key", 0), args.get("last", 1) or Const(True)
        plain, known = self.hashable(key) if key is not None else (None, False)
        if not known or plain not in obj.entries or not isinstance(last, Const):
            self.escape([owner], self.text(node), state)
            return Const(None)
        others = {k: v for k, v in obj.entries.items() if k != plain}
        moved = {plain: obj.entries[plain]}
        state.heap[owner.oid] = DictObj({**others, **moved} if last.value else {**moved, **others}, obj.rest)
        return Const(None)

    def _dict_keys(
        self, owner: Ref, obj: DictObj, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        return self.make("dict_keys", owner, state, self.text(node))

    def _dict_values(
        self, owner: Ref, obj: DictObj, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        return self.make("dict_values", owner, state, self.text(node))

    def _dict_items(
        self, owner: Ref, obj: DictObj, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        return self.make("dict_items", owner, state, self.text(node))

    def _dict_iter(
        self, owner: Ref, obj: DictObj, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        items = self.items_of(owner, state)
        return self.make(
            "iterator", Unk(Reason.RUNTIME, self.text(node)) if items is None else Tup(items), state
        )

    # -- what dicts and lists have in common -----------------------------------------------------------------

    def _dict_getitem(
        self, owner: Ref, obj: Any, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Found:
        return self.get_item(owner, args.positional[0], state, self.text(node)) if args.positional else None

    def _dict_setitem(
        self, owner: Ref, obj: Any, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Found:
        if len(args.positional) != 2:
            self.escape([owner], self.text(node), state)
            return None
        step = Step(HopKind.UPDATE, frame.unit, node, f"stored by {self.text(node)}")
        self.set_item(owner, args.positional[0], with_step(args.positional[1], step), state)
        return Const(None)

    def _dict_delitem(
        self, owner: Ref, obj: Any, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Found:
        if len(args.positional) != 1:
            self.escape([owner], self.text(node), state)
            return None
        self.delete_item(owner, args.positional[0], state)
        return Const(None)

    def _dict_contains(
        self, owner: Ref, obj: Any, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Found:
        answers = (
            [self._contains(True, key, owner, state, ()) for key in members(args.positional[0])]
            if args.positional
            else []
        )
        return None if not answers or None in answers else join(a for a in answers if a is not None)

    def _dict_len(
        self, owner: Ref, obj: Any, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Found:
        items = self.items_of(owner, state)
        return Const(len(items)) if items is not None else None

    _list_getitem, _list_setitem, _list_delitem = _dict_getitem, _dict_setitem, _dict_delitem
    _list_contains, _list_len, _list_iter = _dict_contains, _dict_len, _dict_iter

    # -- lists -----------------------------------------------------------------------------------------------

    def _list_append(
        self, owner: Ref, obj: ListObj, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        known = obj.items is not None and len(args.positional) == 1 and args.more_positional is None
        state.heap[owner.oid] = ListObj((*(obj.items or ()), args.positional[0]) if known else None)
        return Const(None)

    def _list_extend(
        self, owner: Ref, obj: ListObj, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        more = self.items_of(args.positional[0], state) if len(args.positional) == 1 else None
        state.heap[owner.oid] = ListObj(None if more is None or obj.items is None else (*obj.items, *more))
        return Const(None)

    def _list_iadd(
        self, owner: Ref, obj: ListObj, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        self._list_extend(owner, obj, args, node, state, frame)
        return owner

    def _list_pop(
        self, owner: Ref, obj: ListObj, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        index = args.get("", 0) or (Const(-1) if args.more_positional is None else Const(None))
        items = obj.items
        if (
            items
            and isinstance(index, Const)
            and type(index.value) is int
            and -len(items) <= index.value < len(items)
        ):
            rest = list(items)
            value = rest.pop(index.value)
            state.heap[owner.oid] = ListObj(tuple(rest))
            return value
        state.heap[owner.oid] = ListObj(None)
        return join(items) if items else Unk(Reason.RUNTIME, self.text(node))

    def _list_insert(
        self, owner: Ref, obj: ListObj, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        index = args.get("", 0)
        items: list[Abstract] | None = None
        if (
            obj.items is not None
            and len(args.positional) == 2
            and isinstance(index, Const)
            and type(index.value) is int
        ):
            items = list(obj.items)
            items.insert(index.value, args.positional[1])
        state.heap[owner.oid] = ListObj(None if items is None else tuple(items))
        return Const(None)

    def _list_remove(
        self, owner: Ref, obj: ListObj, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        items: list[Abstract] | None = None
        if obj.items is not None and len(args.positional) == 1:
            place = self._search("index", obj.items, args.positional[0], state)
            if (
                obj.items
                and identity(obj.items[0]) == identity(args.positional[0])
                and isinstance(obj.items[0], Ref)
            ):
                place = Const(0)
            if isinstance(place, Const):
                items = list(obj.items)
                del items[place.value]
        state.heap[owner.oid] = ListObj(None if items is None else tuple(items))
        return Const(None)

    def _list_reverse(
        self, owner: Ref, obj: ListObj, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        state.heap[owner.oid] = ListObj(None if obj.items is None else tuple(reversed(obj.items)))
        return Const(None)

    def _list_clear(
        self, owner: Ref, obj: ListObj, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        state.heap[owner.oid] = ListObj(())
        return Const(None)

    def _list_sort(
        self, owner: Ref, obj: ListObj, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        state.heap[owner.oid] = ListObj(self.sort_items(obj.items, args, node, state, frame))
        return Const(None)

    def _list_index(
        self, owner: Ref, obj: ListObj, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Found:
        known = obj.items is not None and len(args.positional) == 1
        return self._search("index", obj.items or (), args.positional[0], state) if known else None

    def _list_count(
        self, owner: Ref, obj: ListObj, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Found:
        known = obj.items is not None and len(args.positional) == 1
        return self._search("count", obj.items or (), args.positional[0], state) if known else None

    def _list_copy(
        self, owner: Ref, obj: ListObj, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        return self.new(obj, state)

    # -- mappings that are kept elsewhere, dicts that are not known ------------------------------------------

    def _mapping_method(
        self, owner: Ref, kind: str, name: str, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract | None:
        """A method of `vars(module)` or a ChainMap: on a dict of its contents, what changed is written
        back."""
        maps = self.part(owner, state)
        if kind == "chain-map" and name == "new_child" and isinstance(maps, Tup) and args.rest is None:
            first = args.get("m", 0) or self.new_dict({}, state)
            return self.make(kind, Tup((first, *maps.items)), state, self.text(node))
        twin = self.as_dict(owner, state)
        before = self.dict_of(twin, state)
        assert isinstance(twin, Ref) and before is not None
        result = self._container_method(twin, before, name, args, node, state, frame)
        after = self.dict_of(twin, state)
        assert after is not None
        if name in READING or after is before:
            return result
        if kind == "chain-map" or after.rest is not before.rest:
            self.escape([owner], self.text(node), state)
            if kind == "module-dict":
                self._set_one(owner, Unk(Reason.DYNAMIC_KEY, ""), Const(None), state, True)
            return result
        for key, value in after.entries.items():
            if before.entries.get(key) is not value:
                self._set_one(owner, Const(key), value, state, False)
        for key in before.entries.keys() - after.entries.keys():
            self._set_one(owner, Const(key), Unk(Reason.RUNTIME, f"{key}, deleted"), state, False)
        return result

    def unknown_method(
        self, callee: Unk, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract | None:
        """A method of an object that is not known, where its name says enough: `cfg.get(key, default)`."""
        owner = callee.owner
        assert owner is not None
        if callee.name == "get" and args.positional:
            return self._get_unknown(owner, args, node, state, frame)
        if not isinstance(owner, Unk) or owner.oid is None:
            return None
        if callee.name == "update":
            self._update_unknown(owner, args, node, state)
            return Const(None)
        overlay = state.heap.get(("items", owner.oid))
        if not isinstance(overlay, DictObj):
            return None
        if callee.name == "copy":
            return self.new_dict(dict(overlay.entries), state, overlay.rest or replace(owner, oid=None))
        if callee.name in ("pop", "__delitem__") and args.positional:
            value = self._get_unknown(owner, args, node, state, frame)
            self.delete_item(owner, args.positional[0], state)
            return value
        if callee.name not in READING:
            self.doubt_items(owner, self.text(node), state)
        return None

    def _get_unknown(
        self, owner: Abstract, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        default = args.get("default", 1)
        overlay = (
            state.heap.get(("items", owner.oid)) if isinstance(owner, Unk) and owner.oid is not None else None
        )
        plain, known = self.hashable(args.positional[0])
        if isinstance(overlay, DictObj) and known and plain in overlay.entries:
            return self._get_one(overlay, args.positional[0], default or Const(None), node)
        value = self.get_item(owner, args.positional[0], state, self.text(node))
        if not any(isinstance(member, Unk) for member in members(value)):
            return value
        unknown = join(
            replace(m, detail=self.text(node)) if isinstance(m, Unk) else m for m in members(value)
        )
        if default is None or any(isinstance(m, Unk) and RECEIVED.search(m.detail) for m in members(owner)):
            return unknown
        step = Step(HopKind.DEFAULT, frame.unit, node, f"fallback of {self.text(node)}")
        return join((with_step(default, step), unknown))

    def _update_unknown(self, owner: Unk, args: Arguments, node: nodes.Call, state: State) -> None:
        key = ("items", owner.oid)
        if key not in state.heap:
            state.heap[key] = DictObj({}, replace(owner, oid=None))
        for value in args.positional:
            self.merge_into(Ref(key), value, state, self.text(node))
        if args.more_positional is not None:
            self.merge_into(Ref(key), args.more_positional, state, self.text(node))
        self.merge_keywords(Ref(key), args, state)


_DUNDERS = frozenset(
    "__getitem__ __setitem__ __delitem__ __contains__ __len__ __iter__ __or__ __ior__ __iadd__".split()
)


def _small(text: str | bytes, name: str, values: list[Any]) -> bool:
    """Whether a method of a text cannot give a very long one."""
    if len(text) > MAX_TEXT:
        return False
    if name in ("format", "format_map") and is_wide_format(text):
        return False
    if name == "replace" and len(values) > 1 and isinstance(values[1], (str, bytes)):
        return (len(text) + 1) * max(len(values[1]), 1) <= MAX_TEXT * 10
    if name == "join" and values and isinstance(values[0], (list, tuple)):
        return (
            sum(len(part) + len(text) for part in values[0] if isinstance(part, (str, bytes)))
            <= MAX_TEXT * 10
        )
    return not any(isinstance(value, int) and abs(value) > MAX_TEXT for value in values)
