"""Settings: what is in force at one place that samples, and where each value came from.

Everything here is plain, immutable, picklable data: no I/O, no torch. Readers build it,
engines complete it, rules judge it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

MAX_ALTERNATIVES = 8


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A span of source text. Lines and columns count from 1, columns in characters; `end_column` is exclusive.

    In a notebook `cell` is the 0-based index of the cell and the lines count inside it; elsewhere it is None.
    """

    path: str
    cell: int | None
    line: int
    column: int
    end_line: int
    end_column: int

    def __str__(self) -> str:
        cell = "" if self.cell is None else f":cell {self.cell}"
        return f"{self.path}{cell}:{self.line}:{self.column}"


class HopKind(str, Enum):
    """How a value travelled one step on its way to the place where it is used."""

    LITERAL = "literal"
    KWARG = "kwarg"
    SPLAT = "splat"
    UPDATE = "update"
    ATTRIBUTE = "attribute"
    PARAMETER = "parameter"
    DEFAULT = "default"
    ARGPARSE = "argparse"
    IMPORT = "import"
    DOCUMENT = "document"
    FLAG = "flag"
    CHECKPOINT = "checkpoint"
    LIVE = "live"
    END = "end"


@dataclass(frozen=True, slots=True)
class Hop:
    """One step in the history of a value: what happened, in words, and where."""

    kind: HopKind
    place: Place | None
    text: str


class Reason(str, Enum):
    """Why a value is not known."""

    DYNAMIC_KEY = "a key computed at run time"
    INVISIBLE_CALL = "the result of code that is not visible"
    ESCAPED = "changed, perhaps, by code that is not visible"
    PARAMETER = "a parameter with no visible caller"
    RUNTIME = "known only at run time"
    RECURSION = "recursion"
    BUDGET = "too many possibilities to follow"
    UNSUPPORTED = "a construct klguard does not follow"


@dataclass(frozen=True, slots=True)
class Known:
    """A value that is certain. Besides plain Python data it may be an `Opaque` object."""

    value: Any
    hops: tuple[Hop, ...] = ()


@dataclass(frozen=True, slots=True)
class Default:
    """A value nobody wrote: what `library` uses, in `versions`, when the setting is left alone."""

    value: Any
    library: str
    versions: str = ""
    hops: tuple[Hop, ...] = ()


@dataclass(frozen=True, slots=True)
class Unknown:
    """A value that cannot be known from here. `detail` names the expression at which the trail ended."""

    reason: Reason
    detail: str = ""
    hops: tuple[Hop, ...] = ()

    def __str__(self) -> str:
        return f"{self.detail}: {self.reason.value}" if self.detail else self.reason.value


@dataclass(frozen=True, slots=True)
class Absent:
    """The setting may be left unset on this path. Appears in layers only, never in effective settings."""

    hops: tuple[Hop, ...] = ()


@dataclass(frozen=True, slots=True)
class OneOf:
    """Several possible values, where branches or callers meet; at most `MAX_ALTERNATIVES`, no nesting."""

    values: tuple[Value, ...]

    @property
    def hops(self) -> tuple[Hop, ...]:
        return self.values[0].hops


Value = Known | Default | Unknown | Absent | OneOf


@dataclass(frozen=True, slots=True)
class Opaque:
    """An object that is certainly there (not None) but cannot be looked into; `text` is the source expression.

    `name` is the dotted name of the class or function that made it, where that is known.
    """

    text: str
    name: str = ""

    def __str__(self) -> str:
        return self.text


def members(value: Value) -> tuple[Value, ...]:
    """The possibilities of `value`: those of a OneOf, else the value alone."""
    return value.values if isinstance(value, OneOf) else (value,)


def _identity(value: Value) -> tuple:
    match value:
        case Known(v) | Default(v):
            return (type(value).__name__, type(v).__name__, repr(v))
        case Unknown(reason, detail):
            return ("Unknown", reason, detail)
        case _:
            return ("Absent",)


def join(values: Iterable[Value]) -> Value:
    """What is known where several paths meet. Equal possibilities fold into one; too many become Unknown."""
    seen: dict[tuple, Value] = {}
    for value in values:
        for member in members(value):
            seen.setdefault(_identity(member), member)
    distinct = tuple(seen.values())
    if len(distinct) == 1:
        return distinct[0]
    if len(distinct) > MAX_ALTERNATIVES or not distinct:
        return Unknown(Reason.BUDGET, hops=distinct[0].hops if distinct else ())
    return OneOf(distinct)


class LayerKind(str, Enum):
    """Where a group of settings comes from, strongest first."""

    KWARGS = "kwargs"
    OBJECT = "object"
    CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class Layer:
    """Settings that arrive together, before an engine decides which of them win.

    `values` may hold Absent, or a OneOf with Absent among its members: unset on some path.
    `rest` is set when further, unseen names may be present too (an unknown `**splat`).
    `version` is the transformers version a checkpoint was saved with, where known.
    """

    kind: LayerKind
    values: Mapping[str, Value]
    rest: Unknown | None = None
    place: Place | None = None
    version: str = ""


class SiteKind(str, Enum):
    """What sort of call fixes or uses the settings."""

    GENERATE = "generate"
    GENERATION_CONFIG = "generation_config"
    SAMPLING_PARAMS = "sampling_params"
    TRAINER_CONFIG = "trainer_config"
    TRAINER = "trainer"


class Context(str, Enum):
    """What happens to the tokens that come out."""

    ROLLOUT = "rollout"
    EVALUATION = "evaluation"
    INFERENCE = "inference"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Settings:
    """What is in force at one site.

    values       every setting of the engine, with its effective value (never Absent).
    layers       what was written, before precedence, strongest first.
    facts        what else the reader saw: see FACTS for names and meanings.
    mitigations  setting -> words, where visible code or the trainer itself makes the setting harmless
                 for the ratio (divides the logits by the same temperature, replays the same filter).
    versions     library -> version the values were resolved for.
    class_name   dotted name of the class or function called (`trl.PPOConfig`), "" where it is a method.
    """

    engine: str
    kind: SiteKind
    values: Mapping[str, Value] = field(default_factory=dict)
    layers: tuple[Layer, ...] = ()
    facts: Mapping[str, Value] = field(default_factory=dict)
    mitigations: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    context: Context = Context.UNKNOWN
    class_name: str = ""

    def get(self, name: str) -> Value | None:
        """The effective value of setting `name`, or None when the engine has no such setting."""
        return self.values.get(name)


@dataclass(frozen=True)
class Site:
    """One call that fixes or uses sampling settings, as a reader found it.

    call       the callee as written (`ppo_trainer.generate`).
    enclosing  dotted name of the function or class around it, "" at the top level.
    why        the reason for `settings.context`, in words.
    """

    place: Place
    call: str
    settings: Settings
    why: str = ""
    enclosing: str = ""


FACTS = {
    "policy": "trainer or generate: Known(Opaque) for the policy object; equal `name`s are the same object",
    "reference": "trainer: likewise for the reference; Known(None) when passed as None; missing when omitted",
    "peft": "trainer: Known(True) when the policy visibly carries an adapter (peft_config, get_peft_model)",
    "batched": "generate: Known(True) when several prompts go in at once",
    "padded": "generate: Known(True) when the tokenizer is told to pad, however many prompts it is given",
    "attention_mask": "generate: Known(True) passed, Known(False) visibly not passed",
    "padding_side": "generate, trainer: the tokenizer's padding_side where it is set",
    "encoder_decoder": "generate: Known(True) for an encoder-decoder model, Known(False) for a decoder-only one",
    "train_mode": "generate: Known(True) when the model was last put into train(), Known(False) after eval()",
    "engine_logprobs": "sampling params: Known('raw') where log-probs of an engine made without logprobs_mode are used",
    "handed_on": "sampling params: Known(True) when a trainer takes them over and makes its own requests",
    "reseeded": "generate: Known(True) when a loop sets the same seed of torch before each rollout",
    "adapter_loaded": "trainer: Known(True) when the policy comes with a trained adapter that is trained on",
    "dropout": "generate: the largest dropout probability visibly set on the model",
    "checkpointing": "generate: Known(True) when gradient checkpointing was on during the call, at run time only",
    "reference_trainable": "trainer or generate: Known('train mode' | 'in the optimizer') with its place as hop",
    "pad_is_eos_mask": "generate: Known(True) when the response mask is `!= pad` and pad is the end-of-sequence token",
    "unshifted": "generate: Known(True) when log-probs are gathered at the tokens' own positions",
    "kl_estimator": "generate: Known('k1-loss' | 'abs' | 'clamp' | 'k3-turned' | 'k3-mixed') for a hand-written KL",
    "objective": "generate: Known('larger' | 'inverted' | 'kl-gain' | 'kl-bonus' | 'minimised'), if turned",
    "checkpoint": "generate, trainer: Known(str), the checkpoint the policy was loaded from",
    "pairs": "generate: Known(True) when what is trained on are pairs of answers, under a loss as DPO's",
    "kl_coefficient": "Known(0) when the loop multiplies its KL term by a literal 0",
    "kl_term": "Known(False) when the visible loop has no KL term or its coefficient is 0",
}
