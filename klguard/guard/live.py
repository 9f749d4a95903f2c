"""The third reader: live objects become Settings and Sites, judged by the same rules as source code.

What a call of generate() had in force is known for certain here: the merged GenerationConfig, the logits
processors that were built, the mode of the model. Who is to blame is worked out as the static reader does it,
from the arguments, the object, the checkpoint's generation config and the library's defaults; where that and
the live object differ, the live object is right. Tensors are never looked into.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from types import SimpleNamespace
from typing import Any

from packaging.version import Version
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from klguard.engines import ENGINES, NEWEST
from klguard.engines.precedence import NONE_MEANS_UNSET
from klguard.engines.predicates import HARMLESS_PROCESSORS
from klguard.engines.versions import version_of
from klguard.findings import Finding
from klguard.guard.caller import Spot, caller
from klguard.guard.plain import plain, same, text_of
from klguard.judge import judge
from klguard.rules import RULES
from klguard.settings import (
    Context,
    Default,
    Hop,
    HopKind,
    Known,
    Layer,
    LayerKind,
    Opaque,
    Place,
    Settings,
    Site,
    SiteKind,
    Value,
)

__all__ = ["Call", "caller", "dropout", "findings", "in_force", "read_generate", "read_object"]

TRANSFORMERS = ENGINES["transformers"]
FIELDS = frozenset(name for name, setting in TRANSFORMERS.settings.items() if not setting.argument)

BUILT_FROM_SETTINGS = " ".join(setting.source for setting in TRANSFORMERS.settings.values()).replace(",", " ")
"""Names of the classes that transformers builds from a field or argument, among other words."""

WHY = "read live: the tokens were scored by the policy"


# -- one call of generate() ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """The arguments of one call of generate(), by name.

    prompts  ids (B, P) that went in, the encoder's for an encoder-decoder; None where embeddings did.
    prompt_length  how many of the ids that come out are not new.
    facts    what the caller knows besides, by the names of `klguard.settings.FACTS`.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    prompts: Tensor | None = None
    attention_mask: Tensor | None = None
    batch_size: int = 1
    prompt_length: int = 1
    encoder_decoder: bool = False
    facts: Mapping[str, Value] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """What `model.generate(*args, **kwargs)` is given."""
        order = TRANSFORMERS.constructor_order("generate", _versions("transformers"))
        given = {**dict(zip(order, args, strict=False)), **kwargs}
        encoder_decoder = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
        ids = given.get("inputs") if given.get("inputs") is not None else given.get("input_ids")
        ids = ids if isinstance(ids, Tensor) and ids.dim() == 2 else None
        embeddings = given.get("inputs_embeds")
        source = ids if ids is not None else embeddings if isinstance(embeddings, Tensor) else None
        started = given.get("decoder_input_ids") if encoder_decoder else ids
        if isinstance(started, Tensor) and started.dim() == 2:
            length = started.shape[1]
        else:
            length = 0 if source is embeddings is not None and not encoder_decoder else 1
        mask = given.get("attention_mask")
        return cls(
            given,
            ids,
            mask if isinstance(mask, Tensor) and mask.dim() == 2 else None,
            source.shape[0] if source is not None else 1,
            length,
            encoder_decoder,
        )


def read_generate(
    model: nn.Module,
    config: Any,
    processors: Sequence[Any] | None,
    stopping_criteria: Sequence[Any] | None,
    *,
    place: Place,
    call: Call | None = None,
    spot: Spot | None = None,
) -> Site:
    """What is in force in one call of `model.generate()`.

    config       the GenerationConfig after transformers merged everything; None where that was not seen, then
                 what klguard's tables say comes of the arguments.
    processors   the logits processors that were built, None where not seen.
    stopping_criteria   likewise; they stop rows, which bends nothing, and are named among the values only.
    call         the arguments, from which the origin of every value is told.
    """
    call = call or Call()
    where = spot or Spot(place)
    versions = _versions("transformers")
    layers = _layers(model, call, place, where.call, versions)
    resolved = TRANSFORMERS.resolve(layers, versions, kind=SiteKind.GENERATE)
    now = Hop(HopKind.LIVE, place, f"in force in {where.call}() at {place.path}:{place.line}")
    values = {name: _in_force(name, value, config, now) for name, value in resolved.values.items()}
    if processors is not None:
        values["logits_processor"] = _processors(processors, call, now)
    if stopping_criteria:
        values["stopping_criteria"] = Known(plain(list(stopping_criteria)), (now,))
    facts = {**_facts(model, call, now), **call.facts}
    facts |= {name: Known(found) for name, found in resolved.facts.items()}
    settings = Settings(
        "transformers",
        SiteKind.GENERATE,
        values,
        layers,
        facts,
        versions=versions,
        context=Context.ROLLOUT,
    )
    return Site(place, where.call, settings, WHY, where.enclosing)


def _layers(
    model: nn.Module, call: Call, place: Place, text: str, versions: Mapping[str, str]
) -> tuple[Layer, ...]:
    """What was passed, what the object holds, what the model's own generation config holds."""
    passed = (Hop(HopKind.KWARG, place, f"passed to {text}()"),)
    arguments = {
        name: Known(plain(value), passed)
        for name, value in call.arguments.items()
        if name in TRANSFORMERS.settings and name != "generation_config" and not isinstance(value, Tensor)
    }
    layers = [Layer(LayerKind.KWARGS, arguments, place=place)]
    given = call.arguments.get("generation_config")
    if given is not None:
        hops = (Hop(HopKind.ATTRIBUTE, place, f"a field of the generation_config passed to {text}()"),)
        layers.append(Layer(LayerKind.OBJECT, _fields(given, hops, versions), place=place))
    own = getattr(model, "generation_config", None)
    name = getattr(getattr(model, "config", None), "name_or_path", "")
    hops = (Hop(HopKind.CHECKPOINT, None, f"generation config of {name or 'the model'}"),)
    saved = str(getattr(own, "transformers_version", "") or "")
    layers.append(Layer(LayerKind.CHECKPOINT, _fields(own, hops, versions), version=saved))
    return tuple(layers)


def _fields(config: Any, hops: tuple[Hop, ...], versions: Mapping[str, str]) -> dict[str, Value]:
    """The fields of a GenerationConfig that somebody filled in, as far as that shows.

    Since 5.0 a field nobody filled in is None; before, it holds the library's default.
    """
    before_5 = version_of("transformers", versions) < NONE_MEANS_UNSET
    found: dict[str, Value] = {}
    for name, value in getattr(config, "__dict__", {}).items():
        if name not in FIELDS or value is None or name.startswith("_") or name == "transformers_version":
            continue
        if not (before_5 and same(value, TRANSFORMERS.default(name, versions).value)):
            found[name] = Known(plain(value), hops)
    return found


_MISSING = object()


def _in_force(name: str, predicted: Value, config: Any, now: Hop) -> Value:
    """The value of one setting: the live object's, with the origin of the predicted one where both agree."""
    real = getattr(config, name, _MISSING) if config is not None and name in FIELDS else _MISSING
    certain = isinstance(predicted, Known | Default)
    if real is _MISSING or (certain and same(plain(real), predicted.value)):
        return replace(predicted, hops=(*predicted.hops, now))
    return Known(plain(real), (now,))


def _processors(built: Sequence[Any], call: Call, now: Hop) -> Value:
    """The logits processors that no setting explains: those the caller made, and those a model adds itself."""
    given = call.arguments.get("logits_processor")
    given = list(given) if isinstance(given, Iterable) else []
    unexplained = [p for p in built if any(p is own for own in given) or not _explained(p, call)]
    if not unexplained:
        return Default(None, "transformers", hops=(now,))
    text = f"[{', '.join(map(text_of, unexplained))}]"
    passed = (Hop(HopKind.KWARG, now.place, "passed as logits_processor"),) if given else ()
    return Known(Opaque(text), (*passed, now))


def _explained(processor: Any, call: Call) -> bool:
    """Whether transformers builds such a processor from a setting, which then speaks for it."""
    name = type(processor).__name__
    if name in HARMLESS_PROCESSORS or "Watermark" in name:
        return True
    return type(processor).__module__.startswith("transformers.") and name in BUILT_FROM_SETTINGS.split()


def _facts(model: nn.Module, call: Call, now: Hop) -> dict[str, Value]:
    """What else is known of the call, from sizes and modes."""
    largest = dropout(model)
    training = bool(model.training) or largest > 0
    masked = call.arguments.get("attention_mask") is not None
    facts: dict[str, tuple[Any, str]] = {
        "train_mode": (training, f"the model generates in {'train' if training else 'eval'} mode"),
        "dropout": (largest, f"the largest dropout probability in use is {largest:g}"),
        "checkpointing": (checkpoints(model), "gradient checkpointing, as generate() had it"),
        "encoder_decoder": (call.encoder_decoder, "says the configuration of the model"),
        "batched": (call.batch_size > 1, f"prompts that go in at once: {call.batch_size}"),
        "attention_mask": (masked, f"an attention_mask is {'' if masked else 'not '}passed"),
    }
    checkpoint = getattr(getattr(model, "config", None), "name_or_path", "")
    if isinstance(checkpoint, str) and checkpoint:
        facts["checkpoint"] = (checkpoint, "says the configuration of the model")
    return {name: Known(value, (replace(now, text=text),)) for name, (value, text) in facts.items()}


def checkpoints(model: nn.Module) -> bool:
    """Whether gradient checkpointing is switched on in `model` now."""
    switched = getattr(model, "is_activation_checkpointing", None)
    if switched is None:  # its name before transformers 5, which warns of it now
        switched = getattr(model, "is_gradient_checkpointing", False)
    return bool(switched)


def dropout(model: nn.Module) -> float:
    """The largest dropout probability that a forward pass of `model` would use now, 0.0 where it drops nothing.

    Dropout modules count in training mode only; so do numbers such as `attention_dropout` or `layerdrop`, which
    modules of transformers hand to a function together with their own mode.
    """
    return max(
        (p for module in model.modules() if module.training for p in _probabilities(module)), default=0.0
    )


def _probabilities(module: nn.Module) -> Iterator[float]:
    if isinstance(module, _DropoutNd):
        yield float(module.p)
    for name, value in vars(module).items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and ("dropout" in name or "layerdrop" in name) and 0 < value <= 1:
            yield float(value)


def in_force(site: Site) -> SimpleNamespace:
    """The certain values of a site, as attributes; what is not plain data is None."""
    certain = {n: v.value for n, v in site.settings.values.items() if isinstance(v, Known | Default)}
    return SimpleNamespace(**{n: None if isinstance(v, Opaque) else v for n, v in certain.items()})


# -- objects --------------------------------------------------------------------------------------------------------


SAMPLERS = ("transformers", "vllm", "sglang")
ACCEPTED = (
    "klguard reads a GenerationConfig of transformers, a SamplingParams of vLLM or SGLang, or a dict of their "
    "settings"
)


def read_object(settings_object: Any, *, place: Place, engine: str | None = None) -> Site:
    """What a live settings object says.

    settings_object  transformers' GenerationConfig, vLLM's or SGLang's SamplingParams, known by the name of its
                     class, or a dict of such settings.
    engine           "transformers", "vllm" or "sglang", where the object does not show whose it is.

    TypeError for anything else; ValueError for a dict that fits several engines.
    """
    given = _attributes(settings_object)
    name = engine or _engine_of(settings_object, given)
    if name not in SAMPLERS:
        raise ValueError(f"engine={name!r} has no settings object; write one of {', '.join(SAMPLERS)}")
    owner = ENGINES[name]
    versions = _versions(name)
    kind = SiteKind.GENERATION_CONFIG if name == "transformers" else SiteKind.SAMPLING_PARAMS
    title = "GenerationConfig" if name == "transformers" else "SamplingParams"
    now = Hop(HopKind.LIVE, place, f"in the {title} in force at {place.path}:{place.line}")
    if isinstance(settings_object, Mapping):
        written = {key: Known(plain(value), (now,)) for key, value in given.items()}
    elif name == "transformers":
        written = _fields(settings_object, (now,), versions)
    else:
        written = {
            key: Known(plain(value), (now,))
            for key, value in given.items()
            if key in owner.settings and not same(plain(value), owner.default(key, versions).value)
        }
    layers = (Layer(LayerKind.OBJECT, written, place=place),)
    resolved = owner.resolve(layers, versions, kind=kind, class_name=f"{name}.{title}")
    settings = Settings(
        name,
        kind,
        resolved.values,
        layers,
        {key: Known(value) for key, value in resolved.facts.items()},
        resolved.mitigations,
        versions,
        Context.ROLLOUT,
        f"{name}.{title}",
    )
    return Site(place, title, settings, "read live: the settings the rollout is drawn with")


def _attributes(settings_object: Any) -> dict[str, Any]:
    """The fields of an object: of a dict, an ordinary object, or a msgspec struct."""
    if isinstance(settings_object, Mapping):
        return {str(key): value for key, value in settings_object.items()}
    names = getattr(type(settings_object), "__struct_fields__", None) or getattr(
        settings_object, "__dict__", ()
    )
    return {name: getattr(settings_object, name) for name in names if not name.startswith("_")}


def _engine_of(settings_object: Any, given: Mapping[str, Any]) -> str:
    """Whose settings they are: by package and class, by the class alone, for a dict by its keys."""
    if isinstance(settings_object, Mapping):
        return _engine_of_keys(given)
    classes = [(kind.__module__.partition(".")[0], kind.__name__) for kind in type(settings_object).__mro__]
    for package, name in classes:
        if package in SAMPLERS and name in ENGINES[package].sites:
            return package
    names = {name for _, name in classes}
    if "GenerationConfig" in names:
        return "transformers"
    if "SamplingParams" in names:
        return "vllm" if "max_tokens" in given else "sglang"
    raise TypeError(f"{type(settings_object).__name__} is no settings object that klguard knows: {ACCEPTED}")


def _engine_of_keys(given: Mapping[str, Any]) -> str:
    fits = [name for name in SAMPLERS if given and given.keys() <= ENGINES[name].settings.keys()]
    if "do_sample" in given:
        return "transformers"
    if len(fits) == 1:
        return fits[0]
    if not fits:
        raise TypeError(f"a dict with the keys {', '.join(given) or '(none)'} fits no engine: {ACCEPTED}")
    raise ValueError(
        f"a dict with the keys {', '.join(given)} fits {' and '.join(fits)}: say which with "
        f'`engine="{fits[0]}"`'
    )


def _versions(*libraries: str) -> dict[str, str]:
    """Library -> version: of the imported module, else the installed one, else the newest that is known."""
    return {library: _version(library) for library in libraries}


def _version(library: str) -> str:
    found = getattr(sys.modules.get(library), "__version__", None)
    if isinstance(found, str):
        return found
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return str(Version(NEWEST[library]))


# -- judgement ------------------------------------------------------------------------------------------------------


def findings(site: Site, ignore: Iterable[str] = ()) -> list[Finding]:
    """What the rules about settings say of a site; `ignore` holds codes (`KLG101`) or names (`top-k`)."""
    ignored = {word.strip().lower() for word in ignore}
    rules = [r for r in RULES.values() if r.code.lower() not in ignored and r.name not in ignored]
    return sorted(judge([site], rules), key=lambda finding: finding.sort_key)
