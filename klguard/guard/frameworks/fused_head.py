"""Logits of a policy whose trainer has fused its head with the log-softmax: no pass has any to show."""

from __future__ import annotations

from torch import Tensor, nn

from klguard.guard.frameworks.wrappers import generator
from klguard.guard.models import sharded, text_config

SCALES = (
    "final_logit_softcapping",
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
    "logits_scaling",
)
"""What configurations call that which happens to logits behind the head."""

HEAD_BUDGET, FEWEST_POSITIONS = 2**28, 8
"""Bytes for these logits, in fp32, and positions of a row that make it worth while."""


def first_logits(policy: nn.Module, hidden: Tensor | None, width: int) -> Tensor | None:
    """Logits (B, W, V) that predict the first W of the last `width` tokens, from the hidden states (B, L, H) that go
    into the head. W is what the budget holds, at most `width`.

    None where there are no hidden states, where the head does more than a product, or where it is spread over ranks.
    """
    model = generator(policy)
    if hidden is None or hidden.dim() != 3 or hidden.shape[1] <= width or sharded(policy):
        return None
    config, head = text_config(model.config), model.get_output_embeddings()
    if head is None or any(getattr(config, name, None) not in (None, 1.0) for name in SCALES):
        return None
    most = HEAD_BUDGET // (4 * len(hidden) * head.weight.shape[0])
    if most < min(FEWEST_POSITIONS, width):
        return None
    return head(hidden[:, :-1][:, -width:][:, :most].to(head.weight.dtype))
