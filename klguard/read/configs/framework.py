"""What a training framework is to the reader of its configurations: its names for the settings that matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from klguard.read.configs.written import Written
from klguard.settings import Value

NOTHING: Mapping[str, Any] = {}


def always(engine: str) -> Callable[[Written], str]:
    """One engine, whatever is written."""
    return lambda written: engine


@dataclass(frozen=True)
class Framework:
    """One framework.

    name         as it is called in messages.
    words        without one of these in its bytes a file is none of its configurations.
    recognise    whether these values are a configuration of it.
    engine       which engine draws the rollouts: "vllm", "sglang" or "transformers".
    rollout      setting of the engine -> names it may have here, the strongest first.
    uncertain    settings of the engine that only some of its releases hand on, likewise.
    loss         "kl_coef", "target", "kl_penalty", "kl_loss_type" and the like -> names, likewise.
    finish       settings of the engine -> the same, as the framework passes them on.
    wiring       what it does about the KL and the groups, from the values: names as in `loss`, and facts.
    mitigations  setting -> words, where the trainer itself makes a setting harmless for the ratio.
    defaults     what the framework itself sets where a setting is left alone, if that is not neutral, in the release
                 that what is written is for.
    class_name   the class of a library in Python whose arguments these are, "" for a framework with names of its own.
    section      what the arguments of the class stand below, "" where they stand at the top.
    """

    name: str
    words: tuple[bytes, ...]
    recognise: Callable[[Written], bool]
    engine: Callable[[Written], str] = always("vllm")
    rollout: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    uncertain: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    loss: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    finish: Callable[[Written, dict[str, Value]], dict[str, Value]] = lambda written, values: values
    wiring: Callable[[Written, dict[str, Value]], dict[str, Value]] = lambda written, values: values
    mitigations: Mapping[str, str] = field(default_factory=dict)
    defaults: Callable[[Written], Mapping[str, Any]] = lambda written: NOTHING
    class_name: str = ""
    section: str = ""


def under(prefix: str, *names: str) -> dict[str, tuple[str, ...]]:
    """Settings that have their own names below a prefix."""
    return {name: (f"{prefix}.{name}",) for name in names}


def same(*names: str) -> dict[str, tuple[str, ...]]:
    """Settings that have their own names at the top."""
    return {name: (name,) for name in names}
