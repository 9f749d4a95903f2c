"""KLG105."""

from __future__ import annotations

from typing import Any

from klguard.rules.bending import BendingRule
from klguard.rules.programs import by_hand, ppo
from klguard.rules.rule import Example

_DOES = {
    "typical_p": "keeps only tokens of typical information, at times without the likeliest one",
    "epsilon_cutoff": "drops every token below a fixed probability",
    "eta_cutoff": "drops every token below a probability that depends on the entropy",
    "top_h": "keeps only tokens up to a share of the entropy, and never more than 100",
}


class EntropyCutoff(BendingRule):
    """A rollout cuts tokens off by their probability or by the entropy of the distribution.

    ## What it does
    Reports `typical_p` below 1, `epsilon_cutoff` and `eta_cutoff` strictly between 0 and 1, and any `top_h`
    but None.

    ## Why it breaks the KL
    Each of them restricts the draw to a subset of the vocabulary that the trainer knows nothing about, so
    the estimate is off by log(p(S) / ref(S)). Typical sampling may drop even the likeliest token, and with
    it most of the probability.

    ## Example
    ```python
    response = model.generate(**inputs, do_sample=True, top_k=0, typical_p=0.95)
    ```

    ## Use instead
    ```python
    response = model.generate(**inputs, do_sample=True, top_k=0, typical_p=1.0)
    ```

    ## References
    - [Meister et al., Locally Typical Sampling](https://arxiv.org/abs/2202.00666)
    - [Hewitt et al., Truncation Sampling as Language Model Desmoothing](https://arxiv.org/abs/2210.15191)
    - transformers `TypicalLogitsWarper`, `EpsilonLogitsWarper`, `EtaLogitsWarper`, `TopHLogitsWarper`
    """

    code = "KLG105"
    name = "entropy-cutoff"
    names = ("typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")

    def does(self, name: str, values: tuple[Any, ...]) -> str:
        return _DOES[name]

    VALID = (Example(ppo("do_sample=True, top_k=0, typical_p=1.0, epsilon_cutoff=0.0, max_new_tokens=32")),)
    INVALID = (
        Example(ppo("do_sample=True, top_k=0, typical_p=0.95, max_new_tokens=32"), "typical information"),
        Example(
            by_hand("do_sample=True, top_k=0, epsilon_cutoff=3e-4, max_new_tokens=32"),
            "below a fixed probability",
        ),
        Example(
            by_hand("do_sample=True, top_k=0, eta_cutoff=2e-3, max_new_tokens=32"), "depends on the entropy"
        ),
    )
