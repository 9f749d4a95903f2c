"""Dicts that depend on a condition, and dicts of a module."""

from __future__ import annotations

from ..scope import MAPPINGS, NOWHERE, SETTINGS, Dict, Keys, Scope
from .imports import helper, reach
from .pieces import braces, hold, items, key, names_of


@MAPPINGS("conditional expression")
def conditional(s: Scope, depth: int) -> Dict:
    a, b = s.mapping(depth), s.mapping(depth)
    test, name = s.condition(depth), s.fresh("kw")
    s.emit(
        s.pick(
            f"{name} = {a.text} if {test} else {b.text}",
            f"{name} = ({a.text}, {b.text})[bool({test})]",
            f"{name} = {a.text} or {b.text}",
            f"{name} = {{True: {a.text}, False: {b.text}}}[bool({test})]",
            f"{name} = ({test}) and {a.text} or {b.text}",
        )
    )
    s.shared(a)
    return s.shared(b, name)


@MAPPINGS("conditional part")
def conditional_part(s: Scope, depth: int) -> Dict:
    base, pairs, test = s.mapping(depth), items(s, depth, 2), s.condition(depth)
    inner = braces(s, pairs)
    return hold(
        s,
        s.pick(
            f"{{**{base.text}, **({inner} if {test} else {{}})}}",
            f"{base.text} | ({inner} if {test} else {{}})",
            f"dict({base.text}, **(({test}) and {inner} or {{}}))",
            f'{{({key(s, pairs[0][0])} if {test} else "top_k"): {s.value("int", 0)}, **{base.text}}}'
            if SETTINGS[pairs[0][0]] == "int"
            else f"{{**({inner} if {test} else {base.text})}}",
        ),
        may=s.may(base) | set(names_of(pairs)) | {"top_k"},
    )


@MAPPINGS("if statement")
def if_statement(s: Scope, depth: int) -> Dict:
    name, test = s.fresh("kw"), s.condition(depth)
    with s.block(f"if {test}:") as arm:
        arm.emit(f"{name} = {arm.shared(arm.mapping(depth)).text}")
    for header in ([f"elif {s.condition(0)}:"] if s.chance(30) else []) + ["else:"]:
        with s.block(header) as arm:
            arm.emit(f"{name} = {arm.shared(arm.mapping(depth)).text}")
    return s.shared(s.dict(name))


@MAPPINGS("match statement")
def match_statement(s: Scope, depth: int) -> Dict:
    name, subject = s.fresh("kw"), s.value("int", 0)
    s.uses("import recorder")
    s.emit(s.pick(f"match {subject}:", "match recorder.name():", "match (recorder.flag(), 1):"))
    outer = s.depth
    s.depth += 1
    for header in s.pick(
        ("case 1:", "case _:"),
        ("case 0 | 1 | 5:", "case int(number) if number > 3:", "case _:"),
        ('case "top_k":', "case str():", "case _:"),
        ("case (True, 1):", "case _:"),
    ):
        with s.block(header) as arm:
            arm.emit(f"{name} = {arm.shared(arm.mapping(depth)).text}")
    s.depth = outer
    return s.shared(s.dict(name))


@MAPPINGS("try statement")
def try_statement(s: Scope, depth: int) -> Dict:
    name = s.fresh("kw")
    s.uses("import recorder")
    with s.block("try:") as arm:
        made = arm.mapping(depth)
        arm.emit(f"{name} = {made.text}")
        arm.emit(
            s.pick("recorder.may_raise()", "pass", "raise RuntimeError('stop')", f"{made.text}['missing']")
        )
        arm.change(made, depth)
        arm.shared(made)
    with s.block(
        s.pick("except (RuntimeError, KeyError):", "except Exception:", "except BaseException as error:")
    ) as arm:
        arm.emit(f"{name} = {arm.shared(arm.mapping(0)).text}")
    result = s.shared(s.dict(name))
    if s.chance(30):
        with s.block("else:") as arm:
            arm.change(result, depth)
    if s.chance(30):
        with s.block("finally:") as arm:
            arm.change(result, depth)
    return result


@MAPPINGS("module dict")
def module_dict(s: Scope, depth: int) -> Dict:
    name = s.unique("GENERATION")
    with s.top() as top:
        made = top.mapping(depth)
        top.emit(f"{name} = {made.text}")
        keys = top.shared(made).keys
        if s.chance(30):
            top.change(Dict(name, keys), depth)
    s.program.shared.append((s.file, name, keys))
    return Dict(name, keys)


@MAPPINGS("imported dict")
def imported_dict(s: Scope, depth: int) -> Dict:
    file, name = helper(s), s.unique("PRESET")
    with s.top(file) as top:
        made = top.mapping(depth)
        top.emit(f"{name} = {made.text}")
        keys = top.shared(made).keys
        if s.chance(30):
            with top.block("if __name__ == '__main__':") as main:
                main.change(Dict(name, keys), 0)
    s.program.shared.append((file, name, keys))
    return Dict(reach(s, file, name), keys)


@MAPPINGS("shared dict again")
def shared_again(s: Scope, depth: int) -> Dict:
    files = s.program.files
    visible = [each for each in s.program.shared if files.index(each[0]) >= files.index(s.file)]
    if not visible:
        return module_dict(s, depth)
    file, name, keys = s.choices.pick(visible)
    return Dict(reach(s, file, name), keys)


@MAPPINGS("rebound global")
def rebound_global(s: Scope, depth: int) -> Dict:
    file = helper(s) if s.chance(50) else s.file
    name, setter = s.unique("ACTIVE"), s.unique("activate")
    with s.top(file) as top:
        top.emit(f"{name} = {top.shared(top.mapping(0)).text}")
        with top.nested(f"def {setter}():", closure=False) as body:
            body.emit(f"global {name}")
            new = body.shared(body.mapping(depth))
            body.emit(f"{name} = {s.pick(new.text, f'{{**{name}, **{new.text}}}')}")
    made = Dict(reach(s, file, name), Keys(set(), set(SETTINGS), NOWHERE, 0))
    if s.chance(70):
        s.emit(f"{reach(s, file, setter)}()")
    return made


@MAPPINGS("invisible function", opaque=True)
def invisible(s: Scope, depth: int) -> Dict:
    s.uses("import recorder")
    text = s.pick(
        "recorder.unknown_dict()",
        f"{{**recorder.unknown_dict(), **{s.mapping(depth).text}}}",
        f"dict({s.mapping(depth).text}, **recorder.unknown_dict())",
        f"recorder.opaque({s.shared(s.mapping(depth)).text})",
    )
    return s.shared(hold(s, text))


@MAPPINGS("runtime key", opaque=True)
def runtime_key(s: Scope, depth: int) -> Dict:
    s.uses("import recorder")
    base, value = s.mapping(depth), s.value("int", depth)
    return hold(
        s,
        s.pick(
            f"{{**{base.text}, recorder.int_name(): {value}}}",
            f"{base.text} | {{recorder.int_name(): {value}}}",
            f"{{k: v for k, v in {base.text}.items() if k != recorder.name()}}",
            f"dict([*{base.text}.items(), (recorder.int_name(), {value})])",
        ),
        may=SETTINGS,
    )
