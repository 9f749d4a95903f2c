"""What a hypothesis about the sampler is, and a family of them over the values of one setting."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import inf, isfinite

from torch import Tensor

from klguard.guard.rows import Rows

BETWEEN = 0.25
"""Share in naming of a value that only helps to name the cause, where a value that is evidence too has 1."""


class Hypothesis(ABC):
    """A family of samplers over a grid of one parameter.

    family: what it is called in `Evidence.blind`. names: one per parameter, as they appear among the causes;
    components that share a name are added up. prior: the share of the whole family in the mixture, relative
    to the other families. weights: relative shares inside the family; 0 for a value that is no evidence and only
    helps to name the cause. naming: the same for naming the cause once the evidence is there; it does not enter
    the evidence. needs: the field of `Rows` without which it cannot be tested. valid: False for a diagnostic,
    which helps to name a cause and never counts as evidence. exact: True where L is used as it is; else
    (1 - delta) L + delta replaces it, so that a single rounded logit outside a kept set does not end the
    component for ever.
    """

    family: str
    names: tuple[str, ...]
    prior: float
    weights: tuple[float, ...]
    naming: tuple[float, ...]
    needs: str = "log_probs"
    valid: bool = True
    exact: bool = False

    def __init__(
        self,
        family: str,
        names: Sequence[str],
        prior: float,
        weights: Sequence[float] | None = None,
        naming: Sequence[float] | None = None,
    ) -> None:
        if not names:
            raise ValueError(f"the hypothesis {family!r} has no parameter: give it at least one")
        if not prior > 0 or not isfinite(prior):
            raise ValueError(f"the prior of {family!r} is {prior}: it must be a positive number")
        self.family = family
        self.names = tuple(names)
        self.prior = float(prior)
        self.weights = tuple(float(w) for w in weights) if weights is not None else (1.0,) * len(self.names)
        self.naming = tuple(float(w) for w in naming) if naming is not None else self.weights
        if len(self.weights) != len(self.names) or min(self.weights) < 0 or not any(self.weights):
            raise ValueError(
                f"{family!r} needs one weight for each of its {len(self.names)} names, none below 0 and not all 0"
            )
        if len(self.naming) != len(self.names) or min(self.naming) <= 0:
            raise ValueError(
                f"{family!r} needs a share above 0 in naming for each of its {len(self.names)} names"
            )

    @abstractmethod
    def log_ratio(self, rows: Rows) -> Tensor:
        """(n, len(names)) float64: log q(x) - log p(x), nats; -inf outside the support of q, NaN for no
        opinion. Values of rows that are not usable are ignored. Never waits for the device."""


class Grid(Hypothesis):
    """A family over the values of one setting, ascending.

    values: those that are evidence. between: those that are none. A fault at such a value is found by its
    neighbours, and without it in the list they might lose to another setting when it comes to the name: `min_p=0.02`
    keeps other tokens than 0.01 and 0.05 do, and nearly those of some top_p. usual: how often people write a value,
    to which 1 is added; it weighs in the name only. special: shares of values that are other than 1.
    """

    def __init__(
        self,
        family: str,
        values: Sequence[float],
        between: Sequence[float] = (),
        *,
        prior: float,
        usual: Mapping[float, float] | None = None,
        special: Mapping[float, float] | None = None,
    ) -> None:
        self.values = tuple(sorted({*values, *between}))
        listed = {*values}
        weights = [(special or {}).get(value, 1.0) if value in listed else 0.0 for value in self.values]
        if usual is not None:
            naming = [1.0 + usual.get(value, 0.0) for value in self.values]
        else:
            naming = [weight or BETWEEN for weight in weights]
        super().__init__(family, [self.name(family, value) for value in self.values], prior, weights, naming)

    @staticmethod
    def name(family: str, value: float) -> str:
        """What a value is called among the causes."""
        return f"{family}={value:g}"


def in_range(family: str, values: Sequence[float], low: float, high: float = inf) -> tuple[float, ...]:
    """The values as floats; ValueError for one that is not between `low` and `high`."""
    for value in values:
        if not low < value < high:
            raise ValueError(f"{family}={value} is no sampler: it must be above {low} and below {high}")
    return tuple(float(value) for value in values)
