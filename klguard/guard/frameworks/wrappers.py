"""Through the wrappers around a model: which modules a forward pass goes through, and which one generates."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

WRAPPED = ("_orig_mod", "module", "_fsdp_wrapped_module", "pretrained_model", "policy", "base_model", "model")
"""Submodules by which wrappers hold what they wrap: torch.compile; DDP, DeepSpeed and DataParallel; FSDP; TRL's
value heads; TRL's policy-and-value pair; PEFT, whose tuner then holds the model as `model`."""


def generates(module: nn.Module) -> bool:
    """Whether `module` itself is a model of transformers that generates, and not a wrapper that forwards."""
    return hasattr(type(module), "_prepare_generation_config")


def chain(module: nn.Module | None) -> tuple[nn.Module, ...]:
    """`module` and what it wraps, from the outside to the model itself; empty for None.

    Attributes are looked up among the registered submodules, so that a wrapper's forwarding of unknown names
    plays no part; a model of transformers is never looked into.
    """
    found: list[nn.Module] = []
    while module is not None and module not in found:
        found.append(module)
        inside = {} if generates(module) else module._modules
        module = next((inside[name] for name in WRAPPED if inside.get(name) is not None), None)
    return tuple(found)


def hookable(modules: tuple[nn.Module, ...]) -> tuple[nn.Module, ...]:
    """The modules of a chain on which a hook runs as plain Python: none below a compiled one.

    A forward pass of the wrapper does not always call the hooks of what it wraps (PEFT calls `forward`
    directly), so every level gets a hook.
    """
    compiled = next((number for number, module in enumerate(modules) if _compiled(module)), None)
    return modules if compiled is None else modules[: compiled + 1]


def _compiled(module: nn.Module) -> bool:
    """Whether what is inside runs compiled: `torch.compile(module)`, or `module.compile()` in place."""
    return "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None


def generator(module: nn.Module | None) -> nn.Module | None:
    """The module whose `generate` really runs, however `module` wraps it; None where nothing generates."""
    modules = chain(module)
    inner = next((m for m in modules if generates(m)), None)
    if inner is not None:
        return inner
    return next((m for m in reversed(modules) if callable(getattr(type(m), "generate", None))), None)


def adapter_layer(module: nn.Module | None) -> nn.Module | None:
    """A layer of PEFT in `module`, which knows whether the adapters are on; None where there is none.

    Its `disable_adapters` is a property; that of a model of transformers is a method that switches them off.
    """
    layers: Iterator[nn.Module] = iter(()) if module is None else module.modules()
    return next((x for x in layers if isinstance(getattr(type(x), "disable_adapters", None), property)), None)


def adapters_in_use(layer: nn.Module | None) -> tuple[str, ...]:
    """The names of the adapters in use, none where they are disabled."""
    if layer is None or getattr(layer, "disable_adapters", False) is True:
        return ()
    active = getattr(layer, "active_adapters", ())
    return tuple(map(str, [active] if isinstance(active, str) else active))
