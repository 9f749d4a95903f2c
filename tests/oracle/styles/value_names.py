"""Values held by names: constants, imports, locals, globals, unpacking."""

from __future__ import annotations

from ..scope import VALUES, Scope
from .imports import helper, reach
from .pieces import NUMBERS, annotation, literal

VALUES("literal", leaf=True)(lambda s, depth, kind: literal(s, kind))


@VALUES("module constant", leaf=True)
def module_constant(s: Scope, depth: int, kind: str) -> str:
    name = s.unique("CONSTANT")
    with s.top() as top:
        value = literal(s, kind)
        top.emit(
            s.pick(
                f"{name} = {value}",
                f"{name}: {annotation(kind)} = {value}",
                f"{name} = ALSO_{name} = {value}",
                f"{name}, _ = {value}, None",
            )
        )
    return name


@VALUES("imported constant", leaf=True)
def imported_constant(s: Scope, depth: int, kind: str) -> str:
    file, name = helper(s), s.unique("IMPORTED")
    with s.top(file) as top:
        top.emit(f"{name} = {top.value(kind, depth)}")
    return reach(s, file, name)


@VALUES("local name")
def local_name(s: Scope, depth: int, kind: str) -> str:
    value, name = s.value(kind, depth), s.fresh("n")
    s.emit(s.pick(f"{name} = {value}", f"{name}: {annotation(kind)} = {value}"))
    return name


@VALUES("rebound name")
def rebound(s: Scope, depth: int, kind: str) -> str:
    name = s.fresh("n")
    s.emit(f"{name} = {s.value(kind, depth)}")
    s.emit(f"{name} = {s.value(kind, depth)}")
    return name


@VALUES("walrus")
def walrus(s: Scope, depth: int, kind: str) -> str:
    value, name = s.value(kind, depth), s.fresh("seen")
    if s.chance(50):
        s.emit(f"if (({name} := {value}) is not None):", f"    {name} = {s.pick(name, literal(s, kind))}")
        return name
    s.emit(f"assert ({name} := {value}) is {name}")
    return name


@VALUES("tuple unpacking")
def unpacking(s: Scope, depth: int, kind: str) -> str:
    wanted, other = s.value(kind, depth), s.value(kind, depth)
    left, right = s.fresh("left"), s.fresh("right")
    form = s.pick(
        "{0}, {1} = {2}, {3}",
        "({1}, {0}) = [{3}, {2}]",
        "{0}, *{1} = [{2}, {3}]",
        "*{1}, {0} = ({3}, {2})",
        "{0}, ({1}, _) = {2}, ({3}, 0)",
        "{0} = {3}\n{1} = {2}\n{0}, {1} = {1}, {0}",
        "{1} = {3}, {2}\n_, {0} = {1}",
        "for {0}, {1} in [({2}, {3})]:\n    pass",
        "({0}), [{1}] = {2}, [{3}]",
    )
    s.emit(form.format(left, right, wanted, other))
    return left


@VALUES("augmented assignment", *NUMBERS, "str", "ints")
def augmented(s: Scope, depth: int, kind: str) -> str:
    name, first = s.fresh("total"), s.value(kind, depth)
    s.emit(f"{name} = {first}" if kind != "ints" else f"{name} = list({first})")
    operator = {"int": ("+=", "-=", "*="), "float": ("+=", "-=", "*=")}.get(kind, ("+=",))
    s.emit(f"{name} {s.choices.pick(operator)} {s.value(kind, depth)}")
    return name


@VALUES("global name")
def global_name(s: Scope, depth: int, kind: str) -> str:
    name, setter = s.unique("STATE"), s.unique("set_state")
    with s.top() as top:
        top.emit(f"{name} = {literal(s, kind)}")
        with top.nested(f"def {setter}(value):") as body:
            body.emit(f"global {name}", f"{name} = value")
    if s.chance(70):
        s.emit(f"{setter}({s.value(kind, depth)})")
    return s.pick(name, f'globals()["{name}"]') if s.chance(60) else _snapshot(s, name)


def _snapshot(s: Scope, text: str) -> str:
    name = s.fresh("now")
    s.emit(f"{name} = {text}")
    return name


@VALUES("globals()")
def globals_entry(s: Scope, depth: int, kind: str) -> str:
    name = module_constant(s, depth, kind)
    return s.pick(f'globals()["{name}"]', f'globals().get("{name}")', f'globals()["CONST" + "{name[5:]}"]')


@VALUES("nonlocal name")
def nonlocal_name(s: Scope, depth: int, kind: str) -> str:
    make, name = s.unique("make_value"), "current"
    with s.top() as top, top.nested(f"def {make}(start):") as outer:
        outer.emit(f"{name} = start")
        with outer.nested("def set_to(value):") as inner:
            inner.emit(f"nonlocal {name}", f"{name} = value")
        if s.chance(50):
            outer.emit(f"set_to({outer.value(kind, depth)})")
        outer.emit(f"return {name}")
    return f"{make}({s.value(kind, depth)})"


@VALUES("attribute of a module changed")
def module_attribute(s: Scope, depth: int, kind: str) -> str:
    file, name, getter = helper(s), s.unique("TUNABLE"), s.unique("get_tunable")
    with s.top(file) as top:
        top.emit(f"{name} = {literal(s, kind)}")
        with top.nested(f"def {getter}():") as body:
            body.emit(f"return {name}")
    s.uses(f"import {file.module}")
    if s.chance(70):
        value = s.value(kind, depth)
        s.emit(
            s.pick(
                f"{file.module}.{name} = {value}",
                f'setattr({file.module}, "{name}", {value})',
                f'vars({file.module})["{name}"] = {value}',
            )
        )
    return s.pick(
        f"{file.module}.{name}",
        f"{file.module}.{getter}()",
        f'getattr({file.module}, "{name}")',
        f"{reach(s, file, name)}",
    )
