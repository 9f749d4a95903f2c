"""Conversions: numbers, texts, lengths, extremes, and texts that hold data (JSON, YAML, Python)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from klguard.read.python import nodes
from klguard.read.python.calls import Arguments
from klguard.read.python.containers import (
    NOT_PLAIN,
)
from klguard.read.python.control import Frame
from klguard.read.python.documents import parse_text
from klguard.read.python.memory import MAX_ITEMS
from klguard.read.python.operators import MAX_TEXT, NotComputed, compute
from klguard.read.python.records import Records
from klguard.read.python.state import State, truth
from klguard.read.python.values import (
    Abstract,
    Alt,
    Const,
    DictObj,
    Func,
    ListObj,
    Missing,
    Partial,
    Ref,
    Step,
    Tup,
    Unk,
    join,
    members,
)
from klguard.settings import HopKind, Reason

CONVERSIONS: dict[str, Callable[..., Any]] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "abs": abs,
    "round": round,
    "min": min,
    "max": max,
    "sum": sum,
    "repr": repr,
    "complex": complex,
    "divmod": divmod,
    "ord": ord,
    "chr": chr,
    "bytes": bytes,
    "format": format,
    "hex": hex,
    "bin": bin,
    "ascii": ascii,
}

TEXT_READERS = {
    "json.loads": "json",
    "ast.literal_eval": "python",
    "yaml.safe_load": "yaml",
    "yaml.full_load": "yaml",
    "yaml.load": "yaml",
    "tomllib.loads": "toml",
    "tomli.loads": "toml",
    "toml.loads": "toml",
}

CALLABLE = (Func, Partial)


class Conversions(Records):
    """Models of functions that make one plain value of others."""

    def _convert(self, name: str, args: Arguments, node: nodes.Call, state: State) -> Abstract | None:
        if args.more_positional is not None or args.rest is not None:
            return None
        values = args.positional
        if name == "bool" and len(values) == 1:
            return join(self._bool_of(member, state) for member in members(values[0]))
        if name == "sum" and values:
            items = self.items_of(values[0], state)
            values = [*([Tup(items)] if items is not None else values[:1]), *values[1:]]
        if len(values) == 1 and not args.keywords:
            found = [
                self._compute_one(CONVERSIONS[name], [member], {}, node, state)
                for member in members(values[0])
            ]
            return join(found)
        return self._compute_one(CONVERSIONS[name], values, args.keywords, node, state)

    def _bool_of(self, value: Abstract, state: State) -> Abstract:
        known, soft = truth(value, state), self.soft_steps([value], state)
        return join((Const(True), Const(False))) if known is None else Const(known, soft)

    def _compute_one(
        self,
        function: Callable[..., Any],
        values: list[Abstract],
        keywords: dict[str, Abstract],
        node: nodes.Call,
        state: State,
    ) -> Abstract:
        plain = [self.plain(value, state) for value in values]
        named = {key: self.plain(value, state) for key, value in keywords.items()}
        if any(p is NOT_PLAIN for p in (*plain, *named.values())):
            return Unk(Reason.RUNTIME, self.text(node))
        try:
            if function is bytes or (function is format and len(str(plain[-1])) > 12):
                return Unk(Reason.RUNTIME, self.text(node))
            result = function(*plain, **named)
        except Exception:
            return Unk(Reason.RUNTIME, self.text(node))
        own = values[0].steps if values else ()
        soft = tuple(
            step for step in self.soft_steps([*values, *keywords.values()], state) if step not in own
        )
        return self.from_plain(result, state, (*own, *soft))

    def _pow(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        plain = [self.plain(value, state) for value in args.positional]
        if len(plain) != 2 or any(value is NOT_PLAIN for value in plain):
            return None
        try:
            return Const(compute("Power", *plain), self.soft_steps(args.positional, state))
        except NotComputed:
            return None

    def _extreme(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        """`min` and `max`, with or without `key` and `default`."""
        if args.more_positional is not None or args.rest is not None or not args.positional:
            return None
        items = (
            tuple(args.positional) if len(args.positional) > 1 else self.unordered(args.positional[0], state)
        )
        key, default = args.keywords.get("key"), args.keywords.get("default")
        if items is None or len(items) > MAX_ITEMS:
            return None
        if not items:
            return default
        keys = (
            [self.call_method(key, [item], node, state, frame) for item in items]
            if isinstance(key, CALLABLE)
            else items
        )
        plain = [self.plain(value, state) for value in keys]
        choose = max if self.text(node.func).endswith("max") else min
        if any(value is NOT_PLAIN for value in plain) or (key is not None and not isinstance(key, CALLABLE)):
            return join(items if key is not None else self._not_beaten(items, plain, choose, state))
        try:
            best = items[choose(range(len(items)), key=plain.__getitem__)]
        except TypeError:
            return None
        soft = tuple(step for step in self.soft_steps(items, state) if step not in best.steps)
        return replace(best, steps=(*best.steps, *soft)) if not isinstance(best, Alt) else best

    def _not_beaten(
        self, items: Sequence[Abstract], plain: Sequence[Any], choose: Callable[..., Any], state: State
    ) -> list[Abstract]:
        """What `max(0, x)` can be where x is not certain: not a possibility of x below 0."""
        options = [member for item in items for member in members(item)]
        try:
            bound = choose(value for value in plain if value is not NOT_PLAIN)
            kept = []
            for option in options:
                value = self.plain(option, state)
                if value is NOT_PLAIN or choose(value, bound) == value:
                    kept.append(option)
            return kept
        except (TypeError, ValueError):
            return options

    def _len(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        if len(args.positional) != 1:
            return None
        lengths = [self._length(member, state) for member in members(args.positional[0])]
        return join(Unk(Reason.RUNTIME, self.text(node)) if n is None else Const(n) for n in lengths)

    def _length(self, value: Abstract, state: State) -> int | None:
        if isinstance(value, Const):
            return len(value.value) if isinstance(value.value, (str, bytes)) else None
        items = self.unordered(value, state)
        return len(items) if items is not None else None

    def _eval_FormattedString(self, node: nodes.FormattedString, state: State, frame: Frame) -> Abstract:
        """An f-string; where a part is one of several values, so is the text."""
        texts, soft = [""], list[Step]()
        for part in node.parts:
            if isinstance(part, str):
                pieces: list[str] | None = [part]
            else:
                value = self.eval(part.expression, state, frame)
                soft.extend(self.soft_steps([value], state))
                pieces = self._pieces(value, part, state)
            texts = [] if pieces is None else [text + piece for text in texts for piece in pieces]
            if not 0 < len(texts) <= 8 or len(texts[0]) > MAX_TEXT:
                return Unk(Reason.RUNTIME, self.text(node))
        return join(Const(text, (*self._literal(node, frame), *soft)) for text in texts)

    def _pieces(self, value: Abstract, part: nodes.FormattedPart, state: State) -> list[str] | None:
        """What an expression in an f-string is written as."""
        if part.spec is None or len(part.spec) > 8:
            return None
        plain = [self.plain(member, state) for member in members(value)]
        if any(p is NOT_PLAIN for p in plain):
            return None
        shown = {"r": repr, "s": str, "a": ascii, None: lambda p: p}[part.conversion]
        try:
            return [format(shown(p), part.spec) for p in plain]
        except (TypeError, ValueError):
            return None

    # -- texts that hold data --------------------------------------------------------------------------------

    def parse(
        self, kind: str, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract | None:
        """`json.loads("...")` and its kin, of a text that is known."""
        text = args.positional[0] if args.positional else None
        if not isinstance(text, Const) or not isinstance(text.value, str) or set(args.keywords) - {"Loader"}:
            return None
        read = parse_text(text.value, kind)
        if read is None:
            return None
        step = Step(HopKind.LITERAL, frame.unit, node, f"read by {self.text(node.func)}()")
        return self.from_plain(read[0], state, (*text.steps, step))

    def _dumps(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        plain = self.plain(args.positional[0], state) if len(args.positional) == 1 else NOT_PLAIN
        named = {key: self.plain(value, state) for key, value in args.keywords.items()}
        allowed = set(named) <= {"indent", "sort_keys", "ensure_ascii"} and args.rest is None
        if not allowed or any(value is NOT_PLAIN for value in named.values()):
            return None
        if plain is NOT_PLAIN:
            copied = len(args.positional) == 1 and self._survives_json(args.positional[0], state)
            part = self.duplicate(args.positional[0], state, {}, deep=True) if copied else None
            return None if part is None else self.make("json-text", part, state, self.text(node))
        try:
            return Const(json.dumps(plain, **named), self.soft_steps(args.positional, state))
        except (TypeError, ValueError):
            return None

    def _survives_json(self, value: Abstract, state: State, depth: int = 6) -> bool:
        """Whether `json.loads(json.dumps(value))` is a copy: dicts by text, lists, plain or unknown data."""
        obj = state.heap.get(value.oid) if isinstance(value, Ref) else None
        if isinstance(value, Alt):
            return all(self._survives_json(member, state, depth) for member in value.values)
        if isinstance(obj, DictObj) and obj.rest is None and depth:
            parts = obj.entries.values() if all(isinstance(k, str) for k in obj.entries) else [Tup(())]
            return all(self._survives_json(part, state, depth - 1) for part in parts)
        if isinstance(obj, ListObj) and depth:
            return all(self._survives_json(item, state, depth - 1) for item in obj.items or ())
        return isinstance(value, (Unk, Missing)) or (
            isinstance(value, Const) and not isinstance(value.value, bytes)
        )
