"""From files to sites: which calls may be sites, from where the program reaches them, and what is in force there."""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from klguard.engines import ENGINES
from klguard.findings import Confidence, Finding, Severity
from klguard.read.checkpoints import checkpoint_layer
from klguard.read.python.arrivals import join_layers
from klguard.read.python.calls import Arguments
from klguard.read.python.control import BudgetSpent
from klguard.read.python.observe import ASSIGNED, METHODS, Observation, Observer
from klguard.read.python.project import Use
from klguard.read.python.source import ClassInfo, FunctionInfo, Module, called_name, dotted
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
    from klguard.read.python.values import (
        Code,
    )

ROOT_BUDGET = 15_000
"""Statements executed for one root."""

MAX_CALLERS = 12
MAX_FUNCTIONS = 60
MAX_LEVELS = 6

SMALL = 150
"""Lines of a function that is run in place although no site lies behind it."""

COMMON = frozenset(
    {"__init__", "forward", "__call__", "run", "main", "get", "update", "__getitem__", "setup", "reset"}
)
"""Method names too common to find callers by."""

CLASS_NAMES = frozenset(name for engine in ENGINES.values() for name in engine.sites if name[:1].isupper())

MARKERS: tuple[bytes, ...] = (
    b"generate",
    b"respond_to_batch",
    b"trlx",
    *sorted(name.encode() for name in CLASS_NAMES),
)
"""Bytes without one of which a file holds no site."""


@dataclass(frozen=True)
class Candidate:
    """A call that looks like a site, before anything is known about it."""

    node: ast.Call
    kind: SiteKind


class SiteReader(Observer):
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
        self.closure: set[FunctionInfo] = set()
        self.holding: set[str] = set()
        self._candidates: dict[str, list[Candidate]] = {}
        self._ran: set[Any] = set()
        self.failures: dict[str, dict[int, Finding]] = {}
        self.errors: dict[str, Exception] = {}

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
        for path in paths:
            module = None if path in self._candidates else self.project.module(path)
            if module is None:
                continue
            self._candidates[path] = list(self.candidates(module))
            followed = (
                candidate.node for candidate in self._candidates[path] if self._asked_for(module, candidate)
            )
            nodes = [*followed, *_references(module)]
            if nodes or _assigns(module):
                self.holding.add(path)
                new.append((module, nodes))
        if new:
            # What was seen of these files in passing was seen without following what leads to their sites.
            fresh = {module.path for module, _ in new}
            self.observations = {key: seen for key, seen in self.observations.items() if key[0] not in fresh}
            self._ran.clear()
            self._reach(new)

    def _asked_for(self, module: Module, candidate: Candidate) -> bool:
        """Whether what is in force at a candidate is to be worked out."""
        if len(self.contexts) == len(Context):
            return True
        from klguard.read.python.context import analysis_of

        verdict = analysis_of(self.project).classify(module, candidate.node, candidate.kind)
        return verdict.context in self.contexts

    # -- candidates --------------------------------------------------------------------------------------------

    def candidates(self, module: Module) -> Iterator[Candidate]:
        """Calls that may be sites, by their names."""
        wanted = {alias: target.rpartition(".")[2] for alias, target in module.imports.items()}
        functions = {name.rpartition(".")[2] for name in self.functions}
        for name, calls in module.calls.items():
            real = wanted.get(name, name)
            if real in CLASS_NAMES or real in self.trainers:
                kind = self.class_names.get(real, SiteKind.TRAINER)
            elif name in METHODS or real in METHODS or name in functions:
                kind = SiteKind.GENERATE
            elif name[:1].isupper() and (inherited := self._inherited_kind(name, module)) is not None:
                kind = inherited
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

    def _inherited_kind(self, name: str, module: Module) -> SiteKind | None:
        """The kind of a project's subclass of a trainer or config."""
        if not any(part in name for part in ("Trainer", "Config", "Params")):
            return None
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
                    if last in CLASS_NAMES:
                        return self.class_names[last]
                    todo.append((base, target.module))
        return None

    # -- reaching them -----------------------------------------------------------------------------------------

    def worth(self, code: Code, frame: Any) -> bool:  # type: ignore[override]
        """Whether a call is followed: always where a site lies behind it, else while it is cheap."""
        if self.leads_to_site(code):
            return True
        if (code.info or code) in self.too_long or len(frame.chain) >= 6:
            return False
        node = code.info.node if code.info is not None else None
        return node is None or (node.end_lineno or 0) - node.lineno <= SMALL

    def leads_to_site(self, code: Code) -> bool:  # type: ignore[override]
        """Whether a site may lie behind a function: it is on the way to one, or nested where nobody looked."""
        return (
            code.info in self.closure
            or (code.info is not None and code.info.parent is not None)
            or (code.info is None and self._nested_near_site(code))
        )

    def _nested_near_site(self, code: Code) -> bool:
        """A nested function or lambda of a module that holds candidates."""
        return code.module.path in self.holding

    def _reach(self, held: Sequence[tuple[Module, list[ast.expr]]]) -> None:
        """Run everything that leads to the candidates: from the outermost visible callers inwards."""
        homes = [(module, node, self._outermost(module, node)) for module, nodes in held for node in nodes]
        functions = list(dict.fromkeys(home for _, _, home in homes if home is not None))
        called_from, callers = self._callers_of(functions)
        self.closure |= set(called_from)
        for function in called_from:
            # What makes the object is followed as far as the method that uses it.
            if function.cls is not None:
                self.closure |= {
                    m for n, m in function.cls.methods.items() if n in ("__init__", "__post_init__")
                }
        at_top = [module for module, _, home in homes if home is None]
        at_top += [module for module, _ in held if _assigns(module)]
        for script in dict.fromkeys([*at_top, *callers]):
            self._once(script, self._run_script)
        reached = {code.info for code in self.visited if code.info is not None}
        for function, has_callers in called_from.items():
            # One that no name leads to may be called all the same: through a table, a decorator, a partial.
            if not has_callers and (function not in reached or not function.node.decorator_list):
                self._once(function, self._run_function)
        for module, node, home in homes:
            if home is not None and isinstance(node, ast.Call) and not self._seen(module, node):
                self._once(home, self._run_function)

    def _once(self, root: Any, run: Callable[[Any], None]) -> None:
        if root not in self._ran:
            self._ran.add(root)
            module = root if isinstance(root, Module) else root.module
            try:
                run(root)
            except Exception as error:  # one root that breaks the interpreter must not cost the others
                self.errors.setdefault(module.path, error)
            finally:
                self.catchers = []

    def _outermost(self, module: Module, node: ast.AST) -> FunctionInfo | None:
        """The top-level function or method around a call: nested ones run when it does."""
        function = module.enclosing(node)
        while function is not None and function.parent is not None:
            function = function.parent
        return function

    def _callers_of(self, functions: Sequence[FunctionInfo]) -> tuple[dict[FunctionInfo, bool], list[Module]]:
        """Functions from which `functions` are reached, each with whether anything visible calls it, and the modules
        that call them at the top level."""
        found: dict[FunctionInfo, bool] = {}
        scripts: list[Module] = []
        level = list(functions)
        for _ in range(MAX_LEVELS):
            following: list[FunctionInfo] = []
            for function in level:
                if function in found or len(found) >= MAX_FUNCTIONS:
                    continue
                callers = list(self._callers(function))
                found[function] = bool(callers)
                scripts += [caller for caller, home in callers if home is None and caller not in scripts]
                following += [home for _, home in callers if home is not None]
            level = following
        for function in level:
            found.setdefault(function, False)
        return found, scripts

    def _callers(self, function: FunctionInfo) -> Iterator[tuple[Module, FunctionInfo | None]]:
        """(module, outermost function or None at the top level) of code that mentions `function`, and so may call it;
        for a method also the code that mentions its class or a subclass, which makes the instances."""
        seen: set[tuple[str, FunctionInfo | None]] = set()
        for name, owner in self._names(function):
            home_file = function.module
            alone = home_file.path.endswith(".ipynb")
            for module in [home_file] if alone else self.project.near(home_file, name, Use.MENTIONED):
                for node in module.mentions.get(name, ()):
                    if not self._may_mean(node, module, owner):
                        continue
                    home = self._outermost(module, node)
                    if (
                        (module.path, home) in seen
                        or home is function
                        or (home and home.cls and home.cls is function.cls and isinstance(owner, ClassInfo))
                    ):
                        continue
                    seen.add((module.path, home))
                    yield module, home
                    if len(seen) >= MAX_CALLERS:
                        return

    def _names(self, function: FunctionInfo) -> Iterator[tuple[str, FunctionInfo | ClassInfo]]:
        """The names by which a function is reached, each with what it means."""
        if function.cls is None:
            yield function.name, function
            return
        if function.name not in COMMON:
            yield function.name, function
        yield function.cls.name, function.cls
        for module in self.project.near(function.module, function.cls.name, Use.INHERITED):
            for info in module.classes.values():
                if any(base.rpartition(".")[2] == function.cls.name for base in info.bases):
                    yield info.name, info

    def _may_mean(self, node: ast.expr, module: Module, target: FunctionInfo | ClassInfo) -> bool:
        """Whether a name or attribute can mean a function or class: by import, or for methods by the attribute alone."""
        if isinstance(target, FunctionInfo) and target.cls is not None:
            return isinstance(node, ast.Attribute)
        if isinstance(node, ast.Attribute):
            return bool(dotted(node)) and self.project.resolve(dotted(node), module) is target
        if module is target.module:
            return True
        assert isinstance(node, ast.Name)
        found = self.project.resolve(node.id, module)
        return found is target or (isinstance(found, str) and bool(module.star_imports))

    def _run_script(self, module: Module) -> None:
        """Run a module as a program."""
        self.steps_left = ROOT_BUDGET
        try:
            self.run_program(module)
        except (BudgetSpent, RecursionError):
            self.steps_left = 0

    def _run_function(self, function: FunctionInfo) -> None:
        self.steps_left = ROOT_BUDGET
        try:
            self.run_root(function)
        except (BudgetSpent, RecursionError):
            self.steps_left = 0

    def _seen(self, module: Module, node: ast.Call) -> bool:
        visits = self.observations.get((module.path, *module.ast_span(node)), ())
        return any(not visit.dead for visit in visits)

    def too_complex(self, module: Module, statement: ast.stmt) -> None:  # type: ignore[override]
        place = module.place(statement.lineno, 0, statement.lineno, 1)
        self.failures.setdefault(module.path, {})[statement.lineno] = Finding(
            code="KLG002",
            name="unreadable-file",
            severity=Severity.WARNING,
            confidence=Confidence.HIGH,
            message="this statement is nested too deeply, or is too long, to be analysed; settings that depend on it "
            "are unknown",
            place=place,
        )

    # -- building sites ----------------------------------------------------------------------------------------

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
        mitigations = {**self._mitigations(module, node, kind), **resolved.mitigations}
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

    def _mitigations(self, module: Module, node: ast.expr, kind: SiteKind) -> Mapping[str, str]:
        from klguard.read.python.wiring import mitigations

        return mitigations(self.project, module, node, kind) if isinstance(node, ast.Call) else {}


def _written(module: Module, call: ast.Call) -> tuple[Layer, ...]:
    """What a call that was not reached says itself: its literals."""
    unknown = Unknown(Reason.BUDGET, "this call was not reached by the analysis")
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


def _assigns(module: Module) -> bool:
    """Whether `x.generation_config.top_k = 5` stands somewhere: a site that is no call."""
    return any(
        isinstance(above := module.parents[node], ast.Attribute) and isinstance(above.ctx, ast.Store)
        for node in module.mentions.get("generation_config", ())
        if isinstance(node, ast.Attribute)
    )


def _references(module: Module) -> list[ast.expr]:
    """Where a method that samples is named and not called: `sample = model.generate`, `partial(model.generate, ...)`."""
    called = {id(call.func) for name in METHODS for call in module.calls.get(name, ())}
    return [
        node
        for name in sorted(METHODS)
        for node in module.mentions.get(name, ())
        if isinstance(node, ast.Attribute) and id(node) not in called
    ]


def _literal(module: Module, node: ast.expr) -> Known | None:
    """The value of a literal, with its place."""
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    return Known(value, (Hop(HopKind.LITERAL, module.ast_place(node), "written here"),))


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
