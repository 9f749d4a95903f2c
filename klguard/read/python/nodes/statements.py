"""Statements, and the patterns of `match`."""

from __future__ import annotations

import ast
from typing import Any

from klguard.read.python.nodes.base import (
    KINDS,
    Expression,
    Node,
    expression,
    expressions,
    node,
    optional,
    stands_for,
)
from klguard.read.python.nodes.expressions import Name, Parameters
from klguard.read.python.nodes.operations import operator_name


class Statement(Node):
    __slots__ = ()


class SimpleStatement(Statement):
    """A statement that holds no others."""

    __slots__ = ()


class Other(SimpleStatement):
    """A statement that changes nothing: `pass`, a type alias."""

    __slots__ = ()


def statement(origin: ast.stmt, module: Any) -> Any:
    return node(KINDS.get(origin.__class__, Other), origin, module)


class Block(Node):
    """Statements one below another; the origin is their list."""

    __slots__ = ("body",)
    body: tuple[Statement, ...]

    def _fill(self, origin: list[ast.stmt], module: Any) -> None:
        self.body = tuple([statement(each, module) for each in origin])


def _block(origins: list[ast.stmt], module: Any) -> Any:
    return node(Block, origins, module) if origins else None


# -- simple statements ------------------------------------------------------------------------------------------


@stands_for(ast.Expr)
class Expr(SimpleStatement):
    __slots__ = ("value",)
    value: Expression

    def _fill(self, origin: ast.Expr, module: Any) -> None:
        self.value = expression(origin.value, module)


@stands_for(ast.Assign)
class Assign(SimpleStatement):
    __slots__ = ("targets", "value")
    targets: tuple[Expression, ...]
    value: Expression

    def _fill(self, origin: ast.Assign, module: Any) -> None:
        self.targets, self.value = expressions(origin.targets, module), expression(origin.value, module)


@stands_for(ast.AnnAssign)
class AnnAssign(SimpleStatement):
    __slots__ = ("annotation", "target", "value")
    target: Expression
    annotation: Expression
    value: Expression | None

    def _fill(self, origin: ast.AnnAssign, module: Any) -> None:
        self.target, self.value = expression(origin.target, module), optional(origin.value, module)
        self.annotation = expression(origin.annotation, module)


@stands_for(ast.AugAssign)
class AugAssign(SimpleStatement):
    __slots__ = ("operator", "target", "value")
    target: Expression
    operator: str
    value: Expression

    def _fill(self, origin: ast.AugAssign, module: Any) -> None:
        self.target, self.value = expression(origin.target, module), expression(origin.value, module)
        self.operator = operator_name(origin.op)


@stands_for(ast.Return)
class Return(SimpleStatement):
    __slots__ = ("value",)
    value: Expression | None

    def _fill(self, origin: ast.Return, module: Any) -> None:
        self.value = optional(origin.value, module)


@stands_for(ast.Raise)
class Raise(SimpleStatement):
    __slots__ = ("exc",)
    exc: Expression | None

    def _fill(self, origin: ast.Raise, module: Any) -> None:
        self.exc = optional(origin.exc, module)


@stands_for(ast.Assert)
class Assert(SimpleStatement):
    __slots__ = ("test",)
    test: Expression

    def _fill(self, origin: ast.Assert, module: Any) -> None:
        self.test = expression(origin.test, module)


@stands_for(ast.Delete)
class Del(SimpleStatement):
    """`del (a, b)` is `del a, b`."""

    __slots__ = ("targets",)
    targets: tuple[Expression, ...]

    def _fill(self, origin: ast.Delete, module: Any) -> None:
        flat: list[ast.expr] = []
        for target in origin.targets:
            flat += target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]
        self.targets = expressions(flat, module)


class _OfNames(SimpleStatement):
    __slots__ = ("names",)
    names: list[Any]

    def _fill(self, origin: Any, module: Any) -> None:
        self.names = origin.names


@stands_for(ast.Global)
class Global(_OfNames):
    """`names` are strings."""

    __slots__ = ()


@stands_for(ast.Nonlocal)
class Nonlocal(_OfNames):
    """`names` are strings."""

    __slots__ = ()


@stands_for(ast.Import)
class Import(_OfNames):
    """`names` are ast.alias, each with `name` and `asname`."""

    __slots__ = ()


@stands_for(ast.ImportFrom)
class ImportFrom(_OfNames):
    """As Import; `source` is the dotted module, with a dot in front for each level."""

    __slots__ = ("source",)
    source: str

    def _fill(self, origin: ast.ImportFrom, module: Any) -> None:
        self.source, self.names = "." * origin.level + (origin.module or ""), origin.names


@stands_for(ast.Break)
class Break(SimpleStatement):
    __slots__ = ()


@stands_for(ast.Continue)
class Continue(SimpleStatement):
    __slots__ = ()


# -- compound statements ----------------------------------------------------------------------------------------


@stands_for(ast.FunctionDef, ast.AsyncFunctionDef)
class FunctionDef(Statement):
    __slots__ = ("asynchronous", "body", "decorators", "name", "params")
    name: str
    params: Parameters
    body: Block
    decorators: tuple[Expression, ...]
    asynchronous: bool

    def _fill(self, origin: ast.FunctionDef, module: Any) -> None:
        self.name, self.params = origin.name, node(Parameters, origin.args, module)
        self.body, self.decorators = _block(origin.body, module), expressions(origin.decorator_list, module)
        self.asynchronous = isinstance(origin, ast.AsyncFunctionDef)


@stands_for(ast.ClassDef)
class ClassDef(Statement):
    __slots__ = ("bases", "body", "decorators", "name")
    name: str
    bases: tuple[Expression, ...]
    body: Block
    decorators: tuple[Expression, ...]

    def _fill(self, origin: ast.ClassDef, module: Any) -> None:
        self.name, self.body = origin.name, _block(origin.body, module)
        self.bases = expressions(origin.bases, module)
        self.decorators = expressions(origin.decorator_list, module)


class _OfTest(Statement):
    __slots__ = ("body", "orelse", "test")
    test: Expression
    body: Block
    orelse: Block | None

    def _fill(self, origin: Any, module: Any) -> None:
        self.test = expression(origin.test, module)
        self.body, self.orelse = _block(origin.body, module), _block(origin.orelse, module)


@stands_for(ast.If)
class If(_OfTest):
    """An `elif` is an If in `orelse`."""

    __slots__ = ()


@stands_for(ast.While)
class While(_OfTest):
    __slots__ = ()


@stands_for(ast.For, ast.AsyncFor)
class For(Statement):
    __slots__ = ("asynchronous", "body", "iter", "orelse", "target")
    target: Expression
    iter: Expression
    body: Block
    orelse: Block | None
    asynchronous: bool

    def _fill(self, origin: ast.For, module: Any) -> None:
        self.target, self.iter = expression(origin.target, module), expression(origin.iter, module)
        self.body, self.orelse = _block(origin.body, module), _block(origin.orelse, module)
        self.asynchronous = isinstance(origin, ast.AsyncFor)


@stands_for(ast.Try)
class Try(Statement):
    __slots__ = ("body", "finalbody", "handlers", "orelse")
    body: Block
    handlers: tuple[ExceptHandler, ...]
    orelse: Block | None
    finalbody: Block | None

    def _fill(self, origin: ast.Try, module: Any) -> None:
        self.body, self.orelse = _block(origin.body, module), _block(origin.orelse, module)
        self.handlers = tuple([node(ExceptHandler, each, module) for each in origin.handlers])
        self.finalbody = _block(origin.finalbody, module)


class TryStar(Try):
    """`except*`, from Python 3.11."""

    __slots__ = ()


if hasattr(ast, "TryStar"):
    KINDS[ast.TryStar] = TryStar


class ExceptHandler(Node):
    __slots__ = ("body", "name", "type")
    type: Expression | None
    name: str | None
    body: Block

    def _fill(self, origin: ast.ExceptHandler, module: Any) -> None:
        self.type, self.name = optional(origin.type, module), origin.name
        self.body = _block(origin.body, module)


@stands_for(ast.With, ast.AsyncWith)
class With(Statement):
    __slots__ = ("asynchronous", "body", "items")
    items: tuple[WithItem, ...]
    body: Block
    asynchronous: bool

    def _fill(self, origin: ast.With, module: Any) -> None:
        self.items = tuple([node(WithItem, each, module) for each in origin.items])
        self.body, self.asynchronous = _block(origin.body, module), isinstance(origin, ast.AsyncWith)


class WithItem(Node):
    """`item as target`."""

    __slots__ = ("item", "target")
    item: Expression
    target: Expression | None

    def _fill(self, origin: ast.withitem, module: Any) -> None:
        self.item = expression(origin.context_expr, module)
        self.target = optional(origin.optional_vars, module)


@stands_for(ast.Match)
class Match(Statement):
    __slots__ = ("cases", "subject")
    subject: Expression
    cases: tuple[MatchCase, ...]

    def _fill(self, origin: ast.Match, module: Any) -> None:
        self.subject = expression(origin.subject, module)
        self.cases = tuple([node(MatchCase, each, module) for each in origin.cases])


class MatchCase(Node):
    __slots__ = ("body", "guard", "pattern")
    pattern: Pattern
    guard: Expression | None
    body: Block

    def _fill(self, origin: ast.match_case, module: Any) -> None:
        self.pattern, self.guard = _pattern(origin.pattern, module), optional(origin.guard, module)
        self.body = _block(origin.body, module)


# -- patterns ---------------------------------------------------------------------------------------------------


class Pattern(Node):
    __slots__ = ()


def _pattern(origin: ast.pattern, module: Any) -> Any:
    return node(KINDS[origin.__class__], origin, module)


@stands_for(ast.MatchValue, ast.MatchSingleton)
class MatchValue(Pattern):
    """`case 3:`, `case None:`."""

    __slots__ = ("value",)
    value: Expression

    def _fill(self, origin: Any, module: Any) -> None:
        if isinstance(origin, ast.MatchSingleton):
            self.value = node(Name, origin, module)
        else:
            self.value = expression(origin.value, module)


class _OfPatterns(Pattern):
    __slots__ = ("patterns",)
    patterns: tuple[Pattern, ...]

    def _fill(self, origin: Any, module: Any) -> None:
        self.patterns = tuple([_pattern(each, module) for each in origin.patterns])


@stands_for(ast.MatchSequence)
class MatchSequence(_OfPatterns):
    __slots__ = ()


@stands_for(ast.MatchOr)
class MatchOr(_OfPatterns):
    __slots__ = ()


@stands_for(ast.MatchMapping)
class MatchMapping(_OfPatterns):
    __slots__ = ("keys", "rest")
    keys: tuple[Expression, ...]
    rest: str | None

    def _fill(self, origin: ast.MatchMapping, module: Any) -> None:
        super()._fill(origin, module)
        self.keys, self.rest = expressions(origin.keys, module), origin.rest


@stands_for(ast.MatchClass)
class MatchClass(Pattern):
    __slots__ = ()


@stands_for(ast.MatchStar)
class MatchStar(Pattern):
    __slots__ = ()


@stands_for(ast.MatchAs)
class MatchAs(Pattern):
    __slots__ = ("name", "pattern")
    pattern: Pattern | None
    name: str | None

    def _fill(self, origin: ast.MatchAs, module: Any) -> None:
        self.name = origin.name
        self.pattern = None if origin.pattern is None else _pattern(origin.pattern, module)
