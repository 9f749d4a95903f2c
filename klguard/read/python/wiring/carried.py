"""What a model carries: an adapter, dropout, an encoder."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from klguard.engines.checkpoints import dropout_of
from klguard.read.python.project import Project
from klguard.read.python.source import Module, called_name, dotted
from klguard.read.python.wiring.roles import Slots, constant, known, loads, named_source
from klguard.read.python.wiring.trails import origin
from klguard.settings import Hop, HopKind, Known, Value

ENCODER_DECODER = re.compile(r"Seq2SeqLM|ForConditionalGeneration")
TEXT_MODELS = re.compile(
    r"^(Auto|T5|MT5|UMT5|LongT5|Bart|MBart|Pegasus|BlenderBot|Flan|ProphetNet|Marian|LED)", re.IGNORECASE
)
"""Vision-language models are called ForConditionalGeneration too and decode only, so the family is asked."""
DECODER_ONLY = re.compile(r"CausalLM|LMHeadModel|FastLanguageModel")
DROPOUT = re.compile(r"dropout|pdrop$")


def peft(project: Project, module: Module, given: Slots) -> Value | None:
    """Known(True) when an adapter certainly goes onto the policy."""
    if given.adapter is not None and _is_config(project, module, given.adapter):
        return known(True, module, given.adapter, HopKind.KWARG)
    for where, call in loads(project, module, given.policy) if given.policy is not None else ():
        if called_name(call) == "get_peft_model" or "Peft" in dotted(call.func):
            return known(True, where, call)
        for keyword in call.keywords:
            if keyword.arg == "peft_config" and _is_config(project, where, keyword.value):
                return known(True, where, keyword.value, HopKind.KWARG)
    return None


def _is_config(project: Project, module: Module, node: ast.expr) -> bool:
    """`LoraConfig(...)`; trl's `get_peft_config(args)` is none, because it may return None."""
    made = origin(project, module, node)
    return made is not None and isinstance(made.node, ast.Call) and called_name(made.node).endswith("Config")


def dropout(project: Project, module: Module, given: Slots) -> Value | None:
    """The largest dropout probability written where the policy and its adapter are made."""
    found = list(_dropouts(project, module, given))
    return max(found, key=lambda each: each.value, default=None)


def dropout_brought_along(project: Project, module: Module, policy: ast.expr) -> Value | None:
    """The dropout of the checkpoint the policy is loaded from, where nothing in the file speaks of dropout."""
    if any(DROPOUT.search(str(name).lower()) for name in _words(module)):
        return None
    for where, call in loads(project, module, policy):
        if called_name(call) == "from_config" or any(k.arg in (None, "config") for k in call.keywords):
            return None
        if called_name(call) != "from_pretrained":
            continue
        source = named_source(call)
        name = constant(project, where, source) if source is not None else None
        if name is None or not isinstance(name.value, str):
            return None
        found = dropout_of(name.value)
        place = where.ast_place(call)
        return (
            None
            if found is None
            else Known(found, (*name.hops, Hop(HopKind.CHECKPOINT, place, f"of {name.value}")))
        )
    return None


def _words(module: Module) -> Iterator[str]:
    for node in module.nodes:
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                yield name
            case ast.keyword(arg=str(name)) | ast.Constant(value=str(name)):
                yield name


def _dropouts(project: Project, module: Module, given: Slots) -> Iterator[Known]:
    for where, node in _makers(project, module, given):
        made = origin(project, where, node)
        if made is None or not isinstance(made.node, ast.Call):
            continue
        for keyword in made.node.keywords:
            if keyword.arg and DROPOUT.search(keyword.arg):
                value = constant(project, made.module, keyword.value)
                if value is not None and isinstance(value.value, (int, float)):
                    yield value


def _makers(project: Project, module: Module, given: Slots) -> Iterator[tuple[Module, ast.expr]]:
    """Calls and configurations whose keywords may set a dropout."""
    if given.adapter is not None:
        yield module, given.adapter
    for where, call in loads(project, module, given.policy) if given.policy is not None else ():
        yield where, call
        yield from ((where, argument) for argument in call.args[1:])
        yield from ((where, k.value) for k in call.keywords if k.arg in ("peft_config", "config"))


def encoder_decoder(project: Project, module: Module, node: ast.expr) -> Value | None:
    """Whether the model has an encoder, by the class that loaded it."""
    for where, call in loads(project, module, node):
        cls = dotted(call.func).removesuffix(".from_pretrained").rpartition(".")[2]
        if ENCODER_DECODER.search(cls) and TEXT_MODELS.search(cls):
            return known(True, where, call)
        if DECODER_ONLY.search(cls):
            return known(False, where, call)
    return None
