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
