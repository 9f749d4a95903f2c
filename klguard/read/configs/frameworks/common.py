"""What the tables of several frameworks say in the same words."""

from __future__ import annotations

from klguard.read.configs.written import Written, renamed
from klguard.settings import Known, Value

FILTERS = ("temperature", "top_p", "top_k")
PENALTIES = ("min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


def divides(name: str) -> dict[str, str]:
    """The mitigation of a framework that takes its log-probs at the temperature it samples with."""
    return {"temperature": f"{name} divides the logits of policy and reference by the same temperature"}


def is_true(written: Written, name: str) -> bool:
    return written.get(name) is True


def without_kl(values: dict[str, Value], off: bool) -> dict[str, Value]:
    """With the fact that there is no KL term, where that is so."""
    return {**without_loss(values, off), "kl_term": Known(False)} if off else values


def without_loss(values: dict[str, Value], off: bool) -> dict[str, Value]:
    """Without what is said of the KL in the loss, where it has none."""
    return {n: v for n, v in values.items() if n not in ("kl_loss_type", "kl_loss_coef")} if off else values


def greedy(written: Written, values: dict[str, Value], name: str, means: object) -> dict[str, Value]:
    """vLLM and SGLang know greedy search as a temperature of 0."""
    mode = written.first(name)
    return {**values, "temperature": renamed(mode, 0.0)} if mode and mode.value is means else values


def runs(written: Written, *words: str) -> bool:
    """Whether one of these words is in what the command line starts."""
    return any(word in part for part in written.command for word in words) or any(
        word in str(value.value)
        for name, value in written.values.items()
        if name in ("m", "module")
        for word in words
    )


GROUPED = frozenset(
    "grpo grpo_passk grpo_vectorized gpg rloo rloo_vectorized opo dr_grpo group_norm reinforce_baseline "
    "reinforce_plus_plus_baseline gspo cispo".split()
)
"""Estimators whose advantage is relative to the other responses to the prompt."""


def with_group(written: Written, values: dict[str, Value], estimator: str, size: str) -> dict[str, Value]:
    """With the size of a group, where the advantage is relative to the group."""
    number = written.first(size)
    if number is not None and str(written.get(estimator)).lower() in GROUPED:
        return {**values, "group_size": number}
    return values
