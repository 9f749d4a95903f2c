"""Which calls may be sites, by their names alone: before anything is known about them."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from klguard.engines import ENGINES
from klguard.read.python.source import ClassInfo, Module, dotted
from klguard.settings import SiteKind

if TYPE_CHECKING:
    from klguard.read.python.project import Project

METHODS = frozenset({"generate", "respond_to_batch"})
"""Callee names that sample, whatever they are called on."""

ENGINE_METHODS = frozenset({"chat", "fast_generate"})
"""Callee names that sample where they are given an engine's sampling parameters: vLLM's, and Unsloth's for vLLM."""

CLASS_KINDS = {
    name: kind for engine in ENGINES.values() for name, kind in engine.sites.items() if name[:1].isupper()
}
"""The classes whose instances are sites."""


@dataclass(frozen=True)
class Candidate:
    """A call that looks like a site, before anything is known about it."""

    node: ast.Call
    kind: SiteKind


class Candidates:
    """Finds the candidates of the files of one project, which may have sampling functions and trainers of its own."""

    def __init__(self, project: Project, functions: Collection[str], trainers: Collection[str]) -> None:
        self.project = project
        self.functions = {name.rpartition(".")[2] for name in functions}
        self.trainers = trainers

    def of(self, module: Module) -> Iterator[Candidate]:
        """Calls that may be sites, by their names."""
        wanted = {alias: target.rpartition(".")[2] for alias, target in module.imports.items()}
        for name, calls in module.calls.items():
            real = wanted.get(name, name)
            if real in CLASS_KINDS or real in self.trainers:
                kind = CLASS_KINDS.get(real, SiteKind.TRAINER)
            elif name in METHODS or real in METHODS or name in self.functions:
                kind = SiteKind.GENERATE
            elif name in ENGINE_METHODS:
                calls, kind = [c for c in calls if _takes_parameters(c)], SiteKind.GENERATE
            elif name[:1].isupper() and any(part in name for part in ("Trainer", "Config", "Params")):
                yield from self._inherited(calls, module)
                continue
            elif name == "train" and "trlx" in module.imports:
                kind = SiteKind.TRAINER
            elif name == "remote":
                calls, kind = [c for c in calls if _remote_generate(c)], SiteKind.GENERATE
            else:
                continue
            yield from (
                Candidate(call, kind)
                for call in calls
                if kind is not SiteKind.TRAINER or name != "train" or _on_trlx(call)
            )

    def _inherited(self, calls: Iterable[ast.Call], module: Module) -> Iterator[Candidate]:
        """Calls of classes of the project that are trainers or configs by what they inherit."""
        kinds: dict[str, SiteKind | None] = {}
        for call in calls:
            name = dotted(call.func)
            if name not in kinds:
                kinds[name] = self._inherited_kind(name, module)
            kind = kinds[name]
            if kind is not None:
                yield Candidate(call, kind)

    def _inherited_kind(self, name: str, module: Module) -> SiteKind | None:
        """The kind of a project's subclass of a trainer or config."""
        todo, seen = [(name, module)], set()
        while todo and len(seen) < 20:
            current, home = todo.pop()
            if (current, home.path) in seen:
                continue
            seen.add((current, home.path))
            target = self.project.resolve(current, home)
            if isinstance(target, ClassInfo):
                for base in target.bases:
                    last = base.rpartition(".")[2]
                    if last in CLASS_KINDS:
                        return CLASS_KINDS[last]
                    todo.append((base, target.module))
        return None


def assigns_config(module: Module) -> bool:
    """Whether `x.generation_config.top_k = 5` stands somewhere: a site that is no call."""
    return any(
        isinstance(above := module.parents[node], ast.Attribute) and isinstance(above.ctx, ast.Store)
        for node in module.mentions.get("generation_config", ())
        if isinstance(node, ast.Attribute)
    )


def references(module: Module) -> list[ast.expr]:
    """Where a method that samples is named and not called: `sample = model.generate`, `partial(model.generate, ...)`."""
    called = {id(call.func) for name in METHODS for call in module.calls.get(name, ())}
    return [
        node
        for name in sorted(METHODS)
        for node in module.mentions.get(name, ())
        if isinstance(node, ast.Attribute) and id(node) not in called
    ]


def _takes_parameters(call: ast.Call) -> bool:
    """`llm.chat(messages, sampling_params)`, by the name of what it is given."""
    if any(keyword.arg == "sampling_params" for keyword in call.keywords):
        return True
    second = call.args[1] if len(call.args) > 1 else None
    named = dotted(second) if isinstance(second, (ast.Name, ast.Attribute)) else ""
    return "sampling" in named or named.endswith("params")


def _remote_generate(call: ast.Call) -> bool:
    """Ray's `actor.generate.remote(...)`."""
    func = call.func
    return (
        isinstance(func, ast.Attribute)
        and isinstance(func.value, ast.Attribute)
        and func.value.attr in METHODS
    )


def _on_trlx(call: ast.Call) -> bool:
    return (
        isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "trlx"
    )
