"""Dicts from lambdas, closures, generators, decorators, partials and tables of functions."""

from __future__ import annotations

from ..scope import MAPPINGS, SETTINGS, Dict, Scope
from .pieces import braces, held, items, keywords, unsure


@MAPPINGS("lambda")
def lambda_dict(s: Scope, depth: int) -> Dict:
    name, pairs, more = s.fresh("make"), items(s, depth), items(s, depth, 2)
    base = s.mapping(depth)
    s.shared(base)
    body = s.pick(
        f"lambda **_: {braces(s, pairs)}",
        f"lambda **kw: {{**{base.text}, **kw}}",
        f"lambda kw=None, **more: {{**{braces(s, pairs)}, **more}}",
        f"lambda *_, **kw: dict({base.text}, **kw)",
        f"lambda **kw: {base.text}",
        f"lambda **kw: kw or {base.text}",
    )
    s.emit(f"{name} = {body}")
    return held(s, f"{name}({s.pick('', keywords(more))})")


@MAPPINGS("closure")
def closure(s: Scope, depth: int) -> Dict:
    name = s.unique("make_builder")
    with s.top() as top, top.nested(f"def {name}(base):", closure=False) as outer:
        outer.names.fresh("base")
        shared = unsure("base")
        if s.chance(40):
            outer.change(shared, 0)
        with outer.nested("def build(**more):") as inner:
            if s.chance(40):
                inner.change(shared, 0)
            inner.emit(
                s.pick("return {**base, **more}", "base.update(more)\nreturn base", "return base | more")
            )
        if s.chance(40):
            outer.change(shared, 0)
        outer.emit("return build")
    builder, base = s.fresh("builder"), s.mapping(depth)
    s.shared(base)
    s.emit(f"{builder} = {name}({base.text})")
    if s.chance(50):
        s.change(base, depth)
    if s.chance(30):
        s.emit(f"{builder}({keywords(items(s, 0))})")
    return held(s, f"{builder}({s.pick('', keywords(items(s, depth, 2)))})")


@MAPPINGS("recursion")
def recursion(s: Scope, depth: int) -> Dict:
    name = s.unique("descend")
    setting = s.settings(1, kinds=("int",))[0]
    with s.top() as top, top.nested(f"def {name}(n, kw):", closure=False) as body:
        body.emit("if n <= 0:", "    return kw")
        body.emit(
            s.pick(
                f'kw["{setting}"] = n\nreturn {name}(n - 1, kw)',
                f'return {name}(n - 1, {{**kw, "{setting}": n}})',
                f'return {{**{name}(n - 1, kw), "{setting}": n}}',
            )
        )
    base = s.mapping(depth)
    s.shared(base)
    return held(s, f"{name}({s.pick(0, 1, 2, 3)}, {base.text})")


@MAPPINGS("generator")
def generator(s: Scope, depth: int) -> Dict:
    name = s.unique("produce_kw")
    with s.top() as top, top.nested(f"def {name}():", closure=False) as body:
        made = body.mapping(depth)
        body.shared(made)
        body.emit(f"yield {made.text}")
        body.change(made, depth)
        body.emit(
            s.pick(
                f"yield {made.text}", f"yield dict({made.text})", f"yield from [{made.text}, {{}}]", "return"
            )
        )
    return held(
        s,
        s.pick(
            f"next({name}())",
            f"list({name}())[0]",
            f"next(iter({name}()))",
            f"[each for each in {name}()][-1]",
            f"list({name}())[-1]",
        ),
    )


@MAPPINGS("decorated function")
def decorated(s: Scope, depth: int) -> Dict:
    wrap, name = s.unique("traced"), s.unique("decorated_kw")
    setting = s.settings(1)[0]
    with s.top() as top:
        top.uses("import functools")
        text = top.value(SETTINGS[setting], 0)
        with top.nested(f"def {wrap}(function):", closure=False) as outer:
            outer.emit("@functools.wraps(function)")
            with outer.nested("def around(*args, **kwargs):") as body:
                body.emit(
                    s.pick(
                        "return function(*args, **kwargs)",
                        f'result = function(*args, **kwargs)\nresult["{setting}"] = {text}\nreturn result',
                        f'return {{**function(*args, **kwargs), "{setting}": {text}}}',
                        f'kwargs["{setting}"] = {text}\nreturn function(*args, **kwargs)',
                        f'kwargs.setdefault("{setting}", {text})\nreturn function(**kwargs)',
                    )
                )
            outer.emit("return around")
        top.emit(f"@{s.pick(wrap, wrap, 'functools.lru_cache(maxsize=None)')}")
        with top.nested(f"def {name}(**more):", closure=False) as body:
            made = body.shared(body.mapping(depth))
            body.emit(f"return {s.pick('{**' + made.text + ', **more}', made.text)}")
    hashable = [pair for pair in items(s, 0, 2) if SETTINGS[pair[0]] != "ints"]
    first = held(s, f"{name}()")
    if s.chance(40):
        s.change(first, depth)
        return held(s, f"{name}({s.pick('', keywords(hashable))})")
    return first


@MAPPINGS("registered function")
def registered(s: Scope, depth: int) -> Dict:
    registry, register, name = s.unique("REGISTRY"), s.unique("register"), s.unique("registered_kw")
    with s.top() as top:
        top.emit(f"{registry} = {{}}")
        if s.chance(50):
            with top.nested(f"def {register}(function):", closure=False) as body:
                body.emit(f"{registry}[function.__name__] = function", "return function")
            decorator = register
        else:
            with top.nested(f"def {register}(key):", closure=False) as outer:
                with outer.nested("def add(function):") as body:
                    body.emit(f"{registry}[key] = function", "return function")
                outer.emit("return add")
            decorator = f'{register}("{name}")'
        default = top.value("int", 0)
        top.emit(f"@{decorator}")
        with top.nested(f"def {name}(top_k={default}):", closure=False) as body:
            made = body.shared(body.mapping(depth))
            body.emit(f'return {{**{made.text}, "top_k": top_k}}')
    return held(
        s,
        s.pick(
            f'{registry}["{name}"]()',
            f"{name}()",
            f'{registry}.get("{name}")({s.value("int", 0)})',
            f"[f() for f in {registry}.values()][0]",
        ),
    )


@MAPPINGS("partial function")
def partial(s: Scope, depth: int) -> Dict:
    s.uses("import functools")
    name, pairs = s.fresh("make"), items(s, depth)
    base = s.mapping(depth)
    s.shared(base)
    function = s.unique("collect")
    with s.top() as top, top.nested(f"def {function}(*dicts, **more):", closure=False) as body:
        body.emit("result = {}", "for each in dicts:", "    result.update(each)", "return {**result, **more}")
    s.emit(
        f"{name} = "
        + s.pick(
            f"functools.partial(dict, {base.text})",
            f"functools.partial(dict, {keywords(pairs)})",
            f"functools.partial({function}, {base.text})",
            f"functools.partial({function}, {base.text}, **{braces(s, pairs)})",
            f"functools.partial(functools.partial({function}, {base.text}), {keywords(pairs)})",
        )
    )
    return held(s, f"{name}({s.pick('', keywords(items(s, 0, 2)))})")


@MAPPINGS("dispatch")
def dispatch(s: Scope, depth: int) -> Dict:
    first, second = s.unique("greedy_kw"), s.unique("sampled_kw")
    with s.top() as top:
        for name in (first, second):
            with top.nested(f"def {name}():", closure=False) as body:
                body.emit(f"return {body.mapping(0).text}")
    test = s.condition(depth)
    return held(
        s,
        s.pick(
            f'{{"a": {first}, "b": {second}}}["b"]()',
            f"({first} if {test} else {second})()",
            f"[{first}, {second}][{s.pick(0, 1)}]()",
            f'globals()["{first}"]()',
            f'{{"a": {first}}}.get("c", {second})()',
            f"list(map(lambda f: f(), [{first}, {second}]))[1]",
        ),
    )


@MAPPINGS("starred arguments")
def starred(s: Scope, depth: int) -> Dict:
    name = s.unique("gather")
    with (
        s.top() as top,
        top.nested(f"def {name}(first, *others, last=None, **named):", closure=False) as body,
    ):
        body.emit(
            s.pick(
                "return {**first, **named}",
                "result = dict(first)\nfor each in others:\n    result.update(each)\nreturn result",
                "return {**first, **(others[0] if others else {}), **(last or {})}",
                "return dict(named, **(last or first))",
            )
        )
    a, b = s.mapping(depth), s.mapping(0)
    return held(
        s,
        s.pick(
            f"{name}({a.text})",
            f"{name}({a.text}, {b.text})",
            f"{name}(*[{a.text}, {b.text}])",
            f"{name}({a.text}, last={b.text})",
            f"{name}({a.text}, **{b.text})",
            f'{name}(*({a.text},), **{{"last": {b.text}}})',
        ),
    )


@MAPPINGS("cached function")
def cached(s: Scope, depth: int) -> Dict:
    name = s.unique("cached_kw")
    with s.top() as top:
        top.uses("import functools")
        top.emit(f"@{s.pick('functools.cache', 'functools.lru_cache', 'functools.lru_cache()')}")
        with top.nested(f"def {name}():", closure=False) as body:
            body.emit(f"return {body.mapping(depth).text}")
    if s.chance(60):
        s.emit(f'{name}()["top_p"] = {s.value("float", depth)}')
    return held(s, f"{name}()")


@MAPPINGS("nested function")
def nested_function(s: Scope, depth: int) -> Dict:
    name = s.fresh("local_kw")
    base = s.shared(s.mapping(depth))
    with s.nested(f"def {name}(**more):") as body:
        made = body.mapping(depth)
        body.emit(
            s.pick(
                f"return {{**{base.text}, **{made.text}, **more}}",
                f"return {made.text}",
                f"return {base.text}",
                f"{base.text}.update({made.text})\nreturn {base.text}",
            )
        )
    if s.chance(40):
        s.change(base, 0)
    return held(s, f"{name}({s.pick('', keywords(items(s, depth, 2)))})")


@MAPPINGS("nonlocal dict")
def nonlocal_dict(s: Scope, depth: int) -> Dict:
    name = s.unique("make_kw_in_steps")
    with s.top() as top, top.nested(f"def {name}():", closure=False) as outer:
        current = outer.fresh("current")
        outer.emit(f"{current} = {outer.shared(outer.mapping(depth)).text}")
        with outer.nested("def replace():") as inner:
            inner.emit(f"nonlocal {current}")
            inner.emit(f"{current} = {inner.shared(inner.mapping(0)).text}")
        with outer.nested("def extend():") as inner:
            inner.change(unsure(current), 0)
        for call in s.choices.sample(("replace()", "extend()", "pass"), 2):
            outer.emit(call)
        outer.emit(f"return {current}")
    return held(s, f"{name}()")


@MAPPINGS("exception carries a dict")
def by_exception(s: Scope, depth: int) -> Dict:
    name = s.fresh("kw")
    base = s.shared(s.mapping(depth))
    s.emit(
        "try:",
        f"    raise LookupError({base.text})",
        "except LookupError as error:",
        f"    {name} = error.args[0]",
    )
    return unsure(name)


@MAPPINGS("rest of the parameters")
def keyword_rest(s: Scope, depth: int) -> Dict:
    name, chosen = s.unique("without"), s.settings(2)
    with (
        s.top() as top,
        top.nested(
            f"def {name}({', '.join(each + '=None' for each in chosen)}, **rest):", closure=False
        ) as body,
    ):
        body.emit(
            s.pick(
                "return rest",
                f'if {chosen[0]} is not None:\n    rest["{chosen[0]}"] = {chosen[0]}\nreturn rest',
                f"return dict({chosen[0]}={chosen[0]}, **rest)",
            )
        )
    base = s.mapping(depth)
    return held(
        s,
        s.pick(
            f"{name}(**{base.text})",
            f"{name}({keywords(items(s, depth))})",
            f"{name}(**{{**{base.text}, **{braces(s, items(s, 0))}}})",
        ),
    )
