#!/usr/bin/env python3
"""A long run: 20,000 small steps of all of the guard's events. Memory, time per step and journal stay bounded.

    python benchmarks/guard_soak.py [--steps 20000] [--trial]

The events are made of tensors drawn for the purpose (4 rows of 8 tokens, 32 words, the policy drifting away from its
reference and back), not of a model: what is measured is the guard. Every event of a PPO step is told, with a journal
and a logger, and a real optimizer steps a small layer. Recorded in ten parts of the run: the resident memory, the
Python objects alive, the guard's share of the step in CPU time, and bytes of journal per step; and the size of
state_dict() at the end. Goals: in the second half of the run, memory grows by less than 8 MB, objects by less than
1 %, the time of a step by less than 10 %, and the journal by no more than 1.5 KB a step. A healthy run of this length
has to stay without a finding. Results go to benchmarks/results/guard_soak.json.
"""

from __future__ import annotations

import argparse
import gc
import io
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.machine import record  # noqa: E402
from klguard.guard import Guard  # noqa: E402
from klguard.guard.journal import read  # noqa: E402

ROWS, PROMPT, TIME, VOCABULARY, STOP = 4, 3, 8, 32, 1
KL_COEF, CLIP = 0.05, 0.2
PARTS = 10
MEMORY, OBJECTS, SECONDS, JOURNAL = 8 * 2**20, 0.01, 0.10, 1500
"""Growth from the middle of the run to its end that is allowed: bytes, shares of the whole, bytes per step."""


class Events:
    """A PPO step without a model: what a loop would tell the guard, drawn from a generator."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.layer = nn.Linear(8, 8)
        self.optimizer = torch.optim.AdamW(self.layer.parameters(), lr=1e-4)
        self.logged: dict[str, float] = {}
        self.seconds = 0.0

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def draw(self, number: int) -> dict[str, Tensor]:
        """A rollout with all its figures."""
        logits = self.normal(ROWS, TIME, VOCABULARY)
        drift = 0.05 + 0.1 * abs((number % 2000) / 1000 - 1)
        reference = logits + drift * self.normal(ROWS, TIME, VOCABULARY)
        flat = logits.softmax(-1).view(-1, VOCABULARY)
        tokens = torch.multinomial(flat, 1, generator=self.generator).view(ROWS, TIME)
        stopped = (tokens == STOP).long()
        mask = stopped.cumsum(1) - stopped == 0
        tokens = tokens.masked_fill(~mask, 0)
        made = {"logits": logits, "reference_logits": reference, "tokens": tokens, "mask": mask}
        made["prompts"] = torch.randint(2, VOCABULARY, (ROWS, PROMPT), generator=self.generator)
        made["scores"] = self.normal(ROWS)
        made["values"] = 0.1 * self.normal(ROWS, TIME) * mask
        return made

    def step(self, guard: Guard, number: int) -> None:
        """Tell everything; the time inside the guard's calls is added up."""
        drawn = self.draw(number)
        tokens, mask, logits = drawn["tokens"], drawn["mask"], drawn["logits"]
        reference = drawn["reference_logits"].log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        started = time.process_time()
        guard.rollout(tokens, mask, prompts=drawn["prompts"], stop_token_ids=STOP, max_new_tokens=TIME)
        told = {"reference_logits": drawn["reference_logits"], "context_ids": drawn["prompts"]}
        old = guard.logprobs(logits, tokens, mask, **told)
        kl = guard.kl(old, reference, mask)
        self.seconds += time.process_time() - started
        last = mask.sum(1, keepdim=True) - 1
        rewards = (-KL_COEF * kl).scatter_add(1, last, drawn["scores"][:, None])
        advantages = rewards.flip(1).cumsum(1).flip(1) * mask - drawn["values"]
        started = time.process_time()
        guard.rewards(drawn["scores"], token_rewards=rewards, kl=kl, kl_coef=KL_COEF, mask=mask)
        guard.advantages(advantages, mask, values=drawn["values"])
        self.seconds += time.process_time() - started
        for epoch in range(2):
            # the first pass is under the weights that sampled, later ones a little further
            new = old + 0.01 * epoch * self.normal(ROWS, TIME)
            started = time.process_time()
            guard.minibatch(
                new, old, mask, tokens=tokens, rows=torch.arange(ROWS), epoch=epoch, clip_range=CLIP
            )
            self.seconds += time.process_time() - started
            self.optimizer.zero_grad()
            # towards noise, which it never reaches: a layer that has learnt all there is has no gradient left
            (self.layer(self.normal(4, 8)) - self.normal(4, 8)).square().mean().backward()
            norm = nn.utils.clip_grad_norm_(self.layer.parameters(), 1.0)
            self.optimizer.step()
        started = time.process_time()
        guard.step(rewards=drawn["scores"], grad_norm=norm, kl=kl.sum(1).mean(), kl_unit="sequence")
        self.seconds += time.process_time() - started


def resident() -> int:
    """Bytes of memory of this process that are in use; the peak where the system does not tell."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def soak(steps: int, journal: Path) -> dict[str, Any]:
    """The run, in parts of equal length."""
    torch.set_num_threads(1)
    events = Events()

    def keep_last(figures: dict[str, float], step: int) -> None:
        events.logged = figures

    guard = Guard(
        events.layer,
        on_violation="record",
        eos_token_id=STOP,
        kl_coef=KL_COEF,
        max_grad_norm=1.0,
        optimizer=events.optimizer,
        journal=journal,
        logger=keep_last,
        ignore=["KLG863"],  # most responses are cut off: eight tokens are little
    )
    parts, number = [], 0
    with guard:
        for part in range(PARTS):
            events.seconds, samples = 0.0, []
            for _ in range(steps // PARTS):
                before = events.seconds
                events.step(guard, number)
                samples.append(events.seconds - before)
                number += 1
            gc.collect()
            parts.append(
                {
                    "steps": number,
                    "resident_bytes": resident(),
                    "objects": len(gc.get_objects()),
                    "seconds_per_step": statistics.median(samples),
                    "journal_bytes_per_step": journal.stat().st_size / number,
                }
            )
            print(f"part {part + 1} of {PARTS}: {parts[-1]}", flush=True)
        buffer = io.BytesIO()
        torch.save(guard.state_dict(), buffer)
    return {
        "steps": number,
        "parts": parts,
        "state_bytes": buffer.getbuffer().nbytes,
        "journal_bytes": journal.stat().st_size,
        "journal_steps": len(read(journal).steps),
        "findings": sorted({finding.code for finding in guard.findings}),
        "failure": None if guard.failure is None else repr(guard.failure),
        "log_evidence": guard.evidence.log_evidence,
        "tokens": guard.evidence.tokens,
        "exercised": len(guard.exercised),
    }


def verdicts(result: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """Each goal: what it is, what was measured, whether it is met. From the middle of the run to its end."""
    parts = result["parts"]
    middle, last = parts[len(parts) // 2 - 1], parts[-1]
    memory = last["resident_bytes"] - middle["resident_bytes"]
    objects = last["objects"] / middle["objects"] - 1
    halves = (parts[1 : len(parts) // 2], parts[len(parts) // 2 :])
    first, second = (min(part["seconds_per_step"] for part in half) for half in halves)
    longer, journal = second / first - 1, result["journal_bytes"] / result["steps"]
    return [
        ("memory grows by", f"{memory / 2**20:.1f} MB", memory < MEMORY),
        ("objects grow by", f"{objects:.2%}", objects < OBJECTS),
        ("a step takes longer by", f"{longer:.1%}", longer < SECONDS),
        ("journal per step", f"{journal:.0f} bytes", journal <= JOURNAL),
        ("steps in the journal", str(result["journal_steps"]), result["journal_steps"] == result["steps"]),
        ("findings", ", ".join(result["findings"]) or "none", not result["findings"]),
        ("the guard stepped aside", str(result["failure"]), result["failure"] is None),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--trial", action="store_true", help="do not write the results")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = soak(given.steps, Path(folder) / "run.jsonl")
    goals = verdicts(result)
    if not given.trial:
        told = [{"goal": name, "measured": value, "met": met} for name, value, met in goals]
        record("guard_soak", {**result, "goals": told})
    for name, value, met in goals:
        print(f"{name:28} {value:>20}  {'' if met else 'missed'}")
    return 0 if all(met for _, _, met in goals) else 1


if __name__ == "__main__":
    sys.exit(main())
