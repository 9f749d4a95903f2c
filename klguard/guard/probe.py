"""A few sequences to try the loop's own functions on, before training. Everything here may wait for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from klguard.guard.events import Preflight
from klguard.guard.invariants.invariant import Run
from klguard.guard.models import config, inner, padding_id, stop_ids, text_config

LENGTHS = (12, 7, 9, 4)
"""Lengths, in tokens, of the sequences that are made up."""

Score = Callable[[Tensor, Tensor], Tensor]


@contextmanager
def quietly(device: torch.device) -> Iterator[None]:
    """No gradient, and the random state as it was."""
    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def device_of(run: Run) -> torch.device:
    """Where the policy is."""
    parameters = iter(()) if run.policy is None else run.policy.parameters()
    return next((p.device for p in parameters), torch.device("cpu"))


def sequences(run: Run, event: Preflight) -> list[Tensor]:
    """Id sequences (1-D) of different lengths: those of the event's batch without their padding, or made up.
    Empty where neither the batch nor the size of the vocabulary is known."""
    if event.batch is not None:
        ids, attention = event.batch
        found = [row[keep.bool()] for row, keep in zip(ids, attention, strict=True)]
        if len({len(row) for row in found}) == 1:
            found = [row[: max(2, len(row) - number)] for number, row in enumerate(found)]
        return [row for row in found if len(row) > 1]
    size = _vocabulary(run)
    if size is None:
        return []
    special = stop_ids(run.tokenizer) | set(run.stop_ids or ()) | {padding_id(run.policy, run.tokenizer)}
    ordinary = torch.tensor([i for i in range(min(size, 30_000)) if i not in special])
    generator = torch.Generator().manual_seed(run.seed)
    return [
        ordinary[torch.randint(len(ordinary), (length,), generator=generator)].to(device_of(run))
        for length in LENGTHS
    ]


def _vocabulary(run: Run) -> int | None:
    """Number of ids that both policy and tokenizer know."""
    settings = text_config(config(run.policy))
    sizes = [getattr(settings, "vocab_size", None)]
    if hasattr(run.tokenizer, "__len__"):
        sizes.append(len(run.tokenizer))
    known = [size for size in sizes if isinstance(size, int) and size > 8]
    return min(known) if known and inner(run.policy) is not None else None


def batched(rows: Sequence[Tensor], pad: int | None, event: Preflight) -> tuple[Tensor, Tensor]:
    """Ids and attention mask (B, L), padded on the left; on the right where the event's own batch is."""
    right = event.batch is not None and bool((event.batch[1][:, -1] == 0).any())
    length = max(len(row) for row in rows)
    ids = rows[0].new_full((len(rows), length), pad or 0)
    attention = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        place = slice(0, len(row)) if right else slice(length - len(row), length)
        ids[number, place] = row
        attention[number, place] = 1
    return ids, attention


def scored(score: Score, ids: Tensor, attention: Tensor) -> Tensor:
    """(B, L-1) fp64 log-probs of tokens 1.., NaN where the token or the one before is padding. ValueError for
    another shape."""
    values = score(ids, attention)
    if not isinstance(values, Tensor) or values.shape != (ids.shape[0], ids.shape[1] - 1):
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        error = ValueError(
            f"score(input_ids, attention_mask) returned {shape} for ids of shape {tuple(ids.shape)}; it has to"
            f" return the log-probs of tokens 1.., of shape {(ids.shape[0], ids.shape[1] - 1)}"
        )
        error._klguard_caller = True
        raise error
    valid = (attention[:, 1:] > 0) & (attention[:, :-1] > 0)
    return torch.where(valid.to(values.device), values.detach().double(), torch.nan)


def difference(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Mean and largest |one - other| in nats, over entries that both have; (0, 0) where there is none."""
    gap = (one - other.to(one.device)).abs()
    gap = gap[~gap.isnan()]
    return (float(gap.mean()), float(gap.max())) if gap.numel() else (0.0, 0.0)
