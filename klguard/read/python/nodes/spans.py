"""Where a node stands in its module. What `ast` says is almost it: a tuple and a generator are reported without
their parentheses, and some nodes (`**value` in a dict, `a or b` in `a or b or c`) have no place in `ast`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from klguard.read.python.source import Module

Point = tuple[int, int]
Span = tuple[int, int, int, int]
"""(line, column, end line, end column): lines from 1, columns from 0, in characters."""


def segment(module: Module, where: Span) -> str:
    """The text of a span."""
    line, column, end_line, end_column = where
    lines = module.lines[line - 1 : end_line]
    if len(lines) == 1:
        return lines[0][column:end_column]
    return "\n".join([lines[0][column:], *lines[1:-1], lines[-1][:end_column]]) if lines else ""


def is_parenthesized(origin: ast.Tuple, module: Module) -> bool:
    """Whether the parentheses that a tuple begins with, if any, are its own: not so in `(a), b`."""
    line, column, end_line, end_column = module.ast_span(origin)
    if not origin.elts:
        return True
    first = module.ast_span(origin.elts[0])
    opened = sum(char == "(" for _, _, char in _characters(module, (line, column), first[:2]))
    for _, _, char in _characters(module, first[2:], (end_line, end_column)):
        if char != ")":
            break
        opened -= 1
    return opened > 0


def without_parentheses(origin: ast.Tuple | ast.GeneratorExp, module: Module) -> Span:
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


def up_to(origin: ast.BoolOp, last: int, module: Module) -> Span:
    """`a or b` in `a or b or c`."""
    whole = module.ast_span(origin)
    if last == len(origin.values) - 1:
        return whole
    after = module.ast_span(origin.values[last + 1])[:2]
    return *whole[:2], *_closed(module, module.ast_span(origin.values[last])[2:], after, len(module.text))


def starred(origin: ast.Dict, index: int, module: Module) -> Span:
    """`**value` in a dict."""
    whole, value = module.ast_span(origin), module.ast_span(origin.values[index])
    before = module.ast_span(origin.values[index - 1])[2:] if index else whole[:2]
    start, opened = value[:2], 0
    for line, column, char in reversed(list(_characters(module, before, value[:2]))):
        opened += char == "("
        if char == "*":
            start = line, column - 1
            break
    return *start, *_closed(module, value[2:], whole[2:], opened)


def _closed(module: Module, end: Point, limit: Point, most: int) -> Point:
    """`end`, moved behind the closing parentheses that follow it."""
    for line, column, char in _characters(module, end, limit):
        if char != ")" or most <= 0:
            break
        end, most = (line, column + 1), most - 1
    return end


def _characters(module: Module, start: Point, end: Point) -> Iterator[tuple[int, int, str]]:
    """(line, column, character) of what is written between two points, without space and comments."""
    for line in range(start[0], end[0] + 1):
        written = module.line(line)
        first = start[1] if line == start[0] else 0
        last = end[1] if line == end[0] else len(written)
        for column in range(first, min(last, len(written))):
            char = written[column]
            if char == "#":
                break
            if not char.isspace() and char != "\\":
                yield line, column, char
