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
    "trl-3004": "by which mean the KL term enters the loss is not told: means over tokens and over rows are both in use",
    "prime-rl-2034": "dividing by sequences or by tokens is a choice, and each is consistent with itself",
    "trl-4857": "which log-probs a loop compares in a mask of its own is not told to the guard",
}
"""Why not, in a line each."""
