"""KLG703, KLG814, KLG815 and KLG817: tokens, positions, padding and stops are where the scoring takes them to be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from klguard.findings import Severity
from klguard.guard import kl, models, probe
from klguard.guard.events import Event, Preflight, Rollout, Scoring, Setup
from klguard.guard.invariants.invariant import HALF, Breach, Invariant, Run, tolerance
from klguard.guard.invariants.masks import one_of, split_mask
from klguard.guard.ledger import Readings
from klguard.guard.rescoring import SLOTS, diagnosis, forward, possible, rescoring

_SHIFTS = {
    "after": "the logits at the token itself, which predict the next one: they were not shifted",
    "before": "the logits of the position before the right one: they were shifted twice",
}


class _Rescored(Invariant):
    """Keeps the figures of the row that is scored again by hand."""

    watches = (Preflight, Rollout, Scoring)
    sums = SLOTS

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._half = False

    def measure(self, event: Event) -> None:
        if isinstance(event, Rollout):
            rescoring(self.run).see(self.run, event)
        elif isinstance(event, Scoring):
            self._half = event.dtype in HALF or models.precision(self.run.policy) in HALF
            result = rescoring(self.run).of(self.run, event)
            if result is not None:
                self.exercised = True
                for name, figure in result.figures.items():
                    self.add(name, figure)


class ShiftedLogits(_Rescored):
    """logits[:, t] are those that predicted tokens[:, t].

    Said from exact evidence only: the loop's log-probs of a row equal those that the policy gives at a
    neighbouring position, and not those at the right one. (Lags cannot be compared by their mean: a policy
    that repeats itself scores high at the next position too. Where no row can be scored by hand, the
    likelihood ratios of the evidence bound the error.)
    """

    code = "KLG703"

    def inspect(self, event: Event) -> Iterator[Breach]:
        run = self.run
        if not isinstance(event, Preflight) or event.score is None or not possible(run):
            return
        for row in probe.sequences(run, event)[:1]:
            yield from self._by_hand(row, event)

    def _by_hand(self, row: Tensor, event: Preflight) -> Iterator[Breach]:
        ids, attention = row[None], torch.ones_like(row)[None]
        with probe.quietly(row.device):
            given = probe.scored(event.score, ids, attention)[0]
            logits = forward(self.run, ids, attention)[0]
        self.exercised = True
        tokens, length = row[1:], len(row)
        at = torch.arange(length - 1, device=row.device)
        off = {}
        for name, shift in (("right", 0), ("before", -1), ("after", 1)):
            mine = kl.token_log_probs(logits[(at + shift).clamp(min=0)][None], tokens[None])[0].double()
            inside = at + shift >= 0
            off[name] = probe.difference(given[inside], mine[inside])[0]
        best = min(("before", "after"), key=off.__getitem__)
        limit = tolerance(models.precision(self.run.policy), fp32=1e-3, half=3e-2)
        if off["right"] > limit and off[best] <= 0.2 * off["right"]:
            yield self._said("score()", off["right"], best, limit)

    def judge(self, readings: Readings) -> Iterator[Breach]:
        found = diagnosis(readings, self._half)
        if found in _SHIFTS:
            off = readings["off"] / readings["rescored"]
            yield self._said("the log-probabilities of the rollout", off, found, 3e-2 if self._half else 1e-3)

    def aligned(self, readings: Readings) -> bool:
        """Whether the log-probs of the row that was scored by hand are exactly those at the right positions."""
        return diagnosis(readings, self._half) == "right"

    @staticmethod
    def _said(what: str, off: float, shift: str, limit: float) -> Breach:
        return Breach(
            f"{what} differ by {off:.2g} nats per token from those at the right position, and agree with"
            f" {_SHIFTS[shift]}",
            value=off,
            limit=limit,
            key="shift",
        )


class PaddingMatters(_Rescored):
    """A row is scored the same alone and padded.

    Before training by the loop's own score(), row by row against the batch. In the run by one row of the first
    rollout: its log-probs equal those of a pass that attends to the padding, or counts positions from it.
    """

    code = "KLG814"

    def inspect(self, event: Event) -> Iterator[Breach]:
        if not isinstance(event, Preflight) or getattr(
            models.config(self.run.policy), "is_encoder_decoder", False
        ):
            return
        rows = probe.sequences(self.run, event)
        functions = (("score", event.score, self.run.policy),)
        functions += (("reference_score", event.reference_score, self.run.reference),)
        for name, function, model in functions if len(rows) > 1 else ():
            if function is not None:
                yield from self._alone(name, function, models.precision(model), rows, event)

    def _alone(
        self, name: str, score: Any, dtype: torch.dtype, rows: list[Tensor], event: Preflight
    ) -> Iterator[Breach]:
        padding = models.padding_id(self.run.policy, self.run.tokenizer)
        ids, attention = probe.batched(rows, padding, event)
        with probe.quietly(ids.device):
            together, again = (probe.scored(score, ids, attention) for _ in range(2))
            alone = [probe.scored(score, row[None], torch.ones_like(row)[None])[0] for row in rows]
        if probe.difference(together, again)[1] > tolerance(dtype, fp32=1e-5, half=1e-2):
            return  # dropout: KLG805
        self.exercised = True
        inside = [line[~line.isnan()] for line in together]
        # without the first: where logits are shifted twice (KLG703) it is scored by what stands before the row
        mean = max(probe.difference(one[1:], other[1:])[0] for one, other in zip(inside, alone, strict=True))
        limit = tolerance(dtype, fp32=1e-4, half=3e-2)
        if mean > limit:
            yield Breach(
                f"{name}() gives a row other log-probabilities alone than padded in a batch: {mean:.2g} nats per"
                " token apart on average",
                value=mean,
                limit=limit,
                key=name,
            )

    def judge(self, readings: Readings) -> Iterator[Breach]:
        rescoring(self.run).forget()
        found = diagnosis(readings, self._half)
        said = {
            "unmasked": "attends to the padding: the attention mask is missing",
            "unplaced": "counts positions from the padding: position_ids are missing",
        }
        if found in said and readings["padded"]:
            off = readings["off"] / readings["rescored"]
            yield Breach(
                f"a row with {int(readings['padded']):,} tokens of padding is scored {off:.2g} nats per token off"
                f" what it has alone: the pass {said[found]}",
                value=off,
                limit=3e-2 if self._half else 1e-3,
                key="score",
            )


class PaddingSide(Invariant):
    """Prompts of a decoder are padded on the left, and the tokenizer stays as it was.

    What counts is the attention mask: a tokenizer that pads on the right is harmless where the loop, or an
    engine, pads by itself.
    """

    code = "KLG815"
    watches = (Rollout,)
    sums = ("right", "rows")

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._side: str | None = None

    def inspect(self, event: Event) -> Iterator[Breach]:
        side = getattr(self.run.tokenizer, "padding_side", None)
        if side is None:
            return
        self.exercised = True
        before, self._side = self._side or side, side
        if side != before:
            yield Breach(
                f"tokenizer.padding_side was '{before}' at the rollout before and is '{side}' now",
                key="changed",
            )

    def measure(self, event: Event) -> None:
        mask = event.attention_mask
        if mask is None or not mask.numel() or not models.decoder_only(self.run.policy):
            return
        self.exercised = True
        self.add("rows", float(mask.shape[0]))
        self.add("right", ((mask[:, -1] == 0) & (mask > 0).any(1)).sum())

    def judge(self, readings: Readings) -> Iterator[Breach]:
        if readings["right"]:
            side = f" (tokenizer.padding_side is '{self._side}')" if self._side else ""
            yield Breach(
                f"{int(readings['right']):,} of {int(readings['rows']):,} prompts end in padding{side}: their"
                " responses were sampled after it",
                value=readings["right"],
                limit=0.0,
                key="right",
            )

    def state_dict(self) -> dict[str, Any]:
        return {"side": self._side}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._side = state["side"]


SAMPLER_STOPS = "stop tokens of the sampler"
"""Note of a run: the ids at which generate() is known to stop, whatever the checkpoint's generation config says."""


class StopSets(Invariant):
    """Sampler and trainer end a response at the same tokens.

    Compared are what the loop says of the rollout and what the guard was given, or else the generation config.
    The tokenizer's own end token has to be among them; a generation config may well have more. A trainer that hands
    stops of its own to every generate() overrides the generation config: its adapter notes them.

    What the tokens say counts too: where the response mask ends at a stop token and tokens of the vocabulary follow
    that are neither padding nor a stop, and not one and the same, the sampler did not stop there. It went on to the
    longest length, whatever the loop calls the end.
    """

    code = "KLG817"
    watches = (Setup, Rollout)
    sums = ("ended", "went_on")
    maxima = ("next", "minus_next")
    ROWS, SHARE = 4, 0.8

    def inspect(self, event: Event) -> Iterator[Breach]:
        run = self.run
        trainer = frozenset(run.stop_ids or ())
        if isinstance(event, Setup):
            config = getattr(models.inner(run.policy), "generation_config", None)
            sampler, whose = run.notes.get(SAMPLER_STOPS, models.stop_ids(config)), "generation_config"
        elif event.handle is None:
            # calls of generate() that are only watched may be an evaluation, with stops of its own
            sampler, whose = frozenset(event.stop_ids or ()), "the rollout"
        else:
            return
        if not trainer or not sampler:
            return
        self.exercised = True
        if sampler != trainer:
            yield Breach(
                f"{whose} stops at {_listed(sampler)}, the trainer at {_listed(trainer)}",
                key="sets",
                measured={"sampler": sorted(sampler), "trainer": sorted(trainer)},
            )
            return
        own = models.stop_ids(run.tokenizer)
        if own and not own <= trainer:
            yield Breach(
                f"the tokenizer's end of sequence, {_listed(own)}, ends no response: sampler and trainer stop at"
                f" {_listed(trainer)}",
                key="tokenizer",
                severity=Severity.WARNING,
            )

    def measure(self, event: Event) -> None:
        if not isinstance(event, Rollout) or event.mask is None or event.tool_mask is not None:
            return
        stops = {*(event.stop_ids or ()), *(self.run.stop_ids or ())}
        padding = models.padding_id(self.run.policy, self.run.tokenizer)
        responses, mask = event.responses, split_mask(event)[0]
        if not stops or padding is None or padding in stops or responses.shape[1] < 2:
            return
        self.exercised = True
        stop = one_of(responses, tuple(stops))
        behind = mask.flip(1).cumsum(1).flip(1) == 0
        ended = ((stop & mask)[:, :-1] & behind[:, 1:]).any(1)
        sampled = behind & ended[:, None] & ~stop & (responses != padding) & (responses >= 0)
        self.add("ended", ended.sum())
        self.add("went_on", sampled.any(1).sum())
        self.highest("next", torch.where(sampled, responses, -1))
        self.highest("minus_next", torch.where(sampled, -responses, -torch.iinfo(torch.int32).max))

    def judge(self, readings: Readings) -> Iterator[Breach]:
        ended, went_on = readings["ended"], readings["went_on"]
        if went_on < self.ROWS or went_on < self.SHARE * ended or readings["next"] == -readings["minus_next"]:
            return
        yield Breach(
            f"the sampler went on behind the stop token in {went_on:.0f} of the {ended:.0f} responses that have one"
            " before their end: it does not stop where the trainer does",
            value=went_on,
            limit=0.0,
            key="went on",
            severity=Severity.WARNING,
            help="give the stop tokens to the sampler (eos_token_id in the generation config, stop_token_ids of an"
            " engine): nothing behind the first is used, and lengths and truncation are those of the sampler",
        )


def _listed(ids: frozenset[int]) -> str:
    """`token 2`, `tokens 1, 2`, at most eight of them."""
    shown = ", ".join(str(token) for token in sorted(ids)[:8]) + (", ..." if len(ids) > 8 else "")
    return f"token{'s' if len(ids) > 1 else ''} {shown}"
