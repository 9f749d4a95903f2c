"""Definitions that wait until they are read: the order they are evaluated in decides nothing."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("namespace", ["globals()", "vars(sys.modules[__name__])"])
def test_a_class_body_that_reads_the_modules_names_does_not_settle_its_subclasses(generated, namespace):
    """The subclass waits while its base is being defined: it must not be made then, of a base not yet known."""
    source = (
        "import sys\nfrom recorder import model, ids\n"
        f"class Base:\n    limit = {namespace}['LI' + 'MIT']\n"
        "    def run(self, **kw):\n        return model.generate(ids, **kw)\n"
        "class Child(Base):\n    pass\n"
        "Base()\nChild().run(top_k=3)\n"
    )
    assert generated("LIMIT = 1\n" + source) == {"top_k": 3}


@pytest.mark.parametrize("settings", ["SAMPLING = {}", "given = {}\nSAMPLING = given"])
@pytest.mark.parametrize("asked", ["from settings import SAMPLING", "import settings"])
def test_what_a_branch_writes_to_an_imported_object_is_not_there_without_it(generated, settings, asked):
    """An import is looked at when somebody asks for it, here in the branch alone: the other way its object is what
    its own module made it."""
    name = "SAMPLING" if asked.startswith("from") else "settings.SAMPLING"
    source = (
        f"import os\n{asked}\nfrom recorder import model, ids\n"
        f"if os.environ.get('SHORT'):\n    {name}['top_k'] = 3\n"
        f"model.generate(ids, **{name})\n"
    )
    assert generated(source, {"settings.py": settings + "\n"}) == {"top_k": {"3", "'absent'"}}


def test_what_a_branch_binds_in_an_imported_module_is_not_there_without_it(generated):
    source = (
        "import os\nimport settings\nfrom recorder import model, ids\n"
        "if os.environ.get('SHORT'):\n    settings.TOP_K = 3\n"
        "model.generate(ids, top_k=settings.TOP_K)\n"
    )
    assert generated(source, {"settings.py": "TOP_K = 0\n"}) == {"top_k": {"3", "0"}}


def test_a_class_first_read_on_a_path_that_is_dropped_has_its_bases_everywhere(generated):
    """globals() asks for every definition, where nobody gets to: the subclass is not asked for its base again."""
    source = (
        "from recorder import model, ids\n"
        "def names():\n    return globals().get('X')\n"
        "class Base:\n    def run(self, **kw):\n        return model.generate(ids, **kw)\n"
        "class Child(Base):\n    def run(self, **kw):\n        return super().run(top_k=3, **kw)\n"
        "if False:\n    names()\n"
        "Child().run(top_p=0.5)\n"
    )
    assert generated(source) == {"top_k": 3, "top_p": 0.5}


FALLBACKS = {"nothing": "pass", "None": "Base = None", "a number": "Base = 1"}


@pytest.mark.parametrize("fallback", FALLBACKS.values(), ids=FALLBACKS)
@pytest.mark.parametrize("body", ["", "    shared = 1\n"])
def test_a_base_from_an_import_that_may_fail_is_the_base(generated, fallback, body):
    """What stands in for it cannot be a base, and a class body that is half run is nobody's class."""
    source = (
        f"try:\n    from bases import Base\nexcept ImportError:\n    {fallback}\n"
        "from recorder import model, ids\n"
        "class Child(Base):\n    def finish(self):\n        self.kw['top_k'] = 3\n"
        "kw = {}\nChild(kw)\nmodel.generate(ids, **kw)\n"
    )
    base = f"class Base:\n{body}    def __init__(self, kw):\n        self.kw = kw\n        self.finish()\n"
    assert generated(source, {"bases.py": base}) == {"top_k": 3}


def test_one_of_two_bases_may_do_anything_with_what_it_is_given(generated):
    source = (
        "import os\nfrom recorder import model, ids\n"
        "class One:\n    def __init__(self, kw):\n        kw['top_k'] = 3\n"
        "class Two:\n    def __init__(self, kw):\n        kw['top_k'] = 4\n"
        "Base = One if os.environ.get('ONE') else Two\n"
        "class Child(Base):\n    pass\n"
        "kw = {}\nChild(kw)\nmodel.generate(ids, **kw)\n"
    )
    assert generated(source) == {"*": "unknown"}


SHARED = {
    "a class": "class Options:\n    top_k = 0\noptions = Options()\n",
    "a class above": "class Base:\n    top_k = 0\nclass Options(Base):\n    pass\noptions = Options()\n",
}


@pytest.mark.parametrize("made", SHARED.values(), ids=SHARED)
def test_an_attribute_that_a_branch_sets_is_the_class_attribute_without_it(generated, made):
    source = (
        f"import os\nfrom recorder import model, ids\n{made}"
        "if os.environ.get('SHORT'):\n    options.top_k = 3\n"
        "model.generate(ids, top_k=options.top_k)\n"
    )
    assert generated(source) == {"top_k": {"3", "0"}}


def test_a_field_that_a_branch_sets_is_the_librarys_without_it(generated):
    source = (
        "import os\nfrom transformers import GenerationConfig\nfrom recorder import model, ids\n"
        "kw = {}\nif os.environ.get('SHORT'):\n    kw['top_k'] = 3\n"
        "config = GenerationConfig(**kw)\n"
        "model.generate(ids, top_k=config.top_k)\n"
    )
    assert generated(source) == {"top_k": "unknown"}


def test_an_attribute_that_only_a_branch_sets_has_its_one_value(generated):
    """Without the branch the read would raise."""
    source = (
        "import os\nfrom recorder import model, ids\n"
        "class Options:\n    pass\noptions = Options()\n"
        "if os.environ.get('SHORT'):\n    options.top_k = 3\n"
        "model.generate(ids, top_k=options.top_k)\n"
    )
    assert generated(source) == {"top_k": 3}
