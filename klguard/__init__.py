"""klguard: are the rollouts drawn from the distribution whose log-probabilities the trainer computes?

Importing this package imports nothing else: each public name is loaded when it is first used. The guard needs
torch (`pip install 'klguard[guard]'`); nothing else does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from klguard.check import Report, check_paths, check_source
    from klguard.config import Config
    from klguard.findings import Confidence, Finding, Severity
    from klguard.guard import Guard, GuardWarning, Violation, guard_trainer
    from klguard.pure import pure_sampling
    from klguard.settings import Context, Site

__version__ = "0.1.0"

_HOMES = {
    "Config": "config",
    "Confidence": "findings",
    "Context": "settings",
    "Finding": "findings",
    "Guard": "guard",
    "GuardWarning": "guard",
    "Report": "check",
    "Severity": "findings",
    "Site": "settings",
    "Violation": "guard",
    "check_paths": "check",
    "check_source": "check",
    "guard_trainer": "guard",
    "pure_sampling": "pure",
}

__all__ = [
    "Confidence",
    "Config",
    "Context",
    "Finding",
    "Guard",
    "GuardWarning",
    "Report",
    "Severity",
    "Site",
    "Violation",
    "__version__",
    "check_paths",
    "check_source",
    "guard_trainer",
    "pure_sampling",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
