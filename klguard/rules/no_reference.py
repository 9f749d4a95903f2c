"""KLG402."""

from __future__ import annotations

from collections.abc import Iterator

from klguard.engines.engine import verdict as for_all
from klguard.findings import Confidence, Severity
from klguard.rules.bending import fact, has_penalty
from klguard.rules.rule import Example, Hazard, Rule
from klguard.settings import Opaque, Settings, SiteKind

NEEDS_ONE = frozenset({"ppo-v2", "rloo-old"})
"""Families of TRL that took `ref_policy` as a required argument, and made none themselves."""

_LOOP = """\
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import PPOv2Config, PPOv2Trainer

tokenizer = AutoTokenizer.from_pretrained("gpt2", padding_side="left")
policy = AutoModelForCausalLM.from_pretrained("gpt2")
ref_policy = {reference}
judge = AutoModelForSequenceClassification.from_pretrained("gpt2", num_labels=1)
trainer = PPOv2Trainer(
    config=PPOv2Config(output_dir="out", kl_coef=0.05), tokenizer=tokenizer, policy=policy,
    ref_policy=ref_policy, reward_model=judge, value_model=judge,
    train_dataset=load_dataset("trl-lib/tldr", split="train"),
)
trainer.train()
"""


class NoReference(Rule):
    """A KL coefficient above 0, and no reference the trainer could use.

    ## What it does
    Reports a trainer that is given `None`, or a tokenizer, where its reference belongs, does not make a
    reference of its own, trains no adapter that could be switched off, and has a KL coefficient above 0.
    Classic PPOTrainer, PPO since 0.13, GRPO and RLOO of TRL and the trainers of trlx make their own, and
    are not reported for `None`.

    ## Why it breaks the KL
    There is nothing to measure the distance to: the run fails, or goes on without the penalty that the
    configuration promises.

    ## Example
    ```python
    trainer = PPOv2Trainer(config, tokenizer, policy, ref_policy=None, reward_model=judge)
    ```

    ## Use instead
    ```python
    ref_policy = AutoModelForCausalLM.from_pretrained(checkpoint)
    trainer = PPOv2Trainer(config, tokenizer, policy, ref_policy=ref_policy, reward_model=judge)
    ```

    ## References
    - TRL `PPOv2Trainer.__init__`, `RLOOTrainer.__init__` up to 0.21
    """

    code = "KLG402"
    name = "no-reference"

    def check(self, settings: Settings) -> Iterator[Hazard]:
        if (
            settings.kind is not SiteKind.TRAINER
            or "reference" not in settings.facts
            or not has_penalty(settings)
        ):
            return
        reference = fact(settings, "reference")
        if isinstance(reference, Opaque) and reference.name == "tokenizer":
            found, severity = (
                f"a tokenizer, `{reference}`, stands where the reference belongs",
                Severity.WARNING,
            )
        elif (
            reference is None
            and for_all(settings.facts["reference"], lambda v: v is None)
            and _needs_one(settings)
        ):
            found, severity = (
                f"the reference is None, and {_bare_name(settings)} makes none",
                self.severity,
            )
        else:
            return
        yield Hazard(
            message=f"{found}: the KL coefficient is above 0 and there is nothing to measure the KL against",
            help="pass a frozen copy of the policy as it was before training",
            setting="reference",
            severity=severity,
            confidence=Confidence.HIGH if severity is self.severity else Confidence.MEDIUM,
            values=(settings.facts["reference"],),
        )

    VALID = (Example(_LOOP.format(reference='AutoModelForCausalLM.from_pretrained("gpt2")')),)
    INVALID = (Example(_LOOP.format(reference="None"), "the reference is None"),)


def _needs_one(settings: Settings) -> bool:
    """Whether the trainer neither makes a reference nor can switch an adapter off to get one.

    A trainer of the project's own may make one, whatever its name; `ref_model` was never an argument of
    those that need a `ref_policy`.
    """
    written = {name for layer in settings.layers for name in layer.values}
    if fact(settings, "peft") is True or settings.engine == "local" or "ref_model" in written:
        return False
    old_argument = _bare_name(settings) in ("PPOv2Trainer", "RLOOTrainer")
    return old_argument and fact(settings, "flavour") in NEEDS_ONE


def _bare_name(settings: Settings) -> str:
    """The name of the trainer's class."""
    return settings.class_name.rpartition(".")[2] or "this trainer"
