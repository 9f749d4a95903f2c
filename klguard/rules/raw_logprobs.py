"""KLG112."""

from __future__ import annotations

from collections.abc import Iterator

from klguard.engines.versions import version_of, within
from klguard.findings import Severity
from klguard.rules.bending import fact, is_on
from klguard.rules.greedy import is_zero
from klguard.rules.programs import vllm
from klguard.rules.rule import Example, Hazard, Rule, judge
from klguard.rules.words import shown
from klguard.settings import Settings, SiteKind

RAW_SINCE = ">=0.8"
"""The engine V1, the default since then, returns log-probs from before the temperature."""

_SAMPLES = "temperature=0.7, max_tokens=256, logprobs=0"


def _program(mode: str = "", temperature: str = "0.7") -> str:
    """A loop that divides by the temperature itself, and takes the old log-probs from vLLM."""
    source = vllm(_SAMPLES.replace("0.7", temperature)).replace('B")', f'B"{mode})')
    old = "    old_logprobs = [[next(iter(x.values())).logprob for x in o.outputs[0].logprobs] for o in outputs]\n"
    logits = f"    logprobs = (policy(responses).logits / {temperature}).log_softmax(-1)"
    return source.replace("    logprobs = token_logprobs(policy, responses)", old + logits)


class RawLogprobs(Rule):
    """The engine's log-probs are those of another temperature than the one it draws at.

    ## What it does
    Reports a vLLM rollout at a temperature other than 1 whose log-probs are taken from the engine, where the
    trainer divides its logits by that temperature and the engine is made without `logprobs_mode`, or with the raw one.

    ## Why it breaks the KL
    vLLM returns `raw_logprobs` by default: those of softmax(logits), from before the temperature. Tokens are drawn
    from, and scored by the trainer with, softmax(logits / T). Held against the trainer's, the engine's log-probs give
    an importance ratio that is not 1 for an unchanged policy, and a KL between the two where there is none. Dividing
    log-probs by the temperature afterwards does not help: the softmax has been taken.

    ## Example
    ```python
    llm = LLM(model)
    params = SamplingParams(temperature=0.7, logprobs=0)
    ```

    ## Use instead
    ```python
    llm = LLM(model, logprobs_mode="processed_logprobs")
    params = SamplingParams(temperature=0.7, logprobs=0)
    ```
    Or score the tokens once more with the trainer's policy, before the update.

    ## References
    - vLLM, engine arguments, `logprobs_mode`
    - [TRL, issue 4159: vLLM's log-probs at a temperature other than
      1](https://github.com/huggingface/trl/issues/4159)
    - [prime-rl, pull request 697](https://github.com/PrimeIntellect-ai/prime-rl/pull/697)
    """

    code = "KLG112"
    name = "raw-logprobs"
    severity = Severity.WARNING

    def check(self, settings: Settings) -> Iterator[Hazard]:
        if settings.engine != "vllm" or settings.kind is not SiteKind.SAMPLING_PARAMS:
            return
        if fact(settings, "engine_logprobs") != "raw" or "temperature" not in settings.mitigations:
            return
        if not within(version_of("vllm", settings.versions), RAW_SINCE):
            return
        found = judge(
            settings.values.get("temperature"),
            lambda v: isinstance(v, int | float) and not is_zero(v) and is_on(settings, "temperature", v),
            self.severity,
        )
        if found is not None:
            yield Hazard(
                message=(
                    f"tokens are drawn and scored at temperature {shown(found.offenders)}, and vLLM returns the "
                    "log-probs of temperature 1: held against the trainer's, they give a ratio that is not 1"
                ),
                help='make the engine with `logprobs_mode="processed_logprobs"` (from vLLM 0.10)',
                setting="temperature",
                severity=found.severity,
                confidence=found.confidence,
                values=found.offenders,
            )

    VALID = (
        Example(_program(', logprobs_mode="processed_logprobs"')),
        Example(_program(temperature="1.0")),
    )
    INVALID = (Example(_program(), "vLLM returns the log-probs of temperature 1"),)
