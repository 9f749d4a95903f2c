"""Evidence: the mixture against brute force, false alarms, detection and naming by simulation."""

import math
from dataclasses import fields, replace

import pytest

torch = pytest.importorskip("torch")

from klguard.guard import hypotheses as hy  # noqa: E402
from klguard.guard.bank import default_bank  # noqa: E402
from klguard.guard.banned import BIASES, BannedTokens, hypotheses  # noqa: E402
from klguard.guard.evidence import Evidence, StartTimes  # noqa: E402
from klguard.guard.rows import Rows  # noqa: E402
from klguard.guard.start_times import log_rest, log_weight  # noqa: E402

torch.set_num_threads(1)


def rows_of(logits, tokens, *, valid=None, position=None, **given):
    """Rows from (n, V) logits and (n,) tokens."""
    n = len(tokens)
    return Rows(
        logits=logits,
        log_probs=torch.log_softmax(logits.float(), -1),
        tokens=tokens,
        valid=valid if valid is not None else torch.ones(n, dtype=torch.bool),
        position=position if position is not None else torch.zeros(n, dtype=torch.int64),
        **given,
    )


def end_step(evidence):
    banned = evidence.pending_banned
    summary = tuple(evidence.advance_banned(banned).tolist()) if banned is not None else None
    evidence.advance(evidence.pending.cpu(), summary)


def drawn(logits, generator):
    return torch.multinomial(torch.softmax(logits.float(), -1), 1, generator=generator).squeeze(-1)


def log_prob(logits, tokens):
    return torch.log_softmax(logits.float(), -1).gather(-1, tokens[..., None]).squeeze(-1)


# A policy whose next token depends on the last one, and samplers that bend it

EOS = 0


class World:
    """A Markov policy: logits (V, V) by last token. `rollout` draws (batch, time) tokens with `bend`, a
    function of (logits (batch, V), context (batch, t), t), and gives the rows that score them."""

    def __init__(self, vocabulary=300, scale=1.6, seed=0, eos_logit=1.0):
        self.generator = torch.Generator().manual_seed(seed)
        self.vocabulary = vocabulary
        self.table = torch.randn(vocabulary, vocabulary, generator=self.generator) * scale
        self.table[:, EOS] = eos_logit

    def other(self, noise):
        """Another policy near by."""
        return self.table + torch.randn(self.table.shape, generator=self.generator) * noise

    def rollout(self, batch=8, time=32, bend=None, roll=0, **others):
        """others: tables under which the tokens get further log-probs (reference, sampler, stale)."""
        prompt = torch.randint(1, self.vocabulary, (batch, 2), generator=self.generator)
        context, logits = prompt, []
        for t in range(time):
            now = self.table[context[:, -1]]
            logits.append(now)
            bent = bend(now, context, t) if bend is not None else now
            context = torch.cat([context, drawn(bent, self.generator)[:, None]], 1)
        return self.rows(prompt, context[:, 2:], torch.stack(logits, 1), roll, others)

    def rows(self, prompt, tokens, logits, roll, others):
        batch, time = tokens.shape
        logits = torch.roll(logits, roll, 1)
        ended = (tokens == EOS).cumsum(1)
        valid = (ended == 0) | ((ended == 1) & (tokens == EOS))
        if roll:
            # what the roll wraps around comes from another end of the sequence
            valid[:, : max(roll, 0)] = False
            valid[:, time + min(roll, 0) :] = False
        earlier = torch.full((batch, time), math.nan)
        later = torch.full((batch, time), math.nan)
        earlier[:, 1:] = log_prob(logits[:, :-1], tokens[:, 1:])
        later[:, :-1] = log_prob(logits[:, 1:], tokens[:, :-1])
        ids = torch.cat([prompt, tokens], 1)
        context = ids[:, None].expand(-1, time, -1).clone()
        context[:, torch.arange(time)[:, None] + 2 <= torch.arange(time + 2)] = -1
        last = ids[:, 1:-1]
        given = {name: log_prob(table[last], tokens).flatten() for name, table in others.items()}
        return rows_of(
            logits.flatten(0, 1),
            tokens.flatten(),
            valid=valid.flatten(),
            position=torch.arange(time).repeat(batch),
            earlier=earlier.flatten(),
            later=later.flatten(),
            before=torch.cat([torch.full((batch, 1), math.nan), later[:, :-1]], 1).flatten(),
            context=context.flatten(0, 1),
            prompt=context.flatten(0, 1)[:, :2],
            eos=torch.tensor([EOS]),
            **given,
        )


def keep(mask, logits):
    return logits.masked_fill(~mask, -math.inf)


def top_k(k):
    return lambda logits, *_: keep(logits >= logits.topk(k, -1).values[:, -1:], logits)


def top_p(p):
    def bend(logits, *_):
        ordered, ids = torch.softmax(logits, -1).sort(-1, descending=True)
        inside = ordered.cumsum(-1) - ordered < p
        return keep(torch.zeros_like(inside).scatter(-1, ids, inside), logits)

    return bend


def min_p(share):
    return lambda logits, *_: keep(logits >= logits.amax(-1, keepdim=True) + math.log(share), logits)


def epsilon_cutoff(epsilon):
    return lambda logits, *_: keep(torch.softmax(logits, -1) >= epsilon, logits)


def typical(mass):
    def bend(logits, *_):
        log_p = torch.log_softmax(logits, -1)
        away = (-log_p + (log_p.exp() * log_p).sum(-1, keepdim=True)).abs()
        ids = away.argsort(-1)
        ordered = log_p.exp().gather(-1, ids)
        inside = ordered.cumsum(-1) - ordered < mass
        return keep(torch.zeros_like(inside).scatter(-1, ids, inside), logits)

    return bend


def without(token, until=math.inf):
    def bend(logits, context, t):
        return logits if t >= until else logits.index_fill(-1, torch.tensor([token]), -math.inf)

    return bend


def repetition(penalty):
    def bend(logits, context, t):
        score = logits.gather(1, context)
        return logits.scatter(1, context, torch.where(score < 0, score * penalty, score / penalty))

    return bend


def checkerboard(logits, *_):
    """A sampler nobody lists: it likes every second tenth of the probability, in order of likelihood."""
    ordered, ids = torch.softmax(logits, -1).sort(-1, descending=True)
    middle = ordered.cumsum(-1) - ordered / 2
    weight = torch.where((middle * 10).long() % 2 == 0, 1.6, 0.4)
    return logits + torch.zeros_like(weight).scatter(-1, ids, weight).log()


def temperature(value):
    return lambda logits, *_: logits / value


FAULTS = {
    "greedy": lambda: top_k(1),
    "temperature=0.5": lambda: temperature(0.5),
    "temperature=0.7": lambda: temperature(0.7),
    "temperature=0.9": lambda: temperature(0.9),
    "temperature=1.25": lambda: temperature(1.25),
    "temperature=2": lambda: temperature(2.0),
    "top_k=5": lambda: top_k(5),
    "top_k=50": lambda: top_k(50),
    "top_p=0.5": lambda: top_p(0.5),
    "top_p=0.9": lambda: top_p(0.9),
    "top_p=0.95": lambda: top_p(0.95),
    "min_p=0.05": lambda: min_p(0.05),
    "epsilon_cutoff=0.001": lambda: epsilon_cutoff(1e-3),
    "typical_p=0.2": lambda: typical(0.2),
    "typical_p=0.9": lambda: typical(0.9),
    "eos_suppressed<16": lambda: without(EOS, 16),
    "eos_suppressed": lambda: without(EOS),
    "repetition_penalty=1.2": lambda: repetition(1.2),
    "repetition_penalty=1.5": lambda: repetition(1.5),
    "banned_token=7": lambda: without(7),
    "pit": lambda: checkerboard,
}


def detect(cause, seed, alpha=1e-6, most=60, eos_logit=3.5, **sizes):
    """(tokens until the evidence reaches ln(1/alpha), or None; the cause named then)."""
    world = World(seed=seed, eos_logit=eos_logit)
    world.table[:, 7] = 2.5
    if cause.startswith("repetition"):
        world.table[:, 20:40] += 2.5
    evidence = Evidence(alpha=alpha)
    bend, roll, others = None, 0, {}
    if cause in FAULTS:
        bend = FAULTS[cause]()
    elif cause.startswith("shift"):
        # bad[t] = right[t - 1] is a roll by +1: the right logits are then one position later
        roll = 1 if cause == "shift+1" else -1
    else:
        table = world.other(0.5)
        others = {cause: table}
        bend = lambda logits, context, t: table[context[:, -1]]  # noqa: E731
    for _ in range(most):
        evidence.gather(world.rollout(bend=bend, roll=roll, **others, **sizes), eps=1e-4)
        end_step(evidence)
        if evidence.log_evidence >= -math.log(alpha):
            return evidence.tokens, next(iter(evidence.causes))
    return None, next(iter(evidence.causes))


CAUSES = [*FAULTS, "shift+1", "shift-1", "reference", "sampler", "stale"]


def neighbours(cause):
    """Names that mean the same fault with the next parameter of the grid, and the cause itself."""
    if not any(cause in hypothesis.names for hypothesis in default_bank()):
        return {cause}
    names = next(h.names for h in default_bank() if cause in h.names)
    at = names.index(cause)
    return set(names[max(at - 1, 0) : at + 2])


@pytest.mark.parametrize("cause", CAUSES)
def test_a_fault_is_found_and_named(cause):
    """Found, and the kind of sampler always right; its parameter is at most one step of the grid away when
    the evidence has only just crossed."""
    found = [detect(cause, seed) for seed in range(3)]
    assert all(tokens is not None for tokens, _ in found), found
    assert all(name in neighbours(cause) for _, name in found), found


@pytest.mark.parametrize("cause", ["temperature=0.7", "repetition_penalty=1.2", "top_p=0.9"])
def test_more_tokens_settle_the_parameter(cause):
    assert [detect(cause, seed, alpha=1e-60)[1] for seed in range(3)] == [cause] * 3


# False alarms


def adaptive_run(seed, steps=6, alpha=0.05):
    """Whether a run of pure sampling ever alarms. The policy changes at each step with what was drawn and
    with the evidence itself: an adversary picks copying, end-heavy, peaked or flat policies."""
    world = World(vocabulary=24, scale=2.0, seed=seed, eos_logit=0.5)
    evidence = Evidence(alpha=alpha)
    kinds = torch.Generator().manual_seed(seed + 10**6)
    reference = world.other(0.5)
    stale = world.table
    for _ in range(steps):
        rows = world.rollout(batch=6, time=10, reference=reference, stale=stale, sampler=world.other(0.2))
        evidence.gather(rows, eps=0.0)
        end_step(evidence)
        if evidence.log_evidence >= -math.log(alpha):
            return True
        stale = world.table
        table = world.table.clone()
        counts = torch.bincount(rows.tokens, minlength=24).float()
        table += 0.3 * (counts > counts.mean())
        kind = int(torch.randint(0, 5, (1,), generator=kinds)) + (evidence.log_evidence > 0.5)
        if kind == 0:
            table += 4.0 * torch.eye(24)
        elif kind == 1:
            table[:, EOS] += 2.5
        elif kind == 2:
            table *= 2.0
        elif kind == 3:
            table *= 0.5
        elif kind == 4:
            table[:, 3::4] = -math.inf
            table[:, 3] = 0.0
        world.table = table
    return False


def test_pure_sampling_rarely_alarms():
    runs, alpha = 100, 0.05
    alarms = sum(adaptive_run(seed, alpha=alpha) for seed in range(runs))
    assert alarms / runs <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)


def test_a_copying_policy_would_deceive_the_naive_shift():
    """Pure sampling from a policy that likes to repeat its last token: the product of p_{t+1}(x_t) / p_t(x_t)
    explodes, and neither the evidence nor the total contains it."""
    world = World(vocabulary=24, scale=0.3, seed=1, eos_logit=-math.inf)
    world.table += 1.5 * torch.eye(24)
    evidence = Evidence(alpha=1e-3)
    naive = 0.0
    for _ in range(10):
        rows = world.rollout(batch=8, time=16)
        ratio = hy.Neighbour(+1).log_ratio(rows)
        naive += float(torch.where(ratio.isnan(), 0.0, ratio).sum())
        evidence.gather(rows, eps=0.0)
        end_step(evidence)
        assert evidence.log_evidence < 3.0
    assert naive > 50.0
    assert "shift+1" not in evidence.causes


def test_the_diagnostic_shift_is_no_evidence_even_at_a_thousand_nats():
    evidence = Evidence(alpha=1e-3)
    totals = torch.zeros(evidence.width, dtype=torch.float64)
    totals[evidence.names.index("shift+1")] = 1000.0
    evidence.advance(totals)
    assert evidence.log_evidence == pytest.approx(0.0, abs=1e-12)
    assert "shift+1" not in evidence.causes
    totals[evidence.names.index("top_k=50")] = 50.0
    evidence.advance(totals)
    assert evidence.log_evidence > 30.0
    assert next(iter(evidence.causes)) == "shift+1"


def test_logits_known_to_stand_right_are_not_called_shifted():
    evidence = Evidence(alpha=1e-3)
    totals = torch.zeros(evidence.width, dtype=torch.float64)
    for name, nats in (("shift+1", 1000.0), ("shift-1", 80.0), ("top_k=50", 50.0)):
        totals[evidence.names.index(name)] = nats
    evidence.advance(totals)
    before = evidence.log_evidence
    evidence.aligned = True
    assert next(iter(evidence.causes)) == "top_k=50"
    assert evidence.log_evidence == before
    again = Evidence(alpha=1e-3)
    again.load_state_dict(evidence.state_dict())
    assert again.causes == evidence.causes


def test_a_late_fault_costs_few_more_nats():
    """A fault at step 300 of 400: found within the steps a fault at step 1 takes, and those that 2 ln 300
    nats are worth."""

    def steps_until(onset, seed):
        world = World(vocabulary=60, seed=seed)
        evidence = Evidence()
        for step in range(1, 401):
            bend = temperature(0.7) if step >= onset else None
            evidence.gather(world.rollout(batch=2, time=8, bend=bend), eps=1e-4)
            end_step(evidence)
            if evidence.log_evidence >= -math.log(1e-6):
                return step - onset, evidence.log_evidence
        return None, evidence.log_evidence

    early, _ = steps_until(1, 5)
    late, _ = steps_until(300, 5)
    assert early is not None and late is not None and late >= 0
    assert late <= 3 * early + 10


# The mixture over start times


def test_weights_of_starts_sum_to_one():
    total = 0.0
    for step in range(1, 3000):
        total += math.exp(log_weight(step))
        assert math.exp(log_rest(step)) == pytest.approx(1.0 - total, rel=1e-11)
    assert log_rest(0) == 0.0


def test_start_times_are_the_sum_over_all_starts():
    generator = torch.Generator().manual_seed(0)
    increments = torch.randn(60, 3, generator=generator, dtype=torch.float64) * 3 - 1
    increments[10, 1] = -math.inf
    mixture = StartTimes(3)
    assert mixture.log_values.tolist() == [0.0, 0.0, 0.0]
    for k in range(1, 61):
        ahead = mixture.after(increments[k - 1])
        mixture.advance(increments[k - 1])
        expected = torch.full((3,), math.exp(log_rest(k)), dtype=torch.float64)
        for j in range(1, k + 1):
            expected += math.exp(log_weight(j)) * increments[j - 1 : k].sum(0).exp()
        assert torch.allclose(mixture.log_values, expected.log(), atol=1e-10)
        assert torch.equal(ahead, mixture.log_values)


def test_start_times_refuse_what_would_end_the_product():
    mixture = StartTimes(2)
    for bad in ([math.nan, 0.0], [math.inf, 0.0], [0.0]):
        with pytest.raises(ValueError):
            mixture.advance(torch.tensor(bad))
    with pytest.raises(ValueError, match="3 components"):
        mixture.load_state_dict(StartTimes(3).state_dict())
    with pytest.raises(ValueError):
        StartTimes(0)


# Sums


def both(evidence):
    return torch.cat([evidence.pending, evidence.pending_banned])


def part_of(rows, index):
    values = {each.name: getattr(rows, each.name) for each in fields(rows)}
    return Rows(**{k: v if v is None or k == "eos" else v[index] for k, v in values.items()})


def test_sums_do_not_depend_on_chunks_or_ranks():
    world = World(vocabulary=260, seed=3)
    reference = world.other(0.3)
    first, second = (world.rollout(reference=reference) for _ in range(2))
    whole = Evidence()
    whole.gather(first, eps=1e-3)
    end_step(whole)
    whole.gather(second, eps=1e-3)
    for count in (2, 7):
        ranks = [Evidence() for _ in range(count)]
        for step, rows in enumerate((first, second)):
            for r, rank in enumerate(ranks):
                rank.gather(part_of(rows, torch.arange(r, len(rows.tokens), count)), eps=1e-3)
            if step == 0:
                totals = sum(rank.pending for rank in ranks)
                banned = sum(rank.pending_banned for rank in ranks)
                for rank in ranks:
                    rank.advance(totals, tuple(rank.advance_banned(banned).tolist()))
                    assert rank.log_evidence == pytest.approx(whole.log_evidence, abs=1e-9)
        assert torch.allclose(sum(both(rank) for rank in ranks), both(whole), rtol=0, atol=1e-9)
    small = Evidence()
    small.gather(first, eps=1e-3, budget=300_000)
    again = Evidence()
    again.gather(first, eps=1e-3)
    assert torch.allclose(both(small), both(again), rtol=0, atol=1e-9)


def test_a_step_against_a_plain_loop_over_tokens():
    """Every component from its definition, token by token in float64, for one step."""
    world = World(vocabulary=30, seed=4)
    rows = world.rollout(batch=3, time=8, reference=world.other(0.3), sampler=world.other(0.1))
    eps, delta = 1e-3, 0.02
    evidence = Evidence(delta=delta)
    evidence.gather(rows, eps=eps)
    column = 0
    for hypothesis in evidence.bank:
        ratio = hypothesis.log_ratio(rows)
        for j in range(len(hypothesis.names)):
            expected = 0.0
            for i in range(len(rows.tokens)):
                value = float(ratio[i, j])
                if not bool(rows.valid[i]) or math.isnan(value):
                    continue
                likelihood = math.exp(value)
                if not hypothesis.exact:
                    likelihood = (1 - delta) * likelihood + delta
                expected += math.log(likelihood) - math.log1p(eps)
            assert float(evidence.pending[column]) == pytest.approx(expected, abs=1e-8)
            column += 1
    tested = int(rows.valid.sum())
    assert float(evidence.pending[column]) == pytest.approx(-tested * math.log1p(eps), abs=1e-9)
    assert float(evidence.pending[column + 1 : column + 21].sum()) == pytest.approx(tested, abs=1e-9)
    assert evidence.pending[-2:].tolist() == [tested, 0]
    p = torch.softmax(rows.logits.double(), -1)
    expected = torch.log((1 - delta) / (1 - p) + delta)
    expected.scatter_(1, rows.tokens[:, None], math.log(delta))
    expected = (expected * rows.valid[:, None]).sum(0) - tested * math.log1p(eps)
    for bias in BIASES:
        excess = math.expm1(bias)
        favoured = -torch.log1p(excess * p)
        favoured.scatter_add_(1, rows.tokens[:, None], torch.full_like(p[:, :1], bias))
        favoured = (favoured * rows.valid[:, None]).sum(0) - tested * math.log1p(eps)
        expected = torch.cat([expected, favoured])
    assert torch.allclose(evidence.pending_banned, expected, atol=1e-4)


@pytest.mark.parametrize("vocabulary", [60, 300])
def test_a_favoured_token_is_found_and_named(vocabulary):
    """2 nats added to one token's logit, as sequence_bias and logit_bias do."""
    generator = torch.Generator().manual_seed(vocabulary)
    evidence = Evidence()
    for _ in range(12):
        logits = torch.randn(256, vocabulary, generator=generator) * 1.5
        bent = logits.clone()
        bent[:, 17] += 2.0
        tokens = torch.multinomial(bent.softmax(-1), 1, generator=generator)[:, 0]
        evidence.gather(rows_of(logits, tokens), eps=1e-4)
        end_step(evidence)
    assert evidence.log_evidence > 20
    assert next(iter(evidence.causes)) == "biased_token=17"


def test_a_banned_token_beyond_the_head_is_counted_from_below():
    logits = torch.randn(4, 3000, generator=torch.Generator().manual_seed(2))
    tokens = torch.tensor([5, 6, 7, 8])
    banned = BannedTokens(3000, torch.device("cpu"), 0.02)
    banned.add(rows_of(logits, tokens), 0.0)
    p = torch.softmax(logits.double(), -1)
    expected = torch.log(0.98 / (1 - p) + 0.02)
    expected.scatter_(1, tokens[:, None], math.log(0.02))
    expected = expected.sum(0)
    assert (banned.pending[:3000] <= expected + 1e-7).all()
    assert (expected - banned.pending[:3000] <= 0.005 * expected.abs()).all()


@pytest.mark.parametrize("scale", [0.0, 1.0, 8.0, 40.0])
def test_the_mean_ratio_of_a_banned_or_a_favoured_token_is_at_most_one(scale):
    vocabulary = 40
    logits = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(3)) * scale
    p = torch.softmax(logits.double(), -1)[0]
    mean = torch.zeros(hypotheses(vocabulary), dtype=torch.float64)
    for token in range(vocabulary):
        banned = BannedTokens(vocabulary, torch.device("cpu"), 0.02)
        banned.add(rows_of(logits, torch.tensor([token])), 0.0)
        mean += p[token] * banned.pending.exp()
    assert (mean <= 1.0 + 1e-6).all(), mean.max()
    assert (mean >= 0.98).all()


def test_the_adaptive_bet_is_fair_and_fixed_during_a_step():
    world = World(vocabulary=40, seed=6)
    evidence = Evidence()
    for _ in range(5):
        evidence.gather(world.rollout(bend=temperature(0.5)), eps=0.0)
        end_step(evidence)
    p = torch.softmax(world.table[:3].double(), -1)
    column = evidence.names.index("pit", len(evidence.names) - 1)
    for row in range(3):
        gains = []
        for token in range(40):
            before = float(evidence.pending[column])
            evidence.gather(rows_of(world.table[row : row + 1], torch.tensor([token])), eps=0.0)
            gains.append(float(evidence.pending[column]) - before)
        ratio = torch.tensor(gains, dtype=torch.float64).exp()
        assert float((p[row] * ratio).sum()) == pytest.approx(1.0, abs=1e-6)
        assert float(ratio.max() - ratio.min()) > 0.3


# What else it says


def test_it_starts_at_zero_with_the_prior():
    evidence = Evidence()
    assert evidence.log_evidence == 0.0
    assert evidence.provisional() == pytest.approx(0.0, abs=1e-12)
    assert sum(evidence.causes.values()) == pytest.approx(1.0)
    assert evidence.causes["temperature=0.7"] == pytest.approx(evidence.causes["temperature=0.9"])
    assert list(evidence.causes.values()) == sorted(evidence.causes.values(), reverse=True)
    assert evidence.pending_banned is None
    assert (evidence.tokens, evidence.step, evidence.nonfinite) == (0, 0, 0)


def test_provisional_is_the_evidence_if_the_step_ended():
    world = World(vocabulary=50, seed=8)
    evidence = Evidence()
    for _ in range(3):
        evidence.gather(world.rollout(bend=top_p(0.8)), eps=1e-4)
        ahead = evidence.provisional()
        end_step(evidence)
        assert ahead == pytest.approx(evidence.log_evidence, abs=1e-12)


def test_log_probs_alone_feed_only_what_needs_no_logits():
    generator = torch.Generator().manual_seed(0)
    logprob = -torch.rand(4, 6, generator=generator) * 5
    reference = logprob - torch.rand(4, 6, generator=generator)
    valid = torch.rand(4, 6, generator=generator) > 0.3
    logprob[0, 0], valid[0, 0] = math.nan, True
    reference[1, 1], valid[1, 1] = -math.inf, True
    evidence = Evidence()
    evidence.gather_scalars(logprob=logprob, valid=valid, reference=reference, eps=0.01)
    sums = dict(zip(evidence.names, evidence.pending.tolist(), strict=False))
    usable = valid & logprob.isfinite()
    gains = (reference - logprob).double().clamp(min=-1000.0) - math.log1p(0.01)
    assert sums["reference"] == pytest.approx(float(gains[usable].sum()), abs=1e-6)
    assert all(value == 0.0 for name, value in sums.items() if name != "reference")
    assert evidence.pending[-2:].tolist() == [int(usable.sum()), 1]
    end_step(evidence)
    assert evidence.tokens == int(usable.sum()) and evidence.nonfinite == 1
    blind = evidence.blind
    assert "reference" not in blind
    assert blind["top_k"] == blind["banned_token"] == blind["pit"] == "needs the policy's logits"
    assert "engine" in blind["sampler"] and "context_ids" in blind["repetition_penalty"]


def test_a_log_prob_that_is_not_given_is_no_opinion():
    logprob = torch.tensor([-1.0, -2.0, -3.0])
    evidence = Evidence()
    evidence.gather_scalars(
        logprob=logprob,
        valid=torch.ones(3, dtype=torch.bool),
        sampler=torch.tensor([math.nan, -2.5, math.nan]),
        eps=0.1,
    )
    at = evidence.names.index("sampler")
    assert float(evidence.pending[at]) == pytest.approx(-0.5 - math.log1p(0.1))
    assert float(evidence.pending[-1]) == 0.0


def test_log_probs_alone_and_rows_agree():
    world = World(vocabulary=30, seed=9)
    rows = world.rollout(reference=world.other(0.2), stale=world.other(0.2))
    by_rows, alone = Evidence(), Evidence()
    by_rows.gather(rows, eps=1e-4)
    alone.gather_scalars(
        logprob=rows.log_prob, valid=rows.valid, reference=rows.reference, stale=rows.stale, eps=1e-4
    )
    for name in ("reference", "stale"):
        at = alone.names.index(name)
        assert float(alone.pending[at]) == pytest.approx(float(by_rows.pending[at]), abs=1e-9)


def test_families_without_their_input_are_blind_and_stay_at_one():
    world = World(vocabulary=30, seed=10)
    full = world.rollout()
    rows = rows_of(full.logits, full.tokens, valid=full.valid)
    evidence = Evidence()
    evidence.gather(rows, eps=1e-2)
    missing = {"eos_suppressed", "repetition_penalty", "reference", "sampler", "stale", "shift-1", "shift+1"}
    missing |= {"eos_boosted", "forced_eos", "no_repeat_ngram", "watermark"}
    missing |= {"encoder_repetition_penalty", "encoder_no_repeat_ngram"}
    assert set(evidence.blind) == missing
    for name, value in zip(evidence.names, evidence.pending.tolist(), strict=False):
        family = name.split("=")[0].split("<")[0].rstrip(">")
        assert (value == 0.0) == (family in missing), name
    with_eos = Evidence(eos=[EOS])
    with_eos.gather(rows, eps=1e-2)
    assert "eos_suppressed" not in with_eos.blind


def test_bad_rows_count_nothing_and_are_counted():
    world = World(vocabulary=30, seed=11)
    rows = world.rollout(batch=2, time=8, reference=world.other(0.2))
    clean = Evidence()
    clean.gather(rows, eps=1e-3)
    bad = torch.randn(5, 30)
    bad[0, 3], bad[1, 4], bad[2] = math.nan, math.inf, -math.inf
    extra = replace(
        part_of(rows, torch.arange(5)),
        logits=bad,
        log_probs=torch.log_softmax(bad, -1),
        tokens=torch.tensor([1, 2, 3, 999, -100]),
        valid=torch.tensor([True, True, True, True, False]),
    )
    evidence = Evidence()
    evidence.gather(rows, eps=1e-3)
    evidence.gather(extra, eps=1e-3)
    assert torch.equal(both(evidence)[:-91], both(clean)[:-91])
    assert torch.equal(evidence.pending_banned, clean.pending_banned)
    assert float(evidence.pending[-1]) == 4.0
    end_step(evidence)
    assert evidence.nonfinite == 4


def test_impossible_tokens_leave_everything_finite():
    logits = torch.full((3, 20), -math.inf)
    logits[:, 2] = 0.0
    logits[1, 3] = 0.0
    tokens = torch.tensor([7, 7, 2])
    minus = torch.full((3,), -math.inf)
    rows = rows_of(
        logits,
        tokens,
        reference=minus,
        sampler=torch.zeros(3),
        stale=minus,
        earlier=torch.tensor([0.0, -math.inf, math.nan]),
        later=minus,
        context=torch.tensor([[2], [3], [-1]]),
        eos=torch.tensor([2]),
    )
    evidence = Evidence()
    evidence.gather(rows, eps=0.0)
    assert both(evidence).isfinite().all()
    end_step(evidence)
    assert math.isfinite(evidence.log_evidence) and evidence.log_evidence > 20.0


def test_no_rows_and_only_padding_add_nothing():
    evidence = Evidence(vocabulary=12)
    empty = rows_of(torch.zeros(0, 12), torch.zeros(0, dtype=torch.int64))
    evidence.gather(empty, eps=1e-2)
    padding = rows_of(torch.zeros(4, 12), torch.full((4,), -100), valid=torch.zeros(4, dtype=torch.bool))
    evidence.gather(padding, eps=1e-2)
    assert not both(evidence).any()


def test_a_rank_without_rows_has_sums_of_the_same_shape():
    evidence = Evidence()
    evidence.place("cpu", 77)
    assert evidence.pending.shape == (evidence.width,)
    assert evidence.pending_banned.shape == (hypotheses(77),)
    end_step(evidence)
    assert evidence.log_evidence == pytest.approx(0.0, abs=1e-12)


# State


def test_a_round_trip_in_the_middle_of_a_step_is_bit_identical():
    world = World(vocabulary=40, seed=12)
    evidence = Evidence()
    for _ in range(3):
        evidence.gather(world.rollout(bend=temperature(0.8)), eps=1e-4)
        end_step(evidence)
    evidence.gather(world.rollout(bend=temperature(0.8)), eps=1e-4)
    other = Evidence()
    other.load_state_dict(evidence.state_dict())
    for _ in range(3):
        assert other.log_evidence == evidence.log_evidence
        assert other.causes == evidence.causes
        assert other.provisional() == evidence.provisional()
        assert other.blind == evidence.blind
        assert (other.tokens, other.step, other.nonfinite) == (evidence.tokens, evidence.step, 0)
        rows = world.rollout(bend=temperature(0.8))
        for each in (evidence, other):
            each.gather(rows, eps=1e-4)
            end_step(each)


def test_the_state_is_a_copy_and_can_be_saved(tmp_path):
    world = World(vocabulary=40, seed=13)
    evidence = Evidence()
    evidence.gather(world.rollout(), eps=1e-4)
    state = evidence.state_dict()
    torch.save(state, tmp_path / "state.pt")
    value = evidence.provisional()
    end_step(evidence)
    evidence.gather(world.rollout(), eps=1e-4)
    evidence.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert evidence.provisional() == value
    evidence.gather(world.rollout(), eps=1e-4)
    evidence.load_state_dict(state)
    assert evidence.provisional() == value


def test_the_state_of_another_bank_is_refused():
    state = Evidence().state_dict()
    with pytest.raises(ValueError, match=r"here only: temperature=0.33"):
        Evidence(bank=(*default_bank(), hy.Temperature((0.33,)))).load_state_dict(state)
    with pytest.raises(ValueError, match=r"delta=0.02"):
        Evidence(delta=0.1).load_state_dict(state)
    sized = Evidence()
    sized.place("cpu", 5)
    with pytest.raises(ValueError, match="5 tokens"):
        Evidence(vocabulary=6).load_state_dict(sized.state_dict())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Evidence(delta=0.0),
        lambda: Evidence(alpha=1.0),
        lambda: Evidence(bank=(hy.Neighbour(+1),)),
        lambda: Evidence().gather(rows_of(torch.zeros(1, 5), torch.tensor([1])), eps=-1.0),
        lambda: Evidence(vocabulary=6).gather(rows_of(torch.zeros(1, 5), torch.tensor([1])), eps=0.0),
        lambda: Evidence().advance(torch.zeros(3)),
        lambda: Evidence().advance_banned(torch.zeros(3)),
    ],
)
def test_wrong_input_is_refused(wrong):
    with pytest.raises(ValueError):
        wrong()


def test_a_longer_bank_of_the_user_takes_part():
    world = World(vocabulary=60, seed=14)
    evidence = Evidence(bank=(*default_bank(), hy.Temperature((0.6, 0.75))))
    for _ in range(8):
        evidence.gather(world.rollout(bend=temperature(0.75)), eps=1e-4)
        end_step(evidence)
    assert next(iter(evidence.causes)) == "temperature=0.75"
    assert sum(evidence.causes.values()) == pytest.approx(1.0)


# Promises


def test_it_touches_nothing():
    world = World(vocabulary=40, seed=15)
    rows = world.rollout(reference=world.other(0.1))
    grown = replace(rows, logits=rows.logits.clone().requires_grad_())
    before = {each.name: getattr(rows, each.name) for each in fields(rows)}
    before = {name: value.clone() for name, value in before.items() if value is not None}
    state = torch.get_rng_state()
    more = world.rollout()
    evidence = Evidence()
    evidence.gather(grown, eps=1e-4)
    with torch.inference_mode():
        evidence.gather(part_of(more, torch.arange(40)), eps=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        evidence.gather(rows, eps=1e-4)
    assert not evidence.pending.requires_grad and not evidence.pending_banned.requires_grad
    end_step(evidence)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in before.items():
        assert torch.equal(getattr(rows, name).nan_to_num(5.0), value.nan_to_num(5.0)), name


def test_autocast_and_deterministic_algorithms_change_nothing():
    rows = World(vocabulary=40, seed=16).rollout()
    plain, cast, deterministic = Evidence(), Evidence(), Evidence()
    plain.gather(rows, eps=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast.gather(part_of(rows, torch.arange(len(rows.tokens))), eps=1e-4)
    torch.use_deterministic_algorithms(True)
    try:
        deterministic.gather(part_of(rows, torch.arange(len(rows.tokens))), eps=1e-4)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.allclose(both(plain), both(cast), rtol=0, atol=1e-9)
    assert torch.allclose(both(plain), both(deterministic), rtol=0, atol=1e-9)


def measure(rows):
    """Everything a step does on the device, on rows of one device; (evidence, summary of banned tokens)."""
    evidence = Evidence()
    evidence.gather(rows, eps=1e-4)
    evidence.gather_scalars(logprob=rows.log_prob, valid=rows.valid, reference=rows.reference, eps=0.0)
    return evidence, evidence.advance_banned(evidence.pending_banned)


def full_rows():
    world = World(vocabulary=260, seed=17)
    rows = world.rollout(batch=2, time=6, reference=world.other(0.1), sampler=world.other(0.1))
    return replace(rows, stale=rows.reference)


def test_measuring_never_asks_for_a_value_and_stays_on_its_device():
    """Tensors on `meta` have no values: item, bool, nonzero and a boolean index raise, and so does arithmetic
    with a tensor on another device."""
    rows = full_rows()
    rows = Rows(
        **{
            each.name: getattr(rows, each.name).to("meta")
            for each in fields(rows)
            if each.name != "workspace"
        }
    )
    evidence, summary = measure(rows)
    assert evidence.pending.device == evidence.pending_banned.device == summary.device == torch.device("meta")
    assert evidence.pending.shape == (evidence.width,) and summary.shape == (3,)
    with pytest.raises(RuntimeError):
        bool(evidence.pending[0] > 0)


def test_a_policy_that_repeats_itself_is_not_taken_for_shifted_logits():
    """Scored with noise (dropout in the scoring pass), a policy that gives the last token more than its due: the
    logits after a token like that token, but not as if it had been drawn from them."""
    generator = torch.Generator().manual_seed(5)
    vocabulary, batch, time = 50, 16, 24
    evidence = Evidence(vocabulary=vocabulary)
    table = torch.randn(vocabulary, vocabulary, generator=generator) * 1.5 + 6.0 * torch.eye(vocabulary)
    for _ in range(6):
        tokens = torch.zeros(batch, time + 1, dtype=torch.long)
        for t in range(time):
            drawn = torch.multinomial(table[tokens[:, t]].softmax(-1), 1, generator=generator)
            tokens[:, t + 1] = drawn[:, 0]
        logits = table[tokens[:, :-1]]
        logits = logits + 1.5 * torch.randn(logits.shape, generator=generator)
        tokens = tokens[:, 1:]
        own = torch.log_softmax(logits, -1)
        later = torch.full((batch, time), math.nan)
        later[:, :-1] = own[:, 1:].gather(-1, tokens[:, :-1, None]).squeeze(-1)
        before = torch.cat([torch.full((batch, 1), math.nan), later[:, :-1]], 1)
        rows = Rows(
            logits=logits.flatten(0, 1),
            log_probs=own.flatten(0, 1),
            tokens=tokens.flatten(),
            valid=torch.ones(batch * time, dtype=torch.bool),
            position=torch.arange(time).repeat(batch),
            later=later.flatten(),
            before=before.flatten(),
        )
        evidence.gather(rows, eps=1e-4)
        evidence.advance(evidence.pending, tuple(evidence.advance_banned(evidence.pending_banned).tolist()))
    assert evidence.log_evidence > 20
    assert evidence.causes.get("shift+1", 0.0) < 0.01


def test_a_restored_state_follows_its_rows_to_their_device():
    rows = full_rows()
    before = Evidence()
    before.gather(rows, eps=1e-4)
    evidence = Evidence()
    evidence.load_state_dict(before.state_dict())
    evidence.gather(
        Rows(
            **{
                each.name: getattr(rows, each.name).to("meta")
                for each in fields(rows)
                if each.name != "workspace"
            }
        ),
        eps=1e-4,
    )
    assert evidence.pending.device == evidence.pending_banned.device == torch.device("meta")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_never_waited_for_and_agrees_with_the_cpu():
    rows = full_rows()
    there = Rows(**{each.name: getattr(rows, each.name).to("cuda") for each in fields(rows)})
    measure(there)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        evidence, summary = measure(Rows(**{each.name: getattr(there, each.name) for each in fields(rows)}))
    finally:
        torch.cuda.set_sync_debug_mode(before)
    here, expected = measure(rows)
    assert torch.allclose(evidence.pending.cpu(), here.pending, rtol=1e-5, atol=1e-4)
    assert torch.allclose(summary.cpu()[:2], expected[:2], rtol=1e-5, atol=1e-4)
