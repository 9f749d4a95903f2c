"""NeMo-RL: what its configuration tree says of rollouts (`policy.generation`)."""

from __future__ import annotations

from typing import Any

from klguard.guard.frameworks.engines import Plan, pick, required, site_of
from klguard.guard.frameworks.vllm import KINDS

MITIGATIONS = {"temperature": "NeMo-RL divides the logits of policy and reference by the same temperature"}


def plan(config: Any, *, version: str | None = None) -> Plan:
    """What NeMo-RL asks of vLLM; config is the whole tree. ValueError for another tree, or another backend.

    Since 0.6 its trainer applies top-k and top-p again to its own log-probs, but not to those of the reference: the
    ratio is right then, and the KL is not.
    """
    generation = required(config, "policy.generation", "NeMo-RL")
    backend = str(pick(generation, "backend", "vllm"))
    if backend != "vllm":
        raise ValueError(f"NeMo-RL samples with {backend!r} here; klguard reads the settings of vLLM")
    top_k = pick(generation, "top_k")
    written = {
        "temperature": float(pick(generation, "temperature", 1.0)),
        "top_p": float(pick(generation, "top_p", 1.0)),
        "top_k": -1 if top_k is None else int(top_k),
    }
    for name in ("bad_words", "ignore_eos"):
        value = pick(generation, name)
        if value is not None:
            written[name] = value
    longest = pick(generation, "max_new_tokens")
    if longest is not None:
        written["max_tokens"] = int(longest)
    text = "in policy.generation of NeMo-RL's configuration"
    site = site_of("vllm", written, text=text, version=version, mitigations=MITIGATIONS)
    mode = str(pick(generation, "vllm_cfg.logprobs_mode", "processed_logprobs"))
    options: dict[str, Any] = {}
    coefficient = pick(config, "loss_fn.reference_policy_kl_penalty")
    if coefficient:
        options["kl_coef"] = float(coefficient)
    responses = pick(config, "grpo.num_generations_per_prompt")
    if responses and int(responses) > 1:
        options["group_size"] = int(responses)
    return Plan(site, KINDS.get(mode), options)
