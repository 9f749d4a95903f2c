"""How transformers merges keyword arguments, an object, the checkpoint's generation_config and its own
defaults.

Three rules, by version, of `GenerationMixin._prepare_generation_config`; with no object they agree. What a
rule does without a word is gathered in Notes, for KLG503.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from packaging.version import Version

from klguard.engines.layers import equal, of_kind, plain, verdict, walk, without
from klguard.engines.predicates import none
from klguard.engines.versions import parse
from klguard.settings import Absent, Default, Known, Layer, LayerKind, Value, join, members

SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
OBJECT_FALLS_BACK = Version("4.50.0")
NONE_MEANS_UNSET = Version("5.0.0.dev0")

Defaults = Callable[[str], Value]


@dataclass
class Notes:
    """What a rule of precedence did silently."""

    overwritten: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    none_means_unset: dict[str, Any] = field(default_factory=dict)

    def facts(self) -> Mapping[str, Any]:
        """The notes that are not empty."""
        return {name: found for name, found in vars(self).items() if found}


@dataclass(frozen=True)
class Merge:
    """The layers of one generate() call, sorted, and the library's defaults."""

    kwargs: tuple[Layer, ...]
    objects: tuple[Layer, ...]
    checkpoints: tuple[Layer, ...]
    default: Defaults
    notes: Notes

    @classmethod
    def of(cls, layers: Sequence[Layer], default: Defaults) -> Merge:
        """The merge of `layers`."""
        kinds = (LayerKind.KWARGS, LayerKind.OBJECT, LayerKind.CHECKPOINT)
        return cls(*(of_kind(layers, kind) for kind in kinds), default, Notes())

    def rule(self, version: Version) -> Callable[[str], Value]:
        """The function from a setting to its effective value that `version` implements."""
        if version >= NONE_MEANS_UNSET:
            return self.fill
        if not self.objects:
            return lambda name: walk(name, (*self.kwargs, *self.checkpoints), self.default(name))
        if version < OBJECT_FALLS_BACK:
            return self.stand_in
        falls_back = self.falls_back()
        if falls_back is None:
            perhaps = replace(self, notes=Notes())  # what may have happened is no fact
            return lambda name: join([perhaps.overwrite(name), self.stand_in(name)])
        return self.overwrite if falls_back else self.stand_in

    def fill(self, name: str) -> Value:
        """5.x: None in an object or a checkpoint is unset, and gives way; as a keyword argument it stays."""
        lower = tuple(with_none_unset(layer, name) for layer in (*self.objects, *self.checkpoints))
        value = walk(name, (*self.kwargs, *lower), self.default(name))
        in_object = [layer.values[name] for layer in self.objects if name in layer.values]
        asked = any(verdict(m, none) for written in in_object for m in members(written))
        if asked and not self.has_kwarg(name) and verdict(value, lambda v: v is not None):
            self.notes.none_means_unset[name] = plain(value)
        return value

    def stand_in(self, name: str) -> Value:
        """Up to 4.49, later for older checkpoints: the object stands in for it, special tokens apart."""
        written = (*self.kwargs, *self.objects)
        if name not in SPECIAL_TOKENS:
            return walk(name, written, self.default(name))
        given, inherited = walk(name, written, Absent()), walk(name, self.checkpoints, self.default(name))
        return join(inherited if isinstance(m, Absent) or verdict(m, none) else m for m in members(given))

    def overwrite(self, name: str) -> Value:
        """4.50 to 4.57: what the object has equal to the library's default gives way to the checkpoint."""
        return walk(name, self.kwargs, self.merged(name))

    def merged(self, name: str) -> Value:
        """The object after 4.50's fall-back; a temperature of 0 in it turns do_sample off."""
        library = plain(self.default(name))
        inherited = walk(name, self.checkpoints, self.default(name))
        if verdict(inherited, lambda value: equal(value, library)):
            value = walk(name, self.objects, self.default(name))
        else:
            written = members(walk(name, self.objects, Absent()))
            lost = [m for m in written if verdict(m, lambda value: equal(value, library))]
            value = join(inherited if isinstance(m, Absent) or m in lost else m for m in written)
            if lost and not self.has_kwarg(name) and verdict(inherited, lambda v: not equal(v, library)):
                self.notes.overwritten[name] = (plain(lost[0]), plain(inherited))
        return greedy_at_zero(value, self.merged("temperature")) if name == "do_sample" else value

    def has_kwarg(self, name: str) -> bool:
        """Whether a keyword argument may decide, so that the layers below it do not count."""
        return walk(name, self.kwargs, Absent()) != Absent()

    def falls_back(self) -> bool | None:
        """4.50 to 4.57: whether the object falls back on the checkpoint; None where its version is not known.

        A generation_config made from the model's own configuration counts as saved by the library that runs.
        """
        asked = walk("use_model_defaults", self.kwargs, Absent())
        if isinstance(asked, Known) and isinstance(asked.value, bool):
            return asked.value
        if not self.checkpoints:
            return False
        saved = next((parse(layer.version) for layer in self.checkpoints if layer.version), None)
        return None if saved is None else Version(saved.base_version) >= OBJECT_FALLS_BACK


def with_none_unset(layer: Layer, name: str) -> Layer:
    """`layer` with a None under `name` made Absent."""
    if name not in layer.values:
        return layer
    return replace(layer, values={**layer.values, name: without(layer.values[name], none)})


def greedy_at_zero(do_sample: Value, temperature: Value) -> Value:
    """`do_sample` after the edge case of 4.50 to 4.57: at a temperature of 0.0 it becomes False."""
    zero = verdict(temperature, lambda value: equal(value, 0.0))
    off = Default(False, "transformers", ">=4.50,<5", temperature.hops)
    return off if zero else do_sample if zero is False else join([do_sample, off])
