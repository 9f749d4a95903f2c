"""KLG301."""

from __future__ import annotations

from typing import Any

from klguard.rules.bending import BendingRule
from klguard.rules.eos_ignored import never_ends
from klguard.rules.programs import by_hand, ppo
from klguard.rules.rule import Example
from klguard.rules.words import one_of, show
from klguard.settings import Settings


class MinLength(BendingRule):
    """A rollout may not end before prompt and response together have a minimum length.

    ## What it does
    Reports `min_length` above 0. It counts the prompt of a decoder-only model. 0, -1 and None are off, and
    it has no effect where no end-of-sequence token can be drawn.

    ## Why it breaks the KL
    Until the length is reached, the end of sequence has probability 0 in the sampler and any probability in
    the policy. The estimate is off by log((1 - p(eos)) / (1 - ref(eos))) at each such step. The policy can
    push p(eos) towards 1, where every token that is drawn in its place counts as ever more unlikely, and
    the estimate goes to minus infinity. This is the best known way in which a PPO run is paid for a
    negative KL.

    ## Example
    ```python
    generation_kwargs = {"do_sample": True, "top_k": 0, "min_length": 48, "max_new_tokens": 64}
    ```

    ## Use instead
    ```python
    generation_kwargs = {"do_sample": True, "top_k": 0, "min_length": -1, "max_new_tokens": 64}
    ```
    If responses are too short, say so in the reward, or cap the length from above only.

    ## References
    - [TRL, Training FAQ: how to generate text for
      training](https://huggingface.co/docs/trl/v0.11.4/how_to_train)
    - transformers `MinLengthLogitsProcessor`
    """

    code = "KLG301"
    name = "min-length"
    names = ("min_length",)
    harm = (
        "the policy can make the end of sequence ever likelier while it is not drawn, and the KL estimate "
        "falls without limit"
    )

    def offends(self, name: str, value: Any, settings: Settings) -> bool:
        return not never_ends(settings) and super().offends(name, value, settings)

    def does(self, name: str, values: tuple[Any, ...]) -> str:
        tokens = one_of(map(show, values))
        return f"suppresses the end of sequence until prompt and response have {tokens} tokens"

    VALID = (
        Example(ppo("do_sample=True, top_k=0, min_length=-1, max_new_tokens=32")),
        Example(ppo("do_sample=True, top_k=0, min_length=0, max_new_tokens=32")),
    )
    INVALID = (
        Example(ppo("do_sample=True, top_k=0, min_length=48, max_new_tokens=64"), "have 48 tokens"),
        Example(
            by_hand("do_sample=True, top_k=0, min_length=16, max_new_tokens=32"),
            "suppresses the end of sequence",
        ),
    )
