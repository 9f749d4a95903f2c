"""Layers of written settings: which value wins, where a layer may not have it or cannot be seen whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from klguard.engines.predicates import Predicate
from klguard.settings import (
    Absent,
    Default,
    Known,
    Layer,
    LayerKind,
    OneOf,
    Reason,
    Unknown,
    Value,
    join,
    members,
)


def walk(name: str, layers: Iterable[Layer], last: Value) -> Value:
    """The effective value of `name`: what the strongest layer says, else the next, else `last`.

    A value that may be absent, and a layer that may hold names we cannot see, let the layers below through.
    """
    possible: list[Value] = []
    for layer in layers:
        if name not in layer.values:
            if layer.rest is not None:
                possible.append(layer.rest)
            continue
        written = members(layer.values[name])
        present = [member for member in written if not isinstance(member, Absent)]
        possible += present
        if len(present) == len(written):
            return join(possible)
    return join([*possible, last]) if possible else last


def verdict(value: Value | None, test: Predicate) -> bool | None:
    """Whether `test` holds for every possibility of `value` (True) or none (False); None: neither is sure."""
    if value is None:
        return False
    answers = {test(m.value) if isinstance(m, Known | Default) else None for m in members(value)}
    return answers.pop() if len(answers) == 1 else None


def without(value: Value, dropped: Predicate) -> Value:
    """`value` with the certain members for which `dropped` holds made Absent."""
    return join(Absent(m.hops) if verdict(m, dropped) else m for m in members(value))


def of_kind(layers: Iterable[Layer], *kinds: LayerKind) -> tuple[Layer, ...]:
    """The layers of the given kinds, in the order they came."""
    return tuple(layer for layer in layers if layer.kind in kinds)


def plain(value: Value) -> Any:
    """The plain value of the first certain member, for a message; "unknown" where there is none."""
    return next((m.value for m in members(value) if isinstance(m, Known | Default)), "unknown")


def equal(left: Any, right: Any) -> bool:
    """Python equality, False where the two refuse to be compared."""
    try:
        return bool(left == right)
    except Exception:  # an arbitrary object's __eq__ may raise anything
        return False


def flatten(layer: Layer, names: Iterable[str]) -> Layer:
    """`layer` with the dicts of settings that it holds under `names` spread out over its other values.

    An entry of such a dict wins over a field of the same name, as it does in the libraries that take one. A
    dict that cannot be seen may set any name: it becomes the layer's `rest`, and joins the values that are
    visible.
    """
    values, rest = dict(layer.values), layer.rest
    for name in names:
        if name not in values:
            continue
        options = members(values.pop(name))
        dicts = [entries(option) for option in options]
        if None in dicts:
            hidden = options[dicts.index(None)]
            rest = hidden if isinstance(hidden, Unknown) else Unknown(Reason.UNSUPPORTED, name, hidden.hops)
            values = {key: join([value, rest]) for key, value in values.items()}
        ways = [{} if found is None else found for found in dicts]
        for key in dict.fromkeys(key for way in ways for key in way):
            below = values.get(key, Absent() if rest is None else rest)
            values[key] = join(way.get(key, below) for way in ways)
    return replace(layer, values=values, rest=rest)


def entries(option: Value) -> dict[str, Value] | None:
    """The entries of a dict as values, {} where there is no dict; None where it cannot be seen."""
    match option:
        case Known(dict() as found):
            return {
                str(k): v if isinstance(v, Known | Unknown | Default | OneOf) else Known(v, option.hops)
                for k, v in found.items()
            }
        case Known(None) | Default(None) | Absent():
            return {}
        case _:
            return None
