"""The side a tokenizer pads on, where it is set."""

from __future__ import annotations

import ast

from klguard.read.python.project import Project
from klguard.read.python.source import Module, called_name, dotted
from klguard.read.python.wiring.bindings import Definition, definitions, dominates, reaching, scope_of
from klguard.read.python.wiring.roles import constant
from klguard.read.python.wiring.trails import Origin, origins
from klguard.settings import Known, Value


def side_of(project: Project, module: Module, tokenizer: ast.expr, use: ast.AST) -> Value | None:
    """The padding side in force for a tokenizer at `use`: last set here, else the only one ever set."""
    name = f"{dotted(tokenizer)}.padding_side"
    scope = scope_of(module, use)
    local = definitions(module, scope).get(name, [])
    if local:
        reached = reaching(module, local, use, scope)
        return _text(project, reached[0]) if reached is not None and len(reached) == 1 else None
    made = origins(project, module, tokenizer)
    if len(made) != 1:
        return None
    found = [
        d for where in dict.fromkeys((module, made[0].module)) for d in _sides(project, where, made[0].place)
    ]
    values = [_text(project, d) for d in found]
    if values:
        same = None not in values and len({v.value for v in values if v is not None}) == 1
        return values[0] if same and all(_certain(d) for d in found) else None
    return _at_loading(project, made[0])


def _sides(project: Project, module: Module, place: tuple) -> list[Definition]:
    """Every `x.padding_side = ...` of a module whose `x` is a tokenizer made there."""
    found: list[Definition] = []
    for scope in (module.tree, *(info.node for info in module.functions.values())):
        for name, bound in definitions(module, scope).items():
            if not name.endswith(".padding_side"):
                continue
            for definition in bound:
                target = next((t for t in getattr(definition.node, "targets", ()) if dotted(t) == name), None)
                if isinstance(target, ast.Attribute):
                    ends = origins(project, module, target.value)
                    if len(ends) == 1 and ends[0].place == place:
                        found.append(definition)
    return found


def _certain(definition: Definition) -> bool:
    """Whether the statement runs whenever its function does."""
    last = definition.scope.body[-1]
    return definition.node is last or dominates(definition.module, definition.node, last, definition.scope)


def _text(project: Project, definition: Definition) -> Known | None:
    found = constant(project, definition.module, definition.value) if definition.value is not None else None
    return found if found is not None and found.value in ("left", "right") else None


def _at_loading(project: Project, made: Origin) -> Value | None:
    if not made.open and isinstance(made.node, ast.Call) and called_name(made.node) == "from_pretrained":
        for keyword in made.node.keywords:
            if keyword.arg == "padding_side":
                return constant(project, made.module, keyword.value)
    return None


def only_tokenizer(module: Module) -> ast.expr | None:
    """The target of the one statement that loads a tokenizer in this module, if there is one."""
    loads = [
        c
        for c in module.calls.get("from_pretrained", ())
        if dotted(c.func).rpartition(".")[0].endswith(("Tokenizer", "TokenizerFast"))
    ]
    parent = module.parents.get(loads[0]) if len(loads) == 1 else None
    return parent.targets[0] if isinstance(parent, ast.Assign) and dotted(parent.targets[0]) else None
