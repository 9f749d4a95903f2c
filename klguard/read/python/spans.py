"""Where a node stands in its module. What `ast` says is almost it: a tuple and a generator are reported without
their parentheses, and some nodes (`**value` in a dict, `a or b` in `a or b or c`) have none in `ast`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from klguard.read.python import nodes

if TYPE_CHECKING:
    from klguard.read.python.source import Module

Point = tuple[int, int]
Span = tuple[int, int, int, int]
"""(line, column, end line, end column): lines from 1, columns from 0, in characters."""


def span(node: nodes.Node) -> Span:
    """Raises KeyError for a node that stands nowhere."""
    origin, module = node.origin, node.module
    if origin is None or module is None:
        raise KeyError(node)
    if isinstance(node, (nodes.Tuple, nodes.GeneratorExp)):
        return _inside(origin, module)
    if isinstance(node, nodes.BooleanOperation):
        return _up_to(*origin, module)
    if isinstance(node, nodes.StarredDictElement):
        return _starred(*origin, module)
    if isinstance(node, nodes.Param):
        line, column, _, _ = module.ast_span(origin)
        start = module.lines[line - 1].rfind(node.star, 0, column) if node.star else column
        return line, start if start >= 0 else column, line, column + len(node.name)
    return module.ast_span(origin)


def text(node: nodes.Node) -> str:
    """The source text of a node, as it is written."""
    origin, module = node.origin, node.module
    if origin is None or module is None:
        return _composed(node)
    return segment(module, module.ast_span(origin) if isinstance(origin, ast.AST) else span(node))


def segment(module: Module, where: Span) -> str:
    line, column, end_line, end_column = where
    lines = module.lines[line - 1 : end_line]
    if len(lines) == 1:
        return lines[0][column:end_column]
    return "\n".join([lines[0][column:], *lines[1:-1], lines[-1][:end_column]]) if lines else ""


def is_parenthesized(origin: ast.Tuple, module: Module) -> bool:
    """Whether the parentheses that a tuple begins with, if any, are its own: not so in `(a), b`."""
    line, column, end_line, end_column = module.ast_span(origin)
    if module.lines[line - 1][column : column + 1] != "(":
        return False
    if not origin.elts:
        return True
    first = module.ast_span(origin.elts[0])
    opened = sum(char == "(" for _, _, char in _characters(module, (line, column), first[:2]))
    for _, _, char in _characters(module, first[2:], (end_line, end_column)):
        if char != ")":
            break
        opened -= 1
    return opened > 0


def _composed(node: nodes.Node) -> str:
    """The text of a node that stands nowhere."""
    if isinstance(node, nodes.Call):
        return f"{text(node.func)}({', '.join(text(arg.value) for arg in node.args)})"
    if isinstance(node, nodes.Name):
        return node.value
    return ast.unparse(node.origin) if isinstance(node.origin, ast.AST) else ""


def _characters(module: Module, start: Point, end: Point) -> Iterator[tuple[int, int, str]]:
    """(line, column, character) of what is written between two points, without space and comments."""
    for line in range(start[0], end[0] + 1):
        written = module.lines[line - 1]
        first = start[1] if line == start[0] else 0
        last = end[1] if line == end[0] else len(written)
        for column in range(first, last):
            char = written[column]
            if char == "#":
                break
            if not char.isspace() and char != "\\":
                yield line, column, char


def _inside(origin: ast.Tuple | ast.GeneratorExp, module: Module) -> Span:
    """A tuple or generator without its parentheses."""
    whole = module.ast_span(origin)
    if isinstance(origin, ast.Tuple):
        if not is_parenthesized(origin, module):
            return whole
        if not origin.elts:
            return whole[0], whole[1] + 1, whole[0], whole[1] + 1
        first, last = origin.elts[0], origin.elts[-1]
    else:
        clause = origin.generators[-1]
        first, last = origin.elt, clause.ifs[-1] if clause.ifs else clause.iter
    begin, end = module.ast_span(first)[:2], module.ast_span(last)[2:]
    inner = (whole[0], whole[1] + 1)
    start = next(((line, column) for line, column, _ in _characters(module, inner, begin)), begin)
    for line, column, _ in _characters(module, end, (whole[2], whole[3] - 1)):
        end = line, column + 1
    return *start, *end


def _up_to(origin: ast.BoolOp, last: int, module: Module) -> Span:
    """`a or b` in `a or b or c`."""
    whole = module.ast_span(origin)
    if last == len(origin.values) - 1:
        return whole
    end = module.ast_span(origin.values[last])[2:]
    for line, column, char in _characters(module, end, module.ast_span(origin.values[last + 1])[:2]):
        if char != ")":
            break
        end = line, column + 1
    return *whole[:2], *end


def _starred(origin: ast.Dict, index: int, module: Module) -> Span:
    """`**value` in a dict."""
    whole, value = module.ast_span(origin), module.ast_span(origin.values[index])
    before = module.ast_span(origin.values[index - 1])[2:] if index else whole[:2]
    start, opened = value[:2], 0
    for line, column, char in _characters(module, before, value[:2]):
        if char == "*":
            start = line, column
            break
    for _, _, char in _characters(module, start, value[:2]):
        opened += char == "("
    end = value[2:]
    for line, column, char in _characters(module, end, whole[2:]):
        if opened == 0 or char != ")":
            break
        end, opened = (line, column + 1), opened - 1
    return *start, *end
