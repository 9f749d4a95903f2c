"""The frameworks whose configurations are read, each from its own source; names of older releases too."""

from __future__ import annotations

from typing import Any

from klguard.read.configs.framework import Framework
from klguard.read.configs.frameworks.files import (
    AREAL,
    AXOLOTL,
    NEMO_ALIGNER,
    NEMO_RL,
    PRIME_RL,
    RL4LMS,
    ROLL,
    TORCHTUNE,
    TRL,
    TRLX,
)
from klguard.read.configs.frameworks.launchers import LLAMA_FACTORY, MS_SWIFT, OPEN_INSTRUCT, OPENRLHF, SLIME
from klguard.read.configs.frameworks.verl import EASYR1, SKYRL, VERL
from klguard.read.configs.written import Written

OFF_FROM = 100_000
"""A top_k from which frameworks mean the whole vocabulary (AReaL writes 1e8)."""

FRAMEWORKS = (
    VERL, EASYR1, SKYRL, OPENRLHF, OPEN_INSTRUCT, LLAMA_FACTORY, MS_SWIFT, SLIME,
    NEMO_RL, NEMO_ALIGNER, PRIME_RL, AREAL, ROLL, TRLX, RL4LMS, TORCHTUNE, TRL, AXOLOTL,
)  # fmt: skip


def framework_of(written: Written) -> Framework | None:
    """Whose configuration this is."""
    return next((one for one in FRAMEWORKS if one.recognise(written)), None)


def whole_vocabulary(name: str, value: Any) -> bool:
    """Whether a value is some framework's way to leave `name` off."""
    return value is None or name == "top_k" and isinstance(value, int | float) and value >= OFF_FROM
