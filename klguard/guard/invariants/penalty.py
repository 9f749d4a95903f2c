"""KLG825 to KLG827: the KL penalty inside the reward, and the controller of its coefficient."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from klguard.findings import Severity
from klguard.guard.events import KL, Event, Preflight, Rewards, StepEnd
from klguard.guard.invariants.invariant import HALF, Breach, Invariant, Run
from klguard.guard.invariants.measuring import Consecutive, home, kept, last_valid, scalar
from klguard.guard.kl import ESTIMATORS, estimate, valid_tokens
from klguard.guard.ledger import Readings


class ScorePlacement(Invariant):
    """token_rewards + beta * kl is the score at the last valid token and 0 before it. Needs token_rewards, kl
    and the mask of `guard.rewards`, before any whitening or clipping, and a coefficient. A penalty of the
    other sign is KLG826's: a row passes when one sign of beta explains it. Between valid tokens, where a tool wrote,
    it is 0 as well: what stands there enters the returns of the tokens before, unless the recursion leaves it out."""

    code = "KLG825"
    watches = (Rewards,)
    sums = ("rows", "wrong", "half", "missing", "doubled", "moved", "between")
    maxima = ("error", "leak")
    EXACT, ROUNDED = 1e-4, 1e-2

    def measure(self, event: Event) -> None:
        coefficient = self.run.kl_coef if event.kl_coef is None else event.kl_coef
        rewards, kl = event.token_rewards, event.kl
        if rewards is None or kl is None or event.mask is None or coefficient is None:
            return
        self.exercised = True
        valid = valid_tokens(event.mask)
        half = any(one.dtype in HALF for one in (rewards, kl, event.scores))
        score = event.scores.double().flatten()
        if rewards.shape == valid.shape:
            between = ~valid & (valid.cumsum(1) > 0) & (valid.flip(1).cumsum(1).flip(1) > 0)
            leak = torch.where(between & rewards.isfinite(), rewards.double().abs(), 0.0)
            self.add("between", (leak > (self.ROUNDED if half else self.EXACT)).sum())
            self.highest("leak", leak)
        rewards, penalty = kept(rewards, valid), scalar(coefficient) * kept(kl, valid)
        if kl.dim() == 2 and penalty.shape == rewards.shape:
            self._compare(score, rewards, penalty, valid, self.ROUNDED if half else self.EXACT)
            self.add("half", float(half))

    def _compare(self, score: Tensor, rewards: Tensor, penalty: Tensor, valid: Tensor, limit: float) -> None:
        last = last_valid(valid)
        some = valid.any(1) & score.isfinite()
        scale = 1 + score.abs() + penalty.abs().amax(1)
        tolerance = limit * scale
        expected = torch.where(last, score[:, None], 0.0)
        plus, minus = rewards + penalty, rewards - penalty
        errors = torch.stack([(one - expected).abs().amax(1) for one in (plus, minus)])
        error = errors.amin(0)
        wrong = some & (error > tolerance)
        # the sign of beta that explains more of the tokens
        unexplained = torch.stack(
            [((one - expected).abs() > tolerance[:, None]).sum(1) for one in (plus, minus)]
        )
        residual = torch.where(unexplained[0] <= unexplained[1], plus.sum(1), minus.sum(1))
        told = wrong & (score.abs() > 4 * tolerance)
        total_tolerance = tolerance * (1 + 1e-2 * valid.sum(1))
        self.add("rows", some.sum())
        self.add("wrong", wrong.sum())
        self.add("missing", (told & (residual.abs() <= total_tolerance)).sum())
        self.add("doubled", (told & ((residual - 2 * score).abs() <= total_tolerance)).sum())
        self.add("moved", (told & ((residual - score).abs() <= total_tolerance)).sum())
        self.highest("error", torch.where(wrong, error, 0.0))

    def judge(self, readings: Readings) -> Iterator[Breach]:
        if readings["between"]:
            yield Breach(
                f"the rewards are up to {readings['leak']:.3g} from 0 at {readings['between']:,.0f} tokens between valid"
                " ones, which the policy did not draw; that is harmless only where the recursion leaves these out",
                value=readings["leak"],
                limit=self.ROUNDED if readings["half"] else self.EXACT,
                key="between",
                severity=Severity.WARNING,
                help="multiply the KL by the mask before it is taken off the rewards",
            )
        wrong = readings["wrong"]
        if not wrong:
            return
        half = wrong / 2
        what, key = "the rewards plus beta * kl are not the score at the last valid token", "other"
        if readings["missing"] > half:
            what, key = "the score is missing from the rewards", "missing"
        elif readings["doubled"] > half:
            what, key = "the score is in the rewards twice", "doubled"
        elif readings["moved"] > half:
            what, key = "the score is credited to a token before the last valid one", "moved"
        yield Breach(
            f"{what} in {wrong:,.0f} of {readings['rows']:,.0f} rows, off by up to {readings['error']:.3g}",
            value=readings["error"],
            limit=self.ROUNDED if readings["half"] else self.EXACT,
            key=key,
        )


class PenaltySign(Invariant):
    """Before training, the loop's own reward must fall when only the KL rises. While training, the correlation
    over sequences of (sum of rewards - score) with the sum of KL is -1; it is reported near +1. Needs eight
    sequences, which may come from several steps, and a KL that is not 0."""

    code = "KLG826"
    watches = (Preflight, Rewards)
    sums = ("n", "x", "y", "xx", "yy", "xy", "scores")
    FEWEST, CERTAIN = 8, 0.9

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._pooled = dict.fromkeys(self.sums, 0.0)

    def inspect(self, event: Event) -> Iterator[Breach]:
        if not isinstance(event, Preflight) or event.reward is None:
            return
        self.exercised = True
        kl = torch.tensor([0.0, 0.25, 0.5, 1.0], device=home(self.run.policy))
        with torch.no_grad():
            totals = torch.as_tensor(event.reward(torch.full_like(kl, 0.1), kl)).double().flatten()
        slope = float(totals[-1] - totals[0])
        if slope > 0:
            yield Breach(
                f"the total reward rises by {slope:.3g} when the KL of a sequence rises from 0 to 1 nat",
                value=slope,
                limit=0.0,
                key="sign",
            )
        elif slope == 0 and self.run.kl_coef:
            yield Breach(
                f"the total reward does not depend on the KL, although the coefficient is {self.run.kl_coef:g}",
                value=0.0,
                limit=0.0,
                key="absent",
            )

    def measure(self, event: Event) -> None:
        if (
            isinstance(event, Preflight)
            or event.token_rewards is None
            or event.kl is None
            or event.mask is None
        ):
            return
        self.exercised = True
        valid = valid_tokens(event.mask)
        score = event.scores.double().flatten()
        some = valid.any(1) & score.isfinite()
        x = torch.where(some, kept(event.kl, valid).sum(1), 0.0)
        y = torch.where(some, kept(event.token_rewards, valid).sum(1) - score, 0.0)
        for slot, figure in zip(
            self.sums, (some, x, y, x * x, y * y, x * y, torch.where(some, score**2, 0.0)), strict=True
        ):
            self.add(slot, figure)

    def judge(self, readings: Readings) -> Iterator[Breach]:
        self._pooled = {name: total + readings[name] for name, total in self._pooled.items()}
        n = self._pooled["n"]
        if n < self.FEWEST:
            return
        mean = {name: total / n for name, total in self._pooled.items()}
        self._pooled = dict.fromkeys(self.sums, 0.0)
        var_x, var_y = mean["xx"] - mean["x"] ** 2, mean["yy"] - mean["y"] ** 2
        rounding = 1e-10 * (1 + mean["scores"])
        if var_x < 1e-8 or var_y < rounding:
            return
        slope = mean["xy"] - mean["x"] * mean["y"]
        correlation = slope / math.sqrt(var_x * var_y)
        if correlation > self.CERTAIN:
            yield Breach(
                f"over {n:,.0f} sequences the reward rises by {slope / var_x:.3g} for each nat of KL"
                f" (correlation {correlation:.2f}); it has to fall",
                value=correlation,
                limit=-1.0,
                key="sign",
            )

    def state_dict(self) -> dict[str, Any]:
        return {"pooled": dict(self._pooled)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._pooled = dict(state["pooled"])


class ControllerInput(Invariant):
    """An adaptive controller (Ziegler et al. 2019) multiplies the coefficient by the relative error of the KL.
    What it is fed is compared with the mean of k1, k2 and k3 that the guard saw in `guard.kl`, in the unit of
    the target; the tolerance is 5 % and, since k1 may cancel to almost nothing, 1 % of the mean |k1|; the input
    has to be off for three steps in a row. A KL below 0 by more than chance must not lower the coefficient: to be
    sure which coefficient came of which KL, two steps in a row have to be below 0."""

    code = "KLG827"
    watches = (KL, StepEnd)
    sums = (
        "sequences", "rows", "tokens", "k1", "k2", "k3", "spread", "squares",
        "fed", "feeds", "per_token", "coefficient", "coefficients",
    )  # fmt: skip
    RELATIVE = 0.05

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._before: tuple[bool, float] | None = None
        self._off = Consecutive(3)

    def measure(self, event: Event) -> None:
        if isinstance(event, StepEnd):
            if event.controller_kl is not None:
                self.add("fed", scalar(event.controller_kl))
                self.add("feeds", 1.0)
                self.add("per_token", float(event.controller_unit == "token"))
                if event.kl_coef is not None:
                    self.add("coefficient", scalar(event.kl_coef))
                    self.add("coefficients", 1.0)
            return
        if event.requires_grad:
            return  # the KL of a loss, of other weights than the reward's
        valid = valid_tokens(event.mask)
        self.add("sequences", valid.any(1).sum())
        self.add("rows", float(valid.shape[0]))
        self.add("tokens", valid.sum())
        for name in ESTIMATORS:
            values = estimate(event.logprobs.double(), event.reference_logprobs.double(), estimator=name)
            self.add(name, kept(values, valid).sum())
            if name == "k1":
                self.add("spread", kept(values, valid).abs().sum())
                self.add("squares", kept(values, valid).sum(1).square().sum())

    def judge(self, readings: Readings) -> Iterator[Breach]:
        if not readings["feeds"]:
            return
        fed = readings["fed"] / readings["feeds"]
        unit = "token" if readings["per_token"] else "sequence"
        if readings["tokens"]:
            self.exercised = True
            yield from self._wrong_input(readings, fed, unit)
        if readings["coefficients"]:
            self.exercised = True
            yield from self._followed(readings, fed)

    def _wrong_input(self, readings: Readings, fed: float, unit: str) -> Iterator[Breach]:
        length = readings["tokens"] / readings["sequences"]
        counts = {"sequence": ("sequences", "rows"), "token": ("tokens",)}

        def is_mean_per(one: str) -> bool:
            """Whether the input is a mean per `one`, by some estimator."""
            return any(
                abs(fed - readings[name] / readings[count])
                <= self.RELATIVE * abs(readings[name] / readings[count]) + self._slack(readings, name, count)
                for name in ESTIMATORS
                for count in counts[one]
            )

        if not self._off.see(not is_mean_per(unit)):
            return
        other = "token" if unit == "sequence" else "sequence"
        own = readings["k1"] / readings[counts[unit][0]]
        hint = ""
        if length > 1.5 and is_mean_per(other):
            hint = f", which is its mean per {other}"
        yield Breach(
            f"the controller was fed {fed:.4g}{hint}; the KL to the reference is {own:.4g} nats per {unit}, the"
            " unit of the target",
            value=fed,
            limit=own,
            key="input",
            help="feed it the KL to the reference in the unit of its target; if that is nats per token, say"
            " controller_unit='token'",
        )

    @staticmethod
    def _slack(readings: Readings, name: str, count: str) -> float:
        """Nats by which a right mean may be off: k1 cancels, and loops average over micro-batches first."""
        return (0.01 * readings["spread"] / readings[count] if name == "k1" else 0.0) + 1e-6

    def _followed(self, readings: Readings, fed: float) -> Iterator[Breach]:
        coefficient = readings["coefficient"] / readings["coefficients"]
        chance = 1.0
        if readings["sequences"] > 1:
            mean = readings["k1"] / readings["sequences"]
            variance = max(readings["squares"] / readings["sequences"] - mean**2, 0.0)
            chance = 4 * math.sqrt(variance / readings["sequences"]) + 1e-6
        negative = fed < -chance
        before, self._before = self._before, (negative, coefficient)
        if before is not None and before[0] and negative and coefficient < before[1]:
            yield Breach(
                f"the coefficient went from {before[1]:.4g} to {coefficient:.4g} while the KL was {fed:.3g}, below"
                " 0: the controller helps the fault along",
                value=coefficient,
                limit=before[1],
                key="hold",
            )

    def state_dict(self) -> dict[str, Any]:
        before = None if self._before is None else list(self._before)
        return {"before": before, "off": self._off.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._before = None if state["before"] is None else tuple(state["before"])
        self._off.load_state_dict(state["off"])
