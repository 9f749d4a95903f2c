"""KLG844 follows the precision that the loop's own function computes in."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from klguard.guard.events import Preflight  # noqa: E402
from klguard.guard.invariants import Run  # noqa: E402
from klguard.guard.invariants.accumulation import Accumulation, _half_precision  # noqa: E402
from tests.guard.harness import Player  # noqa: E402

ROWS, TIME, VOCABULARY = 4, 12, 50


class Inside(nn.Module):
    """A model that switches autocast on by itself, and hands out fp32."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        with torch.autocast("cpu", torch.bfloat16):
            return self.model(ids).float()


def loop(seed, *, autocast, division, inside=False):
    """(policy, accumulate) of a loop in fp32 weights, whose accumulate runs under autocast."""
    torch.manual_seed(seed)
    policy = nn.Sequential(
        nn.Embedding(VOCABULARY, 32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, VOCABULARY)
    )
    model = Inside(policy) if inside else policy
    data = torch.randint(0, VOCABULARY, (ROWS, TIME))

    def accumulate(batches):
        for rows in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                logits = model(data[rows])
            logprobs = logits.float().log_softmax(-1).gather(-1, data[rows].roll(1, 1)[..., None])
            (-logprobs.sum() / division(len(rows))).backward()

    return model, accumulate


def found(seed, **how):
    policy, accumulate = loop(seed, **how)
    player = Player(Accumulation, Run(policy=policy))
    breaches = player.step([Preflight(accumulate=accumulate)])
    assert player.invariant.exercised
    return [breach.value for breach in breaches]


def whole(_):
    return ROWS * TIME


@pytest.mark.parametrize(
    "how", [{"autocast": True}, {"autocast": False, "inside": True}], ids=["loop", "model"]
)
@pytest.mark.parametrize("seed", range(3))
def test_rounding_under_autocast_is_no_wrong_division(seed, how, monkeypatch):
    assert found(seed, **how, division=whole) == []
    monkeypatch.setattr(Accumulation, "ROUGH", Accumulation.EXACT)
    (error,) = found(seed, **how, division=whole)
    assert 1e-3 < error < 1e-2, "or the test would show nothing"


@pytest.mark.parametrize("autocast", [True, False])
def test_a_wrong_division_is_found_in_either_precision(autocast):
    (error,) = found(0, autocast=autocast, division=lambda rows: rows * TIME)
    assert error == pytest.approx(1.0, abs=0.01)


def test_fp32_keeps_its_own_limit():
    """One row in four, weighted by 1.02: below the limit of half precision, above that of fp32."""
    (error,) = found(
        0, autocast=False, division=lambda rows: whole(rows) * (1.02 if rows == ROWS // 2 else 1)
    )
    assert error == pytest.approx(0.02, abs=0.002)
    assert found(0, autocast=True, division=lambda rows: whole(rows) * (1.02 if rows == 2 else 1)) == []


def test_half_precision_is_seen_in_the_inputs_too_and_the_hook_is_taken_off():
    layer, rounded = nn.Linear(2, 2), nn.Linear(2, 2).bfloat16()
    with _half_precision() as seen:
        layer(torch.ones(1, 2))
        assert seen == set()
        rounded(torch.ones(1, 2).bfloat16())
    assert seen == {torch.bfloat16}
    before = set(seen)
    layer.half()(torch.ones(1, 2).half())
    assert seen == before


@pytest.mark.parametrize("wrong", (False, True))
def test_a_value_head_beside_the_policy_counts(wrong):
    """Its loss is a mean of each micro-batch, where the policy's is divided by all tokens."""
    policy, policy_loss = loop(0, autocast=False, division=whole)
    torch.manual_seed(1)
    head = nn.Linear(8, 1)
    data = torch.randn(ROWS, 8)

    def accumulate(batches):
        policy_loss(batches)
        for rows in batches:
            (head(data[rows]).square().sum() / (len(rows) if wrong else ROWS)).backward()

    optimizer = torch.optim.SGD([*policy.parameters(), *head.parameters()], lr=0.1)
    player = Player(Accumulation, Run(policy=policy, optimizers=[optimizer]))
    breaches = player.step([Preflight(accumulate=accumulate)])
    assert player.invariant.exercised and all(p.grad is None for p in head.parameters())
    assert [("outside the policy" in breach.message) for breach in breaches] == [True] * wrong
