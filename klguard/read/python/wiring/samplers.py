"""Who samples at a generate call: a model, the policy inside a trainer, or an inference engine."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, replace

from klguard.read.python.project import Project
from klguard.read.python.source import ClassInfo, Module, called_name, dotted
from klguard.read.python.wiring.carried import dropout, encoder_decoder
from klguard.read.python.wiring.roles import (
    TRAINER_CLASS,
    Slots,
    checkpoint,
    constant,
    name_of,
    named_source,
    slots,
)
from klguard.read.python.wiring.trails import Origin, graph_of, origin, peel
from klguard.settings import Value

WRAPPERS = frozenset({"module", "pretrained_model", "base_model"})
TRAINER_NAME = re.compile(r"trainer\d*$", re.IGNORECASE)


@dataclass(frozen=True)
class Sampler:
    """Who samples.

    model      the expression for the model (`self.policy`); None where a trainer or engine stands before it.
    trained    the call goes through a trainer: `ppo_trainer.generate`, `trainer.model.generate`.
    trainer    the constructor of that trainer, where it is visible.
    classic    the trainer is trl's PPOTrainer up to 0.11, the one with a `generate` of its own.
    """

    model: ast.expr | None = None
    trained: bool = False
    trainer: Origin | None = None
    classic: bool = False
    checkpoint: Value | None = None
    dropout: Value | None = None
    encoder_decoder: Value | None = None


def sampler_of(project: Project, module: Module, call: ast.Call, engine: str) -> Sampler:
    """Who samples at `x.generate(...)` or `generate(model, ...)`."""
    receiver = (
        call.func.value if isinstance(call.func, ast.Attribute) else call.args[0] if call.args else None
    )
    if receiver is None:
        return Sampler()
    receiver = bare(receiver)
    through = _through_trainer(project, module, receiver)
    if through is not None:
        return through
    made = origin(project, module, receiver)
    if engine in ("vllm", "sglang") or _makes(made, "LLM"):
        return Sampler(checkpoint=_engine_checkpoint(project, made))
    return _of_model(project, module, receiver, Sampler(model=receiver))


def bare(node: ast.expr) -> ast.expr:
    """The model behind `.module`, `.pretrained_model` and unwrapping calls."""
    node = peel(node)
    while isinstance(node, ast.Attribute) and node.attr in WRAPPERS:
        node = peel(node.value)
    return node


def _makes(made: Origin | None, name: str) -> bool:
    return made is not None and isinstance(made.node, ast.Call) and called_name(made.node) == name


def _engine_checkpoint(project: Project, made: Origin | None) -> Value | None:
    """The model that `LLM(model="...")` serves."""
    if made is None or not isinstance(made.node, ast.Call):
        return None
    source = named_source(made.node)
    name = constant(project, made.module, source) if source is not None else None
    return name_of(name) if name is not None else None


def _through_trainer(project: Project, module: Module, receiver: ast.expr) -> Sampler | None:
    """`ppo_trainer.generate(...)`, `trainer.model.generate(...)`: the policy the trainer was built with."""
    inner = isinstance(receiver, ast.Attribute) and receiver.attr in ("model", "policy")
    holder = receiver.value if inner else receiver  # type: ignore[attr-defined]
    made = origin(project, module, holder)
    model = receiver if inner else None
    if (
        made is None
        or not isinstance(made.node, ast.Call)
        or not TRAINER_CLASS.search(called_name(made.node))
    ):
        return Sampler(model=model, trained=True) if TRAINER_NAME.search(dotted(holder)) else None
    found = Sampler(model, True, made, not inner and _is_classic(project, made))
    policy = slots(project, made.module, made.node, "trl").policy
    return _of_model(project, made.module, policy, found) if policy is not None else found


def _is_classic(project: Project, made: Origin) -> bool:
    """Whether the trainer is trl's PPOTrainer, or a subclass that leaves its `generate` alone."""
    assert isinstance(made.node, ast.Call)
    graph = graph_of(project)
    name = dotted(made.node.func)
    target = graph.lookup(made.module, made.node, name) if name else ""
    if isinstance(target, ClassInfo):
        bases = graph.external_bases(target)
        return graph.method(target, "generate") is None and any(base.endswith("PPOTrainer") for base in bases)
    return isinstance(target, str) and target.endswith("PPOTrainer")


def _of_model(project: Project, module: Module, node: ast.expr, found: Sampler) -> Sampler:
    return replace(
        found,
        checkpoint=checkpoint(project, module, node),
        dropout=dropout(project, module, Slots(policy=node)),
        encoder_decoder=encoder_decoder(project, module, node),
    )
