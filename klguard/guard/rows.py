"""Tested positions, and the one picture of each row's distribution that every hypothesis reads.

A pass over the vocabulary costs far more than anything done with its result, so a chunk of rows is looked at
once: the 200 likeliest tokens exactly, and all others as a histogram of the probability mass over
d = max log p - log p, in bins of 1/32 nat. Whatever is built from the two (a kept set, a reweighting by bin)
depends on the row alone, not on the token that was drawn, and is normalised by its own exact mass. It is
therefore a distribution over the vocabulary, and its ratio to the policy has mean 1 when the token came from
the policy; the width of the bins costs power, never validity.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from klguard.guard.workspace import Workspace

HEAD = 200
"""How many of the likeliest tokens of a row are known one by one."""

BINS_PER_NAT = 32
LAST_BIN = 32 * BINS_PER_NAT - 1
"""Bins 0 to LAST_BIN - 1 are 1/BINS_PER_NAT wide; bin LAST_BIN holds everything less likely."""

CACHE = 8 * 2**20
"""Bytes of temporaries of one pass over rows on the CPU: a few rows, so that they stay near the processor."""

GROUP = 16
"""How many entries of a row are compared together before the likeliest are looked for."""

SLACK = 1e-12
"""Added to a mass found by subtraction: more than its rounding error, so that the ratio stays below the truth."""


def working_bytes(vocabulary: int, context: int = 0, device: torch.device | str = "cpu") -> int:
    """Upper estimate of the temporary memory of one tested row, in bytes, for choosing the size of a chunk.

    Per vocabulary entry: the distance from the maximum (4), the probability (4), its float64 copy (8) and the
    index of its bin (8); on the CPU all but the probability belong to a few rows at a time, within CACHE bytes
    for all rows together. The log-probs (4) and logits are the caller's. The rest is the histogram, the head,
    and what is derived from them.
    """
    per_entry = 4 if torch.device(device).type == "cpu" else 24
    return per_entry * vocabulary + 10 * 8 * (LAST_BIN + 1) + 24 * 8 * HEAD + 100 * context + 8192


def cached_rows(rows: int, vocabulary: int, device: torch.device) -> int:
    """How many of `rows` rows a pass over the vocabulary takes at once: all, but on the CPU what fits its cache."""
    return max(1, rows if device.type != "cpu" else min(rows, CACHE // (20 * max(1, vocabulary))))


def _grouped(log_probs: Tensor, count: int) -> bool:
    """Whether the `count` largest entries of a row are looked for in groups."""
    return log_probs.device.type == "cpu" and -(-log_probs.shape[1] // GROUP) >= 4 * count


def group_maxima(log_probs: Tensor) -> Tensor:
    """(n, groups) the largest entry of each group of a row of (n, V); group g holds the ids g, g + groups, and so on.
    NaN counts as the largest. Without groups, where they do not pay, `log_probs`."""
    if not _grouped(log_probs, HEAD):
        return log_probs
    groups = -(-log_probs.shape[1] // GROUP)
    whole = (GROUP - 1) * groups
    maxima = log_probs[:, :whole].unflatten(1, (GROUP - 1, groups)).amax(1)
    rest = log_probs[:, whole:]
    torch.maximum(maxima[:, : rest.shape[1]], rest, out=maxima[:, : rest.shape[1]])
    return maxima


def likeliest(log_probs: Tensor, count: int, maxima: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(n, count) the largest log-probs of each row (n, V), descending, their ids, and (n,) fp32 how many entries of
    the row equal the last of them; NaN counts as the largest. maxima: `group_maxima(log_probs)`, if known.

    A selection on the CPU costs as much as all else that is done with a row. There entries are first compared in
    groups: the largest `count` lie in the `count` groups with the largest maxima, whatever ties. No entry outside
    these groups is larger than the least of these maxima, so it can only tie where that is the last of the largest.
    Whether it is is asked at once, which on the CPU waits for nothing.
    """
    vocabulary = log_probs.shape[1]
    groups = -(-vocabulary // GROUP)
    if not _grouped(log_probs, count):
        top, ids = log_probs.topk(min(count, vocabulary), dim=1)
        return top, ids, (log_probs == top[:, -1:]).sum(1).to(torch.float32)
    maxima = group_maxima(log_probs) if maxima is None else maxima
    highest, best = maxima.topk(count, dim=1, sorted=False)
    whole = (GROUP - 1) * groups
    there = log_probs[:, :whole].unflatten(1, (GROUP - 1, groups))
    there = there.gather(2, best.unsqueeze(1).expand(-1, GROUP - 1, -1)).flatten(1)
    rest = log_probs[:, whole:]
    more = rest.gather(1, best.clamp(max=rest.shape[1] - 1)).masked_fill_(best >= rest.shape[1], -math.inf)
    there = torch.cat([there, more], 1)
    top, at = there.topk(count, dim=1)
    ids = best.gather(1, at % count).add_(at.div(count, rounding_mode="floor"), alpha=groups)
    last = top[:, -1:]
    beyond = not bool((highest.amin(1, keepdim=True) < last).all())
    ties = ((log_probs if beyond else there) == last).to(torch.float32).sum(1)
    return top, ids.clamp_(max=vocabulary - 1), ties


@lru_cache(maxsize=256)
def constants(values: tuple[float, ...], device: torch.device) -> Tensor:
    """`values` as a float64 vector on `device`, made once, by kernels that fill: a copy from the host to a GPU
    would wait for it."""
    return torch.cat([torch.full((1,), value, dtype=torch.float64, device=device) for value in values])


@dataclass(frozen=True)
class Spectrum:
    """What is known of n rows. Probabilities are float64 sums of the same fp32 numbers throughout, so that
    the difference of two of them is exact. Rows that must not be tested have mass 0 everywhere.

    head: (n, K) log-probs of the K = min(200, V) likeliest tokens, descending, nats, fp32.
    head_ids: (n, K) their ids. head_mass: (n, K) their probabilities. head_sum: (n, K) the running sum.
    more_ties: (n,) number of tokens outside the head with exactly the log-prob of its last entry.
    mass: (n, LAST_BIN + 1) probability by bin of d. below: (n, LAST_BIN + 1) the running sum.
    total: (n,) the whole mass, 1 up to the rounding of the log-softmax.
    entropy: (n,) -sum p log p, nats. bin: (n,) bin of the token. column: (V,) sum over rows of the probabilities.
    probabilities: (n, V) fp32.
    """

    head: Tensor
    head_ids: Tensor
    head_mass: Tensor
    head_sum: Tensor
    more_ties: Tensor
    mass: Tensor
    below: Tensor
    total: Tensor
    entropy: Tensor
    bin: Tensor
    column: Tensor
    probabilities: Tensor
    complete: bool

    def mass_from(self, threshold: Tensor) -> Tensor:
        """(n, m) probability of {v: log p(v) >= threshold}, exact for thresholds not below the head's last
        log-prob (ties included, inside and outside the head). threshold: (n, m) fp32, at most the maximum."""
        count = (self.head.unsqueeze(2) >= threshold.unsqueeze(1)).sum(1)
        mass = self.head_sum.gather(1, (count - 1).clamp_(min=0))
        ties = (self.more_ties * self.head_mass[:, -1]).unsqueeze(1)
        return mass + torch.where(threshold == self.head[:, -1:], ties, 0.0)


def running_sum(x: Tensor) -> Tensor:
    """(n, m) sums along dimension 1. torch.cumsum has no deterministic form on CUDA and raises where the run
    asked for deterministic algorithms; there the sums are made by doubling."""
    if not torch.are_deterministic_algorithms_enabled():
        return x.cumsum(1)
    step = 1
    while step < x.shape[1]:
        x = torch.cat([x[:, :step], x[:, step:] + x[:, :-step]], 1)
        step *= 2
    return x


def bin_numbers_(distance: Tensor) -> Tensor:
    """Turn each d (nats, >= 0, fp32 or wider), in place, into a number whose integer part is its bin. inf
    goes to the last bin, NaN to the first: a row with NaN is never used, but its index must stay inside the
    table."""
    return distance.mul_(BINS_PER_NAT).clamp_(max=LAST_BIN).nan_to_num_(0.0)


def bins_of(distance: Tensor) -> Tensor:
    """Index of the bin of each d, int64."""
    return bin_numbers_(distance.clone()).to(torch.int64)


@lru_cache(maxsize=16)
def bin_centres(device: torch.device) -> Tensor:
    """(LAST_BIN + 1,) d at the middle of each bin, nats; the last bin counts as one of the usual width."""
    return (torch.arange(LAST_BIN + 1, dtype=torch.float64, device=device) + 0.5) / BINS_PER_NAT


@dataclass(frozen=True)
class Rows:
    """n tested positions, all on one device, detached. Log-probs are in nats.

    logits: (n, V) as scored (raw, any float dtype). log_probs: (n, V) fp32, their log-softmax.
    tokens: (n,) the ids drawn. valid: (n,) False rows count nothing (padding, prompt).
    position: (n,) index of the token in its response, from 0.
    reference, sampler, stale: (n,) log-prob of the token under the reference policy, as the inference engine
    reported it, under the previous weights; None where not given.
    earlier, later: (n,) log-prob of the token under the scored logits of the position before and after.
    before: (n,) log-prob that this row's own logits give to the token of the position before.
    In these six, NaN says that there is none; whether there is must not depend on the token.
    context: (n, c) ids before the token, prompt and response, -1 where there is nothing.
    prompt: (n, P) those of them that are the prompt's, its padding included.
    eos: (e,) ids that end a response.
    workspace: memory for the pass over the vocabulary; rows that share one are good until the next of them is looked
    at.

    Token ids outside the vocabulary and rows with NaN or +inf are not tested; `unusable` counts them.
    """

    logits: Tensor
    log_probs: Tensor
    tokens: Tensor
    valid: Tensor
    position: Tensor
    reference: Tensor | None = None
    sampler: Tensor | None = None
    stale: Tensor | None = None
    earlier: Tensor | None = None
    later: Tensor | None = None
    before: Tensor | None = None
    context: Tensor | None = None
    prompt: Tensor | None = None
    eos: Tensor | None = None
    workspace: Workspace | None = None

    def pieces(self, budget: int) -> Iterator[Rows]:
        """These rows in parts whose temporaries, as `working_bytes` counts them, stay within `budget` bytes."""
        context = self.context.shape[1] if self.context is not None else 0
        size = max(1, budget // working_bytes(self.vocabulary, context, self.log_probs.device))
        if size >= len(self.tokens):
            yield self
            return
        for start in range(0, len(self.tokens), size):
            parts = {}
            for each in fields(self):
                value = getattr(self, each.name)
                whole = value is None or each.name in ("eos", "workspace")
                parts[each.name] = value if whole else value[start : start + size]
            yield Rows(**parts)

    @cached_property
    def entropy(self) -> Tensor:
        """(n,) float64 entropy of each row's distribution, nats."""
        return self.spectrum.entropy

    @property
    def vocabulary(self) -> int:
        return self.log_probs.shape[-1]

    @cached_property
    def safe_tokens(self) -> Tensor:
        """(n,) token ids clamped into the vocabulary, for indexing: padding is often -100."""
        return self.tokens.clamp(0, self.vocabulary - 1)

    @cached_property
    def log_prob(self) -> Tensor:
        """(n,) float64 log-prob of the token under the policy, nats."""
        return self.log_probs.gather(1, self.safe_tokens.unsqueeze(1)).squeeze(1).to(torch.float64)

    @cached_property
    def usable(self) -> Tensor:
        """(n,) bool: valid, a token of the vocabulary, and a row that is a distribution. A log-softmax with
        one NaN or +inf is NaN throughout, so its maximum tells."""
        return self.valid & (self.tokens == self.safe_tokens) & torch.isfinite(self.spectrum.head[:, 0])

    @cached_property
    def unusable(self) -> Tensor:
        """() number of valid rows that could not be tested."""
        return (self.valid & ~self.usable).sum()

    @cached_property
    @torch.no_grad()
    def spectrum(self) -> Spectrum:
        """The one pass over the vocabulary."""
        n, vocabulary = self.log_probs.shape
        zeros, device = self.log_probs.new_zeros, self.log_probs.device
        space = self.workspace or Workspace(device)
        step = cached_rows(n, vocabulary, device)
        allowed = self.valid & (self.tokens == self.safe_tokens)
        mass = zeros(n, LAST_BIN + 1, dtype=torch.float64)
        column = zeros(vocabulary, dtype=torch.float64)
        maxima = zeros(n, -(-vocabulary // GROUP)) if _grouped(self.log_probs, HEAD) else None
        entropy, bins = zeros(n), torch.zeros_like(self.safe_tokens)
        probabilities = space.take("probabilities", (n, vocabulary), torch.float32)
        room, index, wide = (
            space.take("block", (step, vocabulary), dtype)
            for dtype in (torch.float32, torch.int64, torch.float64)
        )
        nothing = torch.full((), -math.inf, device=device)
        for start in range(0, n, step):
            part = slice(start, start + step)
            log_probs = self.log_probs[part]
            here = slice(0, len(log_probs))
            largest = group_maxima(log_probs)
            top = largest.amax(1, keepdim=True)
            if maxima is not None:
                maxima[part] = largest
            testable = allowed[part].unsqueeze(1) & top.isfinite()
            torch.where(testable, log_probs, nothing, out=probabilities[part])
            top = BINS_PER_NAT * torch.where(testable, top, 0.0)
            torch.sub(top, probabilities[part], alpha=BINS_PER_NAT, out=room[here])
            probabilities[part].exp_()
            index[here].copy_(room[here].clamp_(max=LAST_BIN))
            wide[here].copy_(probabilities[part])
            mass[part].scatter_add_(1, index[here], wide[here])
            column += wide[here].sum(0)
            bins[part] = index[here].gather(1, self.safe_tokens[part].unsqueeze(1)).squeeze(1)
            entropy[part] = room[here].mul_(probabilities[part]).sum(1)
        head, head_ids, ties = likeliest(self.log_probs, min(HEAD, vocabulary), maxima)
        head_mass = probabilities.gather(1, head_ids).to(torch.float64)
        below = running_sum(mass)
        top_log_prob = head[:, 0].to(torch.float64).nan_to_num(0.0, 0.0, 0.0)
        return Spectrum(
            head=head,
            head_ids=head_ids,
            head_mass=head_mass,
            head_sum=running_sum(head_mass),
            more_ties=(ties - (head == head[:, -1:]).sum(1)).to(torch.float64),
            mass=mass,
            below=below,
            total=below[:, -1],
            entropy=entropy.to(torch.float64) / BINS_PER_NAT - top_log_prob * below[:, -1],
            bin=bins,
            column=column,
            probabilities=probabilities,
            complete=head.shape[1] == vocabulary,
        )
