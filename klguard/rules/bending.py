"""Settings that bend the distribution, judged one at a time: what most rules have in common.

A value offends where it is active: set to something that is not off, in a mode of decoding that listens to
it. Whose value it is decides which rule reports it: what somebody wrote is reported by the rule about the
setting, what a checkpoint or a framework brought along by the rules about inherited settings (KLG50x).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import PurePosixPath
from typing import Any, ClassVar

from klguard.engines.engine import verdict as for_all
from klguard.findings import Confidence, Severity
from klguard.rules.rule import Hazard, Rule, Verdict, judge, milder
from klguard.rules.words import engine_of, neutral, safe, subject
from klguard.settings import (
    Absent,
    Default,
    HopKind,
    Known,
    OneOf,
    Opaque,
    Settings,
    SiteKind,
    Unknown,
    Value,
)

COEFFICIENTS = ("beta", "kl_coef", "init_kl_coef")
PREFERENCE_LOSSES = frozenset({"online-dpo", "xpo"})
"""Families of TRL whose loss compares pairs: it needs no sample from the policy, the KL they log does."""
NUMBERS = frozenset(
    "temperature top_k top_p min_p typical_p epsilon_cutoff eta_cutoff top_h repetition_penalty "
    "encoder_repetition_penalty presence_penalty frequency_penalty no_repeat_ngram_size "
    "encoder_no_repeat_ngram_size min_length min_new_tokens min_tokens num_beams penalty_alpha".split()
)
"""Settings that are numbers: an object in their place is a number that is not known."""
ENGINES_THEMSELVES = frozenset({"", "transformers", "vllm", "sglang", "local"})


class Origin(Enum):
    """Whose value it is."""

    WRITTEN = "written in the project"
    LIBRARY = "the default of the engine that samples"
    FRAMEWORK = "the default of a training framework"
    CHECKPOINT = "brought along by a checkpoint"
    FILE = "written in a generation_config.json that the project reads"


def origin(value: Value, settings: Settings) -> Origin:
    """Whose value it is: the last one who had a say."""
    if isinstance(value, Default):
        in_trl = settings.engine == "trl" and settings.kind is SiteKind.TRAINER_CONFIG
        return Origin.FRAMEWORK if in_trl or value.library not in ENGINES_THEMSELVES else Origin.LIBRARY
    for hop in value.hops:
        if hop.kind is HopKind.CHECKPOINT:
            return Origin.CHECKPOINT
        if (
            hop.kind is HopKind.DOCUMENT
            and hop.place
            and PurePosixPath(hop.place.path).name == "generation_config.json"
        ):
            return Origin.FILE
    return Origin.WRITTEN


def fact(settings: Settings, name: str) -> Any:
    """The plain value of a fact, None where it is not known; engines give theirs as plain data already."""
    value = settings.facts.get(name)
    if isinstance(value, Known | Default):
        return value.value
    return None if isinstance(value, Unknown | OneOf | Absent) else value


def has_penalty(settings: Settings) -> bool:
    """Whether some coefficient of the KL is certainly above 0."""
    values = (settings.values.get(name) for name in COEFFICIENTS)
    return any(v is not None and for_all(v, lambda x: isinstance(x, int | float) and x > 0) for v in values)


def without_kl(settings: Settings) -> bool:
    """Whether there visibly is no KL term: the loop has none, or its coefficient is 0."""
    if fact(settings, "kl_term") is False:
        return True
    written = [settings.values[name] for name in COEFFICIENTS if name in settings.values]
    return bool(written) and all(for_all(value, lambda v: v == 0) for value in written)


def may_draw(settings: Settings, name: str) -> bool | None:
    """Whether `name` is listened to at all: True, False, or None where the mode of decoding is not known."""
    return engine_of(settings).active(name, settings.values, settings.versions)


def rejected(settings: Settings, name: str, value: object) -> bool:
    """Whether the engine refuses or misreads the value, which KLG505 reports."""
    return engine_of(settings).error(name, value, settings.versions) is not None


def is_on(settings: Settings, name: str, value: object) -> bool:
    """Whether a plain value bends the distribution."""
    return not engine_of(settings).is_off(name, value, settings.versions)


@dataclass(frozen=True, slots=True)
class Bent:
    """A setting that bends the distribution: the rule that says so, and how sure it is."""

    rule: BendingRule
    name: str
    verdict: Verdict

    def of(self, wanted: Callable[[Origin], bool], settings: Settings) -> Bent | None:
        """The part of it that has such an origin."""
        offenders = tuple(v for v in self.verdict.offenders if wanted(origin(v, settings)))
        return replace(self, verdict=replace(self.verdict, offenders=offenders)) if offenders else None


class BendingRule(Rule):
    """A rule about settings, each of which offends by its own value.

    A subclass gives the `names` of the settings and says, in a verb phrase, what a value does to the draw.
    """

    names: ClassVar[tuple[str, ...]]
    harm: ClassVar[str] = (
        "what is sampled is not the policy, and the KL estimate can fall below zero for free"
    )

    def offends(self, name: str, value: Any, settings: Settings) -> bool:
        """Whether a plain value bends the distribution here."""
        return is_on(settings, name, value)

    def does(self, name: str, values: tuple[Any, ...]) -> str:
        """What these values do, as a verb phrase."""
        raise NotImplementedError

    def instead(self, name: str, settings: Settings) -> str:
        """What to write."""
        return neutral(settings, name)

    def bent(self, settings: Settings) -> Iterator[Bent]:
        """Every setting of this rule that bends the distribution, whoever set it."""
        for name in self.names:
            listened = may_draw(settings, name)
            if name not in settings.values or listened is False:
                continue
            found = judge(
                settings.values[name], lambda v, n=name: self._judged(n, v, settings), self.severity
            )
            if found is not None:
                yield Bent(self, name, self.weigh(found, settings, name))

    def _judged(self, name: str, value: Any, settings: Settings) -> bool:
        if isinstance(value, Opaque) and name in NUMBERS:
            return False  # some number, which nobody knows
        return self.offends(name, value, settings) and not rejected(settings, name, value)

    def weigh(self, found: Verdict, settings: Settings, name: str) -> Verdict:
        """`found`, milder where sampling is not certain, there is no KL, or the trainer corrects it."""
        listened = may_draw(settings, name) is True
        if not listened:
            found = replace(found, confidence=Confidence.MEDIUM)
        uncertain = not listened or name in settings.mitigations
        if uncertain or without_kl(settings) or fact(settings, "flavour") in PREFERENCE_LOSSES:
            found = replace(found, severity=milder(found.severity, Severity.WARNING))
        return found

    def check(self, settings: Settings) -> Iterator[Hazard]:
        """What somebody wrote; inherited values are reported by the rules about those."""
        if settings.kind is SiteKind.TRAINER:
            return  # a trainer's settings are judged at its config
        for bent in self.bent(settings):
            written = bent.of(lambda whose: whose is Origin.WRITTEN, settings)
            if written is not None:
                yield self.hazard(settings, written.name, written.verdict)

    def hazard(self, settings: Settings, name: str, verdict: Verdict) -> Hazard:
        """The finding about one setting."""
        does = self.does(name, tuple(v.value for v in verdict.offenders if isinstance(v, Known | Default)))
        return Hazard(
            message=f"{subject(settings, name, verdict)} {does}: {self.consequence(settings, name)}",
            help=self.instead(name, settings),
            setting=name,
            severity=verdict.severity,
            confidence=verdict.confidence,
            values=verdict.offenders,
            safe=safe(settings, name),
        )

    def harms(self, name: str) -> str:
        """What a value of this setting does to the KL."""
        return self.harm

    def consequence(self, settings: Settings, name: str) -> str:
        """What it does to the KL here."""
        return consequence(settings, name, self.harms(name))


def consequence(settings: Settings, name: str, harm: str) -> str:
    """`harm`, or what is left of it: where there is no KL, or the trainer corrects the ratio."""
    if fact(settings, "flavour") in PREFERENCE_LOSSES:
        return "the preference loss bears it, but the KL that is logged beside it is not the KL"
    if without_kl(settings):
        return "there is no KL term, but the gradient's log-probs are not those the tokens were drawn from"
    if name in settings.mitigations:
        return f"{settings.mitigations[name]}, so the ratio is right, but the KL term is not corrected"
    return harm if may_draw(settings, name) else f"wherever tokens are drawn, {harm}"
