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


def after_preparing(body, generated, monkeypatch, *, more="", call="prepare(kw, options)"):
    """The settings that are left of a dict, and of an attribute of an object, that were passed to `prepare`."""
    monkeypatch.setattr(functions, "ASIDE_BUDGET", 1)
    source = (
        "from dataclasses import dataclass, asdict\nfrom recorder import model, ids\n"
        "@dataclass\nclass Options:\n    top_p: float = 0.5\n    other: str = ''\n"
        "    def lower(self):\n        self.top_p = 0.1\n"
        f"{more}\n"
        f"def prepare(kw, options):\n    1\n    {body}\n"
        f"kw = dict(top_k=30)\noptions = Options()\n{call}\n"
        "model.generate(ids, top_p=options.top_p, **kw)\n"
    )
    return generated(source)


READS = {
    "attributes": "return options.other, options.top_p * 2",
    "keys": "return kw['top_k'], kw.get('top_k'), 'top_k' in kw",
    "a test": "if options and kw is not None:\n        print(options, f'{kw}', len(kw))",
    "getattr": "return getattr(options, 'other', None), asdict(options)",
    "in a function inside": "return [lambda: options.other for _ in range(3)]",
    "passed on": "return look(kw, options)",
}


@pytest.mark.parametrize("body", READS.values(), ids=READS)
def test_what_it_only_reads_stays_as_it_was(body, generated, monkeypatch: pytest.MonkeyPatch):
    more = "def look(held, given):\n    return held['top_k'] + len(given.other)\n"
    assert after_preparing(body, generated, monkeypatch, more=more) == {"top_k": 30, "top_p": 0.5}


def test_what_it_sets_is_unknown_and_nothing_else(generated, monkeypatch: pytest.MonkeyPatch):
    found = after_preparing("options.other = kw['seed'] = 3", generated, monkeypatch)
    assert found == {"top_k": 30, "top_p": 0.5, "seed": "unknown"}
    found = after_preparing("options.top_p = kw['top_k'] = 3", generated, monkeypatch)
    assert found == {"top_k": "unknown", "top_p": "unknown"}


@pytest.mark.parametrize(
    "method",
    (
        "def __setattr__(self, name, value):\n        object.__setattr__(self, 'top_p', 0.1)",
        "@property\n    def other(self):\n        return 0\n"
        "    @other.setter\n    def other(self, value):\n        self.top_p = 0.1",
    ),
)
def test_setting_an_attribute_may_run_code_of_the_class(method, generated, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(functions, "ASIDE_BUDGET", 1)
    source = (
        "from recorder import model, ids\nclass Options:\n    top_p = 0.5\n"
        f"    {method}\n"
        "def prepare(options):\n    1\n    options.other = 3\n"
        "options = Options()\nprepare(options)\nmodel.generate(ids, top_p=options.top_p)\n"
    )
    assert generated(source) == {"top_p": "unknown"}


def test_a_class_that_nobody_has_read_yet_is_changed_all_the_same(generated, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(functions, "ASIDE_BUDGET", 1)
    source = (
        "import enum\nfrom recorder import model, ids\n"
        "class Mode(enum.Enum):\n    TRAIN = {'top_p': 1.0}\n"
        "def prepare():\n    1\n    Mode.TRAIN.value['top_p'] = 0.5\n"
        "prepare()\nmodel.generate(ids, **Mode.TRAIN.value)\n"
    )
    assert generated(source) == {"*": "unknown"}


CHANGES = {
    "an attribute and a key": "options.top_p = 1; kw['top_k'] = 1",
    "another name": "held, given = kw, options\n    held['top_k'] = given.top_p = 1",
    "returned": "return [kw, options]",
    "a method": "kw.update(top_k=1); options.lower()",
    "setattr": "setattr(options, 'top_p', 1); kw.__setitem__('top_k', 1)",
    "vars": "vars(options)['top_p'] = locals()['kw']['top_k'] = 1",
    "passed on": "change(kw, options)",
    "passed to what cannot be seen": "unseen(kw, options)",
    "bound anew": "kw, options = held(kw, options)",
    "iterated over": "for held in (kw, options):\n        change(held, held)",
}


@pytest.mark.parametrize("body", CHANGES.values(), ids=CHANGES)
def test_what_it_may_change_is_unknown(body, generated, monkeypatch: pytest.MonkeyPatch):
    more = (
        "from elsewhere import unseen, held\ndef change(held, given):\n    held['top_k'] = given.top_p = 1\n"
    )
    found = after_preparing(body, generated, monkeypatch, more=more)
    assert (found["top_k"], found["top_p"]) == ("unknown", "unknown")


def test_arguments_behind_a_splat_and_a_decorator_are_unknown(generated, monkeypatch: pytest.MonkeyPatch):
    read = "return kw['top_k'], options.other"
    found = after_preparing(read, generated, monkeypatch, call="prepare(*[kw, options])")
    assert found["top_k"] in (30, "unknown")
    monkeypatch.undo()
    source = (
        "from elsewhere import decorated\nfrom recorder import model, ids\n"
        "@decorated\ndef prepare(kw):\n    return kw['top_k']\n"
        "kw = dict(top_k=30)\nprepare(kw)\nmodel.generate(ids, **kw)\n"
    )
    assert generated(source)["top_k"] == "unknown"


def test_what_a_method_does_through_another_method_is_unknown(generated, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(functions, "ASIDE_BUDGET", 1)
    source = (
        "from recorder import model, ids\n"
        "class Sampler:\n    def __init__(self):\n        self.kw = dict(top_k=30)\n"
        "    def lower(self):\n        1\n        self.kw['top_k'] = 3\n"
        "    def prepare(self):\n        1\n        self.lower()\n"
        "    def run(self):\n        self.prepare()\n        return model.generate(ids, **self.kw)\n"
        "Sampler().run()\n"
    )
    assert generated(source)["top_k"] == "unknown"


PASSED_TO_UNSEEN = {
    "a method that reads": ("    def work(self, row):\n        return row, self.other\n", 30),
    "a method that writes": ("    def work(self, row):\n        self.kw['top_k'] = row\n", "unknown"),
}


@pytest.mark.parametrize(("method", "expected"), PASSED_TO_UNSEEN.values(), ids=PASSED_TO_UNSEEN)
def test_a_method_handed_to_unseen_code_is_all_that_it_can_call(method, expected, generated):
    source = (
        "from elsewhere import rows\nfrom recorder import model, ids\n"
        "class Sampler:\n    other = 1\n    def __init__(self):\n        self.kw = dict(top_k=30)\n"
        f"{method}"
        "    def run(self):\n        rows.apply(self.work)\n        return model.generate(ids, **self.kw)\n"
        "Sampler().run()\n"
    )
    assert generated(source)["top_k"] == expected


@pytest.mark.parametrize(
    ("asked", "name"), [("import presets", "presets.KW"), ("from presets import KW", "KW")]
)
@pytest.mark.parametrize("write", ["{name}['top_k'] = 3", "{name} = dict(top_k=3)"])
def test_what_it_writes_to_another_module_is_unknown(
    asked, name, write, generated, monkeypatch: pytest.MonkeyPatch
):
    """Also where nobody has looked at that module yet."""
    monkeypatch.setattr(functions, "ASIDE_BUDGET", 1)
    write = write.format(name=name)
    declared = "global KW\n    " if write.startswith("KW =") else ""
    source = (
        f"{asked}\nfrom recorder import model, ids\n"
        f"def prepare():\n    {declared}1\n    {write}\n"
        f"prepare()\nmodel.generate(ids, **{name})\n"
    )
    found = generated(source, {"presets.py": "KW = dict(top_k=30)\n"})
    assert found.get("top_k", found.get("*")) == "unknown"


def test_what_a_long_decorator_is_given_is_looked_at(generated, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(functions, "ASIDE_BUDGET", 1)
    source = (
        "from recorder import model, ids\n"
        "def hook(function):\n    1\n    return function\n"
        "@hook\ndef rollout(**kwargs):\n    sample = model.generate\n    return sample(ids, top_k=3)\n"
        "rollout()\n"
    )
    assert generated(source) == {"top_k": 3}
