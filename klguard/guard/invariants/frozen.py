"""KLG802, KLG804: weights that nothing is to train keep their bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from klguard.findings import Severity
from klguard.guard import models
from klguard.guard.events import Event, Rollout, Scoring, Setup, StepEnd
from klguard.guard.fingerprint import Kept, memory
from klguard.guard.invariants.invariant import HALF, Breach, Invariant, Run
from klguard.guard.ledger import Readings


class _Frozen(Invariant):
    """Weights that keep their bits: the first look at them is compared with later ones.

    In the first steps at powers of two, then every `every` steps, all of them; in every step those that torch
    counted a write to. Parameters, and buffers that are saved with the model (others are caches).
    """

    watches = (Setup, Rollout, Scoring, StepEnd)
    maxima = ("changed", "which")
    every = 50

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._kept: Kept | None = None
        self._restored: Mapping[str, Any] = {}
        self._looked = -1
        self._step_ends = False

    def tensors(self) -> dict[str, Tensor]:
        """What has to stay as it is, by name; empty where there is nothing."""
        raise NotImplementedError

    def now(self) -> bool:
        """Whether the weights can be looked at now."""
        return True

    def measure(self, event: Event) -> None:
        ends = isinstance(event, StepEnd)
        self._step_ends = self._step_ends or ends
        if self._kept is None:
            if not isinstance(event, Scoring):  # often many a step, and there is nothing to lose
                self._begin()
        elif ends or (not self._step_ends and not isinstance(event, Setup) and self.run.step != self._looked):
            self._look()

    def _begin(self) -> None:
        tensors = self.tensors() if self.now() else {}
        if tensors:
            self._kept = Kept(tensors)
            if self._restored:
                self._kept.load_state_dict(self._restored)

    def _look(self) -> None:
        if not self.now():
            return
        self._looked = self.run.step
        number = self._looked + 1
        due = number % self.every == 0 or (number < self.every and not number & (number - 1))
        seen = self._kept.changed(self.tensors(), everything=due)
        self.exercised = self.exercised or seen is not None
        if seen is not None:
            self.highest("changed", seen[0])
            self.highest("which", seen[1])

    def judge(self, readings: Readings) -> Iterator[Breach]:
        count = int(readings.maximum("changed") or 0)
        if not count or self._kept is None:
            return
        which = int(readings.maximum("which") or 0) - 1
        name = self._kept.names[which] if 0 <= which < len(self._kept.names) else "?"
        yield self.said(name, f" and {count - 1} more" if count > 1 else "", count)

    def said(self, name: str, others: str, count: int) -> Breach:
        """The breach: `name` changed, `others` is empty or tells how many more."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return {"kept": dict(self._restored) if self._kept is None else self._kept.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._restored = state["kept"]
        if self._kept is not None:
            self._kept.load_state_dict(self._restored)


def _persistent(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, and buffers that are saved with the model, by name."""
    yield from module.named_parameters()
    for prefix, layer in module.named_modules():
        for name, buffer in layer._buffers.items():
            if buffer is not None and name not in layer._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer


class ReferenceFrozen(_Frozen):
    """The reference keeps its bits. What it shares with the policy belongs to KLG803 and KLG804."""

    code = "KLG802"

    def tensors(self) -> dict[str, Tensor]:
        run = self.run
        if run.reference is None or run.reference is run.policy:
            return {}
        shared = set()
        # what is shared from the beginning is left out; what comes to be shared has to keep its bits
        for parameter in run.policy.parameters() if run.policy is not None and self._kept is None else ():
            shared |= memory(parameter)
        return {name: tensor for name, tensor in _persistent(run.reference) if not memory(tensor) & shared}

    def said(self, name: str, others: str, count: int) -> Breach:
        return Breach(
            f"`{name}`{others} of the reference changed: KL is no longer measured against the model the run"
            " started from",
            value=float(count),
            limit=0.0,
            help="freeze it (requires_grad_(False)), keep it out of the optimizer, and copy it instead of"
            " aliasing; where it follows the policy on purpose, ignore KLG802",
        )


class BaseFrozen(_Frozen):
    """The frozen weights under an adapter keep their bits. While the adapter is merged nobody looks."""

    code = "KLG804"

    def tensors(self) -> dict[str, Tensor]:
        run = self.run
        if run.adapter_base is not None:
            found = dict(_persistent(run.adapter_base))
        elif run.policy is not None and any(p.requires_grad for p in run.policy.parameters()):
            found = dict(run.policy.named_parameters())
        else:
            return {}
        owned = {id(p) for o in run.optimizers for group in o.param_groups for p in group["params"]}
        return {n: t for n, t in found.items() if not t.requires_grad and id(t) not in owned}

    def now(self) -> bool:
        return not (models.merged(self.run.policy) or models.merged(self.run.adapter_base))

    def said(self, name: str, others: str, count: int) -> Breach:
        half = models.precision(self.run.adapter_base or self.run.policy) in HALF
        return Breach(
            f"the frozen weights `{name}`{others} changed: the base under the adapter is not what it was",
            value=float(count),
            limit=0.0,
            # merged and unmerged in fp32, a base moves by 1e-7 of itself; in half precision by 1e-3
            severity=Severity.ERROR if half or not models.adapted(self.run.policy) else Severity.WARNING,
        )
