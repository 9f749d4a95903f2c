"""The estimators, the exact KL and the reductions, against float64 and against loops in plain Python."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from klguard.guard import kl  # noqa: E402
from klguard.guard.workspace import Workspace  # noqa: E402

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INF, NAN = math.inf, math.nan


@pytest.fixture(autouse=True)
def one_thread():
    """One thread: the tensors are small, and tests run side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def k3_in_float64(d: torch.Tensor) -> torch.Tensor:
    """exp(d) - 1 - d with 1e-15 relative error: 30 terms of the series where |d| < 1, else as written."""
    d = d.double()
    near = torch.where(d.abs() < 1, d, 0.0)
    series = sum(near**power / float(math.factorial(power)) for power in range(2, 32))
    return torch.where(d.abs() < 1, series, torch.exp(d) - 1 - d)


def exact_in_float64(
    logits: torch.Tensor, reference_logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """KL and variance of log p - log q under p, by definition: over the support of p alone."""
    log_p, log_q = logits.double().log_softmax(-1), reference_logits.double().log_softmax(-1)
    p = log_p.exp()
    support = log_p > -INF
    difference = torch.where(support, log_p - log_q, 0.0)
    value = torch.where(support & (log_q == -INF), INF, p * difference).sum(-1)
    variance = (p * (difference - value[..., None]) ** 2).sum(-1)
    return value, torch.where(value == INF, INF, variance)


# ------------------------------------------------------------------------------------------ estimators


def every_pattern(dtype: torch.dtype) -> torch.Tensor:
    """Every finite number of a 16-bit type; for fp32 four million bit patterns that cover all exponents."""
    if dtype == torch.float32:
        patterns = torch.arange(-(2**31), 2**31, 1021, dtype=torch.int64).to(torch.int32)
        numbers = patterns.view(torch.float32)
    else:
        numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    return numbers[numbers.isfinite()]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_k3_is_never_negative_for_any_finite_difference(dtype):
    d = every_pattern(dtype)
    values = kl.k3(torch.zeros_like(d), d)
    assert values.dtype == torch.float32
    assert bool((values >= 0).all())


def test_k3_is_never_negative_next_to_zero():
    """Where expm1 may be off by one unit in the last place, every number in turn, both signs."""
    d = torch.arange(0x33000000, 0x33000000 + 2**22, dtype=torch.int32).view(torch.float32)  # from 3e-8 on
    for signed in (d, -d):
        values = kl.k3(torch.zeros_like(signed), signed)
        assert bool((values > 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_k3_agrees_with_float64_to_the_last_digits(dtype):
    size = torch.logspace(-18, math.log10(80), 200_001, dtype=torch.float64).to(dtype)
    d = torch.cat([-size, size])
    oracle = k3_in_float64(d)
    error = (kl.k3(torch.zeros_like(d), d).double() - oracle).abs() / oracle
    assert float(error.max()) < (2e-6 if dtype == torch.float32 else 5e-14)


def test_k3_of_extremes():
    d = torch.tensor([0.0, -0.0, 80.0, -80.0, 1e-45, -1e-45, 200.0, -200.0])
    expected = [0.0, 0.0, math.exp(80) - 81, 79.0, 0.0, 0.0, INF, 199.0]
    torch.testing.assert_close(kl.k3(torch.zeros(8), d), torch.tensor(expected), rtol=1e-6, atol=0)


def test_the_textbook_form_of_k3_is_negative_where_this_one_is_not():
    """The reason for the series: if this fails, torch no longer needs it."""
    worst = {}
    for dtype in DTYPES:
        d = every_pattern(dtype)
        d = d[d.abs() < 1]
        worst[dtype] = float((torch.exp(d) - 1 - d).min())
    assert worst[torch.bfloat16] < -3e-3
    assert worst[torch.float16] < -4e-4
    assert worst[torch.float32] < -5e-8


@pytest.mark.parametrize("formula", [kl.k1, kl.k2, kl.k3])
def test_half_precision_inputs_are_upcast_before_they_are_subtracted(formula):
    logprobs = torch.tensor([-20.125, -3.015625], dtype=torch.bfloat16)
    reference = torch.tensor([-3.03125, -20.25], dtype=torch.bfloat16)
    assert torch.equal(formula(logprobs, reference), formula(logprobs.float(), reference.float()))
    rounded = reference - logprobs  # 17.09375 becomes 17.125
    assert not torch.equal(formula(logprobs, reference), formula(torch.zeros(2), rounded))


def test_definitions_of_k1_and_k2():
    logprobs, reference = torch.tensor([-1.0, -3.0]), torch.tensor([-2.5, -1.0])
    assert kl.k1(logprobs, reference).tolist() == [1.5, -2.0]
    assert kl.k2(logprobs, reference).tolist() == [1.125, 2.0]


@pytest.mark.parametrize("formula", [kl.k1, kl.k2, kl.k3])
def test_estimators_are_differentiable(formula):
    logprobs = -torch.rand(40, generator=generator(), dtype=torch.float64)
    reference = logprobs + torch.linspace(
        -0.3, 0.3, 40, dtype=torch.float64
    )  # across the border of the series
    assert torch.autograd.gradcheck(formula, (logprobs.requires_grad_(), reference.requires_grad_()))


def test_the_gradient_of_k3_is_right_near_zero_and_finite_far_away():
    d = torch.tensor([-1e10, -60.0, -1.0, -1e-3, -1e-9, 0.0, 1e-9, 1e-3, 1.0, 60.0])
    logprobs = torch.zeros_like(d).requires_grad_()
    kl.k3(logprobs, d).sum().backward()
    torch.testing.assert_close(logprobs.grad, -torch.expm1(d.double()).float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_unbiased_estimators_average_to_the_exact_kl(estimator):
    """Summed with the probabilities themselves, not sampled: k1 and k3 must give the exact KL."""
    g = generator(3)
    logits, reference_logits = torch.randn(50, generator=g), torch.randn(50, generator=g)
    log_p, log_q = logits.double().log_softmax(-1), reference_logits.double().log_softmax(-1)
    expectation = (log_p.exp() * kl.estimate(log_p, log_q, estimator=estimator)).sum()
    assert float(expectation) == pytest.approx(
        float(exact_in_float64(logits, reference_logits)[0]), rel=1e-12
    )
    biased = (log_p.exp() * kl.estimate(log_p, log_q, estimator="k2")).sum()
    assert abs(float(biased - expectation)) > 0.05


@pytest.mark.parametrize("estimator", kl.ESTIMATORS)
def test_what_is_masked_does_not_matter_nor_does_its_gradient(estimator):
    logprobs = torch.tensor([[-1.0, NAN, -2.0, INF, -INF]], requires_grad=True)
    reference = torch.tensor([[-1.5, NAN, NAN, INF, -INF]], requires_grad=True)
    mask = torch.tensor([[1, 0, 0, 0, 0]])
    values = kl.estimate(logprobs, reference, mask, estimator=estimator)
    assert values[0, 1:].tolist() == [0.0] * 4
    assert values[0, 0] != 0
    values.sum().backward()
    for gradient in (logprobs.grad, reference.grad):
        assert gradient[0, 1:].tolist() == [0.0] * 4
        assert gradient[0, 0] != 0


def test_unknown_estimators_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'k1'.*'k2'.*'k3'"):
        kl.estimate(torch.zeros(1, 1), torch.zeros(1, 1), estimator="k4")
    with pytest.raises(ValueError, match=r"exact_kl\(logits, reference_logits\)"):
        kl.estimate(torch.zeros(1, 1), torch.zeros(1, 1), estimator="exact")


# ------------------------------------------------------------------------------------------ reductions

entries = st.one_of(st.floats(-100, 100, width=32), st.sampled_from([NAN, INF, -INF]))


@st.composite
def batches(draw):
    """Values (B, T) with junk where the mask is 0, and the mask."""
    batch, time = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    mask = [[draw(st.booleans()) for _ in range(time)] for _ in range(batch)]
    values = [[draw(st.floats(-100, 100, width=32) if kept else entries) for kept in row] for row in mask]
    return values, mask


@given(batches(), st.sampled_from([torch.bool, torch.int64, torch.float32, torch.bfloat16]))
@settings(max_examples=80, deadline=None)
def test_reductions_are_what_loops_say(batch, mask_dtype):
    values, mask = batch
    rows = [[v for v, kept in zip(*pair, strict=True) if kept] for pair in zip(values, mask, strict=True)]
    sums = [math.fsum(row) for row in rows]
    count, sequences = sum(map(len, rows)), sum(map(bool, rows))
    tensors = torch.tensor(values), torch.tensor(mask).to(mask_dtype)
    expected = {
        kl.masked_sum: math.fsum(sums),
        kl.masked_mean: math.fsum(sums) / max(count, 1),
        kl.per_token: math.fsum(sums) / max(count, 1),
        kl.per_sequence: math.fsum(sums) / max(sequences, 1),
    }
    for reduction, number in expected.items():
        assert float(reduction(*tensors)) == pytest.approx(number, rel=1e-5, abs=1e-4)
    assert kl.per_sequence_sum(*tensors).tolist() == pytest.approx(sums, rel=1e-5, abs=1e-4)


def test_per_token_and_per_sequence_differ_when_lengths_do():
    values = torch.tensor([[1.0, 1.0, 1.0, 1.0], [5.0, NAN, NAN, NAN], [NAN] * 4])
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
    assert float(kl.per_token(values, mask)) == pytest.approx(9 / 5)
    assert float(kl.per_sequence(values, mask)) == pytest.approx(9 / 2)


@pytest.mark.parametrize("reduction", [kl.masked_mean, kl.per_sequence, kl.masked_sum])
def test_an_empty_mask_gives_zero_and_no_gradient(reduction):
    values = torch.tensor([[NAN, 2.0]], requires_grad=True)
    result = reduction(values, torch.zeros(1, 2))
    result.backward()
    assert float(result.detach()) == 0.0
    assert values.grad.tolist() == [[0.0, 0.0]]


def test_gradients_pass_the_mask_only_where_it_is_one():
    values = torch.tensor([[1.0, NAN, 3.0]], requires_grad=True)
    kl.masked_mean(values, torch.tensor([[1, 0, 1]])).backward()
    assert values.grad.tolist() == [[0.5, 0.0, 0.5]]


def test_without_a_mask_every_token_counts():
    values = torch.arange(6.0).view(2, 3)
    assert float(kl.per_token(values)) == 2.5
    assert float(kl.per_sequence(values)) == 7.5


def test_half_precision_is_summed_in_fp32():
    values = torch.full((1, 4096), 0.01, dtype=torch.bfloat16)
    assert float(kl.masked_sum(values)) == pytest.approx(4096 * float(values[0, 0]), rel=1e-5)


def test_an_additive_mask_selects_nothing_and_is_counted_as_irregular():
    additive = torch.tensor([[0.0, -INF, -1e9]])
    assert not bool(kl.valid_tokens(additive).any())
    assert int(kl.irregular(additive)) == 2
    assert int(kl.irregular(torch.tensor([[0.0, 0.5, 1.0]]))) == 1
    assert int(kl.irregular(torch.tensor([[0, 1, 1]]))) == 0
    assert int(kl.irregular(torch.tensor([[False, True]]))) == 0


# ------------------------------------------------------------------------------------------ over the vocabulary


def plain_log_probs(logits, tokens):
    return torch.log_softmax(logits.float(), -1).gather(-1, tokens[..., None]).squeeze(-1)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 9, 7), (3, 20, 1000), (2, 15, 50_257)], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_log_probs_in_chunks_are_bit_identical_to_the_plain_expression(shape, dtype, threads):
    torch.set_num_threads(threads)
    g = generator()
    batch, time, vocabulary = shape
    wide = (torch.randn(batch, time + 1, vocabulary, generator=g) * 5).to(dtype)
    tokens = torch.randint(vocabulary, (batch, time), generator=g)
    views = {"view": wide[:, :-1], "contiguous": wide[:, 1:].contiguous()}
    for logits in views.values():
        for budget in (1, 8 * 3 * vocabulary, 2**26):
            measured = kl.token_log_probs(logits, tokens, budget=budget)
            assert torch.equal(measured, plain_log_probs(logits, tokens))


def test_log_probs_of_transposed_logits_and_other_ranks():
    g = generator(1)
    logits = torch.randn(6, 5, 30, generator=g).transpose(0, 1)
    tokens = torch.randint(30, (5, 6), generator=g)
    assert torch.equal(kl.token_log_probs(logits, tokens, budget=1000), plain_log_probs(logits, tokens))
    assert torch.equal(kl.token_log_probs(logits[0], tokens[0]), plain_log_probs(logits[0], tokens[0]))
    assert torch.equal(kl.token_log_probs(logits[0, 0], tokens[0, 0]), plain_log_probs(logits, tokens)[0, 0])
    assert kl.token_log_probs(logits[:0], tokens[:0]).shape == (0, 6)


def test_log_probs_keep_the_gradient_of_the_plain_expression():
    g = generator(2)
    logits, tokens = torch.randn(2, 4, 50, generator=g), torch.randint(50, (2, 4), generator=g)
    ours, plain = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    values = kl.token_log_probs(ours, tokens)
    assert torch.equal(values.detach(), plain_log_probs(plain, tokens).detach())
    values.sum().backward()
    plain_log_probs(plain, tokens).sum().backward()
    assert torch.equal(ours.grad, plain.grad)


def test_tokens_outside_the_vocabulary_give_nan_and_leave_the_rest_alone():
    logits = torch.randn(1, 4, 10, generator=generator())
    tokens = torch.tensor([[3, -100, 10, 9]])
    for source in (logits, logits.clone().requires_grad_()):
        values = kl.token_log_probs(source, tokens).detach()
        assert values.isnan().tolist() == [[False, True, True, False]]
        assert torch.equal(values[0, ::3], plain_log_probs(logits[:, ::3], tokens[:, ::3])[0])


def test_tokens_of_small_integer_types():
    logits = torch.randn(1, 3, 10, generator=generator())
    tokens = torch.tensor([[3, 0, 9]])
    for dtype in (torch.int32, torch.int16, torch.uint8):
        assert torch.equal(kl.token_log_probs(logits, tokens.to(dtype)), kl.token_log_probs(logits, tokens))


def cases(dtype):
    """Names and pairs of logits that are hard on a KL: large, tied, peaked, nearly equal, with -inf."""
    g = generator(5)

    def rows(scale, vocabulary=3_001):
        return torch.randn(2, 3, vocabulary, generator=g) * scale

    base, near = rows(3.0), rows(3.0)
    holes = rows(2.0)
    holes[..., ::3] = -INF
    more_holes = holes.clone()
    more_holes[..., 0] = 1.0
    pairs = {
        "ordinary": (rows(3.0), rows(3.0)),
        "nearly equal": (base, base + 1e-3 * near),
        "equal": (base, base.clone()),
        "up to 1e4": (rows(1.0).clamp(-4, 4) * 2_500, rows(1.0).clamp(-4, 4) * 2_500),
        "offset 1e4": (base + 1e4, near - 1e4),
        "ties": (rows(1.0).round(), torch.zeros(2, 3, 3_001)),
        "both -inf": (holes, holes + 0.1 * near),
        "policy -inf": (holes, base),
        "reference -inf": (base, holes),
        "one more": (more_holes, holes),
        "one less": (holes, more_holes),
    }
    return {name: (first.to(dtype), second.to(dtype)) for name, (first, second) in pairs.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", list(cases(torch.float32)))
def test_exact_kl_variance_and_entropy_agree_with_float64(name, dtype):
    logits, reference_logits = cases(dtype)[name]
    value, variance = exact_in_float64(logits, reference_logits)
    for budget in (2**20, 12 * 3_001, 12 * 700, 12 * 41):
        if budget > 12 * 41 or name == "ordinary":  # many small parts: once is enough
            spread = {"atol": 2e-6, "rtol": 1e-6}
            measured = kl.exact_kl(logits, reference_logits, budget=budget)
            assert measured.dtype == torch.float32
            torch.testing.assert_close(measured.double(), value, **spread)
            p = logits.double().softmax(-1)
            torch.testing.assert_close(
                kl.entropy(logits, budget=budget).double(), torch.special.entr(p).sum(-1), **spread
            )
            assert bool((measured >= -1e-5).all())
    log_p, log_q = logits.float().log_softmax(-1), reference_logits.float().log_softmax(-1)
    kept = log_p.clone(), log_q.clone()
    moments = kl.exact_kl_moments(log_p, log_q)
    torch.testing.assert_close(moments[0].double(), value, atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(moments[1].double(), variance, atol=2e-6, rtol=2e-6)
    assert torch.equal(log_p, kept[0]) and torch.equal(log_q, kept[1])


def test_moments_in_float64_keep_their_precision_and_their_infinity():
    logits, reference_logits = cases(torch.float64)["nearly equal"]
    value, variance = exact_in_float64(logits, reference_logits)
    measured = kl.exact_kl_moments(logits.log_softmax(-1), reference_logits.log_softmax(-1))
    torch.testing.assert_close(measured[0], value, rtol=1e-8, atol=0)
    torch.testing.assert_close(measured[1], variance, rtol=1e-8, atol=0)
    holes, more_holes = cases(torch.float64)["reference -inf"]
    infinite = kl.exact_kl_moments(holes.log_softmax(-1), more_holes.log_softmax(-1))
    assert all(bool((part == INF).all()) for part in infinite)


def test_a_probability_that_underflows_still_makes_the_kl_infinite():
    """exp(-200) is 0 in fp32, but it is not 0: the policy can emit a token that the reference cannot."""
    logits, reference_logits = torch.tensor([0.0, -200.0]), torch.tensor([0.0, -INF])
    assert float(kl.exact_kl(logits, reference_logits)) == INF
    assert float(kl.exact_kl(logits, reference_logits, budget=12)) == INF
    assert float(kl.exact_kl(reference_logits, logits)) == 0.0


def test_logits_without_a_distribution_give_nan():
    fine = torch.zeros(3, 4)
    broken = torch.tensor([[NAN, 0, 0, 0], [INF, 0, 0, 0], [-INF] * 4])
    for budget in (2**20, 12):
        assert bool(kl.exact_kl(broken, fine, budget=budget).isnan().all())
        assert bool(kl.exact_kl(fine, broken, budget=budget).isnan().all())
        assert bool(kl.entropy(broken, budget=budget).isnan().all())


def test_log_probs_that_are_not_normalised_show_as_a_negative_kl():
    log_p = torch.full((1, 4), math.log(0.25))
    assert float(kl.exact_kl_moments(log_p - 1.0, log_p)[0]) < -0.3


def test_the_rounding_of_normalisers_does_not_make_a_negative_kl():
    """Nearly flat logits against flat ones: sum p (log p - log q) of two log-softmaxes was -6e-5 in fp32."""
    reference_logits = torch.zeros(1, 151_936)
    logits = 0.0078 * torch.randint(0, 2, (1, 151_936), generator=generator(4)).float()
    logits[0, 7] += 10
    reference_logits[0, 7] += 10
    value, variance = exact_in_float64(logits, reference_logits)
    log_p, log_q = logits.log_softmax(-1), reference_logits.log_softmax(-1)
    measured, measured_variance = kl.exact_kl_moments(log_p, log_q)
    for number in (
        measured,
        kl.exact_kl(logits, reference_logits),
        kl.exact_kl(logits, reference_logits, budget=2**17),
        kl.moments_against(log_p, log_p.exp(), lambda part: reference_logits[part], Workspace(log_p.device))[
            0
        ],
    ):
        assert float(number) == pytest.approx(float(value), abs=1e-6)
    assert float(measured_variance) == pytest.approx(float(variance), rel=1e-4)


def test_different_vocabularies_are_refused():
    with pytest.raises(ValueError, match="same vocabulary"):
        kl.exact_kl(torch.zeros(1, 1, 5), torch.zeros(1, 1, 6))


@pytest.mark.parametrize("vocabulary", [50_257, 151_936])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_real_vocabularies(vocabulary, dtype):
    g = generator(vocabulary)
    logits = (torch.randn(1, 3, vocabulary, generator=g) * 3).to(dtype)
    reference_logits = (logits.float() + torch.randn(1, 3, vocabulary, generator=g) * 0.05).to(dtype)
    value, _ = exact_in_float64(logits, reference_logits)
    measured = kl.exact_kl(logits, reference_logits).double()
    assert float((measured - value).abs().max()) < 2e-6
    assert bool((kl.exact_kl(logits, logits) == 0).all())


def test_nothing_of_the_guard_builds_a_graph_or_writes_to_its_input():
    logits = torch.randn(2, 3, 40, generator=generator(), requires_grad=True)
    other = torch.randn(2, 3, 40, generator=generator(1), requires_grad=True)
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    kept = logits.detach().clone(), other.detach().clone()
    log_p, log_q = logits.log_softmax(-1), other.log_softmax(-1)
    results = [kl.exact_kl(logits, other), kl.entropy(logits), *kl.exact_kl_moments(log_p, log_q)]
    with torch.no_grad():
        results.append(kl.token_log_probs(logits, tokens))
    for result in results:
        assert not result.requires_grad and result.grad_fn is None
    assert torch.equal(logits.detach(), kept[0]) and torch.equal(other.detach(), kept[1])
    assert logits._version == 0 and other._version == 0


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    logits = torch.randn(1, 2, 9, generator=generator())
    kl.exact_kl(logits, logits), kl.entropy(logits), kl.token_log_probs(logits, torch.zeros(1, 2).long())
    assert torch.equal(before, torch.get_rng_state())


def test_it_works_under_autocast_and_inference_mode():
    logits = torch.randn(1, 4, 100, generator=generator())
    other = torch.randn(1, 4, 100, generator=generator(1))
    expected = kl.exact_kl(logits, other)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(kl.exact_kl(logits, other), expected)
    with torch.inference_mode():
        assert torch.equal(kl.exact_kl(logits, other), expected)


def test_nothing_waits_for_the_device():
    """On the meta device there are no values: whatever would read one (item, bool, nonzero) raises."""
    logits = torch.zeros(2, 9, 300, device="meta")
    tokens = torch.zeros(2, 9, dtype=torch.int64, device="meta")
    mask = torch.zeros(2, 9, device="meta")
    log_probs = kl.token_log_probs(logits[:, :-1], tokens[:, 1:], budget=10_000)
    assert log_probs.shape == (2, 8)
    assert kl.exact_kl(logits, logits, budget=1_000).shape == kl.entropy(logits).shape == (2, 9)
    assert kl.exact_kl_moments(logits, logits)[1].shape == (2, 9)
    for estimator in kl.ESTIMATORS:
        values = kl.estimate(mask, mask, mask, estimator=estimator)
        for reduce in (kl.masked_sum, kl.masked_mean, kl.per_token, kl.per_sequence, kl.irregular):
            assert reduce(values).shape == ()
        assert kl.per_sequence_sum(values, mask).shape == (2,)
    with pytest.raises((RuntimeError, NotImplementedError)):
        log_probs.sum().item()


def test_moments_do_not_depend_on_how_many_rows_are_taken_at_once():
    generator = torch.Generator().manual_seed(5)
    log_p, log_q = (torch.randn(5, 9, 40_000, generator=generator).log_softmax(-1) for _ in range(2))
    assert kl.rows_per_chunk(40_000) < 45
    together = kl.exact_kl_moments(log_p, log_q)
    for row in ((0, 0), (2, 7), (4, 8)):
        alone = kl.exact_kl_moments(log_p[row], log_q[row])
        for one, other in zip(together, alone, strict=True):
            assert one.shape == (5, 9)
            assert abs(float(one[row] - other)) < 1e-6 * (1 + abs(float(other)))


@pytest.mark.parametrize("vocabulary", [5, 300, 50_257])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_against_logits_are_those_of_log_softmaxes(vocabulary, dtype):
    """Far-off and large logits, -inf on one side and on both, NaN, and rows that are nobody's."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits = 3.0 * torch.randn(14, vocabulary, generator=generator)
    reference = (logits + 0.1 * torch.randn(14, vocabulary, generator=generator)).to(dtype)
    logits[1] += 1e4
    reference[2] -= 1e4
    reference[3] = 0.0
    logits[4, 1:3] = -INF
    reference[5, 1:3] = -INF
    logits[6, 1:3] = reference[6, 1:3] = -INF
    logits[7] = NAN
    reference[8, 0] = INF
    logits[9, 2], reference[9, 2] = -300.0, -INF
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    p[10] = 0.0
    measured = kl.moments_against(log_p, p, lambda part: reference[part], Workspace(log_p.device))
    exact = exact_in_float64(logits.double(), reference.double())
    for row in range(14):
        for one, other in zip(measured, exact, strict=True):
            if row in (5, 9):
                assert float(one[row]) == INF
            elif row in (7, 8):
                assert not bool(one[row].isfinite())
            elif row != 10:
                scale = 1e-3 if row == 1 else 1e-5  # the logits themselves are known to 1e-3 there
                assert abs(float(one[row] - other[row])) <= scale * (1 + abs(float(other[row]))), row
    assert float(measured[0][[11, 12, 13]].min()) > -1e-5
