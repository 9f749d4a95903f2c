"""KLG304."""

from __future__ import annotations

from collections.abc import Iterator

from klguard.findings import Confidence, Severity
from klguard.rules.programs import by_hand, ppo
from klguard.rules.rule import Example, Hazard, Rule
from klguard.rules.words import release
from klguard.settings import Default, Settings, SiteKind, members

LENGTHS = ("max_new_tokens", "max_length")


class ImplicitLength(Rule):
    """A rollout with transformers says nothing about its length, which means 20 tokens.

    ## What it does
    Reports a call of `generate()` with neither `max_new_tokens` nor `max_length`, neither among the
    arguments nor in the configuration object nor in a checkpoint that is known. The library then stops
    after 20 tokens: 20 new ones in recent releases, 20 with the prompt in older ones.

    ## Why it breaks the KL
    A stop that depends on the past only is not a bias: the KL is right, of sequences that are much shorter
    than anybody meant. Rewards of whole responses are given to stumps, and with the prompt counted in, the
    length of a response depends on that of its prompt.

    ## Example
    ```python
    response = ppo_trainer.generate(query, do_sample=True, top_k=0)
    ```

    ## Use instead
    ```python
    response = ppo_trainer.generate(query, do_sample=True, top_k=0, max_new_tokens=64)
    ```

    ## References
    - transformers `GenerationMixin._prepare_generated_length`, `GenerationConfig.max_length`
    """

    code = "KLG304"
    name = "implicit-length"
    severity = Severity.WARNING

    def check(self, settings: Settings) -> Iterator[Hazard]:
        if settings.kind is not SiteKind.GENERATE or any(
            "length_sampler" in x.values for x in settings.layers
        ):
            return  # TRL's length_sampler sets max_new_tokens
        values = [settings.values.get(name) for name in LENGTHS]
        if all(
            v is not None and all(isinstance(m, Default) and m.library for m in members(v)) for v in values
        ):
            yield Hazard(
                message=(
                    "neither `max_new_tokens` nor `max_length` is set, and "
                    f"{release(settings, 'transformers')} then stops after 20 tokens, unless the "
                    "checkpoint says otherwise: the KL is that of very short responses"
                ),
                help="pass `max_new_tokens`",
                setting="max_new_tokens",
                severity=self.severity,
                confidence=Confidence.HIGH,
            )

    VALID = (
        Example(ppo("do_sample=True, top_k=0, max_new_tokens=32")),
        Example(by_hand("do_sample=True, top_k=0, max_length=128")),
    )
    INVALID = (
        Example(ppo("do_sample=True, top_k=0"), "then stops after 20 tokens"),
        Example(by_hand("do_sample=True, top_k=0"), "neither `max_new_tokens` nor `max_length`"),
    )
