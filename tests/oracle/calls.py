"""Styles of calling generate with a dict of settings."""

from __future__ import annotations

from .changes import one
from .functions import elsewhere, unsure
from .mappings import braces, items, keywords, plain_braces
from .modules import reach
from .scope import BESIDE, KINDS, SETTINGS, SITES, Dict, Scope
from .values import literal


def receiver(s: Scope) -> str:
    """The object whose generate is called."""
    s.uses("from recorder import ids, model")
    if s.chance(80):
        return "model"
    if s.chance(50):
        s.uses("import recorder")
        return s.pick("recorder.model", "recorder.load('gpt2')", "recorder.engine.model")
    name = s.fresh("policy")
    s.emit(s.pick(f"{name} = model", f"{name} = model.eval()"))
    return name


def call(s: Scope, made: Dict, *, beside: bool = True, model: str = "") -> str:
    """The text of `model.generate(...)` with the dict, in one of the forms of passing it."""
    model = model or receiver(s)
    splat = s.choices.pick(
        (
            f"**{made.text}",
            f"**{made.text}",
            f"**{made.text}",
            f"**dict({made.text})",
            f"**{made.text}.copy()",
            f"**{{**{made.text}}}",
            f"**({made.text} or {{}})",
            f"**({made.text} | {{}})",
            f"**{{**{{}}, **{made.text}}}",
            f"**{{k: v for k, v in {made.text}.items()}}",
            f"**(lambda d: d)({made.text})",
        )
    )
    arguments = ["ids", splat]
    if beside and s.chance(50):
        arguments.insert(s.pick(1, 2), keywords(_beside(s, made)))
    if beside and s.chance(10):
        arguments.append("**" + s.pick('{"repetition_count": 1}', "dict(output_scores=True)", "{}"))
    if s.chance(10):
        arguments[0] = s.pick("*[ids]", "input_ids=ids", "*(ids,)")
    if arguments[0] == "input_ids=ids" or s.chance(60):
        return f"{model}.generate({', '.join(arguments)})"
    return f"{model}.generate(\n    " + ",\n    ".join(arguments) + ",\n)"


def _beside(s: Scope, made: Dict) -> list[tuple[str, str]]:
    free = [name for name in KINDS if name in BESIDE or name not in s.may(made)]
    return [(name, s.value(KINDS[name], 0)) for name in s.choices.sample(free, 1 + s.choices.below(2))]


def emit_call(s: Scope, text: str) -> None:
    """Write the call as a statement of its own or inside another."""
    s.emit(
        s.choices.pick(
            (
                "{}",
                "out = {}",
                "out: list = {}",
                "_ = len({})",
                "out, *_ = [{}]",
                "assert {} is not None",
                "if {}:\n    pass",
                "print(len({}))",
                "for _ in [{}]:\n    pass",
            )
        ).format(text)
    )


# --- direct --------------------------------------------------------------------------------------
@SITES("splat", leaf=True)
def splat(s: Scope, depth: int, made: Dict) -> None:
    emit_call(s, call(s, made))


@SITES("literals", leaf=True)
def literals(s: Scope, depth: int, made: Dict) -> None:
    pairs = items(s, depth)
    emit_call(s, f"{receiver(s)}.generate(ids, {keywords(pairs)})")


@SITES("entries one by one", leaf=True)
def entries(s: Scope, depth: int, made: Dict) -> None:
    chosen = s.settings(3)
    certain = s.must(made)
    parts = [
        f'{name}={made.text}["{name}"]'
        if name in certain
        else f'{name}={made.text}.get("{name}"{s.pick("", ", " + literal(s, SETTINGS[name]))})'
        for name in chosen
    ]
    emit_call(s, f"{receiver(s)}.generate(ids, {', '.join(parts)})")


@SITES("inline dict", leaf=True)
def inline(s: Scope, depth: int, made: Dict) -> None:
    pairs = items(s, depth)
    text = s.pick(
        f"{{**{made.text}, **{braces(s, pairs)}}}",
        f"dict({made.text}, {keywords(pairs)})",
        f"({made.text} | {braces(s, pairs)})",
        f"{{**{braces(s, pairs)}, **{made.text}}}",
        f"({made.text} if {s.condition(0)} else {braces(s, pairs)})",
        f'{{k: v for k, v in {made.text}.items() if k != "{pairs[0][0]}"}}',
    )
    emit_call(s, f"{receiver(s)}.generate(ids, **{text})")


@SITES("twice, changed between")
def twice(s: Scope, depth: int, made: Dict) -> None:
    s.site(made, 0)
    s.change(made, depth)
    s.site(made, depth)


@SITES("method under another name")
def bound_method(s: Scope, depth: int, made: Dict) -> None:
    name, model = s.fresh("generate"), receiver(s)
    s.emit(f"{name} = {s.pick(f'{model}.generate', f'getattr({model}, {chr(34)}generate{chr(34)})')}")
    emit_call(s, f"{name}(ids, **{made.text})")


# --- control flow ----------------------------------------------------------------------------------
@SITES("loop, changed inside")
def loop(s: Scope, depth: int, made: Dict) -> None:
    each = s.fresh("epoch")
    s.uses("import recorder")
    header = s.pick(
        f"for {each} in range(2):",
        f"for {each} in recorder.ids:",
        f"for {each} in (16, 32):",
        f"for {each}, _ in enumerate(recorder.items()):",
        "while recorder.more():",
    )
    with s.block(header, repeats=True) as body:
        if s.chance(50):
            body.change(made, 0)
        if "recorder.more" not in header and s.chance(50):
            body.emit(f'{made.text}["max_new_tokens"] = {s.pick(each, f"16 + {each}", f"max({each}, 4)")}')
        body.site(made, depth)
        if s.chance(60):
            body.change(made, 0)
    made.keys.may.update(SETTINGS)
    made.keys.must.clear()


@SITES("loop over values")
def loop_values(s: Scope, depth: int, made: Dict) -> None:
    name = s.choices.pick([each for each in KINDS if each in BESIDE or each not in s.may(made)])
    kind, each = KINDS[name], s.fresh("each")
    values = f"{s.value(kind, depth)}, {s.value(kind, depth)}"
    arguments = s.pick(f"{name}={each}, **{made.text}", f"**{made.text}, {name}={each}")
    with s.block(f"for {each} in {s.pick(f'[{values}]', f'({values})')}:", repeats=True) as body:
        emit_call(body, f"{receiver(body)}.generate(ids, {arguments})")


@SITES("loop over dicts")
def loop_dicts(s: Scope, depth: int, made: Dict) -> None:
    other, each = s.shared(s.mapping(depth)), s.fresh("kw")
    s.shared(made)
    header = s.pick(
        f"for {each} in [{made.text}, {other.text}]:",
        f"for _, {each} in [(1, {made.text}), (2, {other.text})]:",
        f"for name, {each} in {{'a': {made.text}, 'b': {other.text}}}.items():",
        f"for {each} in (dict({made.text}), {{}}, {other.text}):",
        f"for {each} in filter(None, [{made.text}, None]):",
    )
    with s.block(header, repeats=True) as body:
        if s.chance(40):
            body.change(unsure(each), 0)
        body.site(unsure(each), depth)


@SITES("branch")
def branch(s: Scope, depth: int, made: Dict) -> None:
    with s.block(f"if {s.condition(depth)}:") as arm:
        if s.chance(40):
            arm.change(made, 0)
        arm.site(made, depth)
    if s.chance(60):
        with s.block("else:") as arm:
            if s.chance(40):
                arm.change(made, 0)
            arm.site(made, 0)


@SITES("try")
def try_block(s: Scope, depth: int, made: Dict) -> None:
    s.uses("import recorder")
    with s.block("try:") as arm:
        if s.chance(50):
            arm.change(made, 0)
            arm.emit("recorder.may_raise()")
        arm.site(made, depth)
    with s.block("except RuntimeError:") as arm:
        arm.site(made, 0)
    if s.chance(30):
        with s.block("finally:") as arm:
            arm.change(made, 0)
            arm.site(made, 0)


@SITES("with")
def with_block(s: Scope, depth: int, made: Dict) -> None:
    s.uses("import recorder")
    with s.block(s.pick("with recorder.context():", "with recorder.context() as entered:")) as arm:
        arm.site(made, depth)


@SITES("match")
def match(s: Scope, depth: int, made: Dict) -> None:
    s.uses("import recorder")
    s.emit(f"match {s.pick('recorder.name()', s.value('int', 0))}:")
    s.depth += 1
    for header in (s.pick("case 1 | 5:", "case 'top_k':"), "case _:"):
        with s.block(header) as arm:
            arm.site(made, depth if header == "case _:" else 0)
    s.depth -= 1


@SITES("comprehension")
def comprehension(s: Scope, depth: int, made: Dict) -> None:
    name = s.pick(*BESIDE)
    value = s.value(BESIDE[name], depth)
    text = call(s, made, beside=False)
    s.emit(
        s.pick(
            f"outs = [{text} for _ in range(2)]",
            f"outs = list({text} for _ in (1,))",
            f"outs = {{i: {text} for i in range(1)}}",
            f"outs = [model.generate(ids, **{made.text}, {name}=n) for n in (1, {value})]",
            f"outs = [model.generate(ids, **each) for each in ({made.text}, {{}})]",
            f"outs = [model.generate(ids, **{{**{made.text}, **more}})"
            f" for more in ({{}}, {{'top_k': {s.value('int', 0)}}})]",
        )
    )


# --- functions -------------------------------------------------------------------------------------
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
    name, each = s.unique("grid"), s.fresh("kw")
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
    name = s.unique("again")
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


# --- objects ---------------------------------------------------------------------------------------
@SITES("method")
def method(s: Scope, depth: int, made: Dict) -> None:
    file, name = elsewhere(s), s.unique("Policy")
    with s.top(file) as top:
        top.uses("from recorder import ids, model")
        top.emit(f"class {name}:")
        inner = Scope(s.program, top.file, top.lines, top.names, 1, top.home, top.arm)
        with inner.nested("def __init__(self, kw):", closure=False) as body:
            body.emit("self.model = model", s.pick("self.kw = kw", "self.kw = dict(kw)", "self.kw = {**kw}"))
            if s.chance(30):
                body.change(unsure("self.kw"), 0)
        with inner.nested("def change(self):", closure=False) as body:
            body.change(unsure("self.kw"), 0)
        with inner.nested("def run(self, **more):", closure=False) as body:
            if s.chance(30):
                body.change(unsure("self.kw"), 0)
            model = s.pick("self.model", "model")
            emit_call(
                body,
                s.pick(
                    f"{model}.generate(ids, **self.kw)",
                    f"{model}.generate(ids, **{{**self.kw, **more}})",
                    f"{model}.generate(ids, **dict(self.kw, **more))",
                ),
            )
    policy, text = s.fresh("policy"), reach(s, file, name)
    s.shared(made)
    s.emit(f"{policy} = {text}({made.text})")
    for _ in range(s.choices.below(4)):
        s.emit(
            s.pick(
                f"{policy}.change()",
                f"{policy}.run()",
                f"{policy}.run({keywords(items(s, 0, 2))})",
                f'{policy}.kw["top_k"] = {s.value("int", 0)}',
                f'{made.text}["top_p"] = {s.value("float", 0)}',
                f"{policy}.kw = {s.mapping(0).text}",
            )
        )
    s.emit(f"{policy}.run()")
    if s.chance(30):
        s.emit(f"{text}({s.mapping(0).text}).run()")


@SITES("inherited method")
def inherited(s: Scope, depth: int, made: Dict) -> None:
    base, child = s.unique("BasePolicy"), s.unique("ChildPolicy")
    setting = s.settings(1)[0]
    with s.top() as top:
        top.uses("from recorder import ids, model")
        value, pairs = top.value(SETTINGS[setting], 0), items(top, 0)
        top.emit(
            f"class {base}:",
            f"    defaults = {plain_braces(pairs)}",
            "",
            "    def __init__(self, **kw):",
            "        self.kw = {**self.defaults, **kw}",
            "",
            "    def settings(self):",
            "        return self.kw",
            "",
            "    def run(self, **kw):",
            "        return model.generate(ids, **{**self.settings(), **kw})",
            "",
        )
        top.emit(
            f"class {child}({base}):",
            *s.pick(
                (f'    defaults = {{"{setting}": {value}}}',),
                ("    def settings(self):", f'        return {{**super().settings(), "{setting}": {value}}}'),
                (
                    "    def run(self, **kw):",
                    f'        kw["{setting}"] = {value}',
                    "        return super().run(**kw)",
                ),
                (
                    "    def __init__(self, **kw):",
                    "        super().__init__(**kw)",
                    f'        self.kw["{setting}"] = {value}',
                ),
                ("    def run(self, **kw):", "        return model.generate(ids, **self.settings(), **{})"),
                ("    pass",),
            ),
        )
    s.emit(f"{s.pick(child, child, base)}(**{made.text}).run({s.pick('', keywords(items(s, 0, 2)))})")
    if s.chance(40):
        s.emit(f"{s.pick(base, child)}().run()")


@SITES("own generate method")
def own_generate(s: Scope, depth: int, made: Dict) -> None:
    name, pairs = s.unique("WrappedModel"), items(s, 0, 2)
    own = plain_braces([(each, literal(s, SETTINGS[each])) for each, _ in pairs])
    with s.top() as top:
        top.uses("from recorder import ids, model")
        top.emit(
            f"class {name}:",
            "    def __init__(self, inner):",
            "        self.inner = inner",
            "",
            "    def generate(self, prompts, **kwargs):",
            *s.pick(
                ("        return self.inner.generate(prompts, **kwargs)",),
                (f"        return self.inner.generate(prompts, **{{**{own}, **kwargs}})",),
                (f"        kwargs.update({own})", "        return self.inner.generate(prompts, **kwargs)"),
                (
                    "        kwargs.pop('top_k', None)",
                    "        return self.inner.generate(prompts, **kwargs)",
                ),
            ),
        )
    s.uses("from recorder import ids, model")
    s.emit(f"{name}(model).generate(ids, **{made.text})")
    if s.chance(40):
        s.emit(f"{name}({name}(model)).generate(ids, {keywords(items(s, depth))})")


@SITES("static and class methods")
def class_methods(s: Scope, depth: int, made: Dict) -> None:
    name = s.unique("Tools")
    with s.top() as top:
        top.uses("from recorder import ids, model")
        top.emit(
            f"class {name}:",
            "    @staticmethod",
            "    def run(kw):",
            "        return model.generate(ids, **kw)",
            "",
            "    @classmethod",
            "    def run_with(cls, **kw):",
            s.pick("        return cls.run(kw)", "        return cls.run({**kw, 'top_k': 2})"),
        )
    s.emit(
        s.pick(f"{name}.run({made.text})", f"{name}().run({made.text})", f"{name}.run_with(**{made.text})")
    )
    if s.chance(30):
        s.emit(f"{name}.run_with({keywords(items(s, depth))})")


# --- known only at run time ----------------------------------------------------------------------
@SITES("invisible caller", opaque=True)
def invisible_caller(s: Scope, depth: int, made: Dict) -> None:
    name = s.unique("on_batch")
    with s.top() as top:
        if s.chance(30):
            top.uses("import recorder")
            top.emit("@recorder.hook")
        with top.nested(f"def {name}(kw):", closure=False) as body:
            body.site(unsure("kw"), 0)
    s.uses("import recorder")
    s.shared(made)
    s.emit(
        s.pick(
            f"recorder.call({name}, {made.text})",
            f"recorder.call_twisted({name})",
            f"recorder.call(fn={name}, kw={made.text})",
            f"recorder.helper_object.on_step_kw = {name}\nrecorder.shake()",
            f"recorder.call({name}, {made.text})\n{name}({made.text})",
            f"{name}({made.text})\nrecorder.call_twisted({name})",
        )
    )


@SITES("invisible base class", opaque=True)
def invisible_base(s: Scope, depth: int, made: Dict) -> None:
    name = s.unique("Trainer")
    with s.top() as top:
        top.uses("import recorder", "from recorder import ids, model")
        top.emit(
            f"class {name}(recorder.TrainerBase):",
            "    kw = {}",
            "",
            "    def setup(self, kw):",
            "        self.kw = kw",
            "",
            "    def step(self, **more):",
            "        return model.generate(ids, **{**self.kw, **more})",
        )
    trainer = s.fresh("trainer")
    s.shared(made)
    s.emit(
        f"{trainer} = {name}()",
        f"{trainer}.setup({made.text})",
        s.pick(f"{trainer}.step()", f"{trainer}.train()", f"{trainer}.step()\n{trainer}.train()"),
    )


@SITES("invisible wrapper", opaque=True)
def invisible_wrapper(s: Scope, depth: int, made: Dict) -> None:
    s.uses("import recorder", "from recorder import ids, model")
    s.emit(
        s.pick(
            f"model.generate(ids, **recorder.opaque({s.shared(made).text}))",
            f"model.generate(ids, **{{**{made.text}, **recorder.unknown_dict()}})",
            f"model.generate(ids, **{{**recorder.unknown_dict(), **{made.text}}})",
            f"model.generate(ids, **dict({made.text}, **{{recorder.int_name(): 3}}))",
            f"model.generate(ids, **recorder.unknown_beside(), **{made.text})",
        )
    )
