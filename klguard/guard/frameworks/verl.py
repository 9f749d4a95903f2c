"""verl: what its configuration tree says of rollouts, read as release 0.9 does (`actor_rollout_ref.rollout`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from klguard.guard.frameworks.engines import Plan, pick, required, site_of
from klguard.guard.frameworks.vllm import KINDS

ROLLOUT = "actor_rollout_ref.rollout"
MITIGATIONS = {"temperature": "verl divides the logits of policy and reference by the same temperature"}


def plan(config: Any, *, version: str | None = None) -> Plan:
    """What verl asks of its engine: vLLM, SGLang, or transformers ("hf").

    config   the whole tree, an OmegaConf or a dict of dicts; version that of the engine. ValueError for another
    tree. The agent loop sets repetition_penalty to 1 itself, whatever the tree says, and hands on every other
    value, so that nothing is left to the checkpoint.
    """
    rollout = required(config, ROLLOUT, "verl")
    name = str(pick(rollout, "name", "vllm"))
    engine = {"sglang": "sglang", "hf": "transformers"}.get(name, "vllm")
    sampling = bool(pick(rollout, "do_sample", True))
    temperature = float(pick(rollout, "temperature", 1.0))
    top_k = int(pick(rollout, "top_k", -1))
    written: dict[str, Any] = {"top_p": float(pick(rollout, "top_p", 1.0)), "repetition_penalty": 1.0}
    if engine == "transformers":
        written |= {"top_k": max(0, top_k), "temperature": temperature, "do_sample": sampling}
    else:
        written |= {"top_k": top_k, "temperature": temperature if sampling else 0.0}
        length = "max_tokens" if engine == "vllm" else "max_new_tokens"
        written |= {
            length: pick(rollout, "response_length"),
            "ignore_eos": bool(pick(rollout, "ignore_eos", False)),
        }
    given = {name: value for name, value in written.items() if value is not None}
    text = f"in {ROLLOUT} of verl's configuration"
    site = site_of(engine, given, text=text, version=version, mitigations=MITIGATIONS)
    return Plan(site, _kind(rollout, engine), _options(config))


def _kind(rollout: Any, engine: str) -> str | None:
    """What the log-probs are that come back with a rollout; verl asks for them since 0.7.1 by default."""
    if engine != "vllm" or not pick(rollout, "calculate_log_probs", True):
        return None
    return KINDS.get(str(pick(rollout, "logprobs_mode", "processed_logprobs")))


def _options(config: Any) -> Mapping[str, Any]:
    in_reward = bool(pick(config, "algorithm.use_kl_in_reward", False))
    in_loss = bool(pick(config, "actor_rollout_ref.actor.use_kl_loss", False))
    options: dict[str, Any] = {}
    if in_reward:
        options["kl_coef"] = float(pick(config, "algorithm.kl_ctrl.kl_coef", 0.001))
    elif in_loss:
        options["kl_coef"] = float(pick(config, "actor_rollout_ref.actor.kl_loss_coef", 0.001))
    responses = int(pick(config, f"{ROLLOUT}.n", 1))
    if responses > 1:
        options["group_size"] = responses
    return options
