"""What a loop tells of besides tensors for each token: figures, amounts, counts, rows and names.

Each is put into the form that the invariants read. What cannot be is refused, in words for whoever wrote the loop:
TypeError for what is of the wrong kind, ValueError for what makes no sense. Figures stay on their device; amounts,
counts and ids are plain numbers.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from klguard.guard import events
from klguard.guard.kl import ESTIMATORS

REPORTED = ("ratio", "approx_kl", "entropy", "kl", "clip_fraction")
"""Figures of a minibatch that a loop may report."""


def figure(name: str, value: Any) -> Tensor | float:
    """A number that a loop logs: a tensor stays on its device, and several numbers stay several."""
    if isinstance(value, Real):
        return float(value)
    return _numbers(name, value, "pass a number, or a tensor with one element")


def each_row(name: str, value: Any) -> Tensor:
    """One number for each response (B,), or a single one: a tensor, an array or a list."""
    return _numbers(name, value, "pass one number for each response, as a tensor or a list")


def amount(name: str, value: Any) -> float:
    """A plain number, such as a coefficient."""
    single = isinstance(value, Tensor) and value.numel() == 1 or getattr(value, "ndim", None) == 0
    if not single and not isinstance(value, Real):
        raise TypeError(f"{name} is {_kind(value)}; pass a number")
    return float(value)


def positive(name: str, value: Any) -> float:
    """A plain number above 0."""
    number = amount(name, value)
    if not number > 0:
        raise ValueError(f"{name}={number:g} has to be above 0")
    return number


def not_negative(name: str, value: Any) -> float:
    """A plain finite number of 0 or more."""
    number = amount(name, value)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{name}={number:g} has to be 0 or more, and finite")
    return number


def count(name: str, value: Any, *, least: int | None = 0) -> int:
    """A whole number, of at least `least` where that is not None."""
    try:
        number = int(value) if isinstance(value, float) and value.is_integer() else operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {_kind(value)}; pass a whole number") from None
    if least is not None and number < least:
        raise ValueError(f"{name}={number} has to be {least} or more")
    return number


def token_ids(name: str, value: Any) -> tuple[int, ...]:
    """One token id, several, or a tensor of them, as a sorted tuple."""
    if isinstance(value, Tensor):
        value = value.flatten().tolist()
    try:
        several = [value] if hasattr(value, "__index__") else list(value)
        return tuple(sorted({operator.index(one) for one in several}))
    except TypeError:
        hint = f", such as tokenizer.convert_tokens_to_ids({value!r})" if isinstance(value, str) else ""
        raise TypeError(f"{name} is {_kind(value)}; pass token ids{hint}") from None


def groups(name: str, value: Any) -> Sequence[int] | Tensor:
    """The group of each row (B,): numbers, or names of any kind, which are numbered."""
    if isinstance(value, Tensor):
        return value.detach()
    given = _listed(name, value)
    if all(hasattr(one, "__index__") for one in given):
        return [operator.index(one) for one in given]
    if not all(isinstance(one, Hashable) for one in given):
        raise TypeError(f"{name} has entries that cannot be told apart; pass a number for each row")
    numbers: dict[Any, int] = {}
    return [numbers.setdefault(one, len(numbers)) for one in given]


def row_ids(name: str, value: Any) -> Sequence[int] | Tensor:
    """Which rows these are (B,), by number."""
    if isinstance(value, Tensor):
        return value.detach()
    try:
        return [operator.index(one) for one in _listed(name, value)]
    except TypeError:
        raise TypeError(f"{name} are no whole numbers; pass the number of each row") from None


def texts(name: str, value: Any) -> Sequence[str]:
    """One text for each row."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name} is {_kind(value)}; pass a list with one text for each row")
    return value


def clip_range(name: str, value: Any) -> tuple[float, float]:
    """How far below and above 1 the ratio may go: one number for both sides, or (low, high)."""
    sides = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value, value]
    if len(sides) != 2:
        raise ValueError(f"{name}={value!r} has to be one number, or (low, high), such as (0.2, 0.28)")
    low, high = (positive(name, side) for side in sides)
    return low, high


def reported(name: str, value: Any) -> Mapping[str, Tensor | float]:
    """The loop's own figures of a minibatch, by name."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} is {_kind(value)}; pass a dict of {', '.join(REPORTED)}")
    return {one_of(REPORTED, name, one): figure(f"{name}[{one!r}]", told) for one, told in value.items()}


def one_of(choices: Sequence[str], name: str, value: Any) -> str:
    """One of the names in `choices`."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known: choose one of {', '.join(map(repr, choices))}")
    return value


def function(name: str, value: Any) -> Callable:
    """A function of the loop."""
    if not callable(value):
        raise TypeError(f"{name} is {_kind(value)}; pass a function")
    return value


def batch(name: str, value: Any) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask (B, L), to try functions on."""
    pair = tuple(value) if isinstance(value, Sequence) else ()
    if len(pair) != 2 or not all(isinstance(one, Tensor) and one.dim() == 2 for one in pair):
        raise TypeError(f"{name} has to be a pair of tensors (B, L), (input_ids, attention_mask)")
    if pair[0].shape != pair[1].shape:
        shapes = f"{tuple(pair[0].shape)} and {tuple(pair[1].shape)}"
        raise ValueError(f"input_ids and attention_mask of {name} have the shapes {shapes}, which differ")
    return pair


_UNITS = partial(one_of, ("token", "sequence"))
_FIGURES = ("loss", "grad_norm", "entropy", "kl", "kl_coef", "controller_kl", "explained_variance")
_FUNCTIONS = ("score", "reference_score", "kl_loss", "accumulate", "reward", "gae", "packed")

FORMS: dict[type[events.Event], dict[str, Callable[[str, Any], Any]]] = {
    events.Preflight: dict.fromkeys(_FUNCTIONS, function)
    | {"batch": batch, "gamma": amount, "lam": amount, "rows": partial(count, least=1)},
    events.Rollout: {
        "max_new_tokens": partial(count, least=1),
        "groups": groups,
        "rows": row_ids,
        "temperature": not_negative,
        "texts": texts,
        "filtered": count,
        "allowed_lag": count,
    },
    events.Rewards: {"texts": texts, "recompute": function, "kl_coef": figure},
    events.Advantages: {
        "gamma": amount,
        "lam": amount,
        "groups": groups,
        "group_size": partial(count, least=1),
    },
    events.Minibatch: {"rows": row_ids, "epoch": count, "clip_range": clip_range, "reported": reported},
    events.StepEnd: {
        "rewards": each_row,
        "lengths": each_row,
        "truncated": each_row,
        "kl_unit": _UNITS,
        "controller_unit": _UNITS,
        "kl_estimator": partial(one_of, (*ESTIMATORS, "exact")),
    }
    | dict.fromkeys(_FIGURES, figure),
}
"""How each event's fields are told, where they are no tensors for each token."""

ANSWERS = {
    "gae": "the advantages, shape (B, T)",
    "reward": "the total reward of each sequence, shape (B,)",
    "kl_loss": "the loss term",
}
"""What functions given to `preflight` return, in numbers, that is not checked where they are tried."""


def in_form(
    kind: type[events.Event], details: Mapping[str, Any], own: Collection[str] = ()
) -> dict[str, Any]:
    """What the loop tells by keyword of an event of `kind`, each as the invariants read it. TypeError for a field that
    it does not have, or that is one of the guard's `own`."""
    names = [name for name in kind.__dataclass_fields__ if name not in ("place", "handle", *own)]
    for name in details:
        if name not in names:
            raise TypeError(f"unknown argument {name!r}: choose from {', '.join(names)}")
    forms = FORMS.get(kind, {})
    return {
        name: value if value is None or name not in forms else forms[name](name, value)
        for name, value in details.items()
    }


def answer(name: str, value: Any) -> Any:
    """What the function given to `preflight` as `name` returned. TypeError where it is of the wrong kind."""
    if name not in ANSWERS or isinstance(value, Tensor):
        return value
    return _numbers(f"what `{name}` returned", value, f"it has to return {ANSWERS[name]}, as a tensor")


def _numbers(name: str, value: Any, hint: str) -> Tensor:
    """`value` as a tensor of numbers, without its graph."""
    try:
        if isinstance(value, (str, bytes, Mapping)):
            raise TypeError
        numbers = value if isinstance(value, Tensor) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} is {_kind(value)}; {hint}") from None
    if numbers.dtype.is_complex or not numbers.numel():
        raise ValueError(f"{name} has shape {tuple(numbers.shape)} and dtype {numbers.dtype}; {hint}")
    return numbers.detach()


def _listed(name: str, value: Any) -> list[Any]:
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__iter__"):
        raise TypeError(f"{name} is {_kind(value)}; pass one entry for each row, as a tensor or a list")
    return list(value)


def _kind(value: Any) -> str:
    name = type(value).__name__
    return "None" if value is None else f"an {name}" if name[0] in "aeiou" else f"a {name}"
