"""Configuration files that Python code loads: their values, each with its place in the file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from klguard.read.files import reported
from klguard.settings import Place

MAX_DOCUMENT = 300_000
"""Bytes of a document that is read for its settings; larger ones are data."""


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
    path = reported(file)
    if kind == "toml":
        return _load_toml(text, path)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        plain = json.loads(text) if kind == "json" else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    if node is None or (kind == "json" and plain is None):
        return None
    try:
        return _from_node(node, path, yaml.SafeLoader(""))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return None


def _from_node(node: yaml.Node, path: str, loader: yaml.SafeLoader) -> Item:
    start, end = node.start_mark, node.end_mark
    place = Place(path, None, start.line + 1, start.column + 1, end.line + 1, end.column + 1)
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)
        pairs = ((loader.construct_object(key, deep=True), value) for key, value in node.value)
        return Item({key: _from_node(value, path, loader) for key, value in pairs}, place)
    if isinstance(node, yaml.SequenceNode):
        return Item([_from_node(value, path, loader) for value in node.value], place)
    return Item(loader.construct_object(node), place)


def _load_toml(text: str, path: str) -> Item | None:
    try:
        import tomllib
    except ImportError:
        import tomli as tomllib
    try:
        return _wrap(tomllib.loads(text), Place(path, None, 1, 1, 1, 1))
    except (tomllib.TOMLDecodeError, RecursionError):
        return None


def _wrap(value: Any, place: Place) -> Item:
    """Items of plain data; TOML's reader does not tell places, so all have the file's."""
    if isinstance(value, dict):
        return Item({key: _wrap(inner, place) for key, inner in value.items()}, place)
    if isinstance(value, list):
        return Item([_wrap(inner, place) for inner in value], place)
    return Item(value, place)
