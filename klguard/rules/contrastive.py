"""KLG203."""

from __future__ import annotations

from typing import Any

from klguard.rules.bending import BendingRule
from klguard.rules.programs import by_hand, ppo
from klguard.rules.rule import Example


class Contrastive(BendingRule):
    """A rollout is decoded against something else: contrastive search, or contrasted layers.

    ## What it does
    Reports `penalty_alpha` above 0 where it takes effect (with `top_k` above 1 and without `do_sample`),
    and `dola_layers`.

    ## Why it breaks the KL
    Contrastive search takes, among the likeliest tokens, the one least like the context; DoLa draws from
    the difference of two layers. Neither is the distribution of the policy, whose log-probs the trainer
    takes.

    ## Example
    ```python
    response = model.generate(**inputs, penalty_alpha=0.6, top_k=4, max_new_tokens=64)
    ```

    ## Use instead
    ```python
    response = model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=64)
    ```

    ## References
    - [Su et al., A Contrastive Framework for Neural Text Generation](https://arxiv.org/abs/2202.06417)
    - [Chuang et al., DoLa: Decoding by Contrasting Layers](https://arxiv.org/abs/2309.03883)
    - transformers `GenerationConfig.get_generation_mode`
    """

    code = "KLG203"
    name = "contrastive"
    names = ("penalty_alpha", "dola_layers")
    harm = "what is decoded is not drawn from the policy, so the KL estimate has no KL to estimate"

    def does(self, name: str, values: tuple[Any, ...]) -> str:
        if name == "dola_layers":
            return "decodes from the difference between layers"
        return "turns on contrastive search, which trades probability against similarity to the context"

    VALID = (
        Example(ppo("do_sample=True, top_k=0, penalty_alpha=None, max_new_tokens=32")),
        Example(ppo("do_sample=True, top_k=0, penalty_alpha=0.6, max_new_tokens=32")),
    )
    INVALID = (
        Example(ppo("penalty_alpha=0.6, top_k=4, max_new_tokens=32"), "turns on contrastive search"),
        Example(
            by_hand('do_sample=True, top_k=0, dola_layers="high", max_new_tokens=32'),
            "difference between layers",
        ),
    )
