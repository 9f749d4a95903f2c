"""Styles of changing a dict in place: statements, branches, loops, functions, aliases, invisible code."""

from __future__ import annotations

from .functions import elsewhere, unsure
from .mappings import braces, items, key, keywords, names_of, plain_braces
from .modules import reach
from .scope import CHANGES, SETTINGS, Dict, Scope
from .values import literal


def one(s: Scope, depth: int) -> tuple[str, str]:
    """A setting with the text of a value."""
    name = s.settings(1)[0]
    return name, s.value(SETTINGS[name], depth)


# --- one statement -------------------------------------------------------------------------------
@CHANGES("subscript", leaf=True)
def subscript(s: Scope, depth: int, made: Dict) -> None:
    name, value = one(s, depth)
    s.emit(f"{made.text}[{key(s, name)}] = {value}")
    s.added(made, name)


@CHANGES("update", leaf=True)
def update(s: Scope, depth: int, made: Dict) -> None:
    pairs = items(s, depth, 2)
    listed = ", ".join(f"({key(s, name)}, {value})" for name, value in pairs)
    s.emit(
        s.pick(
            f"{made.text}.update({braces(s, pairs)})",
            f"{made.text}.update({keywords(pairs)})",
            f"{made.text}.update([{listed}])",
            f"{made.text}.update(**{braces(s, pairs)})",
            f"{made.text} |= {braces(s, pairs)}"
            if made.text.isidentifier() and not _captured(s, made)
            else f"{made.text}.update({{}}, {keywords(pairs)})",
            f"{made.text}.update(dict({keywords(pairs)}))",
        )
    )
    s.added(made, *names_of(pairs))


def _captured(s: Scope, made: Dict) -> bool:
    """Whether an assignment to the name would make it local to another function."""
    return s.function and not s.owns(made)


@CHANGES("setdefault", leaf=True)
def setdefault(s: Scope, depth: int, made: Dict) -> None:
    name, value = one(s, depth)
    s.emit(
        s.pick(
            f'{made.text}.setdefault("{name}", {value})',
            f'if "{name}" not in {made.text}:\n    {made.text}["{name}"] = {value}',
            f'{made.text}["{name}"] = {made.text}.get("{name}", {value})',
            f'if {made.text}.get("{name}") is None:\n    {made.text}["{name}"] = {value}',
        )
    )
    s.added(made, name)


@CHANGES("removal", leaf=True)
def removal(s: Scope, depth: int, made: Dict) -> None:
    certain = sorted(s.must(made))
    if certain and s.chance(60):
        name = s.choices.pick(certain)
        s.emit(
            s.pick(
                f'del {made.text}["{name}"]', f'{made.text}.pop("{name}")', f'_ = {made.text}.pop("{name}")'
            )
        )
    else:
        name = s.settings(1)[0]
        s.emit(
            s.pick(
                f'{made.text}.pop("{name}", None)',
                f'if "{name}" in {made.text}:\n    del {made.text}["{name}"]',
                f'try:\n    del {made.text}["{name}"]\nexcept KeyError:\n    pass',
                f'if {made.text}.get("{name}") is not None:\n    {made.text}.pop("{name}")',
            )
        )
    s.removed(made, name)


@CHANGES("operation on an entry", leaf=True)
def entry(s: Scope, depth: int, made: Dict) -> None:
    certain = [name for name in sorted(s.must(made)) if SETTINGS[name] in ("int", "float")]
    if certain and s.chance(80):
        name = s.choices.pick(certain)
        old = f'{made.text}["{name}"]'
        s.emit(
            s.pick(
                f"{old} += {s.value('int', 0)}",
                f"{old} *= 2",
                f"{old} = {old} + 1",
                f"{old} = max({old}, 3)",
                f"{old} = {old} if {old} > 1 else {s.value('int', 0)}",
                f"{old} -= 1",
                f"{old} = -{old}",
                f"{old} = float({old})",
            )
        )
        return
    name = s.settings(1, kinds=("int", "float"))[0]
    s.emit(f'{made.text}["{name}"] = {made.text}.get("{name}", {s.value(SETTINGS[name], depth)}) + 1')
    s.added(made, name)


@CHANGES("renamed key", leaf=True)
def renamed(s: Scope, depth: int, made: Dict) -> None:
    kind = s.pick("int", "float", "bool")
    old, new = s.choices.sample([name for name, each in SETTINGS.items() if each == kind], 2)
    s.emit(
        s.pick(
            f'{made.text}["{new}"] = {made.text}.pop("{old}", {s.value(kind, depth)})',
            f'if "{old}" in {made.text}:\n    {made.text}["{new}"] = {made.text}.pop("{old}")',
        )
    )
    s.removed(made, old)
    made.keys.may.add(new)


@CHANGES("clear", leaf=True)
def clear(s: Scope, depth: int, made: Dict) -> None:
    s.emit(f"{made.text}.clear()")
    s.removed(made, *SETTINGS)
    if s.chance(80):
        pairs = items(s, depth)
        s.emit(f"{made.text}.update({keywords(pairs)})")
        s.added(made, *names_of(pairs))


@CHANGES("harmless use", leaf=True)
def harmless(s: Scope, depth: int, made: Dict) -> None:
    s.uses("import logging", "import json")
    s.emit(
        s.pick(
            f"print({made.text})",
            f"logging.info('using %s', {made.text})",
            f"str({made.text})",
            f"sorted({made.text})",
            f"json.dumps(list({made.text}))",
            f"assert isinstance({made.text}, dict)",
            f"len({made.text})",
            f"repr({made.text}.items())",
            f"list({made.text}.values())",
            f"print(f'{{{made.text}}}')" if made.text.isidentifier() else f"bool({made.text})",
        )
    )


# --- other mappings --------------------------------------------------------------------------------
@CHANGES("update from another dict")
def update_from(s: Scope, depth: int, made: Dict) -> None:
    other = s.mapping(depth)
    s.emit(
        s.pick(
            f"{made.text}.update({other.text})",
            f"{made.text}.update(**{other.text})",
            f"{made.text}.update({other.text}.items())",
            f"for k, v in {other.text}.items():\n    {made.text}[k] = v",
            f"for k in {other.text}:\n    {made.text}.setdefault(k, {other.text}[k])",
            f"for k, v in sorted({other.text}.items(), key=lambda pair: pair[0]):\n"
            f"    {made.text}.update({{k: v}})",
            f"{made.text}.update({{k: v for k, v in {other.text}.items() if k not in {made.text}}})",
            f"{made.text}.__setitem__({key(s, 'top_k')}, {s.value('int', 0)})",
        )
    )
    made.keys.may.update(SETTINGS)


@CHANGES("rebuilt")
def rebuilt(s: Scope, depth: int, made: Dict) -> None:
    """Entries of the dict replaced through a copy of itself."""
    pairs, copy = items(s, depth, 2), s.fresh("copy_of")
    s.emit(
        f"{copy} = {{**{made.text}, **{braces(s, pairs)}}}",
        f"{made.text}.clear()",
        f"{made.text}.update({copy})",
    )
    s.added(made, *names_of(pairs))


@CHANGES("alias")
def alias(s: Scope, depth: int, made: Dict) -> None:
    other = s.fresh("view")
    s.emit(
        s.pick(
            f"{other} = {made.text}",
            f"{other}, _ = {made.text}, 1",
            f"for {other} in [{made.text}]:\n    pass",
            f"[{other}] = [{made.text}]",
            f'{other} = {{"x": {made.text}}}["x"]',
            f"{other} = {made.text} if recorder.flag() else {made.text}",
        )
    )
    s.uses("import recorder")
    s.change(Dict(other, made.keys), depth)


@CHANGES("copy, left behind")
def copy_changed(s: Scope, depth: int, made: Dict) -> None:
    """A copy is changed; the dict is not."""
    other = s.fresh("scratch")
    s.uses("import copy")
    s.emit(
        f"{other} = "
        + s.pick(
            f"dict({made.text})",
            f"{made.text}.copy()",
            f"copy.deepcopy({made.text})",
            f"{{**{made.text}}}",
            f"{made.text} | {{}}",
        )
    )
    s.change(s.dict(other, s.must(made), s.may(made)), depth)


@CHANGES("container")
def container(s: Scope, depth: int, made: Dict) -> None:
    name, value = one(s, depth)
    held = s.fresh("held")
    s.emit(
        s.pick(
            f'{held} = [{made.text}]\n{held}[0]["{name}"] = {value}',
            f'{held} = {{"kw": {made.text}}}\n{held}["kw"].update({name}={value})',
            f'for {held} in ({made.text}, {{}}):\n    {held}["{name}"] = {value}',
            f'{held} = ({made.text},)\n{held}[-1].setdefault("{name}", {value})',
            f'{held} = {{"kw": {made.text}}}\n{held} = dict({held})\n{held}["kw"]["{name}"] = {value}',
            f"[{held}.update({name}={value}) for {held} in [{made.text}]]",
        )
    )
    made.keys.may.add(name)


@CHANGES("list inside the dict")
def inner_list(s: Scope, depth: int, made: Dict) -> None:
    name = s.fresh("tokens")
    s.emit(f"{name} = [{s.value('int', 0)}, 4]", f'{made.text}["suppress_tokens"] = {name}')
    entry = f'{made.text}["suppress_tokens"]' if made.text.isidentifier() else name
    s.emit(
        s.pick(
            f"{name}.append(9)",
            f"{entry}.append(9)",
            f"{name} = {name} + [9]",
            f"{name} += [9]",
            f"{entry} += [8]",
            f"{name}.clear()",
            f"{name}[0] = 3",
        )
    )
    s.added(made, "suppress_tokens")


# --- control flow ----------------------------------------------------------------------------------
@CHANGES("if")
def branch(s: Scope, depth: int, made: Dict) -> None:
    with s.block(f"if {s.condition(depth)}:") as arm:
        arm.change(made, depth)
    if s.chance(25):
        with s.block(f"elif {s.condition(0)}:") as arm:
            arm.change(made, depth)
    if s.chance(50):
        with s.block("else:") as arm:
            arm.change(made, depth)


@CHANGES("if on the dict")
def branch_on_dict(s: Scope, depth: int, made: Dict) -> None:
    name = s.settings(1, kinds=("int", "float"))[0]
    test = s.pick(
        f'"{name}" in {made.text}',
        f'{made.text}.get("{name}", 1) > 2',
        f'not {made.text}.get("{name}")',
        f"len({made.text}) > 2",
        f"{made.text}",
        f'{made.text}.get("do_sample") is True',
        f'"{name}" not in {made.text} or {made.text}["{name}"] == 5',
    )
    with s.block(f"if {test}:") as arm:
        arm.change(made, depth)
    if s.chance(50):
        with s.block("else:") as arm:
            arm.change(made, depth)


@CHANGES("match")
def match(s: Scope, depth: int, made: Dict) -> None:
    name = s.settings(1)[0]
    s.uses("import recorder")
    s.emit(f"match {s.pick(made.text, 'recorder.name()', s.value('int', 0))}:")
    s.depth += 1
    for header in (
        s.pick(
            f'case {{"{name}": captured}} if captured:',
            "case 5 | 10:",
            'case "top_k":',
            "case dict():",
            "case [leading, *_]:",
        ),
        s.pick("case None:", "case str() | int():", "case {}:"),
        "case _:",
    )[: s.pick(3, 2)]:
        with s.block(header) as arm:
            arm.change(made, depth)
    s.depth -= 1


@CHANGES("for loop")
def for_loop(s: Scope, depth: int, made: Dict) -> None:
    each = s.fresh("step")
    s.uses("import recorder")
    header = s.pick(
        f"for {each} in range(2):",
        f"for {each} in []:",
        f"for {each} in recorder.ids:",
        f"for {each} in ('a', 'b'):",
        f"for {each}, _ in enumerate('ab'):",
        f"for {each} in recorder.items():",
        f"for {each} in range(3, 0, -1):",
    )
    with s.block(header, repeats=True) as body:
        if s.chance(40):
            with body.block(f"if {s.pick(body.condition(0), f'{each} == 1')}:") as arm:
                if s.chance(40):
                    arm.change(made, 0)
                arm.emit(s.pick("break", "continue"))
        body.change(made, depth)
        if s.chance(30):
            body.change(made, depth)
    if s.chance(30):
        with s.block("else:") as arm:
            arm.change(made, 0)


@CHANGES("loop over names")
def loop_names(s: Scope, depth: int, made: Dict) -> None:
    kind = s.pick("int", "float")
    names = s.settings(3, kinds=(kind,))
    listed = ", ".join(f'"{name}"' for name in names)
    value, each, number = s.value(kind, depth), s.fresh("name"), s.fresh("number")
    s.emit(
        s.pick(
            f"for {each} in [{listed}]:\n    {made.text}[{each}] = {value}",
            f"for {each} in ({listed},):\n    {made.text}.pop({each}, None)",
            f"for {each}, {number} in zip([{listed}], (1, 2, 3)):\n    {made.text}[{each}] = {number}",
            f"for {number}, {each} in enumerate([{listed}]):\n    {made.text}[{each}] = {number}",
            f"for {each}, {number} in {plain_braces([(name, value) for name in names])}.items():\n"
            f""
            f"    {made.text}[{each}] = {number}",
            f"for {each}, {number} in [{', '.join(f'({chr(34)}{n}{chr(34)}, {value})' for n in names)}]:\n"
            f"    if {number} is None:\n        continue\n    {made.text}[{each}] = {number}",
            f"for {each} in list({made.text}):\n"
            f"    if {each} in ({listed},):\n        del {made.text}[{each}]",
            f"for {each} in [k for k in {made.text} if k.startswith('top')]:\n    {made.text}.pop({each})",
            f"for {each} in [{listed}]:\n"
            f"    if {each} not in {made.text}:\n        {made.text}[{each}] = {value}\n"
            f"        break",
        )
    )
    made.keys.must.difference_update(SETTINGS)
    made.keys.may.update(names)


@CHANGES("loop over items")
def loop_items(s: Scope, depth: int, made: Dict) -> None:
    each, value = s.fresh("name"), s.fresh("number")
    s.emit(
        s.pick(
            f"for {each}, {value} in list({made.text}.items()):\n"
            f"    if {value} is None:\n        del {made.text}[{each}]",
            f"for {each}, {value} in {made.text}.items():\n    if isinstance({value}, int):\n"
            f"        {made.text}[{each}] = {value} + 1",
            f'for {each} in {made.text}:\n    if {each} == "top_k":\n'
            f'        {made.text}[{each}] = {s.value("int", 0)}',
            f"for {each} in sorted({made.text}):\n    {made.text}[{each}] = {made.text}.pop({each})",
            f'for {each} in set({made.text}) - {{"top_k", "top_p"}}:\n    {made.text}.pop({each})',
        )
    )
    made.keys.must.difference_update(SETTINGS)


@CHANGES("while loop")
def while_loop(s: Scope, depth: int, made: Dict) -> None:
    count = s.fresh("turn")
    s.uses("import recorder")
    s.emit(f"{count} = 0")
    with s.block(
        s.pick(
            f"while {count} < 2:",
            "while recorder.more():",
            f"while {count} < 3 and recorder.flag():",
            "while True:",
        ),
        repeats=True,
    ) as body:
        body.emit(f"{count} += 1")
        if s.chance(40):
            with body.block(f"if {body.condition(0)}:") as arm:
                arm.change(made, 0)
                arm.emit("break")
        body.change(made, depth)
        body.emit(f"if {count} > 2:", "    break")
    if s.chance(30):
        with s.block("else:") as arm:
            arm.change(made, 0)


@CHANGES("try")
def try_block(s: Scope, depth: int, made: Dict) -> None:
    s.uses("import recorder")
    with s.block("try:") as arm:
        arm.change(made, depth)
        arm.emit(s.pick("recorder.may_raise()", "raise RuntimeError('stop')", "int('no number')", "pass"))
        if s.chance(60):
            arm.change(made, depth)
    with s.block(
        s.pick("except (RuntimeError, ValueError):", "except Exception:", "except Exception as error:")
    ) as arm:
        if s.chance(60):
            arm.change(made, depth)
    if s.chance(30):
        with s.block("else:") as arm:
            arm.change(made, depth)
    if s.chance(30):
        with s.block("finally:") as arm:
            arm.change(made, depth)


@CHANGES("with")
def with_block(s: Scope, depth: int, made: Dict) -> None:
    s.uses("import recorder", "import contextlib")
    header = s.pick(
        "with recorder.context():",
        "with contextlib.nullcontext() as nothing:",
        "with contextlib.suppress(ValueError, RuntimeError):",
    )
    with s.block(header) as arm:
        arm.change(made, depth)
        if "suppress" in header:
            arm.emit(s.pick("recorder.may_raise()", "raise RuntimeError", "pass"))
            arm.change(made, 0)


@CHANGES("context manager")
def managed(s: Scope, depth: int, made: Dict) -> None:
    name, setting = s.unique("overridden"), s.settings(1)[0]
    with s.top() as top:
        top.uses("import contextlib")
        value = top.value(SETTINGS[setting], 0)
        top.emit("@contextlib.contextmanager")
        with top.nested(f"def {name}(kw):", closure=False) as body:
            body.emit(
                s.pick(
                    f'kw["{setting}"] = {value}\nyield kw',
                    f'yield kw\nkw["{setting}"] = {value}',
                    f'old = dict(kw)\nkw["{setting}"] = {value}\n'
                    f'try:\n    yield kw\nfinally:\n    kw.clear()\n'
                    f"    kw.update(old)",
                )
            )
    inner = s.fresh("entered")
    s.shared(made)
    with s.block(f"with {name}({made.text}) as {inner}:") as arm:
        arm.change(s.pick(made, unsure(inner)), depth)


# --- functions -------------------------------------------------------------------------------------
@CHANGES("function")
def function(s: Scope, depth: int, made: Dict) -> None:
    file, name = elsewhere(s), s.unique("adjust")
    with s.top(file) as top, top.nested(f"def {name}(kw, times=1, **more):", closure=False) as body:
        target = unsure("kw")
        if s.chance(30):
            body.emit(f"if {body.condition(0)}:", f"    {s.pick('return', 'return None', 'return kw')}")
        body.change(target, depth)
        if s.chance(20):
            body.emit(s.pick("kw = dict(kw)", "kw = {}", "kw = {**kw, **more}"))
            body.change(target, 0)
        if s.chance(30):
            body.emit(s.pick("kw.update(more)", "return kw", "for k, v in more.items():\n    kw[k] = v"))
    s.shared(made)
    call = reach(s, file, name)
    for _ in range(s.pick(1, 1, 2)):
        s.emit(
            s.pick(
                f"{call}({made.text})",
                f"{call}(kw={made.text})",
                f"{call}({made.text}, {keywords(items(s, 0, 2))})",
                f"{call}(*[{made.text}])",
                f'{call}(**{{"kw": {made.text}}})',
                f"_ = {call}({made.text}, 2)",
                f"list(map({call}, [{made.text}]))",
                f"[{call}(each) for each in ({made.text},)]",
            )
        )


@CHANGES("nested function")
def nested_function(s: Scope, depth: int, made: Dict) -> None:
    name = s.fresh("apply")
    s.shared(made)
    with s.nested(f"def {name}(value={s.value('int', 0)}):") as body:
        body.change(made, depth)
        body.emit(f'{made.text}["top_k"] = value')
    for _ in range(s.pick(1, 0, 2)):
        s.emit(f"{name}({s.pick('', s.value('int', depth))})")


@CHANGES("lambda")
def lambda_change(s: Scope, depth: int, made: Dict) -> None:
    name, value = one(s, depth)
    f = s.fresh("put")
    s.shared(made)
    s.emit(
        s.pick(
            f"{f} = lambda: {made.text}.update({name}={value})\n{f}()",
            f'{f} = lambda d, v: d.__setitem__("{name}", v)\n{f}({made.text}, {value})',
            f"(lambda **more: {made.text}.update(more))({name}={value})",
            f'{f} = {made.text}.update\n{f}({{"{name}": {value}}})',
            f'{f} = {made.text}.setdefault\n{f}("{name}", {value})',
            f"{f} = lambda: {made.text}.clear()",
        )
    )


@CHANGES("method")
def method(s: Scope, depth: int, made: Dict) -> None:
    name, cls = s.settings(1)[0], s.unique("Editor")
    value = literal(s, SETTINGS[name])
    with s.top() as top:
        top.emit(
            f"class {cls}:",
            "    def __init__(self, target):",
            "        self.target = target",
            "",
            "    def edit(self, **more):",
            f'        self.target["{name}"] = {value}',
            "        self.target.update(more)",
            "        return self",
            "",
            "    @staticmethod",
            "    def reset(target):",
            f'        target["{name}"] = {value}',
        )
    s.shared(made)
    s.emit(
        s.pick(
            f"{cls}({made.text}).edit()",
            f"{cls}({made.text}).edit().edit({keywords(items(s, depth, 2))})",
            f"{cls}.reset({made.text})",
            f"{cls}.edit({cls}({made.text}))",
            f"editor = {cls}({made.text})\neditor.edit()",
            f"{cls}({{}}).reset({made.text})",
            f"{cls}(dict({made.text})).edit()",
        )
    )


# --- known only at run time ----------------------------------------------------------------------
@CHANGES("invisible function", leaf=True, opaque=True)
def invisible(s: Scope, depth: int, made: Dict) -> None:
    s.uses("import recorder")
    s.shared(made)
    s.emit(
        s.pick(
            f"recorder.tweak({made.text})",
            f"recorder.tweak_all([{made.text}])",
            f"recorder.tweak_all(({made.text}, 1))",
            f'recorder.tweak_all({{"kw": {made.text}}}.values())',
            f"recorder.helper_object.tweak({made.text})",
            f"list(map(recorder.tweak, [{made.text}]))",
            f"recorder.keep({made.text})\nrecorder.shake()",
            f"recorder.call(lambda: {made.text}.update(top_k=recorder.number()))",
            f"recorder.tweak(kw={made.text})",
            f"with recorder.context({made.text}):\n    pass",
            f"recorder.helper_object.kw = {made.text}\nrecorder.shake()",
            f"recorder.opaque({made.text}).update(top_k=recorder.number())",
            f"for recorder.slot in [{made.text}]:\n    recorder.shake()",
            f"recorder.tweak_nested({{'a': {{'b': {made.text}}}}})",
        )
    )


@CHANGES("runtime key", leaf=True, opaque=True)
def runtime_key(s: Scope, depth: int, made: Dict) -> None:
    s.uses("import recorder")
    value = s.value("int", depth)
    s.emit(
        s.pick(
            f"{made.text}[recorder.int_name()] = {value}",
            f"{made.text}.pop(recorder.name(), None)",
            f"{made.text}.update({{recorder.int_name(): {value}}})",
            f"{made.text}.update(recorder.unknown_dict())",
            f"{made.text}.setdefault(recorder.int_name(), {value})",
            f"for name in recorder.names():\n    {made.text}.pop(name, None)",
        )
    )
    made.keys.must.clear()
    made.keys.may.update(SETTINGS)


@CHANGES("invisible callback", opaque=True)
def callback(s: Scope, depth: int, made: Dict) -> None:
    name = s.fresh("callback")
    s.uses("import recorder")
    s.shared(made)
    with s.nested(f"def {name}(*args, **kwargs):") as body:
        body.change(made, depth)
    s.emit(
        s.pick(
            f"recorder.call({name})",
            f"recorder.call(fn={name})",
            f"recorder.helper_object.on_step = {name}\nrecorder.shake()",
            f"@recorder.register\ndef {name}_again():\n    {name}()\n\nrecorder.shake()",
        )
    )
