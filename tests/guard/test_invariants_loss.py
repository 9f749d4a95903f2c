"""KLG839: the gradient that backward() brings to the log-probs of a minibatch."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from klguard.findings import Severity  # noqa: E402
from klguard.guard.gradients import Arrivals  # noqa: E402
from klguard.guard.invariants import Run  # noqa: E402
from klguard.guard.invariants.loss import LossGradient  # noqa: E402

from .harness import Player  # noqa: E402
from .loop import GroupLoop, Loop, masked_mean, run  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def told(guard):
    return [(finding.code, finding.message) for finding in guard.findings]


# ------------------------------------------------------------------------------- bugs planted in a correct loop


class Plain(GroupLoop):
    """KL in neither reward nor loss, as many recipes have it now: the surrogate alone."""

    beta = 0.0
    learning_rate = 1e-3

    def kl_loss(self, new, reference):
        return None

    def tell_preflight(self):
        pass

    def update(self, batch, epoch):
        _, new, _ = self.rescore(batch)
        self.tell_minibatch(batch, new, None, epoch)
        loss = self.mean(self.token_loss(batch, new, None), batch)
        self.zero_gradient()
        loss.backward()
        norm = self.clip_gradient()
        self.apply()
        return {"loss": loss.detach(), "grad_norm": norm}

    def reported(self, batch, new, entropy):
        return {}


class NoMask(Plain):
    def mean(self, loss, batch):
        return loss.mean()


class NoMaskWithKL(GroupLoop):
    """The KL term takes the direction away from the surrogate: the mask still counts."""

    def mean(self, loss, batch):
        return loss.mean()


class PromptShift(Plain):
    """The mask of the loss is that of the positions before: the stop token is never learnt."""

    def mean(self, loss, batch):
        cut = batch.mask[:, 1:] & batch.mask[:, :-1]
        return (loss[:, :-1] * cut).sum() / cut.sum()


class Ascends(Plain):
    def policy_loss(self, new, old, advantages):
        return -super().policy_loss(new, old, advantages)


class ClipsInVain(Plain):
    """The clipped surrogate is computed, and the other one returned."""

    minibatches, epochs, learning_rate = 2, 4, 1e-2

    def policy_loss(self, new, old, advantages):
        ratio = (new - old).exp()
        torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2))
        return -advantages * ratio


class RowsOfOthers(Plain):
    """Advantages in the rollout's order, rows in the minibatch's; the guard is told the right ones."""

    def advantages(self, batch):
        self.whole = super().advantages(batch)
        return self.whole

    def token_loss(self, batch, new, values):
        first = self.whole.advantages[: len(batch.rows)]
        return super().token_loss(replace(batch, advantages=first), new, values)


class ByPadding(Plain):
    """A mean over all positions of a batch that is cut to its longest response."""

    def mean(self, loss, batch):
        width = int(batch.mask.sum(1).max())
        return (loss * batch.mask)[:, :width].mean()

    def update(self, batch, epoch):
        width = int(batch.mask.sum(1).max())
        cut = {name: getattr(batch, name)[:, :width] for name in ("responses", "mask", "old", "reference")}
        return super().update(replace(batch, **cut), epoch)


class MicroBatches(Plain):
    """Four micro-batches for each update."""

    epochs, minibatches, divisor = 1, 1, None

    def update(self, batch, epoch):
        self.zero_gradient()
        whole, parts = batch.mask.sum(), self.rows(batch)
        for part in parts:
            _, new, _ = self.rescore(part)
            self.tell_minibatch(part, new, None, epoch)
            loss = self.token_loss(part, new, None) * part.mask
            self.share(loss, part.mask, whole, len(parts)).backward()
        norm = self.clip_gradient()
        self.apply()
        return {"loss": loss.detach().sum(), "grad_norm": norm}

    def rows(self, batch):
        numbers = torch.arange(len(batch.rows)).chunk(4)
        return [self.take(batch, rows) for rows in numbers]

    def share(self, loss, mask, whole, count):
        return loss.sum() / whole


class BySequence(MicroBatches):
    def share(self, loss, mask, whole, count):
        return (loss.sum(1) / mask.sum(1)).mean() / count


class DividedTwice(MicroBatches):
    def share(self, loss, mask, whole, count):
        return (loss.sum(1) / mask.sum(1)).mean() / count / count


class NotDivided(MicroBatches):
    def share(self, loss, mask, whole, count):
        return (loss.sum(1) / mask.sum(1)).mean()


class MeansOfMeans(MicroBatches):
    def share(self, loss, mask, whole, count):
        return loss.sum() / mask.sum() / count


class ByConstant(MicroBatches):
    """Dr. GRPO: divided by rows and the largest length."""

    def share(self, loss, mask, whole, count):
        return loss.sum() / (mask.numel() * count)


class NotDividedWithKL(NotDivided):
    """The KL term is in the loss, and told."""

    beta = 0.05

    def kl_loss(self, new, reference):
        return 0.5 * (new - reference) ** 2


class WithKL(Plain):
    """The KL term is in the loss, and told."""

    beta = 0.05

    def kl_loss(self, new, reference):
        return torch.expm1(reference - new) - (reference - new)


class KLTakenOff(WithKL):
    def token_loss(self, batch, new, values):
        loss = super().token_loss(batch, new, values)
        return loss - 2 * self.beta * self.kl_loss(new, batch.reference)


class NothingButKL(WithKL):
    def policy_loss(self, new, old, advantages):
        return -advantages * (new - old).exp().detach()


class AdvantagesOfOthers(Plain):
    """Advantages in the rollout's order, rows in the minibatch's; the minibatch is told what it uses."""

    def advantages(self, batch):
        self.whole = super().advantages(batch)
        return self.whole

    def update(self, batch, epoch):
        first = self.whole.advantages[: len(batch.rows)]
        return super().update(replace(batch, advantages=first), epoch)


BUGS = [
    (KLTakenOff, 3, "taken off the loss", Severity.ERROR),
    (NothingButKL, 3, "nothing but the KL term", Severity.ERROR),
    (AdvantagesOfOthers, 3, "told of the same rows before", Severity.ERROR),
    (NoMask, 1, "mask leaves out", Severity.ERROR),
    (NoMaskWithKL, 1, "mask leaves out", Severity.ERROR),
    (PromptShift, 2, "the last token", Severity.WARNING),
    (Ascends, 1, "lowers the log-probs", Severity.ERROR),
    (ClipsInVain, 6, "whole gradient comes through", Severity.ERROR),
    (RowsOfOthers, 3, "own advantages", Severity.ERROR),
    (ByPadding, 6, "padding included", Severity.WARNING),
    (DividedTwice, 3, "divided by their number twice", Severity.WARNING),
    (NotDivided, 3, "whole update", Severity.WARNING),
    (NotDividedWithKL, 3, "whole update", Severity.WARNING),
    (MeansOfMeans, 3, "few tokens weigh", Severity.WARNING),
]


@pytest.mark.parametrize(
    ("bug", "steps", "words", "severity"), BUGS, ids=lambda value: getattr(value, "__name__", None)
)
def test_a_loss_that_is_not_its_surrogate_is_named(bug, steps, words, severity):
    guard = run(bug, steps)
    mine = [finding for finding in guard.findings if finding.code == "KLG839"]
    assert [words in finding.message for finding in mine] == [True], told(guard)
    assert mine[0].severity is severity
    others = {finding.code for finding in guard.findings} - {"KLG839"}
    assert others <= {"KLG832", "KLG833"}, told(guard)  # some of them run away


@pytest.mark.parametrize("kind", [Loop, GroupLoop, Plain, WithKL, MicroBatches, BySequence, ByConstant])
def test_correct_losses_pass(kind):
    guard = run(kind, 5)
    assert told(guard) == [] and "KLG839" in guard.exercised


class Clipped(Plain):
    """Large steps, and a clip that works."""

    minibatches, epochs, learning_rate = 2, 4, 1e-2


def test_a_clip_that_works_is_seen_to_work():
    assert "KLG839" not in {finding.code for finding in run(Clipped, 6).findings}


# ------------------------------------------------------------------------------------------------------ by itself

SHAPE = (6, 12)


def example(loss, *, mask=None, seed=0, dtype=torch.float32, **told):
    """The events of one update: a minibatch whose loss is `loss(new, old, advantages, mask)`."""
    from klguard.guard.events import Minibatch, StepEnd

    random = torch.Generator().manual_seed(seed)
    old = -torch.rand(SHAPE, generator=random) * 3
    new = (old + 0.1 * torch.randn(SHAPE, generator=random)).to(dtype).requires_grad_()
    if mask is None:
        mask = torch.arange(SHAPE[1]) < torch.randint(4, SHAPE[1], (SHAPE[0], 1), generator=random)
    advantages = torch.randn(SHAPE[0], generator=random)
    arrivals = Arrivals().at({"new": new})
    event = Minibatch(
        new=new.detach(),
        old=old,
        mask=mask,
        advantages=advantages,
        arrivals=arrivals,
        **{"clip_range": (0.2, 0.2), **told},
    )
    loss(new, old, advantages[:, None], mask).backward()
    return [event, StepEnd()]


def ppo(new, old, advantages, mask):
    ratio = (new - old).exp()
    loss = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    return masked_mean(loss, mask)


def cispo(new, old, advantages, mask):
    return masked_mean(-advantages * (new - old).exp().clamp(max=1.2).detach() * new, mask)


def gspo(new, old, advantages, mask):
    difference = new - old
    ratio = ((difference * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)).exp() + 0 * difference
    return masked_mean(-torch.minimum(ratio * advantages, ratio.clamp(0.9997, 1.0004) * advantages), mask)


def reinforce(new, old, advantages, mask):
    return masked_mean(-advantages * new, mask)


def with_engine_weights(new, old, advantages, mask):
    weights = torch.rand(SHAPE, generator=torch.Generator().manual_seed(9)) + 0.5
    return masked_mean(-advantages * (new - old).exp() * weights, mask)


def with_entropy_filter(new, old, advantages, mask):
    """Trains on the fifth of the tokens that are least likely."""
    return ppo(new, old, advantages, mask & (old < old[mask].quantile(0.2)))


def with_large_kl(new, old, advantages, mask):
    return ppo(new, old, advantages, mask) + 0.5 * masked_mean((new - old + 1.0) ** 2, mask)


LOSSES = [ppo, cispo, gspo, reinforce, with_engine_weights, with_entropy_filter, with_large_kl]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_usual_objective_passes(loss, dtype):
    player = Player(LossGradient)
    for step in range(20):
        assert player.step(example(loss, seed=step, dtype=dtype)) == []
    assert player.invariant.exercised


def test_rows_without_an_advantage_and_empty_rows_pass():
    player = Player(LossGradient)
    for step in range(4):
        mask = torch.arange(SHAPE[1]) < torch.tensor([0, 5, 12, 1, 2, 3])[:, None]
        events = example(lambda n, o, a, m, even=step % 2: ppo(n, o, a * even, m), mask=mask, seed=step)
        assert player.step(events) == []


def test_advantages_told_for_all_rows_are_found_by_the_numbers_of_rows():
    from klguard.guard.events import Advantages

    player, rows = Player(LossGradient), torch.tensor([3, 1, 0, 5, 4, 2])
    for step in range(3):
        event, end = example(lambda n, o, a, m: -ppo(n, o, a, m), seed=step)
        whole = torch.zeros(6).index_copy(0, rows, event.advantages)
        told = Advantages(advantages=whole, mask=torch.ones(SHAPE, dtype=torch.bool))
        (breach,) = player.step([told, replace(event, advantages=None, rows=rows.tolist()), end])
        assert breach.key == "sign"


def test_an_optimizer_that_maximises_turns_the_sign():
    parameter = torch.nn.Parameter(torch.zeros(1))
    for maximize, keys in ((True, []), (False, ["sign"])):
        run_ = Run(optimizers=[torch.optim.AdamW([parameter], maximize=maximize)])
        player = Player(LossGradient, run_)
        turned = [player.step(example(lambda n, o, a, m: -ppo(n, o, a, m), seed=seed)) for seed in range(3)]
        assert [[breach.key for breach in step] for step in turned] == [keys] * 3


def test_numbers_of_rows_that_nobody_knows_leave_the_advantages_unknown():
    from klguard.guard.events import Advantages, Rollout

    player = Player(LossGradient)
    event, end = example(lambda n, o, a, m: -ppo(n, o, a, m))
    told = Advantages(advantages=event.advantages, mask=event.mask)
    strangers = replace(event, advantages=None, rows=[100, 101, 102, 103, 104, 105])
    assert player.step([told, strangers, end]) == []
    event, end = example(lambda n, o, a, m: -ppo(n, o, a, m))
    rollout = Rollout(responses=torch.zeros(12, SHAPE[1], dtype=torch.long))  # half of it was filtered out
    filtered = replace(event, advantages=None, rows=[1, 3, 5, 7, 9, 11])
    assert player.step([rollout, told, filtered, end]) == []


def test_a_minibatch_without_rows_is_passed_over():
    from klguard.guard.events import Minibatch, StepEnd

    new = torch.zeros(0, 5, requires_grad=True) * 1.0
    mask, arrivals = torch.ones(0, 5, dtype=torch.bool), Arrivals().at({"new": new})
    event = Minibatch(
        new=new.detach(), old=new.detach(), mask=mask, advantages=torch.zeros(0), arrivals=arrivals
    )
    new.sum().backward()
    player = Player(LossGradient)
    assert player.step([event, StepEnd()]) == [] and not player.invariant.exercised


def test_what_arrives_from_several_passes_is_added_up_and_one_tensor_is_watched_once():
    arrivals, values = Arrivals(), torch.zeros(3, requires_grad=True)
    part = values * 1.0
    arrival = arrivals.at({"new": part, "old": part, "values": None})["new"]
    assert arrivals.at({"new": part}) == {} and arrivals.at({"new": part.detach()}) == {}
    assert arrival.gradient is None
    part.sum().backward(retain_graph=True)
    (2 * part).sum().backward()
    assert arrival.gradient.tolist() == [3.0, 3.0, 3.0]


def test_the_slope_of_a_term_leaves_the_graph_as_it_was():
    arrivals, values = Arrivals(), torch.tensor([[1.0, 2.0]], requires_grad=True)
    part = values * 1.0
    term = part**2
    arrival = arrivals.at({"new": part})["new"]
    with torch.no_grad():
        assert arrivals.slope(term, part).tolist() == [[2.0, 4.0]]
    assert arrivals.slope(term.detach(), part) is None and arrivals.slope(None, part) is None
    assert arrivals.slope(torch.ones(1, 2, requires_grad=True) * 2, part) is None
    assert arrival.gradient is None
    term.sum().backward()
    assert values.grad.tolist() == arrival.gradient.tolist() == [[2.0, 4.0]]
    assert arrivals.slope(term, part) is None  # the graph is gone


def test_what_survives_a_restart():
    player, other = Player(LossGradient), Player(LossGradient)
    player.step(example(ppo))
    other.invariant.load_state_dict(player.invariant.state_dict())
    assert other.invariant.state_dict() == player.invariant.state_dict()
