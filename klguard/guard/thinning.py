"""Which positions are tested, when testing all of them would cost too much.

The choice must not depend on what was sampled. "m of the valid tokens" does: it depends on where sequences
ended. So position i of a step, counted along time first and the batch second, is taken with a probability
that depends on i and on earlier steps only, by the guard's own generator:

    min(share, budget / max(positions of the step before, i + 1))

A first step of unknown length thus costs about budget * (1 + ln(positions / budget)), later ones the budget.
The share is 1 while the run is young, where faults of the set-up show, and a quarter afterwards: vigilance has
to stay cheap where a step has few tokens and a large vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

YOUNG = 20
"""Budgets of positions that a run sees before only a share of them is tested."""

LATER = 0.25


class Thinning:
    """Bernoulli choice of positions at a rate fixed before the batch is seen.

    `budget` is the number of positions, valid or not, to expect in a step.
    """

    def __init__(self, budget: int, seed: int) -> None:
        self.budget = budget
        self._generator = torch.Generator().manual_seed(seed)
        self._before = 0
        self._so_far = 0
        self._seen = 0

    def choose(self, batch: int, time: int) -> Tensor:
        """Positions of a (batch, time) block to test, as indices b * time + t, on the host, ascending."""
        order = torch.arange(batch * time).view(time, batch).T + self._so_far
        self._so_far += batch * time
        share = 1.0 if self._seen < YOUNG * self.budget else LATER
        if share == 1.0 and max(self._before, self._so_far) <= self.budget:
            return torch.arange(batch * time)
        rate = (self.budget / order.clamp(min=self._before - 1).add(1).double()).clamp(max=share)
        drawn = torch.rand(batch, time, dtype=torch.float64, generator=self._generator)
        return (drawn < rate).flatten().nonzero().squeeze(-1)

    def discard(self) -> None:
        """Forget the positions of the step that is going on."""
        self._so_far = 0

    def end_step(self) -> None:
        """The step is over: its size sets the rate of the next."""
        if self._so_far:
            self._seen += self._so_far
            self._before, self._so_far = self._so_far, 0

    def state_dict(self) -> dict[str, Any]:
        """The generator's state and the sizes."""
        return {
            "generator": self._generator.get_state(),
            "before": self._before,
            "so_far": self._so_far,
            "seen": self._seen,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state."""
        self._generator.set_state(state["generator"].cpu())
        self._before, self._so_far = state["before"], state["so_far"]
        self._seen = state["seen"]
