"""Values from functions: lambdas, closures, decorators, partials, iterators, generators."""

from __future__ import annotations

from ..scope import VALUES, Scope
from .imports import helper, reach
from .pieces import literal


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
