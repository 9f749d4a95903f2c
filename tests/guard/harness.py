"""Play events to one invariant, the way the guard does, without the guard; measuring must not wait for a device."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from klguard.guard.events import Event
from klguard.guard.invariants import Breach, Invariant, Run
from klguard.guard.ledger import Ledger


class NoSynchronisation(TorchDispatchMode):
    """Raises where a GPU would be waited for: values on the host, shapes that depend on values."""

    WAITS = (
        "aten::_local_scalar_dense",
        "aten::nonzero",
        "aten::masked_select",
        "aten::equal",
        "aten::_unique2",
    )

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        by_mask = function.name().startswith("aten::index") and any(
            isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)
            for arg in args[1:2]
            if isinstance(arg, (list, tuple))
            for index in arg
        )
        if by_mask or function.name().startswith(self.WAITS):
            raise AssertionError(f"{function.name()} waits for the device")
        return function(*args, **(kwargs or {}))


class Player:
    """One invariant with a ledger of its own, fed step by step. `invariant` is open to look at."""

    def __init__(self, kind: type[Invariant], run: Run | None = None) -> None:
        self.run = run or Run()
        self.invariant = kind(self.run)
        self.ledger = Ledger(*kind.slots())
        self.invariant.attach(self.ledger)

    def step(self, events: Iterable[Event]) -> list[Breach]:
        """All events of a step, in order, then its judgement. Events it does not watch are passed over."""
        found: list[Breach] = []
        for event in events:
            if isinstance(event, self.invariant.watches):
                found += self.invariant.inspect(event)
                with NoSynchronisation():
                    self.invariant.measure(event)
        readings = self.ledger.readings(*self.ledger.close())
        found += self.invariant.judge(readings.of(self.invariant.code))
        self.run.step += 1
        return found


def play(
    kind: type[Invariant], events_by_step: Iterable[Iterable[Event]], run: Run | None = None
) -> list[tuple[int, Breach]]:
    """What `kind` finds, with the step, when the steps' events are played to it."""
    player = Player(kind, run)
    return [(number, found) for number, events in enumerate(events_by_step) for found in player.step(events)]
