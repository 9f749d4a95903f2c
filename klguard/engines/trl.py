"""TRL: the configurations of its on-policy trainers, and the generation that each builds from its own.

A trainer's class means different things in different releases, so it is described by families
(trl_families.py). Here is which family a site belongs to, and what is in force there: the configuration's
own fields, and the settings of the engine behind the trainer, transformers or vLLM, that they become.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from packaging.version import Version

from klguard.engines.engine import NOTHING, Engine, Resolved
from klguard.engines.layers import flatten, of_kind, verdict, walk, without
from klguard.engines.predicates import none, one_of, truthy
from klguard.engines.tables import During, Setting, during, shaping, table
from klguard.engines.transformers import MODES, PROCESSORS, TRANSFORMERS, WARPERS
from klguard.engines.trl_families import FAMILIES, Family
from klguard.engines.versions import version_of, within
from klguard.engines.vllm import VLLM
from klguard.settings import (
    Absent,
    Default,
    Known,
    Layer,
    LayerKind,
    Reason,
    SiteKind,
    Unknown,
    Value,
    join,
    members,
)

BECAME_ANOTHER = {"PPO": "0.12", "RLOO": "0.22"}
"""The first release in which the name means the second of its families."""
PPO_LEFT_THE_PACKAGE = ">=0.29"
"""Since then PPOConfig is only in trl.experimental.ppo: `from trl import PPOConfig` is older code."""
OVERRIDES_CHECKPOINT = ">=0.26.2"
"""Trainers generate under `_override_model_generation_config`: what they set beats the checkpoint."""

DIVIDES = "the trainer divides policy and reference logits by the same temperature"

OWN = {name for families in FAMILIES.values() for family in families for name in family.fields}
SAMPLING = {setting.name for setting in (*MODES, *WARPERS, *PROCESSORS)} | {"max_new_tokens"}
VLLM_SHAPING = shaping(VLLM.settings)
CONFIG = "trl.trainer.*_config"
SETTINGS = {
    **VLLM.settings,
    **TRANSFORMERS.settings,
    **table(*(Setting(name, source=CONFIG) for name in sorted(OWN - set(TRANSFORMERS.settings)))),
    **table(
        Setting("generation_kwargs", source=CONFIG),
        Setting("length_sampler", argument=True, source="PPOTrainer.generate"),
        Setting("txt_len", argument=True, source="trl.core.respond_to_batch"),
    ),
}

ON_POLICY_ORDER = ("policy", "ref_policy", "reward_model", "train_dataset")
GROUP_ORDER = (
    "model",
    "reward_funcs",
    "args",
    "train_dataset",
    "eval_dataset",
    "processing_class",
    "reward_processing_classes",
    "callbacks",
    "optimizers",
)
PAIR_ORDER = ("args", "data_collator", "train_dataset", "eval_dataset")
ONLINE_DPO_ORDER = (
    During("<0.12", ("model", "ref_model", "reward_model", "judge", *PAIR_ORDER, "tokenizer")),
    During("<0.23", ("model", "ref_model", "reward_model", "judge", *PAIR_ORDER, "processing_class")),
    During("<1.1", ("model", "ref_model", "reward_funcs", "judge", *PAIR_ORDER, "processing_class")),
    During("", ("model", "ref_model", "reward_funcs", *PAIR_ORDER, "processing_class")),
)
ORDERS = {
    "PPOTrainer": (
        During("<0.2", ("model", "ref_model", "tokenizer")),  # and the settings as further keywords
        During(">=0.12,<0.13", ("config", "processing_class", *ON_POLICY_ORDER, "value_model")),
        During(
            ">=0.13,<0.29",
            (
                "args",
                "processing_class",
                "model",
                "ref_model",
                "reward_model",
                "train_dataset",
                "value_model",
            ),
        ),
        During(
            "",
            (
                "config",
                "model",
                "ref_model",
                "tokenizer",
                "dataset",
                "optimizer",
                "data_collator",
                "num_shared_layers",
                "lr_scheduler",
            ),
        ),
    ),
    "PPOv2Trainer": ("config", "tokenizer", *ON_POLICY_ORDER, "value_model"),
    "RLOOTrainer": (
        During("<0.12", ("config", "tokenizer", *ON_POLICY_ORDER)),
        During("<0.22", ("config", "processing_class", *ON_POLICY_ORDER)),
        During("", GROUP_ORDER),
    ),
    "GRPOTrainer": GROUP_ORDER,
    "OnlineDPOTrainer": ONLINE_DPO_ORDER,
    "NashMDTrainer": ONLINE_DPO_ORDER,
    "XPOTrainer": ONLINE_DPO_ORDER,
    "generate": ("query_tensor", "length_sampler", "batch_size", "return_prompt", "generate_ref_response"),
    "respond_to_batch": ("model", "queries", "txt_len", "top_k", "top_p"),
}


class Trl(Engine):
    """TRL's trainers, and the two functions of classic TRL that sample."""

    def resolve(
        self,
        layers: Sequence[Layer],
        versions: Mapping[str, str],
        *,
        kind: SiteKind,
        class_name: str = "",
        facts: Mapping[str, Value] = NOTHING,
    ) -> Resolved:
        """What is in force: the trainer's configuration, what it hard-codes, and what both leave open."""
        if class_name.rpartition(".")[2] == "respond_to_batch":
            return respond_to_batch(layers)
        if kind is SiteKind.GENERATE:
            return TRANSFORMERS.resolve([sampled_length(x) for x in layers], versions, kind=kind)
        config = of_kind(layers, LayerKind.KWARGS, LayerKind.OBJECT)
        family = family_of(class_name, config, versions, facts)
        if family is None:
            return Resolved({})
        trainer = Trainer(family, family.nearest(version_of("trl", versions)), versions, config)
        return trainer.resolve(of_kind(layers, LayerKind.CHECKPOINT))

    def default(self, name: str, versions: Mapping[str, str]) -> Default:
        """A name alone has no default here: it depends on the trainer."""
        return Default(None, self.name)

    def neutral(self, versions: Mapping[str, str]) -> dict[str, Any]:
        """The keyword arguments of classic `PPOTrainer.generate`, which hands them to transformers."""
        return TRANSFORMERS.neutral(versions)

    def sampling(self, values: Mapping[str, Value], versions: Mapping[str, str] = NOTHING) -> bool | None:
        """As in the engine that generates: vLLM's values have no do_sample."""
        return (TRANSFORMERS if "do_sample" in values else VLLM).sampling(values, versions)

    def active(
        self, setting: str, values: Mapping[str, Value], versions: Mapping[str, str] = NOTHING
    ) -> bool | None:
        """As in the engine that generates."""
        return (TRANSFORMERS if "do_sample" in values else VLLM).active(setting, values, versions)


def family_of(
    class_name: str, config: Sequence[Layer], versions: Mapping[str, str], facts: Mapping[str, Value]
) -> Family | None:
    """Which meaning of the class is meant: what the code shows decides before the version does.

    Public code seldom pins versions, while `init_kl_coef` or a call of `.step` leave no doubt.
    """
    stem = class_name.rpartition(".")[2].removesuffix("Config").removesuffix("Trainer")
    families = FAMILIES.get(stem, ())
    if len(families) < 2:
        return families[0] if families else None
    older, newer = families
    if "experimental" in class_name:
        return newer
    if verdict(facts.get("classic"), truthy):
        return older
    names = {written for layer in config for written in layer.values}
    signs = len(names & older.evidence) - len(names & newer.evidence)
    if signs:
        return older if signs > 0 else newer
    version = version_of("trl", versions)
    gone = stem == "PPO" and within(version, PPO_LEFT_THE_PACKAGE)
    return older if gone or version < Version(BECAME_ANOTHER[stem]) else newer


@dataclass(frozen=True)
class Trainer:
    """One family in one release of TRL, with the layers of its configuration."""

    family: Family
    version: Version
    versions: Mapping[str, str]
    config: tuple[Layer, ...]

    def resolve(self, checkpoints: Sequence[Layer]) -> Resolved:
        """The configuration's own fields, and the generation settings they become."""
        facts = {"flavour": self.family.name}
        rows = {name: during(rows, self.version) for name, rows in self.family.fields.items()}
        own = {n: walk(n, self.config, Default(r.value, "trl", r.versions)) for n, r in rows.items() if r}
        if not self.family.generation:
            return Resolved(own, facts=facts)
        generated = self.generated(own, checkpoints)
        divides = self.family.divides is not None and within(self.version, self.family.divides)
        mitigations = {"temperature": DIVIDES} if divides else {}
        return Resolved({**own, **generated.values}, mitigations, {**generated.facts, **facts})

    def generated(self, own: Mapping[str, Value], checkpoints: Sequence[Layer]) -> Resolved:
        """What the engine behind the trainer makes of its settings; both answers where either may run."""
        vllm = verdict(own.get("use_vllm", Known(False)), truthy)
        if vllm:
            return self.with_vllm(own)
        here = self.with_transformers(own, checkpoints)
        if vllm is False:
            return here
        there = self.with_vllm(own).values
        names = dict.fromkeys((*here.values, *there))
        both = {n: join(values[n] for values in (here.values, there) if n in values) for n in names}
        return replace(here, values=both)

    def given(self, own: Mapping[str, Value]) -> Layer:
        """The settings handed to the engine: hard-coded ones, the configuration's, then generation_kwargs."""
        rows = {name: during(rows, self.version) for name, rows in self.family.fixed.items()}
        given: dict[str, Value] = {n: Default(r.value, "trl", r.versions) for n, r in rows.items() if r}
        given |= {setting: own[name] for name, setting in self.family.generation.items() if name in own}
        written = {name for layer in self.config for name in layer.values}
        for name in (written & SETTINGS.keys()) - OWN - given.keys():  # spread out by the reader already
            given[name] = walk(name, self.config, Absent())
        if not self.family.generation_kwargs:
            return Layer(LayerKind.OBJECT, given)
        extra = {"generation_kwargs": walk("generation_kwargs", self.config, Absent())}
        return flatten(Layer(LayerKind.OBJECT, {**given, **extra}), ("generation_kwargs",))

    def with_transformers(self, own: Mapping[str, Value], checkpoints: Sequence[Layer]) -> Resolved:
        """Generation through `model.generate(generation_config=...)`, which may fall back on the checkpoint.

        Continuous batching takes the trainer's GenerationConfig as it is.
        """
        layer = self.given(own)
        values = {n: v for n, v in layer.values.items() if n in TRANSFORMERS.settings}
        if self.family.drops_none is not None and within(self.version, self.family.drops_none):
            values = {name: without(value, none) for name, value in values.items()}
        before_five = within(version_of("transformers", self.versions), "<5")
        wins = before_five and within(self.version, OVERRIDES_CHECKPOINT)
        layer = replace(layer, values=values, kind=LayerKind.KWARGS if wins else LayerKind.OBJECT)
        batched = ("use_transformers_paged", "use_transformers_continuous_batching")
        alone = any(verdict(own.get(name), truthy) for name in batched)
        layers = [layer, *(() if alone else checkpoints)]
        resolved = TRANSFORMERS.resolve(layers, self.versions, kind=SiteKind.GENERATE)
        return replace(resolved, values={n: v for n, v in resolved.values.items() if n in SAMPLING})

    def with_vllm(self, own: Mapping[str, Value]) -> Resolved:
        """Generation through vLLM, which is given SamplingParams and asks no checkpoint.

        None and -1 both mean the whole vocabulary there; a top_k of either is told as 0.
        """
        layer = self.given(own)
        values = {"max_tokens" if n == "max_new_tokens" else n: v for n, v in layer.values.items()}
        if "top_k" in values:
            whole = one_of(None, -1)
            values["top_k"] = join(
                replace(m, value=0) if verdict(m, whole) else m for m in members(values["top_k"])
            )
        values = {name: without(v, none) for name, v in values.items() if name in VLLM.settings}
        resolved = VLLM.resolve([replace(layer, values=values)], self.versions, kind=SiteKind.SAMPLING_PARAMS)
        told = {n: v for n, v in resolved.values.items() if n in values or n in VLLM_SHAPING}
        return replace(resolved, values=told)


def sampled_length(layer: Layer) -> Layer:
    """`layer` with a `length_sampler` of PPOTrainer.generate turned into the max_new_tokens that it draws."""
    sampler = layer.values.get("length_sampler")
    if sampler is None or verdict(sampler, none):
        return layer
    drawn = Unknown(Reason.RUNTIME, "length_sampler()", sampler.hops)
    return replace(layer, values={**layer.values, "max_new_tokens": drawn})


def respond_to_batch(layers: Sequence[Layer]) -> Resolved:
    """`trl.core.respond_to_batch`: draws from the model's softmax, after top_k and top_p only."""
    library = {"do_sample": True, "top_k": 0, "top_p": 1.0}
    values = {name: walk(name, layers, Default(value, "trl")) for name, value in library.items()}
    return Resolved({**values, "max_new_tokens": walk("txt_len", layers, Default(20, "trl"))})


TRL = Trl(
    name="trl",
    packages=("trl",),
    sites={
        **{f"{stem}Config": SiteKind.TRAINER_CONFIG for stem in FAMILIES},
        **{f"{stem}Trainer": SiteKind.TRAINER for stem in FAMILIES},
        "generate": SiteKind.GENERATE,
        "respond_to_batch": SiteKind.GENERATE,
    },
    settings=SETTINGS,
    orders=ORDERS,
)
