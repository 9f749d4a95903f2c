"""Adapters of inference engines and of frameworks around them.

SamplingParams are the real classes where vLLM and SGLang are installed; elsewhere, and for what engines return, and
for configuration trees, they are objects built from the documented schema, named `Documented...`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from klguard import Guard  # noqa: E402
from klguard.guard.frameworks import nemo_rl, openrlhf, prime_rl, sglang, verl, vllm  # noqa: E402
from klguard.guard.live import findings  # noqa: E402

VOCABULARY, ROWS, LENGTH = 40, 64, 16


def codes(site):
    return {finding.code for finding in findings(site)}


def certain(site, name):
    return site.settings.get(name).value


def tree(**paths):
    """Nested dicts from dotted paths, written with a double underscore."""
    root: dict = {}
    for path, value in paths.items():
        *folders, last = path.split("__")
        here = root
        for name in folders:
            here = here.setdefault(name, {})
        here[last] = value
    return root


# -- what was asked for -------------------------------------------------------------------------------------------


@dataclass
class DocumentedVllmParams:
    """The fields of vLLM's SamplingParams that bend the distribution, with their defaults."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_tokens: int = 0
    max_tokens: int | None = 16


@dataclass
class DocumentedSglangParams:
    """Those of SGLang's SamplingParams."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    min_new_tokens: int = 0
    max_new_tokens: int | None = 128


def vllm_params(real):
    if not real:
        return DocumentedVllmParams
    return pytest.importorskip("vllm.sampling_params", reason="vLLM is not installed").SamplingParams


def sglang_params(real):
    if not real:
        return DocumentedSglangParams
    module = pytest.importorskip("sglang.srt.sampling.sampling_params", reason="SGLang is not installed")
    return module.SamplingParams


REAL = pytest.mark.parametrize("real", [True, False], ids=["real class", "documented fields"])


@REAL
def test_vllm_sampling_params_are_judged(real):
    params = vllm_params(real)
    assert codes(vllm.settings(params(max_tokens=32))) == set()
    assert "KLG101" in codes(vllm.settings(params(top_k=10)))
    assert any(f.setting == "min_tokens" for f in findings(vllm.settings(params(min_tokens=8))))
    assert any(
        f.setting == "repetition_penalty" for f in findings(vllm.settings(params(repetition_penalty=1.1)))
    )


@REAL
def test_sglang_sampling_params_are_judged(real):
    params = sglang_params(real)
    assert codes(sglang.settings(params(max_new_tokens=32))) == set()
    assert "KLG101" in codes(sglang.settings(params(top_k=10)))
    assert any(f.setting == "min_new_tokens" for f in findings(sglang.settings(params(min_new_tokens=8))))


def test_dicts_of_sampling_params_are_judged():
    assert "KLG101" in codes(vllm.settings({"top_k": 10}))
    assert "KLG101" in codes(sglang.settings({"top_k": 10}))


# -- what servers fill in -----------------------------------------------------------------------------------------

QWEN = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}
REQUEST = {"model": "m", "prompt": "p", "temperature": 1.0, "top_p": 1.0, "max_tokens": 8}


def test_a_vllm_server_fills_what_a_request_leaves_out_from_the_checkpoint():
    site = vllm.request_settings(REQUEST, QWEN, version="0.10.0")
    assert certain(site, "top_k") == 20 and certain(site, "repetition_penalty") == 1.05
    assert certain(site, "temperature") == 1.0 and certain(site, "top_p") == 1.0
    (found,) = findings(site)
    assert found.code == "KLG501" and found.setting == "top_k, repetition_penalty"
    assert any("generation_config.json" in hop.text for hop in found.origin)


def test_a_vllm_server_that_leaves_the_checkpoint_alone_does_not():
    complete = {**REQUEST, "extra_body": {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}}
    for site in (
        vllm.request_settings(REQUEST, QWEN, version="0.7.3"),
        vllm.request_settings(REQUEST, QWEN, version="0.10.0", generation_config="vllm"),
        vllm.request_settings(complete, QWEN, version="0.10.0"),
    ):
        assert codes(site) == set()


def test_an_override_of_the_server_wins_over_the_checkpoint():
    override = {"top_k": -1, "repetition_penalty": 1.0}
    site = vllm.request_settings(REQUEST, QWEN, version="0.10.0", override_generation_config=override)
    assert codes(site) == set()


def test_a_checkpoint_that_cannot_be_seen_is_no_certainty(tmp_path):
    site = vllm.request_settings(REQUEST, None, version="0.10.0")
    assert all(finding.severity.value == "note" for finding in findings(site))
    (tmp_path / "generation_config.json").write_text('{"top_k": 30}')
    assert certain(vllm.request_settings(REQUEST, tmp_path, version="0.10.0"), "top_k") == 30


def test_an_sglang_server_fills_in_since_0_5_3():
    before = sglang.request_settings(REQUEST, QWEN, version="0.5.2")
    after = sglang.request_settings(REQUEST, QWEN, version="0.5.3")
    neutral = sglang.request_settings(REQUEST, QWEN, version="0.5.3", sampling_defaults="openai")
    assert codes(before) == codes(neutral) == set()
    assert certain(after, "top_k") == 20 and codes(after) == {"KLG501"}
    assert certain(after, "max_new_tokens") == 8


# -- what came back -----------------------------------------------------------------------------------------------


@dataclass
class DocumentedLogprob:
    """vLLM's Logprob."""

    logprob: float
    rank: int | None = 1


@dataclass
class DocumentedCompletion:
    """vLLM's CompletionOutput: at each position a dict from token id to Logprob."""

    token_ids: tuple
    logprobs: list | None


def vllm_outputs(tokens, logprobs):
    """RequestOutput objects as documented, one response each."""
    return [
        SimpleNamespace(
            outputs=[
                DocumentedCompletion(
                    tuple(row), [{t: DocumentedLogprob(v)} for t, v in zip(row, values, strict=True)]
                )
            ]
        )
        for row, values in zip(tokens, logprobs, strict=True)
    ]


def sglang_outputs(tokens, logprobs):
    """What Engine.generate returns with return_logprob=True, as documented."""
    return [
        {
            "output_ids": row,
            "meta_info": {"output_token_logprobs": [(v, t, None) for t, v in zip(row, values, strict=True)]},
        }
        for row, values in zip(tokens, logprobs, strict=True)
    ]


def drawn(seed, temperature=1.0, top_k=0):
    """A policy's logits (B, T, V), tokens (B, T) drawn as asked, their raw and their processed log-probs (B, T)."""
    draw = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(ROWS, LENGTH, VOCABULARY, generator=draw)
    shaped = logits / temperature
    if top_k:
        floor = shaped.topk(top_k, -1).values[..., -1:]
        shaped = shaped.masked_fill(shaped < floor, -math.inf)
    processed = shaped.log_softmax(-1)
    tokens = torch.multinomial(processed.exp().flatten(0, 1), 1, generator=draw).view(ROWS, LENGTH)
    values = [
        one.gather(-1, tokens[..., None])[..., 0]
        for one in (logits.log_softmax(-1), (shaped).log_softmax(-1))
    ]
    return logits, tokens, *values


def guarded(returned, logits, temperature=1.0, observe=False, **options):
    """The guard of one step over a rollout that came back."""
    guard = Guard(on_violation="record", strict=True, **options)
    sampler = returned.tell(guard, temperature=temperature)
    scored = logits / temperature
    tokens = returned.responses
    if observe:
        values = scored.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        guard.observe(values, returned.mask, sampler_logprobs=sampler)
    else:
        guard.logprobs(scored, tokens, returned.mask, sampler_logprobs=sampler, temperature=temperature)
    guard.step()
    return guard


@pytest.mark.parametrize("observe", [True, False], ids=["observe", "logprobs"])
def test_processed_log_probs_of_a_safe_rollout_are_tested_and_pass(observe):
    logits, tokens, _, processed = drawn(1)
    outputs = vllm_outputs(tokens.tolist(), processed.tolist())
    back = vllm.returned(outputs, {"top_k": -1}, logprobs_mode="processed_logprobs")
    assert back.withheld == "" and torch.equal(back.responses, tokens)
    guard = guarded(back, logits, observe=observe)
    assert guard.findings == []
    assert {"KLG702", "KLG851"} <= guard.exercised


def test_the_sampler_is_named_by_its_processed_log_probs_alone():
    logits, tokens, _, processed = drawn(2, top_k=8)
    back = vllm.returned(
        vllm_outputs(tokens.tolist(), processed.tolist()), logprobs_mode="processed_logprobs"
    )
    guard = guarded(back, logits, observe=True)
    said = next(finding for finding in guard.findings if finding.code == "KLG702")
    assert said.measured.cause == "sampler"


def test_raw_log_probs_are_withheld_where_something_bends_the_distribution():
    logits, tokens, raw, _ = drawn(3, temperature=0.7)
    outputs = vllm_outputs(tokens.tolist(), raw.tolist())
    back = vllm.returned(outputs, {"temperature": 0.7, "top_k": -1})
    assert "bare logits" in back.withheld and "temperature" in back.withheld
    assert back.sampler_logprobs is None
    guard = guarded(back, logits, temperature=0.7)
    assert guard.findings == []
    assert "KLG702" not in guard.exercised


def test_processed_log_probs_of_another_temperature_are_those_of_the_trainer_that_divides():
    logits, tokens, _, processed = drawn(4, temperature=0.7)
    outputs = vllm_outputs(tokens.tolist(), processed.tolist())
    params = {"temperature": 0.7, "top_k": -1}
    back = vllm.returned(outputs, params, logprobs_mode="processed_logprobs")
    guard = guarded(back, logits, temperature=0.7)
    assert guard.findings == [] and "KLG702" in guard.exercised


def test_raw_log_probs_under_neutral_settings_are_those_of_the_sampler():
    logits, tokens, raw, _ = drawn(5)
    back = vllm.returned(vllm_outputs(tokens.tolist(), raw.tolist()), {"top_k": -1})
    assert back.withheld == ""
    assert "KLG702" in guarded(back, logits).exercised


def test_raw_log_probs_of_unknown_settings_are_withheld():
    back = vllm.returned(vllm_outputs([[1, 2]], [[-1.0, -2.0]]))
    assert "not known" in back.withheld


def test_sglang_log_probs_come_after_the_temperature_and_before_the_filters():
    logits, tokens, _, processed = drawn(6, temperature=0.7)
    outputs = sglang_outputs(tokens.tolist(), processed.tolist())
    params = {"temperature": 0.7, "max_new_tokens": LENGTH, "regex": None}
    back = sglang.returned(outputs, params, original_logprobs=False)
    assert back.withheld == ""
    assert guarded(back, logits, temperature=0.7).findings == []
    assert "top_k" in sglang.returned(outputs, {**params, "top_k": 8}, original_logprobs=False).withheld
    assert "temperature" in sglang.returned(outputs, params, original_logprobs=True).withheld


def test_rows_of_different_lengths_and_missing_log_probs():
    outputs = vllm_outputs([[5, 6, 7], [8]], [[-1.0, -2.0, -3.0], [-4.0]])
    outputs[0].outputs[0].logprobs[1] = {}
    back = vllm.returned(outputs, {"top_k": -1}, logprobs_mode="processed_logprobs", pad_token_id=3)
    assert back.responses.tolist() == [[5, 6, 7], [8, 3, 3]]
    assert back.mask.tolist() == [[True] * 3, [True, False, False]]
    assert back.logprobs.isnan().tolist() == [[False, True, False], [False, True, True]]
    silent = vllm.returned([SimpleNamespace(outputs=[DocumentedCompletion((1,), None)])], {"top_k": -1})
    assert "no log-probs" in silent.withheld


def test_wrong_inputs_say_what_is_wrong():
    with pytest.raises(ValueError, match="processed_logprobs"):
        vllm.returned([], logprobs_mode="raw_logits")
    with pytest.raises(ValueError, match="other tokens"):
        broken = sglang_outputs([[1, 2]], [[-1.0, -2.0]])
        broken[0]["output_ids"] = [1, 3]
        sglang.returned(broken)
    with pytest.raises(ValueError, match="no configuration of verl"):
        verl.plan({"a": 1})
    with pytest.raises(ValueError, match="OpenRLHF"):
        openrlhf.plan(SimpleNamespace(a=1))
    with pytest.raises(ValueError, match="NeMo-RL"):
        nemo_rl.plan({})
    with pytest.raises(ValueError, match="prime-rl"):
        prime_rl.plan({})


# -- configuration trees, as documented ---------------------------------------------------------------------------


def test_a_tree_of_verl():
    safe = tree(
        actor_rollout_ref__rollout__temperature=0.9,
        actor_rollout_ref__rollout__top_k=-1,
        actor_rollout_ref__rollout__n=5,
        algorithm__use_kl_in_reward=True,
        algorithm__kl_ctrl__kl_coef=0.01,
    )
    plan = verl.plan(safe)
    assert codes(plan.site) == set()  # the trainer divides by the temperature
    assert plan.kind == "processed" and plan.options == {"kl_coef": 0.01, "group_size": 5}
    safe["actor_rollout_ref"]["rollout"] |= {"top_p": 0.95, "logprobs_mode": "raw_logprobs"}
    plan = verl.plan(safe)
    assert {f.setting for f in findings(plan.site)} == {"top_p"} and plan.kind == "raw"
    safe["actor_rollout_ref"]["rollout"] |= {"top_p": 1.0, "name": "sglang", "do_sample": False}
    assert verl.plan(safe).site.settings.engine == "sglang"
    assert codes(verl.plan(safe).site)


def test_a_tree_of_verl_with_transformers():
    config = tree(actor_rollout_ref__rollout__name="hf", actor_rollout_ref__rollout__top_k=-1)
    plan = verl.plan(config)
    assert certain(plan.site, "top_k") == 0 and codes(plan.site) == set() and plan.kind is None


def test_arguments_of_openrlhf():
    nested = SimpleNamespace(
        rollout=SimpleNamespace(temperature=1.0, top_p=0.9, max_new_tokens=64, n_samples_per_prompt=4),
        algo=SimpleNamespace(kl=SimpleNamespace(init_coef=0.01), advantage=SimpleNamespace()),
    )
    plan = openrlhf.plan(nested)
    assert {"top_p", "min_tokens"} == {f.setting for f in findings(plan.site)}
    assert plan.kind is None and plan.options == {"kl_coef": 0.01, "group_size": 4}
    flat = SimpleNamespace(temperature=1.0, top_p=1.0, init_kl_coef=0.02, enable_vllm_is_correction=True)
    plan = openrlhf.plan(flat)
    assert plan.kind == "processed" and plan.options == {"kl_coef": 0.02}
    dotted = SimpleNamespace(**{"rollout.temperature": 1.0, "rollout.top_p": 0.8})
    assert certain(openrlhf.plan(dotted).site, "top_p") == 0.8


def test_a_tree_of_nemo_rl():
    config = tree(
        policy__generation__temperature=1.0,
        policy__generation__top_p=1.0,
        policy__generation__top_k=None,
        policy__generation__vllm_cfg__logprobs_mode="raw_logprobs",
        loss_fn__reference_policy_kl_penalty=0.01,
        grpo__num_generations_per_prompt=16,
    )
    plan = nemo_rl.plan(config)
    assert codes(plan.site) == set() and plan.kind == "raw"
    assert plan.options == {"kl_coef": 0.01, "group_size": 16}
    config["policy"]["generation"]["top_k"] = 50
    assert "KLG101" in codes(nemo_rl.plan(config).site)


def test_the_sampling_table_of_prime_rl():
    plain = {"temperature": 1.0, "max_completion_tokens": 64, "extra_body": {}}
    assert codes(prime_rl.plan(plain, {}, version="0.10.0").site) == set()
    leaking = prime_rl.plan(plain, QWEN, version="0.10.0")
    assert {f.setting for f in findings(leaking.site)} == {"repetition_penalty"}
    assert codes(prime_rl.plan(plain, QWEN, version="0.10.0", generation_config="vllm").site) == set()
    cut = prime_rl.plan({**plain, "extra_body": {"top_k": 20}}, {}, version="0.10.0")
    assert "KLG101" in codes(cut.site)


def test_the_plan_of_a_framework_goes_into_a_guard():
    logits, tokens, _, processed = drawn(7)
    plan = nemo_rl.plan(tree(policy__generation__temperature=1.0, policy__generation__top_k=10))
    back = vllm.returned(
        vllm_outputs(tokens.tolist(), processed.tolist()), plan.site, logprobs_mode="processed_logprobs"
    )
    guard = guarded(back, logits, **plan.options)
    assert "KLG101" in {finding.code for finding in guard.findings}
