"""What an inference engine was asked for and what it returned, in klguard's words. Shared by the adapters of vLLM
and SGLang, and by those of frameworks that sample with them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from klguard.engines import ENGINES
from klguard.engines.engine import Engine
from klguard.guard.caller import caller
from klguard.guard.live import _fields, _versions
from klguard.guard.plain import plain
from klguard.settings import (
    Context,
    Default,
    Hop,
    HopKind,
    Known,
    Layer,
    LayerKind,
    Place,
    Reason,
    Settings,
    Site,
    SiteKind,
    Unknown,
    Value,
)

PROCESSED, BEFORE_FILTERS, RAW = "processed", "before filters", "raw"
"""What returned log-probs are: of the distribution that drew, after everything; after temperature and penalties,
but before top-k, top-p and min-p; of the bare logits."""

FILTERS = ("top_k", "top_p", "min_p")
WHY = "read live: what the engine was asked for"


def site_of(
    engine: str,
    written: Mapping[str, Any],
    below: Sequence[Layer] = (),
    *,
    place: Place | None = None,
    text: str,
    version: str | None = None,
    mitigations: Mapping[str, str] | None = None,
) -> Site:
    """What is in force where `written` was asked for, and for what it leaves out what `below` says, layer by layer.

    engine   "vllm", "sglang" or "transformers"; names that it does not listen to are left out.
    text     where the values stand, for messages.
    version  of the engine; that of the installed one when None.
    """
    owner, place = ENGINES[engine], place or caller()
    versions = {engine: version} if version else _versions(engine)
    hop = Hop(HopKind.LIVE, place, text)
    values = {name: Known(plain(v), (hop,)) for name, v in written.items() if name in owner.settings}
    layers = (Layer(LayerKind.OBJECT, values, place=place), *below)
    kind = SiteKind.GENERATION_CONFIG if engine == "transformers" else SiteKind.SAMPLING_PARAMS
    title = "GenerationConfig" if engine == "transformers" else "SamplingParams"
    # an engine's own `resolve` never asks the checkpoint where a request came: a server does, field by field
    resolved = Engine.resolve(owner, layers, versions, kind=kind)
    settings = Settings(
        engine, kind, resolved.values, layers, {}, mitigations or {}, versions, Context.ROLLOUT, f"{engine}.{title}"
    )  # fmt: skip
    return Site(place, title, settings, WHY)


def checkpoint_layer(checkpoint: Any, what: str) -> Layer:
    """A checkpoint's generation config as a layer: a GenerationConfig, a dict, or the folder of its files.

    None is a checkpoint that cannot be seen, whose values may be anything; what it leaves out is not set.
    """
    if checkpoint is None:
        hidden = Unknown(Reason.RUNTIME, f"generation_config.json of {what}")
        return Layer(LayerKind.CHECKPOINT, {}, rest=hidden)
    hops = (Hop(HopKind.CHECKPOINT, None, f"generation_config.json of {what}"),)
    version = ""
    if isinstance(checkpoint, str | Path):
        path = Path(checkpoint) / "generation_config.json"
        checkpoint = json.loads(path.read_text()) if path.exists() else {}
    if isinstance(checkpoint, Mapping):
        version = str(checkpoint.get("transformers_version") or "")
        values: dict[str, Value] = {
            str(k): Known(plain(v), hops)
            for k, v in checkpoint.items()
            if v is not None and not k.startswith("_")
        }
    else:
        values = _fields(checkpoint, hops, _versions("transformers"))
    return Layer(LayerKind.CHECKPOINT, values, version=version)


def renamed(layer: Layer, names: Mapping[str, str]) -> Layer:
    """The part of a layer that an engine takes over, under the engine's names."""
    return replace(layer, values={names[n]: v for n, v in layer.values.items() if n in names})


@dataclass(frozen=True)
class Returned:
    """Responses of an engine as tensors, padded on the right.

    responses   (B, T) ids; mask (B, T) bool, the tokens that the engine drew.
    logprobs    (B, T) the engine's log-prob of each token, NaN where it gave none; None where it gave none at all.
    kind        what these are: "processed", "before filters" or "raw".
    site        what the tokens were drawn with, None where not known.
    """

    responses: Tensor
    mask: Tensor
    logprobs: Tensor | None
    kind: str
    site: Site | None

    @property
    def withheld(self) -> str:
        """Why the log-probs say nothing about the sampler; "" where they do."""
        if self.logprobs is None:
            return (
                "the engine returned no log-probs: ask for them with logprobs=0 (vLLM) or return_logprob=True"
            )
        bending = [] if self.kind == PROCESSED else self._bent(FILTERS if self.kind == BEFORE_FILTERS else ())
        if not bending:
            return ""
        how = "of the bare logits" if self.kind == RAW else "taken before top-k, top-p and min-p"
        return (
            f"the engine's log-probs are {how}, and {', '.join(bending)} changed the distribution after that:"
            " they are not those the tokens were drawn with"
        )

    def _bent(self, only: Sequence[str]) -> list[str]:
        """Settings that are not, or not surely, neutral: all of them, or `only` these."""
        if self.site is None:
            return ["settings that are not known"]
        settings, owner = self.site.settings, ENGINES[self.site.settings.engine]
        names = only or [name for name, one in owner.settings.items() if one.shown]
        return [name for name in names if not _neutral(owner, name, settings)]

    @property
    def sampler_logprobs(self) -> Tensor | None:
        """(B, T) for `guard.logprobs` or `guard.observe`, None where they are not those of the sampler."""
        return None if self.withheld else self.logprobs

    def tell(self, guard: Any, prompts: Tensor | None = None, **details: Any) -> Tensor | None:
        """Tell a guard of the rollout, and return `sampler_logprobs` for the call that scores it.

        details are more arguments of `guard.rollout`.
        """
        given = {"mask": self.mask, "settings": self.site, "prompts": prompts, **details}
        guard.rollout(self.responses, **given)
        return self.sampler_logprobs


def _neutral(owner: Engine, name: str, settings: Settings) -> bool:
    value = settings.get(name)
    if value is None:
        return True
    certain = isinstance(value, Known | Default)
    return certain and owner.is_off(name, value.value, settings.versions)


def padded(
    tokens: Sequence[Sequence[int]],
    logprobs: Sequence[Sequence[float | None] | None],
    kind: str,
    site: Site | None,
    pad_token_id: int,
    device: torch.device | str | None,
) -> Returned:
    """Rows of different lengths as tensors. ValueError where a row has not one log-prob for each token."""
    for number, (row, values) in enumerate(zip(tokens, logprobs, strict=True)):
        if values is not None and len(values) != len(row):
            raise ValueError(
                f"row {number} has {len(row)} tokens and {len(values)} log-probs: give one for each"
            )
    width = max([1, *map(len, tokens)])
    ids = [[*row, *[pad_token_id] * (width - len(row))] for row in tokens]
    drawn = [[True] * len(row) + [False] * (width - len(row)) for row in tokens]
    given = None
    if any(values is not None for values in logprobs):
        rows = [_numbers(values, width) for values in logprobs]
        given = torch.tensor(rows, dtype=torch.float32, device=device)
    return Returned(
        torch.tensor(ids, dtype=torch.int64, device=device).reshape(len(ids), width),
        torch.tensor(drawn, dtype=torch.bool, device=device).reshape(len(ids), width),
        given,
        kind,
        site,
    )


def _numbers(values: Sequence[float | None] | None, width: int) -> list[float]:
    found = [math.nan if one is None else float(one) for one in values or ()]
    return [*found, *[math.nan] * (width - len(found))]


@dataclass(frozen=True)
class Plan:
    """What the configuration of a framework says of its rollouts.

    site     the settings, for `guard.rollout(settings=plan.site)`, which the rules judge.
    kind     what the log-probs are that the engine returns; None where the loop gets none.
    options  arguments for `klguard.Guard`: kl_coef and the like.
    """

    site: Site
    kind: str | None
    options: Mapping[str, Any]


_MISSING = object()


def pick(tree: Any, path: str, default: Any = None) -> Any:
    """The value at a dotted path in nested dicts, OmegaConf trees, namespaces or objects; `default` without one."""
    for name in path.split("."):
        if isinstance(tree, Mapping) or hasattr(type(tree), "__getitem__") and hasattr(type(tree), "keys"):
            tree = tree[name] if name in tree else _MISSING
        else:
            tree = getattr(tree, name, _MISSING)
        if tree is _MISSING or tree is None:
            return default
    return tree


def required(tree: Any, path: str, what: str) -> Any:
    """As `pick`; ValueError where there is nothing."""
    found = pick(tree, path)
    if found is None:
        raise ValueError(f"this is no configuration of {what}: it has no `{path}`")
    return found
