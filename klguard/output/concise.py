"""One line per finding, in the form that editors and other tools parse: path:line:column: what."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from klguard.output.groups import Group
from klguard.output.terminal import Paint, clean
from klguard.output.text import STYLES


def render(groups: Iterable[Group], paint: Paint) -> Iterator[str]:
    for group in groups:
        finding = group.first
        style = STYLES[finding.severity]
        reach = f" (reaches {len(group.sites)} sites)" if len(group.sites) > 1 else ""
        yield (
            f"{paint(clean(str(finding.place)), 'bold')}: {paint(finding.code, *style)} [{finding.name}] "
            f"{finding.severity.value}: {clean(finding.message)}{reach}"
        )
