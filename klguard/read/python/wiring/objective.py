"""The clipped objective of a loop written by hand, where it is visibly turned around.

PPO minimises -min(r A, clip(r) A), with r = exp(log p - log p_old). The larger of the two instead of the smaller, the
ratio the other way up, and a KL that is taken off the loss each pull where the objective should hold. Only forms that
cannot be read otherwise are told: the ratio must be clipped around 1, and the KL must be one that is never negative.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from klguard.read.python.source import Module, called_name, dotted
from klguard.read.python.trees import walk_level
from klguard.read.python.wiring.bindings import Scope, ancestors, own_nodes
from klguard.read.python.wiring.bonus import kl_bonus
from klguard.read.python.wiring.loops import REFERENCE, takes_gradient
from klguard.read.python.wiring.signs import losses, parts, positive
from klguard.read.python.wiring.words import LOG_PROB, OLD, Assigned, assigned_once, scorers, word
from klguard.settings import Hop, HopKind, Known, Value

CLIPS = frozenset({"clamp", "clip"})
KL = re.compile(r"(^|_)(kl|kld|kl_?div\w*|kls)(_|$)", re.IGNORECASE)
LOSS = re.compile(r"(^|_)loss(es)?(_|$)", re.IGNORECASE)
MINUS_LOG_PROB = re.compile(r"entropy|nll|loss", re.IGNORECASE)
EARNED = re.compile(r"^(\w+_)?(adv|advantages?|rewards?|returns?|scores?)(_\w+)?$", re.IGNORECASE)
BASELINE = re.compile(r"baseline|mean|values?|rewards?", re.IGNORECASE)
NEGATED = re.compile(r"(^|_)neg", re.IGNORECASE)


def objective(scopes: list[tuple[Module, Scope]]) -> Value | None:
    """Known('larger' | 'inverted' | 'kl-gain' | 'kl-bonus' | 'minimised') where a function that a rollout is used in has
    such a term."""
    score = scorers(scopes)
    for where, scope in scopes:
        made = assigned_once(scope, score)
        for node in own_nodes(scope):
            form = _form(where, scope, node, made)
            if form and isinstance(node, ast.expr):
                return Known(form, (Hop(HopKind.LITERAL, where.ast_place(node), where.segment(node)),))
        if (paid := kl_bonus(scope, made)) is not None:
            return Known("kl-bonus", (Hop(HopKind.LITERAL, where.ast_place(paid), where.segment(paid)),))
    negated = {name for _, scope in scopes for name in _negated(scope)} - {""}
    for where, scope in scopes:
        made = assigned_once(scope, score)
        for loss, function in losses(scope):
            turned = None if {dotted(loss), function} & negated else _minimised(loss, made)
            if turned is not None and not any(k.arg == "maximize" for k in where.of(ast.keyword)):
                form, term = turned
                return Known(form, (Hop(HopKind.LITERAL, where.ast_place(term), where.segment(term)),))
    return None


def _minimised(loss: ast.expr, made: Assigned) -> tuple[str, ast.expr] | None:
    """What enters a loss with the wrong sign: min(r A, clip(r) A) with a plus, or k3 with a minus."""
    for sign, term in parts(loss, made, KL.search):
        if sign < 0 and KL.search(_bare(term)) and _is_k3(term, made):
            return "kl-gain", term
        if isinstance(term, ast.BinOp) and sign * _rewarded(term, made) > 0:
            return "minimised", term
        if not isinstance(term, ast.Call) or len(term.args) != 2:
            continue
        terms = [_product(argument, made) for argument in term.args]
        if any(each is None for each in terms) or {each[1] for each in terms if each} != {True, False}:
            continue
        signs = {each[0] for each in terms if each}
        smaller = called_name(term) in ("min", "minimum")
        larger = called_name(term) in ("max", "maximum")
        if (sign > 0 and signs == {1} and smaller) or (sign < 0 and signs == {-1} and larger):
            return "minimised", term
    return None


def _form(module: Module, scope: Scope, node: ast.AST, made: Assigned) -> str | None:
    if isinstance(node, ast.Call):
        if called_name(node) in ("min", "max", "minimum", "maximum") and len(node.args) == 2:
            return _larger(node, made)
        if called_name(node) in CLIPS and _around_one(node):
            return "inverted" if _upside_down(_clipped(node), made) else None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub) and takes_gradient(scope):
        return "kl-gain" if _kl_gain(module, scope, node, made) else None
    return None


def _rewarded(term: ast.BinOp, made: Assigned) -> int:
    """The sign of a product of log-probs, or of a ratio of the new policy over the old, and what was earned; else 0."""
    sign, factors = _factors(term, made)
    ratios = [f for f in factors if _exponential(f, made) is not None and not _upside_down(f, made)]
    scored = [f for f in factors if f not in ratios and _is_log_prob(f, made)]
    earned = [f for f in factors if EARNED.search(_earned(f)) and not _turned(f, made)]
    rest = [f for f in factors if f not in ratios and f not in scored and f not in earned]
    if len(ratios) + len(scored) != 1 or len(earned) != 1 or not all(map(positive, rest)):
        return 0
    return sign


def _is_log_prob(node: ast.expr, made: Assigned) -> bool:
    """Whether a factor is log p of the tokens, by its name; what a cross entropy gives is -log p."""
    name = word(_inner(node), made)
    if not LOG_PROB.search(name) or OLD.search(name) or REFERENCE.search(name) or NEGATED.search(name):
        return False
    made_of = made.get(dotted(_inner(node)))
    calls = (
        [called_name(n) for n in walk_level(made_of) if isinstance(n, ast.Call)]
        if made_of is not None
        else []
    )
    signs = isinstance(made_of, ast.UnaryOp) or any(MINUS_LOG_PROB.search(call) for call in calls)
    return not signs and "loss" not in name.lower()


def _turned(node: ast.expr, made: Assigned) -> bool:
    """Whether what is called earned was made with a minus before the rewards, so that its sign is not known."""
    made_of = made.get(dotted(_inner(node)))
    parts_of = list(walk_level(made_of)) if made_of is not None else []
    negated = any(_negates(n) for n in parts_of)
    taken_off = any(
        isinstance(n, ast.BinOp)
        and isinstance(n.op, ast.Sub)
        and BASELINE.search(word(_inner(n.left)) or "")
        and not EARNED.search(word(_inner(n.left)))
        for n in parts_of
    )
    return negated or taken_off or bool(NEGATED.search(_earned(node)))


def _negates(node: ast.AST) -> bool:
    """`-x` and `-1 * x`, and not the -1 of a shape."""
    sides = (
        (node.left, node.right) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) else (node,)
    )
    minus = [n for n in sides if isinstance(n, ast.UnaryOp) and isinstance(n.op, ast.USub)]
    return any(len(sides) == 2 or not isinstance(n.operand, ast.Constant) for n in minus)


def _earned(node: ast.expr) -> str:
    """The name of what was earned: `rewards` of `rewards`, `rewards[:, None]`, `(rewards - baseline)`."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub):
        return word(node.left) if BASELINE.search(word(_inner(node.right))) else ""
    return word(_inner(node))


def _resolved(node: ast.expr, made: Assigned) -> ast.expr:
    """What a name stands for."""
    for _ in range(4):
        name = dotted(node)
        if not name or name not in made:
            break
        node = made[name]
    return node


# -- the larger of the two --------------------------------------------------------------------------------------------


def _larger(call: ast.Call, made: Assigned) -> str | None:
    """Whether the pessimistic bound is taken from the wrong side: max(r A, clip(r) A), or min(-r A, -clip(r) A)."""
    one, other = (_product(argument, made) for argument in call.args)
    if one is None or other is None or one[0] != other[0] or one[2] != other[2]:
        return None
    if {one[1], other[1]} != {True, False}:
        return None
    takes_larger = called_name(call) in ("max", "maximum")
    return "larger" if takes_larger == (one[0] > 0) else None


def _product(node: ast.expr, made: Assigned) -> tuple[int, bool, str] | None:
    """(sign, whether the ratio is clipped, name of the advantages) of a product of a ratio and advantages."""
    sign, factors = _factors(_resolved(node, made), made)
    clipped = [f for f in factors if _is_clip(f)]
    ratios = [f for f in factors if _exponential(f, made) is not None]
    rest = [f for f in factors if f not in clipped and f not in ratios]
    if len(clipped) + len(ratios) != 1 or len(rest) != 1:
        return None
    name = word(rest[0])
    if "adv" not in name.lower() or NEGATED.search(name):
        return None
    return sign, bool(clipped), name


def _factors(node: ast.expr, made: Assigned) -> tuple[int, list[ast.expr]]:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        sign, factors = _factors(node.operand, made)
        return -sign, factors
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        one, left = _factors(node.left, made)
        other, right = _factors(node.right, made)
        return one * other, left + right
    return 1, [_resolved(node, made) if _is_clip(_resolved(node, made)) else node]


# -- the ratio --------------------------------------------------------------------------------------------------------


def _is_clip(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and called_name(node) in CLIPS and _around_one(node)


def _around_one(call: ast.Call) -> bool:
    """Whether a clip has bounds on both sides of 1: `1 - a` and `1 + b`, or two numbers."""
    bounds = [*call.args, *(keyword.value for keyword in call.keywords)][-2:]
    return len(bounds) == 2 and _is_bound(bounds[0], ast.Sub) and _is_bound(bounds[1], ast.Add)


def _is_bound(node: ast.expr, way: type[ast.operator]) -> bool:
    if isinstance(node, ast.Constant) and isinstance(node.value, float):
        return 0.3 < node.value < 1 if way is ast.Sub else 1 < node.value < 3
    return (
        isinstance(node, ast.BinOp)
        and isinstance(node.left, ast.Constant)
        and node.left.value == 1
        and isinstance(node.op, way)
    )


def _clipped(call: ast.Call) -> ast.expr:
    """What a clip is of: the object of a method, else the first argument."""
    function = call.func
    bounds = len(call.args) + len(call.keywords)
    if isinstance(function, ast.Attribute) and bounds == 2:
        return function.value
    return call.args[0] if call.args else call


def _exponential(node: ast.expr, made: Assigned) -> ast.expr | None:
    """What a ratio is the exponential of."""
    call = _resolved(node, made)
    if not (isinstance(call, ast.Call) and called_name(call) == "exp"):
        return None
    if call.args:
        return _resolved(call.args[0], made)
    return _resolved(call.func.value, made) if isinstance(call.func, ast.Attribute) else None


def _upside_down(ratio: ast.expr, made: Assigned) -> bool:
    """Whether a ratio is exp(old - new)."""
    inner = _exponential(ratio, made)
    if not (isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Sub)):
        return False
    left, right = word(inner.left, made), word(inner.right, made)
    if not (LOG_PROB.search(left) and LOG_PROB.search(right)) or REFERENCE.search(left + "_" + right):
        return False
    return bool(OLD.search(left)) and not OLD.search(right)


# -- the KL -----------------------------------------------------------------------------------------------------------


def _kl_gain(module: Module, scope: Scope, node: ast.BinOp, made: Assigned) -> bool:
    """Whether a KL that is never negative (k3) is taken off a loss that is minimised as it stands."""
    if not (LOSS.search(word(node.left)) or _is_negated_bound(node.left)) or not _is_k3(node.right, made):
        return False
    parents = [parent for parent, _ in ancestors(module, node)]
    if any(isinstance(p, ast.UnaryOp) and isinstance(p.op, ast.USub) for p in parents):
        return False
    target = next((p.targets[0] for p in parents if isinstance(p, ast.Assign)), None)
    if target is None or not LOSS.search(dotted(target).rpartition(".")[2]):
        return False
    return not any(name == dotted(target) for name in _negated(scope))


def _is_negated_bound(node: ast.expr) -> bool:
    """Whether a term is `-min(r A, clip(r) A)` or an average of it: what PPO minimises."""
    if not (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)):
        return False
    inner = _inner(node.operand)
    clips = any(_is_clip(part) for part in walk_level(inner) if isinstance(part, ast.expr))
    return isinstance(inner, ast.Call) and called_name(inner) in ("min", "minimum") and clips


def _is_k3(node: ast.expr, made: Assigned) -> bool:
    """Whether a term is a positive multiple of a KL of the form exp(d) - d - 1."""
    sign, factors = _factors(node, made)
    terms = [factor for factor in factors if KL.search(_bare(factor))]
    if sign < 0 or len(terms) != 1:
        return False
    form = _resolved(_inner(terms[0]), made)
    exponentials = [n for n in walk_level(form) if isinstance(n, ast.Call) and called_name(n) == "exp"]
    ones = [n for n in walk_level(form) if isinstance(n, ast.Constant) and n.value == 1]
    starts = isinstance(form, ast.BinOp) and not isinstance(form.op, ast.Mult)
    return len(exponentials) == 1 and len(ones) == 1 and starts and not _under_minus(form, exponentials[0])


def _inner(node: ast.expr) -> ast.expr:
    """What an average is of: `kl` in `kl.mean()`."""
    while (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and called_name(node) in ("mean", "sum")
    ):
        node = node.func.value
    return node


def _bare(node: ast.expr) -> str:
    return word(_inner(node))


def _under_minus(form: ast.expr, inner: ast.expr) -> bool:
    """Whether `inner` has a minus in front of it inside `form`."""
    for node in walk_level(form):
        if (
            isinstance(node, ast.UnaryOp)
            and isinstance(node.op, ast.USub)
            and inner in set(walk_level(node.operand))
        ):
            return True
        if (
            isinstance(node, ast.BinOp)
            and isinstance(node.op, ast.Sub)
            and inner in set(walk_level(node.right))
        ):
            return True
    return False


def _negated(scope: Scope) -> Iterator[str]:
    """Names that the function puts a minus before."""
    for node in own_nodes(scope):
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            for inner in walk_level(node.operand):
                if isinstance(inner, ast.Name | ast.Attribute):
                    yield dotted(inner)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub):
            for inner in walk_level(node.right):
                if isinstance(inner, ast.Name | ast.Attribute):
                    yield dotted(inner)
