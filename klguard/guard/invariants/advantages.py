"""KLG821 and KLG824: whitened advantages, and the recursion they come from."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from klguard.findings import Severity
from klguard.guard.events import Advantages, Event, Preflight
from klguard.guard.invariants.invariant import HALF, Breach, Invariant
from klguard.guard.invariants.measuring import home, kept
from klguard.guard.kl import valid_tokens
from klguard.guard.ledger import Readings


class WhitenedAdvantages(Invariant):
    """Over all valid tokens of a step, on all ranks, or over sequences where each has one advantage.

    Whitening by rank, by call or as a whole, with the biased or the unbiased variance, all pass: the pooled
    variance is then between (n - calls) / n and 1. A spread below 1 also comes from the epsilon of the
    division when the advantages are tiny; so it is judged only where the ones before whitening are known and
    are not. Values other than 0 at padding are a warning: most loops mask their loss again.
    """

    code = "KLG821"
    watches = (Advantages,)
    sums = (
        "calls", "padding", "half",
        "tokens", "total", "squares", "rows", "row_total", "row_squares", "raw_tokens", "raw", "raw_squares",
    )  # fmt: skip

    def measure(self, event: Event) -> None:
        if not event.whitened:
            return
        self.exercised = True
        valid, values = valid_tokens(event.mask), event.advantages
        some = valid.any(1)
        self.add("calls", some.any().double())
        self.add("half", float(values.dtype in HALF))
        if values.dim() == 1:
            one = torch.where(some & values.isfinite(), values.double(), 0.0)
            self.add("rows", some.sum())
            self.add("row_total", one.sum())
            self.add("row_squares", one.square().sum())
            values = values[:, None].expand(valid.shape)
        else:
            self.add("padding", ((values != 0) & ~valid).sum())
        inside = kept(values, valid)
        self.add("tokens", valid.sum())
        self.add("total", inside.sum())
        self.add("squares", inside.square().sum())
        if event.raw is not None and event.raw.shape == valid.shape:
            raw = kept(event.raw, valid)
            self.add("raw_tokens", valid.sum())
            self.add("raw", raw.sum())
            self.add("raw_squares", raw.square().sum())

    def judge(self, readings: Readings) -> Iterator[Breach]:
        faults = [self._fault(readings, "tokens", "total", "squares", "valid tokens")]
        if readings["rows"]:
            faults.append(self._fault(readings, "rows", "row_total", "row_squares", "sequences"))
        if all(faults):
            message, value, limit = faults[-1]
            yield Breach(message, value=value, limit=limit, key="spread")
        if readings["padding"]:
            yield Breach(
                f"whitened advantages are not 0 at {readings['padding']:,.0f} positions outside the mask; that is"
                " harmless only where the loss is masked as well",
                value=readings["padding"],
                limit=0.0,
                key="padding",
                severity=Severity.WARNING,
                help="multiply the advantages by the mask after whitening",
            )

    def _fault(
        self, readings: Readings, count: str, total: str, squares: str, what: str
    ) -> tuple[str, float, float] | None:
        n = readings[count]
        if n < 2:
            return None
        mean = readings[total] / n
        deviation = math.sqrt(max(readings[squares] / n - mean**2, 0.0))
        raw = self._spread_before(readings)
        if (deviation < 0.05) if raw is None else (raw < 0.02):
            return None  # no spread to whiten: a constant reward, whose rounding is blown up
        limit = 1e-2 if readings["half"] else 1e-3
        if abs(mean) > limit:
            return (
                f"whitened advantages have mean {mean:.3g} and standard deviation {deviation:.3g} over"
                f" {n:,.0f} {what}; the mean has to be 0",
                mean,
                limit,
            )
        lowest = math.sqrt(max(n - readings["calls"], 0.0) / n) - 1e-2
        if deviation > 1 + 1e-2 or (raw is not None and deviation < lowest):
            return (
                f"whitened advantages have standard deviation {deviation:.3g} over {n:,.0f} {what}; it has to be 1",
                deviation,
                1.0,
            )
        return None

    @staticmethod
    def _spread_before(readings: Readings) -> float | None:
        n = readings["raw_tokens"]
        if not n:
            return None
        return math.sqrt(max(readings["raw_squares"] / n - (readings["raw"] / n) ** 2, 0.0))


def generalised_advantages(deltas: Tensor, decay: float) -> Tensor:
    """sum over l of decay^l * delta_(t+l), (B, T) float64: GAE (Schulman et al. 2016) without a loop over time,
    by doubling the length of the sum log2(T) times."""
    total, shift = deltas, 1
    while shift < deltas.shape[1]:
        later = torch.nn.functional.pad(total[:, shift:], (0, shift))
        total = total + decay * later
        decay, shift = decay * decay, 2 * shift
    return total


class GAETerminal(Invariant):
    """The recursion of up to 2^18 tokens of a call is done again in float64, with the value after the last
    valid token 0. Only rows that ended before the batch did are judged: one that was cut off at full length
    may well be bootstrapped from a value that the guard does not know.

    Where a tool wrote, the recursion goes on from one sampled token to the next. Rows with such holes are judged only
    where the loop's figures are those of something else that is known: tool tokens taken for steps of their own, a
    warning, or the sum begun anew at each hole, so that what comes behind a tool is not credited before it.
    Needs rewards and values as they entered the recursion, gamma and lam, and the raw advantages or returns. Returns
    without values are sums of later rewards, each times a power of gamma.

    Returns are advantages before whitening plus values. Where the ones before whitening are told as well, returns that
    are the whitened ones plus values, at every valid token, are a warning: the value head is taught another scale.

    Before training, the loop's own function must not let values at padding change advantages inside the mask.
    A function that does not look at the mask at all is left alone: its values may have been masked before.
    """

    code = "KLG824"
    watches = (Advantages, Preflight)
    sums = (
        "rows", "wrong", "half", "padded", "returned", "not_whitened", "not_raw", "holed", "through", "anew",
    )  # fmt: skip
    maxima = ("error",)
    BUDGET, EXACT, HALF = 2**18, 1e-4, 3e-2
    TOKENS = 16

    def measure(self, event: Event) -> None:
        if isinstance(event, Preflight):
            return
        self._compare_returns(event)
        if event.rewards is None or event.gamma is None:
            return
        values, raw, lam = event.values, event.raw, event.lam
        if values is None and event.returns is not None and event.returns.shape == event.rewards.shape:
            values, raw, lam = torch.zeros_like(event.returns), event.returns, 1.0
        elif values is not None and raw is None and event.returns is not None:
            raw = event.returns.double() - values.double()
        if values is None or lam is None or raw is None or raw.dim() != 2:
            return
        self.exercised = True
        rows = max(1, self.BUDGET // max(1, raw.shape[1]))
        start = self.run.step * rows % max(1, raw.shape[0])
        part = slice(start, start + rows)
        tensors = (raw[part], event.rewards[part], values[part])
        half = any(one.dtype in HALF for one in tensors)
        self.add("half", float(half))
        valid = valid_tokens(event.mask[part])
        limit = self.HALF if half else self.EXACT
        self._compare(*tensors, valid, event.gamma, lam, limit)
        self._compare_with_holes(*tensors, valid, event.gamma, lam, limit)

    def _compare_returns(self, event: Advantages) -> None:
        """Count the valid tokens at which returns minus values are not the whitened advantages, and not the raw ones."""
        if not event.whitened or event.returns is None or event.values is None or event.raw is None:
            return
        tensors = (event.returns, event.values, event.advantages, event.raw)
        valid = valid_tokens(event.mask)
        if any(one.shape != valid.shape or one.dtype in HALF for one in tensors):
            return
        self.exercised = True
        returns, values, whitened, raw = (kept(one, valid) for one in tensors)
        limit = self.EXACT * (1 + values.abs() + whitened.abs())
        self.add("returned", valid.sum())
        self.add("not_whitened", (((returns - values - whitened).abs() > limit) & valid).sum())
        self.add("not_raw", (((returns - values - raw).abs() > 10 * limit) & valid).sum())

    def _compare(
        self,
        raw: Tensor,
        rewards: Tensor,
        values: Tensor,
        valid: Tensor,
        gamma: float,
        lam: float,
        limit: float,
    ) -> None:
        lengths = valid.sum(1, keepdim=True)
        places = torch.arange(valid.shape[1], device=valid.device)
        judged = (valid == (places < lengths)).all(1) & (lengths[:, 0] > 0) & (lengths[:, 0] < valid.shape[1])
        everywhere = torch.ones_like(valid)
        raw, rewards, values = (kept(one, everywhere) for one in (raw, rewards, values))
        inside = torch.where(valid, values, 0.0)
        following = torch.nn.functional.pad(inside[:, 1:], (0, 1))
        right = generalised_advantages(
            torch.where(valid, rewards + gamma * following - inside, 0.0), gamma * lam
        )
        scale = torch.where(valid, right.abs() + inside.abs(), 0.0).amax(1).clamp(min=1)
        error = torch.where(valid, (raw - right).abs(), 0.0).amax(1) / scale
        wrong = judged & (error > limit)
        self.add("rows", judged.sum())
        self.add("wrong", wrong.sum())
        self.highest("error", torch.where(judged, error, 0.0))
        # what comes out when the recursion takes the values at padding for real
        next_padded = torch.nn.functional.pad(values[:, 1:], (0, 1))
        once = generalised_advantages(
            torch.where(valid, rewards + gamma * next_padded - values, 0.0), gamma * lam
        )
        through = generalised_advantages(rewards + gamma * next_padded - values, gamma * lam)
        near = 1e-3 * scale
        for padded in (once, through):
            close = torch.where(valid, (raw - padded).abs(), 0.0).amax(1) < near
            self.add("padded", (close & wrong).sum())

    def _compare_with_holes(
        self,
        raw: Tensor,
        rewards: Tensor,
        values: Tensor,
        valid: Tensor,
        gamma: float,
        lam: float,
        limit: float,
    ) -> None:
        place = torch.arange(valid.shape[1], device=valid.device)
        span = (valid.cumsum(1) > 0) & (valid.flip(1).cumsum(1).flip(1) > 0)
        judged = (span & ~valid).any(1) & ~valid[:, -1]
        raw, rewards, values = (kept(one, torch.ones_like(valid)) for one in (raw, rewards, values))

        def recursion(rewards: Tensor, values: Tensor, steps: Tensor) -> Tensor:
            inside = torch.where(steps, values, 0.0)
            following = torch.nn.functional.pad(inside[:, 1:], (0, 1))
            return generalised_advantages(
                torch.where(steps, rewards + gamma * following - inside, 0.0), gamma * lam
            )

        order = (
            (~valid).to(torch.uint8).argsort(dim=1, stable=True)
        )  # the sampled tokens, one after the other
        packed = recursion(*(one.gather(1, order) for one in (rewards, values, valid)))
        right = torch.zeros_like(packed).scatter(1, order, packed)
        through = recursion(rewards, values, span)
        own = recursion(torch.where(valid, rewards, 0.0), values, valid)
        hole = torch.where(valid, valid.shape[1], place).flip(1).cummin(1).values.flip(1)  # the next one
        behind = torch.nn.functional.pad(own, (0, 1)).gather(1, hole)
        anew = own - (gamma * lam) ** (hole - place) * behind
        scale = torch.where(valid, right.abs() + values.abs(), 0.0).amax(1).clamp(min=1)

        def apart(other: Tensor) -> Tensor:
            return torch.where(valid, (raw - other).abs(), 0.0).amax(1) / scale

        wrong = judged & (apart(right) > 10 * limit)
        self.add("holed", judged.sum())
        self.add("through", (wrong & (apart(through) < limit)).sum())
        self.add("anew", (wrong & (apart(anew) < limit) & (apart(through) >= limit)).sum())

    def judge(self, readings: Readings) -> Iterator[Breach]:
        yield from self._judge_holes(readings)
        tokens, not_raw = readings["returned"], readings["not_raw"]
        if tokens >= self.TOKENS and not readings["not_whitened"] and not_raw > tokens / 2:
            yield Breach(
                f"the returns are the whitened advantages plus the values at all {tokens:,.0f} valid tokens, and not"
                f" those before whitening, from which they differ at {not_raw:,.0f}",
                value=not_raw,
                limit=0.0,
                key="returns",
                severity=Severity.WARNING,
                help="make the returns, advantages + values, before the advantages are whitened",
            )
        if not readings["wrong"]:
            return
        why = ""
        if readings["padded"] >= readings["wrong"] / 2:
            why = "; the loop's own figures come out when the values at padding are taken for real"
        yield Breach(
            f"advantages are not those of the recursion in float64 in {readings['wrong']:,.0f} of"
            f" {readings['rows']:,.0f} rows, by up to {readings['error']:.3g} of the row's largest{why}",
            value=readings["error"],
            limit=self.HALF if readings["half"] else self.EXACT,
            key="recursion",
        )

    @staticmethod
    def _judge_holes(readings: Readings) -> Iterator[Breach]:
        holed = readings["holed"]
        if readings["anew"]:
            yield Breach(
                f"in {readings['anew']:,.0f} of {holed:,.0f} rows with tokens that nobody sampled in their midst, the"
                " sum of rewards begins anew there: what comes behind them is not credited to what comes before",
                value=readings["anew"],
                limit=0.0,
                key="anew",
                help="carry the sum over tool tokens, and set it to 0 behind the last token of a row alone",
            )
        if readings["through"]:
            yield Breach(
                f"in {readings['through']:,.0f} of {holed:,.0f} rows with tokens that nobody sampled in their midst, the"
                " recursion takes these for steps of their own: their values and their number change the credit",
                value=readings["through"],
                limit=0.0,
                key="through",
                severity=Severity.WARNING,
                help="go from one sampled token to the next, with its value as the next value",
            )

    def inspect(self, event: Event) -> Iterator[Breach]:
        if not isinstance(event, Preflight) or event.gae is None:
            return
        rewards = torch.tensor([[0.1, -0.2, 1.0, 0.0, 0.0], [0.3, 1.0, 0.0, 0.0, 0.0]])
        values = torch.tensor([[0.5, 0.4, 0.3, 0.0, 0.0], [0.2, 0.6, 0.0, 0.0, 0.0]])
        mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]], dtype=torch.bool)
        rewards, values, mask = (one.to(home(self.run.policy)) for one in (rewards, values, mask))
        loud = torch.where(mask, values, 7.0)
        with torch.no_grad():
            clean = self._called(event, rewards, values, mask)
            masked = self._called(event, rewards, loud, mask)
            unmasked = self._called(event, rewards, loud, torch.ones_like(mask))
        self.exercised = True
        if torch.equal(masked, unmasked):
            return
        change = float(torch.where(mask, (masked - clean).abs(), torch.zeros_like(clean)).max())
        if change > self.EXACT:
            yield Breach(
                f"values at padding change the advantages of valid tokens: by {change:.3g} when they go from 0 to 7",
                value=change,
                limit=self.EXACT,
                key="padding",
            )

    @staticmethod
    def _called(event: Preflight, rewards: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """The loop's advantages (B, T); of a function that returns more than one thing, the first."""
        try:
            answer = event.gae(rewards.clone(), values.clone(), mask.clone())
        except RuntimeError:  # 1 - mask, which torch does not do with booleans
            answer = event.gae(rewards.clone(), values.clone(), mask.float())
        return answer[0] if isinstance(answer, (tuple, list)) else answer
