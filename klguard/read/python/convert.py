"""From `ast` to `nodes`: which class stands for a node, and how its fields are read off it."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from klguard.read.python import nodes
from klguard.read.python.spans import is_parenthesized

if TYPE_CHECKING:
    from klguard.read.python.source import Module

OPERATORS: dict[type, str] = {
    ast.Sub: "Subtract",
    ast.Mult: "Multiply",
    ast.Div: "Divide",
    ast.FloorDiv: "FloorDivide",
    ast.Mod: "Modulo",
    ast.MatMult: "MatrixMultiply",
    ast.Pow: "Power",
    ast.LShift: "LeftShift",
    ast.RShift: "RightShift",
    ast.Eq: "Equal",
    ast.NotEq: "NotEqual",
    ast.Lt: "LessThan",
    ast.LtE: "LessThanEqual",
    ast.Gt: "GreaterThan",
    ast.GtE: "GreaterThanEqual",
    ast.USub: "Minus",
    ast.UAdd: "Plus",
    ast.Invert: "BitInvert",
}
"""Names of operators that are not those of `ast`."""

CONVERSIONS = {-1: None, ord("r"): "r", ord("s"): "s", ord("a"): "a"}


def expression(origin: ast.expr, module: Module | None) -> nodes.Expression:
    """The node of an expression. Without a module its place is not known."""
    kind = _KINDS.get(origin.__class__, nodes.Unread)
    if kind is nodes.BooleanOperation:
        return _node(kind, (origin, len(origin.values) - 1), module)  # type: ignore[attr-defined]
    if kind is nodes.Literal and (origin.value is None or origin.value.__class__ is bool):  # type: ignore[attr-defined]
        kind = nodes.Name
    return _node(kind, origin, module)


def statement(origin: ast.stmt, module: Module | None) -> nodes.Statement:
    return _node(_KINDS.get(origin.__class__, nodes.Other), origin, module)


def _node(kind: Any, origin: Any, module: Module | None) -> Any:
    node = kind.__new__(kind)
    node.origin, node.module = origin, module
    return node


def _optional(origin: ast.expr | None, module: Module | None) -> Any:
    return None if origin is None else expression(origin, module)


def _all(origins: Iterable[ast.expr], module: Module | None) -> tuple[Any, ...]:
    return tuple([expression(origin, module) for origin in origins])


def _block(origins: list[ast.stmt], module: Module | None) -> Any:
    return _node(nodes.Block, origins, module) if origins else None


# -- expressions ------------------------------------------------------------------------------------------------


def _operator(operator: ast.AST) -> str:
    kind = operator.__class__
    return OPERATORS.get(kind) or kind.__name__


def _name(node: nodes.Name, origin: Any, module: Any) -> None:
    node.value = origin.id if origin.__class__ is ast.Name else str(origin.value)


def _literal(node: nodes.Literal, origin: ast.Constant, module: Any) -> None:
    node.value = origin.value


def _attribute(node: nodes.Attribute, origin: ast.Attribute, module: Any) -> None:
    node.value, node.attr = expression(origin.value, module), origin.attr


def _call(node: nodes.Call, origin: ast.Call, module: Any) -> None:
    node.func = expression(origin.func, module)
    given: list[ast.expr | ast.keyword] = [*origin.args, *origin.keywords]
    if origin.keywords and any(argument.__class__ is ast.Starred for argument in origin.args):
        given.sort(key=lambda each: (each.lineno, each.col_offset))  # f(a=1, *b)
    node.args = tuple([_node(nodes.Arg, each, module) for each in given])


def _arg(node: nodes.Arg, origin: Any, module: Any) -> None:
    node.keyword, node.star, value = None, "", origin
    if origin.__class__ is ast.keyword:
        node.keyword, node.star, value = origin.arg, "" if origin.arg else "**", origin.value
    elif origin.__class__ is ast.Starred:
        node.star, value = "*", origin.value
    node.value = expression(value, module)


def _subscript(node: nodes.Subscript, origin: ast.Subscript, module: Any) -> None:
    node.value = expression(origin.value, module)
    inner = origin.slice
    several = isinstance(inner, ast.Tuple) and not (module is None or is_parenthesized(inner, module))
    node.slice = _all(inner.elts if several else (inner,), module)  # type: ignore[attr-defined]


def _slice(node: nodes.Slice, origin: ast.Slice, module: Any) -> None:
    node.lower, node.upper = _optional(origin.lower, module), _optional(origin.upper, module)
    node.step = _optional(origin.step, module)


def _display(node: Any, origin: Any, module: Any) -> None:
    node.elements = _all(origin.elts, module)


def _value(node: Any, origin: Any, module: Any) -> None:
    node.value = _optional(origin.value, module)


def _dict(node: nodes.Dict, origin: ast.Dict, module: Any) -> None:
    node.elements = tuple(
        [
            _node(nodes.StarredDictElement if key is None else nodes.DictElement, (origin, index), module)
            for index, key in enumerate(origin.keys)
        ]
    )


def _dict_element(node: Any, origin: tuple[ast.Dict, int], module: Any) -> None:
    items, index = origin
    node.value = expression(items.values[index], module)
    if items.keys[index] is not None:
        node.key = expression(items.keys[index], module)  # type: ignore[arg-type]


def _comprehension(node: Any, origin: Any, module: Any) -> None:
    node.elt, node.for_in = expression(origin.elt, module), _comp_for(origin.generators, 0, module)


def _dict_comp(node: nodes.DictComp, origin: ast.DictComp, module: Any) -> None:
    node.key, node.value = expression(origin.key, module), expression(origin.value, module)
    node.for_in = _comp_for(origin.generators, 0, module)


def _comp_for(clauses: list[ast.comprehension], index: int, module: Any) -> Any:
    return _node(nodes.CompFor, (clauses, index), module) if index < len(clauses) else None


def _fill_comp_for(node: nodes.CompFor, origin: tuple[list[ast.comprehension], int], module: Any) -> None:
    clause = origin[0][origin[1]]
    node.target, node.iter = expression(clause.target, module), expression(clause.iter, module)
    node.ifs, node.asynchronous = _all(clause.ifs, module), bool(clause.is_async)
    node.inner_for_in = _comp_for(origin[0], origin[1] + 1, module)


def _unary(node: nodes.UnaryOperation, origin: ast.UnaryOp, module: Any) -> None:
    node.operator, node.expression = _operator(origin.op), expression(origin.operand, module)


def _binary(node: nodes.BinaryOperation, origin: ast.BinOp, module: Any) -> None:
    node.operator = _operator(origin.op)
    node.left, node.right = expression(origin.left, module), expression(origin.right, module)


def _boolean(node: nodes.BooleanOperation, origin: tuple[ast.BoolOp, int], module: Any) -> None:
    """`a or b or c` is (a or b) or c."""
    whole, last = origin
    node.operator, node.right = _operator(whole.op), expression(whole.values[last], module)
    if last == 1:
        node.left = expression(whole.values[0], module)
    else:
        node.left = _node(nodes.BooleanOperation, (whole, last - 1), module)


def _comparison(node: nodes.Comparison, origin: ast.Compare, module: Any) -> None:
    node.left = expression(origin.left, module)
    node.comparisons = tuple(
        [
            nodes.ComparisonTarget(operator=_operator(operator), comparator=expression(comparator, module))
            for operator, comparator in zip(origin.ops, origin.comparators, strict=True)
        ]
    )


def _if_exp(node: nodes.IfExp, origin: ast.IfExp, module: Any) -> None:
    node.test = expression(origin.test, module)
    node.body, node.orelse = expression(origin.body, module), expression(origin.orelse, module)


def _named(node: nodes.NamedExpr, origin: ast.NamedExpr, module: Any) -> None:
    node.target, node.value = expression(origin.target, module), expression(origin.value, module)


def _lambda(node: nodes.Lambda, origin: ast.Lambda, module: Any) -> None:
    node.params, node.body = _node(nodes.Parameters, origin.args, module), expression(origin.body, module)


def _parameters(node: nodes.Parameters, origin: ast.arguments, module: Any) -> None:
    plain = [*origin.posonlyargs, *origin.args]
    defaults = [*[None] * (len(plain) - len(origin.defaults)), *origin.defaults]
    params = [_param(arg, default, "", module) for arg, default in zip(plain, defaults, strict=True)]
    split = len(origin.posonlyargs)
    node.posonly_params, node.params = tuple(params[:split]), tuple(params[split:])
    node.kwonly_params = tuple(
        [
            _param(arg, default, "", module)
            for arg, default in zip(origin.kwonlyargs, origin.kw_defaults, strict=True)
        ]
    )
    node.star_arg = None if origin.vararg is None else _param(origin.vararg, None, "*", module)
    node.star_kwarg = None if origin.kwarg is None else _param(origin.kwarg, None, "**", module)


def _param(origin: ast.arg, default: ast.expr | None, star: str, module: Any) -> nodes.Param:
    node = nodes.Param(
        name=origin.arg,
        annotation=_optional(origin.annotation, module),
        default=_optional(default, module),
        star=star,
    )
    node.origin, node.module = origin, module
    return node


def _formatted(node: nodes.FormattedString, origin: ast.JoinedStr, module: Any) -> None:
    node.parts = tuple(
        [
            part.value
            if isinstance(part, ast.Constant)
            else nodes.FormattedPart(
                expression=expression(part.value, module),  # type: ignore[attr-defined]
                conversion=CONVERSIONS[part.conversion],  # type: ignore[attr-defined]
                spec=_format_spec(part.format_spec),  # type: ignore[attr-defined]
            )
            for part in origin.values
        ]
    )


def _format_spec(origin: Any) -> str | None:
    parts = [] if origin is None else origin.values
    return "".join(part.value for part in parts) if all(isinstance(p, ast.Constant) for p in parts) else None


# -- statements -------------------------------------------------------------------------------------------------


def _fill_block(node: nodes.Block, origin: list[ast.stmt], module: Any) -> None:
    node.body = tuple([statement(each, module) for each in origin])


def _assign(node: nodes.Assign, origin: ast.Assign, module: Any) -> None:
    node.targets, node.value = _all(origin.targets, module), expression(origin.value, module)


def _ann_assign(node: nodes.AnnAssign, origin: ast.AnnAssign, module: Any) -> None:
    node.target, node.annotation = expression(origin.target, module), expression(origin.annotation, module)
    node.value = _optional(origin.value, module)


def _aug_assign(node: nodes.AugAssign, origin: ast.AugAssign, module: Any) -> None:
    node.target, node.value = expression(origin.target, module), expression(origin.value, module)
    node.operator = _operator(origin.op)


def _raise(node: nodes.Raise, origin: ast.Raise, module: Any) -> None:
    node.exc = _optional(origin.exc, module)


def _assert(node: nodes.Assert, origin: ast.Assert, module: Any) -> None:
    node.test = expression(origin.test, module)


def _del(node: nodes.Del, origin: ast.Delete, module: Any) -> None:
    """`del (a, b)` is `del a, b`."""
    flat: list[ast.expr] = []
    for target in origin.targets:
        flat += target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]
    node.targets = _all(flat, module)


def _names(node: Any, origin: Any, module: Any) -> None:
    node.names = origin.names


def _import_from(node: nodes.ImportFrom, origin: ast.ImportFrom, module: Any) -> None:
    node.source, node.names = "." * origin.level + (origin.module or ""), origin.names


def _function(node: nodes.FunctionDef, origin: Any, module: Any) -> None:
    node.name, node.asynchronous = origin.name, origin.__class__ is ast.AsyncFunctionDef
    node.params = _node(nodes.Parameters, origin.args, module)
    node.body, node.decorators = _block(origin.body, module), _all(origin.decorator_list, module)


def _class(node: nodes.ClassDef, origin: ast.ClassDef, module: Any) -> None:
    node.name, node.body = origin.name, _block(origin.body, module)
    node.bases, node.decorators = _all(origin.bases, module), _all(origin.decorator_list, module)


def _if(node: Any, origin: Any, module: Any) -> None:
    """An `if` or a `while`."""
    node.test = expression(origin.test, module)
    node.body, node.orelse = _block(origin.body, module), _block(origin.orelse, module)


def _for(node: nodes.For, origin: Any, module: Any) -> None:
    node.target, node.iter = expression(origin.target, module), expression(origin.iter, module)
    node.body, node.orelse = _block(origin.body, module), _block(origin.orelse, module)
    node.asynchronous = origin.__class__ is ast.AsyncFor


def _try(node: nodes.Try, origin: Any, module: Any) -> None:
    node.body, node.orelse = _block(origin.body, module), _block(origin.orelse, module)
    node.finalbody = _block(origin.finalbody, module)
    node.handlers = tuple([_node(nodes.ExceptHandler, each, module) for each in origin.handlers])


def _handler(node: nodes.ExceptHandler, origin: ast.ExceptHandler, module: Any) -> None:
    node.type, node.name = _optional(origin.type, module), origin.name
    node.body = _block(origin.body, module)


def _with(node: nodes.With, origin: Any, module: Any) -> None:
    node.items = tuple([_node(nodes.WithItem, each, module) for each in origin.items])
    node.body, node.asynchronous = _block(origin.body, module), origin.__class__ is ast.AsyncWith


def _with_item(node: nodes.WithItem, origin: ast.withitem, module: Any) -> None:
    node.item = expression(origin.context_expr, module)
    node.target = _optional(origin.optional_vars, module)


def _match(node: nodes.Match, origin: ast.Match, module: Any) -> None:
    node.subject = expression(origin.subject, module)
    node.cases = tuple([_node(nodes.MatchCase, each, module) for each in origin.cases])


def _case(node: nodes.MatchCase, origin: ast.match_case, module: Any) -> None:
    node.pattern, node.guard = _pattern(origin.pattern, module), _optional(origin.guard, module)
    node.body = _block(origin.body, module)


# -- patterns ---------------------------------------------------------------------------------------------------


def _pattern(origin: ast.pattern, module: Any) -> Any:
    return _node(_KINDS[origin.__class__], origin, module)


def _patterns(origins: Sequence[ast.pattern], module: Any) -> tuple[Any, ...]:
    return tuple([_pattern(origin, module) for origin in origins])


def _match_value(node: nodes.MatchValue, origin: Any, module: Any) -> None:
    plain = origin.__class__ is ast.MatchSingleton
    node.value = nodes.Name(value=str(origin.value)) if plain else expression(origin.value, module)


def _match_several(node: Any, origin: Any, module: Any) -> None:
    node.patterns = _patterns(origin.patterns, module)


def _match_mapping(node: nodes.MatchMapping, origin: ast.MatchMapping, module: Any) -> None:
    node.keys, node.patterns = _all(origin.keys, module), _patterns(origin.patterns, module)
    node.rest = origin.rest


def _match_as(node: nodes.MatchAs, origin: ast.MatchAs, module: Any) -> None:
    node.name = origin.name
    node.pattern = None if origin.pattern is None else _pattern(origin.pattern, module)


_KINDS: dict[type, type[nodes.Node]] = {
    ast.Name: nodes.Name,
    ast.Constant: nodes.Literal,
    ast.Attribute: nodes.Attribute,
    ast.Call: nodes.Call,
    ast.Subscript: nodes.Subscript,
    ast.Slice: nodes.Slice,
    ast.Starred: nodes.Starred,
    ast.Tuple: nodes.Tuple,
    ast.List: nodes.List,
    ast.Set: nodes.Set,
    ast.Dict: nodes.Dict,
    ast.ListComp: nodes.ListComp,
    ast.SetComp: nodes.SetComp,
    ast.GeneratorExp: nodes.GeneratorExp,
    ast.DictComp: nodes.DictComp,
    ast.UnaryOp: nodes.UnaryOperation,
    ast.BinOp: nodes.BinaryOperation,
    ast.BoolOp: nodes.BooleanOperation,
    ast.Compare: nodes.Comparison,
    ast.IfExp: nodes.IfExp,
    ast.NamedExpr: nodes.NamedExpr,
    ast.Await: nodes.Await,
    ast.Yield: nodes.Yield,
    ast.YieldFrom: nodes.YieldFrom,
    ast.Lambda: nodes.Lambda,
    ast.JoinedStr: nodes.FormattedString,
    ast.Expr: nodes.Expr,
    ast.Assign: nodes.Assign,
    ast.AnnAssign: nodes.AnnAssign,
    ast.AugAssign: nodes.AugAssign,
    ast.Return: nodes.Return,
    ast.Raise: nodes.Raise,
    ast.Assert: nodes.Assert,
    ast.Delete: nodes.Del,
    ast.Global: nodes.Global,
    ast.Nonlocal: nodes.Nonlocal,
    ast.Import: nodes.Import,
    ast.ImportFrom: nodes.ImportFrom,
    ast.Break: nodes.Break,
    ast.Continue: nodes.Continue,
    ast.FunctionDef: nodes.FunctionDef,
    ast.AsyncFunctionDef: nodes.FunctionDef,
    ast.ClassDef: nodes.ClassDef,
    ast.If: nodes.If,
    ast.For: nodes.For,
    ast.AsyncFor: nodes.For,
    ast.While: nodes.While,
    ast.Try: nodes.Try,
    ast.With: nodes.With,
    ast.AsyncWith: nodes.With,
    ast.Match: nodes.Match,
    ast.MatchValue: nodes.MatchValue,
    ast.MatchSingleton: nodes.MatchValue,
    ast.MatchSequence: nodes.MatchSequence,
    ast.MatchMapping: nodes.MatchMapping,
    ast.MatchClass: nodes.MatchClass,
    ast.MatchStar: nodes.MatchStar,
    ast.MatchAs: nodes.MatchAs,
    ast.MatchOr: nodes.MatchOr,
}
if hasattr(ast, "TryStar"):  # from Python 3.11
    _KINDS[ast.TryStar] = nodes.TryStar

_FILL: dict[Any, Callable[[Any, Any, Any], None]] = {
    nodes.Name: _name,
    nodes.Literal: _literal,
    nodes.Attribute: _attribute,
    nodes.Call: _call,
    nodes.Arg: _arg,
    nodes.Subscript: _subscript,
    nodes.Slice: _slice,
    nodes.Starred: _value,
    nodes.Tuple: _display,
    nodes.List: _display,
    nodes.Set: _display,
    nodes.Dict: _dict,
    nodes.DictElement: _dict_element,
    nodes.StarredDictElement: _dict_element,
    nodes.ListComp: _comprehension,
    nodes.SetComp: _comprehension,
    nodes.GeneratorExp: _comprehension,
    nodes.DictComp: _dict_comp,
    nodes.CompFor: _fill_comp_for,
    nodes.UnaryOperation: _unary,
    nodes.BinaryOperation: _binary,
    nodes.BooleanOperation: _boolean,
    nodes.Comparison: _comparison,
    nodes.IfExp: _if_exp,
    nodes.NamedExpr: _named,
    nodes.Await: _value,
    nodes.Yield: _value,
    nodes.YieldFrom: _value,
    nodes.Lambda: _lambda,
    nodes.Parameters: _parameters,
    nodes.FormattedString: _formatted,
    nodes.Block: _fill_block,
    nodes.Expr: _value,
    nodes.Assign: _assign,
    nodes.AnnAssign: _ann_assign,
    nodes.AugAssign: _aug_assign,
    nodes.Return: _value,
    nodes.Raise: _raise,
    nodes.Assert: _assert,
    nodes.Del: _del,
    nodes.Global: _names,
    nodes.Nonlocal: _names,
    nodes.Import: _names,
    nodes.ImportFrom: _import_from,
    nodes.FunctionDef: _function,
    nodes.ClassDef: _class,
    nodes.If: _if,
    nodes.While: _if,
    nodes.For: _for,
    nodes.Try: _try,
    nodes.TryStar: _try,
    nodes.ExceptHandler: _handler,
    nodes.With: _with,
    nodes.WithItem: _with_item,
    nodes.Match: _match,
    nodes.MatchCase: _case,
    nodes.MatchValue: _match_value,
    nodes.MatchSequence: _match_several,
    nodes.MatchMapping: _match_mapping,
    nodes.MatchAs: _match_as,
    nodes.MatchOr: _match_several,
}
nodes.FILL.update(_FILL)
