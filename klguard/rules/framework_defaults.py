"""KLG506."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from klguard.rules.bending import PREFERENCE_LOSSES, Origin, fact
from klguard.rules.inherited_settings import bent_by
from klguard.rules.programs import grpo
from klguard.rules.rule import Example, Hazard, Rule
from klguard.rules.words import neutral
from klguard.settings import Settings, SiteKind


class FrameworkDefaults(Rule):
    """A framework whose own defaults make the sampler another distribution than the policy.

    ## What it does
    Reports a trainer's configuration that leaves a setting alone whose default is unsafe in the release at
    hand: GRPO in TRL 0.14 to 0.17 (the 50 likeliest tokens; before 0.16 also a temperature of 0.9 that is
    not divided out), the online preference trainers of 0.14 to 0.22 (the 50 likeliest tokens).

    ## Why it breaks the KL
    Nobody wrote the value, so nobody looks for it: the trainer samples from a part of the vocabulary and
    scores with the whole softmax. Later releases changed the defaults for that reason.

    ## Example
    ```python
    config = GRPOConfig(output_dir="out", beta=0.04)  # trl 0.16
    ```

    ## Use instead
    ```python
    config = GRPOConfig(output_dir="out", beta=0.04, top_k=0)
    ```

    ## References
    - TRL `GRPOConfig`, `OnlineDPOConfig`, and the `GenerationConfig` in `grpo_trainer.py`,
      `online_dpo_trainer.py`
    - [TRL, pull request 3029](https://github.com/huggingface/trl/pull/3029)
    """

    code = "KLG506"
    name = "framework-defaults"

    def check(self, settings: Settings) -> Iterator[Hazard]:
        if settings.kind is SiteKind.TRAINER:
            return  # reported at the config
        for bent in bent_by(settings, Origin.FRAMEWORK):
            if bent.name == "temperature" and fact(settings, "flavour") in PREFERENCE_LOSSES:
                continue  # in every release, and only the KL that is logged shows it
            hazard = bent.rule.hazard(settings, bent.name, bent.verdict)
            yield replace(
                hazard, help=f"{neutral(settings, bent.name, 'set')}, or move to a release that does"
            )

    VALID = (
        Example(grpo('output_dir="out", beta=0.04')),
        Example(
            grpo('output_dir="out", beta=0.04, top_k=0'), versions={"trl": "0.16.1", "transformers": "4.49.0"}
        ),
    )
    INVALID = (
        Example(
            grpo('output_dir="out", beta=0.04'),
            "the default of trl 0.16.1",
            {"trl": "0.16.1", "transformers": "4.49.0"},
        ),
    )
