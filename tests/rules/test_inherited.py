"""KLG003 and KLG5xx: what nobody wrote at the site, or wrote in vain."""

from __future__ import annotations

import pytest

from klguard.findings import Confidence, Severity
from klguard.settings import Hop, HopKind, Known, Layer, LayerKind, OneOf, Place, Reason, SiteKind, Unknown

RECOMMENDED = {"min_length": -1, "top_k": 0.0, "top_p": 1.0, "do_sample": True, "max_new_tokens": 32}
NEUTRAL = {**RECOMMENDED, "temperature": 1.0, "repetition_penalty": 1.0}
GRPO = {"engine": "trl", "kind": SiteKind.TRAINER_CONFIG, "class_name": "trl.GRPOConfig"}


def brought(value: object, kind: HopKind = HopKind.CHECKPOINT, path: str = "") -> Known:
    place = Place(path, None, 1, 1, 1, 5) if path else None
    return Known(value, (Hop(kind, place, "generation_config.json"),))


def checkpoint(version: str = "", **values: object) -> Layer:
    return Layer(
        LayerKind.CHECKPOINT, {name: brought(value) for name, value in values.items()}, version=version
    )


QWEN = checkpoint("4.43.0", do_sample=True, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05)

# KLG501


def test_what_a_known_checkpoint_brings_is_one_error(hazards):
    (hazard,) = hazards(
        "KLG501", **RECOMMENDED, layers=(QWEN,), facts={"checkpoint": "Qwen/Qwen2.5-7B-Instruct"}
    )
    assert (hazard.severity, hazard.confidence) == (Severity.ERROR, Confidence.HIGH)
    assert hazard.message.startswith(
        "the generation config of `Qwen/Qwen2.5-7B-Instruct` sets `temperature=0.7` and "
        "`repetition_penalty=1.05`, which the rollout leaves alone: "
    )
    assert "temperature=1.0, repetition_penalty=1.0" in hazard.help
    assert [value.value for value in hazard.values] == [0.7, 1.05]


def test_what_is_set_back_is_not_inherited(hazards):
    assert hazards("KLG501", **NEUTRAL, layers=(QWEN,)) == []


def test_a_greedy_rollout_inherits_the_penalty_only(hazards):
    (hazard,) = hazards("KLG501", **{**RECOMMENDED, "do_sample": False}, layers=(QWEN,))
    assert hazard.setting == "repetition_penalty"


def test_what_is_set_back_on_some_path_may_be_inherited(hazards):
    from klguard.settings import Absent

    written = {**NEUTRAL, "temperature": OneOf((Known(1.0), Absent()))}
    (hazard,) = hazards("KLG501", **written, layers=(QWEN,))
    assert hazard.severity is Severity.WARNING and "may set `temperature=0.7`" in hazard.message


def test_a_checkpoint_that_is_not_known_is_one_note(hazards):
    (hazard,) = hazards("KLG501", **RECOMMENDED)
    assert (hazard.severity, hazard.confidence) == (Severity.NOTE, Confidence.LOW)
    assert hazard.message.startswith("`temperature` and `repetition_penalty` are left to the checkpoint")


def test_no_note_where_everything_is_set_or_nothing_is_sampled(hazards):
    assert hazards("KLG501", **NEUTRAL) == []
    assert hazards("KLG501", max_new_tokens=32) == []


def test_no_note_where_the_checkpoint_is_known_to_be_neutral(hazards):
    assert hazards("KLG501", **RECOMMENDED, layers=(checkpoint(),)) == []


def test_no_note_beside_a_configuration_object_or_an_unseen_splat(hazards):
    assert hazards("KLG501", layers=(Layer(LayerKind.OBJECT, {"do_sample": Known(True)}),)) == []
    assert hazards("KLG501", do_sample=True, rest=Unknown(Reason.INVISIBLE_CALL, "load()")) == []


def test_vllm_without_parameters_takes_the_checkpoints(hazards):
    (hazard,) = hazards("KLG501", "vllm", layers=(QWEN,))
    assert hazard.severity is Severity.ERROR and "`temperature=0.7`" in hazard.message


def test_an_old_object_replaces_the_checkpoint(hazards):
    layers = (Layer(LayerKind.OBJECT, {"do_sample": Known(True), "top_k": Known(0)}), QWEN)
    assert hazards("KLG501", layers=layers, versions={"transformers": "4.49.0"}) == []
    assert hazards("KLG501", layers=layers, versions={"transformers": "5.23.0"})


def test_a_trainer_is_not_judged_by_its_checkpoint(hazards):
    site = {"engine": "trl", "kind": SiteKind.TRAINER, "class_name": "trl.experimental.ppo.PPOTrainer"}
    assert hazards("KLG501", **site, layers=(QWEN,)) == []


# KLG502


def test_a_generation_config_that_is_loaded_is_reported_by_setting(hazards):
    from_file = brought(20, HopKind.DOCUMENT, "ckpt/generation_config.json")
    (hazard,) = hazards("KLG502", do_sample=True, top_k=from_file)
    assert hazard.message.startswith("`top_k=20`, from generation_config.json, keeps only")
    assert hazards("KLG101", do_sample=True, top_k=from_file) == []


def test_other_files_are_left_to_the_rule_about_the_setting(hazards):
    from_file = brought(20, HopKind.DOCUMENT, "conf/ppo.yaml")
    assert hazards("KLG502", do_sample=True, top_k=from_file) == []
    assert hazards("KLG101", do_sample=True, top_k=from_file)


# KLG503

SAVED = checkpoint("4.51.0", temperature=0.6, top_k=20, repetition_penalty=1.05)
OBJECT = Layer(LayerKind.OBJECT, {"do_sample": Known(True), "temperature": Known(1.0), "top_k": Known(0)})


def test_neutral_values_that_a_checkpoint_overwrites_are_an_error(hazards):
    (hazard,) = hazards("KLG503", layers=(OBJECT, SAVED), versions={"transformers": "4.52.4"})
    assert hazard.severity is Severity.ERROR
    assert hazard.message.startswith(
        "`temperature=1.0` in the configuration object is overwritten by the checkpoint's 0.6: "
        "transformers 4.52.4 takes a field"
    )
    assert hazard.values[0] == Known(1.0)


def test_what_is_overwritten_is_not_reported_as_inherited_too(hazards):
    (hazard,) = hazards("KLG501", layers=(OBJECT, SAVED), versions={"transformers": "4.52.4"})
    assert hazard.setting == "repetition_penalty"


@pytest.mark.parametrize("version", ["4.49.0", "5.23.0"])
def test_other_releases_keep_neutral_values(hazards, version):
    assert hazards("KLG503", layers=(OBJECT, SAVED), versions={"transformers": version}) == []


def test_none_in_an_object_means_unset_since_5(hazards):
    layer = Layer(LayerKind.OBJECT, {"do_sample": Known(True), "top_k": Known(None)})
    (hazard,) = hazards("KLG503", layers=(layer,))
    assert hazard.message.startswith("`top_k=None` in the configuration object means unset, not off")
    assert "50 is in force" in hazard.message and hazard.safe == "0"
    assert hazards("KLG102", layers=(layer,)) == []
    assert hazards("KLG503", layers=(layer,), versions={"transformers": "4.49.0"}) == []


def test_none_that_leaves_something_neutral_is_nothing(hazards):
    layer = Layer(LayerKind.OBJECT, {"do_sample": Known(True), "top_k": Known(0), "top_p": Known(None)})
    assert hazards("KLG503", layers=(layer,)) == []


def test_none_as_an_argument_is_none(hazards):
    assert hazards("KLG503", do_sample=True, top_k=None) == []


# KLG504


def test_a_misspelled_field_of_a_configuration_is_a_warning(hazards):
    (hazard,) = hazards("KLG504", kind=SiteKind.GENERATION_CONFIG, do_sample=True, topk=0)
    assert hazard.severity is Severity.WARNING and hazard.help == "did you mean `top_k`?"
    assert hazard.message.startswith("`topk` is not a setting: transformers 5.23.0 stores it")


def test_a_field_without_a_near_relative_is_a_note(hazards):
    (hazard,) = hazards("KLG504", kind=SiteKind.GENERATION_CONFIG, quality_bar="high")
    assert hazard.severity is Severity.NOTE


def test_a_misspelled_argument_is_a_note(hazards):
    (hazard,) = hazards("KLG504", temprature=0.7)
    assert hazard.severity is Severity.NOTE and "`temperature`" in hazard.help


@pytest.mark.parametrize(
    "name",
    "input_ids attention_mask pixel_values inputs prompt query_tensor return_prompt length_sampler "
    "batch_size streamer tokenizer logits_processor stopping_criteria top_h num_return_sequences "
    "whatever".split(),
)
def test_arguments_that_are_no_settings_are_nothing(hazards, name):
    assert hazards("KLG504", **{name: Unknown(Reason.RUNTIME, name)}) == []


def test_other_engines_reject_unknown_names_themselves(hazards):
    assert hazards("KLG504", "vllm", SiteKind.SAMPLING_PARAMS, topk=0) == []
    assert hazards("KLG504", **GRPO, topk=0) == []


# KLG505


@pytest.mark.parametrize(
    ("engine", "name", "value"),
    [
        ("transformers", "top_k", -1),
        ("transformers", "top_p", 0.0),
        ("transformers", "top_h", 1.0),
        ("transformers", "temperature", 0.0),
        ("sglang", "top_k", 0),
        ("vllm", "top_p", 0.0),
    ],
)
def test_a_value_that_means_off_elsewhere_is_an_error(hazards, engine, name, value):
    site = {"do_sample": True} if engine == "transformers" else {}
    kind = SiteKind.GENERATE if engine == "transformers" else SiteKind.SAMPLING_PARAMS
    (hazard,) = hazards("KLG505", engine, kind, **site, **{name: value})
    assert hazard.severity is Severity.ERROR
    assert hazard.message.startswith(f"`{name}={value}` is wrong in {engine}")


def test_vllm_took_0_for_an_error_once(hazards):
    params = {"engine": "vllm", "kind": SiteKind.SAMPLING_PARAMS, "top_k": 0}
    assert hazards("KLG505", **params, versions={"vllm": "0.8.5"})
    assert hazards("KLG505", **params, versions={"vllm": "0.11.0"}) == []


def test_a_wrong_value_on_some_path_is_a_warning(hazards):
    (hazard,) = hazards("KLG505", do_sample=True, top_k=OneOf((Known(-1), Known(0))))
    assert hazard.severity is Severity.WARNING and hazard.message.startswith(
        "`top_k` may be -1, which is wrong"
    )


def test_a_placeholder_beside_an_unknown_value_is_nothing(hazards):
    """It would have stopped the program: the value in use is the one that is not seen."""
    placeholder = OneOf((Known(-1), Unknown(Reason.RUNTIME, "set elsewhere")))
    assert hazards("KLG505", "vllm", SiteKind.SAMPLING_PARAMS, max_tokens=placeholder) == []


def test_a_value_for_vllm_is_right_where_the_command_line_chooses_the_engine(hazards):
    switch = Known(False, (Hop(HopKind.ARGPARSE, None, "default of --use_vllm"),))
    assert hazards("KLG505", **GRPO, generation_kwargs={"top_k": -1}, use_vllm=switch) == []
    assert hazards("KLG505", **GRPO, generation_kwargs={"top_k": -1})


def test_a_value_that_is_misread_says_what_that_does_to_the_kl(hazards):
    (hazard,) = hazards("KLG505", do_sample=True, top_p=0.0)
    assert "it keeps one token" in hazard.message and "what is sampled is not the policy" in hazard.message


def test_right_values_and_unknown_ones_are_nothing(hazards):
    assert hazards("KLG505", **NEUTRAL) == []
    assert hazards("KLG505", do_sample=True, top_k=Unknown(Reason.RUNTIME, "k")) == []


# KLG506


@pytest.mark.parametrize(("version", "names"), [("0.14.0", {"top_k", "temperature"}), ("0.16.1", {"top_k"})])
def test_unsafe_defaults_of_a_trainer_are_errors(hazards, version, names):
    versions = {"trl": version, "transformers": "4.49.0"}
    found = hazards("KLG506", **GRPO, output_dir="out", versions=versions)
    assert {hazard.setting for hazard in found} == names
    assert {hazard.severity for hazard in found} == {Severity.ERROR}
    assert hazards("KLG101", **GRPO, output_dir="out", versions=versions) == []
    assert hazards("KLG106", **GRPO, output_dir="out", versions=versions) == []


def test_a_default_is_called_one(hazards):
    versions = {"trl": "0.16.1", "transformers": "4.49.0"}
    (hazard,) = hazards("KLG506", **GRPO, output_dir="out", versions=versions)
    assert hazard.message.startswith(
        "`top_k=50`, the default of trl 0.16.1, keeps only the 50 likeliest tokens"
    )


@pytest.mark.parametrize("name", ["GRPOConfig", "RLOOConfig", "OnlineDPOConfig", "PPOConfig"])
def test_the_defaults_of_today_are_safe(hazards, name):
    site = {"engine": "trl", "kind": SiteKind.TRAINER_CONFIG, "class_name": f"trl.{name}"}
    assert hazards("KLG506", **site, output_dir="out") == []


def test_online_dpo_kept_the_50_likeliest_for_a_while(hazards):
    site = {"engine": "trl", "kind": SiteKind.TRAINER_CONFIG, "class_name": "trl.OnlineDPOConfig"}
    (hazard,) = hazards(
        "KLG506", **site, output_dir="out", versions={"trl": "0.20.0", "transformers": "4.55.0"}
    )
    assert (hazard.setting, hazard.severity) == ("top_k", Severity.WARNING)


def test_a_value_that_is_written_is_no_default(hazards):
    versions = {"trl": "0.16.1", "transformers": "4.49.0"}
    assert hazards("KLG506", **GRPO, top_k=20, versions=versions) == []


# KLG003


def test_settings_that_cannot_be_followed_are_one_note(hazards):
    args = Unknown(Reason.PARAMETER, "args.temperature")
    (hazard,) = hazards("KLG003", **RECOMMENDED, temperature=args)
    assert (hazard.severity, hazard.confidence) == (Severity.NOTE, Confidence.LOW)
    assert hazard.message == (
        "settings come from somewhere that cannot be followed: `temperature` (args.temperature: a parameter "
        "with no visible caller)"
    )
    assert hazard.values == (args,)


def test_an_unseen_splat_is_named_once_for_all_settings(hazards):
    (hazard,) = hazards("KLG003", max_new_tokens=32, rest=Unknown(Reason.INVISIBLE_CALL, "load()"))
    assert hazard.message.count("load()") == 1 and " more (load(): " in hazard.message


def test_of_many_trails_those_of_the_settings_that_matter_most_are_named(hazards):
    names = ["typical_p", "eta_cutoff", "epsilon_cutoff", "min_p", "top_p", "temperature"]
    (hazard,) = hazards("KLG003", do_sample=True, **{n: Unknown(Reason.RUNTIME, f"args.{n}") for n in names})
    assert hazard.message.index("`temperature`") < hazard.message.index("`top_p`")
    assert hazard.message.count("args.") == 4 and hazard.message.endswith("; and 2 more")
    assert len(hazard.values) == 6


def test_a_long_expression_is_shortened(hazards):
    (hazard,) = hazards("KLG003", do_sample=True, top_k=Unknown(Reason.RUNTIME, "f(" + "x, " * 50 + ")"))
    assert len(hazard.message) < 200 and "...: known only at run time" in hazard.message


def test_what_cannot_bend_the_distribution_need_not_be_known(hazards):
    pad = Unknown(Reason.RUNTIME, "tokenizer.pad_token_id")
    assert hazards("KLG003", **NEUTRAL, pad_token_id=pad, num_return_sequences=pad) == []


def test_an_unknown_temperature_does_not_matter_to_greedy_search(hazards):
    assert hazards("KLG003", do_sample=False, temperature=Unknown(Reason.RUNTIME, "t")) == []
