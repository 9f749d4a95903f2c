"""What several styles are made of: literals, keys, dict displays, and the dicts that functions give back."""

from __future__ import annotations

from collections.abc import Iterable

from ..scope import NOWHERE, SETTINGS, Dict, Keys, Scope
from .imports import helper

Items = list[tuple[str, str]]
LITERALS = {
    "int": ("0", "1", "2", "3", "5", "10", "20", "50", "100", "-1", "1_000"),
    "float": ("1.0", "0.7", "0.9", "0.5", "1.2", "0.0", "1e-2", ".95"),
    "bool": ("True", "False"),
    "str": ('"static"', "'dynamic'", '"quantized"', '"off" "load"', '""'),
    "ints": ("[1, 2]", "[5]", "[]", "[7, 8, 9]"),
    "maybe": ("None", "0.1", "0.05"),
}
PLAIN = ("int", "float", "bool", "str")
NUMBERS = ("int", "float")


def literal(s: Scope, kind: str) -> str:
    """A literal of the given kind."""
    return s.choices.pick(LITERALS[kind])


def annotation(kind: str) -> str:
    """The type a value of this kind is annotated with."""
    return {"ints": "list", "maybe": "float | None"}.get(kind, kind)


def one(s: Scope, depth: int) -> tuple[str, str]:
    """A setting with the text of a value."""
    name = s.settings(1)[0]
    return name, s.value(SETTINGS[name], depth)


def items(s: Scope, depth: int, count: int = 3) -> Items:
    """Setting names with the texts of their values."""
    return [(name, s.value(SETTINGS[name], depth)) for name in s.settings(count)]


def key(s: Scope, name: str) -> str:
    """The text of a key: mostly a literal, sometimes folded from constants."""
    if not s.chance(12):
        return f'"{name}"'
    head, tail = name[:3], name[3:]
    if s.chance(30):
        constant = s.unique("KEY")
        with s.top() as top:
            top.emit(f'{constant} = "{name}"')
        return s.pick(constant, f"str({constant})")
    return s.pick(
        f"'{name}'",
        f"f\"{head}{{'{tail}'}}\"",
        f'"{head}" + "{tail}"',
        f'"{head}" "{tail}"',
        f'"{name.upper()}".lower()',
        f'"{name}-".rstrip("-")',
        f'"{name.replace("_", "-")}".replace("-", "_")',
        f'"%s{tail}" % "{head}"',
        f'"{{}}{tail}".format("{head}")',
        f'"".join(["{head}", "{tail}"])',
        f'("other", "{name}")[1]',
    )


def braces(s: Scope, pairs: Items) -> str:
    """A dict display."""
    if s.chance(20):
        return "{\n" + "".join(f"    {key(s, name)}: {value},\n" for name, value in pairs) + "}"
    return "{" + ", ".join(f"{key(s, name)}: {value}" for name, value in pairs) + "}"


def plain_braces(pairs: Items) -> str:
    """A dict display on one line, its keys as literals."""
    return "{" + ", ".join(f'"{name}": {value}' for name, value in pairs) + "}"


def keywords(pairs: Items) -> str:
    """Keyword arguments."""
    return ", ".join(f"{name}={value}" for name, value in pairs)


def names_of(pairs: Items) -> list[str]:
    """The setting names of the pairs."""
    return [name for name, _ in pairs]


def hold(s: Scope, text: str, must: Iterable[str] = (), may: Iterable[str] = ()) -> Dict:
    """Assign the dict to a fresh name."""
    name = s.fresh("kw")
    s.emit(s.pick(f"{name} = {text}", f"{name}: dict = {text}") if s.chance(20) else f"{name} = {text}")
    return s.dict(name, set(must), set(may))


def merged(s: Scope, text: str, *parts: Dict | Items) -> Dict:
    """A new dict with the keys of all the parts."""
    must: set[str] = set()
    may: set[str] = set()
    for part in parts:
        must |= s.must(part) if isinstance(part, Dict) else set(names_of(part))
        may |= s.may(part) if isinstance(part, Dict) else set(names_of(part))
    return hold(s, text, must, may)


def copied(s: Scope, made: Dict) -> str:
    """An expression for a copy of the dict."""
    s.uses("import copy")
    return s.pick(
        f"dict({made.text})",
        f"{made.text}.copy()",
        f"{{**{made.text}}}",
        f"copy.copy({made.text})",
        f"copy.deepcopy({made.text})",
        f"dict(**{made.text})",
        f"({made.text} | {{}})",
        f"dict({made.text}.items())",
        f"{{k: v for k, v in {made.text}.items()}}",
        f"dict(list({made.text}.items()))",
        f"{{k: {made.text}[k] for k in {made.text}}}",
    )


def unsure(text: str) -> Dict:
    """A dict that may be shared with anything and hold any setting."""
    return Dict(text, Keys(set(), set(SETTINGS), NOWHERE, 0))


def held(s: Scope, text: str) -> Dict:
    """The result of a call, under a fresh name; whether it is a new dict is not known here."""
    return unsure(hold(s, text).text)


def elsewhere(s: Scope):
    """The file a function is defined in: this one, or a module it imports."""
    return helper(s) if s.chance(35) else s.file


def write_members(top: Scope, *lines: str) -> None:
    """Write class members."""
    for line in lines:
        top.emit(*("    " + each for each in line.split("\n")))


def method_text(header: str, *lines: str) -> str:
    """A method as it stands in a class, without indentation."""
    body = "\n".join("    " + each for line in lines for each in line.split("\n"))
    return f"def {header}:\n{body}\n"
