#!/usr/bin/env python3
"""The laboratory's experiment under many sampling settings: when the guard stops each run, and when TRL's rule warns.

    python benchmarks/lab_settings.py [--seeds 3] [--steps 16] [--jobs 1] [--redraw]

A small GPT-2 learns a grammar; PPO then trains it with a constant reward, under pure sampling and under one setting
at a time. Nothing stops a run here: what the guard would have prevented is what is shown. For each run it is
recorded after which step, and after how many sampled tokens, the guard stops it: by all it looks at, the settings
themselves included, and by the tokens alone (KLG6xx, KLG701 to KLG704), with the cause it names; when TRL's rule
(batch mean of the KL estimate below -1 nat per sequence) first holds; and the KL and reward at each step. Results go to
benchmarks/results/lab_settings.json, the figure to docs/images/lab_settings.png.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

from benchmarks.cases import Case, cases  # noqa: E402
from benchmarks.machine import RESULTS, record  # noqa: E402
from benchmarks.policies import Policy  # noqa: E402
from klguard.lab.demo import quiet  # noqa: E402
from klguard.lab.experiment import LIMIT, SETUP, Outcome, run  # noqa: E402
from klguard.lab.grammar import END, PAD, Beginnings  # noqa: E402
from klguard.lab.student import student  # noqa: E402

FIGURE = Path(__file__).resolve().parent.parent / "docs" / "images" / "lab_settings.png"
READING = 200

# The grammar has 46 words, of which a dozen are likely at any place: values that bend a vocabulary of thousands, such
# as top_k=50, leave it alone.
OWN = [
    Case("top_k=5", "KLG101", {"top_k": 5}, cause="top_k=5"),
    Case("top_k=10", "KLG101", {"top_k": 10}, cause="top_k=10"),
    Case("epsilon_cutoff=0.01", "KLG105", {"epsilon_cutoff": 0.01}, cause="epsilon_cutoff="),
    Case("min_length=21", "KLG301", {"min_length": 21}, cause="eos_suppressed<16"),
]
SHARED = (
    "pure sampling",
    "top_p=0.9",
    "top_p=0.95",
    "min_p=0.1",
    "typical_p=0.5",
    "top_h=0.4",
    "temperature=0.7",
    "temperature=1.2",
    "repetition_penalty=1.1",
    "no_repeat_ngram_size=2",
    "suppress_tokens, one token",
    "suppress_tokens, the stop token",
    "begin_suppress_tokens, the stop token",
    "sequence_bias, +2 for one token",
    "prefix_allowed_tokens_fn, three quarters of the ids",
    "watermark",
    "do_sample=False",
    "num_beams=4",
    "min_new_tokens=16",
    "exponential_decay_length_penalty=(8, 1.05)",
)


def chosen() -> list[Case]:
    """The cases, pure sampling first."""
    known = {case.name: case for case in cases()}
    return [*(known[name] for name in SHARED), *OWN]


def one_seed(seed: int, steps: int) -> list[dict[str, Any]]:
    """Every case with the policy of this seed."""
    quiet()
    started = time.process_time()
    policy = student(steps=READING, seed=seed)
    common = _common(policy, seed)
    found = []
    for case in chosen():
        sampling = case.keywords(Policy(policy, END, PAD), common)
        outcome = run(policy, sampling, config=replace(SETUP, steps=steps, seed=seed))
        found.append(_result(case, outcome, seed))
        print(f"{time.process_time() - started:5.0f} s  seed {seed}  {_words(found[-1])}", flush=True)
    return found


def _common(policy: Any, seed: int) -> list[int]:
    """The policy's commonest words in its own texts, the commonest first."""
    ids, attention = Beginnings(seed)(64, torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    made = policy.generate(ids, attention_mask=attention, do_sample=True, top_k=0, max_new_tokens=24)
    counts = torch.bincount(made[:, ids.shape[1] :].flatten(), minlength=policy.config.vocab_size)
    counts[[END, PAD]] = 0
    return counts.argsort(descending=True).tolist()


def _result(case: Case, outcome: Outcome, seed: int) -> dict[str, Any]:
    kept = ("kl", "exact_kl", "total_reward", "score", "tokens", "log_evidence")
    return {
        "name": case.name,
        "rule": case.code,
        "seed": seed,
        "guard": None if outcome.guard is None else asdict(outcome.guard),
        "evidence": None if outcome.evidence is None else asdict(outcome.evidence),
        "trl": None if outcome.trl is None else {"step": outcome.trl.step, "tokens": outcome.trl.tokens},
        "lowest_kl": min(outcome.column("kl")),
        "highest_evidence": max(outcome.column("log_evidence")),
        "figures": {name: [round(value, 4) for value in outcome.column(name)] for name in kept},
    }


def _words(result: dict[str, Any]) -> str:
    guard, evidence, trl = result["guard"], result["evidence"], result["trl"]
    stopped = "never" if guard is None else f"step {guard['step']}"
    seen = "never"
    if evidence is not None:
        seen = f"step {evidence['step']}, {evidence['tokens']} tokens, {evidence['cause']}"
    warned = "never" if trl is None else f"step {trl['step']}"
    words = f"guard {stopped}; by tokens {seen}; TRL {warned}; lowest KL {result['lowest_kl']:.2f}"
    return f"{result['name']}: {words}"


def summary(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a setting, over the seeds: the latest step at which the guard stopped, and how often TRL's rule saw it."""
    rows = []
    for name in dict.fromkeys(result["name"] for result in results):
        mine = [result for result in results if result["name"] == name]
        stopped = [result["guard"] for result in mine if result["guard"]]
        seen = [result["evidence"] for result in mine if result["evidence"]]
        warned = [result["trl"] for result in mine if result["trl"]]
        rows.append(
            {
                "name": name,
                "runs": len(mine),
                "stopped": len(stopped),
                "latest_step": max((one["step"] for one in stopped), default=None),
                "seen_in_tokens": len(seen),
                "latest_seen_step": max((one["step"] for one in seen), default=None),
                "latest_seen_tokens": max((one["tokens"] for one in seen), default=None),
                "causes": sorted({one["cause"] for one in seen}),
                "warned_by_trl": len(warned),
                "earliest_trl_step": min((one["step"] for one in warned), default=None),
                "earliest_trl_tokens": min((one["tokens"] for one in warned), default=None),
                "lowest_kl": min(result["lowest_kl"] for result in mine),
            }
        )
    return rows


def draw(results: list[dict[str, Any]], steps: int, path: Path) -> None:
    """Left: the KL estimate of four settings. Right: how many tokens each alarm needs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = summary(results)
    figure = Figure(figsize=(11.5, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    shades = {
        "pure sampling": "#2f9e6e",
        "min_new_tokens=16": "#d84a4a",
        "suppress_tokens, the stop token": "#8d6bd6",
        "top_k=10": "#3b7dd8",
    }
    for result in results:
        if result["name"] in shades:
            label = result["name"] if result["seed"] == results[0]["seed"] else None
            left.plot(result["figures"]["kl"], color=shades[result["name"]], linewidth=1.3, label=label)
    left.axhline(0, color="#8a8f98", linewidth=0.8)
    left.set_title("KL estimate; the reward is constant, nothing is learnt", fontsize=10)
    left.set_xlabel("PPO step", fontsize=9)
    left.set_ylabel("nats per sequence", fontsize=9)
    left.legend(fontsize=8)
    all_tokens = max(result["figures"]["tokens"][-1] for result in results)
    for place, row in enumerate(reversed(rows)):
        for alarm, tokens, share, color in (
            (0.18, row["latest_seen_tokens"], row["seen_in_tokens"], "#d84a4a"),
            (-0.18, row["earliest_trl_tokens"], row["warned_by_trl"], "#d9772b"),
        ):
            if tokens is None:
                right.plot([all_tokens * 1.5], [place + alarm], marker=">", color=color, markersize=3.5)
            else:
                right.barh(place + alarm, tokens, height=0.34, color=color)
                if share < row["runs"]:
                    right.text(tokens, place + alarm, f" {share} of {row['runs']}", fontsize=6, va="center")
    right.set_yticks(range(len(rows)), [row["name"] for row in reversed(rows)], fontsize=7)
    right.set_xscale("log")
    right.set_xlim(right.get_xlim()[0], all_tokens * 2)
    right.set_xlabel(f"sampled tokens until the alarm; at the right edge: never in {steps} steps", fontsize=9)
    right.set_title("tokens until the alarm", fontsize=10)
    for color, words in (
        ("#d84a4a", "the guard, by tokens alone: the slowest seed"),
        ("#d9772b", "TRL's rule: the fastest seed"),
    ):
        right.barh([0], [0], color=color, label=words)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", fontsize=8, ncols=2)
    for axes in (left, right):
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(alpha=0.25, axis="x" if axes is right else "both")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, metadata={"Software": None})


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--trial", action="store_true", help="do not write the results")
    parser.add_argument("--redraw", action="store_true", help="only draw the figure anew, from the results")
    given = parser.parse_args()
    if given.redraw:
        known = json.loads((RESULTS / "lab_settings.json").read_text())
        draw(known["runs"], known["steps"], given.figure)
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    tasks = [(seed, given.steps) for seed in range(given.seeds)]
    if given.jobs > 1:
        with multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
            results = [one for part in pool.starmap(one_seed, tasks, chunksize=1) for one in part]
    else:
        results = [one for task in tasks for one in one_seed(*task)]
    rows = summary(results)
    draw(results, given.steps, given.figure)
    if not given.trial:
        record(
            "lab_settings",
            {"steps": given.steps, "seeds": given.seeds, "limit": LIMIT, "summary": rows, "runs": results},
        )
    print(f"\n{'setting':52} {'stopped':>8} {'step':>5} {'by tokens':>10} {'step':>5} {'TRL':>6}  causes")
    for row in rows:
        runs = row["runs"]
        steps = ["-" if row[name] is None else row[name] for name in ("latest_step", "latest_seen_step")]
        stopped, seen, trl = (
            f"{row[name]}/{runs}" for name in ("stopped", "seen_in_tokens", "warned_by_trl")
        )
        causes = ", ".join(row["causes"])
        print(f"{row['name']:52} {stopped:>8} {steps[0]:>5} {seen:>10} {steps[1]:>5} {trl:>6}  {causes}")
    safe = rows[0]["stopped"] == 0
    unsafe = all(row["stopped"] == row["runs"] for row in rows[1:])
    print(
        f"\nsafe runs stopped: {rows[0]['stopped']} of {rows[0]['runs']}; every unsafe run stopped: {unsafe}"
    )
    return 0 if safe and unsafe else 1


if __name__ == "__main__":
    sys.exit(main())
