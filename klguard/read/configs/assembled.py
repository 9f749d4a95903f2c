"""Texts and lists of words as Python code puts them together.

What a name holds is known where its function, or the module, assigns it once; what is appended to it in the same block
belongs to it, and what one path alone appends leaves its options unknown.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from klguard.read.python.scopes import ScopeTable, parameters
from klguard.read.python.source import Module, called_name, dotted

MAX_DEPTH = 100
MAX_PIECES = 20_000

_ODD = re.compile(r"[\s;&|()\"'`\\<>]")
"""Characters of a word that a shell would not take for a part of it."""

_ENVIRONMENT = frozenset({"os.environ.get", "os.getenv", "environ.get", "getenv"})
_GROWS = frozenset({"append", "extend"})
_SAME_TEXT = frozenset({"strip", "lstrip", "rstrip"})
_OF_ITS_ARGUMENT = frozenset({"dedent", "quote", "str", "int", "float"})
_PARSES = frozenset({"parse_args", "parse_known_args"})
_PARSED = frozenset({"args", "opt", "opts", "options", "flags"})
"""What parsed options are called where a function is handed them."""


class Piece(NamedTuple):
    """Text, and the expression that writes it; None for what is not known."""

    text: str | None
    node: ast.expr


Text = tuple[Piece, ...]


class Word(NamedTuple):
    """One argument; `maybe`: on one path alone. One that begins with something unknown may be any number of them."""

    text: Text
    maybe: bool = False


class Assembly:
    """The texts and lists of one module."""

    def __init__(self, module: Module) -> None:
        self._module = module
        self._scopes = ScopeTable(module)
        self._options = _defaults(module)
        self._parsed = _PARSED | _parsed(module)
        self._texts: dict[ast.expr, Text | None] = {}
        self._lists: dict[ast.expr, list[Word] | None] = {}
        self._depth = 0

    def command(self, node: ast.expr) -> Text | None:
        """What an expression would be on the command line of a shell; None for one that is no text and no list."""
        text = self.text(node)
        if text is not None:
            return text
        words = self.words(node)
        return None if words is None else _joined([_plain(word) for word in words], " ")

    # -- texts ----------------------------------------------------------------------------------------------

    def text(self, node: ast.expr) -> Text | None:
        """What a text is made of; None for an expression of which that cannot be said."""
        if node not in self._texts and self._depth < MAX_DEPTH:
            self._texts[node] = None  # for one that is made of itself
            self._depth += 1
            found = self._text(node)
            self._depth -= 1
            self._texts[node] = None if found is None or len(found) > MAX_PIECES else found
        return self._texts.get(node)

    def _text(self, node: ast.expr) -> Text | None:
        match node:
            case ast.Constant(value=str(text)):
                return (Piece(text, node),)
            case ast.JoinedStr(values=values):
                return tuple(piece for value in values for piece in self._part(value, node))
            case ast.Name():
                return self._grown_text(node)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return _sum(self.text(left), self.text(right), left, right)
            case ast.Call(
                func=ast.Attribute(value=ast.Constant(value=str(between)), attr="join"), args=[whole]
            ):
                words = self.words(whole)
                return None if words is None else _joined([_sure(word) for word in words], between)
            case ast.Call(func=ast.Attribute(value=inner, attr=name)) if name in _SAME_TEXT:
                return self.text(inner)
            case ast.Call(func=ast.Attribute(value=inner, attr="split"), args=[]):
                return self.text(inner)
            case ast.Call(args=[inner]) if dotted(node.func) == "shlex.split":
                return self.text(inner)
            case ast.Call(args=[inner, *_]) if called_name(node) in _OF_ITS_ARGUMENT:
                return self.shown(inner)
            case ast.Call(args=[_, default]) if dotted(node.func) in _ENVIRONMENT:
                return self.shown(default)
        return None

    def _part(self, part: ast.expr, whole: ast.expr) -> Text:
        """A part of an f-string."""
        if isinstance(part, ast.Constant):
            return (Piece(str(part.value), whole),)
        inner = part.value if isinstance(part, ast.FormattedValue) and part.format_spec is None else None
        return (inner and self.shown(inner)) or (Piece(None, whole),)

    def shown(self, node: ast.expr) -> Text | None:
        """What a value looks like in a text."""
        match node:
            case ast.Constant(value=str() | int() | float() as value):
                return (Piece(str(value), node),)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
                return (Piece(f"-{value}", node),)
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if owner in self._parsed:
                default = self._options.get(name)
                return None if default is None else self.shown(default)
            case ast.Name() if not self._growths(node):
                value = self.once(node)
                return None if value is None or isinstance(value, ast.Name) else self.shown(value)
        return self.text(node)

    def _grown_text(self, node: ast.Name) -> Text | None:
        value = self.once(node)
        found = None if value is None else self.text(value)
        if found is None:
            return None
        for statement, more, _ in self._growths(node):
            added = self.text(more) if self._beside(statement, node) else None
            found += added or (Piece(None, more),)
        return found

    # -- lists ----------------------------------------------------------------------------------------------

    def words(self, node: ast.expr) -> list[Word] | None:
        """The words of a list; None for an expression of which that cannot be said."""
        if node not in self._lists and self._depth < MAX_DEPTH:
            self._lists[node] = None  # likewise
            self._depth += 1
            found = self._words(node)
            self._depth -= 1
            self._lists[node] = None if found is None or len(found) > MAX_PIECES else found
        return self._lists.get(node)

    def _words(self, node: ast.expr) -> list[Word] | None:
        match node:
            case ast.List(elts=items) | ast.Tuple(elts=items):
                return [word for item in items for word in self._item(item)]
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                one, other = self.words(left), self.words(right)
                if one is None and other is None:
                    return None
                return [*(one or [_unseen(left)]), *(other or [_unseen(right)])]
            case ast.Name():
                return self._grown_words(node)
            case ast.Call(func=ast.Name(id="list"), args=[inner]):
                return self.words(inner)
            case ast.Call(func=ast.Name(id=name)):
                returned = self._returned(name)
                return None if returned is None else self.words(returned)
        return None

    def _item(self, item: ast.expr) -> list[Word]:
        if isinstance(item, ast.Starred):
            return self.words(item.value) or [_unseen(item.value)]
        return [Word(self.shown(item) or (Piece(None, item),))]

    def _grown_words(self, node: ast.Name) -> list[Word] | None:
        value = self.once(node)
        found = None if value is None else self.words(value)
        if found is None:
            return None
        for statement, more, is_word in self._growths(node):
            added = self._item(more) if is_word else self.words(more) or [_unseen(more)]
            maybe = not self._beside(statement, node)
            found += [Word(word.text, maybe or word.maybe) for word in added]
        return found

    def _returned(self, name: str) -> ast.expr | None:
        """What a function of the module returns, in its only `return`."""
        function = self._module.functions.get(name)
        found = [one for one in self._module.of(ast.Return) if self._module.enclosing(one) is function]
        return found[0].value if function is not None and len(found) == 1 else None

    # -- names ----------------------------------------------------------------------------------------------

    def once(self, node: ast.expr) -> ast.expr | None:
        """The value that a name is first given, where nothing but what is appended to it comes after."""
        statement = self._definition(node)
        return None if statement is None else statement.value

    def _definition(self, node: ast.expr) -> ast.Assign | ast.AnnAssign | None:
        if not isinstance(node, ast.Name) or self._scopes.comprehension_of(node) is not None:
            return None
        owner = self._owner(node)
        if node.id in parameters(owner):
            return None
        stores = self._scopes.stores(owner, node.id)
        made = [self._scopes.statement(store) for store in stores]
        plain = [one for one in made if not isinstance(one, ast.AugAssign) and not _adds(one, node.id)]
        if len(plain) != 1 or not isinstance(plain[0], ast.Assign | ast.AnnAssign):
            return None
        target = plain[0].targets[0] if isinstance(plain[0], ast.Assign) else plain[0].target
        return plain[0] if isinstance(target, ast.Name) and target.id == node.id else None

    def _owner(self, node: ast.Name) -> ast.AST:
        return self._scopes.owner_of_name(self._scopes.scope(node), node.id)

    def _growths(self, node: ast.Name) -> list[tuple[ast.stmt, ast.expr, bool]]:
        """(statement, what it appends to the name, whether that is one word)."""
        return list(self._found_growths(node, self._owner(node)))

    def _found_growths(self, node: ast.Name, owner: ast.AST) -> Iterator[tuple[ast.stmt, ast.expr, bool]]:
        for store in self._scopes.stores(owner, node.id):
            statement = self._scopes.statement(store)
            if isinstance(statement, ast.AugAssign):
                yield statement, statement.value, False
            elif isinstance(statement, ast.Assign) and _adds(statement, node.id):
                assert isinstance(statement.value, ast.BinOp)
                yield statement, statement.value.right, False
        for call in self._module.of(ast.Call):
            method = call.func
            if (
                isinstance(method, ast.Attribute)
                and method.attr in _GROWS
                and isinstance(method.value, ast.Name)
                and method.value.id == node.id
                and len(call.args) == 1
                and self._owner(method.value) is owner
            ):
                yield self._scopes.statement(call), call.args[0], method.attr == "append"

    def _beside(self, statement: ast.stmt, node: ast.Name) -> bool:
        """Whether a statement stands in the block in which the name is given its value."""
        parents = self._module.parents
        definition = self._definition(node)
        return definition is not None and parents.get(statement) is parents.get(definition)


def _adds(statement: ast.stmt, name: str) -> bool:
    """Whether it is `name = name + ...`."""
    value = statement.value if isinstance(statement, ast.Assign) else None
    return (
        isinstance(value, ast.BinOp)
        and isinstance(value.op, ast.Add)
        and isinstance(value.left, ast.Name)
        and value.left.id == name
    )


def _defaults(module: Module) -> dict[str, ast.expr | None]:
    """Name of a command-line option -> its default; None where two options of that name differ."""
    found: dict[str, ast.expr | None] = {}
    for call in module.calls.get("add_argument", ()):
        flag = next(
            (a.value for a in call.args if isinstance(a, ast.Constant) and str(a.value)[:2] == "--"), None
        )
        default = next((k.value for k in call.keywords if k.arg == "default"), None)
        if isinstance(flag, str):
            name = flag[2:].replace("-", "_")
            found[name] = default if name not in found else None
    return found


def _parsed(module: Module) -> set[str]:
    """The names that hold the options of the command line."""
    return {
        target.id
        for node in module.of(ast.Assign)
        if isinstance(node.value, ast.Call) and called_name(node.value) in _PARSES
        for part in node.targets
        for target in (part.elts[:1] if isinstance(part, ast.Tuple) else [part])
        if isinstance(target, ast.Name)
    }


def _unseen(node: ast.expr) -> Word:
    return Word((Piece(None, node),))


def _sum(one: Text | None, other: Text | None, left: ast.expr, right: ast.expr) -> Text | None:
    if one is None and other is None:
        return None
    return (*(one or (Piece(None, left),)), *(other or (Piece(None, right),)))


def _plain(word: Word) -> Text:
    """An argument as a shell would have to be given it."""
    pieces = tuple(
        piece if piece.text is None else Piece(_ODD.sub("_", piece.text), piece.node) for piece in word.text
    )
    return _sure(Word(pieces, word.maybe))


def _sure(word: Word) -> Text:
    """A word; of one that is there on one path alone the name, with a value that is not known."""
    first = word.text[0] if word.text else None
    if not word.maybe or first is None or first.text is None:
        return word.text
    name, equals, _ = first.text.partition("=")
    if not equals and not name.startswith("-"):
        return (Piece(None, first.node),)
    return (Piece(name + (equals or " "), first.node), Piece(None, first.node))


def _joined(words: Sequence[Text], between: str) -> Text:
    found: list[Piece] = []
    for word in words:
        found += [Piece(between, word[0].node), *word] if found and word else word
    return tuple(found)
