"""KLG303."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from klguard.findings import Severity
from klguard.rules.bending import Origin, origin
from klguard.rules.programs import by_hand, ppo, vllm
from klguard.rules.rule import Example, Hazard, Rule, judge
from klguard.rules.words import shown
from klguard.settings import Known, Settings, SiteKind, members

BEYOND_THE_VOCABULARY = (
    100_000  # what StackLLaMA wrote for "no token"; no published vocabulary ends its text with it
)


def is_no_token(value: Any) -> bool:
    """Whether a plain `eos_token_id`, or every id of a list, can never be drawn."""
    if isinstance(value, list | tuple):
        return bool(value) and all(map(is_no_token, value))
    return value is None or (isinstance(value, int) and (value < 0 or value == BEYOND_THE_VOCABULARY))


def never_ends(settings: Settings) -> bool:
    """Whether somebody wrote an end-of-sequence token that cannot be drawn, on every path."""
    value = settings.values.get("eos_token_id")
    return value is not None and all(isinstance(m, Known) and is_no_token(m.value) for m in members(value))


class EosIgnored(Rule):
    """A rollout does not stop at the end of sequence.

    ## What it does
    Notes `ignore_eos=True`, and an `eos_token_id` that cannot be drawn: None, a negative id, or 100000.

    ## Why it breaks the KL
    By itself it does not: every token is still drawn from the policy, and a rule that stops at a length
    looks only at the past. It breaks the KL as soon as the loop treats the tokens after the first end of
    sequence as if they were not there: masking them, replacing them by padding, or cutting them off for the
    policy and not for the reference.

    ## Example
    ```python
    generation_kwargs = {"do_sample": True, "top_k": 0, "eos_token_id": -1, "max_new_tokens": 32}
    ```

    ## Use instead
    ```python
    generation_kwargs = {"do_sample": True, "top_k": 0, "max_new_tokens": 32}
    ```
    For responses of a random length, draw `max_new_tokens` before each call: stopping at a length is not a
    bias.

    ## References
    - transformers `EosTokenCriteria`; vLLM `SamplingParams.ignore_eos`
    - [TRL, issue 305](https://github.com/huggingface/trl/issues/305)
    """

    code = "KLG303"
    name = "eos-ignored"
    severity = Severity.NOTE

    def check(self, settings: Settings) -> Iterator[Hazard]:
        if settings.kind is SiteKind.TRAINER:
            return
        for name, offends in (("ignore_eos", lambda v: v is True), ("eos_token_id", is_no_token)):
            found = judge(settings.values.get(name), offends, self.severity)
            if found is None or not all(origin(v, settings) is Origin.WRITTEN for v in found.offenders):
                continue
            value = shown(found.offenders)
            yield Hazard(
                message=f"`{name}={value}`"
                + ("" if found.certain else " on some path")
                + " goes on past the end of sequence: no bias by itself, but the KL is wrong as soon as "
                "tokens after the first end of sequence are masked out or padded",
                help=(
                    f"leave `{name}` out, or score every token that was drawn, in policy and reference alike"
                ),
                setting=name,
                severity=found.severity,
                confidence=found.confidence,
                values=found.offenders,
            )

    VALID = (
        Example(ppo("do_sample=True, top_k=0, eos_token_id=tokenizer.eos_token_id, max_new_tokens=32")),
        Example(vllm("temperature=1.0, ignore_eos=False, max_tokens=256")),
    )
    INVALID = (
        Example(
            ppo("do_sample=True, top_k=0, eos_token_id=-1, max_new_tokens=32"),
            "`eos_token_id=-1` goes on past",
        ),
        Example(
            by_hand("do_sample=True, top_k=0, eos_token_id=100_000, max_new_tokens=32"), "no bias by itself"
        ),
        Example(vllm("temperature=1.0, ignore_eos=True, max_tokens=256"), "`ignore_eos=True`"),
    )
