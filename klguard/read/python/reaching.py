"""From candidates to the roots that lead to them: what is run so that the interpreter gets to every site."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from klguard.findings import Confidence, Finding, Severity
from klguard.read.python.candidates import assigns_config
from klguard.read.python.control import BudgetSpent
from klguard.read.python.observe import Observation, Observer
from klguard.read.python.project import Use
from klguard.read.python.source import ClassInfo, FunctionInfo, Module, dotted

if TYPE_CHECKING:
    from klguard.read.python.project import Project
    from klguard.read.python.values import Code

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


class Reacher(Observer):
    """Runs what leads to candidates: from the outermost visible callers inwards.

    `errors` holds what broke the interpreter, by file, `failures` what kept it from seeing more, by file and line.
    """

    def __init__(
        self,
        project: Project,
        functions: frozenset[str] = frozenset(),
        trainers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(project, functions, trainers)
        self.closure: set[FunctionInfo] = set()
        self.holding: set[str] = set()
        self._ran: set[Any] = set()
        self.failures: dict[str, dict[int, Finding]] = {}
        self.errors: dict[str, Exception] = {}

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

    def _record(self, found: Observation) -> None:
        """A site lies behind every function it was reached through, also by ways that cannot be read off: a table."""
        super()._record(found)
        self.closure |= {code.info for code, *_ in found.chain if code.info is not None}

    def _nested_near_site(self, code: Code) -> bool:
        """A nested function or lambda of a module that holds candidates."""
        return code.module.path in self.holding

    def reach(self, held: Sequence[tuple[Module, list[ast.expr]]]) -> None:
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
        at_top += [module for module, _ in held if assigns_config(module)]
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
            if isinstance(owner, ClassInfo):
                for home in self._through_the_object(function, owner):
                    if (home.module.path, home) not in seen:
                        seen.add((home.module.path, home))
                        yield home.module, home
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

    def _through_the_object(self, function: FunctionInfo, cls: ClassInfo) -> Iterator[FunctionInfo]:
        """Methods of its class, or of one below it, that call a method of a name too common to be looked for: by
        `self.run()`, `cls.run()` or `super().run()`."""
        for node in cls.module.mentions.get(function.name, ()) if function.name in COMMON else ():
            home = self._outermost(cls.module, node)
            if home is None or home is function or home.cls is not cls or not isinstance(node, ast.Attribute):
                continue
            taken = [*home.node.args.posonlyargs, *home.node.args.args]
            match node.value:
                case ast.Name(id=owner) if taken and owner == taken[0].arg:
                    yield home
                case ast.Call(func=ast.Name(id="super")):
                    yield home

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
            found = self.project.resolve(dotted(node), module) if dotted(node) else None
            return found is target or self._imports_by_call(module, target.module)
        if module is target.module:
            return True
        assert isinstance(node, ast.Name)
        found = self.project.resolve(node.id, module)
        return found is target or (isinstance(found, str) and bool(module.star_imports))

    def _imports_by_call(self, module: Module, target: Module) -> bool:
        """Whether a module gets hold of another one by `importlib.import_module("...")`, or `__import__`."""
        calls = (*module.calls.get("import_module", ()), *module.calls.get("__import__", ()))
        names = [call.args[0].value for call in calls if call.args and isinstance(call.args[0], ast.Constant)]
        return any(self.project.find_module(str(name), module) is target for name in names)

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
