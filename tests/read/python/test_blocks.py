"""What is caught: the state in which a handler begins holds all that was done on the way to it."""

from __future__ import annotations

import pytest

BODIES = {
    "a call whose value is returned": "        return unseen(kw)\n",
    "a condition": "        assert unseen(kw)\n        raise ValueError\n",
    "a last block": "        try:\n            raise ValueError\n        finally:\n            unseen(kw)\n",
    "a manager in a last block": (
        "        try:\n            raise ValueError\n        finally:\n"
        "            with unseen(kw):\n                pass\n"
    ),
    "the end of a manager": "        with Manager(kw):\n            raise ValueError\n",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_what_was_done_before_an_exception_is_caught(body, generated):
    source = (
        "from elsewhere import unseen\nfrom recorder import model, ids\n"
        "class Manager:\n    def __init__(self, kw):\n        self.kw = kw\n"
        "    def __enter__(self):\n        return self\n"
        "    def __exit__(self, *error):\n        unseen(self.kw)\n"
        f"def work(kw):\n    try:\n{body}    except ValueError:\n        pass\n"
        "    model.generate(ids, **kw)\n"
        "work(dict(top_k=3))\n"
    )
    assert generated(source)["top_k"] == "unknown"
