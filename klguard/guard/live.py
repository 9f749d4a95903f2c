"""(placeholder by the lead so that guard.py can be imported; the owner of live.py overwrites it)"""

from __future__ import annotations

import sys
from pathlib import Path

from klguard.settings import Place


def caller():
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "").split(".")[0]
        if name not in ("klguard", "torch", "transformers", "trl", "accelerate", "contextlib", "functools"):
            path = Path(frame.f_code.co_filename)
            line = frame.f_lineno
            return Place(str(path), None, line, 1, line, 1)
        frame = frame.f_back
    return None


def read_object(settings, *, place=None):
    raise TypeError("not there yet")


def findings(site, ignore=()):
    return []
