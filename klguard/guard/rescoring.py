"""One row of the first rollout, scored once more by hand: alone, without padding, in eval mode.

What the loop scored is then either that, or that of a neighbouring position, or of another temperature, or what
comes out when the padding is attended to or shifts the positions. This tells the causes of a wrong
log-probability apart, which no statistic can.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from klguard.guard import kl, models
from klguard.guard.events import Rollout, Scoring
from klguard.guard.invariants.invariant import Run
from klguard.guard.ledger import Readings

LOG = logging.getLogger("klguard")

TOKENS = 32
"""Response tokens that are scored again, at most."""

SLOTS = (
    "rescored", "off", "before", "after", "unmasked", "unplaced", "temperature",
    "padded", "asked", "expected", "fitted",
)  # fmt: skip
"""Sums that an invariant keeps of a rescored row: tokens; the difference from the loop's log-probs, in nats, of
the right scoring, of the two neighbouring positions, of attending to the padding, of positions counted from
the padding, of the temperature that fits best; the number of padding tokens of the row; and times the number of
tokens, whether the temperature is known that the loop should divide by, that temperature (1 where it is not
known), and the one that fits best."""

NAMED = ("before", "after", "unmasked", "unplaced", "temperature")
EXPLAINED = ("right", *NAMED)
"""Diagnoses that name what is wrong, and those by which the log-probs are accounted for without noise."""

_FP32, _HALF_PRECISION = 1e-3, 3e-2
"""Mean difference, in nats per token, that rounding explains."""

_FITS, _CLOSE, _ENOUGH = 0.2, 0.05, 6
"""A wrong way explains the loop's log-probs when it leaves at most this share of the difference, and at most
this many nats per token (autocast leaves 0.02), over at least so many tokens: a few agree by chance."""

_FAR, _FITTED = 0.1, 0.1
"""A temperature is fitted, so it may leave no more than the right scoring may; where the difference is at least
`_FAR` nats per token, which no rounding makes, this share of it: autocast is not always to be seen."""

_TEMPERATURES = (1.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.85, 1.2, 1.5, 2.0, 3.0, 5.0)
"""Where the search for the loop's temperature begins: near enough to any other for `_REFINED` steps to find it."""

_REFINED, _STEP = 4, 0.01
"""Gauss-Newton steps, and the relative change of 1/temperature by which a step measures its slope."""


@dataclass(frozen=True)
class Rescored:
    """Figures of one row, () tensors on the device, named as in SLOTS."""

    figures: dict[str, Tensor]


class Rescoring:
    """Remembers the last rollout until the first row of one was scored again. Shared by all invariants of a
    run."""

    def __init__(self) -> None:
        self._rollout: Rollout | None = None
        self._event: weakref.ref[Scoring] | None = None
        self._result: Rescored | None = None
        self._given_up = False

    def see(self, run: Run, event: Rollout) -> None:
        """A rollout whose rows may be scored next."""
        if self._result is None and not self._given_up:
            self._given_up = not possible(run)
            usable = event.prompts is not None and event.attention_mask is not None
            self._rollout = event if usable and not self._given_up else None

    def of(self, run: Run, event: Scoring) -> Rescored | None:
        """The figures of a row of `event`, if that is the one of which a row is scored again."""
        if self._event is not None:
            return self._result if self._event() is event else None
        rollout, self._rollout = self._rollout, None
        rollout = None if rollout is None else _rows_of(rollout, event)
        if rollout is None or not _fits(rollout, event):
            return None
        self._event = weakref.ref(event)
        try:
            self._result = _rescore(run, rollout, event)
        except Exception as error:  # noqa: BLE001  no memory, or a model that wants more than ids: a pass less
            LOG.info(
                "klguard could not score a row of the rollout again: %s: %s", type(error).__name__, error
            )
        return self._result

    def forget(self) -> None:
        """Keep nothing of a step beyond its end."""
        self._rollout = None


def rescoring(run: Run) -> Rescoring:
    """The one of this run."""
    return run.notes.setdefault("rescoring", Rescoring())


def diagnosis(readings: Readings, half: bool) -> str:
    """What the loop's log-probs of the rescored row are: "" where none was, "right", "before" or "after" (the
    logits of the position before, or of the token itself), "unmasked" (padding attended to), "unplaced"
    (positions counted from the padding), "temperature" (logits divided by another number than the sampler's),
    or "unexplained". Where nobody said at which temperature the tokens were drawn, any one is right."""
    if not readings["rescored"]:
        return ""
    mean = {name: readings[name] / readings["rescored"] for name in SLOTS}
    limit = nearness(half)
    if mean["off"] <= limit:
        return "right"
    best = min(NAMED, key=mean.__getitem__)
    close = _CLOSE
    if best == "temperature":
        close = max(limit, min(_FITTED * mean["off"], _CLOSE)) if mean["off"] >= _FAR else limit
    if readings["rescored"] < _ENOUGH or mean[best] > min(_FITS * mean["off"], close):
        return "unexplained"
    return "right" if best == "temperature" and not readings["asked"] else best


def nearness(half: bool) -> float:
    """Mean difference, in nats per token, from which the loop's scoring is not the right one."""
    return _HALF_PRECISION if half else _FP32


def possible(run: Run) -> bool:
    """Whether one more pass of the policy may be made, on this rank alone and from ids alone."""
    policy = run.policy
    return run.forward is not None and models.text_decoder(policy) and not models.sharded(policy)


def _rows_of(rollout: Rollout, event: Scoring) -> Rollout:
    """The part of the rollout that `event` scored, as far as it says which."""
    if event.rows is None:
        return rollout

    def pick(values: Tensor) -> Tensor:
        return values.index_select(0, event.rows.to(values.device, non_blocking=True))

    prompts, attention = pick(rollout.prompts), pick(rollout.attention_mask)
    return replace(
        rollout, responses=pick(rollout.responses), prompts=prompts, attention_mask=attention, mask=None
    )


def _fits(rollout: Rollout, event: Scoring) -> bool:
    """Whether `event` may have scored `rollout`, and the extra pass is smaller than the loop's own."""
    if event.logits is None or event.tokens is None or event.tokens.shape != rollout.responses.shape:
        return False
    length = rollout.prompts.shape[1] + min(TOKENS, event.tokens.shape[1])
    rows, time, _ = event.logits.shape
    return 3 * length <= rows * time


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Every layer of `module` in eval mode, and each as it was afterwards."""
    modes = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for layer, mode in modes:
            layer.training = mode


def forward(run: Run, ids: Tensor, attention: Tensor) -> Tensor:
    """Logits (B, L, V) of the policy in eval mode, positions counted from the first column, without a cache."""
    model = models.inner(run.policy)
    quiet = {"use_cache": False} if hasattr(models.config(model), "use_cache") else {}
    with eval_mode(model):
        return run.forward(model, ids, attention, **quiet)


def _rescore(run: Run, rollout: Rollout, event: Scoring) -> Rescored:
    """Choose a row with enough tokens, and of those the one with most padding, and compare. All on the device."""
    device = event.logits.device
    count = min(TOKENS, event.tokens.shape[1])
    attention = rollout.attention_mask.to(device, non_blocking=True).bool()
    width = attention.shape[1]
    padding = width - attention.sum(1)
    # rows whose prompt is not padded on the left in one piece are another invariant's business
    whole = (attention.long().diff(dim=1) >= 0).all(1) & attention[:, -1]
    agree = (rollout.responses.to(device, non_blocking=True) == event.tokens) | ~event.mask
    tokens = event.mask[:, :count].sum(1)
    usable = (tokens > 0) & whole & agree.all(1)
    preference = tokens.clamp(max=2 * _ENOUGH) * (width + 1) + padding
    row = torch.where(usable, preference, -1).argmax().view(1)

    def pick(values: Tensor) -> Tensor:
        return values.to(device, non_blocking=True).index_select(0, row)

    prompt, responses = pick(rollout.prompts), pick(event.tokens)[:, :count]
    valid = (pick(event.mask)[:, :count] & pick(usable)[:, None])[0]
    given = pick(event.logprobs)[0, :count].double()
    logits = _three_ways(run, prompt, responses, pick(attention))
    watched = event.divisor is not None and event.temperature is None
    told = None if watched else rollout.temperature or event.temperature
    expected = told or event.divisor or 1.0
    tokens = responses[0].clamp(0, event.logits.shape[-1] - 1)
    row_of_loop = Given(given, tokens, valid)

    def at(way: int, positions: Tensor) -> Tensor:
        """The logits (count, V) at `positions` (count,)."""
        rows = logits[way].index_select(0, positions.clamp(0, logits.shape[1] - 1))
        return rows[:, : event.logits.shape[-1]].float()

    steps = torch.arange(count, device=device)
    padded = padding.index_select(0, row)
    alone, here = width - padded + steps - 1, width + steps - 1
    right = at(0, alone)
    fitted, distance = row_of_loop.fitted(right)
    number = valid.sum()
    figures = {
        "rescored": number,
        "off": row_of_loop.distance(right / expected),
        "before": row_of_loop.distance(at(0, alone - 1) / expected),
        "after": row_of_loop.distance(at(0, alone + 1) / expected),
        "unmasked": row_of_loop.distance(at(1, here) / expected),
        "unplaced": row_of_loop.distance(at(2, here) / expected),
        "temperature": distance,
        "padded": torch.where(valid.any(), padded.sum(), 0),
        "asked": number * float(told is not None),
        "expected": number * expected,
        "fitted": number * fitted,
    }
    return Rescored(figures)


@dataclass(frozen=True)
class Given:
    """A row as the loop scored it: log-probs (n,) float64 in nats, the tokens (n,), and which of them count (n,)."""

    logprobs: Tensor
    tokens: Tensor
    valid: Tensor

    def distance(self, logits: Tensor) -> Tensor:
        """Sum over valid tokens of |loop - log_softmax(logits)|, nats; logits (n, V) fp32."""
        return self._residual(logits).abs().sum()

    def fitted(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The temperature () by which `logits` (n, V) have to be divided to come nearest to the loop's
        log-probs, and the distance that is left: least squares in 1/temperature, from the best of a few."""
        slopes = [torch.ones((), dtype=torch.float64, device=logits.device) / t for t in _TEMPERATURES]
        tried = [self._residual(logits * slope.float()).square().sum() for slope in slopes]
        slope = torch.stack(slopes).index_select(0, torch.stack(tried).argmin().view(1))[0]
        for _ in range(_REFINED):
            slope = self._nearer(logits, slope)
        return 1 / slope, self.distance(logits * slope.float())

    def _nearer(self, logits: Tensor, slope: Tensor) -> Tensor:
        """One Gauss-Newton step; at most a halving or doubling."""
        below, here, above = (
            self._residual(logits * (slope * factor).float()) for factor in (1 - _STEP, 1.0, 1 + _STEP)
        )
        derivative = (above - below) / (2 * _STEP * slope)
        step = (derivative * here).sum() / derivative.square().sum().clamp(min=1e-30)
        return slope * (1 - step / slope).clamp(0.5, 2.0)

    def _residual(self, logits: Tensor) -> Tensor:
        """(n,) loop - log_softmax(logits) at the tokens, 0 where they do not count; bounded where not finite."""
        mine = kl.token_log_probs(logits[None], self.tokens[None])[0].double()
        apart = (self.logprobs - mine).nan_to_num(nan=50.0, posinf=50.0, neginf=-50.0)
        return torch.where(self.valid, apart, 0.0)


def _three_ways(run: Run, prompt: Tensor, responses: Tensor, attention: Tensor) -> Tensor:
    """Logits (3, L, V) of one row: with its padding moved to the end, where a causal model cannot see it; as it
    is, attending to the padding; as it is, with the mask but with positions counted from the padding."""
    ids = torch.cat([prompt, responses], 1)
    mask = torch.cat([attention, torch.ones_like(responses, dtype=torch.bool)], 1)
    length = ids.shape[1]
    around = (torch.arange(length, device=ids.device) + (length - mask.sum())) % length
    rows = torch.cat([ids[:, around], ids, ids])
    masks = torch.cat([mask[:, around], torch.ones_like(mask), mask]).long()
    return forward(run, rows, masks)
