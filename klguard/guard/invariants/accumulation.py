"""KLG844: micro-batches accumulate to the gradient of the large batch. Tried before training, and watched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from klguard.guard.events import Event, Preflight, Update
from klguard.guard.hooks import NAMED_OPTIMIZERS
from klguard.guard.invariants.backwards import Backwards
from klguard.guard.invariants.invariant import HALF, Breach, Invariant, Run
from klguard.guard.invariants.measuring import Consecutive
from klguard.guard.invariants.updates import called, names, parameters_of, sample, world
from klguard.guard.ledger import Readings
from klguard.guard.randomness import kept_randomness


class Accumulation(Invariant):
    """The loop's own `accumulate` over all rows at once, and over two halves of them: the two gradients agree.

    Compared are up to 4096 elements of each tensor, as the norm of the difference over the norm. A gradient
    that differs between two equal calls (dropout, sampling) cannot be compared, and 0 says nothing: both are
    left alone. Gradients, buffers, modes and random state are put back as they were.

    In half precision the gradient of each micro-batch is rounded to 8 or 11 bits. Whether that happens is seen
    where the loop's own `accumulate` runs the modules: autocast is often switched on only there.

    In training, what one backward() left in `.grad` is still there when the next one before the same update begins, and
    of one process it is what it was: not clipped, not unscaled. A running mean over micro-batches has the same factors
    in each step, and is left alone.
    """

    code = "KLG844"
    watches = (Preflight, Update)
    sums = ("looked", "gone", "scaled", "factor")
    ELEMENTS = 4096
    EXACT, ROUGH = 1e-3, 5e-2
    STEPS = 2

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._backwards = Backwards(run, self._before, self._after)
        self._left: dict[int, Tensor] = {}
        self._armed: set[int] = set()
        self._gone, self._scaled = Consecutive(self.STEPS), Consecutive(self.STEPS)

    def measure(self, event: Event) -> None:
        if isinstance(event, Update) and event.after:
            numbers = self._backwards.of(event.optimizer)
            self._armed.update(numbers)
            for number in numbers:
                self._left.pop(number, None)

    def close(self) -> None:
        """Take the hooks off."""
        self._backwards.close()
        self._armed.clear()
        self._left.clear()

    def _after(self, number: int, parameter: Tensor) -> None:
        """The first backward after an update has left its gradient."""
        if number in self._armed and parameter.grad is not None:
            if (left := sample(parameter.grad, self.ELEMENTS)) is not None:
                self._armed.discard(number)
                self._left[number] = left

    def _before(self, number: int, parameter: Tensor) -> None:
        """The second backward is about to add its own."""
        if (left := self._left.pop(number, None)) is None:
            return
        self.exercised = True
        kept = None if parameter.grad is None else sample(parameter.grad, self.ELEMENTS)
        some = left.abs().amax() > 0
        self.add("looked", some)
        self.add("gone", some if kept is None else some & (kept.abs().amax() == 0))
        if kept is not None and kept.shape == left.shape and world() == 1:
            self._compare(left.double(), kept.double(), half=parameter.grad.dtype in HALF)

    def _compare(self, left: Tensor, kept: Tensor, *, half: bool) -> None:
        """Whether the whole gradient was made smaller in between."""
        factor = (left * kept).sum() / left.square().sum().clamp(min=1e-300)
        rest = (kept - factor * left).square().sum()
        same = rest <= (1e-4 if half else 1e-8) * kept.square().sum()
        scaled = same & (factor > 0) & (factor < 0.99)
        self.add("scaled", scaled)
        self.add("factor", torch.where(scaled, factor, 0.0))

    def judge(self, readings: Readings) -> Iterator[Breach]:
        self._backwards.check()
        looked = readings["looked"]
        if looked and self._gone.see(readings["gone"] == looked, looked):
            yield Breach(
                "what one backward() left in the gradients was gone when the next one before the same optimizer.step()"
                f" began, in each of {self.STEPS} steps: the last micro-batch alone is trained on",
                value=readings["gone"], limit=0.0, key="gone",
                help="call zero_grad() once for each optimizer.step(), and not for each micro-batch",
            )  # fmt: skip
        factor = readings.mean("factor", "scaled")
        if self._scaled.see(factor is not None, factor or 0.0):
            first, last = self._scaled.figures[0], self._scaled.figures[-1]
            if abs(first - last) > 1e-4 * last:
                yield Breach(
                    "what one backward() left in the gradients was made smaller before the next one of the same"
                    f" optimizer.step() began, to {first:.3g} and {last:.3g} of what it was in the last {self.STEPS}"
                    " steps: the micro-batches of an update do not count alike",
                    value=last, limit=1.0, key="scaled",
                    help="clip or unscale the gradient once, right before optimizer.step()",
                )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {"gone": self._gone.state_dict(), "scaled": self._scaled.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._gone.load_state_dict(state["gone"])
        self._scaled.load_state_dict(state["scaled"])

    def inspect(self, event: Event) -> Iterator[Breach]:
        if not isinstance(event, Preflight):
            return
        policy, accumulate = self.run.policy, event.accumulate
        if policy is None or accumulate is None or event.rows < 2:
            return
        half = event.rows // 2
        first, second = list(range(half)), list(range(half, 2 * half))
        with _as_it_was(policy, self._trained(policy)) as devices, _half_precision() as seen:
            whole, again, halves = (
                self._gradient(policy, accumulate, batches, devices, other_numbers)
                for batches, other_numbers in (
                    ([first + second], False),
                    ([first + second], True),
                    ([first, second], False),
                )
            )
        norm = _norm(whole.values())
        limit = self.ROUGH if seen or self._rough(policy) else self.EXACT
        if not whole or not 0 < norm < float("inf") or self._apart(whole, again) > limit * norm / 4:
            return
        self.exercised = True
        error = self._apart(whole, halves) / norm
        if error > limit:
            worst = max(whole, key=lambda key: _norm([whole[key] - halves.get(key, 0.0 * whole[key])]))
            yield Breach(
                f"the gradient of {2 * half} rows in two micro-batches differs from that of one batch by {error:.2%}"
                f" of its norm, most of all in {worst}",
                value=error, limit=limit,
            )  # fmt: skip

    def _gradient(
        self,
        policy: nn.Module,
        accumulate: Callable[..., Any],
        batches: list[list[int]],
        devices: list[torch.device],
        other_numbers: bool,
    ) -> dict[str, Tensor]:
        """Samples of the gradient, float64, by the tensor's name. `other_numbers`: from another random state
        than the run's, so that what depends on one shows."""
        known, trained = names(self.run), self._trained(policy)
        for parameter in trained:
            parameter.grad = None
        with kept_randomness(devices), torch.enable_grad():
            for device in ["cpu", *devices] if other_numbers else ():
                torch.rand(1, device=device)
            accumulate(batches)
        found = {}
        for number, parameter in enumerate(trained):
            values = None if parameter.grad is None else sample(parameter.grad, self.ELEMENTS)
            if values is not None:
                key = called(parameter, known)
                found[key if id(parameter) in known else f"{key} ({number})"] = values.double()
        return found

    def _trained(self, policy: nn.Module) -> list[Tensor]:
        """The policy's parameters, and what its optimizers have besides: a value head, say."""
        optimizers = self.run.notes.get(NAMED_OPTIMIZERS, self.run.optimizers)
        others = [p for optimizer in optimizers for p in parameters_of(optimizer)]
        return list({id(p): p for p in (*policy.parameters(), *others)}.values())

    @staticmethod
    def _apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
        """Norm of the difference; a tensor that only one of them has counts whole."""
        missing = [values for key, values in other.items() if key not in one]
        return _norm(
            [values - other[key] if key in other else values for key, values in one.items()] + missing
        )

    @staticmethod
    def _rough(policy: nn.Module) -> bool:
        """Whether anything computes in less than fp32."""
        devices = {p.device.type for p in policy.parameters()}
        return (
            any(p.dtype in HALF for p in policy.parameters())
            or any(torch.is_autocast_enabled(kind) for kind in devices)
            or "_original_forward" in vars(policy)  # accelerate runs such a model under autocast
            or ("cuda" in devices and torch.get_float32_matmul_precision() != "highest")
        )


def _norm(parts: Iterable[Tensor]) -> float:
    """2-norm of all of them together. Waits for the device: training has not begun."""
    return sum(float(part.square().sum()) for part in parts) ** 0.5


@contextmanager
def _half_precision() -> Iterator[set[torch.dtype]]:
    """The half precisions in which modules are run meanwhile: under autocast, or on inputs in half precision."""
    seen: set[torch.dtype] = set()

    def look(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        for values in inputs:
            if isinstance(values, Tensor):
                kind = values.device.type
                autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
                seen.update({values.dtype, autocast} & HALF)

    hook = register_module_forward_pre_hook(look)
    try:
        yield seen
    finally:
        hook.remove()


@contextmanager
def _as_it_was(policy: nn.Module, trained: Iterable[Tensor]) -> Iterator[list[torch.device]]:
    """Put back what a trial may change: gradients, buffers, train or eval mode. Gives the
    accelerators whose random state each trial has to keep."""
    gradients = {id(parameter): (parameter, parameter.grad) for parameter in trained}

    def keep(module: nn.Module, _: Any) -> None:
        for parameter in module._parameters.values():  # of a value head beside the policy, for instance
            if parameter is not None and id(parameter) not in gradients:
                gradients[id(parameter)] = parameter, parameter.grad
                parameter.grad = None

    hook = register_module_forward_pre_hook(keep)
    buffers = [(buffer, buffer._version, buffer.detach().clone()) for buffer in policy.buffers()]
    modes = [(module, module.training) for module in policy.modules()]
    devices = sorted({p.device for p in policy.parameters() if p.device.type == "cuda"}, key=str)
    try:
        yield devices
    finally:
        hook.remove()
        for parameter, gradient in gradients.values():
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, version, values in buffers:
                if buffer._version != version:
                    buffer.copy_(values)
        for module, training in modes:
            module.training = training
