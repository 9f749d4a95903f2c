"""Random state that the loop's own functions may use when the guard tries them."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch


@contextmanager
def kept_randomness(devices: Sequence[torch.device] = ()) -> Iterator[None]:
    """Python's, numpy's and torch's random state are afterwards what they were; of accelerators, that of
    `devices`."""
    numpy, python = sys.modules.get("numpy"), random.getstate()
    numbers = numpy.random.get_state() if numpy is not None else None
    try:
        with torch.random.fork_rng(devices=[device for device in devices if device.type == "cuda"]):
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(numbers)
