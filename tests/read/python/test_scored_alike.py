"""A temperature that sampling parameters carry, and what an engine returns: scored alike, or not."""

import pytest

from klguard.check import check_source

PROGRAM = """\
import torch
from vllm import LLM, SamplingParams
from transformers import AutoModelForCausalLM

TEMPERATURE = 0.7
llm = LLM("my/model"{engine})
policy = AutoModelForCausalLM.from_pretrained("my/model")
reference = AutoModelForCausalLM.from_pretrained("my/model").eval()
optimizer = torch.optim.AdamW(policy.parameters())


def score(model, ids, temperature):
    logits = model(ids).logits[:, :-1] / temperature
    return logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)


def make():
    return SamplingParams(temperature=TEMPERATURE, max_tokens=64)


params = SamplingParams(temperature=TEMPERATURE, max_tokens=64, logprobs=0)
for prompts, rewards in batches():
    outputs = llm.generate(prompts, {given})
    ids = torch.tensor([output.outputs[0].token_ids for output in outputs])
    {old}
    logps, ref_logps = score(policy, ids, {divisor}), score(reference, ids, {divisor})
    ratio = torch.exp(logps - old_logps)
    kl = torch.exp(ref_logps - logps) - (ref_logps - logps) - 1
    loss = -torch.min(ratio * rewards, ratio.clamp(0.8, 1.2) * rewards).mean() + 0.01 * kl.mean()
    loss.backward()
    optimizer.step()
"""
TAKEN = "old_logps = torch.tensor([[next(iter(x.values())).logprob for x in o.outputs[0].logprobs] for o in outputs])"
APPENDED = "old_logps = []\n    old_logps.append([x[0].logprob for x in outputs[0].outputs[0].logprobs])"


def codes(given="params", divisor="TEMPERATURE", old="old_logps = logps.detach()", engine=""):
    program = PROGRAM.format(given=given, divisor=divisor, old=old, engine=engine)
    return {f.code for f in check_source(program) if f.severity.value != "note"}


GIVEN = [
    "params",
    "make()",
    "SamplingParams(temperature=TEMPERATURE, max_tokens=64)",
    "sampling_params=params",
]


@pytest.mark.parametrize("given", GIVEN)
def test_the_same_temperature_is_seen_through_an_argument_of_any_name(given):
    assert codes(given) == set()


@pytest.mark.parametrize("given", GIVEN)
def test_another_temperature_is_told(given):
    assert codes(given, divisor="1.0") == {"KLG106"}


@pytest.mark.parametrize("old", [TAKEN, APPENDED])
def test_raw_log_probs_of_the_engine_are_told_where_the_trainer_divides(old):
    assert codes(old=old) == {"KLG112"}
    assert codes(old=old, engine=', logprobs_mode="processed_logprobs"') == set()
    assert codes(old=old, engine=", **options") == set()
    assert codes(old=old, divisor="1.0") == {"KLG106"}


def test_log_probs_that_are_only_shown_are_not():
    assert (
        codes(old="print(outputs[0].outputs[0].logprobs[0][5].logprob); old_logps = logps.detach()") == set()
    )
