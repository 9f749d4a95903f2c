"""KLG703, KLG814, KLG815 and KLG817, and the row that is scored again."""

import copy
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch.utils._python_dispatch import _disable_current_modes  # noqa: E402

from klguard.guard.events import Preflight, Rollout, Scoring, Setup  # noqa: E402
from klguard.guard.invariants import Run  # noqa: E402
from klguard.guard.invariants.alignment import (  # noqa: E402
    PaddingMatters,
    PaddingSide,
    ShiftedLogits,
    StopSets,
)
from klguard.guard.invariants.random_scoring import RandomScoring  # noqa: E402
from klguard.guard.ledger import Ledger, Readings  # noqa: E402
from klguard.guard.rescoring import SLOTS, diagnosis, possible, rescoring  # noqa: E402

from .harness import Player  # noqa: E402
from .loop import EOS, _model  # noqa: E402

ROWS, PROMPT, RESPONSE = 12, 8, 16


def forward(model, ids, attention_mask=None, **kwargs):
    """What transformers does in its own pass, it also does in the loop's: a mask is looked at on the host."""
    with torch.no_grad(), _disable_current_modes():
        return model(input_ids=ids, attention_mask=attention_mask, **kwargs).logits


def llama():
    """Rotary positions: counting them from the padding does no harm."""
    torch.manual_seed(2)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def gpt2():
    return copy.deepcopy(_model()).eval()


def rollout(seed=0, padded=True):
    generator = torch.Generator().manual_seed(seed)
    lengths = (
        torch.randint(2, PROMPT, (ROWS, 1), generator=generator) if padded else torch.full((ROWS, 1), PROMPT)
    )
    attention = (torch.arange(PROMPT) >= PROMPT - lengths).long()
    prompts = torch.randint(2, 64, (ROWS, PROMPT), generator=generator) * attention
    responses = torch.randint(2, 64, (ROWS, RESPONSE), generator=generator)
    mask = torch.arange(RESPONSE) < torch.randint(1, RESPONSE + 1, (ROWS, 1), generator=generator)
    mask[0] = True
    return Rollout(responses=responses, mask=mask, prompts=prompts, attention_mask=attention)


def scoring(
    model, event, attended=True, placed=True, shift=0, dtype=torch.float32, temperature=1.0, said=None
):
    """The loop's scoring of a rollout, right or wrong in one of the ways."""
    ids = torch.cat([event.prompts, event.responses], 1)
    mask = torch.cat([event.attention_mask, event.mask.long()], 1)
    given = mask if attended else torch.ones_like(mask)
    places = (mask.cumsum(1) - 1).clamp(min=0) if placed else torch.arange(ids.shape[1]).expand_as(ids)
    with torch.no_grad():
        logits = model(ids, attention_mask=given, position_ids=places).logits.to(dtype).float() / temperature
    at = (torch.arange(RESPONSE) + PROMPT - 1 + shift).clamp(max=ids.shape[1] - 1)
    logits = logits[:, at]
    logprobs = logits.log_softmax(-1).gather(-1, event.responses[..., None])[..., 0]
    return Scoring(
        logits=logits,
        logprobs=logprobs,
        tokens=event.responses,
        mask=event.mask,
        dtype=dtype,
        temperature=said,
    )


def found(model, event, scored, kinds=(ShiftedLogits, PaddingMatters)):
    run = Run(model, forward=forward, stop_ids=(EOS,))
    codes = set()
    for kind in kinds:
        player = Player(kind, run)
        player.run.step = 0
        run.notes.clear()
        codes |= {kind.code for _ in player.step([event, scored])}
        assert player.invariant.exercised
    return codes


@pytest.mark.parametrize("make", (gpt2, llama))
@pytest.mark.parametrize("seed", range(4))
def test_the_right_scoring_agrees_with_the_scoring_by_hand(make, seed):
    model, event = make(), rollout(seed, padded=seed % 2 == 0)
    assert found(model, event, scoring(model, event)) == set()


@pytest.mark.parametrize("make", (gpt2, llama))
def test_the_row_by_hand_is_exact(make):
    model, event = make(), rollout(3)
    run = Run(model, forward=forward)
    rescoring(run).see(run, event)
    figures = rescoring(run).of(run, scoring(model, event)).figures
    assert set(figures) == set(SLOTS)
    assert float(figures["rescored"]) > 0 and float(figures["padded"]) > 0
    assert float(figures["off"]) / float(figures["rescored"]) < 1e-5
    assert float(figures["before"]) > 1 and float(figures["after"]) > 1 and float(figures["unmasked"]) > 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shift", (-1, 1))
@pytest.mark.parametrize("make", (gpt2, llama))
def test_a_shift_is_named(make, shift, seed):
    model, event = make(), rollout(seed)
    assert found(model, event, scoring(model, event, shift=shift)) == {"KLG703"}


@pytest.mark.parametrize("seed", range(5))
def test_padding_that_is_attended_to_or_counted_is_named(seed):
    model, event = gpt2(), rollout(seed)
    assert found(model, event, scoring(model, event, attended=False, placed=False)) == {"KLG814"}
    assert found(model, event, scoring(model, event, placed=False)) == {"KLG814"}


def test_counting_the_padding_is_harmless_with_rotary_positions():
    model, event = llama(), rollout(1)
    assert found(model, event, scoring(model, event, placed=False)) == set()


@pytest.mark.parametrize(
    "how", ({"dtype": torch.bfloat16}, {"temperature": 0.7}, {"temperature": 0.7, "said": 0.7})
)
@pytest.mark.parametrize("make", (gpt2, llama))
def test_other_faults_and_other_precision_are_not_taken_for_one(make, how):
    model, event = make(), rollout(2)
    assert found(model, event, scoring(model, event, **how)) == set()


def test_autocast_told_as_fp32_is_not_taken_for_one():
    model, event = gpt2(), rollout(2)
    with torch.autocast("cpu", torch.bfloat16):
        scored = scoring(model, event)
    assert found(model, event, scored) == set()


def test_dropout_in_the_scoring_is_confirmed_and_a_switch_set_afterwards_is_not_believed():
    model, event = gpt2(), rollout(4)
    right = scoring(model, event)
    model.transformer.drop.p = 0.1
    model.train()
    noisy = scoring(model, event)
    assert found(model, event, noisy, (RandomScoring, ShiftedLogits, PaddingMatters)) == {"KLG805"}
    assert found(model, event, right, (RandomScoring,)) == set()
    assert model.training and model.transformer.drop.training
    # and it stays disbelieved in later steps, also after a restart
    player = Player(RandomScoring, Run(model, forward=forward))
    assert player.step([event, right]) == []
    assert player.step([event, right]) == []
    again = Player(RandomScoring, Run(model))
    again.invariant.load_state_dict(player.invariant.state_dict())
    assert again.step([event, right]) == []


def test_what_does_not_belong_together_is_not_compared():
    model, event, other = gpt2(), rollout(5), rollout(6)
    run = Run(model, forward=forward)
    player = Player(ShiftedLogits, run)
    assert player.step([other, scoring(model, event, shift=1)]) == []
    edited = event.responses.clone()
    edited[:, 0] = (edited[:, 0] + 1) % 64
    edited = Rollout(**(vars(event) | {"responses": edited}))
    assert (
        Player(ShiftedLogits, Run(model, forward=forward)).step([edited, scoring(model, event, shift=1)])
        == []
    )


@pytest.mark.parametrize(("tokens", "said"), [(2, "unexplained"), (6, "before")])
def test_few_tokens_that_agree_by_chance_explain_nothing(tokens, said):
    figures = dict.fromkeys(SLOTS, 1.0 * tokens) | {"rescored": tokens, "before": 0.0}
    assert diagnosis(Readings(figures), half=False) == said


def test_one_row_is_scored_again_once_in_a_run_and_not_where_it_is_larger_than_the_loops_pass():
    model, event = gpt2(), rollout(7)
    passes = []

    def counted(*arguments, **kwargs):
        passes.append(arguments[1].shape)
        return forward(*arguments, **kwargs)

    run = Run(model, forward=counted)
    players = [Player(kind, run) for kind in (ShiftedLogits, PaddingMatters, RandomScoring)]
    ledger = Ledger([slot for p in players for slot in p.invariant.slots()[0]], [])
    small = Rollout(**{n: v[:2] if isinstance(v, torch.Tensor) else v for n, v in vars(event).items()})
    for one in (small, event, event):
        for player in players:
            player.invariant.attach(ledger)
            player.invariant.measure(one)
        scored = scoring(model, one)
        for player in players:
            player.invariant.measure(scored)
    assert passes == [(3, PROMPT + RESPONSE)]


def test_an_encoder_decoder_is_left_alone():
    model = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=True))
    module = torch.nn.Module()
    module.config = model.config
    run = Run(module, forward=forward)
    rescoring(run).see(run, rollout())
    assert rescoring(run).of(run, scoring(gpt2(), rollout())) is None


def test_a_model_that_cannot_be_run_on_ids_alone_costs_the_row_and_nothing_else():
    def fails(*arguments, **kwargs):
        raise RuntimeError("out of memory")

    model, event = gpt2(), rollout()
    player = Player(ShiftedLogits, Run(model, forward=fails))
    assert player.step([event, scoring(model, event, shift=1)]) == []
    assert not player.invariant.exercised and not any(layer.training for layer in model.modules())
    model.config.vision_config = SimpleNamespace()
    assert not possible(Run(model, forward=forward))


# ------------------------------------------------------------------------------------------------ before training


def score_of(model, shift=0, placed=True, attended=True):
    def score(ids, attention):
        places = (attention.cumsum(1) - 1).clamp(min=0) if placed else None
        logits = model(ids, attention_mask=attention if attended else None, position_ids=places).logits
        at = (torch.arange(ids.shape[1] - 1) + shift).clamp(0, ids.shape[1] - 1)
        return logits[:, at].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]

    return score


def preflight(model, batch=None, **how):
    run = Run(model, forward=forward)
    event = Preflight(score=score_of(model, **how), batch=batch)
    return {kind.code for kind in (ShiftedLogits, PaddingMatters) for _ in Player(kind, run).step([event])}


def user_batch(right=False):
    event = rollout(8)
    batch = event.prompts, event.attention_mask
    return tuple(part.flip(1) for part in batch) if right else batch


@pytest.mark.parametrize("make", (gpt2, llama))
@pytest.mark.parametrize(
    "batch", (None, user_batch(), user_batch(right=True)), ids=("made up", "left", "right")
)
def test_a_right_score_passes(make, batch):
    assert preflight(make(), batch) == set()
    half = make().bfloat16()
    assert preflight(half, batch) == set()


@pytest.mark.parametrize("shift", (-1, 1))
def test_a_shift_is_found_before_training(shift):
    assert preflight(gpt2(), shift=shift) == {"KLG703"}


def test_padding_that_matters_is_found_before_training():
    assert preflight(gpt2(), placed=False) == {"KLG814"}
    assert preflight(gpt2(), attended=False) == {"KLG814"}
    assert preflight(llama(), attended=False) == {"KLG814"}
    assert preflight(llama(), placed=False) == set()


def test_prompts_of_one_length_are_cut_to_several():
    ids = torch.randint(2, 64, (4, 9), generator=torch.Generator().manual_seed(0))
    batch = ids, torch.ones_like(ids)
    assert preflight(gpt2(), batch) == set()
    assert preflight(gpt2(), batch, placed=False) == {"KLG814"}


# ------------------------------------------------------------------------------------------------ padding side


def side_run(side="left", model=None):
    return Run(model or gpt2(), tokenizer=SimpleNamespace(padding_side=side, pad_token_id=0))


def test_prompts_padded_on_the_left_and_prompts_without_padding_are_right():
    for side in ("left", "right"):
        player = Player(PaddingSide, side_run(side))
        assert player.step([rollout(padded=side == "left")]) == []
        assert player.invariant.exercised


def test_prompts_padded_on_the_right_are_counted():
    event = rollout(9)
    event = Rollout(**(vars(event) | {"attention_mask": event.attention_mask.flip(1)}))
    (breach,) = Player(PaddingSide, side_run("right")).step([event])
    assert breach.value == int((event.attention_mask[:, -1] == 0).sum()) and "'right'" in breach.message
    encoder = torch.nn.Module()
    encoder.config = SimpleNamespace(is_encoder_decoder=True)
    assert Player(PaddingSide, side_run("right", encoder)).step([event]) == []


def test_a_side_that_changes_is_found_also_across_a_restart():
    run = side_run()
    player = Player(PaddingSide, run)
    assert player.step([rollout()]) == []
    run.tokenizer.padding_side = "right"
    (breach,) = player.step([rollout()])
    assert breach.key == "changed"
    assert player.step([rollout()]) == []
    again = Player(PaddingSide, side_run("left"))
    again.invariant.load_state_dict(player.invariant.state_dict())
    assert [breach.key for breach in again.step([rollout()])] == ["changed"]


# ------------------------------------------------------------------------------------------------ stop sets


def stops(generation, guard, own, event=None):
    model = gpt2()
    model.generation_config.eos_token_id = generation
    run = Run(model, tokenizer=SimpleNamespace(eos_token_id=own), stop_ids=guard)
    return [breach.key for breach in Player(StopSets, run).step([event or Setup()])]


def told_rollout(stop_ids, handle=None):
    return Rollout(responses=torch.zeros(1, 2, dtype=torch.long), stop_ids=stop_ids, handle=handle)


def test_equal_stops_are_right_also_where_the_tokenizer_has_only_one_of_them():
    assert stops(5, (5,), 5) == []
    assert stops([5, 7, 9], (9, 5, 7), 9) == []
    assert stops([5, 7], (5, 7), None) == []
    assert stops(None, (5,), 5) == []
    assert stops(5, None, 5) == []
    assert stops(5, (5, 7), 5, told_rollout((7, 5))) == []
    assert stops(5, (5,), 5, told_rollout(None)) == []


def test_other_stops_are_named():
    assert stops([5, 7], (5,), 5) == ["sets"]
    assert stops(5, (5,), 5, told_rollout((5, 7))) == ["sets"]
    assert stops(5, (5,), 6) == ["tokenizer"]


def test_a_watched_call_with_stops_of_its_own_may_be_an_evaluation():
    assert stops(5, (5,), 5, told_rollout((7,), handle=3)) == []


def after_the_stop(following, pad=0, stop=1, rows=6, tool=None, mask=None, run_stops=(1,)):
    """Keys for responses `5 5 5 <stop> following...`, whose mask ends at the stop."""
    run = Run(tokenizer=SimpleNamespace(pad_token_id=pad), stop_ids=run_stops)
    following = torch.as_tensor(following).expand(rows, -1)
    responses = torch.cat([torch.tensor([5, 5, 5, stop]).expand(rows, 4), following], 1)
    if mask is None:
        mask = torch.arange(responses.shape[1]).expand_as(responses) < 4
    event = Rollout(responses=responses, mask=mask, stop_ids=(1,), tool_mask=tool)
    return [breach.key for breach in Player(StopSets, run).step([event])]


SAMPLED = [[7, 8, 9], [6, 1, 4], [30, 3, 2], [8, 8, 8], [9, 7, 1], [11, 2, 3]]


def test_a_sampler_that_goes_on_behind_the_stop():
    assert after_the_stop(SAMPLED) == ["went on"]
    some = torch.tensor(SAMPLED)
    some[:, 0] = torch.tensor([0, 1, 0, 1, 7, 7])  # the padding and the stop can be sampled too
    assert after_the_stop(some) == ["went on"]
    some[:3] = 0
    assert after_the_stop(some) == []
    assert after_the_stop(SAMPLED[:3], rows=3) == []


def test_what_stands_behind_the_stop_and_was_not_sampled():
    assert after_the_stop([[0, 0, 0]]) == []
    assert after_the_stop([[1, 1, 1]]) == []
    assert after_the_stop([[1, 0, 0]]) == []
    assert after_the_stop([[-100, -100, -100]]) == []
    assert after_the_stop([[17, 17, 17]]) == []  # padding by an id of the loop's own
    assert after_the_stop(SAMPLED, pad=None) == []
    assert after_the_stop(SAMPLED, pad=1) == []
    assert after_the_stop(SAMPLED, tool=torch.zeros(6, 7, dtype=torch.bool)) == []


def test_a_mask_that_goes_on_behind_the_stop_has_another_turn_or_another_fault():
    mask = torch.ones(6, 7, dtype=torch.bool)
    mask[:, 4:6] = False
    assert after_the_stop(SAMPLED, mask=mask) == []
    assert after_the_stop(SAMPLED, mask=torch.ones(6, 7, dtype=torch.bool)) == []
