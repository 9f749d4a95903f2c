"""KLG409."""

from __future__ import annotations

from collections.abc import Iterator

from klguard.findings import Severity
from klguard.rules.rule import Example, Hazard, Rule, judge
from klguard.settings import Settings, SiteKind

_VERL = """\
algorithm:
  adv_estimator: grpo
actor_rollout_ref:
  rollout:
    n: {n}
"""


class GroupOfOne(Rule):
    """The advantage is relative to a group of responses, and a group has one response.

    ## What it does
    Reports a configuration that asks for GRPO, RLOO or another estimator over groups and for one response to each
    prompt (`actor_rollout_ref.rollout.n` of verl, `n_samples_per_prompt` of OpenRLHF, slime and SkyRL,
    `num_generations_per_prompt` of NeMo-RL).

    ## Why it breaks the KL
    The mean of a group of one is the response's own reward. Either every advantage is 0 and nothing is learnt but
    the KL term, or, where the framework leaves such a group alone, the bare reward stands in for the advantage and
    every rewarded response is pushed up without a baseline.

    ## Example
    ```yaml
    algorithm:
      adv_estimator: grpo
    actor_rollout_ref:
      rollout:
        n: 1
    ```

    ## Use instead
    ```yaml
    algorithm:
      adv_estimator: grpo
    actor_rollout_ref:
      rollout:
        n: 8
    ```

    ## References
    - [Shao et al., DeepSeekMath](https://arxiv.org/abs/2402.03300), 4.1
    - verl `compute_grpo_outcome_advantage`
    """

    code = "KLG409"
    name = "group-of-one"
    severity = Severity.WARNING

    def check(self, settings: Settings) -> Iterator[Hazard]:
        if settings.kind is not SiteKind.TRAINER_CONFIG:
            return
        found = judge(settings.values.get("group_size"), lambda v: v == 1 and v is not True, self.severity)
        if found is not None:
            yield Hazard(
                message=(
                    "each group has one response, and the advantage is taken relative to the group: it is 0, "
                    "or the bare reward without a baseline"
                ),
                help="sample several responses to each prompt, or use an estimator with a value model",
                setting="group_size",
                severity=found.severity,
                confidence=found.confidence,
                values=found.offenders,
            )

    VALID = (Example(_VERL.format(n=8), filename="verl.yaml"),)
    INVALID = (Example(_VERL.format(n=1), "one response", filename="verl.yaml"),)
