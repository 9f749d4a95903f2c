"""KLG504."""

from __future__ import annotations

from collections.abc import Iterator

from klguard.findings import Confidence, Severity
from klguard.rules.programs import by_hand
from klguard.rules.rule import Example, Hazard, Rule
from klguard.rules.words import engine_of, release
from klguard.settings import Absent, Layer, LayerKind, Settings, SiteKind, members

PASSED_THROUGH = frozenset(
    "input_ids attention_mask pixel_values inputs prompt prompts query_tensor return_prompt "
    "length_sampler batch_size streamer tokenizer logits_processor stopping_criteria "
    "generate_ref_response remove_padding generation_config "
    "sampling_params labels token_type_ids position_ids image_sizes image_grid_thw input_features".split()
)
"""Arguments of generate() and of its wrappers that are no settings."""


class UnknownSetting(Rule):
    """A setting whose name nobody listens to.

    ## What it does
    Reports a field of a `GenerationConfig` that no release has and whose name is close to a real one; a
    field without a near relative is noted. Misspelled arguments of `generate()` are noted too: the library
    itself rejects them.

    ## Why it breaks the KL
    `GenerationConfig` stores what it does not know and goes on. With `GenerationConfig(topk=0)` the filter
    that was to be turned off is still at 50, and the tokens are not draws from the policy.

    ## Example
    ```python
    config = GenerationConfig(do_sample=True, topk=0)
    ```

    ## Use instead
    ```python
    config = GenerationConfig(do_sample=True, top_k=0)
    ```

    ## References
    - transformers `GenerationConfig.__init__`: "Additional attributes without default values"
    """

    code = "KLG504"
    name = "unknown-setting"
    severity = Severity.WARNING

    def check(self, settings: Settings) -> Iterator[Hazard]:
        if settings.engine not in ("transformers", "trl", "trlx") or settings.kind not in (
            SiteKind.GENERATE,
            SiteKind.GENERATION_CONFIG,
        ):
            return
        for layer in settings.layers:
            stored = layer.kind is LayerKind.OBJECT or settings.kind is SiteKind.GENERATION_CONFIG
            if layer.kind is not LayerKind.CHECKPOINT:
                for name in layer.values:
                    yield from self._hazard(settings, layer, name, stored)

    def _hazard(self, settings: Settings, layer: Layer, name: str, stored: bool) -> Iterator[Hazard]:
        engine = engine_of(settings)
        written = tuple(m for m in members(layer.values[name]) if not isinstance(m, Absent))
        if name in PASSED_THROUGH or name.startswith("_") or name in engine.settings or not written:
            return
        near = engine.nearest(name)
        if near is None and not stored:
            return
        library = release(settings, "transformers")
        ignored = f"{library} stores it and does nothing with it" if stored else f"{library} rejects it"
        left = (
            f", so `{near}` keeps its default and what is sampled may not be the policy"
            if near and stored
            else ""
        )
        yield Hazard(
            message=f"`{name}` is not a setting: {ignored}{left}",
            help=f"did you mean `{near}`?" if near else "remove it, or keep it outside the generation config",
            setting=name,
            severity=self.severity if near and stored else Severity.NOTE,
            confidence=Confidence.HIGH if near else Confidence.LOW,
            values=written,
        )

    VALID = (
        Example(
            by_hand(
                "generation_config=config, max_new_tokens=32",
                before="config = GenerationConfig(do_sample=True, top_k=0)\n",
            )
        ),
    )
    INVALID = (
        Example(
            by_hand(
                "generation_config=config, max_new_tokens=32",
                before="config = GenerationConfig(do_sample=True, topk=0)\n",
            ),
            "`topk` is not a setting",
        ),
    )
