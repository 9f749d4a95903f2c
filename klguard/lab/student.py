"""The laboratory's policy: a small GPT-2 that has learnt the grammar by reading texts of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from klguard.lab.grammar import END, PAD, WORDS, texts

LENGTH = 40
"""Words of a text that are read."""


def untrained(*, layers: int = 2, width: int = 48, heads: int = 2, seed: int = 0) -> GPT2LMHeadModel:
    """A GPT-2 with random weights and without dropout, for the words of the grammar."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(WORDS),
                n_positions=128,
                n_embd=width,
                n_layer=layers,
                n_head=heads,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                tie_word_embeddings=False,
                bos_token_id=END,
                eos_token_id=END,
                pad_token_id=PAD,
            )
        )
    model.generation_config = GenerationConfig(eos_token_id=END, pad_token_id=PAD, bos_token_id=END)
    return model.eval()


def student(
    *, steps: int = 250, rows: int = 64, seed: int = 0, told: Callable[[int, float], Any] | None = None
) -> GPT2LMHeadModel:
    """A model that has read `steps` batches of `rows` texts; `told(step, loss)` hears how it goes, in nats per word.

    Everything random comes from `seed`.
    """
    model = untrained(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    library = _padded(texts(1024, seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        ids = library[torch.randint(len(library), (rows,), generator=generator)]
        logits = model(ids, attention_mask=(ids != PAD).long(), use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=PAD)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if told is not None:
            told(step, loss.item())
    return model


def _padded(made: list[list[int]]) -> Tensor:
    """Texts as (N, LENGTH), cut or padded on the right."""
    ids = torch.full((len(made), LENGTH), PAD)
    for row, text in enumerate(made):
        ids[row, : min(LENGTH, len(text))] = torch.tensor(text[:LENGTH])
    return ids
