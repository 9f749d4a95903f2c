"""KLG202."""

from __future__ import annotations

from typing import Any

from klguard.rules.bending import BendingRule
from klguard.rules.programs import by_hand, ppo, vllm
from klguard.rules.rule import Example
from klguard.rules.words import one_of, show
from klguard.settings import Known, Settings


class BeamSearch(BendingRule):
    """A rollout is the result of a search over sequences, not a sample.

    ## What it does
    Reports `num_beams` and `num_beam_groups` above 1, `diversity_penalty`, `use_beam_search`, `beam_width`
    above 1 and a `best_of` that is larger than `n`.

    ## Why it breaks the KL
    Beam search, also with sampling inside it, keeps sequences for their joint probability. They are
    likelier under the policy than a draw would be, so log p - log ref is averaged over a selected set. What
    it measures is not the KL and can be negative.

    ## Example
    ```python
    response = ppo_trainer.generate(query, do_sample=True, top_k=0, num_beams=4)
    ```

    ## Use instead
    ```python
    response = ppo_trainer.generate(query, do_sample=True, top_k=0, num_beams=1)
    ```
    For several responses to one prompt use `num_return_sequences` with one beam, or `n` in vLLM: those are
    independent draws.

    ## References
    - [Vijayakumar et al., Diverse Beam Search](https://arxiv.org/abs/1610.02424)
    - transformers `GenerationConfig.get_generation_mode`, vLLM `BeamSearchParams`
    """

    code = "KLG202"
    name = "beam-search"
    names = ("num_beams", "num_beam_groups", "diversity_penalty", "use_beam_search", "beam_width", "best_of")
    harm = (
        "what comes out is selected for its probability, not drawn, so the KL estimate has no KL to estimate"
    )

    def offends(self, name: str, value: Any, settings: Settings) -> bool:
        if name == "best_of":
            return isinstance(value, int) and value > _samples(settings)
        return super().offends(name, value, settings)

    def does(self, name: str, values: tuple[Any, ...]) -> str:
        if name == "best_of":
            return f"keeps the likeliest of {one_of(map(show, values))} samples"
        if name in {"num_beam_groups", "diversity_penalty"}:
            return "searches with groups of beams that are pushed apart"
        return "searches for likely sequences with beams"

    VALID = (
        Example(ppo("do_sample=True, top_k=0, num_beams=1, max_new_tokens=32")),
        Example(by_hand("do_sample=True, top_k=0, num_return_sequences=4, max_new_tokens=32")),
    )
    INVALID = (
        Example(ppo("do_sample=True, top_k=0, num_beams=4, max_new_tokens=32"), "`num_beams=4` searches"),
        Example(vllm("temperature=1.0, best_of=8, max_tokens=256"), "the likeliest of 8 samples"),
    )


def _samples(settings: Settings) -> float:
    """How many samples are asked for; any number where that is not known."""
    n = settings.values.get("n")
    if n is None:
        return 1
    written = getattr(n, "value", None)
    return (
        1
        if written is None and isinstance(n, Known)
        else written
        if isinstance(written, int)
        else float("inf")
    )
