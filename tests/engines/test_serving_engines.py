"""vLLM and SGLang: sampling parameters stand alone, unless vLLM is given none."""

import pytest

from klguard.engines import ENGINES
from klguard.settings import Default, Known, Layer, LayerKind, OneOf, Reason, SiteKind, Unknown, members

VLLM, SGLANG = ENGINES["vllm"], ENGINES["sglang"]
CHECKPOINT = Layer(
    LayerKind.CHECKPOINT,
    {
        "temperature": Known(0.6),
        "top_k": Known(50),
        "top_p": Known(None),
        "max_new_tokens": Known(2048),
        "do_sample": Known(True),
    },
)


def given(kind=LayerKind.OBJECT, **values) -> Layer:
    return Layer(kind, {name: Known(value) for name, value in values.items()})


def test_sampling_params_take_nothing_from_the_checkpoint():
    values = VLLM.resolve([given(top_p=0.9), CHECKPOINT], {}, kind=SiteKind.GENERATE).values
    assert values["top_p"] == Known(0.9)
    assert values["temperature"] == Default(1.0, "vllm")


def test_a_call_without_sampling_params_takes_the_checkpoints():
    other = given(LayerKind.KWARGS, use_tqdm=False)
    values = VLLM.resolve([other, CHECKPOINT], {}, kind=SiteKind.GENERATE).values
    assert values["temperature"] == Known(0.6) and values["max_tokens"] == Known(2048)
    assert values["top_p"] == Default(1.0, "vllm")
    assert "do_sample" not in values


def test_before_0_8_it_does_not():
    values = VLLM.resolve([CHECKPOINT], {"vllm": "0.7.3"}, kind=SiteKind.GENERATE).values
    assert values["temperature"] == Default(1.0, "vllm")


@pytest.mark.parametrize(("transformers", "top_k"), [("4.57.6", 0), ("5.23.0", 50)])
def test_the_diff_against_transformers_defaults_drops_fifty_before_5(transformers, top_k):
    values = VLLM.resolve([CHECKPOINT], {"transformers": transformers}, kind=SiteKind.GENERATE).values
    assert values["top_k"].value == top_k


def test_an_unseen_splat_may_be_sampling_params():
    splat = Layer(LayerKind.KWARGS, {}, Unknown(Reason.INVISIBLE_CALL, "settings()"))
    value = VLLM.resolve([splat, CHECKPOINT], {}, kind=SiteKind.GENERATE).values["temperature"]
    assert [type(member) for member in members(value)] == [Unknown, Default]


WHOLE_VOCABULARY = [("0.6.6", -1), ("0.8.5.post1", -1), ("0.9.0", 0), ("0.33.0", 0)]


@pytest.mark.parametrize(("version", "top_k"), WHOLE_VOCABULARY)
def test_the_default_top_k_of_vllm(version, top_k):
    values = VLLM.resolve([given()], {"vllm": version}, kind=SiteKind.SAMPLING_PARAMS).values
    assert values["top_k"].value == top_k
    assert VLLM.is_off("top_k", top_k, {"vllm": version})


def test_sglang_never_asks_the_checkpoint():
    values = SGLANG.resolve([given(temperature=0.7), CHECKPOINT], {}, kind=SiteKind.GENERATE).values
    assert values["temperature"] == Known(0.7) and values["top_k"].value == 1 << 30
    assert SGLANG.resolve([CHECKPOINT], {}, kind=SiteKind.GENERATE).values["temperature"].value == 1.0


@pytest.mark.parametrize(("engine", "coldest"), [(VLLM, 1e-5), (SGLANG, 1e-6)])
def test_a_temperature_of_nearly_zero_is_greedy_and_leaves_filters_idle(engine, coldest):
    cold, warm = {"temperature": Known(coldest / 2)}, {"temperature": Known(coldest * 2)}
    assert engine.sampling(cold) is False and engine.sampling(warm) is True
    assert engine.active("top_k", cold) is False and engine.active("repetition_penalty", cold) is True
    assert engine.sampling({"temperature": OneOf((Known(0.0), Known(1.0)))}) is None


@pytest.mark.parametrize("engine", [VLLM, SGLANG], ids=lambda engine: engine.name)
def test_the_defaults_leave_the_distribution_alone(engine):
    for name, value in engine.resolve([], {}, kind=SiteKind.SAMPLING_PARAMS).values.items():
        assert engine.is_off(name, value.value, {}), name


def test_what_is_written_is_named_even_where_it_is_harmless():
    values = VLLM.resolve([given(seed=1)], {}, kind=SiteKind.SAMPLING_PARAMS).values
    assert values["seed"] == Known(1) and "stop" not in values
