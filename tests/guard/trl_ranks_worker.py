"""One process of trainers of TRL under DDP: `python -m tests.guard.trl_ranks_worker RANK OUT`, with the rank and the
address of the others in the environment, as torchrun and `accelerate launch` set them."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch

import klguard
from tests.guard import trl_setup as setup
from tests.guard.trl_trainers import trainer_of

RUNS = {
    "safe grpo": ("grpo", {}),
    "safe rloo": ("rloo", {}),
    "safe grpo, groups over ranks": (
        "grpo",
        dict(per_device_train_batch_size=4, gradient_accumulation_steps=1),
    ),
    "safe grpo, two iterations": ("grpo", dict(num_iterations=2, gradient_checkpointing=True, bf16=True)),
    "top_k grpo": ("grpo", dict(top_k=10)),
    "top_k rloo": ("rloo", dict(top_k=10)),
}


def answer(kind, options, folder, checkpoint, on_violation="record"):
    """What the guard of one trainer says on this rank."""
    options = {"wrapped": lambda _: checkpoint, **options}
    trainer = trainer_of(kind, folder, **{"per_device_train_batch_size": 8, "max_steps": 4, **options})
    guard = klguard.guard_trainer(trainer, on_violation=on_violation)
    raised = None
    try:
        trainer.train()
    except klguard.Violation as violation:
        raised = violation.code
    return {
        "wrapped": type(trainer.model_wrapped).__name__,
        "failure": None if guard.failure is None else repr(guard.failure),
        "raised": raised,
        "steps": trainer.state.global_step,
        "found": [(found.code, found.message) for found in guard.findings],
        "causes": [found.measured.cause for found in guard.findings if found.code == "KLG701"],
        "exercised": sorted(guard.exercised),
        "evidence": guard.evidence.log_evidence,
        "tokens": guard.metrics.get("klguard/tokens"),
    }


def main(rank, out):
    """Write the answers of all runs."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    folder = Path(out).parent / f"rank{rank}"
    checkpoint = setup.checkpoint(str(folder / "checkpoint"))  # later, only rank 0 would write it
    answers = {}
    for number, (name, (kind, options)) in enumerate(RUNS.items()):
        answers[name] = answer(kind, options, folder / str(number), checkpoint)
    answers["raising"] = answer("grpo", dict(top_k=10), folder / "raising", checkpoint, on_violation="raise")
    Path(f"{out}.{rank}").write_text(json.dumps(answers), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
