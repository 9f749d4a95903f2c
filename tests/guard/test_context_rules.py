"""Bans of repeated n-grams and boosts of the stop token: validity by enumeration, transformers, and detection."""

import math

import pytest

torch = pytest.importorskip("torch")

from klguard.guard.context_rules import EosBoosted, NoRepeatNgram  # noqa: E402
from klguard.guard.evidence import Evidence  # noqa: E402
from tests.guard.test_evidence import World, end_step  # noqa: E402
from tests.guard.test_hypotheses import POLICIES, every_token, full_rows, means, plain, same, warped  # noqa: E402

torch.set_num_threads(1)


@pytest.mark.parametrize("name", POLICIES)
def test_the_mean_ratio_is_at_most_one(name):
    p = torch.softmax(POLICIES[name].double(), -1)
    rows = full_rows(name)
    for hypothesis in (NoRepeatNgram(), EosBoosted((0, 2))):
        assert (means(hypothesis, rows, p) <= 1.0 + 1e-6).all()
    # two ids in turns: everything that followed the last one before is banned
    few = torch.arange(20).remainder(2)[None].expand(len(p), -1)
    mean = means(NoRepeatNgram(), every_token(POLICIES[name], context=few), p)
    assert (mean <= 1.0 + 1e-6).all()


@pytest.mark.parametrize("size", [2, 3, 4])
def test_no_repeat_ngram_is_that_of_transformers(size):
    processors = pytest.importorskip("transformers.generation.logits_process")
    generator = torch.Generator().manual_seed(size)
    banned = 0
    for length in (1, 2, 3, 40):
        context = torch.randint(0, 2, (3, length), generator=generator)
        logits = plain(3, 12)
        theirs = warped(processors.NoRepeatNGramLogitsProcessor(size), logits, context)
        if theirs.isnan().any():
            continue
        padded = torch.cat([context, torch.full((3, 5), -1)], 1)
        same(NoRepeatNgram((size,)).log_ratio(every_token(logits, context=padded))[:, 0], theirs, 1e-5)
        banned += int((theirs == -math.inf).sum())
    assert banned > 0


def test_boosted_stop_tokens_are_a_bias_from_the_position_on():
    logits = plain(3, 40)
    raised = logits.clone()
    raised[:, [1, 3]] += 2.0
    theirs = (torch.log_softmax(raised.double(), -1) - torch.log_softmax(logits.double(), -1)).flatten()
    hypothesis = EosBoosted((8,), (2.0,))
    assert (hypothesis.log_ratio(every_token(logits, position=8))[:, 0] - theirs).abs().max() < 1e-5
    assert hypothesis.log_ratio(every_token(logits, position=7)).isnan().all()


def without_repeats(logits, context, t):
    repeated = torch.zeros_like(logits, dtype=torch.bool)
    for row, ids in enumerate(context.tolist()):
        for one, following in zip(ids, ids[1:], strict=False):
            repeated[row, following] |= one == ids[-1]
    return logits.masked_fill(repeated, -math.inf)


def boosted(logits, context, t):
    logits = logits.clone()
    logits[:, 0] += 2.0 * (t >= 8)
    return logits


@pytest.mark.parametrize("cause, bend", [("no_repeat_ngram=2", without_repeats), ("eos_boosted>=8", boosted)])
def test_it_is_found_and_named(cause, bend):
    for seed in range(2):
        world = World(vocabulary=40, seed=seed, eos_logit=1.0)
        evidence = Evidence()
        for _ in range(60):
            evidence.gather(world.rollout(bend=bend), eps=1e-4)
            end_step(evidence)
            if evidence.log_evidence >= 40.0:
                break
        assert evidence.log_evidence >= 40.0
        assert next(iter(evidence.causes)) == cause


@pytest.mark.parametrize(
    "make", [lambda: NoRepeatNgram((1,)), lambda: EosBoosted((-1,)), lambda: EosBoosted((0,), (0.0,))]
)
def test_parameters_that_are_no_sampler_are_refused(make):
    with pytest.raises(ValueError):
        make()
