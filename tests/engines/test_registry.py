"""What every engine has in common, names, versions, and a project's own samplers."""

import ast
import pickle

import pytest

from klguard.engines import ENGINES, NEWEST
from klguard.engines.trl_families import FAMILIES
from klguard.engines.versions import parse, version_of, within
from klguard.settings import (
    Absent,
    Known,
    Layer,
    LayerKind,
    OneOf,
    Opaque,
    Reason,
    SiteKind,
    Unknown,
    members,
)

LOCAL = ENGINES["local"]


def test_the_engines_and_the_newest_releases_they_know():
    assert set(ENGINES) == {"transformers", "vllm", "sglang", "trl", "trlx", "local"}
    assert set(NEWEST) == set(ENGINES) - {"local"}
    assert all(parse(version) for version in NEWEST.values())


SITES = [
    ("transformers", "GenerationConfig", SiteKind.GENERATION_CONFIG),
    ("transformers", "generate", SiteKind.GENERATE),
    ("vllm", "SamplingParams", SiteKind.SAMPLING_PARAMS),
    ("sglang", "SamplingParams", SiteKind.SAMPLING_PARAMS),
    ("trl", "respond_to_batch", SiteKind.GENERATE),
    *(("trl", f"{stem}Config", SiteKind.TRAINER_CONFIG) for stem in FAMILIES),
    *(("trl", f"{stem}Trainer", SiteKind.TRAINER) for stem in FAMILIES),
    ("trlx", "PPOConfig", SiteKind.TRAINER_CONFIG),
    ("trlx", "TRLConfig", SiteKind.TRAINER_CONFIG),
    ("trlx", "train", SiteKind.TRAINER),
]


@pytest.mark.parametrize(("engine", "name", "kind"), SITES)
def test_names_of_sites(engine, name, kind):
    assert ENGINES[engine].sites[name] is kind
    assert engine in ENGINES[engine].packages


NEAREST = [
    ("transformers", "topk", "top_k"),
    ("transformers", "temprature", "temperature"),
    ("transformers", "max_tokens", "max_new_tokens"),
    ("transformers", "repetition_penality", "repetition_penalty"),
    ("transformers", "doSample", "do_sample"),
    ("transformers", "no_repeat_ngrams_size", "no_repeat_ngram_size"),
    ("vllm", "max_new_tokens", "max_tokens"),
    ("vllm", "topp", "top_p"),
    ("transformers", "top_k", None),
    ("transformers", "my_own_flag", None),
    ("vllm", "tensor_parallel_size", None),
]


@pytest.mark.parametrize(("engine", "name", "real"), NEAREST)
def test_the_nearest_real_name(engine, name, real):
    assert ENGINES[engine].nearest(name) == real


@pytest.mark.parametrize("engine", ENGINES.values(), ids=lambda engine: engine.name)
def test_settings_are_registered_under_their_own_names(engine):
    assert all(name == setting.name for name, setting in engine.settings.items())


@pytest.mark.parametrize("name", ["transformers", "vllm", "sglang", "trlx", "trl"])
@pytest.mark.parametrize("version", ["0.6.6", "4.30.0", "5.23.0"])
def test_the_neutral_settings_bend_nothing(name, version):
    engine, versions = ENGINES[name], {name: version}
    neutral = engine.neutral(versions)
    assert {"temperature", "top_k", "top_p"} <= set(neutral)
    assert all(engine.is_off(setting, value, versions) for setting, value in neutral.items())


def test_neutral_settings_are_those_of_the_version():
    transformers, old = ENGINES["transformers"], {"transformers": "4.57.6"}
    assert "top_h" in transformers.neutral({}) and "top_h" not in transformers.neutral(old)
    assert ast.literal_eval(transformers.safe("top_k", {})) == 0


def test_a_name_nobody_listens_to_is_off():
    engine = ENGINES["transformers"]
    assert engine.is_off("presence_penalty", 1.0, {}) and engine.error("presence_penalty", 1.0, {}) is None
    assert engine.safe("presence_penalty", {}) == ""


@pytest.mark.parametrize("version", ["", "main", "${VERSION}", ">=4.0"])
def test_a_version_that_is_none_counts_as_the_newest(version):
    assert str(version_of("transformers", {"transformers": version})) == NEWEST["transformers"]


@pytest.mark.parametrize(
    ("version", "ranges", "inside"),
    [
        ("5.0.0rc1", ">=5", True),
        ("4.57.6", ">=4.50,<5", True),
        ("0.8.5.post1", "<0.9", True),
        ("2.1.0+cu118", ">=2.1", True),
        ("4.49.0", ">=4.50", False),
        ("4.1", "", True),
    ],
)
def test_ranges_of_versions(version, ranges, inside):
    assert within(version_of("library", {"library": version}), ranges) is inside


def test_positional_parameters_of_generate():
    assert ENGINES["transformers"].constructor_order("generate", {})[:3] == (
        "inputs",
        "generation_config",
        "logits_processor",
    )
    assert ENGINES["vllm"].constructor_order("generate", {}) == ("prompts", "sampling_params")
    assert ENGINES["sglang"].constructor_order("generate", {}) == ("prompt", "sampling_params")


@pytest.mark.parametrize("engine", ENGINES.values(), ids=lambda engine: engine.name)
def test_what_is_resolved_can_be_sent_between_processes(engine):
    layer = Layer(LayerKind.KWARGS, {"temperature": Known(0.7), "logits_processor": Known(Opaque("x"))})
    for kind in SiteKind:
        resolved = engine.resolve([layer], {}, kind=kind, class_name="PPOConfig")
        assert pickle.loads(pickle.dumps((dict(resolved.values), dict(resolved.facts))))


def test_in_a_projects_own_sampler_nothing_is_in_force_that_was_not_written():
    layer = Layer(LayerKind.KWARGS, {"top_k": Known(50), "temperature": OneOf((Known(0.7), Absent()))})
    values = LOCAL.resolve([layer], {}, kind=SiteKind.GENERATE).values
    assert set(values) == {"top_k", "temperature"}
    assert values["top_k"] == Known(50) and not LOCAL.is_off("top_k", 50, {})
    left_alone = members(values["temperature"])[1]
    assert left_alone.library == "" and LOCAL.is_off("temperature", left_alone.value, {})
    assert LOCAL.sampling(values) is True and LOCAL.sampling({"do_sample": Known(False)}) is False


def test_a_projects_own_sampler_with_an_unseen_splat_may_be_told_anything():
    layer = Layer(LayerKind.KWARGS, {"temperature": Known(1.0)}, Unknown(Reason.INVISIBLE_CALL, "kwargs()"))
    values = LOCAL.resolve([layer], {}, kind=SiteKind.GENERATE).values
    assert any(isinstance(m, Unknown) for m in members(values["top_k"]))
    assert values["temperature"] == Known(1.0)
