"""Memory that one pass over the vocabulary after another writes to."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor


class Workspace:
    """Buffers, by name, that chunk after chunk of rows uses.

    On the CPU a fresh tensor of some megabytes comes as pages that the system clears one by one when they are first
    written to, which takes as long as what is computed in them. What a name held before is lost at its next `take`.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor of this shape and type with anything in it, and no inference tensor: it may be written
        to with and without inference mode."""
        size = prod(shape)
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.numel() < size:
            with torch.inference_mode(False):
                buffer = torch.empty(size, dtype=dtype, device=self._device)
            self._buffers[name, dtype] = buffer
        return buffer[:size].view(shape)
