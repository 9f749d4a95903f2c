"""Modules: running their bodies, and the definitions and imports in them, which wait until somebody reads them."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from klguard.read.python import nodes
from klguard.read.python.calls import IDENTITY_DECORATORS, MODULE_COST
from klguard.read.python.classes import Classes
from klguard.read.python.control import BudgetSpent, Frame
from klguard.read.python.definitions import Definition, Definitions
from klguard.read.python.project import Project
from klguard.read.python.source import FunctionInfo, Module, TooComplex
from klguard.read.python.state import State
from klguard.read.python.trees import walk_level
from klguard.read.python.values import (
    Abstract,
    Ext,
    Func,
    Later,
    Mod,
    Step,
    Unk,
    identity,
    with_step,
)
from klguard.settings import HopKind, Reason


class Modules(Classes):
    """Module bodies and what they bind."""

    def __init__(self, project: Project) -> None:
        super().__init__(project)
        self._modules: dict[str, State] = {}
        self._running: list[str] = []
        self._definitions = Definitions()
        self.defining = 0  # definitions that are being evaluated, one inside another

    def module_state(self, module: Module) -> State:
        """The state after the module's body ran, as an importer sees it. A copy: the caller may change it."""
        if module.path not in self._modules:
            self._modules[module.path] = State({("module", module.path): {}})
            self._running.append(module.path)
            catchers, self.catchers = self.catchers, []
            try:
                self._run_module(module)
            finally:
                self._running.pop()
                self.catchers = catchers
        return self._modules[module.path].copy()

    def _run_module(self, module: Module) -> None:
        home = ("module", module.path)
        state = State({home: {}})
        self._modules[module.path] = state
        frame = Frame(home, (home,), module, None)
        frame.loops = []
        try:
            self._module_body(module, state, frame)
        except BudgetSpent:
            self.steps_left = 0

    def run_program(self, module: Module) -> None:
        """Run a module as a program: its own state, with the part behind `if __name__ == "__main__"`."""
        home = ("module", module.path)
        frame = Frame(home, (home,), module, None)
        self._running.append(module.path)
        try:
            self._module_body(module, State({home: {}}), frame, main=True)
        finally:
            self._running.pop()
            self.catchers = []

    def _module_body(self, module: Module, state: State, frame: Frame, main: bool = False) -> None:
        alive = True
        for node in module.tree.body:
            target = state if alive else state.copy()
            frame.dead = not alive
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self._import_statement(node, target, frame)
                continue
            if (later := self._definition(module, node)) is not None:
                self.bind(node.name, later, target, frame)  # type: ignore[attr-defined]
                continue
            if isinstance(node, ast.If) and _is_main(node.test):
                if main:
                    self._module_statement(module, node, target, frame)
                continue
            alive = self._module_statement(module, node, target, frame) and alive

    def _module_statement(self, module: Module, node: ast.stmt, state: State, frame: Frame) -> bool:
        try:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self.bind(node.name, self._define_function(module.by_node[node], state, frame), state, frame)
                return True
            if isinstance(node, ast.ClassDef):
                value = self.define_top_class(module.classes[node.name], state, frame)
                self.bind(node.name, self._decorated_class(value, node, state, frame), state, frame)
                return True
            unit = module.unit(node)
        except TooComplex:
            self.too_complex(module, node)
            for name in _bound_names(node):
                state.bind(frame.id, name, Unk(Reason.BUDGET, name))
            return True
        frame.unit = unit
        if isinstance(node, ast.If) and _is_main(node.test) and isinstance(unit.statement, nodes.If):
            self.run_suite(unit.statement.body, state, frame)
            return True
        return self.run_block((unit.statement,), state, frame)

    too_complex: Callable[[Module, ast.stmt], None]

    # -- what is defined when it is first read ------------------------------------------------------------------

    def _definition(self, module: Module, statement: ast.stmt) -> Later | None:
        """A definition that can wait until somebody reads it: one whose evaluation does nothing and depends on
        nothing that may change."""
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            defaults = [*statement.args.defaults, *(d for d in statement.args.kw_defaults if d is not None)]
            if all(map(_is_plain, defaults)) and all(map(_is_quiet, statement.decorator_list)):
                return Later("function", module, module.by_node[statement])
        if (
            isinstance(statement, ast.ClassDef)
            and not statement.keywords
            and statement.name in module.classes
        ):
            info = module.classes[statement.name]
            if info.node is statement and all(map(_is_quiet, statement.decorator_list)):
                return Later("class", module, info)
        return None

    def lookup(self, frame: Any, name: str, state: State) -> Abstract | None:
        """The value of a variable, defined now if it was waiting to be read."""
        value = state.variables(frame).get(name)
        if isinstance(value, Later):
            value = self.force(value, state)
            state.bind(frame, name, value)
        return value

    def settle_imports(self, name: str, state: State) -> None:
        """Evaluate every waiting `from module import name`, before the name is bound anew in its module: an import
        takes the value there is at its time."""
        for frame, variables in list(state.frames.items()):
            for bound, waiting in list(variables.items()):
                if isinstance(waiting, Later) and waiting.kind == "import" and waiting.what[1] == name:
                    state.bind(frame, bound, self.force(waiting, state))

    def force(self, later: Later, state: State) -> Abstract:
        """Evaluate a definition that was waiting: once, and the same objects in every state."""
        key = identity(later)
        found = self._definitions.get(key)
        if found is None:
            self._definitions.begin(key, Unk(Reason.RECURSION, "a definition that reads itself"))
            objects, frames = state.heap.oids(), set(state.frames)
            self.defining += 1
            # a definition that is half done is nothing to go on from
            catchers, self.catchers = self.catchers, []
            try:
                value = self._force_new(later, state)
            finally:
                self.defining -= 1
                self.catchers = catchers
            found = Definition(
                value,
                {oid: obj for oid, obj in state.heap.items() if oid not in objects},
                {frame: names for frame, names in state.frames.items() if frame not in frames},
            )
            self._definitions.add(key, found)
        self._definitions.bring(found, state)
        return found.value

    def _force_new(self, later: Later, state: State) -> Abstract:
        home = ("module", later.module.path)
        frame = Frame(home, (home,), later.module, None)
        frame.captured[0] = True
        if later.kind == "import":
            base, name = later.what
            return self.import_name(base, name, state, frame)
        try:
            if later.kind == "class":
                value = self.define_top_class(later.what, state, frame)
                return self._decorated_class(value, later.what.node, state, frame)
            return self._define_function(later.what, state, frame, later.owner)
        except TooComplex:
            self.too_complex(later.module, later.what.node)
            return Unk(Reason.BUDGET, later.what.name)

    def _decorated_class(self, value: Abstract, node: ast.ClassDef, state: State, frame: Frame) -> Abstract:
        """A class behind a decorator that is not visible is whatever that made of it."""
        foreign = [d for d in node.decorator_list if not _is_quiet(d)]
        if not foreign:
            return value
        return (
            value
            if all(self.harmless(self.eval(nodes.expression(d, None), state, frame), "") for d in foreign)
            else Unk(Reason.INVISIBLE_CALL, node.name)
        )

    def _define_function(
        self, info: FunctionInfo, state: State, frame: Frame, owner: Abstract | None = None
    ) -> Abstract:
        """Define a function or method from its own cut of the module. Raises TooComplex."""
        unit = info.module.unit(info.node)
        frame.unit = unit
        return self.define(unit.statement, state, frame, owner=owner, info=info)

    def load_function(self, info: FunctionInfo, state: State) -> Func | None:
        """The Func of a definition that running its module did not leave behind (conditional, decorated away)."""
        home = ("module", info.module.path)
        owner = self.class_of(info.cls, state) if info.cls is not None else None
        try:
            value = self._define_function(info, state, Frame(home, (home,), info.module, None), owner)
        except TooComplex:
            self.too_complex(info.module, info.node)
            return None
        return value if isinstance(value, Func) else None

    # -- imports -----------------------------------------------------------------------------------------------

    def _import_statement(self, node: ast.Import | ast.ImportFrom, state: State, frame: Frame) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                head = alias.name.split(".")[0]
                target = alias.name if alias.asname else head
                self.bind(alias.asname or head, Later("import", frame.module, (target, "")), state, frame)
            return
        base = "." * node.level + (node.module or "")
        for alias in node.names:
            if alias.name == "*":
                self.import_star(base, state, frame)
            else:
                later = Later("import", frame.module, (base, alias.name))
                self.bind(alias.asname or alias.name, later, state, frame)

    def import_name(self, base: str, name: str, state: State, frame: Frame) -> Abstract:  # type: ignore[override]
        """What `from base import name` (or `import base`, without a name) binds."""
        found = self.project.find_module(base, frame.module)
        if found is None and isinstance(frame.module, Module) and base == frame.module.name:
            found = frame.module
        if found is None:
            if name and base.strip("."):
                return Ext(f"{base}.{name}")
            if name and (sibling := self.project.find_module(f"{base}{name}", frame.module)) is not None:
                return self._enter_module(sibling, state)
            return Ext(f"{base}.{name}" if name else base)
        module = self._enter_module(found, state)
        if not name:
            return module
        value = self.lookup(("module", found.path), name, state)
        if value is not None:
            return with_step(value, Step(HopKind.IMPORT, None, None, f"imported from {found.name}"))
        inner = self.project.find_module(f"{base}.{name}" if base.strip(".") else base + name, frame.module)
        if inner is not None and inner is not found:
            return self._enter_module(inner, state)
        resolved = self.project.resolve(name, found)
        if isinstance(resolved, str) and resolved != name:
            return Ext(resolved.lstrip("."))
        return Unk(Reason.RUNTIME, f"{base}.{name}", oid=("name", found.path, name))

    def _enter_module(self, found: Module, state: State) -> Mod:
        if ("module", found.path) not in state.frames:
            if found.path not in self._modules:
                self.steps_left -= MODULE_COST
            after = self.module_state(found)
            state.bring(after.frames, after.heap.items())
        return Mod(found)

    def module_variable(self, name: str, state: State, frame: Frame) -> Abstract | None:  # type: ignore[override]
        """A module-level name that running the module has not bound (yet): a definition further down."""
        info = frame.module.functions.get(name)
        if info is not None and info.parent is None and frame.module.path in self._running:
            return self.load_function(info, state)
        return None


def _is_main(test: ast.expr) -> bool:
    return "__name__" in ast.dump(test) and "__main__" in ast.dump(test)


def _bound_names(statement: ast.stmt) -> list[str]:
    return [
        node.id
        for node in walk_level(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    ]


def _is_plain(node: ast.expr) -> bool:
    """A default that means the same whenever it is evaluated."""
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError):
        return False
    return not isinstance(node, (ast.Dict, ast.List, ast.Set))


def _is_quiet(decorator: ast.expr) -> bool:
    """A decorator that leaves the function or class what it is."""
    node = decorator.func if isinstance(decorator, ast.Call) else decorator
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name in IDENTITY_DECORATORS
