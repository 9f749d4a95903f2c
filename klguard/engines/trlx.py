"""trlx: PPOConfig and TRLConfig, whose `gen_kwargs` reach transformers' generate() as keyword arguments.

Read from v0.3 to v0.7.0: `trainer/accelerate_ppo_trainer.py` (what it presets),
`accelerate_base_trainer.py` (`generate` takes gen_experience_kwargs in place of gen_kwargs where they are
given), `models/modeling_ppo.py` (`PPOConfig`) and `data/default_configs.py` (`default_ppo_config`).
Log-probs are never divided by a temperature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from klguard.engines.engine import NOTHING, Engine, Resolved
from klguard.engines.layers import flatten, of_kind, verdict, walk
from klguard.engines.predicates import falsy
from klguard.engines.tables import During, Setting, during, table
from klguard.engines.transformers import TRANSFORMERS
from klguard.engines.versions import version_of
from klguard.settings import Absent, Default, Layer, LayerKind, Reason, SiteKind, Unknown, Value, members

FIELDS = table(
    Setting("init_kl_coef", 0.001, source="default_ppo_config"),
    Setting("target", None, source="default_ppo_config"),
    Setting("horizon", 10000, source="default_ppo_config"),
    Setting("ppo_epochs", 4, source="default_ppo_config"),
    Setting("cliprange", 0.2, source="default_ppo_config"),
)
CARRIERS = table(
    Setting("gen_kwargs", shown=False, source="PPOConfig"),
    Setting("gen_experience_kwargs", shown=False, source="PPOConfig"),
    Setting("method", shown=False, source="TRLConfig"),
)

SPECIAL_TOKENS = {n: Unknown(Reason.RUNTIME, f"tokenizer.{n}") for n in ("eos_token_id", "pad_token_id")}
PRESETS = {"do_sample": (During(">=0.7", True),)}
"""AcceleratePPOTrainer.__init__: `generate_kwargs`; before 0.7 only the special tokens were preset."""
DEFAULT_GEN_KWARGS = {"max_new_tokens": 40, "top_k": 0, "top_p": 1.0, "do_sample": True}
"""`default_ppo_config().method.gen_kwargs`."""


class Trlx(Engine):
    """trlx's PPO, over transformers."""

    def resolve(
        self,
        layers: Sequence[Layer],
        versions: Mapping[str, str],
        *,
        kind: SiteKind,
        class_name: str = "",
        facts: Mapping[str, Value] = NOTHING,
    ) -> Resolved:
        """What is in force for the rollout: its gen_kwargs, over what the trainer presets."""
        if kind is SiteKind.GENERATE:
            return TRANSFORMERS.resolve(layers, versions, kind=kind)
        config = [rollout(x) for x in of_kind(layers, LayerKind.KWARGS, LayerKind.OBJECT)]
        library = self.library(config, class_name, versions)
        written = {name for layer in config for name in layer.values if name in TRANSFORMERS.settings}
        given = {name: walk(name, config, library.get(name, Absent())) for name in {*library, *written}}
        rest = next((layer.rest for layer in config if layer.rest is not None), None)
        generate = [Layer(LayerKind.KWARGS, given, rest), *of_kind(layers, LayerKind.CHECKPOINT)]
        resolved = TRANSFORMERS.resolve(generate, versions, kind=SiteKind.GENERATE)
        own = {name: walk(name, config, self.default(name, versions)) for name in FIELDS}
        return replace(resolved, values={**resolved.values, **own})

    def library(
        self, config: Sequence[Layer], class_name: str, versions: Mapping[str, str]
    ) -> dict[str, Value]:
        """What trlx itself passes on: its trainer's presets; without a config, default_ppo_config()."""
        if class_name.endswith("train") and not config:
            defaults = {name: Default(value, self.name) for name, value in DEFAULT_GEN_KWARGS.items()}
            return {**SPECIAL_TOKENS, **defaults}
        rows = {name: during(rows, version_of(self.name, versions)) for name, rows in PRESETS.items()}
        presets = {name: Default(row.value, self.name, row.versions) for name, row in rows.items() if row}
        return {**SPECIAL_TOKENS, **presets}

    def default(self, name: str, versions: Mapping[str, str]) -> Default:
        """The default of trlx's own fields; the others are transformers'."""
        return super().default(name, versions) if name in FIELDS else TRANSFORMERS.default(name, versions)

    def neutral(self, versions: Mapping[str, str]) -> dict[str, Any]:
        """The neutral gen_kwargs."""
        return TRANSFORMERS.neutral(versions)

    def sampling(self, values: Mapping[str, Value], versions: Mapping[str, str] = NOTHING) -> bool | None:
        """As in transformers."""
        return TRANSFORMERS.sampling(values, versions)

    def active(
        self, setting: str, values: Mapping[str, Value], versions: Mapping[str, str] = NOTHING
    ) -> bool | None:
        """As in transformers."""
        return TRANSFORMERS.active(setting, values, versions)


def rollout(layer: Layer) -> Layer:
    """`layer` with the keyword arguments of the rollout spread out: gen_experience_kwargs, or gen_kwargs."""
    layer = flatten(layer, ("method",))
    experience = layer.values.get("gen_experience_kwargs", Absent())
    if not any(isinstance(m, Absent) or verdict(m, falsy) for m in members(experience)):
        layer = replace(layer, values={n: v for n, v in layer.values.items() if n != "gen_kwargs"})
    return flatten(layer, ("gen_kwargs", "gen_experience_kwargs"))


TRLX = Trlx(
    name="trlx",
    packages=("trlx",),
    sites={
        "PPOConfig": SiteKind.TRAINER_CONFIG,
        "TRLConfig": SiteKind.TRAINER_CONFIG,
        "train": SiteKind.TRAINER,
        "generate": SiteKind.GENERATE,
    },
    settings={**TRANSFORMERS.settings, **FIELDS, **CARRIERS},
    orders={"train": ("model_path", "reward_fn", "dataset", "samples", "rewards", "prompts", "eval_prompts")},
)
