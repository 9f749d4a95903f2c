"""KLG204."""

from __future__ import annotations

from collections.abc import Iterator

from klguard.findings import Severity
from klguard.rules.bending import fact
from klguard.rules.programs import by_hand, vllm
from klguard.rules.rule import Example, Hazard, Rule, judge
from klguard.rules.words import engine_of, subject
from klguard.settings import Settings, SiteKind

_PURE = "do_sample=True, top_k=0, max_new_tokens=32"


class FixedSeed(Rule):
    """Every rollout starts from the same random state.

    ## What it does
    Reports a `seed` in vLLM's `SamplingParams` that is the same number for each request, and a loop written by hand
    that sets the seed of torch to the same number before each call of `generate`. A note where the parameters are
    handed to a trainer (`vllm_sampling_params`), which decides how the requests of a group are made.

    ## Why it breaks the KL
    Each token is still drawn from the policy, but the draws are no longer independent: the same prompt with the
    same seed gives the same tokens, so a group of requests for one prompt holds copies of one response, whose
    advantages are all 0, and each epoch sees the noise of the last one again. Averages over such rollouts, that of
    log p - log ref among them, do not get better with their number.

    ## Example
    ```python
    for prompt in prompts:
        torch.manual_seed(42)
        tokens = policy.generate(**prompt, do_sample=True, top_k=0, max_new_tokens=64)
    ```

    ## Use instead
    ```python
    torch.manual_seed(42)
    for prompt in prompts:
        tokens = policy.generate(**prompt, do_sample=True, top_k=0, max_new_tokens=64)
    ```
    With vLLM, give the seed to the engine, `LLM(..., seed=42)`, and none to a request.

    ## References
    - vLLM `SamplingParams.seed`
    - [verl, pull request 2646: the engine's seed was given to each
      request](https://github.com/verl-project/verl/pull/2646)
    """

    code = "KLG204"
    name = "fixed-seed"
    severity = Severity.WARNING

    def check(self, settings: Settings) -> Iterator[Hazard]:
        if settings.kind is SiteKind.TRAINER or engine_of(settings).sampling(settings.values) is False:
            return
        yield from self._of_a_request(settings)
        yield from self._of_a_loop(settings)

    def _of_a_request(self, settings: Settings) -> Iterator[Hazard]:
        if settings.engine != "vllm":
            return
        severity = Severity.NOTE if fact(settings, "handed_on") is True else self.severity
        found = judge(settings.values.get("seed"), _is_seed, severity)
        if found is not None:
            yield Hazard(
                message=(
                    f"{subject(settings, 'seed', found)} starts each request from the same random state: a prompt "
                    "that is sampled again, in its group or in a later epoch, gives the same tokens"
                ),
                help="leave `seed` out, and give it to the engine: `LLM(..., seed=...)`",
                setting="seed",
                severity=found.severity,
                confidence=found.confidence,
                values=found.offenders,
                safe="None",
            )

    def _of_a_loop(self, settings: Settings) -> Iterator[Hazard]:
        found = judge(settings.facts.get("reseeded"), lambda v: v is True, self.severity)
        if found is not None:
            yield Hazard(
                message=(
                    "the loop sets the same seed before each rollout: each starts from the same random state, and a "
                    "prompt that is sampled again gives the same tokens"
                ),
                help="set the seed once, before the loop",
                setting="",
                severity=found.severity,
                confidence=found.confidence,
                values=found.offenders,
                in_loop=True,
            )

    VALID = (
        Example(vllm("temperature=1.0, max_tokens=256")),
        Example(vllm("temperature=1.0, max_tokens=256, seed=None")),
        Example(by_hand(_PURE, before="torch.manual_seed(42)")),
    )
    INVALID = (
        Example(vllm("temperature=1.0, max_tokens=256, seed=42"), "`seed=42` starts each request"),
        Example(
            by_hand(_PURE).replace("    tokens =", "    torch.manual_seed(42)\n    tokens ="),
            "the same seed before each rollout",
        ),
    )


def _is_seed(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value != -1  # which vLLM reads as none
