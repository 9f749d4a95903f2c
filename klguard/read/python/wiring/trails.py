"""Where the object behind an expression was made: aliases, attributes of self, arguments of callers, and what
functions hand back.

The interpreter answers what *value* an expression can have; this module answers the smaller question, which
*expression* made the object (`from_pretrained(...)`, `tokenizer(...)`), which the facts about wiring rest on.
Where the flow of control leaves more than one answer it gives them all, and says so where it cannot know.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, replace

from klguard.read.python.callers import CallGraph, argument, default
from klguard.read.python.project import Project
from klguard.read.python.source import FunctionInfo, Module, called_name, dotted, shorten
from klguard.read.python.trees import walk_level
from klguard.read.python.wiring.bindings import (
    Definition,
    Scope,
    ancestors,
    definitions,
    end,
    own_nodes,
    reaching,
    scope_of,
    start,
)
from klguard.settings import Hop, HopKind

MAX_STEPS = 12
"""Aliases, attributes and parameters followed before the trail is given up."""

MAX_CALLERS = 4
"""Callers of a function whose arguments are looked at; with more, a parameter stays a parameter."""

MAX_ENTERED, MAX_RETURNS = 3, 4
"""Functions that are entered from each other, and what one may hand back, before a call stays a call."""

PLAIN_DECORATORS = frozenset({"staticmethod", "classmethod", "no_grad", "inference_mode"})
"""Those of a function that leave alone what it hands back."""

SAME_OBJECT = frozenset(
    "to cuda cpu half float bfloat16 double train eval requires_grad_ share_memory contiguous".split()
)
"""Methods of modules and tensors that hand back the object, or a copy on another device, of another type."""


def graph_of(project: Project) -> CallGraph:
    """The call graph of the project that its contexts are found with, so that a name is looked for once."""
    from klguard.read.python.context import analysis_of

    return analysis_of(project).graph


def calls_of(project: Project, info: FunctionInfo) -> list[tuple[Module, ast.Call]]:
    """The visible calls of a function; empty when it is also handed over to be called by somebody else.

    Tests call it with objects of their own: they are left out where anything else calls it.
    """
    found = graph_of(project).callers(info)
    if not _is_test(info.module):
        found = [caller for caller in found if not _is_test(caller[0])] or found
    calls = [(module, node) for module, node in found if isinstance(node, ast.Call)]
    return calls if len(calls) == len(found) else []


def _is_test(module: Module) -> bool:
    *folders, file = module.path.split("/")
    return file.startswith("test_") or file.endswith("_test.py") or not {"test", "tests"}.isdisjoint(folders)


@dataclass(frozen=True, eq=False)
class Entered:
    """A function, and the call by which a trail entered it."""

    function: FunctionInfo
    module: Module
    call: ast.Call


@dataclass(frozen=True, eq=False)
class Origin:
    """Where a trail ends: `node` is the last expression, `hops` the way back from there to the use.

    open      the trail ended at something that is not visible, so that `node` is only the last name for it.
    identity  equal for two trails that certainly end at the same object: of what a function makes each time it runs,
              the calls by which it was `entered` are a part.
    """

    module: Module
    node: ast.expr
    hops: tuple[Hop, ...] = ()
    open: bool = False
    identity: tuple = ()
    entered: tuple[Entered, ...] = ()

    @property
    def place(self) -> tuple:
        """Where the object is made, whoever calls: the identity but for the calls."""
        return self.identity[: len(self.identity) - len(self.entered)]


def peel(node: ast.expr) -> ast.expr:
    """`model` for `model.to(device).eval()`, `accelerator.prepare(model)`, `torch.compile(model)`."""
    while True:
        match node:
            case ast.Await(value=inner) | ast.NamedExpr(value=inner):
                node = inner
            case ast.Call(
                func=ast.Attribute(attr="unwrap_model" | "prepare" | "prepare_model"), args=[inner]
            ):
                node = inner
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="compile"), args=[inner, *_]):
                node = inner
            case ast.Call(func=ast.Attribute(value=inner, attr=method)) if method in SAME_OBJECT:
                node = inner
            case _:
                return node


def origins(project: Project, module: Module, node: ast.expr) -> list[Origin]:
    """Every expression that may have made the object `node` stands for."""
    return _origins(project, Origin(module, node), MAX_STEPS, frozenset())


def origin(project: Project, module: Module, node: ast.expr) -> Origin | None:
    """The one expression that made the object, or None when there are several or it is not visible."""
    found = origins(project, module, node)
    return found[0] if len(found) == 1 and not found[0].open else None


def origins_within(project: Project, made: Origin, node: ast.expr) -> list[Origin]:
    """Every expression that may have made the object `node` stands for, a part of the expression at which a trail
    ended."""
    return _origins(project, Origin(made.module, node, entered=made.entered), MAX_STEPS, frozenset())


def origin_within(project: Project, made: Origin, node: ast.expr) -> Origin | None:
    """The one of `origins_within`, or None when there are several or it is not visible."""
    found = origins_within(project, made, node)
    return found[0] if len(found) == 1 and not found[0].open else None


def _origins(project: Project, at: Origin, steps: int, seen: frozenset[int]) -> list[Origin]:
    node = peel(at.node)
    at = replace(at, node=node)
    if isinstance(node, ast.IfExp):
        return _origins(project, replace(at, node=node.body), steps - 1, seen) + _origins(
            project, replace(at, node=node.orelse), steps - 1, seen
        )
    name = dotted(node)
    if not name:
        back = _handed_back(project, at, node) if isinstance(node, ast.Call) and steps > 0 else None
        if back is None:
            return [replace(at, identity=(at.module.path, *start(node), *end(node), *_calls(at)))]
        return _all(project, back, steps, seen, node)
    if steps <= 0 or id(node) in seen:
        return [_open(at)]
    found = _reached(project, at.module, node, name)
    if not found:
        return [_open(at)]
    if at.entered and any(d.scope is not at.entered[-1].function.node for d in found):
        at = replace(at, entered=())  # of outside the function, which is the same in each call
    onward: list[Origin] = []
    for definition in found:
        step = _onward(project, at, definition)
        if step is None:
            return [_open(at, found)]
        onward += step
    return _all(project, onward, steps, seen, node)


def _all(
    project: Project, onward: list[Origin], steps: int, seen: frozenset[int], node: ast.expr
) -> list[Origin]:
    """The ends of several trails that part at `node`, each once."""
    ends = (end for step in onward for end in _origins(project, step, steps - 1, seen | {id(node)}))
    return list({reached.identity: reached for reached in ends}.values())


def _open(at: Origin, found: list[Definition] | None = None) -> Origin:
    scope = scope_of(at.module, at.node)
    where = tuple(d.position for d in found or ())
    line = scope.lineno if not isinstance(scope, ast.Module) else 0
    return replace(at, open=True, identity=(at.module.path, line, dotted(at.node), where, *_calls(at)))


def _calls(at: Origin) -> tuple:
    return tuple((each.module.path, *start(each.call)) for each in at.entered)


def _handed_back(
    project: Project, at: Origin, call: ast.Call, part: tuple[int, int] | None = None
) -> list[Origin] | None:
    """What a visible function hands back to `call`, or of its tuples one `part`: which, and of how many. None where
    that cannot be said."""
    info = graph_of(project).target(at.module, call)
    if not isinstance(info, FunctionInfo) or not _plain(info, call) or len(at.entered) >= MAX_ENTERED:
        return None
    if any(each.function is info for each in at.entered):
        return None
    returned = [node.value for node in own_nodes(info.node) if isinstance(node, ast.Return)]
    if not 0 < len(returned) <= MAX_RETURNS or not _returns(info.node.body):
        return None
    if part is not None:
        index, count = part
        tuples = [v.elts if isinstance(v, (ast.Tuple, ast.List)) else () for v in returned]
        if any(len(each) != count for each in tuples):
            return None
        returned = [each[index] for each in tuples]
    if any(value is None or isinstance(value, ast.Starred) for value in returned):
        return None
    hops = (*at.hops, Hop(HopKind.UPDATE, at.module.ast_place(call), f"what {info.name}() returns"))
    entered = (*at.entered, Entered(info, at.module, call))
    return [Origin(info.module, value, hops, entered=entered) for value in returned]


def _plain(info: FunctionInfo, call: ast.Call) -> bool:
    """Whether the call runs just this function: no wrapped one, no generator, and no method of a particular object."""
    decorators = {
        dotted(d.func if isinstance(d, ast.Call) else d).rpartition(".")[2] for d in info.node.decorator_list
    }
    if not decorators <= PLAIN_DECORATORS or called_name(call) != info.name:
        return False
    if any(isinstance(node, (ast.Yield, ast.YieldFrom)) for node in own_nodes(info.node)):
        return False
    owner = dotted(call.func).rpartition(".")[0]
    return info.cls is None or owner in ("self", "cls", info.cls.name)


def _returns(body: list[ast.stmt]) -> bool:
    """Whether a block ends in a return, or an error, on every path."""
    match body[-1]:
        case ast.Return() | ast.Raise():
            return True
        case ast.If(body=then, orelse=other):
            return _returns(then) and bool(other) and _returns(other)
        case ast.With(body=inner) | ast.AsyncWith(body=inner):
            return _returns(inner)
        case ast.Try(body=inner, handlers=handlers, finalbody=final):
            return (
                bool(final) and _returns(final) or _returns(inner) and all(_returns(h.body) for h in handlers)
            )
    return False


def _callers_argument(definition: Definition) -> ast.arg | None:
    return definition.node if isinstance(definition.node, ast.arg) else None


def _onward(project: Project, at: Origin, definition: Definition) -> list[Origin] | None:
    """The expressions behind one definition: its value, or the arguments of the callers of a parameter."""
    hops = (*at.hops, _hop(definition)) if isinstance(definition.node, ast.stmt) else at.hops
    if definition.value is not None:
        return [Origin(definition.module, definition.value, hops, entered=at.entered)]
    if definition.unpacked is not None:
        call, *part = definition.unpacked
        here = Origin(definition.module, call, hops, entered=at.entered)
        return _handed_back(project, here, call, tuple(part))
    arg = _callers_argument(definition)
    info = definition.module.by_node.get(definition.scope)
    if arg is None or info is None:
        return None
    if at.entered and at.entered[-1].function is info:
        return _argument_given(at, arg.arg)
    given = arguments(project, info, arg.arg)
    if not given:
        return None
    text = f"parameter {arg.arg} of {info.name}"
    return [
        Origin(caller, value, (*at.hops, Hop(HopKind.PARAMETER, caller.ast_place(value), text)))
        for caller, value in given
    ]


def _argument_given(at: Origin, name: str) -> list[Origin] | None:
    """What the call by which the trail came here passes for a parameter."""
    last = at.entered[-1]
    if any(keyword.arg is None for keyword in last.call.keywords):
        return None
    value = argument(last.function, last.call, name)
    if value is None:
        value = default(last.function, name)
        return None if value is None else [Origin(last.function.module, value, at.hops)]
    hop = Hop(HopKind.PARAMETER, last.module.ast_place(value), f"parameter {name} of {last.function.name}")
    return [Origin(last.module, value, (*at.hops, hop), entered=at.entered[:-1])]


def _hop(definition: Definition) -> Hop:
    kind = HopKind.ATTRIBUTE if "." in definition.target else HopKind.UPDATE
    assert isinstance(definition.node, ast.stmt)
    node: ast.stmt | ast.expr = definition.node
    if definition.value is not None and hasattr(definition.node, "body"):
        node = definition.value
    return Hop(kind, definition.module.ast_place(node), _first_line(definition.module, node))


def _first_line(module: Module, node: ast.stmt | ast.expr) -> str:
    """The line a node starts on: the node itself may be a literal of any size."""
    return shorten(module.lines[node.lineno - 1].strip())


def _reached(project: Project, module: Module, use: ast.expr, name: str) -> list[Definition] | None:
    """The definitions that can hold for dotted `name` at `use`.

    Those of this function, else of the functions around it and the module; for attributes of self, its class.
    """
    scope = scope_of(module, use)
    if _bound_by_expression(module, use, name):
        return None
    local = definitions(module, scope).get(name)
    if local:
        reached = reaching(module, local, use, scope)
        if reached is not None or "." not in name:
            return reached
    if name.startswith("self.") and name.count(".") == 1:
        return _of_class(project, module, use, name)
    if "." in name:
        return None
    return _of_outer(project, module, scope, name)


def _bound_by_expression(module: Module, use: ast.AST, name: str) -> bool:
    """Whether a comprehension or lambda around `use` binds the name."""
    root = name.split(".")[0]
    for parent, _ in ancestors(module, use):
        if isinstance(parent, ast.Lambda):
            if any(arg.arg == root for arg in (*parent.args.args, *parent.args.kwonlyargs)):
                return True
        elif isinstance(parent, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            bound = {n.id for g in parent.generators for n in walk_level(g.target) if isinstance(n, ast.Name)}
            if root in bound:
                return True
        elif isinstance(parent, ast.stmt):
            return False
    return False


def _of_outer(project: Project, module: Module, scope: Scope, name: str) -> list[Definition] | None:
    if isinstance(scope, ast.Module):
        return _imported(project, module, name)
    outer: Scope = scope
    while not isinstance(outer, ast.Module):
        outer = scope_of(module, outer)
        found = definitions(module, outer).get(name)
        if found:
            return found if not _assigned_as_global(module, name) else None
    return _imported(project, module, name)


def _assigned_as_global(module: Module, name: str) -> bool:
    return any(name in node.names for node in module.of(ast.Global, ast.Nonlocal))


def _imported(project: Project, module: Module, name: str) -> list[Definition] | None:
    """Module-level definitions of a name imported from a file of the project."""
    target = module.imports.get(name)
    if target is None or "." not in target.lstrip("."):
        return None
    source, _, inner = target.rpartition(".")
    found = project.find_module(source or ".", module)
    if found is None:
        return None
    return definitions(found, found.tree).get(inner)


def _of_class(project: Project, module: Module, use: ast.AST, name: str) -> list[Definition] | None:
    graph = graph_of(project)
    cls = graph.own_class(module, use)
    if cls is None:
        return None
    found: list[Definition] = []
    for member in (cls, *graph.bases(cls)):
        for method in member.methods.values():
            found.extend(definitions(member.module, method.node).get(name, ()))
    return found or None


def arguments(project: Project, info: FunctionInfo, name: str) -> list[tuple[Module, ast.expr]]:
    """What the visible callers pass for a parameter; empty when none, or too many, or unclear."""
    calls = calls_of(project, info)
    given: list[tuple[Module, ast.expr]] = []
    for module, call in calls if len(calls) <= MAX_CALLERS else ():
        if any(keyword.arg is None for keyword in call.keywords):
            return []
        value = argument(info, call, name)
        if value is None and (value := default(info, name)) is None:
            return []
        given.append((module if value in module.parents else info.module, value))
    return given
