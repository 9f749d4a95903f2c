"""KLG805: the same tokens have the same log-probabilities whenever they are scored."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from klguard.findings import Severity
from klguard.guard import models, probe
from klguard.guard.events import Event, Pairs, Preflight, Rollout, Scoring
from klguard.guard.invariants.invariant import HALF, Breach, Invariant, Run, tolerance
from klguard.guard.ledger import Readings
from klguard.guard.rescoring import EXPLAINED, SLOTS, diagnosis, rescoring


class RandomScoring(Invariant):
    """The same tokens have the same log-probabilities whenever they are scored.

    Before training the loop's own functions are called twice. In the run the switches of the models are read
    when they have sampled and scored, and one row of the first rollout, scored again in eval mode, tells
    whether the policy's dropout was really at work.
    """

    code = "KLG805"
    watches = (Preflight, Rollout, Scoring, Pairs)
    sums = ("reference", "policy", *SLOTS)

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._where: dict[str, tuple[str, float]] = {}
        self._precision = torch.float32
        # switched on when the loop tells of its scores, but off when it made them
        self._misleading = False

    def inspect(self, event: Event) -> Iterator[Breach]:
        if not isinstance(event, Preflight):
            return
        rows = probe.sequences(self.run, event)
        functions = {"score": event.score, "reference_score": event.reference_score}
        for name, function in functions.items() if rows else ():
            if function is not None:
                yield from self._twice(name, function, rows, event)

    def _twice(self, name: str, function: Any, rows: list[Tensor], event: Preflight) -> Iterator[Breach]:
        ids, attention = probe.batched(rows, models.padding_id(self.run.policy, self.run.tokenizer), event)
        with probe.quietly(ids.device):
            first, second = (probe.scored(function, ids, attention) for _ in range(2))
        self.exercised = True
        mean, largest = probe.difference(first, second)
        model = self.run.policy if name == "score" else self.run.reference
        # not exactly 0: kernels that add in any order differ by rounding. Dropout differs by tenths of a nat
        limit = tolerance(models.precision(model), fp32=1e-5, half=1e-2)
        if largest > limit:
            switch = models.active_dropout(model)
            why = f": `{switch[0]}` with p={switch[1]:g} is in train mode" if switch else ""
            yield Breach(
                f"{name}() gives two different answers to the same tokens, {mean:.2g} nats per token apart on"
                f" average, at most {largest:.2g}{why}",
                value=largest,
                limit=limit,
                key=name,
            )

    def measure(self, event: Event) -> None:
        policy, reference = self.run.policy, self.run.reference
        if isinstance(event, Pairs):
            self._note("reference", reference)
        elif not isinstance(event, Preflight):
            if isinstance(event, Rollout):
                rescoring(self.run).see(self.run, event)
            else:
                self._measure_row(event)
            self._note("policy", policy)

    def _measure_row(self, event: Scoring) -> None:
        self._precision = models.precision(self.run.policy) if event.dtype not in HALF else event.dtype
        result = rescoring(self.run).of(self.run, event)
        for name, figure in result.figures.items() if result else ():
            self.add(name, figure)

    def _note(self, whose: str, module: nn.Module | None) -> None:
        if module is None:
            return
        self.exercised = True
        switch = models.active_dropout(module)
        if switch is not None:
            self._where[whose] = switch
            self.add(whose, 1.0)

    def judge(self, readings: Readings) -> Iterator[Breach]:
        said = diagnosis(readings, self._precision in HALF)
        if readings["policy"] and said in EXPLAINED:
            self._misleading = True
        if readings["reference"]:
            yield self._switched("reference", "", Severity.ERROR)
        if readings["policy"] and not self._misleading:
            if said == "unexplained":
                off = readings["off"] / readings["rescored"]
                seen = f"; a row scored again in eval mode differs by {off:.2g} nats per token"
                yield self._switched("policy", seen, Severity.ERROR)
            else:
                yield self._switched("policy", "", Severity.WARNING)

    def _switched(self, whose: str, seen: str, severity: Severity) -> Breach:
        name, p = self._where.get(whose, ("a dropout", math.nan))
        return Breach(
            f"`{name}` of the {whose} is in train mode with p={p:g} while the rollout is scored{seen}",
            value=p,
            limit=0.0,
            key=whose,
            severity=severity,
        )

    def state_dict(self) -> dict[str, Any]:
        return {"misleading": self._misleading}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._misleading = state["misleading"]
