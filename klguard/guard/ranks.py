"""torch.distributed: the figures of all workers in one all-reduce, so that all of them decide alike.

No rank may raise alone: the others would wait for it for ever. So every rank takes part in the reduction of
every step, with whatever it has, and judges the same numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch import distributed as dist


class Ranks:
    """The process group the guard runs in; the default group, looked up at each use, when `group` is None."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group

    @property
    def active(self) -> bool:
        """Whether there are others to agree with."""
        return dist.is_available() and dist.is_initialized() and dist.get_world_size(self._group) > 1

    @property
    def rank(self) -> int:
        """The number of this process, 0 when alone."""
        return dist.get_rank(self._group) if self.active else 0

    @property
    def size(self) -> int:
        """How many processes there are."""
        return dist.get_world_size(self._group) if self.active else 1

    def device(self) -> torch.device | None:
        """Where the reduction has to run, or None when alone.

        It depends on the backend only, never on a rank's own data: a rank without any would otherwise choose
        another backend than the rest, and hang them.
        """
        if not self.active:
            return None
        if "nccl" in str(dist.get_backend(self._group)):
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")

    def combine(self, sums: Tensor, maxima: Tensor) -> tuple[Tensor, Tensor]:
        """Sums (n,) and maxima (m,) over all ranks, float64, in one all-reduce of n + size * m numbers.

        Each rank writes its maxima into a slot of its own, so that a sum carries them too. A sum must be
        finite; a maximum may be infinite, not NaN.
        """
        device = self.device()
        if device is None:
            return sums, maxima
        sums, maxima = sums.to(device), maxima.to(device)
        board = torch.zeros(self.size, maxima.numel(), dtype=torch.float64, device=device)
        board[self.rank] = maxima
        packed = torch.cat([sums, board.flatten()])
        dist.all_reduce(packed, group=self._group)
        board = packed[sums.numel() :].view(self.size, maxima.numel())
        if not maxima.numel():
            return packed, maxima
        return packed[: sums.numel()], board.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf).amax(
            0
        )
