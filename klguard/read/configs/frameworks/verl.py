"""verl and its kin, which are configured by nested names in YAML or as overrides on a command line."""

from __future__ import annotations

from klguard.read.configs.framework import Framework, under
from klguard.read.configs.frameworks.common import (
    FILTERS,
    PENALTIES,
    divides,
    greedy,
    is_true,
    runs,
    with_group,
    without_kl,
    without_loss,
)
from klguard.read.configs.written import Written, renamed
from klguard.settings import Known, Value

_ROLLOUT, _ACTOR = "actor_rollout_ref.rollout", "actor_rollout_ref.actor"
_ENGINES = {"sglang": "sglang", "sglang_async": "sglang", "hf": "transformers"}


def _verl_rollout(written: Written, values: dict[str, Value]) -> dict[str, Value]:
    if written.get(f"{_ROLLOUT}.name") == "hf":
        mode = written.first(f"{_ROLLOUT}.do_sample")
        whole = values.get("top_k")
        kept = {**values, "do_sample": mode or Known(True)}
        if not isinstance(whole, Known) or not isinstance(whole.value, int):
            return {**kept, "top_k": Known(0)}
        return {**kept, "top_k": renamed(whole, max(0, whole.value))}
    return greedy(written, values, f"{_ROLLOUT}.do_sample", False)


def _verl_loss(written: Written, values: dict[str, Value]) -> dict[str, Value]:
    in_reward, in_loss = "algorithm.use_kl_in_reward", f"{_ACTOR}.use_kl_loss"
    off = not is_true(written, in_loss) or written.get(f"{_ACTOR}.kl_loss_coef") == 0
    found = dict(without_loss(values, off))
    if is_true(written, in_reward) and not off:
        found["kl_in_both"] = renamed(written.values[in_loss], True)
    if written.get("algorithm.kl_ctrl.type") != "adaptive":
        found.pop("target", None)
    if not is_true(written, in_reward):
        for name in ("kl_penalty", "kl_coef", "target"):
            if written.get(in_reward) is False or is_true(written, in_loss):
                found.pop(name, None)
    return without_kl(found, written.get(in_reward) is False and written.get(in_loss) is False)


VERL = Framework(
    "verl",
    (b"actor_rollout_ref", b"verl.trainer"),
    lambda written: (
        bool(written.below(_ROLLOUT) or written.below(_ACTOR) or runs(written, "verl.trainer.main_ppo"))
        and not runs(written, "main_generation", "main_eval")
    ),
    lambda written: _ENGINES.get(str(written.get(f"{_ROLLOUT}.name")), "vllm"),
    rollout=under(_ROLLOUT, *FILTERS, "ignore_eos"),
    uncertain=under(_ROLLOUT, *PENALTIES, "min_tokens", "logit_bias", "bad_words"),
    loss={
        "kl_coef": ("algorithm.kl_ctrl.kl_coef",),
        "target": ("algorithm.kl_ctrl.target_kl",),
        "kl_penalty": ("algorithm.kl_penalty",),
        "kl_loss_type": (f"{_ACTOR}.kl_loss_type",),
        "kl_loss_coef": (f"{_ACTOR}.kl_loss_coef",),
    },
    finish=_verl_rollout,
    wiring=lambda written, values: with_group(
        written, _verl_loss(written, values), "algorithm.adv_estimator", f"{_ROLLOUT}.n"
    ),
    mitigations=divides("verl"),
)


def _easyr1_loss(written: Written, values: dict[str, Value]) -> dict[str, Value]:
    found = dict(values)
    found.pop("kl_loss_type" if written.get("algorithm.use_kl_loss") is False else "kl_penalty", None)
    found = without_loss(found, written.get("algorithm.kl_coef") == 0)
    found = with_group(written, found, "algorithm.adv_estimator", "worker.rollout.n")
    return without_kl(found, is_true(written, "algorithm.disable_kl"))


EASYR1 = Framework(
    "EasyR1",
    (b"rollout",),
    lambda written: bool(
        written.below("worker.rollout") and (written.below("algorithm") or written.below("trainer"))
    ),
    rollout=under("worker.rollout", *FILTERS, "ignore_eos"),
    uncertain=under("worker.rollout", *PENALTIES),
    loss={
        "kl_coef": ("algorithm.kl_coef",),
        "kl_penalty": ("algorithm.kl_penalty",),
        "kl_loss_type": ("algorithm.kl_penalty",),
    },
    wiring=_easyr1_loss,
    mitigations=divides("EasyR1"),
)


def _skyrl_loss(written: Written, values: dict[str, Value]) -> dict[str, Value]:
    in_loss, in_reward = "trainer.algorithm.use_kl_loss", "trainer.algorithm.use_kl_in_reward"
    off = written.get(in_loss) is False or written.get("trainer.algorithm.kl_loss_coef") == 0
    found = dict(without_loss(values, off))
    if is_true(written, in_loss) and is_true(written, in_reward) and not off:
        found["kl_in_both"] = renamed(written.values[in_loss], True)
    found = with_group(
        written, found, "trainer.algorithm.advantage_estimator", "generator.n_samples_per_prompt"
    )
    return without_kl(found, written.get(in_loss) is False and not is_true(written, in_reward))


SKYRL = Framework(
    "SkyRL",
    (b"sampling_params",),
    lambda written: bool(written.below("generator.sampling_params") or written.below("trainer.algorithm")),
    rollout=under("generator.sampling_params", *FILTERS, *PENALTIES, "min_tokens"),
    loss={"kl_loss_type": ("trainer.algorithm.kl_estimator_type",)},
    wiring=_skyrl_loss,
    mitigations=divides("SkyRL"),
)
