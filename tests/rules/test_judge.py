"""judge: all possibilities hazardous, some of them, or none that is known."""

from __future__ import annotations

from klguard.findings import Confidence, Severity
from klguard.rules.rule import judge
from klguard.settings import Default, Hop, HopKind, Known, OneOf, Reason, Unknown

UNKNOWN = Unknown(Reason.RUNTIME, "args.k")


def is_large(value: object) -> bool:
    return isinstance(value, int) and value > 10


def test_a_hazardous_value_is_certain():
    verdict = judge(Known(50), is_large)
    assert (verdict.severity, verdict.confidence, verdict.certain) == (Severity.ERROR, Confidence.HIGH, True)
    assert verdict.offenders == (Known(50),)


def test_a_default_counts_like_a_written_value():
    assert judge(Default(50, "transformers"), is_large).certain


def test_a_harmless_value_is_nothing():
    assert judge(Known(0), is_large) is None


def test_a_setting_the_engine_does_not_have_is_nothing():
    assert judge(None, is_large) is None


def test_all_possibilities_hazardous_is_certain():
    verdict = judge(OneOf((Known(50), Known(20))), is_large)
    assert verdict.certain and verdict.severity is Severity.ERROR and len(verdict.offenders) == 2


def test_some_possibilities_hazardous_is_a_warning_about_those():
    verdict = judge(OneOf((Known(50), Known(0))), is_large)
    assert (verdict.severity, verdict.confidence) == (Severity.WARNING, Confidence.MEDIUM)
    assert verdict.offenders == (Known(50),)


def test_some_never_makes_a_mild_rule_louder():
    assert judge(OneOf((Known(50), Known(0))), is_large, Severity.NOTE).severity is Severity.NOTE


def test_what_is_not_known_is_not_reported():
    assert judge(UNKNOWN, is_large) is None
    assert judge(OneOf((UNKNOWN, Known(0))), is_large) is None


def test_a_known_hazard_beside_an_unknown_is_a_warning():
    assert judge(OneOf((UNKNOWN, Known(50))), is_large).severity is Severity.WARNING


def test_a_default_beside_an_unknown_is_no_evidence():
    assert judge(OneOf((UNKNOWN, Default(50, "transformers"))), is_large) is None
    assert judge(OneOf((Known(0), Default(50, "transformers"))), is_large).severity is Severity.WARNING


def test_a_checkpoints_value_beside_an_unknown_is_no_evidence():
    brought = Known(50, (Hop(HopKind.CHECKPOINT, None, "generation_config.json"),))
    assert judge(OneOf((UNKNOWN, brought)), is_large) is None
