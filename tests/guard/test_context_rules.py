"""Rules on the prompt, on repeated n-grams and on the stop token: validity by enumeration, transformers, detection."""

import math

import pytest

torch = pytest.importorskip("torch")

from klguard.guard import scoring  # noqa: E402
from klguard.guard.context_rules import (  # noqa: E402
    EosBoosted,
    ForcedEos,
    NoRepeatNgram,
    PromptFavoured,
    PromptNgram,
)
from klguard.guard.events import Scoring  # noqa: E402
from klguard.guard.evidence import Evidence  # noqa: E402
from klguard.guard.hypotheses import RepetitionPenalty  # noqa: E402
from klguard.guard.watermark import Watermark  # noqa: E402
from tests.guard.test_evidence import World, end_step  # noqa: E402
from tests.guard.test_hypotheses import POLICIES, every_token, full_rows, means, plain, same, warped  # noqa: E402

torch.set_num_threads(1)


@pytest.mark.parametrize("name", POLICIES)
def test_the_mean_ratio_is_at_most_one(name):
    p = torch.softmax(POLICIES[name].double(), -1)
    rows = full_rows(name)
    penalties = PromptFavoured((0.5, 0.9, 1.3, 3.0))
    for hypothesis in (NoRepeatNgram(), EosBoosted((0, 2)), PromptNgram(), penalties, ForcedEos((2, 3))):
        assert (means(hypothesis, rows, p) <= 1.0 + 1e-6).all()
    given = every_token(POLICIES[name], context=torch.arange(20)[None].expand(len(p), -1), position=0)
    ratio = Watermark().log_ratio(given)
    assert not ratio.isnan().any() and (means(Watermark(), given, p) <= 1.0 + 1e-6).all()
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


@pytest.mark.parametrize("size", [1, 2, 3])
def test_encoder_no_repeat_ngram_is_that_of_transformers(size):
    processors = pytest.importorskip("transformers.generation.logits_process")
    generator = torch.Generator().manual_seed(size)
    banned = 0
    for length in (2, 3, 5, 30):
        ids = torch.randint(0, 4, (3, length), generator=generator)
        prompt = max(1, length // 2)
        logits = plain(3, 12)
        if prompt < size:
            continue
        theirs = warped(processors.EncoderNoRepeatNGramLogitsProcessor(size, ids[:, :prompt]), logits, ids)
        padded = torch.cat([ids, torch.full((3, 5), -1)], 1)
        rows = every_token(logits, context=padded, prompt=prompt)
        same(PromptNgram((size,)).log_ratio(rows)[:, 0], theirs, 1e-5)
        banned += int((theirs == -math.inf).sum())
    assert banned > 0


@pytest.mark.parametrize("penalty", [0.7, 1.1, 1.5])
def test_encoder_repetition_penalty_is_that_of_transformers(penalty):
    processors = pytest.importorskip("transformers.generation.logits_process")
    generator = torch.Generator().manual_seed(3)
    for logits in (plain(3, 60), plain(3, 60, scale=20.0), POLICIES["-inf"], plain(3, 60).to(torch.bfloat16)):
        m, vocabulary = logits.shape
        ids = torch.randint(0, vocabulary, (m, 30), generator=generator)
        processor = processors.EncoderRepetitionPenaltyLogitsProcessor(penalty, ids[:, :12])
        theirs = warped(processor, logits, ids)
        rows = every_token(logits, context=torch.cat([ids, torch.full((m, 3), -1)], 1), prompt=12)
        ours = PromptFavoured((penalty,)).log_ratio(rows)[:, 0]
        possible = torch.softmax(logits.double(), -1).flatten() > 1e-30
        assert possible.any() and ((ours[possible] - theirs[possible]).abs() < 5e-3).all()
        kept = theirs.nan_to_num(-math.inf).view(m, -1).amax(1) < 10.0
        near = possible & kept.repeat_interleave(vocabulary)
        assert near.any() and ((ours[near] - theirs[near]).abs() < 2e-5).all()


def test_forced_stop_token_is_that_of_transformers_at_the_last_position():
    processors = pytest.importorskip("transformers.generation.logits_process")
    logits = plain(3, 40)
    prompt, limit = 7, 9
    processor = processors.ForcedEOSTokenLogitsProcessor(prompt + limit, 1)
    hypothesis = ForcedEos((limit, 10 * limit))
    for position in (limit - 2, limit - 1):
        ids = torch.zeros(3, prompt + position, dtype=torch.int64)
        ours = hypothesis.log_ratio(every_token(logits, stop=(1,), position=position))
        theirs = warped(processor, logits, ids)
        if position == limit - 1:
            same(ours[:, 0], theirs, 1e-5)
        else:
            assert ours[:, 0].isnan().all() and theirs.abs().max() == 0.0
        assert ours[:, 1].isnan().all()


def watermark(vocabulary, share, bias):
    processors = pytest.importorskip("transformers.generation.logits_process")
    if not hasattr(processors, "WatermarkLogitsProcessor"):
        pytest.skip("this release of transformers has no watermark")
    return processors.WatermarkLogitsProcessor(vocabulary, "cpu", share, bias)


@pytest.mark.parametrize("share, bias", [(0.25, 2.0), (0.5, 1.0)])
def test_the_watermark_is_that_of_transformers(share, bias):
    vocabulary = 300
    theirs_of = watermark(vocabulary, share, bias)
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(0, vocabulary, (3, 9), generator=generator)
    padded = torch.cat([ids, torch.full((3, 4), -1)], 1)
    logits = plain(3, vocabulary)
    hypothesis = Watermark((share,), (bias,))
    theirs = warped(theirs_of, logits, ids)
    same(hypothesis.log_ratio(every_token(logits, context=padded, position=16))[:, 0], theirs, 1e-5)
    assert theirs.unique().numel() > 2
    assert hypothesis.log_ratio(every_token(logits, context=padded, position=17)).isnan().all()
    assert hypothesis.log_ratio(every_token(logits, context=padded[:, :0], position=16)).isnan().all()
    other = Watermark((share,), (bias,), key=7).log_ratio(every_token(logits, context=padded, position=16))
    assert (other[:, 0] - theirs).abs().max() > 0.5


def test_without_the_prompt_nothing_is_said_of_it():
    rows = every_token(plain(2, 9), context=torch.zeros(2, 4, dtype=torch.int64))
    for hypothesis in (PromptNgram(), PromptFavoured()):
        assert hypothesis.log_ratio(rows).isnan().all()
    evidence = Evidence()
    evidence.gather(rows, eps=1e-4)
    assert "context_ids" in evidence.blind["encoder_repetition_penalty"]
    assert "context_ids" in evidence.blind["encoder_no_repeat_ngram"]


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


def without_the_prompt(logits, context, t):
    return logits.scatter(1, context[:, :2], -math.inf)


def for_the_prompt(logits, context, t):
    at = logits.gather(1, context[:, :2])
    return logits.scatter(1, context[:, :2], torch.where(at > 0, at * 1.5, at / 1.5))


def stopped_at_the_end(logits, context, t):
    logits = logits.clone()
    logits[:, 1:] -= math.inf if t == 15 else 0.0
    return logits


def watermarked(logits, context, t):
    return watermark(logits.shape[1], 0.25, 2.0)(context, logits)


@pytest.mark.parametrize(
    "cause, bend",
    [
        ("no_repeat_ngram=2", without_repeats),
        ("eos_boosted>=8", boosted),
        ("encoder_no_repeat_ngram=1", without_the_prompt),
        ("encoder_repetition_penalty=1.5", for_the_prompt),
        ("forced_eos=16", stopped_at_the_end),
        ("watermark", watermarked),
    ],
)
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
    "make",
    [
        lambda: NoRepeatNgram((1,)),
        lambda: EosBoosted((-1,)),
        lambda: EosBoosted((0,), (0.0,)),
        lambda: PromptNgram((0,)),
        lambda: PromptFavoured((1.0,)),
        lambda: ForcedEos((0,)),
    ],
)
def test_parameters_that_are_no_sampler_are_refused(make):
    with pytest.raises(ValueError):
        make()


def scored_rows(context_ids, tokens, mask, logits):
    event = Scoring(
        logits=logits,
        tokens=tokens,
        mask=mask,
        logprobs=torch.log_softmax(logits, -1).gather(-1, tokens[..., None]).squeeze(-1),
        context_ids=context_ids,
    )
    (part,) = scoring.tested(event, torch.arange(tokens.numel()), torch.tensor([0]), 2**26)
    return part.rows


def test_whole_sequences_given_as_the_context_hide_the_tokens_to_come():
    generator = torch.Generator().manual_seed(2)
    prompts = torch.randint(0, 30, (6, 5), generator=generator)
    tokens = torch.randint(0, 30, (6, 9), generator=generator)
    logits = torch.randn(6, 9, 30, generator=generator)
    mask = torch.arange(9) < torch.tensor([[9], [9], [4], [9], [7], [9]])
    wrong = torch.where(mask, tokens, 29)  # what stands behind the end may differ
    right = scored_rows(prompts, tokens, mask, logits)
    whole = scored_rows(torch.cat([prompts, wrong], 1), tokens, mask, logits)
    for hypothesis in (PromptFavoured(), PromptNgram((1,)), RepetitionPenalty((1.2,))):
        one, other = (hypothesis.log_ratio(rows)[rows.usable] for rows in (right, whole))
        assert torch.allclose(one, other, rtol=0.0, atol=1e-9)
    # the same ids before a response that is not their end are a prompt
    other = scored_rows(torch.cat([prompts, tokens.flip(1)], 1), tokens, mask, logits)
    assert (other.prompt >= 0).all()
    # nor are a few tokens that happen to repeat the end of the prompt
    few = scored_rows(torch.cat([prompts, tokens], 1)[:3], tokens[:3], mask[:3], logits[:3])
    assert (few.prompt >= 0).all()
