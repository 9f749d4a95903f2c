"""From sites to findings: the rules are tried on what is in force at each site."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from klguard.findings import INTERNAL_ERROR, Confidence, Finding, Severity, SiteRef
from klguard.literals import value_text
from klguard.rules import Hazard, Rule
from klguard.settings import HopKind, Place, Site, SiteKind


def judge(sites: Iterable[Site], rules: Iterable[Rule]) -> Iterator[Finding]:
    """What `rules` say of `sites`: one finding for each rule, setting, site and place."""
    rules, judged = tuple(rules), tuple(filter(_judged, sites))
    crashed: set[str] = set()
    told: set[tuple[str, Place]] = set()
    for finding in _judge(judged, rules, crashed):
        told.add((finding.code, finding.place))
        yield finding
    # A configuration that a parser made, from a file or a command line, is no site: what it holds is judged at the
    # trainer that takes it, unless it was written in the call of a configuration, which has been judged.
    taken = (_as_config(site) for site in judged if site.settings.kind is SiteKind.TRAINER)
    for finding in _judge(taken, rules, crashed):
        written = finding.origin and finding.site and finding.place != finding.site.place
        if written and finding.confidence is not Confidence.LOW and (finding.code, finding.place) not in told:
            yield finding


def _as_config(site: Site) -> Site:
    return replace(site, settings=replace(site.settings, kind=SiteKind.TRAINER_CONFIG))


def _judge(sites: Iterable[Site], rules: Sequence[Rule], crashed: set[str]) -> Iterator[Finding]:
    for site in sites:
        ref = SiteRef(
            site.place, site.call, site.settings.engine, site.settings.context, site.enclosing, site.why
        )
        seen: set[tuple] = set()
        for rule in rules:
            try:
                found = [_finding(rule, hazard, ref) for hazard in rule.check(site.settings)]
            except Exception as error:  # noqa: BLE001  one broken rule must not cost the others' answers
                if rule.code not in crashed:
                    crashed.add(rule.code)
                    yield internal_error(error, site.place, f"rule {rule.code} [{rule.name}]")
                continue
            for finding in found:
                key = (finding.code, finding.setting, finding.place)
                if key not in seen:
                    seen.add(key)
                    yield finding


def _judged(site: Site) -> bool:
    """A project's own class that bears the name of a library's means whatever its author made of it; only a
    sampler of the project's own is known to sample. What is assigned to a model's generation_config is judged where
    calls are seen to read it. Pairs for a preference loss need not be samples of the policy."""
    if {"read_by", "pairs"} & site.settings.facts.keys():
        return False
    return site.settings.engine != "local" or site.settings.kind is SiteKind.GENERATE


def _finding(rule: Rule, hazard: Hazard, site: SiteRef) -> Finding:
    """A hazard with its place: where the first offending value was written, else the site."""
    written = [value.hops[0].place for value in hazard.values if value.hops and value.hops[0].place]
    hops = hazard.values[0].hops if hazard.values else ()
    # Where a trail ends is where klguard gave up, not where somebody wrote a value.
    travelled = [hop for hop in hops if hop.kind is not HopKind.END]
    place = travelled[0].place if travelled and travelled[0].place else site.place
    return Finding(
        code=rule.code,
        name=rule.name,
        severity=hazard.severity,
        confidence=hazard.confidence,
        message=hazard.message,
        place=place,
        help=hazard.help,
        site=None if hazard.in_loop else site,
        setting=hazard.setting,
        value=" or ".join(dict.fromkeys(map(value_text, hazard.values))),
        origin=hops,
        related=tuple(dict.fromkeys(other for other in written if other != place)),
    )


def internal_error(error: BaseException, place: Place, where: str) -> Finding:
    """klguard's own failure as a finding: the run goes on, and is not taken for a clean one."""
    code, name = INTERNAL_ERROR
    last = traceback.extract_tb(error.__traceback__)[-1:]
    at = "".join(f" at {Path(frame.filename).name}:{frame.lineno}" for frame in last)
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return Finding(
        code=code,
        name=name,
        severity=Severity.ERROR,
        confidence=Confidence.HIGH,
        message=f"klguard failed in {where}: {what}{at}",
        place=place,
        help="this is a fault of klguard: please report it with this message and, if you can, the file",
    )


def start_of(path: str) -> Place:
    """The first character of a file, for what concerns all of it."""
    return Place(path, None, 1, 1, 1, 2)
