"""vLLM: SamplingParams, what its OpenAI server fills in, and the log-probs it returns, for a guard.

`logprobs_mode` decides what the log-probs are: raw ones (the default) are those of the bare logits, processed ones
those of the distribution that drew, after temperature, penalties and filters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from klguard.engines.versions import version_of, within
from klguard.engines.vllm import INHERITED, READS_CHECKPOINT, inherited
from klguard.guard.caller import caller
from klguard.guard.frameworks.engines import (
    PROCESSED,
    RAW,
    Returned,
    checkpoint_layer,
    padded,
    renamed,
    site_of,
)
from klguard.guard.live import _versions, read_object
from klguard.settings import Layer, Place, Site

OPENAI = {"max_completion_tokens": "max_tokens"}
KINDS = {"raw_logprobs": RAW, "processed_logprobs": PROCESSED}


def settings(params: Any, *, place: Place | None = None) -> Site:
    """What a SamplingParams, or a dict of its fields, says: `LLM.generate(prompts, params)` merges nothing more."""
    return read_object(params, place=place or caller(), engine="vllm")


def request_settings(
    request: Mapping[str, Any],
    checkpoint: Any = None,
    *,
    generation_config: str = "auto",
    override_generation_config: Mapping[str, Any] | None = None,
    model: str = "the served model",
    version: str | None = None,
    place: Place | None = None,
) -> Site:
    """What is in force for a request to the OpenAI server: each field that it leaves out is filled in, since 0.8
    from the checkpoint's generation config.

    request      the body of the request, `extra_body` included or beside it.
    checkpoint   of the served model: a GenerationConfig, a dict, the folder of its files, or None where it cannot
                 be seen, and its values are not known.
    generation_config, override_generation_config   as the server was started with.
    """
    body = {**request, **(request.get("extra_body") or {})}
    written = {OPENAI.get(name, name): value for name, value in body.items() if value is not None}
    versions = {"vllm": version} if version else _versions("vllm")
    below: list[Layer] = []
    if override_generation_config:
        override = checkpoint_layer(override_generation_config, "override_generation_config")
        below.append(renamed(override, INHERITED))
    reads = within(version_of("vllm", versions), READS_CHECKPOINT)
    if generation_config == "auto" and reads:
        layer = checkpoint_layer(checkpoint, model)
        below.append(inherited(layer, _versions("transformers")))
    elif generation_config not in ("auto", "vllm"):
        below.append(
            inherited(checkpoint_layer(generation_config, generation_config), _versions("transformers"))
        )
    return site_of("vllm", written, below, place=place, text="in the request", version=version)


def returned(
    outputs: Iterable[Any],
    params: Any = None,
    *,
    logprobs_mode: str = "raw_logprobs",
    pad_token_id: int = 0,
    device: torch.device | str | None = None,
) -> Returned:
    """What `LLM.generate` returned, each response of each request a row.

    outputs  RequestOutput objects; params what was asked for (a SamplingParams, a dict, or a Site);
    logprobs_mode   of the engine, as it was made with. ValueError for one that returns no log-probs.
    """
    if logprobs_mode not in KINDS:
        raise ValueError(
            f"logprobs_mode={logprobs_mode!r} returns no log-probabilities: make the engine with"
            ' logprobs_mode="processed_logprobs"'
        )
    site = params if params is None or isinstance(params, Site) else settings(params)
    rows = [one for request in outputs for one in request.outputs]
    tokens = [list(one.token_ids) for one in rows]
    values = [_of_sampled(one) for one in rows]
    return padded(tokens, values, KINDS[logprobs_mode], site, pad_token_id, device)


def _of_sampled(output: Any) -> list[float | None] | None:
    """The log-prob of each sampled token: at each position a dict from id to Logprob, or to a number."""
    if output.logprobs is None:
        return None
    found: list[float | None] = []
    for token, position in zip(output.token_ids, output.logprobs, strict=False):
        entry = position.get(int(token)) if position is not None else None
        found.append(getattr(entry, "logprob", entry))
    return found


def settings_of_trainer(trainer: Any, place: Place) -> Site:
    """What a GRPOTrainer or RLOOTrainer of TRL gives to vLLM; it divides its own logits by the temperature."""
    written: dict[str, Any] = {
        "temperature": trainer.temperature,
        "top_p": trainer.top_p,
        "top_k": trainer.top_k or -1,
        "min_p": trainer.min_p or 0.0,
        "repetition_penalty": trainer.repetition_penalty,
        "max_tokens": trainer.max_completion_length,
    }
    written |= getattr(trainer.args, "generation_kwargs", None) or {}
    return site_of("vllm", written, place=place, text="given to vLLM by the trainer")


def processed_by_trainer(trainer: Any) -> bool:
    """Whether the log-probs that TRL gets of vLLM are those of the distribution that drew. It asks a colocated
    engine for them (since 0.24); of a server that it did not start this cannot be seen."""
    engine = getattr(trainer, "vllm_generation", None)
    return getattr(engine, "mode", getattr(trainer, "vllm_mode", "")) == "colocate"
