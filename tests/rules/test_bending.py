"""Rules about one setting at a time: on, off, perhaps on, not known, not listened to; whose value it is."""

from __future__ import annotations

import pytest

from klguard.findings import Confidence, Severity
from klguard.settings import (
    Absent,
    Default,
    Hop,
    HopKind,
    Known,
    Layer,
    LayerKind,
    OneOf,
    Opaque,
    Place,
    Reason,
    SiteKind,
    Unknown,
)

SAMPLE = {"do_sample": True, "top_k": 0, "max_new_tokens": 32}
PARAMS = {"engine": "vllm", "kind": SiteKind.SAMPLING_PARAMS}
SGLANG = {"engine": "sglang", "kind": SiteKind.SAMPLING_PARAMS}
GRPO = {"engine": "trl", "kind": SiteKind.TRAINER_CONFIG, "class_name": "trl.GRPOConfig", "beta": 0.04}
GUIDANCE = Opaque("GuidedDecodingParams(regex=r)", "vllm.sampling_params.GuidedDecodingParams")
BUILT_IN = Opaque("LogitsProcessorList([TopKLogitsWarper(50)])", "transformers.LogitsProcessorList")
OWN = Opaque("LogitsProcessorList([NoDigits()])", "transformers.LogitsProcessorList")

# code, setting, a value that is on, a value that is off, the rest of the site
CASES = [
    ("KLG101", "top_k", 50, 0, SAMPLE),
    ("KLG101", "top_k", 1, None, SAMPLE),
    ("KLG101", "top_k", 20, -1, PARAMS),
    ("KLG101", "top_k", 20, 0, PARAMS),
    ("KLG101", "top_k", 20, -1, SGLANG),
    ("KLG101", "top_k", 50, 0, GRPO),
    ("KLG103", "top_p", 0.9, 1.0, SAMPLE),
    ("KLG103", "top_p", 0.99, 1, PARAMS),
    ("KLG103", "top_p", 0.95, 1.0, GRPO),
    ("KLG104", "min_p", 0.05, None, SAMPLE),
    ("KLG104", "min_p", 0.05, 0.0, SAMPLE),
    ("KLG104", "min_p", 0.1, 0.0, PARAMS),
    ("KLG105", "typical_p", 0.95, 1.0, SAMPLE),
    ("KLG105", "epsilon_cutoff", 3e-4, 0.0, SAMPLE),
    ("KLG105", "eta_cutoff", 2e-3, 0.0, SAMPLE),
    ("KLG105", "top_h", 0.4, None, SAMPLE),
    ("KLG106", "temperature", 0.7, 1.0, SAMPLE),
    ("KLG106", "temperature", 1.3, 1, SAMPLE),
    ("KLG106", "temperature", 0.6, 1.0, PARAMS),
    ("KLG107", "repetition_penalty", 1.2, 1.0, SAMPLE),
    ("KLG107", "encoder_repetition_penalty", 1.2, 1.0, SAMPLE),
    ("KLG107", "repetition_penalty", 1.05, 1.0, GRPO),
    ("KLG107", "presence_penalty", 0.5, 0.0, PARAMS),
    ("KLG107", "frequency_penalty", -0.5, 0.0, SGLANG),
    ("KLG108", "no_repeat_ngram_size", 3, 0, SAMPLE),
    ("KLG108", "encoder_no_repeat_ngram_size", 3, None, SAMPLE),
    ("KLG109", "bad_words_ids", [[3]], None, SAMPLE),
    ("KLG109", "suppress_tokens", [3], [], SAMPLE),
    ("KLG109", "begin_suppress_tokens", [3], None, SAMPLE),
    ("KLG109", "sequence_bias", {(3,): -1.0}, None, SAMPLE),
    ("KLG109", "logit_bias", {3: -100}, {}, PARAMS),
    ("KLG109", "allowed_token_ids", [3, 4], None, PARAMS),
    ("KLG109", "bad_words", ["no"], None, PARAMS),
    ("KLG110", "forced_bos_token_id", 2, None, SAMPLE),
    ("KLG110", "forced_eos_token_id", 2, None, SAMPLE),
    ("KLG111", "logits_processor", BUILT_IN, None, SAMPLE),
    ("KLG111", "logits_processor", BUILT_IN, Opaque("LogitsProcessorList()"), SAMPLE),
    ("KLG111", "guidance_scale", 1.5, 1, SAMPLE),
    ("KLG111", "prefix_allowed_tokens_fn", Opaque("allowed"), None, SAMPLE),
    ("KLG111", "watermarking_config", Opaque("WatermarkingConfig()"), None, SAMPLE),
    ("KLG111", "structured_outputs", GUIDANCE, None, PARAMS),
    ("KLG111", "regex", "[0-9]+", None, SGLANG),
    ("KLG202", "num_beams", 4, 1, SAMPLE),
    ("KLG202", "num_beam_groups", 2, 1, SAMPLE),
    ("KLG202", "use_beam_search", True, False, PARAMS),
    ("KLG202", "best_of", 8, 1, PARAMS),
    ("KLG203", "penalty_alpha", 0.6, 0, {"top_k": 4}),
    ("KLG203", "dola_layers", "high", None, SAMPLE),
    ("KLG301", "min_length", 48, -1, SAMPLE),
    ("KLG301", "min_length", 48, 0, SAMPLE),
    ("KLG302", "min_new_tokens", 16, None, SAMPLE),
    ("KLG302", "min_new_tokens", 16, 0, SGLANG),
    ("KLG302", "min_tokens", 1, 0, PARAMS),
    ("KLG308", "exponential_decay_length_penalty", (16, 1.05), None, SAMPLE),
]

each_case = pytest.mark.parametrize(
    ("code", "name", "on", "off", "site"), CASES, ids=lambda v: v if isinstance(v, str) else ""
)


def with_value(site, name, value):
    return {**site, name: value}


@each_case
def test_a_value_that_is_on_is_an_error(hazards, code, name, on, off, site):
    (hazard,) = hazards(code, **with_value(site, name, on))
    assert (hazard.severity, hazard.confidence) == (Severity.ERROR, Confidence.HIGH)
    assert (hazard.setting, hazard.values) == (name, (Known(on),))
    assert f"`{name}=" in hazard.message and ": " in hazard.message and not hazard.message.endswith(".")
    assert hazard.help


@each_case
def test_a_value_that_is_off_is_nothing(hazards, code, name, on, off, site):
    assert hazards(code, **with_value(site, name, off)) == []


@each_case
def test_a_value_that_is_on_on_some_path_is_a_warning(hazards, code, name, on, off, site):
    (hazard,) = hazards(code, **with_value(site, name, OneOf((Known(on), Known(off)))))
    assert (hazard.severity, hazard.confidence) == (Severity.WARNING, Confidence.MEDIUM)
    assert hazard.values == (Known(on),) and f"`{name}` may be " in hazard.message


@each_case
def test_a_value_that_is_not_known_is_nothing(hazards, code, name, on, off, site):
    assert hazards(code, **with_value(site, name, Unknown(Reason.RUNTIME, "args.x"))) == []


def test_two_values_that_are_both_on_are_an_error_that_names_both(hazards):
    (hazard,) = hazards("KLG101", do_sample=True, top_k=OneOf((Known(20), Known(50))))
    assert hazard.severity is Severity.ERROR
    assert hazard.message.startswith("`top_k` is 20 or 50, which keeps only the 20 or 50 likeliest tokens: ")


def test_the_message_says_what_is_wrong_and_what_it_does_to_the_kl(hazards):
    (hazard,) = hazards("KLG101", do_sample=True, top_k=50)
    assert hazard.message == (
        "`top_k=50` keeps only the 50 likeliest tokens: what is sampled is not the policy, and the KL "
        "estimate can fall below zero for free"
    )
    assert hazard.help == "write `top_k=0`, which is off in transformers 5.23.0"
    assert hazard.safe == "0"


@pytest.mark.parametrize(("engine", "off"), [("transformers", "0"), ("vllm", "-1"), ("sglang", "-1")])
def test_help_writes_the_off_value_of_the_engine(hazards, engine, off):
    kind = SiteKind.GENERATE if engine == "transformers" else SiteKind.SAMPLING_PARAMS
    written = {"do_sample": True} if engine == "transformers" else {}
    (hazard,) = hazards("KLG101", engine, kind, top_k=20, **written)
    assert hazard.safe == off and f"`top_k={off}`" in hazard.help and engine in hazard.help


# what is not listened to


@pytest.mark.parametrize(
    ("code", "name", "on"),
    [
        ("KLG101", "top_k", 50),
        ("KLG103", "top_p", 0.9),
        ("KLG106", "temperature", 0.7),
        ("KLG105", "typical_p", 0.9),
    ],
)
def test_greedy_search_does_not_listen_to_what_shapes_sampling(hazards, code, name, on):
    assert hazards(code, do_sample=False, **{name: on}) == []
    assert hazards(code, **{name: on}) == []


def test_greedy_search_listens_to_penalties(hazards):
    assert hazards("KLG107", do_sample=False, repetition_penalty=1.2)
    assert hazards("KLG301", do_sample=False, min_length=8)


def test_what_shapes_sampling_is_a_warning_where_it_is_not_certain_that_tokens_are_drawn(hazards):
    (hazard,) = hazards("KLG101", do_sample=OneOf((Known(True), Known(False))), top_k=50)
    assert (hazard.severity, hazard.confidence) == (Severity.WARNING, Confidence.MEDIUM)
    assert hazard.message.startswith("`top_k=50` keeps") and "wherever tokens are drawn" in hazard.message


def test_vllm_at_temperature_0_does_not_listen_to_top_k(hazards):
    assert hazards("KLG101", **PARAMS, temperature=0, top_k=20) == []


def test_a_temperature_of_0_is_not_a_temperature(hazards):
    assert hazards("KLG106", **PARAMS, temperature=0.0) == []


def test_a_value_the_engine_rejects_is_left_to_klg505(hazards):
    assert hazards("KLG101", do_sample=True, top_k=-1) == []
    assert hazards("KLG103", do_sample=True, top_k=0, top_p=0.0) == []


def test_contrastive_search_needs_several_candidates_and_no_sampling(hazards):
    assert hazards("KLG203", penalty_alpha=0.6, top_k=1) == []
    assert hazards("KLG203", do_sample=True, penalty_alpha=0.6, top_k=4) == []


@pytest.mark.parametrize("eos", [None, -1, 100_000, [-1]])
@pytest.mark.parametrize(("code", "name"), [("KLG301", "min_length"), ("KLG302", "min_new_tokens")])
def test_a_minimum_does_nothing_where_no_end_of_sequence_can_be_drawn(hazards, code, name, eos):
    assert hazards(code, **SAMPLE, eos_token_id=eos, **{name: 16}) == []


def test_best_of_as_many_as_are_returned_selects_nothing(hazards):
    assert hazards("KLG202", **PARAMS, n=4, best_of=4) == []
    assert hazards("KLG202", **PARAMS, n=Unknown(Reason.RUNTIME, "n"), best_of=4) == []


def test_a_processor_of_the_projects_own_is_a_warning(hazards):
    (hazard,) = hazards("KLG111", **SAMPLE, logits_processor=OWN)
    assert (hazard.severity, hazard.confidence) == (Severity.WARNING, Confidence.HIGH)


# mitigations, and trainers without a KL


def test_a_temperature_that_is_divided_out_is_nothing(hazards):
    divided = {"temperature": "the loop divides the logits by the same temperature"}
    assert hazards("KLG106", **SAMPLE, temperature=0.7, mitigations=divided) == []


def test_the_trainers_that_divide_are_not_reported(hazards):
    assert hazards("KLG106", **GRPO, temperature=0.7) == []
    assert (
        hazards("KLG106", "trl", SiteKind.TRAINER_CONFIG, class_name="trl.experimental.ppo.PPOConfig") == []
    )


def test_grpo_before_0_16_does_not_divide(hazards):
    old = {"trl": "0.15.2", "transformers": "4.49.0"}
    (hazard,) = hazards("KLG106", **GRPO, temperature=0.7, versions=old)
    assert hazard.severity is Severity.ERROR


def test_a_filter_that_is_replayed_leaves_the_kl_term(hazards):
    (hazard,) = hazards(
        "KLG101", do_sample=True, top_k=50, mitigations={"top_k": "the trainer replays the same filter"}
    )
    assert hazard.severity is Severity.WARNING
    assert "the trainer replays the same filter, so the ratio is right, but the KL term" in hazard.message


@pytest.mark.parametrize("beta", [0.0, Default(0.0, "trl")])
def test_without_a_kl_term_it_is_a_warning_that_says_so(hazards, beta):
    (hazard,) = hazards("KLG101", **{**GRPO, "beta": beta}, top_k=50)
    assert hazard.severity is Severity.WARNING and "there is no KL term" in hazard.message


def test_a_loop_without_a_kl_term_is_a_warning(hazards):
    (hazard,) = hazards("KLG103", **SAMPLE, top_p=0.9, facts={"kl_term": False})
    assert hazard.severity is Severity.WARNING and "there is no KL term" in hazard.message


def test_online_dpo_is_a_warning_about_the_logged_kl(hazards):
    (hazard,) = hazards("KLG101", "trl", SiteKind.TRAINER_CONFIG, class_name="trl.OnlineDPOConfig", top_k=20)
    assert hazard.severity is Severity.WARNING and "logged" in hazard.message


def test_a_trainer_is_judged_at_its_config(hazards):
    assert hazards("KLG101", **{**GRPO, "kind": SiteKind.TRAINER}, top_k=50) == []


# whose value it is


def hop(kind: HopKind, path: str = "train.py") -> Hop:
    return Hop(kind, Place(path, None, 1, 1, 1, 5), "text")


def test_what_a_checkpoint_brings_is_left_to_klg501(hazards):
    brought = Known(0.7, (hop(HopKind.CHECKPOINT),))
    assert hazards("KLG106", **SAMPLE, temperature=brought) == []


def test_the_written_part_of_a_mixed_value_is_reported(hazards):
    mixed = OneOf((Known(0.7, (hop(HopKind.CHECKPOINT),)), Known(0.9)))
    (hazard,) = hazards("KLG106", **SAMPLE, temperature=mixed)
    assert hazard.values == (Known(0.9),)


def test_a_value_from_a_file_is_reported_with_the_files_name(hazards):
    (hazard,) = hazards("KLG103", **SAMPLE, top_p=Known(0.9, (hop(HopKind.DOCUMENT, "conf/ppo.yaml"),)))
    assert hazard.message.startswith("`top_p=0.9`, from ppo.yaml, cuts off")


def test_the_default_of_a_command_line_option_is_called_that(hazards):
    value = Known(0.9, (hop(HopKind.LITERAL), hop(HopKind.ARGPARSE)))
    (hazard,) = hazards("KLG103", **SAMPLE, top_p=value)
    assert "the default of a command-line option" in hazard.message


def test_a_setting_of_a_generation_config_is_reported_at_the_object(hazards):
    assert hazards("KLG101", kind=SiteKind.GENERATION_CONFIG, do_sample=True, top_k=20)


def test_a_setting_of_an_object_is_reported_at_the_call(hazards):
    layer = Layer(LayerKind.OBJECT, {"do_sample": Known(True), "top_k": Known(20)})
    assert hazards("KLG101", max_new_tokens=32, layers=(layer,))


# KLG102


def test_sampling_without_top_k_means_50(hazards):
    (hazard,) = hazards("KLG102", do_sample=True, max_new_tokens=32)
    assert hazard.severity is Severity.ERROR
    assert hazard.message.startswith(
        "`top_k` is left alone, and transformers 5.23.0 then keeps only the 50 likeliest tokens: "
    )
    assert hazard.help == "pass `top_k=0`, which is off in transformers 5.23.0"


@pytest.mark.parametrize("top_k", [0, 50, None, Unknown(Reason.RUNTIME, "k")])
def test_a_top_k_that_is_passed_is_not_implicit(hazards, top_k):
    assert hazards("KLG102", do_sample=True, top_k=top_k) == []


def test_greedy_search_has_no_implicit_top_k(hazards):
    assert hazards("KLG102", max_new_tokens=32) == []


def test_a_top_k_that_is_left_out_on_some_path_is_a_warning(hazards):
    (hazard,) = hazards("KLG102", do_sample=True, top_k=OneOf((Known(0), Absent())))
    assert hazard.severity is Severity.WARNING and hazard.message.startswith("`top_k` may be left alone")


def test_a_configuration_that_samples_has_an_implicit_top_k(hazards):
    assert hazards("KLG102", kind=SiteKind.GENERATION_CONFIG, do_sample=True)
    assert hazards("KLG102", kind=SiteKind.GENERATION_CONFIG, max_new_tokens=32) == []


def test_vllm_has_no_implicit_top_k(hazards):
    assert hazards("KLG102", **PARAMS, temperature=1.0) == []


def test_trlx_leaves_top_k_to_transformers(hazards):
    trlx = {
        "engine": "trlx",
        "kind": SiteKind.TRAINER_CONFIG,
        "class_name": "trlx.models.modeling_ppo.PPOConfig",
    }
    assert hazards("KLG102", **trlx, gen_kwargs={"max_new_tokens": 50})
    assert hazards("KLG102", **trlx, gen_kwargs={"max_new_tokens": 50, "top_k": 0}) == []


def test_the_guidance_of_a_home_made_sampler_may_be_that_of_images(hazards):
    assert hazards("KLG111", "local", guidance_scale=4.0) == []
    assert hazards("KLG111", do_sample=True, guidance_scale=4.0)


@pytest.mark.parametrize("engine", ["transformers", "vllm", "sglang", "local"])
def test_a_guard_against_division_by_zero_is_no_temperature(hazards, engine):
    kind = SiteKind.SAMPLING_PARAMS if engine in ("vllm", "sglang") else SiteKind.GENERATE
    assert hazards("KLG106", engine, kind, do_sample=True, temperature=1.0 + 1e-7) == []
    assert hazards("KLG106", engine, kind, do_sample=True, temperature=1.001)


def test_a_number_that_is_an_object_is_a_number_nobody_knows(hazards):
    assert hazards("KLG106", do_sample=True, temperature=Opaque("schedule", "object")) == []
    assert hazards("KLG111", do_sample=True, logits_processor=Opaque("[mask]", "object"))


def test_minus_one_is_off_in_a_sampler_of_unknown_make(hazards):
    assert hazards("KLG101", "local", top_k=-1) == []
    assert hazards("KLG101", "local", top_k=20)
