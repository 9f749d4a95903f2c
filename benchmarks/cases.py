"""The faults that benchmarks/guard_detection.py looks for: one case each, with the rule it belongs to.

Settings are keywords of transformers' generate(). What they are called in the guard's bank of hypotheses is
in `cause`: a whole name where the bank has that very value, the beginning of a name where it has the family
but not the value, empty where it has neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from benchmarks.policies import LEFT_OUT, Policy

PROMPT = 6
LENGTH = 48


@dataclass(frozen=True)
class Case:
    """One way in which tokens are not those of the policy that scores them.

    code      the rule of klguard for it, "" for what no setting causes.
    settings  keywords of generate(), or a function of the policy and its commonest tokens that makes them.
    fault     what is wrong outside generate(): see guard_detection.py.
    cause     its name in the bank; `alike` other names that mean the same here. {common} stands for the
              policy's commonest token, {stop} for its stop token.
    """

    name: str
    code: str = ""
    settings: Mapping[str, Any] | Callable[[Policy, list[int]], Mapping[str, Any]] = field(
        default_factory=dict
    )
    fault: str = ""
    cause: str = ""
    alike: tuple[str, ...] = ()

    def keywords(self, policy: Policy, common: list[int]) -> dict[str, Any]:
        """The keywords of generate() for this policy."""
        made = self.settings(policy, common) if callable(self.settings) else self.settings
        return dict(made)

    @property
    def bank(self) -> str:
        """Whether the bank has this value, only its family, or neither."""
        if not self.cause:
            return "neither"
        return "family" if self.cause.endswith(("=", "<")) else "value"

    def named(self, cause: str, policy: Policy, common: list[int]) -> bool:
        """Whether a cause is the true one, or of its family where the bank lacks the value."""
        names = [name for name in (self.cause, *self.alike) if name]
        meant = [name.format(common=common[0], stop=policy.stop) for name in names]
        return any(cause.startswith(name) if name[-1] in "=<" else cause == name for name in meant)


class CapLogits(LogitsProcessor):
    """A processor of somebody's own: no logit further above the row's mean than three standard deviations."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return torch.minimum(scores, scores.mean(-1, keepdim=True) + 3 * scores.std(-1, keepdim=True))


def _values(code: str, setting: str, cause: str, listed: tuple[float, ...], others: tuple[float, ...] = ()):
    for value in listed:
        yield Case(f"{setting}={value:g}", code, {setting: value}, cause=f"{cause}={value:g}")
    for value in others:
        yield Case(f"{setting}={value:g}", code, {setting: value}, cause=f"{cause}=")


def cases() -> list[Case]:
    """Every case; the first two are healthy."""
    ban = "banned_token={common}"
    return [
        Case("pure sampling"),
        Case("stop token ignored, tokens after it masked", "KLG303", {"eos_token_id": None}),
        *_values("KLG101", "top_k", "top_k", (20, 50, 200), (35, 500)),
        Case("top_k left out (default 50)", "KLG102", {"top_k": LEFT_OUT}, cause="top_k=50"),
        *_values("KLG103", "top_p", "top_p", (0.9, 0.95, 0.99), (0.85,)),
        *_values("KLG104", "min_p", "min_p", (0.05, 0.1), (0.02,)),
        # at 0.7 and above the typical set of these policies is their nucleus: the same sampler by another name
        Case("typical_p=0.2", "KLG105", {"typical_p": 0.2}, cause="typical_p=0.2"),
        Case("typical_p=0.5", "KLG105", {"typical_p": 0.5}, cause="typical_p=0.5"),
        Case("typical_p=0.9", "KLG105", {"typical_p": 0.9}, cause="typical_p=0.9", alike=("top_p=0.9",)),
        Case("typical_p=0.7", "KLG105", {"typical_p": 0.7}, cause="typical_p=", alike=("top_p=",)),
        *_values("KLG105", "epsilon_cutoff", "epsilon_cutoff", (3e-4, 1e-3), (5e-3,)),
        Case("eta_cutoff=0.002", "KLG105", {"eta_cutoff": 2e-3}),
        Case("top_h=0.4", "KLG105", {"top_h": 0.4}),
        *_values("KLG106", "temperature", "temperature", (0.7, 0.9, 1.1, 1.5), (0.97, 1.2)),
        *_values("KLG107", "repetition_penalty", "repetition_penalty", (1.05, 1.1, 1.2), (1.15,)),
        Case("encoder_repetition_penalty=1.3", "KLG107", {"encoder_repetition_penalty": 1.3},
             cause="encoder_repetition_penalty=1.3"),
        Case("no_repeat_ngram_size=2", "KLG108", {"no_repeat_ngram_size": 2}, cause="no_repeat_ngram=2"),
        Case("encoder_no_repeat_ngram_size=1", "KLG108", {"encoder_no_repeat_ngram_size": 1},
             cause="encoder_no_repeat_ngram=1"),
        Case("bad_words_ids, one token", "KLG109", lambda p, c: {"bad_words_ids": [c[:1]]}, cause=ban),
        Case("suppress_tokens, one token", "KLG109", lambda p, c: {"suppress_tokens": c[:1]}, cause=ban),
        Case("suppress_tokens, the stop token", "KLG109", lambda p, c: {"suppress_tokens": [p.stop]},
             cause="eos_suppressed", alike=("eos_suppressed<64", "banned_token={stop}")),
        Case("begin_suppress_tokens, the stop token", "KLG109",
             lambda p, c: {"begin_suppress_tokens": [p.stop]}, cause="eos_suppressed<1"),
        Case("sequence_bias, +2 for one token", "KLG109", lambda p, c: {"sequence_bias": [[c[:1], 2.0]]},
             cause="biased_token={common}"),
        Case("forced_eos_token_id", "KLG110", lambda p, c: {"forced_eos_token_id": p.stop},
             cause=f"forced_eos={LENGTH}"),
        Case("a logits processor of one's own", "KLG111", {"logits_processor": LogitsProcessorList([CapLogits()])}),
        Case("prefix_allowed_tokens_fn, three quarters of the ids", "KLG111",
             lambda p, c: {"prefix_allowed_tokens_fn": _three_quarters(p)}),
        Case("guidance_scale=1.5", "KLG111", {"guidance_scale": 1.5}),
        Case("watermark", "KLG111", {"watermarking_config": {"bias": 1.0, "greenlist_ratio": 0.5}}, cause="watermark"),
        Case("do_sample=False", "KLG201", {"do_sample": False}, cause="greedy"),
        Case("num_beams=4", "KLG202", {"do_sample": False, "num_beams": 4}),
        Case("num_beams=4, do_sample", "KLG202", {"num_beams": 4}),
        Case("penalty_alpha=0.6, top_k=4", "KLG203", {"do_sample": False, "penalty_alpha": 0.6, "top_k": 4}),
        Case("dola_layers=low", "KLG203", {"dola_layers": "low"}),
        Case("min_length, 16 after the prompt", "KLG301", {"min_length": PROMPT + 16}, cause="eos_suppressed<16"),
        Case("min_new_tokens=16", "KLG302", {"min_new_tokens": 16}, cause="eos_suppressed<16"),
        Case("min_new_tokens=24", "KLG302", {"min_new_tokens": 24},
             cause="eos_suppressed<"),
        Case("exponential_decay_length_penalty=(8, 1.05)", "KLG308",
             {"exponential_decay_length_penalty": (8, 1.05)}, cause="eos_boosted>=", alike=("biased_token={stop}",)),
        Case("dropout of 0.1 in the rollout", "KLG407", fault="dropout=0.1"),
        Case("dropout of 0.01 in the rollout", "KLG407", fault="dropout=0.01"),
        Case("scored at temperature 0.7", fault="scoring_temperature", cause="temperature="),
        Case("shift forgotten", fault="shift-1", cause="shift-1"),
        Case("shifted twice", fault="shift+1", cause="shift+1"),
        Case("weights one update old", fault="stale"),
        Case("weights one update old, their log-probs given", fault="stale_given", cause="stale"),
    ]  # fmt: skip


def _three_quarters(policy: Policy) -> Callable[[int, Tensor], list[int]]:
    allowed = [token for token in range(policy.vocabulary) if token % 4 or token == policy.stop]
    return lambda batch, ids: allowed
