"""Gradients at tensors of the loop: what backward() brings there, and what a term of the loss would."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar
from weakref import ReferenceType, ref

import torch
from torch import Tensor
from torch.utils.hooks import unserializable_hook


class Arrival:
    """The gradient of the loss at one tensor, the sum over all backward passes so far. What went wrong in between is
    kept in `failure`, and raised where somebody asks for the gradient."""

    def __init__(self) -> None:
        self._gradient: Tensor | None = None
        self.failure: Exception | None = None

    @property
    def gradient(self) -> Tensor | None:
        """In the shape of the tensor, without a graph; None before the first backward pass."""
        if self.failure is not None:
            raise self.failure
        return self._gradient

    def take(self, gradient: Tensor) -> None:
        """Another backward pass came by."""
        with torch.no_grad():
            gradient = gradient.detach()
            self._gradient = gradient if self._gradient is None else self._gradient + gradient


class Arrivals:
    """Hangs a hook on tensors, on each but once. What it asks for itself is no arrival."""

    def __init__(self) -> None:
        self._last: dict[str, ReferenceType[Tensor]] = {}
        self._asking = False

    def at(self, tensors: Mapping[str, Tensor | None]) -> dict[str, Arrival]:
        """What will arrive at each of the tensors, by its name. Left out are those through which no gradient flows, one
        that has the same name as in the last call, and one that is already there under an earlier name."""
        if not torch.is_grad_enabled():
            return {}
        found: dict[str, Arrival] = {}
        seen: list[Tensor] = []
        for name, values in tensors.items():
            if values is None or not values.requires_grad or any(values is other for other in seen):
                continue
            seen.append(values)
            last = self._last.get(name)
            if last is None or last() is not values:
                self._last[name] = ref(values)
                found[name] = self._hung_on(values)
        return found

    def _hung_on(self, values: Tensor) -> Arrival:
        arrival = Arrival()

        @unserializable_hook
        def hook(gradient: Tensor) -> None:
            try:
                if not self._asking:
                    arrival.take(gradient)
            except Exception as error:  # noqa: BLE001  inside backward() it would end the run
                arrival.failure = error

        values.register_hook(hook)
        return arrival

    def slope(self, term: Tensor | None, values: Tensor) -> Tensor | None:
        """d term / d values, in the shape of `values`, of a term (B, T) each of whose entries is made from the entry of
        `values` (B, T) at its place; None where there is none, or the loop's graph does not give it. The graph stays as
        it was."""
        if term is None or not term.requires_grad or not values.requires_grad or term.shape != values.shape:
            return None
        self._asking = True
        try:
            with torch.enable_grad():
                (found,) = torch.autograd.grad(term.sum(), values, retain_graph=True, allow_unused=True)
        except RuntimeError:  # a tensor that the graph needs was written to, or the graph is gone
            return None
        finally:
            self._asking = False
        return None if found is None else found.detach()


Told = TypeVar("Told")


class Awaited(Generic[Told]):
    """What was told together with tensors whose gradient is still to come."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Told, Arrival]] = []

    def add(self, told: Told, arrival: Arrival | None) -> None:
        """Wait for `arrival`, where there is one."""
        if arrival is not None:
            self._waiting.append((told, arrival))

    def arrived(self) -> Iterator[tuple[Told, Tensor]]:
        """Those whose gradient has come, in the order in which they were told: each once."""
        waiting, self._waiting = self._waiting, []
        for told, arrival in waiting:
            if arrival.gradient is None:
                self._waiting.append((told, arrival))
            else:
                yield told, arrival.gradient

    def forget(self) -> None:
        """Wait no longer."""
        self._waiting.clear()
