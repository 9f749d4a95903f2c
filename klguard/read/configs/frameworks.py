"""The frameworks whose configurations are read, each from its own source; names of older releases too."""

from __future__ import annotations

from typing import Any

from klguard.read.configs.framework import Framework, same, under
from klguard.read.configs.written import Written, renamed
from klguard.settings import Known, Value

OFF_FROM = 100_000
"""A top_k from which frameworks mean the whole vocabulary (AReaL writes 1e8)."""

_PENALTIES = ("min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
_FILTERS = ("temperature", "top_p", "top_k")


def _divides(name: str) -> dict[str, str]:
    return {"temperature": f"{name} divides the logits of policy and reference by the same temperature"}


def _true(written: Written, name: str) -> bool:
    return written.get(name) is True


def _no_kl(values: dict[str, Value], off: bool) -> dict[str, Value]:
    """With the fact that there is no KL term, where that is so."""
    return {**values, "kl_term": Known(False)} if off else values


def _greedy(written: Written, values: dict[str, Value], name: str, means: object) -> dict[str, Value]:
    """vLLM and SGLang know greedy search as a temperature of 0."""
    mode = written.first(name)
    return {**values, "temperature": renamed(mode, 0.0)} if mode and mode.value is means else values


def _runs(written: Written, *words: str) -> bool:
    return any(word in part for part in written.command for word in words) or any(
        word in str(value.value)
        for name, value in written.values.items()
        if name in ("m", "module")
        for word in words
    )


# --- verl and its kin --------------------------------------------------------------------------------------

_ROLLOUT, _ACTOR = "actor_rollout_ref.rollout", "actor_rollout_ref.actor"
_ENGINES = {"sglang": "sglang", "sglang_async": "sglang", "hf": "transformers"}
_GROUPED = frozenset({"grpo", "grpo_passk", "gpg", "rloo", "dr_grpo", "group_norm", "reinforce_baseline"})


def _verl_rollout(written: Written, values: dict[str, Value]) -> dict[str, Value]:
    if written.get(f"{_ROLLOUT}.name") == "hf":
        mode = written.first(f"{_ROLLOUT}.do_sample")
        whole = values.get("top_k")
        kept = {**values, "do_sample": mode or Known(True)}
        if not isinstance(whole, Known) or not isinstance(whole.value, int):
            return {**kept, "top_k": Known(0)}
        return {**kept, "top_k": renamed(whole, max(0, whole.value))}
    return _greedy(written, values, f"{_ROLLOUT}.do_sample", False)


def _verl_loss(written: Written, values: dict[str, Value]) -> dict[str, Value]:
    in_reward, in_loss = "algorithm.use_kl_in_reward", f"{_ACTOR}.use_kl_loss"
    found = dict(values)
    if not _true(written, in_loss):
        found.pop("kl_loss_type", None)
        found.pop("kl_loss_coef", None)
    elif _true(written, in_reward) and written.get(f"{_ACTOR}.kl_loss_coef") != 0:
        found["kl_in_both"] = renamed(written.values[in_loss], True)
    if written.get("algorithm.kl_ctrl.type") != "adaptive":
        found.pop("target", None)
    if not _true(written, in_reward):
        for name in ("kl_penalty", "kl_coef", "target"):
            if written.get(in_reward) is False or _true(written, in_loss):
                found.pop(name, None)
    return _no_kl(found, written.get(in_reward) is False and written.get(in_loss) is False)


def _group(written: Written, values: dict[str, Value], estimator: str, size: str) -> dict[str, Value]:
    """With the size of a group, where the advantage is relative to the group."""
    number = written.first(size)
    if number is not None and str(written.get(estimator)).lower() in _GROUPED:
        return {**values, "group_size": number}
    return values


VERL = Framework(
    "verl",
    (b"actor_rollout_ref", b"verl.trainer"),
    lambda written: (
        bool(written.below(_ROLLOUT) or written.below(_ACTOR) or _runs(written, "verl.trainer.main_ppo"))
        and not _runs(written, "main_generation", "main_eval")
    ),
    lambda written: _ENGINES.get(str(written.get(f"{_ROLLOUT}.name")), "vllm"),
    rollout=under(_ROLLOUT, *_FILTERS, "ignore_eos"),
    uncertain=under(_ROLLOUT, *_PENALTIES, "min_tokens", "logit_bias", "bad_words"),
    loss={
        "kl_coef": ("algorithm.kl_ctrl.kl_coef",),
        "target": ("algorithm.kl_ctrl.target_kl",),
        "kl_penalty": ("algorithm.kl_penalty",),
        "kl_loss_type": (f"{_ACTOR}.kl_loss_type",),
        "kl_loss_coef": (f"{_ACTOR}.kl_loss_coef",),
    },
    finish=_verl_rollout,
    wiring=lambda written, values: _group(
        written, _verl_loss(written, values), "algorithm.adv_estimator", f"{_ROLLOUT}.n"
    ),
    mitigations=_divides("verl"),
)


def _easyr1_loss(written: Written, values: dict[str, Value]) -> dict[str, Value]:
    found = dict(values)
    if written.get("algorithm.use_kl_loss") is False:
        found.pop("kl_loss_type", None)
    else:
        found.pop("kl_penalty", None)
    found = _group(written, found, "algorithm.adv_estimator", "worker.rollout.n")
    return _no_kl(found, _true(written, "algorithm.disable_kl"))


EASYR1 = Framework(
    "EasyR1",
    (b"rollout",),
    lambda written: bool(
        written.below("worker.rollout") and (written.below("algorithm") or written.below("trainer"))
    ),
    rollout=under("worker.rollout", *_FILTERS, "ignore_eos"),
    uncertain=under("worker.rollout", *_PENALTIES),
    loss={
        "kl_coef": ("algorithm.kl_coef",),
        "kl_penalty": ("algorithm.kl_penalty",),
        "kl_loss_type": ("algorithm.kl_penalty",),
    },
    wiring=_easyr1_loss,
    mitigations=_divides("EasyR1"),
)


def _skyrl_loss(written: Written, values: dict[str, Value]) -> dict[str, Value]:
    in_loss, in_reward = "trainer.algorithm.use_kl_loss", "trainer.algorithm.use_kl_in_reward"
    found = dict(values)
    if written.get(in_loss) is False:
        found.pop("kl_loss_type", None)
    elif _true(written, in_loss) and _true(written, in_reward):
        found["kl_in_both"] = renamed(written.values[in_loss], True)
    found = _group(written, found, "trainer.algorithm.advantage_estimator", "generator.n_samples_per_prompt")
    return _no_kl(found, written.get(in_loss) is False and not _true(written, in_reward))


SKYRL = Framework(
    "SkyRL",
    (b"sampling_params",),
    lambda written: bool(written.below("generator.sampling_params") or written.below("trainer.algorithm")),
    rollout=under("generator.sampling_params", *_FILTERS, *_PENALTIES, "min_tokens"),
    loss={"kl_loss_type": ("trainer.algorithm.kl_estimator_type",)},
    wiring=_skyrl_loss,
    mitigations=_divides("SkyRL"),
)

# --- OpenRLHF, slime, open-instruct: command lines ---------------------------------------------------------


def _openrlhf_loss(written: Written, values: dict[str, Value]) -> dict[str, Value]:
    found = dict(values)
    if _true(written, "use_kl_loss") or _true(written, "algo.kl.use_loss"):
        switch = written.first("use_kl_loss", "algo.kl.use_loss")
        form = found.pop("kl_estimator", None)
        if form is not None or switch is not None:
            found["kl_loss_type"] = form or renamed(switch, "k1")  # the default
    for estimator, size in (
        ("advantage_estimator", "n_samples_per_prompt"),
        ("algo.advantage.estimator", "rollout.n_samples_per_prompt"),
    ):
        found = _group(written, found, estimator, size)
    return _no_kl(found, written.get("init_kl_coef") == 0 or written.get("algo.kl.init_coef") == 0)


OPENRLHF = Framework(
    "OpenRLHF",
    (b"train_ppo",),
    lambda written: _runs(written, "train_ppo"),
    rollout={"temperature": ("rollout.temperature", "temperature"), "top_p": ("rollout.top_p", "top_p")},
    loss={
        "kl_coef": ("algo.kl.init_coef", "init_kl_coef"),
        "target": ("algo.kl.target", "kl_target"),
        "kl_estimator": ("algo.kl.estimator", "kl_estimator"),
    },
    wiring=_openrlhf_loss,
    mitigations=_divides("OpenRLHF, since 0.6.2,"),
)


def _slime_loss(written: Written, values: dict[str, Value]) -> dict[str, Value]:
    found = dict(values)
    in_loss = written.first("use_kl_loss")
    if in_loss is None:
        found.pop("kl_loss_type", None)
    elif written.get("kl_coef") and written.get("kl_loss_coef") != 0:
        found["kl_in_both"] = renamed(in_loss, True)
    return _group(written, found, "advantage_estimator", "n_samples_per_prompt")


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
    rollout={name: (f"rollout_{name}",) for name in _FILTERS},
    loss={"kl_coef": ("kl_coef",), "kl_loss_type": ("kl_loss_type",)},
    wiring=_slime_loss,
    mitigations={
        **_divides("slime"),
        "top_p": "slime, in its releases since 2026, takes the trainer's log-probs over the same nucleus",
    },
)

_OPEN_INSTRUCT_KL = {0: "k1", "kl1": "k1", 1: "k2", "kl2": "k2", 2: "k3", "kl3": "k3"}


def _open_instruct_loss(written: Written, values: dict[str, Value]) -> dict[str, Value]:
    found = dict(values)
    form = found.pop("kl_loss_type", None)
    if isinstance(form, Known) and form.value in _OPEN_INSTRUCT_KL and written.get("beta") != 0:
        found["kl_loss_type"] = renamed(form, _OPEN_INSTRUCT_KL[form.value])
    return _no_kl(found, written.get("beta") == 0)


OPEN_INSTRUCT = Framework(
    "open-instruct",
    (b"grpo_fast", b"grpo_vllm", b"open_instruct/grpo", b"open_instruct/ppo"),
    lambda written: _runs(
        written, "grpo_fast", "grpo_vllm_thread", "open_instruct/grpo", "open_instruct/ppo"
    ),
    rollout={"temperature": ("temperature",), "top_p": ("vllm_top_p",)},
    loss={"beta": ("beta",), "kl_loss_type": ("kl_estimator",)},
    wiring=_open_instruct_loss,
    mitigations=_divides("open-instruct"),
)

# --- LLaMA-Factory, ms-swift -------------------------------------------------------------------------------

LLAMA_FACTORY = Framework(
    "LLaMA-Factory",
    (b"stage",),
    lambda written: (
        written.get("stage") == "ppo"
        and written.has("model_name_or_path", "template", "finetuning_type", "reward_model")
    ),
    lambda written: "transformers",
    rollout=same(*_FILTERS, "do_sample", "num_beams", "repetition_penalty", "min_length"),
    loss={"target": ("ppo_target",)},
    defaults={
        "temperature": 0.95,
        "top_p": 0.7,
        "top_k": 50,
        "do_sample": True,
        "num_beams": 1,
        "repetition_penalty": 1.0,
    },
)


def _swift_loss(written: Written, values: dict[str, Value]) -> dict[str, Value]:
    return _no_kl(values, written.get("beta") == 0)


MS_SWIFT = Framework(
    "ms-swift",
    (b"rlhf_type", b"rlhf-type"),
    lambda written: written.get("rlhf_type") in ("grpo", "ppo"),
    rollout=same(*_FILTERS, "min_p", "repetition_penalty"),
    loss={"beta": ("beta",), "kl_coef": ("kl_coef",)},
    wiring=_swift_loss,
    mitigations=_divides("ms-swift"),
)

# --- files of settings -------------------------------------------------------------------------------------

NEMO_FILTERED = "NeMo-RL, since 0.6, takes the policy's log-probs over the same tokens"
NEARLY_ALL = {"top_p": lambda value: value >= 0.999, "top_k": lambda value: value >= 8000}
"""What NeMo-RL lets pass as next to nothing; its guide has a nucleus of 0.9999 against ids that no token has."""


def _nemo_rollout(written: Written, values: dict[str, Value]) -> dict[str, Value]:
    return {name: value for name, value in values.items() if not _next_to_nothing(name, value)}


def _next_to_nothing(name: str, value: Value) -> bool:
    plain = value.value if isinstance(value, Known) else None
    return name in NEARLY_ALL and isinstance(plain, int | float) and NEARLY_ALL[name](plain)


NEMO_RL = Framework(
    "NeMo-RL",
    (b"policy", b"generation"),
    lambda written: bool(
        written.below("policy.generation") and (written.below("loss_fn") or written.below("grpo"))
    ),
    rollout=under("policy.generation", *_FILTERS, "ignore_eos"),
    loss={
        "kl_coef": ("loss_fn.reference_policy_kl_penalty",),
        "kl_loss_type": ("loss_fn.reference_policy_kl_type",),
    },
    finish=_nemo_rollout,
    wiring=lambda written, values: _no_kl(values, written.get("loss_fn.reference_policy_kl_penalty") == 0),
    mitigations={**_divides("NeMo-RL"), "top_k": NEMO_FILTERED, "top_p": NEMO_FILTERED},
)

_PRIME = ("sampling", "orchestrator.sampling", "orchestrator.train.sampling", "train.sampling")


def _prime_names(name: str) -> tuple[str, ...]:
    return tuple(f"{table}.{part}{name}" for table in _PRIME for part in ("", "extra_body."))


PRIME_RL = Framework(
    "prime-rl",
    (b"sampling]", b"sampling."),
    lambda written: written.place.path.endswith(".toml") and any(map(written.below, _PRIME)),
    rollout={name: _prime_names(name) for name in (*_FILTERS, *_PENALTIES, "min_tokens", "logit_bias")},
    mitigations=_divides("prime-rl"),
)


def _areal_rollout(written: Written, values: dict[str, Value]) -> dict[str, Value]:
    """AReaL divides by a temperature of the actor's own, 1 where it is left out."""
    found = _greedy(written, values, "gconfig.greedy", True)
    drawn, scored = found.get("temperature"), written.get("actor.temperature")
    if isinstance(drawn, Known) and drawn.value == scored:
        found.pop("temperature")
    return found


AREAL = Framework(
    "AReaL",
    (b"gconfig",),
    lambda written: bool(written.below("gconfig") and (written.below("actor") or written.below("rollout"))),
    lambda written: "sglang",
    rollout=under("gconfig", *_FILTERS, "frequency_penalty", "min_new_tokens"),
    loss={"kl_coef": ("actor.kl_ctl",)},
    finish=_areal_rollout,
    wiring=lambda written, values: _no_kl(values, written.get("actor.kl_ctl") == 0),
)


def _roll_loss(written: Written, values: dict[str, Value]) -> dict[str, Value]:
    found = dict(values)
    in_loss, in_reward = written.first("use_kl_loss"), written.get("add_token_level_kl")
    if in_loss is not None and in_loss.value is True and in_reward is True:
        found["kl_in_both"] = renamed(in_loss, True)
    found = _group(written, found, "adv_estimator", "num_return_sequences_in_group")
    return _no_kl(found, in_loss is not None and in_loss.value is False and in_reward is False)


_ROLL = "actor_infer.generating_args"
ROLL = Framework(
    "ROLL",
    (b"actor_infer",),
    lambda written: bool(written.below("actor_infer")),
    rollout=under(_ROLL, *_FILTERS, "repetition_penalty", "min_p"),
    loss={"kl_coef": ("init_kl_coef",)},
    wiring=_roll_loss,
    mitigations=_divides("ROLL"),
)


def _trlx_rollout(written: Written, values: dict[str, Value]) -> dict[str, Value]:
    return {"do_sample": Known(True), **values}


_GEN = ("method.gen_experience_kwargs", "method.gen_kwargs")
_HUGGING_FACE = (
    *_FILTERS,
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
    rollout={name: tuple(f"{table}.{name}" for table in _GEN) for name in _HUGGING_FACE},
    loss={"init_kl_coef": ("method.init_kl_coef",), "target": ("method.target",)},
    finish=_trlx_rollout,
    wiring=lambda written, values: _no_kl(values, written.get("method.init_kl_coef") == 0),
)

_RL4LMS = "alg.policy.args.generation_kwargs"
RL4LMS = Framework(
    "RL4LMs",
    (b"generation_kwargs",),
    lambda written: bool(written.below(_RL4LMS) and written.below("alg.kl_div")),
    lambda written: "transformers",
    rollout=under(_RL4LMS, *_HUGGING_FACE),
    loss={"kl_coef": ("alg.kl_div.coeff",), "target": ("alg.kl_div.target_kl",)},
)

TORCHTUNE = Framework(
    "torchtune",
    (b"kl_coeff",),
    lambda written: (
        written.has("kl_coeff") and written.has("forward_batch_size", "ppo_epochs", "ppo_batch_size")
    ),
    lambda written: "vllm",
    rollout=same("top_k"),
    loss={"kl_coef": ("kl_coeff",)},
    mitigations=_divides("torchtune"),
)

TRL = Framework(
    "trl",
    (b"num_generations",),
    lambda written: (
        written.has("num_generations")
        and written.has("max_completion_length", "max_prompt_length", "reward_funcs", "scale_rewards")
    ),
    class_name="trl.GRPOConfig",
)

FRAMEWORKS = (
    VERL, EASYR1, SKYRL, OPENRLHF, OPEN_INSTRUCT, LLAMA_FACTORY, MS_SWIFT, SLIME,
    NEMO_RL, PRIME_RL, AREAL, ROLL, TRLX, RL4LMS, TORCHTUNE, TRL,
)  # fmt: skip


def framework_of(written: Written) -> Framework | None:
    """Whose configuration this is."""
    return next((one for one in FRAMEWORKS if one.recognise(written)), None)


def whole_vocabulary(name: str, value: Any) -> bool:
    """Whether a value is some framework's way to leave `name` off."""
    return value is None or name == "top_k" and isinstance(value, int | float) and value >= OFF_FROM
