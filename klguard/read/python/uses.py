"""What a function does with a parameter of which it only reads and sets attributes or keys."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from klguard.read.python.memo import remembered
from klguard.read.python.source import FunctionInfo
from klguard.read.python.trees import walk_level

LOOKING = frozenset(
    "getattr hasattr isinstance issubclass print len str repr type id bool asdict format".split()
)
"""Functions that keep nothing of their first argument. What getattr finds is an attribute that is read."""

KEY_READERS = frozenset({"get", "keys"})
"""Methods of a dict that leave it as it is, and give away at most the value under the key that they are given."""

QUIET = frozenset("main_process_first get_process_log_level to_dict to_json_string to_sanitized_dict".split())
"""Methods of transformers' TrainingArguments that leave them as they are, and give nothing of them away."""

ALIASING = frozenset({"locals", "vars", "eval", "exec", "globals"})
"""Builtins by which code gets at a variable without writing its name."""


@dataclass(frozen=True)
class Uses:
    """The attributes and keys of an object that are read, the attributes that are set, and the keys that are."""

    read: frozenset[str] = frozenset()
    attributes_set: frozenset[str] = frozenset()
    keys_set: frozenset[str] = frozenset()

    def __or__(self, other: Uses) -> Uses:
        return Uses(
            self.read | other.read,
            self.attributes_set | other.attributes_set,
            self.keys_set | other.keys_set,
        )


NOTHING = Uses()


@remembered
def uses_of(info: FunctionInfo, name: str) -> Uses | None:
    """The attributes and keys that a function reads and sets of its parameter `name`, where it does nothing else with
    it: it gives it no other name and hands it to nobody, but other functions of its module that do nothing else
    either. None where it may."""
    return _uses_of(info, name, set())


def _uses_of(info: FunctionInfo, name: str, entered: set[tuple[FunctionInfo, str]]) -> Uses | None:
    if (info, name) in entered:
        return NOTHING
    entered.add((info, name))
    parents, uses = info.module.parents, NOTHING
    for node in walk_level(info.node):
        if not isinstance(node, ast.Name) or node.id not in (name, *ALIASING):
            continue
        if node.id != name:
            return None
        found = _used_here(node, parents, info, entered) if isinstance(node.ctx, ast.Load) else None
        if found is None:
            return None
        uses |= found
    return uses


def _used_here(
    node: ast.Name,
    parents: Mapping[ast.AST, ast.AST],
    info: FunctionInfo,
    entered: set[tuple[FunctionInfo, str]],
) -> Uses | None:
    """What is read and set of a variable where it stands: None where more may be done with it."""
    around = parents[node]
    match around:
        case ast.Attribute(ctx=ast.Load()):
            call = parents[around]
            if not isinstance(call, ast.Call) or call.func is not around:
                return Uses(frozenset({around.attr}))
            if around.attr in QUIET:
                return NOTHING
            return _constant_key(call.args[:1]) if around.attr in KEY_READERS else None
        case ast.Attribute(ctx=ast.Store()):
            name = frozenset({around.attr})
            return Uses(name if _is_augmented(around, parents) else frozenset(), attributes_set=name)
        case ast.Subscript(ctx=ast.Load()) if around.value is node:
            return _constant_key([around.slice])
        case ast.Subscript(ctx=ast.Store()) if around.value is node:
            key = _constant_key([around.slice])
            augmented = _is_augmented(around, parents)
            return key and Uses(key.read if augmented else frozenset(), keys_set=key.read)
        case ast.Compare() | ast.FormattedValue() | ast.UnaryOp(op=ast.Not()):
            return NOTHING
        case ast.BoolOp() | ast.If() | ast.IfExp() | ast.While() | ast.Assert():
            return NOTHING if _is_test(node, parents) else None
        case ast.Call(func=ast.Name()) if node in around.args:
            return _passed_on(node, around, info, entered)
    return None


def _is_augmented(target: ast.expr, parents: Mapping[ast.AST, ast.AST]) -> bool:
    """Whether what is there is changed, as a list is by `+=`."""
    return isinstance(parents[target], ast.AugAssign)


def _is_test(node: ast.expr, parents: Mapping[ast.AST, ast.AST]) -> bool:
    """Whether an expression only decides, alone or among others, where to go on."""
    around = parents[node]
    while isinstance(around, (ast.BoolOp, ast.UnaryOp)):
        node, around = around, parents[around]
    return isinstance(around, (ast.If, ast.IfExp, ast.While, ast.Assert)) and around.test is node


def _constant_key(arguments: Sequence[ast.expr]) -> Uses | None:
    """The key that is read; nothing where there is none."""
    if not arguments:
        return NOTHING
    key = arguments[0]
    return (
        Uses(frozenset({key.value})) if isinstance(key, ast.Constant) and isinstance(key.value, str) else None
    )


def _passed_on(
    node: ast.Name, call: ast.Call, info: FunctionInfo, entered: set[tuple[FunctionInfo, str]]
) -> Uses | None:
    assert isinstance(call.func, ast.Name)
    place, known = call.args.index(node), info.module.functions.get(call.func.id)
    if any(isinstance(argument, ast.Starred) for argument in call.args[:place]):
        return None
    if known is not None:
        taken = [*known.node.args.posonlyargs, *known.node.args.args]
        if known.cls is not None or known.node.decorator_list or place >= len(taken):
            return None
        return _uses_of(known, taken[place].arg, entered)
    if call.func.id not in LOOKING or (place and call.func.id != "print"):
        return None
    return _constant_key(call.args[1:2]) if call.func.id == "getattr" else NOTHING
