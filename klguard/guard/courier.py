"""The one copy to the host that a step makes.

On an accelerator the copy runs behind the computation and is read at the next step, when it has long arrived:
the loop never waits for it, and a violation is told one step later. On the CPU it is there at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def at_hand(device: torch.device) -> bool:
    """Whether values there can be read at once. From a GPU that would wait for all that it still has to do."""
    return device.type == "cpu"


@dataclass
class _Sent:
    label: Any
    host: Tensor
    ready: Any


class Courier:
    """Brings vectors to the host, each with a label, in order. `patient` waits for each at once."""

    def __init__(self, *, patient: bool = False) -> None:
        self.patient = patient
        self._under_way: list[_Sent] = []

    def send(self, vector: Tensor, label: Any) -> list[tuple[Any, Tensor]]:
        """Start to bring `vector`, and hand over what arrived: on a CPU the vector itself, on an accelerator
        the one before."""
        earlier = self._under_way
        self._under_way = [self._dispatch(vector.detach(), label)]
        if self.patient or self._under_way[0].ready is None:
            earlier, self._under_way = earlier + self._under_way, []
        return [self._receive(sent) for sent in earlier]

    def flush(self) -> list[tuple[Any, Tensor]]:
        """Wait for what is still under way."""
        earlier, self._under_way = self._under_way, []
        return [self._receive(sent) for sent in earlier]

    def _dispatch(self, vector: Tensor, label: Any) -> _Sent:
        if vector.device.type != "cuda":
            return _Sent(label, self._copy(vector), None)
        host = torch.empty(vector.shape, dtype=vector.dtype, pin_memory=True)
        host.copy_(vector, non_blocking=True)
        ready = torch.cuda.Event()
        ready.record(torch.cuda.current_stream(vector.device))
        return _Sent(label, host, ready)

    def _receive(self, sent: _Sent) -> tuple[Any, Tensor]:
        if sent.ready is not None:
            sent.ready.synchronize()
        return sent.label, sent.host

    @staticmethod
    def _copy(vector: Tensor) -> Tensor:
        return vector.cpu().clone() if vector.device.type == "cpu" else vector.cpu()
