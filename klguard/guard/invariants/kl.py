"""KLG601, KLG602, KLG834 and KLG837: the KL figures themselves, token by token and as they are logged."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from klguard.guard.events import KL, Event, Minibatch, Rewards, StepEnd
from klguard.guard.invariants.invariant import Breach, Invariant, Run
from klguard.guard.invariants.measuring import kept, scalar
from klguard.guard.invariants.updates import world
from klguard.guard.kl import ESTIMATORS, estimate, valid_tokens
from klguard.guard.ledger import Readings

UNITS = ("sequence", "token")

_EXACT_LIMIT = 1e-5
_K3_LIMIT = 1e-6
"""exp(d) - 1 - d in fp32 rounds to -6e-8, which harms nobody; in half precision it reaches -4e-3."""


class ExactKLNotNegative(Invariant):
    """Gibbs' inequality: the KL of two normalised distributions is at least 0. The largest error of the fp32
    computation over a vocabulary of 151,936 was 1.9e-6 nats. Looked at where the guard computes it, from the
    logits of both models, and where the loop hands in its own (`guard.kl(..., estimator="exact", values=...)`),
    which is where half precision and unreduced shards of the vocabulary show."""

    code = "KLG601"
    watches = (KL,)
    sums = ("tokens",)
    maxima = ("worst",)

    def measure(self, event: Event) -> None:
        if event.estimator == "exact":
            self.token_kls(event.values, event.mask)

    def token_kls(self, kl: Tensor, valid: Tensor) -> None:
        """Exact KL (n,) of tested tokens, nats; those that are not `valid` (n,) do not count."""
        self.highest("worst", torch.where(valid & ~kl.isnan(), -kl.double(), -math.inf))
        self.add("tokens", valid.sum())

    def judge(self, readings: Readings) -> Iterator[Breach]:
        worst = readings.maximum("worst")
        self.exercised = self.exercised or readings["tokens"] > 0
        if worst is not None and worst > _EXACT_LIMIT:
            yield Breach(
                f"the exact KL over the vocabulary is {-worst:.3g} nats at a token; the KL of two distributions"
                " is never negative",
                value=-worst,
                limit=-_EXACT_LIMIT,
            )


class K3NotNegative(Invariant):
    """expm1(d) >= d for every d, so k3 is never negative (Schulman 2020); a mean of it is not either."""

    code = "KLG602"
    watches = (KL, StepEnd)
    sums = ("negative", "tokens")
    maxima = ("worst", "logged")

    def measure(self, event: Event) -> None:
        if isinstance(event, KL) and event.estimator == "k3":
            self.exercised = True
            values = kept(event.values, event.mask)
            self.highest("worst", -values)
            self.add("negative", (values < -_K3_LIMIT).sum())
            self.add("tokens", valid_tokens(event.mask).sum())
        elif isinstance(event, StepEnd) and event.kl is not None and event.kl_estimator == "k3":
            self.exercised = True
            self.highest("logged", -scalar(event.kl))

    def judge(self, readings: Readings) -> Iterator[Breach]:
        worst, logged = readings.maximum("worst"), readings.maximum("logged")
        if worst is not None and worst > _K3_LIMIT:
            yield Breach(
                f"k3 is negative at {readings['negative']:,.0f} of {readings['tokens']:,.0f} tokens, as low as"
                f" {-worst:.3g} nats; {self._why(worst)}",
                value=-worst,
                limit=0.0,
                key="tokens",
            )
        elif logged is not None and logged > _K3_LIMIT:
            yield Breach(
                f"the KL that is logged as a mean of k3 is {-logged:.3g} nats; a mean of numbers that are not"
                " negative is not negative",
                value=-logged,
                limit=0.0,
                key="logged",
            )

    @staticmethod
    def _why(worst: float) -> str:
        if worst < 0.02:
            return "exp(d) - 1 - d in half precision gives such numbers"
        return "the formula or its sign is wrong, for rounding does not reach that far"


class ClampsDoNotBind(Invariant):
    """Loops clamp the log-ratio to 20 and k3 to 10 (verl, OpenRLHF, NeMo-RL): a clamped token has no gradient.
    One odd token in a small step is no news, so the share is taken over a window and needs a few tokens."""

    code = "KLG837"
    watches = (KL, Minibatch)
    sums = ("ratio_bound", "ratio_tokens", "kl_bound", "kl_tokens")
    WINDOW, FEWEST, SHARE = 5, 5, 1e-4

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._window: deque[tuple[float, ...]] = deque(maxlen=self.WINDOW)

    def measure(self, event: Event) -> None:
        self.exercised = True
        valid = valid_tokens(event.mask)
        if isinstance(event, Minibatch):
            bound = (event.new.double() - event.old.double()).abs() >= 20
            self.add("ratio_bound", (bound & valid).sum())
            self.add("ratio_tokens", valid.sum())
        else:
            bound = (event.logprobs.double() - event.reference_logprobs.double()).abs() >= 20
            self.add("kl_bound", (bound & valid).sum())
            self.add("kl_tokens", valid.sum())

    def judge(self, readings: Readings) -> Iterator[Breach]:
        self._window.append(tuple(readings[name] for name in self.sums))
        ratio_bound, ratio_tokens, kl_bound, kl_tokens = map(sum, zip(*self._window, strict=True))
        for bound, tokens, what, key in (
            (ratio_bound, ratio_tokens, "|new - old| is 20 nats or more", "ratio"),
            (kl_bound, kl_tokens, "|log p - log ref| is 20 nats or more", "kl"),
        ):
            if bound >= self.FEWEST and bound > self.SHARE * tokens:
                yield Breach(
                    f"{what} at {bound:,.0f} of {tokens:,.0f} tokens of the last {len(self._window)} steps, a"
                    f" share of {bound / tokens:.2g}: a clamp there takes the gradient away",
                    value=bound / tokens,
                    limit=self.SHARE,
                    key=key,
                )

    def state_dict(self) -> dict[str, Any]:
        return {"window": [list(entry) for entry in self._window]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._window = deque((tuple(entry) for entry in state["window"]), maxlen=self.WINDOW)


class LoggedKL(Invariant):
    """What `guard.step(kl=...)` is told equals the same estimator, mask and reduction of the KL that the loop
    computed by `guard.kl`.

    Loops reduce in several right ways (over tokens, over sequences, means of micro-batches), and a loop may log
    the KL of its minibatches and have computed another one at the rollout. So a difference is reported only
    when the logged figure *is* something else that can be named, three steps in a row: another estimator,
    another unit, the other sign, a mean over padding, a KL times its coefficient, or what the penalty leaves of the
    reward.
    """

    code = "KLG834"
    watches = (KL, Rewards, StepEnd)
    sums = (
        "shaped", "shaped_rows", "tokens", "positions", "sequences", "rows", "calls", "half",
        "logged", "logs", "coefficient", "per_token", "per_sequence",
        *(
            f"{name}.{part}"
            for name in ESTIMATORS
            for part in ("claims", "computed", "sum", "spread", "unmasked", "rows", "calls")
        ),
    )  # fmt: skip
    CLOSE, ROUNDED, STEPS = 1e-4, 4e-3, 3

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._in_a_row: dict[str, int] = {}

    def measure(self, event: Event) -> None:
        if isinstance(event, StepEnd):
            self._measure_log(event)
            return
        if isinstance(event, Rewards):
            if event.token_rewards is not None and event.mask is not None:
                self.add("shaped", kept(event.token_rewards, event.mask))
                self.add("shaped_rows", float(len(event.token_rewards)))
            return
        valid = valid_tokens(event.mask)
        lengths = valid.sum(1)
        self.add("tokens", lengths.sum())
        self.add("positions", float(valid.numel()))
        self.add("sequences", (lengths > 0).sum())
        self.add("rows", float(valid.shape[0]))
        self.add("calls", (lengths.sum() > 0).double())
        if event.estimator in ESTIMATORS:  # the exact KL, too, is handed over by loops
            self.add(f"{event.estimator}.computed", 1.0)
        everywhere = torch.ones_like(valid)
        for name in ESTIMATORS:
            values = estimate(event.logprobs.double(), event.reference_logprobs.double(), estimator=name)
            inside = kept(values, valid)
            self.add(f"{name}.sum", inside.sum())
            self.add(f"{name}.spread", inside.abs().sum())
            self.add(f"{name}.unmasked", kept(values, everywhere).sum())
            self.add(f"{name}.rows", (inside.sum(1) / lengths.clamp(min=1)).sum())
            self.add(f"{name}.calls", inside.sum() / lengths.sum().clamp(min=1))

    def _measure_log(self, event: StepEnd) -> None:
        if event.kl is None or event.kl_estimator not in (None, *ESTIMATORS):
            return
        if event.kl_estimator is not None:
            self.add(f"{event.kl_estimator}.claims", 1.0)
        self.add("logged", scalar(event.kl))
        self.add("logs", 1.0)
        for unit in UNITS:
            self.add(f"per_{unit}", float(event.kl_unit in (unit, None)))
        coefficient = self.run.kl_coef if event.kl_coef is None else event.kl_coef
        self.add("coefficient", 0.0 if coefficient is None else scalar(coefficient))
        half = isinstance(event.kl, Tensor) and event.kl.dtype in (torch.bfloat16, torch.float16)
        self.add("half", float(half))

    def judge(self, readings: Readings) -> Iterator[Breach]:
        logs, tokens = readings["logs"], readings["tokens"]
        if not logs or not tokens:
            return
        self.exercised = True
        logged = readings["logged"] / logs
        # by the readings, for one rank alone may log
        said = [name for name in ESTIMATORS if readings[f"{name}.claims"]]
        names = said or [name for name in ESTIMATORS if readings[f"{name}.computed"]]
        units = [unit for unit in UNITS if readings[f"per_{unit}"]]
        close = self.ROUNDED if readings["half"] else self.CLOSE

        def near(figure: float, floor: float) -> bool:
            return abs(logged - figure) <= close * max(abs(figure), floor) + 1e-6

        wrong = {}
        counts = {"token": readings["tokens"], "sequence": readings["sequences"]}
        if not any(
            near(figure, readings[f"{name}.spread"] / counts[unit])
            for name in names
            for unit in units
            for figure in self._right(readings, name, unit)
        ):
            for figure, what, key in self._wrong(readings, names, units, readings["coefficient"] / logs):
                if near(figure, 0.0) and abs(figure) > 1e-5:
                    wrong.setdefault(key, what)
        # a different but right figure comes within 1e-4 of one of these once in a thousand steps
        self._in_a_row = {key: self._in_a_row.get(key, 0) + 1 for key in wrong}
        for key in [key for key, count in self._in_a_row.items() if count >= self.STEPS][:1]:
            own = self._right(readings, names[0], units[0])[0]
            yield Breach(
                f"the KL that is logged, {logged:.4g}, is {wrong[key]}, for {self.STEPS} steps; {names[0]} of the"
                f" same tokens is {own:.4g} nats per {units[0]}",
                value=logged,
                limit=own,
                key=key,
            )

    @staticmethod
    def _right(readings: Readings, name: str, unit: str) -> list[float]:
        """The right means of an estimator, the usual one first."""
        total, sequences = readings[f"{name}.sum"], readings["sequences"]
        if unit == "sequence":
            return [total / sequences, total / readings["rows"]]
        by_row, by_call = readings[f"{name}.rows"], readings[f"{name}.calls"]
        return [
            total / readings["tokens"],
            by_row / sequences,
            by_row / readings["rows"],
            by_call / readings["calls"],
        ]

    def _wrong(
        self, readings: Readings, names: list[str], units: list[str], coefficient: float
    ) -> Iterator[tuple[float, str, str]]:
        """Figures that are something else, what they are, and a short name."""
        if readings["shaped_rows"] and coefficient:
            what = "the reward that is left after the penalty"
            yield readings["shaped"] / readings["shaped_rows"], f"{what}, per sequence", "shaped"
            yield readings["shaped"] / readings["tokens"], f"{what}, per token", "shaped"
        for unit in units:
            for other in (one for one in ESTIMATORS if one not in names):
                for figure in self._right(readings, other, unit):
                    yield figure, f"the mean of {other} per {unit}, not of {names[0]}", other
        for name in names:
            for other in (one for one in UNITS if one not in units):
                for figure in self._right(readings, name, other):
                    yield figure, f"a mean per {other}", "unit"
            for unit in units:
                for figure in self._right(readings, name, unit):
                    yield -figure, "the mean with the other sign, log ref - log p", "sign"
                    if coefficient not in (0.0, 1.0):
                        yield (
                            figure * coefficient,
                            f"the KL times its coefficient {coefficient:g}",
                            "coefficient",
                        )
                unmasked = readings[f"{name}.unmasked"]
                count = readings["positions"] if unit == "token" else readings["rows"]
                yield unmasked / count, "a mean that takes in padding", "padding"
            yield readings[f"{name}.sum"] / readings["positions"], "a mean diluted by padding", "padding"
            parts = readings["calls"] / world()
            for unit in units if parts >= 2 else ():
                for figure in self._right(readings, name, unit):
                    number = f"the number of micro-batches, {parts:g}"
                    yield figure / parts, f"the mean divided once more by {number}", "divided"
                    yield figure * parts, f"the mean times {number}", "added"
            yield readings[f"{name}.sum"], "a sum over all sequences", "sum"

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": dict(self._in_a_row)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._in_a_row = dict(state["in_a_row"])
