"""KLG111."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from klguard.findings import Severity
from klguard.rules.bending import BendingRule
from klguard.rules.programs import by_hand, ppo, vllm
from klguard.rules.rule import Example, Verdict, milder
from klguard.settings import Known, Opaque, Settings

_PROCESSORS = ("logits_processor", "logits_processors", "logits_warper", "custom_logit_processor")
_DOES = {
    **dict.fromkeys(_PROCESSORS, "edits the logits before a token is drawn"),
    "prefix_allowed_tokens_fn": "allows only some tokens at each step",
    "constraints": "forces words into the output",
    "force_words_ids": "forces words into the output",
    "guidance_scale": "draws from a mixture of two distributions",
    "watermarking_config": "adds a bias to a keyed part of the vocabulary",
    "watermark": "adds a bias to a keyed part of the vocabulary",
    "watermarking": "adds a bias to a keyed part of the vocabulary",
    "assistant_ensemble_weight": "accepts drafted tokens against a mixture with the draft model",
}
_STRUCTURED = (
    "guided_decoding",
    "structured_outputs",
    "json_schema",
    "regex",
    "ebnf",
    "structural_tag",
)
_LIBRARY = re.compile(r"(LogitsProcessor|LogitsWarper)\b")


class LogitsProcessor(BendingRule):
    """A rollout is drawn from logits that other code has edited.

    ## What it does
    Reports logits processors (`logits_processor`, `logits_processors`), `prefix_allowed_tokens_fn`,
    `constraints`, `force_words_ids`, `guidance_scale` other than 1, watermarking, and guided or structured
    decoding (regex, grammar, JSON schema). A processor of the project's own is a warning, since it cannot
    be seen what it does; an empty list and processors that leave finite logits alone, such as
    `InfNanRemoveLogitsProcessor`, are not reported.

    ## Why it breaks the KL
    The trainer's forward pass does not run these processors, so it scores tokens under a distribution they
    were not drawn from. A grammar is the sharpest case: where it allows one token only, the sampler gives
    it probability 1 and the policy may give it any.

    ## Example
    ```python
    processors = LogitsProcessorList([TopKLogitsWarper(50)])
    response = model.generate(**inputs, do_sample=True, top_k=0, logits_processor=processors)
    ```

    ## Use instead
    ```python
    response = model.generate(**inputs, do_sample=True, top_k=0)
    ```
    Let the reward check the format, or run the same processors on the logits of policy and reference.

    ## References
    - transformers `GenerationMixin.generate(logits_processor=...)`,
      `UnbatchedClassifierFreeGuidanceLogitsProcessor`
    - [Kirchenbauer et al., A Watermark for Large Language Models](https://arxiv.org/abs/2301.10226)
    - vLLM `SamplingParams.structured_outputs`, SGLang `SamplingParams.json_schema`
    """

    code = "KLG111"
    name = "logits-processor"
    names = (*_DOES, *_STRUCTURED)
    harm = (
        "the trainer scores the tokens without that, so what is sampled is not the policy it takes the KL of"
    )

    def offends(self, name: str, value: Any, settings: Settings) -> bool:
        """In a project's own sampler `guidance_scale` is, as often as not, that of an image model."""
        if name == "guidance_scale" and settings.engine == "local":
            return False
        return super().offends(name, value, settings)

    def does(self, name: str, values: tuple[Any, ...]) -> str:
        return _DOES.get(name, "allows only tokens that fit a grammar")

    def weigh(self, found: Verdict, settings: Settings, name: str) -> Verdict:
        values = [v.value for v in found.offenders if isinstance(v, Known)]
        if name in _PROCESSORS and not any(isinstance(v, Opaque) and _LIBRARY.search(v.text) for v in values):
            found = replace(found, severity=milder(found.severity, Severity.WARNING))
        return super().weigh(found, settings, name)

    VALID = (
        Example(ppo("do_sample=True, top_k=0, prefix_allowed_tokens_fn=None, max_new_tokens=32")),
        Example(by_hand("do_sample=True, top_k=0, guidance_scale=1.0, max_new_tokens=32")),
    )
    INVALID = (
        Example(by_hand("do_sample=True, top_k=0, guidance_scale=1.5, max_new_tokens=32"), "mixture of two"),
        Example(
            by_hand(
                "do_sample=True, top_k=0, max_new_tokens=32, logits_processor=processors",
                before="from transformers import LogitsProcessorList, TopKLogitsWarper\n"
                "processors = LogitsProcessorList([TopKLogitsWarper(50)])",
            ),
            "edits the logits",
        ),
        Example(
            vllm(
                "temperature=1.0, max_tokens=256, structured_outputs=numbers",
                before="from vllm.sampling_params import StructuredOutputsParams\n"
                'numbers = StructuredOutputsParams(regex="[0-9]+")',
            ),
            "fit a grammar",
        ),
    )
