"""Frameworks that are configured by the options of their launchers, some in YAML as well."""

from __future__ import annotations

from klguard.read.configs.framework import Framework, same
from klguard.read.configs.frameworks.common import (
    FILTERS,
    divides,
    is_true,
    runs,
    with_group,
    without_kl,
    without_loss,
)
from klguard.read.configs.written import Written, left_alone, renamed
from klguard.settings import Known, Value


def _openrlhf_loss(written: Written, values: dict[str, Value]) -> dict[str, Value]:
    found = dict(values)
    if is_true(written, "use_kl_loss") or is_true(written, "algo.kl.use_loss"):
        switch = written.first("use_kl_loss", "algo.kl.use_loss")
        form = found.pop("kl_estimator", None)
        if form is not None or switch is not None:
            found["kl_loss_type"] = form or renamed(switch, "k1")  # the default
    for estimator, size in (
        ("advantage_estimator", "n_samples_per_prompt"),
        ("algo.advantage.estimator", "rollout.n_samples_per_prompt"),
    ):
        found = with_group(written, found, estimator, size)
    return without_kl(found, written.get("init_kl_coef") == 0 or written.get("algo.kl.init_coef") == 0)


OPENRLHF = Framework(
    "OpenRLHF",
    (b"train_ppo",),
    lambda written: runs(written, "train_ppo"),
    rollout={"temperature": ("rollout.temperature", "temperature"), "top_p": ("rollout.top_p", "top_p")},
    loss={
        "kl_coef": ("algo.kl.init_coef", "init_kl_coef"),
        "target": ("algo.kl.target", "kl_target"),
        "kl_estimator": ("algo.kl.estimator", "kl_estimator"),
    },
    wiring=_openrlhf_loss,
    mitigations=divides("OpenRLHF, since 0.6.2,"),
)


_SLIME_GROUPS = frozenset({"grpo", "gspo", "cispo"})
"""Estimators of slime, the first its default, that make the advantage of the bare reward (`get_grpo_returns`)."""


_MEGATRON_DROPOUT = 0.1
"""`--attention-dropout` and `--hidden-dropout` of Megatron where they are left alone."""


def _slime_loss(written: Written, values: dict[str, Value]) -> dict[str, Value]:
    found = dict(values)
    if written.get("train_backend") in (None, "megatron") and not written.get("debug_rollout_only"):
        for name in ("hidden_dropout", "attention_dropout"):
            left = left_alone(written, (name,), _MEGATRON_DROPOUT, "Megatron")
            found[name] = written.first(name) or left
    in_loss, in_reward = written.first("use_kl_loss"), written.first("kl_coef")
    grouped = str(written.get("advantage_estimator") or "grpo").lower() in _SLIME_GROUPS
    off = (
        not is_true(written, "use_kl_loss")
        or not written.has("kl_loss_coef")
        or written.get("kl_loss_coef") == 0
    )
    found = without_loss(found, off)
    if in_reward is not None and written.get("kl_coef"):
        if grouped and not written.has("custom_advantage_function_path"):
            found["kl_ignored"] = renamed(in_reward, True)
        elif in_loss is not None and not off:
            found["kl_in_both"] = renamed(in_loss, True)
    if written.has(
        "custom_generate_function_path", "custom_reward_post_process_path", "rollout_function_path"
    ):
        return found  # what a group is, is theirs to say
    return with_group(written, found, "advantage_estimator", "n_samples_per_prompt")


SLIME = Framework(
    "slime",
    (b"rollout-batch-size", b"rollout_batch_size"),
    lambda written: (
        written.has("rollout_batch_size")
        and written.has(
            "rollout_num_gpus",
            "num_rollout",
            "hf_checkpoint",
            "n_samples_per_prompt",
            "rollout_max_response_len",
        )
        and not written.has("init_kl_coef", "pretrain", "reward_pretrain")
    ),
    lambda written: "sglang",
    rollout={name: (f"rollout_{name}",) for name in FILTERS},
    loss={"kl_coef": ("kl_coef",), "kl_loss_type": ("kl_loss_type",)},
    wiring=_slime_loss,
    mitigations={
        **divides("slime"),
        "top_p": "slime, in its releases since 2026, takes the trainer's log-probs over the same nucleus",
    },
)

_OPEN_INSTRUCT_KL = {0: "k1", "kl1": "k1", 1: "k2", "kl2": "k2", 2: "k3", "kl3": "k3"}


def _open_instruct_loss(written: Written, values: dict[str, Value]) -> dict[str, Value]:
    found = dict(values)
    form = found.pop("kl_loss_type", None)
    if isinstance(form, Known) and form.value in _OPEN_INSTRUCT_KL and written.get("beta") != 0:
        found["kl_loss_type"] = renamed(form, _OPEN_INSTRUCT_KL[form.value])
    return without_kl(found, written.get("beta") == 0)


OPEN_INSTRUCT = Framework(
    "open-instruct",
    (b"grpo_fast", b"grpo_vllm", b"open_instruct/grpo", b"open_instruct/ppo"),
    lambda written: runs(written, "grpo_fast", "grpo_vllm_thread", "open_instruct/grpo", "open_instruct/ppo"),
    rollout={"temperature": ("temperature",), "top_p": ("vllm_top_p",)},
    loss={"beta": ("beta",), "kl_loss_type": ("kl_estimator",)},
    wiring=_open_instruct_loss,
    mitigations=divides("open-instruct"),
)


LLAMA_FACTORY = Framework(
    "LLaMA-Factory",
    (b"stage",),
    lambda written: (
        written.get("stage") == "ppo"
        and written.has("model_name_or_path", "template", "finetuning_type", "reward_model")
    ),
    lambda written: "transformers",
    rollout=same(*FILTERS, "do_sample", "num_beams", "repetition_penalty", "min_length"),
    loss={"target": ("ppo_target",)},
    defaults=lambda written: {
        "temperature": 0.95,
        "top_p": 0.7,
        "top_k": 50,
        "do_sample": True,
        "num_beams": 1,
        "repetition_penalty": 1.0,
    },
)


def _swift_loss(written: Written, values: dict[str, Value]) -> dict[str, Value]:
    return without_kl(values, written.get("beta") == 0)


def _swift_defaults(written: Written) -> dict[str, float]:
    """Those of its releases before 4.1. `train_type`, and only it, is an option of those before 4 and of none since."""
    if written.get("rlhf_type") == "grpo" and written.has("train_type"):
        return {"top_k": 50, "top_p": 0.9}
    return {}


MS_SWIFT = Framework(
    "ms-swift",
    (b"rlhf_type", b"rlhf-type"),
    lambda written: written.get("rlhf_type") in ("grpo", "ppo"),
    rollout=same(*FILTERS, "min_p", "repetition_penalty"),
    loss={"beta": ("beta",), "kl_coef": ("kl_coef",)},
    wiring=_swift_loss,
    mitigations=divides("ms-swift"),
    defaults=_swift_defaults,
)
