"""What an optimizer is about to change: its parameters, small samples of them, and the norms of the gradients.

Nothing here waits for the device. Sharded tensors (DTensor) are looked at through this rank's shard.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from klguard.guard.events import Update
from klguard.guard.invariants.invariant import HALF, Run

ALWAYS = 50_000_000
"""Parameters up to which the gradients are looked at in every update."""

FIRST, EACH = 4, 10
"""Of larger optimizers: the first updates, and every tenth after them."""


def unwrapped(optimizer: Any) -> Any:
    """The torch optimizer inside a wrapper such as accelerate's."""
    inner = getattr(optimizer, "optimizer", None)
    return inner if isinstance(inner, torch.optim.Optimizer) else optimizer


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All its parameters, group by group."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def scaled(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a GradScaler lets this step unscale, and skip, by itself (fused optimizers): the gradients are
    not yet what will be used, and may overflow as a matter of course."""
    return getattr(optimizer, "found_inf", None) is not None


def shard(tensor: Tensor) -> Tensor | None:
    """The dense values on this rank, detached; None where there are none (sparse, empty, on no device)."""
    values = tensor.detach()
    if hasattr(values, "to_local"):
        values = values.to_local()
    usable = values.layout == torch.strided and values.device.type != "meta" and values.numel() > 0
    return values if usable else None


def sample(tensor: Tensor, limit: int) -> Tensor | None:
    """At most `limit` elements (n,) at even distances, a copy; None where `shard` is."""
    values = shard(tensor)
    if values is None:
        return None
    flat = values.reshape(-1)
    return flat[:: max(1, math.ceil(flat.numel() / limit))].clone()


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of them: the first, the last, and others evenly in between."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def names(run: Run) -> dict[int, str]:
    """id of a parameter -> its name in the policy; found anew in each step, since wrapping replaces them."""
    step, known = run.notes.get("parameter names", (None, {}))
    if step != run.step:
        policy: nn.Module | None = run.policy
        known = {} if policy is None else {id(p): name for name, p in policy.named_parameters()}
        run.notes["parameter names"] = run.step, known
    return known


def called(parameter: Tensor, known: dict[int, str]) -> str:
    """Its name, or its shape where it is none of the policy's."""
    return known.get(id(parameter)) or f"a tensor of shape {tuple(parameter.shape)} outside the policy"


def replicas(tensor: Tensor) -> int | None:
    """How many ranks hold the same values as this shard; None for a tensor that is not sharded."""
    mesh, placements = getattr(tensor, "device_mesh", None), getattr(tensor, "placements", None)
    if mesh is None or placements is None:
        return None
    ways = math.prod(mesh.size(i) for i, placement in enumerate(placements) if placement.is_shard())
    return max(1, world() // ways) if ways > 1 else None


def world() -> int:
    """Number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@dataclass(frozen=True)
class Gradients:
    """The gradients of an optimizer's trainable tensors, just before its step.

    tensors   the tensors, without those that hold nothing on this rank.
    norms     (n,) fp32 norm of each gradient on this rank; 0 where there is none.
    shares    1 / number of ranks that hold the same shard, or None where a gradient is not sharded.
    rough     some gradients are in half precision.
    """

    tensors: tuple[Tensor, ...]
    norms: Tensor
    shares: tuple[float | None, ...]
    rough: bool


class Schedule:
    """Measures each update's gradients once for all invariants. In large models only some updates: one pass
    over the gradients costs what clipping them costs."""

    def __init__(self) -> None:
        self._event: Update | None = None
        self._answer: Gradients | None = None
        self._updates: dict[int, int] = {}
        self._sizes: dict[int, int] = {}

    def of(self, event: Update) -> Gradients | None:
        """The gradients at `event`, or None where this update is passed over."""
        if event is not self._event:
            self._event, self._answer = event, None
            if self._due(event.optimizer) and not scaled(event.optimizer):
                self._answer = measured(parameters_of(event.optimizer))
        return self._answer

    def _due(self, optimizer: torch.optim.Optimizer) -> bool:
        key = id(optimizer)
        number = self._updates.get(key, 0)
        self._updates[key] = number + 1
        if key not in self._sizes:
            self._sizes[key] = sum(p.numel() for p in parameters_of(optimizer) if p.requires_grad)
        return self._sizes[key] <= ALWAYS or number < FIRST or number % EACH == 0


def gradients(run: Run, event: Update) -> Gradients | None:
    """The gradients before an optimizer's step, measured once for each event; None where passed over."""
    return run.notes.setdefault("gradients", Schedule()).of(event)


@torch.no_grad()
def measured(parameters: Iterable[Tensor]) -> Gradients | None:
    """Norms of their gradients; None where nothing is trainable. One pass over the gradients."""
    present: list[tuple[Tensor, Tensor | None]] = list(_dense(parameters))
    if not present:
        return None
    found = [values for _, values in present if values is not None]
    device = found[0].device if found else present[0][0].device
    rough = any(values.dtype in HALF for values in found)
    answers = iter(_norms(found, device))
    zero = torch.zeros((), device=device)
    norms = torch.stack([zero if values is None else next(answers) for _, values in present])
    copies = [replicas(tensor) for tensor, _ in present]
    return Gradients(
        tuple(tensor for tensor, _ in present),
        norms,
        tuple(None if copy is None else 1.0 / copy for copy in copies),
        rough,
    )


def _dense(parameters: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Trainable tensors with the dense values of their gradient on this rank, or None where there is none. A
    sparse gradient, and a shard of no elements, is left out."""
    for parameter in parameters:
        if not parameter.requires_grad or shard(parameter) is None:
            continue
        if parameter.grad is None:
            yield parameter, None
        elif (values := shard(parameter.grad)) is not None:
            yield parameter, values


def _norms(values: list[Tensor], device: torch.device) -> list[Tensor]:
    """2-norm of each, fp32, on `device`; tensors of one device and type together."""
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, one in enumerate(values):
        groups.setdefault((one.device, one.dtype), []).append(index)
    answers: list[Tensor] = values.copy()
    for (_, dtype), members in groups.items():
        wide = {"dtype": torch.float32} if dtype in HALF else {}
        together = torch._foreach_norm([values[i] for i in members], 2, **wide)
        for index, norm in zip(members, together, strict=True):
            answers[index] = norm.to(device=device, dtype=torch.float32, non_blocking=True)
    return answers
