"""KLG601, KLG602, KLG834 to KLG837: KL figures, their logs and their gradients."""

import math

import pytest

torch = pytest.importorskip("torch")

from klguard.findings import Severity  # noqa: E402
from klguard.guard.events import KL, Minibatch, Preflight, Rewards, StepEnd  # noqa: E402
from klguard.guard.gradients import Arrivals  # noqa: E402
from klguard.guard.invariants import Run  # noqa: E402
from klguard.guard.invariants.advantages import GAETerminal  # noqa: E402
from klguard.guard.invariants.kl import (  # noqa: E402
    ClampsDoNotBind,
    ExactKLNotNegative,
    K3NotNegative,
    LoggedKL,
)
from klguard.guard.invariants.kl_loss import TOYS, KLLossGradient, KLRequiresGrad  # noqa: E402
from klguard.guard.invariants.penalty import PenaltySign  # noqa: E402
from klguard.guard.kl import estimate, exact_kl, k3  # noqa: E402

from .harness import Player, play  # noqa: E402

ROWS, TIME = 10, 8


def draw(shape=(ROWS, TIME), seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lengths_mask():
    return torch.arange(TIME) < (torch.arange(ROWS) % TIME + 1)[:, None]


def kl_event(estimator="k1", values=None, seed=0, noise=0.3, micro=slice(None), **details):
    mask = lengths_mask()
    logp = -draw(seed=seed).abs() - 0.5
    reference = logp + noise * draw(seed=seed + 100)
    reference[~mask] = torch.nan
    own = estimate(logp, reference, mask, estimator=estimator) if values is None else values(logp, reference)
    return KL(
        values=own[micro], logprobs=logp[micro], reference_logprobs=reference[micro], mask=mask[micro],
        estimator=estimator, **details,
    )  # fmt: skip


def found(kind, *events, run=None):
    return [breach for _, breach in play(kind, [events], run)]


# ------------------------------------------------------------------------------------------------ row 1 and 2


def exact_step(kl, valid):
    player = Player(ExactKLNotNegative)
    player.invariant.token_kls(kl, valid)
    return player.step([]), player.invariant


def test_exact_kl_of_close_distributions_passes():
    logits = draw((200, 3000)) * 3
    kl = exact_kl(logits, logits + 1e-5 * draw((200, 3000), 1))
    breaches, invariant = exact_step(kl, torch.ones(200, dtype=torch.bool))
    assert breaches == [] and invariant.exercised


def test_a_negative_exact_kl_is_found_where_it_is_valid():
    kl = torch.tensor([0.1, -0.02, -5.0, torch.nan])
    ((breach,), _) = exact_step(kl, torch.tensor([True, True, False, True]))
    assert breach.value == pytest.approx(-0.02)
    assert exact_step(kl, torch.tensor([True, False, False, True]))[0] == []


def test_nothing_tested_is_nothing_exercised():
    breaches, invariant = exact_step(torch.tensor([-1.0]), torch.tensor([False]))
    assert breaches == [] and not invariant.exercised
    assert exact_step(torch.empty(0), torch.empty(0, dtype=torch.bool))[0] == []


def naive(dtype):
    def formula(logp, reference):
        d = (reference - logp).to(dtype)
        return d.exp() - 1 - d

    return formula


def test_k3_of_expm1_and_the_naive_form_in_fp32_pass():
    for noise in (0.0, 1e-4, 1e-2, 1.0):
        assert found(K3NotNegative, kl_event("k3", noise=noise)) == []
        assert found(K3NotNegative, kl_event("k3", values=naive(torch.float32), noise=noise)) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_naive_form_in_half_precision_is_found(dtype):
    (breach,) = found(K3NotNegative, kl_event("k3", values=naive(dtype), noise=0.03))
    assert "half precision" in breach.message and -0.01 < breach.value < 0


def test_a_wrong_sign_is_told_apart():
    (breach,) = found(
        K3NotNegative, kl_event("k3", values=lambda p, r: (r - p) - torch.expm1(r - p), noise=1.0)
    )
    assert "formula" in breach.message


def test_a_negative_mean_of_k3_and_not_of_k1():
    assert len(found(K3NotNegative, StepEnd(kl=-0.1, kl_estimator="k3"))) == 1
    assert found(K3NotNegative, StepEnd(kl=-0.1, kl_estimator="k1")) == []
    assert found(K3NotNegative, kl_event("k1")) == []


# ------------------------------------------------------------------------------------------------------ clamps


def bound_event(count):
    event = kl_event(noise=0.1)
    reference = event.reference_logprobs.clone()
    reference[event.mask.nonzero()[:count].unbind(1)] = -40.0
    return KL(
        values=event.values,
        logprobs=event.logprobs,
        reference_logprobs=reference,
        mask=event.mask,
        estimator="k1",
    )


def test_clamps():
    assert play(ClampsDoNotBind, [[bound_event(0)]] * 6) == []
    assert found(ClampsDoNotBind, bound_event(4)) == []
    (breach,) = found(ClampsDoNotBind, bound_event(5))
    assert breach.key == "kl" and "5 of" in breach.message
    assert [step for step, _ in play(ClampsDoNotBind, [[bound_event(1)]] * 6)] == [4, 5]


def test_a_clamp_on_the_ratio():
    mask = torch.ones(ROWS, TIME, dtype=torch.bool)
    old = draw()
    (breach,) = found(ClampsDoNotBind, Minibatch(new=old - 25.0, old=old, mask=mask))
    assert breach.key == "ratio"
    assert found(ClampsDoNotBind, Minibatch(new=old - 19.0, old=old, mask=mask)) == []
    assert found(ClampsDoNotBind, Minibatch(new=old - 25.0, old=old, mask=~mask)) == []


# ------------------------------------------------------------------------------------------------------ logged


def logged(figure, **how):
    """Four steps, in each of which `figure(values, mask)` is logged."""
    steps = []
    for seed in range(4):
        event = kl_event(how.get("kl_estimator", "k1"), seed=seed)
        steps.append([event, StepEnd(kl=figure(event.values.nan_to_num(), event.mask), **how)])
    return play(LoggedKL, steps, Run(kl_coef=0.05))


RIGHT = {
    "per sequence": (lambda v, m: (v * m).sum(1).mean(), {}),
    "per token": (lambda v, m: (v * m).sum() / m.sum(), {"kl_unit": "token"}),
    "per row's token": (lambda v, m: ((v * m).sum(1) / m.sum(1)).mean(), {"kl_unit": "token"}),
    "k3": (lambda v, m: (v * m).sum(1).mean(), {"kl_estimator": "k3"}),
    "unit not said": (lambda v, m: (v * m).sum() / m.sum(), {"kl_unit": None}),
    "half": (lambda v, m: (v * m).sum(1).mean().bfloat16(), {}),
    "number": (lambda v, m: float((v * m).sum(1).mean()), {}),
    "other weights": (lambda v, m: (v * m).sum(1).mean() * 1.3 + 0.1, {}),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_reductions_and_unknown_figures_pass(name):
    figure, how = RIGHT[name]
    assert logged(figure, **how) == []


def test_means_of_micro_batches_pass():
    steps = []
    for seed in range(4):
        parts = [kl_event(seed=seed, micro=part) for part in (slice(0, 3), slice(3, 10))]
        means = [p.values[p.mask].mean() for p in parts]
        steps.append([*parts, StepEnd(kl=torch.stack(means).mean(), kl_unit="token")])
    assert play(LoggedKL, steps) == []


@pytest.mark.parametrize(("power", "key"), [(-1, "divided"), (1, "added")])
def test_means_that_are_divided_twice_or_never(power, key):
    """Three micro-batches; the mean over them is divided by their number once more, or never."""
    steps = []
    for seed in range(4):
        parts = [kl_event(seed=seed, micro=part) for part in (slice(0, 3), slice(3, 6), slice(6, 10))]
        means = torch.stack([p.values[p.mask].mean() for p in parts])
        steps.append([*parts, StepEnd(kl=means.mean() * 3.0**power, kl_unit="token")])
    assert [(step, breach.key) for step, breach in play(LoggedKL, steps)] == [(2, key), (3, key)]


def other_estimator(values, mask):
    d = -values
    return ((torch.expm1(d) - d) * mask).sum(1).mean()


WRONG = {
    "k3": (other_estimator, {}),
    "sign": (lambda v, m: -(v * m).sum(1).mean(), {}),
    "coefficient": (lambda v, m: 0.05 * (v * m).sum(1).mean(), {}),
    "unit": (lambda v, m: (v * m).sum() / m.sum(), {"kl_unit": "sequence"}),
    "padding": (lambda v, m: (v * m).mean(), {"kl_unit": "token"}),
    "sum": (lambda v, m: (v * m).sum(), {}),
}


@pytest.mark.parametrize("key", WRONG)
def test_each_other_figure_is_named_after_three_steps(key):
    figure, how = WRONG[key]
    result = logged(figure, **how)
    assert [(step, breach.key) for step, breach in result] == [(2, key), (3, key)]


def live(term, seed=0):
    """A minibatch whose loss has this term of (new, reference)."""
    new = (-draw(seed=seed).abs() - 0.5).requires_grad_()
    reference = -draw(seed=seed + 100).abs() - 0.5
    values = term(new, reference)
    found_slope = Arrivals().slope(values, new)
    told = dict(mask=torch.ones(new.shape, dtype=torch.bool), kl_term=values.detach(), kl_slope=found_slope)
    return Minibatch(new=new.detach(), old=new.detach(), **told)


def third(new, reference):
    d = reference - new
    return torch.expm1(d) - d


TERMS = {
    "k1": (lambda n, r: n - r, "k1"),
    "k2": (lambda n, r: 0.5 * (n - r) ** 2, None),
    "k3": (third, None),
    "k3 with the ratio": (lambda n, r: (n - n.detach() + 0.1).exp() * third(n, r), None),
    "k3 turned": (lambda n, r: third(r, n), "turned"),
    "abs": (lambda n, r: (n - r).abs(), None),
}


@pytest.mark.parametrize("name", TERMS)
def test_a_term_of_the_loss_shows_its_form_in_its_slopes(name):
    term, key = TERMS[name]
    player = Player(KLLossGradient)
    assert [breach.key for breach in player.step([live(term)])] == ([] if key is None else [key])
    assert player.invariant.exercised


def test_what_the_penalty_leaves_of_the_reward_is_no_kl():
    """A tensor that is changed in place: the penalty and the score are in it by the time it is logged."""
    steps = []
    for seed in range(4):
        event = kl_event(seed=seed)
        shaped = torch.where(event.mask, 0.7 / 5 - 0.05 * event.values.nan_to_num(), 0.0)
        rewards = Rewards(scores=torch.ones(len(shaped)), token_rewards=shaped, mask=event.mask)
        steps.append([event, rewards, StepEnd(kl=shaped.sum(1).mean())])
    assert [(step, b.key) for step, b in play(LoggedKL, steps, Run(kl_coef=0.05))] == [
        (2, "shaped"),
        (3, "shaped"),
    ]


def test_kl_of_zero_passes():
    event = kl_event(noise=0.0)
    assert play(LoggedKL, [[event, StepEnd(kl=0.0)]] * 5) == []


# ---------------------------------------------------------------------------------------------------- gradients


def ratio_k3(p, r):
    return (p - p.detach()).exp() * k3(p, r)


LOSSES = {
    "k2": (lambda p, r: 0.5 * (p - r) ** 2, None),
    "k3 with ratio": (ratio_k3, None),
    "k2 as a mean with a coefficient": (lambda p, r: 0.01 * (0.5 * (p - r) ** 2).mean(), None),
    "k1 by its score": (lambda p, r: (p - r).detach() * p, None),
    "k1": (lambda p, r: p - r, "zero"),
    "k3": (lambda p, r: k3(p, r), "biased"),
    "abs": (lambda p, r: (p - r).abs(), "biased"),
    "minus k2": (lambda p, r: -0.5 * (p - r) ** 2, "biased"),
    "detached": (lambda p, r: 0.5 * (p.detach() - r) ** 2, "none"),
    "clamped to nothing": (lambda p, r: (0.5 * (p - r) ** 2).clamp(max=0.0), "zero"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_kl_losses(name):
    loss, key = LOSSES[name]
    with torch.no_grad():  # whatever mode the loop is in
        breaches = found(KLLossGradient, Preflight(kl_loss=loss))
    assert [breach.key for breach in breaches] == ([] if key is None else [key])


def test_a_biased_loss_is_a_warning_and_a_repelling_one_an_error():
    (biased,) = found(KLLossGradient, Preflight(kl_loss=LOSSES["k3"][0]))
    assert biased.severity is Severity.WARNING and "%" in biased.message
    (repelling,) = found(KLLossGradient, Preflight(kl_loss=LOSSES["minus k2"][0]))
    assert repelling.severity is None and repelling.value == pytest.approx(-1.0)


def test_the_loops_functions_are_tried_where_the_policy_is():
    seen = []

    def notes(*arguments):
        seen.extend(one.device.type for one in arguments)
        raise KeyError

    run = Run(policy=torch.nn.Linear(1, 1, device="meta"))
    for kind, given in ((KLLossGradient, "kl_loss"), (PenaltySign, "reward"), (GAETerminal, "gae")):
        with pytest.raises(KeyError):
            found(kind, Preflight(**{given: notes}), run=run)
    assert seen == ["meta"] * 7


def test_the_toys_are_as_far_apart_as_they_say():
    kls = [float(exact_kl(torch.tensor(p), torch.tensor(q))) for p, q in TOYS]
    assert [round(kl, 1) for kl in kls] == [0.6, 0.3, 1.4]
    assert not any(math.isclose(kl, 0.0, abs_tol=0.1) for kl in kls)


def minibatch(**details):
    values = draw()
    return Minibatch(new=values, old=values, mask=lengths_mask(), **details)


@pytest.mark.parametrize(
    ("event", "key"),
    [
        (minibatch(kl_loss_requires_grad=True, new_requires_grad=True), None),
        (minibatch(kl_loss_requires_grad=False, new_requires_grad=True), "loss"),
        (minibatch(kl_loss_requires_grad=False, new_requires_grad=False), None),
        (minibatch(new_requires_grad=True), None),
        (Rewards(scores=draw((3,)), kl=draw(), requires_grad=True), "reward"),
        (Rewards(scores=draw((3,)), kl=draw()), None),
        (Rewards(scores=draw((3,)), requires_grad=True), None),
    ],
)
def test_gradient_flags(event, key):
    assert [breach.key for breach in found(KLRequiresGrad, event)] == ([] if key is None else [key])


def test_windows_survive_a_restart():
    event = kl_event()
    step = [event, StepEnd(kl=-(event.values * event.mask).sum(1).mean())]
    player, fresh = Player(LoggedKL), Player(LoggedKL)
    assert player.step(step) == player.step(step) == []
    fresh.invariant.load_state_dict(player.invariant.state_dict())
    assert len(fresh.step(step)) == 1
    player, fresh = Player(ClampsDoNotBind), Player(ClampsDoNotBind)
    assert player.step([bound_event(3)]) == []
    fresh.invariant.load_state_dict(player.invariant.state_dict())
    assert len(fresh.step([bound_event(3)])) == 1
