"""What is put on a model to watch it: a forward hook, and a generate() of its own.

A loop may copy or pickle its model while it is watched (a reference made from the policy, a checkpoint). The
copy is not watched, and holds nothing of the guard.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from types import MethodType
from typing import Any, Protocol

from torch import nn


class Watching(Protocol):
    """Who watches."""

    def passed(self, role: str, args: tuple, kwargs: dict, output: Any) -> None:
        """A forward pass is over."""

    def generate(self, original: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        """Run `original`, and return what it returns."""


def _nothing(*args: Any, **kwargs: Any) -> None:
    """What a hook becomes in a copy of the model."""


def _make_nothing() -> Callable[..., None]:
    return _nothing


class Tap:
    """A forward hook. A copy of the model, deep or pickled, gets a hook that does nothing."""

    def __init__(self, watcher: Watching, role: str) -> None:
        self.watcher, self.role = watcher, role

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        self.watcher.passed(self.role, args, kwargs, output)

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
        self.removed = False

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
        return self.watcher.generate(self.original, args, kwargs)

    def __deepcopy__(self, memo: dict) -> Any:
        return MethodType(type(self.model).generate, memo.get(id(self.model), self.model))

    def __reduce__(self) -> tuple:
        return getattr, (self.model, "generate")
