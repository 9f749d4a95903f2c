"""KLG408."""

from __future__ import annotations

from collections.abc import Iterator

from klguard.findings import Severity
from klguard.rules.rule import Example, Hazard, Rule, judge
from klguard.settings import Settings, SiteKind

_VERL = """\
algorithm:
  use_kl_in_reward: {reward}
actor_rollout_ref:
  actor:
    use_kl_loss: true
    kl_loss_type: low_var_kl
"""


class KlTwice(Rule):
    """The KL is taken off the reward and added to the loss in the same run.

    ## What it does
    Reports a configuration that turns both on: `use_kl_in_reward` and `use_kl_loss` of verl and SkyRL, `--kl-coef`
    beside `--use-kl-loss` of slime, `add_token_level_kl` beside `use_kl_loss` of ROLL.

    ## Why it breaks the KL
    Both terms hold the policy to the same reference, so the penalty is the sum of two coefficients that nobody
    chose together, and the KL in the reward moves the advantages that the loss is about. What one coefficient does
    to the KL cannot be told from the logs of the run.

    ## Example
    ```yaml
    algorithm:
      use_kl_in_reward: true
    actor_rollout_ref:
      actor:
        use_kl_loss: true
    ```

    ## Use instead
    ```yaml
    algorithm:
      use_kl_in_reward: false
    actor_rollout_ref:
      actor:
        use_kl_loss: true
    ```

    ## References
    - [verl, issue 265: the KL is applied twice](https://github.com/verl-project/verl/issues/265)
    """

    code = "KLG408"
    name = "kl-twice"
    severity = Severity.WARNING

    def check(self, settings: Settings) -> Iterator[Hazard]:
        if settings.kind is not SiteKind.TRAINER_CONFIG:
            return
        found = judge(settings.values.get("kl_in_both"), lambda v: v is True, self.severity)
        if found is not None:
            yield Hazard(
                message=(
                    "the KL is added to the loss here, and is taken off the reward too: the policy pays for "
                    "the same distance twice, and neither coefficient says how much"
                ),
                help="turn one of the two off; GRPO has the KL in the loss, PPO in the reward",
                setting="kl_in_both",
                severity=found.severity,
                confidence=found.confidence,
                values=found.offenders,
            )

    VALID = (Example(_VERL.format(reward="false"), filename="verl.yaml"),)
    INVALID = (Example(_VERL.format(reward="true"), "twice", filename="verl.yaml"),)
