"""A rank of the laboratory's loop: `torchrun --nproc-per-node 4 -m tests.lab.ranks_worker CASE FOLDER [KILL_AT]`.

Each rank writes FOLDER/rank-N.json. Rank 1 is slow in every step. With KILL_AT, rank 2 kills itself in that step, as
an out-of-memory killer would, and the launch fails; launched again in the same folder, the ranks resume.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from klguard.guard import Violation
from klguard.lab.checkpoint import resume, save
from klguard.lab.config import Config
from klguard.lab.grammar import Beginnings, Tokenizer
from klguard.lab.loop import PPO
from klguard.lab.student import untrained
from tests.lab.runs import early

STEPS = 5
SLOW = 0.2


def slow(texts):
    """The reward of a rank that is late at every step."""
    if dist.get_rank() == 1:
        time.sleep(SLOW)
    return early(texts)


def made(case: str) -> PPO:
    """The loop of the case: `fsdp` shards the model, `ddp` does not; in `bent` the last rank samples with top_k=3."""
    accelerator = Accelerator(cpu=True)
    bent = case == "bent" and accelerator.process_index == accelerator.num_processes - 1
    config = Config(
        steps=STEPS,
        rows=4,
        max_new_tokens=12,
        micro_batch=1,
        learning_rate=1e-3,
        shard=case != "ddp",
        sampling={"top_k": 3} if bent else {},
    )
    policy = untrained(layers=2, width=16)
    return PPO(policy, Tokenizer(), Beginnings(), slow, config, accelerator=accelerator)


def digest(loop: PPO) -> str:
    """The whole weights, as a short text."""
    whole = get_model_state_dict(loop.trained, options=StateDictOptions(full_state_dict=True))
    answer = (
        hashlib.sha256(b"".join(t.numpy().tobytes() for t in whole.values())).hexdigest() if whole else ""
    )
    answers = [answer]
    dist.broadcast_object_list(answers)
    return answers[0]


def main() -> None:
    case, folder, *kill_at = sys.argv[1:]
    torch.set_num_threads(1)
    loop, folder = made(case), Path(folder)
    # the model is untrained: its responses seldom end, and its values explain nothing
    options = {"journal": folder / "run.jsonl", "ignore": ["KLG1", "KLG86"]}
    guard = loop.guarded(on_violation="raise", **options)
    resumed = resume(folder / "checkpoints", loop, guard)
    rank = dist.get_rank()
    raised = None

    def after_step(loop: PPO) -> None:
        if kill_at and rank == 2 and loop.number == int(kill_at[0]):
            os.kill(os.getpid(), signal.SIGKILL)
        save(folder / "checkpoints", loop, guard)

    try:
        loop.run(guard, after_step=after_step)
    except Violation as violation:
        raised = [loop.number, violation.code, violation.cause]
    answer = {
        "raised": raised,
        "resumed": resumed,
        "steps": loop.number,
        "log_evidence": guard.evidence.log_evidence,
        "tokens": guard.evidence.tokens,
        "version": guard.version,
        "failure": None if guard.failure is None else repr(guard.failure),
        "findings": [finding.code for finding in guard.findings],
        "exercised": sorted(guard.exercised),
        "weights": digest(loop),
        "held": sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in loop.parameters),
        "all": sum(p.numel() for p in loop.parameters),
    }
    (folder / f"rank-{rank}.json").write_text(json.dumps(answer))
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    # One launch in a dozen on a busy machine, a thread of torch's own aborts the interpreter while it is taken down.
    os._exit(0)


if __name__ == "__main__":
    main()
