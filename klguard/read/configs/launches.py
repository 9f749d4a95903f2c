"""What Python code and notebooks start a framework with: command lines that they put together, lines that a notebook
gives to a shell, and configurations in a dict.

Nothing is run. A part of a command that is not known stands in it as a variable of the shell that nobody has set.
"""

from __future__ import annotations

import ast
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator

from klguard.read.configs.assembled import Assembly, Text
from klguard.read.configs.shell import commands, in_text
from klguard.read.configs.written import Written, literal
from klguard.read.files import SourceText
from klguard.read.python.dialects import parse_script
from klguard.read.python.source import Module
from klguard.settings import Hop, HopKind, Known, Place

_STARTS = re.compile(
    r"main_ppo|train_ppo|grpo_fast|grpo_vllm|rlhf[_-]type|rollout[_-]batch[_-]size|actor_rollout_ref|trl grpo"
)
"""What stands in a command, or in a dict, that is for a framework."""

_UNSEEN = "${_}"
_SHELL_CELL = re.compile(r"%%(?:bash|sh|shell|script[ \t]+(?:ba)?sh)\b")
_FIELD = re.compile(r"(?<!\$)\{[^{}\n]+\}")
"""What IPython fills into the line of a shell."""

_VALUES = (ast.List, ast.Tuple, ast.BinOp, ast.JoinedStr, ast.Constant, ast.Call, ast.Name)


def launches(source: SourceText) -> Iterator[Written]:
    """The commands and configurations that a script or a notebook writes."""
    yield from _cells(source)
    try:
        source, tree = parse_script(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    module = Module(source, "", tree)
    for command in _commands(module):
        yield from commands(_line(command), module.path, _Places(module, command))
    yield from _dicts(module)


# --- notebooks ------------------------------------------------------------------------------------


def _cells(source: SourceText) -> Iterator[Written]:
    """Commands of a notebook for a shell: after `!`, and in cells that begin with `%%bash`."""
    for span in source.cells or ():
        lines = source.lines[span.first_line - 1 : span.first_line - 1 + span.lines]
        first = next((number for number, line in enumerate(lines) if line.strip()), 0)
        is_script = bool(lines) and _SHELL_CELL.match(lines[first]) is not None
        kept = ["", *lines[first + 1 :]] if is_script else _after_escapes(lines)
        text = "\n" * first * is_script + "\n".join(kept)
        text = _FIELD.sub(lambda found: "${" + "_" * (len(found[0]) - 3) + "}", text)
        if _STARTS.search(text):
            yield from commands(text, source.path, in_text(text, source.path, span.index))


def _after_escapes(lines: Iterable[str]) -> Iterator[str]:
    """The lines that begin with `!`, without it, and those that they go on in; the others are left empty."""
    goes_on = False
    for line in lines:
        escaped = line.lstrip().startswith("!")
        yield line if goes_on else line.replace("!", " ", 1) if escaped else ""
        goes_on = (goes_on or escaped) and line.endswith("\\")


# --- what Python puts together --------------------------------------------------------------------


def _commands(module: Module) -> list[Text]:
    """The commands for a framework; of those that begin alike, the ones with all there is."""
    assembly = Assembly(module)
    found: list[tuple[frozenset[ast.expr], Text]] = []
    for node in _candidates(module):
        command = assembly.command(node)
        if command and any(piece.text and _STARTS.search(piece.text) for piece in command):
            found.append((frozenset(piece.node for piece in command), command))
    found.sort(key=lambda one: len(one[0]), reverse=True)
    kept: list[tuple[frozenset[ast.expr], Text]] = []
    for nodes, command in found:
        if not any(nodes <= more for more, _ in kept):
            kept.append((nodes, command))
    return [command for _, command in kept]


def _candidates(module: Module) -> Iterator[ast.expr]:
    """What is assigned, returned or handed on. Texts that are joined come before the list that they are joined of."""
    for node in module.of(ast.Call):
        yield from (
            value for value in (*node.args, *(k.value for k in node.keywords)) if isinstance(value, _VALUES)
        )
    for node in module.of(ast.Assign, ast.AnnAssign, ast.Return):
        if isinstance(node.value, _VALUES):
            yield node.value


def _line(command: Text) -> str:
    return "".join(_UNSEEN if piece.text is None else piece.text for piece in command)


class _Places:
    """Where the words of a command are written."""

    def __init__(self, module: Module, command: Text) -> None:
        self._module = module
        self._command = command
        self._starts: list[int] = []
        end = 0
        for piece in command:
            self._starts.append(end)
            end += len(_UNSEEN if piece.text is None else piece.text)

    def __call__(self, start: int, word: str) -> Place:
        node = self._command[bisect_right(self._starts, start) - 1].node
        first, column, last, end = self._module.ast_span(node)
        sought = word.partition(_UNSEEN)[0]
        for line in range(first, last + 1):  # a text of several lines, or of several parts
            found = self._module.line(line).find(sought) if sought else -1
            if found >= 0:
                return self._module.place(line, found, line, found + len(sought))
        return self._module.place(first, column, last, end)


# --- configurations in a dict ---------------------------------------------------------------------


def _dicts(module: Module) -> Iterator[Written]:
    """Dicts with the names of a framework, written as such: nested, or with dotted names."""
    assembly = Assembly(module)
    inner: set[ast.AST] = set()
    for node in module.of(ast.Dict):
        if node in inner or not any(_STARTS.match(key) for key in _keys(node)):
            continue
        inner.update(value for value in ast.walk(node) if isinstance(value, ast.Dict))
        held = _Held(module, assembly)
        held.add(node, "", ())
        for name in _stored(module):
            held.forget(name)
        yield Written(module.ast_place(node), (), held.values, frozenset(held.unknown), held.is_open)


def _keys(node: ast.Dict) -> Iterator[str]:
    for key in node.keys:
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            yield key.value


class _Held:
    """What a dict holds, by dotted name; `unknown` and `is_open` as those of `Written`."""

    def __init__(self, module: Module, assembly: Assembly) -> None:
        self._module = module
        self._assembly = assembly
        self.values: dict[str, Known] = {}
        self.unknown: set[str] = set()
        self.is_open = False

    def add(self, node: ast.Dict, prefix: str, around: tuple[ast.Dict, ...]) -> None:
        for key, value in zip(node.keys, node.values, strict=True):
            if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
                self.is_open = True
                continue
            name = prefix + key.value
            given = self._assembly.once(value) or value
            if isinstance(given, ast.Dict) and given not in around:
                self.add(given, f"{name}.", (*around, node))
            else:
                self._put(name, value, given)

    def _put(self, name: str, value: ast.expr, given: ast.expr) -> None:
        hop = Hop(HopKind.DOCUMENT, self._module.ast_place(value), name)
        text = self._assembly.shown(given) or ()
        if isinstance(given, ast.Constant) and not isinstance(given.value, str):
            self.values[name] = Known(given.value, (hop,))
        elif text and all(piece.text is not None for piece in text):
            self.values[name] = Known(literal(_line(text)), (hop,))
        else:
            self.unknown.add(name)

    def forget(self, stored: str) -> None:
        """What may be given another value later is not known."""
        for name in [known for known in self.values if known == stored or known.endswith(f".{stored}")]:
            del self.values[name]
            self.unknown.add(name)


def _stored(module: Module) -> Iterator[str]:
    """The dotted names that `config["a"]["b"] = ...` changes somewhere in the module."""
    for node in module.of(ast.Subscript):
        names: list[str] = []
        current: ast.expr = node
        while isinstance(current, ast.Subscript) and isinstance(current.slice, ast.Constant):
            names.insert(0, str(current.slice.value))
            current = current.value
        if not isinstance(node.ctx, ast.Load) and not isinstance(current, ast.Subscript):
            yield ".".join(names)
