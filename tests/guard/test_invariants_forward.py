"""KLG853 to KLG855 and KLG865."""

import copy
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from klguard.guard.events import Minibatch, Preflight, Rollout, Setup  # noqa: E402
from klguard.guard.invariants import Run  # noqa: E402
from klguard.guard.invariants.forward import (  # noqa: E402
    CacheInTraining,
    LogitsPrecision,
    Packing,
    UntiedWeights,
)
from klguard.settings import Default, Known, Settings, SiteKind  # noqa: E402

from .harness import Player  # noqa: E402
from .loop import _model  # noqa: E402


def keys(kind, event, run):
    player = Player(kind, run)
    return [breach.key for breach in player.step([event])], player.invariant.exercised


# ------------------------------------------------------------------------------------------------ ties


def test_tied_and_untied_models_that_say_so_are_right():
    model = copy.deepcopy(_model())
    assert keys(UntiedWeights, Setup(), Run(model)) == ([], True)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    assert keys(UntiedWeights, Setup(), Run(model)) == ([], True)


def test_a_model_that_does_not_do_what_its_configuration_says_is_named():
    model, other = copy.deepcopy(_model()), copy.deepcopy(_model())
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    other.config.tie_word_embeddings = False
    assert keys(UntiedWeights, Setup(), Run(model, other)) == (["policy", "reference"], True)


def test_what_cannot_be_tied_or_has_no_memory_is_passed_over():
    assert keys(UntiedWeights, Setup(), Run(torch.nn.Linear(2, 2))) == ([], False)
    assert keys(UntiedWeights, Setup(), Run(copy.deepcopy(_model()).to("meta"))) == ([], False)
    assert keys(UntiedWeights, Setup(), Run()) == ([], False)


# ------------------------------------------------------------------------------------------------ precision


def minibatch(new, old=None):
    mask = torch.arange(new.shape[1]).expand(new.shape) < new.shape[1] - 2
    return Minibatch(new=new, old=new.float() if old is None else old, mask=mask)


def logits(seed=0, dtype=torch.float32):
    return torch.randn(8, 20, 50, generator=torch.Generator().manual_seed(seed)).to(dtype) * 3


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_logits_of_any_precision_normalised_in_fp32_are_right(dtype, seed):
    new = logits(seed, dtype).float().log_softmax(-1)[..., 0]
    assert keys(LogitsPrecision, minibatch(new), Run()) == ([], True)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_a_softmax_in_half_precision_is_seen_also_when_it_was_made_wider(dtype):
    new = logits(dtype=dtype).log_softmax(-1)[..., 0]
    assert keys(LogitsPrecision, minibatch(new), Run())[0] == ["dtype"]
    assert keys(LogitsPrecision, minibatch(new.float(), new), Run())[0] == ["dtype", "rounded"]
    assert keys(LogitsPrecision, minibatch(new.float()), Run())[0] == ["rounded"]


def test_few_tokens_certain_tokens_and_a_uniform_policy_say_nothing():
    half = logits(dtype=torch.bfloat16).log_softmax(-1)[..., 0].float()
    assert keys(LogitsPrecision, minibatch(half[:2]), Run())[0] == []
    assert keys(LogitsPrecision, minibatch(torch.zeros(8, 20)), Run())[0] == []
    assert keys(LogitsPrecision, minibatch(torch.full((8, 20), -4.0)), Run())[0] == []
    assert keys(LogitsPrecision, minibatch(torch.full((8, 20), -torch.inf)), Run())[0] == []


# ------------------------------------------------------------------------------------------------ cache


def rollout(**settings):
    modes = {"train_mode": Known(False), "checkpointing": Known(False)}
    facts = {name: settings.pop(name, off) for name, off in modes.items()}
    values = {"use_cache": settings.pop("use_cache", Default(True, "transformers"))}
    return Rollout(
        responses=torch.zeros(1, 1, dtype=torch.long),
        settings=Settings(engine="transformers", kind=SiteKind.GENERATE, values=values, facts=facts),
    )


def test_generate_with_its_cache_is_right():
    model = copy.deepcopy(_model())
    assert keys(CacheInTraining, rollout(), Run(model)) == ([], True)
    assert keys(CacheInTraining, rollout(use_cache=Known(True), train_mode=Known(True)), Run(model)) == (
        [],
        True,
    )
    model.gradient_checkpointing_enable()
    assert keys(CacheInTraining, rollout(checkpointing=Known(True)), Run(model)) == ([], True)
    assert keys(CacheInTraining, Rollout(responses=torch.zeros(1, 1)), Run(model)) == ([], False)


def test_generate_without_its_cache_is_named():
    model = copy.deepcopy(_model())
    assert keys(CacheInTraining, rollout(use_cache=Known(False)), Run(model))[0] == ["cache"]
    on = dict(train_mode=Known(True), checkpointing=Known(True))
    assert keys(CacheInTraining, rollout(**on), Run(model))[0] == ["checkpointing"]


def test_checkpointing_that_is_switched_on_again_after_generate_is_right():
    model = copy.deepcopy(_model())
    model.gradient_checkpointing_enable()
    assert keys(CacheInTraining, rollout(train_mode=Known(True)), Run(model)) == ([], True)


# ------------------------------------------------------------------------------------------------ packing


def score(model):
    def alone(ids, attention):
        values = model(ids, attention_mask=attention).logits[:, :-1].log_softmax(-1)
        return values.gather(-1, ids[:, 1:, None])[..., 0]

    return alone


def packer(model, restart, separate):
    """All sequences in one row, with positions that restart or not, and an attention that separates or not."""

    def packed(sequences):
        ids = torch.cat(list(sequences))[None]
        lengths = [len(sequence) for sequence in sequences]
        owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        places = torch.cat([torch.arange(n) for n in lengths])[None] if restart else None
        block = torch.ones(ids.shape[1], ids.shape[1]).tril().bool()
        block = block & (owner[:, None] == owner) if separate else block
        bias = torch.zeros(block.shape).masked_fill(~block, torch.finfo(torch.float32).min)[None, None]
        logits = model(ids, attention_mask=bias, position_ids=places).logits
        values = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[0, :, 0]
        return [
            part[: n - 1]
            for part, n in zip(torch.cat([values, values[:1]]).split(lengths), lengths, strict=True)
        ]

    return packed


@pytest.mark.parametrize(("restart", "separate", "right"), [(1, 1, True), (0, 1, False), (1, 0, False)])
def test_packed_sequences_that_do_not_see_each_other_are_right(restart, separate, right):
    model = copy.deepcopy(_model()).eval()
    model.set_attn_implementation("eager")
    event = Preflight(score=score(model), packed=packer(model, restart, separate))
    found, exercised = keys(Packing, event, Run(model))
    assert exercised and bool(found) != right


def test_a_wrong_number_of_log_probs_is_the_callers_mistake():
    model = copy.deepcopy(_model()).eval()
    event = Preflight(score=score(model), packed=lambda sequences: [row.float() for row in sequences])
    with pytest.raises(ValueError, match="tokens 1.. of each"):
        Player(Packing, Run(model)).step([event])


def test_without_functions_nothing_is_tried():
    assert keys(Packing, Preflight(), Run(SimpleNamespace())) == ([], False)
