"""Generators, context managers, coroutines, exceptions and recursion: what runs when, and on which state."""

from __future__ import annotations

import os

from klguard.read.python import read_sites
from klguard.read.python.project import Project
from klguard.settings import Context, HopKind, Known, LayerKind, SiteKind, Unknown

HEAD = "import contextlib, asyncio, functools\nfrom recorder import model, ids\n"
SCOPED = """
@contextlib.contextmanager
def scoped(kw, **more):
    saved = dict(kw)
    kw.update(more)
    try:
        yield kw
    finally:
        kw.clear()
        kw.update(saved)
"""


def test_a_managers_changes_hold_in_its_block_and_are_taken_back_behind_it(generated):
    source = HEAD + SCOPED + 'kw = {"top_k": 1}\nwith scoped(kw, top_k=2):\n    '
    assert generated(source + "model.generate(ids, **kw)\n") == {"top_k": 2}
    assert generated(source + 'kw["top_p"] = 0.5\nmodel.generate(ids, **kw)\n') == {"top_k": 1}


def test_a_block_left_by_return_leaves_its_manager_too(generated):
    source = (
        HEAD
        + SCOPED
        + (
            "def work(kw):\n    for turn in (1, 2):\n        with scoped(kw, top_k=5):\n"
            "            if turn == 2:\n                return kw\n"
            'kw = {"top_k": 3}\nwork(kw)\nmodel.generate(ids, **kw)\n'
        )
    )
    assert generated(source) == {"top_k": 3}


def test_a_manager_kept_in_a_name_still_runs_its_end(generated):
    source = HEAD + (
        "@contextlib.contextmanager\ndef scoped(kw):\n    yield\n    kw.pop('top_k')\n"
        "kw = {}\nmanager = scoped(kw)\nwith manager:\n    kw['top_k'] = 1\nmodel.generate(ids, **kw)\n"
    )
    assert generated(source) == {"top_k": "unknown", "*": "unknown"}


def test_exit_of_a_class_runs_behind_the_block(generated):
    source = HEAD + (
        "class Override:\n    def __init__(self, kw):\n        self.kw = kw\n"
        "    def __enter__(self):\n        self.kw['top_k'] = 7\n"
        "    def __exit__(self, *exc):\n        self.kw['top_k'] = 0\n"
        "kw = {}\nwith Override(kw):\n    pass\nmodel.generate(ids, **kw)\n"
    )
    assert generated(source) == {"top_k": 0}


def test_a_loop_runs_in_step_with_its_generator(generated):
    source = HEAD + (
        "def grid(base):\n    yield dict(base)\n    base['top_p'] = 0.5\n    yield base\n"
        "for kw in grid({'top_k': 1}):\n    last = kw\nmodel.generate(ids, **last)\n"
    )
    assert generated(source) == {"top_k": 1, "top_p": 0.5}


def test_next_runs_a_generator_to_its_first_yield(generated):
    source = HEAD + (
        "def grid(base):\n    yield base\n    base['top_p'] = 0.5\n    yield base\n"
        "kw = {'top_k': 1}\nfirst = next(grid(kw))\nmodel.generate(ids, **first)\n"
    )
    assert generated(source) == {"top_k": 1}


def test_a_recursion_that_counts_is_followed_to_its_end(generated):
    source = HEAD + (
        "def descend(n, kw):\n    if n == 0:\n        return kw\n    return descend(n - 1, {**kw, 'top_k': n})\n"
        "model.generate(ids, **descend(5, {}))\n"
    )
    assert generated(source) == {"top_k": 1}


def test_an_exception_of_the_project_carries_its_values(generated):
    source = HEAD + (
        "class Stop(Exception):\n    def __init__(self, kw):\n        super().__init__('stop')\n        self.kw = kw\n"
        "def throw(kw):\n    kw['top_p'] = 0.5\n    raise Stop(kw)\n"
        "try:\n    throw({'top_k': 1})\nexcept Stop as stop:\n    model.generate(ids, **stop.kw)\n"
    )
    assert generated(source) == {"top_k": 1, "top_p": 0.5}


def test_the_last_block_runs_on_the_way_of_an_exception(generated):
    source = HEAD + (
        "kw = {'top_k': 1}\ntry:\n    try:\n        raise ValueError('x')\n    finally:\n        kw['top_k'] = 2\n"
        "except ValueError:\n    pass\nmodel.generate(ids, **kw)\n"
    )
    assert "2" in str(generated(source)["top_k"])


def test_a_coroutine_runs_where_it_is_awaited(generated):
    source = HEAD + (
        "async def sample(kw):\n    return model.generate(ids, **kw)\n"
        "kw = {'top_k': 1}\nlater = sample(kw)\nkw['top_k'] = 2\nasyncio.run(later)\n"
    )
    assert generated(source)["top_k"] in (2, {"1", "2"})


def test_what_is_not_followed_may_change_the_globals_it_names(generated):
    body = "".join(f"    x = {i}\n" for i in range(160))
    source = HEAD + (
        f"KW = {{'top_k': 1}}\nOTHER = {{'top_p': 0.5}}\ndef long():\n{body}    KW.update(top_k=2)\n    print(OTHER)\n"
        "long()\nmodel.generate(ids, **KW, **OTHER)\n"
    )
    found = generated(source)
    assert found["top_k"] == "unknown" and found["top_p"] == 0.5


# --- sites ---------------------------------------------------------------------------------------------
def sites(tmp_path, source):
    (tmp_path / "main.py").write_text(source)
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        return read_sites(Project(tmp_path), ["main.py"])
    finally:
        os.chdir(before)


def test_a_partial_is_a_site_and_so_is_its_call(tmp_path):
    source = (
        "from functools import partial\nfrom transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained('gpt2')\n"
        "sample = partial(model.generate, top_k=5)\nsample(ids, top_p=1.0)\n"
    )
    made, called = sites(tmp_path, source)
    assert made.settings.context is Context.UNKNOWN and "sites of their own" in made.why
    assert called.settings.layers[0].values.keys() >= {"top_k", "top_p"}


def test_an_assignment_to_a_models_config_has_the_context_of_the_call_that_reads_it(tmp_path):
    source = (
        "from transformers import AutoModelForCausalLM\n"
        "def train(ids):\n    model = AutoModelForCausalLM.from_pretrained('gpt2')\n"
        "    model.generation_config.top_k = 5\n    out = model.generate(ids)\n    model(out).loss.backward()\n"
        "def evaluate(ids):\n    model = AutoModelForCausalLM.from_pretrained('gpt2')\n"
        "    model.generation_config.top_k = 5\n    print(model.generate(ids))\n"
    )
    assigned = [s for s in sites(tmp_path, source) if s.settings.kind is SiteKind.GENERATION_CONFIG]
    assert [s.settings.context for s in assigned] == [Context.ROLLOUT, Context.EVALUATION]
    assert all("read_by" in s.settings.facts for s in assigned)


def test_a_trainer_shows_what_its_configuration_holds(tmp_path):
    source = (
        "from trl import GRPOConfig, GRPOTrainer\n"
        "config = GRPOConfig(temperature=0.7, top_k=20)\n"
        "GRPOTrainer(model='gpt2', args=config, reward_funcs=[len]).train()\n"
    )
    trainer = next(s for s in sites(tmp_path, source) if s.settings.kind is SiteKind.TRAINER)
    assert [trainer.settings.values[name].value for name in ("temperature", "top_k")] == [0.7, 20]


def test_an_unknown_value_says_where_its_trail_ended(tmp_path):
    source = "def run(model, ids, kw):\n    return model.generate(ids, top_k=kw['k'], top_p=read())\n"
    (site,) = sites(tmp_path, source)
    layer = next(layer for layer in site.settings.layers if layer.kind is LayerKind.KWARGS)
    ends = {
        name: next(hop for hop in layer.values[name].hops if hop.kind is HopKind.END)
        for name in ("top_k", "top_p")
    }
    assert isinstance(layer.values["top_k"], Unknown) and not isinstance(layer.values["top_p"], Known)
    assert (ends["top_k"].place.line, ends["top_p"].place.line) == (1, 2)


def test_the_first_value_of_a_generator_that_passes_on_what_another_gives(generated):
    source = (
        "from recorder import model, ids\n"
        "def produce(value):\n    yield from [value]\n"
        "model.generate(ids, top_k=next(produce(3)))\n"
    )
    assert generated(source) == {"top_k": 3}


def test_a_registered_function_may_be_called_again_after_what_it_changes(generated):
    source = (
        "from registry import register\nfrom recorder import model, ids\n"
        "kw = dict(top_k=3)\n"
        "@register\ndef callback():\n    model.generate(ids, **kw)\n    kw['top_p'] = 0.9\n"
    )
    found = generated(source)
    assert found["*"] == "unknown" and found["top_k"] != 3
