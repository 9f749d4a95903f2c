"""Expressions."""

from __future__ import annotations

import ast
from typing import Any

from klguard.read.python.nodes.base import (
    Expression,
    Node,
    expression,
    expressions,
    node,
    optional,
    stands_for,
)
from klguard.read.python.nodes.spans import Span, is_parenthesized, starred, without_parentheses

CONVERSIONS = {-1: None, ord("r"): "r", ord("s"): "s", ord("a"): "a"}


@stands_for(ast.Name)
class Name(Expression):
    """A name; also True, False and None."""

    __slots__ = ("value",)
    value: str

    def _fill(self, origin: Any, module: Any) -> None:
        self.value = origin.id if origin.__class__ is ast.Name else str(origin.value)

    def _composed(self) -> str:
        return self.value


@stands_for(ast.Constant)
class Literal(Expression):
    """A number, a string (adjacent ones are one), bytes, or `...`."""

    __slots__ = ("value",)
    value: Any

    @classmethod
    def made_of(cls, origin: ast.Constant, module: Any) -> Expression:
        is_name = origin.value is None or origin.value.__class__ is bool
        return node(Name if is_name else cls, origin, module)

    def _fill(self, origin: ast.Constant, module: Any) -> None:
        self.value = origin.value


@stands_for(ast.Attribute)
class Attribute(Expression):
    __slots__ = ("attr", "value")
    value: Expression
    attr: str

    def _fill(self, origin: ast.Attribute, module: Any) -> None:
        self.value, self.attr = expression(origin.value, module), origin.attr


@stands_for(ast.Call)
class Call(Expression):
    __slots__ = ("args", "func")
    func: Expression
    args: tuple[Arg, ...]

    def _fill(self, origin: ast.Call, module: Any) -> None:
        self.func = expression(origin.func, module)
        given: list[ast.expr | ast.keyword] = [*origin.args, *origin.keywords]
        if origin.keywords and any(argument.__class__ is ast.Starred for argument in origin.args):
            given.sort(key=lambda each: (each.lineno, each.col_offset))  # f(a=1, *b)
        self.args = tuple([node(Arg, each, module) for each in given])

    @property
    def name(self) -> str:
        """The last component of the callee: `generate` for `trainer.model.generate(...)`, "" if it has none."""
        func = self.func
        if isinstance(func, Attribute):
            return func.attr
        return func.value if isinstance(func, Name) else ""

    def _composed(self) -> str:
        return f"{self.func.text()}({', '.join(arg.value.text() for arg in self.args)})"


class Arg(Node):
    """An argument. `star` is "", "*" or "**"."""

    __slots__ = ("keyword", "star", "value")
    value: Expression
    keyword: str | None
    star: str

    def _fill(self, origin: Any, module: Any) -> None:
        self.keyword, self.star, value = None, "", origin
        if origin.__class__ is ast.keyword:
            self.keyword, self.star, value = origin.arg, "" if origin.arg else "**", origin.value
        elif origin.__class__ is ast.Starred:
            self.star, value = "*", origin.value
        self.value = expression(value, module)


@stands_for(ast.Subscript)
class Subscript(Expression):
    """`value[slice]`; of `value[a, b]` the parts, one each."""

    __slots__ = ("slice", "value")
    value: Expression
    slice: tuple[Expression, ...]

    def _fill(self, origin: ast.Subscript, module: Any) -> None:
        self.value = expression(origin.value, module)
        inner = origin.slice
        if isinstance(inner, ast.Tuple) and not (module is not None and is_parenthesized(inner, module)):
            self.slice = expressions(inner.elts, module)
        else:
            self.slice = (expression(inner, module),)


@stands_for(ast.Slice)
class Slice(Expression):
    __slots__ = ("lower", "step", "upper")
    lower: Expression | None
    upper: Expression | None
    step: Expression | None

    def _fill(self, origin: ast.Slice, module: Any) -> None:
        self.lower, self.upper = optional(origin.lower, module), optional(origin.upper, module)
        self.step = optional(origin.step, module)


class _OfValue(Expression):
    __slots__ = ("value",)
    value: Any

    def _fill(self, origin: Any, module: Any) -> None:
        self.value = optional(origin.value, module)


@stands_for(ast.Starred)
class Starred(_OfValue):
    """`*value` in a display or a target."""

    __slots__ = ()


@stands_for(ast.Await)
class Await(_OfValue):
    __slots__ = ()


@stands_for(ast.Yield)
class Yield(_OfValue):
    """`value` may be None."""

    __slots__ = ()


@stands_for(ast.YieldFrom)
class YieldFrom(_OfValue):
    __slots__ = ()


# -- displays and comprehensions --------------------------------------------------------------------------------


class _Display(Expression):
    __slots__ = ("elements",)
    elements: tuple[Expression, ...]

    def _fill(self, origin: Any, module: Any) -> None:
        self.elements = expressions(origin.elts, module)


@stands_for(ast.Tuple)
class Tuple(_Display):
    __slots__ = ()

    def _span(self, origin: Any, module: Any) -> Span:
        return without_parentheses(origin, module)


@stands_for(ast.List)
class List(_Display):
    __slots__ = ()


@stands_for(ast.Set)
class Set(_Display):
    __slots__ = ()


@stands_for(ast.Dict)
class Dict(Expression):
    __slots__ = ("elements",)
    elements: tuple[DictElement | StarredDictElement, ...]

    def _fill(self, origin: ast.Dict, module: Any) -> None:
        kinds = [StarredDictElement if key is None else DictElement for key in origin.keys]
        self.elements = tuple([node(kind, (origin, i), module) for i, kind in enumerate(kinds)])


class DictElement(Node):
    """`key: value`; its origin is (the ast.Dict, its index)."""

    __slots__ = ("key", "value")
    key: Expression
    value: Expression

    def _fill(self, origin: Any, module: Any) -> None:
        items, index = origin
        self.key, self.value = expression(items.keys[index], module), expression(items.values[index], module)


class StarredDictElement(Node):
    """`**value` in a dict; its origin is (the ast.Dict, its index)."""

    __slots__ = ("value",)
    value: Expression

    def _fill(self, origin: Any, module: Any) -> None:
        items, index = origin
        self.value = expression(items.values[index], module)

    def _span(self, origin: Any, module: Any) -> Span:
        return starred(*origin, module)


class _Comprehension(Expression):
    __slots__ = ("elt", "for_in")
    elt: Expression
    for_in: CompFor

    def _fill(self, origin: Any, module: Any) -> None:
        self.elt, self.for_in = expression(origin.elt, module), node(CompFor, (origin.generators, 0), module)


@stands_for(ast.ListComp)
class ListComp(_Comprehension):
    __slots__ = ()


@stands_for(ast.SetComp)
class SetComp(_Comprehension):
    __slots__ = ()


@stands_for(ast.GeneratorExp)
class GeneratorExp(_Comprehension):
    __slots__ = ()

    def _span(self, origin: Any, module: Any) -> Span:
        return without_parentheses(origin, module)


@stands_for(ast.DictComp)
class DictComp(Expression):
    __slots__ = ("for_in", "key", "value")
    key: Expression
    value: Expression
    for_in: CompFor

    def _fill(self, origin: ast.DictComp, module: Any) -> None:
        self.key, self.value = expression(origin.key, module), expression(origin.value, module)
        self.for_in = node(CompFor, (origin.generators, 0), module)


class CompFor(Node):
    """A `for` of a comprehension with its conditions; its origin is (all of them, its index)."""

    __slots__ = ("asynchronous", "ifs", "inner_for_in", "iter", "target")
    target: Expression
    iter: Expression
    ifs: tuple[Expression, ...]
    inner_for_in: CompFor | None
    asynchronous: bool

    def _fill(self, origin: Any, module: Any) -> None:
        clauses, index = origin
        clause = clauses[index]
        self.target, self.iter = expression(clause.target, module), expression(clause.iter, module)
        self.ifs, self.asynchronous = expressions(clause.ifs, module), bool(clause.is_async)
        more = index + 1 < len(clauses)
        self.inner_for_in = node(CompFor, (clauses, index + 1), module) if more else None


# -- lambdas and f-strings --------------------------------------------------------------------------------------


@stands_for(ast.Lambda)
class Lambda(Expression):
    __slots__ = ("body", "params")
    params: Parameters
    body: Expression

    def _fill(self, origin: ast.Lambda, module: Any) -> None:
        self.params, self.body = node(Parameters, origin.args, module), expression(origin.body, module)


class Parameters(Node):
    __slots__ = ("kwonly_params", "params", "posonly_params", "star_arg", "star_kwarg")
    posonly_params: tuple[Param, ...]
    params: tuple[Param, ...]
    kwonly_params: tuple[Param, ...]
    star_arg: Param | None
    star_kwarg: Param | None

    def _fill(self, origin: ast.arguments, module: Any) -> None:
        names = [*origin.posonlyargs, *origin.args]
        defaults = [*[None] * (len(names) - len(origin.defaults)), *origin.defaults]
        params = [_param(arg, default, "", module) for arg, default in zip(names, defaults, strict=True)]
        split = len(origin.posonlyargs)
        self.posonly_params, self.params = tuple(params[:split]), tuple(params[split:])
        keywords = zip(origin.kwonlyargs, origin.kw_defaults, strict=True)
        self.kwonly_params = tuple([_param(arg, default, "", module) for arg, default in keywords])
        self.star_arg = None if origin.vararg is None else _param(origin.vararg, None, "*", module)
        self.star_kwarg = None if origin.kwarg is None else _param(origin.kwarg, None, "**", module)


class Param(Node):
    """A parameter; it stands where its name does, with the stars in front."""

    __slots__ = ("annotation", "default", "name", "star")
    name: str
    annotation: Expression | None
    default: Expression | None
    star: str

    def _span(self, origin: ast.arg, module: Any) -> Span:
        line, column, _, _ = module.ast_span(origin)
        start = module.line(line).rfind(self.star, 0, column) if self.star else column
        return line, start if start >= 0 else column, line, column + len(self.name)


def _param(origin: ast.arg, default: ast.expr | None, star: str, module: Any) -> Param:
    made = node(Param, origin, module)
    made.name, made.star = origin.arg, star
    made.annotation, made.default = optional(origin.annotation, module), optional(default, module)
    return made


@stands_for(ast.JoinedStr)
class FormattedString(Expression):
    """An f-string: its texts, and what stands in braces between them."""

    __slots__ = ("parts",)
    parts: tuple[str | FormattedPart, ...]

    def _fill(self, origin: ast.JoinedStr, module: Any) -> None:
        self.parts = tuple(
            [
                part.value if isinstance(part, ast.Constant) else node(FormattedPart, part, module)
                for part in origin.values
            ]
        )


class FormattedPart(Node):
    """`{expression!conversion:spec}` in an f-string. `spec` is None where it is itself computed."""

    __slots__ = ("conversion", "expression", "spec")
    expression: Expression
    conversion: str | None
    spec: str | None

    def _fill(self, origin: ast.FormattedValue, module: Any) -> None:
        self.expression, self.conversion = expression(origin.value, module), CONVERSIONS[origin.conversion]
        parts: Any = [] if origin.format_spec is None else origin.format_spec.values  # type: ignore[attr-defined]
        plain = all(isinstance(part, ast.Constant) for part in parts)
        self.spec = "".join(part.value for part in parts) if plain else None
