"""What the guard finds, and what it calls it, on a few faults. All of them: benchmarks/guard_detection.py."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
detection = pytest.importorskip(
    "benchmarks.guard_detection", reason="benchmarks are not in the source package"
)
rivals = pytest.importorskip("benchmarks.rivals")
from benchmarks.cases import cases  # noqa: E402
from benchmarks.policies import make_policy, perturbed, token_log_probs  # noqa: E402

PLAN = detection.Plan(vocabulary=300, runs=2, tokens=2000, rival_tokens=300)
CASES = {case.name: case for case in cases()}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    detection.settle()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("name", "within"),
    [
        ("top_k=20", 400),
        ("top_p=0.9", 500),
        ("temperature=0.7", 500),
        ("temperature=1.5", 500),
        ("do_sample=False", 300),
        ("suppress_tokens, the stop token", 1500),
        ("min_new_tokens=16", 1500),
        ("shifted twice", 300),
        ("shift forgotten", 300),
        ("scored at temperature 0.7", 500),
    ],
)
def test_every_run_is_found_in_time_and_named_right(name, within):
    figures = detection.measure(name, PLAN)
    assert figures["guard"]["found"] == 1.0
    assert figures["guard"]["p90"] <= within
    assert figures["cause_right"] == 1.0, figures["causes_named"]


@pytest.mark.parametrize("name", ["pure sampling", "stop token ignored, tokens after it masked"])
def test_what_is_harmless_is_not_found(name):
    figures = detection.measure(name, detection.Plan(vocabulary=300, runs=2, rival_tokens=1000))
    assert figures["kl_nats_per_token"] == pytest.approx(0.0, abs=1e-5)
    assert figures["guard"]["found"] == 0.0


def test_stale_weights_are_found_by_name_when_their_log_probs_are_given():
    longer = detection.Plan(vocabulary=300, runs=2, tokens=6000, rival_tokens=300)
    figures = detection.measure("weights one update old, their log-probs given", longer)
    assert figures["guard"]["found"] == 1.0
    assert figures["cause_right"] == 1.0, figures["causes_named"]
    assert figures["codes"]["KLG704"] == PLAN.runs


# ----------------------------------------------------------------------------- what the benchmark is made of


def test_a_policy_has_the_entropy_and_the_stop_probability_asked_for():
    policy = make_policy(300, 2.0, seed=5, stop=0.05)
    torch.manual_seed(0)
    prompts, attention_mask = policy.prompts(128, 6, torch.Generator().manual_seed(1))
    rollout = policy.rollout(prompts, attention_mask, 24)
    with torch.no_grad():
        log_p = policy.logits(rollout).log_softmax(-1)[rollout.mask]
    assert -(log_p.exp() * log_p).sum(-1).mean().item() == pytest.approx(2.0, abs=0.3)
    assert log_p[:, policy.stop].exp().mean().item() == pytest.approx(0.05, abs=0.02)


def test_scoring_agrees_with_what_generate_drew_from_also_under_left_padding():
    policy = make_policy(100, 2.0, seed=6)
    torch.manual_seed(0)
    prompts, attention_mask = policy.prompts(16, 6, torch.Generator().manual_seed(1), ragged=True)
    rollout = policy.rollout(prompts, attention_mask, 12, keep_scores=True)
    with torch.no_grad():
        scored = token_log_probs(policy.logits(rollout), rollout.tokens)
    assert torch.allclose(scored[rollout.mask], rollout.processed[rollout.mask], atol=1e-4)
    assert torch.equal(rollout.raw, rollout.processed)


def test_a_reference_is_as_far_as_asked_for():
    policy = make_policy(100, 2.0, seed=7)
    reference = perturbed(policy, 0.05, seed=8)
    prompts, attention_mask = policy.prompts(128, 6, torch.Generator().manual_seed(1))
    rollout = policy.rollout(prompts, attention_mask, 16)
    with torch.no_grad():
        log_p, log_r = (m.logits(rollout).log_softmax(-1)[rollout.mask] for m in (policy, reference))
    assert (log_p.exp() * (log_p - log_r)).sum(-1).mean().item() == pytest.approx(0.05, rel=0.3)


def test_the_alarms_of_others_follow_their_formulas():
    mask = torch.tensor([[True, True, False]])
    logprobs = torch.tensor([[-1.0, -2.0, -9.0]])
    below = rivals.Batch(logprobs, logprobs + torch.tensor([[0.6, 0.5, 0.0]]), mask)
    assert rivals.trl_negative_kl(below) and rivals.mean_below_zero(below)
    slightly = rivals.Batch(logprobs, logprobs + torch.tensor([[0.4, 0.4, 9.0]]), mask)
    assert not rivals.trl_negative_kl(slightly) and rivals.mean_below_zero(slightly)
    engine = rivals.Batch(logprobs, logprobs, mask, engine=logprobs + math.log(1.06))
    assert rivals.nemo_multiplicative(engine) and not rivals.verl_ratio(engine)
    assert rivals.nemo_kl(engine) == (1 / 1.06 - 1 + math.log(1.06) > 1e-3)
    assert rivals.verl_ratio(rivals.Batch(logprobs, logprobs, mask, engine=logprobs + 0.7))


def test_what_is_found_is_counted_in_tokens_and_missing_runs_leave_no_quantile():
    assert detection.quantile([10, 20, 30, math.inf], 0.5) == 20
    assert detection.quantile([10, 20, 30, math.inf], 0.9) is None
