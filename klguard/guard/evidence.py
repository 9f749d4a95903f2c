"""The evidence that tokens did not come from the policy that scored them, and what they came from instead.

Per tested token and component, g = log((1 - delta) L + delta) - log(1 + eps), L = q(x) / p(x) as defined in
`klguard.guard.hypotheses`, or log L - log(1 + eps) for exact components. The sums of a step are made on the
device, added over ranks, and copied once; then a mixture over start times (`klguard.guard.start_times`) and
over components, with prior weights fixed before the run, gives one number. Under pure sampling it is a
non-negative supermartingale that starts at 1: the probability that its log ever reaches ln(1/alpha) is at
most alpha, over the whole run, at any stopping time and whatever the dependence between tokens (Ville 1939;
Ramdas, Grunwald, Vovk and Shafer 2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from klguard.guard.bank import default_bank
from klguard.guard.banned import CEILING, BannedTokens, named
from klguard.guard.hypotheses import GivenLogProbs, Hypothesis, pit_interval
from klguard.guard.rows import Rows, constants
from klguard.guard.start_times import StartTimes
from klguard.guard.vocabulary import DEFAULT_BUDGET

__all__ = ["BannedTokens", "Evidence", "StartTimes"]

PIT_BINS = 20
PIT_PRIOR = 0.01
PIT_SMOOTHING = 5.0
"""Tokens' worth of uniform counts in each bin of the adaptive bet, before it has seen any."""
PIT_MEMORY = 0.9
"""Share of the adaptive bet's counts that is kept from one step to the next."""
BANNED_PRIOR = 0.05

FIGURES = 10
"""Sums beside the components': surplus, its squares, how many; how far the engine's log-probs are from those at the
position before and from the scored ones, and the same with the position after; the tokens' own surplus and its
squares; the entropy of the tested rows."""
SURPLUS_ERRORS, SURPLUS_NATS = 4.0, 0.1
"""How far the mean surplus may be from 0, in standard errors plus nats, when the logits really are one off."""
OWN_ERRORS, OWN_SHARE = 2.0, 0.5
"""How far the mean of the tokens' own surplus is below 0 then at least, in standard errors; and what share of it the
other, with its standard error, may be."""

FITS = 0.2
"""A neighbouring position explains the engine's log-probs when it leaves at most this share of their distance
from the scored ones (the share of `klguard.guard.rescoring`)."""
FARTHEST = 20.0
"""Nats at which the distance of two log-probs of a token is cut: one token of probability 0 must not decide."""

FLOOR = -1000.0
"""Smallest log-ratio of one token, nats: keeps sums finite, and e^-1000 is 0 to every digit that is kept."""

WHY_BLIND = {
    "log_probs": "needs the policy's logits",
    "context": "needs context_ids, the tokens before the response",
    "prompt": "needs context_ids, the tokens before the response",
    "eos": "needs eos_token_id",
    "reference": "needs the reference's log-probs",
    "sampler": "the engine's log-probs were not given",
    "stale": "needs the log-probs under the previous weights",
    "earlier": "needs the logits of the position before",
    "later": "needs the logits of the position after",
}

WHY_CLOSED = "some rows of the rollouts were dropped before the policy scored them"


class Evidence:
    """The bank of hypotheses, its sums, and the mixture.

    bank: hypotheses, `default_bank()` if None. To them come the adaptive bet on the PIT histogram (named
    `pit`) and every banned token. delta: see above. vocabulary: size of the vocabulary, else taken from the
    first rows. eos: ids that end a response, used for rows that carry none. alpha: the level at which
    diagnostics begin to take part in naming the cause; it does not enter the evidence. aligned: to be set once the
    scored logits are known to stand at the right positions; then no shift is named, whatever its weight.

    Use: `gather` for each chunk of rows, or `gather_scalars` where there are no logits (never both for the
    same tokens); at the end of a step sum `pending` and `pending_banned` over ranks, give the second to
    `advance_banned`, then copy the first and the result of that to the host for `advance`.
    """

    def __init__(
        self,
        *,
        bank: Sequence[Hypothesis] | None = None,
        delta: float = 0.02,
        vocabulary: int | None = None,
        eos: Sequence[int] | None = None,
        alpha: float = 1e-6,
    ) -> None:
        if not 0.0 < delta < 1.0:
            raise ValueError(f"delta={delta} must lie strictly between 0 and 1")
        if not 0.0 < alpha < 1.0:
            raise ValueError(f"alpha={alpha} must lie strictly between 0 and 1")
        self.bank = tuple(bank) if bank is not None else default_bank()
        if not any(h.valid for h in self.bank):
            raise ValueError("the bank has no hypothesis that counts as evidence: give it at least one")
        self.delta = delta
        self.alpha = alpha
        self.eos = tuple(float(int(token)) for token in eos) if eos is not None else None
        self.names = (*(name for h in self.bank for name in h.names), "pit")
        self._log_prior, self._log_banned_prior, self._log_naming = self._priors()
        self._exact = tuple(float(h.exact) for h in self.bank for _ in h.names)
        self._mixture = StartTimes(len(self.names))
        self._vocabulary = vocabulary
        self._pending: Tensor | None = None
        self._banned: BannedTokens | None = None
        self._banned_summary = (0.0, 0.0, 0)
        self._pit_counts = torch.zeros(PIT_BINS, dtype=torch.float64)
        self._density: Tensor | None = None
        self._seen: set[str] = set()
        self._under_way = 0
        self._neighbours = (0.0,) * (FIGURES - 1)
        self.aligned = False
        self.closed = False
        self.entropy: float | None = None
        self.tokens = 0
        self.nonfinite = 0

    def _priors(self) -> tuple[Tensor, float, Tensor]:
        """(C,) log prior in the evidence (-inf for diagnostics), that of banned tokens, and (C,) log prior
        for naming, in which diagnostics have their own and usual values of a setting a larger one."""
        shares = [h.prior * w / sum(h.weights) for h in self.bank for w in h.weights]
        valid = [h.valid for h in self.bank for _ in h.weights] + [True]
        usual = [h.prior * w / sum(h.naming) for h in self.bank for w in h.naming]
        every, naming = (torch.tensor([*one, PIT_PRIOR], dtype=torch.float64) for one in (shares, usual))
        counted = torch.where(torch.tensor(valid), every, 0.0)
        total = float(counted.sum()) + BANNED_PRIOR
        return (counted / total).log(), math.log(BANNED_PRIOR / total), (naming / total).log()

    # Sums of a step, on the device

    @property
    def width(self) -> int:
        """Length of `pending`: components, PIT counts, figures, tested tokens, rows that could not be tested."""
        return len(self.names) + PIT_BINS + FIGURES + 2

    @property
    def pending(self) -> Tensor:
        """(width,) float64 sums of this step, on the device of the rows:
        [log-ratio of every component | PIT counts | figures | tested tokens | valid rows with NaN or +inf]."""
        if self._pending is None:
            return torch.zeros(self.width, dtype=torch.float64)
        return self._pending

    @property
    def pending_banned(self) -> Tensor | None:
        """(W,) float64 sums of this step for single tokens; None until the vocabulary is known."""
        return self._banned.pending if self._banned is not None else None

    def take_pending(self) -> tuple[Tensor, Tensor | None]:
        """`pending` and `pending_banned` of the step that ends; sums of the next one start from zero. For a
        caller whose `advance` comes later, when the next step is under way."""
        taken = self.pending, self.pending_banned
        if self._pending is not None:
            self._pending = torch.zeros_like(self._pending)
        if self._banned is not None:
            self._banned.pending = torch.zeros_like(self._banned.pending)
        self._under_way += 1
        return taken

    def discard(self) -> None:
        """Forget the sums of the step that is going on."""
        self.take_pending()
        self._under_way -= 1

    def place(self, device: torch.device | str, vocabulary: int | None = None) -> None:
        """Fix the device, and the vocabulary where known, before there are rows: a rank without any must
        still take part in the sums. ValueError if the vocabulary differs from the one in use."""
        device = torch.device(device)
        if self._pending is None:
            self._pending = torch.zeros(self.width, dtype=torch.float64, device=device)
        elif self._pending.device.type == "cpu" != device.type:
            # restored from a state, or placed before the first rows
            self._pending = self._pending.to(device, non_blocking=True)
            if self._banned is not None:
                self._banned.move(device)
        vocabulary = vocabulary if vocabulary is not None else self._vocabulary
        if vocabulary is None:
            return
        if self._vocabulary not in (None, vocabulary):
            raise ValueError(
                f"logits over {vocabulary} tokens, but this run began with {self._vocabulary}: "
                "use one guard for each vocabulary"
            )
        self._vocabulary = vocabulary
        if self._banned is None:
            self._banned = BannedTokens(vocabulary, self._pending.device, self.delta)

    @torch.inference_mode(False)
    @torch.no_grad()
    def gather(self, rows: Rows, *, eps: float, budget: int = DEFAULT_BUDGET) -> None:
        """Add a chunk of rows to the sums of this step, on the device. eps: tolerance per token, nats.
        budget: bytes of temporaries; a chunk that needs more is taken in pieces."""
        log1p_eps = _log1p(eps)
        device = rows.log_probs.device
        if rows.eos is None and self.eos:
            rows = replace(rows, eos=constants(self.eos, device).to(torch.int64))
        self.place(device, rows.vocabulary)
        self._seen.update(h.needs for h in self.bank if getattr(rows, h.needs) is not None)
        for piece in rows.pieces(budget):
            self._gather_piece(piece, log1p_eps)

    def _gather_piece(self, rows: Rows, log1p_eps: float) -> None:
        assert self._banned is not None
        ratios = [h.log_ratio(rows).expand(-1, len(h.names)) for h in self.bank]
        overlap = _overlap(*pit_interval(rows))
        ratios.append((overlap @ self._density_on(overlap.device)).log().unsqueeze(1))
        gains = self._gains(torch.cat(ratios, 1), rows.usable, log1p_eps)
        counts = torch.where(rows.usable.unsqueeze(1), overlap, 0.0).sum(0)
        self._add(gains, counts, self._figures(rows), rows.usable.sum(), rows.unusable)
        self._banned.add(rows, log1p_eps)

    @torch.inference_mode(False)
    @torch.no_grad()
    def gather_scalars(
        self,
        *,
        logprob: Tensor,
        valid: Tensor,
        reference: Tensor | None = None,
        sampler: Tensor | None = None,
        stale: Tensor | None = None,
        eps: float,
    ) -> None:
        """Add tokens of which only log-probs are known (one shape for all): the components `reference`,
        `sampler` and `stale`. All other components say nothing about these tokens."""
        log1p_eps = _log1p(eps)
        logprob = logprob.detach().flatten()
        valid = valid.flatten().to(torch.bool)
        given = {"reference": reference, "sampler": sampler, "stale": stale}
        self.place(logprob.device)
        self._seen.update(name for name, value in given.items() if value is not None)
        usable = valid & ~(logprob.isnan() | (logprob == math.inf))
        ratios = logprob.new_full((logprob.numel(), len(self.names)), math.nan, dtype=torch.float64)
        column = 0
        for h in self.bank:
            if isinstance(h, GivenLogProbs):
                value = given.get(h.needs)
                flat = value.detach().flatten() if value is not None else None
                ratios[:, column : column + 1] = h.from_log_probs(flat, logprob)
            column += len(h.names)
        gains = self._gains(ratios, usable, log1p_eps)
        self._add(
            gains, gains.new_zeros(PIT_BINS), gains.new_zeros(FIGURES), usable.sum(), (valid & ~usable).sum()
        )

    def _gains(self, ratios: Tensor, usable: Tensor, log1p_eps: float) -> Tensor:
        """(C,) float64 sum over rows of g, from log L of shape (n, C)."""
        exact = constants((*self._exact, 0.0), ratios.device) > 0
        mixed = torch.logaddexp(
            ratios + math.log1p(-self.delta), torch.full_like(ratios[:1], math.log(self.delta))
        )
        gains = torch.where(exact, ratios, mixed).clamp_(FLOOR, CEILING) - log1p_eps
        return torch.where(ratios.isnan() | ~usable.unsqueeze(1), 0.0, gains).sum(0)

    def _add(self, gains: Tensor, counts: Tensor, figures: Tensor, tested: Tensor, unusable: Tensor) -> None:
        assert self._pending is not None
        sums = torch.cat([gains, counts, figures, torch.stack([tested, unusable]).to(torch.float64)])
        self._pending += sums.to(self._pending.device, non_blocking=True)

    @staticmethod
    def _figures(rows: Rows) -> Tensor:
        """(FIGURES,) sums: surplus, its square, rows that have one, four distances, own surplus, its square, entropy.

        The surplus of a row is log p_t(x_{t-1}) + H(p_t): what the logits say of the token before them, measured
        against what they say of their own draws. Its mean is 0 when x_{t-1} was drawn from p_t, which is what
        `shift+1` claims. It is not when a policy merely likes to repeat itself. The row's own surplus is that of x_t,
        for the same rows: its mean is far below 0 when x_t was drawn from other logits, as a shift claims too.

        The distances, in nats, are |log p_{t-1}(x_t) - s_t| and |log p_t(x_t) - s_t| where both are known, and the
        same with p_{t+1}, where s is the log-prob that the engine reported.
        """
        entropy = torch.where(rows.usable, rows.entropy, 0.0).sum()[None]
        surplus, own = entropy.new_zeros(3), entropy.new_zeros(2)
        if rows.before is not None:
            told = rows.usable & rows.before.isfinite()
            each = torch.where(told, rows.before.to(torch.float64) + rows.entropy, 0.0)
            surplus = torch.stack([each.sum(), each.square().sum(), told.sum().to(torch.float64)])
            each = rows.log_prob.to(torch.float64).clamp(min=-FARTHEST) + rows.entropy
            each = torch.where(told, each, 0.0)
            own = torch.stack([each.sum(), each.square().sum()])
        apart = [_apart(rows, one) for one in (rows.earlier, rows.later)]
        return torch.cat([surplus, *apart, own, entropy])

    def _density_on(self, device: torch.device) -> Tensor:
        """(PIT_BINS,) the adaptive bet of this step, fixed by the counts of previous steps; its mean is 1."""
        if self._density is None or self._density.device != device:
            smoothed = self._pit_counts + PIT_SMOOTHING
            self._density = (smoothed / smoothed.mean()).to(device, non_blocking=True)
        return self._density

    # End of a step, on the host

    @torch.inference_mode(False)
    @torch.no_grad()
    def advance_banned(self, increments: Tensor) -> Tensor:
        """(3,) float64 on the device: log of the mean over the vocabulary of the banned-token components,
        the largest of them (nats) and its id. increments: (W,) `pending_banned` summed over ranks. Once a
        step, before `advance`; clears `pending_banned`."""
        if self._banned is None or increments.shape != self._banned.pending.shape:
            raise ValueError(
                f"{tuple(increments.shape)} sums for a vocabulary of {self._vocabulary}: "
                "give pending_banned, summed over ranks"
            )
        return self._banned.advance(self.step + max(1, self._under_way), increments)

    def close(self) -> None:
        """Count nothing from now on: tokens are known only of rows that were chosen, perhaps by what they say, and in
        such a choice the mean of a likelihood ratio is not at most 1. What was counted before stays."""
        self.closed = True

    def advance(self, totals: Tensor, banned: tuple[float, float, float] | None = None) -> None:
        """End a step. totals: (width,) `pending` summed over ranks, on the host. banned: what
        `advance_banned` returned, on the host. Clears `pending`."""
        totals = torch.as_tensor(totals, dtype=torch.float64).detach()
        if self.closed:
            totals, banned = torch.zeros_like(totals), None
        if totals.shape != (self.width,):
            raise ValueError(f"sums of shape {tuple(totals.shape)}, expected ({self.width},): give `pending`")
        components = len(self.names)
        self._mixture.advance(totals[:components])
        counts = totals[components : components + PIT_BINS].cpu()
        self._pit_counts = PIT_MEMORY * self._pit_counts + counts
        self._density = None
        *seen, entropy = totals[components + PIT_BINS : components + PIT_BINS + FIGURES].tolist()
        self._neighbours = tuple(
            PIT_MEMORY * old + new for old, new in zip(self._neighbours, seen, strict=True)
        )
        self.entropy = entropy / float(counts.sum()) if counts.sum() > 0 else None
        self.tokens += int(totals[-2])
        self.nonfinite += int(totals[-1])
        if banned is not None:
            log_mean, best, index = (float(value) for value in banned)
            self._banned_summary = (log_mean, best, int(index))
        if self._under_way:
            self._under_way -= 1
        elif self._pending is not None:
            self._pending = torch.zeros_like(self._pending)

    # What it says

    @property
    def step(self) -> int:
        """Steps that have ended."""
        return self._mixture.step

    @property
    def log_evidence(self) -> float:
        """log of the mixture over valid components after the last step, nats; 0 at the start. Without what
        is pending."""
        if self.step == 0:
            return 0.0
        return self._total(self._mixture.log_values, self._banned_summary[0])

    def _total(self, log_values: Tensor, log_banned: float) -> float:
        weighted = torch.cat(
            [self._log_prior + log_values, log_values.new_tensor([self._log_banned_prior + log_banned])]
        )
        return float(weighted.logsumexp(0))

    @torch.inference_mode(False)
    @torch.no_grad()
    def provisional(self) -> float:
        """What `log_evidence` would be if the step ended now, with this process's tokens alone. Waits for
        the device."""
        log_banned = self._banned_summary[0]
        if self._banned is not None:
            _, summary = self._banned.after(self.step + 1, self._banned.pending)
            log_banned = float(summary[0])
        return self._total(self._mixture.after(self.pending[: len(self.names)]), log_banned)

    @property
    def causes(self) -> dict[str, float]:
        """Posterior weight of each cause, largest first; they sum to 1. Before any data, the prior.

        Diagnostics take part once the evidence, which does not contain them, has reached ln(1/alpha), and
        `shift+1` only where the tokens look drawn from the neighbours' logits. A shift takes part only where nothing
        exact contradicts it (see `_contradicted`).
        The weight of all banned tokens together stands under the likeliest of them.
        """
        crossed = self.log_evidence >= -math.log(self.alpha)
        weighted = (self._log_naming if crossed else self._log_prior) + self._mixture.log_values
        out = self._contradicted()
        weighted = torch.where(torch.tensor([name in out for name in self.names]), -math.inf, weighted)
        log_banned, best, token = self._banned_summary
        weighted = torch.cat([weighted, weighted.new_tensor([self._log_banned_prior + log_banned])])
        single = named(token, self._vocabulary) if best > 1.0 and self._vocabulary else "banned_token"
        causes: dict[str, float] = {}
        for name, weight in zip((*self.names, single), weighted.softmax(0).tolist(), strict=True):
            if crossed or weight > 0.0:
                causes[name] = causes.get(name, 0.0) + weight
        return dict(sorted(causes.items(), key=lambda item: -item[1]))

    def _contradicted(self) -> set[str]:
        """Causes that are ruled out by something else than their weight.

        The engine's log-probs, where they are given, decide between a shift and another sampler, token by token:
        logits that belong to a neighbour give what the engine reported at that neighbour. If they do, the engine
        only confirms the shift and is no cause of its own; if they do not, there is no shift. Weights cannot tell:
        p_{t+1}(x_t) is no distribution over x_t, so it may exceed the probability of the true sampler.
        """
        out = set() if self._one_off() else {"shift+1"}
        if self.aligned:
            return {"shift-1", "shift+1"}
        for name, (neighbour, own) in (
            ("shift-1", self._neighbours[3:5]),
            ("shift+1", self._neighbours[5:7]),
        ):
            if own > 0.0:
                out.add("sampler" if neighbour <= FITS * own else name)
        return out

    def _one_off(self) -> bool:
        """Whether the mean surplus (see `_figures`) is 0 up to chance, and the tokens' own below it."""
        total, squares, count = self._neighbours[:3]
        if count < 2:
            return True
        mean, error = _mean_and_error(total, squares, count)
        own, own_error = _mean_and_error(*self._neighbours[7:9], count)
        near = abs(mean) <= SURPLUS_ERRORS * error + SURPLUS_NATS
        return near and own < -OWN_ERRORS * own_error and abs(mean) + error <= -OWN_SHARE * own

    @property
    def blind(self) -> dict[str, str]:
        """Families that nothing gathered so far could test, and what they need."""
        needs = {h.family: h.needs for h in self.bank}
        needs["banned_token"] = needs["pit"] = "log_probs"
        if self.closed:
            return dict.fromkeys(needs, WHY_CLOSED)
        return {family: WHY_BLIND[need] for family, need in needs.items() if need not in self._seen}

    # State

    def state_dict(self) -> dict[str, Any]:
        """Tensors on the host, numbers and strings; loading it gives bit-identical values."""
        return {
            "names": list(self.names),
            "delta": self.delta,
            "mixture": self._mixture.state_dict(),
            "pending": self.pending.cpu().clone(),
            "pit_counts": self._pit_counts.clone(),
            "neighbours": list(self._neighbours),
            "aligned": self.aligned,
            "closed": self.closed,
            "tokens": self.tokens,
            "nonfinite": self.nonfinite,
            "vocabulary": self._vocabulary,
            "banned": self._banned.state_dict() if self._banned is not None else None,
            "banned_summary": list(self._banned_summary),
            "seen": sorted(self._seen),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`. ValueError if the bank, delta or the vocabulary differ."""
        if tuple(state["names"]) != self.names:
            raise ValueError(
                "the saved evidence belongs to another bank of hypotheses: load it into a guard with the "
                f"same bank ({_difference(tuple(state['names']), self.names)})"
            )
        if state["delta"] != self.delta:
            raise ValueError(f"the saved evidence used delta={state['delta']}, this guard {self.delta}")
        if None not in (state["vocabulary"], self._vocabulary) and state["vocabulary"] != self._vocabulary:
            raise ValueError(
                f"the saved evidence is over {state['vocabulary']} tokens, this guard over {self._vocabulary}"
            )
        self._mixture.load_state_dict(state["mixture"])
        device = self.pending.device
        self._pending = state["pending"].to(device).clone()
        self._pit_counts = state["pit_counts"].clone()
        self._density = None
        known = tuple(state["neighbours"])
        self._neighbours = known + (0.0,) * (FIGURES - 1 - len(known))
        self.aligned = bool(state["aligned"])
        self.closed = bool(state.get("closed", False))
        self.tokens = int(state["tokens"])
        self.nonfinite = int(state["nonfinite"])
        self._vocabulary = state["vocabulary"] if state["vocabulary"] is not None else self._vocabulary
        self._banned = None
        if state["banned"] is not None:
            self._banned = BannedTokens(int(state["vocabulary"]), device, self.delta)
            self._banned.load_state_dict(state["banned"])
        log_mean, best, index = state["banned_summary"]
        self._banned_summary = (float(log_mean), float(best), int(index))
        self._seen = set(state["seen"])


def _apart(rows: Rows, neighbour: Tensor | None) -> Tensor:
    """(2,) float64 sums over tokens that have all three log-probs: how far the engine's is from the neighbouring
    position's and from the scored one, nats."""
    if neighbour is None or rows.sampler is None:
        return rows.entropy.new_zeros(2)
    known = rows.usable & rows.sampler.isfinite() & ~neighbour.isnan()
    distances = [
        torch.where(known, (one.to(torch.float64) - rows.sampler).abs().clamp(max=FARTHEST), 0.0).sum()
        for one in (neighbour, rows.log_prob)
    ]
    return torch.stack(distances)


def _mean_and_error(total: float, squares: float, count: float) -> tuple[float, float]:
    """The mean of `count` numbers and its standard error, from their sum and the sum of their squares."""
    mean = total / count
    return mean, math.sqrt(max(squares / count - mean**2, 0.0) / count)


def _log1p(eps: float) -> float:
    if not (math.isfinite(eps) and eps >= 0.0):
        raise ValueError(f"eps={eps}: the tolerance must be a number of nats per token, 0 or more")
    return math.log1p(eps)


def _overlap(lower: Tensor, upper: Tensor) -> Tensor:
    """(n, PIT_BINS) share of each interval [lower, upper] that lies in each bin of [0, 1]; rows sum to 1."""
    edges = torch.arange(PIT_BINS + 1, dtype=torch.float64, device=lower.device) / PIT_BINS
    # a width of 0 comes only from tokens of probability 0
    width = (upper - lower).clamp(min=1e-300).unsqueeze(1)
    reach = torch.minimum(upper.unsqueeze(1), edges[1:]) - torch.maximum(lower.unsqueeze(1), edges[:-1])
    return reach.clamp_(min=0.0) / width


def _difference(saved: tuple[str, ...], own: tuple[str, ...]) -> str:
    """The first names that only one side has, in words."""
    missing = [name for name in saved if name not in own][:3]
    added = [name for name in own if name not in saved][:3]
    return f"saved only: {', '.join(missing) or 'none'}; here only: {', '.join(added) or 'none'}"
