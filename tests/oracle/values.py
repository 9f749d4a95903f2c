"""Styles of writing one value: literals, arithmetic, names, calls, statements, attributes, defaults."""

from __future__ import annotations

from .modules import helper, reach
from .scope import VALUES, Scope

LITERALS = {
    "int": ("0", "1", "2", "3", "5", "10", "20", "50", "100", "-1", "1_000"),
    "float": ("1.0", "0.7", "0.9", "0.5", "1.2", "0.0", "1e-2", ".95"),
    "bool": ("True", "False"),
    "str": ('"static"', "'dynamic'", '"quantized"', '"off" "load"', '""'),
    "ints": ("[1, 2]", "[5]", "[]", "[7, 8, 9]"),
    "maybe": ("None", "0.1", "0.05"),
}
_PLAIN = ("int", "float", "bool", "str")
_NUMBERS = ("int", "float")


def literal(s: Scope, kind: str) -> str:
    """A literal of the given kind."""
    return s.choices.pick(LITERALS[kind])


VALUES("literal", leaf=True)(lambda s, depth, kind: literal(s, kind))


# --- names ---------------------------------------------------------------------------------------
@VALUES("module constant", leaf=True)
def module_constant(s: Scope, depth: int, kind: str) -> str:
    name = s.unique("CONSTANT")
    with s.top() as top:
        value = literal(s, kind)
        top.emit(
            s.pick(
                f"{name} = {value}",
                f"{name}: {_annotation(kind)} = {value}",
                f"{name} = ALSO_{name} = {value}",
                f"{name}, _ = {value}, None",
            )
        )
    return name


def _annotation(kind: str) -> str:
    return {"ints": "list", "maybe": "float | None"}.get(kind, kind)


@VALUES("imported constant", leaf=True)
def imported_constant(s: Scope, depth: int, kind: str) -> str:
    file, name = helper(s), s.unique("IMPORTED")
    with s.top(file) as top:
        top.emit(f"{name} = {top.value(kind, depth)}")
    return reach(s, file, name)


@VALUES("local name")
def local_name(s: Scope, depth: int, kind: str) -> str:
    value, name = s.value(kind, depth), s.fresh("n")
    s.emit(s.pick(f"{name} = {value}", f"{name}: {_annotation(kind)} = {value}"))
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


@VALUES("augmented assignment", *_NUMBERS, "str", "ints")
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


# --- operators -----------------------------------------------------------------------------------
@VALUES("arithmetic", *_NUMBERS)
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
def string_method(s: Scope, depth: int, kind: str) -> str:
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


@VALUES("builtin", *_NUMBERS)
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


# --- calls ---------------------------------------------------------------------------------------
@VALUES("lambda")
def lambda_call(s: Scope, depth: int, kind: str) -> str:
    a, b = s.value(kind, depth), s.value(kind, depth)
    if s.chance(50):
        return s.pick(
            f"(lambda: {a})()",
            f"(lambda x: x)({a})",
            f"(lambda x={a}: x)()",
            f"(lambda x, y: y)({a}, {b})",
            f"(lambda *x: x[0])({a}, {b})",
            f"(lambda **x: x['k'])(k={a})",
            f"(lambda x, *, y={b}: y)({a})",
        )
    name = s.fresh("pick")
    s.emit(f"{name} = lambda x, y={b}: {s.pick('x', 'y')}")
    return f"{name}({a})"


@VALUES("function")
def function(s: Scope, depth: int, kind: str) -> str:
    name = s.unique("compute")
    file = helper(s) if s.chance(30) else s.file
    with s.top(file) as top:
        default = top.value(kind, 0)
        with top.nested(f"def {name}(first, second={default}, *, third={literal(s, kind)}):") as body:
            for line in s.pick(
                ("return first",),
                ("return second",),
                ("return third",),
                ("if first:", "    return second", "return third"),
                ("result = first", "if not first:", "    result = second", "return result"),
                ('"""Doc."""', "second = third", "return second"),
            ):
                body.emit(line)
    call = reach(s, file, name)
    a, b = s.value(kind, depth), s.value(kind, depth)
    return s.pick(
        f"{call}({a})",
        f"{call}({a}, {b})",
        f"{call}({a}, third={b})",
        f"{call}(second={a}, first={b})",
        f"{call}(*[{a}, {b}])",
        f'{call}(**{{"first": {a}, "third": {b}}})',
    )


@VALUES("function called twice")
def function_twice(s: Scope, depth: int, kind: str) -> str:
    name = s.unique("same_value")
    with s.top() as top, top.nested(f"def {name}(value):") as body:
        body.emit(s.pick("return value", "result = value\nreturn result"))
    first, second = s.fresh("first"), s.fresh("second")
    s.emit(f"{first} = {name}({s.value(kind, depth)})", f"{second} = {name}({s.value(kind, depth)})")
    return s.pick(first, second)


@VALUES("closure")
def closure(s: Scope, depth: int, kind: str) -> str:
    make = s.unique("make_reader")
    with s.top() as top, top.nested(f"def {make}(value):") as outer:
        with outer.nested("def read():") as inner:
            inner.emit("return value")
        if s.chance(30):
            outer.emit(f"value = {outer.value(kind, depth)}")
        outer.emit("return read")
    return f"{make}({s.value(kind, depth)})()"


@VALUES("recursion", "int")
def recursion(s: Scope, depth: int, kind: str) -> str:
    name = s.unique("count_down")
    with s.top() as top, top.nested(f"def {name}(n, total={literal(s, 'int')}):") as body:
        body.emit("if n == 0:", "    return total", f"return {name}(n - 1, total + n)")
    return f"{name}({s.pick(1, 2, 3)})"


@VALUES("decorated function")
def decorated(s: Scope, depth: int, kind: str) -> str:
    wrap, name = s.unique("wrap"), s.unique("wrapped")
    with s.top() as top:
        top.uses("import functools")
        with top.nested(f"def {wrap}(inner):") as outer:
            outer.emit("@functools.wraps(inner)")
            with outer.nested("def around(*args, **kwargs):") as body:
                body.emit(
                    s.pick(
                        "return inner(*args, **kwargs)",
                        "result = inner(*args, **kwargs)\nreturn result",
                        f"inner(*args, **kwargs)\nreturn {literal(s, kind)}",
                    )
                )
            outer.emit("return around")
        top.emit(f"@{s.pick(wrap, 'functools.cache', 'functools.lru_cache(maxsize=None)')}")
        with top.nested(f"def {name}(value={literal(s, kind if kind != 'ints' else 'int')}):") as body:
            body.emit("return value" if kind != "ints" else "return [value, value]")
    argument = s.pick("", s.value(kind, depth)) if kind != "ints" else s.value("int", depth)
    return f"{name}({argument})"


@VALUES("functools")
def functools_call(s: Scope, depth: int, kind: str) -> str:
    s.uses("import functools")
    a, b = s.value(kind, depth), s.value(kind, depth)
    return s.pick(
        f"functools.partial(lambda x, y: x, {a})({b})",
        f"functools.partial(lambda x=0: x, x={a})()",
        f"functools.reduce(lambda x, y: y, [{a}, {b}])",
        f"functools.partial(max, key=str)([{a}])",
    )


@VALUES("iterator")
def iterator(s: Scope, depth: int, kind: str) -> str:
    a, b = s.value(kind, depth), s.value(kind, depth)
    return s.pick(
        f"next(iter([{a}, {b}]))",
        f"next(x for x in ({a}, {b}))",
        f"list(zip([{a}], [{b}]))[0][1]",
        f"[x for x in ({a}, {b})][1]",
        f"list(enumerate([{a}, {b}]))[1][1]",
        f"next(iter([]), {a})",
        f"[y for x in [[{a}], [{b}]] for y in x][1]",
        f"{{x: y for x, y in [(1, {a}), (2, {b})]}}[2]",
        f"list({{1: {a}}}.values())[0]",
        f"[*[{a}], *({b},)][1]",
        f"next(iter({{1: {a}}}.items()))[1]",
    )


@VALUES("generator")
def generator(s: Scope, depth: int, kind: str) -> str:
    name = s.unique("produce")
    with s.top() as top, top.nested(f"def {name}(value):") as body:
        body.emit(
            s.pick(
                "yield value",
                f"yield value\nyield {literal(s, kind)}",
                "yield from [value]",
                "for each in [value]:\n    yield each",
            )
        )
    a = s.value(kind, depth)
    return s.pick(f"next({name}({a}))", f"list({name}({a}))[0]", f"[x for x in {name}({a})][-1]")


# --- statements ----------------------------------------------------------------------------------
@VALUES("if statement")
def if_statement(s: Scope, depth: int, kind: str) -> str:
    name, test = s.fresh("n"), s.condition(depth)
    if s.chance(40):
        s.emit(f"{name} = {s.value(kind, depth)}")
        with s.block(f"if {test}:") as arm:
            arm.emit(f"{name} = {arm.value(kind, depth)}")
        return name
    with s.block(f"if {test}:") as arm:
        arm.emit(f"{name} = {arm.value(kind, depth)}")
    if s.chance(40):
        with s.block(f"elif {s.condition(0)}:") as arm:
            arm.emit(f"{name} = {arm.value(kind, depth)}")
    with s.block("else:") as arm:
        arm.emit(f"{name} = {arm.value(kind, depth)}")
    return name


@VALUES("try statement")
def try_statement(s: Scope, depth: int, kind: str) -> str:
    name, a, b = s.fresh("n"), s.value(kind, depth), s.value(kind, depth)
    s.uses("import recorder")
    s.emit(
        s.pick(
            f"try:\n    {name} = {a}\nexcept ValueError:\n    {name} = {b}",
            f"try:\n    {name} = {a}\n    raise ValueError(1)\nexcept ValueError:\n    {name} = {b}",
            f"try:\n    int('x')\n    {name} = {a}\nexcept (TypeError, ValueError):\n    {name} = {b}",
            f"try:\n    {name} = {a}\nfinally:\n    {name} = {b}",
            f"try:\n    {name} = {a}\nexcept Exception as error:\n    {name} = {b}\nelse:\n    {name} = {b}",
            f"{name} = {b}\ntry:\n    recorder.may_raise()\n    {name} = {a}\nexcept RuntimeError:\n    pass",
            f"{name} = {b}\ntry:\n    {name} = {a}\n"
            f"    recorder.may_raise()\nexcept RuntimeError:\n    {name} = {b}",
            f"try:\n    {name} = {{}}['missing']\nexcept KeyError:\n    {name} = {a}",
            f"try:\n    {name} = {a}\n    assert recorder.flag()\nexcept AssertionError:\n    {name} = {b}",
        )
    )
    return name


@VALUES("loop statement")
def loop_statement(s: Scope, depth: int, kind: str) -> str:
    name, a, b = s.fresh("n"), s.value(kind, depth), s.value(kind, depth)
    each = s.fresh("each")
    s.uses("import recorder")
    s.emit(
        s.pick(
            f"{name} = {a}\nfor {each} in range(3):\n    {name} = {b}",
            f"{name} = {a}\nfor {each} in []:\n    {name} = {b}",
            f"for {name} in [{a}, {b}]:\n    break",
            f"for {name} in ({a}, {b}):\n    if recorder.flag():\n        break\nelse:\n    {name} = {a}",
            f"{name} = {a}\nwhile recorder.flag():\n    {name} = {b}\n    break",
            f"{name} = {a}\nfor {each} in recorder.ids:\n    if {each}:\n        continue\n    {name} = {b}",
            f"{each} = 0\nwhile {each} < 2:\n    {name} = {a}\n    {each} += 1",
            f"while True:\n    {name} = {a}\n    if recorder.flag():\n        {name} = {b}\n    break",
            f"{name} = {a}\nfor {each} in range(2):\n    for {each} in 'ab':\n        {name} = {b}\n"
            f"        break\n    else:\n        {name} = {a}",
            f"for {each}, {name} in enumerate([{a}, {b}]):\n    if {each} == 0:\n        continue",
        )
    )
    return name


@VALUES("counting loop", "int")
def counting_loop(s: Scope, depth: int, kind: str) -> str:
    name, each, step = s.fresh("count"), s.fresh("i"), s.value("int", 0)
    s.emit(f"{name} = {s.value('int', depth)}")
    s.emit(
        s.pick(
            f"for {each} in range(4):\n    {name} += {step}",
            f"for {each} in [1, 2, 5]:\n    {name} = {name} + {each}",
            f"{each} = 0\nwhile {each} < 3:\n    {each} += 1\n    {name} -= {each}",
            f"for {each} in range(10):\n    if {each} % 2:\n        continue\n    if {each} > 5:\n"
            f"        break\n    {name} += {each}",
        )
    )
    return name


@VALUES("runtime loop", "int", opaque=True)
def runtime_loop(s: Scope, depth: int, kind: str) -> str:
    name = s.fresh("count")
    s.uses("import recorder")
    s.emit(f"{name} = {s.value('int', depth)}")
    s.emit(
        s.pick(
            f"while recorder.more():\n    {name} += 1",
            f"for each in range(recorder.number() % 5):\n    {name} = each",
            f"for each in recorder.items():\n    {name} = {name} * 2 + 1",
        )
    )
    return name


@VALUES("match statement")
def match_statement(s: Scope, depth: int, kind: str) -> str:
    name, a, b = s.fresh("n"), s.value(kind, depth), s.value(kind, depth)
    s.uses("import recorder")
    s.emit(
        s.pick(
            f"match {s.value('int', 0)}:\n    case 1 | 2:\n"
            f"        {name} = {a}\n    case _:\n        {name} = {b}",
            f"match recorder.flag():\n    case True:\n"
            f"        {name} = {a}\n    case False:\n        {name} = {b}",
            f"match {{'k': {a}}}:\n    case {{'k': {name}}}:\n        pass",
            f"match ({a}, {b}):\n    case [_, {name}]:\n        pass",
            f"match {s.value('int', 0)}:\n    case x if x > 5:\n"
            f"        {name} = {a}\n    case x:\n        {name} = {b}",
            f"match {s.value('str', 0)}:\n    case 'static':\n        {name} = {a}\n    case str() as text:\n"
            f"        {name} = {b}",
            f"{name} = {a}\nmatch recorder.name():\n    case 'top_k':\n        {name} = {b}",
        )
    )
    return name


@VALUES("with statement")
def with_statement(s: Scope, depth: int, kind: str) -> str:
    name, a = s.fresh("n"), s.value(kind, depth)
    s.uses("import contextlib", "import recorder")
    s.emit(
        s.pick(
            f"with recorder.context():\n    {name} = {a}",
            f"with contextlib.nullcontext({a}) as {name}:\n    pass",
            f"{name} = {s.value(kind, depth)}\nwith contextlib.suppress(ValueError):\n    {name} = {a}\n"
            f"    int('x')\n    {name} = {literal(s, kind)}",
            f"with recorder.context() as entered, contextlib.nullcontext():\n    {name} = {a}",
        )
    )
    return name


@VALUES("context manager")
def context_manager(s: Scope, depth: int, kind: str) -> str:
    manager, name = s.unique("managed"), s.fresh("n")
    with s.top() as top:
        if s.chance(50):
            top.uses("import contextlib")
            top.emit("@contextlib.contextmanager")
            with top.nested(f"def {manager}(value):") as body:
                body.emit("try:", "    yield value", "finally:", "    pass")
        else:
            top.emit(
                f"class {manager}:",
                "    def __init__(self, value):",
                "        self.value = value",
                "",
                "    def __enter__(self):",
                "        return self.value",
                "",
                "    def __exit__(self, *exc):",
                f"        return {s.pick('False', 'None', 'True')}",
            )
    s.emit(f"with {manager}({s.value(kind, depth)}) as {name}:", "    pass")
    return name


# --- objects -------------------------------------------------------------------------------------
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


@VALUES("enum", *_PLAIN)
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


@VALUES("argparse", *_PLAIN, "maybe")
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


@VALUES("environment", *_PLAIN)
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


# --- known only at run time ------------------------------------------------------------------------
@VALUES("runtime number", *_NUMBERS, leaf=True, opaque=True)
def runtime_number(s: Scope, depth: int, kind: str) -> str:
    s.uses("import recorder")
    return "recorder.number()" if kind == "int" else "recorder.fraction()"


@VALUES("invisible identity", opaque=True)
def invisible(s: Scope, depth: int, kind: str) -> str:
    s.uses("import recorder")
    return f"recorder.opaque({s.value(kind, depth)})"
