"""Which visible function a call enters, and which calls enter a function.

Python has no types to ask, so a receiver's class is inferred from the assignments that can be seen, and
where that fails a method is found by its name, unless the name is one that many classes share.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import islice
from typing import Literal

from klguard.read.python.project import Project, Use
from klguard.read.python.scopes import FUNCTIONS, parameters, scopes_of
from klguard.read.python.source import ClassInfo, FunctionInfo, Module, called_name, dotted
from klguard.read.python.trees import walk_level

MAX_CALLERS = 12
"""Callers followed for one function."""

FEW_CALLERS = 3
"""Callers from whose arguments the class of a parameter is inferred."""

COMMON_METHODS = frozenset(
    "generate sample step forward __call__ run call train eval update add append push put get pop "
    "extend insert from_pretrained process predict evaluate encode decode reset save load fit act learn "
    "store write close start stop send build "
    # what tensors, arrays, strings and containers have under the same name
    "mean sum std var min max exp log sqrt abs pow clamp clip gather scatter softmax log_softmax logits sigmoid relu "
    "view reshape squeeze unsqueeze flatten permute transpose expand repeat masked_fill where argmax argmin topk "
    "sort cumsum backward detach clone item numpy tolist cpu cuda to float half long int bool type contiguous size "
    "split join strip replace format count index items keys values copy clear remove insert read".split()
)
"""Method names that say nothing about the class."""

ITERATORS = frozenset({"iter", "next", "enumerate", "tqdm", "list", "zip", "DataLoader"})

GENERAL_BASES = frozenset({"torch.nn.Module", "torch.nn.modules.Module", "abc.ABC"})
"""Classes from outside that a class of the project may well derive from: as annotations they say little."""

FLUENT = frozenset("to cuda cpu eval train half float bfloat16 requires_grad_".split())
"""Methods of a torch module that return the module."""

WRAPPING = frozenset(
    "unwrap_model prepare compile deepcopy DataParallel DistributedDataParallel DDP FSDP".split()
)
"""Functions of which the result behaves as their only argument does."""

WORD = re.compile(r"[A-Z][A-Z0-9]*(?=[A-Z][a-z])|[A-Z]?[a-z][a-z0-9]*|[A-Z][A-Z0-9]*")

Receiver = ClassInfo | Literal["external"] | None
"""A class of the project, some class that is certainly not, or not known."""


def words(name: str) -> set[str]:
    """Lower-case words of a snake_case, camelCase (`AIJudge`: ai, judge) or dotted name."""
    return {word.lower() for word in WORD.findall(name)}


def callee(call: ast.Call) -> ast.expr:
    """The function meant by a call, looking through Ray's `f.remote(...)`, `f.options(...).remote(...)`."""
    func = call.func
    if isinstance(func, ast.Attribute) and func.attr in ("remote", "aio", "spawn"):
        inner = func.value
        if (
            isinstance(inner, ast.Call)
            and isinstance(inner.func, ast.Attribute)
            and inner.func.attr == "options"
        ):
            return inner.func.value
        return inner
    return func


def callee_name(call: ast.Call) -> str:
    """Last component of what is called, Ray's `.remote` looked through."""
    func = callee(call)
    return (
        func.attr
        if isinstance(func, ast.Attribute)
        else func.id
        if isinstance(func, ast.Name)
        else called_name(call)
    )


class CallGraph:
    """Calls and functions of a project, connected when somebody asks."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self._callers: dict[int, list[tuple[Module, ast.expr]]] = {}
        self._classes: dict[int, Receiver] = {}
        self._families: dict[ClassInfo, list[ClassInfo]] = {}
        self._methods: dict[tuple[str, str], list[FunctionInfo]] = {}
        self._targets: dict[int, FunctionInfo | ClassInfo | None] = {}
        self._writes: dict[ClassInfo, dict[str, list[ast.Assign | ast.AnnAssign]]] = {}
        self._keep: list[object] = []  # ids above stay valid only while their nodes live

    # -- classes ---------------------------------------------------------------------------------------------

    def own_class(self, module: Module, node: ast.AST) -> ClassInfo | None:
        """The class in whose method `node` stands."""
        info = module.enclosing(node)
        while info is not None:
            if info.cls is not None:
                return info.cls
            info = info.parent
        return None

    def bases(self, cls: ClassInfo) -> Iterator[ClassInfo]:
        """Visible base classes, nearest first, without `cls` itself."""
        todo, seen = [cls], {id(cls)}
        while todo:
            current = todo.pop(0)
            for base in current.bases:
                found = self.project.resolve(base, current.module) if base else None
                if isinstance(found, ClassInfo) and id(found) not in seen:
                    seen.add(id(found))
                    todo.append(found)
                    yield found

    def external_bases(self, cls: ClassInfo) -> list[str]:
        """Dotted names of base classes outside the project, of the class and its visible bases."""
        found = []
        for each in (cls, *self.bases(cls)):
            for base in each.bases:
                if base and isinstance(target := self.project.resolve(base, each.module), str):
                    found.append(target)
        return found

    def related(self, one: ClassInfo, other: ClassInfo) -> bool:
        """Is one of the two a base of the other, or are they the same?"""
        return (
            one is other
            or any(b is other for b in self.bases(one))
            or any(b is one for b in self.bases(other))
        )

    def family(self, cls: ClassInfo) -> list[ClassInfo]:
        """The class, its visible bases and its subclasses in the files that mention it."""
        found = self._families.get(cls)
        if found is None:
            found = self._families[cls] = [cls, *self.bases(cls)]
            for module in self.project.near(cls.module, cls.name, Use.INHERITED):
                found += [
                    c
                    for c in module.classes.values()
                    if c is not cls and any(b is cls for b in self.bases(c))
                ]
        return found

    def method(self, cls: ClassInfo, name: str) -> FunctionInfo | None:
        for each in (cls, *self.bases(cls)):
            if name in each.methods:
                return each.methods[name]
        return None

    def class_of(self, module: Module, expr: ast.expr, depth: int = 4) -> Receiver:
        """The class of the object `expr` evaluates to."""
        if id(expr) not in self._classes:
            self._classes[id(expr)] = None
            self._keep.append(expr)
            self._classes[id(expr)] = self._class_of(module, expr, depth)
        return self._classes[id(expr)]

    def _class_of(self, module: Module, expr: ast.expr, depth: int) -> Receiver:
        if depth == 0:
            return None
        if isinstance(expr, ast.Name):
            if expr.id in ("self", "cls"):
                return self.own_class(module, expr)
            return self._class_of_name(module, expr, depth)
        if isinstance(expr, ast.Attribute) and isinstance(expr.value, ast.Name) and expr.value.id == "self":
            cls = self.own_class(module, expr)
            return None if cls is None else self._class_of_attribute(cls, expr.attr, depth)
        if isinstance(expr, ast.Call):
            return self._class_of_call(module, expr, depth)
        if isinstance(expr, (ast.BoolOp, ast.IfExp)):
            parts = expr.values if isinstance(expr, ast.BoolOp) else [expr.body, expr.orelse]
            return next((c for p in parts if (c := self.class_of(module, p, depth - 1)) is not None), None)
        return None

    def _class_of_call(self, module: Module, call: ast.Call, depth: int) -> Receiver:
        target = callee(call)
        if callee_name(call) in FLUENT and isinstance(target, ast.Attribute):
            return self.class_of(module, target.value)
        if callee_name(call) in WRAPPING and len(call.args) == 1:
            return self.class_of(module, call.args[0])
        if name := dotted(target):
            found = self.lookup(module, call, name)
            if isinstance(found, ClassInfo):
                return found
            if isinstance(found, FunctionInfo):
                return self._class_of_result(found, depth)
            if isinstance(found, str) and name.split(".")[0] in module.imports:
                return "external"
        if callee_name(call) == "from_pretrained" and isinstance(target, ast.Attribute):
            found = self.lookup(module, call, dotted(target.value)) if dotted(target.value) else None
            return found if isinstance(found, ClassInfo) else "external"
        return None

    def class_returned(self, info: FunctionInfo) -> Receiver:
        """The class of what a function returns."""
        return self._class_of_result(info, 4)

    def _class_of_result(self, info: FunctionInfo, depth: int) -> Receiver:
        """The class of what a function returns: by its annotation, else by its `return` statements."""
        node = info.node
        if getattr(node, "returns", None) is not None and (text := _annotation(node.returns)):
            found = self.project.resolve(text, info.module)
            if isinstance(found, ClassInfo) and not _is_protocol(found):
                return found
        if depth < 2 or isinstance(node, ast.AsyncFunctionDef):
            return None
        returned = [n.value for n in walk_level(node) if isinstance(n, ast.Return) and n.value is not None]
        classes = {id(c): c for value in returned for c in [self.class_of(info.module, value, depth - 2)]}
        only = next(iter(classes.values()), None)
        return only if len(classes) == 1 and isinstance(only, ClassInfo) else None

    def _class_of_name(self, module: Module, name: ast.Name, depth: int) -> Receiver:
        table = scopes_of(module)
        scope = table.owner_of_name(table.scope(name), name.id)
        for store in reversed(table.stores(scope, name.id)):
            statement = table.statement(store)
            value = statement.value if isinstance(statement, (ast.Assign, ast.AnnAssign)) else None
            if value is not None and store in (
                *getattr(statement, "targets", ()),
                getattr(statement, "target", None),
            ):
                if (found := self.class_of(module, value, depth - 1)) is not None:
                    return found
        if isinstance(scope, FUNCTIONS) and name.id in parameters(scope):
            return (
                self._class_of_parameter(module.by_node[scope], name.id, depth)
                if scope in module.by_node
                else None
            )
        return None

    def _class_of_parameter(self, info: FunctionInfo, name: str, depth: int) -> Receiver:
        args = info.node.args
        for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs):
            if arg.arg == name and arg.annotation is not None and (text := _annotation(arg.annotation)):
                found = self.project.resolve(text, info.module)
                if isinstance(found, ClassInfo) and not _is_protocol(found):
                    return found
                if isinstance(found, str) and "." in found and found not in GENERAL_BASES:
                    return "external" if not found.startswith("typing") else None
        if depth > 2:
            for module, call in self.callers(info, by_name=True):
                value = argument(info, call, name) if isinstance(call, ast.Call) else None
                if value is not None and (found := self.class_of(module, value, depth - 2)) is not None:
                    return found
        return None

    def _class_of_attribute(self, cls: ClassInfo, attribute: str, depth: int) -> Receiver:
        for each in (cls, *self.bases(cls)):
            for node in self._attribute_writes(each).get(attribute, ()):
                if isinstance(node, ast.Assign):
                    if (found := self.class_of(each.module, node.value, depth - 1)) is not None:
                        return found
                else:
                    found = (
                        self.project.resolve(text, each.module)
                        if (text := _annotation(node.annotation))
                        else None
                    )
                    if isinstance(found, ClassInfo) and not _is_protocol(found):
                        return found
        return None

    def _attribute_writes(self, cls: ClassInfo) -> dict[str, list[ast.Assign | ast.AnnAssign]]:
        """Attribute -> the assignments to it in the body of a class and in its methods."""
        writes = self._writes.get(cls)
        if writes is None:
            writes = self._writes[cls] = {}
            for node in walk_level(cls.node):
                if isinstance(node, ast.Assign):
                    names = {dotted(target) for target in node.targets if isinstance(target, ast.Attribute)}
                    written = {name[5:] for name in names if name.startswith("self.")}
                elif isinstance(node, ast.AnnAssign):
                    written = {dotted(node.target).removeprefix("self.")}
                else:
                    continue
                for name in written:
                    writes.setdefault(name, []).append(node)
        return writes

    # -- what a call enters ----------------------------------------------------------------------------------

    def lookup(self, module: Module, node: ast.AST, name: str) -> FunctionInfo | ClassInfo | Module | str:
        """What dotted `name` means where `node` stands: local functions first, then the module's names."""
        info = module.enclosing(node)
        while info is not None:
            local = f"{info.qualname}.{name}"
            if (
                local in module.functions
                and info.cls is None
                or local in module.functions
                and "." not in name
            ):
                return module.functions[local]
            if local in module.classes:
                return module.classes[local]
            info = info.parent
        return self.project.resolve(name, module)

    def target(self, module: Module, call: ast.Call) -> FunctionInfo | ClassInfo | None:
        """The visible function, method or class that `call` enters."""
        if id(call) not in self._targets:
            self._targets[id(call)] = None
            self._keep.append(call)
            self._targets[id(call)] = self._target(module, call)
        return self._targets[id(call)]

    def _target(self, module: Module, call: ast.Call) -> FunctionInfo | ClassInfo | None:
        func = callee(call)
        if (name := dotted(func)) and not name.startswith(("self.", "cls.")):
            found = self.lookup(module, call, name)
            if isinstance(found, (FunctionInfo, ClassInfo)):
                return found
            if name.split(".")[0] in module.imports and isinstance(found, str):
                return None
        if isinstance(func, ast.Name):
            cls = self.class_of(module, func)
            return self._callable(cls) if isinstance(cls, ClassInfo) else None
        if not isinstance(func, ast.Attribute):
            return None
        if isinstance(func.value, ast.Call) and dotted(func.value.func) == "super":
            cls = self.own_class(module, call)
            bases = self.bases(cls) if cls is not None else ()
            return next((b.methods[func.attr] for b in bases if func.attr in b.methods), None)
        cls = self.class_of(module, func.value)
        if isinstance(cls, ClassInfo):
            found = self.method(cls, func.attr)
            if found is None and isinstance(inner := self.class_of(module, func), ClassInfo):
                return self._callable(inner)
            return found
        return None if cls == "external" else self._method_by_name(module, func)

    def _callable(self, cls: ClassInfo) -> FunctionInfo | None:
        return self.method(cls, "__call__") or self.method(cls, "forward")

    def _method_by_name(self, module: Module, func: ast.Attribute) -> FunctionInfo | None:
        """The one class that can be meant, when the receiver's class is not known."""
        if func.attr.startswith("__"):
            return None
        found = self._methods_called(func.attr, module)
        alike = [info for info in found if info.cls and self._alike(func.value, info.cls)]
        if func.attr in COMMON_METHODS:
            return alike[0] if len(alike) == 1 else None
        candidates = alike or found
        return candidates[0] if len(candidates) == 1 else None

    def _methods_called(self, name: str, module: Module) -> list[FunctionInfo]:
        """Methods of that name in the classes near `module`: a few, since many say nothing."""
        key = module.path, name
        found = self._methods.get(key)
        if found is None:
            found = self._methods[key] = []
            for other in self.project.near(module, name, Use.DEFINED):
                found += [c.methods[name] for c in other.classes.values() if name in c.methods]
                if len(found) > 6:
                    break
        return found

    def _alike(self, receiver: ast.expr, cls: ClassInfo) -> bool:
        """Does the receiver's name look like an instance of the class (`actor_critic` and `ActorCritic`)?"""
        name = (
            receiver.attr
            if isinstance(receiver, ast.Attribute)
            else receiver.id
            if isinstance(receiver, ast.Name)
            else ""
        )
        mine, theirs = words(name) - {"self", "model"}, words(cls.name)
        return bool(mine) and mine <= theirs

    # -- who calls -------------------------------------------------------------------------------------------

    def callers(self, info: FunctionInfo, by_name: bool = False) -> list[tuple[Module, ast.expr]]:
        """Calls that enter `info`, or hand it to somebody who will call it; at most MAX_CALLERS.

        With `by_name` receivers are not looked at (they may be the very thing that is being inferred), and FEW_CALLERS
        are enough.
        """
        key = id(info) * 2 + by_name
        if key not in self._callers:
            self._callers[key] = []
            self._keep.append(info)
            most = FEW_CALLERS if by_name else MAX_CALLERS
            self._callers[key] = list(islice(self._find_callers(info, by_name), most))
        return self._callers[key]

    def _find_callers(self, info: FunctionInfo, by_name: bool) -> Iterator[tuple[Module, ast.expr]]:
        name, cls = info.name, info.cls
        if cls is not None and name == "__init__":
            name = cls.name
        elif name in ("__call__", "forward") and cls is not None:
            yield from self._instance_calls(info, cls)
            return
        elif name in ("__iter__", "__next__") and cls is not None:
            yield from self._iterations(cls)
            return
        elif name == "__getitem__" and cls is not None:
            yield from self._iterations(cls)
            yield from self._items(cls)
            return
        hint = cls.name if cls is not None else info.module.path.rsplit("/", 1)[-1].removesuffix(".py")
        for module in self.project.near(info.module, name, Use.CALLED, hint):
            for call in module.calls.get(name, ()):
                if self._enters(module, call, info, by_name):
                    yield module, call
            for call in module.calls.get("remote", ()):
                if callee_name(call) == name and self._enters(module, call, info, by_name):
                    yield module, call
            yield from ((module, call) for call in self._handovers(module, info, name))

    def _enters(self, module: Module, call: ast.Call, info: FunctionInfo, by_name: bool) -> bool:
        func = callee(call)
        if info.cls is None or info.name == "__init__":
            wanted: object = info.cls if info.cls is not None else info
            if isinstance(func, ast.Name) and info.parent is not None and info.cls is None:
                # a function made inside another may be handed out under its own name
                return self.lookup(module, call, func.id) in (wanted, func.id) and module is info.module
            name = dotted(func)
            return bool(name) and self.lookup(module, call, name) is wanted
        if not isinstance(func, ast.Attribute):
            return False
        above = isinstance(func.value, ast.Call) and dotted(func.value.func) == "super"
        if above or dotted(func.value) in ("self", "cls"):
            own = self.own_class(module, call)
            # super() enters a method of a base: of a base outside the project, none that can be seen
            return own is not None and self.related(own, info.cls) and not (above and own is info.cls)
        if by_name:
            return info.name not in COMMON_METHODS or self._alike(func.value, info.cls)
        if name := dotted(func):
            meant = self.lookup(module, call, name)
            if meant is info:
                return True
            if isinstance(meant, str) and meant != name and name.split(".")[0] in module.imports:
                return False  # a method of something imported from outside
        cls = self.class_of(module, func.value)
        if isinstance(cls, ClassInfo):
            named = self.method(cls, info.name)
            return self.related(cls, info.cls) and (named is None or named is info or _is_abstract(named))
        if cls == "external":
            return False
        return info.name not in COMMON_METHODS or self._alike(func.value, info.cls)

    def _instance_calls(self, info: FunctionInfo, cls: ClassInfo) -> Iterator[tuple[Module, ast.Call]]:
        for module in self.project.near(cls.module, cls.name, Use.MENTIONED):
            for node in module.of(ast.Call):
                if dotted(node.func) != "cls" and self.class_of(module, node.func) is cls:
                    yield module, node

    def _iterations(self, cls: ClassInfo) -> Iterator[tuple[Module, ast.expr]]:
        """Expressions that go over an instance: `for x in engine`, `iter(engine)`, `DataLoader(engine)`."""
        for module in self.project.near(cls.module, cls.name, Use.MENTIONED):
            for node in module.of(ast.For, ast.AsyncFor, ast.comprehension, ast.Call):
                if not isinstance(node, ast.Call):
                    if self.class_of(module, node.iter) is cls:
                        yield module, node.iter
                elif called_name(node) in ITERATORS and node.args:
                    if self.class_of(module, node.args[0]) is cls:
                        yield module, node

    def _items(self, cls: ClassInfo) -> Iterator[tuple[Module, ast.expr]]:
        """Expressions that take one item of an instance: `buffer[0]`."""
        for module in self.project.near(cls.module, cls.name, Use.MENTIONED):
            for node in module.of(ast.Subscript):
                if isinstance(node.ctx, ast.Load) and self.class_of(module, node.value) is cls:
                    yield module, node

    def _handovers(self, module: Module, info: FunctionInfo, name: str) -> Iterator[ast.Call]:
        """Calls that get the function itself: `dataset.map(f)`, `Thread(target=f)`, `partial(f, ...)`."""
        for call in scopes_of(module).handed.get(name, ()):
            values = [*call.args, *(keyword.value for keyword in call.keywords)]
            values += [e for value in values if isinstance(value, (ast.List, ast.Tuple)) for e in value.elts]
            if any(self._means(module, value, info, name) for value in values):
                yield call

    def _means(self, module: Module, value: ast.expr, info: FunctionInfo, name: str) -> bool:
        text = dotted(value)
        if not text or text.rsplit(".", 1)[-1] != name:
            return False
        if info.cls is not None:
            own = self.own_class(module, value)
            return text == f"self.{name}" and own is not None and self.related(own, info.cls)
        return self.lookup(module, value, text) is info


def _is_protocol(cls: ClassInfo) -> bool:
    """A `typing.Protocol` says which methods an object has, not which class it is of."""
    return any(base.rsplit(".", 1)[-1] == "Protocol" for base in cls.bases)


def _is_abstract(method: FunctionInfo) -> bool:
    """Whether a method is there for subclasses to fill in."""
    return any(dotted(d).endswith("abstractmethod") for d in method.node.decorator_list) or all(
        isinstance(s, (ast.Raise, ast.Pass))
        or (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
        for s in method.node.body
    )


def argument(info: FunctionInfo, call: ast.Call, name: str) -> ast.expr | None:
    """The expression that `call` passes for parameter `name` of `info`, None when it passes none."""
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    names = positional(info, call)
    if name in names and (index := names.index(name)) < len(call.args):
        if not any(isinstance(a, ast.Starred) for a in call.args[: index + 1]):
            return call.args[index]
    return None


def positional(info: FunctionInfo, call: ast.Call) -> list[str]:
    """Names of the parameters that positional arguments fill, `self` left out for bound calls."""
    args = info.node.args
    names = [a.arg for a in (*args.posonlyargs, *args.args)]
    static = any(dotted(d) == "staticmethod" for d in info.node.decorator_list)
    if info.cls is not None and not static and names:
        func = callee(call)
        unbound = (
            isinstance(func, ast.Attribute)
            and dotted(func.value) == info.cls.name
            and info.name != "__init__"
        )
        class_method = any(dotted(d) == "classmethod" for d in info.node.decorator_list)
        if not unbound or class_method:
            names = names[1:]
    return names


def default(info: FunctionInfo, name: str) -> ast.expr | None:
    """The default of parameter `name`."""
    args = info.node.args
    plain = [*args.posonlyargs, *args.args]
    for arg, value in zip(reversed(plain), reversed(args.defaults), strict=False):
        if arg.arg == name:
            return value
    return next((v for a, v in zip(args.kwonlyargs, args.kw_defaults, strict=True) if a.arg == name), None)


def _annotation(node: ast.expr) -> str:
    """The class named by an annotation, `Optional[X]`, `X | None` and strings looked through."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            return _annotation(ast.parse(node.value, mode="eval").body)
        except SyntaxError:
            return ""
    if isinstance(node, ast.Subscript) and dotted(node.value).rsplit(".", 1)[-1] == "Optional":
        return _annotation(node.slice)
    if isinstance(node, ast.BinOp):
        return _annotation(node.left)
    return dotted(node)
