"""KLG102."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from klguard.rules.bending import BendingRule, Origin, fact
from klguard.rules.programs import by_hand, ppo
from klguard.rules.rule import Example, Hazard
from klguard.rules.words import neutral, release, shown
from klguard.settings import Default, Settings, SiteKind, members


class ImplicitTopK(BendingRule):
    """A rollout samples with transformers and leaves top_k alone, which means the 50 likeliest tokens.

    ## What it does
    Reports sampling (`do_sample=True`) without a `top_k`. In every release of transformers the value that
    is then in force is 50; `generate()` with nothing but `do_sample=True` is truncated sampling.

    ## Why it breaks the KL
    As with a written `top_k=50` (KLG101): the tokens come from the 50 likeliest, the trainer scores them
    with the whole softmax, and the policy can lower the KL estimate by moving probability to tokens that
    are never drawn.

    ## Example
    ```python
    response = model.generate(**inputs, do_sample=True, max_new_tokens=64)
    ```

    ## Use instead
    ```python
    response = model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=64)
    ```

    ## References
    - transformers `GenerationConfig.top_k`, and `GenerationConfig._get_default_generation_params` since 5.0
    - [TRL, Training FAQ: how to generate text for
      training](https://huggingface.co/docs/trl/v0.11.4/how_to_train)
    """

    code = "KLG102"
    name = "implicit-top-k"
    names = ("top_k",)

    def does(self, name: str, values: tuple[Any, ...]) -> str:
        return "keeps only the likeliest tokens"

    def check(self, settings: Settings) -> Iterator[Hazard]:
        if "top_k" in (fact(settings, "none_means_unset") or {}) or not _draws_visibly(settings):
            return  # None was written, and means unset: KLG503 says so
        if settings.kind is SiteKind.TRAINER:
            return
        for bent in self.bent(settings):
            left_alone = bent.of(lambda whose: whose is Origin.LIBRARY, settings)
            if left_alone is None:
                continue
            verdict = left_alone.verdict
            library = next(v.library for v in verdict.offenders if isinstance(v, Default))
            left = "is left alone" if verdict.certain else "may be left alone"
            yield replace(
                self.hazard(settings, "top_k", verdict),
                message=(
                    f"`top_k` {left}, and {release(settings, library)} then keeps only the "
                    f"{shown(verdict.offenders)} likeliest tokens: {self.consequence(settings, 'top_k')}"
                ),
                help=neutral(settings, "top_k", "pass"),
            )

    VALID = (
        Example(ppo("do_sample=True, top_k=0, max_new_tokens=32")),
        Example(by_hand("do_sample=True, top_k=0, max_new_tokens=32")),
    )
    INVALID = (
        Example(
            ppo("do_sample=True, top_p=1.0, max_new_tokens=32"), "then keeps only the 50 likeliest tokens"
        ),
        Example(by_hand("do_sample=True, max_new_tokens=32"), "`top_k` is left alone"),
    )


def _draws_visibly(settings: Settings) -> bool:
    """Whether the mode is settled here: a bare configuration object may be completed where it is used."""
    if settings.kind is not SiteKind.GENERATION_CONFIG:
        return True
    do_sample = settings.values.get("do_sample")
    return do_sample is not None and not all(isinstance(m, Default) for m in members(do_sample))
