"""`klguard demo`: the experiment on a laptop, with a picture and a page of it at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import torch

from klguard.lab.drawing import draw
from klguard.lab.experiment import SETUP, Outcome, run
from klguard.lab.grammar import Tokenizer
from klguard.lab.live import Live, conclusions
from klguard.lab.page import write
from klguard.lab.rollout import sample, sampling_settings
from klguard.lab.settings import described
from klguard.lab.student import student, untrained

READING = 200
"""Batches of texts that the policy learns from."""


def demo(
    sampling: Mapping[str, Any],
    *,
    guarded: bool = True,
    seed: int = 0,
    output: Path,
    steps: int = SETUP.steps,
    reading: int = READING,
    stream: IO[str] = sys.stdout,
    color: str = "auto",
) -> tuple[Outcome, Outcome]:
    """Train the policy, run PPO under pure sampling and under `sampling`, and write demo.png and demo.html into
    `output`, with the guard's journals. Raises OSError, MissingMatplotlib and MissingPlotly, and ValueError for
    settings that generate() does not take."""
    started, live = time.monotonic(), Live(stream, steps=steps, color=color)
    try_settings(sampling)
    output.mkdir(parents=True, exist_ok=True)
    live.line("PPO with a reward that is -1 for every response: nothing to learn, for either run.")
    policy = student(steps=reading, seed=seed, told=lambda step, loss: live.reading(step, reading, loss))
    outcomes: list[Outcome] = []
    for name, settings in (("safe", {}), ("unsafe", sampling)):
        outcomes.append(
            run(
                policy,
                settings,
                config=replace(SETUP, steps=steps, seed=seed),
                guarded=guarded,
                journal=_fresh(output / f"{name}.jsonl") if guarded else None,
                told=_showing(live, outcomes),
            )
        )
    live.settle()
    safe, unsafe = outcomes
    live.line("")
    for sentence in conclusions(safe, unsafe):
        live.line(sentence)
    live.line("")
    for path in (draw(output / "demo.png", outcomes), write(output / "demo.html", safe, unsafe)):
        live.line(f"wrote {path}")
    live.line(f"{time.monotonic() - started:.0f} s")
    return safe, unsafe


def try_settings(sampling: Mapping[str, Any]) -> None:
    """ValueError where generate() refuses the settings: tried on a model without training, before the work begins."""
    model, tokenizer = untrained(), Tokenizer()
    prompts = torch.tensor([tokenizer.encode("the dog"), tokenizer.encode("the cat")])
    settings = sampling_settings(model, tokenizer, SETUP.max_new_tokens, **sampling)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            sample(model, prompts, torch.ones_like(prompts), settings)
    except Exception as error:
        raise ValueError(f"generate() does not take {described(sampling)}: {error}") from error


def _showing(live: Live, done: list[Outcome]) -> Callable[[Outcome], None]:
    """Shows a run below those that are done."""
    earlier = list(done)
    return lambda outcome: live.update([*earlier, outcome])


def _fresh(path: Path) -> Path:
    """A journal of an earlier demonstration would be gone on with."""
    path.unlink(missing_ok=True)
    return path


def quiet() -> None:
    """One thread, and no warnings of transformers about settings that are there on purpose."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.set_num_threads(1)
