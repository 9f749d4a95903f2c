"""What all nodes have in common: the `ast` node they stand for, and fields that are filled when they are read."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from klguard.read.python.nodes.spans import Span, segment

if TYPE_CHECKING:
    from klguard.read.python.source import Module

KINDS: dict[type, type[Node]] = {}
"""The class that stands for a class of `ast`."""

NodeType = TypeVar("NodeType", bound="Node")


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

    @classmethod
    def made_of(cls, origin: Any, module: Module | None) -> Node:
        """The node of an origin, with its fields still to be filled."""
        return node(cls, origin, module)

    def _fill(self, origin: Any, module: Module | None) -> None:
        """Read the fields off the origin."""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """The first read of a field; later ones find it in its slot."""
            if self.origin is None or not hasattr(type(self), name):
                raise AttributeError(f"{type(self).__name__} has no {name}")
            self._fill(self.origin, self.module)
            return object.__getattribute__(self, name)

    def span(self) -> Span:
        """Where the node stands. Raises KeyError when it stands nowhere."""
        if self.origin is None or self.module is None:
            raise KeyError(self)
        return self._span(self.origin, self.module)

    def _span(self, origin: Any, module: Module) -> Span:
        if not hasattr(origin, "lineno"):
            raise KeyError(self)
        return module.ast_span(origin)

    def text(self) -> str:
        """The source text, as it is written."""
        if self.origin is None or self.module is None:
            return self._composed()
        has_place = hasattr(self.origin, "lineno")
        return segment(self.module, self.module.ast_span(self.origin) if has_place else self.span())

    def _composed(self) -> str:
        """The text of a node that stands nowhere."""
        return ast.unparse(self.origin) if isinstance(self.origin, ast.AST) else ""


def stands_for(*kinds: type) -> Callable[[type[NodeType]], type[NodeType]]:
    """Class decorator: the classes of `ast` that a class of nodes stands for."""

    def register(cls: type[NodeType]) -> type[NodeType]:
        KINDS.update(dict.fromkeys(kinds, cls))
        return cls

    return register


def node(kind: Any, origin: Any, module: Module | None) -> Any:
    """A node of a class, with its fields still to be filled."""
    made = kind.__new__(kind)
    made.origin, made.module = origin, module
    return made


class Expression(Node):
    __slots__ = ()


class Unread(Expression):
    """An expression of a kind that is not analysed."""

    __slots__ = ()


def expression(origin: ast.expr, module: Module | None) -> Any:
    """The node of an expression. Without a module its place is not known."""
    return KINDS.get(origin.__class__, Unread).made_of(origin, module)


def optional(origin: ast.expr | None, module: Module | None) -> Any:
    return None if origin is None else expression(origin, module)


def expressions(origins: Iterable[ast.expr], module: Module | None) -> tuple[Any, ...]:
    return tuple([expression(origin, module) for origin in origins])
