#!/usr/bin/env python3
"""How often the guard alarms in a healthy run: never more than alpha allows.

    python benchmarks/guard_false_alarms.py [--runs 2000] [--workers 1] [--quick]

Healthy PPO runs on small GPT-2 policies: pure sampling by generate(), scoring by a separate pass, updates in
between, several entropies, vocabularies and batch shapes, in fp32 and in bf16 (where tokens come from a decode
with a KV cache and log-probs from a prefill, which differ by a few hundredths of a nat). Each run has its own
klguard.Guard with alpha = 0.05 that is told everything a loop knows. Counted is the share of runs in which it
ever speaks, in all and for each family of assertions; the benchmark fails if one exceeds alpha by more than
three standard errors. Results go to benchmarks/results/guard_false_alarms.json.

Several runs share one policy and its updates, so that their rollouts can be drawn in one call. Their tokens are
independent given the weights, and the weights depend on the tokens of all of them, as in one loop.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
import transformers  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.machine import record  # noqa: E402
from benchmarks.policies import Policy, Rollout, clipped_loss, make_policy, token_log_probs, whitened  # noqa: E402
from klguard import Guard  # noqa: E402
from klguard.guard import shares  # noqa: E402

ALPHA = 0.05
KL_COEFFICIENT = 0.05
CLIP = 0.2
MAX_GRAD_NORM = 1.0
LEARNING_RATE = {"float32": 5e-5, "bfloat16": 3e-4}
"""In bf16 smaller updates would mostly be lost: a weight changes by a 256th of itself or not at all."""
TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-3}
"""What the guard chooses by itself when it knows the policy (documented defaults), nats per token."""
FAMILIES = {
    "KLG601": ("KLG601",),
    "KLG602": ("KLG602",),
    "KLG603": ("KLG603",),
    "KLG604": ("KLG604",),
    "KLG605, KLG606": ("KLG605", "KLG606"),
    "KLG701 to KLG704": ("KLG701", "KLG702", "KLG703", "KLG704"),
    "KLG705": ("KLG705",),
    "KLG8xx": ("KLG8",),
}


@dataclass(frozen=True)
class Setup:
    """One kind of run. `sample_tokens` below the size of a batch makes the guard thin out positions."""

    vocabulary: int
    entropy: float
    batch: int
    length: int
    steps: int
    dtype: str = "float32"
    ragged: bool = True
    sample_tokens: int = 1024

    @property
    def precision(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def stop(self) -> float:
        """Probability of the stop token: most responses end by themselves, as they should in a healthy run."""
        return 1.5 / self.length


SETUPS = (
    Setup(200, 2.5, batch=8, length=32, steps=12),
    Setup(200, 2.5, batch=8, length=32, steps=12, dtype="bfloat16"),
    Setup(64, 0.5, batch=16, length=16, steps=16),
    Setup(200, 4.5, batch=4, length=64, steps=10, dtype="bfloat16"),
    Setup(1000, 5.0, batch=8, length=24, steps=10),
    Setup(200, 0.5, batch=8, length=32, steps=12, dtype="bfloat16"),
    Setup(500, 2.5, batch=16, length=24, steps=12, sample_tokens=96),
    Setup(64, 2.5, batch=24, length=12, steps=20, ragged=False),
    Setup(1000, 5.0, batch=8, length=24, steps=10, dtype="bfloat16"),
    Setup(200, 4.5, batch=1, length=64, steps=20),
    Setup(2000, 2.5, batch=8, length=32, steps=8, dtype="bfloat16"),
    Setup(8000, 5.0, batch=8, length=24, steps=8),
)
PROMPT = 6


# ------------------------------------------------------------------------------------------ a loop of several runs


@lru_cache(maxsize=len(SETUPS))
def original(vocabulary: int, entropy: float, stop: float) -> Policy:
    """The policy that training starts from; made once for each kind of run."""
    return make_policy(vocabulary, entropy, seed=vocabulary + int(10 * entropy), stop=stop, positions=80)


@dataclass
class Collected:
    """A rollout of all runs together: rows of run r are those from r * B to (r + 1) * B."""

    rollout: Rollout
    logits: Tensor
    reference_logits: Tensor
    old: Tensor
    reference: Tensor
    scores: Tensor
    kl: Tensor
    rewards: Tensor
    advantages: Tensor


class Runs:
    """Several healthy runs under one policy, each with a guard of its own.

    Every `thorough`-th run tells its guard everything; the others, only what tokens were drawn and how they
    were scored, which is what chance has to do with.
    """

    def __init__(self, setup: Setup, count: int, seed: int, thorough: int = 1) -> None:
        torch.manual_seed(seed)
        self.setup, self.count, self.thorough = setup, count, thorough
        self.policy = original(setup.vocabulary, setup.entropy, setup.stop).copy(setup.precision)
        self.reference = self.policy.frozen()
        self.generator = torch.Generator().manual_seed(seed)
        self.taste = torch.randn(setup.vocabulary, generator=self.generator)
        self.taste[self.policy.stop] = 0.0
        rate = LEARNING_RATE[setup.dtype]
        self.optimizer = torch.optim.AdamW(self.policy.model.parameters(), lr=rate, weight_decay=0.01)
        self.guards = [self.new_guard(run, seed + run) for run in range(count)]
        self.highest = [0.0] * count
        self.tokens = [0] * count

    def tells_all(self, run: int) -> bool:
        """Whether this run's guard is told of rewards, advantages, minibatches and updates too."""
        return run % self.thorough == 0

    def new_guard(self, run: int, seed: int) -> Guard:
        everything = self.tells_all(run)
        return Guard(
            self.policy.model if everything else None,
            self.reference.model if everything else None,
            on_violation="record",
            alpha=ALPHA,
            strict=True,
            kl_coef=KL_COEFFICIENT,
            eos_token_id=self.policy.stop,
            sample_tokens=self.setup.sample_tokens,
            seed=seed,
            tolerance=None if everything else TOLERANCE[self.setup.dtype],
            optimizer=self.optimizer if everything else None,
            max_grad_norm=MAX_GRAD_NORM,
        )

    def part(self, run: int) -> slice:
        """The rows of a run."""
        return slice(run * self.setup.batch, (run + 1) * self.setup.batch)

    def play(self) -> None:
        """Trains for all steps."""
        for _ in range(self.setup.steps):
            self.step()

    def step(self) -> None:
        """Rollout, scoring, advantages, two epochs of two minibatches; every guard is told its share."""
        batch = self.collect()
        for run, guard in enumerate(self.guards):
            self.tell(guard, batch, run)
        losses, norms = [], []
        for epoch in range(2):
            for rows in self.minibatches():
                loss, norm = self.update(batch, rows, epoch)
                losses.append(loss)
                norms.append(norm)
        for run, guard in enumerate(self.guards):
            rows = self.part(run)
            mask = batch.rollout.mask[rows]
            figures = {
                "rewards": batch.scores[rows],
                "loss": torch.stack(losses).mean(),
                "grad_norm": torch.stack(norms).mean(),
                "kl": batch.kl[rows].sum(1).mean(),
                "kl_coef": KL_COEFFICIENT,
                "lengths": mask.sum(1),
                "truncated": ~(batch.rollout.tokens[rows] == self.policy.stop).any(1),
            }
            guard.step(**figures if self.tells_all(run) else {})
            self.highest[run] = max(self.highest[run], guard.evidence.log_evidence)
            self.tokens[run] += int(mask.sum())

    @torch.no_grad()
    def collect(self) -> Collected:
        """Draws and scores the rollouts of all runs."""
        setup = self.setup
        prompts, attention_mask = self.policy.prompts(
            self.count * setup.batch, PROMPT, self.generator, ragged=setup.ragged
        )
        rollout = self.policy.rollout(prompts, attention_mask, setup.length)
        logits, reference_logits = self.policy.logits(rollout), self.reference.logits(rollout)
        old, reference = (token_log_probs(of, rollout.tokens) for of in (logits, reference_logits))
        mask = rollout.mask
        scores = (self.taste[rollout.tokens] * mask).sum(1) / mask.sum(1)
        kl = (old - reference) * mask
        last = mask.sum(1, keepdim=True) - 1
        rewards = (-KL_COEFFICIENT * kl).scatter_add(1, last, scores[:, None])
        raw = rewards.flip(1).cumsum(1).flip(1) * mask
        pieces = [self.part(run) for run in range(self.count)]
        advantages = torch.cat([whitened(raw[piece], mask[piece]) for piece in pieces])
        return Collected(rollout, logits, reference_logits, old, reference, scores, kl, rewards, advantages)

    def tell(self, guard: Guard, batch: Collected, run: int) -> None:
        """What one run's loop knows before its updates."""
        rows = self.part(run)
        rollout = batch.rollout.rows(rows)
        if self.tells_all(run):
            guard.rollout(
                rollout.tokens,
                rollout.mask,
                prompts=rollout.prompts,
                attention_mask=rollout.attention_mask[:, : rollout.prompt_length],
                stop_token_ids=self.policy.stop,
                max_new_tokens=self.setup.length,
                rows=list(range(self.setup.batch)),
                temperature=1.0,
            )
        guard.logprobs(
            batch.logits[rows],
            rollout.tokens,
            rollout.mask,
            reference_logits=batch.reference_logits[rows],
            context_ids=rollout.prompts,
        )
        if not self.tells_all(run):
            return
        guard.kl(batch.old[rows], batch.reference[rows], rollout.mask)
        guard.rewards(
            batch.scores[rows],
            token_rewards=batch.rewards[rows],
            kl=batch.kl[rows],
            kl_coef=KL_COEFFICIENT,
            mask=rollout.mask,
        )
        guard.advantages(batch.advantages[rows], rollout.mask, whitened=self.setup.batch > 1)

    def minibatches(self) -> list[Tensor]:
        """(count, rows) row numbers within each run: every row once, in halves where there are two."""
        order = torch.stack([torch.randperm(self.setup.batch, generator=self.generator) for _ in self.guards])
        return list(order.chunk(2, dim=1))

    def update(self, batch: Collected, rows: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """One step of PPO on the same number of rows of every run."""
        everywhere = (rows + torch.arange(self.count)[:, None] * self.setup.batch).flatten()
        rollout = batch.rollout.rows(everywhere)
        logits = self.policy.logits(rollout)
        parts = token_log_probs(logits, rollout.tokens).split(rows.shape[1])
        new = torch.cat(parts)  # of what each guard is told, so that it sees the gradient of its rows
        old, advantages = batch.old[everywhere], batch.advantages[everywhere]
        size = rows.shape[1]
        for run, guard in enumerate(self.guards):
            if not self.tells_all(run):
                continue
            piece = slice(run * size, (run + 1) * size)
            guard.minibatch(
                parts[run],
                old[piece],
                rollout.mask[piece],
                advantages=advantages[piece],
                tokens=rollout.tokens[piece],
                rows=rows[run].tolist(),
                epoch=epoch,
                clip_range=CLIP,
            )
        loss = clipped_loss(new, old, advantages, rollout.mask, CLIP)
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.policy.model.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        return loss.detach(), norm.detach()


# ------------------------------------------------------------------------------------------ figures


@dataclass(frozen=True)
class Healthy:
    """What came of one healthy run: the codes the guard spoke, and the highest log-evidence it saw (nats)."""

    codes: tuple[str, ...]
    messages: tuple[str, ...]
    highest: float
    tokens: int
    setup: Setup


def play(job: tuple[Setup, int, int], thorough: int = 1) -> list[Healthy]:
    """The runs of one job: a setup, how many runs, a seed."""
    setup, count, seed = job
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    runs = Runs(setup, count, seed, thorough)
    runs.play()
    made = []
    for guard, highest, tokens in zip(runs.guards, runs.highest, runs.tokens, strict=True):
        findings = guard.findings
        codes = tuple(sorted({finding.code for finding in findings}))
        made.append(Healthy(codes, tuple(f.message for f in findings), highest, tokens, setup))
    return made


def jobs(runs: int, together: int, setups: Sequence[Setup], seed: int = 0) -> list[tuple[Setup, int, int]]:
    """`runs` runs over all setups in turn, `together` at a time."""
    groups = math.ceil(runs / together)
    sizes = [min(together, runs - i * together) for i in range(groups)]
    return [
        (setup, size, seed + 1000 * i)
        for i, (setup, size) in enumerate(zip(islice(cycle(setups), groups), sizes, strict=True))
    ]


def allowed(runs: int) -> float:
    """The largest share of alarms among `runs` that agrees with alpha: three standard errors above it."""
    return ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / runs)


def share(made: Sequence[Healthy], prefixes: Sequence[str]) -> float:
    """The share of runs with a code that begins with one of these."""
    return sum(any(code.startswith(tuple(prefixes)) for code in run.codes) for run in made) / len(made)


def figures(made: Sequence[Healthy]) -> dict[str, Any]:
    """Shares of runs that alarmed, and how high the evidence rose."""
    highest = sorted(run.highest for run in made)
    levels = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, ALPHA * shares.EVIDENCE)
    by_setup: dict[str, list[Healthy]] = {}
    for run in made:
        by_setup.setdefault(str(asdict(run.setup)), []).append(run)
    return {
        "runs": len(made),
        "tokens": sum(run.tokens for run in made),
        "alpha": ALPHA,
        "allowed": round(allowed(len(made)), 4),
        "ever": share(made, ("KLG",)),
        "by_family": {name: share(made, prefixes) for name, prefixes in FAMILIES.items()},
        "by_code": dict(Counter(code for run in made for code in run.codes)),
        "by_precision": {
            dtype: share([run for run in made if run.setup.dtype == dtype], ("KLG",))
            for dtype in sorted({run.setup.dtype for run in made})
        },
        "evidence": {
            "share_that_ever_reached_1_over_level": {
                f"{level:g}": sum(value >= -math.log(level) for value in highest) / len(highest)
                for level in levels
            },
            "highest_quantiles_nats": {
                f"{q:g}": round(highest[min(len(highest) - 1, int(q * len(highest)))], 3)
                for q in (0.5, 0.9, 0.95, 0.99, 1.0)
            },
        },
        "by_setup": [
            {
                **asdict(runs[0].setup),
                "runs": len(runs),
                "tokens_per_run": sum(run.tokens for run in runs) // len(runs),
                "ever": share(runs, ("KLG",)),
                "highest_nats": round(max(run.highest for run in runs), 3),
            }
            for runs in by_setup.values()
        ],
        "messages": [text for text, _ in Counter(m for run in made for m in run.messages).most_common(12)],
    }


def too_many(result: dict[str, Any]) -> list[str]:
    """The families, and "ever", whose share is above what alpha allows."""
    counted = {"ever": result["ever"], **result["by_family"]}
    return [name for name, value in counted.items() if value > result["allowed"]]


def simulate(
    runs: int, together: int, setups: Sequence[Setup], *, workers: int = 1, thorough: int = 1
) -> list[Healthy]:
    """All runs, in this process or in several."""
    work = jobs(runs, together, setups)
    if workers == 1:
        return [run for job in work for run in play(job, thorough)]
    with ProcessPoolExecutor(workers) as pool:
        return [run for made in pool.map(partial(play, thorough=thorough), work) for run in made]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--together", type=int, default=10, help="runs that share a policy")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="120 runs; not recorded")
    args = parser.parse_args()
    begun = time.perf_counter()
    made = simulate(120 if args.quick else args.runs, args.together, SETUPS, workers=args.workers)
    result = figures(made) | {"seconds": round(time.perf_counter() - begun, 1)}
    wrong = too_many(result)
    print(f"{result['runs']} healthy runs, {result['tokens']:,} tokens, {result['seconds']} s")
    print(f"alpha {ALPHA:g}, allowed {result['allowed']:.4f}, ever {result['ever']:.4f}")
    for name, value in result["by_family"].items():
        print(f"  {name:20} {value:.4f}")
    print("evidence", result["evidence"])
    for line in result["by_setup"]:
        print("  ", line)
    print(*result["messages"], sep="\n")
    print("too many: " + ", ".join(wrong) if wrong else "within alpha")
    if not args.quick:
        record("guard_false_alarms", result)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
