"""KLG201."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from klguard.engines.engine import verdict as for_all
from klguard.findings import Confidence, Severity
from klguard.rules.bending import fact, rejected, without_kl
from klguard.rules.programs import by_hand, ppo, vllm
from klguard.rules.rule import Example, Hazard, Rule, Verdict, judge
from klguard.rules.words import engine_of, release, shown
from klguard.settings import Default, LayerKind, Settings, SiteKind, members

ALMOST_ZERO = 1e-5  # below it vLLM decodes greedily; SGLang from 1e-6


def is_zero(value: Any) -> bool:
    """Whether a temperature stands for greedy search."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < ALMOST_ZERO


class Greedy(Rule):
    """A rollout is not drawn at random: it takes the likeliest token at every step.

    ## What it does
    Reports `do_sample` that is false or left out in transformers, and a `temperature` of 0 in engines where
    that means greedy search.

    ## Why it breaks the KL
    The estimate E[log p - log ref] needs tokens drawn from p. At the likeliest token it only says which of
    the two models is more confident there: a policy that is less sure of itself than the reference gets a
    negative "KL" and is paid for it. Nor is there anything to explore: the same prompt gives the same
    response.

    ## Example
    ```python
    response = ppo_trainer.generate(query, max_new_tokens=64)
    ```

    ## Use instead
    ```python
    response = ppo_trainer.generate(query, do_sample=True, top_k=0, top_p=1.0, max_new_tokens=64)
    ```

    ## References
    - transformers `GenerationConfig.get_generation_mode`
    - vLLM `SamplingParams.sampling_type`, SGLang `SamplingParams.__post_init__`
    - [TRL, Training FAQ: how to generate text for
      training](https://huggingface.co/docs/trl/v0.11.4/how_to_train)
    """

    code = "KLG201"
    name = "greedy"
    harm = "the mean of log p - log ref over these tokens is not the KL, and can be negative"

    def check(self, settings: Settings) -> Iterator[Hazard]:
        if settings.kind is SiteKind.TRAINER:
            return
        yield from self._do_sample(settings)
        yield from self._temperature(settings)

    def _do_sample(self, settings: Settings) -> Iterator[Hazard]:
        value = settings.values.get("do_sample")
        if value is not None and any(isinstance(m, Default) and not m.library for m in members(value)):
            return  # a sampler of the project's own: what it does when left alone is its own business
        found = judge(value, lambda v: not v, self.severity)
        nobody = _nobody_said(found) if found else None
        if found is None or (nobody and not _is_used_here(settings)):
            return
        if "do_sample" in (fact(settings, "overwritten") or {}):
            return  # KLG503 says what overwrote it
        what = (
            "searches instead of drawing" if _beams(settings) else "takes the likeliest token at every step"
        )
        if nobody:
            left = "is left out" if found.certain else "may be left out"
            start = f"`do_sample` {left}, and {release(settings, nobody)} then {what}"
            if _a_checkpoint_may_say(settings):
                start += ", unless the checkpoint, which is not known here, says to sample and how"
                found = replace(found, severity=Severity.WARNING, confidence=Confidence.MEDIUM)
                yield self._hazard(settings, "do_sample", found, start, because="either way")
                return
        elif found.certain:
            start = f"`do_sample={shown(found.offenders)}` {what}"
        else:
            start = f"`do_sample` may be {shown(found.offenders)}, which {what}"
        yield self._hazard(settings, "do_sample", found, start)

    def _temperature(self, settings: Settings) -> Iterator[Hazard]:
        if for_all(settings.values.get("do_sample"), lambda v: not v):
            return
        found = judge(
            settings.values.get("temperature"),
            lambda v: is_zero(v) and not rejected(settings, "temperature", v),
            self.severity,
        )
        if found is not None:
            verb = (
                f"`temperature={shown(found.offenders)}`"
                if found.certain
                else "`temperature` may be 0, which"
            )
            yield self._hazard(
                settings, "temperature", found, f"{verb} takes the likeliest token at every step"
            )

    def _hazard(
        self,
        settings: Settings,
        setting: str,
        found: Verdict,
        start: str,
        because: str = "nothing is drawn at random, so",
    ) -> Hazard:
        harm = self.harm
        if without_kl(settings):
            harm = "the gradient of the log-probs is not a policy gradient"
        if setting == "do_sample":
            k = engine_of(settings).safe("top_k", settings.versions)
            instead = "pass `do_sample=True`" + (
                f", with `top_k={k}` so that nothing is cut off" if k else ""
            )
        else:
            instead = "sample at `temperature=1.0`"
        safe = engine_of(settings).safe(setting, settings.versions) or None
        return Hazard(
            message=f"{start}: {because} {harm}",
            help=instead,
            setting=setting,
            severity=found.severity,
            confidence=found.confidence,
            values=found.offenders,
            safe=safe,
        )

    VALID = (
        Example(ppo("do_sample=True, top_k=0, max_new_tokens=32")),
        Example(vllm("temperature=1.0, max_tokens=256")),
    )
    INVALID = (
        Example(ppo("max_new_tokens=32"), "`do_sample` is left out"),
        Example(by_hand("do_sample=False, max_new_tokens=32"), "`do_sample=False` takes the likeliest token"),
        Example(vllm("temperature=0, max_tokens=256"), "`temperature=0`"),
    )


def _nobody_said(found: Verdict) -> str:
    """The library whose default it is, "" where somebody wrote the value."""
    return next((v.library for v in found.offenders if isinstance(v, Default)), "")


def _a_checkpoint_may_say(settings: Settings) -> bool:
    """Whether a generation config that nobody has seen fills in what a call leaves out."""
    kinds = {layer.kind for layer in settings.layers}
    return settings.kind is SiteKind.GENERATE and LayerKind.CHECKPOINT not in kinds


def _is_used_here(settings: Settings) -> bool:
    """Whether defaults are in force here: a configuration object may be completed where it is used."""
    return settings.kind is not SiteKind.GENERATION_CONFIG


def _beams(settings: Settings) -> bool:
    """Whether some value asks for beams."""
    value = settings.values.get("num_beams")
    return value is not None and any(
        isinstance(getattr(m, "value", None), int) and m.value > 1 for m in members(value)
    )
