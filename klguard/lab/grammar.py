"""A small language of the laboratory's own: a grammar with weights, its words, and texts drawn from it.

A text is a few sentences; after each of them it ends with probability `ENDS`. So the end of a text is a choice
like any other word, which is what settings such as min_new_tokens interfere with.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

PAD, END = 0, 1

ENDS = 0.4
"""Probability that a text is over after a sentence."""

RULES: Mapping[str, Sequence[tuple[float, str]]] = {
    "sentence": (
        (4, "subject intransitive ."),
        (5, "subject transitive object ."),
        (2, "subject transitive object place ."),
        (1, "when subject intransitive , subject transitive object ."),
    ),
    "subject": ((3, "the noun"), (2, "the adjective noun"), (1, "name")),
    "object": ((3, "a noun"), (2, "a adjective noun"), (2, "the noun"), (1, "name")),
    "place": ((1, "in the noun"), (1, "near a noun"), (1, "behind name")),
    "noun": tuple(
        zip(
            (8, 6, 5, 4, 3, 3, 2, 2, 2, 1, 1, 1),
            "dog cat bird house child river garden teacher road letter engine mountain".split(),
            strict=True,
        )
    ),
    "adjective": tuple(
        zip((6, 5, 3, 3, 2, 2, 1, 1), "small old red quiet tall clever empty distant".split(), strict=True)
    ),
    "transitive": tuple(
        zip((6, 5, 3, 3, 2, 2, 1), "sees likes finds follows hears paints remembers".split(), strict=True)
    ),
    "intransitive": tuple(zip((5, 4, 3, 2, 1), "sleeps sings waits falls returns".split(), strict=True)),
    "name": ((3, "anna"), (2, "omar"), (2, "mei"), (1, "jonas")),
}
"""Symbol -> its expansions with their weights. What is no symbol is a word."""


def _words() -> list[str]:
    found = {word for expansions in RULES.values() for _, text in expansions for word in text.split()}
    return ["<pad>", "<end>", *sorted(found - RULES.keys())]


WORDS = _words()


class Tokenizer:
    """One id for each word."""

    pad_token_id, eos_token_id = PAD, END
    pad_token, eos_token = WORDS[PAD], WORDS[END]

    def __init__(self) -> None:
        self.padding_side = "left"
        self._ids = {word: number for number, word in enumerate(WORDS)}

    def __len__(self) -> int:
        return len(WORDS)

    def encode(self, text: str) -> list[int]:
        """The ids of the words. KeyError for a word of another language."""
        return [self._ids[word] for word in text.split()]

    def decode(self, ids: Any, skip_special_tokens: bool = False) -> str:
        """The words of the ids."""
        numbers = [int(number) for number in ids]
        return " ".join(WORDS[n] for n in numbers if not (skip_special_tokens and n in (PAD, END)))


def texts(count: int, seed: int) -> list[list[int]]:
    """`count` texts as ids, each with its end."""
    tokenizer, chance = Tokenizer(), random.Random(seed)
    made = []
    for _ in range(count):
        words: list[str] = []
        while not words or chance.random() >= ENDS:
            words += _expand("sentence", chance)
        made.append([*tokenizer.encode(" ".join(words)), END])
    return made


def _expand(symbol: str, chance: random.Random) -> list[str]:
    if symbol not in RULES:
        return [symbol]
    weights, expansions = zip(*RULES[symbol], strict=True)
    (chosen,) = chance.choices(expansions, weights)
    return [word for part in chosen.split() for word in _expand(part, chance)]


class Beginnings:
    """Prompts: the first one to five words of texts, padded on the left."""

    LONGEST = 5

    def __init__(self, seed: int = 0, count: int = 512) -> None:
        self._texts = texts(count, seed)

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Ids (count, 5) and their attention mask (count, 5)."""
        chosen = torch.randint(len(self._texts), (count,), generator=generator).tolist()
        # no text is shorter than three words and its end, and prompts end before it
        lengths = torch.randint(1, self.LONGEST + 1, (count,), generator=generator).tolist()
        ids = torch.full((count, self.LONGEST), PAD)
        for row, (text, length) in enumerate(zip(chosen, lengths, strict=True)):
            beginning = self._texts[text][: min(length, len(self._texts[text]) - 1)]
            ids[row, self.LONGEST - len(beginning) :] = torch.tensor(beginning)
        return ids, (ids != PAD).long()
