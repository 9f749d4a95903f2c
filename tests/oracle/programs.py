"""Whole programs: several files or a notebook, each with places that build settings and call generate."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass

from hypothesis import strategies as st

from . import styles  # noqa: F401  (fills the tables)
from .choices import Choices
from .scope import ALL_STYLES, SETTINGS, File, Program, Scope, Styles
from .styles.imports import IMPORTS, helper, reach

PLACES = Styles("place", nest=False)
FORMS = Styles("form", nest=False)
STYLES = tuple(style for table in (*ALL_STYLES, IMPORTS, PLACES, FORMS) for style in table.table)


@dataclass(frozen=True)
class Source:
    """A generated program: its files by path, the one that is run, and the styles it is written in.

    `opaque`: parts of it cannot be known by reading, whatever the reader.
    """

    files: dict[str, str]
    main: str
    styles: tuple[str, ...]
    opaque: bool

    def __str__(self) -> str:
        return "\n".join(f"# ---- {path}\n{text}" for path, text in sorted(self.files.items(), reverse=True))


@st.composite
def programs(draw: st.DrawFn) -> Source:
    """Programs as hypothesis draws and shrinks them."""
    return write(Choices.drawn(draw))


def seeded(seed: int) -> Source:
    """The program of a seed."""
    return write(Choices.seeded(seed))


def write(choices: Choices) -> Source:
    """One program."""
    featured = {style.name for style in choices.sample(STYLES, 8)}
    program = Program(choices, choices.chance(30), fuel=10 + choices.below(70), featured=featured)
    main = File("main.py")
    program.files.append(main)
    body = Scope(program, main, main.body, main.names)
    for _ in range(1 + choices.below(3)):
        PLACES.choose(body, 2 + choices.below(2))
    form = FORMS.choose(body, 1, main)
    files = {file.path: file.text() for file in program.files[1:]}
    files.update(program.documents)
    return Source({**files, **form}, next(iter(form)), tuple(program.styles), program.opaque)


# --- where settings are built and used ---------------------------------------------------------------
def unit(s: Scope, depth: int) -> None:
    """Build a dict, change it, pass it to generate; perhaps again."""
    made = s.mapping(depth)
    for _ in range(s.choices.below(3)):
        s.change(made, depth)
    s.site(made, depth)
    if s.chance(30):
        s.change(made, depth)
        s.site(made, 0)


@PLACES("top level")
def top_level(s: Scope, depth: int) -> None:
    unit(s, depth)


@PLACES("function")
def in_function(s: Scope, depth: int) -> None:
    name = s.unique("work")
    with s.top() as top, top.nested(f"def {name}():", closure=False) as body:
        unit(body, depth)
    s.emit(f"{name}()")


@PLACES("function of another module")
def in_module(s: Scope, depth: int) -> None:
    file, name = helper(s), s.unique("work_there")
    with s.top(file) as top, top.nested(f"def {name}():", closure=False) as body:
        unit(body, depth)
    s.emit(f"{reach(s, file, name)}()")


@PLACES("method of a class")
def in_method(s: Scope, depth: int) -> None:
    name = s.unique("Worker")
    with s.top() as top:
        top.emit(f"class {name}:")
        inner = Scope(s.program, top.file, top.lines, top.names, 1, top.home, top.arm)
        with inner.nested("def work(self):", closure=False) as body:
            unit(body, depth)
    s.emit(f"{name}().work()")


@PLACES("import time of another module")
def at_import(s: Scope, depth: int) -> None:
    file, name = helper(s), s.unique("READY")
    with s.top(file) as top:
        unit(top, depth)
        top.emit(f"{name} = True")
    s.emit(f"assert {reach(s, file, name)}")


@PLACES("two functions share a dict")
def shared_dict(s: Scope, depth: int) -> None:
    name = s.unique("SHARED")
    with s.top() as top:
        made = top.mapping(depth)
        top.emit(f"{name} = {made.text}")
        keys = top.shared(made).keys
        s.program.shared.append((s.file, name, keys))
        shared = type(made)(name, keys)
        writer, reader = s.unique("write_settings"), s.unique("use_settings")
        with top.nested(f"def {writer}():", closure=False) as body:
            body.change(shared, depth)
        with top.nested(f"def {reader}():", closure=False) as body:
            body.site(shared, depth)
    for step in s.choices.sample(
        (f"{reader}()", f"{writer}()", f"{reader}()", f"{writer}()"), 1 + s.choices.below(4)
    ):
        s.emit(step)
    s.emit(f"{reader}()")


@PLACES("branch")
def in_branch(s: Scope, depth: int) -> None:
    with s.block(f"if {s.condition(depth)}:") as arm:
        unit(arm, depth)


@PLACES("function with parameters")
def parameters(s: Scope, depth: int) -> None:
    name = s.unique("work_with")
    chosen = s.settings(3, kinds=("int", "float", "bool", "str"))
    with s.top() as top:
        listed = ", ".join(f"{each}={top.value(SETTINGS[each], 0)}" for each in chosen)
        with top.nested(f"def {name}({listed}):", closure=False) as body:
            body.names.fresh("kw")
            body.emit("kw = {" + ", ".join(f'"{each}": {each}' for each in chosen) + "}")
            made = body.dict("kw", chosen)
            for _ in range(s.choices.below(3)):
                body.change(made, depth)
            body.site(made, depth)
    for _ in range(1 + s.choices.below(2)):
        given = s.choices.sample(chosen, s.choices.below(3))
        s.emit(f"{name}({', '.join(f'{each}={s.value(SETTINGS[each], depth)}' for each in given)})")


# --- how the files are laid out ------------------------------------------------------------------------
@FORMS("script")
def script(s: Scope, depth: int, main: File) -> dict[str, str]:
    return {main.path: main.text()}


@FORMS("guarded main")
def guarded(s: Scope, depth: int, main: File) -> dict[str, str]:
    main.body[:] = ["if __name__ == '__main__':", *("    " + line for line in main.body)]
    return {main.path: main.text()}


@FORMS("script with a docstring")
def documented(s: Scope, depth: int, main: File) -> dict[str, str]:
    main.imports[:0] = ['"""Generates."""', "", "from __future__ import annotations", ""]
    return {main.path: main.text()}


@FORMS("notebook")
def notebook(s: Scope, depth: int, main: File) -> dict[str, str]:
    text = main.text()
    lines = text.split("\n")
    starts = [
        min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
        for node in ast.parse(text).body
    ]
    cuts = sorted({0, *s.choices.sample(starts, 1 + s.choices.below(5)), len(lines)})
    cells = ["\n".join(lines[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]
    magic = s.pick(
        "%matplotlib inline", "!pip install transformers", "%load_ext autoreload\n%autoreload 2", "# cell"
    )
    cells[0] = f"{magic}\n{cells[0]}"
    if s.chance(30):
        cells[-1] = f"%%time\n{cells[-1]}"
    described = [
        {
            "cell_type": "code",
            "metadata": {},
            "execution_count": None,
            "outputs": [],
            "source": cell.splitlines(keepends=True),
        }
        for cell in cells
    ]
    described.insert(
        s.choices.below(len(described) + 1),
        {"cell_type": "markdown", "metadata": {}, "source": ["# A run\n", "model.generate(ids, top_k=1)"]},
    )
    document = {"cells": described, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    return {"main.ipynb": json.dumps(document, indent=1)}
