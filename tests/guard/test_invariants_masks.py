"""KLG811 to KLG813 and KLG816."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from klguard.findings import Severity  # noqa: E402
from klguard.guard.events import Minibatch, Rollout  # noqa: E402
from klguard.guard.invariants import Run  # noqa: E402
from klguard.guard.invariants.masks import (  # noqa: E402
    MaskOverreaches,
    PadIsStop,
    StopNotInMask,
    UnmaskedStatistic,
)

from .harness import Player, play  # noqa: E402

MASKS = (MaskOverreaches, StopNotInMask, PadIsStop)
EOS, PAD = 1, 0


def run_of(pad=PAD, stops=(EOS,)):
    return Run(tokenizer=SimpleNamespace(pad_token_id=pad), stop_ids=stops)


def responses(seed, rows=8, time=12, pad=PAD, share=0.15):
    """Sampled ids with their right mask: up to the first stop, padded behind it. Any id can be sampled, the
    padding too where it is no stop."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 30, (rows, time), generator=generator)
    ids = torch.where((ids == EOS) | (ids == pad), 7, ids)
    ids = torch.where(torch.rand(rows, time, generator=generator) < share, EOS, ids)
    if pad != EOS:
        ids = torch.where(torch.rand(rows, time, generator=generator) < 0.1, pad, ids)
    ended = (ids == EOS).long()
    mask = ended.cumsum(1) - ended == 0
    return torch.where(mask, ids, pad), mask


def told(kind, event, run=None):
    return [breach for _, breach in play(kind, [[event]], run or run_of())]


def codes(event, run=None):
    return {kind.code for kind in MASKS if told(kind, event, run)}


# ------------------------------------------------------------------------------------------------ right masks


@pytest.mark.parametrize("pad", (PAD, EOS))
@pytest.mark.parametrize("seed", range(20))
def test_a_mask_built_by_position_is_right(seed, pad):
    ids, mask = responses(seed, rows=1 + seed % 9, time=1 + seed % 14, pad=pad, share=(seed % 5) / 8)
    event = Rollout(responses=ids, mask=mask, max_new_tokens=ids.shape[1])
    assert codes(event, run_of(pad)) == set()


def test_rows_that_are_masked_out_entirely_are_right():
    ids, mask = responses(1)
    mask[2:5] = False
    assert codes(Rollout(responses=ids, mask=mask)) == set()
    assert codes(Rollout(responses=ids, mask=torch.zeros_like(mask))) == set()


def test_an_empty_rollout_is_right():
    empty = torch.zeros(0, 5, dtype=torch.long)
    assert codes(Rollout(responses=empty, mask=empty.bool())) == set()
    assert (
        codes(Rollout(responses=torch.zeros(3, 0, dtype=torch.long), mask=torch.zeros(3, 0).bool())) == set()
    )


@pytest.mark.parametrize("told_of_tools", (True, False))
def test_several_turns_with_tools_between_are_right(told_of_tools):
    #                     turn 1       tool          turn 2       pad
    ids = torch.tensor([[5, 6, EOS, 20, 21, EOS, 22, 8, 9, EOS, PAD, PAD]])
    tool = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0]]).bool()
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0, 0]]).bool()
    event = Rollout(responses=ids, mask=mask, tool_mask=tool if told_of_tools else None)
    assert codes(event) == set()


def test_responses_cut_off_and_padded_with_the_stop_token_are_right():
    """They were cut at max_new_tokens, and put together with padding behind."""
    ids = torch.full((4, 9), EOS)
    ids[:, :6] = 5
    assert codes(Rollout(responses=ids, mask=ids != EOS, max_new_tokens=6), run_of(pad=EOS)) == set()


def test_a_mask_that_includes_some_stops_and_a_response_cut_off_early_is_right():
    ids = torch.tensor([[5, 5, EOS, EOS, EOS], [5, 5, 5, 5, EOS], [5, EOS, EOS, EOS, EOS]])
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    assert codes(Rollout(responses=ids, mask=mask), run_of(pad=EOS)) == set()


def test_stops_behind_the_first_and_a_template_beside_a_tool_are_right():
    ids = torch.tensor([[5, EOS, EOS, EOS], [5, 5, 5, EOS]])
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    assert codes(Rollout(responses=ids, mask=mask)) == set()
    ids, tool = torch.full((1, 8), 5), torch.zeros(1, 8).bool()
    tool[0, 3:5] = True
    mask = ~tool
    mask[0, 2] = mask[0, 5] = False
    assert codes(Rollout(responses=ids, mask=mask, tool_mask=tool)) == set()


def test_without_stops_nothing_is_said():
    ids, mask = responses(2)
    players = [Player(kind, Run()) for kind in MASKS]
    assert all(player.step([Rollout(responses=ids, mask=torch.ones_like(mask))]) == [] for player in players)
    assert not any(player.invariant.exercised for player in players)


# ------------------------------------------------------------------------------------------------ wrong masks


def test_a_mask_that_goes_on_behind_the_stop():
    ids, mask = responses(3)
    (found,) = told(MaskOverreaches, Rollout(responses=ids, mask=torch.ones_like(mask)))
    ended = int((~mask).any(1).sum())
    assert found.value == ended and f"in {ended} responses" in found.message


def test_one_token_too_many_is_found():
    ids, mask = responses(4)
    more = torch.zeros_like(mask)
    more[:, 1:] = mask[:, :-1]
    assert codes(Rollout(responses=ids, mask=mask | more)) == {"KLG811"}


def test_a_mask_over_whole_sequences():
    ids, mask = responses(5)
    prompts = torch.full((len(ids), 4), 9)
    right = torch.cat([torch.zeros(len(ids), 4).bool(), mask], 1)
    assert codes(Rollout(responses=ids, prompts=prompts, mask=right)) == set()
    right[3, 2] = True
    (found,) = told(MaskOverreaches, Rollout(responses=ids, prompts=prompts, mask=right))
    assert found.key == "prompt" and found.value == 1


def test_tool_tokens_in_the_mask_and_holes_that_no_tool_made():
    ids = torch.full((2, 8), 5)
    tool = torch.zeros(2, 8).bool()
    tool[0, 2:4] = True
    mask = torch.ones(2, 8).bool()
    (found,) = told(MaskOverreaches, Rollout(responses=ids, mask=mask, tool_mask=tool))
    assert found.key == "tool" and found.value == 2
    mask = ~tool
    assert codes(Rollout(responses=ids, mask=mask, tool_mask=tool)) == set()
    mask[1, 4] = False
    (found,) = told(MaskOverreaches, Rollout(responses=ids, mask=mask, tool_mask=tool))
    assert found.key == "holes"


@pytest.mark.parametrize("seed", range(10))
def test_a_mask_without_stops(seed):
    ids, mask = responses(seed, rows=20)
    event = Rollout(responses=ids, mask=mask & (ids != EOS))
    (found,) = told(StopNotInMask, event)
    assert found.value == int(((ids == EOS) & mask)[:, 1:].any(1).sum())
    assert codes(event) == {"KLG812"}


def test_a_mask_by_pad_names_the_pad():
    ids, mask = responses(6, rows=20, pad=EOS)
    event = Rollout(responses=ids, mask=ids != EOS)
    assert codes(event, run_of(pad=EOS)) == {"KLG816"}
    (found,) = told(PadIsStop, event, run_of(pad=EOS))
    assert found.severity is Severity.ERROR


def test_a_mask_one_short_with_the_stop_for_padding_is_the_general_fault():
    ids, mask = responses(7, rows=20, pad=EOS)
    lengths = mask.sum(1) - 1
    short = torch.arange(ids.shape[1]) < lengths[:, None]
    assert codes(Rollout(responses=ids, mask=short), run_of(pad=EOS)) == {"KLG812"}


def test_stops_in_dispute_are_left_to_another_check():
    ids = torch.tensor([[5, 5, 2, 5, 5]])
    event = Rollout(responses=ids, mask=torch.ones(1, 5).bool(), stop_ids=(EOS, 2))
    assert codes(event, run_of(stops=(EOS,))) == set()
    assert codes(event, run_of(stops=(EOS, 2))) == {"KLG811"}


# ------------------------------------------------------------------------------------------------ statistics


def minibatch(reported, seed=0, dtype=torch.float32, rows=6, time=20, noise=0.1, **details):
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(rows, time, generator=generator) * 3
    new = (old + noise * torch.randn(rows, time, generator=generator)).clamp(max=0.0)
    lengths = torch.randint(1, time + 1, (rows, 1), generator=generator)
    mask = torch.arange(time) < lengths
    entropy = torch.rand(rows, time, generator=generator) * 4
    advantages = torch.randn(rows, time, generator=generator)
    figures = reported(new.to(dtype), old.to(dtype), mask, entropy, advantages)
    return Minibatch(
        new=new, old=old, mask=mask, entropy=entropy, advantages=advantages, clip_range=(0.1, 0.1), reported=figures,
        **details,
    )  # fmt: skip


def mean(values, mask):
    return (values * mask).sum() / mask.sum()


def by_row(values, mask):
    return ((values * mask).sum(1) / mask.sum(1)).mean()


def figures(average, naive=False):
    def reported(new, old, mask, entropy, advantages):
        d = new - old
        ratio = d.exp()
        k3 = ratio - 1 - d if naive else torch.expm1(d) - d
        clipped = ((ratio - 1).abs() > 0.1).float()
        values = {"ratio": ratio, "approx_kl": k3, "entropy": entropy, "clip_fraction": clipped}
        return {name: average(value.float(), mask) for name, value in values.items()}

    return reported


def everywhere(values, mask):
    return values.mean()


def zeros_counted(values, mask):
    return (values * mask).mean()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("average", (mean, by_row))
@pytest.mark.parametrize("noise", (0.0, 1e-6, 1e-3, 0.3))
def test_means_over_valid_tokens_or_sequences_are_right(seed, average, noise):
    for naive in (False, True):
        event = minibatch(figures(average, naive), seed, noise=noise)
        assert told(UnmaskedStatistic, event) == []


def test_numbers_of_the_host_and_large_minibatches_are_right():
    def reported(*arguments):
        return {name: float(value) for name, value in figures(mean)(*arguments).items()}

    assert told(UnmaskedStatistic, minibatch(reported, rows=64, time=2048)) == []


@pytest.mark.parametrize("average", (everywhere, zeros_counted))
def test_means_over_the_padding_are_named(average):
    found = told(UnmaskedStatistic, minibatch(figures(average)))
    assert {breach.key for breach in found} == {"ratio", "approx_kl", "entropy", "clip_fraction"}
    entropy = next(breach for breach in found if breach.key == "entropy")
    event = minibatch(figures(average))
    assert entropy.value == pytest.approx(float(average(event.entropy, event.mask)), rel=1e-6)
    assert entropy.limit == pytest.approx(float(mean(event.entropy, event.mask)), rel=1e-6)


def test_figures_by_another_definition_say_nothing():
    assert (
        told(UnmaskedStatistic, minibatch(lambda *_: {"ratio": 1.7, "approx_kl": 3.0, "entropy": -1.0})) == []
    )


@pytest.mark.parametrize("form", (lambda d: d.square() / 2, lambda d: -d, lambda d: torch.expm1(-d) + d))
def test_other_estimators_of_the_same_divergence_are_right(form):
    event = minibatch(lambda new, old, mask, *_: {"approx_kl": mean(form(new - old), mask)})
    assert told(UnmaskedStatistic, event) == []
    event = minibatch(lambda new, old, mask, *_: {"approx_kl": form(new - old).mean()})
    assert len(told(UnmaskedStatistic, event)) == 1


def test_figures_in_half_precision_have_its_tolerance():
    right = minibatch(lambda n, o, m, entropy, a: {"entropy": mean(entropy, m).bfloat16()})
    assert told(UnmaskedStatistic, right) == []
    wrong = minibatch(lambda n, o, m, entropy, a: {"entropy": zeros_counted(entropy, m).bfloat16()})
    assert len(told(UnmaskedStatistic, wrong)) == 1


def test_without_padding_every_mean_is_right():
    event = minibatch(figures(everywhere))
    full = Minibatch(**(vars(event) | {"mask": torch.ones_like(event.mask)}))
    assert told(UnmaskedStatistic, full) == []
    nothing = Minibatch(**(vars(event) | {"mask": torch.zeros_like(event.mask)}))
    assert told(UnmaskedStatistic, nothing) == []


def test_log_probs_of_padding_that_are_no_numbers_do_no_harm():
    event = minibatch(figures(mean))
    new = torch.where(event.mask, event.new, torch.nan)
    assert told(UnmaskedStatistic, Minibatch(**(vars(event) | {"new": new}))) == []


@pytest.mark.parametrize("reported", (256 / 448, 0.9, 1.1, torch.tensor(0.57, dtype=torch.bfloat16)))
def test_a_ratio_of_equal_log_probs_that_is_not_one_was_spoilt(reported):
    (breach,) = told(UnmaskedStatistic, minibatch(lambda *_: {"ratio": reported}, noise=0.0))
    assert breach.key == "spoilt" and breach.value == pytest.approx(float(reported), rel=1e-6)
    assert told(UnmaskedStatistic, minibatch(lambda *_: {"ratio": reported}, noise=0.3)) == []


@pytest.mark.parametrize(
    "reported", (1.0, 1.0005, 1 / 4, 1 / 3, 1 / 64, torch.tensor(0.992, dtype=torch.bfloat16))
)
def test_rounding_and_parts_of_a_mean_are_not_spoilt(reported):
    assert told(UnmaskedStatistic, minibatch(lambda *_: {"ratio": reported}, noise=0.0)) == []


# ------------------------------------------------------------------------------------ the KL term of the loss


def by_row_sum(values, mask):
    return (values * mask).sum(1).mean()


def over_all_places(values, mask):
    return (values * mask).sum() / (len(mask) * mask.shape[1])


def kl_term_of(average, seed=0):
    """A minibatch whose KL term is reported by such a mean."""
    term = torch.rand(8, 12, generator=torch.Generator().manual_seed(seed)) * 0.1
    event = minibatch(lambda *_: {}, rows=8, time=12)
    return Minibatch(**(vars(event) | {"kl_term": term, "reported": {"kl": average(term, event.mask)}}))


@pytest.mark.parametrize("average", (mean, by_row, by_row_sum, over_all_places))
@pytest.mark.parametrize("seed", range(4))
def test_the_kl_term_may_be_taken_over_tokens_sequences_or_a_constant(average, seed):
    assert told(UnmaskedStatistic, kl_term_of(average, seed)) == []


@pytest.mark.parametrize("average", (everywhere, lambda values, mask: values.sum(1).mean()))
def test_the_kl_at_padding_has_no_place_in_the_loss(average):
    (breach,) = told(UnmaskedStatistic, kl_term_of(average))
    assert breach.key == "kl" and "padding included" in breach.message


def test_a_kl_term_by_a_definition_that_is_not_known_says_nothing():
    assert told(UnmaskedStatistic, kl_term_of(lambda values, mask: 0.04 * mean(values, mask))) == []
