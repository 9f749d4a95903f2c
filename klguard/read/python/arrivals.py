"""Layers: which settings arrive at a site, by keyword, in a settings object, or through the model's own config."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from klguard.engines import ENGINES
from klguard.read.python import nodes
from klguard.read.python.calls import Arguments
from klguard.read.python.source import FunctionInfo
from klguard.read.python.state import State
from klguard.read.python.translation import Translation
from klguard.read.python.values import (
    Abstract,
    Const,
    DictObj,
    Func,
    InstObj,
    Method,
    Ref,
    Unk,
    members,
)
from klguard.settings import (
    Absent,
    Layer,
    LayerKind,
    OneOf,
    Reason,
    SiteKind,
    Unknown,
    Value,
    join,
)

if TYPE_CHECKING:
    pass

NESTED = ("generation_kwargs", "gen_kwargs", "gen_experience_kwargs", "generate_kwargs", "sampling_params")
"""Arguments whose value is itself a dict of settings."""

INPUTS = re.compile(
    r"(^|[^a-z])(inputs?|batch(es)?|enc(oded|oding|odings)?|tokens?|tokeni[sz]ed|tokeni[sz]e|tokenizer|processor|prompts?|"
    r"quer(y|ies)|features|examples?|samples?|data|ids|model_inputs|mask|masks|image_inputs|pixel_values)([^a-z]|$)",
    re.I,
)

TRANSPARENT = frozenset(
    {"to", "items", "copy", "cuda", "data", "encode_plus", "pad", "apply_chat_template", "__call__"}
)
"""Methods behind which the object is still the same inputs."""

SETTINGS_WORDS = re.compile(r"kwargs|params|args|config|cfg|settings|options|gen_|generation|sampling", re.I)


class Arrivals(Translation):
    """What a call passes on, in the order of its precedence."""

    _maker: Callable[[Abstract, State], str]
    _added_on_the_way: Callable[..., Unknown | None]
    _behind: dict[nodes.Call, FunctionInfo | None]

    def _layers(
        self,
        engine: str,
        kind: SiteKind,
        name: str,
        callee: Abstract,
        node: nodes.Call,
        arguments: Arguments,
        state: State,
    ) -> tuple[Layer, ...]:
        positional = ENGINES[engine].constructor_order(
            name
            if kind is not SiteKind.GENERATE
            else (name if name.rpartition(".")[2] in ("respond_to_batch",) else "generate"),
            {},
        )
        if engine == "local" and isinstance(callee, Func):
            positional = tuple(
                p.name for p in (*callee.code.params.posonly_params, *callee.code.params.params)
            )
            positional = positional[1:] if callee.bound is not None else positional
        elif kind is SiteKind.GENERATE and (behind := self._behind.get(node)) is not None:
            parameters = behind.node.args
            positional = tuple(a.arg for a in (*parameters.posonlyargs, *parameters.args))[1:]
        if engine == "transformers" and kind is SiteKind.GENERATE and self._behind.get(node) is None:
            positional = positional[
                :1
            ]  # further ones are told by what they are: tensors, masks, settings objects
        written = (
            dict(zip(positional, arguments.positional, strict=False))
            if arguments.more_positional is None
            else {}
        )
        written.update(arguments.keywords)
        objects = [
            written.pop(key) for key in ("generation_config",) if key in written and kind is SiteKind.GENERATE
        ]
        for value in arguments.positional:
            if kind is SiteKind.GENERATE and self._maker(value, state).endswith(
                ("SamplingParams", "GenerationConfig")
            ):
                objects.append(value)
                written = {key: other for key, other in written.items() if other is not value}
        if kind is SiteKind.GENERATE and "sampling_params" in written:
            objects.append(written.pop("sampling_params"))
        configuration = self._configuration(written, state) if kind is SiteKind.TRAINER else None
        values, rest = self._flat(written, arguments.rest, state)
        if engine == "local" and isinstance(callee, Func):
            for key, default in callee.code.defaults.items():
                values.setdefault(key, self.to_value(default, state))
        if rest is None and engine == "transformers" and kind is SiteKind.GENERATE:
            rest = self._added_on_the_way(node, callee, state)
        layers = [Layer(LayerKind.KWARGS, values, rest), *([configuration] if configuration else [])]
        layers += [
            layer for value in _distinct(objects) if (layer := self._object_layer(value, state)) is not None
        ]
        if kind is SiteKind.GENERATE and (layer := self._live_checkpoint(callee, state)) is not None:
            layers.append(layer)
        return tuple(layers)

    def _configuration(self, written: Mapping[str, Abstract], state: State) -> Layer | None:
        """What the configuration holds that a trainer is given, as `args` or `config`."""
        value = next((written[name] for name in ("args", "config") if name in written), None)
        if value is None or (isinstance(value, Const) and value.value is None):
            return None
        attributes = self._attributes(value, state)
        if attributes is None:
            doubt = next((m for m in members(value) if isinstance(m, Unk)), None)
            return Layer(
                LayerKind.OBJECT,
                {},
                self._unknown(doubt or Unk(Reason.RUNTIME, "the trainer's configuration")),
            )
        obj = state.heap[value.oid] if isinstance(value, Ref) else None
        known = {name: entry for name, entry in attributes.entries.items() if isinstance(name, str)}
        own = attributes.rest is not None and isinstance(obj, InstObj) and attributes.rest.detail == obj.text
        values, rest = self._flat(known, None if own else attributes.rest, state)
        return Layer(LayerKind.OBJECT, values, rest)

    def _flat(
        self, written: Mapping[str, Abstract], unseen: Unk | None, state: State
    ) -> tuple[dict[str, Value], Unknown | None]:
        """Values by name, dicts of settings spread out: their entries win, as in the libraries that take them."""
        values = {name: self.to_value(value, state) for name, value in written.items() if name not in NESTED}
        rest = self._unknown(unseen) if unseen is not None else None
        for name in NESTED:
            value = written.get(name)
            if value is None or (isinstance(value, Const) and value.value is None):
                continue
            inner = self.dict_of(value, state) or self._attributes(value, state)
            if inner is None:
                values[name] = self.to_value(value, state)
                continue
            for key, entry in inner.entries.items():
                if isinstance(key, str):
                    found = self.to_value(entry, state)
                    values[key] = (
                        found
                        if not _may_be_absent(found)
                        else join(
                            [
                                *(m for m in _options(found) if not isinstance(m, Absent)),
                                values.get(key, Absent()),
                            ]
                        )
                    )
            if inner.rest is not None:
                rest = rest or self._unknown(inner.rest)
        return values, rest

    def _attributes(self, value: Abstract, state: State) -> DictObj | None:
        """Those of an object of the project; of one that nobody saw made, those that were set on it since."""
        if isinstance(value, Unk) and value.oid is not None:
            overlay = state.heap.get(("overlay", value.oid))
            if isinstance(overlay, DictObj) and overlay.entries:
                return DictObj(overlay.entries, overlay.rest or replace(value, oid=None))
            return None
        obj = state.heap.get(value.oid) if isinstance(value, Ref) else None
        return self.dict_of(Ref(obj.attrs), state) if isinstance(obj, InstObj) else None

    def _object_layer(self, value: Abstract, state: State) -> Layer | None:
        """What a GenerationConfig, SamplingParams or dict object holds when it is used."""
        if isinstance(value, Const) and value.value is None:
            return None
        if isinstance(value, Unk) and value.name == "generation_config" and not self._own_field(value, state):
            # model.generation_config itself: the same as passing none.
            return None
        found = [self.dict_of(member, state) or self._attributes(member, state) for member in members(value)]
        if any(obj is None for obj in found):
            doubt = next(
                (m for m in members(value) if isinstance(m, Unk)), Unk(Reason.RUNTIME, "the settings object")
            )
            return Layer(LayerKind.OBJECT, {}, self._unknown(doubt))
        layers = [
            Layer(
                LayerKind.OBJECT,
                {k: self.to_value(v, state) for k, v in obj.entries.items() if isinstance(k, str)},
                self._unknown(obj.rest) if obj.rest is not None else None,
            )
            for obj in found
            if obj is not None
        ]
        return join_layers([(layer,) for layer in layers])[0]

    def _own_field(self, value: Unk, state: State) -> bool:
        """Whether `self.generation_config` belongs to an instance of the project, such as a trainer, whose base
        class sets it out of sight."""
        obj = state.heap.get(value.owner.oid) if isinstance(value.owner, Ref) else None
        return isinstance(obj, InstObj) and isinstance(obj.cls, Ref)

    def _live_checkpoint(self, callee: Abstract, state: State) -> Layer | None:
        """`model.generation_config`, as far as the code has changed it before the call."""
        owner = callee.owner if isinstance(callee, (Unk, Method)) else None
        oid = owner.oid if isinstance(owner, (Unk, Ref)) else None
        if oid is None:
            return None
        slot = ("attr", oid, "generation_config")
        for home in (("overlay", oid), self._attrs_of(owner, state)):
            attrs = state.heap.get(home)
            value = attrs.entries.get("generation_config") if isinstance(attrs, DictObj) else None
            if value is not None and (layer := self._object_layer(value, state)) is not None:
                return replace(layer, kind=LayerKind.CHECKPOINT)
        changed = state.heap.get(("overlay", slot))
        if not isinstance(changed, DictObj):
            return None
        values = {key: self.to_value(value, state) for key, value in changed.entries.items()}
        rest = self._unknown(changed.rest) if changed.rest is not None else None
        return Layer(LayerKind.CHECKPOINT, values, rest)

    def _attrs_of(self, owner: Abstract | None, state: State) -> Any:
        obj = state.heap.get(owner.oid) if isinstance(owner, Ref) else None
        return obj.attrs if isinstance(obj, InstObj) else None

    def holds_inputs(self, node: nodes.Expression) -> bool:  # type: ignore[override]
        """Whether an unknown `**splat` is visibly a model's inputs (a tokenizer's output), not settings: by the name
        of the variable, or of the function that makes it."""
        while isinstance(node, (nodes.Call, nodes.Attribute, nodes.Subscript)):
            if isinstance(node, nodes.Attribute):
                if node.attr not in TRANSPARENT:
                    return _names_inputs(node.attr)
                node = node.value
            elif isinstance(node, nodes.Call):
                node = node.func
            else:
                node = node.value
        if isinstance(node, nodes.DictComp) and isinstance(node.for_in.iter, nodes.Call):
            return self.holds_inputs(node.for_in.iter.func)
        return isinstance(node, nodes.Name) and _names_inputs(node.value)


def join_layers(alternatives: list[tuple[Layer, ...]]) -> tuple[Layer, ...]:
    """The layers where several visits of a site meet: name by name, unset where one of them leaves it unset."""
    if len(alternatives) == 1:
        return alternatives[0]
    kinds = list(dict.fromkeys(layer.kind for layers in alternatives for layer in layers))
    result = []
    for kind in sorted(kinds, key=[LayerKind.KWARGS, LayerKind.OBJECT, LayerKind.CHECKPOINT].index):
        group = [next((layer for layer in layers if layer.kind is kind), None) for layers in alternatives]
        present = [layer for layer in group if layer is not None]
        names = dict.fromkeys(name for layer in present for name in layer.values)
        values = {
            name: join(
                Absent() if layer is None else layer.values.get(name, layer.rest or Absent())
                for layer in group
            )
            for name in names
        }
        rest = next((layer.rest for layer in present if layer.rest is not None), None)
        result.append(Layer(kind, values, rest, present[0].place, present[0].version))
    return tuple(result)


def _names_inputs(name: str) -> bool:
    return bool(INPUTS.search(name.replace("_", " "))) and not SETTINGS_WORDS.search(name)


def _options(value: Value) -> tuple[Value, ...]:
    return value.values if isinstance(value, OneOf) else (value,)


def _may_be_absent(value: Value) -> bool:
    return any(isinstance(member, Absent) for member in _options(value))


def _distinct(values: list[Abstract]) -> list[Abstract]:
    found: list[Abstract] = []
    for value in values:
        if not any(
            value is other or (isinstance(value, Ref) and isinstance(other, Ref) and value.oid == other.oid)
            for other in found
        ):
            found.append(value)
    return found
