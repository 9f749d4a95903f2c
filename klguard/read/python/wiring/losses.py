"""The loss of a loop written by hand: whether it has a KL term, and the mask of the responses."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping

from klguard.read.python.memo import remembered
from klguard.read.python.project import Project
from klguard.read.python.source import ClassInfo, Module, called_name, dotted
from klguard.read.python.trees import walk, walk_level
from klguard.read.python.wiring.bindings import Scope, ancestors, own_nodes
from klguard.read.python.wiring.estimators import kl_estimator
from klguard.read.python.wiring.loops import names_in, takes_gradient, training_scopes
from klguard.read.python.wiring.neighbours import imported
from klguard.read.python.wiring.objective import objective
from klguard.read.python.wiring.roles import constant
from klguard.read.python.wiring.shifts import unshifted
from klguard.read.python.wiring.third import turned_third
from klguard.settings import Hop, HopKind, Known, OneOf, Reason, Unknown, Value

KL_NAME = re.compile(
    r"(^|_)(kl|kls|kld)(_|$|\d)|kl_?div|kullback|divergence|(^|_)(ref|reference|frozen|anchor|sft|base_model|init_model)(_|$)",
    re.IGNORECASE,
)
COEFFICIENT = re.compile(
    r"(^|_)(beta|kl_?(coef|coeff|weight|beta|penalty|ctl|lambda|alpha|strength)\w*|init_kl_coef)$",
    re.IGNORECASE,
)
TERM = re.compile(r"(^|_)(kl|kls|kld|kl_?div\w*|kl_\w+|\w+_kl)(_|$)", re.IGNORECASE)
MASK = re.compile(r"mask", re.IGNORECASE)
ATTENTION = re.compile(r"att(entio)?n", re.IGNORECASE)
RESPONSE = re.compile(
    r"resp|completion|generat|continuation|sequences|answer|output_ids|action", re.IGNORECASE
)


def facts(project: Project, module: Module, call: ast.Call) -> dict[str, Value | None]:
    """`kl_estimator`, `kl_term`, `kl_coefficient`, `objective`, `unshifted` and `pad_is_eos_mask` of the training code
    around a generate call."""
    scopes = training_scopes(project, module, call)
    return {
        "kl_estimator": kl_estimator(project, scopes, _learns(scopes)) or turned_third(scopes),
        "kl_term": kl_term(project, module, scopes),
        "kl_coefficient": _zero_coefficient(project, scopes),
        "objective": objective(scopes),
        "unshifted": unshifted(scopes),
        "pad_is_eos_mask": pad_is_eos_mask(module, call, scopes),
    }


def _learns(scopes: list[tuple[Module, Scope]]) -> bool:
    return any(takes_gradient(scope) for _, scope in scopes)


def facts_of_class(
    project: Project, module: Module, call: ast.Call, cls: ClassInfo
) -> dict[str, Value | None]:
    """The same of a trainer that computes its loss in methods of its own, without what is known of a loop alone."""
    scopes: list[tuple[Module, Scope]] = [(cls.module, method.node) for method in cls.methods.values()]
    return {
        "kl_estimator": kl_estimator(project, scopes, True) or turned_third(scopes),
        "objective": objective(scopes),
        "unshifted": unshifted(scopes),
        "pad_is_eos_mask": pad_is_eos_mask(module, call, scopes),
    }


def kl_term_around(project: Project, module: Module, call: ast.Call) -> Value | None:
    """`kl_term` of the loop that a call belongs to."""
    return kl_term(project, module, training_scopes(project, module, call))


def kl_term(project: Project, module: Module, scopes: list[tuple[Module, Scope]]) -> Value | None:
    """Known(False) when the loop trains with no KL term: no name of one anywhere, or a coefficient of 0."""
    backwards = [(where, node) for where, scope in scopes for node in takes_gradient(scope)]
    if not backwards:
        return None
    zero = _zero_coefficient(project, scopes)
    if zero is not None:
        return Known(False, zero.hops)
    modules = {where for where, _ in scopes} | set(imported(project, module))
    if any(_speaks_of_kl(where) for where in modules):
        return None
    where, node = backwards[0]
    return Known(False, (Hop(HopKind.LITERAL, where.ast_place(node), where.segment(node)),))


@remembered
def _speaks_of_kl(module: Module) -> bool:
    """Whether any name in the module is one of a KL term or of a reference."""
    return any(KL_NAME.search(name) for name in _identifiers(module))


def _identifiers(module: Module) -> Iterator[str]:
    for node in module.nodes:
        match node:
            case (
                ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.FunctionDef(name=name)
            ):
                yield name
            case ast.keyword(arg=str(name)) | ast.alias(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Subscript(slice=ast.Constant(value=str(name))):
                yield name


def _zero_coefficient(project: Project, scopes: list[tuple[Module, Scope]]) -> Known | None:
    """The 0 of `beta * kl` with a beta that is literally 0, and no other such product in the loop."""
    found: list[Known | None] = []
    for where, scope in scopes:
        for node in own_nodes(scope):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
                for one, other in ((node.left, node.right), (node.right, node.left)):
                    factor, term = dotted(one).rpartition(".")[2], dotted(other).rpartition(".")[2]
                    if COEFFICIENT.search(factor) and TERM.search(term):
                        found.append(constant(project, where, one))
    if not found or any(k is None or k.value not in (0, 0.0) or isinstance(k.value, bool) for k in found):
        return None
    return found[0]


# -- the mask of the responses -------------------------------------------------------------------------------


def pad_is_eos_mask(module: Module, call: ast.Call, scopes: list[tuple[Module, Scope]]) -> Value | None:
    """Known(True) when the response mask is `ids != pad` and pad is the end-of-sequence token.

    The first end-of-sequence token is then masked out with the padding: the policy is never trained to stop.
    Where pad is set to it only `if tokenizer.pad_token is None`, the tokenizer decides.
    """
    made = _masks_made(scopes)
    for where, scope in scopes:
        generated = None
        for node in own_nodes(scope):
            if not isinstance(node, ast.Assign) or not (name := dotted(node.targets[0])):
                continue
            compared = _not_pad(node.value) or _not_pad_elsewhere(node.value, made)
            if compared is None or not (_is_mask(name) or _becomes_mask(scope, name)):
                continue
            if generated is None:
                generated = _generated(scope, call) if where is module else set()
            if not _is_response(compared[0], generated):
                continue
            pad = _pad_is_eos(module, call, compared[1])
            if pad is not None:
                statement, certain = pad
                hops = (Hop(HopKind.LITERAL, where.ast_place(node), where.segment(node.value)), statement)
                known = Known(True, hops)
                unclear = Unknown(Reason.RUNTIME, "tokenizer.pad_token is None", hops)
                return known if certain else OneOf((known, unclear))
    return None


def _is_mask(name: str) -> bool:
    last = name.rpartition(".")[2]
    return bool(MASK.search(last)) and not ATTENTION.search(last)


def _becomes_mask(scope: Scope, name: str) -> bool:
    """Whether a mask is multiplied by it: `mask = mask * attention`."""
    return any(
        isinstance(node, ast.Assign)
        and _is_mask(dotted(node.targets[0]))
        and isinstance(node.value, ast.BinOp)
        and isinstance(node.value.op, ast.Mult | ast.BitAnd)
        and name in (dotted(node.value.left), dotted(node.value.right))
        for node in own_nodes(scope)
    )


def _generated(scope: Scope, call: ast.Call) -> set[str]:
    """Names that hold the generated tokens, followed through the assignments of the function."""
    tainted: set[str] = set()
    for node in own_nodes(scope):
        if isinstance(node, ast.Assign):
            held = call in set(walk(node.value)) or bool(names_in(node.value) & tainted)
            if held:
                tainted |= {dotted(t) for t in node.targets} - {""}
    return tainted


def _not_pad(value: ast.expr) -> tuple[ast.expr, ast.expr] | None:
    """(ids, pad) of `(ids != pad).float()`, `ids.ne(pad)`, `torch.ne(ids, pad)`."""
    for node in walk_level(value):
        match node:
            case ast.Compare(left=ids, ops=[ast.NotEq()], comparators=[pad]) if _names_pad(pad):
                return ids, pad
            case ast.Call(func=ast.Attribute(value=ids, attr="ne" | "not_equal"), args=[pad]) if _names_pad(
                pad
            ):
                return ids, pad
            case ast.Call(func=ast.Attribute(attr="ne" | "not_equal"), args=[ids, pad]) if _names_pad(pad):
                return ids, pad
    return None


def _masks_made(scopes: list[tuple[Module, Scope]]) -> dict[str, tuple[int, ast.expr]]:
    """Functions that hand back `ids != pad` of one of their parameters: which of those given, and the pad."""
    found: dict[str, tuple[int, ast.expr]] = {}
    for _, scope in scopes:
        returned = [n.value for n in own_nodes(scope) if isinstance(n, ast.Return) and n.value is not None]
        compared = _not_pad(returned[0]) if len(returned) == 1 and not isinstance(scope, ast.Module) else None
        if compared is None or isinstance(returned[0], ast.Tuple):
            continue
        names = [arg.arg for arg in scope.args.args if arg.arg not in ("self", "cls")]  # type: ignore[union-attr]
        if dotted(compared[0]) in names:
            found[scope.name] = names.index(dotted(compared[0])), compared[1]  # type: ignore[union-attr]
    return found


def _not_pad_elsewhere(
    value: ast.expr, made: Mapping[str, tuple[int, ast.expr]]
) -> tuple[ast.expr, ast.expr] | None:
    """(ids, pad) of a call of a function that hands back such a mask."""
    for node in walk_level(value):
        if isinstance(node, ast.Call) and called_name(node) in made:
            index, pad = made[called_name(node)]
            if index < len(node.args) and not any(isinstance(a, ast.Starred) for a in node.args):
                return node.args[index], pad
    return None


def _names_pad(node: ast.expr) -> bool:
    return bool(
        re.search(
            r"(^|_)(pad|eos)(ding)?(_token)?(_id|_idx)?$", dotted(node).rpartition(".")[2], re.IGNORECASE
        )
    )


def _is_response(ids: ast.expr, generated: set[str]) -> bool:
    names = {dotted(n) for n in walk_level(ids) if isinstance(n, (ast.Name, ast.Attribute))} - {""}
    return bool(names & generated) or any(RESPONSE.search(name.rpartition(".")[2]) for name in names)


def _pad_is_eos(module: Module, call: ast.Call, pad: ast.expr) -> tuple[Hop, bool] | None:
    """The statement that makes pad the end-of-sequence token, and whether it always runs."""
    if "eos" in dotted(pad).rpartition(".")[2].lower():
        given = next((k.value for k in call.keywords if k.arg == "pad_token_id"), None)
        if given is not None and "eos" in dotted(given).rpartition(".")[2]:
            return Hop(HopKind.KWARG, module.ast_place(given), f"pad_token_id={module.segment(given)}"), True
    for node in module.of(ast.Assign):
        target, value = dotted(node.targets[0]), dotted(node.value)
        owner, _, field = target.rpartition(".")
        if field in ("pad_token", "pad_token_id") and value == f"{owner}.{field.replace('pad', 'eos')}":
            guards = [p for p, _ in ancestors(module, node) if isinstance(p, ast.If)]
            certain = not any("pad_token" in ast.unparse(guard.test) for guard in guards)
            return Hop(HopKind.ATTRIBUTE, module.ast_place(node), module.segment(node)), certain  # type: ignore[arg-type]
    return None
