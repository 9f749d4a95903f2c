"""KLG829: what the loss takes as given brings no gradient to where it was made."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from klguard.guard.events import Event, Minibatch, StepEnd, Update
from klguard.guard.gradients import Awaited
from klguard.guard.invariants.invariant import Breach, Invariant, Run
from klguard.guard.invariants.measuring import per_token
from klguard.guard.kl import valid_tokens
from klguard.guard.ledger import Readings


class Given(Invariant):
    """Hooks on the old log-probs, advantages and returns of a minibatch, where these have a gradient at all.

    Any gradient at old log-probs and returns is a breach: the first pulls against that of the new ones, the second moves
    the target and not the value. A loop may make its value loss of the advantages themselves, return - value squared,
    and then they have one by right, whose sign is that of the advantage; the surrogate's is of one sign everywhere.
    """

    code = "KLG829"
    watches = (Minibatch, Update, StepEnd)
    sums = ("looked", "old", "returns", "advantages")
    LEAST = 4
    SAID = {
        "old": (
            "the loss has a gradient at the old log-probs, which cancels that of the new ones",
            "score the rollout under torch.no_grad(), or take .detach() of it",
        ),
        "returns": (
            "the value loss has a gradient at the returns, its own target",
            "make advantages and returns under torch.no_grad(), from the values of the rollout",
        ),
        "advantages": (
            "the surrogate has a gradient at the advantages: what made these is trained to make them large",
            "make advantages and returns under torch.no_grad(), from the values of the rollout",
        ),
    }

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._awaited: dict[str, Awaited[Minibatch]] = {name: Awaited() for name in self.SAID}

    def measure(self, event: Event) -> None:
        if isinstance(event, Minibatch):
            self.exercised = self.exercised or event.new_requires_grad is True
            self.add("looked", 1.0)
            for name, awaited in self._awaited.items():
                awaited.add(event, event.arrivals.get(name))
        elif isinstance(event, StepEnd) or not event.after:
            for name, awaited in self._awaited.items():
                for told, gradient in awaited.arrived():
                    self.add(
                        name,
                        self._of_the_surrogate(told, gradient) if name == "advantages" else _any(gradient),
                    )
                if isinstance(event, StepEnd):
                    awaited.forget()

    def _of_the_surrogate(self, event: Minibatch, gradient: Tensor) -> Tensor | float:
        """() whether the gradient at the advantages is of one sign, where they are of both."""
        valid = valid_tokens(event.mask)
        both = [per_token(one, valid.shape) for one in (event.advantages, gradient)]
        if any(one is None for one in both):
            return 0.0
        advantages, arrived = (torch.where(valid, one, 0.0) for one in both)
        above, below = ((advantages * side > 0) & (arrived != 0) for side in (1, -1))
        enough = (above.sum() >= self.LEAST) & (below.sum() >= self.LEAST)
        signs = torch.where(above | below, arrived.sign(), 0.0).sum().abs()
        return enough & (signs == (above | below).sum())

    def judge(self, readings: Readings) -> Iterator[Breach]:
        for name, (said, help) in self.SAID.items():
            if readings[name]:
                yield Breach(
                    f"{said}, in {readings[name]:.0f} of {readings['looked']:.0f} minibatches",
                    value=readings[name], limit=0.0, key=name, help=help,
                )  # fmt: skip


def _any(gradient: Tensor) -> Tensor:
    return (gradient.nan_to_num(nan=0.0) != 0).any()
