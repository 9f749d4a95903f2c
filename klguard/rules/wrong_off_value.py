"""KLG505."""

from __future__ import annotations

from collections.abc import Iterator

from klguard.engines import ENGINES
from klguard.rules.bending import BendingRule, may_draw, rejected
from klguard.rules.programs import by_hand, ppo, vllm
from klguard.rules.rule import Example, Hazard, Rule, judge
from klguard.rules.words import engine_of, neutral, release, safe, shown
from klguard.settings import HopKind, Known, Settings, SiteKind, Unknown, Value, members


class WrongOffValue(Rule):
    """A value that is refused, or read otherwise than it is meant.

    ## What it does
    Reports values that mean "off" in one engine and something else in this one: `top_k=-1` in transformers,
    `top_k=0` in SGLang and in vLLM before 0.9, `top_h=1.0`, `top_p=0`, and others that the engine refuses.

    ## Why it breaks the KL
    The best case is an exception. The worst is a value that is accepted and does the opposite: `top_p=0`
    keeps one token, which is greedy search, and `top_h=1.0` still cuts to 100 tokens.

    ## Example
    ```python
    tokens = model.generate(**inputs, do_sample=True, top_k=-1)
    ```

    ## Use instead
    ```python
    tokens = model.generate(**inputs, do_sample=True, top_k=0)
    ```

    ## References
    - transformers `TopKLogitsWarper`, `TopHLogitsWarper`, `TopPLogitsWarper`
    - vLLM `SamplingParams._verify_args`, SGLang `SamplingParams.verify`
    """

    code = "KLG505"
    name = "wrong-off-value"

    def check(self, settings: Settings) -> Iterator[Hazard]:
        if settings.kind is SiteKind.TRAINER:
            return
        for name, value in settings.values.items():
            if may_draw(settings, name) is False:
                continue
            if _meant_for_vllm(settings, name, value):
                continue
            found = judge(value, lambda v, n=name: rejected(settings, n, v), self.severity)
            offenders = tuple(v for v in found.offenders if isinstance(v, Known)) if found else ()
            if found is None or not offenders:
                continue
            why = engine_of(settings).error(name, offenders[0].value, settings.versions) or ""
            if "raises" in why and any(isinstance(m, Unknown) for m in members(value)):
                continue  # it would have stopped the program: the value nobody knows is the one in use
            start = (
                f"`{name}={shown(offenders)}` is"
                if found.certain
                else f"`{name}` may be {shown(offenders)}, which is"
            )
            silent = "" if "raises" in why else f"; {BendingRule.harm}"
            yield Hazard(
                message=f"{start} wrong in {release(settings)}: {why}{silent}",
                help=neutral(settings, name),
                setting=name,
                severity=found.severity,
                confidence=found.confidence,
                values=offenders,
                safe=safe(settings, name),
            )

    VALID = (
        Example(by_hand("do_sample=True, top_k=0, top_p=1.0, max_new_tokens=32")),
        Example(vllm("temperature=1.0, top_k=-1, max_tokens=256")),
    )
    INVALID = (
        Example(ppo("do_sample=True, top_k=-1, max_new_tokens=32"), "0 turns top-k off, not -1"),
        Example(by_hand("do_sample=True, top_k=0, top_p=0.0, max_new_tokens=32"), "keeps one token"),
    )


def _meant_for_vllm(settings: Settings, name: str, value: Value) -> bool:
    """Whether a trainer samples with vLLM when a command line says so, and the value is one of vLLM's."""
    switch = settings.values.get("use_vllm")
    if settings.engine != "trl" or switch is None:
        return False
    hops = (hop for member in members(switch) for hop in getattr(member, "hops", ()))
    at_run_time = any(hop.kind in (HopKind.ARGPARSE, HopKind.FLAG) for hop in hops)
    plain = [m.value for m in members(value) if isinstance(m, Known)]
    vllm = ENGINES["vllm"]
    return at_run_time and all(vllm.error(name, v, settings.versions) is None for v in plain)
