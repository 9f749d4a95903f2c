"""Whether tensors still hold the bits they held: exact checksums, computed where the tensors are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}
_CHUNK = {"cpu": 2**17}
"""Integers taken at once: on the CPU what fits its cache, elsewhere 2**20, with three temporaries of 8 MiB."""

_ODD = -7046029254386353131
"""An odd 64-bit constant (2**64 divided by the golden ratio): multiplying by it spreads consecutive numbers."""


def local(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that hold the values of `tensor` on this rank: its local shard, the parts of a
    quantised tensor, itself; nothing where it has no memory (meta device, sharded away)."""
    tensor = tensor.detach()
    if hasattr(tensor, "to_local"):
        tensor = tensor.to_local()
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from local(getattr(tensor, name))
    elif tensor.device.type != "meta" and tensor.layout == torch.strided and tensor.numel():
        yield tensor


def memory(tensor: Tensor) -> frozenset[int]:
    """Addresses of the storages behind `tensor`, empty where it has none."""
    return frozenset(part.untyped_storage().data_ptr() for part in local(tensor)) - {0}


@lru_cache(maxsize=8)
def _weights(count: int, device: torch.device) -> Tensor:
    """(count,) odd pseudo-random int64 numbers, so that neither a change nor an exchange adds up to nothing."""
    spread = (torch.arange(count, dtype=torch.int64, device=device) + 1) * _ODD
    return (spread ^ (spread >> 31)) | 1


def _runs(tensor: Tensor) -> Iterator[Tensor]:
    """The elements of `tensor` in memory order where it is dense, as 1-D tensors; copies of bounded size where
    it is a slice of something larger."""
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    dense = tensor.permute(order)
    if dense.is_contiguous():
        yield dense.reshape(-1)
    else:
        rows = max(1, 2**20 // max(1, dense[0].numel()))
        for start in range(0, dense.shape[0], rows):
            yield dense[start : start + rows].reshape(-1)


def _integers(run: Tensor) -> Tensor:
    """The bits of a 1-D tensor as the widest integers that its size and place in memory allow."""
    if run.dtype == torch.bool:
        run = run.view(torch.uint8)
    if run.dtype.is_complex:
        run = torch.view_as_real(run).reshape(-1)
    size, offset = run.element_size(), run.storage_offset()
    for width in (8, 4, 2, 1):
        fits = width <= size or not (run.numel() * size % width or offset * size % width)
        if fits:
            return run.view(_INTEGERS[width])
    raise AssertionError("every tensor is a run of bytes")


@torch.no_grad()
def fingerprint(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """() int64, on the device: a checksum modulo 2**64 of the bits of a plain tensor, place by place.

    Two tensors that differ in one element always differ in it; others but for a chance of about 2**-63.
    With `dtype`, of the values rounded to it. Never waits for the device; temporaries stay below 32 MiB.
    """
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    size = _CHUNK.get(tensor.device.type, 2**20)
    number = 1
    for run in _runs(tensor.detach()):
        pieces = (run,) if dtype is None else (piece.to(dtype) for piece in run.split(size))
        for piece in pieces:
            for part in _integers(piece).split(size):
                weights = _weights(size, part.device)[: part.numel()]
                total = total + (part.to(torch.int64) * weights).sum() * (number * 2 + 1)
                number += 1
    return total


def checksum(tensor: Tensor) -> Tensor | None:
    """() int64 of everything `tensor` holds on this rank; None where that is nothing."""
    parts = [fingerprint(part) for part in local(tensor)]
    if not parts:
        return None
    total = parts[0]
    for number, part in enumerate(parts[1:], 1):
        total = total + part.to(total.device) * (2 * number + 1)
    return total


def writes(tensor: Tensor) -> int:
    """How often torch counted a write to `tensor`; 0 for inference tensors, which it does not count."""
    return 0 if tensor.is_inference() else tensor._version


def layout(tensor: Tensor) -> tuple:
    """Where and as what `tensor` is held on this rank. A sharded model holds its shards at one time and whole
    parameters, perhaps of lower precision, at another; only like is compared with like."""
    return tuple((part.device, part.dtype, tuple(part.shape)) for part in local(tensor))


def counters(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    """What the host can see of a change: torch's count of writes, and where the values lie. A write through
    `.data` shows in neither, moving to the CPU and back in the second."""
    return writes(tensor), tuple(part.data_ptr() for part in local(tensor))


class Kept:
    """Tensors, by name, that must keep their bits. The first look at each is what later ones are compared with.

    A tensor is looked at again when asked for, and at once when torch counted a write to it or its memory
    moved; memory that moves again and again belongs to a model that is offloaded, and means nothing.
    """

    MOVES = 3
    """Moves of memory that are looked into."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.names: Sequence[str] = tuple(tensors)
        self._tensors = dict(tensors)
        self._first: dict[tuple[str, tuple], Tensor] = {}
        self._seen = {name: counters(tensor) for name, tensor in self._tensors.items()}
        self._moves = dict.fromkeys(self.names, 0)
        for name in self.names:
            self._compare(name)

    def changed(self, tensors: Mapping[str, Tensor], *, everything: bool) -> tuple[Tensor, Tensor] | None:
        """Number of tensors whose bits changed since the first look, and 1 + the index of the last of them
        (0 for none), as numbers on the device; None when there was nothing to look at.

        `tensors` are those there are now; a name that is gone is passed over.
        """
        found: list[tuple[int, Tensor]] = []
        for index, name in enumerate(self.names):
            if name not in tensors:
                continue
            self._tensors[name] = tensors[name]
            touched = self._touched(name)
            if everything or touched:
                differs = self._compare(name)
                if differs is not None:
                    found.append((index, differs))
        if not found:
            return None
        device = found[0][1].device
        flags = torch.stack([flag.to(device, non_blocking=True) for _, flag in found])
        indices = torch.stack([torch.full((), index + 1.0, device=device) for index, _ in found])
        return flags.sum(), torch.where(flags, indices, 0.0).amax()

    def _touched(self, name: str) -> bool:
        before, now = self._seen[name], counters(self._tensors[name])
        if now == before:
            return False
        self._seen[name] = now
        self._moves[name] += now[1] != before[1]
        return now[0] != before[0] or self._moves[name] <= self.MOVES

    def _compare(self, name: str) -> Tensor | None:
        """() bool, or None where there was nothing to compare with yet."""
        tensor = self._tensors[name]
        now = checksum(tensor)
        if now is None:
            return None
        first = self._first.setdefault((name, layout(tensor)), now)
        return None if first is now else first != now

    def state_dict(self) -> dict[str, Any]:
        """The first checksums, with what a tensor has to be to be compared with them: type, shape, not sharded."""
        kept = {}
        for (name, held), total in self._first.items():
            tensor = self._tensors[name]
            whole = type(tensor.data) is Tensor and not getattr(tensor, "_is_flat_param", False)
            if whole and held == layout(tensor):
                kept[name] = [str(tensor.dtype), list(tensor.shape), int(total)]
        return kept

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Compare with the checksums of an earlier run, where the tensors are of the same kind."""
        for (name, held), total in list(self._first.items()):
            tensor = self._tensors[name]
            dtype, shape, first = state.get(name, ("", [], 0))
            if dtype == str(tensor.dtype) and list(shape) == list(tensor.shape):
                self._first[name, held] = torch.full_like(total, first)
