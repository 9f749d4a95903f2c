"""The tree that code is judged on: one class for each kind of expression, statement and pattern.

A node stands for a node of `ast`, its `origin`, and is made in no time: its fields are filled when one of them is
first read (`convert` says from what), so that of a large file only those parts are converted that somebody looks
at, and a deep expression needs no recursion. Names follow libcst's, which name the operators and the parts of a
parameter list more plainly than `ast` does. Equality and hash are by identity: a node is a place in the code.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from klguard.read.python.source import Module

FILL: dict[type[Node], Callable[[Any, Any, Module], None]] = {}
"""How the fields of a class are read off the `ast` node: (node, origin, module); filled by `convert`."""


class Node:
    """A part of a module. `origin` and `module` are None for a node that stands nowhere in the code."""

    __slots__ = ("module", "origin")
    origin: Any
    module: Module | None

    def __init__(self, **fields: Any) -> None:
        """A node that stands nowhere, such as the call that a decorator is."""
        self.origin = self.module = None
        for name, value in fields.items():
            setattr(self, name, value)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """The first read of a field; later ones find it in its slot."""
            if self.origin is None or not hasattr(type(self), name):
                raise AttributeError(f"{type(self).__name__} has no {name}")
            FILL[type(self)](self, self.origin, self.module)
            return object.__getattribute__(self, name)


# -- expressions ------------------------------------------------------------------------------------------------


class Expression(Node):
    __slots__ = ()


class Name(Expression):
    """A name; also True, False and None."""

    __slots__ = ("value",)
    value: str


class Literal(Expression):
    """A number, a string (adjacent ones are one), bytes, or `...`."""

    __slots__ = ("value",)
    value: Any


class Attribute(Expression):
    __slots__ = ("attr", "value")
    value: Expression
    attr: str


class Call(Expression):
    __slots__ = ("args", "func")
    func: Expression
    args: tuple[Arg, ...]

    @property
    def name(self) -> str:
        """The last component of the callee: `generate` for `trainer.model.generate(...)`, "" if it has none."""
        func = self.func
        if isinstance(func, Attribute):
            return func.attr
        return func.value if isinstance(func, Name) else ""


class Arg(Node):
    """An argument of a call, or a base of a class. `star` is "", "*" or "**"."""

    __slots__ = ("keyword", "star", "value")
    value: Expression
    keyword: str | None
    star: str


class Subscript(Expression):
    """`value[slice]`; of `value[a, b]` the parts, one each."""

    __slots__ = ("slice", "value")
    value: Expression
    slice: tuple[Expression, ...]


class Slice(Expression):
    __slots__ = ("lower", "step", "upper")
    lower: Expression | None
    upper: Expression | None
    step: Expression | None


class Starred(Expression):
    """`*value` in a display or a target."""

    __slots__ = ("value",)
    value: Expression


class _Display(Expression):
    __slots__ = ("elements",)
    elements: tuple[Expression, ...]


class Tuple(_Display):
    __slots__ = ()


class List(_Display):
    __slots__ = ()


class Set(_Display):
    __slots__ = ()


class Dict(Expression):
    __slots__ = ("elements",)
    elements: tuple[DictElement | StarredDictElement, ...]


class DictElement(Node):
    __slots__ = ("key", "value")
    key: Expression
    value: Expression


class StarredDictElement(Node):
    """`**value` in a dict; its origin is (the ast.Dict, its index)."""

    __slots__ = ("value",)
    value: Expression


class _Comprehension(Expression):
    __slots__ = ("elt", "for_in")
    elt: Expression
    for_in: CompFor


class ListComp(_Comprehension):
    __slots__ = ()


class SetComp(_Comprehension):
    __slots__ = ()


class GeneratorExp(_Comprehension):
    __slots__ = ()


class DictComp(Expression):
    __slots__ = ("for_in", "key", "value")
    key: Expression
    value: Expression
    for_in: CompFor


class CompFor(Node):
    """A `for` of a comprehension with its conditions; its origin is (all of them, its index)."""

    __slots__ = ("asynchronous", "ifs", "inner_for_in", "iter", "target")
    target: Expression
    iter: Expression
    ifs: tuple[Expression, ...]
    inner_for_in: CompFor | None
    asynchronous: bool


class UnaryOperation(Expression):
    """`operator` is one of Minus, Plus, BitInvert and Not."""

    __slots__ = ("expression", "operator")
    operator: str
    expression: Expression


class BinaryOperation(Expression):
    """`operator` is a name as in `operators.BINARY`."""

    __slots__ = ("left", "operator", "right")
    left: Expression
    operator: str
    right: Expression


class BooleanOperation(Expression):
    """`left and right` or `left or right`. Its origin is (the ast.BoolOp, the index of its right-hand value)."""

    __slots__ = ("left", "operator", "right")
    left: Expression
    operator: str
    right: Expression


class Comparison(Expression):
    __slots__ = ("comparisons", "left")
    left: Expression
    comparisons: tuple[ComparisonTarget, ...]


class ComparisonTarget(Node):
    """`operator` is a name as in `operators.COMPARISON`."""

    __slots__ = ("comparator", "operator")
    operator: str
    comparator: Expression


class IfExp(Expression):
    __slots__ = ("body", "orelse", "test")
    test: Expression
    body: Expression
    orelse: Expression


class NamedExpr(Expression):
    __slots__ = ("target", "value")
    target: Expression
    value: Expression


class Await(Expression):
    __slots__ = ("value",)
    value: Expression


class Yield(Expression):
    __slots__ = ("value",)
    value: Expression | None


class YieldFrom(Expression):
    __slots__ = ("value",)
    value: Expression


class Lambda(Expression):
    __slots__ = ("body", "params")
    params: Parameters
    body: Expression


class Parameters(Node):
    __slots__ = ("kwonly_params", "params", "posonly_params", "star_arg", "star_kwarg")
    posonly_params: tuple[Param, ...]
    params: tuple[Param, ...]
    kwonly_params: tuple[Param, ...]
    star_arg: Param | None
    star_kwarg: Param | None


class Param(Node):
    __slots__ = ("annotation", "default", "name", "star")
    name: str
    annotation: Expression | None
    default: Expression | None
    star: str


class FormattedString(Expression):
    __slots__ = ("parts",)
    parts: tuple[str | FormattedPart, ...]


class FormattedPart(Node):
    """`{expression!conversion:spec}` in an f-string."""

    __slots__ = ("conversion", "expression", "spec")
    expression: Expression
    conversion: str | None
    spec: str | None
    """None where the specification is itself computed."""


class Unread(Expression):
    """An expression of a kind that is not analysed."""

    __slots__ = ()


# -- statements -------------------------------------------------------------------------------------------------


class Block(Node):
    """Statements one below another; the origin is their list."""

    __slots__ = ("body",)
    body: tuple[Statement, ...]


class Statement(Node):
    __slots__ = ()


class SimpleStatement(Statement):
    """A statement that holds no others."""

    __slots__ = ()


class Expr(SimpleStatement):
    __slots__ = ("value",)
    value: Expression


class Assign(SimpleStatement):
    __slots__ = ("targets", "value")
    targets: tuple[Expression, ...]
    value: Expression


class AnnAssign(SimpleStatement):
    __slots__ = ("annotation", "target", "value")
    target: Expression
    annotation: Expression
    value: Expression | None


class AugAssign(SimpleStatement):
    __slots__ = ("operator", "target", "value")
    target: Expression
    operator: str
    value: Expression


class Return(SimpleStatement):
    __slots__ = ("value",)
    value: Expression | None


class Raise(SimpleStatement):
    __slots__ = ("exc",)
    exc: Expression | None


class Assert(SimpleStatement):
    __slots__ = ("test",)
    test: Expression


class Del(SimpleStatement):
    __slots__ = ("targets",)
    targets: tuple[Expression, ...]


class Global(SimpleStatement):
    __slots__ = ("names",)
    names: list[str]


class Nonlocal(SimpleStatement):
    __slots__ = ("names",)
    names: list[str]


class Import(SimpleStatement):
    __slots__ = ("names",)
    names: list[ast.alias]


class ImportFrom(SimpleStatement):
    """`source` is the dotted module, with a dot in front for each level."""

    __slots__ = ("names", "source")
    source: str
    names: list[ast.alias]


class Break(SimpleStatement):
    __slots__ = ()


class Continue(SimpleStatement):
    __slots__ = ()


class Other(SimpleStatement):
    """A statement that changes nothing: `pass`, a type alias."""

    __slots__ = ()


class FunctionDef(Statement):
    __slots__ = ("asynchronous", "body", "decorators", "name", "params")
    name: str
    params: Parameters
    body: Block
    decorators: tuple[Expression, ...]
    asynchronous: bool


class ClassDef(Statement):
    __slots__ = ("bases", "body", "decorators", "name")
    name: str
    bases: tuple[Expression, ...]
    body: Block
    decorators: tuple[Expression, ...]


class If(Statement):
    """An `elif` is an If in `orelse`."""

    __slots__ = ("body", "orelse", "test")
    test: Expression
    body: Block
    orelse: Block | None


class For(Statement):
    __slots__ = ("asynchronous", "body", "iter", "orelse", "target")
    target: Expression
    iter: Expression
    body: Block
    orelse: Block | None
    asynchronous: bool


class While(Statement):
    __slots__ = ("body", "orelse", "test")
    test: Expression
    body: Block
    orelse: Block | None


class Try(Statement):
    __slots__ = ("body", "finalbody", "handlers", "orelse")
    body: Block
    handlers: tuple[ExceptHandler, ...]
    orelse: Block | None
    finalbody: Block | None


class TryStar(Try):
    __slots__ = ()


class ExceptHandler(Node):
    __slots__ = ("body", "name", "type")
    type: Expression | None
    name: str | None
    body: Block


class With(Statement):
    __slots__ = ("asynchronous", "body", "items")
    items: tuple[WithItem, ...]
    body: Block
    asynchronous: bool


class WithItem(Node):
    __slots__ = ("item", "target")
    item: Expression
    target: Expression | None


class Match(Statement):
    __slots__ = ("cases", "subject")
    subject: Expression
    cases: tuple[MatchCase, ...]


class MatchCase(Node):
    __slots__ = ("body", "guard", "pattern")
    pattern: Pattern
    guard: Expression | None
    body: Block


# -- patterns ---------------------------------------------------------------------------------------------------


class Pattern(Node):
    __slots__ = ()


class MatchValue(Pattern):
    """`case 3:`, `case None:`."""

    __slots__ = ("value",)
    value: Expression


class MatchSequence(Pattern):
    __slots__ = ("patterns",)
    patterns: tuple[Pattern, ...]


class MatchStar(Pattern):
    __slots__ = ()


class MatchMapping(Pattern):
    __slots__ = ("keys", "patterns", "rest")
    keys: tuple[Expression, ...]
    patterns: tuple[Pattern, ...]
    rest: str | None


class MatchClass(Pattern):
    __slots__ = ()


class MatchAs(Pattern):
    __slots__ = ("name", "pattern")
    pattern: Pattern | None
    name: str | None


class MatchOr(Pattern):
    __slots__ = ("patterns",)
    patterns: tuple[Pattern, ...]
