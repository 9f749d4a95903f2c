"""Play events to one invariant, the way the guard does, without the guard."""

from __future__ import annotations

from collections.abc import Iterable

from klguard.guard.events import Event
from klguard.guard.invariants import Breach, Invariant, Run
from klguard.guard.ledger import Ledger


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
