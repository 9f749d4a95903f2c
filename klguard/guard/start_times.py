"""One e-process out of products that may begin at any step."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

LOG_WEIGHT = math.log(6.0) - 2.0 * math.log(math.pi)
"""log of 6 / pi^2, the weight of a start at the first step."""


def log_weight(step: int) -> float:
    """log of 6 / (pi^2 step^2), step from 1: the prior weight of a fault that begins there. They sum to 1."""
    return LOG_WEIGHT - 2.0 * math.log(step)


def log_rest(step: int) -> float:
    """log of the prior weight of all starts after `step`; exactly 0 for step 0.

    The sum of 1/j^2 over j >= x is the trigamma function of x: 16 terms, then its asymptotic series
    (Abramowitz and Stegun 6.4.12), whose first omitted term is below 1e-14 of the sum. torch's own
    polygamma is right to 10 digits only.
    """
    if step == 0:
        return 0.0
    x = step + 17.0
    square = 1.0 / (x * x)
    tail = square * (1 / 6 - square * (1 / 30 - square * (1 / 42 - square / 30)))
    tail = 1.0 / x + square / 2.0 + tail / x
    return LOG_WEIGHT + math.log(sum(1.0 / (j * j) for j in range(step + 16, step, -1)) + tail)


def advanced(log_started: Tensor, step: int, increments: Tensor) -> Tensor:
    """The state after `step`: log of the weighted sum of all products that have begun, (C,) float64.
    increments: (C,) this step's summed log-ratios, nats."""
    return torch.logaddexp(log_started, torch.full_like(log_started, log_weight(step))) + increments


def values(log_started: Tensor, step: int) -> Tensor:
    """(C,) log of the mixture after `step`: products that have begun, and 1 for those that have not."""
    return torch.logaddexp(log_started, torch.full_like(log_started, log_rest(step)))


class StartTimes:
    """The mixture over start times for C components, on the host, in float64.

    A product begun at step 0 sinks on healthy data and can never see a fault at step 900. This mixture gives
    each start its prior weight 6 / (pi^2 j^2) and pays about 2 ln j nats for a fault that begins at step j
    (Shin, Ramdas and Rinaldo, E-detectors, 2022). Each of its components is a non-negative supermartingale
    that starts at 1, so its log exceeds ln(1/alpha) at any time with probability at most alpha.
    """

    def __init__(self, components: int = 1) -> None:
        if components < 1:
            raise ValueError(f"components={components}: at least one is needed")
        self.step = 0
        self._log_started = torch.full((components,), -math.inf, dtype=torch.float64)

    def advance(self, increments: Tensor) -> None:
        """End a step. increments: (C,) summed log-ratios of the step, nats; ValueError for NaN or +inf."""
        increments = torch.as_tensor(increments, dtype=torch.float64).detach().cpu()
        if increments.shape != self._log_started.shape:
            raise ValueError(
                f"log-ratios of shape {tuple(increments.shape)} for {len(self._log_started)} components"
            )
        if bool((increments.isnan() | (increments == math.inf)).any()):
            raise ValueError("a log-ratio is NaN or +inf: no product can go on from there")
        self.step += 1
        self._log_started = advanced(self._log_started, self.step, increments)

    @property
    def log_values(self) -> Tensor:
        """(C,) log of each component, nats; exactly 0 at the start."""
        return values(self._log_started, self.step)

    def after(self, increments: Tensor) -> Tensor:
        """(C,) what `log_values` would be if the step ended with these increments."""
        ahead = copy.copy(self)
        ahead.advance(increments)
        return ahead.log_values

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "log_started": self._log_started.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """ValueError if the state has another number of components."""
        started = torch.as_tensor(state["log_started"], dtype=torch.float64).detach().cpu().clone()
        if started.shape != self._log_started.shape:
            raise ValueError(
                f"the saved state has {started.numel()} components, this run {self._log_started.numel()}: "
                "load it into a guard with the same hypotheses"
            )
        self.step = int(state["step"])
        self._log_started = started
