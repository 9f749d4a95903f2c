"""KLG109."""

from __future__ import annotations

from typing import Any

from klguard.rules.bending import BendingRule
from klguard.rules.programs import by_hand, ppo, vllm
from klguard.rules.rule import Example

_DOES = {
    "bad_words_ids": "bans token sequences from the draw",
    "bad_words": "bans words from the draw",
    "suppress_tokens": "bans tokens from the draw",
    "begin_suppress_tokens": "bans tokens from the first position",
    "sequence_bias": "adds a bias to token sequences",
    "logit_bias": "adds a bias to tokens",
    "allowed_token_ids": "bans all other tokens from the draw",
}


_BIASES = ("sequence_bias", "logit_bias")


class TokenBan(BendingRule):
    """A rollout bans tokens or words, or adds a bias to them.

    ## What it does
    Reports `bad_words_ids`, `bad_words`, `suppress_tokens`, `begin_suppress_tokens`, `sequence_bias`,
    `logit_bias` and `allowed_token_ids` that are set.

    ## Why it breaks the KL
    A banned token is never drawn, so the mass the policy puts on it is never measured: the estimate is off
    by log(p(S) / ref(S)) with the same set S at every step, and the policy can push it down without limit.
    If the end-of-sequence token is among the banned ones, every sequence runs to the cap.

    ## Example
    ```python
    response = ppo_trainer.generate(query, do_sample=True, top_k=0, suppress_tokens=[50256])
    ```

    ## Use instead
    ```python
    response = ppo_trainer.generate(query, do_sample=True, top_k=0)
    ```
    Let the reward say that a token is unwanted; then the policy learns it. Tokens that neither model ever
    gives probability, such as the placeholders of images, do no harm: suppress the finding with that
    reason.

    ## References
    - transformers `NoBadWordsLogitsProcessor`, `SuppressTokensLogitsProcessor`,
      `SequenceBiasLogitsProcessor`
    - vLLM `SamplingParams.logit_bias`, `allowed_token_ids`, `bad_words`
    """

    code = "KLG109"
    name = "token-ban"
    names = (
        "bad_words_ids",
        "bad_words",
        "suppress_tokens",
        "begin_suppress_tokens",
        "sequence_bias",
        "logit_bias",
        "allowed_token_ids",
    )
    harm = "what the policy puts on them never shows, and the KL estimate can fall without limit"

    def does(self, name: str, values: tuple[Any, ...]) -> str:
        return _DOES[name]

    def harms(self, name: str) -> str:
        return BendingRule.harm if name in _BIASES else self.harm

    VALID = (
        Example(ppo("do_sample=True, top_k=0, bad_words_ids=None, max_new_tokens=32")),
        Example(by_hand("do_sample=True, top_k=0, suppress_tokens=[], max_new_tokens=32")),
    )
    INVALID = (
        Example(ppo("do_sample=True, top_k=0, suppress_tokens=[50256], max_new_tokens=32"), "bans tokens"),
        Example(
            by_hand("do_sample=True, top_k=0, bad_words_ids=[[318], [464]], max_new_tokens=32"),
            "token sequences",
        ),
        Example(vllm("temperature=1.0, logit_bias={13: -100.0}, max_tokens=256"), "adds a bias"),
    )
