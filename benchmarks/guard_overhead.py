#!/usr/bin/env python3
"""What the guard costs: the time of a PPO step with it, over the time without.

    python benchmarks/guard_overhead.py [--rounds 7] [--threads N] [--sample-tokens 1024] [--quick]

Three loops train the same GPT-2 (4 layers of 768, vocabulary 50,257) from the same weights with the same seeds:
one plain, one that calls the guard's events by hand, one under `with guard:` and otherwise plain. They take
turns step by step, in an order that changes each round, so that whatever else the machine does meets all three.
Their weights have to be identical, bit by bit, at the end. This is done for a young run, of which the guard
tests every position that fits its budget, and for a later one, of which it tests a quarter. The figure is the
ratio of the median step times, by the clock and in seconds of CPU, which other programs on the machine disturb
less. Time inside each of the guard's calls says where it goes. Results go to
benchmarks/results/guard_overhead.json.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
import transformers  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import GPT2Config, GPT2LMHeadModel  # noqa: E402

from benchmarks.machine import record  # noqa: E402
from benchmarks.policies import PURE, clipped_loss, token_log_probs, up_to_stop, whitened  # noqa: E402
from klguard import Guard  # noqa: E402
from klguard.guard.thinning import YOUNG  # noqa: E402

GOAL = 1.03
KL_COEFFICIENT = 0.05
BATCH, PROMPT = 8, 16


@dataclass(frozen=True)
class Scale:
    """Size of the model, length of the responses, and how many positions the guard may test in a step."""

    layers: int = 4
    width: int = 768
    vocabulary: int = 50_257
    length: int = 64
    sample_tokens: int = 1024


TIMED = ("rollout", "logprobs", "kl", "rewards", "advantages", "minibatch", "step")
"""The guard's events, as the loop calls them."""
WATCHED = ("generated", "scored", "paired", "boundary", "updated")
"""What the guard is told by the hooks it hangs into model and optimizer."""


def make_model(scale: Scale) -> GPT2LMHeadModel:
    """A GPT-2 with random weights and no dropout; its last token is both stop and pad, as in GPT-2's own tokenizer."""
    torch.manual_seed(0)
    last = scale.vocabulary - 1
    config = GPT2Config(
        vocab_size=scale.vocabulary,
        n_layer=scale.layers,
        n_embd=scale.width,
        n_head=12,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=last,
        eos_token_id=last,
    )
    return GPT2LMHeadModel(config).eval()


class Loop:
    """PPO with the KL in the reward: rollout, two scoring passes, two epochs of two minibatches."""

    def __init__(self, model: GPT2LMHeadModel, reference: GPT2LMHeadModel, scale: Scale) -> None:
        self.policy, self.reference = copy.deepcopy(model), reference
        self.scale, self.length, self.stop = scale, scale.length, model.config.eos_token_id
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=1e-5)

    def step(self, seed: int) -> None:
        """One step; everything random comes from `seed`."""
        torch.manual_seed(seed)
        prompts = torch.randint(0, self.stop, (BATCH, PROMPT))
        with torch.no_grad():
            sequences = self.policy.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=self.length,
                eos_token_id=self.stop,
                pad_token_id=self.stop,
                **PURE,
            )
        tokens = sequences[:, PROMPT:]
        mask = up_to_stop(tokens, self.stop)
        with torch.no_grad():
            old, reference = self.score(prompts, sequences, tokens, mask)
        kl = (old - reference) * mask
        scores = (tokens % 7 == 0).float().mul(mask).sum(1)
        rewards = (-KL_COEFFICIENT * kl).scatter_add(1, mask.sum(1, keepdim=True) - 1, scores[:, None])
        advantages = whitened(rewards.flip(1).cumsum(1).flip(1) * mask, mask)
        self.tell(prompts, tokens, mask, old, reference, scores, rewards, kl, advantages)
        for epoch in range(2):
            for rows in torch.randperm(BATCH).chunk(2):
                self.update(
                    sequences[rows], tokens[rows], mask[rows], old[rows], advantages[rows], rows, epoch
                )
        self.finish(scores, kl)

    def logits(self, model: GPT2LMHeadModel, sequences: Tensor) -> Tensor:
        """(B, T, V) logits that score the response."""
        return model(sequences, use_cache=False).logits[:, PROMPT - 1 : -1]

    def score(
        self, prompts: Tensor, sequences: Tensor, tokens: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(B, T) log-probs of the tokens under policy and reference."""
        return tuple(
            token_log_probs(self.logits(m, sequences), tokens) for m in (self.policy, self.reference)
        )

    def update(
        self,
        sequences: Tensor,
        tokens: Tensor,
        mask: Tensor,
        old: Tensor,
        advantages: Tensor,
        rows: Tensor,
        epoch: int,
    ) -> None:
        """One minibatch."""
        new = token_log_probs(self.logits(self.policy, sequences), tokens)
        self.tell_minibatch(new, old, mask, advantages, tokens, rows, epoch)
        self.optimizer.zero_grad()
        clipped_loss(new, old, advantages, mask).backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.optimizer.step()

    def tell(self, *batch: Tensor) -> None:
        """What a guarded loop says before its updates."""

    def tell_minibatch(self, *batch: Any) -> None:
        """What it says at each minibatch."""

    def finish(self, scores: Tensor, kl: Tensor) -> None:
        """The end of the step."""


class ByHand(Loop):
    """The same loop, calling the guard's events; `guard.logprobs` replaces its own log-softmax."""

    def __init__(self, model: GPT2LMHeadModel, reference: GPT2LMHeadModel, scale: Scale) -> None:
        super().__init__(model, reference, scale)
        self.guard = new_guard(self)
        self.spent = timed(self.guard, TIMED + WATCHED)

    def score(
        self, prompts: Tensor, sequences: Tensor, tokens: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits, reference_logits = (self.logits(model, sequences) for model in (self.policy, self.reference))
        old = self.guard.logprobs(
            logits, tokens, mask, reference_logits=reference_logits, context_ids=prompts
        )
        return old, token_log_probs(reference_logits, tokens)

    def tell(self, *batch: Tensor) -> None:
        prompts, tokens, mask, old, reference, scores, rewards, kl, advantages = batch
        self.guard.rollout(
            tokens,
            mask,
            prompts=prompts,
            stop_token_ids=self.stop,
            max_new_tokens=self.length,
            rows=list(range(BATCH)),
        )
        self.guard.kl(old, reference, mask)
        self.guard.rewards(scores, token_rewards=rewards, kl=kl, kl_coef=KL_COEFFICIENT, mask=mask)
        self.guard.advantages(advantages, mask, whitened=True)

    def tell_minibatch(self, *batch: Any) -> None:
        new, old, mask, advantages, tokens, rows, epoch = batch
        self.guard.minibatch(
            new,
            old,
            mask,
            advantages=advantages,
            tokens=tokens,
            rows=rows.tolist(),
            epoch=epoch,
            clip_range=0.2,
        )

    def finish(self, scores: Tensor, kl: Tensor) -> None:
        self.guard.step(rewards=scores, kl=kl.sum(1).mean(), kl_coef=KL_COEFFICIENT)


class Watched(Loop):
    """The plain loop under `with guard:`."""

    def __init__(self, model: GPT2LMHeadModel, reference: GPT2LMHeadModel, scale: Scale) -> None:
        super().__init__(model, copy.deepcopy(reference), scale)
        self.guard = new_guard(self)
        self.spent = timed(self.guard, WATCHED)


def new_guard(loop: Loop) -> Guard:
    """A guard with its defaults, that records instead of raising."""
    return Guard(
        loop.policy,
        loop.reference,
        on_violation="record",
        strict=True,
        eos_token_id=loop.stop,
        kl_coef=KL_COEFFICIENT,
        optimizer=loop.optimizer,
        max_grad_norm=1.0,
        sample_tokens=loop.scale.sample_tokens,
        ignore=(
            "KLG816",
        ),  # pad is the stop token here, as in GPT-2's own tokenizer; the mask is by position
    )


def timed(guard: Guard, names: tuple[str, ...]) -> dict[str, list[float]]:
    """Seconds of each call of these methods, and of the evidence's pass over the vocabulary, as they happen."""
    spent: dict[str, list[float]] = defaultdict(list)

    def measured(owner: Any, name: str, label: str) -> None:
        method: Callable[..., Any] = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                spent[label].append(time.perf_counter() - begun)

        setattr(owner, name, call)

    for name in names:
        measured(guard, name, name)
    measured(guard.evidence, "gather", "of which evidence.gather")
    return spent


def take_turns(loops: dict[str, Loop], rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds by the clock and of CPU of each step of each loop; the first round is a warm-up, not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    cpu: dict[str, list[float]] = {name: [] for name in loops}
    names = list(loops)
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            begun, used = time.perf_counter(), time.process_time()
            loops[name].step(seed=number)
            if number:
                seconds[name].append(time.perf_counter() - begun)
                cpu[name].append(time.process_time() - used)
            elif name != "plain":
                loops[name].spent.clear()  # what is looked at once in a run is no part of a step
        print(
            f"round {number}: " + ", ".join(f"{n} {t[-1]:.2f} s" for n, t in seconds.items() if t), flush=True
        )
    return seconds, cpu


def come_of_age(loops: dict[str, Any]) -> None:
    """Go on as a run does once it has seen enough positions to be tested by a share of them."""
    for name, loop in loops.items():
        if name != "plain":
            thinning = loop.guard._works.thinning
            thinning.load_state_dict(thinning.state_dict() | {"seen": YOUNG * thinning.budget})


def identical(loops: dict[str, Loop]) -> bool:
    """Whether all loops have arrived at the same weights, bit by bit."""
    first, *others = (list(loop.policy.parameters()) for loop in loops.values())
    return all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def per_step(loop: Any, rounds: int) -> dict[str, float]:
    """Milliseconds a step inside each of the guard's calls, means over all rounds."""
    return {name: round(1000 * sum(calls) / rounds, 2) for name, calls in loop.spent.items()}


def ratios(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """The guarded loops' medians over the plain one's, and the median of the ratios round by round."""
    plain = seconds["plain"]
    middle = statistics.median
    return {
        name: {
            "ratio_of_medians": round(middle(times) / middle(plain), 4),
            "median_of_ratios": round(middle(a / b for a, b in zip(times, plain, strict=True)), 4),
        }
        for name, times in seconds.items()
        if name != "plain"
    }


def figures(
    loops: dict[str, Loop], seconds: dict[str, list[float]], cpu: dict[str, list[float]], rounds: int
) -> dict[str, Any]:
    """Ratios of medians, and where the time goes."""
    guarded = [name for name in loops if name != "plain"]
    plain = statistics.median(seconds["plain"])
    return {
        "goal": GOAL,
        "by_the_clock": ratios(seconds),
        "of_cpu": ratios(cpu),
        "share_of_a_plain_step_inside_the_guard": {
            name: round(inside(loops[name], rounds) / plain, 4) for name in guarded
        },
        "median_seconds": {name: round(statistics.median(times), 3) for name, times in seconds.items()},
        "median_cpu_seconds": {name: round(statistics.median(times), 3) for name, times in cpu.items()},
        "rounds": rounds,
        "weights_identical": identical(loops),
        "findings": {name: sorted({f.code for f in loops[name].guard.findings}) for name in guarded},
        "tested_tokens": {name: loops[name].guard.evidence.tokens for name in guarded},
        "milliseconds_per_step": {name: per_step(loops[name], rounds) for name in guarded},
    }


def inside(loop: Any, rounds: int) -> float:
    """Seconds a step inside the guard's calls."""
    calls = [sum(taken) for name, taken in loop.spent.items() if not name.startswith("of which")]
    return sum(calls) / rounds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="default: as torch chooses")
    parser.add_argument("--sample-tokens", type=int, default=Scale.sample_tokens, help="as in klguard.Guard")
    parser.add_argument(
        "--quick", action="store_true", help="2 layers of 384, vocabulary 8,000, 2 rounds; not recorded"
    )
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if args.threads:
        torch.set_num_threads(args.threads)
    rounds = 2 if args.quick else args.rounds
    scale = Scale(sample_tokens=args.sample_tokens)
    if args.quick:
        scale = Scale(layers=2, width=384, vocabulary=8000, length=24, sample_tokens=args.sample_tokens)
    model = make_model(scale)
    reference = copy.deepcopy(model).requires_grad_(False)
    kinds = {"plain": Loop, "by hand": ByHand, "watched": Watched}
    loops = {name: kind(model, reference, scale) for name, kind in kinds.items()}
    results = {}
    with loops["watched"].guard:
        for phase in ("young", "later"):
            if phase == "later":
                come_of_age(loops)
            seconds, cpu = take_turns(loops, rounds)
            results[phase] = figures(loops, seconds, cpu, rounds)
            for name, value in results[phase].items():
                print(f"{phase} {name}: {value}")
    if not args.quick and args.sample_tokens == Scale.sample_tokens:
        record("guard_overhead", {"batch": BATCH, "prompt": PROMPT, **asdict(scale), **results})
    return int(not all(result["weights_identical"] for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
