"""All replays, and the incidents that klguard does not name."""

from __future__ import annotations

import json
from pathlib import Path

from tests.incidents import (
    eos_length,
    generation_settings,
    kl_estimator,
    optimizer_config,
    other,
    padding_mask,
    precision,
    ref_model,
    reward,
    sampler_mismatch,
)

_MODULES = (
    eos_length,
    generation_settings,
    kl_estimator,
    optimizer_config,
    other,
    padding_mask,
    precision,
    ref_model,
    reward,
    sampler_mismatch,
)
REPLAYS = tuple(replay for module in _MODULES for replay in module.REPLAYS)
SIBLINGS = tuple(replay for module in _MODULES for replay in getattr(module, "SIBLINGS", ()))
"""Further programs of the same cause classes."""

INCIDENTS = {
    incident["id"]: incident
    for line in Path(__file__).with_name("incidents.jsonl").read_text(encoding="utf-8").splitlines()
    for incident in [json.loads(line)]
}

UNNAMED = {
    "trl-2387": "responses that are cut behind their first stop token are still drawn from the policy",
    "trl-204": "no replay of few steps moves entropy or KL far and long enough for KLG862 or KLG604",
    "trl-3004": "a KL that is logged as a mean of row means is one of the definitions that KLG834 accepts",
    "nemo-rl-305": "whether a schedule counts minibatches or iterations is not visible in the loop",
    "prime-rl-2034": "dividing by sequences or by tokens is a choice, and each is consistent with itself",
    "marin-6335": "a rollout without a single token carries nothing that any invariant could look at",
    "verl-4711": "a figure by a definition that is not known, here divided once too often, says nothing",
    "prime-rl-568": "a mean that rounding has spoilt is a figure by a definition that is not known",
    "trl-4723": "the reference may be meant to differ from the first policy; only a copy is held to be one",
    "trl-6591": "as trl-4723: the base under a trained adapter is a permissible reference",
    "trl-4857": "which log-probs a loop compares in a mask of its own is not told to the guard",
}
"""Why not, in a line each."""
