"""Values that statements leave in a name: branches, loops, try, match, with."""

from __future__ import annotations

from ..scope import VALUES, Scope
from .pieces import literal


@VALUES("if statement")
def if_statement(s: Scope, depth: int, kind: str) -> str:
    name, test = s.fresh("n"), s.condition(depth)
    if s.chance(40):
        s.emit(f"{name} = {s.value(kind, depth)}")
        with s.block(f"if {test}:") as arm:
            arm.emit(f"{name} = {arm.value(kind, depth)}")
        return name
    with s.block(f"if {test}:") as arm:
        arm.emit(f"{name} = {arm.value(kind, depth)}")
    if s.chance(40):
        with s.block(f"elif {s.condition(0)}:") as arm:
            arm.emit(f"{name} = {arm.value(kind, depth)}")
    with s.block("else:") as arm:
        arm.emit(f"{name} = {arm.value(kind, depth)}")
    return name


@VALUES("try statement")
def try_statement(s: Scope, depth: int, kind: str) -> str:
    name, a, b = s.fresh("n"), s.value(kind, depth), s.value(kind, depth)
    s.uses("import recorder")
    s.emit(
        s.pick(
            f"try:\n    {name} = {a}\nexcept ValueError:\n    {name} = {b}",
            f"try:\n    {name} = {a}\n    raise ValueError(1)\nexcept ValueError:\n    {name} = {b}",
            f"try:\n    int('x')\n    {name} = {a}\nexcept (TypeError, ValueError):\n    {name} = {b}",
            f"try:\n    {name} = {a}\nfinally:\n    {name} = {b}",
            f"try:\n    {name} = {a}\nexcept Exception as error:\n    {name} = {b}\nelse:\n    {name} = {b}",
            f"{name} = {b}\ntry:\n    recorder.may_raise()\n    {name} = {a}\nexcept RuntimeError:\n    pass",
            f"{name} = {b}\ntry:\n    {name} = {a}\n"
            f"    recorder.may_raise()\nexcept RuntimeError:\n    {name} = {b}",
            f"try:\n    {name} = {{}}['missing']\nexcept KeyError:\n    {name} = {a}",
            f"try:\n    {name} = {a}\n    assert recorder.flag()\nexcept AssertionError:\n    {name} = {b}",
        )
    )
    return name


@VALUES("loop statement")
def loop_statement(s: Scope, depth: int, kind: str) -> str:
    name, a, b = s.fresh("n"), s.value(kind, depth), s.value(kind, depth)
    each = s.fresh("each")
    s.uses("import recorder")
    s.emit(
        s.pick(
            f"{name} = {a}\nfor {each} in range(3):\n    {name} = {b}",
            f"{name} = {a}\nfor {each} in []:\n    {name} = {b}",
            f"for {name} in [{a}, {b}]:\n    break",
            f"for {name} in ({a}, {b}):\n    if recorder.flag():\n        break\nelse:\n    {name} = {a}",
            f"{name} = {a}\nwhile recorder.flag():\n    {name} = {b}\n    break",
            f"{name} = {a}\nfor {each} in recorder.ids:\n    if {each}:\n        continue\n    {name} = {b}",
            f"{each} = 0\nwhile {each} < 2:\n    {name} = {a}\n    {each} += 1",
            f"while True:\n    {name} = {a}\n    if recorder.flag():\n        {name} = {b}\n    break",
            f"{name} = {a}\nfor {each} in range(2):\n    for {each} in 'ab':\n        {name} = {b}\n"
            f"        break\n    else:\n        {name} = {a}",
            f"for {each}, {name} in enumerate([{a}, {b}]):\n    if {each} == 0:\n        continue",
        )
    )
    return name


@VALUES("counting loop", "int")
def counting_loop(s: Scope, depth: int, kind: str) -> str:
    name, each, step = s.fresh("count"), s.fresh("i"), s.value("int", 0)
    s.emit(f"{name} = {s.value('int', depth)}")
    s.emit(
        s.pick(
            f"for {each} in range(4):\n    {name} += {step}",
            f"for {each} in [1, 2, 5]:\n    {name} = {name} + {each}",
            f"{each} = 0\nwhile {each} < 3:\n    {each} += 1\n    {name} -= {each}",
            f"for {each} in range(10):\n    if {each} % 2:\n        continue\n    if {each} > 5:\n"
            f"        break\n    {name} += {each}",
        )
    )
    return name


@VALUES("runtime loop", "int", opaque=True)
def runtime_loop(s: Scope, depth: int, kind: str) -> str:
    name = s.fresh("count")
    s.uses("import recorder")
    s.emit(f"{name} = {s.value('int', depth)}")
    s.emit(
        s.pick(
            f"while recorder.more():\n    {name} += 1",
            f"for each in range(recorder.number() % 5):\n    {name} = each",
            f"for each in recorder.items():\n    {name} = {name} * 2 + 1",
        )
    )
    return name


@VALUES("match statement")
def match_statement(s: Scope, depth: int, kind: str) -> str:
    name, a, b = s.fresh("n"), s.value(kind, depth), s.value(kind, depth)
    s.uses("import recorder")
    s.emit(
        s.pick(
            f"match {s.value('int', 0)}:\n    case 1 | 2:\n"
            f"        {name} = {a}\n    case _:\n        {name} = {b}",
            f"match recorder.flag():\n    case True:\n"
            f"        {name} = {a}\n    case False:\n        {name} = {b}",
            f"match {{'k': {a}}}:\n    case {{'k': {name}}}:\n        pass",
            f"match ({a}, {b}):\n    case [_, {name}]:\n        pass",
            f"match {s.value('int', 0)}:\n    case x if x > 5:\n"
            f"        {name} = {a}\n    case x:\n        {name} = {b}",
            f"match {s.value('str', 0)}:\n    case 'static':\n        {name} = {a}\n    case str() as text:\n"
            f"        {name} = {b}",
            f"{name} = {a}\nmatch recorder.name():\n    case 'top_k':\n        {name} = {b}",
        )
    )
    return name


@VALUES("with statement")
def with_statement(s: Scope, depth: int, kind: str) -> str:
    name, a = s.fresh("n"), s.value(kind, depth)
    s.uses("import contextlib", "import recorder")
    s.emit(
        s.pick(
            f"with recorder.context():\n    {name} = {a}",
            f"with contextlib.nullcontext({a}) as {name}:\n    pass",
            f"{name} = {s.value(kind, depth)}\nwith contextlib.suppress(ValueError):\n    {name} = {a}\n"
            f"    int('x')\n    {name} = {literal(s, kind)}",
            f"with recorder.context() as opened, contextlib.nullcontext():\n    {name} = {a}",
        )
    )
    return name


@VALUES("context manager")
def context_manager(s: Scope, depth: int, kind: str) -> str:
    manager, name = s.unique("managed"), s.fresh("n")
    with s.top() as top:
        if s.chance(50):
            top.uses("import contextlib")
            top.emit("@contextlib.contextmanager")
            with top.nested(f"def {manager}(value):") as body:
                body.emit("try:", "    yield value", "finally:", "    pass")
        else:
            top.emit(
                f"class {manager}:",
                "    def __init__(self, value):",
                "        self.value = value",
                "",
                "    def __enter__(self):",
                "        return self.value",
                "",
                "    def __exit__(self, *exc):",
                f"        return {s.pick('False', 'None', 'True')}",
            )
    s.emit(f"with {manager}({s.value(kind, depth)}) as {name}:", "    pass")
    return name
