"""KLG103."""

from __future__ import annotations

from typing import Any

from klguard.rules.bending import BendingRule
from klguard.rules.programs import by_hand, grpo, ppo, vllm
from klguard.rules.rule import Example
from klguard.rules.words import one_of, show


class TopP(BendingRule):
    """A rollout keeps only the nucleus, the likeliest tokens that together hold probability p.

    ## What it does
    Reports a `top_p` below 1. Values of 1 and above are off in transformers; 0, which keeps one token, is
    KLG505.

    ## Why it breaks the KL
    The tail of the policy is never drawn, yet the trainer scores with the whole softmax. Whatever
    probability the policy moves into the tail is free: log p of the tokens that are drawn falls, the
    estimate of the KL with it. The closer p is to 1 the smaller the bias for each token, but it adds up
    over the length of a sequence.

    ## Example
    ```python
    params = SamplingParams(temperature=1.0, top_p=0.95, max_tokens=512)
    ```

    ## Use instead
    ```python
    params = SamplingParams(temperature=1.0, top_p=1.0, max_tokens=512)
    ```

    ## References
    - [Holtzman et al., The Curious Case of Neural Text Degeneration](https://arxiv.org/abs/1904.09751)
    - transformers `TopPLogitsWarper`, vLLM `SamplingParams.top_p`
    """

    code = "KLG103"
    name = "top-p"
    names = ("top_p",)

    def does(self, name: str, values: tuple[Any, ...]) -> str:
        return f"cuts off the tail beyond a probability of {one_of(map(show, values))}"

    VALID = (
        Example(ppo("do_sample=True, top_k=0, top_p=1.0, max_new_tokens=32")),
        Example(vllm("temperature=1.0, top_p=1.0, max_tokens=256")),
    )
    INVALID = (
        Example(
            by_hand("do_sample=True, top_k=0, top_p=0.9, max_new_tokens=32"), "beyond a probability of 0.9"
        ),
        Example(vllm("temperature=1.0, top_p=0.95, max_tokens=256"), "`top_p=0.95`"),
        Example(grpo('output_dir="out", beta=0.04, top_p=0.95'), "cuts off the tail"),
    )
