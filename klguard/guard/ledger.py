"""What the events of one step measured, kept on the device and read once, when the step ends.

Every figure has a slot that is declared before the run, so that the vector has the same layout on all ranks
whatever happened on one of them. Adding to a slot never waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

_COMPACT_AT = 4096
"""Entries after which a step's figures are added up early: memory stays flat with any number of micro-batches."""


class Ledger:
    """Sums and maxima of one step, as tensors on the device of the first figure.

    A figure that is not a number is left out and counted: one rank's NaN must not reach the others. `sums`
    and `maxima` are the declared slot names.
    """

    def __init__(self, sums: Iterable[str], maxima: Iterable[str]) -> None:
        self._sums = {name: index for index, name in enumerate(("dropped", *sums))}
        self._maxima = {name: index for index, name in enumerate(maxima)}
        self._pending: dict[bool, list[tuple[int, Tensor]]] = {False: [], True: []}
        self._totals: dict[bool, Tensor | None] = {False: None, True: None}
        self.device: torch.device | None = None

    def add(self, slot: str, figure: Tensor | float) -> None:
        """Add `figure` (its sum, where it has several entries) to the slot."""
        self._enter(False, self._sums[slot], figure)

    def highest(self, slot: str, figure: Tensor | float) -> None:
        """Keep the largest of all figures given."""
        self._enter(True, self._maxima[slot], figure)

    def close(self, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """The step's sums and maxima, float64, on `device` or where they were measured; the ledger is empty
        again. A maximum that nothing was given for is -inf."""
        self.device = self.device or device or torch.device("cpu")
        self._compact()
        sums, maxima = self._blank(False), self._blank(True)
        if self._totals[False] is not None:
            sums = self._totals[False]
        if self._totals[True] is not None:
            maxima = self._totals[True]
        self._totals = {False: None, True: None}
        self.device = None
        return sums, maxima

    def readings(self, sums: Tensor, maxima: Tensor) -> Readings:
        """The vectors of `close`, on the host, by name."""
        numbers, extremes = sums.tolist(), maxima.tolist()
        return Readings(
            {name: numbers[index] for name, index in self._sums.items()}
            | {name: extremes[index] for name, index in self._maxima.items()}
        )

    def slot(self, name: str) -> int:
        """Where a sum stands in the vector of sums."""
        return self._sums[name]

    @property
    def widths(self) -> tuple[int, int]:
        """Number of sums and of maxima."""
        return len(self._sums), len(self._maxima)

    def _enter(self, extreme: bool, index: int, figure: Tensor | float) -> None:
        with torch.no_grad():
            if isinstance(figure, Tensor):
                value = figure.detach()
                if value.numel() == 0:
                    return
                value = value.to(torch.float64)
                if value.dim():
                    value = value.amax() if extreme else value.sum()
                self.device = self.device or value.device
            else:
                value = torch.tensor(float(figure), dtype=torch.float64)
            self._pending[extreme].append((index, value))
        if len(self._pending[extreme]) >= _COMPACT_AT:
            self._compact()

    def _blank(self, extreme: bool) -> Tensor:
        size = len(self._maxima) if extreme else len(self._sums)
        return torch.full((size,), -math.inf if extreme else 0.0, dtype=torch.float64, device=self.device)

    @torch.no_grad()
    def _compact(self) -> None:
        self.device = self.device or torch.device("cpu")
        for extreme, entries in self._pending.items():
            if not entries:
                continue
            values = torch.stack([value.to(self.device, non_blocking=True) for _, value in entries])
            where = torch.tensor([index for index, _ in entries]).to(self.device, non_blocking=True)
            total = self._totals[extreme]
            total = self._blank(extreme) if total is None else total
            if extreme:
                values = torch.where(values.isnan(), -math.inf, values)
                total = total.scatter_reduce(0, where, values, "amax")
            else:
                finite = values.isfinite()
                total = total.index_add(0, where, torch.where(finite, values, 0.0))
                total[0] += (~finite).sum()
            self._totals[extreme] = total
            entries.clear()


class Readings(Mapping[str, float]):
    """Figures of a finished step by slot name, on the host."""

    def __init__(self, figures: Mapping[str, float]) -> None:
        self._figures = figures
        self._parts: dict[str, dict[str, float]] = {}

    def __getitem__(self, slot: str) -> float:
        return self._figures[slot]

    def __iter__(self):
        return iter(self._figures)

    def __len__(self) -> int:
        return len(self._figures)

    def of(self, prefix: str) -> Readings:
        """The slots of one invariant, without its prefix."""
        if not self._parts:  # sorted once: every invariant asks at the end of every step
            for name, figure in self._figures.items():
                owner, _, slot = name.partition(".")
                self._parts.setdefault(owner, {})[slot] = figure
        return Readings(self._parts.get(prefix, {}))

    def mean(self, total: str, count: str) -> float | None:
        """The ratio of two sums, or None where nothing was counted."""
        return self[total] / self[count] if self[count] > 0 else None

    def maximum(self, slot: str) -> float | None:
        """A maximum, or None where nothing was given for it."""
        return None if self[slot] == -math.inf else self[slot]
