"""k3 with a turned sign, and a seed that each rollout starts from: told; as they should be, or not certain, not told."""

import pytest

from klguard.check import check_source
from klguard.rules.programs import by_hand, vllm

PURE = "do_sample=True, top_k=0, max_new_tokens=32"
LOSS = "-(score(tokens) * logprobs).mean() + 0.1 * kl.mean()"


def codes(source):
    return {f.code for f in check_source(source)}


TURNED = [
    "torch.exp(logprobs - ref_logprobs) - (logprobs - ref_logprobs) - 1",
    "(logprobs - ref_logprobs).exp() - 1 - (logprobs - ref_logprobs)",
    "torch.exp(logprobs - ref_logprobs) + ref_logprobs - logprobs - 1",
    "torch.exp(ref_logprobs - logprobs) - (logprobs - ref_logprobs) - 1",
    "torch.exp(-(ref_logprobs - logprobs)) - 1 + (ref_logprobs - logprobs)",
]
RIGHT = [
    "torch.exp(ref_logprobs - logprobs) - (ref_logprobs - logprobs) - 1",
    "torch.exp(ref_logprobs - logprobs) + (logprobs - ref_logprobs) - 1",
    "(ref_logprobs - logprobs).exp() - 1 + logprobs - ref_logprobs",
    "torch.exp(-(logprobs - ref_logprobs)) - 1 + (logprobs - ref_logprobs)",
    "torch.exp(logprobs - ref_logprobs) - 1",
    "torch.exp(logprobs - ref_logprobs) * (logprobs - ref_logprobs)",
]


@pytest.mark.parametrize("kl", TURNED)
def test_a_turned_sign_is_told(kl):
    assert codes(by_hand(PURE, kl=kl, loss=LOSS)) == {"KLG405"}


@pytest.mark.parametrize("kl", RIGHT)
def test_the_right_form_and_other_forms_are_not(kl):
    assert codes(by_hand(PURE, kl=kl, loss=LOSS)) == set()


@pytest.mark.parametrize(
    ("way", "expected"), [("logprobs - ref_logprobs", {"KLG405"}), ("ref_logprobs - logprobs", set())]
)
def test_a_form_in_steps_is_followed(way, expected):
    steps = (
        f"log_ratio = {way}\n    ratio = torch.exp(log_ratio)\n    kl = (ratio - log_ratio - 1).contiguous()"
    )
    assert codes(by_hand(PURE, kl="None", mask=steps, loss=LOSS)) == expected


@pytest.mark.parametrize("way", ["log_probs - ref_log_probs", "ref_log_probs - log_probs"])
def test_a_function_that_returns_it_is_read(way):
    function = f"def approx_kl(log_probs, ref_log_probs):\n    d = {way}\n    return d.exp() - d - 1\n\n\n"
    source = by_hand(PURE, kl="approx_kl(logprobs, ref_logprobs)", loss=LOSS)
    assert codes(function + source) == ({"KLG405"} if way.startswith("log") else set())


def seeded(line, where="    ", top=""):
    return by_hand(PURE, before=top).replace("    tokens =", f"{where}{line}\n    tokens =")


@pytest.mark.parametrize(
    "source",
    [
        seeded("torch.manual_seed(0)"),
        seeded("torch.cuda.manual_seed_all(7)"),
        seeded("set_seed(42)", top="from transformers import set_seed"),
        seeded("set_seed(SEED)", top="from transformers import set_seed\nSEED = 1"),
        seeded("torch.manual_seed(args.seed)", top="args = parse()"),
        vllm("temperature=1.0, max_tokens=256, seed=0"),
        vllm("temperature=1.0, max_tokens=256, seed=SEED", before="SEED = 1"),
    ],
)
def test_one_seed_for_all_rollouts_is_told(source):
    assert codes(source) == {"KLG204"}


def test_one_seed_in_a_function_that_a_loop_calls_is_told():
    function = (
        f"def sample(inputs):\n    torch.manual_seed(3)\n    return policy.generate(**inputs, {PURE})\n\n\n"
    )
    source = by_hand(PURE).replace(f"policy.generate(**inputs, {PURE})", "sample(inputs)")
    assert codes(source.replace("optimizer =", function + "optimizer =")) == {"KLG204"}


@pytest.mark.parametrize(
    "source",
    [
        seeded("torch.manual_seed(0)", where="    if first: "),
        seeded("torch.manual_seed(step)"),
        seeded("torch.manual_seed(seed + 1)", top="seed = 1"),
        seeded("torch.manual_seed(seed); seed += 1", top="seed = 1"),
        seeded("random.seed(0)"),
        seeded("generator.manual_seed(0)"),
        by_hand(PURE, before="torch.manual_seed(0)"),
        by_hand("do_sample=True, top_k=0, max_new_tokens=32", mask="torch.manual_seed(0)"),
        vllm("temperature=1.0, max_tokens=256, seed=None"),
        vllm("temperature=1.0, max_tokens=256, seed=next_seed()"),
    ],
)
def test_seeds_that_differ_or_are_set_once_are_not(source):
    assert "KLG204" not in codes(source)


def test_a_seed_that_a_trainer_takes_over_is_noted():
    source = (
        "from trl import GRPOConfig, GRPOTrainer\nfrom vllm import SamplingParams\n"
        "params = SamplingParams(seed=3407, max_tokens=32)\n"
        "config = GRPOConfig(use_vllm=True, vllm_sampling_params=params)\n"
        'GRPOTrainer(model="gpt2", reward_funcs=score, args=config).train()\n'
    )
    assert {f.severity.value for f in check_source(source) if f.code == "KLG204"} <= {"note"}
