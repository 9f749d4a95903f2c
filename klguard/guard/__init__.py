"""The guard: what watches a running training loop. The only part of klguard that needs torch.

Names are loaded when they are first used, so that the journal and the catalogue can be read without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from klguard.guard.frameworks.trl import GuardCallback, guard_trainer
    from klguard.guard.guard import Guard
    from klguard.guard.violation import GuardWarning, Violation

_HOMES = {
    "Guard": "guard",
    "GuardCallback": "frameworks.trl",
    "GuardWarning": "violation",
    "Violation": "violation",
    "guard_trainer": "frameworks.trl",
}

__all__ = ["Guard", "GuardCallback", "GuardWarning", "Violation", "guard_trainer"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "transformers"):
            raise
        raise ImportError(
            f"klguard.{name} needs {error.name}: install the guard with `pip install 'klguard[guard]'`"
        ) from None


def __dir__() -> list[str]:
    return __all__
