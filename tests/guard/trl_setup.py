"""Tiny models, a tiny tokenizer and tiny trainers of TRL, all built in code."""

from __future__ import annotations

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PhiConfig,
    PhiForCausalLM,
    PhiForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

PAD, EOS, WORDS = 0, 1, 46
VOCABULARY = WORDS + 2


def tokenizer() -> PreTrainedTokenizerFast:
    """Words w2 to w47, a pad token and an end of sequence."""
    words = {"<pad>": PAD, "<eos>": EOS, **{f"w{n}": n for n in range(2, VOCABULARY)}}
    plain = Tokenizer(WordLevel(words, unk_token="w2"))
    plain.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>")
    fast.padding_side = "left"
    return fast


def policy(dropout: float = 0.0) -> PhiForCausalLM:
    """A random policy of two narrow layers with rotary positions, always the same. It is sharp enough for a
    filter to cut something off, and never draws the pad token, as no trained policy does."""
    torch.manual_seed(0)
    model = PhiForCausalLM(phi(dropout)).eval()
    with torch.no_grad():
        model.lm_head.bias[PAD] = -50.0
        model.lm_head.bias[EOS] = 4.0  # responses end, now and then
    return model


def phi(dropout: float = 0.0, **more: int) -> PhiConfig:
    """The shape of the policy."""
    shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    special = dict(bos_token_id=EOS, eos_token_id=EOS, pad_token_id=PAD)
    drops = dict(resid_pdrop=dropout, embd_pdrop=dropout)
    ranges = dict(vocab_size=VOCABULARY, initializer_range=0.3, max_position_embeddings=64)
    return PhiConfig(**shape, **special, **drops, **ranges, **more)


def scorer() -> PhiForSequenceClassification:
    """A random reward or value model."""
    torch.manual_seed(1)
    return PhiForSequenceClassification(phi(num_labels=1)).eval()


def absolute() -> GPT2LMHeadModel:
    """A random policy with learned positions, which padding must not shift."""
    torch.manual_seed(0)
    shape = dict(vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3)
    special = dict(bos_token_id=EOS, eos_token_id=EOS, pad_token_id=PAD)
    off = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return GPT2LMHeadModel(GPT2Config(**shape, **special, **off)).eval()


def checkpoint(folder: str, model: PreTrainedModel | None = None, **generation: object) -> str:
    """A model, saved, with `generation` in its generation_config.json: a name that trainers load from."""
    model = model or policy()
    for name, value in generation.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def prompts(count: int = 64) -> list[str]:
    """Prompts of two to five words."""
    draw = torch.Generator().manual_seed(1)
    texts = []
    for _ in range(count):
        length = int(torch.randint(2, 6, (), generator=draw))
        texts.append(" ".join(f"w{int(n)}" for n in torch.randint(2, VOCABULARY, (length,), generator=draw)))
    return texts


def dataset(count: int = 64) -> Dataset:
    """Prompts as TRL's trainers of groups take them."""
    return Dataset.from_dict({"prompt": prompts(count)})


def reward(completions: list[str], **_: object) -> list[float]:
    """How many of the words have a number above 30, plus a little for the length."""
    return [
        sum(int(w[1:]) > 30 for w in text.split() if w[0] == "w") + 0.01 * len(text.split())
        for text in completions
    ]
