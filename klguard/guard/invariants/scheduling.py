"""KLG846: the schedule of the learning rate, and the size of a step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor

from klguard.findings import Severity
from klguard.guard.events import Event, Update
from klguard.guard.invariants.invariant import Breach, Invariant, Run
from klguard.guard.invariants.measuring import Consecutive
from klguard.guard.invariants.updates import names, parameters_of, sample, scaled, spread, unwrapped
from klguard.guard.ledger import Readings

_ADAM = (torch.optim.Adam, torch.optim.AdamW)


class Scheduling(Invariant):
    """The scheduler drives an optimizer that steps, with all its groups; and a step of Adam changes a weight by
    about the learning rate.

    In Adam |m| / sqrt(v) is at most (1 - b1) / sqrt(1 - b2) for b1 <= sqrt(b2) (Kingma and Ba 2015, section
    2.1), 3.2 at the usual betas; AdamW adds lr * weight decay * |w|. Only fp32 weights are looked at: a step in
    half precision rounds.

    A schedule that has come to its end, a learning rate of 0 for three steps after it was above 0, is stepped more
    often than it was made for, or the run goes on for longer; one that is 0 for the first ten steps has no warm-up,
    which is 0 once. A rate that fell to a hundredth of its peak and then climbs again, little by little, is that of a
    cosine beyond its end; a restart is back at its peak at once. One that was not stepped once in 20 steps is
    forgotten, or made for epochs of a data set; one whose learning rate would not change is left alone.

    A run that takes up the guard's state takes up those of the optimizer and the schedule as well: an Adam without
    moments, and a schedule before the step at which it was left, begin anew.
    """

    code = "KLG846"
    watches = (Update,)
    sums = ("idle", "moving", "forgotten")
    maxima = ("excess",)
    TENSORS, ELEMENTS, FACTOR = 8, 16384, 10.0
    PATIENCE = 20
    WARM = 10

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
        self._never = Consecutive(self.WARM)
        self._peak, self._least, self._climbs = 0.0, math.inf, Consecutive(3)
        self._updates = 0
        self._resumed: dict[str, Any] | None = None

    def inspect(self, event: Event) -> Iterator[Breach]:
        if not event.after:
            left, self._resumed = self._resumed, None
            if left is not None:
                yield from self._taken_up(event.optimizer, left)
            return
        self._updates += 1
        yield from self._climbing(event)
        self._stepped.add(event.optimizer)
        if self._first_step is None:
            self._first_step = self.run.step
        given = self.run.scheduler
        for scheduler in given if isinstance(given, (list, tuple)) else [given]:
            inner = getattr(scheduler, "scheduler", scheduler)  # accelerate's AcceleratedScheduler
            driven = unwrapped(getattr(inner, "optimizer", None))
            if isinstance(driven, torch.optim.Optimizer) and id(inner) not in self._looked:
                yield from self._look(inner, driven, event.optimizer)

    def _taken_up(self, optimizer: torch.optim.Optimizer, left: dict[str, Any]) -> Iterator[Breach]:
        """What of the optimizer and the schedule was not taken up with the guard's state."""
        if left["updates"] and isinstance(optimizer, _ADAM) and not optimizer.state:
            yield Breach(
                f"the run goes on after {left['updates']} updates, and the {type(optimizer).__name__} has no moments: it"
                " begins anew",
                key="fresh optimizer", severity=Severity.WARNING,
                help="load the optimizer's state from the same checkpoint as the weights and the guard's",
            )  # fmt: skip
        now = self._place()
        if left["place"] is not None and now is not None and now < left["place"]:
            yield Breach(
                f"the run goes on, and its schedule is at step {now}, where it was left at step {left['place']}",
                value=float(now), limit=float(left["place"]), key="fresh schedule", severity=Severity.WARNING,
                help="load the scheduler's state from the same checkpoint as the weights and the guard's",
            )  # fmt: skip

    def _place(self) -> int | None:
        """Steps of the schedule so far, None where there is none that counts them."""
        given = self.run.scheduler
        all_of = given if isinstance(given, (list, tuple)) else [given]
        counts = [getattr(getattr(one, "scheduler", one), "last_epoch", None) for one in all_of]
        return max((count for count in counts if isinstance(count, int)), default=None)

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

    def _climbing(self, event: Update) -> Iterator[Breach]:
        """Say once that the learning rate of the policy's optimizer climbs again after its end."""
        rates = [group["lr"] for group in event.optimizer.param_groups if "lr" in group]
        known = names(self.run)
        if not rates or any(isinstance(rate, Tensor) for rate in rates):
            return
        if known and not any(id(p) in known for p in parameters_of(event.optimizer)):
            return
        rate = max(rates)
        self._peak = max(self._peak, rate)
        if rate < 0.01 * self._peak:
            self._least = rate
            self._climbs.see(False)
        elif self._least < math.inf:
            before = self._climbs.figures[-1] if self._climbs.figures else self._least
            gradual = bool(self._climbs.figures) or rate < 0.3 * self._peak
            if not gradual:
                self._least = math.inf
            elif self._climbs.see(rate > before, rate):
                self._least = math.inf
                rise = ", ".join(f"{one:.2g}" for one in self._climbs.figures)
                yield Breach(
                    f"the learning rate had come down to less than a hundredth of its peak, {self._peak:.2g}, and climbs"
                    f" again: {rise}",
                    value=rate, key="climbs", severity=Severity.WARNING,
                    help="make the schedule for as many steps as it is stepped: a scheduler of accelerate steps once for"
                    " each process",
                )  # fmt: skip

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
        if self._never.see(not self._moved and readings["idle"] > 0):
            yield Breach(
                f"the learning rate has been 0 for the first {self._never.steps} steps: nothing is trained",
                value=0.0, key="never", severity=Severity.WARNING,
                help="look at the learning rate that the optimizer was made with, and at the schedule's warm-up",
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
            "never": self._never.state_dict(),
            "updates": self._updates,
            "place": self._place(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._moved = state["moved"]
        self._spent.load_state_dict(state["spent"])
        if "forgotten" in state:
            self._forgotten.load_state_dict(state["forgotten"])
        if "updates" in state:
            self._never.load_state_dict(state["never"])
            self._updates = state["updates"]
            self._resumed = {"updates": state["updates"], "place": state["place"]}


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
