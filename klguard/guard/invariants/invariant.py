"""What an invariant is: something that watches events, measures on the device, and judges on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from klguard.findings import Severity
from klguard.guard.catalogue import BY_CODE, Entry
from klguard.guard.events import Event
from klguard.guard.ledger import Ledger, Readings

HALF = frozenset({torch.bfloat16, torch.float16})

USUAL_RANGE = (0.0, 10.0)
"""The KL that a Guard allows when it is told no range, in nats per sequence."""


def tolerance(dtype: torch.dtype, *, fp32: float, half: float) -> float:
    """The limit for a computation in `dtype`."""
    return half if dtype in HALF else fp32


@dataclass(frozen=True, slots=True)
class Breach:
    """Something that does not hold.

    message   what was measured against what, in one sentence, with numbers and units.
    value, limit   the figures, where there are any.
    key       tells apart breaches that are to be reported once each (a parameter's name, a setting).
    severity  None for the entry's own.
    """

    message: str
    value: float | None = None
    limit: float | None = None
    key: str = ""
    severity: Severity | None = None
    help: str = ""
    measured: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Harm:
    """How far the KL estimate is off: nats per sequence, its standard error, and the reward it is worth (minus
    the KL coefficient times the bias; None where the coefficient is not known). `certain`: chance and rounding do
    not explain it."""

    nats_per_sequence: float
    standard_error: float | None = None
    reward: float | None = None
    certain: bool = True


@dataclass
class Run:
    """What invariants may know of the run besides the event at hand.

    alpha      probability of a false alarm in the whole run; kl_range in nats per sequence.
    rejected   the evidence has rejected the policy as the sampler; harm what that did, where known.
    step       number of the step that is going on, from 0.
    version    updates of the policy's weights so far, as far as the guard can see them.
    forward    (model, input_ids, attention_mask, **kwargs) -> logits (B, L, V): one extra forward pass that
               leaves random state, modes and hooks as they were. Costs time: for rare checks only.
    adapter    a trainer's adapter tells the events, whose loss is the trainer's own.
    notes      what several invariants work out together, by name.
    """

    policy: nn.Module | None = None
    reference: nn.Module | None = None
    tokenizer: Any = None
    stop_ids: tuple[int, ...] | None = None
    kl_coef: float | None = None
    max_grad_norm: float | None = None
    optimizers: list[torch.optim.Optimizer] = field(default_factory=list)
    scheduler: Any = None
    adapter_base: nn.Module | None = None
    group_size: int | None = None
    alpha: float = 1e-6
    kl_range: tuple[float, float] = USUAL_RANGE
    rejected: bool = False
    harm: Harm | None = None
    seed: int = 0
    step: int = 0
    version: int = 0
    forward: Callable[..., Tensor] | None = None
    adapter: bool = False
    notes: dict[str, Any] = field(default_factory=dict)

    def maximises(self) -> bool:
        """Whether an optimizer goes up the gradient."""
        return any(group.get("maximize") for one in self.optimizers for group in one.param_groups)


class Invariant:
    """Something that holds in every correct loop.

    A subclass names its entry by `code`, the events it watches, and the slots it needs in the ledger.
    `measure` runs at each of these events and must not wait for the device; `judge` runs once the step's
    figures are on the host, the same on every rank. What needs no figures (attributes, names, sizes) or runs
    before training is said by `inspect`, at once. `exercised` is set as soon as it really looked at something.
    """

    code: ClassVar[str]
    watches: ClassVar[tuple[type[Event], ...]]
    sums: ClassVar[tuple[str, ...]] = ()
    maxima: ClassVar[tuple[str, ...]] = ()

    def __init__(self, run: Run) -> None:
        self.run = run
        self.exercised = False
        self._ledger: Ledger | None = None

    @property
    def entry(self) -> Entry:
        """Code, name, severity and words."""
        return BY_CODE[self.code]

    @classmethod
    def slots(cls) -> tuple[list[str], list[str]]:
        """The names of its slots in the ledger."""
        return [f"{cls.code}.{s}" for s in cls.sums], [f"{cls.code}.{s}" for s in cls.maxima]

    def attach(self, ledger: Ledger) -> None:
        """Measure into `ledger` from now on."""
        self._ledger = ledger

    def add(self, slot: str, figure: Tensor | float) -> None:
        """Add to one of its sums."""
        self._ledger.add(f"{self.code}.{slot}", figure)

    def highest(self, slot: str, figure: Tensor | float) -> None:
        """Keep the largest in one of its maxima."""
        self._ledger.highest(f"{self.code}.{slot}", figure)

    def measure(self, event: Event) -> None:
        """Measure at `event`: detached tensors, no synchronisation."""

    def inspect(self, event: Event) -> Iterator[Breach]:
        """What can be said at once: from attributes and shapes, or before training."""
        return iter(())

    def judge(self, readings: Readings) -> Iterator[Breach]:
        """What the step's figures (of this invariant's slots) say."""
        return iter(())

    def state_dict(self) -> dict[str, Any]:
        """What has to survive a restart: numbers, strings, lists and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state."""
