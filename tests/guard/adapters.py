"""The small loop with LoRA adapters, whose reference is the policy with its adapters switched off."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from tests.guard.loop import HIDDEN, Loop

RANK = 4


class Lora(nn.Module):
    """A layer with an adapter, with as much of PEFT's interface as is looked at."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.Linear(inputs, RANK, bias=False)
        self.lora_B = nn.Linear(RANK, outputs, bias=False)
        nn.init.zeros_(self.lora_B.weight)
        self.off = False

    @property
    def merged(self) -> bool:
        return False

    @property
    def disable_adapters(self) -> bool:
        return self.off

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        base = self.base_layer(x)
        return base if self.off else base + self.lora_B(self.lora_A(x))


class Adapted(Loop):
    """A correct loop. It has no reference model: `forward` runs the policy without its adapters instead."""

    learning_rate = 1e-3

    def make_policy(self):
        policy = super().make_policy().requires_grad_(False)
        for block in policy.transformer.h:
            block.mlp.c_fc = Lora(block.mlp.c_fc, HIDDEN, 4 * HIDDEN)
        return policy

    def make_reference(self):
        return None

    def parameters(self):
        return [parameter for parameter in super().parameters() if parameter.requires_grad]

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """As `with model.disable_adapter():` does it."""
        layers = [layer for layer in self.policy.modules() if isinstance(layer, Lora)]
        for layer in layers:
            layer.off = True
        yield
        for layer in layers:
            layer.off = False

    def forward(self, model, ids, attention):
        if model is not None:
            return super().forward(model, ids, attention)
        with self.switched_off():
            return super().forward(self.policy, ids, attention)


class AdapterStillOn(Adapted):
    """`disable_adapter` is forgotten: the policy is scored in place of the reference."""

    @contextmanager
    def switched_off(self):
        yield


class TrainedBefore(Adapted):
    """The run starts from a trained adapter, and its reference is the base without it."""

    def make_policy(self):
        policy = super().make_policy()
        with torch.no_grad():
            for block in policy.transformer.h:
                block.mlp.c_fc.lora_B.weight.normal_(0, 0.1)
        return policy


class KeptAdapter(TrainedBefore):
    """Correct: the adapter as it was is kept, and the reference is scored with it."""

    def make_policy(self):
        policy = super().make_policy()
        self.first = copy.deepcopy(policy).eval().requires_grad_(False)
        return policy

    def forward(self, model, ids, attention):
        return super().forward(self.first if model is None else model, ids, attention)
