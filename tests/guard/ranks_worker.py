"""One process of a distributed run: `python -m tests.guard.ranks_worker RANK SIZE STORE CASE OUT`.

Each case is a function of (rank, size) that returns something JSON can hold. With SIZE 1 it is the single
process the others are compared with: it sees the rows of all ranks, one after the other.
"""

from __future__ import annotations

import json
import os
import sys
import warnings

import torch
import torch.distributed as dist
from torch import nn

from klguard.guard import Guard, Violation

WORLD = 4
"""Shards the data is made of, whatever the number of processes."""

VOCABULARY, TIME, ROWS = 80, 12, 6


def shard(step, number, *, sharp=False, seed=0):
    """Logits (ROWS, TIME, V), tokens, mask and reference logits of one shard of a step's batch."""
    generator = torch.Generator().manual_seed(1000 * seed + 10 * step + number)
    logits = torch.randn(ROWS, TIME, VOCABULARY, generator=generator) * 2
    probabilities = (logits / (0.6 if sharp else 1.0)).softmax(-1)
    tokens = torch.multinomial(probabilities.view(-1, VOCABULARY), 1, generator=generator).view(ROWS, TIME)
    lengths = torch.randint(1, TIME + 1, (ROWS, 1), generator=generator)
    reference = logits + 0.1 * torch.randn(logits.shape, generator=generator)
    return logits, tokens, torch.arange(TIME) < lengths, reference


def mine(rank, size):
    """The numbers of this process's shards."""
    return range(rank * WORLD // size, (rank + 1) * WORLD // size)


def play(guard, step, rank, size, **options):
    """One step over this process's shards, in one call."""
    parts = [shard(step, number, **options) for number in mine(rank, size)]
    logits, tokens, mask, reference = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    logprobs = guard.logprobs(logits, tokens, mask, reference_logits=reference)
    guard.kl(logprobs, logprobs - 0.01, mask)
    guard.step(rewards=logprobs.sum(1))


def policy():
    """Something with a vocabulary, so that the banned-token test takes part."""
    model = nn.Module()
    model.head = nn.Linear(1, VOCABULARY)
    model.get_output_embeddings = lambda: model.head
    return model


def same_numbers(rank, size):
    guard = Guard(
        policy(), on_violation="record", eos_token_id=0, kl_coef=0.1, sample_tokens=10**6, strict=True
    )
    told = []
    for step in range(6):
        play(guard, step, rank, size, sharp=step >= 3)
        metrics = {name: value for name, value in guard.metrics.items() if name not in NOT_SHARED}
        causes = guard.evidence.causes
        told.append([metrics, causes, guard.evidence.log_evidence, [f.code for f in guard.findings]])
    return told


NOT_SHARED = {"klguard/ranks", "klguard/guard_seconds"}


def all_raise(rank, size):
    guard = Guard(policy(), eos_token_id=0)
    for step in range(8):
        try:
            play(guard, step, rank, size, sharp=step >= 2 and rank < size // 2)
        except Violation as violation:
            return [step, violation.code, violation.cause]
    return None


def local_fault(rank, size):
    """Only the last rank sees a mask that is no mask of responses."""
    guard = Guard(policy(), eos_token_id=0)
    for step in range(4):
        responses = torch.full((2, 5), 7)
        responses[:, 2] = 0
        mask = torch.arange(5).expand(2, 5) <= (4 if rank == size - 1 and step == 2 else 2)
        guard.rollout(responses, mask)
        try:
            play(guard, step, rank, size)
        except Violation as violation:
            return [step, violation.code]
    return None


def nothing_to_say(rank, size):
    """One rank has no valid token in one step, no call at all in the next, and then only NaN."""
    guard = Guard(policy(), on_violation="record", eos_token_id=0, strict=True)
    for step in range(6):
        if rank == size - 1 and step == 2:
            logits, tokens, mask, _ = shard(step, rank)
            guard.logprobs(logits, tokens, torch.zeros_like(mask))
            guard.step()
        elif rank == size - 1 and step == 3:
            guard.step()
        elif rank == size - 1 and step == 4:
            logits, tokens, mask, _ = shard(step, rank)
            guard.logprobs(logits * torch.nan, tokens, mask)
            guard.step()
        else:
            play(guard, step, rank, size, sharp=step == 5)
    return [sorted({f.code for f in guard.findings}), guard.evidence.log_evidence, guard.evidence.tokens]


def one_fails(rank, size):
    """The guard of rank 1 breaks in step 2: all step aside together, and the loop goes on."""
    guard = Guard(policy(), on_violation="record", eos_token_id=0)
    aside = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(6):
            if rank == 1 and step == 2:
                guard._works.evidence.gather = lambda *a, **k: 1 / 0
            play(guard, step, rank, size)
            aside.append(guard.failure is not None)
            dist.barrier()
    return [aside, len([w for w in caught if "stepped aside" in str(w.message)])]


def wrapped(rank, size):
    """The PPO loop of the tests with its policy in DDP: generate() and the scoring pass are still seen."""
    from torch.nn.parallel import DistributedDataParallel

    from tests.guard.loop import EOS, Loop

    loop = Loop()
    parallel = DistributedDataParallel(loop.policy)
    guard = Guard(
        parallel, loop.reference, loop.tokenizer, on_violation="record", eos_token_id=EOS, strict=True
    )
    return watch(loop, guard, rank)


def prepared(rank, size):
    """Likewise through accelerate's prepare()."""
    from accelerate import Accelerator

    from tests.guard.loop import EOS, Loop

    loop = Loop()
    accelerator = Accelerator(cpu=True)
    policy, optimizer = accelerator.prepare(loop.policy, loop.optimizer)
    guard = Guard(
        policy,
        loop.reference,
        loop.tokenizer,
        on_violation="record",
        eos_token_id=EOS,
        strict=True,
        optimizer=optimizer,
    )
    return watch(loop, guard, rank)


def sharded(rank, size):
    """Likewise with FSDP2: parameters are DTensors, of which each rank holds a part."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from tests.guard.loop import EOS, GroupLoop

    loop = GroupLoop()
    mesh = init_device_mesh("cpu", (size,))
    for block in loop.policy.transformer.h:
        fully_shard(block, mesh=mesh)
    fully_shard(loop.policy, mesh=mesh)
    loop.optimizer = loop.make_optimizer()
    loop.scheduler = loop.make_scheduler()
    guard = Guard(
        loop.policy, loop.reference, loop.tokenizer, on_violation="record", eos_token_id=EOS, strict=True
    )
    # every rank generates the same lengths: FSDP2's own collectives run in each forward pass
    return watch(loop, guard, 0)


def watch(loop, guard, rank):
    from tests.guard.test_promises import Nobody

    torch.manual_seed(100 + rank)
    with guard:
        loop.run(Nobody(), 3)
    tokens, version = guard.evidence.tokens, guard.version
    return [[f"{f.code} {f.message}" for f in guard.findings], tokens, version, guard.evidence.log_evidence]


def main() -> None:
    rank, size, store, case, out = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:6]
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    answer = globals()[case](rank, size)
    with open(f"{out}.{rank}", "w") as file:
        json.dump(answer, file)
    if size > 1:
        dist.barrier()
        dist.destroy_process_group()
        sys.stdout.flush()
        # On a busy machine a thread of torch's own may abort the interpreter while it is taken down.
        os._exit(0)


if __name__ == "__main__":
    main()
