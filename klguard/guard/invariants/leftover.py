"""KLG845: at the first backward after a step of the optimizer, no gradient of an earlier one is left."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from klguard.guard.events import Event, Update
from klguard.guard.invariants.backwards import Backwards
from klguard.guard.invariants.invariant import Breach, Invariant, Run
from klguard.guard.invariants.updates import sample
from klguard.guard.ledger import Readings


class LeftoverGradient(Invariant):
    """What is in `.grad` at the first backward after the optimizer stepped, is of an earlier step. Gradients that
    micro-batches accumulate before a step are none of that."""

    code = "KLG845"
    watches = (Update,)
    sums = ("looked", "left")
    maxima = ("size", "index")
    ELEMENTS = 65536

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._armed: set[int] = set()
        self._backwards = Backwards(run, self._look)

    def measure(self, event: Event) -> None:
        if event.after:
            self._armed.update(self._backwards.of(event.optimizer))

    def close(self) -> None:
        """Take the hooks off."""
        self._backwards.close()
        self._armed.clear()

    def _look(self, number: int, parameter: Tensor) -> None:
        if number not in self._armed:
            return
        self._armed.discard(number)
        self.exercised = True
        self.add("looked", 1.0)
        left = None if parameter.grad is None else sample(parameter.grad, self.ELEMENTS)
        if left is not None:
            size = left.abs().amax().float()
            self.add("left", size > 0)
            self.highest("size", size)
            self.highest("index", torch.where(size > 0, number, -1))

    def judge(self, readings: Readings) -> Iterator[Breach]:
        self._backwards.check()
        if readings["left"]:
            index, known = int(readings["index"]), self._backwards.names
            example = known[index] if 0 <= index < len(known) else "one of them"
            yield Breach(
                f"{readings['left']:.0f} of {readings['looked']:.0f} gradients looked at still held up to"
                f" {readings['size']:.3g} of an earlier step when the next backward() began: {example}",
                value=readings["size"], limit=0.0,
            )  # fmt: skip
