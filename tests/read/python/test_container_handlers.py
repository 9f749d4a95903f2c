"""Methods of dicts and lists are found by name: nothing else may have such a name."""

from __future__ import annotations

import inspect

import pytest

from klguard.read.python.sites import SiteReader

HANDLERS = [name for name in dir(SiteReader) if name.startswith(("_dict_", "_list_"))]


@pytest.mark.parametrize("name", HANDLERS)
def test_a_handler_takes_what_every_handler_is_given(name: str):
    """`x.item()` on a dict must not end in a helper that happens to be called `_dict_item`."""
    parameters = list(inspect.signature(getattr(SiteReader, name)).parameters)
    assert parameters == ["self", "owner", "obj", "args", "node", "state", "frame"]
