"""The prompts of a generate call: one or several, with or without their mask, padded on which side."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from klguard.read.python.project import Project
from klguard.read.python.source import ClassInfo, Module, called_name, dotted
from klguard.read.python.trees import walk_level
from klguard.read.python.wiring.bindings import ancestors
from klguard.read.python.wiring.padding import only_tokenizer, side_of
from klguard.read.python.wiring.roles import constant, is_tokenizer, known
from klguard.read.python.wiring.roles import slots as slots_of
from klguard.read.python.wiring.samplers import Sampler
from klguard.read.python.wiring.trails import Origin, graph_of, origin, origins, origins_within, peel
from klguard.settings import Hop, HopKind, Known, Value

INPUTS = ("input_ids", "inputs")
ENCODES = frozenset({"__call__", "batch_encode_plus", "encode_plus", "encode", "apply_chat_template", "pad"})
IDS_ONLY = frozenset({"encode", "apply_chat_template"})
LISTS = frozenset({"list", "sorted", "split", "unbind", "tolist", "chunk"})
ITERATES = frozenset({"enumerate", "tqdm", "trange", "iter", "next", "track"})


@dataclass(frozen=True)
class Inputs:
    """Where the prompt ids of a call come from.

    node      the expression at the call.
    encoded   the tokenizer call behind it, where that is visible.
    whole     all of that call's result is passed, not only its ids.
    """

    node: ast.expr
    encoded: Origin | None = None
    whole: bool = False


def facts(
    project: Project, module: Module, call: ast.Call, sampler: Sampler, engine: str
) -> dict[str, Value | None]:
    """`batched`, `padded`, `attention_mask` and `padding_side`."""
    inputs = _inputs(project, module, call)
    if sampler.classic:
        return _classic(project, module, inputs, sampler)
    found: dict[str, Value | None] = {
        "batched": inputs and _batched(project, module, inputs),
        "padded": inputs and _padded(inputs),
        "attention_mask": _mask(project, module, call, inputs, sampler),
        "padding_side": _side(project, module, call, inputs, sampler),
    }
    if engine == "local":
        del found["attention_mask"]  # what a sampler of one's own does without a mask is its own affair
    return found


def _inputs(project: Project, module: Module, call: ast.Call) -> Inputs | None:
    given = next((k.value for k in call.keywords if k.arg in INPUTS), None)
    if given is None and call.args and isinstance(call.func, ast.Attribute):
        given = call.args[0]
    elif given is None and len(call.args) > 1:
        given = call.args[1]
    candidates = [given] if given is not None else [k.value for k in call.keywords if k.arg is None]
    for node in candidates:
        if isinstance(node, ast.Starred):
            continue
        made, whole = _object_behind(project, module, node)
        if made is not None and _encodes(project, made):
            return Inputs(node, made, whole)
    return Inputs(given) if given is not None and not isinstance(given, ast.Starred) else None


def _field(node: ast.expr) -> tuple[ast.expr, bool]:
    """`inputs` for `inputs["input_ids"].to(device)` and `inputs.input_ids`; and whether it was all of it."""
    node = peel(node)
    match node:
        case ast.Subscript(value=inner, slice=ast.Constant(value="input_ids")):
            return peel(inner), False
        case ast.Attribute(value=inner, attr="input_ids"):
            return peel(inner), False
    return node, True


def _object_behind(project: Project, module: Module, node: ast.expr) -> tuple[Origin | None, bool]:
    """The object behind `node`, and whether it is all of it: `inputs` of `inputs.input_ids`, which may be handed from
    function to function, and of `{k: v.to(device) for k, v in inputs.items()}`."""
    inner, all_of_it = _field(node)
    found = origins(project, module, inner)
    for _ in range(3):
        if len(found) != 1:
            break
        made = found[0]
        inner, whole = _field(made.node)
        if not whole:
            all_of_it, found = False, origins_within(project, made, inner)
            continue
        match made.node:
            case ast.DictComp(
                generators=[ast.comprehension(iter=ast.Call(func=ast.Attribute(value=items, attr="items")))]
            ):
                found = origins_within(project, made, items)
            case _:
                break
    return found[0] if len(found) == 1 and not found[0].open else None, all_of_it


def _encodes(project: Project, made: Origin) -> bool:
    """Whether the object is what a tokenizer made of text."""
    call = made.node
    if not isinstance(call, ast.Call):
        return False
    if isinstance(call.func, ast.Attribute) and call.func.attr in ENCODES:
        return is_tokenizer(project, made.module, call.func.value)
    return bool(dotted(call.func)) and is_tokenizer(project, made.module, call.func)


# -- several prompts -----------------------------------------------------------------------------------------


def _batched(project: Project, module: Module, inputs: Inputs) -> Value | None:
    if inputs.encoded is not None:
        call = inputs.encoded.node
        assert isinstance(call, ast.Call)
        where = inputs.encoded.module
        if called_name(call) == "apply_chat_template":
            return None  # a list of messages is one conversation
        texts = (
            call.args[0]
            if call.args
            else next((k.value for k in call.keywords if k.arg in ("text", "conversation")), None)
        )
        if texts is not None and _several(project, where, texts):
            return known(True, where, call)
        return None
    return _from_loader(project, module, inputs.node)


def _padded(inputs: Inputs) -> Value | None:
    """Whether the tokenizer call behind the prompts asks for padding."""
    made = inputs.encoded
    if made is None or not isinstance(made.node, ast.Call):
        return None
    asked = next((k.value for k in made.node.keywords if k.arg == "padding"), None)
    pads = isinstance(asked, ast.Constant) and asked.value in (True, "longest", "max_length")
    return known(True, made.module, made.node) if pads else None


def _several(project: Project, module: Module, node: ast.expr) -> bool:
    """Whether the expression is certainly a list of more than one element, or one built to hold them."""
    made = origins(project, module, node)
    return all(not each.open and _is_list(each.node) for each in made) or _annotated_list(module, node)


def _is_list(node: ast.expr) -> bool:
    match node:
        case ast.List(elts=elements):
            return len(elements) > 1 or any(isinstance(e, ast.Starred) for e in elements)
        case ast.ListComp():
            return True
        case (
            ast.BinOp(left=ast.List(), op=ast.Mult(), right=count)
            | ast.BinOp(left=count, op=ast.Mult(), right=ast.List())
        ):
            return not (isinstance(count, ast.Constant) and count.value == 1)
        case ast.Call(func=func):
            name = dotted(func).rpartition(".")[2]
            return name in LISTS
    return False


def _annotated_list(module: Module, node: ast.expr) -> bool:
    """Whether a parameter is annotated as a list of texts."""
    info = module.enclosing(node)
    name = dotted(node)
    if info is None or not name:
        return False
    spec = info.node.args
    args = (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)
    note = next((ast.unparse(a.annotation) for a in args if a.arg == name and a.annotation is not None), "")
    return note in ("list[str]", "List[str]", "Sequence[str]", "typing.List[str]")


def _from_loader(project: Project, module: Module, node: ast.expr) -> Value | None:
    """Prompts taken whole from a batch of a DataLoader that makes batches of more than one."""
    loader = _loader(project, module, node)
    made = origin(project, module, loader) if loader is not None else None
    if made is None or not isinstance(made.node, ast.Call) or called_name(made.node) != "DataLoader":
        return None
    size = next((k.value for k in made.node.keywords if k.arg == "batch_size"), None)
    if size is None:
        return None
    number = constant(project, made.module, size)
    if number is None or not isinstance(number.value, int) or number.value < 2:
        return None
    return Known(True, (*number.hops, Hop(HopKind.KWARG, made.module.ast_place(made.node), "DataLoader")))


def _loader(project: Project, module: Module, node: ast.expr) -> ast.expr | None:
    """What is iterated, when `node` is a field of the batch that a `for` around it takes from somewhere."""
    made = peel(node)
    found = origin(project, module, made)
    if found is not None and found.module is module:
        made = found.node
    if not isinstance(made, ast.Subscript) or not isinstance(made.value, ast.Name):
        return None
    for parent, _ in ancestors(module, made):
        if isinstance(parent, ast.For) and made.value.id in {
            n.id for n in walk_level(parent.target) if isinstance(n, ast.Name)
        }:
            iterated = parent.iter
            while isinstance(iterated, ast.Call) and called_name(iterated) in ITERATES and iterated.args:
                iterated = iterated.args[0]
            return iterated
    return None


def _classic(
    project: Project, module: Module, inputs: Inputs | None, sampler: Sampler
) -> dict[str, Value | None]:
    """The prompts of trl's PPOTrainer.generate, up to 0.11.

    It pads a list and passes the mask itself (`_generate_batched`), on the left but for an encoder-decoder, which is
    left to the tokenizer's own side; a tensor is one prompt, since it raises on two dimensions.
    """
    if inputs is None:
        return {}
    loader = _loader(project, module, inputs.node)
    listed = _several(project, module, inputs.node) or isinstance(peel(inputs.node), ast.List)
    if not listed and not (loader is not None and dotted(loader).endswith(".dataloader")):
        return {}
    text = "trl pads a list of prompts on the left and passes their mask"
    hops = (Hop(HopKind.KWARG, module.ast_place(inputs.node), text),)
    encodes = isinstance(sampler.encoder_decoder, Known) and sampler.encoder_decoder.value
    return {
        "batched": Known(True, hops),
        "attention_mask": Known(True, hops),
        "padding_side": None if encodes else Known("left", hops),
    }


# -- the mask ------------------------------------------------------------------------------------------------


def _mask(
    project: Project, module: Module, call: ast.Call, inputs: Inputs | None, sampler: Sampler
) -> Value | None:
    for keyword in call.keywords:
        if keyword.arg == "attention_mask":
            absent = isinstance(keyword.value, ast.Constant) and keyword.value.value is None
            return known(not absent, module, keyword.value, HopKind.KWARG)
    for keyword in call.keywords:
        if keyword.arg is None:
            keys = _keys(project, module, keyword.value)
            if keys is None:
                return None
            if "attention_mask" in keys:
                return known(True, module, keyword.value, HopKind.SPLAT)
    if (
        inputs is None
        or sampler.model is None
        or (inputs.encoded is not None and inputs.whole and _masked(inputs))
    ):
        return None
    if not isinstance(call.func, ast.Attribute):
        return None
    if isinstance(graph_of(project).class_of(module, sampler.model), ClassInfo):
        return None
    return known(False, module, call)


def _masked(inputs: Inputs) -> bool:
    call = inputs.encoded.node if inputs.encoded is not None else None
    return isinstance(call, ast.Call) and called_name(call) not in IDS_ONLY


def _keys(project: Project, module: Module, node: ast.expr) -> set[str] | None:
    """The names a `**splat` certainly holds and no others; None when it may hold more than can be seen."""
    keys: set[str] = set()
    for made in [_object_behind(project, module, node)[0]] if _field(node)[1] else []:
        if made is None:
            return None
        if _encodes(project, made):
            assert isinstance(made.node, ast.Call)
            without = any(k.arg == "return_attention_mask" for k in made.node.keywords)
            return None if without or called_name(made.node) in IDS_ONLY else {"input_ids", "attention_mask"}
        found = _literal_keys(made.node)
        if found is None or _touched(module, dotted(node)):
            return None
        keys |= found
    return keys


def _literal_keys(node: ast.expr) -> set[str] | None:
    match node:
        case ast.Dict(keys=keys):
            texts = [
                key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)
            ]
            return set(texts) if len(texts) == len(keys) else None
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords):
            names = [keyword.arg for keyword in keywords if keyword.arg]
            return set(names) if len(names) == len(keywords) else None
    return None


def _touched(module: Module, name: str) -> bool:
    """Whether keys that cannot be read off the text, or a mask, are put into the dict `name` somewhere."""
    if not name:
        return False
    for word in ("update", "setdefault"):
        for call in module.calls.get(word, ()):
            if isinstance(call.func, ast.Attribute) and dotted(call.func.value) == name:
                return True
    for node in module.of(ast.Subscript):
        if isinstance(node.ctx, ast.Store) and dotted(node.value) == name:
            if not isinstance(node.slice, ast.Constant) or node.slice.value == "attention_mask":
                return True
    return False


# -- the side ------------------------------------------------------------------------------------------------


def _side(
    project: Project, module: Module, call: ast.Call, inputs: Inputs | None, sampler: Sampler
) -> Value | None:
    if inputs is not None and inputs.encoded is not None:
        encoding = inputs.encoded.node
        assert isinstance(encoding, ast.Call)
        for keyword in encoding.keywords:
            if keyword.arg == "padding_side":
                return constant(project, inputs.encoded.module, keyword.value)
        plain = isinstance(encoding.func, ast.Attribute) and encoding.func.attr in ENCODES
        tokenizer = encoding.func.value if plain else encoding.func  # type: ignore[attr-defined]
        return side_of(project, inputs.encoded.module, tokenizer, encoding)
    if sampler.trainer is not None:
        where, built = sampler.trainer.module, sampler.trainer.node
        assert isinstance(built, ast.Call)
        tokenizer = slots_of(project, where, built, "trl").tokenizer
        return side_of(project, where, tokenizer, built) if tokenizer is not None else None
    only = only_tokenizer(module)
    return side_of(project, module, only, call) if only is not None else None
