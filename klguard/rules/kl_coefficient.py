"""KLG403."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from klguard.findings import Severity
from klguard.rules.bending import COEFFICIENTS, Origin, origin
from klguard.rules.programs import by_hand, grpo, ppo
from klguard.rules.rule import Example, Hazard, Rule, judge
from klguard.rules.words import subject
from klguard.settings import Settings, SiteKind


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class KlCoefficient(Rule):
    """The coefficient of the KL is negative, or has no effect, or is 0 in a trainer that is about the penalty.

    ## What it does
    Reports `init_kl_coef`, `kl_coef` or `beta` below 0, and notes a coefficient of 0 in PPO and RLOO, and one
    of 0 in a loop written by hand. In GRPO, where 0 is the default and a common choice, 0 is not noted.
    Reports slime's `--kl-coef` where the estimator is GRPO, GSPO or CISPO, which take no KL off the reward.

    ## Why it breaks the KL
    A negative coefficient pays the policy for every nat it moves away from the reference. At 0 nothing
    holds it, and a KL that is logged beside it is only looked at. With TRL's adaptive controller a
    coefficient of 0 stays 0, since each step multiplies it.

    ## Example
    ```python
    config = PPOConfig(init_kl_coef=-0.2)
    ```

    ## Use instead
    ```python
    config = PPOConfig(init_kl_coef=0.2)
    ```

    ## References
    - [Ziegler et al., Fine-Tuning Language Models from Human
      Preferences](https://arxiv.org/abs/1909.08593), 2.2
    - TRL `AdaptiveKLController`, `FixedKLController`
    """

    code = "KLG403"
    name = "kl-coefficient"

    def check(self, settings: Settings) -> Iterator[Hazard]:
        if settings.kind is SiteKind.GENERATE:
            yield from self._by_hand(settings)
        if settings.kind is not SiteKind.TRAINER_CONFIG:
            return
        ignored = judge(settings.values.get("kl_ignored"), lambda v: v is True, Severity.WARNING)
        if ignored is not None:
            yield Hazard(
                message=(
                    "the coefficient of a KL in the reward has no effect: with this estimator the advantage is made of "
                    "the bare reward, and nothing is taken off it"
                ),
                help="put the KL into the loss (`--use-kl-loss --kl-loss-coef 0.001`), or write a coefficient of 0",
                setting="kl_ignored",
                severity=ignored.severity,
                confidence=ignored.confidence,
                values=ignored.offenders,
            )
        for name in COEFFICIENTS:
            value = settings.values.get(name)
            negative = judge(value, lambda v: _number(v) and v < 0, self.severity)
            zero = judge(value, lambda v: _number(v) and v == 0, Severity.NOTE)
            if negative is not None:
                yield Hazard(
                    message=(
                        f"{subject(settings, name, negative)} pays the policy for moving away from the "
                        "reference: the penalty rewards the KL instead of holding it down"
                    ),
                    help="write the coefficient as a positive number; the trainer subtracts it",
                    setting=name,
                    severity=negative.severity,
                    confidence=negative.confidence,
                    values=negative.offenders,
                )
            elif (
                zero is not None
                and _is_about_the_penalty(settings)
                and all(origin(v, settings) is Origin.WRITTEN for v in zero.offenders)
            ):
                yield Hazard(
                    message=(
                        f"{subject(settings, name, zero)} turns the penalty off: nothing holds the policy "
                        "to the reference, and a KL that is logged is not acted on"
                    ),
                    help=f"give `{name}` a positive value, unless the run is meant to have no penalty",
                    setting=name,
                    severity=zero.severity,
                    confidence=zero.confidence,
                    values=zero.offenders,
                )

    def _by_hand(self, settings: Settings) -> Iterator[Hazard]:
        """A note: many loops are meant to run without a penalty, and compute the KL to look at it."""
        found = judge(settings.facts.get("kl_coefficient"), lambda v: _number(v) and v == 0, Severity.NOTE)
        if found is not None:
            yield Hazard(
                message="the KL term of the loop is multiplied by 0: it is computed, and holds nothing",
                help="give the coefficient a positive value, unless the run is meant to have no penalty",
                setting="kl_coefficient",
                severity=found.severity,
                confidence=found.confidence,
                values=found.offenders,
                in_loop=True,
            )

    VALID = (
        Example(ppo("do_sample=True, top_k=0, max_new_tokens=32", config="init_kl_coef=0.2")),
        Example(grpo('output_dir="out", beta=0.0')),
    )
    INVALID = (
        Example(
            ppo("do_sample=True, top_k=0, max_new_tokens=32", config="init_kl_coef=-0.2"),
            "pays the policy for moving away",
        ),
        Example(
            ppo("do_sample=True, top_k=0, max_new_tokens=32", config="init_kl_coef=0.0"),
            "turns the penalty off",
        ),
        Example(
            by_hand(
                "do_sample=True, top_k=0, max_new_tokens=32",
                kl="(ref_logprobs - logprobs).exp() - (ref_logprobs - logprobs) - 1",
                loss="-(score(tokens) * logprobs).mean() + (beta * kl).mean()",
                before="beta = 0.0",
            ),
            "is multiplied by 0",
        ),
        Example(
            "python3 train.py --num-rollout 100 --rollout-batch-size 32 --n-samples-per-prompt 8 \\\n"
            "   --advantage-estimator grpo --kl-coef 0.001 --attention-dropout 0.0 --hidden-dropout 0.0\n",
            "has no effect",
            filename="run.sh",
        ),
    )


def _is_about_the_penalty(settings: Settings) -> bool:
    """Whether a run of this trainer without a penalty is the exception: in GRPO it is the default, and in the
    configuration of a framework, which runs either, a choice."""
    name = settings.class_name
    return "GRPO" not in name and bool(name) and name != settings.engine
