"""Which positions are tested: how many, how often each, and that lengths have no say in it."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from klguard.guard.thinning import LATER, YOUNG, Thinning  # noqa: E402


def test_all_positions_of_a_young_run_that_fit_the_budget():
    thinning = Thinning(100, seed=0)
    assert thinning.choose(10, 10).tolist() == list(range(100))


def test_a_first_step_of_unknown_length_costs_the_budget_and_a_logarithm():
    batch, time, budget = 50, 400, 500
    chosen = [len(Thinning(budget, seed).choose(batch, time)) for seed in range(20)]
    expected = budget * (1 + torch.tensor(batch * time / budget).log().item())
    assert sum(chosen) / 20 == pytest.approx(expected, rel=0.03)


def test_whether_a_position_is_taken_does_not_depend_on_how_long_the_step_becomes():
    """The first 30 columns are chosen alike whether 30 or 300 follow: same probabilities, same numbers drawn for
    the same rate would hide it, so frequencies are compared."""

    def frequency(time):
        taken = torch.zeros(8, 30)
        for seed in range(400):
            chosen = Thinning(100, seed).choose(8, time)
            row, column = chosen // time, chosen % time
            early = column < 30
            taken[row[early], column[early]] += 1
        return taken / 400

    short, long = frequency(30), frequency(300)
    assert (short - long).abs().max() < 5 * (0.25 * 2 / 400) ** 0.5


def test_later_steps_cost_the_budget_then_a_share():
    thinning = Thinning(200, seed=1)
    counts = []
    for _ in range(60):
        counts.append(len(thinning.choose(20, 20)))
        thinning.end_step()
    young = YOUNG * 200 // 400
    assert sum(counts[1:young]) / max(1, young - 1) == pytest.approx(200, rel=0.15)
    assert sum(counts[young:]) / (60 - young) == pytest.approx(LATER * 400, rel=0.1)


def test_micro_batches_share_the_budget_of_their_step():
    thinning = Thinning(100, seed=2)
    thinning.choose(10, 40)
    thinning.end_step()
    counts = []
    for _ in range(200):
        counts.append(sum(len(thinning.choose(5, 40)) for _ in range(2)))
        thinning.end_step()
    assert sum(counts) / 200 == pytest.approx(100, rel=0.05)


def test_the_global_generator_is_left_alone_and_a_state_goes_on_alike():
    before = torch.get_rng_state()
    first = Thinning(10, seed=3)
    first.choose(5, 50)
    first.end_step()
    second = Thinning(10, seed=4)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.choose(5, 50), second.choose(5, 50))
    assert torch.equal(before, torch.get_rng_state())
