"""Loops that score at another temperature than they sample at, told to the guard or only watched by it."""

from __future__ import annotations

import copy
import inspect

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from klguard import Guard  # noqa: E402
from klguard.findings import Severity  # noqa: E402
from tests.guard import loop as loops  # noqa: E402
from tests.guard.loop import EOS, RESPONSE, Loop, run  # noqa: E402

torch.set_num_threads(1)


def codes(guard) -> set[str]:
    return {finding.code for finding in guard.findings}


# ------------------------------------------------------------------------------------------------ told by hand


class Cold(Loop):
    """A correct loop: drawn at 0.7, divided by 0.7, and both said."""

    drawn: float | None = 0.7
    divided: float | None = 0.7
    said: float | None = 0.7

    def sampling(self):
        return super().sampling() | {"temperature": self.drawn or 0.7}

    def scale(self, logits):
        return logits / (self.divided or 1.0)

    def tell_rollout(self, batch):
        self.guard.rollout(
            batch.responses,
            batch.mask,
            prompts=batch.prompts,
            attention_mask=batch.attention,
            stop_token_ids=(EOS,),
            max_new_tokens=RESPONSE,
            temperature=self.drawn,
        )

    def tell_scoring(self, batch):
        self.guard.logprobs(
            batch.logits,
            batch.responses,
            batch.mask,
            reference_logits=batch.reference_logits,
            context_ids=batch.prompts,
            temperature=self.said,
        )


class ColdAndQuiet(Cold):
    """A correct loop that does not say by what it divides."""

    said = None


class ColdOfItself(Cold):
    """A correct loop whose sampler's temperature nobody tells."""

    drawn = said = None


class ColdBySettings(Cold):
    """A correct loop that hands over its settings."""

    def tell_rollout(self, batch):
        arguments = dict(stop_token_ids=(EOS,), prompts=batch.prompts, attention_mask=batch.attention)
        self.guard.rollout(batch.responses, batch.mask, settings=self.settings(), **arguments)

    def settings(self):
        return loops.GenerationConfig(**self.sampling(), max_new_tokens=RESPONSE)


class NotDivided(Cold):
    divided = None


class NotDividedNorSaid(NotDivided):
    said = None


class NotDividedBySettings(ColdBySettings):
    divided = said = None


class DividedForNothing(Cold):
    """An odd temperature, that no list has."""

    drawn, divided, said = 1.0, 0.73, None


class DividedAndSaid(DividedForNothing):
    said = 0.73


class DividedTwice(Cold):
    divided = 0.49


class SaysAnother(Cold):
    """It samples at 1, and divides by 0.7: both are said, and no row can be scored by hand without the prompts."""

    drawn = 1.0

    def tell_rollout(self, batch):
        self.guard.rollout(batch.responses, batch.mask, stop_token_ids=(EOS,), temperature=self.drawn)


@pytest.mark.parametrize("kind", [Cold, ColdAndQuiet, ColdOfItself, ColdBySettings], ids=lambda k: k.__name__)
def test_a_loop_that_mirrors_the_temperature_has_no_findings(kind):
    guard = run(kind, steps=4)
    assert guard.findings == []
    assert "KLG705" in guard.exercised
    assert guard.evidence.log_evidence < 1


@pytest.mark.parametrize(
    "kind",
    [NotDivided, NotDividedNorSaid, NotDividedBySettings, DividedForNothing, DividedAndSaid, DividedTwice, SaysAnother],
    ids=lambda k: k.__name__,
)  # fmt: skip
def test_a_wrong_temperature_is_found_and_nothing_else(kind):
    """After two steps: later on, the harm to the KL estimate shows as well (KLG605)."""
    guard = run(kind, steps=2)
    assert codes(guard) == {"KLG705"}, [f.message for f in guard.findings]
    assert len(guard.findings) == 1


class Mixed(Cold):
    """A correct loop under autocast, which is off again when the guard is told."""

    def forward(self, model, ids, attention):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(model, ids, attention)

    def tell_preflight(self):
        """Its functions are tried by the tests of the preflight."""


class MixedNotDivided(Mixed):
    divided = None


class HalfWeights(Mixed):
    def make_policy(self):
        return super().make_policy().bfloat16()

    def forward(self, model, ids, attention):
        logits, hidden = Cold.forward(self, model, ids, attention)
        return logits, hidden.float()


class HalfWeightsNotDivided(HalfWeights):
    divided = None


@pytest.mark.parametrize("kind", [Mixed, HalfWeights], ids=lambda k: k.__name__)
@pytest.mark.parametrize("seed", range(3))
def test_rounding_in_half_precision_is_no_temperature(kind, seed, monkeypatch):
    monkeypatch.setattr(kind, "seed", seed)
    assert run(kind, steps=1).findings == []


@pytest.mark.parametrize("kind", [MixedNotDivided, HalfWeightsNotDivided], ids=lambda k: k.__name__)
def test_a_wrong_temperature_is_found_in_half_precision_too(kind):
    assert codes(run(kind, steps=1)) == {"KLG705"}


def test_the_message_says_both_temperatures():
    (finding,) = run(DividedForNothing, steps=1).findings
    assert "those of temperature 0.73, but its temperature is 1:" in finding.message
    (finding,) = run(SaysAnother, steps=1).findings
    assert "drawn at temperature 1, and its logits were divided by 0.7" in finding.message


def test_what_the_evidence_finds_later_is_the_same_fault():
    guard = run(NotDivided, steps=8)
    assert guard.evidence.log_evidence > 20 and next(iter(guard.evidence.causes)).startswith("temperature")
    assert "KLG701" not in codes(guard)
    ignoring = run(NotDividedNorSaid, steps=8, ignore=["KLG705"])
    assert "KLG701" not in codes(ignoring), "KLG705 is the same fault, and it is ignored"


def test_without_a_known_temperature_the_evidence_speaks():
    """What the sampler did is not known, so the loop's own 1 cannot be called wrong; the tokens can."""

    class Unknown(NotDividedNorSaid):
        drawn = None

    guard = run(Unknown, steps=8)
    assert "KLG705" not in codes(guard) and "KLG701" in codes(guard)


# --------------------------------------------------------------------------------------------------- live


@pytest.fixture
def models():
    torch.manual_seed(0)
    policy = copy.deepcopy(loops._model())
    return policy, copy.deepcopy(policy).eval().requires_grad_(False)


def train(guard, policy, reference, divisor, *, told="nothing", steps=4, drawn=0.5):
    """A loop that samples at `drawn` and divides by `divisor`. told: "nothing", "logits" or "log-probs"."""
    optimizer = torch.optim.SGD(policy.parameters(), lr=1e-3)
    with guard:
        for _ in range(steps):
            prompts = torch.randint(2, 64, (16, 6))
            ones = torch.ones_like(prompts)
            ids = policy.eval().generate(
                prompts, attention_mask=ones, max_new_tokens=16, do_sample=True, top_k=0, temperature=drawn
            )
            responses = ids[:, 6:]
            stopped = (responses == EOS).long()
            mask = stopped.cumsum(1) - stopped == 0
            logits = policy(ids, use_cache=False).logits[:, 5:-1] / divisor
            with torch.no_grad():
                theirs = reference(ids).logits[:, 5:-1] / divisor
            logprobs, theirs = (
                one.log_softmax(-1).gather(-1, responses[..., None])[..., 0] for one in (logits, theirs)
            )
            if told == "logits":
                guard.logprobs(logits, responses, mask, temperature=divisor)
            elif told == "log-probs":
                guard.observe(logprobs, mask, reference_logprobs=theirs)
            optimizer.zero_grad()
            (-(logprobs * mask).sum() / 100).backward()
            optimizer.step()
            if told != "nothing":
                guard.step()
    return guard


@pytest.mark.parametrize("divisor", [0.5, 1.0], ids=["mirrored", "not mirrored"])
def test_a_watched_loop_is_warned_of_its_temperature_and_judged_as_if_it_divides(models, divisor):
    """Its division is not seen: both loops look alike."""
    guard = train(Guard(*models, on_violation="record", strict=True), *models, divisor)
    (finding,) = guard.findings
    assert (finding.code, finding.severity) == ("KLG106", Severity.WARNING)
    assert "right only if the loop divides the logits" in finding.message
    lines, first = inspect.getsourcelines(train)
    assert finding.place.line == first + next(i for i, line in enumerate(lines) if ".generate(" in line)
    assert guard.evidence.tokens > 100 and guard.evidence.log_evidence < 1


def test_a_watched_loop_at_another_temperature_than_the_live_one_would_be_found(models, monkeypatch):
    """Or the tests above would show nothing: without the division the evidence would speak of a temperature."""
    monkeypatch.setattr("klguard.guard.mirrored.Temperatures.divisor", lambda *_: None)
    guard = train(Guard(*models, on_violation="record", strict=True), *models, 0.5, steps=6)
    assert guard.evidence.log_evidence > 20
    assert next(iter(guard.evidence.causes)).startswith("temperature=0.")


@pytest.mark.parametrize("told", ["logits", "log-probs"])
def test_a_loop_that_tells_its_logits_is_not_told_of_its_temperature(models, told):
    guard = train(Guard(*models, on_violation="record", strict=True), *models, 0.5, told=told)
    assert guard.findings == []


def test_a_loop_that_tells_undivided_logits_is_judged_by_the_tokens(models):
    guard = train(Guard(*models, on_violation="record", strict=True), *models, 1.0, told="logits")
    assert "KLG106" not in codes(guard)
    assert "KLG705" in codes(guard)


def test_no_division_where_the_temperature_is_one(models, monkeypatch):
    """The pass over the vocabulary is then the one it was."""
    seen = []
    monkeypatch.setattr("klguard.guard.scoring._divided", lambda logits, event: seen.append(event) or logits)
    guard = train(Guard(*models, on_violation="record", strict=True), *models, 1.0, drawn=1.0, steps=2)
    assert guard.findings == [] and seen and all(event.divisor is None for event in seen)
