"""Objects of the project that are unpacked as mappings."""

import pytest

HEAD = "import os\nfrom recorder import model, ids\n"
HOLDER = "class Options:\n    def __init__(self, kw):\n        self.kw = kw\n"
ITEM = "    def __getitem__(self, key):\n        return self.kw[key]\n"
KEYS = {
    "keys of a dict": "    def keys(self):\n        return self.kw.keys()\n",
    "a list": "    def keys(self):\n        return list(self.kw)\n",
    "a generator": "    def keys(self):\n        for key in self.kw:\n            yield key\n",
}


@pytest.mark.parametrize("call", ["**Options(kw)", "**dict(Options(kw))", "**{**Options(kw)}", "**(kw | {})"])
@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
def test_keys_and_items_are_asked_for(generated, keys, call):
    source = f"{HEAD}{HOLDER}{keys}{ITEM}kw = dict(top_k=3)\nmodel.generate(ids, {call})\n"
    assert generated(source) == {"top_k": 3}


def test_a_key_that_is_there_on_one_path_only(generated):
    source = (
        f"{HEAD}{HOLDER}{KEYS['keys of a dict']}{ITEM}kw = dict(top_k=3)\n"
        "if os.environ.get('NUCLEUS'):\n    kw['top_p'] = 0.9\nmodel.generate(ids, **Options(kw))\n"
    )
    assert generated(source) == {"top_k": 3, "top_p": {"0.9", "'absent'"}}


def test_the_base_class_makes_the_keys_of_what_is_iterated_over(generated):
    source = (
        f"from collections.abc import Mapping\n{HEAD}{HOLDER.replace('Options', 'Options(Mapping)')}{ITEM}"
        "    def __iter__(self):\n        return iter(self.kw)\n"
        "    def __len__(self):\n        return len(self.kw)\n"
        "kw = dict(top_k=3)\nmodel.generate(ids, **Options(kw))\n"
    )
    assert generated(source) == {"top_k": 3}


def test_an_object_whose_keys_ask_itself_is_unknown(generated):
    source = (
        f"{HEAD}{HOLDER}    def keys(self):\n        return dict(self)\n{ITEM}"
        "kw = dict(top_k=3)\nmodel.generate(ids, **Options(kw))\n"
    )
    assert generated(source)["*"] == "unknown"


def test_a_defaultdict_in_front_of_a_chain_hides_what_comes_after_it(generated):
    source = (
        "import collections\nfrom recorder import model, ids\n"
        "chained = collections.ChainMap(collections.defaultdict(int), {'top_k': 50})\n"
        "kw = dict(chained.items())\nmodel.generate(ids, **kw)\n"
    )
    assert generated(source) == {"*": "unknown"}


HOLDERS = ["(settings,)", "[settings]", "{'a': {'b': settings}}", "derived", "settings"]


@pytest.mark.parametrize("holder", HOLDERS)
def test_what_is_known_of_an_unseen_dict_ends_where_it_is_passed_on(generated, holder):
    source = (
        "import elsewhere\nfrom recorder import model, ids\n"
        "class Derived(elsewhere.Base):\n    pass\n"
        "derived = Derived()\nsettings = derived.kw\nsettings.update(top_k=3)\n"
        f"elsewhere.change({holder})\n"
        "model.generate(ids, **settings)\n"
    )
    assert generated(source)["top_k"] == "unknown"
