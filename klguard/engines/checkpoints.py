"""What the generation_config.json of well-known checkpoints fills in.

Patterns match the name of a hub repository without its owner, because copies and quantised copies carry the
file on. Only values that shape the distribution or end the text are listed. Of the gated repositories the
files were read from unchanged copies. A version is that of transformers which saved the file, "" where
copies differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from klguard.settings import Hop, HopKind, Known, Layer, LayerKind

SIZE = r"-\d+(\.\d+)?[bm]"
QUANTISED = r"(-(unsloth-)?bnb-4bit|-4bit|-gptq(-int[48])?|-awq|-int[48]|-fp8|-hf|-bf16)*"


@dataclass(frozen=True)
class Checkpoint:
    """One family of checkpoints; `pattern` matches the whole repository name, in lower case."""

    pattern: str
    values: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""


LLAMA = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
QWEN_CHAT = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
QWEN_THINKING = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20}
ALMOST_GREEDY = {"do_sample": True, "repetition_penalty": 1.05}
QWEN_BASE = {"do_sample": False, "max_new_tokens": 2048}
BART_CNN = {
    "num_beams": 4,
    "no_repeat_ngram_size": 3,
    "min_length": 56,
    "max_length": 142,
    "length_penalty": 2.0,
    "early_stopping": True,
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 2,
}

CHECKPOINTS = (
    Checkpoint(rf"(meta-)?llama-3{SIZE}(-instruct)?", LLAMA, "4.40.0.dev0"),
    Checkpoint(rf"(meta-)?llama-3\.1{SIZE}-instruct", LLAMA, "4.42.3"),
    Checkpoint(rf"(meta-)?llama-3\.1{SIZE}", LLAMA),
    Checkpoint(rf"(meta-)?llama-3\.2{SIZE}(-instruct)?", LLAMA, "4.45.0.dev0"),
    Checkpoint(rf"(meta-)?llama-3\.3{SIZE}-instruct", LLAMA),
    Checkpoint(rf"llama-2{SIZE}(-chat)?", LLAMA),
    Checkpoint(r"qwen2(\.5)?-(0\.5|1\.5)b-instruct", {**QWEN_CHAT, "repetition_penalty": 1.1}, "4.37.0"),
    Checkpoint(rf"qwen2(\.5)?(-coder)?{SIZE}-instruct", {**QWEN_CHAT, "repetition_penalty": 1.05}, "4.37.0"),
    Checkpoint(
        rf"qwen2-vl{SIZE}-instruct",
        {**ALMOST_GREEDY, "temperature": 0.1, "top_p": 0.001, "top_k": 1},
    ),
    Checkpoint(rf"qwen2\.5-vl{SIZE}-instruct", {**ALMOST_GREEDY, "temperature": 1e-6}),
    Checkpoint(rf"qwen3{SIZE}(-a\d+b)?-instruct-2507", QWEN_CHAT, "4.51.0"),
    Checkpoint(rf"qwen3{SIZE}(-a\d+b)?(-thinking-2507)?", QWEN_THINKING, "4.51.0"),
    Checkpoint(rf"qwen(1\.5|2|2\.5){SIZE}", QWEN_BASE),
    Checkpoint(rf"qwen3{SIZE}(-a\d+b)?-base", QWEN_BASE, "4.51.0"),
    Checkpoint(rf"gemma-3{SIZE}(-it|-pt)?", {"do_sample": True, "top_k": 64, "top_p": 0.95}, "4.50.0.dev0"),
    Checkpoint(
        rf"deepseek-r1(-zero)?(-distill-(qwen|llama){SIZE})?",
        {"do_sample": True, "temperature": 0.6, "top_p": 0.95},
        "4.39.3",
    ),
    Checkpoint(r"deepseek-coder-v2-lite-instruct", {"do_sample": True, "temperature": 0.3, "top_p": 0.95}),
    Checkpoint(r"mistral-small-24b-instruct-2501", {"do_sample": True, "temperature": 0.15}),
    Checkpoint(r"mistral-7b(-instruct)?-v0\.[123]"),
    Checkpoint(r"gpt-oss-(20|120)b", {"do_sample": True}),
    Checkpoint(r"salamandra-7b", {"temperature": 0.1, "top_p": 0.95, "repetition_penalty": 1.2}),
    Checkpoint(r"bart-large-cnn", BART_CNN),
    Checkpoint(r"(distil)?gpt2(-medium|-large|-xl|-imdb)?"),
    Checkpoint(r"gpt-(neo|j)(-\d+(\.\d+)?[bm])"),
    Checkpoint(r"pythia-\d+(\.\d+)?[bm](-deduped)?"),
    Checkpoint(r"opt-(iml-)?(max-)?\d+(\.\d+)?[bm]"),
    Checkpoint(r"(flan-)?t5-(small|base|large|xl|xxl|3b|11b)"),
)
"""The first pattern that matches counts. No values: the checkpoint is known to be neutral."""


def known(model_name: str) -> Checkpoint | None:
    """The known checkpoint that a hub repository name stands for; None for others, and for paths."""
    if model_name.startswith((".", "/", "~")) or model_name.count("/") > 1 or "\\" in model_name:
        return None
    name = model_name.rpartition("/")[2].lower()
    return next((c for c in CHECKPOINTS if re.fullmatch(c.pattern + QUANTISED, name)), None)


def layer_for(model_name: str) -> Layer | None:
    """The CHECKPOINT layer that loading `model_name` brings along; None where its file is not known."""
    found = known(model_name)
    if found is None:
        return None
    hops = (Hop(HopKind.CHECKPOINT, None, f"generation_config.json of {model_name}"),)
    values = {name: Known(value, hops) for name, value in found.values.items()}
    return Layer(LayerKind.CHECKPOINT, values, version=found.version)


DROPOUT = (
    (r"(distil)?gpt2(-medium|-large|-xl)?(-imdb)?", 0.1),
    (r"dialogpt-(small|medium|large)", 0.1),
    (rf"opt{SIZE}", 0.1),
    (r"(flan-)?t5-(small|base|large|xl|xxl|3b|11b)", 0.1),
    (r"bart-(base|large)(-cnn)?", 0.1),
)
"""The largest dropout probability in the config.json of checkpoints that keep one; most later ones have 0."""


def dropout_of(model_name: str) -> float | None:
    """The dropout probability that a well-known checkpoint is loaded with; None where it is not known to have one."""
    name = model_name.rstrip("/").rpartition("/")[2].lower()
    return next((p for pattern, p in DROPOUT if re.fullmatch(pattern, name)), None)
