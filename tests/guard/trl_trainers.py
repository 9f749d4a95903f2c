"""Trainers of groups that the tests of TRL are run with, and what their guards say."""

from __future__ import annotations

from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

import klguard
from tests.guard import trl_setup as setup

PLAIN = dict(
    per_device_train_batch_size=16,
    num_generations=8,
    max_completion_length=12,
    max_steps=2,
    beta=0.05,
    learning_rate=1e-4,
    report_to=[],
    save_strategy="no",
    use_cpu=True,
    bf16=False,
    disable_tqdm=True,
    gradient_checkpointing=False,
    gradient_accumulation_steps=2,
)

ALWAYS = {
    "KLG603", "KLG703", "KLG705", "KLG801", "KLG802", "KLG803", "KLG805", "KLG811", "KLG812", "KLG814", "KLG815",
    "KLG816", "KLG817", "KLG831", "KLG832", "KLG837", "KLG838", "KLG841", "KLG842", "KLG845", "KLG846", "KLG853",
    "KLG854", "KLG855", "KLG862", "KLG863", "KLG864", "KLG866", "KLG867", "KLG868", "KLG869",
}  # fmt: skip
"""What every path of TRL shows enough for."""

GROUPS = {"KLG822", "KLG823", "KLG843"}


def trainer_of(
    kind,
    tmp_path,
    model=None,
    own=None,
    generation=None,
    callbacks=None,
    words=None,
    reward=None,
    peft_config=None,
    wrapped=None,
    **config,
):
    """A trainer of groups; `own` is a class to take instead, `generation` what the checkpoint's own config says,
    `words` a tokenizer, `wrapped` what makes the model from the folder it lies in."""
    config_class, trainer_class = {"grpo": (GRPOConfig, GRPOTrainer), "rloo": (RLOOConfig, RLOOTrainer)}[kind]
    path = setup.checkpoint(str(tmp_path / "policy"), model, **(generation or {}))
    args = config_class(output_dir=str(tmp_path / "out"), **{**PLAIN, **config})
    return (own or trainer_class)(
        model=path if wrapped is None else wrapped(path),
        reward_funcs=reward or setup.reward,
        args=args,
        train_dataset=setup.dataset(),
        processing_class=words or setup.tokenizer(),
        callbacks=callbacks,
        **({} if peft_config is None else {"peft_config": peft_config}),
    )


def trained(trainer, **options):
    """The guard of a trainer that has trained."""
    guard = klguard.guard_trainer(trainer, **{"on_violation": "record", "strict": True, **options})
    trainer.train()
    return guard


def codes(guard):
    return {finding.code for finding in guard.findings}


def of(guard, code):
    found = [finding for finding in guard.findings if finding.code == code]
    assert found, f"{code} is not among {[(f.code, f.message) for f in guard.findings]}"
    return found[0]
