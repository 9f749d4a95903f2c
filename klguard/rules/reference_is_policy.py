"""KLG401."""

from __future__ import annotations

from collections.abc import Iterator

from klguard.findings import Confidence
from klguard.rules.bending import fact
from klguard.rules.programs import by_hand
from klguard.rules.rule import Example, Hazard, Rule
from klguard.rules.words import all_of
from klguard.settings import Opaque, Settings, SiteKind

_LOOP = """\
from rewards import score
from transformers import AutoTokenizer
from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer, create_reference_model

tokenizer = AutoTokenizer.from_pretrained("gpt2")
model = AutoModelForCausalLMWithValueHead.from_pretrained("gpt2")
ref_model = {reference}
ppo_trainer = PPOTrainer(config=PPOConfig(), model=model, ref_model=ref_model, tokenizer=tokenizer)
for batch in ppo_trainer.dataloader:
    queries = batch["input_ids"]
    responses = ppo_trainer.generate(queries, return_prompt=False, do_sample=True, top_k=0, max_new_tokens=32)
    ppo_trainer.step(queries, responses, [score(text) for text in tokenizer.batch_decode(responses)])
"""

_ALIAS = by_hand("do_sample=True, top_k=0, max_new_tokens=32").replace(
    "reference = Auto", "reference = policy  # Auto"
)


class ReferenceIsPolicy(Rule):
    """Policy and reference are the same object.

    ## What it does
    Reports a trainer, or a loop written by hand, whose policy and reference are certainly one object: two names
    for one model, or a wrapper around it.

    ## Why it breaks the KL
    The reference is updated with the policy, so log p - log ref is 0 at every token and every step. The
    penalty never acts, the run drifts as if the coefficient were 0, and the curve that should show it stays
    flat at 0.

    ## Example
    ```python
    ref_model = model
    ppo_trainer = PPOTrainer(config, model, ref_model, tokenizer)
    ```

    ## Use instead
    ```python
    ref_model = create_reference_model(model)
    ppo_trainer = PPOTrainer(config, model, ref_model, tokenizer)
    ```
    TRL also makes a frozen copy by itself where `ref_model` is left out, and switches the adapter off where
    the policy has one.

    ## References
    - TRL `create_reference_model`
    - [Ziegler et al., Fine-Tuning Language Models from Human Preferences](https://arxiv.org/abs/1909.08593)
    """

    code = "KLG401"
    name = "reference-is-policy"

    def check(self, settings: Settings) -> Iterator[Hazard]:
        policy, reference = fact(settings, "policy"), fact(settings, "reference")
        if (
            settings.kind not in (SiteKind.TRAINER, SiteKind.GENERATE)
            or not isinstance(policy, Opaque)
            or not isinstance(reference, Opaque)
        ):
            return
        if policy.name and policy.name == reference.name:
            names = all_of((f"`{policy}`", f"`{reference}`"))
            yield Hazard(
                message=(
                    f"policy and reference are the same object ({names}): "
                    "the reference moves with the policy, so the KL is 0 for ever and the penalty never acts"
                ),
                help=(
                    "load the reference a second time, copy and freeze it "
                    "(`create_reference_model(model)`), or leave it out where the trainer makes its own"
                ),
                setting="reference",
                severity=self.severity,
                confidence=Confidence.HIGH,
                values=(settings.facts["reference"], settings.facts["policy"]),
                in_loop=settings.kind is SiteKind.GENERATE,
            )

    VALID = (
        Example(_LOOP.format(reference="create_reference_model(model)")),
        Example(_LOOP.format(reference='AutoModelForCausalLMWithValueHead.from_pretrained("gpt2")')),
        Example(_LOOP.format(reference="None")),
    )
    INVALID = (
        Example(_LOOP.format(reference="model"), "are the same object"),
        Example(_ALIAS, "are the same object"),
    )
