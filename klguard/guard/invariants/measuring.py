"""Small things that many invariants measure by. Nothing here waits for the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from klguard.guard.kl import valid_tokens


def kept(values: Tensor, mask: Tensor) -> Tensor:
    """`values` (B, T) in float64, and 0 where masked or not finite: KLG838 is about what is not finite."""
    return torch.where(valid_tokens(mask) & values.isfinite(), values.double(), 0.0)


def scalar(figure: Tensor | float) -> Tensor | float:
    """A logged figure as one number; the mean where the loop gave several."""
    return figure.detach().double().mean() if isinstance(figure, Tensor) else float(figure)


def ids(values: Sequence[int] | Tensor, device: torch.device) -> Tensor:
    """Row or group numbers (B,) as int64 on `device`."""
    given = values if isinstance(values, Tensor) else torch.tensor(list(values), dtype=torch.int64)
    return given.detach().flatten().to(device=device, dtype=torch.int64, non_blocking=True)


def home(policy: nn.Module | None) -> torch.device:
    """Where the policy is, for trying the loop's own functions: they may bring tensors from there."""
    first = next(policy.parameters(), None) if policy is not None else None
    return torch.device("cpu") if first is None else first.device


def per_token(values: Tensor, shape: torch.Size) -> Tensor | None:
    """(B, T) float64 of values (B, T), (B, 1) or (B,), such as advantages; None where they do not fit. What is not
    finite is 0."""
    if values.dim() == 1:
        values = values[:, None]
    if values.dim() != 2 or len(values) != shape[0] or values.shape[1] not in (1, shape[1]):
        return None
    return values.double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).expand(shape)


def last_valid(valid: Tensor) -> Tensor:
    """(B, T) bool: True at the last valid token of each row, nowhere in a row without one."""
    after = valid.flip(1).cumsum(1).flip(1)
    return valid & (after == 1)


class Consecutive:
    """The figures of the steps in a row in which something held, for breaches that need several of them."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._figures: deque[float] = deque(maxlen=steps)

    def see(self, holds: bool, figure: float = 0.0) -> bool:
        """A step is over: whether it held in this and the steps before, `steps` in all."""
        if not holds:
            self._figures.clear()
            return False
        self._figures.append(figure)
        return len(self._figures) == self.steps

    @property
    def figures(self) -> list[float]:
        """Those of the steps in a row, the oldest first."""
        return list(self._figures)

    def state_dict(self) -> dict[str, Any]:
        """The figures."""
        return {"figures": self.figures}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state."""
        self._figures = deque(state["figures"], maxlen=self.steps)
