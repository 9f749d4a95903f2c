"""What the variables of a loop written by hand are called, and hold: whose log-probs, under which weights."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator

from klguard.read.python.source import Module, called_name, dotted
from klguard.read.python.wiring.bindings import Scope, own_nodes
from klguard.read.python.wiring.loops import REFERENCE

LOG_PROB = re.compile(r"log_?p(rob)?s?(_|$|\d)|log_?prob|(^|_)lps?(_|$)", re.IGNORECASE)
OLD = re.compile(
    r"(^|_)(old|sampled?|behaviou?r|rollout|prev|previous|stored|detached|gen|vllm)(_|$)", re.IGNORECASE
)
OTHERWISE = re.compile(r"entropy|nll|loss|ratio|kl", re.IGNORECASE)
"""Words in the name of a function that hands back something else than log-probs."""

SHAPES = frozenset({"detach", "float", "to", "squeeze", "unsqueeze"})
NORMALISES, PICKS = frozenset({"log_softmax", "logsumexp"}), frozenset({"gather", "take_along_dim"})


class Assigned(dict[str, ast.expr]):
    """Name -> expression of the variables of a function that are assigned in one place. `log_probs` are those that hold
    what a function that scores tokens hands back, with words that say so: `old_logp`, `sft_logp_ref`."""

    def __init__(self, given: dict[str, ast.expr], scorers: Collection[str]) -> None:
        super().__init__(given)
        self.log_probs = {
            name: found for name, value in given.items() if (found := _scored(name, value, scorers))
        }


def assigned_once(scope: Scope, scorers: Collection[str] = ()) -> Assigned:
    """The variables that `scope` assigns in one place; `scorers` are functions that score tokens by another name."""
    found: dict[str, list[ast.expr]] = {}
    for node in own_nodes(scope):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                for name, value in _bound(target, node.value):
                    found.setdefault(name, []).append(value)
        elif isinstance(node, ast.AugAssign):
            found.setdefault(dotted(node.target), []).extend((node.value, node.value))
    return Assigned({n: values[0] for n, values in found.items() if n and len(values) == 1}, scorers)


def _bound(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    pairs = (
        isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts)
    )
    if pairs:
        for one, other in zip(target.elts, value.elts, strict=True):  # type: ignore[attr-defined]
            yield dotted(one), other
    else:
        yield dotted(target), value


def scorers(scopes: list[tuple[Module, Scope]]) -> frozenset[str]:
    """The names of those of the functions that take the log-probs of given tokens themselves."""
    found = set()
    for _, scope in scopes:
        calls = {called_name(n) for n in own_nodes(scope) if isinstance(n, ast.Call)}
        if (
            not isinstance(scope, ast.Module)
            and calls & NORMALISES
            and calls & PICKS
            and "backward" not in calls
        ):
            found.add(scope.name)
    return frozenset(found)


def _scored(name: str, value: ast.expr, scorers: Collection[str]) -> str:
    """Words for a variable that holds what such a function hands back, where its own name does not say so."""
    while isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr in SHAPES:
        value = value.func.value
    if not isinstance(value, ast.Call):
        return ""
    called, last = called_name(value), name.rpartition(".")[2]
    if called not in scorers and (not LOG_PROB.search(called) or OTHERWISE.search(called)):
        return ""
    said = last if LOG_PROB.search(last) else f"{last}_logp"
    model = dotted(value.args[0]) if value.args else ""
    of_reference = any(REFERENCE.search(part) for text in (called, model) for part in text.split("."))
    if of_reference and not REFERENCE.search(said):
        said += "_ref"
    return "" if said == last else said


def word(node: ast.expr, made: Assigned | None = None) -> str:
    """The last name of an operand, or the words for what it holds where it was `made` in the function; that it was
    detached, or stored, becomes a word of it."""
    mark = ""
    while True:
        match node:
            case ast.Call(func=ast.Attribute(value=inner, attr=method)) if method in SHAPES:
                mark = "_detached" if method == "detach" else mark
                node = inner
            case ast.Subscript(value=inner, slice=ast.Constant(value=str(key))):
                return f"{key}_stored"
            case ast.Subscript(value=inner):
                node = inner
            case _:
                name = dotted(node)
                if made is not None and name in made.log_probs:
                    return made.log_probs[name] + mark
                name = name.rpartition(".")[2]
                return name and name + mark
