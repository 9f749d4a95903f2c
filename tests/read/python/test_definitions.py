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
