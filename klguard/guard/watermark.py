"""The watermark of transformers' generate(), under the key that is used where nobody sets one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from klguard.guard.courier import at_hand
from klguard.guard.hypothesis import Hypothesis, in_range
from klguard.guard.rows import Rows, constants

DEFAULT_KEY = 15485863
"""hashing_key of `transformers.WatermarkingConfig`."""

EVERY = 16
"""One in so many positions of a response is asked about: a green list is a permutation of the whole vocabulary."""


class Watermark(Hypothesis):
    """The logits of a green list, a share of the vocabulary, are raised by `bias` nats; the list is made anew from
    the id before the token and a key (`lefthash` with a context of 1, as transformers has it by default; Kirchenbauer
    et al., A Watermark for Large Language Models, 2023).

    Under another key the lists are others, and nothing but the engine's own log-probs tells them. On a GPU nothing is
    said: its own generator makes other lists, and has to be given the id by the host.
    """

    needs = "context"

    def __init__(
        self,
        shares: Sequence[float] = (0.25, 0.5),
        biases: Sequence[float] = (1.0, 2.0, 4.0),
        key: int = DEFAULT_KEY,
        prior: float = 0.01,
    ) -> None:
        shares = in_range("greenlist_ratio", shares, 0.0, 1.0)
        biases = in_range("bias", biases, 0.0)
        self.shares = tuple(share for share in shares for _ in biases)
        self.biases = tuple(bias for _ in shares for bias in biases)
        self.key = int(key)
        super().__init__("watermark", ("watermark",) * len(self.biases), prior)

    def log_ratio(self, rows: Rows) -> Tensor:
        total = rows.spectrum.total
        ratio = total.new_full((len(total), len(self.biases)), math.nan)
        if rows.context is None or not at_hand(total.device):
            return ratio
        places = torch.arange(1, rows.context.shape[1] + 1)
        length = (
            torch.where(rows.context >= 0, places, 0).amax(1)
            if len(places)
            else torch.zeros_like(rows.tokens)
        )
        asked = ((rows.position % EVERY == 0) & (length > 0)).nonzero().squeeze(1).tolist()
        biases = constants(self.biases, total.device)
        for row in asked:
            mass, green = self._green(rows, row, int(rows.context[row, length[row] - 1]))
            ratio[row] = torch.where(green, biases, 0.0) - (total[row] + mass * biases.expm1()).log()
        return ratio

    def _green(self, rows: Rows, row: int, last: int) -> tuple[Tensor, Tensor]:
        """Of each green list after the id `last`: (components,) its probability in a row, and whether the row's token
        is in it."""
        generator = torch.Generator().manual_seed(self.key * last % (2**64 - 1))
        sizes = [int(rows.vocabulary * share) for share in self.shares]
        ids = torch.randperm(rows.vocabulary, generator=generator)[
            : max(sizes)
        ]  # a shorter list begins a longer one
        listed, here = rows.spectrum.probabilities[row].index_select(0, ids), ids == rows.tokens[row]
        lists = {size: (listed[:size].sum(dtype=torch.float64), here[:size].any()) for size in set(sizes)}
        mass, green = zip(*(lists[size] for size in sizes), strict=True)
        return torch.stack(mass), torch.stack(green)
