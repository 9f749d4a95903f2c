"""KLG4xx: how policy, reference and KL term are put together."""

from __future__ import annotations

import pytest

from klguard.findings import Severity
from klguard.settings import Default, Known, OneOf, Opaque, Reason, SiteKind, Unknown

POLICY = Opaque("model", "from_pretrained at 3")
REFERENCE = Opaque("ref_model", "from_pretrained at 4")
TRAINER = {"engine": "trl", "kind": SiteKind.TRAINER, "class_name": "trl.PPOTrainer"}
CLASSIC = {
    "engine": "trl",
    "kind": SiteKind.TRAINER_CONFIG,
    "class_name": "trl.PPOConfig",
    "ppo_epochs": 4,
}
V2_TRAINER = {**TRAINER, "class_name": "trl.PPOv2Trainer"}
SAMPLE = {"do_sample": True, "top_k": 0, "max_new_tokens": 32}

# KLG401


def test_one_object_in_both_slots_is_an_error(hazards):
    (hazard,) = hazards(
        "KLG401", **TRAINER, facts={"policy": POLICY, "reference": Opaque("ref", POLICY.name)}
    )
    assert hazard.severity is Severity.ERROR and "`model` and `ref`" in hazard.message


@pytest.mark.parametrize(
    "facts",
    [
        {"policy": POLICY, "reference": REFERENCE},
        {"policy": POLICY, "reference": None},
        {"policy": POLICY},
        {"policy": Opaque("a"), "reference": Opaque("b")},
        {"policy": POLICY, "reference": Unknown(Reason.RUNTIME, "load()")},
    ],
)
def test_two_objects_or_objects_that_are_not_known_are_nothing(hazards, facts):
    assert hazards("KLG401", **TRAINER, facts=facts) == []


# KLG402


@pytest.mark.parametrize("name", ["PPOv2Trainer", "RLOOTrainer"])
def test_none_where_the_trainer_makes_no_reference_is_an_error(hazards, name):
    old = {"trl": "0.11.4"}
    (hazard,) = hazards(
        "KLG402", "trl", SiteKind.TRAINER, class_name=f"trl.{name}", facts={"reference": None}, versions=old
    )
    assert hazard.severity is Severity.ERROR and f"{name} makes none" in hazard.message


@pytest.mark.parametrize("name", ["PPOTrainer", "GRPOTrainer", "RLOOTrainer", "OnlineDPOTrainer"])
def test_a_trainer_that_makes_its_own_reference_may_be_given_none(hazards, name):
    site = {"engine": "trl", "kind": SiteKind.TRAINER, "class_name": f"trl.{name}"}
    assert hazards("KLG402", **site, facts={"reference": None}) == []


def test_a_ref_model_was_never_an_argument_of_those_that_need_a_reference(hazards):
    site = {"engine": "trl", "kind": SiteKind.TRAINER, "class_name": "trl.RLOOTrainer"}
    old = {"versions": {"trl": "0.20.0"}, "facts": {"reference": None}}
    assert hazards("KLG402", **site, **old, ref_policy=None)
    assert hazards("KLG402", **site, **old, ref_model=None) == []


def test_a_trainer_of_the_projects_own_may_make_a_reference(hazards):
    site = {"engine": "local", "kind": SiteKind.TRAINER, "class_name": "RLOOTrainer", "beta": 0.05}
    assert hazards("KLG402", **site, facts={"reference": None}) == []


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"reference": REFERENCE},
        {"reference": None, "peft": True},
        {"reference": OneOf((Known(None), Known(REFERENCE)))},
    ],
)
def test_a_reference_an_adapter_or_a_slot_that_is_not_seen_is_nothing(hazards, facts):
    assert hazards("KLG402", **V2_TRAINER, facts=facts) == []


def test_without_a_penalty_no_reference_is_needed(hazards):
    assert hazards("KLG402", **V2_TRAINER, kl_coef=0.0, facts={"reference": None}) == []
    assert (
        hazards("KLG402", **V2_TRAINER, kl_coef=Unknown(Reason.RUNTIME, "k"), facts={"reference": None}) == []
    )


def test_a_tokenizer_in_the_slot_of_the_reference_is_a_warning(hazards):
    (hazard,) = hazards("KLG402", **TRAINER, ppo_epochs=4, facts={"reference": Opaque("tok", "tokenizer")})
    assert hazard.severity is Severity.WARNING and "a tokenizer, `tok`" in hazard.message


# KLG403


def test_a_negative_coefficient_is_an_error(hazards):
    (hazard,) = hazards("KLG403", **CLASSIC, init_kl_coef=-0.2)
    assert hazard.severity is Severity.ERROR and hazard.message.startswith("`init_kl_coef=-0.2` pays")


def test_a_coefficient_that_is_negative_on_some_path_is_a_warning(hazards):
    (hazard,) = hazards("KLG403", **CLASSIC, init_kl_coef=OneOf((Known(-0.2), Known(0.2))))
    assert hazard.severity is Severity.WARNING and "may be -0.2, which pays" in hazard.message


def test_a_coefficient_of_0_is_a_note_where_the_penalty_is_the_point(hazards):
    (hazard,) = hazards("KLG403", **CLASSIC, init_kl_coef=0)
    assert hazard.severity is Severity.NOTE


@pytest.mark.parametrize("beta", [0.0, 0.04, Unknown(Reason.RUNTIME, "beta")])
def test_grpo_may_do_without(hazards, beta):
    assert hazards("KLG403", "trl", SiteKind.TRAINER_CONFIG, class_name="trl.GRPOConfig", beta=beta) == []


@pytest.mark.parametrize("value", [0.2, Unknown(Reason.RUNTIME, "k"), Default(0.2, "trl")])
def test_a_positive_or_unknown_coefficient_is_nothing(hazards, value):
    assert hazards("KLG403", **CLASSIC, init_kl_coef=value) == []


# KLG404


@pytest.mark.parametrize("target", [0, -1, 10.5, 100])
def test_a_target_outside_the_band_is_a_warning(hazards, target):
    (hazard,) = hazards("KLG404", **CLASSIC, target=target)
    assert hazard.severity is Severity.WARNING


@pytest.mark.parametrize("target", [0.1, 6, 10, Unknown(Reason.RUNTIME, "t")])
def test_a_target_inside_the_band_is_nothing(hazards, target):
    assert hazards("KLG404", **CLASSIC, target=target) == []


def test_a_target_nobody_aims_at_is_nothing(hazards):
    assert hazards("KLG404", **CLASSIC, adap_kl_ctrl=False, target=100) == []


def test_target_kl_is_something_else(hazards):
    assert hazards("KLG404", **CLASSIC, target_kl=100) == []


def test_trlx_aims_at_a_target_or_at_none(hazards):
    trlx = {"engine": "trlx", "kind": SiteKind.TRAINER_CONFIG, "class_name": "trlx.PPOConfig"}
    assert hazards("KLG404", **trlx, target=None) == []
    assert hazards("KLG404", **trlx, target=60)


# KLG405


@pytest.mark.parametrize("form", ["abs", "mse"])
def test_a_biased_penalty_is_a_warning(hazards, form):
    (hazard,) = hazards("KLG405", **CLASSIC, kl_penalty=form)
    assert hazard.severity is Severity.WARNING and f'`kl_penalty="{form}"`' in hazard.message


@pytest.mark.parametrize("form", ["kl", "full", Unknown(Reason.RUNTIME, "form")])
def test_an_unbiased_penalty_is_nothing(hazards, form):
    assert hazards("KLG405", **CLASSIC, kl_penalty=form) == []


def test_k3_in_the_reward_is_a_note(hazards):
    v2 = {"engine": "trl", "kind": SiteKind.TRAINER_CONFIG, "class_name": "trl.experimental.ppo.PPOConfig"}
    (hazard,) = hazards("KLG405", **v2, kl_estimator="k3")
    assert hazard.severity is Severity.NOTE
    assert hazards("KLG405", **v2, kl_estimator="k1") == []


@pytest.mark.parametrize(
    ("form", "words"), [("k1-loss", "differentiated as a loss"), ("abs", "|log p"), ("clamp", "clamped at 0")]
)
def test_a_hand_written_estimator_is_a_warning(hazards, form, words):
    (hazard,) = hazards("KLG405", **SAMPLE, facts={"kl_estimator": form})
    assert hazard.severity is Severity.WARNING and words in hazard.message


def test_a_loop_whose_estimator_is_not_seen_is_nothing(hazards):
    assert hazards("KLG405", **SAMPLE) == []


# KLG406, KLG407


@pytest.mark.parametrize(
    ("state", "severity"), [("in the optimizer", Severity.ERROR), ("train mode", Severity.WARNING)]
)
def test_a_reference_that_moves(hazards, state, severity):
    (hazard,) = hazards("KLG406", **TRAINER, facts={"reference_trainable": state})
    assert hazard.severity is severity
    assert hazards("KLG406", **TRAINER) == []


def test_a_trainer_that_generates_in_train_mode_is_a_note(hazards):
    grpo = {"engine": "trl", "kind": SiteKind.TRAINER, "class_name": "trl.GRPOTrainer"}
    (hazard,) = hazards("KLG407", **grpo, facts={"dropout": 0.05})
    assert hazard.severity is Severity.NOTE and "a dropout of 0.05" in hazard.message
    assert hazards("KLG407", **grpo, facts={"dropout": 0.0}) == []
    assert hazards("KLG407", **grpo, disable_dropout=True, facts={"dropout": 0.05}) == []
    assert hazards("KLG407", **V2_TRAINER, facts={"dropout": 0.05}) == []


def test_dropout_in_train_mode_is_a_warning(hazards):
    (hazard,) = hazards("KLG407", **SAMPLE, facts={"train_mode": True, "dropout": 0.1})
    assert hazard.severity is Severity.WARNING and "a dropout of 0.1" in hazard.message


@pytest.mark.parametrize(
    "facts",
    [
        {"train_mode": False, "dropout": 0.1},
        {"train_mode": True, "dropout": 0.0},
        {"train_mode": True},
        {"dropout": 0.1},
        {"train_mode": True, "dropout": Unknown(Reason.RUNTIME, "p")},
    ],
)
def test_eval_mode_or_no_dropout_that_is_seen_is_nothing(hazards, facts):
    assert hazards("KLG407", **SAMPLE, facts=facts) == []


# KLG411

LOADED = {"adapter_loaded": True, "flavour": "ppo-classic"}


def test_an_adapter_that_is_trained_on_is_switched_off_for_the_reference(hazards):
    for reference in ({}, {"reference": None}):
        (hazard,) = hazards("KLG411", **TRAINER, init_kl_coef=0.2, facts=LOADED | reference)
        assert hazard.severity is Severity.NOTE


@pytest.mark.parametrize("version", ["0.26.2", "0.27.2"])
@pytest.mark.parametrize("flavour", ["grpo", "rloo"])
def test_newer_trainers_keep_a_copy_of_the_adapter(hazards, version, flavour):
    facts = {"adapter_loaded": True, "flavour": flavour}
    name = f"trl.{flavour.upper()}Trainer"
    told = {"beta": 0.04, "facts": facts, "class_name": name, "versions": {"trl": version}}
    found = hazards("KLG411", "trl", SiteKind.TRAINER, **told)
    assert bool(found) is (version < "0.27")


@pytest.mark.parametrize(
    ("coefficient", "facts"),
    [
        (0.0, LOADED),
        (0.2, {**LOADED, "reference": REFERENCE}),
        (0.2, {**LOADED, "reference": Unknown(Reason.RUNTIME, "load()")}),
        (0.2, {**LOADED, "flavour": "ppo-v2"}),
        (0.2, {"flavour": "ppo-classic"}),
    ],
)
def test_other_references_and_no_penalty_are_nothing(hazards, coefficient, facts):
    assert hazards("KLG411", **TRAINER, init_kl_coef=coefficient, facts=facts) == []
