"""KLG411."""

from __future__ import annotations

from collections.abc import Iterator

from klguard.engines.engine import verdict as for_all
from klguard.engines.versions import version_of, within
from klguard.findings import Severity
from klguard.rules.bending import fact, has_penalty
from klguard.rules.rule import Example, Hazard, Rule, judge
from klguard.settings import Settings, SiteKind

COPIED_SINCE = ">=0.27"
"""TRL's GRPO and RLOO trainers keep a copy of an adapter they are given, and score the reference with it."""

_LOOP = """\
from peft import PeftModel
from rewards import score
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer

tokenizer = AutoTokenizer.from_pretrained("my/base")
base = AutoModelForCausalLM.from_pretrained("my/base")
tuned = PeftModel.from_pretrained(base, "my/tuned-adapter"{how})
model = AutoModelForCausalLMWithValueHead.from_pretrained(tuned)
ppo_trainer = PPOTrainer(config=PPOConfig(), model=model, ref_model=None, tokenizer=tokenizer)
for batch in ppo_trainer.dataloader:
    queries = batch["input_ids"]
    responses = ppo_trainer.generate(queries, do_sample=True, top_k=0, max_new_tokens=32)
    ppo_trainer.step(queries, responses, [score(text) for text in tokenizer.batch_decode(responses)])
"""


class AdapterReference(Rule):
    """Training goes on from an adapter, and the reference is the model without it.

    ## What it does
    Notes a trainer of TRL that is given a model with a trained adapter and no reference: it switches the adapter off to
    score the reference. GRPO and RLOO since 0.27 keep a copy of the adapter, and are not noted.

    ## Why it breaks the KL
    The KL is then the distance to the base model, and not to the tuned one that training begins with. It is above 0
    from the first step on, and the penalty pulls the policy back to what it was before it was tuned.

    ## Example
    ```python
    tuned = PeftModel.from_pretrained(base, "my/tuned-adapter", is_trainable=True)
    trainer = PPOTrainer(config, tuned, ref_model=None, tokenizer=tokenizer)
    ```

    ## Use instead
    ```python
    tuned = PeftModel.from_pretrained(base, "my/tuned-adapter").merge_and_unload()
    policy = get_peft_model(tuned, LoraConfig(task_type="CAUSAL_LM"))
    trainer = PPOTrainer(config, policy, ref_model=None, tokenizer=tokenizer)
    ```

    ## References
    - [TRL, issue 1340](https://github.com/huggingface/trl/issues/1340)
    - TRL `PPOTrainer.optional_peft_ctx`, `GRPOTrainer.__init__` ("ref" adapter)
    """

    code = "KLG411"
    name = "adapter-reference"
    severity = Severity.NOTE

    def check(self, settings: Settings) -> Iterator[Hazard]:
        if (
            settings.kind is not SiteKind.TRAINER
            or not has_penalty(settings)
            or not self._switches_off(settings)
        ):
            return
        found = judge(settings.facts.get("adapter_loaded"), lambda v: v is True, self.severity)
        if found is not None:
            yield Hazard(
                message=(
                    "the policy comes with a trained adapter, which the trainer switches off to score the reference:"
                    " the KL is the distance to the model without it, and not to the policy that training begins with"
                ),
                help="merge the adapter into the model and train another, or pass a reference of its own",
                setting="reference",
                severity=found.severity,
                confidence=found.confidence,
                values=found.offenders,
            )

    @staticmethod
    def _switches_off(settings: Settings) -> bool:
        """Whether this trainer has no reference but the policy without its adapter."""
        given = settings.facts.get("reference")
        if given is not None and not for_all(given, lambda v: v is None):
            return False
        flavour = fact(settings, "flavour")
        if flavour in ("grpo", "rloo"):
            return not within(version_of("trl", settings.versions), COPIED_SINCE)
        return flavour == "ppo-classic"

    VALID = (Example(_LOOP.format(how=").merge_and_unload(")),)
    INVALID = (Example(_LOOP.format(how=", is_trainable=True"), "comes with a trained adapter"),)
