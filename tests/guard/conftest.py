"""One thread for each test process, since several of them share a machine and the models here are tiny; and each test
begins with the same random state, whichever ran before it."""

from __future__ import annotations

import contextlib
import random

import pytest

with contextlib.suppress(ImportError):
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_randomness():
    random.seed(0)
    with contextlib.suppress(NameError):
        torch.manual_seed(0)
