"""Where does the result of a call go? Data flow over the `ast`, across functions, attributes and files.

A work list of (expression, path, frame): the expression holds the value, the path says in which field of it
(`("responses",)` for `batch["responses"]`), the frame says through which calls it was entered or climbed
to. The flow stops at a verdict of its `Watcher`, where nothing of the value is left (a comparison, a
length), or at its budget. Control dependence is not followed: a branch on a text does not carry the text.
"""

from __future__ import annotations

import ast
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

from klguard.read.python.bindings import SEQUENCES, aliased, key_of, received, unpacked
from klguard.read.python.callers import CallGraph, callee, callee_name, positional
from klguard.read.python.feasible import branches, decide
from klguard.read.python.project import Use
from klguard.read.python.scopes import FUNCTIONS, Scope, parameters, position, scopes_of
from klguard.read.python.source import ClassInfo, FunctionInfo, Module, dotted
from klguard.read.python.spots import CallSite, Frame, Path, Spot, Watcher, read
from klguard.read.python.training import ADDING, DEAD_ATTRIBUTES
from klguard.read.python.trees import walk_level

MAX_STEPS = 6_000
"""Expressions looked at for one question: a second at most."""

MAX_DEPTH = 5
"""Calls entered, one within the other."""

MAX_CLIMB = 6
"""Callers climbed to, one after the other."""

MAX_PATH = 3
"""Fields of fields that are told apart."""

NEUTRAL_METHODS = frozenset(
    "to cpu cuda detach clone copy items values tolist numpy contiguous long squeeze unsqueeze view".split()
)

COLLECTIVES = {
    "all_gather": (0, "tensor_list"),
    "all_gather_object": (0, "object_list"),
    "all_gather_into_tensor": (0, "output_tensor"),
    "gather_object": (1, "object_gather_list"),
    "scatter_object_list": (0, "scatter_object_output_list"),
}
"""Functions of torch.distributed -> the argument they fill."""


class Flow:
    """One question: follow a value from `start` and tell `watcher`."""

    def __init__(self, graph: CallGraph, watcher: Watcher, chain: tuple[CallSite, ...] = ()) -> None:
        self.graph = graph
        self.watcher = watcher
        self.chain = chain
        self._queue: deque[Spot] = deque()
        self._start: Spot
        self._seen: set[tuple] = set()
        self._cells: set[tuple] = set()
        self._bound: set[tuple] = set()

    def run(self, start: Spot) -> None:
        self._start = start
        self.push(start, start.node, start.path)
        for _ in range(MAX_STEPS):
            if not self._queue or self.watcher.settled:
                break
            self._step(self._queue.popleft())

    def push(
        self,
        spot: Spot,
        node: ast.AST,
        path: Path | None,
        frame: Frame | None = None,
        module: Module | None = None,
    ) -> None:
        if path is None:
            return
        path, frame = path[:MAX_PATH], frame or spot.frame
        key = (id(node), path, frame.key, spot.scored)
        if key not in self._seen:
            self._seen.add(key)
            self._queue.append(Spot(module or spot.module, node, path, frame, spot.scored))

    def _keeps(self, spot: Spot, name: str) -> bool:
        return spot.scored or self.watcher.keeps(name)

    # -- one step up the expression --------------------------------------------------------------------------

    def _step(self, spot: Spot) -> None:
        module, node = spot.module, spot.node
        parent = module.parents.get(node)
        match parent:
            case ast.Attribute():
                self._attribute(spot, parent)
            case ast.Subscript() if parent.value is node:
                self.push(
                    spot, parent, read(spot.path, key_of(parent.slice)) if key_of(parent.slice) else spot.path
                )
            case ast.Call():
                self._argument(spot, parent, parent.args.index(node) if node in parent.args else None, node)
            case ast.keyword():
                call = module.parents[parent]
                if isinstance(call, ast.Call):
                    self._argument(spot, call, parent.arg or "**", node)
            case ast.Starred() if isinstance(call := module.parents[parent], ast.Call):
                self._argument(spot, call, None, parent)
            case ast.Assign() if parent.value is node:
                for target in parent.targets:
                    self._bind(spot, target, spot.path)
            case ast.AnnAssign() | ast.AugAssign() | ast.NamedExpr() if parent.value is node:
                self._bind(spot, parent.target, spot.path)
                if isinstance(parent, ast.NamedExpr):
                    self.push(spot, parent, spot.path)
            case ast.For() | ast.AsyncFor() if parent.iter is node:
                self._bind(spot, parent.target, spot.path)
            case ast.comprehension() if parent.iter is node:
                self._bind_comprehension(spot, parent)
            case ast.withitem() if parent.optional_vars is not None:
                self._bind(spot, parent.optional_vars, spot.path)
            case ast.Return() | ast.Yield() | ast.YieldFrom():
                self._returned(spot)
            case ast.Dict():
                self._dict(spot, parent)
            case ast.Tuple() if not isinstance(module.parents.get(parent), ast.Subscript):
                self.push(spot, parent, (str(parent.elts.index(node)), *spot.path))
            case ast.DictComp() if node is parent.key:
                pass
            case ast.IfExp() if node is parent.test:
                pass
            case ast.Subscript() if "prob" in dotted(parent.value) or "logit" in dotted(parent.value):
                self.push(spot, parent, ())
            case (
                ast.List()
                | ast.Set()
                | ast.BinOp()
                | ast.UnaryOp()
                | ast.BoolOp()
                | ast.IfExp()
                | ast.Starred()
                | ast.Await()
                | ast.JoinedStr()
                | ast.FormattedValue()
                | ast.ListComp()
                | ast.SetComp()
                | ast.GeneratorExp()
                | ast.DictComp()
            ):
                if not (isinstance(parent, ast.UnaryOp) and isinstance(parent.op, ast.Not)):
                    self.push(spot, parent, spot.path)
            case ast.Lambda():
                self._lambda(spot, parent)
            case ast.Compare():
                self.watcher.compare(spot, parent)

    def _attribute(self, spot: Spot, attribute: ast.Attribute) -> None:
        call = spot.module.parents.get(attribute)
        if isinstance(call, ast.Call) and call.func is attribute:
            self._method(spot, call, attribute.attr)
        elif attribute.attr not in DEAD_ATTRIBUTES:
            self.push(spot, attribute, read(spot.path, attribute.attr))

    def _method(self, spot: Spot, call: ast.Call, name: str) -> None:
        if self.watcher.method(spot, call):
            return
        if self.watcher.scores(call):
            spot = replace(spot, scored=True)
        info = self.graph.target(spot.module, call)
        if isinstance(info, FunctionInfo) and info.cls is not None:
            self._enter_self(spot, call, info)
            if name in NEUTRAL_METHODS:
                self.push(spot, call, spot.path)
        elif name == "get" or name == "pop":
            key = key_of(call.args[0]) if call.args else ""
            self.push(spot, call, read(spot.path, key) if key else spot.path)
        elif name in ADDING and name != "setdefault":
            return
        elif self.watcher.transparent(name) and not self.watcher.result(spot, call, ()):
            self.push(spot, call, spot.path if name in NEUTRAL_METHODS else ())

    def _enter_self(self, spot: Spot, call: ast.Call, info: FunctionInfo) -> None:
        """The object's own method: it reads the value from `self`."""
        arguments = info.node.args.posonlyargs + info.node.args.args
        if arguments and spot.path and len(spot.frame.entered) < MAX_DEPTH and not _recursive(spot, call):
            frame = replace(spot.frame, entered=(*spot.frame.entered, (spot.module, call)))
            self._on_entry(spot, info, arguments[0].arg, spot.path, frame)

    def _dict(self, spot: Spot, parent: ast.Dict) -> None:
        for key, value in zip(parent.keys, parent.values, strict=True):
            if value is spot.node:
                name = key_of(key) if key is not None else ""
                if key is None:
                    self.push(spot, parent, spot.path)
                elif self._keeps(spot, name):
                    self.push(spot, parent, (name, *spot.path) if name else spot.path)

    def _lambda(self, spot: Spot, parent: ast.Lambda) -> None:
        """What a lambda returns is what the function it is handed to makes of it."""
        self.push(spot, parent, ())

    # -- names and attributes --------------------------------------------------------------------------------

    def _bind(self, spot: Spot, target: ast.expr, path: Path) -> None:
        """The value is stored in an assignment target."""
        match target:
            case ast.Name():
                self._bind_name(spot, target, target.id, path)
            case ast.Starred():
                self._bind(spot, target.value, path)
            case ast.Tuple() | ast.List():
                for index, element in enumerate(target.elts):
                    if (
                        inner := read(path, str(index)) if path[:1] and path[0].isdigit() else path
                    ) is not None:
                        self._bind(spot, element, inner)
            case ast.Attribute():
                if self._keeps(spot, target.attr):
                    self._store(spot, target.value, (target.attr, *path))
            case ast.Subscript():
                key = key_of(target.slice)
                if not key or self._keeps(spot, key):
                    self._store(spot, target.value, (key, *path) if key and not key.isdigit() else path)

    def _store(self, spot: Spot, container: ast.expr, path: Path) -> None:
        """The value is put into `container`, at `path` below it."""
        match container:
            case ast.Name(id="self" | "cls"):
                self._store_attribute(spot, path)
            case ast.Name():
                self._bind_name(spot, container, container.id, path, mutated=True)
            case ast.Attribute():
                if self._keeps(spot, container.attr):
                    self._store(spot, container.value, (container.attr, *path))
            case ast.Subscript():
                key = key_of(container.slice)
                self._store(spot, container.value, (key, *path) if key and not key.isdigit() else path)
            case ast.Call() if isinstance(container.func, ast.Attribute):
                self._store(spot, container.func.value, path)

    def _bind_name(self, spot: Spot, at: ast.AST, name: str, path: Path, mutated: bool = False) -> None:
        if not self._keeps(spot, name):
            return
        table = scopes_of(spot.module)
        here = table.scope(at)
        scope = table.owner_of_name(here, name)
        key = (id(at), name, path[:MAX_PATH], spot.frame.key, spot.scored)
        if key in self._bound:
            return
        self._bound.add(key)
        for use in table.uses(scope, name, at):
            self.push(spot, use, path)
        if not mutated:
            return
        if isinstance(scope, FUNCTIONS) and name in parameters(scope):
            self._changed_argument(spot, scope, name, path)
        for store in table.stores(scope, name):
            if here is not scope or position(store) < position(at):
                for source in aliased(table.statement(store), store):
                    self._store(replace(spot, node=source), source, path)

    def _changed_argument(self, spot: Spot, scope: Scope, name: str, path: Path) -> None:
        """A parameter was changed in place: so was what the caller passed."""
        info = spot.module.by_node.get(scope)
        for (module, call), frame in self._callers(spot, info) if info else ():
            if not isinstance(call, ast.Call):
                continue
            names = positional(info, call)  # type: ignore[arg-type]
            value = next((k.value for k in call.keywords if k.arg == name), None)
            passed = next(
                (k.value.elts for k in call.keywords if k.arg == "args" and isinstance(k.value, ast.Tuple)),
                call.args,
            )
            if value is None and name in names and names.index(name) < len(passed):
                value = passed[names.index(name)]
            if isinstance(value, (ast.Name, ast.Attribute, ast.Subscript)):
                self._store(Spot(module, call, path, frame, spot.scored), value, path)

    def _store_attribute(self, spot: Spot, path: Path) -> None:
        """`self.x = value`: read wherever an object of the class family has its `x` read."""
        cls = self.graph.own_class(spot.module, spot.node)
        if cls is None or not path:
            return
        cell = (cls.qualname, cls.module.path, path[:MAX_PATH], spot.scored)
        if cell in self._cells:
            return
        self._cells.add(cell)
        family = self.graph.family(cls)
        names = {c.name for c in family}
        outside = Frame((), spot.frame.climbed)
        for module in self._readers(cls, path[0]):
            for node in scopes_of(module).attributes.get(path[0], ()):
                if self._has_family(module, node.value, family, names):
                    self.push(spot, node, path[1:], outside, module)
        if spot.frame.entered:
            self._into_instance(spot, path)

    def _readers(self, cls: ClassInfo, attribute: str) -> Iterator[Module]:
        for index, module in enumerate(self.graph.project.near(cls.module, attribute, Use.READ)):
            if index > 12:
                return
            yield module

    def _has_family(
        self, module: Module, receiver: ast.expr, family: list[ClassInfo], names: set[str]
    ) -> bool:
        if dotted(receiver) == "self":
            own = self.graph.own_class(module, receiver)
            return own is not None and any(own is c for c in family)
        found = self.graph.class_of(module, receiver)
        return isinstance(found, ClassInfo) and found.name in names

    def _into_instance(self, spot: Spot, path: Path) -> None:
        """Inside a constructor: the object that the call makes carries the value."""
        module, call = spot.frame.entered[-1]
        target = self.graph.target(module, call) if isinstance(call, ast.Call) else None
        if isinstance(target, ClassInfo):
            frame = replace(spot.frame, entered=spot.frame.entered[:-1])
            self.push(spot, call, path, frame, module)

    def _bind_comprehension(self, spot: Spot, generator: ast.comprehension) -> None:
        comprehension = spot.module.parents[generator]
        table = scopes_of(spot.module)
        for name, path in unpacked(generator.target, spot.path):
            if not self._keeps(spot, name):
                continue
            for node in walk_level(comprehension):
                if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load):
                    if table.comprehension_of(node) is comprehension:
                        self.push(spot, node, path)

    # -- calls -----------------------------------------------------------------------------------------------

    def _argument(self, spot: Spot, call: ast.Call, slot: int | str | None, value: ast.AST) -> None:
        name = callee_name(call)
        if call.func is spot.node:
            return
        if (file := self._memory_file(spot, call)) is not None:
            self._store(spot, file, ())
            return
        if (filled := self._filled(spot, call)) is not None:
            self._store(spot, filled, spot.path)
            return
        if self.watcher.argument(spot, call, slot, value):  # type: ignore[arg-type]
            return
        if self.watcher.scores(call):
            spot = replace(spot, scored=True)
        target = self.graph.target(spot.module, call)
        if name in ADDING and isinstance(call.func, ast.Attribute) and not isinstance(target, FunctionInfo):
            receiver = callee(call)
            if isinstance(receiver, ast.Attribute):
                path = (slot, *spot.path) if isinstance(slot, str) and slot != "**" else spot.path
                self._store(spot, receiver.value, path)
            return
        if (
            isinstance(target, FunctionInfo)
            and len(spot.frame.entered) < MAX_DEPTH
            and not _recursive(spot, call)
        ):
            self._enter(spot, call, target, slot)
            if (
                name in ADDING
                and target.cls is not None
                and isinstance(receiver := callee(call), ast.Attribute)
            ):
                self._store(spot, receiver.value, ())  # a buffer: what goes in comes out somehow
        elif isinstance(target, ClassInfo):
            self._construct(spot, call, target, slot)
        elif not self.watcher.result(spot, call, ()):
            self._through(spot, call, name, slot)

    def _memory_file(self, spot: Spot, call: ast.Call) -> ast.Name | None:
        """The BytesIO or StringIO that `b.write(x)`, `torch.save(x, b)` or `pickle.dump(x, b)` fills."""
        name = callee_name(call)
        if name not in ("write", "save", "dump"):
            return None
        places = [*call.args[1:2], *([call.func.value] if isinstance(call.func, ast.Attribute) else ())]
        table = scopes_of(spot.module)
        for place in places:
            if not isinstance(place, ast.Name) or place is spot.node:
                continue
            for store in table.stores(table.owner_of_name(table.scope(place), place.id), place.id):
                made = getattr(table.statement(store), "value", None)
                if isinstance(made, ast.Call) and callee_name(made) in ("BytesIO", "StringIO"):
                    return place
        return None

    def _filled(self, spot: Spot, call: ast.Call) -> ast.expr | None:
        """What torch.distributed fills with the values of all processes: `all_gather(into, x)`."""
        place = COLLECTIVES.get(callee_name(call))
        if place is None or self.graph.target(spot.module, call) is not None:
            return None
        index, name = place
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        into = call.args[index] if index < len(call.args) else given.get(name)
        return into if into is not None and into is not spot.node else None

    def _through(self, spot: Spot, call: ast.Call, name: str, slot: int | str | None) -> None:
        """A call into code that is not visible: what it returns is made of what it got."""
        if name == "zip" and isinstance(slot, int):
            self.push(spot, call, (str(slot), *spot.path))
        elif name == "enumerate":
            self.push(spot, call, ("1", *spot.path))
        elif name == "dict" and isinstance(slot, str) and slot != "**":
            if self._keeps(spot, slot):
                self.push(spot, call, (slot, *spot.path))
        elif name in SEQUENCES:
            self.push(spot, call, spot.path)
        elif self.watcher.transparent(name):
            self.push(spot, call, ())

    def _enter(self, spot: Spot, call: ast.Call, info: FunctionInfo, slot: int | str | None) -> None:
        frame = replace(spot.frame, entered=(*spot.frame.entered, (spot.module, call)))
        for name, path in received(info, call, slot, spot.path):
            self._on_entry(spot, info, name, path, frame)

    def _on_entry(self, spot: Spot, info: FunctionInfo, name: str, path: Path, frame: Frame) -> None:
        if not self._keeps(spot, name):
            return
        for use in scopes_of(info.module).uses(info.node, name, None):
            self.push(spot, use, path, frame, info.module)

    def _construct(self, spot: Spot, call: ast.Call, cls: ClassInfo, slot: int | str | None) -> None:
        init = self.graph.method(cls, "__init__")
        if init is not None:
            if len(spot.frame.entered) < MAX_DEPTH:
                self._enter(spot, call, init, slot)
            return
        fields = [
            n.target.id
            for n in cls.node.body
            if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
        ]
        name = (
            slot
            if isinstance(slot, str)
            else fields[slot]
            if isinstance(slot, int) and slot < len(fields)
            else ""
        )
        if name and name != "**":
            if self._keeps(spot, name):
                self.push(spot, call, (name, *spot.path))
                self._field_readers(spot, cls, (name, *spot.path))
        else:
            self.push(spot, call, ())

    def _field_readers(self, spot: Spot, cls: ClassInfo, path: Path) -> None:
        """A field of a record is read by the methods of its class."""
        for method in cls.methods.values():
            for node in walk_level(method.node):
                if (
                    isinstance(node, ast.Attribute)
                    and dotted(node) == f"self.{path[0]}"
                    and isinstance(node.ctx, ast.Load)
                ):
                    self.push(spot, node, path[1:], Frame((), spot.frame.climbed), cls.module)

    # -- returning -------------------------------------------------------------------------------------------

    def _returned(self, spot: Spot) -> None:
        info = spot.module.enclosing(spot.node)
        if info is None or self.watcher.returned(spot, info):
            return
        for (module, call), frame in self._callers(spot, info):
            path = spot.path
            if isinstance(call, ast.Call):
                handed = any(_is_function(v, info) for v in (*call.args, *(k.value for k in call.keywords)))
                path = () if handed else spot.path
                if self.watcher.result(Spot(module, call, path, frame, spot.scored), call, path):
                    continue
            self.push(spot, call, path, frame, module)

    def _callers(self, spot: Spot, info: FunctionInfo) -> list[tuple[CallSite, Frame]]:
        """Where a function returns to: the call it was entered by, the given chain, else all callers."""
        frame = spot.frame
        if frame.entered:
            return [(frame.entered[-1], replace(frame, entered=frame.entered[:-1]))]
        climbed = len(frame.climbed)
        if climbed < len(self.chain):
            callers = [self.chain[climbed]]
        elif climbed >= MAX_CLIMB:
            return []
        else:
            callers = self.graph.callers(info)
            if not callers:
                self.watcher.uncalled(spot, info)
        return [(c, Frame((), (*frame.climbed, c))) for c in callers if self._feasible(spot, info, c)]

    def _feasible(self, spot: Spot, info: FunctionInfo, caller: CallSite) -> bool:
        """Can the value come out for this caller, given the constants it passes for what `if` tests?"""
        if not isinstance(caller[1], ast.Call):
            return True
        tests = [*branches(spot), *(branches(self._start) if not spot.frame.climbed else ())]
        return all(
            decided is None or decided == arm
            for test, arm in tests
            for decided in [decide(test, info, caller[1])]
        )


def _recursive(spot: Spot, call: ast.Call) -> bool:
    return any(entered is call for _, entered in spot.frame.entered)


def _is_function(value: ast.expr, info: FunctionInfo) -> bool:
    values = value.elts if isinstance(value, (ast.List, ast.Tuple)) else [value]
    return any(dotted(v).rsplit(".", 1)[-1] == info.name for v in values)
