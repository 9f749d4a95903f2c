"""Whether two numbers in the code are the same: the same literal, variable, or field of a configuration.

A number is described by *atoms*; two that share one are the same. `args.temperature` here and
`self.args.temperature` there share the field `args.temperature`; two literals share their value.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from klguard.read.python.project import Project
from klguard.read.python.source import FunctionInfo, Module, called_name, dotted
from klguard.read.python.wiring.bindings import ancestors, own_nodes
from klguard.read.python.wiring.roles import constant
from klguard.read.python.wiring.trails import graph_of, origins
from klguard.settings import Known, SiteKind, Value, members

Atom = tuple[str, object]

SHAPES = frozenset(
    {
        "float",
        "int",
        "max",
        "min",
        "abs",
        "clamp",
        "clamp_min",
        "unsqueeze",
        "view",
        "reshape",
        "to",
        "tensor",
        "as_tensor",
        "item",
        "Decimal",
    }
)
"""Calls that hand on the number they are given, up to its type, shape and a guard against zero."""

ARGUMENTS = re.compile(r"(^|_)args$")
CONFIGS = frozenset(
    {"cfg", "conf", "config", "cfgs", "configs", "train_config", "training_config", "train_cfg"}
)
OBJECTS = ("generation_config", "sampling_params", "generation_kwargs", "gen_kwargs", "generate_kwargs")
CLASSES = frozenset({"SamplingParams", "GenerationConfig"})
MAX_DEPTH = 6


def atoms(project: Project, module: Module, node: ast.expr, depth: int = MAX_DEPTH) -> frozenset[Atom]:
    """Everything the number is certainly known as."""
    if depth == 0:
        return frozenset()
    node = _shaped(node)
    if isinstance(node, (ast.BoolOp, ast.IfExp)):
        parts = node.values if isinstance(node, ast.BoolOp) else [node.body, node.orelse]
        return frozenset().union(*(atoms(project, module, part, depth - 1) for part in parts))
    if field := _field(module, node):
        owner, _, name = field.rpartition(".")
        found = {("field", f"{_owner(project, module, node, owner)}.{name}")} if owner else set()
        return (
            frozenset(found) | _inside(project, module, node, depth) | _behind(project, module, node, depth)
        )
    if isinstance(node, ast.Constant):
        return _literal(node.value)
    return _behind(project, module, node, depth)


def _inside(project: Project, module: Module, node: ast.expr, depth: int) -> frozenset[Atom]:
    """The atoms of what a dict was made with under the key that is read, for `d["name"]` and `d.get("name")`."""
    match node:
        case ast.Subscript(value=owner, slice=ast.Constant(value=str(name))):
            pass
        case ast.Call(func=ast.Attribute(value=owner, attr="get"), args=[ast.Constant(value=str(name)), *_]):
            pass
        case _:
            return frozenset()
    entries = [
        e for made in origins(project, module, owner) for e in _entries(project, made.module, made.node, name)
    ]
    return frozenset().union(*(atoms(project, where, value, depth - 1) for where, value in entries))


def _behind(project: Project, module: Module, node: ast.expr, depth: int) -> frozenset[Atom]:
    """The atoms of whatever the expression was assigned or passed from."""
    if not dotted(node):
        return frozenset()
    found: set[Atom] = set()
    for made in origins(project, module, node):
        if made.node is not node:
            found |= atoms(project, made.module, made.node, depth - 1)
        if made.open and "." not in dotted(made.node):
            found.add(("name", made.identity))
    if (known := constant(project, module, node)) is not None:
        found |= _literal(known.value)
    return frozenset(found)


def _literal(value: object) -> frozenset[Atom]:
    """The atom of a literal number; 1 is no evidence, because dividing by it does nothing."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value != 1:
        return frozenset({("literal", round(float(value), 5))})
    return frozenset()


def _shaped(node: ast.expr) -> ast.expr:
    """The number inside `float(t)`, `max(t, 1e-6)`, `t + 1e-7`, `t.clamp(min=1e-8)`."""
    while True:
        match node:
            case ast.BinOp(left=inner, op=ast.Add(), right=ast.Constant(value=float(small))) if (
                abs(small) < 1e-3
            ):
                node = inner
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="torch" | "np" | "jnp"), attr=name), args=[inner, *_]
            ) if name in SHAPES:
                node = inner
            case ast.Call(func=ast.Attribute(value=inner, attr=name)) if name in SHAPES:
                node = inner
            case ast.Call(func=ast.Name(id="max" | "min"), args=[ast.Constant(), inner]):
                node = inner
            case ast.Call(func=ast.Name(id=name), args=[inner, *_]) if name in SHAPES:
                node = inner
            case _:
                return node


def _field(module: Module, node: ast.expr) -> str:
    """`owner.name` for `owner.name`, `owner["name"]`, `owner.get("name", d)` and `getattr(owner, "name")`."""
    match node:
        case ast.Attribute(value=owner, attr=name):
            return f"{dotted(owner)}.{name}" if dotted(owner) else ""
        case ast.Subscript(value=owner, slice=ast.Constant(value=str(name))):
            return f"{dotted(owner)}.{name}" if dotted(owner) else ""
        case ast.Call(func=ast.Attribute(value=owner, attr="get"), args=[ast.Constant(value=str(name)), *_]):
            return f"{dotted(owner)}.{name}" if dotted(owner) else ""
        case ast.Call(func=ast.Name(id="getattr"), args=[owner, ast.Constant(value=str(name)), *_]):
            return f"{dotted(owner)}.{name}" if dotted(owner) else ""
    return ""


def _owner(project: Project, module: Module, node: ast.AST, owner: str) -> str:
    """The owner of a field under the name it has everywhere.

    Without self, `training_args` as `args`, `cfg` as `config`; for a field of self, its class.
    """
    if owner in ("self", "cls"):
        cls = graph_of(project).own_class(module, node)
        return f"{module.path}:{cls.qualname}" if cls is not None else f"{module.path}:self"
    last = owner.rpartition(".")[2].lstrip("_")
    if ARGUMENTS.search(last):
        return "args"
    return "config" if last in CONFIGS else last


# -- what a site was given -----------------------------------------------------------------------------------


def given(
    project: Project, module: Module, call: ast.Call, kind: SiteKind, name: str, value: Value | None = None
) -> frozenset[Atom]:
    """The atoms of setting `name` as the site was given it, and of the one number that is in force there, if `value`
    is one; empty when it is not visibly given."""
    found: set[Atom] = set()
    numbers = [m.value for m in members(value) if isinstance(m, Known)] if value is not None else []
    if len(numbers) == 1:
        found |= _literal(numbers[0])
    for where, value in _written(project, module, call, name):
        found |= atoms(project, where, value)
    if kind is not SiteKind.GENERATE and any(k.arg == name for k in call.keywords):
        found |= {("field", f"{holder}.{name}") for holder in _holders(project, module, call)}
    return frozenset(found)


def _written(
    project: Project, module: Module, call: ast.Call, name: str
) -> Iterator[tuple[Module, ast.expr]]:
    for keyword in call.keywords:
        if keyword.arg == name:
            yield module, keyword.value
    holders = [k.value for k in call.keywords if k.arg is None or k.arg in OBJECTS]
    holders += [a for a in call.args if not isinstance(a, ast.Starred)]
    for holder in holders:
        named = dotted(holder).rpartition(".")[2].lstrip("_") in OBJECTS or holder not in call.args
        for where, made in _made(project, module, holder):
            if (
                named
                or isinstance(made, ast.Dict)
                or isinstance(made, ast.Call)
                and called_name(made) in CLASSES
            ):
                yield from _entries(project, where, made, name)
        yield from _stores(module, dotted(holder), name)


def _made(project: Project, module: Module, holder: ast.expr) -> Iterator[tuple[Module, ast.AST]]:
    """Where the object comes from that an argument is; of a function of the project, what it hands back."""
    for made in origins(project, module, holder):
        function = (
            graph_of(project).target(made.module, made.node) if isinstance(made.node, ast.Call) else None
        )
        if not isinstance(function, FunctionInfo):
            yield made.module, made.node
            continue
        for node in own_nodes(function.node):
            if isinstance(node, ast.Return) and node.value is not None:
                yield from ((o.module, o.node) for o in origins(project, function.module, node.value))


def _entries(
    project: Project, where: Module, made: ast.AST, name: str, depth: int = MAX_DEPTH
) -> Iterator[tuple[Module, ast.expr]]:
    """What an object is made with under a name: in a dict display, as an argument, or in a dict it is made from."""
    inside: list[ast.expr] = []
    match made:
        case ast.Dict(keys=keys, values=values):
            for key, value in zip(keys, values, strict=True):
                if isinstance(key, ast.Constant) and key.value == name:
                    yield where, value
            inside = [value for key, value in zip(keys, values, strict=True) if key is None]
        case ast.Call(keywords=keywords):
            yield from ((where, k.value) for k in keywords if k.arg == name)
            inside = [k.value for k in keywords if k.arg is None]
    for each in inside if depth else ():
        for origin in origins(project, where, each):
            if origin.node is not made:
                yield from _entries(project, origin.module, origin.node, name, depth - 1)


def _stores(module: Module, holder: str, name: str) -> Iterator[tuple[Module, ast.expr]]:
    """`holder["name"] = value` and `holder.name = value` anywhere in the module."""
    for node in module.of(ast.Assign) if holder else ():
        for target in node.targets:
            match target:
                case ast.Subscript(value=owner, slice=ast.Constant(value=key)) if (
                    key == name and dotted(owner) == holder
                ):
                    yield module, node.value
                case ast.Attribute(value=owner, attr=key) if key == name and dotted(owner) == holder:
                    yield module, node.value


def _holders(project: Project, module: Module, call: ast.Call) -> Iterator[str]:
    """The names under which the object that a call makes is kept: a variable, an attribute, an argument."""
    for parent, child in ancestors(module, call):
        match parent:
            case ast.keyword(arg=str(name)):
                yield _owner(project, module, call, name)
                return
            case ast.Assign(targets=targets):
                for target in targets:
                    if dotted(target):
                        yield _owner(project, module, call, dotted(target))
                return
            case ast.stmt():
                return
            case ast.Call() if child not in parent.keywords:
                return
