"""KLG502."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from klguard.rules.bending import Origin
from klguard.rules.inherited_settings import bent_by
from klguard.rules.rule import Example, Hazard, Rule
from klguard.rules.words import neutral
from klguard.settings import Settings, SiteKind


class CheckpointConfig(Rule):
    """A generation_config.json that rollouts use sets an unsafe value.

    ## What it does
    Reports each field of a `generation_config.json` that bends the distribution: where code that can be
    seen loads the file for a rollout, and where the file itself is checked.

    ## Why it breaks the KL
    Whoever calls `generate()` on the checkpoint takes these values for every field that is not passed. They
    were chosen to read well in a chat, and make the sampler another distribution than the policy.

    ## Example
    ```json
    {"do_sample": true, "temperature": 0.7, "top_k": 20, "repetition_penalty": 1.05}
    ```

    ## Use instead
    ```json
    {"do_sample": true, "temperature": 1.0, "top_k": 0, "repetition_penalty": 1.0}
    ```
    Keep the values for chat in a copy of the file that is used when the model is served.

    ## References
    - transformers `GenerationConfig.from_pretrained`
    - vLLM `--generation-config`, SGLang `--sampling-defaults`
    """

    code = "KLG502"
    name = "checkpoint-config"

    def check(self, settings: Settings) -> Iterator[Hazard]:
        if settings.kind is SiteKind.TRAINER:
            return
        for bent in bent_by(settings, Origin.FILE):
            hazard = bent.rule.hazard(settings, bent.name, bent.verdict)
            yield replace(hazard, help=f"{neutral(settings, bent.name)}, in the file or at the call")

    VALID = (
        Example('{"do_sample": true, "temperature": 1.0, "top_k": 0}', filename="generation_config.json"),
    )
    INVALID = (
        Example(
            '{"do_sample": true, "temperature": 1.0, "top_k": 20}',
            "`top_k=20`",
            filename="generation_config.json",
        ),
    )
