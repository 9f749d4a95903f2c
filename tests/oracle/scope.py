"""The program under construction: its files, the scope a style writes into, and which keys a dict has.

A building block ("style") receives a `Scope` and writes statements into it. So that no generated program
raises, every dict carries `Keys`: the names it certainly has and the names it may have.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from .choices import Choices

# Every setting has one kind of value, so that arithmetic on a value read back never raises.
SETTINGS = {
    "top_k": "int",
    "temperature": "float",
    "do_sample": "bool",
    "top_p": "float",
    "max_new_tokens": "int",
    "min_new_tokens": "int",
    "no_repeat_ngram_size": "int",
    "repetition_penalty": "float",
    "typical_p": "float",
    "early_stopping": "bool",
    "renormalize_logits": "bool",
    "cache_implementation": "str",
    "suppress_tokens": "ints",
    "begin_suppress_tokens": "ints",
    "min_p": "maybe",
}
# Written beside a splat; never put into a dict whose keys are not certain, so that no name is passed twice.
BESIDE = {"num_beams": "int", "num_return_sequences": "int", "length_penalty": "float", "use_cache": "bool"}
KINDS = {**SETTINGS, **BESIDE}
NOWHERE = -1


@dataclass
class Keys:
    """The settings a dict certainly has, and those it may have.

    `home` is the code that runs each time with a fresh dict (a function body, a loop body, a module);
    `arm` is the branch the dict was made in. Elsewhere nothing is certain: other code may run in between.
    """

    must: set[str]
    may: set[str]
    home: int
    arm: int


@dataclass(frozen=True)
class Dict:
    """An expression that gives a dict of settings, free of side effects, and what is known of its keys."""

    text: str
    keys: Keys


class Names:
    """Fresh lower-case names of one namespace: `kw`, `kw2`, ..., starting anew in every function."""

    def __init__(self, outer: Names | None = None, parameters: Iterable[str] = ()) -> None:
        self._used: set[str] = set(outer._used if outer else ()) | set(parameters)

    def fresh(self, stem: str) -> str:
        """A name nothing else in this namespace has."""
        name, count = stem, 1
        while name in self._used:
            count += 1
            name = f"{stem}{count}"
        self._used.add(name)
        return name


def _parameters(header: str) -> list[str]:
    """The parameter names of a function header."""
    function = ast.parse(header + " pass").body[0]
    assert isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
    return [node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)]


@dataclass
class File:
    """One source file: imports, then definitions, then the body, which only the main file has."""

    path: str
    imports: list[str] = field(default_factory=list)
    definitions: list[str] = field(default_factory=list)
    body: list[str] = field(default_factory=list)
    names: Names = field(default_factory=Names)

    @property
    def module(self) -> str:
        """The dotted name other files import."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def package(self) -> str:
        """The dotted name of the package this file lies in, "" at the top."""
        folder = self.path.rpartition("/")[0]
        return folder.replace("/", ".")

    def text(self) -> str:
        """The file as written to disk."""
        return "\n".join([*self.imports, "", *self.definitions, "", *self.body]).strip("\n") + "\n"


@dataclass
class Program:
    """All files, in the order in which they may import: a file imports only files that come later.

    `documents` are files of data, by path from the folder the program runs in; `featured` names styles to use
    if there is an occasion, so that rare ones get their share.
    """

    choices: Choices
    opaque: bool
    fuel: int
    featured: set[str]
    files: list[File] = field(default_factory=list)
    documents: dict[str, str] = field(default_factory=dict)
    styles: list[str] = field(default_factory=list)
    shared: list[tuple[File, str, Keys]] = field(default_factory=list)
    _counts: dict[str, int] = field(default_factory=dict)
    _serial: int = 0

    def unique(self, stem: str) -> str:
        """A name used once in the whole program: functions, classes, constants, modules."""
        self._counts[stem] = count = self._counts.get(stem, 0) + 1
        return stem if count == 1 else f"{stem}{count}"

    def serial(self) -> int:
        """A number used once: identifies a home or an arm."""
        self._serial += 1
        return self._serial


@dataclass
class Scope:
    """A place to write statements: lines, an indentation, a namespace, and where and how often it runs."""

    program: Program
    file: File
    lines: list[str]
    names: Names
    depth: int = 0
    home: int = 0
    arm: int = 0
    function: bool = False

    # --- decisions -------------------------------------------------------------------------------
    @property
    def choices(self) -> Choices:
        """Where decisions come from."""
        return self.program.choices

    def pick(self, *options):
        """One of the options given."""
        return self.choices.pick(options)

    def chance(self, percent: int) -> bool:
        """True in about `percent` of 100 cases."""
        return self.choices.chance(percent)

    # --- writing ---------------------------------------------------------------------------------
    def emit(self, *lines: str) -> None:
        """Write statements at this place; a line may hold several, each with its own inner indentation."""
        for text in lines:
            self.lines.extend("    " * self.depth + line for line in text.split("\n"))

    def fresh(self, stem: str) -> str:
        """A lower-case variable name not yet used in this namespace."""
        return self.names.fresh(stem)

    def unique(self, stem: str) -> str:
        """A name for a function, class or constant, used once in the program."""
        return self.program.unique(stem)

    def uses(self, *imports: str) -> None:
        """Make sure that the file begins with these import statements."""
        for statement in imports:
            if statement not in self.file.imports:
                self.file.imports.append(statement)

    @contextmanager
    def block(self, header: str, *, repeats: bool = False) -> Iterator[Scope]:
        """An indented block of the same namespace: a branch, or a loop body when it `repeats`."""
        self.emit(header)
        start = len(self.lines)
        home = self.program.serial() if repeats else self.home
        inner = Scope(
            self.program,
            self.file,
            self.lines,
            self.names,
            self.depth + 1,
            home,
            self.program.serial(),
            self.function,
        )
        yield inner
        if len(self.lines) == start:
            inner.emit("pass")

    @contextmanager
    def nested(self, header: str, *, closure: bool = True) -> Iterator[Scope]:
        """A function written in place. A closure takes no names that its surroundings use."""
        self.emit(header)
        start = len(self.lines)
        names = Names(self.names if closure else None, parameters=_parameters(header))
        inner = Scope(
            self.program,
            self.file,
            self.lines,
            names,
            self.depth + 1,
            self.program.serial(),
            self.program.serial(),
            True,
        )
        yield inner
        if len(self.lines) == start:
            inner.emit("pass")

    @contextmanager
    def top(self, file: File | None = None) -> Iterator[Scope]:
        """The definitions of `file` (this one's when omitted); what is written comes after what it needs."""
        target = file or self.file
        scope = Scope(self.program, target, [], target.names, 0, 0, 0, False)
        yield scope
        target.definitions.extend(scope.lines)

    # --- keys ------------------------------------------------------------------------------------
    def dict(self, text: str, must=(), may=()) -> Dict:
        """A dict made here; `must` are certain names, `may` possible ones."""
        return Dict(text, Keys(set(must), set(must) | set(may), self.home, self.arm))

    def owns(self, made: Dict) -> bool:
        """Whether the dict is made anew each time this code runs."""
        return made.keys.home == self.home

    def must(self, made: Dict) -> set[str]:
        """Names the dict certainly has here."""
        return made.keys.must if self.owns(made) else set()

    def may(self, made: Dict) -> set[str]:
        """Names the dict may have here."""
        return made.keys.may if self.owns(made) else set(SETTINGS) | made.keys.may

    def added(self, made: Dict, *names: str) -> None:
        """Note that the dict now has these names."""
        made.keys.may.update(names)
        if self.owns(made) and made.keys.arm == self.arm:
            made.keys.must.update(names)

    def removed(self, made: Dict, *names: str) -> None:
        """Note that the dict no longer has these names."""
        made.keys.must.difference_update(names)
        if self.owns(made) and made.keys.arm == self.arm:
            made.keys.may.difference_update(names)

    def shared(self, made: Dict, text: str = "") -> Dict:
        """The dict under another name that may or may not be the same object: nothing is certain any more."""
        made.keys.must.clear()
        made.keys.may.update(SETTINGS)
        made.keys.home = NOWHERE
        return Dict(text or made.text, made.keys)

    def settings(self, count: int = 3, *, kinds: tuple[str, ...] = ()) -> list[str]:
        """1 to `count` different setting names, of the given kinds."""
        names = [name for name, kind in SETTINGS.items() if not kinds or kind in kinds]
        return self.choices.sample(names, 1 + self.choices.below(count))

    # --- recursion: defined by the tables of styles -------------------------------------------------
    def value(self, kind: str, depth: int) -> str:
        """An expression of the given kind."""
        return VALUES.choose(self, depth + self.chance(45), kind)

    def mapping(self, depth: int) -> Dict:
        """A dict of settings, built in one of the styles and held by a name or a plain access path."""
        return MAPPINGS.choose(self, depth)

    def change(self, made: Dict, depth: int) -> None:
        """Change a dict in place, in one of the styles."""
        CHANGES.choose(self, depth, made)

    def site(self, made: Dict, depth: int) -> None:
        """Call generate with the dict, in one of the styles."""
        SITES.choose(self, depth, made)

    def condition(self, depth: int) -> str:
        """An expression for an `if`: known or not known without running the program."""
        return CONDITIONS.choose(self, depth)


@dataclass(frozen=True)
class Style:
    """One way of writing something; `leaf` ones do not nest, `opaque` ones cannot be known by reading."""

    name: str
    write: Callable
    leaf: bool
    opaque: bool
    kinds: tuple[str, ...]


class Styles:
    """A table of styles for one purpose; those that `nest` keep to their leaves once the program is long."""

    def __init__(self, purpose: str, *, nest: bool = True) -> None:
        self.purpose = purpose
        self.nest = nest
        self.table: list[Style] = []

    def __call__(self, name: str, *kinds: str, leaf: bool = False, opaque: bool = False) -> Callable:
        """Register the decorated function as a style; `kinds` limits it to values of these kinds."""

        def register(write: Callable) -> Callable:
            self.table.append(Style(f"{self.purpose}: {name}", write, leaf, opaque, kinds))
            return write

        return register

    def choose(self, scope: Scope, depth: int, *args):
        """Write one of the styles that fit, and note its name."""
        program = scope.program
        kind = args[0] if args and isinstance(args[0], str) else ""
        leaf = self.nest and (depth <= 0 or program.fuel <= 0)
        fitting = [
            style
            for style in self.table
            if (style.leaf or not leaf)
            and (program.opaque or not style.opaque)
            and (not style.kinds or kind in style.kinds)
        ]
        if program.opaque:
            fitting += 2 * [style for style in fitting if style.opaque]
        style = scope.choices.pick(fitting)
        wanted = [each for each in fitting if each.name in program.featured]
        if wanted and scope.chance(60):
            style = scope.choices.pick(wanted)
            program.featured.remove(style.name)
        elif style.name in program.styles and scope.chance(60):
            style = scope.choices.pick(fitting)
        program.fuel -= 1
        program.styles.append(style.name)
        return style.write(scope, depth - 1, *args)


VALUES = Styles("value")
MAPPINGS = Styles("dict")
CHANGES = Styles("change")
SITES = Styles("call")
CONDITIONS = Styles("condition")
ALL_STYLES = (VALUES, MAPPINGS, CHANGES, SITES, CONDITIONS)
