"""KLG821 and KLG824: whitening and the recursion."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from klguard.findings import Severity  # noqa: E402
from klguard.guard.events import Advantages, Preflight  # noqa: E402
from klguard.guard.invariants.advantages import (  # noqa: E402
    GAETerminal,
    WhitenedAdvantages,
    generalised_advantages,
)

from .harness import play  # noqa: E402

GAMMA, LAM = 0.97, 0.9


def prefix_mask(rows=6, time=9, seed=0):
    lengths = torch.randint(1, time, (rows,), generator=torch.Generator().manual_seed(seed))
    return torch.arange(time) < lengths[:, None]


def draw(shape, seed=0, **options):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), **options)


def whiten(values, mask, *, unbiased=False, eps=1e-8):
    inside = values[mask]
    spread = (inside.var(unbiased=unbiased) + eps).sqrt()
    return (values - inside.mean()) / spread * mask


def whitened(values, mask, **details):
    return Advantages(advantages=values, mask=mask, whitened=True, **details)


def found(kind, *events):
    return [breach for _, breach in play(kind, [events])]


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 6, 300])
def test_whitening_over_the_mask_passes(rows, unbiased):
    mask = prefix_mask(rows)
    mask[0, :2] = True
    values = draw(mask.shape) * 3 + 5
    values[~mask] = torch.nan
    right = torch.where(mask, whiten(values, mask, unbiased=unbiased), 0.0)
    assert found(WhitenedAdvantages, whitened(right, mask)) == []


def test_whitening_call_by_call_passes():
    events = []
    for seed in range(40):
        mask = prefix_mask(4, seed=seed)
        mask[:, :2] = True
        values = draw(mask.shape, seed=seed)
        events.append(whitened(whiten(values, mask, unbiased=True), mask, raw=values))
    assert found(WhitenedAdvantages, *events) == []


def test_bf16_passes():
    mask = prefix_mask(64)
    values = whiten(draw(mask.shape), mask)
    assert found(WhitenedAdvantages, whitened(values.bfloat16(), mask)) == []


@pytest.mark.parametrize("constant", [0.0, 1.0, 10.0, 1e4])
def test_advantages_without_a_spread_are_not_judged(constant):
    mask = prefix_mask(32)
    values = torch.full(mask.shape, constant)
    assert found(WhitenedAdvantages, whitened(whiten(values, mask), mask)) == []
    assert found(WhitenedAdvantages, whitened(whiten(values, mask), mask, raw=values)) == []


def test_a_large_epsilon_with_tiny_advantages_passes():
    mask = prefix_mask(32)
    values = draw(mask.shape) * 1e-3
    assert found(WhitenedAdvantages, whitened(whiten(values, mask, eps=1e-6), mask, raw=values)) == []


@pytest.mark.parametrize("over", ["sequences", "tokens"])
def test_one_advantage_for_each_sequence(over):
    mask = prefix_mask(50)
    values = draw((50,))
    weights = mask.sum(1) if over == "tokens" else torch.ones(50)
    mean = (values * weights).sum() / weights.sum()
    variance = ((values - mean) ** 2 * weights).sum() / weights.sum()
    right = (values - mean) / variance.sqrt()
    assert found(WhitenedAdvantages, whitened(right, mask)) == []
    (breach,) = found(WhitenedAdvantages, whitened(right + 0.3, mask))
    assert "mean" in breach.message


def test_empty_and_one_token_masks_pass():
    mask = torch.zeros(3, 5, dtype=torch.bool)
    assert found(WhitenedAdvantages, whitened(torch.zeros(3, 5), mask)) == []
    mask[0, 0] = True
    assert found(WhitenedAdvantages, whitened(torch.zeros(3, 5), mask)) == []


def test_padding_in_the_statistics_is_found():
    mask = prefix_mask()
    values = torch.where(mask, draw(mask.shape) + 2, 0.0)
    (breach,) = found(WhitenedAdvantages, whitened(whiten(values, torch.ones_like(mask)) * mask, mask))
    assert "the mean has to be 0" in breach.message and abs(breach.value) > 0.1


def test_a_wrong_scale_is_found():
    mask = prefix_mask(64)
    right = whiten(draw(mask.shape), mask)
    (breach,) = found(WhitenedAdvantages, whitened(right * 1.05, mask))
    assert "standard deviation 1.05" in breach.message
    (breach,) = found(WhitenedAdvantages, whitened(right * 0.9, mask, raw=draw(mask.shape)))
    assert "standard deviation 0.9" in breach.message


def test_values_at_padding_are_a_warning():
    mask = prefix_mask()
    values = whiten(draw(mask.shape), mask).masked_fill(~mask, -1.0)
    (breach,) = found(WhitenedAdvantages, whitened(values, mask))
    assert breach.severity is Severity.WARNING
    assert breach.value == (~mask).sum()


# ------------------------------------------------------------------------------------------------ recursion


def gae(rewards, values, mask, *, bootstrap=None):
    """The textbook recursion, row by row, in float64."""
    answer = torch.zeros_like(rewards, dtype=torch.float64)
    for row in range(rewards.shape[0]):
        length = int(mask[row].sum())
        after, total = 0.0 if bootstrap is None else float(bootstrap[row]), 0.0
        for t in reversed(range(length)):
            delta = float(rewards[row, t]) + GAMMA * after - float(values[row, t])
            total = delta + GAMMA * LAM * total
            answer[row, t] = total
            after = float(values[row, t])
    return answer


def recursion(raw, rewards, values, mask, **details):
    return Advantages(
        advantages=raw, raw=raw, mask=mask, rewards=rewards, values=values, gamma=GAMMA, lam=LAM, **details
    )


@pytest.mark.parametrize("time", [1, 2, 3, 64, 100])
def test_doubling_is_the_sum(time):
    deltas = draw((3, time), dtype=torch.float64)
    expected = torch.zeros_like(deltas)
    for t in range(time):
        for later in range(t, time):
            expected[:, t] += 0.8 ** (later - t) * deltas[:, later]
    torch.testing.assert_close(generalised_advantages(deltas, 0.8), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_right_recursion_passes(dtype):
    mask = prefix_mask(20, 60)
    mask[0] = False
    rewards, values = draw(mask.shape, 1).to(dtype), draw(mask.shape, 2).to(dtype)
    values[~mask] = torch.nan
    right = gae(rewards, values, mask).to(dtype)
    assert found(GAETerminal, recursion(right, rewards, values, mask)) == []
    returns = (right + values).masked_fill(~mask, 0)
    event = Advantages(
        advantages=right, returns=returns, mask=mask, rewards=rewards, values=values, gamma=GAMMA, lam=LAM
    )
    assert found(GAETerminal, event) == []


def test_rows_that_were_cut_off_and_masks_with_holes_are_not_judged():
    mask = torch.ones(4, 6, dtype=torch.bool)
    rewards, values = draw(mask.shape, 1), draw(mask.shape, 2)
    bootstrapped = gae(rewards, values, mask, bootstrap=torch.ones(4))
    assert found(GAETerminal, recursion(bootstrapped, rewards, values, mask)) == []
    mask[:, 2], mask[:, 5] = False, False
    assert found(GAETerminal, recursion(draw(mask.shape), rewards, values, mask)) == []


def over_holes(rewards, values, mask, how):
    """The recursion row by row: from one valid token to the next, or through the others ("through"), or "anew"."""
    answer = torch.zeros_like(rewards, dtype=torch.float64)
    for row in range(rewards.shape[0]):
        after, total = 0.0, 0.0
        last = int(mask[row].nonzero().max())
        for t in reversed(range(last + 1)):
            if not mask[row, t] and how != "through":
                after, total = (0.0, 0.0) if how == "anew" else (after, total)
                continue
            total = float(rewards[row, t]) + GAMMA * after - float(values[row, t]) + GAMMA * LAM * total
            answer[row, t], after = total, float(values[row, t])
    return answer


@pytest.mark.parametrize(("how", "key"), [("right", None), ("through", "through"), ("anew", "anew")])
def test_tool_tokens_are_no_steps(how, key):
    mask = prefix_mask(8, 20)
    mask[:, -1] = False
    mask[:, 0], mask[:, 2:4], mask[:, 5] = True, False, True
    rewards, values = draw(mask.shape, 1) * mask, draw(mask.shape, 2)
    told = over_holes(rewards, values, mask, how)
    breaches = found(GAETerminal, recursion(told, rewards, values, mask))
    assert [breach.key for breach in breaches] == ([] if key is None else [key])


def test_bootstrapping_from_padding_is_found_and_named():
    mask = prefix_mask()
    rewards, values = draw(mask.shape, 1) * mask, draw(mask.shape, 2)
    at_padding = values.gather(1, mask.sum(1, keepdim=True))[:, 0]
    wrong = gae(rewards, values, mask, bootstrap=at_padding)
    (breach,) = found(GAETerminal, recursion(wrong, rewards, values, mask))
    assert "values at padding are taken for real" in breach.message
    assert "6 of 6 rows" in breach.message


def test_another_gamma_is_found_and_not_called_padding():
    mask = prefix_mask()
    rewards, values = draw(mask.shape, 1) * mask, draw(mask.shape, 2) * mask
    wrong = gae(rewards, values, mask) * 1.01
    (breach,) = found(GAETerminal, recursion(wrong, rewards, values, mask))
    assert "padding" not in breach.message


def test_without_gamma_nothing_is_claimed():
    mask = prefix_mask()
    values = draw(mask.shape)
    event = Advantages(advantages=values, raw=values, mask=mask, rewards=values, values=values)
    assert found(GAETerminal, event) == []


def test_returns_without_values_are_sums_of_later_rewards():
    mask = prefix_mask()
    rewards = draw(mask.shape, 1) * mask
    right = torch.zeros_like(rewards, dtype=torch.float64)
    for t in reversed(range(mask.shape[1])):
        later = right[:, t + 1] if t + 1 < mask.shape[1] else 0.0
        right[:, t] = rewards[:, t] + GAMMA * later
    for returns, count in ((right * mask, 0), (rewards, 1), (right * mask + 0.01 * mask, 1)):
        told = Advantages(advantages=returns, returns=returns, mask=mask, rewards=rewards, gamma=GAMMA)
        assert len(found(GAETerminal, told)) == count


def test_preflight_tells_a_function_that_reads_padding_from_one_that_expects_it_masked():
    def bootstraps(rewards, values, mask):
        after = torch.nn.functional.pad(values[:, 1:], (0, 1))
        return (rewards + after - values) * mask

    def ignores_the_mask(rewards, values, mask):
        return rewards + torch.nn.functional.pad(values[:, 1:], (0, 1)) - values

    def right(rewards, values, mask):
        values = values * mask
        after = torch.nn.functional.pad(values[:, 1:], (0, 1))
        return (rewards + after - values) * (1 - (1 - mask)), "returns"

    (breach,) = found(GAETerminal, Preflight(gae=bootstraps))
    assert breach.value == pytest.approx(7.0)
    assert found(GAETerminal, Preflight(gae=ignores_the_mask)) == []
    assert found(GAETerminal, Preflight(gae=right)) == []


def returned(from_whitened, mask=None, **details):
    """An event whose returns were made before whitening, or from what came out of it."""
    mask = prefix_mask() if mask is None else mask
    rewards, values = draw(mask.shape, 1) * mask, draw(mask.shape, 2)
    raw = gae(rewards, values, mask)
    white = torch.where(mask, whiten(raw, mask), 0.0)
    details = {"raw": raw, "rewards": rewards, "gamma": GAMMA, "lam": LAM} | details
    returns = ((white if from_whitened else raw) + values) * mask
    return Advantages(advantages=white, mask=mask, whitened=True, values=values, returns=returns, **details)


def test_returns_made_from_whitened_advantages_are_found():
    (breach,) = found(GAETerminal, returned(True))
    assert breach.key == "returns"
    assert breach.severity is Severity.WARNING
    assert found(GAETerminal, returned(False)) == []


def test_other_returns_and_advantages_that_were_white_before_pass():
    right = returned(False)
    assert found(GAETerminal, replace(right, returns=right.returns * 0.9 + 0.3)) == []
    returns = (right.advantages + right.values) * right.mask
    assert found(GAETerminal, replace(right, raw=right.advantages, rewards=None, returns=returns)) == []
    few = prefix_mask(1, 9, seed=3)
    assert int(few.sum()) < GAETerminal.TOKENS
    assert found(GAETerminal, returned(True, few)) == []
