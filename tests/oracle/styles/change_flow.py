"""Changes of a dict in branches and loops."""

from __future__ import annotations

from ..scope import CHANGES, SETTINGS, Dict, Scope
from .pieces import plain_braces, unsure


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
            f"        {made.text}[{each}] = {s.value('int', 0)}",
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
                    f"try:\n    yield kw\nfinally:\n    kw.clear()\n"
                    f"    kw.update(old)",
                )
            )
    inner = s.fresh("entered")
    s.shared(made)
    with s.block(f"with {name}({made.text}) as {inner}:") as arm:
        arm.change(s.pick(made, unsure(inner)), depth)
