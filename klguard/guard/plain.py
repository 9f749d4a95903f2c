"""Live objects as plain data: what can be compared, printed and kept without holding the object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from klguard.engines.layers import equal
from klguard.settings import Opaque


def plain(value: Any) -> Any:
    """`value` as plain data; what is none, or holds what is none, as an Opaque. Tensors are not looked into."""
    if value is None or isinstance(value, bool | int | float | str | Opaque):
        return value
    if isinstance(value, Mapping):
        items = {key: plain(item) for key, item in value.items()}
        return Opaque(text_of(value)) if any(isinstance(item, Opaque) for item in items.values()) else items
    if isinstance(value, list | tuple | set | frozenset) and type(value).__module__ == "builtins":
        inside = [plain(item) for item in value]
        opaque = any(isinstance(item, Opaque) for item in inside)
        return Opaque(text_of(value)) if opaque else type(value)(value)
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    return Opaque(text_of(value), f"{type(value).__module__}.{type(value).__qualname__}")


def text_of(value: Any) -> str:
    """An object in words that are the same in every run and cost no look at a device."""
    if isinstance(value, Tensor):
        return f"Tensor{tuple(value.shape)}"
    if isinstance(value, list | tuple):
        inside = ", ".join(map(text_of, value))
        name = "" if type(value).__module__ == "builtins" else type(value).__name__
        return f"{name}([{inside}])" if name else f"[{inside}]"
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if callable(value) and hasattr(value, "__qualname__"):
        return value.__qualname__.rpartition(".")[2]
    shown = {
        name: item
        for name, item in getattr(value, "__dict__", {}).items()
        if isinstance(item, int | float | str) and name not in ("filter_value", "min_tokens_to_keep")
    }
    given = ", ".join(f"{name}={item!r}" for name, item in shown.items() if not name.startswith("_"))
    return f"{type(value).__name__}({given})"


def as_ids(stop: Any) -> tuple[int, ...] | None:
    """One token id, or several, as a tuple; None where there is none."""
    if stop is None or isinstance(stop, bool):
        return None
    if isinstance(stop, int):
        return (stop,)
    return tuple(int(token) for token in stop) if isinstance(stop, Sequence | set | frozenset) else None


def same(left: Any, right: Any) -> bool:
    """Equal, lists and tuples alike, and None only to None."""
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return list(left) == list(right)
    return (left is None) == (right is None) and equal(left, right)
