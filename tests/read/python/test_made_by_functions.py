"""Models, tokenizers and trainers that functions of the project make and hand back."""

from __future__ import annotations

import pytest

from .test_wiring import generate, trainer, value

LOAD = """
def load(name, side="left"):
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.padding_side = "right"
    return AutoModelForCausalLM.from_pretrained(name)
"""


def same(text, files=None):
    """Whether policy and reference of the trainer are the same object, by their names."""
    found = trainer(text + "\nPPOTrainer(config, policy, reference, tokenizer)", files=files)
    return value(found, "policy").name == value(found, "reference").name


@pytest.mark.parametrize(
    "text",
    [
        LOAD + "policy, reference = load('gpt2'), load('gpt2')",
        LOAD + "def both():\n    return load('gpt2'), load('gpt2')\npolicy, reference = both()",
        "def make():\n    return model, create_reference_model(model)\npolicy, reference = make()",
        "def unseen(name):\n    return library.load(name)\npolicy = unseen('a')\nreference = unseen('a')",
        "def make():\n    found = other()\n    return found\npolicy, reference = make(), make()",
        "import functools\n@functools.partial\ndef make():\n    return model\npolicy, reference = make(), model",
        "def make():\n    yield model\npolicy, reference = make(), make()",
        "def make(flag):\n    if flag:\n        return model\npolicy, reference = make(1), model",
        "class Shelf:\n    def __init__(self, model):\n        self.model = model\n    def take(self):\n"
        "        return self.model\npolicy, reference = Shelf(model).take(), Shelf(other).take()",
        "def wrap(inner):\n    return AutoModelForCausalLMWithValueHead.from_pretrained(inner)\n"
        "def base():\n    return AutoModelForCausalLM.from_pretrained('gpt2')\n"
        "policy, reference = wrap(base()), wrap(base())",
    ],
)
def test_two_objects_are_two(text):
    assert not same(text)


@pytest.mark.parametrize(
    "text",
    [
        "def policy_of():\n    return model\npolicy, reference = policy_of(), model",
        "def make():\n    found = load()\n    return found, found\npolicy, reference = make()",
        "def keep(it):\n    return it\npolicy, reference = keep(model), keep(it=model)",
        "def keep(it=model):\n    return it\npolicy, reference = keep(), model",
        "async def make():\n    return model\nasync def main():\n    policy, reference = await make(), model",
        "def wrap(inner):\n    return AutoModelForCausalLMWithValueHead.from_pretrained(inner)\n"
        "base = AutoModelForCausalLM.from_pretrained('gpt2')\npolicy, reference = wrap(base), wrap(base)",
    ],
)
def test_one_object_is_one(text):
    if "async" in text:
        text += "\n    PPOTrainer(config, policy, reference, tokenizer)\n"
        found = trainer(text)
        assert value(found, "policy").name == value(found, "reference").name
    else:
        assert same(text)


def test_a_reference_that_a_function_says_is_none():
    found = trainer("def reference():\n    return None\nPPOTrainer(config, model, reference(), tokenizer)")
    assert value(found, "reference") is None


def test_a_checkpoint_is_that_of_the_call():
    text = LOAD + "policy, reference = load('gpt2'), load('gpt2-large')\n"
    for name, checkpoint in (("policy", "gpt2"), ("reference", "gpt2-large")):
        assert value(generate(text + f"{name}.generate(ids)"), "checkpoint") == checkpoint


def test_a_tokenizer_that_a_function_of_another_file_makes():
    files = {
        "made.py": "from transformers import AutoTokenizer\ndef tokenizer_of(name):\n"
        "    tok = AutoTokenizer.from_pretrained(name)\n    tok.padding_side = 'right'\n    return tok\n"
    }
    text = "from made import tokenizer_of\ntok = tokenizer_of('gpt2')\nids = tok(prompts, padding=True).input_ids\n"
    assert value(generate(text + "model.generate(ids)", files=files), "padding_side") == "right"


def test_a_function_that_enters_itself_ends():
    text = "def make(n):\n    return make(n - 1)\nPPOTrainer(config, make(3), None, tokenizer)"
    assert value(trainer(text), "policy").name


def test_a_trainer_that_a_function_makes_is_known():
    text = "def build():\n    return PPOTrainer(config, model, None, tokenizer)\nppo = build()\n"
    found = generate(text + "for batch in ppo.dataloader:\n    ppo.generate(batch['input_ids'])", "trl")
    assert value(found, "padding_side") == "left"
