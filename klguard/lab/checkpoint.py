"""Saving a run between two steps, and going on from there as if nothing had happened.

A checkpoint is a directory `step-00000012`: `run.pt` has weights, optimizer, schedule and step, whole even where
they are sharded, written by rank 0; `rank-N.pt` has what each rank has of its own: random states and the guard.
It is written under another name and renamed at the end: a kill while it is written leaves the one before.
"""

from __future__ import annotations

import os
import random
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

if TYPE_CHECKING:
    from klguard.guard import Guard
    from klguard.lab.loop import PPO

_NAME = re.compile(r"step-(\d{8})")
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def save(directory: str | os.PathLike[str], loop: PPO, guard: Guard | None = None, *, keep: int = 2) -> Path:
    """Write a checkpoint into `directory`, and remove all but the last `keep`. Every rank has to call it."""
    directory = Path(directory)
    target = directory / f"step-{loop.number:08d}"
    partial = directory / f".{target.name}.partial"
    rank, ranks = loop.accelerator.process_index, loop.accelerator.num_processes
    weights, optimizer = get_state_dict(loop.trained, loop.optimizer, options=_WHOLE)
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        shared = {
            "step": loop.number,
            "ranks": ranks,
            "weights": weights,
            "optimizer": optimizer,
            "scheduler": loop.scheduler.state_dict(),
        }
        torch.save(shared, partial / "run.pt")
    loop.accelerator.wait_for_everyone()
    torch.save(_own(loop, guard), partial / f"rank-{rank}.pt")
    loop.accelerator.wait_for_everyone()
    if rank == 0:
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
        for old in found(directory)[:-keep]:
            shutil.rmtree(old)
    loop.accelerator.wait_for_everyone()
    return target


def found(directory: str | os.PathLike[str]) -> list[Path]:
    """The complete checkpoints in `directory`, the oldest first."""
    directory = Path(directory)
    return sorted(path for path in directory.glob("step-*") if _NAME.fullmatch(path.name))


def resume(directory: str | os.PathLike[str], loop: PPO, guard: Guard | None = None) -> bool:
    """Go on from the last checkpoint in `directory`; False where there is none. Every rank has to call it, before
    training. ValueError when it was written by another number of ranks."""
    known = found(directory)
    if not known:
        return False
    rank, ranks = loop.accelerator.process_index, loop.accelerator.num_processes
    shared = torch.load(known[-1] / "run.pt", map_location="cpu", weights_only=True)
    if shared["ranks"] != ranks:
        raise ValueError(
            f"{known[-1]} was written by {shared['ranks']} ranks and there are {ranks}: start as many, for each has"
            " random states of its own"
        )
    set_state_dict(
        loop.trained,
        loop.optimizer,
        model_state_dict=shared["weights"],
        optim_state_dict=shared["optimizer"],
        options=_WHOLE,
    )
    loop.scheduler.load_state_dict(shared["scheduler"])
    loop.number = shared["step"]
    _take_up(torch.load(known[-1] / f"rank-{rank}.pt", map_location="cpu", weights_only=True), loop, guard)
    return True


def _own(loop: PPO, guard: Guard | None) -> dict[str, Any]:
    """Random states, figures so far and the guard of this rank."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(loop.device) if loop.device.type == "cuda" else None,
        "python": random.getstate(),
        "data": loop.generator.get_state(),
        "logs": loop.logs,
        "guard": None if guard is None else guard.state_dict(),
    }


def _take_up(own: dict[str, Any], loop: PPO, guard: Guard | None) -> None:
    torch.set_rng_state(own["torch"])
    if own["cuda"] is not None:
        torch.cuda.set_rng_state(own["cuda"], loop.device)
    random.setstate(own["python"])
    loop.generator.set_state(own["data"])
    loop.logs = own["logs"]
    if guard is not None and own["guard"] is not None:
        guard.load_state_dict(own["guard"])
