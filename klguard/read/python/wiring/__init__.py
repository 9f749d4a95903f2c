"""Facts about a site that are no settings: which models, which prompts, which mode, which loss.

A fact is given only where the code makes it certain; everything else is left out, because a rule that reads
no fact says nothing, and a rule that reads a wrong one lies. `klguard.settings.FACTS` says what each name
means; the places that show it are in the hops of its value.
"""

from __future__ import annotations

import ast

from klguard.read.python.project import Project
from klguard.read.python.source import ClassInfo, Module, dotted
from klguard.read.python.wiring import losses, modes, prompts
from klguard.read.python.wiring.bindings import own_nodes
from klguard.read.python.wiring.carried import adapter_loaded, dropout, dropout_brought_along, peft
from klguard.read.python.wiring.loops import training_scopes
from klguard.read.python.wiring.padding import side_of
from klguard.read.python.wiring.returned import engine_logprobs
from klguard.read.python.wiring.roles import checkpoint, is_none, is_tokenizer, known, same_weights, slots
from klguard.read.python.wiring.samplers import sampler_of
from klguard.read.python.wiring.scoring import mitigations
from klguard.read.python.wiring.seeds import reseeded
from klguard.read.python.wiring.trails import graph_of
from klguard.settings import Hop, HopKind, Known, Opaque, SiteKind, Value

SWITCHES = (
    "disable_adapter",
    "disable_adapters",
    "disable_adapter_layers",
    "set_adapter",
    "null_ref_context",
)
ENGINES_OF_THEIR_OWN = frozenset({"vllm", "sglang"})
"""They pad, mask and hold the weights themselves, so only the checkpoint is asked for."""


def facts(project: Project, module: Module, call: ast.Call, kind: SiteKind, engine: str) -> dict[str, Value]:
    """What the code around a site shows for certain; names as in `klguard.settings.FACTS`."""
    readers = {
        SiteKind.TRAINER: _trainer,
        SiteKind.GENERATE: _generate,
        SiteKind.GENERATION_CONFIG: _generation_config,
        SiteKind.SAMPLING_PARAMS: _sampling_params,
    }
    if kind not in readers:
        return {}
    try:
        found = readers[kind](project, module, call, engine)
    except RecursionError:  # expressions nested too deeply to be written out
        return {}
    return {name: value for name, value in found.items() if value is not None}


def _trainer(project: Project, module: Module, call: ast.Call, engine: str) -> dict[str, Value | None]:
    given = slots(project, module, call, engine)
    policy, reference, tokenizer = given.policy, given.reference, given.tokenizer
    own = graph_of(project).target(module, call)
    written = losses.facts_of_class(project, module, call, own) if isinstance(own, ClassInfo) else {}
    return written | {
        "policy": policy and _wired(project, module, policy),
        "reference": reference and _reference(project, module, reference),
        "peft": peft(project, module, given),
        "adapter_loaded": adapter_loaded(project, module, given),
        "checkpoint": policy and checkpoint(project, module, policy),
        "padding_side": tokenizer and side_of(project, module, tokenizer, call),
        "dropout": dropout(project, module, given)
        or (policy and dropout_brought_along(project, module, policy)),
        "reference_trainable": reference and modes.in_optimizer(module, modes.bare_name(reference)),
    }


def _generate(project: Project, module: Module, call: ast.Call, engine: str) -> dict[str, Value | None]:
    sampler = sampler_of(project, module, call, engine)
    found: dict[str, Value | None] = {"checkpoint": sampler.checkpoint, "dropout": sampler.dropout}
    if engine in ENGINES_OF_THEIR_OWN:
        by_hand = {} if sampler.trained else losses.facts(project, module, call)
        return found | by_hand | {"kl_term": losses.kl_term_around(project, module, call)}
    found |= prompts.facts(project, module, call, sampler, engine)
    found["encoder_decoder"] = sampler.encoder_decoder
    if sampler.model is not None:
        found["train_mode"] = mode = modes.train_mode(project, module, sampler.model, call)
        if found["dropout"] is None and isinstance(mode, Known) and mode.value is True:
            found["dropout"] = dropout_brought_along(project, module, sampler.model)
    found["reseeded"] = reseeded(module, call)
    if not sampler.trained:
        found |= losses.facts(project, module, call)
        found["reference_trainable"] = modes.loop_reference(module)
        if sampler.model is not None:
            found |= _loop_models(project, module, call, sampler.model)
    return found


def _generation_config(
    project: Project, module: Module, call: ast.Call, engine: str
) -> dict[str, Value | None]:
    return {"kl_term": losses.kl_term_around(project, module, call)}


def _sampling_params(
    project: Project, module: Module, call: ast.Call, engine: str
) -> dict[str, Value | None]:
    """Whether a trainer is handed them, and makes its own of them; and which log-probs the engine returns."""
    found: dict[str, Value | None] = {"kl_term": losses.kl_term_around(project, module, call)}
    for node in module.of(ast.keyword):
        if node.arg == "vllm_sampling_params":
            found["handed_on"] = Known(True, (Hop(HopKind.KWARG, module.ast_place(node.value), node.arg),))
    if engine == "vllm" and any(k.arg == "logprobs" for k in call.keywords):
        found["engine_logprobs"] = engine_logprobs(project, module)
    return found


def _loop_models(
    project: Project, module: Module, call: ast.Call, policy: ast.expr
) -> dict[str, Value | None]:
    """The policy that samples and the reference of the loop, where the reference has a name.

    An adapter that is switched off makes one model both, so nothing is said where that is spoken of; nor where it is
    the reference that samples.
    """
    if modes.REFERENCE_NAME.search(modes.bare_name(policy)):
        return {}
    scopes = training_scopes(project, module, call)
    if any(word in where.calls for where, _ in scopes for word in SWITCHES):
        return {}
    for where, scope in scopes:
        for node in own_nodes(scope):
            loaded = isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load)
            if loaded and modes.REFERENCE_NAME.search(dotted(node)):
                return {"policy": _wired(project, module, policy), "reference": _wired(project, where, node)}
    return {}


def _wired(project: Project, module: Module, node: ast.expr) -> Value:
    """The object in a slot of a trainer, named so that equal names are the same object.

    Its first hop is the argument itself: that is where two slots are given the same object.
    """
    text = module.segment(node)
    made = same_weights(project, module, node)
    return Known(Opaque(text, made.name), (Hop(HopKind.KWARG, module.ast_place(node), text), *made.hops))


def _reference(project: Project, module: Module, node: ast.expr) -> Value:
    if is_none(project, module, node):
        return known(None, module, node, HopKind.KWARG)
    if is_tokenizer(project, module, node):
        return known(Opaque(module.segment(node), "tokenizer"), module, node, HopKind.KWARG)
    return _wired(project, module, node)


__all__ = ["facts", "mitigations"]
