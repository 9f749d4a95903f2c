"""KLG404."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from klguard.engines.engine import verdict as for_all
from klguard.findings import Severity
from klguard.rules.programs import ppo
from klguard.rules.rule import Example, Hazard, Rule, judge
from klguard.rules.words import subject
from klguard.settings import Settings, SiteKind

HIGHEST = 10  # nats per sequence: the band that TRL's training FAQ recommends for objective/kl


def _outside(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not 0 < value <= HIGHEST


class KlTarget(Rule):
    """The adaptive controller of the KL coefficient aims outside 0 to 10 nats.

    ## What it does
    Reports a `target` of classic TRL's or trlx's adaptive controller that is not above 0, or is above 10
    nats per sequence. `target_kl`, which stops the epochs of one PPO step, is something else and not judged
    here.

    ## Why it breaks the KL
    The controller multiplies the coefficient by 1 + clip(KL / target - 1, -0.2, 0.2) * steps / horizon. A
    target that is never reached shrinks the coefficient at every step until nothing holds the policy; a
    target of 0 or below divides by 0 or turns the sign of the feedback.

    ## Example
    ```python
    config = PPOConfig(adap_kl_ctrl=True, target=100)
    ```

    ## Use instead
    ```python
    config = PPOConfig(adap_kl_ctrl=True, target=6)
    ```

    ## References
    - [Ziegler et al., Fine-Tuning Language Models from Human
      Preferences](https://arxiv.org/abs/1909.08593), 2.2
    - TRL `AdaptiveKLController`
    - [TRL, Training FAQ](https://huggingface.co/docs/trl/v0.11.4/how_to_train): keep the KL between 0 and
      10
    """

    code = "KLG404"
    name = "kl-target"
    severity = Severity.WARNING

    def check(self, settings: Settings) -> Iterator[Hazard]:
        adaptive = for_all(settings.values.get("adap_kl_ctrl"), bool) if settings.engine == "trl" else True
        if settings.kind is not SiteKind.TRAINER_CONFIG or adaptive is False:
            return
        found = judge(settings.values.get("target"), _outside, self.severity)
        if found is not None:
            yield Hazard(
                message=(
                    f"{subject(settings, 'target', found)} is outside 0 to {HIGHEST} nats per sequence: "
                    "the adaptive controller then lets the KL coefficient run away instead of steering "
                    "the KL"
                ),
                help="aim at a few nats, `target=6` is the usual value, or switch the controller off",
                setting="target",
                severity=found.severity,
                confidence=found.confidence,
                values=found.offenders,
                safe="6",
            )

    VALID = (
        Example(ppo("do_sample=True, top_k=0, max_new_tokens=32", config="target=6")),
        Example(ppo("do_sample=True, top_k=0, max_new_tokens=32", config="adap_kl_ctrl=False, target=100")),
    )
    INVALID = (
        Example(
            ppo("do_sample=True, top_k=0, max_new_tokens=32", config="target=100"), "`target=100` is outside"
        ),
        Example(
            ppo("do_sample=True, top_k=0, max_new_tokens=32", config="target=0"), "`target=0` is outside"
        ),
    )
