"""Passes over the vocabulary: row-wise quantities of logits, a bounded number of rows at a time.

Logits of one batch can be larger than everything else the guard looks at (8 x 512 x 151,936 in fp32 is 2.5 GB),
so nothing here makes a second tensor of that size. Every pass walks over the rows in chunks whose temporaries
together stay within a budget of bytes; inputs are only ever sliced, never flattened by a copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor

DEFAULT_BUDGET = 64 * 2**20
"""Bytes that the temporaries of one pass may take together."""

CACHE_PER_THREAD = 2 * 2**20
"""Bytes of one temporary per CPU thread: about ten rows of 50,257 fp32 numbers.

A pass goes over each temporary several times. While they fit the cache that is two to three times as fast as
with temporaries of 20 MiB and more, and smaller chunks gain nothing (benchmarks/guard_numerics.py).
"""

ROW_MULTIPLE = 8
"""Chunks of more rows than this hold a multiple of it: on CUDA a row's sum depends on its alignment in
memory, and eight rows of any width, in any dtype of at least 16 bits, end on a boundary of 16 bytes."""

Index = tuple[slice, ...]


def rows_per_chunk(
    vocabulary: int,
    itemsize: int = 4,
    budget: int = DEFAULT_BUDGET,
    copies: int = 3,
    device: torch.device | str = "cpu",
) -> int:
    """How many rows of `vocabulary` entries to take at once; at least 1, also where one row exceeds the budget.

    `copies` counts the temporaries of `itemsize` bytes per entry that are alive together. An accelerator gets
    chunks as large as `budget` bytes allow, the CPU chunks that stay in its cache. ValueError for a budget,
    a number of copies or an item size below 1.
    """
    if min(itemsize, budget, copies) < 1:
        raise ValueError(
            f"itemsize={itemsize}, budget={budget} and copies={copies} must each be at least 1: "
            "the first two count bytes, the last temporaries of the size of a chunk"
        )
    row = max(1, vocabulary) * itemsize
    rows = budget // (row * copies)
    if torch.device(device).type == "cpu":
        rows = min(rows, max(1, CACHE_PER_THREAD // row) * torch.get_num_threads())
    if rows > ROW_MULTIPLE:
        rows -= rows % ROW_MULTIPLE
    return max(1, rows)


def chunks(
    n: int,
    vocabulary: int,
    itemsize: int = 4,
    budget: int = DEFAULT_BUDGET,
    copies: int = 3,
    device: torch.device | str = "cpu",
) -> Iterator[slice]:
    """Consecutive slices that cover `n` rows of `vocabulary` entries, each as `rows_per_chunk` allows.

    `rows[s]` for each slice `s` is a view; none of the slices is empty, and there is none for n = 0.
    """
    rows = rows_per_chunk(vocabulary, itemsize, budget, copies, device)
    for start in range(0, n, rows):
        yield slice(start, min(start + rows, n))


def blocks(leading: tuple[int, ...], rows: int) -> Iterator[Index]:
    """Indices that cover an array of shape `leading` in boxes of at most `rows` elements, in order.

    A box is a tuple of slices, one per dimension: `logits[box]` is a view of whole rows whatever the strides,
    where a reshape to two dimensions would copy a tensor such as `logits[:, :-1]`.
    """
    spans: list[list[slice]] = []
    for size in reversed(leading):
        together = max(1, rows)
        spans.append([slice(start, min(start + together, size)) for start in range(0, size, together)])
        rows = rows // size if size else rows
    yield from product(*reversed(spans))


class Scratch:
    """fp32 buffers that one pass uses for all its chunks.

    On the CPU fresh temporaries of some megabytes can come, every time, as pages that the system has to clear
    one by one: that made an exact KL up to three times slower.
    """

    def __init__(self, buffers: int, entries: int, device: torch.device) -> None:
        """`buffers` of `entries` numbers each, on `device`."""
        self._memory = torch.empty((buffers, max(1, entries)), dtype=torch.float32, device=device)

    def take(self, buffer: int, like: Tensor) -> Tensor:
        """Buffer number `buffer` in the shape of `like`, contiguous; what an earlier take left there is lost."""
        return self._memory[buffer, : like.numel()].view(like.shape)

    def fp32(self, buffer: int, rows: Tensor) -> Tensor:
        """`rows` in fp32 and contiguous: themselves if they are, else copied into buffer number `buffer`."""
        if rows.dtype == torch.float32 and rows.is_contiguous():
            return rows
        return self.fp32_copy(buffer, rows)

    def fp32_copy(self, buffer: int, rows: Tensor) -> Tensor:
        """`rows` in fp32, copied into buffer number `buffer`, to be written over."""
        return self.take(buffer, rows).copy_(rows)


def over_rows(
    measure: Callable[..., Tensor],
    *arrays: Tensor,
    per_row: tuple[Tensor, ...] = (),
    buffers: int,
    budget: int = DEFAULT_BUDGET,
) -> Tensor:
    """`measure` applied to chunks of rows of `arrays`, put together: fp32, of the shape without the vocabulary.

    arrays   tensors (..., V), of the same leading shape; `measure` receives the same rows of each.
    per_row  tensors (...,) that travel along, such as the token of each row.
    buffers  fp32 buffers of the size of a chunk that `measure` needs, from the Scratch it gets last.

    `measure` gets views of the caller's memory and must not write to them; it returns one number per row.
    Where one row alone exceeds the budget, `measure` gets single rows and buffers that hold
    `width` entries of them. Nothing here builds a graph.
    """
    first = arrays[0]
    leading, vocabulary = tuple(first.shape[:-1]), first.shape[-1]
    rows = rows_per_chunk(vocabulary, 4, budget, buffers, first.device)
    if vocabulary and all(array.is_contiguous() for array in arrays):
        # one long run of rows: full chunks, and every chunk starts on the same alignment
        arrays = tuple(array.view(-1, vocabulary) for array in arrays)
        per_row = tuple(extra.reshape(-1) for extra in per_row)
    flat = tuple(arrays[0].shape[:-1])
    with torch.no_grad():
        scratch = Scratch(
            buffers, min(rows, math.prod(flat)) * width(vocabulary, budget, buffers), first.device
        )
        result = torch.empty(flat, dtype=torch.float32, device=first.device)
        for box in blocks(flat, rows):
            views = [array[box] for array in arrays]
            result[box] = measure(*views, *(extra[box] for extra in per_row), scratch)
    return result.view(leading)


def width(vocabulary: int, budget: int, buffers: int) -> int:
    """How many entries of a row to take at once: all of them, or what `budget` bytes allow if that is less."""
    return max(1, min(vocabulary, budget // (4 * buffers)))


def slices_of_row(vocabulary: int, budget: int, buffers: int) -> Iterator[slice]:
    """Consecutive slices of `width` entries that cover a row; a single one if the row fits the budget."""
    step = width(vocabulary, budget, buffers)
    for start in range(0, vocabulary, step):
        yield slice(start, min(start + step, vocabulary))


def largest_logits(rows: Tensor, parts: list[slice]) -> Tensor:
    """The largest entry of each row, fp32 (..., 1), part by part; NaN where the row has one."""
    largest = [rows[..., part].amax(-1, keepdim=True) for part in parts]
    return torch.stack(largest).amax(0).float()
