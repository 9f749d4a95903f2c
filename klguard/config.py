"""Configuration: `[tool.klguard]` of the nearest pyproject.toml that has it, or a klguard.toml.

Everything wrong with a file is reported at once, each with its key, its line and the nearest valid spelling.
Options of the command line are applied on top with `Config.override`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from klguard.findings import Confidence, Finding, Severity
from klguard.read.files import DEFAULT_LIMIT, reported
from klguard.settings import Context, Place

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

LIBRARIES = ("transformers", "trl", "vllm", "sglang", "trlx")
"""Libraries whose version changes what a setting means."""

ALL_CONTEXTS = frozenset(Context)
CONTEXTS: Mapping[str, frozenset[Context]] = MappingProxyType(
    {"all": ALL_CONTEXTS, **{context.value: frozenset({context}) for context in Context}}
)
"""What `context` may name -> the contexts whose sites are reported."""

OWN_RULES: Mapping[str, str] = MappingProxyType(
    {
        "KLG001": "syntax-error",
        "KLG002": "unreadable-file",
        "KLG003": "unresolved-settings",
        "KLG004": "unused-suppression",
        "KLG005": "invalid-config",
    }
)
"""Code -> name of the rules about klguard itself, which no settings are judged by."""


class ConfigError(Exception):
    """The configuration cannot be used. `findings` holds one KLG005 for each thing wrong with it."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n".join(f"{f.place}: {f.message}" for f in self.findings))


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rules one source of options (a file, the command line) asks for. None: it does not say."""

    select: tuple[str, ...] | None = None
    extend_select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()


@dataclass(frozen=True)
class Config:
    """What is checked, and how.

    root                what patterns are relative to: the directory of `file`, else where the search began
    file                the configuration file, None where there is none
    selections          weakest first; a later `select` replaces what came before it
    per_file_ignores    (pattern, rules) pairs; a pattern that begins with ! means all other files
    exclude             patterns as in a .gitignore
    contexts            sites whose findings are reported
    target_versions     library -> version, where set by hand
    generate_functions  further functions that sample, by bare or dotted name
    trainer_classes     further trainers, by bare or dotted name -> the known class they behave like, or ""
    rules               code -> name of all rules there are
    """

    root: Path
    file: Path | None = None
    selections: tuple[Selection, ...] = ()
    per_file_ignores: tuple[tuple[str, tuple[str, ...]], ...] = ()
    exclude: tuple[str, ...] = ()
    force_exclude: bool = False
    respect_gitignore: bool = True
    contexts: frozenset[Context] = frozenset({Context.ROLLOUT})
    target_versions: Mapping[str, str] = field(default_factory=dict)
    generate_functions: tuple[str, ...] = ()
    trainer_classes: Mapping[str, str] = field(default_factory=dict)
    cache_dir: Path | None = None
    max_file_size: int = DEFAULT_LIMIT
    rules: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def enabled(self) -> frozenset[str]:
        """Codes of the rules that are selected."""
        codes = frozenset(self.rules)
        for selection in self.selections:
            codes = _applied(selection, codes, self.rules)
        return codes

    def enabled_for(self, path: str) -> frozenset[str]:
        """Codes of the rules that are selected in the file reported as `path`."""
        relative = _below(path, self.root)
        ignored: set[str] = set()
        for pattern, selectors in self.per_file_ignores:
            if _spec(pattern.removeprefix("!")).match_file(relative) != pattern.startswith("!"):
                ignored.update(*(matching(selector, self.rules) for selector in selectors))
        return self.enabled - ignored

    def override(
        self,
        *,
        select: Iterable[str] | None = None,
        extend_select: Iterable[str] = (),
        ignore: Iterable[str] = (),
        context: str | Iterable[str] | None = None,
        exclude: Iterable[str] = (),
        target_versions: Mapping[str, str] | None = None,
        **others: Any,
    ) -> Config:
        """This configuration with options of the command line on top. Raises ConfigError.

        `others` are fields of the Config; None leaves one as it is.
        """
        reader = _Reader(None, "", self.rules)
        given: dict[str, Any] = {"extend-select": list(extend_select), "ignore": list(ignore)}
        if select is not None:
            given["select"] = list(select)
        if context is not None:
            given["context"] = context if isinstance(context, str) else list(context)
        if target_versions:
            given["target-versions"] = dict(target_versions)
        options = reader.options(given)
        return replace(
            self,
            selections=(*self.selections, _selection(options)),
            contexts=options.get("context", self.contexts),
            exclude=(*self.exclude, *exclude),
            target_versions={**self.target_versions, **options.get("target-versions", {})},
            **{name: value for name, value in others.items() if value is not None},
        )


# --- rules -------------------------------------------------------------------------------------------------


def known_rules() -> dict[str, str]:
    """Code -> name of every rule, in the order of the codes."""
    from klguard.rules import RULES  # a hundred small files: read only when a configuration is

    return dict(sorted({**OWN_RULES, **{code: rule.name for code, rule in RULES.items()}}.items()))


def matching(selector: str, rules: Mapping[str, str]) -> frozenset[str]:
    """Codes that a code, a name, a prefix of codes (`KLG1`) or `ALL` stands for; none where it is unknown."""
    named = frozenset(code for code, name in rules.items() if name == selector.lower())
    if named:
        return named
    prefix = selector.upper()
    if prefix == "ALL":
        return frozenset(rules)
    if not re.fullmatch(r"KLG\d*", prefix):
        return frozenset()
    return frozenset(code for code in rules if code.startswith(prefix))


def nearest_rule(selector: str, rules: Mapping[str, str]) -> str | None:
    """The code or name that `selector` was most likely meant to be."""
    return _nearest(selector.replace("_", "-"), [*rules.values(), *rules])


def _nearest(word: str, valid: Collection[str]) -> str | None:
    """The closest of `valid`, whatever the case and with - for _."""
    folded = {name.lower().replace("_", "-"): name for name in valid}
    from difflib import get_close_matches

    found = get_close_matches(word.lower().replace("_", "-"), folded, n=1)
    return folded[found[0]] if found else None


def _specificity(selector: str, rules: Mapping[str, str]) -> int:
    """How narrow a selector is: the length of its prefix, where a name counts as its whole code."""
    if selector.upper() == "ALL":
        return 0
    return len("KLG000") if selector.lower() in rules.values() else len(selector)


def _applied(selection: Selection, codes: frozenset[str], rules: Mapping[str, str]) -> frozenset[str]:
    """`codes` after one source of options: a narrower selector beats a wider one, `ignore` beats `select`."""
    chosen = set(codes if selection.select is None else ())
    steps = [(_specificity(s, rules), 0, s) for s in (*(selection.select or ()), *selection.extend_select)]
    steps += [(_specificity(s, rules), 1, s) for s in selection.ignore]
    for _, removes, selector in sorted(steps):
        (chosen.difference_update if removes else chosen.update)(matching(selector, rules))
    return frozenset(chosen)


def _selection(options: Mapping[str, Any]) -> Selection:
    return Selection(options.get("select"), options.get("extend-select", ()), options.get("ignore", ()))


# --- finding and reading the file --------------------------------------------------------------------------


def load(start: Path, *, rules: Mapping[str, str] | None = None) -> Config:
    """The configuration in force at `start`, a file or directory. Raises ConfigError."""
    rules = known_rules() if rules is None else rules
    start = start.absolute()
    file = find(start)
    if file is None:
        return Config(root=start if start.is_dir() else start.parent, rules=rules)
    return load_file(file, rules=rules)


def load_file(file: Path, *, rules: Mapping[str, str] | None = None) -> Config:
    """The configuration in `file`: a pyproject.toml, or the same keys at the top. Raises ConfigError."""
    rules = known_rules() if rules is None else rules
    text = ""
    try:
        text = file.read_bytes().decode("utf-8-sig")
        document = _toml(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError([_unusable(file, error, text)]) from None
    prefix = ("tool", "klguard") if file.name == "pyproject.toml" else ()
    table: Any = document
    for key in prefix:
        table = table.get(key, {}) if isinstance(table, dict) else None
    reader = _Reader(file, text, rules, prefix)
    if not isinstance(table, dict):
        raise ConfigError([reader.problem((), "[tool.klguard] must be a table")])
    return _config(file.absolute(), reader.options(table), rules)


def _config(file: Path, options: Mapping[str, Any], rules: Mapping[str, str]) -> Config:
    plain = {name: options[key] for key, name in _FIELDS.items() if key in options}
    if "cache-dir" in options:
        plain["cache_dir"] = file.parent / options["cache-dir"]
    return Config(root=file.parent, file=file, selections=(_selection(options),), rules=rules, **plain)


def _toml(text: str) -> dict[str, Any]:
    """The tables of a TOML document; raises a ValueError where it is none."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:  # the same code under its earlier name
        import tomli as tomllib

    return tomllib.loads(text)


def find(start: Path) -> Path | None:
    """The configuration file nearest to `start`, in its directory or one above it."""
    directory = start.absolute()
    for candidate in (directory, *directory.parents):
        own, shared = candidate / "klguard.toml", candidate / "pyproject.toml"
        if os.path.isfile(own):
            return own
        if os.path.isfile(shared) and _has_table(shared):
            return shared
    return None


def _has_table(file: Path) -> bool:
    """Whether a pyproject.toml configures klguard. One that is broken elsewhere is not klguard's business."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    if "klguard" not in text:
        return False
    try:
        return "klguard" in _toml(text.removeprefix("\ufeff")).get("tool", {})
    except (ValueError, AttributeError, TypeError, RecursionError):
        return re.search(r"(?m)^\s*\[\s*tool\s*\.\s*klguard\s*[\].]", text) is not None


def _unusable(file: Path, error: Exception, text: str) -> Finding:
    if isinstance(error, OSError):
        return _finding(file, 1, 1, f"cannot be read: {error.strerror or error}", "")
    place = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
    line, column = (int(place[1]), int(place[2])) if place else (1, 1)
    if "(at end of document)" in str(error):
        line, column = text.count("\n") + 1, len(text) - text.rfind("\n")
    message = re.sub(r" \(at .*\)\Z", "", str(error)) or type(error).__name__
    return _finding(file, line, column, f"is not valid TOML: {message}", "")


def _finding(file: Path | None, line: int, column: int, message: str, key: str, width: int = 1) -> Finding:
    path = "<command line>" if file is None else reported(file)
    return Finding(
        code="KLG005",
        name=OWN_RULES["KLG005"],
        severity=Severity.ERROR,
        confidence=Confidence.HIGH,
        message=message,
        place=Place(path, None, line, column, line, column + width),
        setting=key,
    )


# --- validation --------------------------------------------------------------------------------------------


class _Invalid(ValueError):
    """A value that an option does not take. `part` is the offending element, where only one is."""

    def __init__(self, message: str, part: object = None) -> None:
        super().__init__(message)
        self.part = part


class _Reader:
    """Checks one table of options, collecting what is wrong with it."""

    def __init__(
        self, file: Path | None, text: str, rules: Mapping[str, str], prefix: tuple[str, ...] = ()
    ) -> None:
        self.file = file
        self.text = text
        self.rules = rules
        self.prefix = prefix

    def options(self, table: Mapping[str, Any]) -> dict[str, Any]:
        """Key -> value in the form the Config holds. Raises ConfigError with all that is wrong."""
        options: dict[str, Any] = {}
        problems: list[Finding] = []
        for key, value in table.items():
            read = _READERS.get(key)
            if read is None:
                nearest = _suggestion(_nearest(key, _READERS))
                problems.append(self.problem((key,), f"unknown option `{key}`{nearest}"))
                continue
            try:
                options[key] = read(value, self.rules)
            except _Invalid as error:
                problems.append(self.problem((key,), f"`{key}`: {error}", error.part))
        if problems:
            raise ConfigError(problems)
        return options

    def problem(self, keys: tuple[str, ...], message: str, part: object = None) -> Finding:
        path = (*self.prefix, *keys)
        line, column, width = _locate(self.text, path, part)
        return _finding(self.file, line, column, message, ".".join(path), width)


def _suggestion(nearest: str | None) -> str:
    return f"; did you mean `{nearest}`?" if nearest else ""


def _one_of(word: str, valid: Collection[str]) -> str:
    return _suggestion(_nearest(word, valid)) or f"; expected one of {', '.join(valid)}"


_NUMBER = "a number"
_TYPES = {bool: "a boolean", int: _NUMBER, float: _NUMBER, str: "a string", list: "a list", dict: "a table"}


def _type_name(value: object) -> str:
    return _TYPES.get(type(value), "a date or time")


def _string(value: object, rules: Mapping[str, str]) -> str:
    if not isinstance(value, str):
        raise _Invalid(f"expected a string, found {_type_name(value)}")
    return value


def _boolean(value: object, rules: Mapping[str, str]) -> bool:
    if not isinstance(value, bool):
        raise _Invalid(f"expected true or false, found {_type_name(value)}")
    return value


def _size(value: object, rules: Mapping[str, str]) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise _Invalid("expected a number of bytes above 0")
    return value


def _strings(value: object, rules: Mapping[str, str]) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _Invalid(f"expected a list of strings, found {_type_name(value)}")
    for element in value:
        if not isinstance(element, str):
            raise _Invalid(f"expected a list of strings, found {_type_name(element)} in it", element)
    return tuple(value)


def _selectors(value: object, rules: Mapping[str, str]) -> tuple[str, ...]:
    for selector in _strings(value, rules):
        if not matching(selector, rules):
            raise _Invalid(f"unknown rule `{selector}`{_suggestion(nearest_rule(selector, rules))}", selector)
    return _strings(value, rules)


def _table(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Invalid(f"expected a table, found {_type_name(value)}")
    return value


def _patterns(value: object, rules: Mapping[str, str]) -> tuple[str, ...]:
    for pattern in _strings(value, rules):
        _check_pattern(pattern)
    return _strings(value, rules)


def _check_pattern(pattern: str) -> None:
    try:
        _spec(pattern)
    except (ValueError, re.error):
        raise _Invalid(f"`{pattern}` is not a pattern as in a .gitignore", pattern) from None


def _per_file_ignores(value: object, rules: Mapping[str, str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    for pattern in _table(value):
        _check_pattern(pattern.removeprefix("!"))
    return tuple((pattern, _selectors(selectors, rules)) for pattern, selectors in _table(value).items())


def _contexts(value: object, rules: Mapping[str, str]) -> frozenset[Context]:
    names = (value,) if isinstance(value, str) else _strings(value, rules)
    for name in names:
        if name not in CONTEXTS:
            raise _Invalid(f"unknown context `{name}`{_one_of(name, CONTEXTS)}", name)
    if not names:
        raise _Invalid(f"names no context{_one_of('', CONTEXTS)}")
    return frozenset().union(*(CONTEXTS[name] for name in names))


def _target_versions(value: object, rules: Mapping[str, str]) -> dict[str, str]:
    from packaging.version import InvalidVersion, Version

    for library, version in _table(value).items():
        if library not in LIBRARIES:
            raise _Invalid(f"unknown library `{library}`{_one_of(library, LIBRARIES)}", library)
        try:
            Version(version)
        except (InvalidVersion, TypeError):
            message = f'{library} needs a version such as "4.57.1", found {version!r}'
            raise _Invalid(message, version) from None
    return _table(value)


_DOTTED_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def _names(value: object, rules: Mapping[str, str]) -> tuple[str, ...]:
    for name in _strings(value, rules):
        if not _DOTTED_NAME.fullmatch(name):
            raise _Invalid(f"`{name}` is not the name of a function or class, bare or dotted", name)
    return _strings(value, rules)


def _classes(value: object, rules: Mapping[str, str]) -> dict[str, str]:
    """A list of names, or a table of names and the known class that each behaves like."""
    if isinstance(value, list):
        return dict.fromkeys(_names(value, rules), "")
    for name, known in _table(value).items():
        _names([name], rules)
        _names([_string(known, rules)], rules)
    return _table(value)


_READERS: Mapping[str, Callable[[object, Mapping[str, str]], Any]] = {
    "select": _selectors,
    "ignore": _selectors,
    "extend-select": _selectors,
    "per-file-ignores": _per_file_ignores,
    "exclude": _patterns,
    "force-exclude": _boolean,
    "respect-gitignore": _boolean,
    "context": _contexts,
    "target-versions": _target_versions,
    "generate-functions": _names,
    "trainer-classes": _classes,
    "cache-dir": _string,
    "max-file-size": _size,
}
"""Every option there is -> what checks its value and brings it into the form the Config holds."""

_FIELDS = {
    "per-file-ignores": "per_file_ignores",
    "exclude": "exclude",
    "force-exclude": "force_exclude",
    "respect-gitignore": "respect_gitignore",
    "context": "contexts",
    "target-versions": "target_versions",
    "generate-functions": "generate_functions",
    "trainer-classes": "trainer_classes",
    "max-file-size": "max_file_size",
}
"""Option -> field of the Config, for those that are taken as they are."""


@lru_cache(maxsize=256)
def _spec(pattern: str) -> GitIgnoreSpec:
    from pathspec import GitIgnoreSpec

    return GitIgnoreSpec.from_lines([pattern])


def _below(path: str, root: Path) -> str:
    """A reported path as seen from `root`; as it is when it lies elsewhere."""
    try:
        return Path(path).absolute().relative_to(root).as_posix()
    except ValueError:
        return path


# --- places in TOML ----------------------------------------------------------------------------------------

_HEADER = re.compile(r"\s*\[\[?\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?\Z")
_KEY_PART = re.compile(r"""[\w-]+|"[^"]*"|'[^']*'""")
_KEY = re.compile(rf"\s*((?:{_KEY_PART.pattern})(?:\s*\.\s*(?:{_KEY_PART.pattern}))*)\s*=")


def _locate(text: str, path: tuple[str, ...], part: object) -> tuple[int, int, int]:
    """Line, column and width of the key at `path`, or of `part` in its value; (1, 1, 1) when not there.

    The parser gives no places, so this follows headers and keys line by line.
    """
    lines = text.split("\n")
    for number, found, start, end in _keys(lines):
        if found[: len(path)] == path:
            value = None if part is None else _find_value(lines, number, part)
            return value or (number + 1, start + 1, max(1, end - start))
    return 1, 1, 1


def _keys(lines: list[str]) -> Iterable[tuple[int, tuple[str, ...], int, int]]:
    """(line index, full path, start, end) of every header and assignment."""
    table: tuple[str, ...] = ()
    for number, line in enumerate(lines):
        if header := _HEADER.match(line):
            table = _parts(header[1])
            yield number, table, header.start(1), header.end(1)
        elif key := _KEY.match(line):
            yield number, (*table, *_parts(key[1])), key.start(1), key.end(1)


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in _KEY_PART.findall(dotted))


def _find_value(lines: list[str], first: int, part: object) -> tuple[int, int, int] | None:
    """The first place at or after line `first` where the element is written, as a string, key or number."""
    quoted = re.escape(str(part).lower() if isinstance(part, bool) else str(part))
    pattern = re.compile(rf"[\"']{quoted}[\"']|(?<![\w\"'.-]){quoted}(?![\w\"'.-])")
    for number in range(first, len(lines)):
        if match := pattern.search(lines[number]):
            return number + 1, match.start() + 1, match.end() - match.start()
    return None
