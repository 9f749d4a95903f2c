"""Which values leave the distribution alone, which bend it, which are refused or misread, per engine."""

import ast

import pytest

from klguard.engines import ENGINES
from klguard.settings import Opaque

NOW: dict[str, str] = {}

OFF_AND_ON = [
    # engine, versions, setting, values that are off, values that bend
    ("transformers", NOW, "do_sample", [True, 1], [False, None, 0]),
    ("transformers", NOW, "temperature", [1, 1.0, None], [0.7, 1.0001, 2.0]),
    ("transformers", NOW, "top_k", [0, 0.0, None, 10**8], [50, 1, 200_000, -1]),
    ("transformers", NOW, "top_p", [1.0, 1, 1.5, None], [0.99, 0.0]),
    ("transformers", NOW, "min_p", [None, 0, 0.0], [0.05, 1.0]),
    ("transformers", NOW, "top_h", [None], [0.5, 1.0]),
    ("transformers", NOW, "typical_p", [None, 1.0, 2.0], [0.95, 0.0]),
    ("transformers", NOW, "epsilon_cutoff", [None, 0.0, 1.0, 3], [3e-4]),
    ("transformers", NOW, "eta_cutoff", [None, 0.0, 1.0, 3], [3e-4]),
    ("transformers", NOW, "repetition_penalty", [None, 1, 1.0], [1.05, 0.9]),
    ("transformers", NOW, "encoder_repetition_penalty", [None, 1, 1.0], [1.05]),
    ("transformers", NOW, "no_repeat_ngram_size", [None, 0, -1], [3]),
    ("transformers", NOW, "encoder_no_repeat_ngram_size", [None, 0, -1], [3]),
    ("transformers", NOW, "bad_words_ids", [None], [[[7]]]),
    ("transformers", NOW, "suppress_tokens", [None, []], [[7]]),
    ("transformers", NOW, "begin_suppress_tokens", [None, []], [[7]]),
    ("transformers", NOW, "sequence_bias", [None], [{(7,): 1.0}]),
    ("transformers", NOW, "exponential_decay_length_penalty", [None], [(5, 1.1)]),
    ("transformers", NOW, "min_length", [None, 0, -1], [1, 48]),
    ("transformers", NOW, "min_new_tokens", [None, 0, -1], [1]),
    ("transformers", NOW, "forced_bos_token_id", [None], [0, 5]),
    ("transformers", NOW, "forced_eos_token_id", [None], [0, 5]),
    ("transformers", NOW, "guidance_scale", [None, 1, 1.0], [1.5, 0.5]),
    ("transformers", NOW, "watermarking_config", [None], [{"bias": 2.0}]),
    ("transformers", NOW, "token_healing", [None, False], [True]),
    ("transformers", NOW, "num_beams", [None, 1], [4]),
    ("transformers", NOW, "num_beam_groups", [None, 1], [2]),
    ("transformers", NOW, "diversity_penalty", [None, 0.0], [0.5]),
    ("transformers", NOW, "penalty_alpha", [None, 0, 0.0], [0.6]),
    ("transformers", NOW, "dola_layers", [None], ["high"]),
    ("transformers", NOW, "constraints", [None], [[1]]),
    ("transformers", NOW, "force_words_ids", [None], [[[1]]]),
    ("transformers", NOW, "assistant_ensemble_weight", [None], [0.5]),
    ("transformers", NOW, "prefix_allowed_tokens_fn", [None], [Opaque("allowed")]),
    ("transformers", NOW, "max_new_tokens", [1, 512, None], []),
    ("transformers", NOW, "renormalize_logits", [True, False], []),
    ("transformers", NOW, "num_return_sequences", [1, 8], []),
    ("transformers", NOW, "length_penalty", [1.0, 2.0], []),
    ("vllm", {"vllm": "0.8.5.post1"}, "top_k", [-1, None, 10**8], [0, 50]),
    ("vllm", {"vllm": "0.9.0"}, "top_k", [-1, 0, None], [50, 1]),
    ("vllm", NOW, "temperature", [1.0, 1, None], [0.0, 0.7]),
    ("vllm", NOW, "top_p", [1.0, 1], [0.9]),
    ("vllm", NOW, "min_p", [0.0, 0, None], [0.1]),
    ("vllm", NOW, "repetition_penalty", [1.0, 1], [1.1]),
    ("vllm", NOW, "presence_penalty", [0.0, 0], [0.1, -0.1]),
    ("vllm", NOW, "frequency_penalty", [0.0, 0], [0.1]),
    ("vllm", NOW, "min_tokens", [0, None], [1]),
    ("vllm", NOW, "logit_bias", [None, {}], [{5: 1.0}]),
    ("vllm", NOW, "allowed_token_ids", [None], [[5]]),
    ("vllm", NOW, "bad_words", [None, []], [["no"]]),
    ("vllm", NOW, "structured_outputs", [None], [Opaque("StructuredOutputsParams(...)")]),
    ("vllm", NOW, "logits_processors", [None, []], [Opaque("[processor]")]),
    ("vllm", NOW, "thinking_token_budget", [None, -1], [100]),
    ("vllm", NOW, "best_of", [None, 1], [4]),
    ("vllm", NOW, "use_beam_search", [False, None], [True]),
    ("vllm", NOW, "beam_width", [None, 1], [4]),
    ("vllm", NOW, "ignore_eos", [True, False], []),
    ("sglang", NOW, "top_k", [-1, None, 1 << 30], [0, 50]),
    ("sglang", NOW, "temperature", [1.0, None], [0.0, 0.6]),
    ("sglang", NOW, "top_p", [1.0], [0.95]),
    ("sglang", NOW, "min_p", [0.0, 0], [0.1]),
    ("sglang", NOW, "repetition_penalty", [1.0, None], [1.1]),
    ("sglang", NOW, "min_new_tokens", [0], [8]),
    ("sglang", NOW, "json_schema", [None, ""], ["{}"]),
    ("trl", NOW, "top_k", [0, None], [50]),
    ("trl", NOW, "kl_coef", [0.05, 0.0], []),
    ("trlx", NOW, "top_k", [0, None], [50]),
    ("local", NOW, "top_k", [0, None], [50]),
    ("local", NOW, "do_sample", [True, None], [False]),
]


@pytest.mark.parametrize(("engine", "versions", "setting", "off", "on"), OFF_AND_ON)
def test_off_values_and_others(engine, versions, setting, off, on):
    is_off = ENGINES[engine].is_off
    assert [value for value in off if not is_off(setting, value, versions)] == []
    assert [value for value in on if is_off(setting, value, versions)] == []


FAULTS = [
    # engine, versions, setting, faulty values, values that are taken as they are
    ("transformers", NOW, "temperature", [0, 0.0, -1.0, 2], [1, 1.0, 0.7, None]),
    ("transformers", NOW, "top_k", [-1, 50.0], [0, 0.0, None, 50]),
    ("transformers", NOW, "top_p", [0, 0.0, -0.1], [0.9, 1.0, 1.5]),
    ("transformers", NOW, "min_p", [-0.1, 1.5], [0.0, 1.0, None]),
    ("transformers", NOW, "top_h", [1.0, 0.0, 2.0], [0.5, None]),
    ("transformers", NOW, "typical_p", [0.0], [0.9, 1.0, 2.0]),
    ("transformers", NOW, "repetition_penalty", [0.0, -1.0, 2], [1, 1.0, 1.2, None]),
    ("transformers", NOW, "no_repeat_ngram_size", [3.0], [3, 0, -1, 0.0]),
    ("transformers", NOW, "min_length", [8.0], [8, 0, -1]),
    ("transformers", NOW, "bad_words_ids", [[]], [None, [[1]]]),
    ("transformers", NOW, "sequence_bias", [{}, []], [None]),
    ("transformers", NOW, "max_new_tokens", [0, -1], [1, None]),
    ("vllm", {"vllm": "0.8.5"}, "top_k", [0, -2], [-1, 1]),
    ("vllm", {"vllm": "0.9.2"}, "top_k", [-2], [-1, 0, 1]),
    ("vllm", {"vllm": "0.33.0"}, "temperature", [-0.1, 2.5], [0.0, 2.0]),
    ("vllm", {"vllm": "0.8.5"}, "temperature", [-0.1], [2.5]),
    ("vllm", NOW, "top_p", [0.0, 1.5], [0.1, 1.0]),
    ("vllm", NOW, "presence_penalty", [2.5, -3], [0.0, 2.0]),
    ("vllm", NOW, "allowed_token_ids", [[]], [None, [1]]),
    ("sglang", NOW, "top_k", [0, -2], [-1, 1, None]),
    ("sglang", NOW, "repetition_penalty", [0.0, 2.5], [1.0, 2.0]),
    ("local", NOW, "top_k", [], [-1, 50.0]),
]


@pytest.mark.parametrize(("engine", "versions", "setting", "faulty", "taken"), FAULTS)
def test_values_that_are_refused_or_misread(engine, versions, setting, faulty, taken):
    error = ENGINES[engine].error
    assert [value for value in faulty if not error(setting, value, versions)] == []
    assert [value for value in taken if error(setting, value, versions)] == []


def test_the_words_say_which_value_is_off():
    assert "0 turns top-k off, not -1" in ENGINES["transformers"].error("top_k", -1, NOW)
    assert "-1 turns top-k off, not 0" in ENGINES["sglang"].error("top_k", 0, NOW)
    assert "at most 100 tokens" in ENGINES["transformers"].error("top_h", 1.0, NOW)


@pytest.mark.parametrize("engine", ENGINES.values(), ids=lambda engine: engine.name)
@pytest.mark.parametrize("version", ["0.6.0", "4.30.0", "4.57.6", "5.23.0"])
def test_the_safe_value_is_off_and_not_faulty(engine, version):
    versions = dict.fromkeys(("transformers", "vllm", "sglang", "trl", "trlx"), version)
    for name in engine.settings:
        text = engine.safe(name, versions)
        if text:
            value = ast.literal_eval(text)
            assert engine.is_off(name, value, versions) and not engine.error(name, value, versions), name


def test_values_of_a_wrong_type_are_not_neutral():
    for value in ("1.0", [1.0], Opaque("config.top_p")):
        assert not ENGINES["transformers"].is_off("top_p", value, NOW)
        assert not ENGINES["transformers"].error("top_p", value, NOW)


PROCESSORS = [
    (None, True),
    ([], True),
    (Opaque("LogitsProcessorList()"), True),
    (Opaque("LogitsProcessorList([])"), True),
    (Opaque("LogitsProcessorList([InfNanRemoveLogitsProcessor()])"), True),
    (Opaque("transformers.LogitsProcessorList([transformers.InfNanRemoveLogitsProcessor()])"), True),
    (Opaque("LogitsProcessorList([MinLengthLogitsProcessor(5, eos)])"), False),
    (Opaque("LogitsProcessorList([InfNanRemoveLogitsProcessor(), custom])"), False),
    (Opaque("LogitsProcessorList(processors)"), False),
    (Opaque("processors"), False),
]


@pytest.mark.parametrize(("value", "off"), PROCESSORS, ids=str)
def test_processors_that_keep_the_softmax(value, off):
    assert ENGINES["transformers"].is_off("logits_processor", value, NOW) is off
