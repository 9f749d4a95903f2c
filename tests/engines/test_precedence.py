"""transformers: kwargs, object, checkpoint and library, in the three ways that versions weigh them.

The expectations are what the libraries did when they were asked (`_prepare_generation_config`).
"""

import pytest

from klguard.engines import ENGINES
from klguard.settings import (
    Absent,
    Default,
    Known,
    Layer,
    LayerKind,
    OneOf,
    Reason,
    SiteKind,
    Unknown,
    members,
)

ENGINE = ENGINES["transformers"]
CHECKPOINT = {
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.95,
    "top_k": 20,
    "repetition_penalty": 1.05,
}
OLD, FALLS_BACK, NEW = "4.49.0", "4.57.6", "5.23.0"


def known(values) -> dict:
    return {n: v if isinstance(v, Known | OneOf | Absent | Unknown) else Known(v) for n, v in values.items()}


def resolve(version, kwargs=None, given=None, checkpoint=None, saved_with="4.57.3", kind=SiteKind.GENERATE):
    layers = [Layer(LayerKind.KWARGS, known(kwargs or {}))]
    if given is not None:
        layers.append(Layer(LayerKind.OBJECT, known(given)))
    if checkpoint is not None:
        layers.append(Layer(LayerKind.CHECKPOINT, known(checkpoint), version=saved_with))
    return ENGINE.resolve(layers, {"transformers": version}, kind=kind)


def bent(resolved) -> dict:
    """The settings that bend the distribution, by name."""
    values = resolved.values
    return {
        name: member.value
        for name, value in values.items()
        for member in members(value)
        if ENGINE.active(name, values) and not ENGINE.is_off(name, member.value, {})
    }


R, T, P, K = ({n: CHECKPOINT[n]} for n in ("repetition_penalty", "temperature", "top_p", "top_k"))
GREEDY = {"do_sample": False}
NEUTRAL = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
NEUTRAL_OBJECT = {**NEUTRAL, "repetition_penalty": 1.0}

MATRIX = [
    # kwargs, object; in 4.49 or with a checkpoint saved before 4.50; in 4.57 with a newer one; in 5.x
    ({}, None, R | T | K | P, R | T | K | P, R | T | K | P),
    (NEUTRAL, None, R, R, R),
    ({}, {"do_sample": True}, {"top_k": 50}, R | T | K | P, R | T | K | P),
    ({}, NEUTRAL_OBJECT, {}, R | T | P, {}),
    ({}, {**NEUTRAL_OBJECT, "top_k": None}, {}, R | T | P, K),
    (
        {},
        {**NEUTRAL, "temperature": 0.9},
        {"temperature": 0.9},
        R | {"temperature": 0.9} | P,
        R | {"temperature": 0.9},
    ),
    ({}, {"do_sample": False}, GREEDY, R | T | K | P, GREEDY | R),
]


@pytest.mark.parametrize(("kwargs", "given", "replaced", "overwritten", "filled"), MATRIX)
def test_the_executed_matrix(kwargs, given, replaced, overwritten, filled):
    assert bent(resolve(OLD, kwargs, given, CHECKPOINT)) == replaced
    assert bent(resolve(FALLS_BACK, kwargs, given, CHECKPOINT, "4.46.0")) == replaced
    assert bent(resolve(FALLS_BACK, kwargs, given, CHECKPOINT, "4.50.0.dev0")) == overwritten
    assert bent(resolve(NEW, kwargs, given, CHECKPOINT)) == filled


@pytest.mark.parametrize("version", [OLD, FALLS_BACK, NEW, "4.30.2", "5.0.0rc1"])
def test_keyword_arguments_win_everywhere(version):
    resolved = resolve(version, {"top_k": 0}, {"top_k": 5}, {"top_k": 20})
    assert resolved.values["top_k"] == Known(0)


@pytest.mark.parametrize("version", [OLD, FALLS_BACK, NEW])
def test_sampling_alone_keeps_fifty_tokens(version):
    value = resolve(version, {"do_sample": True}).values["top_k"]
    assert isinstance(value, Default) and value.value == 50 and value.library == "transformers"


@pytest.mark.parametrize("version", [OLD, FALLS_BACK, NEW])
def test_none_as_a_keyword_argument_is_none(version):
    assert resolve(version, {"top_k": None}, checkpoint=CHECKPOINT).values["top_k"] == Known(None)


def test_none_in_an_object_is_unset_from_5_on_and_the_facts_say_so():
    resolved = resolve(NEW, given={"top_k": None, "top_p": None}, checkpoint={"top_k": 20})
    assert resolved.values["top_k"] == Known(20)
    assert resolved.facts["none_means_unset"] == {"top_k": 20, "top_p": 1.0}
    assert resolve(NEW, given={"top_k": None}).facts["none_means_unset"] == {"top_k": 50}
    assert not resolve(OLD, given={"top_k": None}).facts
    assert not resolve(NEW, {"top_k": 0}, {"top_k": None}).facts


def test_none_is_no_news_where_the_default_is_none():
    assert not resolve(NEW, given={"min_p": None}).facts


def test_what_a_checkpoint_overwrote_is_told():
    given = {"temperature": 1.0, "do_sample": False, "top_k": 0}
    resolved = resolve(FALLS_BACK, given=given, checkpoint=CHECKPOINT)
    assert resolved.facts["overwritten"] == {"temperature": (1.0, 0.6), "do_sample": (False, True)}
    kept = resolve(FALLS_BACK, {"temperature": 1.0}, {"temperature": 1.0}, CHECKPOINT)
    assert "overwritten" not in kept.facts


def test_use_model_defaults_decides_in_4_50_to_4_57():
    given = {"temperature": 1.0}
    kept = resolve(FALLS_BACK, {"use_model_defaults": False}, given, CHECKPOINT)
    lost = resolve(FALLS_BACK, {"use_model_defaults": True}, given, CHECKPOINT, saved_with="4.30.0")
    assert kept.values["temperature"] == Known(1.0) and lost.values["temperature"] == Known(0.6)


def test_a_checkpoint_of_unknown_release_leaves_both_possible():
    resolved = resolve(FALLS_BACK, given={"temperature": 1.0}, checkpoint=CHECKPOINT, saved_with="")
    assert {m.value for m in members(resolved.values["temperature"])} == {1.0, 0.6}
    assert not resolved.facts


def test_a_temperature_of_zero_in_an_object_means_greedy_in_4_50_to_4_57():
    given = {"temperature": 0.0, "do_sample": True}
    assert ENGINE.sampling(resolve(FALLS_BACK, given=given, checkpoint={}).values) is False
    assert ENGINE.sampling(resolve(FALLS_BACK, {"do_sample": True}, given, {}).values) is True
    assert ENGINE.sampling(resolve(NEW, given=given, checkpoint={}).values) is True


def test_special_tokens_come_from_the_checkpoint_when_the_object_has_none():
    tokens = {"eos_token_id": 7, "pad_token_id": 0}
    for version in (OLD, FALLS_BACK, NEW):
        values = resolve(version, given={"pad_token_id": None}, checkpoint=tokens, saved_with="4.40").values
        assert values["eos_token_id"] == Known(7) and values["pad_token_id"] == Known(0)


@pytest.mark.parametrize("version", [OLD, FALLS_BACK, NEW])
def test_a_setting_that_may_be_absent_joins_what_the_version_puts_below(version):
    perhaps = OneOf((Known(0), Absent()))
    value = resolve(version, given={"top_k": perhaps}, checkpoint={"top_k": 20}).values["top_k"]
    below = 50 if version == OLD else 20
    assert {m.value for m in members(value)} == {0, below}


def test_the_arguments_of_a_configuration_are_the_fields_of_an_object():
    resolved = resolve(NEW, {"top_k": None}, kind=SiteKind.GENERATION_CONFIG)
    assert resolved.values["top_k"].value == 50
    assert resolved.facts["none_means_unset"] == {"top_k": 50}
    assert "logits_processor" not in resolved.values


def test_an_unseen_splat_makes_unwritten_settings_uncertain():
    splat = Unknown(Reason.INVISIBLE_CALL, "kwargs()")
    layers = [Layer(LayerKind.KWARGS, {"do_sample": Known(True)}, splat)]
    values = ENGINE.resolve(layers, {}, kind=SiteKind.GENERATE).values
    assert values["do_sample"] == Known(True)
    assert members(values["top_k"])[0] == splat and members(values["top_k"])[1].value == 50


def test_whether_a_setting_is_listened_to():
    greedy, drawn = resolve(NEW).values, resolve(NEW, {"do_sample": True}).values
    assert ENGINE.active("top_k", greedy) is False and ENGINE.active("top_k", drawn) is True
    assert ENGINE.active("repetition_penalty", greedy) is True
    unsure = resolve(NEW, {"do_sample": OneOf((Known(True), Known(False)))}).values
    assert ENGINE.active("top_k", unsure) is None
    assert ENGINE.active("penalty_alpha", greedy) is True and ENGINE.active("penalty_alpha", drawn) is False


def test_a_neutral_checkpoint_overwrites_nothing():
    resolved = resolve(FALLS_BACK, given={"temperature": 1.0}, checkpoint={"temperature": 1.0}, saved_with="")
    assert resolved.values["temperature"] == Known(1.0) and not resolved.facts


def test_what_is_not_certain_is_no_fact():
    splat = Layer(LayerKind.CHECKPOINT, {}, Unknown(Reason.RUNTIME, "load()"), version="4.56.1")
    written = Layer(LayerKind.OBJECT, {"temperature": Known(1.0), "top_k": Known(None)})
    for version in (FALLS_BACK, NEW):
        resolved = ENGINE.resolve([written, splat], {"transformers": version}, kind=SiteKind.GENERATE)
        assert not resolved.facts
