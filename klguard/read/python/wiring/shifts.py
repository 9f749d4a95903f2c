"""Log-probs that are read at the wrong place: the logits at a position are about the token after it.

Told only where it can be seen from end to end: the logits of a call on some ids, whole, and the same ids, whole,
gathered from their log-softmax.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

from klguard.read.python.source import Module, called_name, dotted
from klguard.read.python.wiring.bindings import Scope, definitions, own_nodes
from klguard.read.python.wiring.words import NORMALISES, PICKS
from klguard.settings import Hop, HopKind, Known, Value

KEEPS_PLACES = frozenset(
    "float to long int unsqueeze squeeze contiguous clone detach cpu cuda double type_as".split()
)
MAX_STEPS = 12


def unshifted(scopes: list[tuple[Module, Scope]]) -> Value | None:
    """Known(True) where a function that a rollout is used in takes the log-prob of a token from the logits at its own
    position."""
    for where, scope in scopes:
        for call, log_probs, index in _gathers(scope):
            ids = _source(where, scope, index)
            made = _normalised(where, scope, log_probs)
            if isinstance(ids, ast.Name | ast.Attribute) and made is not None:
                given = _input(where, scope, made)
                if given is not None and dotted(given) == dotted(ids) and _settled(where, scope, ids):
                    return Known(True, (Hop(HopKind.LITERAL, where.ast_place(call), where.segment(call)),))
    return None


def _gathers(scope: Scope) -> Iterator[tuple[ast.Call, ast.expr, ast.expr]]:
    """(call, what is gathered from, index) of each gather along the vocabulary."""
    for node in own_nodes(scope):
        if not isinstance(node, ast.Call) or called_name(node) not in PICKS:
            continue
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        is_function = isinstance(node.func, ast.Attribute) and dotted(node.func.value) == "torch"
        args = (
            list(node.args)
            if is_function or not isinstance(node.func, ast.Attribute)
            else [node.func.value, *node.args]
        )
        index = given.get("index") or next((a for a in args[1:] if not _is_number(a)), None)
        if args and index is not None:
            yield node, args[0], index


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant | ast.UnaryOp)


def _source(
    module: Module, scope: Scope, node: ast.expr, made_of: Callable[[ast.expr], bool] = lambda value: False
) -> ast.expr | None:
    """What an expression is made of by steps that leave every token at its place; None where one may not.

    made_of   what else a name may stand for, to be looked through.
    """
    for _ in range(MAX_STEPS):
        match node:
            case ast.Call(func=ast.Attribute(value=inner, attr=name)) if name in KEEPS_PLACES:
                node = inner
            case ast.Subscript(value=inner, slice=index) if _whole(index):
                node = inner
            case ast.Name():
                found = definitions(module, scope).get(node.id, [])
                value = found[0].value if len(found) == 1 else None
                if value is None or not (_moves_nothing(value) or made_of(value)):
                    return node
                node = value
            case _:
                return node
    return None


def _moves_nothing(value: ast.expr) -> bool:
    """Whether an expression is another one with every token at its place."""
    match value:
        case ast.Name():
            return True
        case ast.Call(func=ast.Attribute(attr=name)):
            return name in KEEPS_PLACES
        case ast.Subscript(slice=index):
            return _whole(index)
    return False


def _is_call(value: ast.expr) -> bool:
    return isinstance(value, ast.Call)


def _is_logits(value: ast.expr) -> bool:
    return isinstance(value, ast.Attribute) and value.attr == "logits"


def _whole(index: ast.expr) -> bool:
    """Whether an index takes everything there is: `[..., None]`, `[:, :, None]`."""
    parts = index.elts if isinstance(index, ast.Tuple) else [index]
    return all(
        (isinstance(part, ast.Constant) and part.value in (None, ...))
        or (isinstance(part, ast.Slice) and part.lower is part.upper is part.step is None)
        for part in parts
    )


def _normalised(module: Module, scope: Scope, node: ast.expr) -> ast.expr | None:
    """The logits that a log-softmax is taken of."""
    found = _source(module, scope, node, _is_call)
    if not isinstance(found, ast.Call) or called_name(found) not in NORMALISES - {"logsumexp"}:
        return None
    named = next((keyword.value for keyword in found.keywords if keyword.arg == "input"), None)
    is_method = isinstance(found.func, ast.Attribute) and dotted(found.func.value) not in (
        "torch",
        "F",
        "nn.functional",
    )
    if is_method and dotted(found.func) != "torch.nn.functional.log_softmax":
        assert isinstance(found.func, ast.Attribute)
        return found.func.value
    return named or (found.args[0] if found.args else None)


def _input(module: Module, scope: Scope, logits: ast.expr) -> ast.expr | None:
    """The ids of which `model(ids).logits` are the logits."""
    found = _source(module, scope, logits, _is_logits)
    if not isinstance(found, ast.Attribute) or found.attr != "logits":
        return None
    made = _source(module, scope, found.value, _is_call)
    if not isinstance(made, ast.Call) or any(k.arg in ("labels", "decoder_input_ids") for k in made.keywords):
        return None
    named = next((keyword.value for keyword in made.keywords if keyword.arg == "input_ids"), None)
    given = named or (made.args[0] if made.args and not isinstance(made.args[0], ast.Starred) else None)
    return None if given is None else _source(module, scope, given)


def _settled(module: Module, scope: Scope, ids: ast.expr) -> bool:
    """Whether the name means the same tokens all through the function."""
    return len(definitions(module, scope).get(dotted(ids), [])) <= 1
