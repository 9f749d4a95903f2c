"""Frameworks that are configured by files of settings of their own."""

from __future__ import annotations

from klguard.read.configs.framework import Framework, same, under
from klguard.read.configs.frameworks.common import (
    FILTERS,
    PENALTIES,
    divides,
    greedy,
    runs,
    with_group,
    without_kl,
)
from klguard.read.configs.written import Written, renamed
from klguard.settings import Known, Value

NEMO_FILTERED = "NeMo-RL, since 0.6, takes the policy's log-probs over the same tokens"
NEARLY_ALL = {"top_p": lambda value: value >= 0.999, "top_k": lambda value: value >= 8000}
"""What NeMo-RL lets pass as next to nothing; its guide has a nucleus of 0.9999 against ids that no token has."""


def _nemo_rollout(written: Written, values: dict[str, Value]) -> dict[str, Value]:
    return {name: value for name, value in values.items() if not _next_to_nothing(name, value)}


def _next_to_nothing(name: str, value: Value) -> bool:
    plain = value.value if isinstance(value, Known) else None
    return name in NEARLY_ALL and isinstance(plain, int | float) and NEARLY_ALL[name](plain)


def _nemo_loss(written: Written, values: dict[str, Value]) -> dict[str, Value]:
    """The estimator is GRPO unless another is named."""
    found, estimator = dict(values), written.get("grpo.adv_estimator.name")
    size = written.first("grpo.num_generations_per_prompt")
    if size is not None and estimator in (None, "grpo", "gdpo"):
        found["group_size"] = size
    return without_kl(found, written.get("loss_fn.reference_policy_kl_penalty") == 0)


NEMO_RL = Framework(
    "NeMo-RL",
    (b"policy", b"generation"),
    lambda written: bool(
        written.below("policy.generation")
        and (written.below("loss_fn") or written.below("grpo") or runs(written, "run_grpo", "run_vlm_grpo"))
    ),
    rollout=under("policy.generation", *FILTERS, "ignore_eos"),
    loss={
        "kl_coef": ("loss_fn.reference_policy_kl_penalty",),
        "kl_loss_type": ("loss_fn.reference_policy_kl_type",),
    },
    finish=_nemo_rollout,
    wiring=_nemo_loss,
    mitigations={**divides("NeMo-RL"), "top_k": NEMO_FILTERED, "top_p": NEMO_FILTERED},
)

_PRIME = ("sampling", "orchestrator.sampling", "orchestrator.train.sampling", "train.sampling")


def _prime_names(name: str) -> tuple[str, ...]:
    return tuple(f"{table}.{part}{name}" for table in _PRIME for part in ("", "extra_body."))


PRIME_RL = Framework(
    "prime-rl",
    (b"sampling]", b"sampling."),
    lambda written: (
        any(map(written.below, _PRIME))
        and (written.place.path.endswith(".toml") or not {"rl", "orchestrator"}.isdisjoint(written.command))
    ),
    rollout={name: _prime_names(name) for name in (*FILTERS, *PENALTIES, "min_tokens", "logit_bias")},
    mitigations=divides("prime-rl"),
)


def _areal_rollout(written: Written, values: dict[str, Value]) -> dict[str, Value]:
    """AReaL divides by a temperature of the actor's own, 1 where it is left out. On a command line that is most often
    the file's to say."""
    found = greedy(written, values, "gconfig.greedy", True)
    drawn, scored = found.get("temperature"), written.get("actor.temperature")
    of_the_file = bool(written.command) and scored is None
    if isinstance(drawn, Known) and drawn.value != 0 and (drawn.value == scored or of_the_file):
        found.pop("temperature")
    return found


AREAL = Framework(
    "AReaL",
    (b"gconfig",),
    lambda written: bool(
        written.below("gconfig")
        and (written.below("actor") or written.below("rollout") or runs(written, "areal"))
    ),
    lambda written: "sglang",
    rollout=under("gconfig", *FILTERS, "frequency_penalty", "min_new_tokens"),
    loss={"kl_coef": ("actor.kl_ctl",)},
    finish=_areal_rollout,
    wiring=lambda written, values: without_kl(values, written.get("actor.kl_ctl") == 0),
)


def _roll_loss(written: Written, values: dict[str, Value]) -> dict[str, Value]:
    found = dict(values)
    in_loss, in_reward = written.first("use_kl_loss"), written.get("add_token_level_kl")
    if in_loss is not None and in_loss.value is True and in_reward is True:
        found["kl_in_both"] = renamed(in_loss, True)
    found = with_group(written, found, "adv_estimator", "num_return_sequences_in_group")
    return without_kl(found, in_loss is not None and in_loss.value is False and in_reward is False)


_ROLL = "actor_infer.generating_args"
ROLL = Framework(
    "ROLL",
    (b"actor_infer",),
    lambda written: bool(written.below("actor_infer")),
    rollout=under(_ROLL, *FILTERS, "repetition_penalty", "min_p"),
    loss={"kl_coef": ("init_kl_coef",)},
    wiring=_roll_loss,
    mitigations=divides("ROLL"),
)


def _trlx_rollout(written: Written, values: dict[str, Value]) -> dict[str, Value]:
    return {"do_sample": Known(True), **values}


_GEN = ("method.gen_experience_kwargs", "method.gen_kwargs")
HUGGING_FACE = (
    *FILTERS,
    "do_sample",
    "num_beams",
    "repetition_penalty",
    "min_length",
    "min_new_tokens",
    "max_new_tokens",
    "max_length",
    "no_repeat_ngram_size",
    "typical_p",
    "eos_token_id",
    "suppress_tokens",
    "penalty_alpha",
)
TRLX = Framework(
    "trlx",
    (b"gen_kwargs",),
    lambda written: (
        "ppo" in str(written.get("method.name")).lower() and bool(written.below("method.gen_kwargs"))
    ),
    lambda written: "transformers",
    rollout={name: tuple(f"{table}.{name}" for table in _GEN) for name in HUGGING_FACE},
    loss={"init_kl_coef": ("method.init_kl_coef",), "target": ("method.target",)},
    finish=_trlx_rollout,
    wiring=lambda written, values: without_kl(values, written.get("method.init_kl_coef") == 0),
)

_RL4LMS = "alg.policy.args.generation_kwargs"
RL4LMS = Framework(
    "RL4LMs",
    (b"generation_kwargs",),
    lambda written: bool(written.below(_RL4LMS) and written.below("alg.kl_div")),
    lambda written: "transformers",
    rollout=under(_RL4LMS, *HUGGING_FACE),
    loss={"kl_coef": ("alg.kl_div.coeff",), "target": ("alg.kl_div.target_kl",)},
)

TORCHTUNE = Framework(
    "torchtune",
    (b"kl_coeff", b"ppo_full_finetune", b"grpo_full_finetune"),
    lambda written: (
        (written.has("kl_coeff") and written.has("forward_batch_size", "ppo_epochs", "ppo_batch_size"))
        or runs(written, "ppo_full_finetune", "grpo_full_finetune")
    ),
    lambda written: "vllm",
    rollout=same("top_k"),
    loss={"kl_coef": ("kl_coeff",)},
    mitigations=divides("torchtune"),
)

_ALIGNER = ("model.ppo", "model.reinforce")


def _aligner_names(table: str, name: str) -> tuple[str, ...]:
    return tuple(f"{algorithm}.{table}.{name}" for algorithm in _ALIGNER)


def _aligner_rollout(written: Written, values: dict[str, Value]) -> dict[str, Value]:
    """A minimal length of 1, which NeMo-Aligner ships, only keeps responses from being empty."""
    found = {"do_sample": Known(True), **values}
    mode = written.first(*_aligner_names("sampling_params", "use_greedy"))
    if mode is not None and mode.value is True:
        found["do_sample"] = renamed(mode, False)
    shortest = found.get("min_new_tokens")
    if isinstance(shortest, Known) and shortest.value == 1:
        found.pop("min_new_tokens")
    return found


def _aligner_loss(written: Written, values: dict[str, Value]) -> dict[str, Value]:
    coefficient = values.get("kl_coef")
    return without_kl(values, isinstance(coefficient, Known) and coefficient.value == 0)


NEMO_ALIGNER = Framework(
    "NeMo-Aligner",
    (b"sampling_params", b"length_params"),
    lambda written: any(
        written.below(f"{algorithm}.{table}")
        for algorithm in _ALIGNER
        for table in ("sampling_params", "length_params")
    ),
    lambda written: "transformers",
    rollout={
        **{name: _aligner_names("sampling_params", name) for name in (*FILTERS, "repetition_penalty")},
        "min_new_tokens": _aligner_names("length_params", "min_length"),
    },
    loss={
        "kl_coef": ("trainer.ppo.initial_policy_kl_penalty", "trainer.reinforce.initial_policy_kl_penalty"),
        "use_absolute_kl": ("trainer.ppo.use_absolute_kl", "trainer.reinforce.use_absolute_kl"),
    },
    finish=_aligner_rollout,
    wiring=_aligner_loss,
    defaults=lambda written: {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0},
)

TRL = Framework(
    "trl",
    (b"num_generations", b"reward_funcs"),
    lambda written: (
        (
            written.has("num_generations")
            and written.has("max_completion_length", "max_prompt_length", "reward_funcs", "scale_rewards")
        )
        or written.command[:2] == ("trl", "grpo")
    ),
    class_name="trl.GRPOConfig",
)

AXOLOTL = Framework(
    "axolotl",
    (b"num_generations", b"reward_funcs"),
    lambda written: written.get("rl") == "grpo" and bool(written.below("trl")),
    class_name="trl.GRPOConfig",
    section="trl",
)
