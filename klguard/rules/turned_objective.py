"""KLG410."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from klguard.findings import Severity
from klguard.rules.programs import by_hand
from klguard.rules.rule import Example, Hazard, Rule, judge
from klguard.settings import Settings


class _Form(NamedTuple):
    why: str
    instead: str


_FORMS = {
    "larger": _Form(
        "the larger of the clipped and the unclipped objective is maximised: the clip never holds where the "
        "ratio has gone too far, and each update may move the policy without bound",
        "minimise `-torch.min(ratio * advantages, clipped * advantages)`, or the `torch.max` of both negated",
    ),
    "inverted": _Form(
        "the clipped ratio is exp(old - new), the inverse of the importance ratio: its gradient makes rewarded "
        "tokens less likely",
        "write `torch.exp(logprobs - old_logprobs)`",
    ),
    "minimised": _Form(
        "the objective is minimised as it stands: what was rewarded becomes less likely, and the policy is "
        "driven away from what it draws",
        "put one minus before it: `loss = -torch.min(ratio * advantages, clipped * advantages).mean()`",
    ),
    "kl-gain": _Form(
        "a KL that is never negative is taken off the loss: the smaller the loss, the further the policy is from "
        "the reference, which it is paid to leave",
        "add the KL to a loss that is minimised",
    ),
    "kl-bonus": _Form(
        "log p - log ref is added to the reward: the policy is paid to leave its reference",
        "take it off: `rewards - beta * (logprobs - ref_logprobs)`",
    ),
}

_PURE = "do_sample=True, top_k=0, max_new_tokens=32"
_RATIO = "old_logprobs = logprobs.detach()\n    advantages = score(tokens)\n    ratio = torch.exp({ratio})"
_CLIP = "{sign}torch.{which}(ratio * advantages, torch.clamp(ratio, 1 - 0.2, 1 + 0.2) * advantages).mean()"
_K3 = "torch.exp(ref_logprobs - logprobs) - (ref_logprobs - logprobs) - 1"
_POLICY = "policy_loss = -(score(tokens) * logprobs).mean()"


def _clipped(which: str = "min", ratio: str = "logprobs - old_logprobs", sign: str = "-") -> str:
    kl = "(logprobs - ref_logprobs).detach()"
    return by_hand(_PURE, kl=kl, mask=_RATIO.format(ratio=ratio), loss=_CLIP.format(which=which, sign=sign))


def _rewarded(sign: str) -> str:
    """The KL in the reward."""
    reward = f"rewards = score(tokens) {sign} 0.1 * kl.detach()"
    return by_hand(_PURE, kl="logprobs - ref_logprobs", mask=reward, loss="-(rewards * logprobs).mean()")


class TurnedObjective(Rule):
    """The objective of a loop written by hand is turned around.

    ## What it does
    Reports a clipped objective that takes the larger of the two terms, a ratio of the old policy over the new one
    that is clipped around 1, an objective (clipped, or advantage times log-prob) that is minimised without a
    minus or with two, a k3 term that is subtracted from the loss that is minimised, and a log-ratio of policy and
    reference that is added to the reward.

    ## Why it breaks the KL
    The clip and the KL term are what keeps the policy near the one that drew the tokens and near the reference.
    Turned around, the first lets go exactly where it should hold, and the second pays for the distance: the KL
    grows without any reward for it.

    ## Example
    ```python
    loss = -torch.max(ratio * advantages, ratio.clamp(1 - eps, 1 + eps) * advantages).mean()
    ```

    ## Use instead
    ```python
    loss = -torch.min(ratio * advantages, ratio.clamp(1 - eps, 1 + eps) * advantages).mean()
    ```

    ## References
    - [Schulman et al., Proximal Policy Optimization Algorithms](https://arxiv.org/abs/1707.06347), 3
    - [verl, pull request 179: the KL loss was subtracted](https://github.com/verl-project/verl/pull/179)
    """

    code = "KLG410"
    name = "turned-objective"
    severity = Severity.WARNING

    def check(self, settings: Settings) -> Iterator[Hazard]:
        for form, about in _FORMS.items():
            found = judge(settings.facts.get("objective"), lambda v, form=form: v == form, self.severity)
            if found is not None:
                yield Hazard(
                    message=about.why,
                    help=about.instead,
                    setting="",
                    severity=found.severity,
                    confidence=found.confidence,
                    values=found.offenders,
                    in_loop=True,
                )

    VALID = (
        Example(_clipped()),
        Example(by_hand(_PURE, kl=_K3, mask=_POLICY, loss="policy_loss + 0.1 * kl.mean()")),
        Example(_rewarded("-")),
    )
    INVALID = (
        Example(_rewarded("+"), "paid to leave"),
        Example(_clipped("max"), "the larger of"),
        Example(_clipped(ratio="old_logprobs - logprobs"), "the inverse of"),
        Example(_clipped(sign=""), "is minimised as it stands"),
        Example(by_hand(_PURE, kl=_K3, mask=_POLICY, loss="policy_loss - 0.1 * kl.mean()"), "paid to leave"),
    )
