"""KLG305."""

from __future__ import annotations

from collections.abc import Iterator

from klguard.findings import Severity
from klguard.rules.bending import fact
from klguard.rules.programs import by_hand
from klguard.rules.rule import Example, Hazard, Rule, judge
from klguard.settings import Default, Settings, SiteKind

_BATCH = {"tokenizer": ', padding_side="left"', "prompt": "[prompt, prompt]", "padding": ", padding=True"}


class PadToken(Rule):
    """A batched rollout has no padding token.

    ## What it does
    Reports a call of `generate()` on several prompts at once whose `pad_token_id` nobody sets: not the
    arguments, not the configuration object, not the checkpoint as far as it is known.

    ## Why it breaks the KL
    Rows that end early are filled up with something all the same: transformers takes the first
    end-of-sequence token. The loop can then no longer tell the end of sequence that was drawn from the
    filling that was not, and scores either too few tokens or too many. Tokens nobody drew count as actions
    with an arbitrary log p - log ref.

    ## Example
    ```python
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    tokens = model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=64)
    ```

    ## Use instead
    ```python
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    tokens = model.generate(
        **inputs, do_sample=True, top_k=0, max_new_tokens=64, pad_token_id=tokenizer.pad_token_id
    )
    ```

    ## References
    - transformers `GenerationMixin._prepare_special_tokens`
    """

    code = "KLG305"
    name = "pad-token"
    severity = Severity.WARNING

    def check(self, settings: Settings) -> Iterator[Hazard]:
        batched = fact(settings, "batched") is True
        if settings.kind is not SiteKind.GENERATE or not batched or _trainer_pads(settings):
            return
        found = judge(settings.values.get("pad_token_id"), lambda v: v is None, self.severity)
        if found is None or any(isinstance(v, Default) and not v.library for v in found.offenders):
            return
        verb = "is" if found.certain else "may be"
        yield Hazard(
            message=(
                f"several prompts go in at once and `pad_token_id` {verb} not set: responses that end "
                "early are filled up with the end-of-sequence token, and filling that is scored like "
                "samples makes the KL arbitrary"
            ),
            help=(
                "pass `pad_token_id=tokenizer.pad_token_id`, and build the response mask from the first "
                "end of sequence"
            ),
            setting="pad_token_id",
            severity=found.severity,
            confidence=found.confidence,
            values=found.offenders,
        )

    VALID = (
        Example(
            by_hand(
                "do_sample=True, top_k=0, max_new_tokens=32, pad_token_id=tokenizer.pad_token_id", **_BATCH
            )
        ),
        Example(by_hand("do_sample=True, top_k=0, max_new_tokens=32")),
    )
    INVALID = (
        Example(by_hand("do_sample=True, top_k=0, max_new_tokens=32", **_BATCH), "`pad_token_id` is not set"),
    )


def _trainer_pads(settings: Settings) -> bool:
    """Whether one step makes the batch and its mask, as classic PPOTrainer does with a list of queries.

    It then also cuts every response at its first end of sequence.
    """
    batched, mask = settings.facts.get("batched"), settings.facts.get("attention_mask")
    return mask is not None and bool(mask.hops) and mask.hops == batched.hops
