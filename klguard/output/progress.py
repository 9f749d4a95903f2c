"""A progress bar that appears only on a terminal, and only once the work has taken a second."""

from __future__ import annotations

import time
from types import TracebackType
from typing import IO

DELAY = 1.0
INTERVAL = 0.1
WIDTH = 30


class Progress:
    """A context manager; call `update(done, total)` as often as you like.

    The bar is wiped when the work is done, so that it never mixes with what is printed afterwards.
    """

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream
        self.shown = False
        self._live = stream.isatty()
        self._next = time.monotonic() + DELAY

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.shown:
            self.stream.write("\r\x1b[K")
            self.stream.flush()

    def update(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not self._live or now < self._next:
            return
        self._next = now + INTERVAL
        self.shown = True
        filled = WIDTH * done // max(1, total)
        self.stream.write(f"\r\x1b[Kchecking [{'#' * filled}{'.' * (WIDTH - filled)}] {done}/{total}")
        self.stream.flush()
