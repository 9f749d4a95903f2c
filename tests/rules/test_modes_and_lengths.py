"""KLG2xx and KLG3xx: how a rollout is decoded, where it ends, how it is padded."""

from __future__ import annotations

import pytest

from klguard.findings import Confidence, Severity
from klguard.settings import Absent, Hop, HopKind, Known, Layer, LayerKind, OneOf, Reason, SiteKind, Unknown

SAMPLE = {"do_sample": True, "top_k": 0, "max_new_tokens": 32}
PARAMS = {"engine": "vllm", "kind": SiteKind.SAMPLING_PARAMS}
BATCH = {"batched": True}

# KLG201


def test_sampling_is_not_greedy(hazards):
    assert hazards("KLG201", **SAMPLE) == []


def test_do_sample_left_out_is_greedy_or_as_an_unseen_checkpoint_says(hazards):
    (hazard,) = hazards("KLG201", max_new_tokens=32)
    assert (hazard.severity, hazard.confidence) == (Severity.WARNING, Confidence.MEDIUM)
    assert hazard.message.startswith(
        "`do_sample` is left out, and transformers 5.23.0 then takes the likeliest token at every step, unless "
        "the checkpoint, which is not known here, says to sample and how: either way "
    )


def test_do_sample_left_out_is_greedy_over_a_checkpoint_that_says_nothing(hazards):
    kwargs = Layer(LayerKind.KWARGS, {"max_new_tokens": Known(32)})
    (hazard,) = hazards("KLG201", layers=(kwargs, Layer(LayerKind.CHECKPOINT, {})))
    assert (hazard.severity, hazard.confidence) == (Severity.ERROR, Confidence.HIGH)
    assert hazard.message.startswith(
        "`do_sample` is left out, and transformers 5.23.0 then takes the likeliest token at every step: "
    )
    assert hazard.help == "pass `do_sample=True`, with `top_k=0` so that nothing is cut off"


@pytest.mark.parametrize("off", [False, 0, None])
def test_do_sample_written_off_is_greedy(hazards, off):
    (hazard,) = hazards("KLG201", do_sample=off)
    assert hazard.message.startswith(f"`do_sample={off}` takes the likeliest token")


def test_do_sample_off_on_some_path_is_a_warning(hazards):
    (hazard,) = hazards("KLG201", do_sample=OneOf((Known(True), Known(False))))
    assert hazard.severity is Severity.WARNING and hazard.message.startswith(
        "`do_sample` may be False, which"
    )
    (hazard,) = hazards("KLG201", do_sample=OneOf((Known(True), Absent())))
    assert hazard.severity is Severity.WARNING and hazard.message.startswith("`do_sample` may be left out")


def test_a_do_sample_that_is_not_known_is_nothing(hazards):
    assert hazards("KLG201", do_sample=Unknown(Reason.PARAMETER, "do_sample")) == []
    assert hazards("KLG201", max_new_tokens=32, rest=Unknown(Reason.INVISIBLE_CALL, "load()")) == []


def test_an_engine_that_always_samples_is_not_greedy(hazards):
    assert hazards("KLG201", **PARAMS) == []
    assert hazards("KLG201", "trl", SiteKind.TRAINER_CONFIG, class_name="trl.GRPOConfig") == []


def test_a_sampler_of_the_project_is_not_greedy_by_default(hazards):
    assert hazards("KLG201", "local", max_new_tokens=32) == []
    assert hazards("KLG201", "local", do_sample=False)


@pytest.mark.parametrize("zero", [0, 0.0, 1e-6])
def test_temperature_0_is_greedy_in_vllm(hazards, zero):
    (hazard,) = hazards("KLG201", **PARAMS, temperature=zero)
    assert hazard.setting == "temperature" and hazard.severity is Severity.ERROR


def test_temperature_0_on_some_path_is_a_warning(hazards):
    (hazard,) = hazards("KLG201", **PARAMS, temperature=OneOf((Known(0), Known(1.0))))
    assert hazard.severity is Severity.WARNING and hazard.message.startswith("`temperature` may be 0, which")


def test_temperature_0_of_a_sampler_in_transformers_is_left_to_klg505(hazards):
    assert hazards("KLG201", do_sample=True, temperature=0.0) == []
    assert hazards("KLG505", do_sample=True, temperature=0.0)


def test_temperature_0_without_sampling_is_one_finding(hazards):
    assert [hazard.setting for hazard in hazards("KLG201", do_sample=False, temperature=0.0)] == ["do_sample"]
    assert hazards("KLG505", do_sample=False, temperature=0.0) == []


def test_a_configuration_without_do_sample_may_be_completed_at_the_call(hazards):
    assert hazards("KLG201", kind=SiteKind.GENERATION_CONFIG, max_new_tokens=32) == []
    assert hazards("KLG201", kind=SiteKind.GENERATION_CONFIG, do_sample=False)


def test_beams_without_sampling_are_a_search(hazards):
    (hazard,) = hazards("KLG201", num_beams=4)
    assert "then searches instead of drawing" in hazard.message


# KLG303


@pytest.mark.parametrize("eos", [None, -1, 100_000, [-1, 100_000]])
def test_an_end_of_sequence_that_cannot_be_drawn_is_a_note(hazards, eos):
    (hazard,) = hazards("KLG303", **SAMPLE, eos_token_id=eos)
    assert hazard.severity is Severity.NOTE and "no bias by itself" in hazard.message


@pytest.mark.parametrize("eos", [2, [2, -1], 128_001, Unknown(Reason.RUNTIME, "tokenizer.eos_token_id")])
def test_an_end_of_sequence_that_can_be_drawn_is_nothing(hazards, eos):
    assert hazards("KLG303", **SAMPLE, eos_token_id=eos) == []


def test_an_end_of_sequence_nobody_wrote_is_nothing(hazards):
    assert hazards("KLG303", **SAMPLE) == []


def test_ignore_eos_is_a_note(hazards):
    (hazard,) = hazards("KLG303", **PARAMS, ignore_eos=True)
    assert hazard.severity is Severity.NOTE and hazard.setting == "ignore_eos"
    assert hazards("KLG303", **PARAMS, ignore_eos=False) == []


# KLG304


def test_a_call_without_a_length_stops_after_20_tokens(hazards):
    (hazard,) = hazards("KLG304", do_sample=True)
    assert hazard.severity is Severity.WARNING and "20 tokens" in hazard.message


@pytest.mark.parametrize("name", ["max_new_tokens", "max_length"])
@pytest.mark.parametrize("value", [32, Unknown(Reason.RUNTIME, "n"), OneOf((Known(32), Absent()))])
def test_a_call_with_a_length_is_nothing(hazards, name, value):
    assert hazards("KLG304", do_sample=True, **{name: value}) == []


def test_a_length_in_the_object_or_in_an_unseen_splat_is_a_length(hazards):
    layer = Layer(LayerKind.OBJECT, {"max_new_tokens": Known(32)})
    assert hazards("KLG304", do_sample=True, layers=(layer,)) == []
    assert hazards("KLG304", do_sample=True, rest=Unknown(Reason.INVISIBLE_CALL, "load()")) == []


def test_trls_length_sampler_is_a_length(hazards):
    sampler = Unknown(Reason.RUNTIME, "sampler")
    assert hazards("KLG304", "trl", do_sample=True, length_sampler=sampler) == []
    assert hazards("KLG304", "transformers", do_sample=True, length_sampler=sampler) == []


def test_only_a_call_has_an_implicit_length(hazards):
    assert hazards("KLG304", kind=SiteKind.GENERATION_CONFIG, do_sample=True) == []
    assert hazards("KLG304", **PARAMS) == []


# KLG305, KLG306, KLG307, KLG309


def test_a_batch_without_a_padding_token_is_a_warning(hazards):
    (hazard,) = hazards("KLG305", **SAMPLE, facts=BATCH)
    assert hazard.severity is Severity.WARNING and hazard.setting == "pad_token_id"
    assert hazards("KLG305", **SAMPLE, pad_token_id=None, facts=BATCH)


def test_a_padding_token_or_a_single_prompt_is_nothing(hazards):
    assert hazards("KLG305", **SAMPLE, pad_token_id=0, facts=BATCH) == []
    assert hazards("KLG305", **SAMPLE, pad_token_id=Unknown(Reason.RUNTIME, "tok.pad"), facts=BATCH) == []
    assert hazards("KLG305", **SAMPLE) == []
    assert hazards("KLG305", **SAMPLE, facts={"batched": False}) == []


def test_a_trainer_that_pads_by_itself_needs_no_padding_token(hazards):
    by_trainer = Known(True, (Hop(HopKind.KWARG, None, "trl pads a list of prompts"),))
    assert hazards("KLG305", **SAMPLE, facts={"batched": by_trainer, "attention_mask": by_trainer}) == []
    assert hazards("KLG305", **SAMPLE, facts={"batched": by_trainer, "attention_mask": True})


@pytest.mark.parametrize(
    ("encoder_decoder", "side", "severity"),
    [
        (False, "right", Severity.ERROR),
        (False, "left", None),
        (True, "left", Severity.WARNING),
        (True, "right", None),
    ],
)
def test_the_side_of_the_padding_depends_on_the_model(hazards, encoder_decoder, side, severity):
    facts = {**BATCH, "encoder_decoder": encoder_decoder, "padding_side": side}
    assert [h.severity for h in hazards("KLG306", **SAMPLE, facts=facts)] == ([severity] if severity else [])


def test_padding_of_a_model_that_is_not_known_or_of_one_prompt_is_nothing(hazards):
    assert hazards("KLG306", **SAMPLE, facts={**BATCH, "padding_side": "right"}) == []
    assert hazards("KLG306", **SAMPLE, facts={"encoder_decoder": False, "padding_side": "right"}) == []
    assert hazards("KLG306", **SAMPLE, facts={**BATCH, "encoder_decoder": False}) == []


def test_a_batch_that_visibly_has_no_mask_is_a_warning(hazards):
    (hazard,) = hazards("KLG307", **SAMPLE, facts={**BATCH, "attention_mask": False})
    assert hazard.severity is Severity.WARNING


@pytest.mark.parametrize("facts", [{**BATCH, "attention_mask": True}, BATCH, {"attention_mask": False}])
def test_a_mask_or_one_prompt_or_a_mask_that_cannot_be_seen_is_nothing(hazards, facts):
    assert hazards("KLG307", **SAMPLE, facts=facts) == []


def test_a_mask_that_drops_the_end_of_sequence_is_a_warning(hazards):
    (hazard,) = hazards("KLG309", **SAMPLE, facts={"pad_is_eos_mask": True})
    assert hazard.severity is Severity.WARNING
    assert hazards("KLG309", **SAMPLE) == []
