"""Operators: arithmetic, logic, comparison, choice and `:=`."""

from __future__ import annotations

import ast
from typing import Any

from klguard.read.python.nodes.base import Expression, Node, expression, node, stands_for
from klguard.read.python.nodes.spans import Span, up_to

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


def operator_name(operator: ast.AST) -> str:
    kind = operator.__class__
    return OPERATORS.get(kind) or kind.__name__


@stands_for(ast.UnaryOp)
class UnaryOperation(Expression):
    """`operator` is a name as in `operators.UNARY`."""

    __slots__ = ("expression", "operator")
    operator: str
    expression: Expression

    def _fill(self, origin: ast.UnaryOp, module: Any) -> None:
        self.operator, self.expression = operator_name(origin.op), expression(origin.operand, module)


@stands_for(ast.BinOp)
class BinaryOperation(Expression):
    """`operator` is a name as in `operators.BINARY`."""

    __slots__ = ("left", "operator", "right")
    left: Expression
    operator: str
    right: Expression

    def _fill(self, origin: ast.BinOp, module: Any) -> None:
        self.operator = operator_name(origin.op)
        self.left, self.right = expression(origin.left, module), expression(origin.right, module)


@stands_for(ast.BoolOp)
class BooleanOperation(Expression):
    """`left and right` or `left or right`, where `a or b or c` is (a or b) or c. Its origin is (the ast.BoolOp, the
    index of its right-hand value)."""

    __slots__ = ("left", "operator", "right")
    left: Expression
    operator: str
    right: Expression

    @classmethod
    def made_of(cls, origin: ast.BoolOp, module: Any) -> Expression:
        return node(cls, (origin, len(origin.values) - 1), module)

    def _fill(self, origin: Any, module: Any) -> None:
        whole, last = origin
        self.operator, self.right = operator_name(whole.op), expression(whole.values[last], module)
        if last == 1:
            self.left = expression(whole.values[0], module)
        else:
            self.left = node(BooleanOperation, (whole, last - 1), module)

    def _span(self, origin: Any, module: Any) -> Span:
        return up_to(*origin, module)


@stands_for(ast.Compare)
class Comparison(Expression):
    __slots__ = ("comparisons", "left")
    left: Expression
    comparisons: tuple[ComparisonTarget, ...]

    def _fill(self, origin: ast.Compare, module: Any) -> None:
        self.left = expression(origin.left, module)
        self.comparisons = tuple(
            [
                ComparisonTarget(operator=operator_name(operator), comparator=expression(comparator, module))
                for operator, comparator in zip(origin.ops, origin.comparators, strict=True)
            ]
        )


class ComparisonTarget(Node):
    """`operator` is a name as in `operators.COMPARISON`."""

    __slots__ = ("comparator", "operator")
    operator: str
    comparator: Expression


@stands_for(ast.IfExp)
class IfExp(Expression):
    __slots__ = ("body", "orelse", "test")
    test: Expression
    body: Expression
    orelse: Expression

    def _fill(self, origin: ast.IfExp, module: Any) -> None:
        self.test = expression(origin.test, module)
        self.body, self.orelse = expression(origin.body, module), expression(origin.orelse, module)


@stands_for(ast.NamedExpr)
class NamedExpr(Expression):
    __slots__ = ("target", "value")
    target: Expression
    value: Expression

    def _fill(self, origin: ast.NamedExpr, module: Any) -> None:
        self.target, self.value = expression(origin.target, module), expression(origin.value, module)
