"""KLG818: the token that follows the prompt is trained."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from klguard.findings import Severity
from klguard.guard import models
from klguard.guard.events import Event, Minibatch, Rollout
from klguard.guard.invariants.invariant import Breach, Invariant, Run
from klguard.guard.invariants.masks import split_mask
from klguard.guard.kl import valid_tokens
from klguard.guard.ledger import Readings

_BEGINNING = 2
"""Tokens by which a row of a minibatch is known to begin where a response of the rollout does."""


class FirstTokenMasked(Invariant):
    """The first token of a response is in the mask of its row.

    Said only where every row of a step lacks it and has the second one: a mask that is off by one does that, and
    no filter. Responses have to begin behind the prompt, so the rollout has to tell its prompts. A first token that
    is the same in all rows was forced (a language, the opening of a template), one that a tool wrote or that is
    padding was not sampled either, and what an encoder-decoder begins with is its start token.

    Where tools wrote, what the policy wrote before they did first is part of the response too. A step in which no row's
    mask has any of that trains later turns alone, which may be meant: a warning.

    The mask of the loss is held against the rollout's, where that has the first tokens: in minibatches as wide as
    the rollout whose rows begin with the same two tokens as a response.
    """

    code = "KLG818"
    watches = (Rollout, Minibatch)
    sums = ("rows", "without", "different", "trained_rows", "trained_without", "turns", "turns_without")
    ROWS, DIFFERENT = 4, 2

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._step = -1
        self._width: int | None = None
        self._beginnings: list[Tensor] = []

    def measure(self, event: Event) -> None:
        if getattr(models.config(self.run.policy), "is_encoder_decoder", False):
            return
        if isinstance(event, Rollout):
            self._measure_rollout(event)
        else:
            self._measure_minibatch(event)

    def _measure_rollout(self, event: Rollout) -> None:
        if self._step != self.run.step:
            self._step, self._width, self._beginnings = self.run.step, None, []
        responses = event.responses
        if (
            event.prompts is None
            or event.mask is None
            or not len(responses)
            or responses.shape[1] < _BEGINNING
        ):
            return
        self.exercised = True
        mask = valid_tokens(split_mask(event)[0])
        without = ~mask[:, 0] & mask[:, 1]
        if event.tool_mask is not None:
            tool = event.tool_mask.to(mask.device, non_blocking=True).bool()
            without = without & ~tool[:, 0]
            self._measure_turns(mask, tool)
        padding = models.padding_id(self.run.policy, self.run.tokenizer)
        if padding is not None:
            without = without & (responses[:, 0] != padding)
        self.add("rows", mask.any(1).sum())
        self.add("without", without.sum())
        self.add("different", (without & (responses[:, 0] != responses[:1, 0])).sum())
        if event.tool_mask is None:
            self._width = responses.shape[1] if self._width in (None, responses.shape[1]) else -1
            self._beginnings.append(torch.where(mask[:, :1], responses[:, :_BEGINNING], -1))

    def _measure_turns(self, mask: Tensor, tool: Tensor) -> None:
        """Rows that begin with what the policy wrote, before a tool did, and those whose mask has none of it."""
        before = (tool.cumsum(1) == 0) & tool.any(1, keepdim=True)
        turns = mask.any(1) & (before.sum(1) >= _BEGINNING)
        self.add("turns", turns.sum())
        self.add("turns_without", (turns & ~(mask & before).any(1)).sum())

    def _measure_minibatch(self, event: Minibatch) -> None:
        tokens = event.tokens
        if self._step != self.run.step or not self._beginnings or tokens is None:
            return
        if tokens.shape != event.mask.shape or tokens.shape[1] != self._width:
            return
        mask = valid_tokens(event.mask)
        known = torch.cat(self._beginnings).to(tokens.device, non_blocking=True)
        own = (tokens[:, None, :_BEGINNING] == known[None]).all(2).any(1)
        trained = mask.any(1)
        self.add("trained_rows", trained.sum())
        self.add("trained_without", (trained & own & ~mask[:, 0] & mask[:, 1]).sum())

    def judge(self, readings: Readings) -> Iterator[Breach]:
        rows, without = readings["rows"], readings["without"]
        if rows >= self.ROWS and without == rows and readings["different"] >= self.DIFFERENT:
            yield self._said("the response mask", rows)
            return
        turns = readings["turns"]
        if turns >= self.ROWS and readings["turns_without"] == turns:
            yield Breach(
                f"in all {turns:.0f} rows with a tool's output the response mask leaves out everything before it: what"
                " the policy wrote in its first turn is never trained",
                value=turns, limit=0.0, key="turns", severity=Severity.WARNING,
                help="put every token that the policy sampled into the mask, or ignore this where only later turns are"
                " meant to be trained",
            )  # fmt: skip
            return
        trained = readings["trained_rows"]
        if trained >= self.ROWS and readings["trained_without"] == trained:
            yield self._said("the mask of the minibatches", trained)

    @staticmethod
    def _said(what: str, rows: float) -> Breach:
        return Breach(
            f"{what} leaves out the first response token in all {rows:.0f} rows, and begins at the second: the token"
            " that follows the prompt is never trained",
            value=rows,
            limit=0.0,
            key="first",
        )
