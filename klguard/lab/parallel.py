"""Devices and ranks, by accelerate; FSDP2 by torch itself, which also works where there is no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, nn


def place(accelerator: Accelerator, model: nn.Module, *, shard: bool, trained: bool) -> nn.Module:
    """The model on this rank's device: in DDP where there are several ranks and it is trained, or, sharded, with
    a part of every parameter on each rank (FSDP2: torch.distributed.fsdp.fully_shard)."""
    if shard and accelerator.num_processes > 1:
        return _sharded(model.to(accelerator.device), accelerator)
    if trained:
        return accelerator.prepare_model(model)
    return model.to(accelerator.device)


def _sharded(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for block in _blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer's layers, of which one at a time is gathered: the longest list of modules in the model."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len, default=()))


@contextmanager
def without_reduction(modules: tuple[nn.Module, ...], quiet: bool) -> Iterator[None]:
    """While `quiet`, gradients of DDP modules stay on their rank: they are summed at the last micro-batch."""
    with ExitStack() as stack:
        for module in modules:
            if quiet and hasattr(module, "no_sync"):
                stack.enter_context(module.no_sync())
        yield


def total(accelerator: Accelerator, value: Tensor) -> Tensor:
    """`value` summed over all ranks."""
    return accelerator.reduce(value, reduction="sum") if accelerator.num_processes > 1 else value


def whole(value: Tensor) -> Tensor:
    """A norm of sharded gradients as an ordinary tensor."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def autocast(accelerator: Accelerator, precision: str) -> torch.autocast:
    """bf16 for what is safe in it, everywhere the model runs: sampling, scoring and updating must agree."""
    return torch.autocast(accelerator.device.type, torch.bfloat16, enabled=precision == "bf16")
