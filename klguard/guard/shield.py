"""The guard's own errors stay its own: caught, told once, and the guard steps aside."""

from __future__ import annotations

import functools
import logging
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from klguard.findings import INTERNAL_ERROR, Confidence, Finding, Severity
from klguard.guard.caller import depth
from klguard.guard.violation import NOWHERE, GuardWarning, Violation

LOG = logging.getLogger("klguard")


def shielded(
    default: Callable[..., Any] | None = None, *, parting: Callable[..., Any] | None = None
) -> Callable:
    """Run a method of a Shielded under its lock. On an error of the guard's own, step aside and answer
    `default(self, ...)`, or do `parting(self, ...)`; so does every later call. Violations and the caller's own
    mistakes pass."""

    def decorate(method: Callable) -> Callable:
        @functools.wraps(method)
        def call(self: Shielded, *args: Any, **kwargs: Any) -> Any:
            with self._lock:
                if not self._aside:
                    outermost, self._inside = not self._inside, True
                    began = time.perf_counter()
                    try:
                        with _ordinary_tensors():
                            return method(self, *args, **kwargs)
                    except Violation:
                        raise
                    except Exception as error:  # noqa: BLE001  whatever it is, the run must go on
                        if is_callers(error) or _miscalled(error):
                            raise
                        self._step_aside(error)
                    finally:
                        if outermost:
                            self._inside = False
                            self.seconds += time.perf_counter() - began
                if default:
                    return default(self, *args, **kwargs)
                if parting:
                    _farewell(parting, self, *args, **kwargs)
                return None

        return call

    return decorate


def _farewell(parting: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """What is done instead once the guard has stepped aside; nothing of it may reach the loop any more."""
    try:
        parting(*args, **kwargs)
    except Exception as error:  # noqa: BLE001
        LOG.debug("after stepping aside", exc_info=error)


def _ordinary_tensors() -> Any:
    """State made in the caller's inference mode could not be updated outside it."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def callers(error: BaseException) -> BaseException:
    """Mark an error as the caller's: it is raised to them."""
    error._klguard_caller = True
    return error


def is_callers(error: BaseException) -> bool:
    """Whether it is to be raised to the caller."""
    return getattr(error, "_klguard_caller", False)


def _miscalled(error: BaseException) -> bool:
    """Whether the method was called with arguments that it does not take: its own frame was never entered."""
    trace = error.__traceback__
    return isinstance(error, TypeError) and trace is not None and trace.tb_next is None


class Shielded:
    """Something whose methods are `shielded`. `failure` is the error it stepped aside for; `seconds` the time
    spent in its methods."""

    def __init__(self, *, strict: bool) -> None:
        self._lock = threading.RLock()
        self._strict = strict
        self._aside = False
        self._inside = False
        self.failure: BaseException | None = None
        self.seconds = 0.0

    def _checked(self, check: Callable, *args: Any, **kwargs: Any) -> Any:
        """Call what judges the caller's own input: its ValueError and TypeError are the caller's."""
        try:
            return check(*args, **kwargs)
        except (ValueError, TypeError) as error:
            raise callers(error) from None

    def _step_aside(self, error: BaseException) -> None:
        if self._strict:
            raise error
        if self._aside:
            return
        self._aside, self.failure = True, error
        code, name = INTERNAL_ERROR
        message = (
            f"the guard failed and stepped aside, the run goes on unguarded: {type(error).__name__}: {error}"
        )
        self._note_failure(Finding(code, name, Severity.WARNING, Confidence.HIGH, message, NOWHERE))
        LOG.warning(message, exc_info=error)
        with warnings.catch_warnings():
            # even where warnings are errors: this one must not end the run
            warnings.simplefilter("always", GuardWarning)
            warnings.warn(message, GuardWarning, stacklevel=depth())

    def _note_failure(self, finding: Finding) -> None:
        """Keep the finding about its own failure."""
        raise NotImplementedError
