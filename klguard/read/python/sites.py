"""From files to sites: what is in force at each call that may be one, and in which context."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from klguard.engines import ENGINES
from klguard.read.checkpoints import checkpoint_layer
from klguard.read.python.arrivals import join_layers
from klguard.read.python.calls import Arguments
from klguard.read.python.candidates import Candidate, Candidates, assigns_config, references
from klguard.read.python.observe import ASSIGNED, Observation
from klguard.read.python.reaching import Reacher
from klguard.read.python.source import Module, called_name, dotted
from klguard.read.python.state import State
from klguard.settings import (
    Context,
    Hop,
    HopKind,
    Known,
    Layer,
    LayerKind,
    Reason,
    Settings,
    Site,
    SiteKind,
    Unknown,
    Value,
    members,
)

if TYPE_CHECKING:
    from klguard.read.python.project import Project


UNREACHED = "this call was not reached by the analysis"


class SiteReader(Reacher):
    """Finds the sites of the files of one project.

    What is in force is worked out where the context is one of `contexts`; of the other sites only the context is.
    """

    def __init__(
        self,
        project: Project,
        functions: Sequence[str] = (),
        trainers: Mapping[str, str] | None = None,
        contexts: Collection[Context] = frozenset(Context),
    ) -> None:
        super().__init__(project, frozenset(functions), trainers)
        self.contexts = frozenset(contexts)
        self.versions: Mapping[str, str] = {}
        self._candidates: dict[str, list[Candidate]] = {}

    def read(self, path: str, versions: Mapping[str, str]) -> list[Site]:
        """The sites of one file, in source order, with what is in force in the given versions of the libraries;
        `failures` holds what kept klguard from seeing more."""
        self.versions = versions
        self.prepare([path])
        module = self.project.module(path)
        if module is None:
            return []
        return sorted(self._sites(module, self._candidates[path]), key=lambda site: site.place)

    def prepare(self, paths: Sequence[str]) -> None:
        """Run what leads to the candidates of several files: together, so that what they share runs once."""
        new: list[tuple[Module, list[ast.expr]]] = []
        by_name = Candidates(self.project, self.functions, self.trainers)
        for path in paths:
            module = None if path in self._candidates else self.project.module(path)
            if module is None:
                continue
            self._candidates[path] = list(by_name.of(module))
            followed = (
                candidate.node for candidate in self._candidates[path] if self._asked_for(module, candidate)
            )
            nodes = [*followed, *references(module)]
            if nodes or assigns_config(module):
                self.holding.add(path)
                new.append((module, nodes))
        if new:
            # What was seen of these files in passing was seen without following what leads to their sites.
            fresh = {module.path for module, _ in new}
            self.observations = {key: seen for key, seen in self.observations.items() if key[0] not in fresh}
            self._ran.clear()
            self.reach(new)

    def _asked_for(self, module: Module, candidate: Candidate) -> bool:
        """Whether what is in force at a candidate is to be worked out."""
        if len(self.contexts) == len(Context):
            return True
        from klguard.read.python.context import analysis_of

        verdict = analysis_of(self.project).classify(module, candidate.node, candidate.kind)
        return verdict.context in self.contexts

    def _sites(self, module: Module, candidates: Sequence[Candidate]) -> Iterator[Site]:
        by_span = {module.ast_span(candidate.node): candidate for candidate in candidates}
        visited = {key[1:]: visits for key, visits in self.observations.items() if key[0] == module.path}
        calls: dict[tuple, ast.expr] = {}
        if visited.keys() - by_span.keys():
            calls = {module.ast_span(n): n for n in module.of(ast.Call, ast.Attribute)}
        for span in sorted(by_span.keys() | visited.keys()):
            candidate, visits = by_span.get(span), visited.get(span, [])
            node = candidate.node if candidate else calls.get(span)
            if node is None:
                continue
            if candidate is not None and not self._asked_for(module, candidate):
                yield self._passed_over(module, candidate)
            elif visits:
                yield self._site(module, node, visits)
            elif candidate is not None:
                yield self._unvisited(module, candidate)

    def _site(self, module: Module, node: ast.expr, visits: list[Observation]) -> Site:
        live = [visit for visit in visits if not visit.dead] or visits
        first = live[0]
        context, why, live = self._context(module, node, first.kind, live)
        layers = (
            join_layers(_distinct_layers(live))
            if live or not isinstance(node, ast.Call)
            else _written(module, node)
        )
        return self._finish(
            module, node, first.call, first.kind, first.engine, first.class_name, layers, context, why
        )

    def _passed_over(self, module: Module, candidate: Candidate) -> Site:
        """A site of a context that nobody asked for."""
        context, why, _ = self._context(module, candidate.node, candidate.kind, [])
        call = module.segment(candidate.node.func)
        settings = Settings("", candidate.kind, versions=dict(self.versions), context=context)
        return Site(
            module.ast_place(candidate.node), call, settings, why, module.enclosing_name(candidate.node)
        )

    def _unvisited(self, module: Module, candidate: Candidate) -> Site:
        """A site the interpreter did not get to: what is not written on the call as a literal is unknown."""
        call = candidate.node
        context, why, _ = self._context(module, call, candidate.kind, [])
        target = self.project.resolve(dotted(call.func), module)
        name = target if isinstance(target, str) and target else called_name(call)
        _, engine, kind, class_name = self._external(name, Arguments(), State())
        if candidate.kind is SiteKind.GENERATE:
            kind, engine, class_name = candidate.kind, "transformers", called_name(call)
        return self._finish(
            module,
            call,
            module.segment(call.func),
            kind or candidate.kind,
            engine or "local",
            class_name,
            _written(module, call),
            context,
            why,
        )

    def _context(
        self, module: Module, node: ast.expr, kind: SiteKind, visits: list[Observation]
    ) -> tuple[Context, str, list[Observation]]:
        """Whether the output is trained on, and the visits that decide: those of rollouts where there are any, first
        those whose tokens are seen to be trained on, else those that only a name calls rollouts.

        None decides where every visit comes from an evaluation or a demo, and the training that makes the call a
        rollout was not followed this far.
        """
        from klguard.read.python.context import analysis_of

        if not isinstance(node, ast.Call):
            return (*self._readers_context(module, visits), visits)
        if visits and visits[0].key in self.used_partials:
            return Context.UNKNOWN, "the calls of this partial are sites of their own", visits
        analysis = analysis_of(self.project)
        overall = analysis.classify(module, node, kind)
        if overall.context is not Context.ROLLOUT or not any(visit.chain for visit in visits):
            return overall.context, overall.why, visits
        rollouts: list[Observation] = []
        named: list[Observation] = []
        pairs: list[Observation] = []
        unclear: list[Observation] = []
        for visit in visits:
            chain = tuple(self._caller(link) for link in reversed(visit.chain))
            known = tuple(link for link in chain if link is not None)
            if len(known) < len(chain):
                known = known[: chain.index(None)]
            verdict = analysis.classify_through(module, node, kind, known)
            if verdict.context is Context.ROLLOUT:
                (pairs if verdict.pairs else named if verdict.named else rollouts).append(visit)
            elif verdict.context is Context.UNKNOWN or not known:
                unclear.append(visit)
        return overall.context, overall.why, rollouts or named or pairs or unclear

    def _readers_context(self, module: Module, visits: list[Observation]) -> tuple[Context, str]:
        """The context of the calls that sample with a model whose generation_config is assigned to; of several, a
        rollout decides."""
        from klguard.read.python.context import analysis_of

        analysis = analysis_of(self.project)
        readers = {
            key: kind for visit in visits for key, kind in self.config_readers.get(visit.key, {}).items()
        }
        verdicts = []
        for (path, *span), kind in readers.items():
            home = self.project.module(path)
            call = next(
                (c for calls in home.calls.values() for c in calls if home.ast_span(c) == tuple(span)), None
            )
            if call is not None:
                verdict = analysis.classify(home, call, kind)
                where = f"line {home.ast_place(call).line}" + ("" if home is module else f" of {path}")
                verdicts.append((verdict.context, f"read by the call at {where}: {verdict.why}"))
        for context in (Context.ROLLOUT, Context.EVALUATION, Context.INFERENCE, Context.UNKNOWN):
            if (found := next((v for v in verdicts if v[0] is context), None)) is not None:
                return found
        return Context.UNKNOWN, "no call that samples with this model is visible after it"

    def _caller(self, link: Any) -> tuple[Module, ast.expr] | None:
        """The ast call behind one link of an interpreter's chain."""
        _, node, module, _ = link
        return None if node is None or node.origin is None else (module, node.origin)

    def _finish(
        self,
        module: Module,
        node: ast.expr,
        call: str,
        kind: SiteKind,
        engine: str,
        class_name: str,
        layers: tuple[Layer, ...],
        context: Context,
        why: str,
    ) -> Site:
        from klguard.read.python.wiring import facts as wiring_facts

        facts = (
            dict(wiring_facts(self.project, module, node, kind, engine)) if isinstance(node, ast.Call) else {}
        )
        if kind in (SiteKind.GENERATE, SiteKind.TRAINER) and not any(
            x.kind is LayerKind.CHECKPOINT for x in layers
        ):
            layers += self._brought_along(module, facts)
        resolved = ENGINES[engine].resolve(
            layers, self.versions, kind=kind, class_name=class_name, facts=facts
        )
        facts.update({name: Known(value) for name, value in resolved.facts.items()})
        if context is Context.ROLLOUT and isinstance(node, ast.Call) and self._for_pairs(module, node, kind):
            facts["pairs"] = Known(True)
        if (module.path, *module.ast_span(node)) in self.config_readers and class_name == ASSIGNED:
            readers = self.config_readers[(module.path, *module.ast_span(node))]
            calls = [key for key, reader in readers.items() if reader is SiteKind.GENERATE]
            if len(calls) == len(readers):
                # What is assigned is in force at these calls: it is reported there, once.
                facts["read_by"] = Known(", ".join(f"line {key[1]} of {key[0]}" for key in calls))
        mitigations = {**self._mitigations(module, node, kind, resolved.values), **resolved.mitigations}
        settings = Settings(
            engine,
            kind,
            resolved.values,
            layers,
            facts,
            mitigations,
            dict(self.versions),
            context,
            class_name,
        )
        return Site(module.ast_place(node), call, settings, why, module.enclosing_name(node))

    def _for_pairs(self, module: Module, call: ast.Call, kind: SiteKind) -> bool:
        from klguard.read.python.context import analysis_of

        return analysis_of(self.project).classify(module, call, kind).pairs

    def _brought_along(self, module: Module, facts: Mapping[str, Value]) -> tuple[Layer, ...]:
        """What the checkpoint fills in, where its name is known."""
        named = members(facts["checkpoint"]) if "checkpoint" in facts else ()
        names = [m.value for m in named if isinstance(m, Known)]
        if len(names) != 1 or not isinstance(names[0], str):
            return ()
        root = self.project.root
        layer = checkpoint_layer(names[0], (root, root / Path(module.path).parent, Path(module.path).parent))
        return () if layer is None else (layer,)

    def _mitigations(
        self, module: Module, node: ast.expr, kind: SiteKind, values: Mapping[str, Value]
    ) -> Mapping[str, str]:
        from klguard.read.python.wiring import mitigations

        return mitigations(self.project, module, node, kind, values) if isinstance(node, ast.Call) else {}


def _written(module: Module, call: ast.Call) -> tuple[Layer, ...]:
    """What a call that was not reached says itself: its literals."""
    unknown = Unknown(Reason.BUDGET, UNREACHED)
    written = {k.arg: _literal(module, k.value) or unknown for k in call.keywords if k.arg}
    return (Layer(LayerKind.KWARGS, written, unknown),)


def _distinct_layers(visits: Sequence[Observation]) -> list[tuple[Layer, ...]]:
    """The layers of visits, without the repetitions that loops produce."""
    found: dict[str, tuple[Layer, ...]] = {}
    for visit in visits:
        key = repr(
            [(x.kind, sorted((k, _plain(v)) for k, v in x.values.items()), str(x.rest)) for x in visit.layers]
        )
        found.setdefault(key, visit.layers)
    return list(found.values())


def _plain(value: Any) -> str:
    return repr(
        [(type(m).__name__, getattr(m, "value", None), getattr(m, "detail", "")) for m in members(value)]
    )


def _literal(module: Module, node: ast.expr) -> Known | None:
    """The value of a literal, with its place."""
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    return Known(value, (Hop(HopKind.LITERAL, module.ast_place(node), "written here"),))
