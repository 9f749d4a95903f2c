"""KLG866 to KLG869: rows keep what belongs to them on their way from the rollout into the minibatches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from klguard.findings import Severity
from klguard.guard.events import Advantages, Dropped, Event, Minibatch, Rollout, Scoring, StepEnd
from klguard.guard.invariants.invariant import Breach, Invariant, Run
from klguard.guard.invariants.measuring import Consecutive, ids
from klguard.guard.kl import valid_tokens
from klguard.guard.ledger import Readings

_ODD = -7046029254386353131
"""2**64 divided by the golden ratio, an odd number: spreads consecutive numbers over 64 bits."""


def _spread(values: Tensor) -> Tensor:
    """Integers scattered over 64 bits, so that sums of them do not agree by accident."""
    mixed = values.long() * _ODD
    return (mixed ^ (mixed >> 29)) * _ODD


def _checksum(tokens: Tensor, places: Tensor, counted: Tensor) -> Tensor:
    """(B,) int64 checksum, modulo 2**64, of the counted tokens (B, T) and their places (B, T)."""
    return torch.where(counted, _spread(tokens + 1) * (_spread(places + 1) | 1), 0).sum(1)


@dataclass(frozen=True)
class Comparison:
    """What became of the rows (b,) of a minibatch; flags on the device.

    rows      their ids.
    looked    the row is known from the rollout, once.
    exchanged its tokens are exactly those of another row.
    others    its tokens are nobody's.
    exceeds   its mask covers tokens that the mask of the rollout leaves out.
    """

    rows: Tensor
    looked: Tensor
    exchanged: Tensor
    others: Tensor
    exceeds: Tensor


class RowTable:
    """The rows of a step's rollout, with their tokens and masks, until the next step. Shared by invariants.

    Ids that are not told count from 0, which says nothing where a step has several rollouts.
    """

    def __init__(self) -> None:
        self._step: int | None = None
        self._last: Event | None = None
        self._answer: Comparison | None = None
        self._rollouts: list[Rollout] = []
        self._joined: tuple[Tensor, Tensor, Tensor | None] | None = None

    def see(self, event: Rollout, step: int) -> None:
        """Take up a rollout, once however many invariants tell of it."""
        if step != self._step:
            self._step, self._rollouts, self._last, self._answer = step, [], None, None
        if event is not self._last and event.responses.dim() == 2:
            self._last, self._joined = event, None
            self._rollouts.append(event)

    def ids(self, step: int) -> Tensor | None:
        """(N,) ids of the step's rows, or None where they are not known."""
        joined = self._join() if step == self._step else None
        return None if joined is None else joined[0]

    def compare(self, event: Minibatch, step: int) -> Comparison | None:
        """The rows of a minibatch with those of the rollout; None where they cannot be compared."""
        if event is self._last:
            return self._answer
        self._last, self._answer = event, None
        joined = self._join() if step == self._step else None
        if joined is not None and event.tokens is not None and event.tokens.shape == event.mask.shape:
            if event.rows is not None:
                self._answer = self._compared(event, ids(event.rows, joined[0].device), *joined)
            elif event.tokens.shape == joined[1].shape:
                self._answer = self._whole(event, *joined)
        return self._answer

    def _whole(
        self, event: Minibatch, numbers: Tensor, tokens: Tensor, mask: Tensor | None
    ) -> Comparison | None:
        """All rows at once, without their ids: the same rows where all of their tokens are the same."""
        found = self._compared(event, numbers, numbers, tokens, mask)
        if found is None:
            return None
        same = (event.tokens == tokens).all()
        return replace(found, looked=found.looked & same, exchanged=found.exchanged & same,
                       others=found.others & same, exceeds=found.exceeds & same)  # fmt: skip

    def _join(self) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """Ids (N,), tokens (N, T) and masks (N, T) of all rollouts, the last None where one lacks it."""
        several = len(self._rollouts) > 1
        if not self._rollouts or (several and any(one.rows is None for one in self._rollouts)):
            return None
        if self._joined is None:
            device = self._rollouts[0].responses.device
            width = max(one.responses.shape[1] for one in self._rollouts)
            numbers = [
                torch.arange(len(one.responses), device=device) if one.rows is None else ids(one.rows, device)
                for one in self._rollouts
            ]
            if any(len(n) != len(one.responses) for n, one in zip(numbers, self._rollouts, strict=True)):
                return None
            tokens = torch.cat([_widened(one.responses, width) for one in self._rollouts])
            masks = [_own_mask(one) for one in self._rollouts]
            known = all(mask is not None for mask in masks)
            mask = torch.cat([_widened(mask, width) for mask in masks]) if known else None
            self._joined = torch.cat(numbers), tokens, mask
        return self._joined

    def _compared(
        self, event: Minibatch, rows: Tensor, numbers: Tensor, tokens: Tensor, mask: Tensor | None
    ) -> Comparison | None:
        if len(rows) != len(event.tokens):
            return None
        match = rows[:, None] == numbers[None]
        looked, index = match.sum(1) == 1, match.to(torch.uint8).argmax(1)
        valid = valid_tokens(event.mask)
        own = None if mask is None else mask[index]
        aligned = event.tokens.shape[1] == tokens.shape[1]
        another = torch.zeros_like(looked)
        if own is not None:  # the valid tokens alone, in their order: trimming and padding do not matter
            new, all_rows = (
                _checksum(event.tokens, valid.cumsum(1), valid),
                _checksum(tokens, mask.cumsum(1), mask),
            )
            another = (new[:, None] == all_rows[None]).any(1)
            differs = (valid.sum(1) == own.sum(1)) & (new != all_rows[index])
            exceeds = valid.sum(1) > own.sum(1)
        elif not aligned:
            return None
        if aligned:
            own = torch.ones_like(valid) if own is None else own
            differs = (valid & own & (event.tokens != tokens[index])).any(1)
            exceeds = (valid & ~own).any(1)
            everything, places = (
                torch.ones_like(valid[:1]),
                torch.arange(tokens.shape[1], device=tokens.device),
            )
            new, all_rows = (_checksum(t, places[None], everything) for t in (event.tokens, tokens))
            another = another | (new[:, None] == all_rows[None]).any(1)
        exchanged = differs & another
        return Comparison(
            rows, looked, looked & exchanged, looked & differs & ~exchanged, looked & exceeds & ~differs
        )


def _widened(values: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, width - values.shape[1]))


def _own_mask(event: Rollout) -> Tensor | None:
    if event.mask is None or event.mask.shape != event.responses.shape:
        return None
    return valid_tokens(event.mask)


def _table(run: Run) -> RowTable:
    return run.notes.setdefault("rows", RowTable())


class _Rows(Invariant):
    """Looks at the rows of each minibatch."""

    watches = (Rollout, Minibatch)
    sums = ("rows", "wrong")
    maxima = ("row",)

    def measure(self, event: Event) -> None:
        table = _table(self.run)
        if isinstance(event, Rollout):
            table.see(event, self.run.step)
            return
        found = table.compare(event, self.run.step)
        if found is not None:
            self.exercised = True
            wrong = self.wrong(found)
            self.add("rows", found.looked.sum())
            self.add("wrong", wrong.sum())
            self.highest("row", torch.where(wrong, found.rows, -1))

    def wrong(self, found: Comparison) -> Tensor:
        """(b,) bool: what this invariant is about."""
        raise NotImplementedError


class ReorderedRows(_Rows):
    """A row of a minibatch has its own tokens, and a mask within the one it had in the rollout. A loop may train
    on fewer tokens than it sampled; it has no reason to train on more, unless the mask is another row's."""

    code = "KLG866"

    def wrong(self, found: Comparison) -> Tensor:
        return found.exchanged | found.exceeds

    def judge(self, readings: Readings) -> Iterator[Breach]:
        if readings["wrong"]:
            yield Breach(
                f"{readings['wrong']:.0f} of {readings['rows']:.0f} rows in the minibatches carry the tokens of"
                f" another row, or a mask that covers more than theirs in the rollout (row {readings['row']:.0f})",
                value=readings["wrong"], limit=0.0,
            )  # fmt: skip


class OtherTokens(_Rows):
    """The valid tokens of a row in a minibatch are those of the same row in the rollout, id by id. In a loop that is
    watched, a row that no pass scored was written anew if one went on from its prompt with other tokens: a warning,
    since nothing names the row."""

    code = "KLG867"
    watches = (Rollout, Minibatch, Dropped)
    sums = (*_Rows.sums, "rewritten")

    def measure(self, event: Event) -> None:
        if isinstance(event, Dropped):
            self.add("rewritten", event.rewritten)
        else:
            super().measure(event)

    def wrong(self, found: Comparison) -> Tensor:
        return found.others

    def judge(self, readings: Readings) -> Iterator[Breach]:
        if readings["rewritten"]:
            yield Breach(
                f"the policy scored other tokens than were sampled after the prompts of {readings['rewritten']:.0f} rows"
                " of a rollout, and these rows never",
                value=readings["rewritten"], limit=0.0, key="rewritten", severity=Severity.WARNING,
            )  # fmt: skip
        if readings["wrong"]:
            yield Breach(
                f"{readings['wrong']:.0f} of {readings['rows']:.0f} rows in the minibatches have other tokens than"
                f" were sampled (row {readings['row']:.0f})",
                value=readings["wrong"], limit=0.0,
            )  # fmt: skip


class MinibatchCoverage(Invariant):
    """In each epoch no row comes twice, and in the first epoch every row comes.

    Epochs may be stopped early, so a row missing from the first one counts where another epoch followed, or in
    three steps in a row. Where every rank has the rows of all and trains on a part of them, none is missing. Rows may
    be left out on purpose, so that this is a warning, and nothing is said of rows whose advantages are 0, or were never
    made.
    """

    code = "KLG868"
    watches = (Rollout, Advantages, Minibatch, StepEnd)
    sums = ("twice", "missing", "rolled", "seen", "followed", "ranks")
    maxima = ("largest",)

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._step: int | None = None
        self._counts: dict[int, Tensor] = {}
        self._advantages: list[Tensor] = []
        self._missing = Consecutive(3)

    def measure(self, event: Event) -> None:
        table, step = _table(self.run), self.run.step
        if step != self._step:
            self._step, self._counts, self._advantages = step, {}, []
        if isinstance(event, Rollout):
            table.see(event, step)
        elif isinstance(event, Advantages):
            self._advantages.append(event.advantages)
        elif isinstance(event, Minibatch):
            numbers = table.ids(step)
            if numbers is not None and event.rows is not None and event.epoch is not None:
                self._count(numbers, event.rows, int(event.epoch))
        elif self._counts:
            self._sum_up(table.ids(step))

    def _count(self, numbers: Tensor, rows: Sequence[int] | Tensor, epoch: int) -> None:
        given = ids(rows, numbers.device)
        found = (given[:, None] == numbers[None]).sum(0)
        before = self._counts.get(epoch)
        self._counts[epoch] = found if before is None or before.shape != found.shape else before + found
        self.highest("largest", float(given.numel()))

    def _sum_up(self, numbers: Tensor | None) -> None:
        if numbers is None:
            return
        self.exercised = True
        first = self._counts[min(self._counts)]
        once = ((numbers[:, None] == numbers[None]).sum(1) == 1).all()  # else ids are not those of rows
        self.add("twice", torch.stack([(counts > 1).sum() for counts in self._counts.values()]).sum() * once)
        missing = ((first == 0) & self._pushed(numbers)).sum()
        chosen = sum(len(one) for one in self._advantages)
        if 0 < chosen < numbers.numel():  # rows were dropped before the loop made its advantages
            missing = (chosen - (first > 0).sum()).clamp(min=0)
        self.add("missing", missing * once)
        self.add("seen", (first > 0).sum() * once)
        self.add("rolled", float(numbers.numel()))
        self.add("followed", float(len(self._counts) > 1))
        self.add("ranks", 1.0)

    def _pushed(self, numbers: Tensor) -> Tensor:
        """(N,) rows with an advantage other than 0, as far as advantages are told of all rows at once."""
        everyone = torch.ones_like(numbers, dtype=torch.bool)
        if len(self._advantages) != 1 or len(self._advantages[0]) != len(numbers):
            return everyone
        return (self._advantages[0].reshape(len(numbers), -1) != 0).any(1).to(numbers.device)

    def judge(self, readings: Readings) -> Iterator[Breach]:
        if not readings["ranks"]:
            return
        rolled, seen, missing, ranks = (readings[name] for name in ("rolled", "seen", "missing", "ranks"))
        if readings["twice"]:
            yield Breach(
                f"{readings['twice']:.0f} times a row came more than once in an epoch, and {missing:.0f} of"
                f" {rolled:.0f} rows not at all in the first",
                value=readings["twice"], limit=0.0, key="twice",
            )  # fmt: skip
            return
        parted = ranks > 1 and abs(seen * ranks - rolled) <= ranks
        lacking = missing > 0 and not parted
        several = self._missing.see(lacking)
        if not lacking or not (readings["followed"] or several):
            return
        remainder = missing < readings["largest"] * ranks
        why = ": the last minibatch, which would be smaller, is dropped" if remainder else ""
        leave = "where rows are left out on purpose, ignore KLG868; else split one permutation of all rows"
        yield Breach(
            f"{missing:.0f} of {rolled:.0f} rows came in no minibatch of the first epoch{why}",
            value=missing, limit=0.0, key="missing", severity=Severity.WARNING, help="" if remainder else leave,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {"missing": self._missing.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._missing.load_state_dict(state["missing"])


class FilteredFirst(Invariant):
    """Every row that was sampled is scored for the guard. Of loops that tell both by hand: rows told by the
    rollout and not scored, in two steps, were dropped for what they contain."""

    code = "KLG869"
    watches = (Rollout, Scoring)
    sums = ("filtered", "rolled", "scored")
    STEPS = 2

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._steps = 0

    def measure(self, event: Event) -> None:
        if isinstance(event, Rollout):
            self.exercised = True
            self.add("filtered", float(event.filtered or 0))
            if event.handle is None:  # else generate() was watched, maybe for an evaluation
                self.add("rolled", float(len(event.responses)))
        elif event.place is not None:  # else forward passes were watched, maybe not all
            self.add("scored", float(len(event.logprobs)))

    def judge(self, readings: Readings) -> Iterator[Breach]:
        filtered, rolled, scored = (readings[name] for name in self.sums)
        if filtered:
            yield Breach(
                f"{filtered:.0f} rows were dropped after they were sampled and before the guard saw them",
                value=filtered, limit=0.0, key="filtered",
            )  # fmt: skip
        if 0 < scored < rolled:
            self._steps += 1
            if self._steps >= self.STEPS:
                yield Breach(
                    f"{rolled:.0f} rows were sampled and {scored:.0f} were scored, and it was so in {self._steps}"
                    " steps",
                    value=rolled - scored, limit=0.0, key="not scored",
                )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._steps = state["steps"]
