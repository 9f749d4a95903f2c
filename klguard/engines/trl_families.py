"""What each of TRL's on-policy trainers listens to, release by release.

Defaults were read from the tags v0.2.0 to v1.9.0 and the releases 1.10 to 1.16 (`*_config.py`); what is
hard-coded, from the GenerationConfig and SamplingParams that the trainers build (`*_trainer.py`).
`benchmarks/oracle_trl.py` compares the defaults with the sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from packaging.version import Version

from klguard.engines.tables import During

Rows = tuple[During, ...]


@dataclass(frozen=True)
class Family:
    """One meaning of a trainer's configuration.

    first, last        the releases that have it.
    fields             the configuration's own fields -> default by version; without a row it is not there.
    generation         field of the configuration -> setting of the engine that it becomes; empty where the
                       trainer leaves generation to its user.
    fixed              settings that the trainer hard-codes, by version.
    divides            releases whose trainer divides the logits by the temperature before it takes log-probs.
    drops_none         releases whose trainer leaves None out of the GenerationConfig.
    generation_kwargs  whether the configuration has a dict of further settings, which overrides its fields.
    evidence           names of fields and arguments that the other family of the class does not have.
    """

    name: str
    first: str
    last: str
    fields: Mapping[str, Rows]
    generation: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Rows] = field(default_factory=dict)
    divides: str | None = None
    drops_none: str | None = None
    generation_kwargs: bool = False
    evidence: frozenset[str] = frozenset()

    def nearest(self, version: Version) -> Version:
        """`version`, moved to the releases that have the family: evidence outweighs a guessed version."""
        return min(max(version, Version(self.first)), Version(self.last))


def ever(value: Any) -> Rows:
    """A default that never changed."""
    return (During("", value),)


def since(version: str, value: Any) -> Rows:
    """A field that came with `version` and kept its default."""
    return (During(f">={version}", value),)


def words(text: str) -> frozenset[str]:
    """The words of `text`."""
    return frozenset(text.split())


PPO_CLASSIC = Family(
    "ppo-classic",
    "0.2.0",
    "0.11.4",
    fields={
        "init_kl_coef": ever(0.2),
        "adap_kl_ctrl": ever(True),
        "target": ever(6.0),
        "horizon": ever(10000.0),
        "kl_penalty": ever("kl"),
        "ppo_epochs": ever(4),
        "cliprange": ever(0.2),
        "early_stopping": ever(False),
        "target_kl": (During("<0.7.2", 0.1), During("", 1.0)),
        "ratio_threshold": ever(10.0),
        "whiten_rewards": ever(False),
    },
    evidence=words(
        "model_name steps adap_kl_ctrl init_kl_coef target horizon forward_batch_size ppo_epochs log_with "
        "tracker_kwargs accelerator_kwargs tracker_project_name optimize_cuda_cache optimize_device_cache "
        "early_stopping target_kl push_to_hub_if_best_kwargs compare_steps task_name project_kwargs "
        "kl_penalty ratio_threshold backward_batch_size use_score_scaling use_score_norm score_clip "
        "query_dataset is_encoder_decoder is_peft_model config tokenizer dataset num_shared_layers"
    ),
)

ON_POLICY_FIXED = {"do_sample": ever(True), "top_k": ever(0.0), "top_p": ever(1.0)}
ON_POLICY_FIELDS = {
    "kl_coef": ever(0.05),
    "temperature": ever(0.7),
    "response_length": ever(53),
    "stop_token": ever(None),
    "missing_eos_penalty": since("0.11", None),
    "num_ppo_epochs": ever(4),
    "cliprange": ever(0.2),
    "whiten_rewards": ever(False),
}
ON_POLICY_GENERATION = {"temperature": "temperature", "response_length": "max_new_tokens"}

PPO_V2 = Family(
    "ppo-v2",
    "0.9.3",
    "1.12.0",
    fields={**ON_POLICY_FIELDS, "kl_estimator": since("0.17", "k1")},
    generation=ON_POLICY_GENERATION,
    fixed=ON_POLICY_FIXED,
    divides="",
    evidence=words(
        "num_ppo_epochs kl_coef kl_estimator reward_model_path sft_model_path response_length stop_token "
        "stop_token_id temperature missing_eos_penalty non_eos_penalty penalty_reward_value "
        "total_episodes num_mini_batches local_rollout_forward_batch_size num_sample_generations "
        "per_device_train_batch_size output_dir num_train_epochs logging_steps save_steps bf16 fp16 "
        "report_to eval_strategy run_name model_adapter_name ref_adapter_name ds3_gather_for_generation "
        "args processing_class policy ref_policy value_model train_dataset"
    ),
)

RLOO_OLD = Family(
    "rloo-old",
    "0.9.3",
    "0.21.0",
    fields={**ON_POLICY_FIELDS, "rloo_k": ever(2), "token_level_kl": since("0.14", False)},
    generation=ON_POLICY_GENERATION,
    fixed=ON_POLICY_FIXED,
    divides="",
    evidence=words(
        "rloo_k kl_coef response_length num_ppo_epochs total_episodes num_mini_batches sft_model_path "
        "reward_model_path local_rollout_forward_batch_size num_sample_generations token_level_kl config "
        "policy ref_policy reward_model"
    ),
)

SHARED = {name: name for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")}
GUIDED = {
    "vllm_guided_decoding_regex": "guided_decoding",
    "vllm_structured_outputs_regex": "structured_outputs",
}

GROUP_FIELDS = {
    "top_p": since("0.16", 1.0),
    "min_p": since("0.16", None),
    "repetition_penalty": since("0.16", 1.0),
    "max_completion_length": (During("<1.10", 256), During("", 512)),
    "num_iterations": since("0.16", 1),
    "disable_dropout": since("0.17", False),
    "use_vllm": ever(False),
    "use_transformers_paged": since("0.20", False),
    "use_transformers_continuous_batching": since("1.7", False),
    "sync_ref_model": since("0.15", False),
    "vllm_guided_decoding_regex": (During(">=0.16,<0.28", None),),
    "vllm_structured_outputs_regex": since("0.27", None),
}
GROUP_GENERATION = {**SHARED, **GUIDED, "max_completion_length": "max_new_tokens"}

GRPO = Family(
    "grpo",
    "0.14.0",
    "1.16.0",
    fields={
        "temperature": (During("<0.18", 0.9), During("", 1.0)),
        "top_k": (During(">=0.16,<0.18", 50), During(">=0.18,<0.27", None), During(">=0.27", 0)),
        **GROUP_FIELDS,
        "beta": (During("<0.19", 0.04), During("", 0.0)),
        "loss_type": (During(">=0.17,<0.22", "bnpo"), During(">=0.22", "dapo")),
        "vllm_importance_sampling_correction": since("0.23", True),
        "use_bias_correction_kl": (During(">=0.26,<1.10", False), During(">=1.10", True)),
    },
    generation=GROUP_GENERATION,
    fixed={"do_sample": ever(True)},
    divides=">=0.16",
    generation_kwargs=True,
)

RLOO = Family(
    "rloo",
    "0.22.0",
    "1.16.0",
    fields={
        "temperature": ever(1.0),
        "top_k": (During("<0.27", None), During("", 0)),
        **GROUP_FIELDS,
        "beta": ever(0.05),
        "normalize_advantages": ever(False),
        "reward_clip_range": ever(None),
    },
    generation=GROUP_GENERATION,
    fixed={"do_sample": ever(True)},
    divides="",
    generation_kwargs=True,
    evidence=words(
        "beta num_generations max_completion_length max_prompt_length num_iterations epsilon top_k top_p "
        "min_p repetition_penalty generation_kwargs use_vllm normalize_advantages reward_funcs args"
    ),
)

ONLINE_DPO_FIELDS = {
    "temperature": ever(0.9),
    "top_k": (During(">=0.23,<0.27", None), During(">=0.27", 0)),
    "top_p": since("0.23", 1.0),
    "min_p": since("0.23", None),
    "repetition_penalty": since("0.23", 1.0),
    "max_new_tokens": (During("<0.11", 53), During("", 64)),
    "beta": ever(0.1),  # a list of one since 0.11.1, which the trainer unpacks
    "loss_type": ever("sigmoid"),
    "disable_dropout": since("0.11", True),
    "use_vllm": since("0.14", False),
    "use_transformers_paged": (During(">=0.23,<1.2", False),),
    "vllm_guided_decoding_regex": (During(">=0.23,<0.27", None),),
    "vllm_structured_outputs_regex": since("0.27", None),
}

ONLINE_DPO = Family(
    "online-dpo",
    "0.10.1",
    "1.16.0",
    fields=ONLINE_DPO_FIELDS,
    generation={**SHARED, **GUIDED, "max_new_tokens": "max_new_tokens"},
    fixed={
        "do_sample": ever(True),
        "top_k": (During("<0.14", 0.0), During("<0.23", 50)),
        "top_p": (During("<0.23", 1.0),),
    },
    drops_none=">=0.23",
    generation_kwargs=True,
)
NASH_MD = replace(
    ONLINE_DPO,
    name="nash-md",
    first="0.11.0",
    last="1.13.0",
    fields={**ONLINE_DPO_FIELDS, "mixture_coef": ever(0.5)},
)
XPO = replace(
    ONLINE_DPO,
    name="xpo",
    first="0.11.0",
    last="1.13.0",
    fields={**ONLINE_DPO_FIELDS, "alpha": ever(1e-5)},
)

FAMILIES: dict[str, tuple[Family, ...]] = {
    "PPO": (PPO_CLASSIC, PPO_V2),
    "PPOv2": (PPO_V2,),
    "RLOO": (RLOO_OLD, RLOO),
    "GRPO": (GRPO,),
    "OnlineDPO": (ONLINE_DPO,),
    "NashMD": (NASH_MD,),
    "XPO": (XPO,),
}
"""Stem of the class names (`PPOConfig`, `PPOTrainer`) -> what it has meant, oldest first."""
