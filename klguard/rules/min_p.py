"""KLG104."""

from __future__ import annotations

from typing import Any

from klguard.rules.bending import BendingRule
from klguard.rules.programs import by_hand, ppo, vllm
from klguard.rules.rule import Example
from klguard.rules.words import one_of, show


class MinP(BendingRule):
    """A rollout drops every token that is less likely than a share of the likeliest one.

    ## What it does
    Reports a `min_p` above 0. `None` and 0 are off everywhere.

    ## Why it breaks the KL
    The threshold moves with the likeliest token, so the set of tokens that can be drawn is the policy's own
    choice: a sharper policy cuts more of its tail away. The trainer still scores with the whole softmax,
    and the estimate drifts from the KL by log(p(S) / ref(S)), the mass of the kept set S under policy and
    reference.

    ## Example
    ```python
    params = SamplingParams(temperature=1.0, min_p=0.05, max_tokens=512)
    ```

    ## Use instead
    ```python
    params = SamplingParams(temperature=1.0, min_p=0.0, max_tokens=512)
    ```

    ## References
    - [Nguyen et al., Turning Up the Heat: Min-p Sampling](https://arxiv.org/abs/2407.01082)
    - transformers `MinPLogitsWarper`, vLLM `SamplingParams.min_p`
    """

    code = "KLG104"
    name = "min-p"
    names = ("min_p",)

    def does(self, name: str, values: tuple[Any, ...]) -> str:
        return f"drops every token less likely than {one_of(map(show, values))} times the likeliest"

    VALID = (
        Example(ppo("do_sample=True, top_k=0, min_p=None, max_new_tokens=32")),
        Example(vllm("temperature=1.0, min_p=0.0, max_tokens=256")),
    )
    INVALID = (
        Example(
            by_hand("do_sample=True, top_k=0, min_p=0.05, max_new_tokens=32"), "less likely than 0.05 times"
        ),
        Example(vllm("temperature=1.0, min_p=0.1, max_tokens=256"), "`min_p=0.1`"),
    )
