"""KLG307."""

from __future__ import annotations

from collections.abc import Iterator

from klguard.findings import Confidence, Severity
from klguard.rules.bending import fact
from klguard.rules.programs import by_hand
from klguard.rules.rule import Example, Hazard, Rule
from klguard.settings import Settings, SiteKind

_BATCH = {
    "tokenizer": ', padding_side="left"',
    "prompt": "[prompt, prompt]",
    "padding": ", padding=True",
    "inputs": 'inputs["input_ids"]',
}
_SETTINGS = "do_sample=True, top_k=0, max_new_tokens=32, pad_token_id=tokenizer.pad_token_id"


class AttentionMask(Rule):
    """A batched rollout does not say which positions are padding.

    ## What it does
    Reports a call of `generate()` on several prompts at once that visibly gets no `attention_mask`.

    ## Why it breaks the KL
    transformers guesses the mask only where the padding token is in the input and is not an end-of-sequence
    token; with `pad_token = eos_token`, the usual choice, every position counts as text. Shorter prompts
    are then continued after a run of padding that the trainer masks out when it scores, so sampler and
    scorer see different contexts.

    ## Example
    ```python
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    tokens = model.generate(inputs["input_ids"], do_sample=True, top_k=0, max_new_tokens=64)
    ```

    ## Use instead
    ```python
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    tokens = model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=64)
    ```

    ## References
    - transformers `GenerationMixin._prepare_attention_mask_for_generation`
    """

    code = "KLG307"
    name = "attention-mask"
    severity = Severity.WARNING

    def check(self, settings: Settings) -> Iterator[Hazard]:
        if settings.kind is not SiteKind.GENERATE or settings.engine != "transformers":
            return  # classic PPOTrainer masks a list of queries itself
        if fact(settings, "batched") is True and fact(settings, "attention_mask") is False:
            yield Hazard(
                message=(
                    "several prompts go in at once without `attention_mask`: padding may count as text, "
                    "and the tokens are drawn in a context other than the one that is scored, so their "
                    "log p - log ref is not an estimate of the KL"
                ),
                help=(
                    "pass the whole encoding, `generate(**inputs, ...)`, or "
                    "`attention_mask=inputs.attention_mask`"
                ),
                setting="attention_mask",
                severity=self.severity,
                confidence=Confidence.HIGH,
            )

    VALID = (Example(by_hand(_SETTINGS, **{**_BATCH, "inputs": "**inputs"})),)
    INVALID = (Example(by_hand(_SETTINGS, **_BATCH), "without `attention_mask`"),)
