"""KLG107."""

from __future__ import annotations

from typing import Any

from klguard.rules.bending import BendingRule
from klguard.rules.programs import by_hand, grpo, ppo, vllm
from klguard.rules.rule import Example

_WHERE = {
    "repetition_penalty": "the prompt or the completion",
    "encoder_repetition_penalty": "the prompt",
    "presence_penalty": "the completion",
    "frequency_penalty": "the completion, more with each occurrence",
}
_NEUTRAL = {"repetition_penalty": 1, "encoder_repetition_penalty": 1}


class RepetitionPenalty(BendingRule):
    """A rollout pushes tokens down, or up, that have occurred before.

    ## What it does
    Reports `repetition_penalty` and `encoder_repetition_penalty` other than 1, and `presence_penalty` and
    `frequency_penalty` other than 0. In transformers they act on decoder-only models too, count the prompt,
    and act without `do_sample`.

    ## Why it breaks the KL
    Tokens that were used before are drawn less often than the policy says, and scored as if they were not.
    A policy that starts to loop is never seen looping: the probability it puts on repeats costs nothing,
    and the probability it takes from everything else lowers the KL estimate.

    ## Example
    ```python
    generation_kwargs = {"do_sample": True, "top_k": 0, "repetition_penalty": 1.2}
    ```

    ## Use instead
    ```python
    generation_kwargs = {"do_sample": True, "top_k": 0, "repetition_penalty": 1.0}
    ```
    If loops are the trouble, let the reward see them.

    ## References
    - [Keskar et al., CTRL](https://arxiv.org/abs/1909.05858), section 4.1
    - transformers `RepetitionPenaltyLogitsProcessor`, `EncoderRepetitionPenaltyLogitsProcessor`
    - vLLM `SamplingParams.repetition_penalty`, `presence_penalty`, `frequency_penalty`
    """

    code = "KLG107"
    name = "repetition-penalty"
    names = ("repetition_penalty", "encoder_repetition_penalty", "presence_penalty", "frequency_penalty")
    harm = (
        "repeats are drawn at another rate than the policy gives them, so what it puts on them does not "
        "show in the KL estimate"
    )

    def does(self, name: str, values: tuple[Any, ...]) -> str:
        level = _NEUTRAL.get(name, 0)
        boosted = [_boosts(name, value, level) for value in values]
        verb = "raises" if all(boosted) else "raises or lowers" if any(boosted) else "lowers"
        return f"{verb} the score of tokens that occur in {_WHERE[name]}"

    VALID = (
        Example(ppo("do_sample=True, top_k=0, repetition_penalty=1.0, max_new_tokens=32")),
        Example(vllm("temperature=1.0, presence_penalty=0.0, max_tokens=256")),
    )
    INVALID = (
        Example(
            by_hand("do_sample=True, top_k=0, repetition_penalty=1.2, max_new_tokens=32"), "lowers the score"
        ),
        Example(vllm("temperature=1.0, frequency_penalty=0.5, max_tokens=256"), "`frequency_penalty=0.5`"),
        Example(grpo('output_dir="out", beta=0.04, repetition_penalty=1.05'), "`repetition_penalty=1.05`"),
    )


def _boosts(name: str, value: Any, level: float) -> bool:
    """Whether the value pushes tokens up; the penalty on the encoder's tokens is used inverted."""
    below = isinstance(value, int | float) and value < level
    return not below if name == "encoder_repetition_penalty" else below
