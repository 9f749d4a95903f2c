"""Values from operators, builtins and indexing."""

from __future__ import annotations

from ..scope import VALUES, Scope
from .pieces import NUMBERS, literal


@VALUES("arithmetic", *NUMBERS)
def arithmetic(s: Scope, depth: int, kind: str) -> str:
    a, b = s.value(kind, depth), s.value(s.pick(kind, "int"), depth)
    shape = s.pick(
        "({0} + {1})",
        "({0} - {1})",
        "({0} * {1})",
        "(-{0})",
        "(+{0})",
        "({0} * 2 + {1})",
        "({0} + {1} / 4)",
        "({0} % 7)",
        "({0} // 3)",
        "({0} / 2)",
        "(2 ** 3 + {0})",
        "divmod({0}, 3)[1]",
        "pow({0}, 2)",
    )
    return shape.format(a, b)


@VALUES("bit operator", "int")
def bits(s: Scope, depth: int, kind: str) -> str:
    low, high = s.choices.pick(("1", "6", "12")), s.choices.pick(("3", "4", "8"))
    return s.pick(
        f"({low} | {high})", f"({low} & {high})", f"({low} ^ {high})", f"(1 << {high})", f"(~{low})"
    )


@VALUES("comparison", "bool")
def comparison(s: Scope, depth: int, kind: str) -> str:
    a, b = s.value("int", depth), s.value("float", depth)
    return s.pick(
        f"({a} > {b})",
        f"({a} <= {b})",
        f"({a} == {b})",
        f"({a} != {b})",
        f"(0 < {a} < {b})",
        f"({a} in (1, 2, 50))",
        f"({a} not in [1, {b}])",
        f"({s.value('maybe', depth)} is None)",
        f"({s.value('maybe', depth)} is not None)",
        f"isinstance({a}, int)",
        f"isinstance({b}, (bool, float))",
        f'("a" in {s.value("str", depth)})',
    )


@VALUES("boolean operator", "bool")
def boolean(s: Scope, depth: int, kind: str) -> str:
    a, b = s.value("bool", depth), s.value("bool", depth)
    return s.pick(
        f"(not {a})",
        f"({a} and {b})",
        f"({a} or {b})",
        f"(not ({a} or not {b}))",
        f"({a} ^ {b})",
        f"any([{a}, {b}])",
        f"all(x for x in ({a}, {b}))",
    )


@VALUES("conditional expression")
def conditional(s: Scope, depth: int, kind: str) -> str:
    test = s.condition(depth)
    return f"({s.value(kind, depth)} if {test} else {s.value(kind, depth)})"


@VALUES("or default")
def or_default(s: Scope, depth: int, kind: str) -> str:
    a, b = s.value(kind, depth), s.value(kind, depth)
    return s.pick(f"({a} or {b})", f"(None or {a})", f"({a} and {b})", f"({a} or None or {b})")


@VALUES("string method", "str")
def stringmethod_text(s: Scope, depth: int, kind: str) -> str:
    a = s.value("str", depth)
    return s.pick(
        f"{a}.upper()",
        f"({a}).lower()",
        f'{a}.replace("a", "o")',
        f'("x" + {a}).strip("x")',
        f'f"{{{literal(s, "int")}}}-x"',
        f'"%s!" % ({a},)',
        f'"{{}}_{{}}".format({a}, 1)',
        f'"_".join([{a}, "b"])',
        f'("k,v," + {a}).split(",")[1]',
        f'{a}.title().removesuffix("c")',
        f"str({s.value('int', 0)})",
        f"{a}[:3]",
        f'{a} + "tail"',
        f'"{{x}}".format(x={a})',
    )


@VALUES("list operation", "ints")
def list_operation(s: Scope, depth: int, kind: str) -> str:
    a, n = s.value("ints", depth), s.value("int", depth)
    return s.pick(
        f"({a} + [{n}])",
        f"[{n}, *{a}]",
        f"list({a})",
        f"sorted({a} + [3])",
        "list(range(3))",
        f"[x for x in {a}]",
        f"[x * 2 for x in {a} if x > 1]",
        f"{a}[1:]",
        f"{a} * 2",
        f"{a}[::-1]",
        f"list(tuple({a}))",
        f"[{n}]",
        f"sorted({{3, 1, {n}}})",
        f"list(map(int, {a}))",
        f"list(reversed({a}))",
        f"list(filter(None, {a}))",
    )


@VALUES("list built in steps", "ints")
def list_steps(s: Scope, depth: int, kind: str) -> str:
    name = s.fresh("tokens")
    s.emit(f"{name} = list({s.value('ints', depth)})")
    alias = name
    if s.chance(40):
        alias = s.fresh("tokens")
        s.emit(f"{alias} = {s.pick(name, f'{name}[:]')}")
    s.emit(
        s.pick(
            f"{alias}.append({s.value('int', 0)})",
            f"{alias}.extend([4, 6])",
            f"{alias} += [1]",
            f"{alias}.insert(0, 9)",
            f"for token in (11, 12):\n    {alias}.append(token)",
            f"{alias}[:0] = [8]",
            f"{alias}.clear()",
        )
    )
    return name


@VALUES("builtin", *NUMBERS)
def builtin(s: Scope, depth: int, kind: str) -> str:
    a, b = s.value(kind, depth), s.value(kind, depth)
    text = s.value("str", 0)
    shapes = {
        "int": (
            f"max({a}, {b})",
            f"min({a}, {b}, 7)",
            f"abs({a})",
            f"int({s.value('float', depth)})",
            f"len({text})",
            f"sum([{a}, {b}])",
            'int("50")',
            f"len([{a}, {b}])",
            f"int({a})",
            f"round({s.value('float', 0)})",
            'int(f"{2}0")',
            f"min([{a}, {b}])",
            "len(range(4))",
            f"max((x for x in ({a}, {b})), default=1)",
            'int("1f", 16)',
            "len({1, 2, 2})",
        ),
        "float": (
            f"float({a})",
            f"max({a}, {b})",
            f"float({s.value('int', 0)})",
            f"min({a}, 0.75)",
            'float("0.9")',
            f"round({a}, 1)",
            f"sum(({a}, {b}))",
            f"abs({a})",
            f"sum([{a}], 1.0)",
        ),
    }
    return s.choices.pick(shapes[kind])


@VALUES("bool()", "bool")
def to_bool(s: Scope, depth: int, kind: str) -> str:
    return f"bool({s.value(s.pick('int', 'str', 'maybe', 'ints', 'float'), depth)})"


@VALUES("index")
def index(s: Scope, depth: int, kind: str) -> str:
    a, b = s.value(kind, depth), s.value(kind, depth)
    return s.pick(
        f"({a}, {b})[1]",
        f"[{a}, {b}][0]",
        f"[{a}, {b}][-1]",
        f'{{"x": {a}, "y": {b}}}["y"]',
        f'{{"x": {a}}}.get("x", {b})',
        f'{{"x": {a}}}.get("z", {b})',
        f"[{a}, {b}, {a}][1:][0]",
        f"{{True: {a}, False: {b}}}[{s.value('bool', 0)}]",
        f'dict(x={a}).pop("x")',
        f'{{"x": {a}}}.setdefault("x", {b})',
        f"{{1: {a}, 2: {b}}}[1 + 1]",
        f"[[{a}], [{b}]][1][0]",
        f'{{"a": {{"b": {a}}}}}["a"]["b"]',
        f'({{"x": {a}}}.get("z") or {b})',
    )
