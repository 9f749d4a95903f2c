"""KLG841 to KLG843: what happens when an optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import fmean
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from klguard.findings import Severity
from klguard.guard.events import Advantages, Event, Minibatch, Update
from klguard.guard.fingerprint import writes
from klguard.guard.hooks import NAMED_OPTIMIZERS
from klguard.guard.invariants.invariant import HALF, Breach, Invariant, Run
from klguard.guard.invariants.measuring import Consecutive, kept
from klguard.guard.invariants.updates import (
    Gradients,
    called,
    gradients,
    names,
    parameters_of,
    sample,
    scaled,
    spread,
    world,
)
from klguard.guard.ledger import Readings


class DeadGradient(Invariant):
    """Every trainable tensor gets a gradient within a few updates, and no gradient is infinite or NaN.

    A tensor counts as alive once any update had a gradient for it: with LoRA the one factor has none before
    the other has moved. Experts of a mixture may wait longer for their tokens and are left out, and so are
    optimizers that own nothing of the policy: those are for KLG842. Updates whose
    gradient is 0 altogether (every advantage 0) say nothing about single tensors; two steps in a row of them
    are a breach where the advantages are not 0, and the first five of a run a warning where nothing tells the
    advantages. Above 50 million parameters the first four updates and every tenth are looked at.
    """

    code = "KLG841"
    watches = (Advantages, Update)
    sums = ("updates", "broken", "silent")
    maxima = ("signal", "dead", "index")
    CHANCES, SETTLED, LIMIT, MOST = 4, 100, 0.05, 0.5
    MUTE = 5

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._mute: float = 0  # steps from the first without any gradient; inf once there was one
        self._alive: WeakKeyDictionary[torch.optim.Optimizer, tuple[Tensor, Tensor]] = WeakKeyDictionary()
        self._updates: WeakKeyDictionary[torch.optim.Optimizer, int] = WeakKeyDictionary()
        self._names: list[str] = []
        self._silence = Consecutive(2)

    def measure(self, event: Event) -> None:
        if isinstance(event, Advantages):
            advantages, mask = event.advantages.detach(), event.mask
            if mask is not None and mask.shape == advantages.shape:
                advantages = kept(advantages, mask)
            self.highest("signal", advantages.abs())
            return
        found = None if event.after else gradients(self.run, event)
        if found is None:
            return
        self.exercised = True
        self.add("updates", 1.0)
        self.add("broken", (~found.norms.isfinite()).any())
        self.add("silent", (found.norms == 0).all())
        number = self._updates.get(event.optimizer, 0) + 1
        self._updates[event.optimizer] = number
        owner = self.run.policy is None or any(id(t) in names(self.run) for t in found.tensors)
        if number <= self.SETTLED and owner:
            self._count_dead(event.optimizer, found)

    def _count_dead(self, optimizer: torch.optim.Optimizer, found: Gradients) -> None:
        known = names(self.run)
        counted = [i for i, t in enumerate(found.tensors) if ".experts." not in known.get(id(t), "")]
        if not counted:
            return
        norms = found.norms
        if len(counted) < len(found.tensors):
            norms = torch.stack([norms[i] for i in counted])
        alive, chances = self._alive.get(optimizer, (norms[:0], norms))
        if alive.shape != norms.shape:  # the first update, or a group was added
            alive, chances = torch.zeros_like(norms, dtype=torch.bool), norms.new_zeros(())
        alive, chances = alive | (norms > 0), chances + (norms > 0).any()
        self._alive[optimizer] = alive, chances
        ready = chances >= self.CHANCES
        self.highest("dead", torch.where(ready, 1 - alive.float().mean(), 0.0))
        start = self._start([called(found.tensors[i], known) for i in counted])
        places = torch.arange(start, start + len(counted), device=norms.device)
        self.highest("index", torch.where(ready & ~alive, places, -1))

    def _start(self, called: list[str]) -> int:
        """Where these names begin in the list of all names."""
        for start in range(0, len(self._names) - len(called) + 1):
            if self._names[start : start + len(called)] == called:
                return start
        self._names += called
        return len(self._names) - len(called)

    def judge(self, readings: Readings) -> Iterator[Breach]:
        updates, broken = readings["updates"], readings["broken"]
        if not updates:
            return
        if broken:
            yield Breach(
                f"the gradient is not finite at {broken:.0f} of {updates:.0f} calls of optimizer.step()",
                value=broken, limit=0.0, key="not finite",
            )  # fmt: skip
        told = readings.maximum("signal")
        silent, signal = readings["silent"] == updates, told or 0.0
        self._mute += 1 if silent else math.inf
        if self._silence.see(signal > 1e-6 and silent):
            yield Breach(
                f"the gradient is 0 at every optimizer.step() of two steps, with advantages up to {signal:.3g}",
                value=0.0, key="zero",
            )  # fmt: skip
        elif told is None and self._mute == self.MUTE:
            yield Breach(
                f"the gradient was 0 at every optimizer.step() of the first {self.MUTE} steps: nothing is trained",
                value=0.0, key="zero", severity=Severity.WARNING,
                help="look whether every reward is the same, and whether a clip to a norm of 0 takes the gradient away",
            )  # fmt: skip
        dead = readings.maximum("dead") or 0.0
        if dead > self.LIMIT:
            index = int(readings["index"])
            example = self._names[index] if 0 <= index < len(self._names) else "one of them"
            yield Breach(
                f"{dead:.0%} of the trainable tensors had no gradient in {self.CHANCES} updates: {example}",
                value=dead, limit=self.LIMIT, key="dead",
                severity=Severity.ERROR if dead > self.MOST else Severity.WARNING,
            )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {"silence": self._silence.state_dict(), "mute": self._mute}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._silence.load_state_dict(state["silence"])
        self._mute = state.get("mute", math.inf)


class OptimizerParameters(Invariant):
    """The policy's trainable tensors are owned by the optimizers that step, and change from one update to the
    next.

    Ownership is judged in the third step with updates, when a second optimizer (of a value head inside the
    policy, say) has had its turn, and not where optimizers hold copies in higher precision: none of the
    policy's tensors is theirs then. Change is measured on a sample of the policy's own tensors, from update
    to update, while they have a gradient and the learning rate is above 0. In half precision a weight that
    moves by less than |w| / 256 does not move at all: 20 steps without a single change are reported, and ten in
    which torch's own optimizer, on the policy's own weights, moved less than a tenth of them.

    An optimizer that was named and never steps is reported in the third step whose minibatches are those of more than
    one epoch: nobody accumulates gradients for longer. It has no state then, and nobody has written to the policy's
    weights, which tells it from one that steps unseen.
    """

    code = "KLG842"
    watches = (Minibatch, Update)
    sums = ("compared", "changed", "live", "pairs")
    maxima = ("rough",)
    TENSORS, ELEMENTS, PATIENCE, ROUNDED = 8, 4096, 3, 0.1

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._before: WeakKeyDictionary[torch.optim.Optimizer, list[Tensor]] = WeakKeyDictionary()
        self._owned: set[int] = set()
        self._owning = False
        self._last_step = -1
        self._steps = 0
        self._epochs: tuple[int, int] | None = None
        self._idle: set[int] = set()
        self._written: int | None = None
        self._still, self._still_rough = Consecutive(2), Consecutive(20)
        self._rounded, self._plain = Consecutive(10), False
        self.share: float | None = None
        """Share of sampled weights that changed from one update to the next, in the last step."""

    def inspect(self, event: Event) -> Iterator[Breach]:
        policy = self.run.policy
        if isinstance(event, Minibatch):
            yield from self._never_stepped(event)
            return
        if policy is None or event.after:
            return
        self._owned |= {id(p) for p in parameters_of(event.optimizer)}
        if self.run.step == self._last_step:
            return
        self._last_step = self.run.step
        self._steps += 1
        if self._steps != self.PATIENCE:
            return
        trainable = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        missing = [name for name, p in trainable.items() if id(p) not in self._owned]
        self.exercised = True
        if missing and len(missing) < len(trainable):
            yield Breach(
                f"{len(missing)} of {len(trainable)} trainable tensors of the policy belong to no optimizer that"
                f" stepped so far: {missing[0]}",
                value=float(len(missing)), limit=0.0, key="not owned",
            )  # fmt: skip

    def _never_stepped(self, event: Minibatch) -> Iterator[Breach]:
        """Say once that no named optimizer has stepped, though epochs of minibatches go by."""
        named, policy = self.run.notes.get(NAMED_OPTIMIZERS), self.run.policy
        if not named or policy is None or self.run.version or self._steps or event.epoch is None:
            return
        written = sum(map(writes, policy.parameters()))
        if self._written is None:
            self._written = written
        if written != self._written or any(one.state for one in named):
            return
        if self._epochs is None or self._epochs[0] != self.run.step:
            self._epochs = self.run.step, event.epoch
        elif event.epoch != self._epochs[1] and self.run.step not in self._idle:
            self._idle.add(self.run.step)
            if len(self._idle) == self.PATIENCE:
                self.exercised = True
                yield Breach(
                    f"the optimizer has never stepped, in {self.PATIENCE} steps of several epochs each",
                    value=0.0, key="never stepped", help="call optimizer.step() after each backward()",
                )  # fmt: skip

    def measure(self, event: Event) -> None:
        if isinstance(event, Minibatch):
            return
        policy, optimizer = self.run.policy, event.optimizer
        if policy is None or event.after:
            return
        mine = names(self.run)
        owns = any(id(p) in mine for p in parameters_of(optimizer))
        self._owning = self._owning or owns
        self._plain = owns and type(optimizer).__module__.startswith("torch.optim.")
        if self._owning and not owns:  # of a value model: it says nothing about the policy
            return
        moving = any(isinstance(g["lr"], Tensor) or g["lr"] > 0 for g in optimizer.param_groups if "lr" in g)
        tensors = spread([p for p in policy.parameters() if p.requires_grad and p.numel()], self.TENSORS)
        now = [s for s in (sample(t, self.ELEMENTS) for t in tensors) if s is not None]
        before = self._before.pop(optimizer, None)
        if before is not None and [b.shape for b in before] == [n.shape for n in now]:
            self._compare(before, now)
        live = [
            g for g in (sample(t.grad, self.ELEMENTS) for t in tensors if t.grad is not None) if g is not None
        ]
        if moving and live and now and not scaled(optimizer):
            self._before[optimizer] = now
            self.add("live", torch.stack([(g != 0).any().to(live[0].device) for g in live]).any())

    def _compare(self, before: list[Tensor], now: list[Tensor]) -> None:
        self.exercised = True
        self.add("pairs", 1.0)
        for old, new in zip(before, now, strict=True):
            self.add("compared", float(new.numel()))
            self.add("changed", (old.to(new.device, non_blocking=True) != new).sum())
            self.highest("rough", 1.0 if new.dtype in HALF else 0.0)

    def judge(self, readings: Readings) -> Iterator[Breach]:
        compared = readings["compared"]
        if not compared or not readings["live"]:
            return
        self.share = readings["changed"] / compared
        rough = readings["rough"] > 0
        run, severity = (self._still_rough, Severity.WARNING) if rough else (self._still, Severity.ERROR)
        if run.see(readings["changed"] == 0):
            yield Breach(
                f"none of {compared / max(1.0, readings['pairs']):.0f} sampled weights of the policy changed in"
                f" {run.steps} steps with updates, although they have a gradient",
                value=0.0, key="unchanged", severity=severity,
            )  # fmt: skip
        elif self._rounded.see(rough and self._plain and 0 < self.share < self.ROUNDED, self.share):
            yield Breach(
                f"in half precision, {fmean(self._rounded.figures):.1%} of the sampled weights moved in an update, over"
                f" {self._rounded.steps} steps: the others are further from 0 than 256 times their update, which rounds"
                " away",
                value=self.share, limit=self.ROUNDED, key="rounded", severity=Severity.WARNING,
                help="keep the weights that the optimizer steps in fp32, and compute under autocast; or use an optimizer"
                " with stochastic rounding or compensated sums",
            )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        counters = {"still": self._still, "still_rough": self._still_rough, "rounded": self._rounded}
        return {name: counter.state_dict() for name, counter in counters.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._still.load_state_dict(state["still"])
        self._still_rough.load_state_dict(state["still_rough"])
        if "rounded" in state:
            self._rounded.load_state_dict(state["rounded"])


class UnclippedGradient(Invariant):
    """The 2-norm of the gradient that optimizer.step() uses is at most max_grad_norm.

    Over the policy's tensors only, since other modules in the same optimizer may be clipped on their own or
    not at all. Of sharded gradients the squares are added over ranks and updates, and the mean over updates
    may not exceed the square of the limit: it never does when none of them does.
    """

    code = "KLG843"
    watches = (Update,)
    sums = ("updates", "squares")
    maxima = ("norm", "rough")
    EXACT, ROUGH = 1e-3, 2e-2

    def measure(self, event: Event) -> None:
        if event.after or self.run.max_grad_norm is None:
            return
        found = gradients(self.run, event)
        if found is None:
            return
        mine = names(self.run)
        chosen = [i for i, t in enumerate(found.tensors) if self.run.policy is None or id(t) in mine]
        if not chosen:
            return
        self.exercised = True
        self.highest("rough", 1.0 if found.rough else 0.0)
        whole = [found.norms[i] for i in chosen if found.shares[i] is None]
        parts = [
            found.norms[i].double() ** 2 * found.shares[i] for i in chosen if found.shares[i] is not None
        ]
        if whole:
            self.highest("norm", torch.stack(whole).double().square().sum().sqrt())
        if parts:
            self.add("squares", torch.stack(parts).sum())
            self.add("updates", 1 / world())

    def judge(self, readings: Readings) -> Iterator[Breach]:
        limit = self.run.max_grad_norm
        if limit is None or not math.isfinite(limit) or limit <= 0:
            return
        norm = readings.maximum("norm") or 0.0
        if readings["updates"]:
            norm = max(norm, math.sqrt(readings["squares"] / readings["updates"]))
        tolerance = self.ROUGH if readings.maximum("rough") else self.EXACT
        if norm > limit * (1 + tolerance):
            yield Breach(
                f"the gradient has the norm {norm:.3g} at optimizer.step(), and max_grad_norm is {limit:g}",
                value=norm, limit=limit,
            )  # fmt: skip
