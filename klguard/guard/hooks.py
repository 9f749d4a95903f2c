"""What the guard hangs into the loop besides the model: torch's optimizer hooks; and one extra forward pass."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

if TYPE_CHECKING:
    from klguard.guard.listening import Listening


NAMED_OPTIMIZERS = "optimizers named by watch"
"""Note of a run: the optimizers it was told of, before any of them has stepped."""


class OptimizerHooks:
    """Tells the guard before and after each step of the policy's optimizers.

    Installed, it sees every optimizer of the process and picks those that own a parameter of the policy;
    optimizers named by `watch` are seen also when it is not installed.
    """

    def __init__(self, guard: Listening) -> None:
        self._guard = guard
        self._named: WeakSet[torch.optim.Optimizer] = WeakSet()
        self._own: WeakKeyDictionary[torch.optim.Optimizer, bool] = WeakKeyDictionary()
        self._stepping: WeakSet[torch.optim.Optimizer] = WeakSet()
        self._handles: list[Any] = []
        self._global: list[Any] = []

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        """See this optimizer from now on. TypeError for something that is none."""
        inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's AcceleratedOptimizer
        if not isinstance(inner, torch.optim.Optimizer):
            raise TypeError(f"optimizer is a {type(optimizer).__name__}, not a torch.optim.Optimizer")
        if inner in self._named:
            return
        self._named.add(inner)
        self._guard._works.run.notes.setdefault(NAMED_OPTIMIZERS, []).append(inner)
        self._handles.append(inner.register_step_pre_hook(self._before))
        self._handles.append(inner.register_step_post_hook(self._after))

    @property
    def active(self) -> bool:
        """Whether the policy's updates are seen."""
        return bool(self._global) or bool(self._named)

    def updates(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether a step of it changes the policy: it owns a parameter of it, or it was named and nobody is known who
        does, as where it owns the masters in full precision that the loop copies into the policy."""
        if self.owns(optimizer):
            return True
        return self.named(optimizer) and not any(map(self.owns, self._named)) and not any(self._own.values())

    def install(self) -> None:
        """See all optimizers of the policy."""
        if not self._global:
            self._global.append(register_optimizer_step_pre_hook(self._before))
            self._global.append(register_optimizer_step_post_hook(self._after))

    def remove(self) -> None:
        """See only those named by `watch`."""
        while self._global:
            self._global.pop().remove()

    # A subclass whose step() calls its parent's can make torch call the hooks twice, one pair inside the other:
    # the first call before and the last call after are those of the whole step. What the subclass does behind
    # its parent's step, such as copying master weights, belongs to the step.

    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if optimizer not in self._stepping:
            self._stepping.add(optimizer)
            self._guard.updated(optimizer, after=False)

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if optimizer in self._stepping and not _inside_another_step(optimizer):
            self._stepping.discard(optimizer)
            self._guard.updated(optimizer, after=True)

    def named(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether it was named by `watch`."""
        return optimizer in self._named

    def owns(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether the optimizer updates a parameter of the policy. Without a policy, a named one does."""
        policy = self._guard.policy
        if policy is None:
            return optimizer in self._named
        known = self._own.get(optimizer)
        if known is None:
            mine = {id(parameter) for parameter in policy.parameters()}
            known = any(id(p) in mine for group in optimizer.param_groups for p in group["params"])
            self._own[optimizer] = known
        return known


def _inside_another_step(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the step whose hook is running was called by another step of the same optimizer. Asked of the stack
    and not counted: a step that ends by an error never calls its last hook, and a count would be off from then on."""
    hook = sys._getframe(1)
    own = hook.f_back  # torch's wrapper around step(), which calls the hooks
    frame = None if own is None else own.f_back
    while frame is not None:
        if frame.f_code is own.f_code and frame.f_locals.get("self") is optimizer:
            return True
        frame = frame.f_back
    return False


def extra_forward(
    guard: Listening, model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
) -> Tensor:
    """Logits (B, L, V) of one more forward pass, which leaves random state as it was and which the guard itself
    does not take for one of the loop's."""
    devices = [input_ids.device] if input_ids.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices), guard.looking_away():
        output = model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
    logits = getattr(output, "logits", None)
    if logits is None:
        logits = output if isinstance(output, Tensor) else output[0]
    return logits.detach()
