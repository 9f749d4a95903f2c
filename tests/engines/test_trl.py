"""TRL and trlx: which trainer is meant, and the generation its configuration becomes."""

import pytest

from klguard.engines import ENGINES
from klguard.settings import (
    Absent,
    Default,
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

TRL, TRLX = ENGINES["trl"], ENGINES["trlx"]
QWEN = Layer(
    LayerKind.CHECKPOINT,
    {"temperature": Known(0.7), "top_k": Known(20), "top_p": Known(0.8), "repetition_penalty": Known(1.05)},
    version="4.51.0",
)


def config(name, trl="1.16.0", transformers="5.23.0", checkpoint=None, facts=None, rest=None, **written):
    values = {n: v if isinstance(v, Known | OneOf | Unknown) else Known(v) for n, v in written.items()}
    layers = [Layer(LayerKind.KWARGS, values, rest), *([checkpoint] if checkpoint else [])]
    versions = {"trl": trl, "transformers": transformers}
    return TRL.resolve(layers, versions, kind=SiteKind.TRAINER_CONFIG, class_name=name, facts=facts or {})


def plain(resolved, name):
    return resolved.values[name].value


FLAVOURS = [
    # version, fields that are written, class, what it is
    ("0.11.4", {}, "trl.PPOConfig", "ppo-classic"),
    ("0.12.0", {}, "trl.PPOConfig", "ppo-v2"),
    ("0.28.0", {"learning_rate": 1e-5}, "trl.PPOConfig", "ppo-v2"),
    ("1.16.0", {"learning_rate": 1e-5}, "trl.PPOConfig", "ppo-classic"),
    ("1.16.0", {"init_kl_coef": 0.1}, "trl.PPOConfig", "ppo-classic"),
    ("0.12.0", {"ppo_epochs": 4, "model_name": "gpt2"}, "trl.PPOConfig", "ppo-classic"),
    ("0.11.4", {"num_ppo_epochs": 4, "kl_coef": 0.1}, "trl.PPOConfig", "ppo-v2"),
    ("1.16.0", {"response_length": 64, "output_dir": "out"}, "trl.PPOConfig", "ppo-v2"),
    ("1.16.0", {}, "trl.experimental.ppo.PPOConfig", "ppo-v2"),
    ("0.10.1", {}, "trl.trainer.ppov2_config.PPOv2Config", "ppo-v2"),
    ("0.21.0", {}, "trl.RLOOConfig", "rloo-old"),
    ("0.22.0", {}, "trl.RLOOConfig", "rloo"),
    ("1.16.0", {"rloo_k": 4}, "trl.RLOOConfig", "rloo-old"),
    ("0.20.0", {"num_generations": 4}, "trl.RLOOConfig", "rloo"),
    ("1.16.0", {}, "trl.GRPOConfig", "grpo"),
    ("1.16.0", {}, "trl.experimental.online_dpo.OnlineDPOConfig", "online-dpo"),
    ("0.20.0", {}, "trl.NashMDConfig", "nash-md"),
    ("0.20.0", {}, "trl.XPOConfig", "xpo"),
]


@pytest.mark.parametrize(("version", "written", "name", "flavour"), FLAVOURS)
def test_evidence_in_the_code_decides_before_the_version(version, written, name, flavour):
    assert config(name, version, **written).facts["flavour"] == flavour


def test_a_trainer_that_is_stepped_by_hand_is_classic():
    assert config("trl.PPOConfig", "0.20.0", facts={"classic": Known(True)}).facts["flavour"] == "ppo-classic"


def test_the_arguments_of_a_trainer_are_evidence_too():
    for names, flavour in (("config tokenizer", "ppo-classic"), ("args processing_class", "ppo-v2")):
        layer = Layer(LayerKind.KWARGS, {name: Known(Opaque(name)) for name in names.split()})
        resolved = TRL.resolve([layer], {}, kind=SiteKind.TRAINER, class_name="trl.PPOTrainer")
        assert resolved.facts["flavour"] == flavour


def test_classic_ppo_has_kl_settings_and_no_generation():
    resolved = config("trl.PPOConfig", "0.11.4", target=-1)
    assert plain(resolved, "init_kl_coef") == 0.2 and resolved.values["target"] == Known(-1)
    assert "temperature" not in resolved.values and not resolved.mitigations


def test_defaults_are_those_of_the_nearest_release_that_has_the_class():
    assert plain(config("trl.PPOConfig", "1.16.0", ppo_epochs=4), "target_kl") == 1.0
    assert plain(config("trl.PPOConfig", "0.4.2", ppo_epochs=4), "target_kl") == 0.1


def test_ppo_v2_divides_by_its_temperature_and_samples_the_whole_vocabulary():
    resolved = config("trl.PPOConfig", "0.17.0", "4.49.0")
    assert plain(resolved, "temperature") == 0.7 and "divides" in resolved.mitigations["temperature"]
    assert plain(resolved, "top_k") == 0 and plain(resolved, "do_sample") is True
    assert plain(resolved, "max_new_tokens") == 53 and plain(resolved, "kl_estimator") == "k1"


def test_what_the_trainer_leaves_open_comes_from_the_checkpoint():
    leaks = config("trl.PPOConfig", "0.17.0", "5.0.0", QWEN)
    assert plain(leaks, "repetition_penalty") == 1.05 and plain(leaks, "top_p") == 1.0
    assert plain(config("trl.PPOConfig", "0.17.0", "4.49.0", QWEN), "repetition_penalty") == 1.0


GRPO = [
    # trl, transformers, temperature, top_k, divides, beta
    ("0.14.0", "4.48.0", 0.9, 50, False, 0.04),
    ("0.16.0", "4.49.0", 0.9, 50, True, 0.04),
    ("0.18.0", "4.52.0", 1.0, None, True, 0.04),
    ("0.19.0", "4.53.0", 1.0, None, True, 0.0),
    ("0.26.1", "5.0.0", 1.0, 50, True, 0.0),
    ("0.27.0", "5.0.0", 1.0, 0, True, 0.0),
    ("1.16.0", "5.23.0", 1.0, 0, True, 0.0),
]


@pytest.mark.parametrize(("trl", "transformers", "temperature", "top_k", "divides", "beta"), GRPO)
def test_grpo_by_release(trl, transformers, temperature, top_k, divides, beta):
    resolved = config("trl.GRPOConfig", trl, transformers)
    assert (plain(resolved, "temperature"), plain(resolved, "top_k")) == (temperature, top_k)
    assert ("temperature" in resolved.mitigations) is divides
    assert plain(resolved, "beta") == beta


def test_grpo_neutral_values_are_overwritten_between_4_50_and_trls_workaround():
    lost = config("trl.GRPOConfig", "0.20.0", "4.53.0", QWEN)
    assert plain(lost, "temperature") == 0.7 and plain(lost, "top_p") == 0.8
    assert lost.facts["overwritten"]["repetition_penalty"] == (1.0, 1.05)
    kept = config("trl.GRPOConfig", "0.26.2", "4.57.6", QWEN)
    assert plain(kept, "temperature") == 1.0 and "overwritten" not in kept.facts


def test_generation_kwargs_override_fields_and_reach_settings_the_config_does_not_have():
    extra = {"temperature": 0.5, "no_repeat_ngram_size": 3}
    resolved = config("trl.GRPOConfig", temperature=1.0, generation_kwargs=extra)
    assert plain(resolved, "temperature") == 0.5 and plain(resolved, "no_repeat_ngram_size") == 3
    flat = config("trl.GRPOConfig", no_repeat_ngram_size=3)
    assert plain(flat, "no_repeat_ngram_size") == 3


def test_generation_kwargs_that_cannot_be_seen_may_set_anything_but_the_coefficient():
    resolved = config("trl.GRPOConfig", generation_kwargs=Unknown(Reason.RUNTIME, "args.extra"))
    assert any(isinstance(m, Unknown) for m in members(resolved.values["top_k"]))
    assert any(isinstance(m, Unknown) for m in members(resolved.values["min_length"]))
    assert resolved.values["beta"] == Default(0.0, "trl", "")


def test_grpo_with_vllm_asks_no_checkpoint_and_reads_none_and_minus_one_as_off():
    resolved = config("trl.GRPOConfig", "0.20.0", "4.53.0", QWEN, use_vllm=True)
    assert plain(resolved, "temperature") == 1.0 and plain(resolved, "repetition_penalty") == 1.0
    assert TRL.is_off("top_k", plain(resolved, "top_k"), {}) and "do_sample" not in resolved.values
    minus = config("trl.GRPOConfig", use_vllm=True, top_k=-1)
    assert TRL.is_off("top_k", plain(minus, "top_k"), {}) and TRL.sampling(minus.values) is True
    extra = config("trl.GRPOConfig", use_vllm=True, generation_kwargs={"presence_penalty": 0.5})
    assert plain(extra, "presence_penalty") == 0.5 and not TRL.is_off("presence_penalty", 0.5, {})


def test_grpo_that_may_use_vllm_has_both_answers():
    perhaps = OneOf((Known(True), Known(False)))
    resolved = config("trl.GRPOConfig", "0.16.0", "4.49.0", use_vllm=perhaps, top_k=-1)
    assert {m.value for m in members(resolved.values["top_k"])} == {-1, 0}


def test_continuous_batching_asks_no_checkpoint():
    alone = config("trl.GRPOConfig", checkpoint=QWEN, use_transformers_continuous_batching=True, beta=0.1)
    assert plain(alone, "repetition_penalty") == 1.0


ONLINE_DPO = [("0.11.0", 0), ("0.14.0", 50), ("0.22.0", 50), ("0.24.0", 50), ("0.27.0", 0), ("1.16.0", 0)]


@pytest.mark.parametrize(("trl", "top_k"), ONLINE_DPO)
def test_online_dpo_by_release_never_divides(trl, top_k):
    for transformers in ("4.49.0", "5.23.0"):
        resolved = config("trl.OnlineDPOConfig", trl, transformers)
        assert plain(resolved, "top_k") == top_k and plain(resolved, "temperature") == 0.9
        assert not resolved.mitigations


def test_nash_md_and_xpo_add_their_own_fields():
    assert plain(config("trl.NashMDConfig", "0.20.0"), "mixture_coef") == 0.5
    assert plain(config("trl.XPOConfig", "0.20.0"), "alpha") == 1e-5


def test_an_unseen_splat_of_a_config():
    resolved = config("trl.GRPOConfig", rest=Unknown(Reason.INVISIBLE_CALL, "load()"), temperature=0.7)
    temperature, beta = resolved.values["temperature"], resolved.values["beta"]
    assert Known(0.7) in members(temperature) and any(isinstance(m, Unknown) for m in members(beta))


def test_an_unknown_class_has_no_settings():
    assert config("trl.SFTConfig").values == {}


def test_classic_generate_is_transformers_generate():
    layers = [Layer(LayerKind.KWARGS, {"do_sample": Known(True)}), QWEN]
    values = TRL.resolve(layers, {}, kind=SiteKind.GENERATE).values
    assert values["top_k"] == Known(20) and TRL.sampling(values) is True


def test_a_length_sampler_sets_the_length():
    layer = Layer(LayerKind.KWARGS, {"length_sampler": Known(Opaque("LengthSampler(4, 16)"))})
    assert isinstance(TRL.resolve([layer], {}, kind=SiteKind.GENERATE).values["max_new_tokens"], Unknown)


def test_respond_to_batch_draws_from_the_whole_distribution():
    site = {"kind": SiteKind.GENERATE, "class_name": "trl.core.respond_to_batch"}
    values = TRL.resolve([], {}, **site).values
    assert all(TRL.is_off(name, value.value, {}) for name, value in values.items())
    cut = TRL.resolve([Layer(LayerKind.KWARGS, {"top_k": Known(10), "txt_len": Known(4)})], {}, **site).values
    assert cut["top_k"] == Known(10) and cut["max_new_tokens"] == Known(4)


ORDERS = [
    ("trl.PPOTrainer", "0.11.4", ("config", "model", "ref_model", "tokenizer")),
    ("trl.PPOTrainer", "0.12.2", ("config", "processing_class", "policy", "ref_policy")),
    ("trl.PPOTrainer", "0.20.0", ("args", "processing_class", "model", "ref_model")),
    ("trl.PPOTrainer", "1.16.0", ("config", "model", "ref_model", "tokenizer")),
    ("trl.RLOOTrainer", "0.11.0", ("config", "tokenizer", "policy", "ref_policy")),
    ("trl.RLOOTrainer", "1.16.0", ("model", "reward_funcs", "args", "train_dataset")),
    ("GRPOTrainer", "1.16.0", ("model", "reward_funcs", "args", "train_dataset")),
    ("trl.OnlineDPOTrainer", "0.23.0", ("model", "ref_model", "reward_funcs", "judge")),
    ("trl.core.respond_to_batch", "0.11.4", ("model", "queries", "txt_len", "top_k")),
    ("generate", "0.11.4", ("query_tensor", "length_sampler", "batch_size", "return_prompt")),
    ("trl.SFTTrainer", "1.16.0", ()),
]


@pytest.mark.parametrize(("name", "version", "first"), ORDERS)
def test_positional_parameters(name, version, first):
    assert TRL.constructor_order(name, {"trl": version})[:4] == first


def trlx(trlx_version="0.7.0", name="trlx.data.default_configs.PPOConfig", checkpoint=None, **written):
    layers = [Layer(LayerKind.KWARGS, {n: Known(v) for n, v in written.items()})]
    kind = SiteKind.TRAINER if name == "trlx.train" else SiteKind.TRAINER_CONFIG
    layers = [*(layers if written else []), *([checkpoint] if checkpoint else [])]
    return TRLX.resolve(layers, {"trlx": trlx_version}, kind=kind, class_name=name)


def test_trlx_hands_gen_kwargs_over_as_keyword_arguments():
    resolved = trlx(gen_kwargs={"top_k": 0, "temperature": 0.5}, init_kl_coef=0.05, checkpoint=QWEN)
    assert plain(resolved, "top_k") == 0 and plain(resolved, "temperature") == 0.5
    assert plain(resolved, "repetition_penalty") == 1.05
    assert plain(resolved, "init_kl_coef") == 0.05 and plain(resolved, "do_sample") is True
    assert not resolved.mitigations


def test_trlx_leaves_top_k_to_transformers():
    assert plain(trlx(gen_kwargs={"max_new_tokens": 40}), "top_k") == 50


def test_trlx_before_0_7_does_not_preset_sampling():
    assert plain(trlx("0.6.0", gen_kwargs={"max_new_tokens": 40}), "do_sample") is False


def test_trlx_rolls_out_with_gen_experience_kwargs_where_given():
    resolved = trlx(gen_kwargs={"temperature": 0.2, "top_p": 0.5}, gen_experience_kwargs={"temperature": 0.8})
    assert plain(resolved, "temperature") == 0.8 and plain(resolved, "top_p") == 1.0
    assert plain(trlx(gen_kwargs={"temperature": 0.2}, gen_experience_kwargs=None), "temperature") == 0.2


def test_trlx_reads_a_whole_configuration_and_flat_values():
    whole = trlx(name="trlx.TRLConfig", method={"gen_kwargs": {"temperature": 0.2}})
    assert plain(whole, "temperature") == 0.2
    assert plain(trlx(temperature=0.2), "temperature") == 0.2


def test_trlx_train_without_a_configuration_uses_the_shipped_one():
    resolved = trlx(name="trlx.train")
    assert plain(resolved, "top_k") == 0 and plain(resolved, "max_new_tokens") == 40


def test_absent_never_survives():
    perhaps = OneOf((Known({"top_k": 5}), Absent()))
    layer = Layer(LayerKind.KWARGS, {"generation_kwargs": perhaps, "gen_kwargs": perhaps})
    for engine, name in ((TRL, "trl.GRPOConfig"), (TRLX, "trlx.PPOConfig")):
        values = engine.resolve([layer], {}, kind=SiteKind.TRAINER_CONFIG, class_name=name).values
        assert not any(isinstance(m, Absent) for value in values.values() for m in members(value))
