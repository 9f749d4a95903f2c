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

HEAD = 200
"""How many of the likeliest tokens of a row are known one by one."""

BINS_PER_NAT = 32
LAST_BIN = 32 * BINS_PER_NAT - 1
"""Bins 0 to LAST_BIN - 1 are 1/BINS_PER_NAT wide; bin LAST_BIN holds everything less likely."""

CACHE = 4 * 2**20
"""Bytes of temporaries that one pass over rows may take on the CPU before it slows down."""

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
    return max(1, rows if device.type != "cpu" else min(rows, CACHE // (24 * max(1, vocabulary))))


def likeliest(log_probs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(n, count) the largest log-probs of each row (n, V), descending, and their ids; NaN counts as the largest.

    A selection on the CPU costs as much as all else that is done with a row. There entries are first compared in
    groups: the largest `count` lie in the `count` groups with the largest maxima, whatever ties.
    """
    n, vocabulary = log_probs.shape
    groups = -(-vocabulary // GROUP)
    if log_probs.device.type != "cpu" or groups < 4 * count:
        return log_probs.topk(min(count, vocabulary), dim=1)
    whole = (GROUP - 1) * groups
    maxima = log_probs[:, :whole].unflatten(1, (GROUP - 1, groups)).amax(1)
    rest = log_probs[:, whole:]
    torch.maximum(maxima[:, : rest.shape[1]], rest, out=maxima[:, : rest.shape[1]])
    best = maxima.topk(count, dim=1, sorted=False).indices
    members = torch.arange(GROUP, device=log_probs.device).unsqueeze(1) * groups
    ids = (best.unsqueeze(1) + members).flatten(1)
    there = log_probs.gather(1, ids.clamp(max=vocabulary - 1)).masked_fill_(ids >= vocabulary, -math.inf)
    top, at = there.topk(count, dim=1)
    return top, ids.gather(1, at).clamp_(max=vocabulary - 1)


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
                whole = value is None or each.name == "eos"
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
        zeros, count = self.log_probs.new_zeros, min(HEAD, vocabulary)
        step = cached_rows(n, vocabulary, self.log_probs.device)
        allowed = self.valid & (self.tokens == self.safe_tokens)
        head, head_ids, head_mass = (
            zeros(n, count),
            zeros(n, count, dtype=torch.int64),
            zeros(n, count).double(),
        )
        mass = zeros(n, LAST_BIN + 1, dtype=torch.float64)
        column = zeros(vocabulary, dtype=torch.float64)
        ties, entropy, bins = zeros(n), zeros(n), torch.zeros_like(self.safe_tokens)
        probabilities = torch.empty_like(self.log_probs, memory_format=torch.contiguous_format)
        room = torch.empty_like(self.log_probs[:step], memory_format=torch.contiguous_format)
        index, wide = torch.empty_like(room, dtype=torch.int64), torch.empty_like(room, dtype=torch.float64)
        for start in range(0, n, step):
            part = slice(start, start + step)
            log_probs = self.log_probs[part]
            here = slice(0, len(log_probs))
            top, ids = likeliest(log_probs, count)
            head[part], head_ids[part] = top, ids
            shift = torch.where(allowed[part] & top[:, 0].isfinite(), 0.0, math.inf).to(top).unsqueeze(1)
            index[here].copy_(bin_numbers_(torch.sub(top[:, :1], log_probs, out=room[here])))
            torch.sub(log_probs, shift, out=probabilities[part]).exp_().nan_to_num_(0.0)
            wide[here].copy_(probabilities[part])
            mass[part].scatter_add_(1, index[here], wide[here])
            column += wide[here].sum(0)
            head_mass[part] = wide[here].gather(1, ids)
            bins[part] = index[here].gather(1, self.safe_tokens[part].unsqueeze(1)).squeeze(1)
            # as numbers, not as truth values: their sum is much faster on the CPU
            ties[part] = torch.eq(log_probs, top[:, -1:], out=room[here]).sum(1)
            # a clamp is cheaper than looking for the places where p = 0, and as good: 0 * -1e18 = 0
            torch.clamp(log_probs, min=-1e18, out=room[here])
            entropy[part] = room[here].mul_(probabilities[part]).sum(1)
        below = running_sum(mass)
        return Spectrum(
            head=head,
            head_ids=head_ids,
            head_mass=head_mass,
            head_sum=running_sum(head_mass),
            more_ties=(ties - (head == head[:, -1:]).sum(1)).to(torch.float64),
            mass=mass,
            below=below,
            total=below[:, -1],
            entropy=-entropy.to(torch.float64),
            bin=bins,
            column=column,
            probabilities=probabilities,
            complete=head.shape[1] == vocabulary,
        )
