#!/usr/bin/env python3
"""The guard on an accelerator: what it changes, how often it waits, what it costs.

    python benchmarks/gpu.py [--size 0.5b] [--steps 12] [--device cuda]

The laboratory's PPO loop trains a decoder of a real architecture with random weights in bf16 (autocast). Three
variants: without a guard; with `with guard:` around it and nothing told; with every event told by hand. Measured:

identical    weights after a few steps under torch.use_deterministic_algorithms(True), against the run without a guard
waits        operations that made the host wait for the device, in a step (torch.cuda.set_sync_debug_mode)
step time    seconds of a step, over that without a guard: medians of steps that take turns      goal <= 1.01
peak memory  allocated by torch during training, over that without a guard                       goal <= 1.02

Writes benchmarks/results/gpu.json; the table comes last. With --device cpu and --size tiny it is a rehearsal: the
figures of the device are left out, and nothing is written. Exit status: 0 when every goal is met.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault(
    "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
)  # read when CUDA starts: deterministic matrix products
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, Qwen2Config  # noqa: E402

from benchmarks.machine import record  # noqa: E402
from klguard.guard.thinning import YOUNG  # noqa: E402
from klguard.lab.config import Config  # noqa: E402
from klguard.lab.loop import PPO  # noqa: E402
from klguard.lab.telling import Silent, Telling  # noqa: E402

TIME_GOAL, MEMORY_GOAL = 1.01, 1.02
PROMPT = 32
WARM_UP = 3
"""Steps before anything is timed: caches fill, and kernels are chosen."""

SHAPES: dict[str, Callable[[], Any]] = {
    "tiny": lambda: LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
    # Llama's design at 0.13 billion parameters
    "0.1b": lambda: LlamaConfig(
        vocab_size=32_000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
    ),
    # Qwen2.5-0.5B
    "0.5b": lambda: Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    # Llama-3.2-1B
    "1b": lambda: LlamaConfig(
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    ),
}

VARIANTS = ("without", "decorator", "by hand")
STOP, PAD = 1, 0


class Numbers:
    """As much of a tokenizer as the loop needs: ids are written as numbers."""

    pad_token_id, eos_token_id, padding_side = PAD, STOP, "left"

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def decode(self, ids: Any, skip_special_tokens: bool = False) -> str:
        kept = (int(number) for number in ids)
        return " ".join(str(n) for n in kept if not (skip_special_tokens and n in (PAD, STOP)))


def even(texts: list[str]) -> Tensor:
    """The reward (B,): the share of even ids."""
    rows = [[int(word) for word in text.split()] for text in texts]
    return torch.tensor([sum(n % 2 == 0 for n in row) / max(1, len(row)) for row in rows])


def model_of(size: str) -> nn.Module:
    """A decoder with random weights, the same at every call, without dropout."""
    torch.manual_seed(0)
    config = SHAPES[size]()
    config.eos_token_id, config.pad_token_id, config.bos_token_id = STOP, PAD, STOP
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config = GenerationConfig(eos_token_id=STOP, pad_token_id=PAD, bos_token_id=STOP)
    return model.float()


def loop_of(size: str, **options: Any) -> PPO:
    """The loop over a new copy of the model."""
    vocabulary = SHAPES[size]().vocab_size

    def prompts(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        ids = torch.randint(2, vocabulary, (count, PROMPT), generator=generator)
        lengths = torch.randint(PROMPT // 2, PROMPT + 1, (count, 1), generator=generator)
        attention = (torch.arange(PROMPT) >= PROMPT - lengths).long()
        return ids.masked_fill(attention == 0, PAD), attention

    small = {"rows": 8, "max_new_tokens": 16, "micro_batch": 4} if size == "tiny" else {}
    chosen = {"rows": 32, "max_new_tokens": 128, "micro_batch": 8, "learning_rate": 1e-6, "precision": "bf16"}
    config = Config(**chosen | small | options)
    return PPO(model_of(size), Numbers(vocabulary), prompts, even, config)


@contextlib.contextmanager
def guarded(loop: PPO, variant: str, *, later: bool = False) -> Iterator[tuple[Silent, Any]]:
    """Who is told of a step, and the guard; `later`: as far into a run as where it tests a quarter of the tokens."""
    if variant == "without":
        yield Silent(), None
        return
    # a model with random weights seldom ends by itself
    guard = loop.guarded(on_violation="record", ignore=["KLG863", "KLG861"])
    if later:
        thinning = guard._works.thinning
        thinning.load_state_dict(thinning.state_dict() | {"seen": YOUNG * thinning.budget})
    with guard:
        yield (Telling(guard, loop) if variant == "by hand" else Silent()), guard


def free() -> None:
    """Give back what is no longer used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# ----------------------------------------------------------------------------------------- measurements


def weights_after(size: str, variant: str, steps: int) -> tuple[list[Tensor], dict[str, Any]]:
    """The weights after some steps under deterministic algorithms, on the host, and what the guard has to say."""
    loop, said = loop_of(size, steps=steps), {}
    torch.use_deterministic_algorithms(True)
    try:
        torch.manual_seed(0)
        with guarded(loop, variant) as (tell, guard):
            for _ in range(steps):
                loop.step(tell)
    finally:
        torch.use_deterministic_algorithms(False)
    if guard is not None:
        said = {
            "codes": sorted({finding.code for finding in guard.findings}),
            "failure": None if guard.failure is None else repr(guard.failure),
            "exercised": len(guard.exercised),
            "log_evidence": guard.evidence.log_evidence,
            "tokens": guard.evidence.tokens,
        }
    kept = [parameter.detach().cpu() for parameter in loop.trained.parameters()]
    del loop, tell, guard
    free()
    return kept, said


def identical(size: str, steps: int = 3) -> dict[str, dict[str, Any]]:
    """For each variant: whether its weights are those of the run without a guard, bit by bit."""
    expected, _ = weights_after(size, "without", steps)
    found = {}
    for variant in VARIANTS[1:]:
        made, said = weights_after(size, variant, steps)
        same = all(torch.equal(a, b) for a, b in zip(expected, made, strict=True))
        found[variant] = {"identical": same, **said}
    return found


def waits(size: str, variant: str, steps: int = 3) -> float:
    """Operations for which the host waited, per step, as torch counts them. CUDA only."""
    loop = loop_of(size, steps=WARM_UP + steps)
    torch.manual_seed(0)
    with guarded(loop, variant) as (tell, _):
        for _ in range(WARM_UP):
            loop.step(tell)
        synchronize()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                for _ in range(steps):
                    loop.step(tell)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    free()
    return sum("synchronizing CUDA operation" in str(one.message) for one in caught) / steps


def peak_memory(size: str, variant: str, steps: int = 2) -> int:
    """Most bytes that torch had allocated while it trained. CUDA only."""
    loop = loop_of(size, steps=1 + steps)
    torch.manual_seed(0)
    with guarded(loop, variant) as (tell, _):
        loop.step(tell)  # the optimizer's state comes into being
        free()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(steps):
            loop.step(tell)
        synchronize()
        peak = torch.cuda.max_memory_allocated()
    del loop, tell
    free()
    return peak


def step_times(size: str, steps: int, *, later: bool) -> dict[str, list[float]]:
    """Seconds of each step of each variant. The variants take turns, in another order each round, so that a device
    that slows down slows all of them."""
    loops = {variant: loop_of(size, steps=WARM_UP + steps) for variant in VARIANTS}
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    with contextlib.ExitStack() as stack:
        tells = {
            name: stack.enter_context(guarded(loop, name, later=later))[0] for name, loop in loops.items()
        }
        for number in range(WARM_UP + steps):
            turn = number % len(VARIANTS)
            for variant in (*VARIANTS[turn:], *VARIANTS[:turn]):
                torch.manual_seed(number)  # the same responses for all
                synchronize()
                started = time.perf_counter()
                loops[variant].step(tells[variant])
                synchronize()
                if number >= WARM_UP:
                    seconds[variant].append(time.perf_counter() - started)
    del loops, tells
    free()
    return seconds


def ratios(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """For each variant: the median step, and the median of its ratios to the plain step of the same round."""
    plain = seconds[VARIANTS[0]]
    return {
        variant: {
            "seconds": statistics.median(mine),
            "ratio": statistics.median(a / b for a, b in zip(mine, plain, strict=True)),
        }
        for variant, mine in seconds.items()
    }


# ---------------------------------------------------------------------------------------------- all of it


def measure(size: str, steps: int, *, device: str) -> dict[str, Any]:
    """Every measurement that the device allows."""
    gpu = device == "cuda"
    parameters = sum(p.numel() for p in model_of(size).parameters())
    result: dict[str, Any] = {"size": size, "parameters": parameters, "identical": identical(size)}
    print("identical:", result["identical"], flush=True)
    for name, later in (("step_time_young", False), ("step_time_later", True)):
        result[name] = ratios(step_times(size, steps, later=later))
        print(f"{name}:", result[name], flush=True)
    if gpu:
        result["waits_per_step"] = {variant: waits(size, variant) for variant in VARIANTS}
        print("waits:", result["waits_per_step"], flush=True)
        result["peak_bytes"] = {variant: peak_memory(size, variant) for variant in VARIANTS}
    return result


def table(result: dict[str, Any]) -> tuple[list[str], bool]:
    """The result for people, and whether every goal is met."""
    size = f"{result['size']}, {result['parameters'] / 1e9:.2f} billion parameters"
    lines = ["", f"{size:44}" + "".join(f"{variant:>12}" for variant in VARIANTS) + "   goal"]
    fine = True

    def row(name: str, cells: list[str], goal: str = "", met: bool = True) -> None:
        nonlocal fine
        fine = fine and met
        mark = "" if met else "  missed"
        lines.append(f"{name:44}" + "".join(f"{cell:>12}" for cell in cells) + f"   {goal}{mark}")

    same = [result["identical"][variant]["identical"] for variant in VARIANTS[1:]]
    row("weights as without a guard, bit by bit", ["-", *map(str, same)], "True", all(same))
    failures = [result["identical"][variant]["failure"] for variant in VARIANTS[1:]]
    row(
        "the guard stepped aside",
        ["-", *(str(one is not None) for one in failures)],
        "False",
        not any(failures),
    )
    for name, words in (
        ("step_time_young", "step time ratio, young run"),
        ("step_time_later", "step time ratio"),
    ):
        values = [result[name][variant]["ratio"] for variant in VARIANTS]
        met = max(values[1:]) <= TIME_GOAL
        row(words, [f"{value:.4f}" for value in values], f"<= {TIME_GOAL}", met)
    if "waits_per_step" in result:
        counts = [result["waits_per_step"][variant] for variant in VARIANTS]
        met = max(counts[1:]) <= counts[0] + 1
        row("waits for the device, per step", [f"{count:.1f}" for count in counts], "+1 at most", met)
    if "peak_bytes" in result:
        peaks = [result["peak_bytes"][variant] / result["peak_bytes"][VARIANTS[0]] for variant in VARIANTS]
        met = max(peaks[1:]) <= MEMORY_GOAL
        row("peak memory ratio", [f"{peak:.4f}" for peak in peaks], f"<= {MEMORY_GOAL}", met)
    return lines, fine


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SHAPES, default="0.5b")
    parser.add_argument("--steps", type=int, default=12, help="steps that are timed")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print(
            "no CUDA device here: nothing is measured (--device cpu --size tiny rehearses)", file=sys.stderr
        )
        return 2
    if given.device == "cpu" and torch.cuda.is_available():
        print(
            "--device cpu rehearses where there is no CUDA device; here accelerate would use it",
            file=sys.stderr,
        )
        return 2
    result = measure(given.size, given.steps, device=given.device)
    lines, fine = table(result)
    if given.device == "cuda":
        record("gpu", result)
    print("\n".join(lines))
    return 0 if fine or given.device == "cpu" else 1


if __name__ == "__main__":
    sys.exit(main())
