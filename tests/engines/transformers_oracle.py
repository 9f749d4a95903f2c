"""transformers itself as the judge of `klguard.engines.transformers`.

A draw is a checkpoint's generation_config, an object, and keyword arguments, each with settings taken at
random from neutral, active and faulty values. The library merges them and builds its logits processors; the
engine predicts what the library will have merged, which processors it will have built, whether it draws at
random, and whether it refuses.

Run as a program it prints its result as JSON, so that one script can ask several versions of the library.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, LogitsProcessorList

from klguard.engines import ENGINES
from klguard.settings import Absent, Default, Known, Layer, LayerKind, OneOf, SiteKind, Value, members

ENGINE = ENGINES["transformers"]
VERSION = transformers.__version__
VERSIONS = {"transformers": VERSION}
FIVE = Version(VERSION) >= Version("5.0.0")
PROMPT = torch.tensor([[5, 6, 7, 8, 9]])
VOCABULARY, EOS = 200, 3

CHOICES: dict[str, tuple[Any, ...]] = {
    "do_sample": (True, False, None, 1, 0),
    "temperature": (1.0, 1, 0.7, 1.3, None, 0.0, 2, 0),
    "top_k": (0, 0.0, 50, 20, None, -1, 1, 20.0),
    "top_p": (1.0, 1, 0.9, None, 1.5, 0.0, -0.1),
    "min_p": (None, 0.0, 0, 0.05, 1.5, -0.1),
    "typical_p": (1.0, None, 0.9, 2.0, 0.0),
    "epsilon_cutoff": (0.0, None, 3e-4, 1.0, 2, -0.5),
    "eta_cutoff": (0.0, None, 3e-4, 1.0, 2, -0.5),
    "repetition_penalty": (1.0, 1, None, 1.05, 2, 0.0, -1.0),
    "encoder_repetition_penalty": (1.0, 1, None, 1.05, 2, 0.0),
    "no_repeat_ngram_size": (0, None, 3, -1, 3.0),
    "encoder_no_repeat_ngram_size": (0, None, 3, -1, 3.0),
    "bad_words_ids": (None, [[7]], []),
    "suppress_tokens": (None, [5], []),
    "begin_suppress_tokens": (None, [5], []),
    "sequence_bias": (None, [[[5], 2.0]], []),
    "exponential_decay_length_penalty": (None, (5, 1.1)),
    "min_length": (0, -1, None, 12, 12.0),
    "min_new_tokens": (None, 0, -1, 4, 4.0),
    "forced_bos_token_id": (None, 4),
    "forced_eos_token_id": (None, EOS),
    "guidance_scale": (None, 1, 1.0, 1.5, 0.5),
    "num_beams": (1, 2, 4),
    "penalty_alpha": (None, 0.0, 0.6),
    "renormalize_logits": (True, False),
    "remove_invalid_values": (True, False),
    "max_new_tokens": (8, 20, None, 0),
}
if FIVE:
    CHOICES |= {"top_h": (None, 0.5, 1.0, 1.5, 0.0), "num_beams": (1, 2, 4, None)}
FALLS_BACK = Version("4.50") <= Version(VERSION) < Version("5.0.0")
SAVED_WITH = ("4.40.0", "4.49.0", "4.50.0", "4.57.3", "5.1.0")

NEUTRAL_PROCESSORS = {"LogitNormalization", "InfNanRemoveLogitsProcessor"}


@dataclass
class Draw:
    """Settings by layer, and the release that saved the checkpoint. `object` is None where none is passed."""

    kwargs: dict[str, Any]
    object: dict[str, Any] | None
    checkpoint: dict[str, Any]
    saved_with: str
    falls_back: bool | None = None


@dataclass
class Tally:
    """What was compared, and every disagreement in words."""

    draws: int = 0
    refused: int = 0
    values: int = 0
    sampled: int = 0
    untouched: int = 0
    built: Counter = field(default_factory=Counter)
    disagreements: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {"transformers": VERSION, **vars(self), "built": dict(sorted(self.built.items()))}


def tiny_model() -> GPT2LMHeadModel:
    """A GPT-2 of one layer with random weights."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=64,
        n_embd=8,
        n_layer=1,
        n_head=1,
        bos_token_id=EOS,
        eos_token_id=EOS,
    )
    return GPT2LMHeadModel(config).eval()


def some_settings(rng: random.Random, most: int, careful: bool) -> dict[str, Any]:
    """A few settings with a value each; the sampling switches come up more often than the rest.

    A careful writer uses only values that the engine calls off.
    """
    names = rng.sample(sorted(CHOICES), rng.randint(0, most))
    names += [name for name in ("do_sample", "top_k", "temperature") if rng.random() < 0.35]
    chosen = {name: rng.choice(CHOICES[name]) for name in names}
    if careful:
        chosen = {name: value for name, value in chosen.items() if ENGINE.is_off(name, value, VERSIONS)}
    if rng.random() < 0.6:  # refusals end a draw early: most draws hold no faulty value
        chosen = {name: value for name, value in chosen.items() if not ENGINE.error(name, value, VERSIONS)}
    return chosen


def draws(count: int, seed: int) -> Iterator[Draw]:
    """`count` draws, the same for the same seed and version."""
    rng = random.Random(seed)
    for _ in range(count):
        careful = rng.random() < 0.4
        kwargs = some_settings(rng, 4, careful) if rng.random() < 0.7 else {}
        given = some_settings(rng, 5, careful) if rng.random() < 0.6 else None
        if careful:
            (kwargs if given is None or rng.random() < 0.5 else given).update(do_sample=True, top_k=0)
        falls_back = rng.choice((None, None, None, True, False)) if FALLS_BACK else None
        checkpoint = some_settings(rng, 4, careful and rng.random() < 0.7)
        yield Draw(kwargs, given, checkpoint, rng.choice(SAVED_WITH), falls_back)


def layers_of(draw: Draw, wrap=Known) -> list[Layer]:
    """The draw as a reader would hand it to the engine; `wrap` makes a value of a plain one."""
    asked = {} if draw.falls_back is None else {"use_model_defaults": Known(draw.falls_back)}
    layers = [Layer(LayerKind.KWARGS, {n: wrap(v) for n, v in draw.kwargs.items()} | asked)]
    if draw.object is not None:
        layers.append(Layer(LayerKind.OBJECT, {n: wrap(v) for n, v in draw.object.items()}))
    saved = {n: wrap(v) for n, v in draw.checkpoint.items()} | {"eos_token_id": Known(EOS)}
    return [*layers, Layer(LayerKind.CHECKPOINT, saved, version=draw.saved_with)]


def resolve(layers: list[Layer]) -> dict[str, Value]:
    return dict(ENGINE.resolve(layers, VERSIONS, kind=SiteKind.GENERATE).values)


def merged(model: GPT2LMHeadModel, draw: Draw) -> GenerationConfig:
    """What the library makes of the draw; ValueError or TypeError where it refuses."""
    model.generation_config = GenerationConfig(**draw.checkpoint, eos_token_id=EOS)
    model.generation_config.transformers_version = draw.saved_with
    given = None if draw.object is None else GenerationConfig(**draw.object)
    extra = {} if draw.falls_back is None else {"use_model_defaults": draw.falls_back}
    config, _ = model._prepare_generation_config(given, **extra, **draw.kwargs)
    model._prepare_special_tokens(config, True, device=PROMPT.device)
    return config


def processors(model: GPT2LMHeadModel, config: GenerationConfig) -> LogitsProcessorList:
    """The logits processors that generate() builds for a decoder-only model."""
    built = model._get_logits_processor(
        generation_config=config,
        input_ids_seq_length=PROMPT.shape[1],
        encoder_input_ids=PROMPT,
        prefix_allowed_tokens_fn=None,
        logits_processor=LogitsProcessorList(),
        device="cpu",
        model_kwargs={"attention_mask": torch.ones_like(PROMPT)},
    )
    return LogitsProcessorList(p for p in built if type(p).__name__ not in NEUTRAL_PROCESSORS)


def certain(value: Value) -> Any:
    assert isinstance(value, Known | Default), value
    return value.value


def plain_values(values: Mapping[str, Value]) -> dict[str, Any]:
    return {name: certain(value) for name, value in values.items()}


def bends(values: Mapping[str, Value]) -> set[str]:
    """The settings that the engine says bend the distribution."""
    return {
        name
        for name, value in values.items()
        if not ENGINE.is_off(name, certain(value), VERSIONS) and ENGINE.active(name, values, VERSIONS)
    }


def refusals(values: Mapping[str, Value]) -> list[str]:
    """Why the engine says that the library refuses, if it does."""
    why = {name: ENGINE.error(name, certain(value), VERSIONS) for name, value in values.items()}
    return [
        f"{name}: {words}"
        for name, words in why.items()
        if words and "raises" in words and ENGINE.active(name, values, VERSIONS)
    ]


BUILDS_ANYWAY = {
    "MinPLogitsWarper": lambda p: p.min_p == 0,
    "SuppressTokensLogitsProcessor": lambda p: not len(p.suppress_tokens),
    "SuppressTokensAtBeginLogitsProcessor": lambda p: not len(p.begin_suppress_tokens),
}
"""Processors that are built for a neutral value, and when they are neutral."""


def same(left: Any, right: Any) -> bool:
    """Equal, and None only to None; a tuple that went through a file is a list."""
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return list(left) == list(right)
    return left == right and (left is None) == (right is None)


def compare(model: GPT2LMHeadModel, draw: Draw, tally: Tally) -> None:
    """One draw: the library's answer against the engine's."""
    tally.draws += 1
    values = resolve(layers_of(draw))
    expected = refusals(values)
    try:
        config = merged(model, draw)
        built = processors(model, config)
        config.get_generation_mode(None)
    except (ValueError, TypeError) as error:
        tally.refused += 1
        # A value that a stronger layer replaces is refused all the same when its own object is made.
        written = [{n: Known(v) for n, v in layer.items()} for layer in (draw.checkpoint, draw.object or {})]
        if not expected and not any(map(refusals, written)):
            tally.disagreements.append(f"{draw}: refused ({error}), not predicted")
        return
    if expected:
        tally.disagreements.append(f"{draw}: accepted, predicted {expected}")
        return
    compare_values(draw, values, config, tally)
    compare_processors(draw, values, built, tally)
    compare_distribution(draw, values, config, built, tally)


def compare_values(draw: Draw, values: Mapping[str, Value], config: GenerationConfig, tally: Tally) -> None:
    """Every merged value."""
    for name in CHOICES.keys() & values.keys():
        tally.values += 1
        real = getattr(config, name, None)
        if not same(certain(values[name]), real):
            tally.disagreements.append(f"{draw}: {name} is {real!r}, predicted {values[name]}")


def compare_processors(
    draw: Draw, values: Mapping[str, Value], built: LogitsProcessorList, tally: Tally
) -> None:
    """The classes of the processors that do something."""
    real = {type(p).__name__ for p in built if not BUILDS_ANYWAY.get(type(p).__name__, lambda p: False)(p)}
    tally.built.update(real)
    sources = {ENGINE.settings[name].source for name in bends(values)}
    predicted = {source for source in sources if source.endswith(("Warper", "Processor", "Penalty"))}
    if real != predicted:
        tally.disagreements.append(f"{draw}: built {sorted(real ^ predicted)} differently: {sorted(real)}")


def compare_distribution(
    draw: Draw,
    values: Mapping[str, Value],
    config: GenerationConfig,
    built: LogitsProcessorList,
    tally: Tally,
) -> None:
    """Where the engine says that nothing bends the distribution, the processors keep the softmax as it is."""
    drawn = ENGINE.sampling(values, VERSIONS)
    tally.sampled += bool(drawn)
    if drawn is not bool(config.do_sample):
        tally.disagreements.append(f"{draw}: do_sample is {config.do_sample!r}, predicted sampling {drawn}")
    if bends(values):
        return
    tally.untouched += 1
    mode = config.get_generation_mode(None)
    plain_modes = ("sample", "greedy_search") if FIVE else ("sample",)
    if mode not in plain_modes:
        tally.disagreements.append(f"{draw}: predicted plain sampling, the mode is {mode}")
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 3
    before, after = logits.softmax(-1), built(PROMPT, logits.clone()).softmax(-1)
    if not torch.allclose(after, before, atol=1e-6):
        tally.disagreements.append(f"{draw}: predicted neutral, the distribution changes: {built}")


def compare_possible(model: GPT2LMHeadModel, draw: Draw, rng: random.Random, tally: Tally) -> None:
    """With values that may be absent and a checkpoint of unknown release, the truth is among the answers."""

    def wrap(value: Any) -> Value:
        return OneOf((Known(value), Absent())) if rng.random() < 0.5 else Known(value)

    try:
        config = merged(model, draw)
    except (ValueError, TypeError):
        return
    layers = layers_of(draw, wrap)
    if rng.random() < 0.5:
        layers[-1] = Layer(LayerKind.CHECKPOINT, layers[-1].values)
    for name, value in resolve(layers).items():
        real = getattr(config, name, None)
        if name in CHOICES and not any(same(certain(m), real) for m in members(value)):
            tally.disagreements.append(f"{draw}: {name} is {real!r}, not among {value}")


def run(count: int, seed: int = 0) -> Tally:
    """`count` draws against the installed library."""
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    tally, rng, model = Tally(), random.Random(seed), tiny_model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for draw in draws(count, seed):
            compare(model, draw, tally)
            compare_possible(model, draw, rng, tally)
    logging.disable(logging.NOTSET)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tally = run(args.draws, args.seed)
    print(json.dumps(tally.as_json(), indent=1, default=str))
    return bool(tally.disagreements)


if __name__ == "__main__":
    sys.exit(main())
