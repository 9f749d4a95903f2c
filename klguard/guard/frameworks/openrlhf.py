"""OpenRLHF: what its arguments say of rollouts, which vLLM draws. Read as release 0.11 does; older names too."""

from __future__ import annotations

from typing import Any

from klguard.guard.frameworks.engines import PROCESSED, Plan, pick, site_of

MITIGATIONS = {"temperature": "OpenRLHF divides the logits by the same temperature (since 0.6.2)"}


def plan(args: Any, *, version: str | None = None) -> Plan:
    """What OpenRLHF asks of vLLM: a namespace of its arguments, nested (`args.rollout.temperature`) or flat, as
    before 0.11 (`args.temperature`). ValueError where neither is there.

    It always asks for at least one token (min_tokens=1), which keeps the end of sequence from the first place.
    """
    temperature = _either(args, "rollout.temperature", "temperature")
    if temperature is None:
        raise ValueError(
            "these are no arguments of OpenRLHF: neither `rollout.temperature` nor `temperature`"
        )
    written = {
        "temperature": float(temperature),
        "top_p": float(_either(args, "rollout.top_p", "top_p") or 1.0),
        "top_k": -1,
        "min_tokens": 1,
    }
    longest = _either(args, "rollout.max_new_tokens", "generate_max_len")
    if longest is not None:
        written["max_tokens"] = int(longest)
    site = site_of("vllm", written, text="in OpenRLHF's arguments", version=version, mitigations=MITIGATIONS)
    correcting = pick(
        args, "algo.advantage.is_correction_enable", pick(args, "enable_vllm_is_correction", False)
    )
    options: dict[str, Any] = {}
    coefficient = _either(args, "algo.kl.init_coef", "init_kl_coef")
    if coefficient:
        options["kl_coef"] = float(coefficient)
    responses = _either(args, "rollout.n_samples_per_prompt", "n_samples_per_prompt")
    if responses and int(responses) > 1:
        options["group_size"] = int(responses)
    return Plan(site, PROCESSED if correcting else None, options)


def _either(args: Any, new: str, old: str) -> Any:
    """The value by its present name, else by its old one; flat arguments may have dots in their names."""
    for found in (
        pick(args, new),
        vars(args).get(new) if hasattr(args, "__dict__") else None,
        pick(args, old),
    ):
        if found is not None:
            return found
    return None
