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
"""Further programs of the same cause classes. Ids with a number are public threads; the others are no incidents."""

INCIDENTS = {
    incident["id"]: incident
    for line in Path(__file__).with_name("incidents.jsonl").read_text(encoding="utf-8").splitlines()
    for incident in [json.loads(line)]
}

UNNAMED = {
    "verl-3287": "tried with the first response token masked out: KLG812 was not said; no invariant looks for it",
    "trl-2387": "tried without a stop token: neither KLG817 nor KLG863 was said, as the cut mask looks complete",
    "trl-204": "tried for 27 steps with a distribution that sharpens: neither KLG862 nor KLG604 was said",
    "trl-3004": "tried with a mean of row means in place of a mean over tokens: KLG834 was not said in 6 steps",
    "nemo-rl-305": "whether a schedule counts minibatches or iterations is not visible in the loop",
    "prime-rl-2034": "dividing by sequences or by tokens is a choice, and each is consistent with itself",
    "marin-6335": "tried with empty responses: nothing was said; no invariant judges a rollout without a token yet",
    "verl-4711": "a figure by a definition that is not known, here divided once too often, says nothing",
    "prime-rl-568": "a mean that rounding has spoilt is a figure by a definition that is not known",
    "trl-4723": "the reference may be meant to differ from the first policy; only a copy is held to be one",
    "trl-6591": "as trl-4723: the base under a trained adapter is a permissible reference",
    "trl-4857": "which log-probs a loop compares in a mask of its own is not told to the guard",
}
"""Why not, in a line each."""
