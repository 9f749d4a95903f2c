"""The generation_config.json that a model brings along: of a folder beside the code, else of a published checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from klguard.engines.checkpoints import layer_for
from klguard.read.python.documents import Item, load_document
from klguard.settings import Hop, HopKind, Known, Layer, LayerKind

NAME = "generation_config.json"

VERSION = "transformers_version"
"""The field that says which version saved the file."""


def checkpoint_layer(model_name: str, folders: Iterable[Path]) -> Layer | None:
    """What `from_pretrained(model_name)` fills in for a program that is run from one of `folders`; None where that
    cannot be told. As in transformers, a folder of that name comes before a repository on the hub."""
    for folder in folders:
        try:
            place = folder / Path(model_name).expanduser()
            if place.is_dir():
                return _saved_in(place, model_name)
        except (OSError, RuntimeError, ValueError):  # no home directory, a name no file can have
            continue
    return layer_for(model_name)


def _saved_in(folder: Path, model_name: str) -> Layer | None:
    """What the file in a folder sets; None without a file that can be read."""
    item = load_document(folder / NAME, "json")
    if item is None or not isinstance(item.value, dict):
        return None
    version = item.value.get(VERSION)
    values = {
        name: Known(_plain(field), (Hop(HopKind.CHECKPOINT, field.place, f"{NAME} of {model_name}"),))
        for name, field in item.value.items()
        if name != VERSION and not name.startswith("_") and field.value is not None
    }
    return Layer(LayerKind.CHECKPOINT, values, version=str(version.value) if version is not None else "")


def _plain(item: Item) -> object:
    """An item without the places."""
    if isinstance(item.value, dict):
        return {key: _plain(inner) for key, inner in item.value.items()}
    return [_plain(inner) for inner in item.value] if isinstance(item.value, list) else item.value
