"""KLG309."""

from __future__ import annotations

from collections.abc import Iterator

from klguard.findings import Severity
from klguard.rules.programs import by_hand
from klguard.rules.rule import Example, Hazard, Rule, judge
from klguard.settings import Settings

_SETTINGS = "do_sample=True, top_k=0, max_new_tokens=32, pad_token_id=tokenizer.pad_token_id"
_BATCH = {"tokenizer": ', padding_side="left"', "prompt": "[prompt, prompt]", "padding": ", padding=True"}
_BEFORE = "tokenizer.pad_token = {token}\n"
_MASKED = {
    "mask": "mask = (tokens[:, 1:, None] != tokenizer.pad_token_id).float()",
    "loss": "-((score(tokens) - 0.1 * kl.detach()) * logprobs * mask).sum() / mask.sum()",
}


class PadIsEosMask(Rule):
    """The response mask drops the end of sequence, because it is also the padding token.

    ## What it does
    Reports a response mask of the form `tokens != tokenizer.pad_token_id` where the padding token is the
    end-of-sequence token.

    ## Why it breaks the KL
    The end of sequence is a token that was drawn: its log p - log ref is part of the KL, and the gradient
    through it is how a policy learns to stop. Masked out, both are missing from every response that ends by
    itself, and only from those: the estimate depends on how a response ended, and the policy may raise
    p(eos) for free.

    ## Example
    ```python
    tokenizer.pad_token = tokenizer.eos_token
    mask = responses != tokenizer.pad_token_id
    ```

    ## Use instead
    ```python
    ended = responses == tokenizer.eos_token_id
    mask = (ended.cumsum(-1) - ended.long()) == 0  # up to and with the first end of sequence
    ```

    ## References
    - [TRL, pull request 6357: models that did not learn to
      stop](https://github.com/huggingface/trl/pull/6357)
    """

    code = "KLG309"
    name = "pad-is-eos-mask"
    severity = Severity.WARNING

    def check(self, settings: Settings) -> Iterator[Hazard]:
        found = judge(settings.facts.get("pad_is_eos_mask"), lambda v: v is True, self.severity)
        if found is not None:
            yield Hazard(
                message=(
                    "the response mask is `!= pad`, and pad is the end-of-sequence token: the end of "
                    "sequence that was drawn is masked out too, so it costs no KL and the policy gets no "
                    "gradient for stopping"
                ),
                help=(
                    "build the mask from the position of the first end of sequence, with that position in it"
                ),
                setting="pad_token_id",
                severity=found.severity,
                confidence=found.confidence,
                values=found.offenders,
            )

    VALID = (
        Example(by_hand(_SETTINGS, **_BATCH, before=_BEFORE.format(token='"<|pad|>"'), **_MASKED)),
        Example(by_hand(_SETTINGS, **_BATCH, before=_BEFORE.format(token="tokenizer.eos_token"))),
    )
    INVALID = (
        Example(
            by_hand(_SETTINGS, **_BATCH, before=_BEFORE.format(token="tokenizer.eos_token"), **_MASKED),
            "the response mask is `!= pad`",
        ),
    )
