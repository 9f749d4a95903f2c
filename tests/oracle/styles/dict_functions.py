"""Dicts from functions: parameters, defaults, early returns, functions that take a dict."""

from __future__ import annotations

from ..scope import MAPPINGS, SETTINGS, Dict, Scope
from .imports import reach
from .pieces import elsewhere, held, items, keywords, plain_braces, unsure


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
