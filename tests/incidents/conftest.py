"""One thread for each test process: several of them share a machine, and the models here are tiny."""

from __future__ import annotations

import contextlib

with contextlib.suppress(ImportError):
    import torch

    torch.set_num_threads(1)
