"""KLG110."""

from __future__ import annotations

from typing import Any

from klguard.rules.bending import BendingRule
from klguard.rules.programs import by_hand, ppo
from klguard.rules.rule import Example

_DOES = {
    "forced_bos_token_id": "puts a token at the first position that nobody drew",
    "forced_eos_token_id": "puts an end of sequence at max_length that nobody drew",
    "forced_decoder_ids": "puts tokens at positions that nobody drew",
    "thinking_token_budget": "puts an end of thinking that nobody drew",
    "trace_decode_token_ids": "puts out a given sequence instead of drawing one",
}


class ForcedToken(BendingRule):
    """A rollout contains tokens that were put there, not drawn.

    ## What it does
    Reports `forced_bos_token_id`, `forced_eos_token_id` and, where it still exists, `forced_decoder_ids`;
    in vLLM `thinking_token_budget` and `trace_decode_token_ids`.

    ## Why it breaks the KL
    A forced token is scored like a drawn one. Its log p - log ref has nothing to do with a sample from the
    policy: a policy that makes the forced end of sequence unlikely is paid for it at every sequence that
    reaches the cap.

    ## Example
    ```python
    response = model.generate(**inputs, do_sample=True, top_k=0, max_length=128, forced_eos_token_id=2)
    ```

    ## Use instead
    ```python
    response = model.generate(**inputs, do_sample=True, top_k=0, max_length=128, forced_eos_token_id=None)
    ```
    If a model needs a first token, such as the language of a translation, put it into the decoder's prompt
    and mask it out of the response.

    ## References
    - transformers `ForcedBOSTokenLogitsProcessor`, `ForcedEOSTokenLogitsProcessor`
    """

    code = "KLG110"
    name = "forced-token"
    names = tuple(_DOES)
    harm = "it is scored like a sample, and making it unlikely lowers the KL estimate for free"

    def does(self, name: str, values: tuple[Any, ...]) -> str:
        return _DOES[name]

    VALID = (Example(ppo("do_sample=True, top_k=0, forced_eos_token_id=None, max_new_tokens=32")),)
    INVALID = (
        Example(
            ppo("do_sample=True, top_k=0, forced_eos_token_id=50256, max_new_tokens=32"), "an end of sequence"
        ),
        Example(
            by_hand("do_sample=True, top_k=0, forced_bos_token_id=464, max_new_tokens=32"),
            "the first position",
        ),
    )
