"""KLG310."""

from __future__ import annotations

from collections.abc import Iterator

from klguard.findings import Severity
from klguard.rules.programs import by_hand
from klguard.rules.rule import Example, Hazard, Rule, judge
from klguard.settings import Settings

_PURE = "do_sample=True, top_k=0, max_new_tokens=32"
_OWN_PLACE = "logprobs = policy(tokens).logits.log_softmax(-1).gather(-1, tokens[..., None])"
_AFTER_IT = "logprobs = policy(tokens).logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])"


class UnshiftedLogProbs(Rule):
    """The log-probs of the rollout are read one position too late.

    ## What it does
    Reports a function that gathers the log-probs of some ids from the logits of the same ids, position by position.

    ## Why it breaks the KL
    The logits at a position are about the token *after* it. At its own position a token is input: what is gathered
    there says how likely the model thinks it that the token comes twice. Neither the ratio nor log p - log ref is then
    about the distribution that the tokens were drawn from, and the gradient teaches the policy to repeat itself.

    ## Example
    ```python
    logprobs = policy(tokens).logits.log_softmax(-1).gather(-1, tokens[..., None])
    ```

    ## Use instead
    ```python
    logprobs = policy(tokens).logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])
    ```
    The mask of the responses moves with it: `mask[:, 1:]`.

    ## References
    - [TRL, `selective_log_softmax` and the slices of its callers](https://github.com/huggingface/trl)
    - [Huang et al., The N+ Implementation Details of RLHF with PPO](https://arxiv.org/abs/2403.17031)
    """

    code = "KLG310"
    name = "unshifted-log-probs"
    severity = Severity.WARNING

    def check(self, settings: Settings) -> Iterator[Hazard]:
        found = judge(settings.facts.get("unshifted"), lambda v: v is True, self.severity)
        if found is not None:
            yield Hazard(
                message=(
                    "the log-prob of each token is read from the logits at the token's own position, which are "
                    "about the token after it: ratio and KL are not those of the tokens that were drawn"
                ),
                help="take `logits[:, :-1]` and gather `tokens[:, 1:]`; the mask of the responses moves too",
                setting="",
                severity=found.severity,
                confidence=found.confidence,
                values=found.offenders,
                in_loop=True,
            )

    VALID = (
        Example(by_hand(_PURE)),
        Example(by_hand(_PURE, mask=_AFTER_IT)),
    )
    INVALID = (Example(by_hand(_PURE, mask=_OWN_PLACE), "at the token's own position"),)
