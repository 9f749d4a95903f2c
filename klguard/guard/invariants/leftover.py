"""KLG845: at the first backward after a step of the optimizer, no gradient of an earlier one is left."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.utils.hooks import unserializable_hook

from klguard.guard.events import Event, Update
from klguard.guard.invariants.invariant import Breach, Invariant, Run
from klguard.guard.invariants.updates import called, names, parameters_of, sample, spread
from klguard.guard.ledger import Readings


class LeftoverGradient(Invariant):
    """A hook on a few tensors of each optimizer runs just before a gradient is added to `.grad`: what is there
    at the first backward after the optimizer stepped, is of an earlier step.

    Gradients that micro-batches accumulate before a step are none of that. Half of the tensors are chosen
    outside the policy where the optimizer has such: model.zero_grad() forgets those. Sharded and sparse tensors
    collect their gradients elsewhere and are left out.
    """

    code = "KLG845"
    watches = (Update,)
    sums = ("looked", "left")
    maxima = ("size", "index")
    TENSORS, ELEMENTS = 8, 65536

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._armed: dict[int, bool] = {}
        self._names: list[str] = []
        self._handles: list[Any] = []
        self._hooked: dict[int, tuple[Any, list[int]]] = {}
        self._failure: Exception | None = None

    def measure(self, event: Event) -> None:
        if not event.after:
            return
        known = self._hooked.get(id(event.optimizer))
        if known is None or known[0]() is not event.optimizer:
            self._hooked[id(event.optimizer)] = ref(event.optimizer), self._hook(event.optimizer)
        for number in self._hooked[id(event.optimizer)][1]:
            self._armed[number] = True

    def close(self) -> None:
        """Take the hooks off."""
        while self._handles:
            self._handles.pop().remove()
        self._hooked.clear()
        self._armed.clear()

    def _hook(self, optimizer: torch.optim.Optimizer) -> list[int]:
        """Hang a hook on some of its tensors. Their numbers."""
        mine = names(self.run)
        plain = [p for p in parameters_of(optimizer) if p.requires_grad and p.is_leaf and self._ordinary(p)]
        outside = spread([p for p in plain if id(p) not in mine], self.TENSORS // 2)
        inside = spread([p for p in plain if id(p) in mine], self.TENSORS - len(outside))
        numbers = []
        for parameter in inside + outside:
            number = len(self._names)
            self._names.append(called(parameter, mine))
            self._handles.append(parameter.register_hook(self._watcher(number, ref(parameter))))
            numbers.append(number)
        return numbers

    @staticmethod
    def _ordinary(parameter: Tensor) -> bool:
        return (
            parameter.numel() > 0
            and not hasattr(parameter, "to_local")
            and not hasattr(parameter, "_is_flat_param")
        )

    def _watcher(self, number: int, parameter: Any) -> Any:
        @unserializable_hook
        def before_accumulation(gradient: Tensor) -> None:
            if not self._armed.get(number):
                return
            self._armed[number] = False
            try:
                self._look(number, parameter())
            except Exception as error:  # noqa: BLE001  inside backward() it would end the run: judge() raises it
                self._failure = error

        return before_accumulation

    @torch.no_grad()
    def _look(self, number: int, parameter: Tensor | None) -> None:
        if parameter is None:
            return
        self.exercised = True
        self.add("looked", 1.0)
        left = None if parameter.grad is None else sample(parameter.grad, self.ELEMENTS)
        if left is not None:
            size = left.abs().amax().float()
            self.add("left", size > 0)
            self.highest("size", size)
            self.highest("index", torch.where(size > 0, number, -1))

    def judge(self, readings: Readings) -> Iterator[Breach]:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        if readings["left"]:
            index = int(readings["index"])
            example = self._names[index] if 0 <= index < len(self._names) else "one of them"
            yield Breach(
                f"{readings['left']:.0f} of {readings['looked']:.0f} gradients looked at still held up to"
                f" {readings['size']:.3g} of an earlier step when the next backward() began: {example}",
                value=readings["size"], limit=0.0,
            )  # fmt: skip
