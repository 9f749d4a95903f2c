"""The files that belong to one program: what a file imports, and what imports it."""

from __future__ import annotations

from collections.abc import Iterator
from weakref import WeakKeyDictionary

from klguard.read.python.project import Project
from klguard.read.python.source import Module

MAX_FILES = 40
MAX_STEPS = 3

_RELATED: WeakKeyDictionary[Module, list[Module]] = WeakKeyDictionary()


def related(project: Project, module: Module) -> list[Module]:
    """`module`, the files it imports, the files that import it, and what those import; nearest first."""
    if module not in _RELATED:
        _RELATED[module] = _closure(project, module)
    return _RELATED[module]


def _closure(project: Project, module: Module) -> list[Module]:
    found = {module: None}
    edge = [module, *importers(project, module)]
    found |= dict.fromkeys(edge)
    for _ in range(MAX_STEPS):
        edge = [target for source in edge for target in imported(project, source) if target not in found]
        found |= dict.fromkeys(edge)
        if not edge or len(found) > MAX_FILES:
            break
    return list(found)[:MAX_FILES]


def imported(project: Project, module: Module) -> Iterator[Module]:
    """Files of the project that `module` imports, or imports a name from."""
    seen = {module}
    for target in (*module.imports.values(), *module.star_imports):
        for name in (target, target.rpartition(".")[0]):
            found = project.find_module(name, module) if name.strip(".") else None
            if found is not None and found not in seen:
                seen.add(found)
                yield found
                break


def importers(project: Project, module: Module) -> Iterator[Module]:
    """Files of the project that import `module`."""
    word = module.name.rpartition(".")[2]
    for other in project.mentioning(word) if word else ():
        if other is not module and any(found is module for found in imported(project, other)):
            yield other
