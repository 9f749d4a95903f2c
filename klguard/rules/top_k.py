"""KLG101."""

from __future__ import annotations

from typing import Any

from klguard.rules.bending import BendingRule
from klguard.rules.programs import by_hand, grpo, ppo, vllm
from klguard.rules.rule import Example
from klguard.rules.words import one_of


def _count(value: Any) -> str:
    """`50`, also for 50.0; other things as they are."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


class TopK(BendingRule):
    """A rollout keeps only the k likeliest tokens at each step.

    ## What it does
    Reports a `top_k` that is on: any count in transformers except 0 and None, in vLLM except 0 and -1
    (before the middle of 2025 only -1), in SGLang except -1. `top_k` from a checkpoint is KLG501, the 50
    that transformers fills in by itself KLG102.

    ## Why it breaks the KL
    The tokens are drawn from the policy renormalised on the k likeliest, S; the trainer scores them with
    the whole softmax. The mean of log p - log ref is then KL(q || ref on S) + log(p(S) / ref(S)), and the
    second term has no lower bound: the policy is paid for moving probability to tokens outside S, where it
    is never seen.

    ## Example
    ```python
    generation_kwargs = {"do_sample": True, "top_k": 50, "max_new_tokens": 64}
    response = ppo_trainer.generate(query, **generation_kwargs)
    ```

    ## Use instead
    ```python
    generation_kwargs = {"do_sample": True, "top_k": 0, "max_new_tokens": 64}
    response = ppo_trainer.generate(query, **generation_kwargs)
    ```

    ## References
    - [TRL, Training FAQ: how to generate text for
      training](https://huggingface.co/docs/trl/v0.11.4/how_to_train)
    - [Fan et al., Hierarchical Neural Story Generation](https://arxiv.org/abs/1805.04833)
    - transformers `TopKLogitsWarper`, vLLM `SamplingParams.top_k`, SGLang `SamplingParams.top_k`
    """

    code = "KLG101"
    name = "top-k"
    names = ("top_k",)

    def does(self, name: str, values: tuple[Any, ...]) -> str:
        if values == (1,):
            return "keeps only the likeliest token, which is greedy search"
        return f"keeps only the {one_of(map(_count, values))} likeliest tokens"

    VALID = (
        Example(ppo("do_sample=True, top_k=0, top_p=1.0, max_new_tokens=32")),
        Example(by_hand("do_sample=True, top_k=None, max_new_tokens=32")),
        Example(vllm("temperature=1.0, top_k=-1, max_tokens=256")),
    )
    INVALID = (
        Example(ppo("do_sample=True, top_k=50, max_new_tokens=32"), "keeps only the 50 likeliest tokens"),
        Example(vllm("temperature=1.0, top_k=20, max_tokens=256"), "`top_k=20`"),
        Example(grpo('output_dir="out", beta=0.04, top_k=50'), "`top_k=50`"),
    )
