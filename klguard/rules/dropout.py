"""KLG407."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from klguard.engines.engine import verdict as for_all
from klguard.findings import Confidence, Severity
from klguard.rules.bending import fact
from klguard.rules.programs import by_hand
from klguard.rules.rule import Example, Hazard, Rule, judge
from klguard.rules.words import shown
from klguard.settings import Default, Settings, SiteKind

_SETTINGS = "do_sample=True, top_k=0, max_new_tokens=32"
_IN_TRAIN_MODE = {"ppo-classic": " after its first step", "grpo": "", "rloo": ""}
"""Families of TRL that do not call eval() before they generate, and when."""

_OF_MEGATRON = ("hidden_dropout", "attention_dropout")
_SLIME = "python3 train.py --num-rollout 100 --rollout-batch-size 32 --n-samples-per-prompt 8"
_DROPOUT = ", attn_pdrop=0.1, resid_pdrop=0.1"


class Dropout(Rule):
    """A rollout is drawn in train mode, with dropout on.

    ## What it does
    Reports a rollout whose model was last put into `train()` and has a dropout probability above 0, that of
    LoRA adapters and of well-known checkpoints (GPT-2, OPT, T5) included. `generate()` never calls `eval()`
    by itself. Notes a trainer of TRL that generates in train mode by itself (GRPO, RLOO, classic PPO) over a
    model with dropout. Reports a launch of slime whose trainer, Megatron, keeps its dropout of 0.1.

    ## Why it breaks the KL
    Each forward pass drops other units, so the tokens are drawn from one random network and scored by
    another. The mean of log p - log ref is then no KL, and the ratio of the first minibatch is not 1, with
    faultless settings.

    ## Example
    ```python
    policy.train()
    tokens = policy.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=64)
    ```

    ## Use instead
    ```python
    policy.eval()
    with torch.no_grad():
        tokens = policy.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=64)
    ```
    Or set every dropout of the configuration, and `lora_dropout`, to 0.

    ## References
    - [Huang et al., The N+ Implementation Details of RLHF with PPO](https://arxiv.org/abs/2403.17031)
    - [TRL, `disable_dropout` of its configurations](https://huggingface.co/docs/trl)
    """

    code = "KLG407"
    name = "dropout"
    severity = Severity.WARNING

    def check(self, settings: Settings) -> Iterator[Hazard]:
        if settings.kind is SiteKind.TRAINER:
            yield from self._of_a_trainer(settings)
        elif settings.kind is SiteKind.TRAINER_CONFIG:
            yield from self._of_a_launcher(settings)
        else:
            yield from self._of_a_loop(settings)

    def _of_a_loop(self, settings: Settings) -> Iterator[Hazard]:
        mode = judge(settings.facts.get("train_mode"), lambda v: v is True, self.severity)
        found = judge(settings.facts.get("dropout"), _drops, self.severity)
        if mode is None or found is None:
            return
        certain = mode.certain and found.certain
        verb = "is" if certain else "may be"
        yield Hazard(
            message=(
                f"the policy {verb} in train mode with a dropout of {shown(found.offenders)}: tokens are "
                "drawn from one random network and scored by another, so the mean of log p - log ref is "
                "not the KL"
            ),
            help=(
                "call `eval()` on the model before it generates and while it is scored, or set its "
                "dropout to 0"
            ),
            setting="dropout",
            severity=self.severity,
            confidence=Confidence.HIGH if certain else Confidence.MEDIUM,
            values=(*mode.offenders, *found.offenders),
            safe="0.0",
        )

    def _of_a_trainer(self, settings: Settings) -> Iterator[Hazard]:
        """A note: trainers that generate in train mode do so by default, and most runs with LoRA drop out."""
        when = _IN_TRAIN_MODE.get(fact(settings, "flavour"))
        switched = settings.values.get("disable_dropout")
        found = judge(settings.facts.get("dropout"), _drops, Severity.NOTE)
        if when is None or found is None or (switched is not None and not for_all(switched, lambda v: not v)):
            return
        yield Hazard(
            message=(
                f"the trainer generates in train mode{when}, and the policy has a dropout of "
                f"{shown(found.offenders)}: tokens are drawn from one random network and scored by another"
            ),
            help="set the dropout to 0, or `disable_dropout=True` where the configuration has it",
            setting="dropout",
            severity=found.severity,
            confidence=found.confidence,
            values=found.offenders,
            safe="0.0",
        )

    def _of_a_launcher(self, settings: Settings) -> Iterator[Hazard]:
        """A trainer apart from the engine that draws: the engine drops nothing, the trainer's updates do."""
        given = {name: settings.values[name] for name in _OF_MEGATRON if name in settings.values}
        found = {name: judge(value, _drops, self.severity) for name, value in given.items()}
        on = {name: verdict for name, verdict in found.items() if verdict is not None}
        if not on:
            return
        offenders = [value for verdict in on.values() for value in verdict.offenders]
        yield Hazard(
            message=(
                f"the trainer scores with a dropout of {shown(offenders[:1])}"
                f"{', which is what Megatron uses where it is left alone' * isinstance(offenders[0], Default)}: the "
                "engine draws the tokens without, so the ratio is not 1 before the first update"
            ),
            help="write `--attention-dropout 0.0 --hidden-dropout 0.0`",
            setting=next(iter(on)),
            severity=self.severity,
            confidence=next(iter(on.values())).confidence,
            values=tuple(offenders),
        )

    VALID = (
        Example(by_hand(_SETTINGS, policy=_DROPOUT, before="policy.eval()")),
        Example(by_hand(_SETTINGS, before="policy.eval()")),
        Example(by_hand(_SETTINGS, before="policy.train()", checkpoint="Qwen/Qwen2.5-0.5B")),
        Example(f"{_SLIME} --attention-dropout 0.0 --hidden-dropout 0.0", filename="train.sh"),
        Example(f'{_SLIME} "$@"', filename="train.sh"),
    )
    INVALID = (
        Example(
            by_hand(_SETTINGS, policy=_DROPOUT, before="policy.train()"),
            "in train mode with a dropout of 0.1",
        ),
        Example(by_hand(_SETTINGS, before="policy.train()"), "in train mode with a dropout of 0.1"),
        Example(_SLIME, "which is what Megatron uses where it is left alone", filename="train.sh"),
    )


def _drops(value: Any) -> bool:
    return isinstance(value, int | float) and value > 0
