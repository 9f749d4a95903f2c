"""KLG406."""

from __future__ import annotations

from collections.abc import Iterator

from klguard.findings import Severity
from klguard.rules.programs import by_hand
from klguard.rules.rule import Example, Hazard, Rule, judge
from klguard.settings import Settings

_SETTINGS = "do_sample=True, top_k=0, max_new_tokens=32"
_BOTH = "optimizer = torch.optim.AdamW([*policy.parameters(), *reference.parameters()], lr=1e-6)\n"
_WHY = {
    "in the optimizer": (
        Severity.ERROR,
        "the parameters of the reference are in the optimizer: it moves towards the policy, and the KL is "
        "lowered by changing what it is measured against",
        "give the optimizer the parameters of the policy only, and call `requires_grad_(False)` on the "
        "reference",
    ),
    "train mode": (
        Severity.WARNING,
        "the reference is in train mode: with dropout it is another network at every call, and log p - "
        "log ref is no distance from one model",
        "call `eval()` on the reference, and score it under `torch.no_grad()`",
    ),
}


class TrainableReference(Rule):
    """The reference is not fixed: it is trained, or runs in train mode.

    ## What it does
    Reports a reference whose parameters are given to the optimizer, and one that was last put into
    `train()`.

    ## Why it breaks the KL
    The KL is a distance from something that stands still. A reference that is optimised lowers the penalty
    by coming along; one in train mode with dropout gives other log-probs at each call.

    ## Example
    ```python
    optimizer = AdamW([*policy.parameters(), *reference.parameters()])
    ```

    ## Use instead
    ```python
    reference.eval().requires_grad_(False)
    optimizer = AdamW(policy.parameters())
    ```

    ## References
    - TRL `create_reference_model`
    - [Huang et al., The N+ Implementation Details of RLHF with PPO](https://arxiv.org/abs/2403.17031)
    """

    code = "KLG406"
    name = "trainable-reference"

    def check(self, settings: Settings) -> Iterator[Hazard]:
        for state, (severity, why, instead) in _WHY.items():
            found = judge(settings.facts.get("reference_trainable"), lambda v, s=state: v == s, severity)
            if found is not None:
                yield Hazard(
                    message=why,
                    help=instead,
                    setting="reference",
                    severity=found.severity,
                    confidence=found.confidence,
                    values=found.offenders,
                )

    VALID = (Example(by_hand(_SETTINGS)),)
    INVALID = (
        Example(by_hand(_SETTINGS, before=_BOTH), "are in the optimizer"),
        Example(by_hand(_SETTINGS, before="reference.train()\n"), "the reference is in train mode"),
    )
