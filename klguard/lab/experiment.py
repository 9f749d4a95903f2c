"""The experiment: PPO with a reward that never changes, under some sampling settings, and when the alarms go off.

The reward is a constant, so nothing can be learnt: the best policy is the one that training began with. Under pure
sampling a constant exerts no force, for E_p[c * grad log p] = 0, and the policy stays near its reference. Under
any other sampler q the same expectation is -c * grad KL(q || p): with c below 0 the policy moves away from q,
sampled tokens lose probability, the KL estimate mean(log p - log ref) falls, below zero in the end, and the penalty
-kl_coef * KL pays for it. The value head takes the constant away as it learns it; what it leaves is enough.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from klguard.findings import Finding, Severity
from klguard.guard.shares import EVIDENCE, threshold
from klguard.lab.config import Config
from klguard.lab.grammar import Beginnings, Tokenizer
from klguard.lab.loop import PPO
from klguard.lab.settings import described

REWARD = -1.0
"""What every response gets. A reward model's scale is arbitrary; that it is not centred is the usual case."""

SETUP = Config(
    steps=24,
    rows=48,
    max_new_tokens=24,
    kl_coef=0.1,
    # with lambda 1 the constant is the same at every token, and shows no preference for short or long responses
    lam=1.0,
    # whitening takes most of the constant away, and slows down what is to be seen here in two dozen steps
    whiten=False,
    epochs=3,
    minibatches=2,
    learning_rate=3e-4,
    measure_exact_kl=True,
)

TRL_LIMIT = -1.0
"""trl 0.11.4, PPOTrainer: warns where the batch mean of the sequences' KL estimate is below this, in nats."""

ALPHA = 1e-6
LIMIT = threshold(ALPHA, EVIDENCE)
"""The log evidence, nats, at which the guard alarms."""


@dataclass(frozen=True)
class Alarm:
    """When an alarm went off: after which step, and after how many sampled tokens in all. `codes` of the guard's
    findings, and the cause that the evidence names."""

    step: int
    tokens: int
    codes: tuple[str, ...] = ()
    cause: str = ""


@dataclass
class Outcome:
    """A run so far.

    sampling   the settings that were added to pure sampling.
    figures    one dict a step: kl, exact_kl (nats per sequence), score, total_reward, tokens (in all), length, entropy
               and, with a guard, log_evidence and causes.
    guard      where the guard's errors begin, None while there are none; `evidence` likewise, of the tests of the
               tokens alone, without what it read in the settings.
    trl        where TRL's rule, batch mean below -1, first holds.
    """

    sampling: Mapping[str, Any]
    guarded: bool
    figures: list[dict[str, Any]] = field(default_factory=list)
    guard: Alarm | None = None
    evidence: Alarm | None = None
    trl: Alarm | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The settings as they are written: `min_new_tokens=16`."""
        return described(self.sampling)

    def column(self, name: str) -> list[float]:
        """A figure over the steps."""
        return [step[name] for step in self.figures]


def constant(texts: Sequence[str]) -> Tensor:
    """The reward (B,) of B responses."""
    return torch.full((len(texts),), REWARD)


def run(
    policy: nn.Module,
    sampling: Mapping[str, Any],
    *,
    config: Config = SETUP,
    guarded: bool = True,
    journal: str | Path | None = None,
    told: Callable[[Outcome], Any] = lambda outcome: None,
) -> Outcome:
    """Train a copy of `policy` under `sampling`; `told` hears of each step. The guard only records: what it would
    have prevented is what the experiment shows."""
    outcome = Outcome(dict(sampling), guarded)
    config = replace(config, sampling={**config.sampling, **sampling})
    loop = PPO(copy.deepcopy(policy), Tokenizer(), Beginnings(config.seed), constant, config)
    guard = loop.guarded(on_violation="record", alpha=ALPHA, journal=journal) if guarded else None

    def after_step(loop: PPO) -> None:
        known = outcome.figures[-1]["tokens"] if outcome.figures else 0
        figures: dict[str, Any] = dict(loop.logs[-1])
        figures["tokens"] = known + int(figures["tokens"])
        if guard is not None:
            outcome.findings = guard.findings
            figures["log_evidence"] = guard.evidence.log_evidence
            figures["causes"] = dict(guard.evidence.causes)
        outcome.figures.append(figures)
        _note(outcome)
        told(outcome)

    loop.run(guard, after_step=after_step)
    return outcome


def _note(outcome: Outcome) -> None:
    """Enter the alarms that went off in the last step."""
    last, step = outcome.figures[-1], len(outcome.figures) - 1
    errors = [one for one in outcome.findings if one.severity is Severity.ERROR]
    causes = [one.measured.cause for one in errors if one.measured is not None and one.measured.cause]
    # KLG705 compares the temperature that was set with the one that was divided by
    measured = [one for one in errors if one.code.startswith(("KLG6", "KLG70")) and one.code != "KLG705"]
    if errors and outcome.guard is None:
        outcome.guard = _alarm(step, last["tokens"], errors, causes)
    if measured and outcome.evidence is None:
        outcome.evidence = _alarm(step, last["tokens"], measured, causes)
    if last["kl"] < TRL_LIMIT and outcome.trl is None:
        outcome.trl = Alarm(step, last["tokens"])


def _alarm(step: int, tokens: int, found: Sequence[Finding], causes: Sequence[str]) -> Alarm:
    return Alarm(step, tokens, tuple(dict.fromkeys(one.code for one in found)), causes[0] if causes else "")
