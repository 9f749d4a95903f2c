"""KLG839: the gradient of the loss at the log-probs of a minibatch is that of the surrogate they belong to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from klguard.findings import Severity
from klguard.guard.events import Advantages, Event, Minibatch, Rollout, StepEnd, Update
from klguard.guard.gradients import Awaited
from klguard.guard.invariants.invariant import Breach, Invariant, Run
from klguard.guard.invariants.measuring import Consecutive, ids, last_valid, per_token
from klguard.guard.invariants.updates import world
from klguard.guard.kl import valid_tokens
from klguard.guard.ledger import Readings

_INSIDE, _BEYOND = 0.01, 0.02
"""How far the ratio has to be from the ends of the clip range to count as inside, and as outside."""

_NEAR = 0.05
"""Distance of the ratio from 1 that no clip range cuts, where the loop tells none."""


@dataclass(frozen=True)
class Fit:
    """How the gradient (B, T) at the log-probs follows from what is expected where nothing is clipped: that of the
    surrogate, -advantage * ratio, and of the KL term, where one is told, times one weight for each row: the share
    that the loss gives its tokens. All on the device.

    surrogate (B, T) its part of what is expected.
    inside    (B, T) valid tokens of which something is expected, and whose ratio nothing clips.
    weights   (B, 1) of the rows; 0 where a row has no such token. known (B,) whether it has.
    fits      () the gradient is so, up to rounding: no other term goes through these log-probs.
    turned, alone   () it is so with the KL term taken off, and with nothing but the KL term.
    """

    gradient: Tensor
    expected: Tensor
    surrogate: Tensor
    inside: Tensor
    weights: Tensor
    known: Tensor
    fits: Tensor
    turned: Tensor
    alone: Tensor

    LIMIT = 1e-3

    @classmethod
    def of(cls, event: Minibatch, gradient: Tensor, advantages: Tensor, kl_coef: float | None) -> Fit:
        """The fit over the tokens that have a gradient at all: a loop may leave some out. There have to be some more
        of them than weights, or anything would fit."""
        ratio, valid = _ratio(event), valid_tokens(event.mask)
        surrogate = -advantages * ratio
        penalty = torch.zeros_like(surrogate)
        if event.kl_slope is not None and kl_coef:
            penalty = kl_coef * event.kl_slope.double().nan_to_num(nan=0.0)
        expected = surrogate + penalty
        if event.clip_range is None:
            open_ = (ratio - 1).abs() < _NEAR
        else:
            below, above = event.clip_range
            open_ = (ratio > 1 - below + _INSIDE) & (ratio < 1 + above - _INSIDE)
        inside = valid & open_ & (expected != 0)
        g = torch.where(inside, gradient, 0.0)
        weights, known, left = cls._fitted(g, expected)
        enough = (g != 0).sum() >= known.sum() + 4
        fits = enough & (left <= cls.LIMIT)
        # beside another model that fits a hundred times better: more than rounding
        differs = enough & (left > 1e-8) & (torch.where(inside, surrogate, 0.0) != 0).any()
        others = [cls._fitted(g, other) for other in (surrogate - penalty, penalty)]
        turned, alone = (
            differs & (rest <= cls.LIMIT) & (rest <= 1e-2 * left) & (weight >= 0).all()
            for weight, _, rest in others
        )
        return cls(gradient, expected, surrogate, inside, weights, known, fits, turned, alone)

    @classmethod
    def _fitted(cls, gradient: Tensor, model: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights (B, 1) of a model of the gradient, both (B, T); where they are known (B,); the share of the gradient's
        square that is left (), infinity where there is no gradient."""
        model = torch.where(gradient != 0, model, 0.0)
        squares = model.square().sum(1, keepdim=True)
        weights = (gradient * model).sum(1, keepdim=True) / squares.clamp(min=1e-300)
        known = squares[:, 0] > 0
        left, whole = (gradient - weights * model).square().sum(), gradient.square().sum()
        return weights, known, torch.where(whole > 0, left / whole, torch.inf)


def _ratio(event: Minibatch) -> Tensor:
    """(B, T) new over old, float64."""
    difference = (event.new.double() - event.old.double()).nan_to_num(nan=0.0)
    return difference.clamp(-50.0, 50.0).exp()


@dataclass(frozen=True)
class _Micro:
    """What the weights of one backward pass say, on the device: their sum over all valid tokens, the tokens, whether
    every token has the same weight while rows differ in length, and whether all of this is known."""

    share: Tensor
    tokens: Tensor
    by_token: Tensor
    known: Tensor


class LossGradient(Invariant):
    """A hook on the log-probs that a minibatch is told with sees what backward() brings.

    A masked token has no gradient. Where the advantages are known too, the gradient is held against that of the
    surrogate, -advantage * ratio, 0 where the clip binds (Schulman et al. 2017, equation 7), and of the KL term in
    the loss, up to a weight for each row, as means over tokens, rows or a constant give it. Where it does not fit,
    since engine weights, a term that is not told or another objective go the same way, only its direction is judged.

    How the micro-batches of an update weigh is told of loops on one rank whose optimizer is watched.
    """

    code = "KLG839"
    watches = (Rollout, Advantages, Minibatch, Update, StepEnd)
    sums = (
        "tokens", "outside", "outside.size", "size",
        "judged", "against",
        "clipped", "through",
        "rows", "rows.agreement", "told", "told.apart",
        "last", "last.none", "first", "first.none", "inner", "inner.none",
        "fitted", "padded", "looked", "turned", "alone",
        "entropies", "entropies.paid", "entropies.outside",
        "updates", "updates.twice", "updates.undivided", "updates.means", "micro",
    )  # fmt: skip
    LEAST, STEPS = 8, 3

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._step: int | None = None
        self._told: list[Advantages] = []
        self._rollouts: list[Rollout] = []
        self._awaited: Awaited[Minibatch] = Awaited()
        self._entropies: Awaited[Minibatch] = Awaited()
        self._widths: set[int] = set()
        self._lasting = {
            key: Consecutive(self.STEPS) for key in ("twice", "undivided", "means", "padded", "rows", "told")
        }

    def measure(self, event: Event) -> None:
        if self.run.step != self._step:
            self._step, self._told, self._rollouts = self.run.step, [], []
            self._forget()
        if isinstance(event, Rollout):
            self._rollouts.append(event)
        elif isinstance(event, Advantages):
            self._told.append(event)
        elif isinstance(event, Minibatch):
            self._awaited.add(event, event.arrivals.get("new"))
            self._entropies.add(event, event.arrivals.get("entropy"))
        elif isinstance(event, StepEnd):
            self._take()
            self._forget()
        elif not event.after:
            self._weigh_update(self._take())

    def _take(self) -> list[_Micro | None]:
        """Look at the minibatches whose gradient has arrived."""
        for told, gradient in self._entropies.arrived():
            self._look_at_entropy(told, gradient)
        return [self._look(told, gradient) for told, gradient in self._awaited.arrived()]

    def _forget(self) -> None:
        self._awaited.forget()
        self._entropies.forget()

    def _look(self, event: Minibatch, gradient: Tensor) -> _Micro | None:
        if gradient.shape != event.mask.shape or not gradient.numel():
            return None
        self.exercised = True
        valid = valid_tokens(event.mask)
        gradient = torch.where(gradient.isfinite(), gradient.double(), 0.0)
        size = gradient.abs()
        self.add("tokens", valid.sum())
        self.add("size", size.sum())
        self.add("outside", ((size > 0) & ~valid).sum())
        self.add("outside.size", torch.where(valid, 0.0, size).sum())
        advantages = self._advantages(event)
        if advantages is None:
            return None
        fit = Fit.of(event, gradient, torch.where(valid, advantages, 0.0), self.run.kl_coef)
        self._look_at_direction(fit)
        self._look_at_clipped(event, fit, valid, advantages)
        of_rows = self._of_rows(event) if event.rows is not None else None
        self._look_at_rows(fit, advantages, advantages if of_rows is None else of_rows, valid)
        self._look_at_ends(fit, valid)
        self.add("looked", (torch.where(valid, gradient, 0.0) != 0).any())
        self.add("turned", fit.turned)
        self.add("alone", fit.alone)
        micro = self._weigh(fit, valid)
        self._look_at_padding(fit, micro, valid)
        return micro

    def _advantages(self, event: Minibatch) -> Tensor | None:
        """(B, T) float64, finite, of the rows of a minibatch: told with it, or once in the step for all rows."""
        shape = event.mask.shape
        if event.advantages is not None:
            return per_token(event.advantages, shape)
        if event.rows is None:
            return per_token(self._told[0].advantages, shape) if len(self._told) == 1 else None
        return self._of_rows(event)

    def _of_rows(self, event: Minibatch) -> Tensor | None:
        """(B, T) advantages that were told once in the step for all rows, of the rows of a minibatch; 0 where one of
        these is not known. Where the rows of the rollout have ids, the advantages follow their order."""
        if len(self._told) != 1 or len(self._rollouts) > 1:
            return None
        told, shape = self._told[0].advantages, event.mask.shape
        if any(len(one.responses) != len(told) for one in self._rollouts):
            return None  # of the rows that a filter left, in which order is not known
        numbers = ids(event.rows, told.device)
        named = next((one.rows for one in self._rollouts), None)
        if named is not None:
            names = ids(named, told.device)
            if len(names) != len(told):
                return None
            match = numbers[:, None] == names[None]
            numbers = torch.where(match.sum(1) == 1, match.to(torch.uint8).argmax(1), -1)
        known = ((numbers >= 0) & (numbers < len(told))).all()
        rows = per_token(told[numbers.clamp(0, len(told) - 1)], shape)
        return None if rows is None else torch.where(known.to(rows.device), rows, 0.0)

    # -- one backward pass ---------------------------------------------------------------------------------------

    def _look_at_direction(self, fit: Fit) -> None:
        g, e = (torch.where(fit.inside, one, 0.0) for one in (fit.gradient, fit.expected))
        norm = (g.square().sum() * e.square().sum()).sqrt()
        enough = (fit.inside.sum() >= self.LEAST) & (norm > 0)
        self.add("judged", enough)
        self.add("against", enough & ((g * e).sum() < -0.9 * norm))

    def _look_at_clipped(self, event: Minibatch, fit: Fit, valid: Tensor, advantages: Tensor) -> None:
        if event.clip_range is None:
            return
        below, above = event.clip_range
        ratio = _ratio(event)
        high = (advantages > 0) & (ratio > 1 + above + _BEYOND)
        low = (advantages < 0) & (ratio < 1 - below - _BEYOND)
        beyond = valid & (high | low) & fit.known[:, None]
        unclipped = fit.weights * fit.expected
        beyond &= (fit.weights * fit.surrogate).abs() > 0.1 * unclipped.abs()
        through = beyond & ((fit.gradient - unclipped).abs() <= 0.01 * unclipped.abs())
        self.add("clipped", beyond.sum() * fit.fits)
        self.add("through", through.sum() * fit.fits)

    def _look_at_rows(self, fit: Fit, used: Tensor, told: Tensor, valid: Tensor) -> None:
        """Rows of one advantage each: what the gradient says it was, against what was told. Whichever is larger of
        the cosine and the correlation, since a loop may still subtract a mean. `used` are those of the fit."""
        if len(valid) < 4:
            return
        tokens = valid.sum(1)
        means, one_each = [], fit.fits
        for values in (used, told):
            mean = torch.where(valid, values, 0.0).sum(1) / tokens.clamp(min=1)
            apart = torch.where(valid, (values - mean[:, None]).abs(), 0.0).amax()
            one_each = one_each & (apart <= 1e-6 * mean.abs().amax())
            means.append(torch.where(fit.known, mean, 0.0))
        implied, own = fit.weights[:, 0] * means[0], means[1]
        count = fit.known.sum()
        centred = [torch.where(fit.known, x - x.sum() / count.clamp(min=1), 0.0) for x in (implied, own)]
        agreement = torch.maximum(_cosine(implied, own), _cosine(*centred))
        looked = one_each & (count >= 4) & (own != 0).any() & (implied != 0).any()
        if told is not used:
            centred = [torch.where(fit.known, x - x.sum() / count.clamp(min=1), 0.0) for x in means]
            alike = torch.maximum(_cosine(*means), _cosine(*centred))
            self.add("told", looked)
            self.add("told.apart", looked & (alike < 0.9) & (means[0] != means[1]).any())
        self.add("rows", looked)
        self.add("rows.agreement", torch.where(looked, agreement, 0.0))

    def _look_at_ends(self, fit: Fit, valid: Tensor) -> None:
        """Whether the first or the last token of a response is left out of the loss where those between are not."""
        looked = fit.inside & (valid.sum(1, keepdim=True) >= 3) & fit.fits
        last = last_valid(valid)
        first = valid & (valid.cumsum(1) == 1)
        none = fit.gradient == 0
        for name, where in (("last", last), ("first", first), ("inner", ~(first | last))):
            self.add(name, (looked & where).sum())
            self.add(f"{name}.none", (looked & where & none).sum())

    def _weigh(self, fit: Fit, valid: Tensor) -> _Micro:
        tokens = valid.sum(1)
        weights = fit.weights[:, 0]
        infinity = torch.full_like(weights, torch.inf)
        most = torch.where(fit.known, weights, -infinity).amax()
        least = torch.where(fit.known, weights, infinity).amin()
        constant = (most - least).abs() <= 1e-3 * most.abs()
        longest = torch.where(fit.known, tokens, 0).amax()
        shortest = torch.where(fit.known, tokens, tokens.amax()).amin()
        share = torch.where(constant, most * tokens.sum(), (weights * tokens).sum())
        return _Micro(
            share,
            tokens.sum(),
            constant & (longest > 1.05 * shortest),
            fit.fits & (constant | (fit.known | (tokens == 0)).all()) & share.isfinite(),
        )

    def _look_at_entropy(self, event: Minibatch, gradient: Tensor) -> None:
        """A bonus lowers the loss: its gradient at the entropy is below 0, and 0 outside the mask."""
        self.exercised = True
        valid = valid_tokens(event.mask)
        gradient = gradient.nan_to_num(nan=0.0)
        inside = torch.where(valid, gradient, 0.0)
        self.add("entropies", (inside != 0).any())
        self.add("entropies.paid", (inside > 0).any() & (inside >= 0).all())
        self.add("entropies.outside", ((gradient != 0) & ~valid).sum())

    def _look_at_padding(self, fit: Fit, micro: _Micro, valid: Tensor) -> None:
        """A mean over all positions of the tensor: as many as the longest row asks for."""
        self._widths.add(valid.shape[1])
        per_token = micro.share / micro.tokens.clamp(min=1)
        everywhere = per_token * valid.numel()
        looked = micro.known & micro.by_token & (micro.tokens < 0.95 * valid.numel())
        self.add("fitted", looked)
        self.add("padded", looked & ((everywhere - 1).abs() < 1e-3))

    # -- the backward passes of one update -----------------------------------------------------------------------

    def _weigh_update(self, parts: Sequence[_Micro | None]) -> None:
        """Of several micro-batches: whether each counts as if it were the whole update, was divided twice, or counts
        the same as another that has more tokens."""
        count = len(parts)
        if count < 2 or any(part is None for part in parts) or world() > 1 or self.run.adapter:
            return
        share = torch.stack([part.share for part in parts])
        tokens = torch.stack([part.tokens for part in parts]).double()
        known = torch.stack([part.known for part in parts]).all()
        by_token = torch.stack([part.by_token for part in parts]).all()
        alike = (share.amax() - share.amin()).abs() <= 1e-3 * share.amax().abs()
        total = share.sum()
        self.add("updates", known)
        self.add("micro", known * float(count))
        self.add("updates.twice", known & ((total * count - 1).abs() < 1e-3))
        self.add("updates.undivided", known & ((total / count - 1).abs() < 1e-3))
        self.add("updates.means", known & by_token & alike & (tokens.amax() > 1.05 * tokens.amin()))

    # -- the step is over ----------------------------------------------------------------------------------------

    def judge(self, readings: Readings) -> Iterator[Breach]:
        if readings["outside"]:
            share = readings["outside.size"] / max(readings["size"], 1e-300)
            yield Breach(
                f"the loss has a gradient at {readings['outside']:,.0f} tokens that the mask leaves out, beside"
                f" {readings['tokens']:,.0f} inside it: {share:.2%} of its size at the log-probs",
                value=readings["outside"], limit=0.0, key="outside",
                help="multiply the loss of each token by the mask before the sum, or tell the mask that is used",
            )  # fmt: skip
        against = 0 < readings["judged"] == readings["against"]
        if against and not self.run.maximises():
            yield Breach(
                "the gradient of the loss lowers the log-probs of tokens with a positive advantage, and raises those"
                f" with a negative one, in {readings['against']:.0f} of {readings['judged']:.0f} minibatches",
                value=readings["against"], limit=0.0, key="sign",
                help="the loss is minus the surrogate: -(ratio * advantage)",
            )  # fmt: skip
        if readings["clipped"] >= self.LEAST and readings["through"] > 0.9 * readings["clipped"]:
            yield Breach(
                f"the whole gradient comes through at {readings['through']:,.0f} of {readings['clipped']:,.0f} tokens"
                " whose ratio is outside the clip range, on the side where the clip binds",
                value=readings["through"], limit=0.0, key="clip",
                help="the loss is the mean of -min(ratio * advantage, clipped ratio * advantage)",
            )  # fmt: skip
        if not against:
            yield from self._judge_rows(readings)
        yield from self._judge_terms(readings)
        yield from self._judge_entropy(readings)
        yield from self._judge_ends(readings)
        yield from self._judge_weights(readings)

    @staticmethod
    def _judge_terms(readings: Readings) -> Iterator[Breach]:
        """The KL term with a minus, or alone, in most of the minibatches."""
        if readings["turned"] > 0.5 * readings["looked"]:
            yield Breach(
                f"the KL term is taken off the loss in {readings['turned']:.0f} of {readings['looked']:.0f} minibatches:"
                " the policy is paid to leave its reference",
                value=readings["turned"], limit=0.0, key="kl sign", help="add the KL term to a loss that is minimised",
            )  # fmt: skip
        if readings["alone"] > 0.5 * readings["looked"]:
            yield Breach(
                f"nothing but the KL term has a gradient at the log-probs in {readings['alone']:.0f} of"
                f" {readings['looked']:.0f} minibatches, whose advantages are not 0: no reward is learnt",
                value=readings["alone"], limit=0.0, key="kl alone",
                help="take the ratio, or the log-probs, of the surrogate with their gradient",
            )  # fmt: skip

    def _judge_entropy(self, readings: Readings) -> Iterator[Breach]:
        if readings["entropies.outside"]:
            yield Breach(
                f"the loss has a gradient at the entropy of {readings['entropies.outside']:,.0f} tokens that the mask"
                " leaves out",
                value=readings["entropies.outside"], limit=0.0, key="entropy outside",
                help="multiply the entropy of each token by the mask before the mean",
            )  # fmt: skip
        if 0 < readings["entropies"] == readings["entropies.paid"] and not self.run.maximises():
            yield Breach(
                f"the loss falls with the entropy, in all of {readings['entropies']:.0f} minibatches: certainty is"
                " rewarded, and no exploration",
                value=readings["entropies.paid"], limit=0.0, key="entropy", severity=Severity.WARNING,
                help="an entropy bonus is taken off the loss: loss - coefficient * entropy; where less entropy is"
                " wanted, ignore this",
            )  # fmt: skip

    def _judge_rows(self, readings: Readings) -> Iterator[Breach]:
        told = readings["told"]
        if told and self._lasting["told"].see(readings["told.apart"] > 0, readings["told.apart"]):
            yield Breach(
                f"the advantages of {sum(self._lasting['told'].figures):.0f} minibatches in the last {self.STEPS} steps"
                " are neither those that were told of the same rows before, nor these up to a mean and a scale",
                value=readings["told.apart"], limit=0.0, key="rows",
                help="index the advantages with the rows of the minibatch",
            )  # fmt: skip
        agreement = readings.mean("rows.agreement", "rows")
        if agreement is not None and self._lasting["rows"].see(agreement < 0.3, agreement):
            figures = ", ".join(f"{one:.2f}" for one in self._lasting["rows"].figures)
            yield Breach(
                "rows are not pushed by their own advantages: what the gradient says of these agrees with what was told"
                f" by a cosine of {figures} in the last {self.STEPS} steps (1 in a correct loop)",
                value=agreement, limit=0.3, key="rows",
                help="index the advantages with the rows of the minibatch",
            )  # fmt: skip

    def _judge_ends(self, readings: Readings) -> Iterator[Breach]:
        if readings["inner"] < self.LEAST or readings["inner.none"] > 0.2 * readings["inner"]:
            return
        for name in ("last", "first"):
            if readings[name] >= self.LEAST and readings[f"{name}.none"] > 0.95 * readings[name]:
                yield Breach(
                    f"the {name} token of {readings[f'{name}.none']:.0f} of {readings[name]:.0f} responses is inside the"
                    " mask, has an advantage, and has no gradient",
                    value=readings[f"{name}.none"], limit=0.0, key=name, severity=Severity.WARNING,
                    help="look for a shift between log-probs, advantages and mask in the loss",
                )  # fmt: skip

    def _judge_weights(self, readings: Readings) -> Iterator[Breach]:
        updates, micro = readings["updates"], readings.mean("micro", "updates")
        words = {
            "twice": (
                "the loss of each micro-batch was divided by their number twice",
                "divide once: by hand, or in what runs backward()",
            ),
            "undivided": (
                "the loss of each micro-batch counts as if it were the whole update",
                "divide each by their number, or sum token losses and divide by the tokens of the update",
            ),
            "means": (
                "micro-batches with few tokens weigh as much as those with many, by their own means over tokens",
                "sum token losses and divide by the number of valid tokens of the whole update",
            ),
        }
        for key, (said, help) in words.items():
            every = bool(updates) and readings[f"updates.{key}"] == updates
            if updates and self._lasting[key].see(every, updates):
                yield Breach(
                    f"{said}, in all of {sum(self._lasting[key].figures):.0f} updates ({micro:.0f} micro-batches each)",
                    value=updates, key=key, severity=Severity.WARNING, help=help,
                )  # fmt: skip
        fitted = readings["fitted"]
        padded = self._lasting["padded"]
        if fitted and padded.see(readings["padded"] == fitted, fitted):
            if len(self._widths) > 1:
                yield Breach(
                    f"the loss is a mean over all positions, padding included, in {sum(padded.figures):.0f}"
                    " minibatches: a token weighs the less the longer the longest response beside it is",
                    value=fitted, key="padded", severity=Severity.WARNING,
                    help="divide by the number of valid tokens, or by a constant",
                )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {"widths": sorted(self._widths), **{k: c.state_dict() for k, c in self._lasting.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._widths = set(state["widths"])
        for key, counter in self._lasting.items():
            counter.load_state_dict(state[key])


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    norm = (one.square().sum() * other.square().sum()).sqrt()
    return (one * other).sum() / norm.clamp(min=1e-300)
