"""A function that takes too long to follow still promises a class, whose generate() is no library's."""

from __future__ import annotations

from pathlib import Path

import pytest

from klguard.check import check_paths
from klguard.read.python import functions

PROGRAM = {
    "models.py": """
import torch
from torch import nn


class Policy(nn.Module):
    def generate(self, input_ids, max_new_tokens=50, temperature=1.0):
        for _ in range(max_new_tokens):
            probabilities = (self(input_ids)[:, -1] / temperature).softmax(-1)
            input_ids = torch.cat([input_ids, torch.multinomial(probabilities, 1)], -1)
        return input_ids


def load_policy() -> Policy:
    policy = Policy()
    for name in ("a", "b", "c", "d"):
        policy.load_state_dict(torch.load(name))
    return policy
""",
    "sampling.py": """
def sample(model, tokenizer):
    return model.generate(input_ids=tokenizer("Once"), max_new_tokens=8, temperature=1.0)


def collect(policy, tokenizer):
    return sample(policy, tokenizer)


def collect_many(learner, tokenizer):
    return collect(learner, tokenizer)


def collect_for(actor, tokenizer):
    return collect_many(actor, tokenizer)
""",
    "train.py": """
import torch
from models import load_policy
from sampling import collect_for

model = load_policy()
optimizer = torch.optim.AdamW(model.parameters())
drawn = collect_for(model, str.split)
loss = -torch.log_softmax(model(drawn), -1).gather(-1, drawn[..., None]).mean()
loss.backward()
optimizer.step()
""",
}


@pytest.mark.parametrize("budget", [functions.ASIDE_BUDGET, 1])
def test_the_defaults_are_those_of_the_class_that_is_returned(
    budget: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(functions, "ASIDE_BUDGET", budget)
    monkeypatch.chdir(tmp_path)
    for name, text in PROGRAM.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = {finding.code for finding in check_paths(["."]).findings}
    assert not found & {"KLG102", "KLG201", "KLG501"}


WRITES = [
    "SAMPLING['top_k'] = 3",
    "SAMPLING.__setitem__('top_k', 3)",
    "SAMPLING.__ior__({'top_k': 3})",
    "operator.setitem(SAMPLING, 'top_k', 3)",
    "dict.update(SAMPLING, top_k=3)",
    "lower()",
    "[held.update(top_k=3) for held in [SAMPLING]]",
    "held = SAMPLING\n    held['top_k'] = 3",
    "for held in (SAMPLING,):\n        held.update(top_k=3)",
]


@pytest.mark.parametrize("write", WRITES)
def test_what_it_writes_to_by_name_is_unknown(write, generated, monkeypatch: pytest.MonkeyPatch):
    source = (
        "import operator\nfrom recorder import model, ids\n"
        "SAMPLING = dict(top_k=30)\n"
        "def lower():\n    SAMPLING['top_k'] = 3\n"
        f"def prepare():\n    1\n    {write}\n"
        "prepare()\nmodel.generate(ids, **SAMPLING)\n"
    )
    assert generated(source) == {"top_k": 3}
    monkeypatch.setattr(functions, "ASIDE_BUDGET", 1)
    assert generated(source)["top_k"] == "unknown"
