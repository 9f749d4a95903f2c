"""The hypotheses that one token can never be drawn, or is drawn too often, for every token at once."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from klguard.guard.rows import SLACK, Rows
from klguard.guard.start_times import advanced, values

CEILING = 50.0
"""Largest log-ratio of one token, nats. A smaller ratio than the true one is still a valid test."""


BIASES = (1.0, 2.0)
"""Added to one token's logit, nats."""


def hypotheses(vocabulary: int) -> int:
    """Number of hypotheses about single tokens."""
    return (1 + len(BIASES)) * vocabulary


def named(index: int, vocabulary: int) -> str:
    """What the hypothesis at this place of the state says."""
    return f"{'banned' if index < vocabulary else 'biased'}_token={index % vocabulary}"


class BannedTokens:
    """For each entry v: q is the policy without v, L = 1 / (1 - p(v)) for x != v and 0 for x = v.

    With a = 1 - delta, log(a L + delta) = log1p(u), u = a p / (1 - p). The 200 likeliest tokens of a row are
    taken exactly. All others have p < 1/200, where a p is below log1p(u) by less than p/200 relative, and
    then the sum over rows is a sum of probabilities: one addition per entry and row.

    For each entry v and each b in BIASES as well: q is the policy with b added to the logit of v, L = e^b / z for
    x = v and 1 / z for the others, z = 1 + (e^b - 1) p(v). log z is at most (e^b - 1) p(v), which stands for it
    outside the 200 likeliest tokens.

    Equal prior weights. State: (W,) float64 on the device of the rows, W = hypotheses(V): V numbers for the bans,
    then V for each bias.
    """

    def __init__(self, vocabulary: int, device: torch.device, delta: float) -> None:
        self.vocabulary = vocabulary
        self.delta = delta
        self.pending = torch.zeros(hypotheses(vocabulary), dtype=torch.float64, device=device)
        self._log_started = torch.full_like(self.pending, -math.inf)

    def move(self, device: torch.device) -> None:
        """Continue on another device."""
        self.pending = self.pending.to(device, non_blocking=True)
        self._log_started = self._log_started.to(device, non_blocking=True)

    def add(self, rows: Rows, log1p_eps: float) -> None:
        """Add the log-ratios of the usable rows to the pending sums."""
        self._ban(rows)
        for number, bias in enumerate(BIASES, start=1):
            self._favour(rows, bias, self.pending[number * self.vocabulary :][: self.vocabulary])
        self.pending -= rows.usable.sum().to(self.pending) * log1p_eps

    def _favour(self, rows: Rows, bias: float, pending: Tensor) -> None:
        """Add to `pending` (V,) what the rows say of `bias` on each token."""
        spectrum, excess = rows.spectrum, math.expm1(bias)
        pending -= (excess * spectrum.column).to(pending.device)
        given_back = excess * spectrum.head_mass - torch.log1p(excess * spectrum.head_mass)
        pending.scatter_add_(
            0, spectrum.head_ids.flatten().to(pending.device), given_back.flatten().to(pending.device)
        )
        gain = torch.where(rows.usable, bias, 0.0).to(pending)
        pending.scatter_add_(0, rows.safe_tokens.to(pending.device), gain)

    def _ban(self, rows: Rows) -> None:
        spectrum = rows.spectrum
        share = 1.0 - self.delta
        pending = self.pending[: self.vocabulary]
        pending += (share * spectrum.column).to(pending.device)
        mass = spectrum.head_mass
        others = (spectrum.total.unsqueeze(1) - mass).clamp_(min=0.0) + SLACK
        exact = torch.log1p(share * mass / others).clamp_(max=CEILING)
        drawn = spectrum.head_ids == rows.safe_tokens.unsqueeze(1)
        more = torch.where(drawn, 0.0, exact - share * mass)
        pending.scatter_add_(
            0, spectrum.head_ids.flatten().to(pending.device), more.flatten().to(pending.device)
        )
        own = spectrum.probabilities.gather(1, rows.safe_tokens.unsqueeze(1)).squeeze(1).to(torch.float64)
        loss = torch.where(rows.usable, math.log(self.delta) - share * own, 0.0)
        pending.scatter_add_(0, rows.safe_tokens.to(pending.device), loss.to(pending.device))

    def after(self, step: int, increments: Tensor) -> tuple[Tensor, Tensor]:
        """(W,) the state after `step`, and (3,) float64: log of the mean of the components, the largest of them
        (nats), and its index."""
        started = advanced(self._log_started, step, increments)
        now = values(started, step)
        best = now.max(0)
        mean = now.logsumexp(0) - math.log(len(now))
        return started, torch.stack([mean, best.values, best.indices.to(torch.float64)])

    def advance(self, step: int, increments: Tensor) -> Tensor:
        """End a step with (W,) increments summed over ranks; clears the pending sums; (3,) as in `after`."""
        self._log_started, summary = self.after(step, increments.to(self.pending.device))
        self.pending = torch.zeros_like(self.pending)
        return summary

    def state_dict(self) -> dict[str, Any]:
        return {"pending": self.pending.cpu().clone(), "log_started": self._log_started.cpu().clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pending = state["pending"].to(self.pending)
        self._log_started = state["log_started"].to(self._log_started)
