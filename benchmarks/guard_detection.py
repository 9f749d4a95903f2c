#!/usr/bin/env python3
"""How many tokens the guard needs to find that rollouts were not drawn from the policy that scores them.

    python benchmarks/guard_detection.py [--runs 50] [--workers 2] [--cases min_new_tokens top_k] [--quick]

Every setting of transformers' generate() that bends the distribution, and faults outside it (benchmarks/cases.py),
on GPT-2 policies of 2.5 nats over 4,000 tokens. A run is a series of rollouts of 16 responses of up to 48
tokens, given to klguard.Guard as a loop would, at alpha = 1e-6. On the same tokens: the guard's PIT component
alone, a likelihood ratio of the engine's log-probs alone, and the alarms of others (benchmarks/rivals.py).
Every figure of theirs stands beside its rate of false alarms in the healthy runs, which come first. Results
go to benchmarks/results/guard_detection.json case by case, so that it may be run in parts (`--cases`).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
import transformers  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.cases import LENGTH, PROMPT, Case, cases  # noqa: E402
from benchmarks.machine import RESULTS, record  # noqa: E402
from benchmarks.policies import Policy, Rollout, clipped_loss, make_policy, perturbed, token_log_probs  # noqa: E402
from benchmarks.rivals import verdicts  # noqa: E402
from klguard import Guard  # noqa: E402
from klguard.guard import shares, start_times  # noqa: E402

ALPHA = 1e-6
SEQUENCES = 16
MICRO_BATCH = 2
"""Responses scored in one call: how finely the tokens until detection are counted."""
RUNS_TOGETHER = 10
"""Runs whose rollouts are drawn in one call of generate(); they share a policy and nothing else."""
REFERENCE_KL = 0.01
"""KL(policy || reference), nats per token."""
NEGLIGIBLE = 5e-4
"""Nats per token below which nothing can be found in 20,000 tokens: ln(1/alpha) and the prior cost about 20."""
SAMPLER_CODES = {"KLG603", "KLG701", "KLG702", "KLG703", "KLG704"}
ENGINE_TOLERANCE = 1e-4
POLICIES = ("vocabulary", "entropy", "stop")
"""What of the plan has to agree for results to stand in one table."""


@dataclass(frozen=True)
class Plan:
    """How large the benchmark is.

    tokens        where a run without detection ends, if there is anything to detect (NEGLIGIBLE).
    rival_tokens  how far every run goes, which is the length that the rates of others are about.
    """

    vocabulary: int = 4000
    entropy: float = 2.5
    runs: int = 50
    tokens: int = 20_000
    rival_tokens: int = 3_000
    stop: float = 0.05

    def end(self, kl: float) -> int:
        """Where a run without detection ends, at this KL(q || p)."""
        return self.tokens if kl >= NEGLIGIBLE else self.rival_tokens


# ------------------------------------------------------------------------------------------ what a run keeps


class Process:
    """A product of likelihood ratios with its mixture over start times: an alarm at 1 / alpha."""

    def __init__(self) -> None:
        self._mixture = start_times.StartTimes(1)
        self._pending = 0.0

    def add(self, log_ratio: float) -> float:
        """Adds to this step; the log-evidence if the step ended now."""
        self._pending += log_ratio
        return float(self._mixture.after(torch.tensor([self._pending]))[0])

    def end_step(self) -> None:
        self._mixture.advance(torch.tensor([self._pending]))
        self._pending = 0.0


@dataclass
class Run:
    """One guard, what else looks at its tokens, and after how many tokens each of them spoke.

    with_pit   the guard goes on after its detection, until its PIT component would have spoken too.
    """

    guard: Guard
    with_pit: bool = False
    engine: Process = field(default_factory=Process)
    tokens: int = 0
    found: dict[str, int] = field(default_factory=dict)
    codes: tuple[str, ...] = ()
    cause: str = ""
    weight: float = 0.0

    def spoke(self, who: str) -> None:
        """`who` alarms now; only the first time counts."""
        self.found.setdefault(who, self.tokens)

    @property
    def detected(self) -> bool:
        return "guard, end of step" in self.found

    @property
    def guarded(self) -> bool:
        """Whether the guard still gets tokens."""
        return not self.detected or (self.with_pit and "pit" not in self.found)


def pit_alone(guard: Guard) -> float:
    """The log-evidence of the PIT components if they were the whole bank and the step ended now, nats.

    Half of the weight is on the adaptive histogram, the other half on the fixed tilts.
    """
    evidence = guard.evidence
    state = evidence.state_dict()
    columns = [i for i, name in enumerate(evidence.names) if name == "pit"]
    started, step = state["mixture"]["log_started"], state["mixture"]["step"] + 1
    ahead = start_times.advanced(started, step, state["pending"][: len(evidence.names)].cpu())
    logs = start_times.values(ahead, step)[columns]
    tilts = len(columns) - 1
    weights = torch.tensor([0.5 / tilts] * tilts + [0.5], dtype=logs.dtype).log()
    return float((weights + logs).logsumexp(0))


@dataclass(frozen=True)
class Scored:
    """A run's share of a batch: (B, T, V) logits of policy and reference, (B, T) log-probs, all detached."""

    rollout: Rollout
    logits: Tensor
    reference_logits: Tensor
    logprobs: Tensor
    reference: Tensor
    stale: Tensor | None

    def rows(self, part: slice) -> Scored:
        stale = None if self.stale is None else self.stale[part]
        tensors = (self.logits, self.reference_logits, self.logprobs, self.reference)
        return Scored(self.rollout.rows(part), *(tensor[part] for tensor in tensors), stale)

    def trimmed(self) -> Scored:
        """Without the columns in which every response has ended."""
        time = slice(int(self.rollout.mask.sum(1).max()))
        stale = None if self.stale is None else self.stale[:, time]
        tensors = (self.logits, self.reference_logits, self.logprobs, self.reference)
        return Scored(self.rollout.until(time), *(tensor[:, time] for tensor in tensors), stale)


def feed(run: Run, batch: Scored) -> None:
    """Gives one rollout to the guard, in micro-batches, ends its step, and asks everyone else."""
    rollout, limit = batch.rollout, shares.threshold(ALPHA, shares.EVIDENCE)
    guarded = run.guarded
    if guarded:
        run.guard.rollout(rollout.tokens, rollout.mask, prompts=rollout.prompts)
    for first in range(0, len(rollout.mask), MICRO_BATCH):
        part = batch.rows(slice(first, first + MICRO_BATCH)).trimmed()
        run.tokens += int(part.rollout.mask.sum())
        if guarded:
            give(run.guard, part)
            if not run.detected and run.guard.evidence.provisional() >= limit:
                run.spoke("guard")
            if run.with_pit and "pit" not in run.found and pit_alone(run.guard) >= -math.log(ALPHA):
                run.spoke("pit")
        processed = part.rollout.processed
        if processed is not None:
            gain = (processed - part.logprobs)[part.rollout.mask].sum().item()
            tolerance = int(part.rollout.mask.sum()) * math.log1p(ENGINE_TOLERANCE)
            if run.engine.add(gain - tolerance) >= -math.log(ALPHA):
                run.spoke("engine's log-probs")
    run.engine.end_step()
    if guarded:
        end_step(run)
    alarms = verdicts(
        batch.logprobs, batch.reference, rollout.mask, processed=rollout.processed, raw=rollout.raw
    )
    for name, alarm in alarms.items():
        if alarm:
            run.spoke(name)


def give(guard: Guard, part: Scored) -> None:
    """Some responses, as a loop hands them over when it scores them."""
    rollout = part.rollout
    guard.logprobs(
        part.logits,
        rollout.tokens,
        rollout.mask,
        reference_logits=part.reference_logits,
        context_ids=rollout.prompts,
        stale_logprobs=part.stale,
    )


def end_step(run: Run) -> None:
    """Ends the guard's step, and keeps what it says when it speaks for the first time."""
    run.guard.step()
    codes = {finding.code for finding in run.guard.findings}
    if codes & SAMPLER_CODES and not run.detected:
        run.spoke("guard")
        run.spoke("guard, end of step")
        run.codes = tuple(sorted(codes))
        run.cause, run.weight = next(iter(run.guard.evidence.causes.items()))


# ------------------------------------------------------------------------------------------ drawing and scoring


@lru_cache(maxsize=8)
def policy_and_reference(plan: Plan, seed: int) -> tuple[Policy, Policy, list[int]]:
    """A policy, its reference and its commonest tokens; made once for all cases."""
    policy = make_policy(plan.vocabulary, plan.entropy, seed=seed, stop=plan.stop, width=48, heads=4)
    prompts, attention_mask = policy.prompts(64, PROMPT, torch.Generator().manual_seed(seed))
    rollout = policy.rollout(prompts, attention_mask, 24)
    counts = torch.bincount(rollout.tokens[rollout.mask], minlength=plan.vocabulary)
    counts[policy.stop] = 0
    return policy, perturbed(policy, REFERENCE_KL, seed=seed), counts.topk(8).indices.tolist()


class Actor:
    """What draws the tokens and what scores them, for one case."""

    def __init__(self, case: Case, plan: Plan, seed: int) -> None:
        original, self.reference, self.common = policy_and_reference(plan, seed)
        self.case = case
        self.policy = original.copy()
        self.sampler = self.policy
        if case.fault.startswith("dropout="):
            self.sampler = with_dropout(original, float(case.fault.partition("=")[2]))
        self.generator = torch.Generator().manual_seed(seed)
        self.keywords = case.keywords(original, self.common)
        self.optimizer = torch.optim.Adam(self.policy.model.parameters(), lr=7e-4)

    def batch(self, count: int) -> Scored:
        """`count` responses, drawn by the sampler and scored by the policy."""
        prompts, attention_mask = self.policy.prompts(count, PROMPT, self.generator)
        if self.case.fault.startswith("stale"):
            self.sampler = self.policy.copy()
        rollout = self.sampler.rollout(
            prompts,
            attention_mask,
            LENGTH,
            keep_scores=self.keywords.get("num_beams", 1) == 1,
            **self.keywords,
        )
        stale = None
        if self.case.fault.startswith("stale"):
            self.update(rollout)
            if self.case.fault == "stale_given":
                with torch.no_grad():
                    stale = token_log_probs(self.sampler.logits(rollout), rollout.tokens)
        with torch.no_grad():
            logits, reference = (self.score(model, rollout) for model in (self.policy, self.reference))
            logprobs, reference_logprobs = (token_log_probs(of, rollout.tokens) for of in (logits, reference))
            return Scored(rollout, logits, reference, logprobs, reference_logprobs, stale)

    def score(self, model: Policy, rollout: Rollout) -> Tensor:
        """(B, T, V) logits as the loop scores the response, with its fault."""
        shift = {"shift-1": 0, "shift+1": 2}.get(self.case.fault, 1)
        logits = model.logits(rollout, shift)
        return logits / 0.7 if self.case.fault == "scoring_temperature" else logits

    def update(self, rollout: Rollout) -> None:
        """Two steps of PPO on advantages drawn at random, one for each response."""
        mask = rollout.mask
        advantages = torch.randn(len(mask), 1, generator=self.generator).expand(mask.shape)
        old = None
        for _ in range(2):
            new = token_log_probs(self.policy.logits(rollout), rollout.tokens)
            old = new.detach() if old is None else old
            self.optimizer.zero_grad()
            clipped_loss(new, old, advantages, mask).backward()
            self.optimizer.step()


def with_dropout(policy: Policy, share: float) -> Policy:
    """A copy in train mode with this dropout everywhere."""
    noisy = policy.copy()
    for module in noisy.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = share
    noisy.model.train()
    return noisy


def divergence(case: Case, batch: Scored) -> Tensor:
    """(B, T) nats per token by which what drew the tokens differs from what scored them, KL(q || p).

    Exact over the vocabulary where the processed scores are there; what is not random puts all its mass on
    the token it chose.
    """
    if batch.rollout.scores is None or not batch.rollout.scores.numel() or case.name.startswith("do_sample"):
        return -batch.logprobs
    log_p, log_q = batch.logits.log_softmax(-1), batch.rollout.scores.log_softmax(-1)
    terms = log_q.exp() * (log_q - log_p)
    return torch.where(log_q == -torch.inf, 0.0, terms).sum(-1)


# ------------------------------------------------------------------------------------------ a case


@dataclass
class Outcome:
    """Everything that the runs of a case gave."""

    runs: list[Run]
    divergence: float
    named: int
    seconds: float


def simulate(case: Case, plan: Plan) -> Outcome:
    """All runs of a case, RUNS_TOGETHER at a time, each group with a policy of its own."""
    begun = time.perf_counter()
    runs, nats, named = [], [], 0
    for group, first in enumerate(range(0, plan.runs, RUNS_TOGETHER)):
        torch.manual_seed(1000 + group)
        actor = Actor(case, plan, seed=group)
        members = [
            new_run(actor, first + i, group == 0) for i in range(min(RUNS_TOGETHER, plan.runs - first))
        ]
        number = 0
        while active := [run for run in members if wants_more(run, plan, nats)]:
            batch = actor.batch(SEQUENCES * len(active))
            if number < 2:
                kl = divergence(case, batch)
                nats.append((kl[batch.rollout.mask].sum().item(), int(batch.rollout.mask.sum())))
            for i, run in enumerate(active):
                feed(run, batch.rows(slice(i * SEQUENCES, (i + 1) * SEQUENCES)))
            number += 1
        runs += members
        named += sum(run.detected and case.named(run.cause, actor.policy, actor.common) for run in members)
    return Outcome(runs, mean_of(nats), named, time.perf_counter() - begun)


def mean_of(nats: Sequence[tuple[float, int]]) -> float:
    """Nats per token, from sums and numbers of tokens; inf before there are any."""
    tokens = sum(count for _, count in nats)
    return sum(total for total, _ in nats) / tokens if tokens else math.inf


def new_run(actor: Actor, seed: int, with_pit: bool) -> Run:
    """A run with a guard that knows what a loop would tell it, and nothing about the settings."""
    guard = Guard(
        on_violation="record",
        alpha=ALPHA,
        eos_token_id=actor.policy.stop,
        seed=seed,
        strict=True,
    )
    return Run(guard, with_pit)


def wants_more(run: Run, plan: Plan, nats: Sequence[tuple[float, int]]) -> bool:
    """A run goes on until the guard has spoken and the others have had their tokens."""
    return run.tokens < (plan.rival_tokens if run.detected else plan.end(mean_of(nats)))


# ------------------------------------------------------------------------------------------ figures


def quantile(values: Sequence[float], share: float) -> int | None:
    """The smallest number of tokens within which this share of the runs was found; None if fewer were."""
    ordered = sorted(values)
    value = ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]
    return None if math.isinf(value) else int(value)


def summary(who: str, runs: Sequence[Run], within: float = math.inf) -> dict[str, Any]:
    """How many of the runs `who` found, and after how many tokens."""
    tokens = [run.found.get(who, math.inf) for run in runs]
    tokens = [value if value <= within else math.inf for value in tokens]
    share = sum(map(math.isfinite, tokens)) / len(tokens)
    return {"found": share, "median": quantile(tokens, 0.5), "p90": quantile(tokens, 0.9)}


def measure(name: str, plan: Plan) -> dict[str, Any]:
    """The figures of the case of this name, or why it cannot be tried with the installed transformers."""
    settle()
    case = next(case for case in cases() if case.name == name)
    try:
        outcome = simulate(case, plan)
    except ValueError as error:
        if "trust_remote_code" not in str(
            error
        ):  # how transformers 5 says that a method has left the library
            raise
        return {"case": case.name, "code": case.code, "left_out": str(error).splitlines()[0]}
    runs = outcome.runs
    others = sorted({who for run in runs for who in run.found} - {"guard", "guard, end of step"})
    causes = Counter(run.cause for run in runs if run.detected)
    detected = sum(causes.values())
    weights = [run.weight for run in runs if run.detected]
    return {
        "case": case.name,
        "code": case.code,
        "runs": len(runs),
        "rival_tokens": plan.rival_tokens,
        "kl_nats_per_token": round(outcome.divergence, 5),
        "guard": summary("guard", runs),
        "guard_end_of_step": summary("guard, end of step", runs),
        "bank": case.bank,
        "cause": case.cause or None,
        "cause_right": outcome.named / detected if detected and case.cause else None,
        "causes_named": dict(causes.most_common(5)),
        "weight_median": round(statistics.median(weights), 4) if weights else None,
        "codes": dict(Counter(code for run in runs for code in run.codes)),
        "pit": summary("pit", [run for run in runs if run.with_pit]),
        "engine_log_probs": summary("engine's log-probs", runs),
        "others": {
            who: summary(who, runs, within=plan.rival_tokens)
            for who in others
            if who not in ("pit", "engine's log-probs")
        },
        "tokens_per_run": int(statistics.mean(run.tokens for run in runs)),
        "seconds": round(outcome.seconds, 1),
    }


def settle() -> None:
    """One thread for each worker, and no advice from the library."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()


def row(result: dict[str, Any]) -> str:
    """A line of the table."""
    if "left_out" in result:
        return f"{result['case'][:47]:47} left out: {result['left_out'][:90]}"
    guard, pit, engine = result["guard"], result["pit"], result["engine_log_probs"]
    right = "" if result["cause_right"] is None else f"{result['cause_right']:.0%}"
    top = next(iter(result["causes_named"].items()), ("", 0))
    others = ", ".join(f"{who} {figures['found']:.0%}" for who, figures in result["others"].items())
    return (
        f"{result['case'][:47]:47} {result['kl_nats_per_token']:8.4f} {guard['found']:5.0%} "
        f"{guard['median'] or '-':>6} {guard['p90'] or '-':>6} {right:>5} {top[0]:>22} "
        f"{pit['median'] or '-':>6} {engine['median'] or '-':>6}  {others}"
    )


HEADER = (
    f"{'case':47} {'KL(q|p)':>8} {'found':>5} {'median':>6} {'p90':>6} {'cause':>5} {'named most':>22} "
    f"{'pit':>6} {'engine':>6}  others within the first tokens"
)


def verdict(results: Sequence[dict[str, Any]], plan: Plan) -> dict[str, Any]:
    """The goals, and whether they are met."""
    tried = {result["case"]: result for result in results if "left_out" not in result}
    named = ("top_k=50", "top_p=0.9", "temperature=0.7", "min_new_tokens=16")
    moving = [
        r for r in tried.values()
        if r["kl_nats_per_token"] >= 0.002 and r["case"] not in ("pure sampling",) and r["code"] != "KLG303"
    ]  # fmt: skip
    listed = [r for r in moving if r["bank"] == "value" and r["cause_right"] is not None]
    right = sum(r["cause_right"] * r["guard"]["found"] for r in listed)
    healthy = [r for r in tried.values() if r["case"] == "pure sampling" or r["code"] == "KLG303"]
    return {
        "alarms_in_healthy_runs": {r["case"]: r["guard"]["found"] for r in healthy},
        "median_of_the_four": {n: tried[n]["guard"]["median"] for n in named if n in tried},
        f"moving_not_found_by_all_runs_within_{plan.tokens}": {
            r["case"]: r["guard"]["found"] for r in moving if r["guard"]["found"] < 1
        },
        "cause_right_of_listed_values": right / sum(r["guard"]["found"] for r in listed) if listed else None,
        "cause_right_below_95": {r["case"]: r["cause_right"] for r in listed if r["cause_right"] < 0.95},
    }


def remembered(plan: Plan) -> dict[str, dict[str, Any]]:
    """The cases on record that were measured on the same policies, by name."""
    path = RESULTS / "guard_detection.json"
    if not path.exists():
        return {}
    old = json.loads(path.read_text(encoding="utf-8"))
    same = all(old["policies"][name] == getattr(plan, name) for name in POLICIES)
    return {case["case"]: case for case in old["cases"]} if same else {}


def remember(result: dict[str, Any], plan: Plan) -> None:
    """Put a case on record, in place of what was known of it: a long benchmark may be run in parts."""
    known = remembered(plan) | {result["case"]: result}
    ordered = [known[case.name] for case in cases() if case.name in known]
    missing = [case.name for case in cases() if case.name not in known]
    policies = {name: getattr(plan, name) for name in POLICIES}
    goals = verdict(ordered, plan)
    record(
        "guard_detection",
        {"alpha": ALPHA, "policies": policies, "goals": goals, "not_measured": missing, "cases": ordered},
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=Plan.runs)
    parser.add_argument("--tokens", type=int, default=Plan.tokens)
    parser.add_argument("--rival-tokens", type=int, default=Plan.rival_tokens)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--cases", nargs="*", default=[], help="only cases whose name contains one of these")
    parser.add_argument(
        "--quick", action="store_true", help="5 runs of 4,000 tokens, vocabulary 1,000; not recorded"
    )
    args = parser.parse_args()
    plan = Plan(runs=args.runs, tokens=args.tokens, rival_tokens=args.rival_tokens)
    if args.quick:
        plan = Plan(vocabulary=1000, runs=5, tokens=4000, rival_tokens=1500)
    chosen = [c.name for c in cases() if not args.cases or any(part in c.name for part in args.cases)]
    results = []
    print(HEADER, flush=True)
    with ProcessPoolExecutor(args.workers) as pool:
        for result in pool.map(partial(measure, plan=plan), chosen):
            results.append(result)
            print(row(result), flush=True)
            if not args.quick:
                remember(result, plan)
    print(*(f"{name}: {value}" for name, value in verdict(results, plan).items()), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
