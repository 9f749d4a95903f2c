"""Which calls are sites."""

from __future__ import annotations

import pytest

from klguard.check import check_source

LOOP = """\
from vllm import LLM, SamplingParams
llm = LLM("my/model")
params = SamplingParams(temperature=1.0, top_p=0.9)

def step(policy, reference, model, messages):
    out = {}
    ids = torch.tensor(out[0].outputs[0].token_ids)
    logprobs, reference_logprobs = policy(ids).logits.log_softmax(-1), reference(ids).logits.log_softmax(-1)
    loss = (0.1 * (logprobs - reference_logprobs) - logprobs).mean()
    loss.backward()
"""


@pytest.mark.parametrize(
    ("call", "lines"),
    [
        ("llm.chat(messages, params)", {3}),
        ("llm.chat(messages, sampling_params=params)", {3}),
        ("model.fast_generate(messages, sampling_params=params)", {3}),
        ("model.fast_generate(messages, sampling_params=params, lora_request=None)", {3}),
    ],
)
def test_calls_of_an_engine_that_chat(call, lines):
    findings = [finding for finding in check_source(LOOP.format(call), "a.py") if finding.code == "KLG103"]
    assert {finding.place.line for finding in findings} == lines
    assert {finding.site.context.value for finding in findings} == {"rollout"}


@pytest.mark.parametrize("call", ["client.chat('hello', 3)", "bot.chat(messages)", "self.chat(a, b, c=1)"])
def test_other_chats_are_no_sites(call):
    assert check_source(f"from transformers import GenerationConfig\n{call}\n", "a.py") == []
