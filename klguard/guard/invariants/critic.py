"""KLG828: the gradient of the value loss pulls each value towards its own return."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from klguard.findings import Severity
from klguard.guard.events import Event, Minibatch, StepEnd, Update
from klguard.guard.gradients import Awaited
from klguard.guard.invariants.invariant import HALF, Breach, Invariant, Run
from klguard.guard.invariants.measuring import Consecutive, per_token
from klguard.guard.kl import valid_tokens
from klguard.guard.ledger import Readings

_FITS, _APART = 1e-3, 1e-4
"""Share of the gradient's square that may be left beside a model of it that fits, and that is left, at the least, beside
one that does not: rounding in half precision leaves some 1e-5."""


class ValueGradient(Invariant):
    """A hook on the values that a minibatch is told with sees what backward() brings.

    Of a value loss that grows with the distance between value and return (squared, Huber, clipped as in PPO), the
    gradient at a value has the sign of value - return, or is 0, and it is 0 outside the mask. One position on either
    side of a response is left alone: some loops learn the value after the last token too.

    Where it is not so, the gradient is held against what known mistakes bring: (B,) minus (B, 1), which compares every
    value with every return; returns of the next or the last token; the advantages as the target.
    """

    code = "KLG828"
    watches = (Minibatch, Update, StepEnd)
    LEAST, STEPS, SHARE = 8, 3, 0.1
    MISTAKES = {
        "mean": (
            "values are pulled towards the mean of all returns, as by (B,) - (B, 1), which has a difference for every"
            " pair of rows",
            "bring values and returns into one shape before the subtraction",
        ),
        "column": (
            "values are pulled towards the mean of the returns of all rows at their position",
            "bring values and returns into one shape before the subtraction",
        ),
        "next": (
            "the value of a token is pulled towards the return of the next one",
            "take value and return of the same position: a slice of one of them is off by one",
        ),
        "previous": (
            "the value of a token is pulled towards the return of the one before it",
            "take value and return of the same position: a slice of one of them is off by one",
        ),
        "advantages": (
            "values are pulled towards the advantages",
            "the target of the value loss is the return: advantage (before whitening) + the rollout's value",
        ),
    }
    sums = (
        "tokens", "outside", "outside.size", "size", "signs", "wrong", "looked", *(f"looked.{m}" for m in MISTAKES),
    )  # fmt: skip

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._awaited: Awaited[Minibatch] = Awaited()
        self._apart = Consecutive(self.STEPS)

    def measure(self, event: Event) -> None:
        if isinstance(event, Minibatch):
            if event.values is not None and event.returns is not None:
                self._awaited.add(event, event.arrivals.get("values"))
        elif isinstance(event, StepEnd) or not event.after:
            for told, gradient in self._awaited.arrived():
                self._look(told, gradient)
            if isinstance(event, StepEnd):
                self._awaited.forget()

    def _look(self, event: Minibatch, gradient: Tensor) -> None:
        values, returns, valid = self._in_form(event)
        if not values.numel():
            return
        self.exercised = True
        rounding = 2**-7 if event.values.dtype in HALF or event.returns.dtype in HALF else 1e-6
        finite = gradient.isfinite() & values.isfinite() & returns.isfinite()
        gradient = torch.where(gradient.isfinite(), gradient.double(), 0.0).reshape(values.shape)
        values, returns = (torch.where(finite, one, 0.0) for one in (values, returns))
        size, around = gradient.abs(), _around(valid)
        self.add("tokens", valid.sum())
        self.add("size", size.sum())
        self.add("outside", ((size > 0) & ~around).sum())
        self.add("outside.size", torch.where(around, 0.0, size).sum())
        inside = valid & finite & (gradient != 0)
        distance = values - returns
        clear = inside & (distance.abs() > 4 * rounding * torch.maximum(values.abs(), returns.abs()))
        wrong = clear & (gradient * distance < 0)
        self.add("signs", clear.sum())
        self.add("wrong", wrong.sum())
        g = torch.where(inside, gradient, 0.0)
        left = _left(g, distance)
        # one size everywhere is that of a loss that is linear far from the return
        told_apart = (left > _APART) & (_left(g, gradient.sign()) > _FITS)
        self.add("looked", inside.any())
        for name, target in self._targets(event, returns, valid & finite).items():
            rest = _left(g, values - target)
            self.add(f"looked.{name}", told_apart & (rest <= _FITS) & (rest <= 1e-2 * left))

    @staticmethod
    def _in_form(event: Minibatch) -> tuple[Tensor, Tensor, Tensor]:
        """Values, returns and mask, (B, T). One value for each row makes them (1, B): the loss weighs rows alike."""
        values, returns, valid = event.values.double(), event.returns.double(), valid_tokens(event.mask)
        if _one_each(event):
            return values.reshape(1, -1), returns.reshape(1, -1), valid.any(1)[None]
        return values, returns, valid

    @staticmethod
    def _targets(event: Minibatch, returns: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """What the values are pulled towards by mistake, in the shape of the returns."""
        known = torch.where(valid, returns, 0.0)
        targets = {"mean": (known.sum() / valid.sum().clamp(min=1)).expand_as(returns)}
        if not _one_each(event):
            targets["column"] = returns.mean(0).expand_as(returns)
            targets["next"], targets["previous"] = returns.roll(-1, 1), returns.roll(1, 1)
        if event.advantages is not None:
            shape = torch.Size((returns.numel(), 1)) if _one_each(event) else returns.shape
            advantages = per_token(event.advantages, shape)
            if advantages is not None:
                targets["advantages"] = advantages.reshape(returns.shape)
        return targets

    def judge(self, readings: Readings) -> Iterator[Breach]:
        if readings["outside"]:
            share = readings["outside.size"] / max(readings["size"], 1e-300)
            yield Breach(
                f"the value loss has a gradient at {readings['outside']:,.0f} positions that the mask leaves out, beside"
                f" {readings['tokens']:,.0f} inside it: {share:.2%} of its size at the values",
                value=readings["outside"], limit=0.0, key="outside",
                help="multiply the value loss of each token by the mask before the sum",
            )  # fmt: skip
        signs, wrong = readings["signs"], readings["wrong"]
        if signs >= self.LEAST and wrong > 0.9 * signs:
            if not self.run.maximises():
                yield Breach(
                    f"the value loss pushes {wrong:,.0f} of {signs:,.0f} values away from their returns",
                    value=wrong, limit=0.0, key="sign", help="add the value loss to the loss, with a plus",
                )  # fmt: skip
            return
        for name, (said, help) in self.MISTAKES.items():
            if readings[f"looked.{name}"] > 0.5 * readings["looked"]:
                yield Breach(
                    f"{said}, in {readings[f'looked.{name}']:.0f} of {readings['looked']:.0f} minibatches",
                    value=readings[f"looked.{name}"], limit=0.0, key=name, help=help,
                )  # fmt: skip
                return
        apart = signs >= self.LEAST and wrong > self.SHARE * signs
        if self._apart.see(apart, wrong / signs if signs else 0.0):
            figures = ", ".join(f"{one:.0%}" for one in self._apart.figures)
            yield Breach(
                f"the value loss pushes values away from the returns that were told with them: {figures} of them in the"
                f" last {self.STEPS} steps",
                value=wrong / signs, limit=self.SHARE, key="apart", severity=Severity.WARNING,
                help="look at the rows and positions of the returns in the value loss",
            )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return self._apart.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._apart.load_state_dict(state)


def _one_each(event: Minibatch) -> bool:
    """Whether there is one value for each row, and not for each token."""
    return event.values.dim() == 1 or event.values.shape[1] == 1


def _around(valid: Tensor) -> Tensor:
    """(B, T) from one position before the first valid token of each row to one after its last."""
    wider = valid.clone()
    wider[:, 1:] |= valid[:, :-1]
    wider[:, :-1] |= valid[:, 1:]
    return (wider.cumsum(1) > 0) & (wider.flip(1).cumsum(1).flip(1) > 0)


def _left(gradient: Tensor, model: Tensor) -> Tensor:
    """() the share of the gradient's square (B, T) that a model of it leaves, with one weight for each row; infinity
    where there are too few entries to tell."""
    model = torch.where(gradient != 0, model, 0.0)
    squares = model.square().sum(1, keepdim=True)
    weights = (gradient * model).sum(1, keepdim=True) / squares.clamp(min=1e-300)
    left, whole = (gradient - weights * model).square().sum(), gradient.square().sum()
    enough = ((gradient != 0).sum() >= (squares > 0).sum() + 4) & (whole > 0) & (weights >= 0).all()
    return torch.where(enough, left / whole.clamp(min=1e-300), torch.inf)
