"""What adapters of trainers have in common: an adapter knows one kind of trainer from inside, wraps methods of one
trainer object, and tells a guard what the trainer computes. The trainer gets what it would have got.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from klguard.guard.events import Rollout
from klguard.guard.frameworks.capture import Prepared
from klguard.guard.frameworks.taps import CompiledTap, Generate, Tap, attempt
from klguard.guard.frameworks.transformers import Watcher
from klguard.guard.frameworks.wrappers import chain, hookable
from klguard.guard.guard import Guard
from klguard.guard.live import findings
from klguard.guard.violation import Violation
from klguard.settings import Site

MOST_CALLS = 256
"""Calls of generate() that are remembered between two rollouts, at most: the latest."""


class Reader(Watcher):
    """Reads each generate() of a policy as it is called. Which passes score its tokens is known otherwise.

    calls   what was told of each call since the last `forget()`: the rollout, and the settings in force.
    """

    def __init__(self, guard: Guard, policy: nn.Module) -> None:
        super().__init__(guard, policy)
        self.calls: list[tuple[Rollout, Site]] = []
        self.paused = True

    def install(self) -> None:
        """Begin to read."""
        if self._wrapper is None and self.model is not None:
            own = vars(self.model)
            self._wrapper = Generate(self, self.model, self.model.generate, own.get("generate"))
            own["generate"] = self._wrapper

    def begins_a_step(self) -> bool:
        """Steps end where the trainer ends them."""
        return False

    def drawn(self, prepared: Prepared, args: tuple, kwargs: dict, output: Any) -> None:
        """Remember what a call had in force."""
        sequences = self._sequences(output)
        if sequences is not None and not sequences.dtype.is_floating_point:
            with torch.inference_mode(False), torch.no_grad():
                self.calls.append(self._rollout(sequences, prepared, args, kwargs))
            self.memory.forget()
            del self.calls[:-MOST_CALLS]

    def forget(self) -> None:
        """Begin anew."""
        self.calls.clear()

    @contextmanager
    def reading(self, on: bool = True) -> Iterator[None]:
        """Read the calls made meanwhile; or, with `on` False, let them pass."""
        before, self.paused = self.paused, not on
        try:
            yield
        finally:
            self.paused = before


def distinct(sites: Collection[Site]) -> list[Site]:
    """One site for each different verdict of the rules, the first of its kind first."""
    kept: dict[tuple, Site] = {}
    for site in sites:
        kept.setdefault(tuple((f.code, f.setting, f.message) for f in findings(site)), site)
    return list(kept.values())


class Adapter:
    """Tells `guard` of `trainer`. Subclasses say how: `install`, `options`, and what they wrap.

    paused     forward passes are not looked at.
    hooked     the module whose passes are, None before `listen`.
    """

    def __init__(self, guard: Guard, trainer: Any, policy: nn.Module) -> None:
        self.guard, self.trainer, self.policy = guard, trainer, policy
        self.listener, self.paused = guard, True
        self.reader = Reader(guard, policy)
        self._undo: list[Callable[[], Any]] = []
        self.hooked: nn.Module | None = None
        self._hook: Any = None
        guard.told_by()

    # -- coming and going --------------------------------------------------------------------------------------

    def wrap(self, name: str, around: Callable[..., Any]) -> None:
        """Let `around(original, *args, **kwargs)` answer for a method of the trainer."""
        original, own = getattr(self.trainer, name), vars(self.trainer)
        before = own.get(name)

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if not self.alive:
                return original(*args, **kwargs)
            return around(original, *args, **kwargs)

        def undo() -> None:
            if own.get(name) is wrapper:
                own.pop(name) if before is None else own.update({name: before})

        own[name] = wrapper
        self._undo.append(undo)

    def listen(self) -> None:
        """Look at the policy's forward passes, in `passed`, while not paused."""
        self.hook(hookable(chain(self.policy))[0])

    def hook(self, module: nn.Module) -> None:
        """Look at the passes of `module`, and no longer at those of another."""
        if self._hook is not None:
            self._hook.remove()
        tap = Tap(self, "policy")
        compiled = getattr(module, "_compiled_call_impl", None) is not None
        hook = CompiledTap(module, tap) if compiled else module.register_forward_hook(tap, with_kwargs=True)
        self.hooked, self._hook = module, hook
        self._undo.append(hook.remove)

    def remove(self) -> None:
        """Take everything off the trainer and its models."""
        self.reader.remove()
        while self._undo:
            self._undo.pop()()

    @property
    def alive(self) -> bool:
        """Whether the guard is still at work."""
        return not self.guard._aside

    def begins_a_step(self) -> bool:
        """As `Watching` asks; generate() is read by the reader."""
        return False

    def passed(self, role: str, args: tuple, kwargs: dict, output: Any) -> None:
        """A forward pass of the policy is over."""

    # -- telling -----------------------------------------------------------------------------------------------

    def told(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What `work` returns; None where it failed and the guard stepped aside. Nobody but klguard calls the
        guard here, so that a mistake in a call is the guard's own failure, and not the user's."""
        return attempt(self.guard, lambda: _ours(work, *args, **kwargs))

    def judge_settings(self, sites: Collection[Site], rollout: dict[str, Any]) -> None:
        """Tell of a rollout, `rollout` being the arguments of `Guard.rollout`, drawn with these settings."""
        first, *others = distinct(sites) or [None]
        self.guard.rollout(settings=first, **rollout)
        for site in others:
            event = Rollout(place=site.place, responses=rollout["responses"], settings=site.settings)
            self.guard._works.rollout(event, site, findings(site), dispatch=False)


def _ours(work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return work(*args, **kwargs)
    except Violation:
        raise
    except Exception as error:
        error._klguard_caller = False
        raise


def locals_of(names: Collection[str], function: str, owner: Any, package: str) -> dict[str, Any] | None:
    """Local variables of the running `function` of `package` whose `self` is `owner`, by name, those that have a
    value; None where it does not run.

    Before Python 3.13 a frame keeps a snapshot of its variables once they were asked for, and would hold on to
    tensors that the function deletes: the snapshot is emptied again, unless a debugger is using it.
    """
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "").partition(".")[0]
        if frame.f_code.co_name == function and module == package:
            variables = frame.f_locals
            found = {name: variables[name] for name in names if name in variables}
            mine = variables.get("self") is owner
            if type(variables) is dict and sys.gettrace() is None:
                variables.clear()
            if mine:
                return found
        frame = frame.f_back
    return None


def rows_as_tensor(rows: Any, device: torch.device) -> Tensor:
    """Row numbers, of numpy or a list, as int64 on `device`."""
    return torch.as_tensor(rows, dtype=torch.int64).to(device, non_blocking=True)


@contextmanager
def other_randomness(device: torch.device) -> Iterator[None]:
    """Random numbers of their own for one pass, so that dropout falls differently; all as it was afterwards."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        torch.rand(1, device=device)
        yield
