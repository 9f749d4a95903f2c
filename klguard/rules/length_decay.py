"""KLG308."""

from __future__ import annotations

from typing import Any

from klguard.rules.bending import BendingRule
from klguard.rules.programs import by_hand, ppo
from klguard.rules.rule import Example


class LengthDecay(BendingRule):
    """A rollout makes the end of sequence likelier as the text grows.

    ## What it does
    Reports `exponential_decay_length_penalty`.

    ## Why it breaks the KL
    Past the start index the score of the end of sequence is raised by a growing amount, in the sampler
    only. Late end tokens are drawn more often than the policy says; making them unlikely in the policy
    lowers log p - log ref at no cost, because they are drawn anyway.

    ## Example
    ```python
    response = model.generate(**inputs, do_sample=True, top_k=0, exponential_decay_length_penalty=(64, 1.05))
    ```

    ## Use instead
    ```python
    response = model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=128)
    ```
    A cap on the length is not a bias; a preference for short responses belongs into the reward.

    ## References
    - transformers `ExponentialDecayLengthPenalty`
    """

    code = "KLG308"
    name = "length-decay"
    names = ("exponential_decay_length_penalty",)
    harm = (
        "late ends are drawn more often than the policy says, so making them unlikely lowers the KL "
        "estimate for free"
    )

    def does(self, name: str, values: tuple[Any, ...]) -> str:
        return "raises the score of the end of sequence as the text grows"

    VALID = (
        Example(ppo("do_sample=True, top_k=0, exponential_decay_length_penalty=None, max_new_tokens=32")),
    )
    INVALID = (
        Example(
            by_hand(
                "do_sample=True, top_k=0, exponential_decay_length_penalty=(16, 1.05), max_new_tokens=32"
            ),
            "raises the score of the end of sequence",
        ),
    )
