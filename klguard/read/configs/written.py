"""What a configuration writes, under one flat name for each value, whatever the file is made of.

`{"actor_rollout_ref": {"rollout": {"top_p": 0.9}}}` in YAML and `actor_rollout_ref.rollout.top_p=0.9` on a command
line are the same setting. Each value keeps its place and the text it was written as.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from klguard.read.python.documents import Item
from klguard.settings import Default, Hop, HopKind, Known, OneOf, Place, Reason, Unknown, Value

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_WORDS: Mapping[str, Any] = {"true": True, "false": False, "null": None, "none": None}


@dataclass(frozen=True)
class Written:
    """The values of one configuration.

    place    its first character, for what concerns all of it.
    command  the words of a command line that are neither options nor their values; empty for a file.
    values   dotted name -> value.
    unknown  names that are given a value which is not known.
    open     there may be more, in what is not seen: `"$@"`, an array of another script.
    """

    place: Place
    command: tuple[str, ...] = ()
    values: Mapping[str, Known] = field(default_factory=dict)
    unknown: frozenset[str] = frozenset()
    open: bool = False

    def get(self, name: str) -> Any:
        """The plain value, None without one."""
        found = self.values.get(name)
        return None if found is None else found.value

    def first(self, *names: str) -> Known | None:
        """The value under the first of these names that is written."""
        return next((self.values[name] for name in names if name in self.values), None)

    def has(self, *names: str) -> bool:
        """Whether one of these names is given a value, known or not."""
        return any(name in self.values or name in self.unknown for name in names)

    def below(self, prefix: str) -> dict[str, Known]:
        """The values below a name, by what follows it."""
        start = f"{prefix}."
        return {name[len(start) :]: value for name, value in self.values.items() if name.startswith(start)}


def from_tree(item: Item) -> Written:
    """The values of a parsed file. Items of a list are named by their number."""
    return Written(item.place, (), dict(_flat(item, "")))


def _flat(item: Item, name: str) -> Iterator[tuple[str, Known]]:
    inner = item.value
    pairs = inner.items() if isinstance(inner, dict) else enumerate(inner) if isinstance(inner, list) else ()
    if name and not isinstance(inner, dict):
        yield name, Known(_plain(item), (Hop(HopKind.DOCUMENT, item.place, name),))
    for key, value in pairs:
        yield from _flat(value, f"{name}.{key}" if name else str(key))


def _plain(item: Item) -> Any:
    value = item.value
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return literal(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


def literal(text: str) -> Any:
    """A value as command lines write it: a number, true, false, null, else the text."""
    bare = text.strip("'\"")
    if bare.lower() in _WORDS:
        return _WORDS[bare.lower()]
    if _NUMBER.fullmatch(bare):
        return float(bare) if set(bare) & set(".eE") else int(bare)
    return bare


def renamed(value: Known, plain: Any) -> Value:
    """The same value in other words, from the same place."""
    return Known(plain, value.hops)


def left_alone(written: Written, names: tuple[str, ...], default: Any, owner: str) -> Value:
    """What a setting is that has no known value: the owner's default, unless it may have been given another.

    names    what it may be called.
    """
    if not written.has(*names):
        value = Default(default, owner)
        return OneOf((value, Unknown(Reason.RUNTIME, names[0]))) if written.open else value
    return Unknown(Reason.RUNTIME, names[0])
