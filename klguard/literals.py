"""Values in writing: as Python source for people and fingerprints, as JSON for programs."""

from __future__ import annotations

import math
from typing import Any

from klguard.settings import Absent, Default, Known, OneOf, Opaque, Unknown, Value

LONGEST = 80


def source_text(value: object) -> str:
    """A plain value as somebody would write it: `50`, `"left"`, `LogitsProcessorList([...])`."""
    if isinstance(value, Opaque):
        text = value.text
    elif isinstance(value, (set, frozenset)):
        # The order of a set of strings differs from run to run.
        text = "{" + ", ".join(sorted(map(source_text, value))) + "}" if value else "set()"
    else:
        text = repr(value)
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def value_text(value: Value) -> str:
    """What is known of a setting, in one line."""
    match value:
        case Known(plain) | Default(plain):
            return source_text(plain)
        case Unknown():
            return f"unknown ({value})"
        case OneOf(values):
            return " or ".join(map(value_text, values))
        case Absent():
            return "unset"


def default_text(value: Default) -> str:
    """Whose default a value is, and in which versions."""
    return f"default of {value.library} {value.versions}".rstrip() if value.library else "default"


def json_value(value: object) -> Any:
    """A plain value as JSON can hold it.

    An object is {"expression": its source}; a float that JSON has no form for is its name.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case Opaque(text):
            return {"expression": text}
        case dict():
            return {
                key if isinstance(key, str) else repr(key): json_value(item) for key, item in value.items()
            }
        case list() | tuple():
            return [json_value(item) for item in value]
        case set() | frozenset():
            return [json_value(item) for item in sorted(value, key=source_text)]
        case _:
            return {"expression": source_text(value)}
