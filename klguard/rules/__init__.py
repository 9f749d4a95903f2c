"""The rules, one file each. A new file with a `Rule` in it is found by itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules

from klguard.rules.rule import Example, Hazard, Rule

_TOOLS = frozenset(
    {"pages"}
)  # reads the finished registry, so it cannot be imported while that is being built


def _found() -> Iterator[Rule]:
    for module in iter_modules(__path__):
        if module.name in _TOOLS:
            continue
        loaded = import_module(f"{__name__}.{module.name}")
        for kind in vars(loaded).values():
            if (
                inspect.isclass(kind)
                and issubclass(kind, Rule)
                and kind.__module__ == loaded.__name__
                and hasattr(kind, "code")
            ):
                yield kind()


RULES: dict[str, Rule] = {rule.code: rule for rule in sorted(_found(), key=lambda rule: rule.code)}


def find(code_or_name: str) -> Rule | None:
    """The rule called `KLG101` or `top-k`, in any case."""
    wanted = code_or_name.strip()
    by_name = (rule for rule in RULES.values() if rule.name == wanted.lower())
    return RULES.get(wanted.upper()) or next(by_name, None)


def page(rule: Rule) -> str:
    """The page of a rule, in Markdown: its docstring under its name."""
    text = inspect.cleandoc(rule.__doc__ or "")
    return f"# {rule.name} ({rule.code})\n\nSeverity: {rule.severity.value}\n\n{text}\n"


__all__ = ["RULES", "Example", "Hazard", "Rule", "find", "page"]
