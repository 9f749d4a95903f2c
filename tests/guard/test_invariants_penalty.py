"""KLG825 to KLG827: score, penalty and controller."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from klguard.findings import Severity  # noqa: E402
from klguard.guard.events import KL, Preflight, Rewards, StepEnd  # noqa: E402
from klguard.guard.invariants import Run  # noqa: E402
from klguard.guard.invariants.penalty import ControllerInput, PenaltySign, ScorePlacement  # noqa: E402

from .harness import Player, play  # noqa: E402

BETA = 0.1


def draw(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lengths_mask(rows=12, time=7):
    lengths = torch.arange(rows) % time + 1
    return torch.arange(time) < lengths[:, None]


def reward_event(change=None, dtype=torch.float32, sign=-1.0, beta=BETA, scale=1.0, seed=0):
    mask = lengths_mask()
    scores, kl = draw((len(mask),), seed) * scale, draw(mask.shape, seed + 1) * 0.1
    last = mask.sum(1) - 1
    rewards = (sign * beta * kl).masked_fill(~mask, 0.0).scatter_add(1, last[:, None], scores[:, None])
    if change is not None:
        rewards = change(rewards, scores, mask, last)
    kl = kl.masked_fill(~mask, torch.nan)
    rewards = rewards.masked_fill(~mask, 3.0)
    return Rewards(
        scores=scores.to(dtype), token_rewards=rewards.to(dtype), kl=kl.to(dtype), kl_coef=beta, mask=mask
    )


def found(kind, *events, run=None):
    return [breach for _, breach in play(kind, [events], run)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_a_score_at_the_last_token_passes(dtype, scale):
    assert found(ScorePlacement, reward_event(dtype=dtype, scale=scale)) == []


def test_a_penalty_of_the_wrong_sign_is_not_called_a_misplaced_score():
    assert found(ScorePlacement, reward_event(sign=1.0)) == []


def moved(rewards, scores, mask, last):
    """To the token before, where there is one."""
    before = (last - 1).clamp(min=0)
    rewards = rewards.scatter_add(1, last[:, None], -scores[:, None])
    return rewards.scatter_add(1, before[:, None], scores[:, None])


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda r, s, m, at: r.scatter_add(1, at[:, None], -s[:, None]), "missing"),
        (lambda r, s, m, at: r.scatter_add(1, at[:, None], s[:, None]), "doubled"),
        (moved, "moved"),
        (lambda r, s, m, at: r + 0.3, "other"),
    ],
)
def test_each_misplacement_has_its_name(change, key):
    (breach,) = found(ScorePlacement, reward_event(change))
    assert breach.key == key


def test_a_reward_where_a_tool_wrote_is_found():
    """Between valid tokens; behind the last one, in the padding, anything may stand."""
    event = reward_event()
    mask = event.mask.clone()
    mask[6, 2:4] = False
    told = replace(event, mask=mask, token_rewards=event.token_rewards.masked_fill(~mask & event.mask, 0.0))
    assert found(ScorePlacement, told) == []
    leaking = told.token_rewards.clone()
    leaking[6, 2] = 0.05
    (breach,) = found(ScorePlacement, replace(told, token_rewards=leaking))
    assert (breach.key, breach.severity) == ("between", Severity.WARNING)
    assert breach.value == pytest.approx(0.05)


def test_empty_rows_pass_and_missing_arguments_mean_nothing_to_check():
    event = reward_event()
    empty = Rewards(
        scores=event.scores, token_rewards=event.token_rewards, kl=event.kl, kl_coef=BETA,
        mask=torch.zeros_like(event.mask),
    )  # fmt: skip
    assert found(ScorePlacement, empty) == []
    player = Player(ScorePlacement)
    assert player.step([Rewards(scores=event.scores)]) == []
    assert not player.invariant.exercised


# ---------------------------------------------------------------------------------------------------- sign


def test_a_falling_reward_passes_and_a_rising_one_is_found():
    assert play(PenaltySign, [[reward_event(seed=seed)] for seed in range(4)]) == []
    (breach,) = found(PenaltySign, reward_event(sign=1.0))
    assert breach.value == pytest.approx(1.0, abs=1e-3)
    assert "rises by 0.1 for each nat" in breach.message


def test_no_kl_no_verdict():
    event = reward_event(sign=1.0, beta=0.0)
    assert found(PenaltySign, event) == []
    zero = Rewards(
        scores=event.scores, token_rewards=event.token_rewards, kl=event.kl * 0, kl_coef=BETA, mask=event.mask
    )
    assert found(PenaltySign, zero) == []


def test_a_score_counted_twice_is_not_a_sign():
    double = reward_event(lambda r, s, m, at: r.scatter_add(1, at[:, None], s[:, None]))
    assert found(PenaltySign, double) == []


def test_few_rows_are_pooled_over_steps():
    def rows(sign, part):
        event = reward_event(sign=sign)
        return Rewards(
            scores=event.scores[part], token_rewards=event.token_rewards[part], kl=event.kl[part],
            kl_coef=BETA, mask=event.mask[part],
        )  # fmt: skip

    steps = [[rows(1.0, slice(4 * k, 4 * k + 4))] for k in range(3)]
    assert [step for step, _ in play(PenaltySign, steps)] == [1]
    player, fresh = Player(PenaltySign), Player(PenaltySign)
    assert player.step(steps[0]) == []
    fresh.invariant.load_state_dict(player.invariant.state_dict())
    assert len(fresh.step(steps[1])) == 1


def test_the_loops_own_reward_is_tried_before_training():
    assert found(PenaltySign, Preflight(reward=lambda score, kl: score - 0.1 * kl)) == []
    (breach,) = found(PenaltySign, Preflight(reward=lambda score, kl: score + 0.1 * kl))
    assert breach.key == "sign"
    constant = Preflight(reward=lambda score, kl: score)
    assert found(PenaltySign, constant) == []
    (breach,) = found(PenaltySign, constant, run=Run(kl_coef=0.1))
    assert breach.key == "absent"


# -------------------------------------------------------------------------------------------------- controller


def kl_event(seed=0, shift=0.0):
    mask = lengths_mask()
    logp = -draw(mask.shape, seed).abs()
    reference = logp + 0.3 * draw(mask.shape, seed + 1) - shift
    return KL(values=logp - reference, logprobs=logp, reference_logprobs=reference, mask=mask, estimator="k1")


def per_sequence(event):
    return float((event.values * event.mask).sum(1).mean())


@pytest.mark.parametrize("unit", ["sequence", "token"])
def test_the_right_input_passes(unit):
    steps = []
    for seed in range(6):
        event = kl_event(seed, shift=0.05)
        fed = per_sequence(event)
        if unit == "token":
            fed = float(event.values[event.mask].mean())
        steps.append([event, StepEnd(controller_kl=torch.tensor(fed), controller_unit=unit, kl_coef=0.2)])
    assert play(ControllerInput, steps) == []


def test_the_other_unit_is_found_and_named_after_three_steps():
    steps = []
    for seed in range(4):
        event = kl_event(seed, shift=1.0)
        steps.append([event, StepEnd(controller_kl=float(event.values[event.mask].mean()))])
    result = play(ControllerInput, steps)
    assert [step for step, _ in result] == [2, 3]
    assert "its mean per token" in result[0][1].message


def test_the_kl_of_a_loss_is_not_compared_with():
    event = kl_event(shift=0.1)
    loss = KL(
        values=event.values, logprobs=event.logprobs, reference_logprobs=event.reference_logprobs,
        mask=event.mask, estimator="k1", requires_grad=True,
    )  # fmt: skip
    assert play(ControllerInput, [[loss, StepEnd(controller_kl=99.0)]] * 4) == []


def followed(kls, coefficients):
    return play(
        ControllerInput,
        [[StepEnd(controller_kl=k, kl_coef=c)] for k, c in zip(kls, coefficients, strict=True)],
    )


def test_a_coefficient_that_follows_a_negative_kl_is_found():
    ((step, breach),) = followed([-3.0, -3.0], [0.2, 0.18])
    assert step == 1 and breach.key == "hold"


@pytest.mark.parametrize(
    ("kls", "coefficients"),
    [
        ([-3.0, -3.0, -3.0], [0.2, 0.2, 0.2]),
        ([-0.3, -0.3, -0.3], [0.2, 0.18, 0.16]),
        ([2.0, -3.0, 2.0], [0.2, 0.18, 0.16]),
        ([1.0, 1.0, 8.0], [0.2, 0.18, 0.2]),
    ],
)
def test_holding_and_noise_pass(kls, coefficients):
    assert followed(kls, coefficients) == []
