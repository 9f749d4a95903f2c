"""Hypotheses against float64 oracles and transformers' own processors."""

import math
from dataclasses import fields

import pytest

torch = pytest.importorskip("torch")

from klguard.guard import hypotheses as hy  # noqa: E402
from klguard.guard import rows as rows_module  # noqa: E402
from klguard.guard.bank import default_bank  # noqa: E402
from klguard.guard.rows import HEAD, Rows, bins_of, running_sum  # noqa: E402
from klguard.guard.workspace import Workspace  # noqa: E402

torch.set_num_threads(1)

STOP = (1, 3, 3, -1, 10**6)
"""Stop ids with a duplicate, and two that are no ids of the vocabulary."""


def every_token(logits, *, context=None, prompt=None, stop=STOP, position=2, other=None):
    """Rows for each token of each row of logits (m, V): (m * V) rows, row-major, tokens innermost."""
    m, vocabulary = logits.shape
    wide = logits.repeat_interleave(vocabulary, 0)
    tokens = torch.arange(vocabulary).repeat(m)
    log_probs = torch.log_softmax(wide.float(), -1)
    given = None
    if other is not None:
        given = torch.log_softmax(other.float(), -1).repeat_interleave(vocabulary, 0)
        given = given.gather(1, tokens[:, None]).squeeze(1)
    context = context.repeat_interleave(vocabulary, 0) if context is not None else None
    return Rows(
        logits=wide,
        log_probs=log_probs,
        tokens=tokens,
        valid=torch.ones(m * vocabulary, dtype=torch.bool),
        position=torch.full((m * vocabulary,), position),
        reference=given,
        sampler=given,
        stale=given,
        earlier=given,
        later=given,
        context=context,
        prompt=context[:, :prompt] if prompt is not None else None,
        eos=torch.tensor(stop),
    )


def policies():
    """Names and logits (m, V) of policies that are hard for a kept set: ties, -inf, peaks, deserts."""
    generator = torch.Generator().manual_seed(7)

    def normal(m, vocabulary, scale):
        return torch.randn(m, vocabulary, generator=generator) * scale

    masked = normal(4, 37, 2.0)
    masked[:, ::3] = -math.inf
    one_left = torch.full((2, 12), -math.inf)
    one_left[:, 4] = 3.0
    desert = normal(3, 40, 1.0)
    desert[:, 5] += 60.0
    near_eos = normal(3, 40, 1.0)
    near_eos[:, 1] += 18.0
    return {
        "tiny": normal(6, 5, 1.0),
        "middle": normal(4, 37, 2.0),
        "head only": normal(2, 200, 2.0),
        "beyond the head": normal(2, 700, 2.5),
        "flat": torch.zeros(2, 300),
        "nearly flat": normal(2, 300, 1e-3),
        "peaked": normal(4, 50, 30.0),
        "huge": normal(4, 50, 1.0) * 1e4,
        "ties of bfloat16": (normal(2, 400, 2.0) + 20.0).to(torch.bfloat16),
        "ties at the edge of the head": torch.cat([normal(2, 150, 1.0) + 5.0, torch.zeros(2, 250)], 1),
        "half precision": normal(3, 64, 3.0).to(torch.float16),
        "-inf": masked,
        "one token left": one_left,
        "one token has all": desert,
        "end has all": near_eos,
    }


POLICIES = policies()
BANK = default_bank()


def means(hypothesis, rows, p, exact=None):
    """(m, components) sum over x of p(x) L(x) in float64; p: (m, V)."""
    ratio = hypothesis.log_ratio(rows)
    m, vocabulary = p.shape
    ratio = torch.where(ratio.isnan(), 0.0, ratio).exp().view(m, vocabulary, -1)
    return torch.where(p[..., None] > 0, p[..., None] * ratio, 0.0).sum(1)


def full_rows(name):
    generator = torch.Generator().manual_seed(11)
    logits = POLICIES[name]
    m, vocabulary = logits.shape
    context = torch.randint(-1, vocabulary, (m, 2 * vocabulary), generator=generator)
    other = torch.randn(m, vocabulary, generator=generator)
    return every_token(logits, context=context, prompt=vocabulary, other=other)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("hypothesis", BANK, ids=lambda h: h.family)
def test_the_mean_ratio_under_the_policy_is_at_most_one(name, hypothesis):
    logits = POLICIES[name]
    rows = full_rows(name)
    oracle = torch.softmax(logits.double(), -1)
    mean = means(hypothesis, rows, oracle)
    assert (mean <= 1.0 + 1e-6).all(), (name, hypothesis.family, mean.max())
    own = torch.log_softmax(logits.float(), -1).exp().double()
    assert (means(hypothesis, rows, own) <= 1.0 + 1e-6).all()


PROPER = ("greedy", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "pit")


@pytest.mark.parametrize("name", POLICIES)
def test_the_mean_ratio_is_one_where_the_sampler_is_a_distribution(name):
    rows = full_rows(name)
    p = torch.softmax(POLICIES[name].double(), -1)
    for hypothesis in BANK:
        if hypothesis.family in PROPER:
            mean = means(hypothesis, rows, p)
            assert torch.allclose(mean, torch.ones_like(mean), atol=2e-6), (hypothesis.family, mean)


@pytest.mark.parametrize("name", ["tiny", "middle", "beyond the head", "end has all"])
def test_suppression_and_penalty_are_distributions_too(name):
    rows = full_rows(name)
    p = torch.softmax(POLICIES[name].double(), -1)
    for hypothesis in BANK:
        if hypothesis.family in ("eos_suppressed", "repetition_penalty"):
            mean = means(hypothesis, rows, p)
            assert torch.allclose(mean, torch.ones_like(mean), atol=1e-5), (hypothesis.family, mean)


def test_no_ratio_is_nan_where_the_hypothesis_has_an_opinion():
    for name in POLICIES:
        rows = full_rows(name)
        for hypothesis in BANK:
            ratio = hypothesis.log_ratio(rows)
            assert ratio.dtype == torch.float64
            assert ratio.shape == (len(rows.tokens), len(hypothesis.names))
            if hypothesis.family not in ("eos_suppressed", "eos_boosted", "forced_eos", "watermark"):
                assert not ratio.isnan().any(), (name, hypothesis.family)


# Against transformers' own processors


def warped(processor, logits, ids=None):
    """(m * V,) log of the processor's distribution over that of the logits, float64."""
    ids = ids if ids is not None else torch.zeros(len(logits), 1, dtype=torch.int64)
    q = torch.log_softmax(processor(ids, logits.float().clone()).double(), -1)
    return (q - torch.log_softmax(logits.double(), -1)).flatten()


@pytest.fixture(scope="module")
def processors():
    return pytest.importorskip("transformers.generation.logits_process")


def plain(*shape, scale=2.0, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def same(ours, theirs, tolerance):
    kept = theirs > -math.inf
    assert torch.equal(ours > -math.inf, kept)
    assert (ours[kept] - theirs[kept]).abs().max() < tolerance


@pytest.mark.parametrize("k", [1, 2, 5, 50, 200])
def test_top_k_is_that_of_transformers(processors, k):
    for logits in (plain(3, 300), POLICIES["ties of bfloat16"], POLICIES["ties at the edge of the head"]):
        theirs = warped(processors.TopKLogitsWarper(top_k=k), logits)
        same(hy.TopK((k,)).log_ratio(every_token(logits))[:, 0], theirs, 1e-5)
        if k == 1:
            same(hy.Greedy().log_ratio(every_token(logits))[:, 0], theirs, 1e-5)


def test_top_k_above_the_vocabulary_is_no_truncation():
    ratio = hy.TopK((50,)).log_ratio(every_token(plain(3, 20)))
    assert ratio.abs().max() < 1e-6


def test_top_k_beyond_the_head_is_refused():
    with pytest.raises(ValueError, match="200 likeliest"):
        hy.TopK((201,))


@pytest.mark.parametrize("p", [0.5, 0.8, 0.9, 0.99])
def test_top_p_is_exact_where_the_nucleus_fits_into_the_head(processors, p):
    logits = plain(3, HEAD)
    theirs = warped(processors.TopPLogitsWarper(top_p=p), logits)
    same(hy.TopP((p,)).log_ratio(every_token(logits))[:, 0], theirs, 1e-5)


def contains(ours, theirs, surprise, width):
    """Ours keeps what theirs keeps, and at most one bin more of the surprise; log L agrees accordingly."""
    kept, more = theirs > -math.inf, ours > -math.inf
    assert more[kept].all()
    extra = more & ~kept
    if extra.any():
        assert surprise[extra].max() - surprise[kept].max() < width
    return (ours[kept] - theirs[kept]).abs().max()


def test_top_p_beyond_the_head_keeps_at_most_a_bin_more(processors):
    logits = plain(2, 1500, scale=1.0)
    rows = every_token(logits)
    surprise = -rows.log_prob
    for p in (0.9, 0.95):
        theirs = warped(processors.TopPLogitsWarper(top_p=p), logits)
        ours = hy.TopP((p,)).log_ratio(rows)[:, 0]
        for part in (slice(0, 1500), slice(1500, 3000)):
            assert contains(ours[part], theirs[part], surprise[part], 1 / 32 + 1e-4) < 0.01


@pytest.mark.parametrize("min_p", [0.01, 0.05, 0.1])
def test_min_p_is_that_of_transformers(processors, min_p):
    logits = plain(3, 300)
    theirs = warped(processors.MinPLogitsWarper(min_p=min_p), logits)
    ours = hy.MinP((min_p,)).log_ratio(every_token(logits))[:, 0]
    same(ours, theirs, 1e-5)
    wide = plain(1, 1500, scale=0.7)
    rows = every_token(wide)
    theirs = warped(processors.MinPLogitsWarper(min_p=min_p), wide)
    assert contains(hy.MinP((min_p,)).log_ratio(rows)[:, 0], theirs, -rows.log_prob, 1 / 32 + 1e-4) < 0.03


def test_epsilon_cutoff_is_that_of_transformers(processors):
    logits = plain(3, 300)
    for epsilon in (3e-4, 1e-3, 0.9):
        theirs = warped(processors.EpsilonLogitsWarper(epsilon=epsilon), logits)
        same(hy.EpsilonCutoff((epsilon,)).log_ratio(every_token(logits))[:, 0], theirs, 1e-5)


@pytest.mark.parametrize("mass", [0.2, 0.5, 0.9, 0.95])
def test_typical_p_differs_from_transformers_by_at_most_a_bin_at_either_end(processors, mass):
    for seed in range(4):
        logits = plain(1, 900, seed=seed)
        theirs = warped(processors.TypicalLogitsWarper(mass=mass), logits)
        rows = every_token(logits)
        ours = hy.TypicalP((mass,)).log_ratio(rows)[:, 0]
        p = rows.log_prob.exp()
        entropy = -(p * rows.log_prob).sum()
        away = (-rows.log_prob - entropy).abs()
        kept, more = theirs > -math.inf, ours > -math.inf
        edge = away[kept].max()
        # a bin of surprise, and half a bin for each of the entropy and the centre
        assert ((away[kept ^ more] - edge).abs() < 2.5 / 32).all()
        both = kept & more
        assert both.sum() > 0.5 * kept.sum()
        # a small set is a narrow band, of which the bins at its ends are a larger share
        assert (ours[both] - theirs[both]).abs().max() < (0.15 if mass < 0.5 else 0.06)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 0.9, 1.1, 2.0, 4.0])
def test_temperature_is_that_of_transformers_up_to_half_a_bin(processors, temperature):
    logits = plain(3, 300)
    theirs = warped(processors.TemperatureLogitsWarper(temperature), logits)
    ours = hy.Temperature((temperature,)).log_ratio(every_token(logits))[:, 0]
    # half a bin for the token, and at most as much for the normaliser
    assert (ours - theirs).abs().max() <= 2 * abs(1 / temperature - 1) / 64 + 1e-5


def test_temperature_is_a_distribution_for_each_token_alone():
    """The bins give up power, and little: the loss against the true sampler at its own tokens, in nats."""
    logits = plain(3, 800)
    log_p = torch.log_softmax(logits.double(), -1)
    for temperature, most in ((0.1, 0.02), (0.9, 2e-6), (0.95, 1e-6), (1.1, 2e-6), (4.0, 1e-4)):
        log_q = torch.log_softmax(logits.double() / temperature, -1)
        gain = (log_q.exp() * (log_q - log_p)).sum(1)
        ours = hy.Temperature((temperature,)).log_ratio(every_token(logits))[:, 0].view(3, -1)
        assert (gain - (log_q.exp() * ours).sum(1)).max() < most


@pytest.mark.parametrize("penalty", [1.05, 1.2, 1.5])
def test_repetition_penalty_is_that_of_transformers(processors, penalty):
    for logits in (plain(3, 60), plain(3, 60, scale=20.0), POLICIES["-inf"], plain(3, 60).to(torch.bfloat16)):
        m, vocabulary = logits.shape
        context = torch.randint(0, vocabulary, (m, 30), generator=torch.Generator().manual_seed(1))
        processor = processors.RepetitionPenaltyLogitsProcessor(penalty=penalty)
        theirs = warped(processor, logits, context)
        padded = torch.cat([torch.full((m, 4), -1), context, torch.full((m, 3), -1)], 1)
        ours = hy.RepetitionPenalty((penalty,)).log_ratio(every_token(logits, context=padded))[:, 0]
        possible = torch.softmax(logits.double(), -1).flatten() > 1e-30
        # the slack against cancellation shows where nearly all mass is pushed down: at 20 nats
        assert possible.any() and ((ours[possible] - theirs[possible]).abs() < 5e-3).all()
        kept = theirs.nan_to_num(-math.inf).view(m, -1).amax(1) < 10.0
        near = possible & kept.repeat_interleave(vocabulary)
        assert ((ours[near] - theirs[near]).abs() < 1e-5).all()


def test_a_context_that_holds_all_mass_does_not_cancel():
    """Everything likely is in the context and pushed down by hundreds of nats: the rest must stay bounded."""
    logits = torch.cat([torch.full((1, 10), 1e4), torch.full((1, 10), 1e4 - 300.0)], 1)
    context = torch.arange(10)[None]
    rows = every_token(logits, context=context)
    mean = means(hy.RepetitionPenalty((1.05, 1.5)), rows, torch.softmax(logits.double(), -1))
    assert (mean <= 1.0 + 1e-6).all()


def test_suppressed_end_of_sequence_is_min_new_tokens(processors):
    logits = plain(3, 40)
    ids = torch.zeros(3, 9, dtype=torch.int64)
    hypothesis = hy.EosSuppressed((4, 8, math.inf))
    for position, active in ((3, (True, True, True)), (4, (False, True, True)), (8, (False, False, True))):
        ours = hypothesis.log_ratio(every_token(logits, stop=(1, 3), position=position))
        for column, minimum in enumerate((4, 8, 10**6)):
            processor = processors.MinNewTokensLengthLogitsProcessor(
                9 - position, minimum, torch.tensor([1, 3])
            )
            theirs = warped(processor, logits, ids)
            if active[column]:
                same(ours[:, column], theirs, 1e-5)
            else:
                assert theirs.abs().max() < 1e-12
                assert ours[:, column].isnan().all()


def test_pit_tilts_are_the_closed_form():
    """A uniform policy over 4 classes: intervals [0, 1] since all tie; a policy with 4 distinct masses."""
    p = torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.float64)
    rows = every_token(p.log()[None].float())
    lower, upper = hy.pit_interval(rows)
    assert torch.allclose(lower, torch.tensor([0.0, 0.5, 0.75, 0.9], dtype=torch.float64), atol=1e-6)
    assert torch.allclose(upper, torch.tensor([0.5, 0.75, 0.9, 1.0], dtype=torch.float64), atol=1e-6)
    ratio = hy.PitTilt((2.0,)).log_ratio(rows)[:, 0].exp()
    grid = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    density = 2.0 * torch.exp(2.0 * grid) / math.expm1(2.0)
    for i in range(4):
        inside = (grid >= lower[i]) & (grid < upper[i])
        assert abs(float(density[inside].mean() - ratio[i])) < 1e-4
    flat = every_token(torch.zeros(1, 30))
    assert hy.PitTilt((2.0,)).log_ratio(flat).abs().max() < 1e-6


def test_a_token_with_no_neighbour_is_no_opinion():
    rows = every_token(plain(1, 5))
    assert hy.Neighbour(-1).log_ratio(rows).isnan().all()
    shifted = Rows(**{**vars_of(rows), "earlier": torch.tensor([0.0, math.nan, -math.inf, -1.0, -2.0])})
    ratio = hy.Neighbour(-1).log_ratio(shifted)[:, 0]
    assert ratio.isnan().tolist() == [False, True, False, False, False]
    assert ratio[2] == -math.inf


def vars_of(rows):
    return {name: getattr(rows, name) for name in Rows.__dataclass_fields__}


# Rows


def test_rows_that_cannot_be_tested_are_counted_and_have_no_mass():
    logits = plain(6, 30)
    logits[1, 4] = math.nan
    logits[2, 5] = math.inf
    logits[3] = -math.inf
    tokens = torch.tensor([0, 1, 2, 3, -100, 30])
    valid = torch.tensor([True, True, True, True, False, True])
    rows = Rows(logits, torch.log_softmax(logits, -1), tokens, valid, torch.arange(6), eos=torch.tensor([1]))
    assert rows.usable.tolist() == [True, False, False, False, False, False]
    assert int(rows.unusable) == 4
    assert rows.spectrum.total.tolist()[1:] == [0.0] * 5
    assert float(rows.spectrum.column.sum()) == pytest.approx(1.0, abs=1e-6)


def test_bins_hold_every_distance():
    distance = torch.tensor([0.0, 1 / 32 - 1e-6, 1 / 32, 5.0, 1e9, math.inf, math.nan])
    assert bins_of(distance).tolist() == [0, 0, 1, 160, 1023, 1023, 0]


def test_pieces_are_the_rows_in_order_and_fit_the_budget():
    rows = full_rows("tiny")
    budget = 7 * rows_module.working_bytes(5, rows.context.shape[1])
    parts = list(rows.pieces(budget))
    assert [len(part.tokens) for part in parts] == [7, 7, 7, 7, 2]
    for name in ("tokens", "log_probs", "reference", "context", "position"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(rows, name))
    assert all(part.eos is rows.eos for part in parts)
    assert list(rows.pieces(2**30)) == [rows]


def test_running_sum_has_a_deterministic_form():
    x = plain(3, 1024).double().abs()
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        doubled = running_sum(x)
    finally:
        torch.use_deterministic_algorithms(before)
    assert torch.allclose(doubled, x.cumsum(1), rtol=1e-13)


def test_the_ties_of_the_last_of_the_head_are_counted_outside_it():
    logits = POLICIES["ties at the edge of the head"]
    rows = every_token(logits[:1])
    assert int(rows.spectrum.more_ties[0]) == 200
    assert float(rows.spectrum.mass_from(rows.spectrum.head[:1, -1:])[0]) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: hy.Temperature((0.0,)),
        lambda: hy.TopP((1.0,)),
        lambda: hy.MinP((math.nan,)),
        lambda: hy.TopK((0,)),
        lambda: hy.RepetitionPenalty((1.0,)),
        lambda: hy.EosSuppressed((0,)),
        lambda: hy.Neighbour(2),
        lambda: hy.PitTilt((0.0,)),
        lambda: hy.GivenLogProbs("reference", 0.0),
        lambda: hy.Temperature(()),
    ],
)
def test_parameters_that_are_no_sampler_are_refused(make):
    with pytest.raises(ValueError):
        make()


# The pass over the vocabulary


def test_the_likeliest_are_those_of_topk():
    """Vocabularies on both sides of where entries are compared in groups, and none that the groups divide."""
    for vocabulary in (150, 12_785, 12_800, 20_001, 50_257):
        for logits in (plain(3, vocabulary), plain(3, vocabulary).to(torch.bfloat16).float()):
            logits[0, ::7] = -math.inf
            logits[1] = -math.inf
            logits[1, 5:60] = 1.0
            logits[2, [0, 9, vocabulary - 1]] += 30.0
            log_probs = torch.log_softmax(logits, -1)
            top, ids, ties = rows_module.likeliest(log_probs, HEAD)
            count = min(HEAD, vocabulary)
            assert torch.equal(top, log_probs.topk(count, 1).values)
            assert torch.equal(log_probs.gather(1, ids), top)
            assert all(len(row.unique()) == count for row in ids[[0, 2]])
            assert torch.equal(ties, (log_probs == top[:, -1:]).sum(1).float())


def test_a_row_of_nan_stays_visible_among_the_likeliest():
    log_probs = torch.log_softmax(plain(2, 20_000), -1)
    log_probs[1] = math.nan
    top, ids, _ = rows_module.likeliest(log_probs, HEAD)
    assert top[1].isnan().all() and top[0].isfinite().all()
    assert ids.min() >= 0 and ids.max() < 20_000


@pytest.mark.parametrize("vocabulary", [37, 20_000])
def test_rows_taken_a_few_at_a_time_give_the_same_spectrum(monkeypatch, vocabulary):
    logits = plain(11, vocabulary)
    logits[3] = math.nan
    given = dict(
        logits=logits,
        log_probs=torch.log_softmax(logits, -1),
        tokens=torch.arange(11),
        valid=torch.arange(11) != 4,
        position=torch.arange(11),
    )
    whole = Rows(**given).spectrum
    monkeypatch.setattr(rows_module, "CACHE", 20 * vocabulary * 4)
    parts = Rows(**given).spectrum
    for name in ("head", "head_ids", "head_mass", "mass", "total", "bin", "column", "more_ties"):
        one, other = getattr(whole, name), getattr(parts, name)
        assert torch.allclose(one.double(), other.double(), rtol=1e-6, atol=1e-9, equal_nan=True), name
    usable = Rows(**given).usable
    assert usable.tolist() == [row not in (3, 4) for row in range(11)]
    log_p = torch.log_softmax(logits.double(), -1)
    exact = -(log_p.exp() * log_p).sum(1)
    assert (parts.entropy[usable] - exact[usable]).abs().max() < 1e-5


@pytest.mark.parametrize("vocabulary", [37, 20_000])
def test_rows_that_share_memory_do_not_hear_of_each_other(vocabulary):
    space = Workspace(torch.device("cpu"))
    for count in (5, 9, 3):
        logits = plain(count, vocabulary)
        given = dict(
            logits=logits,
            log_probs=torch.log_softmax(logits, -1),
            tokens=torch.arange(count),
            valid=torch.ones(count, dtype=torch.bool),
            position=torch.arange(count),
        )
        alone, shared = Rows(**given).spectrum, Rows(**given, workspace=space).spectrum
        for each in fields(alone):
            if each.name != "complete":
                assert torch.equal(getattr(alone, each.name), getattr(shared, each.name)), each.name
