"""KLG801, KLG803: the reference begins as a copy of the policy, and is a model of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from klguard.findings import Severity
from klguard.guard import models, probe
from klguard.guard.events import Event, Pairs, Preflight, Rollout, Scoring, Setup, Update
from klguard.guard.fingerprint import memory, writes
from klguard.guard.invariants.invariant import HALF, Breach, Invariant, Run, tolerance
from klguard.guard.invariants.measuring import Consecutive
from klguard.guard.invariants.updates import sample, spread
from klguard.guard.ledger import Readings
from klguard.guard.rescoring import NAMED, SLOTS, diagnosis, rescoring


def _weights(run: Run) -> int:
    """Counts torch's writes to the policy's parameters."""
    return 0 if run.policy is None else sum(writes(p) for p in run.policy.parameters())


class FirstKL(Invariant):
    """A policy that begins with the weights of its reference has a KL of 0 until its first update.

    Whether it does is looked up in the weights themselves; a policy that was trained before has its KL. Dropout
    and a shift of the logits also give a KL: KLG805, KLG703 and KLG814 name them, and this one keeps silent.

    Without a reference model the reference is the policy with its adapter switched off. Where the adapter was
    trained before, that is not the policy the run starts from, which is a warning: KL begins with what the earlier
    training did. A run that is resumed has such an adapter too; it shows in the optimizer, which is not fresh then.
    """

    code = "KLG801"
    watches = (Setup, Preflight, Scoring, Rollout, Pairs, Update)
    sums = ("tokens", "distance", "noisy", "fresh", "resumed", *SLOTS)
    maxima = ("largest",)

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._copy: bool | None = None
        self._trained_before = False
        self._version = 0
        self._precision = torch.float32
        self._mixed = self._asked = False

    def inspect(self, event: Event) -> Iterator[Breach]:
        if isinstance(event, Setup) or (isinstance(event, Rollout) and self._rewritten()):
            self._compare()
        if isinstance(event, Preflight) and event.score and event.reference_score:
            yield from self._try(event)

    def _rewritten(self) -> bool:
        """Whether the weights were written to between the setup and the first rollout: DDP sends those of rank 0
        to all ranks when it wraps the policy. Asked once."""
        asked, self._asked = self._asked, True
        return not asked and not self._untouched()

    def _compare(self) -> None:
        """Whether the policy begins as a copy; waits for the device, before training."""
        run = self.run
        fresh = run.step == 0 and run.version == 0
        self._copy = fresh and models.copies(run.policy, run.reference)
        alone = run.reference is None or run.reference is run.policy
        self._trained_before = fresh and alone and models.adapter_adds(run.policy) and run.kl_coef != 0
        self._version = _weights(run)
        self._precision = models.precision(run.policy, run.reference)
        self._mixed = (
            run.reference is not None and len({models.precision(m) for m in (run.policy, run.reference)}) > 1
        )

    def _try(self, event: Preflight) -> Iterator[Breach]:
        if not self._copy or _weights(self.run) != self._version:
            return
        rows = probe.sequences(self.run, event)
        if not rows:
            return
        ids, attention = probe.batched(rows, models.padding_id(self.run.policy, self.run.tokenizer), event)
        with probe.quietly(ids.device):
            first, second = (probe.scored(event.score, ids, attention) for _ in range(2))
            reference = [probe.scored(event.reference_score, ids, attention) for _ in range(2)]
        noise = max(probe.difference(first, second)[1], probe.difference(*reference)[1])
        self.exercised = True
        mean, largest = probe.difference(first, reference[0])
        if noise <= tolerance(self._precision, fp32=1e-5, half=1e-2):
            yield from self._judged(mean, largest, "score() and reference_score()")

    def measure(self, event: Event) -> None:
        if isinstance(event, Rollout):
            rescoring(self.run).see(self.run, event)
        elif isinstance(event, Scoring) and (self._first() or self._trained_before):
            result = rescoring(self.run).of(self.run, event)
            for name, figure in result.figures.items() if result else ():
                self.add(name, figure)
        elif isinstance(event, Update):
            self._measure_optimizer(event)
        elif isinstance(event, Pairs) and (self._first() or (self._trained_before and self._untouched())):
            self.exercised = True
            distance = (event.logprobs.double() - event.reference_logprobs.double()).abs()
            distance = torch.where(event.mask & distance.isfinite(), distance, 0.0)
            self.add("tokens", event.mask.sum())
            self.add("distance", distance)
            self.highest("largest", distance)
            noisy = models.active_dropout(self.run.policy) or models.active_dropout(self.run.reference)
            self.add("noisy", float(noisy is not None))

    def _untouched(self) -> bool:
        run = self.run
        return run.step == 0 and run.version == 0 and _weights(run) == self._version

    def _first(self) -> bool:
        return bool(self._copy) and self._untouched()

    def _measure_optimizer(self, event: Update) -> None:
        """Whether the optimizer that is about to step for the first time has stepped in an earlier run."""
        if self._trained_before and not event.after and self.run.step == 0 and self.run.version == 0:
            self.add("fresh" if not event.optimizer.state else "resumed", 1.0)

    def judge(self, readings: Readings) -> Iterator[Breach]:
        mean = readings.mean("distance", "tokens")
        named = diagnosis(readings, self._precision in HALF) in NAMED
        if mean is None or readings["noisy"] or named:
            return
        if self._trained_before:
            if readings["fresh"] and not readings["resumed"]:
                yield from self._said_of_adapter(mean)
            return
        yield from self._judged(
            mean, readings.maximum("largest"), "their log-probabilities of the first rollout"
        )

    def _said_of_adapter(self, mean: float) -> Iterator[Breach]:
        limit = tolerance(self._precision, fp32=1e-2, half=5e-2)
        if mean > limit:
            yield Breach(
                f"no update has happened, and the reference differs from the policy by {mean:.2g} nats per token on"
                " average: it is the base without the adapter, and the adapter was trained before",
                value=mean,
                limit=limit,
                key="adapter",
                severity=Severity.WARNING,
                help="keep a copy of the adapter as it is now, and score the reference with that; where KL to the base"
                " is what you want, ignore KLG801",
            )

    def _judged(self, mean: float, largest: float, what: str) -> Iterator[Breach]:
        certain = tolerance(self._precision, fp32=1e-2, half=5e-2)
        # weights rounded to half precision give other log-probabilities than those they were rounded from
        limit = certain if self._mixed else tolerance(self._precision, fp32=1e-4, half=5e-3)
        if mean > limit:
            yield Breach(
                f"policy and reference have the same weights and no update has happened, but {what} differ by"
                f" {mean:.2g} nats per token on average, at most {largest:.2g}: KL does not start at 0",
                value=mean,
                limit=limit,
                severity=Severity.ERROR if mean > certain else Severity.WARNING,
            )


_SCORED = {
    "adapter": (
        "the policy's adapter is not 0",
        "score the reference inside `with model.disable_adapter():`, or with the adapter that is the reference",
    ),
    "weights": (
        "the two have different weights by now",
        "score the reference with the reference model",
    ),
}
"""How policy and reference are known to differ, and what to do when the log-probs do not."""


class ReferenceAliased(Invariant):
    """What is trained in the policy is not part of the reference. Frozen layers may be shared, and adapters,
    which are switched off for the reference.

    Whether they were, and whether the reference was scored by the reference at all, shows in the log-probs: where
    the weights differ visibly, those of the reference are not the policy's bit for bit at every token. Weights
    differ when the second factor of a LoRA adapter is not 0, or when at least `SHARE` of a sample of the policy's
    weights is not the reference's after rounding to bfloat16 (in which both may compute). A KL of weight 0 has
    no reference worth the name, and is not looked at.
    """

    code = "KLG803"
    watches = (Setup, Rollout, Pairs)
    sums = ("tokens", "apart", "weighed", "compared", "unequal", "adapters")
    STEPS, TOKENS, SHARE, TENSORS, ELEMENTS = 3, 32, 1e-3, 8, 4096

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._looked: set[tuple[int, int]] = set()
        self._same = Consecutive(self.STEPS)
        self._weighed = -1
        self._differ = ""

    def inspect(self, event: Event) -> Iterator[Breach]:
        policy, reference = self.run.policy, self.run.reference
        if policy is None or reference is None:
            return
        pair = id(policy), id(reference)
        if isinstance(event, Rollout) and pair in self._looked:
            return
        shared = self._shared(policy, reference)
        if shared is None:
            return
        self.exercised = True
        if isinstance(event, Rollout):
            self._looked.add(pair)
        if shared:
            same = "the reference is the policy itself" if policy is reference else ""
            yield Breach(
                same
                or f"`{shared[0]}`{f' and {len(shared) - 1} more' if len(shared) > 1 else ''} of the policy, which"
                " is trained, shares its memory with the reference: KL is 0 for ever",
                value=float(len(shared)),
                limit=0.0,
            )

    def measure(self, event: Event) -> None:
        if not isinstance(event, Pairs) or self.run.policy is None or self.run.kl_coef == 0:
            return
        apart = (event.logprobs != event.reference_logprobs) & event.mask
        self.add("tokens", event.mask.sum())
        self.add("apart", apart.sum())
        # weights that differ stay so, unless the reference is set anew: that shows in the log-probs first
        due = not self._differ or self._same.figures
        if due and self._weighed != self.run.step:
            self._weighed = self.run.step
            self.add("weighed", 1.0)
            self._weigh(self.run.policy)

    def _weigh(self, policy: nn.Module) -> None:
        """Whether policy and reference are different models at present, by samples of their weights."""
        own = {models.own_name(name): p for name, p in policy.named_parameters()}
        factors = [p for name, p in own.items() if "lora_B" in name and p.requires_grad]
        for factor in spread(factors, self.TENSORS):
            values = sample(factor, self.ELEMENTS)
            if values is not None:
                self.add("adapters", (values != 0).any())
        reference = self.run.reference
        if factors or reference is None or reference is policy:
            return
        theirs = {models.own_name(name): p for name, p in reference.named_parameters()}
        # a value head, which both may have, has no part in the log-probs
        both = [
            name
            for name, p in own.items()
            if p.requires_grad and p.is_floating_point() and name in theirs and not models.of_values(name)
        ]
        for name in spread(both, self.TENSORS):
            mine, other = (sample(p, self.ELEMENTS) for p in (own[name], theirs[name]))
            if mine is not None and other is not None and mine.shape == other.shape:
                other = other.to(mine.device, non_blocking=True)
                self.add("compared", float(mine.numel()))
                self.add("unequal", (mine.bfloat16() != other.bfloat16()).sum())

    def judge(self, readings: Readings) -> Iterator[Breach]:
        if readings["weighed"]:
            compared, adapters = readings["compared"], readings["adapters"]
            differ = compared > 0 and readings["unequal"] >= self.SHARE * compared
            self._differ = "adapter" if adapters else "weights" if differ else ""
        if readings["tokens"] < self.TOKENS or not self._differ:
            return
        self.exercised = True
        if self._same.see(not readings["apart"], readings["tokens"]):
            why, help = _SCORED[self._differ]
            yield Breach(
                f"the reference's log-probabilities are the policy's bit for bit at all"
                f" {sum(self._same.figures):,.0f} tokens of {self.STEPS} steps, although {why}: the policy was scored"
                " in place of the reference, and KL is 0 for ever",
                value=0.0,
                key="scored",
                help=help,
            )

    def state_dict(self) -> dict[str, Any]:
        return {"same": self._same.state_dict(), "differ": self._differ}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._same.load_state_dict(state["same"])
        self._differ = state["differ"]

    @staticmethod
    def _shared(policy: nn.Module, reference: nn.Module) -> list[str] | None:
        """Names of trainable parameters in the reference's memory; None where no memory is visible."""
        theirs: set[int] = set()
        for parameter in reference.parameters():
            theirs |= memory(parameter)
        if not theirs:
            return None
        layers = tuple(name + "." for name, _ in models.tuner_layers(policy))
        return [
            name
            for name, parameter in policy.named_parameters()
            if parameter.requires_grad and memory(parameter) & theirs and not name.startswith(layers or "\0")
        ]
