"""KLG828 and KLG829: the gradient of the value loss, and none at what the loss takes as given. And the entropy's."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch.nn import functional  # noqa: E402

from klguard.findings import Severity  # noqa: E402
from klguard.guard.events import Minibatch, StepEnd  # noqa: E402
from klguard.guard.gradients import Arrivals  # noqa: E402
from klguard.guard.invariants.critic import ValueGradient  # noqa: E402
from klguard.guard.invariants.given import Given  # noqa: E402

from .harness import Player  # noqa: E402
from .loop import Loop, masked_mean, run  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def told(guard):
    return [(finding.code, finding.message) for finding in guard.findings]


# ------------------------------------------------------------------------------- bugs planted in a correct loop


class ValuesOfPadding(Loop):
    """The surrogate is masked, and the value loss is not."""

    def mean(self, loss, batch):
        return loss

    def token_loss(self, batch, new, values):
        policy = masked_mean(self.policy_loss(new, batch.old, batch.advantages), batch.mask)
        return policy + self.value_coef * self.value_loss(values, batch.returns).mean()

    def accumulate(self, micro_batches):
        pass

    def tell_preflight(self):
        pass


class ValuesTurned(Loop):
    value_coef = -0.1


class NextReturn(Loop):
    """The target of a token is the return of the one after it."""

    lam = 0.5

    def value_loss(self, values, returns):
        return super().value_loss(values, returns.roll(-1, 1))


class EveryPair(Loop):
    """(B, T) - (B, 1, T): every value with the returns of all rows."""

    def value_loss(self, values, returns):
        return 0.5 * ((values - returns[:, None]) ** 2).mean(0)

    def tell_preflight(self):
        pass


class AdvantagesAsTarget(Loop):
    def token_loss(self, batch, new, values):
        loss = self.policy_loss(new, batch.old, batch.advantages)
        return loss + self.value_coef * self.value_loss(values, batch.advantages)


class RowsOfOthers(Loop):
    """The returns are those of other rows; the guard is told the right ones."""

    def token_loss(self, batch, new, values):
        return super().token_loss(replace(batch, returns=batch.returns.roll(1, 0)), new, values)

    def tell_preflight(self):
        pass


class ReturnsMove(Loop):
    """The value of the present weights is in the target."""

    def update(self, batch, epoch):
        self.again = self.rescore(batch)
        moving = batch.returns + 0.5 * (self.again[2] - self.again[2].detach())
        return super().update(replace(batch, returns=moving), epoch)

    def rescore(self, batch):
        again, self.again = getattr(self, "again", None), None
        return again or super().rescore(batch)


class OldMoves(ReturnsMove):
    """The old log-probs of the first epoch are those of the same pass."""

    epochs, minibatches = 1, 1

    def update(self, batch, epoch):
        self.again = self.rescore(batch)
        return Loop.update(self, replace(batch, old=self.again[1] * 1.0), epoch)


class AdvantagesMove(ReturnsMove):
    """One step of actor and critic, whose advantages are made from values with their graph."""

    def update(self, batch, epoch):
        self.again = self.rescore(batch)
        moving = batch.advantages - (self.again[2] - self.again[2].detach())
        return Loop.update(self, replace(batch, advantages=moving), epoch)


BUGS = [
    (ValuesOfPadding, "KLG828", "mask leaves out", Severity.ERROR),
    (ValuesTurned, "KLG828", "away from their returns", Severity.ERROR),
    (NextReturn, "KLG828", "return of the next one", Severity.ERROR),
    (EveryPair, "KLG828", "all rows at their position", Severity.ERROR),
    (AdvantagesAsTarget, "KLG828", "towards the advantages", Severity.ERROR),
    (RowsOfOthers, "KLG828", "told with them", Severity.WARNING),
    (ReturnsMove, "KLG829", "at the returns", Severity.ERROR),
    (OldMoves, "KLG829", "at the old log-probs", Severity.ERROR),
    (AdvantagesMove, "KLG829", "at the advantages", Severity.ERROR),
]


@pytest.mark.parametrize(
    ("bug", "code", "words", "severity"), BUGS, ids=lambda value: getattr(value, "__name__", None)
)
def test_a_bug_of_the_critic_is_named(bug, code, words, severity):
    guard = run(bug, 6)
    mine = [finding for finding in guard.findings if finding.code == code]
    assert [finding.severity for finding in mine] == [severity], told(guard)
    assert words in mine[0].message
    others = {"KLG828"} if bug is AdvantagesMove else set()  # its values do get a gradient from the surrogate
    assert {finding.code for finding in guard.findings} - {code} <= others, told(guard)


class Huber(Loop):
    def value_loss(self, values, returns):
        return functional.smooth_l1_loss(values, returns, beta=0.1, reduction="none")


class ClippedValues(Loop):
    """As PPO2 and TRL do it."""

    learning_rate, epochs = 3e-3, 4

    def token_loss(self, batch, new, values):
        clipped = values.clamp(batch.values - 0.02, batch.values + 0.02)
        worst = torch.maximum((values - batch.returns) ** 2, (clipped - batch.returns) ** 2)
        return self.policy_loss(new, batch.old, batch.advantages) + self.value_coef * worst


class OnePass(ReturnsMove):
    """One update a step: the value loss is the square of the advantage, whose graph the surrogate does not use."""

    epochs, minibatches = 1, 1

    def update(self, batch, epoch):
        self.again = self.rescore(batch)
        return Loop.update(self, replace(batch, advantages=batch.returns - self.again[2]), epoch)

    def token_loss(self, batch, new, values):
        policy = self.policy_loss(new, batch.old, batch.advantages.detach())
        return policy + self.value_coef * (batch.advantages) ** 2


@pytest.mark.parametrize("kind", [Loop, Huber, ClippedValues, OnePass])
def test_correct_critics_pass(kind):
    guard = run(kind, 6)
    codes = {finding.code for finding in guard.findings}
    assert not codes & {"KLG828", "KLG829", "KLG839"}, told(guard)
    assert {"KLG828", "KLG829"} <= guard.exercised


class Entropic(Loop):
    """An entropy bonus."""

    coefficient, epochs, minibatches = 0.01, 1, 1

    def entropy(self, logits):
        self.live = super().entropy(self.with_graph)
        return self.live

    def rescore(self, batch):
        found = super().rescore(batch)
        self.with_graph = found[0]
        return found

    def reported(self, batch, new, entropy):
        return {}

    def token_loss(self, batch, new, values):
        loss = super().token_loss(batch, new, values)
        return (
            loss if self.guard is None or not hasattr(self, "live") else loss - self.coefficient * self.live
        )

    def accumulate(self, micro_batches):
        pass

    def tell_preflight(self):
        pass


class EntropyTurned(Entropic):
    coefficient = -0.01


class EntropyOfPadding(Entropic):
    coefficient = 0.0

    def mean(self, loss, batch):
        return super().mean(loss, batch) - 0.01 * self.live.mean()


@pytest.mark.parametrize(
    ("kind", "words"),
    [(Entropic, None), (EntropyTurned, "falls with the entropy"), (EntropyOfPadding, "the entropy of")],
)
def test_the_entropy_bonus(kind, words):
    guard = run(kind, 3)
    assert [finding.code for finding in guard.findings] == ([] if words is None else ["KLG839"]), told(guard)
    assert words is None or words in guard.findings[0].message


# ------------------------------------------------------------------------------------------------------ by itself


def critic(loss, *, rows=8, width=1, seed=0, dtype=torch.float32, shape=None):
    """The events of one update whose value loss is `loss(values, returns)` of (B,) or (B, T)."""
    random = torch.Generator().manual_seed(seed)
    shape = shape or ((rows,) if width == 1 else (rows, width))
    values = torch.randn(shape, generator=random).to(dtype).requires_grad_()
    returns = torch.randn(shape, generator=random).to(dtype)
    new = torch.zeros(rows, max(width, 4))
    event = Minibatch(
        new=new, old=new, mask=torch.ones_like(new, dtype=torch.bool), values=values.detach(), returns=returns,
        arrivals=Arrivals().at({"values": values}),
    )  # fmt: skip
    loss(values, returns).backward()
    return [event, StepEnd()]


def squared(values, returns):
    return (values - returns).square().mean()


def every_pair(values, returns):
    return (values - returns[:, None]).square().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(8,), (8, 1), (8, 12)])
def test_usual_value_losses_pass(dtype, shape):
    losses = [
        squared,
        functional.smooth_l1_loss,
        lambda v, r: functional.huber_loss(v, r, delta=0.01),
        lambda v, r: (v - r).abs().mean(),
        lambda v, r: (v - r).square().mean() / 50,
    ]
    for loss in losses:
        player = Player(ValueGradient)
        width = shape[1] if len(shape) > 1 else 1
        for step in range(6):
            assert player.step(critic(loss, seed=step, shape=shape, width=width, dtype=dtype)) == []
        assert player.invariant.exercised


def test_one_value_for_each_row_compared_with_every_return():
    player = Player(ValueGradient)
    (breach,) = player.step(critic(every_pair))
    assert breach.key == "mean"


def test_a_fresh_head_whose_values_are_all_0_is_not_mistaken():
    """Far from the return a Huber loss has the same slope everywhere, as pairs of equal values have."""

    def far(values, returns):
        return functional.huber_loss(
            values * 0 + values.mean() * 0 + values - values.detach(), returns.abs() + 9
        )

    assert Player(ValueGradient).step(critic(far)) == []


def test_values_without_a_gradient_and_minibatches_without_rows():
    player = Player(ValueGradient)
    events = critic(squared, rows=0)
    assert player.step(events) == [] and not player.invariant.exercised
    event = replace(events[0], arrivals={})
    assert player.step([event, StepEnd()]) == []


def test_advantages_of_one_sign_say_nothing():
    values = torch.ones(6, requires_grad=True)
    live = values * 2.0
    new = torch.zeros(6, 4)
    event = Minibatch(
        new=new, old=new, mask=torch.ones(6, 4, dtype=torch.bool), advantages=live.detach(),
        arrivals=Arrivals().at({"advantages": live}),
    )  # fmt: skip
    live.square().sum().backward()
    assert Player(Given).step([event, StepEnd()]) == []


def test_what_survives_a_restart():
    player, other = Player(ValueGradient), Player(ValueGradient)
    player.step(critic(lambda v, r: squared(v, r.roll(1))))
    state = player.invariant.state_dict()
    other.invariant.load_state_dict(state)
    assert other.invariant.state_dict() == state and state["figures"]


@pytest.mark.parametrize(
    ("values", "returns", "words"),
    [
        (torch.zeros(3), torch.zeros(3), "expected"),
        (torch.zeros(2, 5), torch.zeros(2), "one return for each value"),
    ],
)
def test_values_that_do_not_fit_are_refused(values, returns, words):
    from klguard import Guard

    guard = Guard(kl_coef=0.1, on_violation="record")
    new = torch.zeros(2, 5, requires_grad=True) - 1.0
    with pytest.raises(ValueError, match=words):
        guard.minibatch(new, new.detach(), values=values, returns=returns)
