"""The KL divergence between policy and reference: estimators from sampled tokens, the exact value, reductions.

Unless a function says otherwise it is differentiable, works in fp32 or better whatever comes in (bf16 and fp16
are converted first), never synchronises with the device and writes to nothing that the caller owns. All
logarithms are natural; a quantity per token is in nats per token, one per sequence in nats per sequence.

With x drawn from the policy p, and d = log ref(x) - log p(x):

    k1 = -d               expectation KL(p || ref); either sign
    k2 = d^2 / 2          biased, never negative
    k3 = exp(d) - 1 - d   expectation KL(p || ref); never negative

(Schulman, Approximating KL divergence, 2020.) The exact KL is the sum over the vocabulary at each sampled
prefix: unbiased, never negative and of lower variance (Amini, Vieira and Cotterell, 2025).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from klguard.guard.shapes import check_log_probs, check_mask, check_shapes
from klguard.guard.vocabulary import (
    DEFAULT_BUDGET,
    Scratch,
    blocks,
    chunks,
    largest_logits,
    over_rows,
    rows_per_chunk,
    slices_of_row,
)
from klguard.guard.workspace import Workspace

__all__ = [
    "ESTIMATORS",
    "check_log_probs",
    "check_mask",
    "check_shapes",
    "entropy",
    "estimate",
    "exact_kl",
    "exact_kl_moments",
    "irregular",
    "k1",
    "k2",
    "k3",
    "masked_mean",
    "masked_sum",
    "per_sequence",
    "per_sequence_sum",
    "per_token",
    "token_log_probs",
    "upcast",
    "valid_tokens",
]

ESTIMATORS = ("k1", "k2", "k3")

_SERIES_BELOW = 0.1
"""|d| below which k3 comes from its power series."""
_TERMS = {torch.float32: 6, torch.float64: 12}
"""Terms of the series: the first one left out is below half a unit in the last place of the sum at |d| = 0.1."""
_FLOOR = -1e18
"""Stands for log 0: far below every log-prob that occurs, and its square is still finite in fp32. So p = 0 gives
0 * finite = 0 with no comparison per entry, which on the CPU would cost as much as the exponentials."""
_ROUNDING = 1e-3
"""A log-softmax in fp32 is off by up to 5e-5 nats at 151,936 entries; one in bf16, or of part of a vocabulary,
by more than this."""


# ------------------------------------------------------------------------------------------ estimators


def upcast(values: Tensor) -> Tensor:
    """`values` in fp32; float64 stays. The rounding of bf16 alone is worth more than a healthy KL."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def k1(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """log p - log ref of each sampled token, nats; (B, T) or any other shape, the same for both."""
    return upcast(logprobs) - upcast(reference_logprobs)


def k2(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """d^2 / 2 with d = log ref - log p of each sampled token, nats."""
    return k1(logprobs, reference_logprobs).square() / 2


def k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """expm1(d) - d with d = log ref - log p of each sampled token, nats; at least 0 for all finite inputs.

    The textbook form exp(d) - 1 - d reaches -4e-3 in bf16 and -6e-8 in fp32. expm1(d) - d is right where |d|
    is not small. For small |d| an expm1 that is off by one unit in the last place can fall below d, and even
    a perfect one leaves a difference of few correct digits: there the series d^2 (1/2 + d/6 + ...) is used,
    a square times a positive number. Above d = 88.7 the result is inf in fp32, as exp(d) is.
    """
    d = upcast(reference_logprobs) - upcast(logprobs)
    small = d.abs() < _SERIES_BELOW
    near = d.masked_fill(~small, 0.0)  # keeps inf * 0 out of the gradient of the branch not taken
    terms = _TERMS[d.dtype]
    bracket = torch.full_like(near, 1 / math.factorial(terms + 1))
    for power in range(terms, 1, -1):
        bracket = bracket * near + 1 / math.factorial(power)
    return torch.where(small, near.square() * bracket, torch.expm1(d) - d)


def estimate(
    logprobs: Tensor,
    reference_logprobs: Tensor,
    mask: Tensor | None = None,
    *,
    estimator: str = "k1",
) -> Tensor:
    """The KL estimate of each token, nats, (B, T); 0 with gradient 0 where `mask` is 0, whatever stands there.

    logprobs, reference_logprobs   log-probs of the same sampled tokens under policy and reference.
    estimator                      "k1", "k2" or "k3".

    ValueError for another estimator, and for shapes, devices or a mask that do not go together.
    """
    if estimator == "exact":
        raise ValueError(
            "estimator='exact' needs the logits of both models, not log-probs of the sampled tokens: "
            "use klguard.guard.kl.exact_kl(logits, reference_logits)"
        )
    if estimator not in ESTIMATORS:
        raise ValueError(
            f"estimator={estimator!r} is not known: choose 'k1' (log p - log ref, unbiased, either sign), "
            "'k2' (half its square, biased) or 'k3' (unbiased, never negative)"
        )
    check_log_probs(logprobs, reference_logprobs, mask)
    formula = {"k1": k1, "k2": k2, "k3": k3}[estimator]
    if mask is None:
        return formula(logprobs, reference_logprobs)
    # filled before the formula, not after it: a gradient of inf times 0 would be NaN
    padding = ~valid_tokens(mask)
    return formula(logprobs.masked_fill(padding, 0.0), reference_logprobs.masked_fill(padding, 0.0))


# ------------------------------------------------------------------------------------------ masked reductions


def valid_tokens(mask: Tensor) -> Tensor:
    """`mask` as bool: above 0 means valid. An additive mask (0 and -inf) so selects nothing, not the padding."""
    return mask if mask.dtype == torch.bool else mask > 0


def irregular(mask: Tensor) -> Tensor:
    """How many entries of `mask` are neither 0 nor 1 (int64, on its device): an additive or weighting mask."""
    if mask.dtype == torch.bool:
        return torch.zeros((), dtype=torch.int64, device=mask.device)
    return ((mask != 0) & (mask != 1)).sum()


def _kept(values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """`values` upcast and 0 where masked, and which tokens are valid (bool)."""
    values = upcast(values)
    if mask is None:
        return values, torch.ones_like(values, dtype=torch.bool)
    check_mask(mask, values)
    valid = valid_tokens(mask)
    return values.masked_fill(~valid, 0.0), valid


def masked_sum(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """The sum of `values` over the valid tokens; masked entries may hold NaN or inf. 0 where none is valid."""
    return _kept(values, mask)[0].sum()


def masked_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean of `values` over all valid tokens of the batch.

    Of an empty mask it is 0 with gradient 0: such a minibatch adds nothing to a loss, where NaN would destroy
    the weights. Whoever reports it as a measurement asks `valid_tokens(mask).sum()` first.
    """
    kept, valid = _kept(values, mask)
    return kept.sum() / valid.sum().clamp(min=1)


def per_token(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Nats per token: the mean of per-token `values` (B, T) over all valid tokens; long sequences weigh more."""
    return masked_mean(values, mask)


def per_sequence_sum(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Nats of each sequence, (B,): per-token `values` (B, T) summed over time; 0 for one with no valid token."""
    return _kept(values, mask)[0].sum(-1)


def per_sequence(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Nats per sequence: sums over time, averaged over the sequences with at least one valid token; 0 if none."""
    kept, valid = _kept(values, mask)
    return kept.sum() / valid.any(-1).sum().clamp(min=1)


# ------------------------------------------------------------------------------------------ over the vocabulary


def _at(log_p: Tensor, tokens: Tensor) -> Tensor:
    """`log_p` at `tokens`; NaN where the token is outside the vocabulary, which on CUDA would kill the process."""
    vocabulary = log_p.shape[-1]
    outside = (tokens < 0) | (tokens >= vocabulary)
    index = tokens.clamp(0, vocabulary - 1).long()
    return log_p.gather(-1, index[..., None]).squeeze(-1).masked_fill(outside, torch.nan)


def token_log_probs(
    logits: Tensor, tokens: Tensor, *, temperature: float | None = None, budget: int = DEFAULT_BUDGET
) -> Tensor:
    """log p of each token, natural, fp32, (...,), from logits (..., V), divided by `temperature`, and tokens (...,).

    Where a gradient is wanted (grad mode on and logits that require it) this is the plain expression
    `log_softmax(logits.float(), -1).gather(...)`, which keeps what backward needs. Otherwise it is computed
    in chunks of rows within `budget` bytes (but at least one row), bit by bit the same numbers. A token
    outside [0, V), such as the -100 of a label, gives NaN.
    """
    if torch.is_grad_enabled() and logits.requires_grad:
        rows = logits.float() if temperature is None else logits.float() / temperature
        return _at(torch.log_softmax(rows, -1), tokens)

    def measure(rows: Tensor, tokens: Tensor, scratch: Scratch) -> Tensor:
        if temperature is None:
            rows = scratch.fp32(0, rows)
        else:
            rows = scratch.fp32_copy(0, rows).div_(temperature)
        return _at(torch.log_softmax(rows, -1, out=scratch.take(1, rows)), tokens)

    budget = max(budget, 8 * logits.shape[-1])  # two buffers of one row
    return over_rows(measure, logits, per_row=(tokens,), buffers=2, budget=budget)


def token_log_probs_at(
    logits: Tensor,
    tokens: Tensor,
    columns: Tensor | None,
    *,
    temperature: float | None = None,
    budget: int = DEFAULT_BUDGET,
) -> Tensor:
    """`token_log_probs` of tokens (B, T) whose logits stand at columns (B, T) of logits (B, L, V); detached.

    Without columns the logits are those of the tokens, (B, T, V). Temporaries stay within `budget` bytes.
    """
    if columns is None:
        return token_log_probs(logits, tokens, temperature=temperature, budget=budget)
    size = max(1, budget // 2 // (logits.shape[-1] * logits.element_size()))
    found = [
        token_log_probs(row.index_select(0, where), of, temperature=temperature, budget=max(1, budget // 2))
        for row, column, token in zip(logits.detach(), columns, tokens, strict=True)
        for where, of in zip(column.split(size), token.split(size), strict=True)
    ]
    return torch.cat(found).view(tokens.shape) if found else tokens.float()


def entropy(logits: Tensor, *, budget: int = DEFAULT_BUDGET) -> Tensor:
    """The exact entropy of each row of logits (..., V), nats per token, fp32 (...,); detached.

    Entries of -inf contribute 0. Chunked within `budget` bytes, over the vocabulary too where one row is larger.
    """
    parts = list(slices_of_row(logits.shape[-1], budget, buffers=2))

    def measure(rows: Tensor, scratch: Scratch) -> Tensor:
        largest = largest_logits(rows, parts)
        normaliser = torch.zeros_like(largest)
        weighted = torch.zeros_like(largest)
        for part in parts:
            below = scratch.fp32_copy(0, rows[..., part]).sub_(largest).clamp_(min=_FLOOR)
            weight = torch.exp(below, out=scratch.take(1, below))
            normaliser += weight.sum(-1, keepdim=True)
            weighted += weight.mul_(below).sum(-1, keepdim=True)
        return (normaliser.log() - weighted / normaliser).squeeze(-1)

    return over_rows(measure, logits, buffers=2, budget=budget)


def exact_kl(logits: Tensor, reference_logits: Tensor, *, budget: int = DEFAULT_BUDGET) -> Tensor:
    """The exact KL(p || ref) of each row, sum_v p (log p - log ref), nats per token, fp32 (...,); detached.

    logits, reference_logits   (..., V), of the same shape; any floating dtype, computed in fp32.

    A token with p = 0 (logit -inf) contributes 0, also where the reference has -inf; one with p > 0 and
    ref = 0 makes the row +inf, also where p is too small for fp32. NaN, +inf or nothing but -inf among the
    logits of a row gives NaN. Rounding alone can take a value below 0, by less than 1e-5.

    With a = logit - largest logit of the policy and b that of the reference, w = exp(a), Z_p = sum w and
    Z_ref = sum exp(b), the value is sum w (a - b) / Z_p - log(Z_p / Z_ref). The difference of two
    log-softmaxes would carry the rounding of both normalisers; on the CPU that adds up to 9e-5 nats on
    nearly flat rows of 151,936 entries: enough for a negative KL that means nothing.

    Temporaries stay within `budget` bytes, in chunks of rows, and of the vocabulary where one row is larger.
    ValueError if the shapes differ.
    """
    if logits.shape != reference_logits.shape:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)} and reference_logits {tuple(reference_logits.shape)}: "
            "the exact KL needs both models on the same tokens and the same vocabulary"
        )
    parts = list(slices_of_row(logits.shape[-1], budget, buffers=3))

    def measure(p_rows: Tensor, q_rows: Tensor, scratch: Scratch) -> Tensor:
        p_largest, q_largest = largest_logits(p_rows, parts), largest_logits(q_rows, parts)
        p_sum, q_sum, weighted = (torch.zeros_like(p_largest) for _ in range(3))
        difference = torch.full_like(p_largest, -torch.inf)
        for part in parts:
            a = scratch.fp32_copy(0, p_rows[..., part]).sub_(p_largest).clamp_(min=_FLOOR)
            b = scratch.fp32_copy(1, q_rows[..., part]).sub_(q_largest).clamp_(min=_FLOOR)
            weight = scratch.take(2, a)
            q_sum += torch.exp(b, out=weight).sum(-1, keepdim=True)
            p_sum += torch.exp(a, out=weight).sum(-1, keepdim=True)
            a.sub_(b)
            difference = torch.maximum(difference, a.amax(-1, keepdim=True))
            weighted += weight.mul_(a).sum(-1, keepdim=True)
        value = weighted / p_sum - (p_sum / q_sum).log()
        return _infinite_beyond_support(value, difference).squeeze(-1)

    return over_rows(measure, logits, reference_logits, buffers=3, budget=budget)


def _infinite_beyond_support(values: Tensor, largest_difference: Tensor) -> Tensor:
    """`values`, but +inf where p has a token that q has not.

    With log 0 at the floor, log p - log q is 0 where neither has the token, about the floor (times p = 0) where
    only q has it, and about minus the floor where only p has it, also where p itself underflows to 0.
    """
    return values.masked_fill(largest_difference >= -_FLOOR / 2, torch.inf)


def _rounding(total: Tensor) -> Tensor:
    """log of a sum of probabilities where it is so near 0 that only the rounding of a log-softmax explains it."""
    gap = total.log()
    return gap.masked_fill(gap.abs() >= _ROUNDING, 0.0)


@torch.no_grad()
def exact_kl_moments(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """The exact KL of each row and the variance of log p - log q under p; detached, fp32 or better, (...,) each.

    log_p, log_q   log-probs (..., V), from a log-softmax. The rounding of its normaliser (below 1e-3 nats) is
                   taken out, see `exact_kl`. Rows further from a sum of 1 are taken as they are: their KL can
                   fall below 0, which is how they are found out.

    Conventions of `exact_kl`; where the KL is +inf, so is the variance (nats squared per token). On a GPU it works
    on all rows at once, with three temporaries of their size: pass rows in `vocabulary.chunks`. On the CPU it takes
    as many at a time as stay in its cache.
    """
    log_p, log_q = upcast(log_p), upcast(log_q)
    if log_p.device.type != "cpu" or log_p.dim() < 2 or not log_p.numel():
        return _moments(log_p, log_q)
    leading, vocabulary = log_p.shape[:-1], log_p.shape[-1]
    rows = rows_per_chunk(vocabulary, log_p.element_size(), device=log_p.device)
    kl, variance = log_p.new_empty(leading), log_p.new_empty(leading)
    for box in blocks(tuple(leading), rows):
        kl[box], variance[box] = _moments(log_p[box], log_q[box])
    return kl, variance


def _moments(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """`exact_kl_moments` of all rows at once."""
    p = torch.exp(log_q)
    q_excess = _rounding(p.sum(-1))
    torch.exp(log_p, out=p)
    p_excess = _rounding(p.sum(-1))
    difference = log_p.clamp(min=_FLOOR)
    difference.sub_(log_q.clamp(min=_FLOOR))
    largest = difference.amax(-1)
    whole = torch.exp(p_excess)
    mean = (p * difference).sum(-1) / whole
    variance = difference.sub_(mean[..., None]).square_().mul_(p).sum(-1) / whole
    kl = mean - (p_excess - q_excess)
    return _infinite_beyond_support(kl, largest), _infinite_beyond_support(variance, largest)


def moments_against(
    log_p: Tensor, p: Tensor, reference_logits: Callable[[slice], Tensor], space: Workspace
) -> tuple[Tensor, Tensor]:
    """`exact_kl_moments` of n rows whose probabilities are there already, against the logits of the reference.

    log_p (n, V) fp32, a log-softmax; p (n, V) fp32, exp(log_p), or 0 throughout in rows whose figures nobody uses;
    reference_logits gives the logits (m, V), of any floating dtype, of a slice of the rows. With
    b = reference logit - largest of the row, Z = sum exp(b) and P = sum p, the KL is
    sum p (log_p - b) / P - log P + log Z. The mean is taken from the difference before it is summed again: the first
    sum loses digits to the size of log Z.

    On the CPU, where it is known at once whether some number is no finite one, rows with such a number are left to
    `exact_kl_moments`; an accelerator leaves all of them to it.
    """
    if log_p.device.type != "cpu" or not log_p.numel():
        return exact_kl_moments(log_p, torch.log_softmax(reference_logits(slice(None)).float(), -1))
    kl, variance = log_p.new_empty(len(log_p)), log_p.new_empty(len(log_p))
    for part in chunks(len(log_p), log_p.shape[1]):
        reference, weight = reference_logits(part), p[part]
        b, room = (space.take(f"difference {number}", weight.shape, torch.float32) for number in range(2))
        torch.sub(reference, reference.amax(-1, keepdim=True).float(), out=b)
        whole = weight.sum(-1)
        excess = whole.log() - torch.exp(b, out=room).sum(-1).log()
        torch.sub(log_p[part], b, out=b)
        mean = torch.mul(weight, b, out=room).sum(-1) / whole
        rest = torch.mul(weight, b.sub_(mean[:, None]), out=room).sum(-1) / whole
        spread = room.mul_(b).sum(-1) / whole
        kl[part], variance[part] = mean - excess + rest, spread - rest.square()
        if not bool((variance[part].isfinite() | (whole == 0.0)).all()):
            kl[part], variance[part] = _moments(log_p[part], torch.log_softmax(reference.float(), -1))
    return kl, variance
