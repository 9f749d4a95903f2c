"""From a configuration of a framework to sites: what the rollouts are drawn with, and what holds the policy back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from klguard.engines import ENGINES
from klguard.engines.engine import Engine
from klguard.read.configs.framework import Framework
from klguard.read.configs.frameworks import framework_of, whole_vocabulary
from klguard.read.configs.launches import launches
from klguard.read.configs.shell import commands
from klguard.read.configs.written import Written, from_tree, left_alone
from klguard.read.files import SCRIPTS, Failure, read_bytes
from klguard.read.python.documents import MAX_DOCUMENT, items_of
from klguard.settings import (
    Context,
    Default,
    Known,
    Layer,
    LayerKind,
    OneOf,
    Place,
    Settings,
    Site,
    SiteKind,
    Value,
)

KINDS = {".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".json": "json"}
GENERATION_CONFIG = "generation_config.json"
TARGET = "_target_"
LOSS_FACTS = frozenset({"kl_term"})


def read_config(content: bytes, path: str, versions: Mapping[str, str]) -> list[Site]:
    """The sites in a file; none where it is no configuration of a known framework.

    versions   library -> version the engines are judged for.
    """
    try:
        text = content.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n")
    except UnicodeDecodeError:
        return []
    if len(content) > MAX_DOCUMENT:
        return []
    if path.rpartition("/")[2] == GENERATION_CONFIG:
        return [_checkpoint(written, versions) for written in _written(text, path)]
    return [site for written in _written(text, path) for site in _sites(written, versions)]


def read_launches(content: bytes, path: str, versions: Mapping[str, str]) -> list[Site]:
    """The sites in what a script or a notebook starts a framework with."""
    source = read_bytes(content, path)
    if isinstance(source, Failure):
        return []
    return [
        site for written in launches(source) if framework_of(written) for site in _sites(written, versions)
    ]


def _written(text: str, path: str) -> Iterator[Written]:
    if path.endswith(SCRIPTS):
        yield from commands(text, path)
        return
    item = items_of(text, next(kind for ending, kind in KINDS.items() if path.endswith(ending)), path)
    if item is not None and isinstance(item.value, dict):
        yield from_tree(item)


def _checkpoint(written: Written, versions: Mapping[str, str]) -> Site:
    """A checkpoint's own settings, which whoever samples from it takes for what is left alone."""
    owner, kind = ENGINES["transformers"], SiteKind.GENERATION_CONFIG
    given = {name: value for name, value in written.values.items() if name in owner.settings}
    layers = (Layer(LayerKind.OBJECT, given, place=written.place),)
    values = Engine.resolve(owner, layers, versions, kind=kind).values
    settings = Settings(owner.name, kind, values, layers, {}, {}, dict(versions), Context.ROLLOUT)
    return Site(written.place, GENERATION_CONFIG, settings, "it is the file of a checkpoint that was named")


def _sites(written: Written, versions: Mapping[str, str]) -> Iterator[Site]:
    framework = framework_of(written)
    if framework is None:
        yield from _instances(written, versions)
        return
    if framework.class_name:
        values = written.below(framework.section) if framework.section else written.values
        why = f"it is a configuration of GRPO in {framework.name}"
        yield _of_a_class(framework.class_name, values, written.place, why, versions)
        return
    loss = framework.wiring(written, _named(written, framework.loss))
    facts = {name: value for name, value in loss.items() if name in LOSS_FACTS}
    yield _rollout(framework, written, facts, versions)
    values = {name: value for name, value in loss.items() if name not in LOSS_FACTS}
    if values:
        yield _site(
            written.place, framework, SiteKind.TRAINER_CONFIG, framework.name, values, (), facts, versions
        )


def _instances(written: Written, versions: Mapping[str, str]) -> Iterator[Site]:
    """The configurations of trainers that Hydra makes of a file: their class stands under `_target_`."""
    for name, value in written.values.items():
        section, _, last = name.rpartition(".")
        if last != TARGET or not isinstance(value.value, str) or not value.hops:
            continue
        package, class_name = value.value.partition(".")[0], value.value.rpartition(".")[2]
        if package == "trl" and ENGINES["trl"].sites.get(class_name) is SiteKind.TRAINER_CONFIG:
            values = written.below(section) if section else written.values
            place = value.hops[0].place or written.place
            yield _of_a_class(value.value, values, place, f"it is made into a {class_name}", versions)


def _of_a_class(
    class_name: str, values: Mapping[str, Known], place: Place, why: str, versions: Mapping[str, str]
) -> Site:
    """The arguments of a trainer's configuration class of TRL, which a script fills from a file."""
    owner, kind = ENGINES["trl"], SiteKind.TRAINER_CONFIG
    given = {name: value for name, value in values.items() if name in owner.settings}
    layers = (Layer(LayerKind.KWARGS, given, place=place),)
    resolved = owner.resolve(layers, versions, kind=kind, class_name=class_name)
    settings = Settings(
        owner.name,
        kind,
        resolved.values,
        layers,
        {name: Known(value) for name, value in resolved.facts.items()},
        resolved.mitigations,
        dict(versions),
        Context.ROLLOUT,
        class_name,
    )
    return Site(place, class_name, settings, why)


def _rollout(
    framework: Framework, written: Written, facts: Mapping[str, Value], versions: Mapping[str, str]
) -> Site:
    """What the engine draws with, and for what nobody wrote, what the framework or the engine does."""
    engine = framework.engine(written)
    owner = ENGINES[engine]
    named = _named(written, framework.rollout)
    named |= {name: _perhaps(value, engine) for name, value in _named(written, framework.uncertain).items()}
    given = {
        name: value for name, value in framework.finish(written, named).items() if name in owner.settings
    }
    for name, value in framework.defaults(written).items():
        given.setdefault(name, left_alone(written, framework.rollout[name], value, framework.name))
    kind = SiteKind.GENERATION_CONFIG if engine == "transformers" else SiteKind.SAMPLING_PARAMS
    layers = (Layer(LayerKind.OBJECT, given, place=written.place),)
    values = Engine.resolve(owner, layers, versions, kind=kind).values
    places = [value.hops[0].place for value in given.values() if value.hops and value.hops[0].place]
    place = min(places, default=written.place)
    return _site(place, framework, kind, engine, values, layers, facts, versions)


def _perhaps(value: Known, engine: str) -> Value:
    """A value that some releases of the framework hand on, and others leave to the engine's default."""
    return OneOf((value, Default(None, engine)))


def _named(written: Written, names: Mapping[str, tuple[str, ...]]) -> dict[str, Value]:
    """What is written of these settings, under their own names."""
    found = {name: written.first(*written_as) for name, written_as in names.items()}
    return {
        name: value
        for name, value in found.items()
        if value is not None and not whole_vocabulary(name, value.value)
    }


def _site(
    place: Place,
    framework: Framework,
    kind: SiteKind,
    engine: str,
    values: Mapping[str, Value],
    layers: tuple[Layer, ...],
    facts: Mapping[str, Value],
    versions: Mapping[str, str],
) -> Site:
    settings = Settings(
        engine,
        kind,
        values,
        layers,
        facts,
        framework.mitigations,
        dict(versions),
        Context.ROLLOUT,
        framework.name,
    )
    return Site(place, framework.name, settings, f"it is a configuration of {framework.name}")
