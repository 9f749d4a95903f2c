"""A progress bar that appears only on a terminal, and only once the work has taken a second."""

from __future__ import annotations

import signal
import time
from types import TracebackType
from typing import IO, Any

DELAY = 1.0
INTERVAL = 0.2
WIDTH = 30


class Progress:
    """A context manager; `update(done, total)` moves the bar, and a timer keeps its clock going in between.

    The bar is wiped when the work is done, so that it never mixes with what is printed afterwards.
    """

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream
        self.done, self.total = 0, 0
        self._live = stream.isatty()
        self._start = time.monotonic()
        self._shown = False
        self._handler: Any = None

    def __enter__(self) -> Progress:
        if self._live and hasattr(signal, "setitimer"):
            # A signal and not a thread: worker processes are forked, which does not go together with threads.
            self._handler = signal.signal(signal.SIGALRM, lambda number, frame: self.draw())
            signal.setitimer(signal.ITIMER_REAL, DELAY, INTERVAL)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handler is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._handler)
        if self._shown:
            self.stream.write("\r\x1b[K")
            self.stream.flush()

    def update(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        self.draw()

    def draw(self) -> None:
        seconds = time.monotonic() - self._start
        if not self._live or seconds < DELAY:
            return
        self._shown = True
        filled = WIDTH * self.done // max(1, self.total)
        bar = "#" * filled + "." * (WIDTH - filled)
        count = f"{self.done}/{self.total} files" if self.total else "looking for sites"
        self.stream.write(f"\r\x1b[Kchecking [{bar}] {count}, {seconds:.0f} s")
        self.stream.flush()
