"""What can be read off a model without running it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from klguard.guard.fingerprint import fingerprint, local, memory
from klguard.guard.frameworks.wrappers import chain, generator

_DROPOUT = (
    "dropout",
    "dropout_p",
    "attention_dropout",
    "attn_dropout",
    "activation_dropout",
    "hidden_dropout",
    "layerdrop",
    "attn_pdrop",
    "resid_pdrop",
    "embd_pdrop",
)
"""Attributes by which layers of transformers hold the probability of a dropout that is called as a function."""

_VALUE_HEADS = frozenset({"v_head", "value_head", "critic", "score"})
"""Parts of the names under which frameworks keep a value head."""

_WRAPPERS = (
    "module.",
    "_orig_mod.",
    "_fsdp_wrapped_module.",
    "pretrained_model.",
    "base_model.model.",
    "base_layer.",
)


def inner(module: nn.Module | None) -> nn.Module | None:
    """The model itself, without the wrappers around it."""
    modules = chain(module)
    return generator(module) or (modules[-1] if modules else None)


def text_config(config: Any) -> Any:
    """The part of a model's configuration that is about its text decoder. Before 4.45 transformers had no such
    question, and no model that needs it."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def config(module: nn.Module | None) -> Any:
    """The configuration of the model, or None."""
    return getattr(inner(module), "config", None)


def decoder_only(module: nn.Module | None) -> bool:
    """Whether the model is known not to be an encoder-decoder."""
    return getattr(config(module), "is_encoder_decoder", None) is False


def text_decoder(module: nn.Module | None) -> bool:
    """Whether the model is a decoder that is run on ids alone: no images, sound or encoder."""
    settings = config(module)
    senses = any(getattr(settings, f"{sense}_config", None) is not None for sense in ("vision", "audio"))
    return (
        decoder_only(module) and not senses and getattr(inner(module), "main_input_name", "") == "input_ids"
    )


def padding_id(policy: nn.Module | None, tokenizer: Any) -> int | None:
    """The id responses are padded with: of the tokenizer, else of the policy's configuration."""
    model = inner(policy)
    for owner in (tokenizer, getattr(model, "generation_config", None), getattr(model, "config", None)):
        value = getattr(owner, "pad_token_id", None)
        if isinstance(value, int):
            return value
    return None


def stop_ids(owner: Any) -> frozenset[int]:
    """`eos_token_id` of a configuration or tokenizer, one or several; empty where there is none."""
    value = getattr(owner, "eos_token_id", None)
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, int):
        return frozenset({value})
    return frozenset(value) if isinstance(value, (list, tuple)) else frozenset()


def active_dropout(module: nn.Module | None) -> tuple[str, float] | None:
    """Name and probability of the strongest dropout that is switched on: a layer of its own, or a layer in
    train mode that calls one as a function. None where every pass gives the same."""
    found: list[tuple[float, str]] = []
    for name, layer in () if module is None else module.named_modules():
        if not layer.training:
            continue
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            values = [("", layer.p)]
        else:
            values = [(word, vars(layer).get(word)) for word in _DROPOUT]
        for word, value in values:
            if isinstance(value, float) and value > 0:
                found.append((value, ".".join(part for part in (name, word) if part)))
    if not found:
        return None
    value, name = max(found)
    return name, value


def tuner_layers(module: nn.Module | None) -> Iterator[tuple[str, nn.Module]]:
    """The layers that carry an adapter, as PEFT makes them."""
    for name, layer in () if module is None else module.named_modules():
        kind = type(layer)
        if hasattr(kind, "disable_adapters") and hasattr(kind, "merged"):
            yield name, layer


def merged(module: nn.Module | None) -> bool:
    """Whether an adapter is merged into the weights at present."""
    return any(bool(layer.merged) for _, layer in tuner_layers(module))


def sharded(module: nn.Module | None) -> bool:
    """Whether a rank holds only parts of the parameters, so that a pass needs all ranks."""
    parameters = [] if module is None else list(module.parameters())
    return any(
        hasattr(p, "to_local") or getattr(p, "_is_flat_param", False) or hasattr(p, "ds_id")
        for p in parameters
    )


def own_name(name: str) -> str:
    """The name of a parameter in the bare model."""
    for word in _WRAPPERS:
        while name.startswith(word):
            name = name[len(word) :]
        name = name.replace("." + word, ".")
    return name


def precision(*modules: nn.Module | None) -> torch.dtype:
    """The lowest precision among the floating-point parameters; on CUDA fp32 counts as half where TF32 is on."""
    lowest = torch.float32
    for module in modules:
        for parameter in () if module is None else module.parameters():
            if parameter.dtype in (torch.bfloat16, torch.float16):
                return parameter.dtype
            if parameter.is_cuda and torch.get_float32_matmul_precision() != "highest":
                lowest = torch.bfloat16
    return lowest


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether both hold the same values once rounded to the lower precision. Waits for the device."""
    if one.shape != other.shape:
        return False
    if memory(one) and memory(one) == memory(other):
        return True
    dtype = one.dtype if one.element_size() <= other.element_size() else other.dtype
    ones, others = list(local(one)), list(local(other))
    if len(ones) != 1 or len(others) != 1 or ones[0].shape != others[0].shape:
        return False
    return int(fingerprint(ones[0].contiguous(), dtype)) == int(fingerprint(others[0].contiguous(), dtype))


def copies(policy: nn.Module | None, reference: nn.Module | None) -> bool:
    """Whether the reference certainly computes what the policy does: every parameter of it is in the policy
    with the same values, and what the policy has besides is a value head or an adapter that still adds
    nothing. Without a reference module, whether the adapter adds nothing. Waits for the device."""
    if policy is None:
        return False
    own = {own_name(name): parameter for name, parameter in policy.named_parameters()}
    theirs = {} if reference is None else {own_name(n): p for n, p in reference.named_parameters()}
    if reference is None and not any("lora_B" in name for name in own):
        return False
    if any(name not in own or not _same(own[name], parameter) for name, parameter in theirs.items()):
        return False
    if reference is None:
        return all(_adds_nothing(name, p) for name, p in own.items() if p.requires_grad or "lora_" in name)
    return all(_adds_nothing(name, parameter) for name, parameter in own.items() if name not in theirs)


def _adds_nothing(name: str, parameter: Tensor) -> bool:
    """Whether a parameter beside the reference's leaves the logits alone."""
    if "lora_B" in name:
        return not any(bool(part.count_nonzero()) for part in local(parameter))
    return "lora_A" in name or name.startswith(("v_head.", "value_head."))


def adapted(module: nn.Module | None) -> bool:
    """Whether the model carries an adapter of PEFT."""
    return next(tuner_layers(module), None) is not None


def adapter_adds(module: nn.Module | None) -> bool:
    """Whether a LoRA adapter that is trained changes what the model computes. Waits for the device."""
    named = () if module is None else module.named_parameters()
    return any("lora_B" in name and p.requires_grad and not _adds_nothing(name, p) for name, p in named)


def of_values(name: str) -> bool:
    """Whether a parameter of this name belongs to a head that gives values or scores, and not to the logits."""
    return not _VALUE_HEADS.isdisjoint(name.split("."))
