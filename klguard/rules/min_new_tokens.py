"""KLG302."""

from __future__ import annotations

from typing import Any

from klguard.rules.bending import BendingRule
from klguard.rules.eos_ignored import never_ends
from klguard.rules.programs import by_hand, ppo, vllm
from klguard.rules.rule import Example
from klguard.rules.words import one_of, show
from klguard.settings import Settings


class MinNewTokens(BendingRule):
    """A rollout may not end before a minimum number of tokens.

    ## What it does
    Reports `min_new_tokens` (transformers, SGLang) and `min_tokens` (vLLM) above 0. In vLLM it also
    suppresses `stop_token_ids` and every end-of-sequence token of the checkpoint.

    ## Why it breaks the KL
    Until then the end of sequence has probability 0 in the sampler and any probability in the policy: the
    estimate is off by log((1 - p(eos)) / (1 - ref(eos))) at each step. The policy can push p(eos) towards 1
    while it is not drawn, and the estimate goes to minus infinity. Even a minimum of 1 touches every
    response.

    ## Example
    ```python
    params = SamplingParams(temperature=1.0, min_tokens=16, max_tokens=512)
    ```

    ## Use instead
    ```python
    params = SamplingParams(temperature=1.0, min_tokens=0, max_tokens=512)
    ```
    If responses are too short or empty, say so in the reward.

    ## References
    - transformers `MinNewTokensLengthLogitsProcessor`
    - vLLM `SamplingParams.min_tokens`, SGLang `SamplingParams.min_new_tokens`
    """

    code = "KLG302"
    name = "min-new-tokens"
    names = ("min_new_tokens", "min_tokens")
    harm = (
        "the policy can make the end of sequence ever likelier while it is not drawn, and the KL estimate "
        "falls without limit"
    )

    def offends(self, name: str, value: Any, settings: Settings) -> bool:
        return not never_ends(settings) and super().offends(name, value, settings)

    def does(self, name: str, values: tuple[Any, ...]) -> str:
        if values == (1,):
            return "suppresses the end of sequence at the first token"
        return f"suppresses the end of sequence for the first {one_of(map(show, values))} tokens"

    VALID = (
        Example(ppo("do_sample=True, top_k=0, min_new_tokens=None, max_new_tokens=32")),
        Example(vllm("temperature=1.0, min_tokens=0, max_tokens=256")),
    )
    INVALID = (
        Example(
            by_hand("do_sample=True, top_k=0, min_new_tokens=16, max_new_tokens=32"),
            "for the first 16 tokens",
        ),
        Example(vllm("temperature=1.0, min_tokens=1, max_tokens=256"), "at the first token"),
    )
