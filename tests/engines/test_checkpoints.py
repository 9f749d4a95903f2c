"""Known checkpoints, by the name they are loaded with."""

import pytest

from klguard.engines import ENGINES
from klguard.engines.checkpoints import CHECKPOINTS, layer_for
from klguard.settings import HopKind, LayerKind

LLAMA = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
QWEN = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20}

KNOWN = [
    ("meta-llama/Meta-Llama-3-8B-Instruct", LLAMA),
    ("meta-llama/Llama-3.1-8B", LLAMA),
    ("meta-llama/Llama-3.1-8B-Instruct", LLAMA),
    ("unsloth/Llama-3.2-1B-Instruct-bnb-4bit", LLAMA),
    ("meta-llama/Llama-2-7b-chat-hf", LLAMA),
    ("Qwen/Qwen2.5-7B-Instruct", QWEN | {"repetition_penalty": 1.05}),
    ("Qwen/Qwen2.5-Coder-32B-Instruct-AWQ", QWEN | {"repetition_penalty": 1.05}),
    ("Qwen/Qwen2-1.5B-Instruct", QWEN | {"repetition_penalty": 1.1}),
    ("Qwen/Qwen3-4B-Instruct-2507", QWEN),
    ("Qwen/Qwen3-8B", {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20}),
    ("Qwen/Qwen2.5-1.5B", {"do_sample": False, "max_new_tokens": 2048}),
    ("google/gemma-3-1b-it", {"do_sample": True, "top_k": 64, "top_p": 0.95}),
    ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", {"do_sample": True, "temperature": 0.6, "top_p": 0.95}),
    ("openai/gpt-oss-20b", {"do_sample": True}),
    ("gpt2", {}),
    ("lvwerra/gpt2-imdb", {}),
    ("openai-community/gpt2-large", {}),
    ("EleutherAI/pythia-1b-deduped", {}),
    ("mistralai/Mistral-7B-Instruct-v0.2", {}),
]


@pytest.mark.parametrize(("name", "values"), KNOWN)
def test_known_checkpoints(name, values):
    layer = layer_for(name)
    assert {setting: value.value for setting, value in layer.values.items()} == values
    assert layer.kind is LayerKind.CHECKPOINT


OTHERS = ["my-org/my-model", "./gpt2", "/models/gpt2", "out/run/gpt2", "gpt2-chinese", ""]


@pytest.mark.parametrize("name", OTHERS)
def test_other_names_and_paths_are_not_known(name):
    assert layer_for(name) is None


def test_values_say_where_they_come_from():
    hops = layer_for("Qwen/Qwen3-8B").values["top_k"].hops
    assert hops[0].kind is HopKind.CHECKPOINT and "Qwen/Qwen3-8B" in hops[0].text


def test_every_value_is_a_setting_that_transformers_accepts():
    engine = ENGINES["transformers"]
    for checkpoint in CHECKPOINTS:
        for name, value in checkpoint.values.items():
            assert name in engine.settings and engine.error(name, value, {}) is None


def test_a_release_that_turns_on_the_overwrite_is_known_for_the_checkpoints_that_have_it():
    assert layer_for("Qwen/Qwen3-8B").version == "4.51.0"
    assert layer_for("google/gemma-3-1b-it").version == "4.50.0.dev0"
