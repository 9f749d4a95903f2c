"""KLG503."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from klguard.findings import Confidence
from klguard.rules.bending import fact, is_on, may_draw
from klguard.rules.programs import by_hand
from klguard.rules.rule import Example, Hazard, Rule
from klguard.rules.words import release, safe, show
from klguard.settings import Known, Layer, LayerKind, Settings, SiteKind, Value, members

_LENGTH = "generation_config=config, max_new_tokens=32"


class OverwrittenSettings(Rule):
    """A configuration object says one thing, and the library does another.

    ## What it does
    Reports two silent replacements in objects of transformers' `GenerationConfig`. From 4.50 to 4.57, a
    field that equals the library's default (`temperature=1.0`, `top_p=1.0`, `repetition_penalty=1.0`) is
    overwritten by the value of a checkpoint that was saved with 4.50 or later. From 5.0 on, None means
    unset: `top_k=None` becomes the checkpoint's value, else 50.

    ## Why it breaks the KL
    The neutral values that were written to make the sampler the policy are not in force. The same code is
    right in one release and truncates in the next, with at most one line in the log.

    ## Example
    ```python
    config = GenerationConfig(do_sample=True, temperature=1.0, top_k=None)
    tokens = model.generate(**inputs, generation_config=config, max_new_tokens=64)
    ```

    ## Use instead
    ```python
    tokens = model.generate(**inputs, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=64)
    ```
    Keyword arguments win in every release.

    ## References
    - transformers `GenerationMixin._prepare_generation_config`, in 4.57 and in 5.0
    - TRL `_override_model_generation_config`, which works around it since 0.26.2
    """

    code = "KLG503"
    name = "overwritten-settings"

    def check(self, settings: Settings) -> Iterator[Hazard]:
        if settings.kind is SiteKind.TRAINER:
            return
        for name, (written, inherited) in (fact(settings, "overwritten") or {}).items():
            if self._matters(settings, name, inherited):
                yield self._hazard(
                    settings,
                    name,
                    f"`{name}={show(written)}` in the configuration object is overwritten by the "
                    f"checkpoint's {show(inherited)}: {release(settings, 'transformers')} takes a field "
                    "that equals the library's default for one that was left alone, and what is sampled "
                    "is not the policy",
                )
        for name, instead in (fact(settings, "none_means_unset") or {}).items():
            if self._matters(settings, name, instead):
                yield self._hazard(
                    settings,
                    name,
                    f"`{name}=None` in the configuration object means unset, not off, in "
                    f"{release(settings, 'transformers')}: {show(instead)} is in force, and what is "
                    "sampled is not the policy",
                )

    def _matters(self, settings: Settings, name: str, in_force: Any) -> bool:
        if may_draw(settings, name) is False:
            return False
        return name == "do_sample" or is_on(settings, name, in_force)

    def _hazard(self, settings: Settings, name: str, message: str) -> Hazard:
        text = safe(settings, name)
        in_force = settings.values.get(name)
        return Hazard(
            message=message,
            help=f"pass `{name}={text}` to the call: keyword arguments win in every release"
            if text
            else f"pass `{name}` to the call: keyword arguments win in every release",
            setting=name,
            severity=self.severity,
            confidence=Confidence.HIGH,
            values=(*_written(settings, name), *(members(in_force) if in_force is not None else ())),
            safe=text,
        )

    VALID = (
        Example(by_hand(_LENGTH, before="config = GenerationConfig(do_sample=True, top_k=0)\n")),
        Example(by_hand("do_sample=True, top_k=None, max_new_tokens=32")),
    )
    INVALID = (
        Example(
            by_hand(_LENGTH, before="config = GenerationConfig(do_sample=True, top_k=None)\n"),
            "means unset, not off",
            {"transformers": "5.23.0"},
        ),
    )


def _written(settings: Settings, name: str) -> tuple[Value, ...]:
    """What the configuration object says, which is where the finding points."""

    def in_object(layer: Layer) -> bool:
        return layer.kind is LayerKind.OBJECT or settings.kind is SiteKind.GENERATION_CONFIG

    layers = (layer for layer in settings.layers if in_object(layer) and name in layer.values)
    return tuple(m for layer in layers for m in members(layer.values[name]) if isinstance(m, Known))
