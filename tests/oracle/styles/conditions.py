"""Styles of conditions: those only a run decides, and those that reading can decide."""

from __future__ import annotations

from ..scope import CONDITIONS, Scope


@CONDITIONS("flag", leaf=True)
def flag(s: Scope, depth: int) -> str:
    s.uses("import recorder")
    return "recorder.flag()"


@CONDITIONS("imported flag", leaf=True)
def imported_flag(s: Scope, depth: int) -> str:
    s.uses("from recorder import flag")
    return "flag()"


@CONDITIONS("environment", leaf=True)
def environment(s: Scope, depth: int) -> str:
    s.uses("import os")
    name = s.unique("ORACLE_FLAG")
    return s.pick(
        f'os.environ.get("{name}")',
        f'os.environ.get("{name}", "0") != "0"',
        f'"{name}" in os.environ',
        f'os.getenv("{name}", "no").lower() in ("7", "yes")',
    )


@CONDITIONS("constant", leaf=True)
def constant(s: Scope, depth: int) -> str:
    if s.chance(50):
        return s.pick("True", "False", "1", "0", "__debug__", "None", '""', "[0]")
    name = s.unique("DEBUG")
    with s.top() as top:
        top.emit(f"{name} = {s.pick('True', 'False', '0', 'None')}")
    return name


@CONDITIONS("constant changed by a function")
def changed(s: Scope, depth: int) -> str:
    name, setter = s.unique("ENABLED"), s.unique("enable")
    with s.top() as top:
        top.emit(f"{name} = {s.pick('True', 'False')}")
        with top.nested(f"def {setter}():") as body:
            body.emit(f"global {name}", f"{name} = {s.pick('True', 'False')}")
    if s.chance(60):
        s.emit(f"{setter}()")
    return name


@CONDITIONS("comparison")
def comparison(s: Scope, depth: int) -> str:
    a, b = s.value("int", depth), s.value("int", 0)
    return s.pick(
        f"{a} > {b}",
        f"{a} == {b}",
        f"({a}) != {b}",
        f"0 < {a} <= {b}",
        f"{a} in (1, 2, 3)",
        f"{a}",
        f"not {a}",
        f'{s.value("str", depth)} == "static"',
        f"{s.value('maybe', depth)} is None",
        f'{s.value("str", 0)}.startswith("s")',
        f"isinstance({a}, int)",
        f"len({s.value('ints', depth)}) > 1",
    )


@CONDITIONS("combination")
def combination(s: Scope, depth: int) -> str:
    a, b = s.condition(depth), s.condition(depth)
    return s.pick(
        f"not ({a})",
        f"({a}) and ({b})",
        f"({a}) or ({b})",
        f"not ({a}) and ({b})",
        f"any([{a}, {b}])",
        f"(({a}) if ({b}) else ({a}))",
    )
