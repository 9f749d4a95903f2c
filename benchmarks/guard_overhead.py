#!/usr/bin/env python3
"""What the guard costs: the time of a PPO step with it, over the time without.

    python benchmarks/guard_overhead.py [--rounds 7] [--threads N] [--quick]

Three loops train the same GPT-2 (4 layers of 768, vocabulary 50,257) from the same weights with the same seeds:
one plain, one that calls the guard's events by hand, one under `with guard:` and otherwise plain. They take
turns step by step, in an order that changes each round, so that whatever else the machine does meets all three.
Their weights have to be identical, bit by bit, at the end. The figure is the ratio of the median step times.
Time inside each of the guard's calls says where it goes. Results go to benchmarks/results/guard_overhead.json.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import torch  # noqa: E402
import transformers  # noqa: E402
from machine import record  # noqa: E402
from policies import PURE, clipped_loss, token_log_probs, up_to_stop, whitened  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import GPT2Config, GPT2LMHeadModel  # noqa: E402

from klguard.guard.guard import Guard  # noqa: E402

GOAL = 1.03
STOP = PAD = 50_256
KL_COEFFICIENT = 0.05
BATCH, PROMPT, LENGTH = 8, 16, 64
TIMED = ("rollout", "logprobs", "kl", "rewards", "advantages", "minibatch", "step")
"""The guard's events, as the loop calls them."""
WATCHED = ("generated", "scored", "paired", "boundary", "updated")
"""What the guard is told by the hooks it hangs into model and optimizer."""


def make_model(layers: int, width: int) -> GPT2LMHeadModel:
    """A GPT-2 with random weights, no dropout, and a vocabulary of the usual size."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=layers, n_embd=width, n_head=12, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    return GPT2LMHeadModel(config).eval()


class Loop:
    """PPO with the KL in the reward: rollout, two scoring passes, two epochs of two minibatches."""

    def __init__(self, model: GPT2LMHeadModel, reference: GPT2LMHeadModel) -> None:
        self.policy, self.reference = copy.deepcopy(model), reference
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=1e-5)

    def step(self, seed: int) -> None:
        """One step; everything random comes from `seed`."""
        torch.manual_seed(seed)
        prompts = torch.randint(0, STOP, (BATCH, PROMPT))
        with torch.no_grad():
            sequences = self.policy.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=LENGTH,
                eos_token_id=STOP,
                pad_token_id=PAD,
                **PURE,
            )
        tokens = sequences[:, PROMPT:]
        mask = up_to_stop(tokens, STOP)
        with torch.no_grad():
            old, reference = self.score(prompts, sequences, tokens, mask)
        kl = (old - reference) * mask
        scores = (tokens % 7 == 0).float().mul(mask).sum(1)
        rewards = (-KL_COEFFICIENT * kl).scatter_add(1, mask.sum(1, keepdim=True) - 1, scores[:, None])
        advantages = whitened(rewards.flip(1).cumsum(1).flip(1) * mask, mask)
        self.tell(prompts, tokens, mask, old, reference, scores, rewards, kl, advantages)
        for epoch in range(2):
            for rows in torch.randperm(BATCH).chunk(2):
                self.update(sequences[rows], tokens[rows], mask[rows], old[rows], advantages[rows], rows, epoch)
        self.finish(scores, kl)

    def logits(self, model: GPT2LMHeadModel, sequences: Tensor) -> Tensor:
        """(B, T, V) logits that score the response."""
        return model(sequences, use_cache=False).logits[:, PROMPT - 1 : -1]

    def score(
        self, prompts: Tensor, sequences: Tensor, tokens: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(B, T) log-probs of the tokens under policy and reference."""
        return tuple(token_log_probs(self.logits(m, sequences), tokens) for m in (self.policy, self.reference))

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

    def __init__(self, model: GPT2LMHeadModel, reference: GPT2LMHeadModel) -> None:
        super().__init__(model, reference)
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
            tokens, mask, prompts=prompts, stop_token_ids=STOP, max_new_tokens=LENGTH, rows=list(range(BATCH))
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

    def __init__(self, model: GPT2LMHeadModel, reference: GPT2LMHeadModel) -> None:
        super().__init__(model, copy.deepcopy(reference))
        self.guard = new_guard(self)
        self.spent = timed(self.guard, WATCHED)


def new_guard(loop: Loop) -> Guard:
    """A guard with its defaults, that records instead of raising."""
    return Guard(
        loop.policy,
        loop.reference,
        on_violation="record",
        strict=True,
        eos_token_id=STOP,
        kl_coef=KL_COEFFICIENT,
        optimizer=loop.optimizer,
        max_grad_norm=1.0,
        ignore=("KLG816",),  # pad is the stop token here, as in GPT-2's own tokenizer; the mask is by position
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


def take_turns(loops: dict[str, Loop], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step of each loop; the first round is a warm-up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    names = list(loops)
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            begun = time.perf_counter()
            loops[name].step(seed=number)
            taken = time.perf_counter() - begun
            if number:
                seconds[name].append(taken)
        print(f"round {number}: " + ", ".join(f"{n} {t[-1]:.2f} s" for n, t in seconds.items() if t), flush=True)
    return seconds


def identical(loops: dict[str, Loop]) -> bool:
    """Whether all loops have arrived at the same weights, bit by bit."""
    first, *others = (list(loop.policy.parameters()) for loop in loops.values())
    return all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def per_step(loop: Any, rounds: int) -> dict[str, float]:
    """Milliseconds a step inside each of the guard's calls, means over all rounds with the warm-up."""
    return {name: round(1000 * sum(calls) / (rounds + 1), 2) for name, calls in loop.spent.items()}


def figures(loops: dict[str, Loop], seconds: dict[str, list[float]], rounds: int) -> dict[str, Any]:
    """Ratios of medians, and where the time goes."""
    plain = statistics.median(seconds["plain"])
    guarded = [name for name in loops if name != "plain"]
    paired = {
        name: statistics.median(a / b for a, b in zip(seconds[name], seconds["plain"], strict=True))
        for name in guarded
    }
    return {
        "goal": GOAL,
        "ratio_of_medians": {
            name: round(statistics.median(seconds[name]) / plain, 4) for name in guarded
        },
        "median_of_paired_ratios": {name: round(value, 4) for name, value in paired.items()},
        "ratio_by_time_inside_the_guard": {
            name: round(1 + inside(loops[name], rounds) / plain, 4) for name in guarded
        },
        "median_seconds": {name: round(statistics.median(times), 3) for name, times in seconds.items()},
        "rounds": rounds,
        "weights_identical": identical(loops),
        "findings": {name: sorted({f.code for f in loops[name].guard.findings}) for name in guarded},
        "tested_tokens": {name: loops[name].guard.evidence.tokens for name in guarded},
        "milliseconds_per_step": {name: per_step(loops[name], rounds) for name in guarded},
    }


def inside(loop: Any, rounds: int) -> float:
    """Seconds a step inside the guard's calls."""
    return sum(sum(calls) for name, calls in loop.spent.items() if not name.startswith("of which")) / (rounds + 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="default: as torch chooses")
    parser.add_argument("--quick", action="store_true", help="2 layers of 384, 2 rounds; not recorded")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if args.threads:
        torch.set_num_threads(args.threads)
    rounds = 2 if args.quick else args.rounds
    model = make_model(2, 384) if args.quick else make_model(4, 768)
    reference = copy.deepcopy(model).requires_grad_(False)
    loops = {"plain": Loop(model, reference), "by hand": ByHand(model, reference), "watched": Watched(model, reference)}
    with loops["watched"].guard:
        seconds = take_turns(loops, rounds)
    result = figures(loops, seconds, rounds)
    for name, value in result.items():
        print(f"{name}: {value}")
    if not args.quick:
        record("guard_overhead", {"batch": BATCH, "prompt": PROMPT, "length": LENGTH, **result})
    return int(not result["weights_identical"])


if __name__ == "__main__":
    sys.exit(main())
