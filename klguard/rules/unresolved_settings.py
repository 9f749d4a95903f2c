"""KLG003."""

from __future__ import annotations

from collections.abc import Iterator

from klguard.findings import Confidence, Severity
from klguard.rules.bending import may_draw
from klguard.rules.programs import by_hand, ppo
from klguard.rules.rule import Example, Hazard, Rule
from klguard.rules.words import all_of, engine_of
from klguard.settings import Settings, SiteKind, Unknown, members

MAX_LISTED = 4
MAX_DETAIL = 60
FIRST = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")


class UnresolvedSettings(Rule):
    """A rollout whose settings come from somewhere that cannot be followed.

    ## What it does
    Notes a rollout with settings whose value is not known, and says where the trail ended: a dict from code
    that is not visible, a parameter nobody calls, a value known only at run time. It is given once for each
    site.

    ## Why it breaks the KL
    It need not. But nobody has checked these settings, and any of them may make the sampler another
    distribution than the policy.

    ## Example
    ```python
    response = ppo_trainer.generate(query, **load_settings())
    ```

    ## Use instead
    ```python
    response = ppo_trainer.generate(query, do_sample=True, top_k=0, top_p=1.0, max_new_tokens=64)
    ```
    Or keep the settings in a dict, a dataclass or a file of the project: those are followed.

    ## References
    - `klguard sites` shows every site with the value and the origin of each setting
    """

    code = "KLG003"
    name = "unresolved-settings"
    severity = Severity.NOTE

    def check(self, settings: Settings) -> Iterator[Hazard]:
        if settings.kind is SiteKind.TRAINER or settings.class_name == "generation_config":
            # An assignment to `model.generation_config.x` says nothing of the other fields: the call that reads it does.
            return
        ends = _trails(settings)
        if ends:
            where = "; ".join(f"{_listed(names)} ({_short(end)})" for end, names in _shown(ends))
            where += f"; and {len(ends) - MAX_LISTED} more" if len(ends) > MAX_LISTED else ""
            yield Hazard(
                message=f"settings come from somewhere that cannot be followed: {where}",
                help=(
                    "write them where they can be seen, or look at what reaches the call with `klguard sites`"
                ),
                setting="",
                severity=self.severity,
                confidence=Confidence.LOW,
                values=tuple(ends),
            )

    VALID = (Example(ppo("do_sample=True, top_k=0, temperature=1.0, max_new_tokens=32")),)
    INVALID = (
        Example(
            by_hand("max_new_tokens=32, **load_settings()", before="from settings import load_settings\n"),
            "cannot be followed",
        ),
        Example(
            ppo("do_sample=True, top_k=0, temperature=float(input()), max_new_tokens=32"), "`temperature`"
        ),
    )


def _trails(settings: Settings) -> dict[Unknown, list[str]]:
    """Where the trails of settings that bend the distribution end, and which settings end there."""
    found: dict[Unknown, list[str]] = {}
    for name, value in settings.values.items():
        bends = engine_of(settings).safe(name, settings.versions)
        if not bends or may_draw(settings, name) is False:
            continue
        for member in members(value):
            if isinstance(member, Unknown):
                same = next(
                    (u for u in found if (u.reason, u.detail) == (member.reason, member.detail)), member
                )
                found.setdefault(same, []).append(name)
    return found


def _shown(ends: dict[Unknown, list[str]]) -> list[tuple[Unknown, list[str]]]:
    """The trails to name: those of the settings that matter most."""
    return sorted(ends.items(), key=lambda item: min(map(_rank, item[1])))[:MAX_LISTED]


def _rank(name: str) -> int:
    return FIRST.index(name) if name in FIRST else len(FIRST)


def _short(end: Unknown) -> str:
    """Where a trail ended, without the whole of a long expression."""
    text = str(end)
    detail = end.detail
    return text.replace(detail, f"{detail[: MAX_DETAIL - 3]}...") if len(detail) > MAX_DETAIL else text


def _listed(names: list[str]) -> str:
    """The names, shortened where an unseen splat may hold any of them; what matters most comes first."""
    names = sorted(names, key=_rank)
    more = len(names) - MAX_LISTED
    if more > 1:
        return ", ".join(f"`{name}`" for name in names[:MAX_LISTED]) + f" and {more} more"
    return all_of(f"`{name}`" for name in names)
