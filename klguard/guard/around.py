"""Around the loop: a guard as decorator and context manager, from the hooks it sets to the last judgement."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

from torch import nn

from klguard.guard import models
from klguard.guard.listening import Listening
from klguard.guard.shield import LOG, shielded

if TYPE_CHECKING:
    from typing_extensions import Self

NOTHING = (
    "klguard was given no policy and told of nothing, so it has checked nothing: pass it the models, Guard(policy,"
    " reference, tokenizer), or tell it what the loop does, guard.rollout(...) and guard.logprobs(...)"
)

_WATCHED: set[int] = set()
"""Policies (by id) that a guard is watching: two would wrap the same methods, and take them off in any order."""


class Around(Listening):
    """Watches models and optimizers while the loop runs, and takes its hands off them when it ends, also by an error.

    It may be entered again while it is in force, by any thread: the outermost counts.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._depth = 0

    def __call__(self, function: Callable) -> Callable:
        """Guard a training function, plain or async: everything of `with guard:` holds while it runs. That of
        a generator function holds from its first item to its last, for the loop runs while it is iterated.
        TypeError for what is no function."""
        if isinstance(function, (type, nn.Module)) or not callable(function):
            kind = f"a {type(function).__name__}" if not isinstance(function, type) else "a class"
            raise TypeError(
                f"the guard was put around {kind}; put it around the function that trains, or write `with guard:`"
            )
        if inspect.isasyncgenfunction(function):

            @functools.wraps(function)
            async def guarded_items(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
                with self:
                    async with contextlib.aclosing(function(*args, **kwargs)) as items:
                        async for item in items:
                            yield item

            return guarded_items

        if inspect.isgeneratorfunction(function):

            @functools.wraps(function)
            def guarded_generator(*args: Any, **kwargs: Any) -> Iterator[Any]:
                with self:
                    return (yield from function(*args, **kwargs))

            return guarded_generator

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def guarded_async(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return await function(*args, **kwargs)

            return guarded_async

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return guarded

    def __enter__(self) -> Self:
        with self._lock:
            self._depth += 1
            if self._depth > 1:
                return self
            policy = self._works.run.policy
            if policy is not None and id(policy) in _WATCHED:
                self._depth -= 1
                raise RuntimeError("another guard is watching this policy: use one guard for each policy")
            if policy is not None:
                _WATCHED.add(id(policy))
        try:
            self._install()
            self._look_at_setup()
        except BaseException:
            self._leave()
            self._end_journal("raised")
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        with self._lock:
            if self._depth > 1:
                self._depth -= 1
                return
        # whoever stops iterating over a guarded generator ends the loop, in order
        failing = error is not None and not isinstance(error, GeneratorExit)
        outcome = "raised"
        try:
            self._finish(failing=failing)
            outcome = "raised" if failing else "finished"
        finally:
            self._leave()
            self._end_journal(outcome)

    def _end_journal(self, outcome: str) -> None:
        """End the journal, if that is still to do, where no shield is wanted: another error may be on its way."""
        with contextlib.suppress(Exception):
            self.close(outcome)

    def _leave(self) -> None:
        with self._lock:
            self._depth = 0
            policy = self._works.run.policy
            if policy is not None:
                _WATCHED.discard(id(policy))
        self._uninstall()

    def _look_at_setup(self) -> None:
        """Say at once, on all ranks, what is wrong with what the guard was given."""
        self._begin_now()
        self._between_steps(None)

    @shielded()
    def _begin_now(self) -> None:
        self._begin()

    @shielded()
    def _install(self) -> None:
        from klguard.guard.frameworks.transformers import Watcher

        self._hooks.install()
        run = self._works.run
        watchable = isinstance(run.policy, nn.Module) and hasattr(models.inner(run.policy), "generate")
        if watchable and not self.told_by_adapter:
            pad_id = models.padding_id(run.policy, run.tokenizer)
            self._watcher = Watcher(self, run.policy, run.reference, stop_ids=run.stop_ids, pad_id=pad_id)
            self._watcher.install()

    def _uninstall(self) -> None:
        watcher, self._watcher = self._watcher, None
        removals = [self._hooks.remove]
        removals += [watcher.remove] if watcher is not None else []
        removals += [i.close for i in self._works.invariants if hasattr(i, "close")]
        for remove in removals:
            try:
                remove()
            except Exception as error:  # noqa: BLE001  the other hooks have to go all the same
                self._step_aside(error)

    @shielded()
    def _finish(self, failing: bool) -> None:
        """The loop is over: judge what is left. Nothing is raised over an error of the loop's own, and ranks
        are not asked to agree then: the others may never come."""
        open_still = self._step_open and not failing and not self._works.ranks.active
        outcomes = self._end_step(None) if open_still else []
        outcomes += self._works.flush()
        if not failing and self._works.run.policy is None and not (self._by_hand or self.exercised):
            LOG.warning(NOTHING)
        if failing:
            self._absorb(outcomes)
        else:
            self._settle(outcomes)
        self.close("raised" if failing else "finished")
