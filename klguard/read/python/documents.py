"""Configuration files that Python code loads, and texts in their formats: values, each with its place in
the file."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from klguard.read.files import reported
from klguard.settings import Place

MAX_DOCUMENT = 300_000
"""Bytes of a document that is read for its settings; larger ones are data."""

MAX_NODES = 20_000
"""Values of a text that is parsed; YAML's anchors can make a short one stand for many."""


@dataclass(frozen=True, slots=True)
class Item:
    """A value of a document: plain, or a dict or list of further items."""

    value: Any
    place: Place


def load_document(file: Path, kind: str) -> Item | None:
    """The contents of a YAML, JSON or TOML file; None when it cannot be read as one."""
    try:
        if file.stat().st_size > MAX_DOCUMENT:
            return None
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return items_of(text, kind, reported(file))


def items_of(text: str, kind: str, path: str) -> Item | None:
    """The contents of a text in YAML, JSON or TOML, as they stand in the file `path`; None where it is no such text."""
    try:
        if kind == "toml":
            return _load_toml(text, path)
        return _load_json(text, path) if kind == "json" else _load_yaml(text, path)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return None


PARSERS: dict[str, Callable[[str], Any]] = {
    "json": json.loads,
    "yaml": yaml.safe_load,
    "python": ast.literal_eval,
    "toml": lambda text: _toml().loads(text),
}


def parse_text(text: str, kind: str) -> tuple[Any] | None:
    """(the plain value,) of a text in one of these formats; None when it is none or too large."""
    if len(text) > MAX_DOCUMENT:
        return None
    try:
        value = PARSERS[kind](text)
    except (yaml.YAMLError, ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    return (value,) if _count(value, MAX_NODES) > 0 else None


def _count(value: Any, left: int) -> int:
    """How many of `left` nodes remain after walking a value; 0 or less when it has more."""
    if left <= 0:
        return 0
    inner = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    if isinstance(inner, (list, tuple, set)):
        for item in inner:
            left = _count(item, left - 1)
            if left <= 0:
                return 0
    return left


def _load_yaml(text: str, path: str) -> Item | None:
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if node is None or _values_of(node, {}) > MAX_DOCUMENT:
        return None
    return _from_node(node, path, yaml.SafeLoader(""))


def _values_of(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for: with anchors many more than are written, a text without has fewer than
    bytes. RecursionError where a node holds itself."""
    if id(node) not in known:
        inner = (
            [part for pair in node.value for part in pair]
            if isinstance(node, yaml.MappingNode)
            else node.value
        )
        inner = inner if isinstance(inner, list) else []
        known[id(node)] = 1 + sum(_values_of(each, known) for each in inner)
    return known[id(node)]


def _from_node(node: yaml.Node, path: str, loader: yaml.SafeLoader) -> Item:
    place = _place(node, path)
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)
        pairs = ((loader.construct_object(key, deep=True), value) for key, value in node.value)
        return Item({key: _from_node(value, path, loader) for key, value in pairs}, place)
    if isinstance(node, yaml.SequenceNode):
        return Item([_from_node(value, path, loader) for value in node.value], place)
    return Item(loader.construct_object(node), place)


def _place(node: yaml.Node, path: str) -> Place:
    start, end = node.start_mark, node.end_mark
    return Place(path, None, start.line + 1, start.column + 1, end.line + 1, end.column + 1)


def _load_json(text: str, path: str) -> Item:
    """JSON's values (`1e-5` is a number, which YAML 1.1 reads as a string), with the places YAML's
    reader tells."""
    plain = json.loads(text)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        node = None
    return _with_places(plain, node, path, Place(path, None, 1, 1, 1, 1))


def _with_places(value: Any, node: yaml.Node | None, path: str, around: Place) -> Item:
    """Items of JSON data next to the YAML nodes of the same text; where they differ, the place around it."""
    place = around if node is None else _place(node, path)
    if isinstance(value, dict):
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        nodes = {key.value: inner for key, inner in pairs}
        return Item({k: _with_places(inner, nodes.get(k), path, place) for k, inner in value.items()}, place)
    if isinstance(value, list):
        found = (
            node.value
            if isinstance(node, yaml.SequenceNode) and len(node.value) == len(value)
            else [None] * len(value)
        )
        return Item(
            [_with_places(inner, other, path, place) for inner, other in zip(value, found, strict=False)],
            place,
        )
    return Item(value, place)


def _toml() -> Any:
    try:
        import tomllib
    except ImportError:
        import tomli as tomllib
    return tomllib


def _load_toml(text: str, path: str) -> Item:
    return _wrap(_toml().loads(text), Place(path, None, 1, 1, 1, 1), _toml_places(text, path), ())


def _toml_places(text: str, path: str) -> dict[tuple[str, ...], Place]:
    """Where `key = value` lines stand, by their table and key; TOML's reader does not tell places."""
    found: dict[tuple[str, ...], Place] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("[") and "=" not in stripped:
            table = _toml_key(stripped.split("#")[0].strip().strip("[]"))
        elif "=" in stripped and not stripped.startswith("#"):
            key, _, rest = line.partition("=")
            column = len(line) - len(rest.lstrip()) + 1
            found.setdefault(
                (*table, *_toml_key(key)), Place(path, None, number, column, number, len(line) + 1)
            )
    return found


def _toml_key(text: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in text.split("."))


def _wrap(value: Any, around: Place, places: dict[tuple[str, ...], Place], key: tuple[str, ...]) -> Item:
    place = places.get(key, around)
    if isinstance(value, dict):
        return Item({name: _wrap(inner, place, places, (*key, name)) for name, inner in value.items()}, place)
    if isinstance(value, list):
        return Item([_wrap(inner, place, {}, ()) for inner in value], place)
    return Item(value, place)
