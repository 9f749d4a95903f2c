"""KLG822 and KLG823: groups."""

import pytest

torch = pytest.importorskip("torch")

from klguard.findings import Severity  # noqa: E402
from klguard.guard.events import Advantages, Rollout  # noqa: E402
from klguard.guard.invariants import Run  # noqa: E402
from klguard.guard.invariants.groups import CompleteGroups, GroupSpread, bucket_of  # noqa: E402
from klguard.guard.invariants.implied_groups import ImpliedGroups  # noqa: E402

from .harness import Player, play  # noqa: E402


def draw(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def grouped(groups=6, size=4, seed=0, *, leave_one_out=False, scaled=False):
    """Ids, scores and centred advantages, as a baseline over each group makes them."""
    scores = draw((groups, size), seed)
    centred = scores - scores.mean(1, keepdim=True)
    if leave_one_out:
        centred = centred * size / (size - 1)
    if scaled:
        centred = centred / (scores.std(1, keepdim=True) + 1e-4)
    ids = torch.arange(groups).repeat_interleave(size) * 1000 + 17
    return ids, scores.flatten(), centred.flatten()


def event(ids, scores, advantages, size=4, **details):
    mask = details.pop("mask", torch.ones(len(ids), 3, dtype=torch.bool))
    return Advantages(advantages=advantages, mask=mask, groups=ids, scores=scores, group_size=size, **details)


def found(kind, *events, run=None):
    return [breach for _, breach in play(kind, [events], run)]


@pytest.mark.parametrize("how", [{}, {"leave_one_out": True}, {"scaled": True}])
@pytest.mark.parametrize("form", ["sequence", "token", "bf16", "list"])
def test_right_groups_pass_in_any_order(how, form):
    ids, scores, advantages = grouped(50, **how)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(1))
    ids, scores, advantages = ids[order], scores[order], advantages[order]
    if form == "token":
        advantages = advantages[:, None].expand(-1, 3) * torch.tensor([1, 1, 0])
        mask = torch.tensor([1, 1, 0], dtype=torch.bool).expand(len(ids), 3)
        assert found(CompleteGroups, event(ids, scores, advantages, mask=mask)) == []
        return
    if form == "bf16":
        advantages = advantages.bfloat16()
    if form == "list":
        ids = ids.tolist()
    assert found(CompleteGroups, event(ids, scores, advantages)) == []


def test_groups_spread_over_calls_pass():
    ids, scores, advantages = grouped()
    events = [event(ids[k::5], scores[k::5], advantages[k::5]) for k in range(5)]
    assert found(CompleteGroups, *events) == []


def test_equal_numbers_on_two_ranks_pass():
    ids, scores, advantages = grouped()
    assert found(CompleteGroups, event(ids, scores, advantages), event(ids, scores, advantages)) == []


def test_large_rewards_pass():
    ids, scores, advantages = grouped(200)
    assert found(CompleteGroups, event(ids, scores * 1e4, (advantages * 1e4).float())) == []


def test_a_missing_row_is_found():
    ids, scores, advantages = grouped()
    (breach,) = found(CompleteGroups, event(ids[1:], None, advantages[1:]))
    assert "do not make whole groups of 4" in breach.message


def test_the_group_size_of_the_guard_is_used():
    ids, scores, advantages = grouped()
    run = Run(group_size=3)
    (breach,) = found(CompleteGroups, event(ids, None, advantages, None), run=run)
    assert breach.key == "size"


def test_groups_of_one_are_found():
    ids = torch.arange(8)
    (breach,) = found(CompleteGroups, event(ids, None, torch.zeros(8), 1))
    assert "nothing to compare" in breach.message


def test_comparing_across_groups_is_found():
    ids, scores, _ = grouped()
    across = scores - scores.mean()
    (breach,) = found(CompleteGroups, event(ids, scores, across))
    assert breach.key == "sum"


@pytest.mark.parametrize("case", ["per token", "empty row", "whitened", "no scores"])
def test_advantages_that_need_not_add_up_are_left_alone(case):
    ids, scores, advantages = grouped()
    mask = torch.ones(len(ids), 3, dtype=torch.bool)
    if case == "per token":
        made = event(ids, scores, draw((len(ids), 3)))
    elif case == "empty row":
        mask[0] = False
        made = event(ids, scores, advantages[:, None] * mask, mask=mask)
    elif case == "whitened":
        made = event(ids, scores, advantages + 0.3, whitened=True)
    else:
        made = event(ids, None, advantages + 0.3)
    assert found(CompleteGroups, made) == []


def test_close_ids_are_spread_over_the_buckets():
    for ids in (torch.arange(64), torch.arange(64) * 64, torch.arange(64) * 2**20, -torch.arange(64)):
        buckets = bucket_of(ids)
        assert buckets.min() >= 0 and buckets.max() < 64
        assert len(buckets.unique()) > 30


@pytest.mark.parametrize(("residue", "keys"), [(1.6e-4, ["blown up"]), (0.3, [])])
def test_a_group_that_is_divided_by_what_rounding_left_of_nothing(residue, keys):
    ids, scores, _ = grouped(6, 4)
    scores = scores.view(-1, 4).clone()
    scores[0] = torch.tensor([0.35, 0.35, 0.35, 1.0])
    centred = scores - scores.mean(1, keepdim=True)
    spread = scores.std(1, keepdim=True)
    spread[0] = residue
    made = event(ids, scores.flatten(), (centred / spread).flatten())
    assert [breach.key for breach in found(CompleteGroups, made)] == keys


def test_large_advantages_of_all_groups_and_of_one_success_in_many_are_left_alone():
    ids, scores, advantages = grouped(6, 4)
    assert found(CompleteGroups, event(ids, scores * 1000, advantages * 1000)) == []
    ids, scores, _ = grouped(4096, 4)
    rare = torch.zeros_like(scores)
    rare[0] = 1.0
    whitened = (rare - rare.view(-1, 4).mean(1).repeat_interleave(4)) / rare.std()
    assert whitened.max() > 90
    assert found(CompleteGroups, event(ids, rare, whitened)) == []


def rollout(prompts, groups, attention=None):
    return Rollout(
        responses=torch.zeros(len(prompts), 2, dtype=torch.long),
        prompts=prompts,
        attention_mask=attention,
        groups=groups,
    )


def test_prompts_of_a_group_are_compared_without_their_padding():
    prompts = torch.tensor([[0, 5, 6], [5, 6, 0], [7, 8, 9], [7, 8, 9]])
    attention = torch.tensor([[0, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1]])
    assert found(CompleteGroups, rollout(prompts, [3, 3, 1, 1], attention)) == []
    (breach,) = found(CompleteGroups, rollout(prompts, [3, 1, 3, 1], attention))
    assert breach.key == "prompts" and breach.value == 2
    swapped = torch.tensor([[5, 6, 7], [6, 5, 7]])
    (breach,) = found(CompleteGroups, rollout(swapped, torch.tensor([0, 0])))
    assert breach.key == "prompts"


def spread_step(flat, groups, seed=0, size=4):
    """A step with `flat` of `groups` groups without spread."""
    ids, scores, advantages = grouped(groups, size, seed)
    scores = torch.where(ids < 1000 * flat, 1.0, scores)
    return [event(ids, scores, advantages, size)]


def test_spread_inside_most_groups_passes():
    steps = [spread_step(flat, 10, seed) for seed, flat in enumerate([0, 3, 8, 10, 8, 8, 8, 8, 0])]
    assert play(GroupSpread, steps) == []


def test_flat_groups_for_five_steps_are_a_warning_by_the_entry():
    result = play(GroupSpread, [spread_step(9, 10)] * 6)
    assert [step for step, _ in result] == [4, 5]
    assert all(breach.severity is None and breach.key == "most" for _, breach in result)
    assert "45 of 50 groups" in result[0][1].message


def test_only_flat_groups_are_an_error():
    result = play(GroupSpread, [spread_step(8, 8)] * 5)
    assert [(step, b.severity, b.key) for step, b in result] == [(4, Severity.ERROR, "all")]


def test_a_task_that_is_solved_is_a_warning_and_no_error():
    result = play(GroupSpread, [spread_step(6, 8), *[spread_step(8, 8)] * 7])
    assert result and {(b.severity, b.key) for _, b in result} == {(None, "most")}


def test_what_was_seen_before_a_restart_is_remembered():
    player, fresh = Player(GroupSpread), Player(GroupSpread)
    player.step(spread_step(6, 8))
    fresh.invariant.load_state_dict(player.invariant.state_dict())
    assert all(breach.key == "most" for _ in range(7) for breach in fresh.step(spread_step(8, 8)))


def test_a_few_flat_groups_say_nothing():
    assert play(GroupSpread, [spread_step(1, 1)] * 8) == []


def test_parts_of_groups_are_not_taken_for_groups():
    ids, scores, advantages = grouped(12)
    parts = [event(ids[k::2], scores[k::2] * 0, advantages[k::2]) for k in range(2)]
    assert play(GroupSpread, [parts] * 8) == []


def test_the_window_survives_a_restart():
    player, fresh = Player(GroupSpread), Player(GroupSpread)
    for _ in range(4):
        assert player.step(spread_step(9, 10)) == []
    fresh.invariant.load_state_dict(player.invariant.state_dict())
    assert len(fresh.step(spread_step(9, 10))) == 1


# --- only the size is known -----------------------------------------------------------------------------------


def lying(values, apart):
    """Rows of groups (groups, size) one group after the other, or every group's first row, then every second."""
    return values.T.flatten() if apart else values.flatten()


def implied(values, scores, *, prompts=None, size=4, apart=False, **details):
    mask = details.pop("mask", torch.ones(values.numel(), 3, dtype=torch.bool))
    events = [
        Advantages(
            advantages=lying(values, apart),
            mask=mask,
            scores=lying(scores, apart),
            group_size=size,
            **details,
        )
    ]
    if prompts is not None:
        events.insert(0, Rollout(responses=torch.zeros(values.numel(), 3, dtype=torch.long), prompts=prompts))
    return found(ImpliedGroups, *events, run=Run(group_size=size))


def six_by_four():
    _, scores, advantages = grouped(scaled=True)
    return advantages.view(6, 4), scores.view(6, 4)


def prompts_of(apart):
    """A prompt for each of six groups, four times, in either order."""
    one = torch.randint(2, 50, (6, 5), generator=torch.Generator().manual_seed(3))
    return one.repeat(4, 1) if apart else one.repeat_interleave(4, 0)


@pytest.mark.parametrize("apart", [False, True])
def test_rows_of_a_group_may_lie_together_or_apart(apart):
    advantages, scores = six_by_four()
    assert implied(advantages, scores, apart=apart, prompts=prompts_of(apart)) == []


@pytest.mark.parametrize("apart", [False, True])
def test_prompts_that_lie_otherwise_than_the_rewards_are_grouped_are_found(apart):
    advantages, scores = six_by_four()
    (breach,) = implied(advantages, scores, apart=apart, prompts=prompts_of(not apart))
    assert (breach.key, breach.severity) == ("prompts", Severity.WARNING)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda advantages, scores: scores,  # no baseline
        lambda advantages, scores: (scores - scores[:, :1]) / 1e-4,  # the first row's alone
        lambda advantages, scores: advantages * torch.rand(6, 4, generator=torch.Generator().manual_seed(2)),
    ],
)
def test_advantages_that_add_up_in_neither_order_are_found(wrong):
    advantages, scores = six_by_four()
    (breach,) = implied(wrong(advantages, scores), scores)
    assert (breach.key, breach.severity) == ("sum", Severity.WARNING) and "groups" in breach.help


def test_what_cannot_be_grouped_is_left():
    advantages, scores = six_by_four()
    assert implied(scores, scores, size=5) == [] and implied(scores, scores, size=1) == []
    assert implied(scores, scores, whitened=True) == []
    assert found(ImpliedGroups, event(torch.arange(24) // 4, scores.flatten(), scores.flatten())) == []
    empty = torch.ones(24, 3, dtype=torch.bool)
    empty[3] = False
    by_token = scores.flatten()[:, None].expand(-1, 3)
    told = Advantages(advantages=by_token, mask=empty, scores=scores.flatten(), group_size=4)
    assert found(ImpliedGroups, told, run=Run(group_size=4)) == []


def test_equal_rewards_are_found_where_only_the_size_is_known():
    scores = torch.ones(48)
    events = [
        [Advantages(advantages=scores * 0, mask=torch.ones(48, 3).bool(), scores=scores, group_size=4)]
        for _ in range(6)
    ]
    assert {breach.key for _, breach in play(GroupSpread, events, None)} == {"all"}


def test_sums_of_uneven_groups_whose_size_nobody_said_are_a_warning():
    groups = torch.tensor([0, 0, 0, 1, 1])
    told = dict(mask=torch.ones(5, 3, dtype=torch.bool), scores=torch.arange(5.0), groups=groups)
    (breach,) = found(CompleteGroups, Advantages(advantages=torch.arange(5.0), **told))
    assert (breach.key, breach.severity) == ("sum", Severity.WARNING)


def against_others(scores, biased):
    """(groups, size) scores minus the mean of the other rows, over the standard deviation of these."""
    size = scores.shape[1]
    others = torch.stack([scores[:, [j for j in range(size) if j != i]] for i in range(size)], 1)
    spread = others.std(2, correction=0 if biased else 1)
    return torch.where(spread > 0, (scores - others.mean(2)) / (spread + 1e-6), scores - others.mean(2))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("apart", [False, True])
def test_the_standard_deviation_of_the_others_need_not_add_up_to_0(biased, apart):
    _, scores = six_by_four()
    scores[0], scores[1, 1:] = 1.0, 0.5  # a flat group, and one in which one row differs
    advantages = against_others(scores, biased)
    assert implied(advantages, scores, apart=apart) == []
    (breach,) = implied(advantages + 0.1, scores, apart=apart)
    assert breach.key == "sum"
    values = dict(scores=scores.flatten(), groups=torch.arange(6).repeat_interleave(4), group_size=4)
    mask = torch.ones(24, 3, dtype=torch.bool)
    assert found(CompleteGroups, Advantages(advantages=advantages.flatten(), mask=mask, **values)) == []
    assert found(CompleteGroups, Advantages(advantages=advantages.flatten() + 0.1, mask=mask, **values)) != []
