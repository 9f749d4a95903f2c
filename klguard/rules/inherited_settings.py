"""KLG501."""

from __future__ import annotations

from collections.abc import Iterator

from klguard import rules
from klguard.findings import Confidence, Severity
from klguard.rules.bending import BendingRule, Bent, Origin, consequence, fact, may_draw
from klguard.rules.programs import by_hand, ppo
from klguard.rules.rule import Example, Hazard, Rule
from klguard.rules.words import all_of, release, safe, shown
from klguard.settings import Default, LayerKind, Settings, SiteKind, members

OFTEN_FILLED = ("temperature", "top_p", "repetition_penalty")
"""What published checkpoints fill in most, besides top_k, which is KLG102 when it is left alone."""

_TRAINER = """\
from data import judge, prompts, value_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer

tokenizer = AutoTokenizer.from_pretrained("Qwen/Qwen2.5-7B-Instruct", padding_side="left")
model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-7B-Instruct")
{before}trainer = PPOTrainer(
    args=PPOConfig(output_dir="out"), processing_class=tokenizer, model=model, ref_model=None,
    reward_model=judge, value_model=value_model, train_dataset=prompts,
)
trainer.train()
"""
_NEUTRAL = "do_sample=True, top_k=0, top_p=1.0, temperature=1.0, repetition_penalty=1.0, max_new_tokens=32"
_RECOMMENDED = "min_length=-1, top_k=0.0, top_p=1.0, do_sample=True, max_new_tokens=32"


def bent_by(settings: Settings, origin: Origin) -> Iterator[Bent]:
    """Every setting bent by a value of this origin, whichever rule is about it."""
    for rule in rules.RULES.values():
        if isinstance(rule, BendingRule) and rule.code != "KLG102":
            for bent in rule.bent(settings):
                part = bent.of(lambda whose: whose is origin, settings)
                if part is not None:
                    yield part


class InheritedSettings(Rule):
    """A rollout leaves fields alone that the checkpoint's generation_config fills in.

    ## What it does
    Reports a rollout on a checkpoint that is known, by its name or by reading it, whose
    `generation_config.json` sets a field that bends the distribution and that neither the arguments nor a
    configuration object set back. Where the checkpoint is not known, it notes which of the fields that
    checkpoints like to fill are left to it.

    ## Why it breaks the KL
    `generate()` takes every field that is not passed from the checkpoint. Qwen2.5-Instruct brings a
    repetition penalty of 1.05, Llama-3-Instruct a temperature of 0.6 and a nucleus of 0.9: the sampler is
    not the policy, although nothing in the code says so. The settings that TRL's guide recommends leave out
    temperature and repetition penalty.

    ## Example
    ```python
    model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-7B-Instruct")
    tokens = model.generate(**inputs, do_sample=True, top_k=0, top_p=1.0, max_new_tokens=64)
    ```

    ## Use instead
    ```python
    model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-7B-Instruct")
    tokens = model.generate(
        **inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0,
        max_new_tokens=64,
    )
    ```
    Pass them as keyword arguments: a configuration object is treated differently from release to release
    (KLG503).

    ## References
    - transformers `GenerationMixin._prepare_generation_config`
    - [prime-rl, pull request 886: a repetition penalty nobody had
      set](https://github.com/PrimeIntellect-ai/prime-rl/pull/886)
    - vLLM `ModelConfig.get_diff_sampling_param`
    """

    code = "KLG501"
    name = "inherited-settings"

    def check(self, settings: Settings) -> Iterator[Hazard]:
        if settings.kind is SiteKind.TRAINER:
            return  # what its config sets, and what was set back on the model, is not among its layers
        overwritten = fact(settings, "overwritten") or {}  # KLG503 says what overwrote them
        found = [b for b in bent_by(settings, Origin.CHECKPOINT) if b.name not in overwritten]
        if found:
            yield _inherited(settings, found)
        elif _left_to_the_checkpoint(settings):
            yield _perhaps_inherited(settings)

    VALID = (
        Example(by_hand(_NEUTRAL, checkpoint="Qwen/Qwen2.5-7B-Instruct")),
        Example(ppo(_NEUTRAL)),
    )
    INVALID = (
        Example(by_hand(_RECOMMENDED, checkpoint="Qwen/Qwen2.5-7B-Instruct"), "`repetition_penalty=1.05`"),
        Example(by_hand(_RECOMMENDED, checkpoint="my-org/my-model"), "left to the checkpoint"),
    )


def _inherited(settings: Settings, found: list[Bent]) -> Hazard:
    """One finding for all that a known checkpoint brings along."""
    checkpoint = fact(settings, "checkpoint")
    whose = f"`{checkpoint}`" if isinstance(checkpoint, str) else "the checkpoint"
    certain = any(bent.verdict.certain for bent in found)
    loudest = Severity.ERROR if any(b.verdict.severity is Severity.ERROR for b in found) else Severity.WARNING
    brought = all_of(f"`{bent.name}={shown(bent.verdict.offenders)}`" for bent in found)
    return Hazard(
        message=(
            f"the generation config of {whose} {'sets' if certain else 'may set'} {brought}, which the "
            f"rollout leaves alone: {consequence(settings, found[0].name, BendingRule.harm)}"
        ),
        help=_set_back(settings, found),
        setting=", ".join(bent.name for bent in found),
        severity=loudest,
        confidence=Confidence.HIGH if certain else Confidence.MEDIUM,
        values=tuple(value for bent in found for value in bent.verdict.offenders),
    )


def _set_back(settings: Settings, found: list[Bent]) -> str:
    """How to make the fields neutral again."""
    neutral = ", ".join(f"{bent.name}={safe(settings, bent.name) or 'None'}" for bent in found)
    return f"pass `{neutral}`; what is passed to the call wins over the checkpoint"


def _left_alone(settings: Settings) -> list[str]:
    """The fields that checkpoints like to fill, and that nobody set."""
    values = {name: settings.values.get(name) for name in OFTEN_FILLED}
    return [
        name
        for name, value in values.items()
        if value is not None
        and all(isinstance(m, Default) and m.library == "transformers" for m in members(value))
    ]


def _left_to_the_checkpoint(settings: Settings) -> bool:
    """Whether keyword arguments alone decide, over a checkpoint that is not known."""
    kinds = {layer.kind for layer in settings.layers}
    return (
        settings.kind is SiteKind.GENERATE
        and LayerKind.OBJECT not in kinds
        and LayerKind.CHECKPOINT not in kinds
        and may_draw(settings, "temperature") is True
        and bool(_left_alone(settings))
    )


def _perhaps_inherited(settings: Settings) -> Hazard:
    names = _left_alone(settings)
    neutral = ", ".join(f"{name}={safe(settings, name) or '1.0'}" for name in names)
    verb = "is" if len(names) == 1 else "are"
    checkpoint = fact(settings, "checkpoint")
    whose = f"checkpoint `{checkpoint}`" if isinstance(checkpoint, str) else "checkpoint"
    return Hazard(
        message=(
            f"{all_of(f'`{name}`' for name in names)} {verb} left to the {whose}, which is not known "
            f"here: {release(settings)} takes what its generation config sets, and what is sampled may not "
            "be the policy"
        ),
        help=f"pass `{neutral}`",
        setting=", ".join(names),
        severity=Severity.NOTE,
        confidence=Confidence.LOW,
    )
