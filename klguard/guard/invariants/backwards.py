"""Looks at a few tensors of each optimizer whenever backward() brings them a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor
from torch.utils.hooks import unserializable_hook

from klguard.guard.invariants.invariant import Run
from klguard.guard.invariants.updates import called, names, parameters_of, spread

TENSORS = 8
"""Of each optimizer. Half of them are chosen outside the policy where it has such: model.zero_grad() forgets those."""

Look = Callable[[int, Tensor], None]
"""What is done at a tensor, given its number."""


class Backwards:
    """Hooks on tensors, told by their numbers: `before` a gradient is added to `.grad`, and `after`.

    Sharded and sparse tensors collect their gradients elsewhere, as do those of Megatron, and are left out. An
    error in a hook would end the run: it is raised by `check`.
    """

    def __init__(self, run: Run, before: Look, after: Look | None = None) -> None:
        self._run = run
        self._before, self._after = before, after
        self._handles: list[Any] = []
        self._hooked: dict[int, tuple[ReferenceType[Any], list[int]]] = {}
        self._failure: Exception | None = None
        self.names: list[str] = []

    def of(self, optimizer: torch.optim.Optimizer) -> list[int]:
        """The numbers of its tensors, which are watched from now on."""
        known = self._hooked.get(id(optimizer))
        if known is None or known[0]() is not optimizer:
            known = self._hooked[id(optimizer)] = ref(optimizer), self._hook(optimizer)
        return known[1]

    def check(self) -> None:
        """Raise what went wrong in a hook."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Take the hooks off."""
        while self._handles:
            self._handles.pop().remove()
        self._hooked.clear()

    def _hook(self, optimizer: torch.optim.Optimizer) -> list[int]:
        mine = names(self._run)
        plain = [p for p in parameters_of(optimizer) if p.requires_grad and p.is_leaf and self._ordinary(p)]
        outside = spread([p for p in plain if id(p) not in mine], TENSORS // 2)
        inside = spread([p for p in plain if id(p) in mine], TENSORS - len(outside))
        numbers = []
        for parameter in inside + outside:
            number = len(self.names)
            self.names.append(called(parameter, mine))
            self._handles.append(parameter.register_hook(self._watcher(number, ref(parameter), self._before)))
            if self._after is not None:
                watcher = self._watcher(number, ref(parameter), self._after)
                self._handles.append(parameter.register_post_accumulate_grad_hook(watcher))
            numbers.append(number)
        return numbers

    @staticmethod
    def _ordinary(parameter: Tensor) -> bool:
        elsewhere = ("to_local", "_is_flat_param", "main_grad")
        return parameter.numel() > 0 and not any(hasattr(parameter, name) for name in elsewhere)

    def _watcher(self, number: int, parameter: ReferenceType[Tensor], look: Look) -> Callable[[Tensor], None]:
        @unserializable_hook
        def hook(_: Tensor) -> None:
            try:
                if (tensor := parameter()) is not None:
                    with torch.no_grad():
                        look(number, tensor)
            except Exception as error:  # noqa: BLE001  inside backward() it would end the run
                self._failure = error

        return hook
