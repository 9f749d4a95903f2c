"""Styles of getting a dict from a function: parameters, defaults, closures, generators, decorators."""

from __future__ import annotations

from .mappings import braces, hold, items, keywords, plain_braces
from .modules import helper, reach
from .scope import MAPPINGS, NOWHERE, SETTINGS, Dict, Keys, Scope


def unsure(text: str) -> Dict:
    """A dict that may be shared with anything and hold any setting."""
    return Dict(text, Keys(set(), set(SETTINGS), NOWHERE, 0))


def held(s: Scope, text: str) -> Dict:
    """The result of a call, under a fresh name; whether it is a new dict is not known here."""
    return unsure(hold(s, text).text)


def elsewhere(s: Scope):
    """The file a function is defined in: this one, or a module it imports."""
    return helper(s) if s.chance(35) else s.file


@MAPPINGS("function without parameters")
def no_parameters(s: Scope, depth: int) -> Dict:
    file, name = elsewhere(s), s.unique("make_kw")
    with s.top(file) as top, top.nested(f"def {name}():", closure=False) as body:
        _returns(body, depth)
    return held(s, f"{reach(s, file, name)}()")


def _returns(body: Scope, depth: int) -> None:
    """End a function by returning dicts, perhaps early."""
    if body.chance(40):
        with body.block(f"if {body.condition(depth)}:") as arm:
            arm.emit(f"return {arm.mapping(0).text}")
    made = body.mapping(depth)
    shape = body.choices.below(5)
    if shape == 1:
        with body.block("try:") as arm:
            arm.emit(f"return {made.text}")
        with body.block("finally:") as arm:
            arm.change(made, depth)
        return
    if shape == 2:
        with body.block(f"for each in {body.pick('[1, 2]', '[]')}:", repeats=True) as arm:
            arm.change(made, 0)
            arm.emit(body.pick(f"return {made.text}", f"return dict({made.text})"))
    if shape == 3:
        with body.block("with recorder.context():") as arm:
            arm.uses("import recorder")
            arm.emit(f"return {made.text}")
        return
    body.emit(f"return {made.text}")


@MAPPINGS("function with parameters")
def parameters(s: Scope, depth: int) -> Dict:
    file, name = elsewhere(s), s.unique("build_kw")
    chosen = s.settings(3)
    with s.top(file) as top:
        signature = ", ".join(f"{each}={top.value(SETTINGS[each], 0)}" for each in chosen)
        star = s.pick("", "*, ")
        with top.nested(f"def {name}({star}{signature}, **extra):", closure=False) as body:
            own = ", ".join(f'"{each}": {each}' for each in chosen)
            extra = body.dict("extra", may=set(SETTINGS) - set(chosen))
            body.added(extra)
            plain = not s.chance(30)
            if not plain:
                body.change(extra, 0)
            body.emit(
                s.pick(
                    f"return {{{own}, **extra}}",
                    f"result = {{{own}}}\nresult.update(extra)\nreturn result",
                    f"return dict({', '.join(f'{each}={each}' for each in chosen)})",
                    f"extra.update({{{own}}})\nreturn extra",
                    f"return {{**extra, {own}}}",
                    f"{chosen[0]} = {chosen[0]}\nreturn {{{own}}} | extra",
                    "del extra\nreturn dict(locals())" if plain else "return extra",
                )
            )
    call = reach(s, file, name)
    arguments = s.choices.pick(
        (
            "",
            keywords(items(s, depth)),
            f"**{s.mapping(depth).text}",
            *([] if star else [", ".join(s.value(SETTINGS[each], depth) for each in chosen[:2])]),
        )
    )
    return held(s, f"{call}({arguments})")


_BODIES = (
    ("return {{**base, **more}}",),
    ("base.update(more)", "return base"),
    ("result = dict(base)", "result.update(more)", "return result"),
    ("if not more:", "    return base", "return {{**base, **more}}"),
    ("base = dict(base)", 'base["{name}"] = {value}', "base.update(more)", "return base"),
    ("for k, v in more.items():", "    base[k] = v", "return base"),
    ("base |= more", "return base"),
    ("base = base | more", "return base"),
    (
        "base = {{**base}}",
        "for k in list(base):",
        "    if k in more:",
        "        base[k] = more[k]",
        "return base",
    ),
    ('more.setdefault("{name}", {value})', "base.update(**more)", "return base"),
    ('base.pop("{name}", None)', "return base"),
    ("result = base.copy()", 'result["{name}"] = {value}', "return result if more else base"),
    ("def inner():", '    base["{name}"] = {value}', "inner()", "return base"),
    ("try:", "    base.update(more)", "    return base", "finally:", '    base["{name}"] = {value}'),
    (
        "while True:",
        '    base["{name}"] = {value}',
        "    if more:",
        "        return {{**base, **more}}",
        "    return base",
    ),
    ("if recorder.flag():", "    return base", 'return {{**base, "{name}": {value}}}'),
    ("if base is None:", "    raise ValueError('missing')", "return {{k: v for k, v in base.items()}}"),
)


@MAPPINGS("function of a dict")
def of_a_dict(s: Scope, depth: int) -> Dict:
    file, name = elsewhere(s), s.unique("merge_kw")
    setting = s.settings(1)[0]
    with s.top(file) as top:
        top.uses("import recorder")
        value = top.value(SETTINGS[setting], 0)
        lines = [line.format(name=setting, value=value) for line in s.choices.pick(_BODIES)]
        if s.chance(20):
            lines.insert(0, f'assert isinstance(base, dict), "{setting}"')
        header = s.pick("base, **more", "base, /, **more", "base: dict, **more: object")
        with top.nested(f"def {name}({header}):", closure=False) as body:
            body.emit(*lines)
    call = reach(s, file, name)
    base = s.mapping(depth)
    s.emit(f'{base.text}["{setting}"] = {s.value(SETTINGS[setting], 0)}')
    s.shared(base)
    result = held(s, f"{call}({base.text}{s.pick('', ', ' + keywords(items(s, depth, 2)))})")
    return s.choices.pick((result, base))


@MAPPINGS("mutable default")
def mutable_default(s: Scope, depth: int) -> Dict:
    name, setting = s.unique("accumulate"), s.settings(1)[0]
    with (
        s.top() as top,
        top.nested(f"def {name}(value=None, kw={plain_braces(items(top, 0, 2))}):", closure=False) as body,
    ):
        body.emit("if value is not None:", f'    kw["{setting}"] = value', "return kw")
    first = held(s, f"{name}({s.pick('', s.value(SETTINGS[setting], depth))})")
    if s.chance(60):
        second = held(s, f"{name}({s.value(SETTINGS[setting], depth)})")
        return s.choices.pick((first, second))
    return first


@MAPPINGS("None default")
def none_default(s: Scope, depth: int) -> Dict:
    name = s.unique("with_defaults")
    with s.top() as top, top.nested(f"def {name}(kw=None, *rest, **more):", closure=False) as body:
        body.emit(
            s.pick(
                "kw = kw or {}",
                "if kw is None:\n    kw = {}",
                "kw = dict(kw or {})",
                "kw = {} if kw is None else kw",
                "kw = kw if kw is not None else dict()",
            )
        )
        made = unsure("kw")
        body.change(made, depth)
        body.emit(f"return {s.pick('kw', '{**kw, **more}', 'dict(more, **kw)')}")
    base = s.mapping(depth)
    s.shared(base)
    return held(s, f"{name}({s.pick('', base.text, 'kw=' + base.text, keywords(items(s, depth)))})")


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
