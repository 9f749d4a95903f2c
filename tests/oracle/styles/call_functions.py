"""Calls of generate in functions."""

from __future__ import annotations

from ..scope import SETTINGS, SITES, Dict, Scope
from .calls import emit_call, receiver
from .imports import reach
from .pieces import braces, elsewhere, items, keywords, literal, one, unsure


@SITES("function with a dict parameter")
def function(s: Scope, depth: int, made: Dict) -> None:
    file, name = elsewhere(s), s.unique("rollout")
    with s.top(file) as top, top.nested(f"def {name}(kw, steps=1):", closure=False) as body:
        target = unsure("kw")
        if s.chance(40):
            body.change(target, depth)
        body.site(target, depth)
        if s.chance(20):
            body.emit("return kw")
    text = reach(s, file, name)
    s.shared(made)
    s.emit(
        s.pick(
            f"{text}({made.text})",
            f"{text}(kw={made.text})",
            f"{text}(dict({made.text}), steps=2)",
            f"{text}(*({made.text},))",
            f'{text}(**{{"kw": {made.text}}})',
        )
    )
    if s.chance(50):
        s.emit(f"{text}({s.mapping(0).text})")
    if s.chance(20):
        s.change(made, 0)
        s.emit(f"{text}({made.text})")


@SITES("wrapper with **kwargs")
def wrapper(s: Scope, depth: int, made: Dict) -> None:
    file, name = elsewhere(s), s.unique("sample_with")
    header = s.pick("*args, **kwargs", "prompts, **kwargs", "**kwargs", "prompts=None, /, **kwargs")
    with s.top(file) as top, top.nested(f"def {name}({header}):", closure=False) as body:
        target = body.dict("kwargs", may=SETTINGS)
        for _ in range(s.choices.below(3)):
            body.change(target, 0)
        body.site(target, depth)
    text = reach(s, file, name)
    first = "" if header == "**kwargs" else "None, "
    s.emit(f"{text}({first}**{made.text})")
    for _ in range(s.choices.below(3)):
        s.emit(f"{text}({first}{s.pick(keywords(items(s, 0)), f'**{braces(s, items(s, 0))}', '')})")


@SITES("wrapper with named parameters")
def named_wrapper(s: Scope, depth: int, made: Dict) -> None:
    file, name = elsewhere(s), s.unique("sample_named")
    chosen = s.settings(3)
    with s.top(file) as top:
        signature = ", ".join(
            f"{each}={s.pick(literal(s, SETTINGS[each]), literal(s, SETTINGS[each]), 'None')}"
            for each in chosen
        )
        with top.nested(f"def {name}(prompts, *, {signature}, **extra):", closure=False) as body:
            if s.chance(40):
                each = s.choices.pick(chosen)
                body.emit(
                    s.pick(
                        f"if {each} is None:\n    {each} = {literal(s, SETTINGS[each])}",
                        f"{each} = {each} or {literal(s, SETTINGS[each])}",
                        f"{each} = {literal(s, SETTINGS[each])}",
                    )
                )
            own = ", ".join(f"{each}={each}" for each in chosen)
            emit_call(body, f"{receiver(body)}.generate(prompts, {own}, **extra)")
    text = reach(s, file, name)
    s.emit(f"{text}(None, **{made.text})")
    for _ in range(s.choices.below(2)):
        s.emit(f"{text}(prompts=None, {keywords(items(s, depth))})")


@SITES("wrapper of a wrapper")
def chain(s: Scope, depth: int, made: Dict) -> None:
    inner, outer = s.unique("inner_call"), s.unique("outer_call")
    setting, value = s.settings(1)[0], None
    with s.top() as top:
        value = top.value(SETTINGS[setting], 0)
        with top.nested(f"def {inner}(*args, **kwargs):", closure=False) as body:
            body.site(body.dict("kwargs", may=SETTINGS), depth)
        with top.nested(f"def {outer}(*args, **kwargs):", closure=False) as body:
            body.emit(
                s.pick(
                    "pass",
                    f'kwargs["{setting}"] = {value}',
                    f'kwargs.setdefault("{setting}", {value})',
                    f'kwargs.pop("{setting}", None)',
                    f'kwargs = {{"{setting}": {value}, **kwargs}}',
                )
            )
            body.emit(
                s.pick(
                    f"return {inner}(*args, **kwargs)",
                    f"{inner}(**kwargs)",
                    f"{inner}(*args, **dict(kwargs))",
                )
            )
    s.emit(f"{outer}(**{made.text})")
    if s.chance(40):
        s.emit(f"{s.pick(inner, outer)}({keywords(items(s, 0))})")


@SITES("decorated function")
def decorated(s: Scope, depth: int, made: Dict) -> None:
    wrap, name, setting = s.unique("timed"), s.unique("generate_all"), s.settings(1)[0]
    with s.top() as top:
        top.uses("import functools")
        value = top.value(SETTINGS[setting], 0)
        with top.nested(f"def {wrap}(function):", closure=False) as outer:
            outer.emit("@functools.wraps(function)")
            with outer.nested("def around(*args, **kwargs):") as body:
                body.emit(
                    s.pick(
                        "return function(*args, **kwargs)",
                        f'kwargs["{setting}"] = {value}\nreturn function(*args, **kwargs)',
                        f'return function(*args, **{{"{setting}": {value}, **kwargs}})',
                        "result = function(*args, **kwargs)\nreturn result",
                        f"return function(*args, **kwargs) if {body.condition(0)} else None",
                    )
                )
            outer.emit("return around")
        top.emit(f"@{wrap}")
        with top.nested(f"def {name}(*args, **kwargs):", closure=False) as body:
            body.site(body.dict("kwargs", may=SETTINGS), depth)
    s.emit(f"{name}(**{made.text})")
    if s.chance(40):
        s.emit(f"{name}({keywords(items(s, 0))})")


@SITES("lambda")
def lambda_call(s: Scope, depth: int, made: Dict) -> None:
    name = s.fresh("sample")
    s.uses("from recorder import ids, model")
    s.emit(
        s.pick(
            f"{name} = lambda **kw: model.generate(ids, **kw)\n{name}(**{made.text})",
            f"{name} = lambda kw: model.generate(ids, **kw)\n{name}({made.text})",
            f"{name} = lambda: model.generate(ids, **{made.text})\n{name}()",
            f"(lambda *a, **kw: model.generate(*a, **kw))(ids, **{made.text})",
            f"{name} = lambda kw={made.text}: model.generate(ids, **kw)\n{name}()",
            f"{name} = lambda **kw: model.generate(ids, **{{**{made.text}, **kw}})\n"
            f"{name}(top_k={s.value('int', depth)})\n{name}()",
            f"list(map(lambda kw: model.generate(ids, **kw), [{made.text}, {{}}]))",
        )
    )


@SITES("closure")
def closure(s: Scope, depth: int, made: Dict) -> None:
    name = s.fresh("run")
    s.shared(made)
    with s.nested(f"def {name}({s.pick('', '*args', '**more')}):") as body:
        body.site(made, depth)
    if s.chance(40):
        s.change(made, 0)
    s.emit(f"{name}()")
    if s.chance(30):
        s.change(made, 0)
        s.emit(f"{name}()")


@SITES("function made by a function")
def factory(s: Scope, depth: int, made: Dict) -> None:
    name = s.unique("make_sampler")
    with s.top() as top, top.nested(f"def {name}(kw):", closure=False) as outer:
        if s.chance(40):
            outer.change(unsure("kw"), 0)
        with outer.nested("def run(**more):") as body:
            body.emit(
                s.pick(
                    "settings = {**kw, **more}",
                    "settings = dict(kw)\nsettings.update(more)",
                    "kw.update(more)\nsettings = kw",
                )
            )
            body.site(unsure("settings"), depth)
        outer.emit("return run")
    run = s.fresh("run")
    s.shared(made)
    s.emit(f"{run} = {name}({made.text})", f"{run}({s.pick('', keywords(items(s, 0, 2)))})")
    if s.chance(30):
        s.emit(f"{name}({s.mapping(0).text})()")


@SITES("partial")
def partial(s: Scope, depth: int, made: Dict) -> None:
    name, wrapper_name = s.fresh("sample"), s.unique("forward")
    s.uses("import functools", "from recorder import ids, model")
    with s.top() as top, top.nested(f"def {wrapper_name}(*args, **kwargs):", closure=False) as body:
        body.site(body.dict("kwargs", may=SETTINGS), 0)
    value = s.value("int", depth)
    s.emit(
        s.pick(
            f"{name} = functools.partial({wrapper_name}, **{made.text})\n{name}()",
            f"{name} = functools.partial({wrapper_name}, ids, **{made.text})\n{name}(top_k={value})",
            f"{name} = functools.partial({wrapper_name}, top_k={value})\n{name}(**{made.text})",
            f"functools.partial({wrapper_name}, **{made.text})(top_p=0.5)",
        )
    )


@SITES("generator")
def generator(s: Scope, depth: int, made: Dict) -> None:
    name = s.unique("stream")
    with s.top() as top, top.nested(f"def {name}(kw):", closure=False) as body:
        target = unsure("kw")
        body.emit("yield 0")
        if s.chance(40):
            body.change(target, 0)
        body.site(target, depth)
        body.emit("yield 1")
    s.shared(made)
    steps = s.fresh("steps")
    s.emit(
        s.pick(
            f"list({name}({made.text}))",
            f"for _ in {name}({made.text}):\n    pass",
            f"{steps} = {name}({made.text})\nnext({steps})\nnext({steps})",
            f"_ = [x for x in {name}({made.text})]",
            f'for _ in {name}({made.text}):\n    {made.text}["top_p"] = {literal(s, "float")}',
        )
    )


@SITES("generator of dicts")
def generator_of_dicts(s: Scope, depth: int, made: Dict) -> None:
    name, each = s.unique("each_of_grid"), s.fresh("kw")
    with s.top() as top, top.nested(f"def {name}(base):", closure=False) as body:
        setting, value = one(body, depth)
        body.emit(
            "yield base",
            s.pick(
                f'yield {{**base, "{setting}": {value}}}',
                f'base["{setting}"] = {value}\nyield base',
                "for n in (1, 2):\n    yield dict(base, top_k=n)",
            ),
        )
    s.shared(made)
    with s.block(f"for {each} in {name}({made.text}):", repeats=True) as body:
        body.site(unsure(each), depth)


@SITES("recursion")
def recursion(s: Scope, depth: int, made: Dict) -> None:
    name = s.unique("descend")
    with s.top() as top, top.nested(f"def {name}(n, kw):", closure=False) as body:
        body.emit("if n == 0:", "    return")
        body.site(unsure("kw"), depth)
        body.emit(
            s.pick(
                f'{name}(n - 1, {{**kw, "max_new_tokens": n}})',
                f"{name}(n - 1, kw)",
                f'kw["top_k"] = n\n{name}(n - 1, kw)',
            )
        )
    s.shared(made)
    s.emit(f"{name}(2, {made.text})")


@SITES("async function")
def async_function(s: Scope, depth: int, made: Dict) -> None:
    name = s.unique("generate_later")
    with s.top() as top:
        top.uses("import asyncio")
        with top.nested(f"async def {name}(kw, **more):", closure=False) as body:
            body.site(unsure("kw"), 0)
            body.emit("return kw")
    s.shared(made)
    s.uses("import asyncio")
    s.emit(f"asyncio.run({name}({made.text}))")


@SITES("function in a table")
def table(s: Scope, depth: int, made: Dict) -> None:
    first, second, registry = s.unique("plain_call"), s.unique("other_call"), s.unique("HANDLERS")
    with s.top() as top:
        for name in (first, second):
            with top.nested(f"def {name}(kw):", closure=False) as body:
                body.site(unsure("kw"), 0)
        top.emit(f'{registry} = {{"a": {first}, "b": {second}}}')
    s.shared(made)
    s.emit(
        s.pick(
            f'{registry}["a"]({made.text})',
            f"for handler in {registry}.values():\n    handler({made.text})",
            f'{registry}.get("b", {first})({made.text})',
            f"[handler({made.text}) for handler in ({first}, {second})]",
            f'globals()["{first}"]({made.text})',
            f"({first} if {s.condition(0)} else {second})({made.text})",
        )
    )


@SITES("registered function")
def registered(s: Scope, depth: int, made: Dict) -> None:
    registry, register, name = s.unique("HOOKS"), s.unique("hook"), s.unique("hooked_call")
    with s.top() as top:
        top.emit(f"{registry} = []")
        with top.nested(f"def {register}(function):", closure=False) as body:
            body.emit(f"{registry}.append(function)", "return function")
        top.emit(f"@{register}")
        with top.nested(f"def {name}(**kwargs):", closure=False) as body:
            body.site(body.dict("kwargs", may=SETTINGS), depth)
    s.emit(
        s.pick(
            f"{name}(**{made.text})",
            f"for function in {registry}:\n    function(**{made.text})",
            f"{registry}[0](**{made.text})\n{name}(top_k=1)",
        )
    )


@SITES("click command")
def click_command(s: Scope, depth: int, made: Dict) -> None:
    name, chosen = s.unique("command"), s.settings(2, kinds=("int", "float", "bool"))
    with s.top() as top:
        top.uses("import click")
        options = [f'@click.option("--{each}", default={literal(s, SETTINGS[each])})' for each in chosen]
        top.emit("@click.command()", *options)
        with top.nested(f"def {name}({', '.join(chosen)}):", closure=False) as body:
            own = body.dict("{" + ", ".join(f'"{each}": {each}' for each in chosen) + "}", chosen)
            if s.chance(50):
                body.emit(f"kw = {own.text}")
                own = body.dict(body.fresh("kw"), chosen)
                body.change(own, 0)
            body.site(own, 0)
    arguments = s.pick("[]", f'["--{chosen[0]}", "1"]')
    s.emit(f"{name}(args={arguments}, standalone_mode=False)")
