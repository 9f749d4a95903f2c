"""Values of attributes: classes, dataclasses, enums, argparse, the environment; and what only a run knows."""

from __future__ import annotations

from ..scope import VALUES, Scope
from .imports import helper, reach
from .pieces import NUMBERS, PLAIN, literal


@VALUES("class attribute")
def class_attribute(s: Scope, depth: int, kind: str) -> str:
    name = s.unique("Constants")
    with s.top() as top:
        value = top.value(kind, depth)
        top.emit(f"class {name}:", f"    item = {value}")
    if s.chance(30):
        s.emit(f"{name}.item = {s.value(kind, depth)}")
    return s.pick(f"{name}.item", f"{name}().item", f'getattr({name}, "item")', f'vars({name})["item"]')


@VALUES("instance attribute")
def instance_attribute(s: Scope, depth: int, kind: str) -> str:
    name, made = s.unique("Holder"), s.fresh("holder")
    with s.top() as top:
        default = top.value(kind, 0)
        top.emit(
            f"class {name}:",
            f"    def __init__(self, item={default}):",
            "        self.item = item",
            "",
            "    def change(self, item):",
            "        self.item = item",
            "        return self",
            "",
            "    @property",
            "    def again(self):",
            "        return self.item",
        )
    s.emit(f"{made} = {name}({s.pick('', s.value(kind, depth))})")
    if s.chance(40):
        value = s.value(kind, depth)
        s.emit(
            s.pick(f"{made}.item = {value}", f"{made}.change({value})", f'setattr({made}, "item", {value})')
        )
    return s.pick(
        f"{made}.item",
        f"{made}.again",
        f'getattr({made}, "item")',
        f'getattr({made}, "none", {made}.item)',
        f'vars({made})["item"]',
        f'{made}.__dict__["item"]',
    )


@VALUES("inherited attribute")
def inherited(s: Scope, depth: int, kind: str) -> str:
    base, child = s.unique("Base"), s.unique("Child")
    with s.top() as top:
        a, b = top.value(kind, 0), top.value(kind, depth)
        top.emit(
            f"class {base}:",
            f"    shared = {a}",
            "",
            "    def __init__(self, item):",
            "        self.item = item",
            "",
            "    def get(self):",
            "        return self.item",
            "",
        )
        top.emit(f"class {child}({base}):")
        top.emit(
            *s.pick(
                ("    pass",),
                (
                    "    def __init__(self, item):",
                    "        super().__init__(item)",
                    f"        self.item = {b}",
                ),
                (f"    shared = {b}", ""),
                ("    def get(self):", "        return self.shared"),
                ("    def get(self):", "        return super().get()"),
                (f"    def __init__(self, item={b}):", f"        {base}.__init__(self, item)"),
            )
        )
    made = f"{child}({s.value(kind, depth)})"
    return s.pick(f"{made}.get()", f"{made}.shared", f"{made}.item")


@VALUES("dataclass")
def dataclass_field(s: Scope, depth: int, kind: str) -> str:
    name = s.unique("Options")
    file = helper(s) if s.chance(30) else s.file
    with s.top(file) as top:
        top.uses("import dataclasses", "from dataclasses import dataclass, field")
        value = top.value(kind if kind != "ints" else "int", 0)
        top.emit(
            f"@dataclass{s.pick('', '()', '(frozen=True)')}",
            f"class {name}:",
            "    required: int",
            f"    item: object = {value}"
            if kind != "ints"
            else f"    item: list = field(default_factory=lambda: [{value}])",
            f"    other: object = {s.pick('None', 'field(default=None)')}",
        )
    text, value = reach(s, file, name), s.value(kind, depth)
    return s.pick(
        f"{text}(1).item",
        f"{text}(required=1, item={value}).item",
        f"{text}(1, {value}).item",
        *_replaced(s, text, value),
    )


def _replaced(s: Scope, text: str, value: str) -> tuple[str, ...]:
    s.uses("import dataclasses")
    return (f"dataclasses.replace({text}(1), item={value}).item", f'dataclasses.asdict({text}(1))["item"]')


@VALUES("named tuple")
def named_tuple(s: Scope, depth: int, kind: str) -> str:
    name = s.unique("Pair")
    with s.top() as top:
        if s.chance(50):
            top.uses("from typing import NamedTuple")
            top.emit(
                f"class {name}(NamedTuple):",
                "    first: object",
                f"    second: object = {top.value(kind, 0)}",
            )
        else:
            top.uses("import collections")
            top.emit(
                f'{name} = collections.namedtuple("{name}", ["first", "second"], '
                f"defaults=[{top.value(kind, 0)}])"
            )
    a, b = s.value(kind, depth), s.value(kind, depth)
    return s.pick(
        f"{name}({a}).first",
        f"{name}(1).second",
        f"{name}({a}, {b})[1]",
        f"{name}({a}, second={b}).second",
        f"{name}({a})._replace(first={b}).first",
        f'{name}({a})._asdict()["first"]',
    )


@VALUES("simple namespace")
def simple_namespace(s: Scope, depth: int, kind: str) -> str:
    name = s.fresh("space")
    s.uses("from types import SimpleNamespace")
    s.emit(f"{name} = SimpleNamespace(item={s.value(kind, depth)})")
    if s.chance(30):
        s.emit(f"{name}.item = {s.value(kind, depth)}")
    return s.pick(f"{name}.item", f'vars({name})["item"]', f'getattr({name}, "item", None)')


@VALUES("enum", *PLAIN)
def enum_value(s: Scope, depth: int, kind: str) -> str:
    name = s.unique("Choice")
    with s.top() as top:
        top.uses("import enum")
        a = top.value(kind, 0)
        top.emit(
            f"class {name}({s.pick('enum.Enum', 'enum.Enum')}):",
            f"    FIRST = {a}",
            '    OTHER = "other value"',
        )
    return s.pick(f"{name}.FIRST.value", f'{name}["FIRST"].value')


@VALUES("argparse", *PLAIN, "maybe")
def argparse_value(s: Scope, depth: int, kind: str) -> str:
    parser, args = s.fresh("parser"), s.fresh("options")
    s.uses("import argparse")
    s.emit(f"{parser} = argparse.ArgumentParser()")
    default = s.value(kind, depth) if kind != "str" else literal(s, kind)
    kind_type = {"int": ", type=int", "float": ", type=float"}.get(kind, "")
    command = "[]"
    if kind == "bool" and s.chance(50):
        s.emit(f'{parser}.add_argument("--item", action="{s.pick("store_true", "store_false")}")')
    elif kind in ("int", "float") and s.chance(30):
        command = f'["--item", "{s.pick(3, 7)}"]'
        s.emit(f'{parser}.add_argument("--item"{kind_type}, default={default})')
    else:
        s.emit(
            f'{parser}.add_argument({s.pick("", chr(34) + "-i" + chr(34) + ", ")}"--item"{kind_type}, '
            f"default={default})"
        )
    if s.chance(25):
        s.emit(f"{parser}.set_defaults(item={s.value(kind, 0)})")
    s.emit(f"{args} = {parser}.parse_args({command})")
    if s.chance(20):
        s.emit(f"{args}.item = {s.value(kind, depth)}")
    return s.pick(f"{args}.item", f'vars({args})["item"]', f'getattr({args}, "item")')


@VALUES("environment", *PLAIN)
def environment(s: Scope, depth: int, kind: str) -> str:
    s.uses("import os")
    name = s.unique("ORACLE_VALUE").upper()
    get = s.pick(f'os.environ.get("{name}", {{}})', f'os.getenv("{name}", {{}})')
    return {
        "int": f"int({get.format(chr(34) + '40' + chr(34))})",
        "float": f"float({get.format('0.5')})",
        "bool": f"bool({get.format('None')})",
        "str": f"{get.format(literal(s, 'str'))}",
    }[kind]


@VALUES("runtime number", *NUMBERS, leaf=True, opaque=True)
def runtime_number(s: Scope, depth: int, kind: str) -> str:
    s.uses("import recorder")
    return "recorder.number()" if kind == "int" else "recorder.fraction()"


@VALUES("invisible identity", opaque=True)
def invisible(s: Scope, depth: int, kind: str) -> str:
    s.uses("import recorder")
    return f"recorder.opaque({s.value(kind, depth)})"
