"""Calls of generate, direct and under branches and loops."""

from __future__ import annotations

from ..scope import BESIDE, KINDS, SETTINGS, SITES, Dict, Scope
from .pieces import braces, items, keywords, literal, unsure


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
def boundmethod_text(s: Scope, depth: int, made: Dict) -> None:
    name, model = s.fresh("generate"), receiver(s)
    s.emit(f"{name} = {s.pick(f'{model}.generate', f'getattr({model}, {chr(34)}generate{chr(34)})')}")
    emit_call(s, f"{name}(ids, **{made.text})")


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
    with s.block(s.pick("with recorder.context():", "with recorder.context() as opened:")) as arm:
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
