"""Which definitions of a name can hold at a use of it: scopes, branches and loops on the `ast` alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from klguard.read.python.memo import remembered
from klguard.read.python.source import Module, called_name, dotted
from klguard.read.python.trees import children

Scope = ast.Module | ast.FunctionDef | ast.AsyncFunctionDef
Position = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Definition:
    """One statement that binds `target`; `value` is None where what it binds is no expression of its own. That may be
    an element of what a call hands back, `unpacked`: the call, the element's index, and of how many."""

    target: str
    value: ast.expr | None
    node: ast.stmt | ast.arg
    scope: Scope
    module: Module
    unpacked: tuple[ast.Call, int, int] | None = None

    @property
    def position(self) -> Position:
        return (self.node.lineno, self.node.col_offset)


def scope_of(module: Module, node: ast.AST) -> Scope:
    """The function around `node`, else the module."""
    info = module.enclosing(node)
    return info.node if info is not None else module.tree


@remembered
def own_nodes(scope: ast.AST) -> tuple[ast.AST, ...]:
    """The nodes of a scope in source order, without those of functions and classes defined inside it."""
    found = []
    stack = children(scope)[::-1]
    while stack:
        node = stack.pop()
        found.append(node)
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            stack += children(node)[::-1]
    return tuple(found)


@remembered
def definitions(module: Module, scope: Scope) -> dict[str, list[Definition]]:
    """Every binding made in `scope` (parameters too), by dotted target, in source order."""
    found: dict[str, list[Definition]] = {}
    for definition in _definitions(module, scope):
        found.setdefault(definition.target, []).append(definition)
    return found


def _definitions(module: Module, scope: Scope) -> Iterator[Definition]:
    if not isinstance(scope, ast.Module):
        arguments = scope.args
        named = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
        for arg in (*named, arguments.vararg, arguments.kwarg):
            if arg is not None:
                yield Definition(arg.arg, None, arg, scope, module)
    for node in own_nodes(scope):
        match node:
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    yield from _bound(target, value, node, scope, module)
            case ast.AnnAssign(target=target, value=value) if value is not None:
                yield from _bound(target, value, node, scope, module)
            case ast.AugAssign(target=target):
                yield from _bound(target, None, node, scope, module)
            case ast.For(target=target) | ast.AsyncFor(target=target):
                yield from _bound(target, None, node, scope, module)
            case ast.With(items=items) | ast.AsyncWith(items=items):
                for bound in (item for item in items if item.optional_vars is not None):
                    yield from _bound(bound.optional_vars, _entered(bound.context_expr), node, scope, module)
            case ast.Delete(targets=targets):
                for target in targets:
                    yield from _bound(target, None, node, scope, module)
            case _:
                continue


def _entered(context: ast.expr) -> ast.expr | None:
    """`with unwrap_model_for_generation(model, accelerator) as unwrapped`, trl's: the model itself."""
    if isinstance(context, ast.Call) and called_name(context) == "unwrap_model_for_generation":
        return context.args[0] if context.args else None
    return None


def _bound(
    target: ast.expr, value: ast.expr | None, node: ast.stmt, scope: Scope, module: Module
) -> Iterator[Definition]:
    if isinstance(target, (ast.Tuple, ast.List)):
        count = len(target.elts)
        for index, element in enumerate(target.elts):
            part = _element(value, index, count)
            called = isinstance(value, ast.Call) and part is None and dotted(element)
            if called and not any(isinstance(other, ast.Starred) for other in target.elts):
                yield Definition(dotted(element), None, node, scope, module, (value, index, count))
            else:
                yield from _bound(element, part, node, scope, module)
    elif isinstance(target, ast.Starred):
        yield from _bound(target.value, None, node, scope, module)
    elif name := dotted(target):
        yield Definition(name, value, node, scope, module)


def _element(value: ast.expr | None, index: int, length: int) -> ast.expr | None:
    """Element `index` of an unpacked value; `accelerator.prepare(a, b)` gives back its arguments in order."""
    if isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == length:
        return value.elts[index]
    if isinstance(value, ast.Call) and called_name(value) == "prepare" and len(value.args) == length:
        return value.args[index]
    if isinstance(value, ast.Call) and called_name(value) == "from_pretrained" and index == 0:
        return value  # unsloth hands back the model and its tokenizer
    return None


# -- control flow -----------------------------------------------------------------------------------------


def ancestors(module: Module, node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """(parent, child on the way to `node`) from `node` outwards."""
    child = node
    parent = module.parents.get(node)
    while parent is not None:
        yield parent, child
        child, parent = parent, module.parents.get(parent)


def statement_of(module: Module, node: ast.AST) -> ast.AST:
    """The statement (or parameter) that `node` belongs to."""
    while not isinstance(node, (ast.stmt, ast.arg)) and node in module.parents:
        node = module.parents[node]
    return node


def is_main_guard(node: ast.AST) -> bool:
    """`if __name__ == "__main__":`, which a script runs always."""
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


def conditions(module: Module, node: ast.AST, scope: ast.AST) -> list[tuple[ast.AST, str]]:
    """The statements around `node` that decide whether it runs, outermost first, with the branch."""
    found = []
    for parent, child in ancestors(module, node):
        if parent is scope:
            break
        if isinstance(parent, (ast.With, ast.AsyncWith)) or is_main_guard(parent):
            continue
        blocks = {name: getattr(parent, name, None) for name in ("body", "orelse", "handlers", "finalbody")}
        branch = next(
            (name for name, block in blocks.items() if isinstance(block, list) and child in block), ""
        )
        if isinstance(parent, ast.Try) and branch == "finalbody" or not branch:
            continue
        found.append((parent, branch))
    return found[::-1]


def dominates(module: Module, earlier: ast.AST, later: ast.AST, scope: ast.AST) -> bool:
    """Whether `earlier`, which comes first in the text, has certainly run on this pass when `later` runs."""
    before, after = conditions(module, earlier, scope), conditions(module, later, scope)
    return before == after[: len(before)]


def exclusive(module: Module, one: ast.AST, other: ast.AST, scope: ast.AST) -> bool:
    """Whether the two stand in different branches of the same statement."""
    branches = {node: branch for node, branch in conditions(module, one, scope) if isinstance(node, ast.If)}
    return any(branches.get(node, branch) != branch for node, branch in conditions(module, other, scope))


def loops(module: Module, node: ast.AST, scope: ast.AST) -> list[ast.AST]:
    """The loops of `scope` around `node`, outermost first."""
    around = (parent for parent, _ in conditions(module, node, scope))
    return [parent for parent in around if isinstance(parent, (ast.For, ast.AsyncFor, ast.While))]


def start(node: ast.AST) -> Position:
    return (node.lineno, node.col_offset)  # type: ignore[attr-defined]


def end(node: ast.AST) -> Position:
    return (node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]


def inside(node: ast.AST, outer: ast.AST) -> bool:
    """Whether `node` lies in the text of `outer`."""
    return start(outer) <= start(node) and end(node) <= end(outer)


def reaching(module: Module, found: list[Definition], use: ast.AST, scope: Scope) -> list[Definition] | None:
    """Which of the definitions of one name in `scope` can hold at `use`.

    None when the one of an earlier pass of a loop, or of outside the scope, may hold instead.
    """
    here = statement_of(module, use)
    candidates: list[Definition] = []
    base: Definition | None = None
    for definition in reversed(found):
        if (
            definition.node is here
            or not _ran(definition, use)
            or exclusive(module, definition.node, use, scope)
        ):
            continue
        candidates.insert(0, definition)
        if isinstance(definition.node, ast.arg) or dominates(module, definition.node, use, scope):
            base = definition
            break
    around = [loop for loop in loops(module, use, scope) if base is None or not inside(base.node, loop)]
    if around and any(_comes_round(d, use, loop, here) for d in found for loop in around):
        return None
    return candidates or None


def _comes_round(definition: Definition, use: ast.AST, loop: ast.AST, here: ast.AST) -> bool:
    """Whether a loop brings the definition round to the use although it does not stand before it."""
    return inside(definition.node, loop) and (definition.node is here or not _ran(definition, use))


def _ran(definition: Definition, use: ast.AST) -> bool:
    """Whether the definition stands before the use. A `for` or `with` binds before its body runs."""
    if isinstance(definition.node, ast.arg):
        return True
    if isinstance(definition.node, (ast.For, ast.AsyncFor, ast.With, ast.AsyncWith)):
        return start(definition.node.body[0]) <= start(use)
    return end(definition.node) <= start(use)
