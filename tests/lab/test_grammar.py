"""The laboratory's language and the policy that learns it."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from klguard.lab.grammar import END, ENDS, PAD, RULES, WORDS, Beginnings, Tokenizer, texts  # noqa: E402
from klguard.lab.student import student  # noqa: E402


def test_every_symbol_leads_to_words():
    for expansions in RULES.values():
        for weight, text in expansions:
            assert weight > 0 and all(word in RULES or word in WORDS for word in text.split())


def test_texts_are_sentences_and_end_as_often_as_said():
    tokenizer, made = Tokenizer(), texts(2000, seed=0)
    assert made == texts(2000, seed=0) != texts(2000, seed=1)
    assert all(text[-1] == END and END not in text[:-1] and PAD not in text for text in made)
    stop = tokenizer.encode(".")[0]
    assert all(text[-2] == stop for text in made)
    sentences = sum(text.count(stop) for text in made)
    assert len(made) / sentences == pytest.approx(ENDS, abs=0.02)
    assert {word for text in made for word in text} == set(range(1, len(WORDS)))


def test_words_and_ids_are_each_others_inverse():
    tokenizer = Tokenizer()
    sentence = "the old dog sees anna ."
    ids = tokenizer.encode(sentence)
    assert tokenizer.decode(ids) == sentence and len(tokenizer) == len(WORDS)
    assert tokenizer.decode([*ids, END, PAD], skip_special_tokens=True) == sentence
    with pytest.raises(KeyError):
        tokenizer.encode("gradient")


def test_prompts_are_beginnings_padded_on_the_left():
    prompts = Beginnings(seed=3)
    ids, attention = prompts(256, torch.Generator().manual_seed(0))
    again, _ = prompts(256, torch.Generator().manual_seed(0))
    assert torch.equal(ids, again) and ids.shape == (256, Beginnings.LONGEST)
    assert ((ids != PAD) == attention.bool()).all() and (ids[:, -1] > END).all()
    assert (attention.diff(dim=1) >= 0).all(), "padding comes first"
    assert set(attention.sum(1).tolist()) == {1, 2, 3, 4, 5}
    known = {tuple(text[:length]) for text in texts(512, seed=3) for length in range(1, 6)}
    assert all(tuple(word for word in row if word != PAD) in known for row in ids.tolist())


def test_reading_brings_the_loss_down_and_depends_on_the_seed_alone():
    losses, state = [], torch.get_rng_state()
    one = student(steps=30, rows=16, told=lambda step, loss: losses.append(loss))
    assert torch.equal(torch.get_rng_state(), state), "the global random state is not touched"
    assert losses[-1] < 0.75 * losses[0]
    same = student(steps=30, rows=16)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
