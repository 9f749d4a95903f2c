"""From the logits that scored a rollout to the rows the hypotheses are tried on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from klguard.guard.courier import at_hand
from klguard.guard.events import Scoring
from klguard.guard.rows import CACHE, Rows, working_bytes
from klguard.guard.vocabulary import CACHE_PER_THREAD, ROW_MULTIPLE
from klguard.guard.workspace import Workspace

_CHANCE = 32
"""Drawn tokens that have to stand at the end of the context in their order before it is taken for the whole sequence."""

_BYTES_PER_ENTRY = {"cpu": 8}
"""Of a tested row's logits and log-softmax; 24 elsewhere, where the reference's and what the exact KL needs are as
many rows. On the CPU those two take a few rows at a time."""


@dataclass(frozen=True)
class Tested:
    """A chunk of tested positions: `rows`, and what gives the reference's logits (m, V) of a slice of them, where they
    are known.

    They lie in memory that the next chunk, or the next slice, is written to.
    """

    rows: Rows
    reference_logits: Callable[[slice], Tensor] | None


def tested(event: Scoring, chosen: Tensor, stop: Tensor | None, budget: int) -> Iterator[Tested]:
    """The chosen positions (indices b * T + t, on the host) in chunks whose temporaries stay within `budget`
    bytes.

    Nothing waits for the device: which rows are valid is data, how many are chosen was decided before. Where the data
    are the host's own, positions that are not valid are passed over.
    """
    if at_hand(event.mask.device):
        chosen = chosen[event.mask.flatten()[chosen]]
    if not len(chosen):
        return
    event = replace(event, context_ids=_prompt(event))
    time, vocabulary = event.tokens.shape[1], event.logits.shape[-1]
    device = event.logits.device
    tokens = event.tokens.clamp(0, vocabulary - 1)
    position = (event.mask.cumsum(1) - 1).clamp(min=0)
    earlier, later = _neighbours(event, tokens)
    before = torch.full_like(later, torch.nan)
    before[:, 1:] = later[:, :-1]
    width = time + (0 if event.context_ids is None else event.context_ids.shape[1])
    size = _chunk(vocabulary, width, budget, device)
    space = Workspace(device)
    for start in range(0, len(chosen), size):
        here = chosen[start : start + size]
        at = here.to(device, non_blocking=True)
        row, column = at // time, at % time
        logits = _divided(_rows_at(event.logits, here, space, "logits", time, event.columns), event)
        log_probs = space.take("log_probs", (len(here), vocabulary), torch.float32)
        context = _context(event, row, column)
        yield Tested(
            Rows(
                logits=logits,
                log_probs=torch.log_softmax(logits.float(), -1, out=log_probs),
                tokens=tokens[row, column],
                valid=event.mask[row, column],
                position=position[row, column],
                reference=_at(event.reference_logprobs, row, column),
                sampler=_at(event.sampler_logprobs, row, column),
                stale=_at(event.stale_logprobs, row, column),
                earlier=earlier[row, column],
                later=later[row, column],
                before=before[row, column],
                context=context,
                prompt=None if event.context_ids is None else context[:, : event.context_ids.shape[1]],
                eos=stop,
                workspace=space,
            ),
            _reference(event, here, space),
        )


def _rows_at(
    logits: Tensor, chosen: Tensor, space: Workspace, name: str, time: int, columns: Tensor | None = None
) -> Tensor:
    """Rows of `logits` (B, T, V), detached, at ascending indices b * T + t, on the host: a copy in the workspace. With
    `columns` (B, T) those of logits (B, L, V) at columns[b, t].

    One response at a time: the logits of a response are often a slice of those of a sequence, which have no view in
    which they were rows of one matrix.
    """
    logits = logits.detach()
    counts = torch.bincount(chosen // time, minlength=len(logits)).tolist()
    out = space.take(name, (len(chosen), logits.shape[-1]), logits.dtype)
    at = (chosen % time).to(logits.device, non_blocking=True)
    if columns is not None:
        at = columns[(chosen // time).to(logits.device, non_blocking=True), at]
    for source, column, target in zip(logits, at.split(counts), out.split(counts), strict=True):
        if len(column):
            torch.index_select(source, 0, column, out=target)
    return out


def _reference(event: Scoring, chosen: Tensor, space: Workspace) -> Callable[[slice], Tensor] | None:
    """Gives the reference's logits at the chosen positions, a part of them at a time; None where there are none."""
    logits = event.reference_logits
    if logits is None:
        return None

    def part_of(part: slice) -> Tensor:
        return _rows_at(logits, chosen[part], space, "reference", logits.shape[1])

    return part_of


def _chunk(vocabulary: int, context: int, budget: int, device: torch.device) -> int:
    """How many rows to take at once; at least 1."""
    row = _BYTES_PER_ENTRY.get(device.type, 24) * vocabulary + working_bytes(vocabulary, context, device)
    if device.type == "cpu":
        # the hypotheses make some hundred small tensors of a chunk, whatever its size: it has to be much larger than
        # the few rows at a time that passes over the vocabulary take
        budget -= CACHE + 3 * CACHE_PER_THREAD * torch.get_num_threads()
    size = budget // row
    return max(1, size - size % ROW_MULTIPLE if size > ROW_MULTIPLE else size)


def _at(values: Tensor | None, row: Tensor, column: Tensor) -> Tensor | None:
    return None if values is None else values[row, column]


def _neighbours(event: Scoring, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """log p_{t-1}(x_t) and log p_{t+1}(x_t), (B, T); NaN where the neighbour is outside the response."""
    mask = event.mask
    own = _logits_of(event, tokens, slice(None))
    normaliser = own - event.logprobs.detach()
    earlier = torch.full_like(normaliser, torch.nan)
    later = torch.full_like(normaliser, torch.nan)
    if mask.shape[1] > 1:
        both = mask[:, 1:] & mask[:, :-1]
        before = _logits_of(event, tokens[:, 1:], slice(None, -1))
        after = _logits_of(event, tokens[:, :-1], slice(1, None))
        before, after = before - normaliser[:, :-1], after - normaliser[:, 1:]
        earlier[:, 1:] = torch.where(both, before, torch.nan)
        later[:, :-1] = torch.where(both, after, torch.nan)
    return earlier, later


def _logits_of(event: Scoring, tokens: Tensor, at: slice) -> Tensor:
    """The logits of `tokens` (B, N) at the positions `at` of the response, (B, N), divided as they should be."""
    if event.columns is None:
        found = event.logits[:, at].gather(-1, tokens[..., None]).squeeze(-1)
    else:
        rows = torch.arange(len(tokens), device=tokens.device)[:, None]
        found = event.logits[rows, event.columns[:, at], tokens]
    return _divided(found.float(), event)


def _divided(logits: Tensor, event: Scoring) -> Tensor:
    """Logits, of any shape, divided by the sampler's temperature where the loop's own division is not seen."""
    return logits if event.divisor is None else logits.float() / event.divisor


def _prompt(event: Scoring) -> Tensor | None:
    """The context ids without the response, for callers that give whole sequences: -1 in its place.

    A context that holds the tokens themselves would make each rule on it a bet on what it has already seen. That
    the last T ids are the T tokens in every row, padding aside, is no coincidence where enough of them were drawn.
    """
    ids, tokens = event.context_ids, event.tokens
    if ids is None or ids.shape[1] < tokens.shape[1]:
        return ids
    before = ids.shape[1] - tokens.shape[1]
    same = (ids[:, before:].to(tokens.device) == tokens) | ~event.mask
    whole = same.all() & (event.mask.sum() >= _CHANCE)
    late = torch.arange(ids.shape[1], device=tokens.device) >= before
    return ids.to(tokens.device).masked_fill(whole & late, -1)


def _context(event: Scoring, row: Tensor, column: Tensor) -> Tensor:
    """The ids before each chosen token, (n, context + T), -1 where there is nothing yet.

    Without the prompt's ids the context is the response so far.
    """
    ids, start = event.tokens, 0
    if event.context_ids is not None:
        ids, start = torch.cat([event.context_ids.to(ids.device), ids], 1), event.context_ids.shape[1]
    context = ids[row]
    ahead = torch.arange(ids.shape[1], device=ids.device) >= (start + column)[:, None]
    return context.masked_fill(ahead, -1)
