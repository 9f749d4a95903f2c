"""Findings as people read them: one value that reaches several sites is one thing to mend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from klguard.findings import Finding, Severity, SiteRef
from klguard.output.terminal import plural


@dataclass(frozen=True)
class Group:
    """Findings of one rule, in the same words, about the same piece of source; one per site it reaches."""

    findings: tuple[Finding, ...]

    @property
    def first(self) -> Finding:
        return self.findings[0]

    @property
    def sites(self) -> tuple[SiteRef, ...]:
        return tuple(finding.site for finding in self.findings if finding.site is not None)


def grouped(findings: Iterable[Finding]) -> list[Group]:
    """Groups in the order of every output: by place, with notes after everything else."""
    groups: dict[tuple, list[Finding]] = {}
    for finding in sorted(findings, key=lambda finding: finding.sort_key):
        key = (finding.code, finding.place, finding.setting, finding.severity, finding.message, finding.help)
        groups.setdefault(key, []).append(finding)
    ordered = [Group(tuple(members)) for members in groups.values()]
    return sorted(ordered, key=lambda group: group.first.severity is Severity.NOTE)


def summary(groups: Sequence[Group], files: int, rollouts: int, sites: int, suppressed: int) -> str:
    """One sentence: what was found, in what, and how much was not shown."""
    counts = Counter(group.first.severity for group in groups)
    found = ", ".join(plural(counts[severity], severity.value) for severity in Severity if counts[severity])
    hidden = f" {suppressed} suppressed." if suppressed else ""
    looked_at = (
        f"{plural(files, 'file')} checked, {plural(rollouts, 'rollout')} among {plural(sites, 'site')}"
    )
    return f"Found {found}: {looked_at}.{hidden}" if found else f"Nothing found: {looked_at}.{hidden}"


def statistics(groups: Iterable[Group]) -> list[str]:
    """A line per rule, most frequent first."""
    counts = Counter((group.first.code, group.first.name, group.first.severity.value) for group in groups)
    rows = sorted(counts.items(), key=lambda row: (-row[1], row[0]))
    digits = max((len(str(count)) for _, count in rows), default=0)
    names = max((len(name) for (_, name, _), _ in rows), default=0)
    return [
        f"{count:>{digits}}  {code}  {name:<{names}}  {severity}" for (code, name, severity), count in rows
    ]
