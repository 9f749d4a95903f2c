"""Who is who at a site: the policy, the reference, the tokenizer, the adapter, and what made them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from klguard.read.python.callers import positional
from klguard.read.python.project import Project
from klguard.read.python.source import ClassInfo, Module, called_name, dotted
from klguard.read.python.wiring.trails import (
    Origin,
    graph_of,
    origin,
    origin_within,
    origins,
    origins_within,
)
from klguard.settings import Hop, HopKind, Known, Value

POLICY = ("model", "policy", "policy_model", "actor", "actor_model")
REFERENCE = (
    "ref_model",
    "ref_policy",
    "ref_policy_model",
    "reference_model",
    "reference_policy",
    "model_ref",
    "reference",
    "ref",
)
TOKENIZER = ("tokenizer", "processing_class")
ARGUMENTS = ("args", "config")

TRAINER_CLASS = re.compile(r"Trainer$")
TOKENIZER_NAME = re.compile(r"(^|[._])(tok|processor|processing_class)\d*$|tokeni[sz]er", re.IGNORECASE)
TOKENIZER_CLASS = re.compile(r"Tokenizer(Fast)?$|Processor$")
CONFIGURATION_CLASS = re.compile(r"(Config|Arguments)$")
CONFIGURATION_NAME = re.compile(r"(^|[._])(config|cfg|args|arguments)$")
VALUE_HEAD = re.compile(r"WithValueHead$|WithHydraValueHead$")
CHECKPOINT_NAME = re.compile(r"(name|path|id|checkpoint|ckpt|dir|str)$", re.IGNORECASE)
MAKES_MODELS = frozenset({"from_pretrained", "get_peft_model", "from_config"})
COPIES = frozenset({"create_reference_model", "deepcopy"})
SOURCES = ("pretrained_model_name_or_path", "model_name", "model_name_or_path", "model_path", "model")


@dataclass(frozen=True)
class Slots:
    """The arguments of a trainer's constructor that matter, by role."""

    policy: ast.expr | None = None
    reference: ast.expr | None = None
    tokenizer: ast.expr | None = None
    adapter: ast.expr | None = None


@dataclass(frozen=True)
class Made:
    """Where the weights behind an expression were made, as a name, with the way there."""

    name: str
    hops: tuple[Hop, ...] = ()


def known(value: Any, module: Module, node: ast.expr, kind: HopKind = HopKind.LITERAL) -> Known:
    """A fact shown by one expression."""
    return Known(value, (Hop(kind, module.ast_place(node), module.segment(node)),))


# -- trainers ----------------------------------------------------------------------------------------------


def slots(project: Project, module: Module, call: ast.Call, engine: str) -> Slots:
    """The policy, reference, tokenizer and adapter given to a trainer's constructor."""
    given = given_arguments(project, module, call, engine)

    def first(names: tuple[str, ...]) -> ast.expr | None:
        return next((given[name] for name in names if name in given), None)

    return Slots(first(POLICY), first(REFERENCE), first(TOKENIZER), given.get("peft_config"))


def given_arguments(project: Project, module: Module, call: ast.Call, engine: str) -> dict[str, ast.expr]:
    """Arguments of a constructor by name; positional ones where their order is known."""
    given = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    if any(isinstance(argument, ast.Starred) for argument in call.args):
        return given
    for name, value in zip(_order(project, module, call, engine), call.args, strict=False):
        given.setdefault(name, value)
    return given


def _order(project: Project, module: Module, call: ast.Call, engine: str) -> tuple[str, ...]:
    """Names of the positional parameters: of the project's own class, else of the library's."""
    name = dotted(call.func)
    if not call.args or not name:
        return ()
    graph = graph_of(project)
    target = graph.lookup(module, call, name)
    if isinstance(target, ClassInfo):
        constructor = graph.method(target, "__init__")
        if constructor is not None:
            return tuple(positional(constructor, call))
        target = next((base for base in graph.external_bases(target) if TRAINER_CLASS.search(base)), "")
    if not isinstance(target, str):
        return ()
    return _likely_order(project, module, call, _known_orders(engine, target.rpartition(".")[2]))


def _known_orders(engine: str, class_name: str) -> list[tuple[str, ...]]:
    """Every order of positional parameters the class has had, in any release."""
    from klguard.engines import ENGINES

    rows: Any = ENGINES[engine].orders.get(class_name, ()) if engine in ENGINES else ()
    if rows and all(isinstance(row, str) for row in rows):
        return [tuple(rows)]
    return [tuple(row.value) for row in rows]


def _likely_order(
    project: Project, module: Module, call: ast.Call, orders: list[tuple[str, ...]]
) -> tuple[str, ...]:
    """The order that the call itself fits best; empty when two fit equally well.

    Which release a script was written for shows in its arguments: PPOTrainer took (config, model, ref_model,
    tokenizer) up to trl 0.11 and (args, processing_class, model, ref_model, reward_model) from 0.12.
    """
    scored = sorted((_misfits(project, module, call, order), order) for order in dict.fromkeys(orders))
    best = [order for misfits, order in scored if misfits == scored[0][0]]
    heads = {tuple(_role(name) for name in order[: len(call.args)]) for order in best}
    return best[0] if len(heads) == 1 else ()


def _role(name: str) -> str:
    """The same word for `model` and `policy`, which releases have called the same slot."""
    return next((names[0] for names in (POLICY, REFERENCE, TOKENIZER, ARGUMENTS) if name in names), name)


def _misfits(project: Project, module: Module, call: ast.Call, order: tuple[str, ...]) -> int:
    unknown = sum(keyword.arg is not None and keyword.arg not in order for keyword in call.keywords)
    wrong = sum(
        (is_tokenizer(project, module, value) != (name in TOKENIZER))
        + 2 * (name not in ARGUMENTS and is_configuration(project, module, value))
        for name, value in zip(order, call.args, strict=False)
    )
    return unknown + wrong + max(0, len(call.args) - len(order))


def is_configuration(project: Project, module: Module, node: ast.expr) -> bool:
    """Whether the object is a trainer's configuration, by the class that made it, else by its name."""
    made = origin(project, module, node)
    maker = made.node if made is not None else node
    by_class = isinstance(maker, ast.Call) and CONFIGURATION_CLASS.search(called_name(maker))
    return bool(by_class or CONFIGURATION_NAME.search(dotted(node)))


def is_tokenizer(project: Project, module: Module, node: ast.expr) -> bool:
    """Whether the object is a tokenizer or processor, by the class that made it, else by its name."""
    made = origin(project, module, node)
    if made is not None and isinstance(made.node, ast.Call):
        name = dotted(made.node.func)
        if called_name(made.node) == "from_pretrained":
            return bool(TOKENIZER_CLASS.search(name.rpartition(".")[0]))
        return bool(TOKENIZER_CLASS.search(name) or TOKENIZER_NAME.search(name))
    return bool(TOKENIZER_NAME.search(dotted(node)))


def is_none(project: Project, module: Module, node: ast.expr) -> bool:
    """Whether the expression is certainly None."""
    made = origin(project, module, node)
    return made is not None and isinstance(made.node, ast.Constant) and made.node.value is None


# -- identity ----------------------------------------------------------------------------------------------


def same_weights(project: Project, module: Module, node: ast.expr) -> Made:
    """A name for the weights behind `node`: equal names are certainly the same object.

    A value head of trl wraps the model it is given, and a LoRA adapter is put into it in place, so both are
    looked through. The name of a checkpoint in two slots makes two models, so it never equals another.
    """
    return _same_weights(project, module, node, origins(project, module, node))


def _same_weights(project: Project, module: Module, node: ast.expr, found: list[Origin]) -> Made:
    made = found[0]
    if len(found) > 1 or _may_be_a_name(made):
        return Made(f"{module.segment(node)} at {module.ast_place(node)}")
    inner = _wrapped(project, made)
    if inner is not None:
        below = _same_weights(project, made.module, inner, origins_within(project, made, inner))
        return Made(below.name, (*made.hops, *below.hops))
    if made.open:
        return Made(":".join(map(str, made.identity)), made.hops)
    place = made.module.ast_place(made.node)
    hop = Hop(HopKind.LITERAL, place, made.module.segment(made.node))
    calls = "".join(f" of {each.module.ast_place(each.call)}" for each in made.entered)
    return Made(f"{made.module.segment(made.node)} at {place}{calls}", (*made.hops, hop))


def _may_be_a_name(made: Origin) -> bool:
    """Whether the object may be the name of a checkpoint: a text, or a field of a configuration."""
    if isinstance(made.node, (ast.Constant, ast.JoinedStr, ast.BinOp, ast.Subscript)):
        return True
    name = dotted(made.node)
    return bool(CHECKPOINT_NAME.search(name)) or "." in name and not name.startswith("self.")


def _wrapped(project: Project, made: Origin) -> ast.expr | None:
    """The model inside a wrapper that shares its weights with it."""
    call = made.node
    if not isinstance(call, ast.Call) or not call.args:
        return None
    if VALUE_HEAD.search(dotted(call.func).removesuffix(".from_pretrained")):
        inner = origin_within(project, made, call.args[0])
        return call.args[0] if inner is not None and _makes_model(inner.node) else None
    if called_name(call) == "get_peft_model" and len(call.args) > 1:
        config = origin_within(project, made, call.args[1])
        is_lora = (
            config is not None
            and isinstance(config.node, ast.Call)
            and called_name(config.node) == "LoraConfig"
        )
        return call.args[0] if is_lora else None
    return None


def _makes_model(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and called_name(node) in MAKES_MODELS


def loads(project: Project, module: Module, node: ast.expr) -> Iterator[tuple[Origin, ast.Call]]:
    """The calls that made a model, outermost first: value head, adapter, checkpoint; each at the end of its trail."""
    made = origin(project, module, node)
    while made is not None and isinstance(made.node, ast.Call):
        call = made.node
        yield made, call
        wraps = called_name(call) in MAKES_MODELS | COPIES or VALUE_HEAD.search(called_name(call))
        if not wraps or not call.args:
            return
        below = origin_within(project, made, call.args[0])
        made = below if below is not None and _makes_model(below.node) and below.node is not call else None


# -- checkpoints -------------------------------------------------------------------------------------------


def checkpoint(project: Project, module: Module, node: ast.expr) -> Value | None:
    """The literal name of the checkpoint a model was loaded from, or that a trainer or engine was given."""
    direct = constant(project, module, node)
    if direct is not None:
        return name_of(direct)
    for made, call in loads(project, module, node):
        if called_name(call) == "get_peft_model" or called_name(call) in COPIES:
            continue
        source = named_source(call)
        name = constant_within(project, made, source) if source is not None else None
        if name is not None:
            return name_of(name) if "Peft" not in dotted(call.func) else None
    return None


def named_source(call: ast.Call) -> ast.expr | None:
    """The argument of a loading call that names the checkpoint."""
    given = next((keyword.value for keyword in call.keywords if keyword.arg in SOURCES), None)
    return given or (call.args[0] if call.args else None)


def name_of(found: Known) -> Known | None:
    """`found` when it can be the name of a checkpoint."""
    return found if isinstance(found.value, str) and found.value else None


def constant(project: Project, module: Module, node: ast.expr) -> Known | None:
    """The literal an expression stands for: through names, and through the default of a command-line flag."""
    return _constant(origins(project, module, node))


def constant_within(project: Project, made: Origin, node: ast.expr) -> Known | None:
    """The literal that `node` stands for, a part of the expression at which a trail ended."""
    return _constant(origins_within(project, made, node))


def _constant(found: list[Origin]) -> Known | None:
    if len(found) != 1:
        return None
    made = found[0]
    if isinstance(made.node, ast.Constant):
        return known(made.node.value, made.module, made.node)
    return _flag_default(made.module, made.node.attr) if isinstance(made.node, ast.Attribute) else None


def _flag_default(module: Module, name: str) -> Known | None:
    """The default of `--name`, or of the one dataclass field of that name, in the module that reads it."""
    for call in module.calls.get("add_argument", ()):
        flags = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        if any(flag.lstrip("-").replace("-", "_") == name for flag in flags):
            return _literal(module, _keyword(call, "default"), HopKind.ARGPARSE)
    fields = [
        node.value
        for cls in module.classes.values()
        for node in cls.node.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name
    ]
    if len(fields) != 1:
        return None
    value = fields[0]
    if isinstance(value, ast.Call) and called_name(value) in ("field", "Field"):
        value = _keyword(value, "default")
    return _literal(module, value, HopKind.DEFAULT)


def _keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((keyword.value for keyword in call.keywords if keyword.arg == name), None)


def _literal(module: Module, node: ast.expr | None, kind: HopKind) -> Known | None:
    return known(node.value, module, node, kind) if isinstance(node, ast.Constant) else None
