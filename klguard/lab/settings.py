"""Sampling settings of the experiment, from the command line and in words. Free of torch."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

from klguard.engines import ENGINES

NEEDED = ("torch", "transformers", "accelerate", "matplotlib", "plotly")
"""What the demonstration imports beyond klguard's own dependencies: the `demo` extra."""


def missing() -> list[str]:
    """Which of these are not installed."""
    return [name for name in NEEDED if find_spec(name) is None]


def described(sampling: Mapping[str, Any]) -> str:
    """Settings in words."""
    return ", ".join(f"{name}={value!r}" for name, value in sampling.items()) or "pure sampling"


def parsed(settings: Iterable[str]) -> dict[str, Any]:
    """Keywords of generate() from texts such as "min_new_tokens=16" or "suppress_tokens=[1]".

    ValueError for what is not NAME=VALUE, for a name that transformers does not know, with the nearest one, and for
    a value that it rejects.
    """
    owner, found = ENGINES["transformers"], {}
    for text in settings:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name:
            raise ValueError(
                f"`{text}` is not NAME=VALUE: write a keyword of generate(), as in min_new_tokens=16"
            )
        if name not in owner.settings:
            near = owner.nearest(name)
            raise ValueError(
                f"`{name}` is not a setting of transformers' generate()"
                + (f"; did you mean `{near}`?" if near else "")
            )
        found[name] = _literal(name, value)
        if fault := owner.error(name, found[name], {}):
            raise ValueError(f"`{text}`: {fault}")
    return found


def _literal(name: str, text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        raise ValueError(
            f"`{name}={text}`: the value must be a Python literal: a number, True, False, None or a list, as in [1]"
        ) from None
