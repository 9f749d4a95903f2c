"""Rewards and advantages against formulas written out in float64."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from klguard.lab.advantages import gae, kl_estimate, token_rewards, total_reward, whitened  # noqa: E402
from klguard.lab.rollout import response_mask, stop_tokens  # noqa: E402
from klguard.lab.update import figures, policy_loss  # noqa: E402


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    values, rewards = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([1, 7, 3, 5, 2])
    return values, rewards, torch.arange(7) < lengths[:, None]


def test_gae_is_the_weighted_sum_of_later_errors(batch):
    values, rewards, mask = batch
    gamma, lam = 0.9, 0.8
    made = gae(rewards * mask, values * mask, mask, gamma, lam)
    for row in range(5):
        length = int(mask[row].sum())
        for t in range(length):
            following = 0.0
            for later in range(t, length):
                after = values[row, later + 1] if later + 1 < length else 0.0
                error = rewards[row, later] + gamma * after - values[row, later]
                following += (gamma * lam) ** (later - t) * error
            assert made[row, t] == pytest.approx(float(following))
        assert (made[row, length:] == 0).all()


def test_the_score_stands_at_the_last_token_and_the_penalty_at_each(batch):
    kl, _, mask = batch
    scores = torch.arange(5.0, dtype=torch.float64)
    rewards = token_rewards(scores, kl * mask, mask, 0.5)
    assert torch.allclose(rewards.sum(1), total_reward(scores, (kl * mask).sum(1), 0.5))
    for row in range(5):
        last = int(mask[row].sum()) - 1
        assert float(rewards[row, last] + 0.5 * kl[row, last]) == pytest.approx(float(scores[row]))
        assert (rewards[row, last + 1 :] == 0).all()


def test_whitening_counts_valid_tokens_only(batch):
    values, _, mask = batch
    made = whitened(values + 5.0, mask, lambda tensor: tensor)
    assert float(made[mask].mean()) == pytest.approx(0.0, abs=1e-9)
    assert float(made[mask].var(unbiased=False)) == pytest.approx(1.0)
    assert (made[~mask] == 0).all()


def test_nothing_behind_the_mask_enters_the_kl(batch):
    values, rewards, mask = batch
    poisoned = values.masked_fill(~mask, torch.nan)
    made = kl_estimate(poisoned, rewards, mask)
    assert made.isfinite().all() and torch.equal(made[mask], (values - rewards)[mask])


def test_the_mask_ends_with_the_first_stop_token_whatever_follows():
    responses = torch.tensor([[5, 1, 0, 1], [0, 5, 5, 5], [1, 0, 0, 0], [5, 2, 5, 1]])
    mask = response_mask(responses, torch.tensor([1, 2]))
    assert mask.long().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]]


def test_the_worse_of_ratio_and_clipped_ratio_is_what_counts():
    old = torch.zeros(4)
    new = torch.tensor([0.5, -0.5, 0.5, -0.5])
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    expected = [-1.2, -(-0.5 + 0.0 + 1.1065307), 1.6487213, 0.8]
    assert policy_loss(new, old, advantages, 0.2).tolist() == pytest.approx(expected, abs=1e-4)
    made = figures(new, old, torch.ones(4, dtype=torch.bool), torch.ones(4), 0.2)
    assert float(made["clip_fraction"]) == 1.0 and float(made["approx_kl"]) > 0


def test_a_model_without_a_stop_token_is_refused():
    with pytest.raises(ValueError, match="eos_token_id"):
        stop_tokens(torch.nn.Linear(1, 1), object())
