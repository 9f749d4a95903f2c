"""SGLang: sampling parameters, what its OpenAI server fills in, and the log-probs it returns, for a guard.

Returned log-probs are taken after temperature, penalties and bias, and before top-k, top-p and min-p; before 0.5
after a renormalised top-p as well; with SGLANG_RETURN_ORIGINAL_LOGPROB=1 of the bare logits.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from klguard.engines.versions import version_of, within
from klguard.guard.caller import caller
from klguard.guard.frameworks.engines import (
    BEFORE_FILTERS,
    RAW,
    Returned,
    checkpoint_layer,
    padded,
    renamed,
    site_of,
)
from klguard.guard.live import _versions, read_object
from klguard.settings import Place, Site

INHERITED = {name: name for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")}
"""What the OpenAI server takes from a checkpoint's generation config, with --sampling-defaults model."""

READS_CHECKPOINT = ">=0.5.3"
OPENAI = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
}


def settings(params: Any, *, place: Place | None = None) -> Site:
    """What a SamplingParams, or the dict that `Engine.generate` takes, says: the engine merges nothing more."""
    return read_object(params, place=place or caller(), engine="sglang")


def request_settings(
    request: Mapping[str, Any],
    checkpoint: Any = None,
    *,
    sampling_defaults: str = "model",
    preferred: Mapping[str, Any] | None = None,
    model: str = "the served model",
    version: str | None = None,
    place: Place | None = None,
) -> Site:
    """What is in force for a request to the OpenAI endpoints, which fill in what it leaves out, since 0.5.3 from the
    checkpoint's generation config.

    checkpoint   as for `klguard.guard.frameworks.vllm.request_settings`.
    sampling_defaults, preferred   as the server was started with (--sampling-defaults,
                 --preferred-sampling-params).
    """
    body = {**request, **(request.get("extra_body") or {})}
    written = {OPENAI.get(name, name): value for name, value in body.items() if value is not None}
    versions = {"sglang": version} if version else _versions("sglang")
    below = []
    if preferred:
        below.append(checkpoint_layer(preferred, "preferred_sampling_params"))
    if sampling_defaults == "model" and within(version_of("sglang", versions), READS_CHECKPOINT):
        below.append(renamed(checkpoint_layer(checkpoint, model), INHERITED))
    return site_of("sglang", written, below, place=place, text="in the request", version=version)


def returned(
    outputs: Iterable[Mapping[str, Any]],
    params: Any = None,
    *,
    original_logprobs: bool | None = None,
    pad_token_id: int = 0,
    device: torch.device | str | None = None,
) -> Returned:
    """What `Engine.generate(..., return_logprob=True)` returned, each response a row.

    outputs  dicts with `output_ids` and `meta_info`, in which `output_token_logprobs` are (log-prob, id, text);
    params   what was asked for; original_logprobs whether the engine ran with SGLANG_RETURN_ORIGINAL_LOGPROB=1,
    as this process has it when None. ValueError where the log-probs are of other tokens than the ids.
    """
    if original_logprobs is None:
        original_logprobs = os.environ.get("SGLANG_RETURN_ORIGINAL_LOGPROB", "").lower() in ("1", "true")
    site = params if params is None or isinstance(params, Site) else settings(params)
    tokens, values = [], []
    for number, output in enumerate(outputs):
        entries = output.get("meta_info", {}).get("output_token_logprobs")
        ids = output.get("output_ids")
        if ids is None and entries is None:
            raise ValueError(f"output {number} has neither output_ids nor output_token_logprobs")
        ids = [int(entry[1]) for entry in entries] if ids is None else [int(one) for one in ids]
        if entries is not None and [int(entry[1]) for entry in entries] != ids:
            raise ValueError(f"the log-probs of output {number} are of other tokens than its output_ids")
        tokens.append(ids)
        values.append(None if entries is None else [entry[0] for entry in entries])
    return padded(tokens, values, RAW if original_logprobs else BEFORE_FILTERS, site, pad_token_id, device)
