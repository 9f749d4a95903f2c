"""Settings that visible code makes harmless again, where it scores the tokens of a rollout.

A temperature T is no mismatch when the trainer scores at T too: log softmax(z / T) is then the log-prob of
the distribution the token was drawn from. So is a filter put on the logits before they are scored.

To be certain, three things are asked of the code: the operation stands where tokens are scored and not where
they are drawn, it leads to training, and its operand is the very value the sampler was given: the same
variable or field, or the same literal.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

from klguard.read.python.callers import argument, default
from klguard.read.python.memo import remembered
from klguard.read.python.project import Project
from klguard.read.python.source import FunctionInfo, Module, called_name, dotted
from klguard.read.python.trees import walk_level
from klguard.read.python.wiring.bindings import Scope, own_nodes, scope_of
from klguard.read.python.wiring.loops import REFERENCE
from klguard.read.python.wiring.neighbours import related
from klguard.read.python.wiring.sameness import Atom, atoms, given
from klguard.read.python.wiring.samplers import sampler_of
from klguard.read.python.wiring.trails import calls_of, graph_of
from klguard.settings import SiteKind, Value

SCORES = re.compile(
    r"log_?soft_?max|logsumexp|log_?probs?|(^|_)log_?ps?($|_)|cross_entropy|^gather$|take_along|Categorical|nll",
    re.IGNORECASE,
)
"""Calls that score given tokens."""

DRAWS = frozenset(
    {"multinomial", "sample", "rsample", "categorical", "random_categorical", "generate_next_token"}
)
"""Calls that draw tokens: what shapes the logits here is the sampler itself."""

TRAINS = re.compile(
    r"loss|train|update|step|learn|optimi[sz]|objective|ppo|grpo|rloo|reinforce", re.IGNORECASE
)
FILTER = re.compile(r"top_?[kp]|nucleus|logits?_?(warper|filter)|filter_?logits", re.IGNORECASE)
FILTER_KEYWORDS = {"top_k": ("top_k", "k"), "top_p": ("top_p", "p", "threshold")}
MAX_CHAIN = 4


@dataclass(frozen=True)
class Division:
    """`logits / divisor` in `scope`; `text` names the logits."""

    module: Module
    scope: Scope
    node: ast.AST
    text: str
    divisor: ast.expr


def mitigations(
    project: Project, module: Module, call: ast.Call, kind: SiteKind, values: Mapping[str, Value]
) -> dict[str, str]:
    """Setting -> words, for settings that the training code this site belongs to undoes or repeats.

    values: what is in force at the site.
    """
    try:
        return _mitigations(project, module, call, kind, values)
    except RecursionError:
        return {}


def _mitigations(
    project: Project, module: Module, call: ast.Call, kind: SiteKind, values: Mapping[str, Value]
) -> dict[str, str]:
    if (
        kind is SiteKind.TRAINER
        or kind is SiteKind.GENERATE
        and sampler_of(project, module, call, "").classic
    ):
        return {}
    found = {}
    written = given(project, module, call, kind, "temperature", values.get("temperature"))
    if written and (words := _divided(project, module, written)):
        found["temperature"] = words
    for setting in FILTER_KEYWORDS:
        written = given(project, module, call, kind, setting, values.get(setting))
        if written and (words := _filtered(project, module, written, setting)):
            found[setting] = words
    return found


def _divided(project: Project, module: Module, written: frozenset[Atom]) -> str:
    for where in related(project, module):
        if "logit" not in where.text and "temperature" not in where.text:
            continue
        for division in divisions(project, where):
            alike = _matches(project, related(project, module), division, written)
            if alike and _trains(project, where, division.scope):
                name = getattr(division.scope, "name", "the training loop")
                place = where.ast_place(division.node)  # type: ignore[arg-type]
                return f"{name} divides the logits by {where.segment(division.divisor)} too ({place})"
    return ""


# -- divisions -----------------------------------------------------------------------------------------------


@remembered
def divisions(project: Project, module: Module) -> list[Division]:
    """Divisions of logits that are scored, not drawn from, with the reference's logits treated alike."""
    return list(_divisions(project, module))


def _divisions(project: Project, module: Module) -> Iterator[Division]:
    by_scope: dict[Scope, list[Division]] = {}
    for node in module.of(ast.BinOp, ast.AugAssign, ast.Call):
        if (parts := _division(node)) is not None or (
            parts := _handed_over(project, module, node)
        ) is not None:
            logits, divisor = parts
            scope = scope_of(module, node)
            by_scope.setdefault(scope, []).append(Division(module, scope, node, ast.unparse(logits), divisor))
    apart = any(_scores_the_reference_alone(info.node, by_scope) for info in module.functions.values())
    for scope, found in by_scope.items():
        if _scores(scope) and not _draws(scope) and not apart and _reference_alike(scope, found):
            yield from (d for d in found if not REFERENCE.search(_root(d.text)) and not _next_token(d.node))


def _division(node: ast.AST) -> tuple[ast.expr, ast.expr] | None:
    """(logits, divisor) of `logits / t`, `logits /= t`, `logits.div_(t)`, `torch.div(logits, t)`, `logits * (1 / t)`."""
    match node:
        case (
            ast.BinOp(
                left=logits,
                op=ast.Mult(),
                right=ast.BinOp(left=ast.Constant(value=1), op=ast.Div(), right=divisor),
            )
            | ast.BinOp(
                left=ast.BinOp(left=ast.Constant(value=1), op=ast.Div(), right=divisor),
                op=ast.Mult(),
                right=logits,
            )
            | ast.AugAssign(
                target=logits,
                op=ast.Mult(),
                value=ast.BinOp(left=ast.Constant(value=1), op=ast.Div(), right=divisor),
            )
        ) if _logits(logits):
            return logits, divisor
        case ast.BinOp(left=logits, op=ast.Div(), right=divisor) if _logits(logits):
            return logits, divisor
        case ast.AugAssign(target=logits, op=ast.Div(), value=divisor) if _logits(logits):
            return logits, divisor
        case ast.Call(func=ast.Attribute(value=logits, attr="div_" | "div"), args=[divisor]) if _logits(
            logits
        ):
            return logits, divisor
        case ast.Call(func=ast.Attribute(attr="div" | "true_divide"), args=[logits, divisor]) if _logits(
            logits
        ):
            return logits, divisor
    return None


def _handed_over(project: Project, module: Module, node: ast.AST) -> tuple[ast.expr, ast.expr] | None:
    """`logprobs_from_logits(logits, labels, temperature=t)` of a library, which divides out of sight."""
    if not isinstance(node, ast.Call) or not node.args or not SCORES.search(called_name(node)):
        return None
    divisor = next((k.value for k in node.keywords if k.arg in ("temperature", "temp")), None)
    if divisor is None or graph_of(project).target(module, node) is not None:
        return None
    name = dotted(node.func)
    imported = name.split(".")[0] in module.imports and not name.startswith("self.")
    return (node.args[0], divisor) if imported else None


def _logits(node: ast.expr) -> bool:
    names = [
        n.id if isinstance(n, ast.Name) else n.attr
        for n in walk_level(node)
        if isinstance(n, (ast.Name, ast.Attribute))
    ]
    return any("logit" in name.lower() or name == "lm_head" for name in names)


def _root(text: str) -> str:
    """The first name of an expression, without self: `ref_logits` of `ref_logits[:, :-1]`."""
    return re.split(r"[^\w.]", text.removeprefix("self."))[0]


def _calls(scope: Scope) -> Iterator[str]:
    return (called_name(n) for n in own_nodes(scope) if isinstance(n, ast.Call))


def _scores(scope: Scope) -> bool:
    return any(SCORES.search(name) for name in _calls(scope))


def _draws(scope: Scope) -> bool:
    return any(name in DRAWS for name in _calls(scope))


def _next_token(node: ast.AST) -> bool:
    """`logits[:, -1, :]`: the distribution of one next token."""
    return any(
        isinstance(n, ast.Subscript)
        and isinstance(n.slice, ast.Tuple)
        and any(isinstance(e, ast.UnaryOp) and isinstance(e.op, ast.USub) for e in n.slice.elts)
        for n in walk_level(node)
    )


def _reference_alike(scope: Scope, found: list[Division]) -> bool:
    """Whether logits of a reference, where the same function has them, are divided as well."""
    names = {
        name
        for n in own_nodes(scope)
        if isinstance(n, (ast.Name, ast.Attribute))
        and isinstance(n.ctx, ast.Store)
        and "logits" in (name := dotted(n)).lower()
        and REFERENCE.search(name)
    }
    return not names or any(REFERENCE.search(_root(d.text)) for d in found)


def _scores_the_reference_alone(scope: Scope, divided: Container[Scope]) -> bool:
    """Whether a function takes the log-probs of a reference, by its name and by the model it runs, from logits that
    nothing divides."""
    if scope in divided or not REFERENCE.search(scope.name) or not _scores(scope) or _draws(scope):  # type: ignore[union-attr]
        return False
    stores = [
        n for n in own_nodes(scope) if isinstance(n, ast.Assign) and "logits" in dotted(n.targets[0]).lower()
    ]
    calls = [n for node in stores for n in walk_level(node.value) if isinstance(n, ast.Call)]
    runs = any(REFERENCE.search(part) for n in calls for part in dotted(n.func).split("."))
    return runs and not any("temp" in name.lower() for name in _identifiers(scope))


def _identifiers(scope: Scope) -> Iterator[str]:
    for node in own_nodes(scope):
        match node:
            case (
                ast.Name(id=name) | ast.Attribute(attr=name) | ast.keyword(arg=str(name)) | ast.arg(arg=name)
            ):
                yield name


# -- the same value ------------------------------------------------------------------------------------------


def _matches(project: Project, program: list[Module], division: Division, written: frozenset[Atom]) -> bool:
    """Whether the divisor is the sampler's temperature, for callers that score the policy or a reference."""
    info = division.module.by_node.get(division.scope)
    name = dotted(division.divisor)
    spec = info.node.args if info is not None else None
    own = {a.arg for a in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)} if spec is not None else set()
    if info is None or name not in own:
        return bool(atoms(project, division.module, division.divisor) & written)
    return _callers_match(project, program, info, name, written)


def _callers_match(
    project: Project, program: list[Module], info: FunctionInfo, name: str, written: frozenset[Atom]
) -> bool:
    matched = False
    for module, call in calls_of(project, info):
        if module not in program:
            continue
        value = argument(info, call, name) or default(info, name)
        where = module if value in module.parents else info.module
        if value is not None and atoms(project, where, value) & written:
            matched = True
        elif REFERENCE.search(" ".join(re.findall(r"\w+", ast.unparse(call))).replace(" ", "_")):
            return False
    return matched


def _trains(project: Project, module: Module, scope: Scope, depth: int = MAX_CHAIN) -> bool:
    """Whether what the function computes is trained on: it, or somebody who calls it, takes a gradient."""
    if any(name in ("backward", "value_and_grad", "grad") for name in _calls(scope)):
        return True
    info = module.by_node.get(scope)
    if info is None or depth == 0:
        return False
    if TRAINS.search(info.name):
        return True
    return any(
        _trains(project, caller, scope_of(caller, call), depth - 1)
        for caller, call in calls_of(project, info)
        if scope_of(caller, call) is not scope
    )


# -- filters -------------------------------------------------------------------------------------------------


def _filtered(project: Project, module: Module, written: frozenset[Atom], setting: str) -> str:
    """Words for a top-k or top-p mask, with the sampler's own value, on logits that are scored."""
    for where in related(project, module):
        if setting not in where.text:
            continue
        for call in (c for name, calls in where.calls.items() if FILTER.search(name) for c in calls):
            scope = scope_of(where, call)
            values = [k.value for k in call.keywords if k.arg in FILTER_KEYWORDS[setting]]
            if not values or not any(_logits(a) for a in call.args) or not _scores(scope) or _draws(scope):
                continue
            if atoms(project, where, values[0]) & written and _trains(project, where, scope):
                name = getattr(scope, "name", "the training loop")
                return f"{name} applies the same {setting} to the logits it scores ({where.ast_place(call)})"
    return ""
