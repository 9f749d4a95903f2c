"""prime-rl: what its sampling configuration sends to a vLLM server, and what that fills in from the checkpoint."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from klguard.guard.frameworks.engines import PROCESSED, Plan, pick
from klguard.guard.frameworks.vllm import request_settings

MITIGATIONS = {"temperature": "prime-rl divides each token's logits by the temperature of its request"}
NEUTRAL = {"top_k": -1, "min_p": 0.0}
"""What prime-rl puts into `extra_body` where the configuration does not."""


def plan(
    sampling: Any, checkpoint: Any = None, *, generation_config: str = "auto", version: str | None = None
) -> Plan:
    """What is in force for a training rollout.

    sampling   a `TrainSamplingConfig`, or the table `sampling` of the TOML as a dict;
    checkpoint, generation_config   as for `klguard.guard.frameworks.vllm.request_settings`: repetition_penalty is
               not sent since May 2026, so that a checkpoint's own is in force.
    ValueError for a configuration without a temperature.
    """
    temperature = pick(sampling, "temperature")
    if temperature is None:
        raise ValueError("this is no sampling configuration of prime-rl: it has no `temperature`")
    request: dict[str, Any] = {
        "temperature": float(temperature),
        "top_p": float(pick(sampling, "top_p", 1.0)),
    }
    for name in ("max_completion_tokens", "repetition_penalty", "min_tokens", "top_k"):
        value = pick(sampling, name)
        if value is not None:
            request[name] = value
    extra = pick(sampling, "extra_body", {})
    body = {**NEUTRAL, **request, **dict(extra)}
    site = request_settings(body, checkpoint, generation_config=generation_config, version=version)
    return Plan(replace(site, settings=replace(site.settings, mitigations=MITIGATIONS)), PROCESSED, {})
