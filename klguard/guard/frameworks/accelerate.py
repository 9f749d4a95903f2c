"""What accelerate knows of the run, where the loop uses it."""

from __future__ import annotations

import sys

import torch

_LOWER = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}
"""Precision by accelerate's word. Of fp8 the matrices alone are multiplied in 8 bits, what comes out has 16."""


def mixed_precision() -> torch.dtype | None:
    """The half precision that an Accelerator of this process makes models compute in; None where there is none.

    A prepared model does so inside its forward() and hands out fp32: from outside neither its weights, nor its
    logits, nor the state of autocast tell. accelerate is asked only where the loop has imported it.
    """
    state = getattr(sys.modules.get("accelerate.state"), "AcceleratorState", None)
    shared = getattr(state, "_shared_state", None)
    word = shared.get("_mixed_precision") if isinstance(shared, dict) else None
    return _LOWER.get(str(word))
