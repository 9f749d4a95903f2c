"""KLG841 to KLG843 and KLG846: what happens when an optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor

from klguard.findings import Severity
from klguard.guard.events import Advantages, Event, Update
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
    unwrapped,
    world,
)
from klguard.guard.ledger import Readings

_ADAM = (torch.optim.Adam, torch.optim.AdamW)


class DeadGradient(Invariant):
    """Every trainable tensor gets a gradient within a few updates, and no gradient is infinite or NaN.

    A tensor counts as alive once any update had a gradient for it: with LoRA the one factor has none before
    the other has moved. Experts of a mixture may wait longer for their tokens and are left out, and so are
    optimizers that own nothing of the policy: those are for KLG842. Updates whose
    gradient is 0 altogether (every advantage 0) say nothing about single tensors; two steps in a row of them
    are a breach where the advantages are not 0. Above 50 million parameters the first four updates and every
    tenth are looked at.
    """

    code = "KLG841"
    watches = (Advantages, Update)
    sums = ("updates", "broken", "silent")
    maxima = ("signal", "dead", "index")
    CHANCES, SETTLED, LIMIT, MOST = 4, 100, 0.05, 0.5

    def __init__(self, run: Run) -> None:
        super().__init__(run)
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
        signal = readings.maximum("signal") or 0.0
        if self._silence.see(signal > 1e-6 and readings["silent"] == updates):
            yield Breach(
                f"the gradient is 0 at every optimizer.step() of two steps, with advantages up to {signal:.3g}",
                value=0.0, key="zero",
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
        return {"silence": self._silence.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._silence.load_state_dict(state["silence"])


class OptimizerParameters(Invariant):
    """The policy's trainable tensors are owned by the optimizers that step, and change from one update to the
    next.

    Ownership is judged in the third step with updates, when a second optimizer (of a value head inside the
    policy, say) has had its turn, and not where optimizers hold copies in higher precision: none of the
    policy's tensors is theirs then. Change is measured on a sample of the policy's own tensors, from update
    to update, while they have a gradient and the learning rate is above 0. In half precision a weight that
    moves by less than |w| / 256 does not move at all: only 20 steps without a single change are reported.
    """

    code = "KLG842"
    watches = (Update,)
    sums = ("compared", "changed", "live", "pairs")
    maxima = ("rough",)
    TENSORS, ELEMENTS, PATIENCE = 8, 4096, 3

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._before: WeakKeyDictionary[torch.optim.Optimizer, list[Tensor]] = WeakKeyDictionary()
        self._owned: set[int] = set()
        self._owning = False
        self._last_step = -1
        self._steps = 0
        self._still, self._still_rough = Consecutive(2), Consecutive(20)
        self.share: float | None = None
        """Share of sampled weights that changed from one update to the next, in the last step."""

    def inspect(self, event: Event) -> Iterator[Breach]:
        policy = self.run.policy
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

    def measure(self, event: Event) -> None:
        policy, optimizer = self.run.policy, event.optimizer
        if policy is None or event.after:
            return
        mine = names(self.run)
        owns = any(id(p) in mine for p in parameters_of(optimizer))
        self._owning = self._owning or owns
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

    def state_dict(self) -> dict[str, Any]:
        return {"still": self._still.state_dict(), "still_rough": self._still_rough.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._still.load_state_dict(state["still"])
        self._still_rough.load_state_dict(state["still_rough"])


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


class Scheduling(Invariant):
    """The scheduler drives an optimizer that steps, with all its groups; and a step of Adam changes a weight by
    about the learning rate.

    In Adam |m| / sqrt(v) is at most (1 - b1) / sqrt(1 - b2) for b1 <= sqrt(b2) (Kingma and Ba 2015, section
    2.1), 3.2 at the usual betas; AdamW adds lr * weight decay * |w|. Only fp32 weights are looked at: a step in
    half precision rounds.

    A schedule that has come to its end, a learning rate of 0 for three steps after it was above 0, is stepped more
    often than it was made for, or the run goes on for longer. One that was not stepped once in 20 steps is forgotten,
    or made for epochs of a data set; one whose learning rate would not change is left alone.
    """

    code = "KLG846"
    watches = (Update,)
    sums = ("idle", "moving", "forgotten")
    maxima = ("excess",)
    TENSORS, ELEMENTS, FACTOR = 8, 16384, 10.0
    PATIENCE = 20

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._before: WeakKeyDictionary[torch.optim.Optimizer, list[tuple[Tensor, Tensor, dict[str, Any]]]]
        self._before = WeakKeyDictionary()
        self._stepped: WeakSet[torch.optim.Optimizer] = WeakSet()
        self._looked: set[int] = set()
        self._first_step: int | None = None
        self._moved, self._spent = False, Consecutive(3)
        self._forgotten = Consecutive(self.PATIENCE)
        self._varying: bool | None = None

    def inspect(self, event: Event) -> Iterator[Breach]:
        if not event.after:
            return
        self._stepped.add(event.optimizer)
        if self._first_step is None:
            self._first_step = self.run.step
        given = self.run.scheduler
        for scheduler in given if isinstance(given, (list, tuple)) else [given]:
            inner = getattr(scheduler, "scheduler", scheduler)  # accelerate's AcceleratedScheduler
            driven = unwrapped(getattr(inner, "optimizer", None))
            if isinstance(driven, torch.optim.Optimizer) and id(inner) not in self._looked:
                yield from self._look(inner, driven, event.optimizer)

    def _look(
        self, scheduler: Any, driven: torch.optim.Optimizer, stepped: torch.optim.Optimizer
    ) -> Iterator[Breach]:
        """Say once whether they belong together. Another optimizer than the one that steps may have a turn of
        its own: it has until the second step, and torch notes on it when it steps unseen."""
        kind = type(scheduler).__name__
        if driven not in self._stepped:
            idle = not getattr(driven, "_opt_called", False)
            if self.run.step > self._first_step and idle and self._overlap(driven, stepped):
                self._looked.add(id(scheduler))
                self.exercised = True
                yield Breach(
                    f"the {kind} drives an optimizer that never steps: the learning rate of the run does not change",
                    key="another optimizer",
                )
            return
        self._looked.add(id(scheduler))
        self.exercised = True
        rates, groups = getattr(scheduler, "base_lrs", None), len(driven.param_groups)
        if rates is not None and len(rates) != groups:
            yield Breach(
                f"the {kind} knows {len(rates)} parameter groups, and its optimizer has {groups}",
                value=float(len(rates)), limit=float(groups), key="groups",
            )  # fmt: skip

    def _overlap(self, driven: torch.optim.Optimizer, stepped: torch.optim.Optimizer) -> bool:
        """Whether the one that steps does so in place of the scheduler's: over the same tensors, or over the
        policy's where the scheduler's has none of them."""
        theirs, steps = ({id(p) for p in parameters_of(one)} for one in (driven, stepped))
        policy = names(self.run).keys()
        return bool(theirs & steps) or bool(steps & policy and not theirs & policy)

    def _rates(self, event: Update) -> None:
        """Learning rates as the optimizer steps, where they are numbers: a tensor would have to be waited for."""
        rates = [group["lr"] for group in event.optimizer.param_groups if "lr" in group]
        if not rates or any(isinstance(rate, Tensor) for rate in rates):
            return
        self.add("idle", float(not any(rates)))
        self.add("moving", float(any(rates)))

    def _stands_still(self) -> bool:
        """Whether the schedulers have not moved since they were made, and would change the learning rate if they did."""
        given = self.run.scheduler
        all_of = given if isinstance(given, (list, tuple)) else [given]
        inner = [getattr(one, "scheduler", one) for one in all_of if one is not None]
        still = bool(inner) and all(getattr(one, "last_epoch", None) == 0 for one in inner)
        if still and self._varying is None:
            self._varying = any(_varies(one) for one in inner)
        return still and bool(self._varying)

    def measure(self, event: Event) -> None:
        if not event.after:
            self._rates(event)
        else:
            self.add("forgotten", float(self._stands_still()))
        if not isinstance(event.optimizer, _ADAM):
            return
        if event.after:
            for old, tensor, group in self._before.pop(event.optimizer, ()):
                self._compare(old, tensor, group)
        elif not scaled(event.optimizer):
            self._before[event.optimizer] = list(self._samples(event.optimizer))

    def _samples(self, optimizer: torch.optim.Optimizer) -> Iterator[tuple[Tensor, Tensor, dict[str, Any]]]:
        """Elements of some fp32 tensors that are about to change, the tensor, and its group."""
        pairs = [
            (p, group)
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None and p.dtype == torch.float32
        ]
        for tensor, group in spread(pairs, self.TENSORS):
            old = sample(tensor, self.ELEMENTS)
            if old is not None:
                yield old, tensor, group

    def _compare(self, old: Tensor, tensor: Tensor, group: dict[str, Any]) -> None:
        """|change| over its limit. Rounding is part of the limit: of the weight, and of the step."""
        new = sample(tensor, self.ELEMENTS)
        rate, decay, (first, second) = group["lr"], group.get("weight_decay", 0.0), group["betas"]
        if new is None or new.shape != old.shape or any(isinstance(b, Tensor) for b in (first, second)):
            return
        largest = (1 - first) / math.sqrt(max(1 - second, 1e-12))
        size = torch.maximum(old.abs(), new.abs()).double()
        limit = rate * (self.FACTOR * max(1.0, largest / 3) + decay * size) + 1e-6 * size + 1e-30
        self.exercised = True
        self.highest("excess", (new.double() - old.double()).abs() / limit)

    def judge(self, readings: Readings) -> Iterator[Breach]:
        excess = readings.maximum("excess")
        if excess is not None and excess > 1:
            yield Breach(
                f"one step of Adam changed a weight by {excess:.3g} times the most that its learning rate allows"
                " (ten times the learning rate, and the weight decay)",
                value=excess, limit=1.0, key="change",
            )  # fmt: skip
        if readings["moving"]:
            self._moved = True
        if self._spent.see(self._moved and readings["idle"] > 0 and not readings["moving"]):
            yield Breach(
                f"the learning rate has been 0 for {self._spent.steps} steps, and was not before: the schedule came to"
                " its end while the run goes on",
                value=0.0, key="spent", severity=Severity.WARNING,
                help="step the scheduler as often as its number of steps was counted: once for each update, or once for"
                " each iteration, and not both",
            )  # fmt: skip

        if self._forgotten.see(readings["forgotten"] > 0):
            yield Breach(
                f"the scheduler was not stepped once in {self.PATIENCE} steps in which the optimizer was: the learning"
                " rate is the one it began with",
                value=0.0, key="forgotten", severity=Severity.WARNING,
                help="call scheduler.step() after optimizer.step(); a schedule by epochs of a data set is fine, then"
                " ignore this",
            )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {
            "moved": self._moved,
            "spent": self._spent.state_dict(),
            "forgotten": self._forgotten.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._moved = state["moved"]
        self._spent.load_state_dict(state["spent"])
        if "forgotten" in state:
            self._forgotten.load_state_dict(state["forgotten"])


def _varies(scheduler: Any) -> bool:
    """Whether a schedule made of functions of the step has another value at any of the first thousand; of other
    schedules it is not known."""
    functions = getattr(scheduler, "lr_lambdas", None)
    if not functions:
        return False
    try:
        return any(function(step) != function(0) for function in functions for step in (1, 10, 100, 1000))
    except Exception:  # noqa: BLE001  a function of the loop's own, which may count on being called in order
        return False
