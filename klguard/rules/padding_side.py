"""KLG306."""

from __future__ import annotations

from collections.abc import Iterator

from klguard.findings import Severity
from klguard.rules.bending import fact
from klguard.rules.programs import by_hand
from klguard.rules.rule import Example, Hazard, Rule, judge, milder
from klguard.settings import Settings, SiteKind

_SETTINGS = "do_sample=True, top_k=0, max_new_tokens=32, pad_token_id=tokenizer.pad_token_id"
_BATCH = {"prompt": "[prompt, prompt]", "padding": ", padding=True"}


class PaddingSide(Rule):
    """A batched rollout pads its prompts on the wrong side.

    ## What it does
    Reports right padding for a decoder-only model, and left padding that is forced on an encoder-decoder,
    where several prompts go in at once (a warning where that is not visible, and the tokenizer is told to pad); and
    right padding of the tokenizer that TRL's `PPOTrainer` is given, which
    pads its prompts by it.

    ## Why it breaks the KL
    A decoder-only model continues from its last position. With padding on the right that position is a
    padding token, so every shorter prompt is continued from the wrong place: the tokens are draws from the
    policy given a context that the trainer does not score. An encoder-decoder with padding on the left sees
    shifted positions.

    ## Example
    ```python
    tokenizer = AutoTokenizer.from_pretrained("gpt2", padding_side="right")
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    tokens = model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=64)
    ```

    ## Use instead
    ```python
    tokenizer = AutoTokenizer.from_pretrained("gpt2", padding_side="left")
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    tokens = model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=64)
    ```

    ## References
    - transformers `GenerationMixin.generate`: "right-padding was detected"
    """

    code = "KLG306"
    name = "padding-side"

    def check(self, settings: Settings) -> Iterator[Hazard]:
        pads = settings.kind is SiteKind.TRAINER and fact(settings, "flavour") == "ppo-v2"
        encoder_decoder = False if pads else fact(settings, "encoder_decoder")
        generates = settings.kind is SiteKind.GENERATE
        several = pads or (generates and fact(settings, "batched") is True)
        perhaps = generates and fact(settings, "padded") is True
        if not (several or perhaps) or encoder_decoder is None:
            return
        wrong, right = ("left", "right") if encoder_decoder else ("right", "left")
        certain = several and not encoder_decoder
        severity = self.severity if certain else milder(self.severity, Severity.WARNING)
        found = judge(settings.facts.get("padding_side"), lambda side: side == wrong, severity)
        if found is None:
            return
        harm = (
            "an encoder-decoder then sees shifted positions"
            if encoder_decoder
            else "a decoder-only model then continues shorter prompts from a padding token"
        )
        verb = "are" if found.certain and several else "may be"
        yield Hazard(
            message=(
                f"prompts {verb} padded on the {wrong}: {harm}, and the tokens are drawn in a context "
                "other than the one that is scored, so their log p - log ref is not an estimate of the KL"
            ),
            help=f'set `tokenizer.padding_side = "{right}"` before the prompts are tokenized',
            setting="padding_side",
            severity=found.severity,
            confidence=found.confidence,
            values=found.offenders,
            safe=f'"{right}"',
        )

    VALID = (Example(by_hand(_SETTINGS, tokenizer=', padding_side="left"', **_BATCH)),)
    INVALID = (
        Example(
            by_hand(_SETTINGS, tokenizer=', padding_side="right"', **_BATCH),
            "prompts are padded on the right",
        ),
    )
