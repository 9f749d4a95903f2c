"""The files that belong to one program: what a file imports, and what imports it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain, islice

from klguard.read.python.memo import remembered
from klguard.read.python.project import Project
from klguard.read.python.source import Module

MAX_FILES = 40
MAX_STEPS = 3


@remembered
def related(project: Project, module: Module) -> list[Module]:
    """`module`, the files it imports, the files that import it, and what those import; nearest first."""
    found = dict.fromkeys(islice(chain((module,), importers(project, module)), MAX_FILES))
    edge = list(found)
    for _ in range(MAX_STEPS):
        following: list[Module] = []
        for target in chain.from_iterable(imported(project, source) for source in edge):
            if len(found) == MAX_FILES:
                return list(found)
            if target not in found:
                found[target] = None
                following.append(target)
        edge = following
    return list(found)


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
    pattern = rf"\b(?:from|import)\b(?:[^\n]*|\s*\([^)]*)\b{re.escape(word)}\b"
    for other in project.mentioning(pattern, word) if word else ():
        if other is not module and any(found is module for found in imported(project, other)):
            yield other
