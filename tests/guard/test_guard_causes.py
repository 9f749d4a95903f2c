"""What the guard finds through its public calls, with which code and which cause; and how large it says the harm is."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from klguard import Guard  # noqa: E402
from klguard.findings import Severity  # noqa: E402
from tests.guard import draws  # noqa: E402
from tests.guard.draws import draw, play, pure  # noqa: E402

EOS, VOCABULARY = 5, 60


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def quiet(**options):
    return Guard(**{"on_violation": "record", "strict": True} | options)


def codes(guard):
    return [finding.code for finding in guard.findings]


def normal(generator, *size, scale=1.0):
    return scale * torch.randn(*size, generator=generator)


# ------------------------------------------------------------------------------------------------ KLG701

CAUSES = {
    "top_k=20": draws.top_k(20),
    "top_k=5": draws.top_k(5),
    "top_p=0.9": draws.top_p(0.9),
    "top_p=0.7": draws.top_p(0.7),
    "temperature=0.7": draws.temperature(0.7),
    "temperature=1.5": draws.temperature(1.5),
    "min_p=0.05": draws.min_p(0.05),
    "typical_p=0.2": draws.typical_p(0.2),
    "greedy": draws.top_k(1),
    "eos_suppressed<16": draws.eos_suppressed(EOS, 16),
    "eos_suppressed": draws.eos_suppressed(EOS, 1000),
    "banned_token=9": draws.banned(9),
}
RULES = {
    "top_k": "KLG101", "top_p": "KLG103", "min_p": "KLG104", "typical_p": "KLG105", "temperature": "KLG106",
    "banned_token": "KLG109", "greedy": "KLG201", "eos_suppressed": "KLG302",
}  # fmt: skip


@pytest.mark.parametrize("cause", CAUSES)
def test_the_sampler_is_named(cause):
    guard = quiet(eos_token_id=EOS)
    play(guard, CAUSES[cause], steps=40, spread=1.0 if "eos" in cause or "typical" in cause else 2.0)
    (finding,) = guard.findings
    assert (finding.code, finding.measured.cause) == ("KLG701", cause)
    assert next(iter(guard.evidence.causes)) == cause
    assert finding.measured.weight == guard.evidence.causes[cause] > 0.3
    assert f"look drawn with `{cause}`" in finding.message
    rule = RULES[cause.partition("=")[0].partition("<")[0]]
    assert f"see {rule} [" in finding.message


def test_a_repetition_penalty_is_named_where_the_prompt_is_known():
    generator = torch.Generator().manual_seed(0)
    guard = quiet()
    prompts = torch.randint(VOCABULARY, (8, 20), generator=generator)
    for _ in range(20):
        logits = normal(generator, 8, 32, VOCABULARY, scale=2.0)
        tokens = torch.zeros(8, 32, dtype=torch.long)
        seen = torch.zeros(8, VOCABULARY, dtype=torch.bool).scatter(1, prompts, True)
        for t in range(32):
            row = logits[:, t]
            penalised = torch.where(seen, torch.where(row > 0, row / 1.5, row * 1.5), row)
            tokens[:, t] = draw(penalised[:, None], generator)[:, 0]
            seen = seen.scatter(1, tokens[:, t, None], True)
        guard.logprobs(logits, tokens, context_ids=prompts)
        guard.step()
        if guard.findings:
            break
    (finding,) = guard.findings
    assert (finding.code, finding.measured.cause) == ("KLG701", "repetition_penalty=1.5")
    assert "see KLG107" in finding.message


def test_a_sampler_of_no_list_is_caught_without_a_name():
    """Every second likeliest token is left out: no setting does that."""

    def odd(logits):
        order = logits.argsort(-1, descending=True)
        return logits.scatter(-1, order[..., 1::2], -torch.inf)

    guard = play(quiet(), odd, steps=40)
    assert codes(guard) == ["KLG701"]
    assert guard.findings[0].help


def test_pure_sampling_is_left_alone():
    guard = play(quiet(eos_token_id=EOS, sample_tokens=4096), pure, steps=30)
    assert guard.findings == [] and guard.evidence.log_evidence < 5
    assert guard.evidence.tokens == 30 * 8 * 32


# ------------------------------------------------------------------------------------------------ KLG702 to KLG704


def test_an_engine_that_samples_from_something_else():
    generator = torch.Generator().manual_seed(0)
    guard = quiet()
    for _ in range(20):
        logits = normal(generator, 8, 32, VOCABULARY, scale=2.0)
        engine = logits + normal(generator, *logits.shape, scale=0.5)
        tokens = draw(engine, generator)
        theirs = engine.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        guard.logprobs(logits, tokens, sampler_logprobs=theirs)
        guard.step()
        if guard.findings:
            break
    (finding,) = guard.findings
    assert (finding.code, finding.measured.cause) == ("KLG702", "sampler")


@pytest.mark.parametrize(
    ("by", "cause", "words"), [(-1, "shift-1", "not shifted"), (1, "shift+1", "too often")]
)
def test_logits_that_are_shifted(by, cause, words):
    generator = torch.Generator().manual_seed(0)
    guard = quiet()
    for _ in range(20):
        logits = normal(generator, 8, 33, VOCABULARY, scale=2.0)
        tokens = draw(logits, generator)
        scored = logits.roll(by, 1)
        guard.logprobs(scored[:, 1:-1], tokens[:, 1:-1])
        guard.step()
        if guard.findings:
            break
    (finding,) = guard.findings
    assert (finding.code, finding.measured.cause) == ("KLG703", cause)
    assert words in finding.message


def from_a_chain(generator, table, rows=8, time=32, noise=0.0):
    """Logits (B, T, V) of a policy that looks at its last token only, those of an engine which adds `noise` to
    them, and tokens (B, T) drawn from the engine's."""
    last = torch.randint(VOCABULARY, (rows,), generator=generator)
    scored, engine, tokens = [], [], []
    for _ in range(time):
        scored.append(table[last])
        engine.append(table[last] + noise * torch.randn(rows, VOCABULARY, generator=generator))
        last = torch.multinomial(engine[-1].softmax(-1), 1, generator=generator)[:, 0]
        tokens.append(last)
    return torch.stack(scored, 1), torch.stack(engine, 1), torch.stack(tokens, 1)


def log_probs_of(logits, tokens):
    return logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


def test_a_policy_that_repeats_itself_under_an_engine_that_is_off():
    """The logits after a token are calibrated on that token too, as the chain is reversible: only what the engine
    says of the tokens tells that nothing is shifted."""
    generator = torch.Generator().manual_seed(3)
    half = torch.randn(VOCABULARY, VOCABULARY, generator=generator)
    table = 0.7 * (half + half.T) + 4.0 * torch.eye(VOCABULARY)
    table = (table.exp() / table.exp().sum(1).mean()).log()
    guard = quiet()
    for _ in range(20):
        logits, engine, tokens = from_a_chain(generator, table, noise=0.6)
        guard.logprobs(logits, tokens, sampler_logprobs=log_probs_of(engine, tokens))
        guard.step()
        if guard.findings:
            break
    (finding,) = guard.findings
    assert (finding.code, finding.measured.cause) == ("KLG702", "sampler")
    assert not any(name.startswith("shift") for name, weight in guard.evidence.causes.items() if weight > 0)


@pytest.mark.parametrize(("by", "cause"), [(-1, "shift-1"), (1, "shift+1")])
def test_logits_that_are_shifted_beside_an_engine(by, cause):
    """The engine's log-probs are right and confirm the shift; they are no cause of their own."""
    generator = torch.Generator().manual_seed(0)
    guard = quiet()
    for _ in range(20):
        logits = normal(generator, 8, 33, VOCABULARY, scale=2.0)
        engine = logits + normal(generator, *logits.shape, scale=0.05)
        tokens = draw(engine, generator)
        told = {"sampler_logprobs": log_probs_of(engine, tokens)[:, 1:-1]}
        guard.logprobs(logits.roll(by, 1)[:, 1:-1], tokens[:, 1:-1], **told)
        guard.step()
        if guard.findings:
            break
    assert (guard.findings[0].code, guard.findings[0].measured.cause) == ("KLG703", cause)


def test_weights_that_are_stale():
    generator = torch.Generator().manual_seed(0)
    guard = quiet()
    for _ in range(20):
        before = normal(generator, 8, 32, VOCABULARY, scale=2.0)
        tokens = draw(before, generator)
        stale = before.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        guard.logprobs(before + normal(generator, *before.shape, scale=0.5), tokens, stale_logprobs=stale)
        guard.step()
        if guard.findings:
            break
    (finding,) = guard.findings
    assert (finding.code, finding.measured.cause) == ("KLG704", "stale")


# ------------------------------------------------------------------------------------------------ KLG601 to KLG606


def two_models(generator, apart=0.5, rows=8, time=16, flatter=1.0):
    """Logits of a policy and of a reference, which is flatter where `flatter` is below 1, as after training."""
    logits = normal(generator, rows, time, VOCABULARY, scale=2.0)
    return logits, flatter * logits + normal(generator, *logits.shape, scale=apart)


def scores(logits, tokens):
    return logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


def by_observe(guard, policy, reference):
    guard.observe(policy, reference_logprobs=reference)


def by_kl(guard, policy, reference):
    guard.kl(policy, reference)


@pytest.mark.parametrize("tell", [by_observe, by_kl])
def test_a_kl_that_is_impossible(tell):
    """Tokens of the reference: k1 is minus a KL."""
    generator = torch.Generator().manual_seed(0)
    guard, healthy = quiet(), quiet()
    total = 0.0
    for _ in range(8):
        policy, reference = two_models(generator)
        tokens = draw(reference, generator)
        if not guard.findings:
            total += float((scores(policy, tokens) - scores(reference, tokens)).double().sum())
            tell(guard, scores(policy, tokens), scores(reference, tokens))
            guard.step()
        tokens = draw(policy, generator)
        tell(healthy, scores(policy, tokens), scores(reference, tokens))
        healthy.step()
    (finding,) = guard.findings
    assert finding.code == "KLG603" and finding.measured.value == pytest.approx(total)
    assert total < -13.8
    assert finding.measured.nats_per_sequence < 0, "a negative estimate is itself harm"
    assert healthy.findings == []


@pytest.mark.parametrize(("low", "high", "key"), [(0.0, 0.5, "above"), (3.0, 9.0, "below")])
def test_a_kl_outside_its_range(low, high, key):
    generator = torch.Generator().manual_seed(0)
    guard = quiet(kl_range=(low, high))
    for step in range(10):
        assert guard.findings == [], step
        policy, reference = two_models(generator)
        tokens = draw(policy, generator)
        guard.kl(scores(policy, tokens), scores(reference, tokens))
        guard.step()
    (finding,) = guard.findings
    assert (finding.code, finding.setting) == ("KLG604", key)
    assert finding.measured.limit == (high if key == "above" else low)


def far_apart(distance, rows, time, **options):
    """What is found over 12 steps of `rows` responses with a KL of `distance` nats per token."""
    guard = quiet(**options)
    for _ in range(12):
        k1 = torch.randn(rows, time, generator=torch.Generator().manual_seed(0)) * 0.1 + distance
        base = torch.full((rows, time), -3.0)
        guard.kl(base, base - k1)
        guard.step()
    return [finding for finding in guard.findings if finding.code == "KLG604"]


def test_a_kl_above_the_default_range_is_a_warning_and_above_a_range_that_was_set_an_error():
    assert [str(f.severity) for f in far_apart(1.0, rows=16, time=16)] == [str(Severity.WARNING)]
    assert [str(f.severity) for f in far_apart(1.0, 16, 16, kl_range=(0.0, 8.0))] == [str(Severity.ERROR)]


def test_the_default_range_grows_with_the_length_of_responses():
    assert far_apart(0.1, rows=16, time=400) == []  # 40 nats per sequence
    assert len(far_apart(0.6, rows=16, time=400)) == 1
    assert len(far_apart(0.1, 16, 400, kl_range=(0.0, 12.0))) == 1


def biased_loop(guard, sampler, steps=20, rows=16, time=24):
    """The true bias of k1, nats per sequence, in float64: its mean under the sampler minus the KL."""
    generator = torch.Generator().manual_seed(1)
    truth = 0.0
    for _ in range(steps):
        policy, reference = two_models(generator, rows=rows, time=time, flatter=0.8)
        guard.logprobs(policy, draw(sampler(policy), generator), reference_logits=reference)
        guard.step()
        p, difference = policy.double().softmax(-1), policy.double().log_softmax(-1)
        difference = difference - reference.double().log_softmax(-1)
        q = sampler(policy.double()).softmax(-1)
        truth += float(((q - p) * difference).sum(-1).sum(1).mean()) / steps
    return truth


@pytest.mark.parametrize("sampler", [draws.top_k(10), draws.temperature(1.5)], ids=["top_k", "temperature"])
@pytest.mark.parametrize("sample_tokens", [100_000, 150], ids=["all", "thinned"])
def test_the_harm_is_what_it_is_and_is_priced(sampler, sample_tokens):
    guard = quiet(kl_coef=0.2, sample_tokens=sample_tokens)
    truth = biased_loop(guard, sampler)
    harm = guard._works.run.harm
    assert abs(truth) > 4 * harm.standard_error, "or nothing would be tested"
    assert abs(harm.nats_per_sequence - truth) < 4 * harm.standard_error
    assert harm.reward == pytest.approx(-0.2 * harm.nats_per_sequence)
    if sample_tokens == 150:
        assert guard.evidence.tokens < 20 * 16 * 24 / 2
    paid = truth < 0
    assert set(codes(guard)) == {"KLG701", "KLG605"} | ({"KLG603", "KLG606"} if paid else set())
    bias = next(f for f in guard.findings if f.code == "KLG605")
    assert bias.measured.nats_per_sequence * truth > 0
    if paid:
        free = next(f for f in guard.findings if f.code == "KLG606")
        assert (
            free.measured.value == pytest.approx(-0.2 * free.measured.nats_per_sequence)
            and "is paid" in free.message
        )


def test_no_bias_no_harm():
    guard = quiet(kl_coef=0.2)
    assert biased_loop(guard, pure) == 0.0
    harm = guard._works.run.harm
    assert abs(harm.nats_per_sequence) < 4 * harm.standard_error
    assert guard.findings == []


def test_an_exact_kl_over_part_of_the_vocabulary_is_negative_somewhere():
    """What a rank computes that holds half of a sharded vocabulary. From whole logits the guard normalises itself,
    and the exact KL cannot fall below 0."""
    generator = torch.Generator().manual_seed(0)
    policy, reference = two_models(generator)
    tokens = draw(policy, generator)
    p, r = policy.log_softmax(-1), reference.log_softmax(-1)
    terms = p.exp() * (p - r)
    right, wrong = quiet(), quiet()
    for guard, values in ((right, terms.sum(-1)), (wrong, terms[..., :30].sum(-1))):
        answer = guard.kl(scores(policy, tokens), scores(reference, tokens), estimator="exact", values=values)
        assert torch.equal(answer, values)
        guard.logprobs(policy, tokens, reference_logits=reference)
        guard.step()
    assert right.findings == [] and "KLG601" in right.exercised
    (finding,) = wrong.findings
    assert finding.code == "KLG601"
    assert finding.measured.value == pytest.approx(float(terms[..., :30].sum(-1).min()), rel=1e-5)


def test_k3_with_the_wrong_sign_and_in_half_precision():
    generator = torch.Generator().manual_seed(0)
    policy, reference = two_models(generator, apart=0.05)
    tokens = draw(policy, generator)
    p, r = scores(policy, tokens), scores(reference, tokens)
    d, half = r - p, (r - p).bfloat16()
    by_values = {
        "right": torch.expm1(d) - d,
        "formula or its sign": d - torch.expm1(d) - 0.1,
        "half precision": half.exp() - 1 - half,
    }
    for words, values in by_values.items():
        guard = quiet()
        guard.kl(p, r, estimator="k3", values=values)
        guard.step()
        assert codes(guard) == ([] if words == "right" else ["KLG602"]), words
        assert words == "right" or words in guard.findings[0].message


# ------------------------------------------------------------------------------------------------ KLG838

GOOD = torch.full((2, 4), -1.0)


def with_one(value):
    values = GOOD.clone()
    values[1, 2] = value
    return values


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (with_one(torch.nan), "1 of 8 log-probs of the policy are NaN"),
        (with_one(torch.inf), "1 of 8 log-probs of the policy are +inf"),
        (with_one(-torch.inf), "1 of 8 log-probs of the policy are -inf"),
        (with_one(0.25), "1 of 8 log-probs of the policy are above 0, up to 0.25 nats"),
    ],
)
def test_log_probs_that_are_none_are_told_apart(values, words):
    guard = quiet()
    guard.observe(values)
    guard.step()
    (finding,) = guard.findings
    assert finding.code == "KLG838" and words in finding.message and finding.help
    masked = quiet()
    masked.observe(values, (values == GOOD).long())
    masked.step()
    assert masked.findings == [], "masked entries may hold anything"


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.tensor([[0.0, 0.0, -torch.inf, -torch.inf]] * 2), "4 of 8 entries of masks are negative"),
        (torch.tensor([[1.0, 1.0, 0.5, 0.0]] * 2), "2 of 8 entries of masks are neither 0 nor 1"),
        (torch.tensor([[1, 2, 3, 0]] * 2), "4 of 8 entries of masks are neither 0 nor 1"),
    ],
)
def test_masks_that_are_none_are_told_apart(mask, words):
    for tell in (
        lambda guard: guard.observe(GOOD, mask),
        lambda guard: guard.kl(GOOD, GOOD, mask),
        lambda guard: guard.minibatch(GOOD, GOOD.clone(), mask),
        lambda guard: guard.logprobs(torch.zeros(2, 4, 9), torch.zeros(2, 4, dtype=torch.long), mask),
    ):
        guard = quiet()
        tell(guard)
        guard.step()
        assert [f.code for f in guard.findings] == ["KLG838"]
        assert words in guard.findings[0].message


@pytest.mark.parametrize(
    "mask", [None, torch.ones(2, 4), torch.ones(2, 4, dtype=torch.bool), torch.zeros(2, 4).long()]
)
def test_masks_of_every_type_are_taken(mask):
    guard = quiet()
    guard.observe(GOOD, mask)
    guard.step()
    assert guard.findings == []


LOGITS, TOKENS = torch.zeros(2, 4, 9), torch.zeros(2, 4, dtype=torch.long)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda g: g.logprobs(LOGITS, TOKENS[:, 1:]), ValueError, "differ by exactly one. Shift them"),
        (lambda g: g.logprobs(LOGITS[..., 0], TOKENS), ValueError, "logits has 2 dimensions"),
        (lambda g: g.logprobs(LOGITS.long(), TOKENS), TypeError, "logits have dtype torch.int64"),
        (lambda g: g.logprobs(LOGITS, TOKENS.float()), TypeError, "tokens have dtype torch.float32"),
        (lambda g: g.logprobs(LOGITS, TOKENS.T), ValueError, "batch and time are exchanged"),
        (lambda g: g.logprobs(LOGITS, TOKENS, GOOD[:, 1:]), ValueError, "shift it too"),
        (lambda g: g.logprobs(LOGITS, TOKENS, reference_logits=LOGITS[..., 1:]), ValueError, "vocabulary"),
        (lambda g: g.logprobs(LOGITS, TOKENS, sampler_logprobs=GOOD[:1]), ValueError, "sampler_logprobs"),
        (lambda g: g.observe(LOGITS), ValueError, "these look like logits"),
        (lambda g: g.observe(GOOD[0]), ValueError, "logprobs has 1 dimension"),
        (lambda g: g.observe(TOKENS), TypeError, "dtype torch.int64"),
        (lambda g: g.observe(GOOD, GOOD[:1]), ValueError, "batch sizes differ"),
        (lambda g: g.observe(GOOD, reference_logprobs=GOOD[:, 1:]), ValueError, "shifted and the other not"),
        (lambda g: g.observe(GOOD, tokens=TOKENS[:1]), ValueError, "tokens"),
        (lambda g: g.kl(GOOD, GOOD[:, 1:]), ValueError, "shifted and the other not"),
        (lambda g: g.kl(GOOD, GOOD, estimator="k4"), ValueError, "estimator='k4' is not known"),
        (lambda g: g.kl(GOOD, GOOD, estimator="exact"), ValueError, "needs the logits"),
        (lambda g: g.kl(GOOD, GOOD, values=GOOD[:1]), ValueError, "values"),
        (
            lambda g: g.kl(GOOD, GOOD, GOOD[:1], estimator="exact", values=GOOD),
            ValueError,
            "batch sizes differ",
        ),
        (lambda g: g.kl(LOGITS, LOGITS), ValueError, "these look like logits"),
        (lambda g: g.minibatch(GOOD, GOOD[:1]), ValueError, "old_logprobs"),
        (lambda g: g.minibatch(GOOD, GOOD, entropy=GOOD[:1]), ValueError, "entropy"),
        (lambda g: g.minibatch(GOOD, GOOD, epoh=1), TypeError, "unknown argument 'epoh': choose from"),
        (lambda g: g.rollout(TOKENS, GOOD[:1]), ValueError, "mask has shape"),
        (lambda g: g.rollout(GOOD), TypeError, "responses have dtype"),
        (lambda g: g.rollout(TOKENS, settings={"what": 1}), TypeError, "fits no engine"),
        (lambda g: g.step(los=1.0), TypeError, "unknown argument 'los'"),
    ],
)
def test_a_wrong_call_is_the_callers_mistake_and_says_what_to_do(call, error, words):
    guard = Guard(on_violation="record")
    with pytest.raises(error, match=words):
        call(guard)
    assert guard.failure is None
    guard.observe(GOOD)
    guard.step()
    assert guard.findings == [], "it goes on"
