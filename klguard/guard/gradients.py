"""Gradients at tensors of the loop: what backward() brings there, and what a term of the loss would."""

from __future__ import annotations

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
        self._last: ReferenceType[Tensor] | None = None
        self._asking = False

    def at(self, values: Tensor) -> Arrival | None:
        """What will arrive at `values`; None where no gradient flows, or where the last call was about the same
        tensor."""
        if not values.requires_grad or not torch.is_grad_enabled():
            return None
        if self._last is not None and self._last() is values:
            return None
        self._last, arrival = ref(values), Arrival()

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
