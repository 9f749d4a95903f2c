"""How the tokens of a rollout might really have been drawn: one class per kind of sampler.

A hypothesis is a conditional distribution q over the vocabulary for each tested position. It is scored by
L = q(x) / p(x), x the token and p the policy that scored it. Where q depends on the past only, the mean of L
over x ~ p is at most 1, and products of L are a test with a proven false-alarm bound (Ville's inequality; see
`klguard.guard.evidence`). Every class below with `valid = True` has that property exactly, not up to the
precision of a threshold: kept sets are whatever set is written here, normalised by its own exact mass.

A hypothesis returns log L per row and parameter, in nats, or NaN where it has no opinion. Having an opinion
must depend on the past only as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from klguard.guard.hypothesis import Grid, Hypothesis, in_range
from klguard.guard.rows import HEAD, LAST_BIN, SLACK, Rows, bin_centres, bins_of, constants, running_sum

__all__ = [
    "EosSuppressed",
    "EpsilonCutoff",
    "GivenLogProbs",
    "Greedy",
    "Hypothesis",
    "MinP",
    "Neighbour",
    "PitTilt",
    "RepetitionPenalty",
    "Rows",
    "Temperature",
    "TopK",
    "TopP",
    "TypicalP",
]


USUAL_TEMPERATURES = {
    0.1: 30,
    0.3: 19,
    0.5: 23,
    0.6: 40,
    0.7: 128,
    0.8: 72,
    0.9: 53,
    1.25: 10,
    1.5: 5,
    2.0: 10,
}
USUAL_PENALTIES = {1.05: 5, 1.1: 25, 1.2: 23, 1.3: 2, 1.5: 4}
"""In how many of 330 public repositories that train language models by reinforcement the value is written."""


def _inside(kept: Tensor, mass: Tensor) -> Tensor:
    """log of 1 / mass where the token is kept, -inf elsewhere: q is p renormalised on the kept set."""
    return torch.where(kept, -mass.log(), -math.inf)


class Temperature(Grid):
    """q proportional to p^(1/T). Inside a bin of 1/32 nat q is proportional to p, so log L is that of the
    true sampler up to (1/T - 1)/64 nats."""

    def __init__(self, values: Sequence[float], between: Sequence[float] = (), prior: float = 0.2) -> None:
        values, between = (in_range("temperature", each, 0.0, math.inf) for each in (values, between))
        super().__init__("temperature", values, between, prior=prior, usual=USUAL_TEMPERATURES)

    def log_ratio(self, rows: Rows) -> Tensor:
        change = _tempering(self.values, rows.log_probs.device)
        norm = rows.spectrum.mass @ change.exp()
        return change[rows.spectrum.bin] - norm.log()


@lru_cache(maxsize=64)
def _tempering(temperatures: tuple[float, ...], device: torch.device) -> Tensor:
    """(bins, temperatures) log p^(1/T) - log p up to a constant: with d = max log p - log p it is
    (1 - 1/T) d."""
    slopes = constants(tuple(1.0 - 1.0 / value for value in temperatures), device)
    return bin_centres(device).unsqueeze(1) * slopes


class TopK(Grid):
    """The k likeliest tokens, and every token as likely as the last of them, as transformers keeps them."""

    def __init__(self, values: Sequence[int], between: Sequence[int] = (), prior: float = 0.15) -> None:
        for value in (*values, *between):
            if not 1 <= value <= HEAD:
                raise ValueError(f"top_k={value} cannot be tested: klguard knows the {HEAD} likeliest tokens")
        # top_k=1 is greedy search, which has a name of its own
        super().__init__("top_k", values, between, prior=prior, special={1: 1e-3})

    def log_ratio(self, rows: Rows) -> Tensor:
        head = rows.spectrum.head
        last = head.shape[1] - 1
        threshold = torch.cat([head[:, min(k - 1, last), None] for k in self.values], 1)
        return _inside(rows.log_prob.unsqueeze(1) >= threshold, rows.spectrum.mass_from(threshold))


class Greedy(TopK):
    """The likeliest token; uniform over those that tie for it."""

    def __init__(self, prior: float = 0.06) -> None:
        super().__init__((1,), prior=prior)
        self.family = "greedy"
        self.names = ("greedy",)
        self.weights = self.naming = (1.0,)


class TopP(Grid):
    """The smallest set of likeliest tokens with at least mass p. Exact, with ties, where the set fits into
    the 200 likeliest; else up to the end of a bin of 1/32 nat: never smaller than the nucleus."""

    def __init__(self, values: Sequence[float], between: Sequence[float] = (), prior: float = 0.12) -> None:
        values, between = (in_range("top_p", each, 0.0, 1.0) for each in (values, between))
        super().__init__("top_p", values, between, prior=prior)

    def log_ratio(self, rows: Rows) -> Tensor:
        spectrum = rows.spectrum
        wanted = constants(self.values, rows.log_probs.device) * spectrum.total.unsqueeze(1)
        last = spectrum.head.shape[1] - 1
        rank = torch.searchsorted(spectrum.head_sum, wanted)
        threshold = spectrum.head.gather(1, rank.clamp(max=last))
        end = torch.searchsorted(spectrum.below, wanted).clamp_(max=LAST_BIN)
        in_head = rank <= last
        kept = torch.where(in_head, rows.log_prob.unsqueeze(1) >= threshold, spectrum.bin.unsqueeze(1) <= end)
        mass = torch.where(in_head, spectrum.mass_from(threshold), spectrum.below.gather(1, end))
        return _inside(kept, mass)


def _from_threshold(rows: Rows, threshold: Tensor) -> Tensor:
    """log L of the tokens at least as likely as threshold (n, m) fp32, nats, at most the row's maximum.
    Exact where the set lies within the 200 likeliest tokens, else up to the end of a bin."""
    spectrum = rows.spectrum
    end = bins_of(spectrum.head[:, :1] - threshold)
    in_head = (spectrum.head[:, -1:] < threshold) | spectrum.complete
    kept = torch.where(in_head, rows.log_prob.unsqueeze(1) >= threshold, spectrum.bin.unsqueeze(1) <= end)
    mass = torch.where(in_head, spectrum.mass_from(threshold), spectrum.below.gather(1, end))
    return _inside(kept, mass)


class MinP(Grid):
    """Tokens with at least min_p times the largest probability."""

    def __init__(self, values: Sequence[float], between: Sequence[float] = (), prior: float = 0.06) -> None:
        values, between = (in_range("min_p", each, 0.0, 1.0) for each in (values, between))
        super().__init__("min_p", values, between, prior=prior)

    def log_ratio(self, rows: Rows) -> Tensor:
        logs = constants(tuple(math.log(value) for value in self.values), rows.log_probs.device)
        return _from_threshold(rows, rows.spectrum.head[:, :1] + logs.to(torch.float32))


class EpsilonCutoff(Grid):
    """Tokens with at least probability epsilon, and always the likeliest."""

    def __init__(self, values: Sequence[float], between: Sequence[float] = (), prior: float = 0.02) -> None:
        values, between = (in_range("epsilon_cutoff", each, 0.0, 1.0) for each in (values, between))
        super().__init__("epsilon_cutoff", values, between, prior=prior)

    def log_ratio(self, rows: Rows) -> Tensor:
        logs = constants(tuple(math.log(value) for value in self.values), rows.log_probs.device)
        return _from_threshold(rows, torch.minimum(logs.to(torch.float32), rows.spectrum.head[:, :1]))


class TypicalP(Grid):
    """The smallest set of tokens with mass p whose surprise -log p lies nearest to the entropy (Meister et
    al., Locally typical sampling, 2023). Surprise is known to a bin of 1/32 nat, so the set may differ from
    the true one by a bin at either end."""

    def __init__(self, values: Sequence[float], between: Sequence[float] = (), prior: float = 0.05) -> None:
        values, between = (in_range("typical_p", each, 0.0, 1.0) for each in (values, between))
        super().__init__("typical_p", values, between, prior=prior)

    def log_ratio(self, rows: Rows) -> Tensor:
        spectrum = rows.spectrum
        centres = bin_centres(rows.log_probs.device)
        # entropy + max log p, the d at which surprise equals the entropy
        middle = (spectrum.mass @ centres) / spectrum.total
        away = bins_of((centres - middle.unsqueeze(1)).abs_())
        mass = torch.zeros_like(spectrum.mass).scatter_add_(1, away, spectrum.mass)
        mass = running_sum(mass)
        wanted = constants(self.values, rows.log_probs.device) * mass[:, -1:]
        end = torch.searchsorted(mass, wanted).clamp_(max=LAST_BIN)
        kept = away.gather(1, spectrum.bin.unsqueeze(1)) <= end
        return _inside(kept, mass.gather(1, end))


class EosSuppressed(Grid):
    """No end of sequence among the first m tokens of a response (min_new_tokens=m), or never at all. The
    length counts response tokens; a min_length that counts the prompt too shows as the nearest m."""

    needs = "eos"

    def __init__(
        self, values: Sequence[float] = (math.inf,), between: Sequence[float] = (), prior: float = 0.1
    ) -> None:
        for value in (*values, *between):
            if not value >= 1:
                raise ValueError(f"min_new_tokens={value} suppresses nothing: give a number of at least 1")
        # longer than every response is the same as always: that is then the name
        super().__init__("eos_suppressed", values, between, prior=prior, special={math.inf: 4.0})

    @staticmethod
    def name(family: str, value: float) -> str:
        return family if math.isinf(value) else f"{family}<{value:g}"

    def log_ratio(self, rows: Rows) -> Tensor:
        spectrum, eos = rows.spectrum, rows.eos
        if eos is None:
            return torch.full_like(spectrum.total, math.nan).unsqueeze(1).expand(-1, len(self.values))
        ids = eos.sort().values
        counts = (ids >= 0) & (ids < rows.vocabulary)
        counts = counts & torch.cat([torch.ones_like(counts[:1]), ids[1:] != ids[:-1]])
        mass = spectrum.probabilities[:, ids.clamp(0, rows.vocabulary - 1)].to(torch.float64)
        others = (spectrum.total - (mass * counts).sum(1)).clamp_(min=0.0) + SLACK
        ends = (rows.tokens.unsqueeze(1) == ids).any(1)
        ratio = torch.where(ends, -math.inf, -others.log()).unsqueeze(1)
        while_it_lasts = rows.position.unsqueeze(1) < constants(self.values, rows.log_probs.device)
        return torch.where(while_it_lasts, ratio, math.nan)


class RepetitionPenalty(Grid):
    """transformers' rule: the logit of every id in the context, once each, is divided by the penalty where it
    is positive and multiplied by it where it is negative (Keskar et al., CTRL, 2019)."""

    needs = "context"

    def __init__(self, values: Sequence[float], between: Sequence[float] = (), prior: float = 0.05) -> None:
        values, between = (in_range("repetition_penalty", each, 1.0, math.inf) for each in (values, between))
        super().__init__("repetition_penalty", values, between, prior=prior, usual=USUAL_PENALTIES)

    def log_ratio(self, rows: Rows) -> Tensor:
        spectrum = rows.spectrum
        if rows.context is None:
            return torch.full_like(spectrum.total, math.nan).unsqueeze(1).expand(-1, len(self.values))
        return penalised_ratios(rows, rows.context, self.values)


def penalised_ratios(rows: Rows, context: Tensor, penalties: Sequence[float]) -> Tensor:
    """(n, len(penalties)) log L where the logits of the ids in `context` (n, c), once each and -1 for none,
    are divided by the penalty where they are positive and multiplied by it where they are negative. A penalty
    below 1 makes them likelier."""
    spectrum = rows.spectrum
    ids = context.sort(1).values
    counts = (ids >= 0) & (ids < rows.vocabulary)
    counts[:, 1:] &= ids[:, 1:] != ids[:, :-1]
    safe = ids.clamp(0, rows.vocabulary - 1)
    mass = spectrum.probabilities.gather(1, safe).to(torch.float64) * counts
    logits = rows.logits.gather(1, safe).to(torch.float64)
    own = rows.logits.gather(1, rows.safe_tokens.unsqueeze(1)).squeeze(1).to(torch.float64)
    seen = (context == rows.tokens.unsqueeze(1)).any(1)
    others = ((spectrum.total - mass.sum(1)).clamp_(min=0.0) + SLACK).log()
    # the log-prob in float64, from the largest: one in fp32 is off by 5e-4 where the largest is 1e4 nats away,
    # and raised by a penalty below 1 such a token may be the whole of the norm
    top = rows.logits.gather(1, spectrum.head_ids[:, :1]).to(torch.float64)
    log_probs = (logits - top + spectrum.head[:, :1]).masked_fill(~counts, -math.inf)
    ratios = []
    for penalty in penalties:
        raised = (log_probs + _penalised(logits, penalty)).nan_to_num_(nan=-math.inf, neginf=-math.inf)
        norm = torch.logaddexp(others, raised.logsumexp(1)) if raised.shape[1] else others
        ratios.append(torch.where(seen, _penalised(own, penalty), 0.0) - norm)
    return torch.stack(ratios, 1)


def _penalised(logits: Tensor, penalty: float) -> Tensor:
    """Change of each logit under the penalty, nats; -inf for a logit of -inf, whose probability is 0 before
    and after."""
    change = torch.where(logits < 0, logits * (penalty - 1.0), logits * (1.0 / penalty - 1.0))
    return change.masked_fill_(logits == -math.inf, -math.inf)


class GivenLogProbs(Hypothesis):
    """q is another model or program, known by the log-prob it gave the token: the reference policy, the
    inference engine, the policy under its previous weights. The cumulative log L of `reference` is minus
    the cumulative k1."""

    exact = True

    def __init__(self, source: str, prior: float) -> None:
        self.needs = source
        super().__init__(source, (source,), prior)

    def log_ratio(self, rows: Rows) -> Tensor:
        return self.from_log_probs(getattr(rows, self.needs), rows.log_prob)

    def from_log_probs(self, given: Tensor | None, log_prob: Tensor) -> Tensor:
        """(n, 1) from (n,) log-probs alone, for losses that have no logits."""
        return _given_ratio(given, log_prob)


def _given_ratio(given: Tensor | None, log_prob: Tensor) -> Tensor:
    """(n, 1) given - log_prob, float64; NaN where nothing is given."""
    if given is None:
        return torch.full_like(log_prob, math.nan, dtype=torch.float64).unsqueeze(1)
    ratio = given.to(torch.float64) - log_prob.to(torch.float64)
    # impossible under both: such a token is never drawn, so any ratio is right
    both = (given == -math.inf) & (log_prob == -math.inf)
    return torch.where(both, -math.inf, ratio).unsqueeze(1)


class Neighbour(Hypothesis):
    """The scored logits belong to a neighbouring position.

    shift-1: the right logits for a token are those one position earlier; they depend on the past, so this is
    evidence. shift+1: the right logits are one position later. Those depend on the token itself: a policy
    that repeats its last token has p_{t+1}(x_t) / p_t(x_t) above 1 in the mean under pure sampling. It is a
    diagnostic: other components detect the shift, this one gives it its name.
    """

    def __init__(self, step: int, prior: float = 0.03) -> None:
        if step not in (-1, 1):
            raise ValueError(f"a shift of {step} cannot be tested: only -1 and +1")
        self.needs = "earlier" if step < 0 else "later"
        self.valid = step < 0
        super().__init__(f"shift{step:+d}", (f"shift{step:+d}",), prior)

    def log_ratio(self, rows: Rows) -> Tensor:
        return _given_ratio(getattr(rows, self.needs), rows.log_prob)


def pit_interval(rows: Rows) -> tuple[Tensor, Tensor]:
    """(n,), (n,) the mass of strictly likelier bins, and with the token's own bin, both in [0, 1].

    The probability integral transform of a discrete draw, without its random number: a bet on U is a bet on
    the interval's mean density, and the bins partition [0, 1] whatever the token.
    """
    spectrum = rows.spectrum
    index = spectrum.bin.unsqueeze(1)
    upper = spectrum.below.gather(1, index).squeeze(1)
    before = spectrum.below.gather(1, (index - 1).clamp(min=0)).squeeze(1)
    lower = torch.where(spectrum.bin > 0, before, 0.0)
    return lower / spectrum.total, upper / spectrum.total


class PitTilt(Hypothesis):
    """A sampler nobody listed that prefers likelier (rate < 0) or less likely (rate > 0) tokens: U has
    density proportional to exp(rate * u) instead of 1."""

    def __init__(self, rates: Sequence[float], prior: float = 0.01) -> None:
        if not all(math.isfinite(rate) and rate for rate in rates):
            raise ValueError(f"rates={tuple(rates)}: a tilt needs a finite rate other than 0")
        self.rates = tuple(float(rate) for rate in rates)
        super().__init__("pit", ("pit",) * len(self.rates), prior)

    def log_ratio(self, rows: Rows) -> Tensor:
        lower, upper = pit_interval(rows)
        device = rows.log_probs.device
        rates = constants(self.rates, device)
        norms = constants(tuple(math.log(rate / math.expm1(rate)) for rate in self.rates), device)
        # a width of 0 comes only from tokens of probability 0
        across = rates * (upper - lower).clamp_(min=1e-300).unsqueeze(1)
        return rates * lower.unsqueeze(1) + (torch.expm1(across) / across).log() + norms
