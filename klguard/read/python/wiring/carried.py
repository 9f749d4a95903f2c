"""What a model carries: an adapter, dropout, an encoder."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from klguard.engines.checkpoints import dropout_of
from klguard.read.python.project import Project
from klguard.read.python.source import Module, called_name, dotted
from klguard.read.python.wiring.roles import Slots, constant, constant_within, known, loads, named_source
from klguard.read.python.wiring.trails import Origin, origin, origin_within
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
    if given.adapter is not None and _is_config(origin(project, module, given.adapter)):
        return known(True, module, given.adapter, HopKind.KWARG)
    for made, call in loads(project, module, given.policy) if given.policy is not None else ():
        if called_name(call) == "get_peft_model" or "Peft" in dotted(call.func):
            return known(True, made.module, call)
        for keyword in call.keywords:
            if keyword.arg == "peft_config" and _is_config(origin_within(project, made, keyword.value)):
                return known(True, made.module, keyword.value, HopKind.KWARG)
    return None


def adapter_loaded(project: Project, module: Module, given: Slots) -> Value | None:
    """Known(True) when the policy comes with an adapter that was trained before, and is trained on."""
    if given.policy is None or given.adapter is not None:
        return None
    for made, call in loads(project, module, given.policy):
        if called_name(call) != "from_pretrained" or "Peft" not in dotted(call.func):
            continue
        trained = next((k for k in call.keywords if k.arg == "is_trainable"), None)
        if trained is not None and isinstance(trained.value, ast.Constant) and trained.value.value is True:
            return known(True, made.module, call)
    return None


def _is_config(made: Origin | None) -> bool:
    """`LoraConfig(...)`; trl's `get_peft_config(args)` is none, because it may return None."""
    return made is not None and isinstance(made.node, ast.Call) and called_name(made.node).endswith("Config")


def dropout(project: Project, module: Module, given: Slots) -> Value | None:
    """The largest dropout probability written where the policy and its adapter are made."""
    found = list(_dropouts(project, module, given))
    return max(found, key=lambda each: each.value, default=None)


def dropout_brought_along(project: Project, module: Module, policy: ast.expr) -> Value | None:
    """The dropout of the checkpoint the policy is loaded from, where nothing in the file speaks of dropout."""
    if any(DROPOUT.search(str(name).lower()) for name in _words(module)):
        return None
    named = constant(project, module, policy)
    if named is not None and isinstance(named.value, str):
        return _dropout_of(named, module, policy)
    for made, call in loads(project, module, policy):
        if called_name(call) == "from_config" or any(k.arg in (None, "config") for k in call.keywords):
            return None
        if called_name(call) != "from_pretrained":
            continue
        source = named_source(call)
        name = constant_within(project, made, source) if source is not None else None
        return (
            _dropout_of(name, made.module, call) if name is not None and isinstance(name.value, str) else None
        )
    return None


def _dropout_of(name: Known, module: Module, node: ast.expr) -> Value | None:
    """The dropout of the checkpoint of that name, which `node` loads."""
    found = dropout_of(name.value)
    if found is None:
        return None
    return Known(found, (*name.hops, Hop(HopKind.CHECKPOINT, module.ast_place(node), f"of {name.value}")))


def _words(module: Module) -> Iterator[str]:
    for node in module.nodes:
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                yield name
            case ast.keyword(arg=str(name)) | ast.Constant(value=str(name)):
                yield name


def _dropouts(project: Project, module: Module, given: Slots) -> Iterator[Known]:
    for made in _makers(project, module, given):
        if made is None or not isinstance(made.node, ast.Call):
            continue
        for keyword in made.node.keywords:
            if keyword.arg and DROPOUT.search(keyword.arg):
                value = constant_within(project, made, keyword.value)
                if value is not None and isinstance(value.value, (int, float)):
                    yield value


def _makers(project: Project, module: Module, given: Slots) -> Iterator[Origin | None]:
    """Calls and configurations whose keywords may set a dropout."""
    if given.adapter is not None:
        yield origin(project, module, given.adapter)
    for made, call in loads(project, module, given.policy) if given.policy is not None else ():
        yield made
        configured = [k.value for k in call.keywords if k.arg in ("peft_config", "config")]
        yield from (origin_within(project, made, argument) for argument in [*call.args[1:], *configured])


def encoder_decoder(project: Project, module: Module, node: ast.expr) -> Value | None:
    """Whether the model has an encoder, by the class that loaded it."""
    for made, call in loads(project, module, node):
        cls = dotted(call.func).removesuffix(".from_pretrained").rpartition(".")[2]
        if ENCODER_DECODER.search(cls) and TEXT_MODELS.search(cls):
            return known(True, made.module, call)
        if DECODER_ONLY.search(cls):
            return known(False, made.module, call)
    return None
