"""docs/incidents.md, from the registry: `python -m tests.incidents.table docs/incidents.md`."""

from __future__ import annotations

import sys
from pathlib import Path

from klguard.guard.catalogue import BY_CODE
from klguard.rules import RULES
from tests.incidents.registry import INCIDENTS, REPLAYS, UNNAMED

_HEAD = """\
# Public incidents, replayed

For each incident that is named there is a minimal program of our own with the same root cause in
`tests/incidents`; incidents with one cause may share it. A test asserts that klguard says at least what stands
here, sometimes among other codes, and nothing of the program without the fault. The programs were adjusted while
they were written, so this is no estimate of how many unseen incidents are named. Stages: *check* is `klguard
check` on the source; *documents*, on configuration files and command lines; *before training*, the guard's
preflight; *first rollout*, the guard in its first step; *later*, in a later one. Where a thread ended without a
diagnosis, the cause is the best hypothesis. Some are replayed in more than one form. {named} of {all} incidents
are named.

| incident | cause | what klguard says | stage |
|---|---|---|---|
"""


def name_of(code: str) -> str:
    """The name of a rule or of an invariant."""
    return RULES[code].name if code in RULES else BY_CODE[code].name


def _row(incident: str, cells: tuple[str, str]) -> str:
    known = INCIDENTS[incident]
    cause = known["root_cause"].replace("|", "\\|")
    return f"| [{incident}]({known['url']}) | {cause} | {cells[0]} | {cells[1]} |\n"


def page() -> str:
    """The whole page, in the order of the incidents' causes."""
    cells = {incident: (f"nothing: {why}", "") for incident, why in UNNAMED.items()}
    for replay in REPLAYS:
        codes, stage = cells.get(replay.incident, ("", ""))
        said = ", ".join(f"{code} {name_of(code)}" for code in sorted(replay.expected))
        cells[replay.incident] = (
            "; ".join(part for part in (codes, said if said != codes else "") if part),
            ", ".join(part for part in (stage, replay.stage) if part),
        )
    order = sorted(INCIDENTS, key=lambda one: (INCIDENTS[one]["cause_class"], one))
    head = _HEAD.format(named=len(INCIDENTS) - len(UNNAMED), all=len(INCIDENTS))
    return head + "".join(_row(incident, cells[incident]) for incident in order)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
