"""Pure sampling: the settings under which an engine draws from the policy itself."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from packaging.version import InvalidVersion, Version

from klguard.engines import ENGINES, NEWEST, Engine
from klguard.engines.tables import shaping

SAMPLERS = ("transformers", "vllm", "sglang")
"""The engines that draw tokens; frameworks pass their settings on to one of these."""


def pure_sampling(engine: str = "transformers", version: str | None = None, **lengths: Any) -> dict[str, Any]:
    """Every setting of `engine` that can bend the distribution, at its neutral value, with `lengths` added.

    engine   "transformers", "vllm" or "sglang".
    version  of that library; None for the installed one, or the newest that is known where none is installed.
    lengths  settings that bend nothing, by the engine's own names: `max_new_tokens` (`max_tokens` in vLLM),
             `pad_token_id`, `eos_token_id`, `num_return_sequences`, `stop` and so on.

    In transformers pass them to the call, `model.generate(**inputs, **pure_sampling(max_new_tokens=64))`:
    keyword arguments win over the checkpoint's generation config in every release, while fields of a
    GenerationConfig that are None or equal to the library's default do not in 4.50 to 4.57, and None does not
    from 5.0 on.

    ValueError for another engine, a text that is no version, and a name in `lengths` that bends the
    distribution, that the engine does not know, or whose value it rejects.
    """
    if engine not in SAMPLERS:
        raise ValueError(
            f"engine={engine!r} draws no tokens; write one of {', '.join(map(repr, SAMPLERS))}, "
            "whichever samples for it"
        )
    owner = ENGINES[engine]
    versions = {engine: _installed(engine) if version is None else _checked(engine, version)}
    fields = {
        name: value
        for name, value in owner.neutral(versions).items()
        if not owner.settings[name].argument  # off unless passed, and unknown to configuration objects
    }
    for name, value in lengths.items():
        _check_length(owner, name, value, versions)
    return {**fields, **lengths}


def _installed(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return NEWEST[library]


def _checked(engine: str, version: str) -> str:
    try:
        Version(version)
    except (InvalidVersion, TypeError):
        raise ValueError(
            f'version={version!r} is not a version; write one such as "{NEWEST[engine]}", or leave it out for '
            f"the {engine} that is installed"
        ) from None
    return version


def _check_length(owner: Engine, name: str, value: Any, versions: dict[str, str]) -> None:
    """ValueError unless `name` is a setting of the engine that bends nothing, with a value that it takes."""
    near = owner.nearest(name)
    if name not in owner.settings:
        hint = f"did you mean `{near}`?" if near else "pass it to the call itself"
        raise ValueError(f"`{name}` is not a setting of {owner.name}; {hint}")
    if name in shaping(owner.settings):
        kept = (
            f"it stays at `{name}={owner.safe(name, versions)}`"
            if owner.safe(name, versions)
            else "it is off"
        )
        raise ValueError(
            f"`{name}` bends the distribution that tokens are drawn from, and in pure sampling {kept}; leave it "
            "out here, and add it to the dict yourself if the trainer corrects for it"
        )
    fault = owner.error(name, value, versions)
    if fault:
        raise ValueError(f"`{name}={value!r}` is wrong in {owner.name} {versions[owner.name]}: {fault}")
