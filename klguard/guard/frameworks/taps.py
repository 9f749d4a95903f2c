"""What is put on a model to watch it: a forward hook, and a generate() of its own.

This is the outer skin of the watching, like the shield: the model calls it, and whatever it calls of the guard's
own goes through `attempt`. A loop may copy or pickle its model while it is watched (a reference made from the
policy, a checkpoint). The copy is not watched, and holds nothing of the guard.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import update_wrapper
from types import MethodType
from typing import Any, Protocol

import torch
from torch import nn

from klguard.guard.frameworks.capture import Capture, Prepared
from klguard.guard.shield import Shielded, shielded


class Watching(Protocol):
    """Who watches. `listener` is told of boundaries; `paused` switches the watching off for a time."""

    listener: Any
    paused: bool

    def begins_a_step(self) -> bool:
        """Whether the coming call of generate() begins a new step, after one that is over."""

    def drawn(self, prepared: Prepared, args: tuple, kwargs: dict, output: Any) -> None:
        """generate() returned `output`."""

    def passed(self, role: str, args: tuple, kwargs: dict, output: Any) -> None:
        """A forward pass outside of generate() is over."""


@shielded()
def _behind(listener: Shielded, work: Callable[..., Any], *args: Any) -> Any:
    return work(*args)


def attempt(listener: Any, work: Callable[..., Any], *args: Any) -> Any:
    """What `work` returns; None where it failed and the listener, if it is shielded, took the failure."""
    return _behind(listener, work, *args) if isinstance(listener, Shielded) else work(*args)


_INSIDE = threading.local()
"""How many calls of a watched generate() this thread is in."""


def _nothing(*args: Any, **kwargs: Any) -> None:
    """What a hook becomes in a copy of the model."""


def _make_nothing() -> Callable[..., None]:
    return _nothing


class Tap:
    """A forward hook. A copy of the model, deep or pickled, gets a hook that does nothing."""

    def __init__(self, watcher: Watching, role: str) -> None:
        self.watcher, self.role = watcher, role

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return  # no real pass
        if not self.watcher.paused and not getattr(_INSIDE, "generate", 0):
            attempt(self.watcher.listener, self.watcher.passed, self.role, args, kwargs, output)

    def __deepcopy__(self, memo: dict) -> Callable[..., None]:
        return _nothing

    def __reduce__(self) -> tuple:
        return _make_nothing, ()


class CompiledTap:
    """A hook around a module that `module.compile()` compiled in place: what hangs on the module itself would
    be compiled with it. Copies of a module leave its compiled form behind, and this with it."""

    def __init__(self, module: nn.Module, tap: Tap) -> None:
        self.module, self.tap = module, tap
        self.original = self.module._compiled_call_impl
        self.placed = vars(module)["_compiled_call_impl"] = self.call

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """The module's call, and then the hook."""
        output = self.original(*args, **kwargs)
        self.tap(self.module, args, kwargs, output)
        return output

    def remove(self) -> None:
        """Put the module's own back."""
        if vars(self.module).get("_compiled_call_impl") is self.placed:
            vars(self.module)["_compiled_call_impl"] = self.original


class Generate:
    """generate() of one model, watched. A copy of the model gets its own, not watched.

    original   what is called; `displaced` the attribute of the instance that this one replaces, None for none.
    """

    def __init__(
        self, watcher: Watching, model: nn.Module, original: Callable[..., Any], displaced: Any = None
    ) -> None:
        update_wrapper(self, original)
        self.watcher, self.model, self.original, self.displaced = watcher, model, original, displaced
        self.removed = self._failed = False
        self._drawn_under = 0
        self._busy = threading.Lock()

    def remove(self) -> None:
        """Put back what was there, unless somebody has replaced this one meanwhile; who does it for them
        passes over it."""
        self.removed = True
        own, below = vars(self.model), self.displaced
        if own.get("generate") is not self:
            return
        while isinstance(below, Generate) and below.removed:
            below = below.displaced
        if below is None:
            del own["generate"]
        else:
            own["generate"] = below

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the original returns. A call from inside another one, or beside one, is not told of."""
        watcher = self.watcher
        if self.removed or watcher.paused or not self._busy.acquire(blocking=False):
            return self.original(*args, **kwargs)
        try:
            self._tell_of_a_boundary()
            prepared = Prepared(attempt=self._attempt)
            output = self._captured(prepared, args, kwargs)
            self._attempt(watcher.drawn, prepared, args, kwargs, output)
            return output
        finally:
            self._busy.release()

    def _captured(self, prepared: Prepared, args: tuple, kwargs: dict) -> Any:
        """What the original returns, with what it prepares noted in `prepared`."""
        capture = Capture(self.model, prepared)
        _INSIDE.generate = getattr(_INSIDE, "generate", 0) + 1
        try:
            self._attempt(capture.begin)
            return self.original(*args, **kwargs)
        finally:
            _INSIDE.generate -= 1
            self._end(capture)

    def _end(self, capture: Capture) -> None:
        """Take the capture off the model, also where the guard has stepped aside meanwhile."""
        try:
            capture.end()
        except Exception as error:  # noqa: BLE001  the listener decides what becomes of it
            self._attempt(_raise, error)

    def _attempt(self, work: Callable[..., Any], *args: Any) -> Any:
        """As `attempt`; remembers that something failed."""
        results: list[Any] = []
        attempt(self.watcher.listener, lambda: results.append(work(*args)))
        self._failed = self._failed or not results
        return results[0] if results else None

    def _tell_of_a_boundary(self) -> None:
        """Tell that a step is over, if it is. What has failed before still tells, whenever weights have changed
        between two calls: other ranks may be waiting for this one to say that it does not go on."""
        before, self._drawn_under = self._drawn_under, _changes(self.model)
        over = self._attempt(self.watcher.begins_a_step)
        if over or (self._failed and before != self._drawn_under):
            self.watcher.listener.boundary()

    def __deepcopy__(self, memo: dict) -> Any:
        return MethodType(type(self.model).generate, memo.get(id(self.model), self.model))

    def __reduce__(self) -> tuple:
        return getattr, (self.model, "generate")


def _raise(error: Exception) -> None:
    raise error


def _changes(model: nn.Module) -> int:
    """How often the weights were written to, as far as torch counts it."""
    return sum(0 if weight.is_inference() else weight._version for weight in model.parameters())
