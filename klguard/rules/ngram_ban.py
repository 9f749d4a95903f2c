"""KLG108."""

from __future__ import annotations

from typing import Any

from klguard.rules.bending import BendingRule
from klguard.rules.programs import by_hand, ppo
from klguard.rules.rule import Example
from klguard.rules.words import one_of, show


class NgramBan(BendingRule):
    """A rollout may not repeat an n-gram.

    ## What it does
    Reports `no_repeat_ngram_size` and `encoder_no_repeat_ngram_size` above 0. In transformers both act on
    decoder-only models and count the n-grams of the prompt.

    ## Why it breaks the KL
    The token that would complete a repeated n-gram has probability 0 in the sampler and any probability in
    the policy. A policy that wants to copy or to loop is never caught doing it: the mass it puts there is
    free of KL, and what is drawn instead looks ever less likely under the policy, which lowers the
    estimate.

    ## Example
    ```python
    response = ppo_trainer.generate(query, do_sample=True, top_k=0, no_repeat_ngram_size=3)
    ```

    ## Use instead
    ```python
    response = ppo_trainer.generate(query, do_sample=True, top_k=0, no_repeat_ngram_size=0)
    ```

    ## References
    - [Paulus et al., A Deep Reinforced Model for Abstractive
      Summarization](https://arxiv.org/abs/1705.04304), 2.5
    - transformers `NoRepeatNGramLogitsProcessor`, `EncoderNoRepeatNGramLogitsProcessor`
    """

    code = "KLG108"
    name = "ngram-ban"
    names = ("no_repeat_ngram_size", "encoder_no_repeat_ngram_size")
    harm = (
        "copying and looping are never drawn, so what the policy puts on them never shows in the KL estimate"
    )

    def does(self, name: str, values: tuple[Any, ...]) -> str:
        where = "the prompt" if name.startswith("encoder") else "the prompt or the completion"
        return f"forbids every token that would repeat {one_of(map(show, values))} tokens of {where}"

    VALID = (Example(ppo("do_sample=True, top_k=0, no_repeat_ngram_size=0, max_new_tokens=32")),)
    INVALID = (
        Example(
            ppo("do_sample=True, top_k=0, no_repeat_ngram_size=3, max_new_tokens=32"), "would repeat 3 tokens"
        ),
        Example(
            by_hand("do_sample=True, top_k=0, encoder_no_repeat_ngram_size=4, max_new_tokens=32"),
            "of the prompt",
        ),
    )
