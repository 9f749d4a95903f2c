"""KLG106."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from klguard.rules.bending import BendingRule, Bent, without_kl
from klguard.rules.greedy import is_zero
from klguard.rules.programs import by_hand, grpo, ppo, vllm
from klguard.rules.rule import Example
from klguard.rules.words import one_of, safe, show
from klguard.settings import Settings

_SCALED = by_hand("do_sample=True, top_k=0, temperature=0.7, max_new_tokens=32").replace(
    ".logits[:, :-1]", ".logits[:, :-1].div(0.7)"
)


class Temperature(BendingRule):
    """A rollout is drawn at one temperature and scored at another.

    ## What it does
    Reports a `temperature` other than 1 where nothing that can be seen divides the logits by the same value
    before the log-probs are taken. TRL's GRPO (from 0.16), RLOO and PPO (from 0.12), verl and other
    trainers divide, and are not reported. Temperature 0, which is greedy search, is KLG201.

    ## Why it breaks the KL
    The tokens come from softmax(logits / T), the log-probs from softmax(logits). Below 1 the estimate is
    too low wherever the policy is flatter than the reference, above 1 wherever it is sharper; either can be
    negative. The importance ratio of PPO is wrong in the same way, already in the first minibatch.

    ## Example
    ```python
    generation_kwargs = {"do_sample": True, "top_k": 0, "temperature": 0.7}
    response = ppo_trainer.generate(query, **generation_kwargs)
    ```

    ## Use instead
    ```python
    generation_kwargs = {"do_sample": True, "top_k": 0, "temperature": 1.0}
    response = ppo_trainer.generate(query, **generation_kwargs)
    ```
    Or divide the logits of policy and reference by the same temperature, in rollout and update alike:
    ```python
    logprobs = (policy(tokens).logits / 0.7).log_softmax(-1)
    ref_logprobs = (reference(tokens).logits / 0.7).log_softmax(-1)
    ```

    ## References
    - [TRL, pull request 3029: GRPO scored rollouts at another temperature than it drew
      them](https://github.com/huggingface/trl/pull/3029)
    - [Huang et al., The N+ Implementation Details of RLHF with PPO](https://arxiv.org/abs/2403.17031)
    """

    code = "KLG106"
    name = "temperature"
    names = ("temperature",)
    harm = "averaged over such tokens, log p - log ref is not the KL, and can be negative"

    def offends(self, name: str, value: Any, settings: Settings) -> bool:
        return not is_zero(value) and super().offends(name, value, settings)

    def bent(self, settings: Settings) -> Iterator[Bent]:
        return iter(()) if "temperature" in settings.mitigations else super().bent(settings)

    def does(self, name: str, values: tuple[Any, ...]) -> str:
        divisor = one_of(map(show, values))
        return f"draws from logits divided by {divisor}, but log-probs are taken of logits that are not"

    def instead(self, name: str, settings: Settings) -> str:
        of_whom = "the policy" if without_kl(settings) else "both policy and reference"
        written = f"write `temperature={safe(settings, name) or '1.0'}`"
        return f"{written}, or divide the logits of {of_whom} by the same value"

    VALID = (
        Example(ppo("do_sample=True, top_k=0, temperature=1.0, max_new_tokens=32")),
        Example(_SCALED),
        Example(grpo('output_dir="out", beta=0.04, temperature=0.9')),
    )
    INVALID = (
        Example(ppo("do_sample=True, top_k=0, temperature=0.7, max_new_tokens=32"), "logits divided by 0.7"),
        Example(vllm("temperature=0.6, max_tokens=256"), "`temperature=0.6`"),
    )
