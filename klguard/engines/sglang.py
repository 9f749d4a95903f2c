"""SGLang: the fields of SamplingParams, which `Engine.generate` takes as a dict.

Read from `sglang/srt/sampling/sampling_params.py` of 0.5.23 (`SamplingParams.__post_init__`, `verify`). The
native engine never merges a checkpoint's generation_config; only the OpenAI endpoints do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from klguard.engines.engine import NOTHING, Engine, Resolved
from klguard.engines.layers import of_kind, verdict
from klguard.engines.predicates import (
    LARGER_THAN_ANY_VOCABULARY,
    about_one,
    above,
    at_least,
    at_most,
    below,
    either,
    empty,
    falsy,
    none,
    one_of,
)
from klguard.engines.tables import During, Fault, Setting, harmless, table
from klguard.settings import Layer, LayerKind, SiteKind, Value

GREEDY_BELOW = 1e-6  # _SAMPLING_EPS
WHOLE_VOCABULARY = 1 << 30  # TOP_K_ALL

BETWEEN_TWO = (Fault(either(below(-2), above(2)), "SGLang raises ValueError: it lies between -2 and 2"),)

NUMBERS = (
    Setting(
        "temperature",
        1.0,
        off=either(none, about_one),
        safe="1.0",
        source="SamplingParams.temperature",
        doc="divides the logits; below 1e-6 it is greedy search",
        faults=(Fault(below(0), "SGLang raises ValueError: the temperature must not be negative"),),
    ),
    Setting(
        "top_k",
        (During("<0.5", -1), During("", WHOLE_VOCABULARY)),
        safe="-1",
        sampling_only=True,
        off=either(one_of(None, -1), at_least(LARGER_THAN_ANY_VOCABULARY)),
        source="SamplingParams.top_k",
        doc="keeps the k most likely tokens",
        faults=(
            Fault(one_of(0), "SGLang raises ValueError: here -1 turns top-k off, not 0"),
            Fault(below(-1), "SGLang raises ValueError: -1 turns top-k off"),
        ),
    ),
    Setting(
        "top_p",
        1.0,
        off=one_of(None, 1),
        safe="1.0",
        sampling_only=True,
        source="SamplingParams.top_p",
        doc="keeps the nucleus of mass p",
        faults=(Fault(either(at_most(0), above(1)), "SGLang raises ValueError: it is in (0, 1]; 1 is off"),),
    ),
    Setting(
        "min_p",
        0.0,
        off=one_of(None, 0),
        safe="0.0",
        sampling_only=True,
        source="SamplingParams.min_p",
        doc="cuts tokens less likely than a share of the likeliest",
        faults=(Fault(either(below(0), above(1)), "SGLang raises ValueError: min_p lies between 0 and 1"),),
    ),
    Setting(
        "repetition_penalty",
        1.0,
        off=one_of(None, 1),
        safe="1.0",
        source="SamplingParams.repetition_penalty",
        doc="pushes down every token of prompt and output",
        faults=(Fault(either(at_most(0), above(2)), "SGLang raises ValueError: it is in (0, 2]; 1 is off"),),
    ),
    Setting(
        "frequency_penalty",
        0.0,
        off=one_of(None, 0),
        safe="0.0",
        faults=BETWEEN_TWO,
        source="SamplingParams.frequency_penalty",
        doc="pushes down tokens by their count in the output",
    ),
    Setting(
        "presence_penalty",
        0.0,
        off=one_of(None, 0),
        safe="0.0",
        faults=BETWEEN_TWO,
        source="SamplingParams.presence_penalty",
        doc="pushes down tokens that are in the output",
    ),
    Setting(
        "min_new_tokens",
        0,
        off=either(none, at_most(0)),
        safe="0",
        source="SamplingParams.min_new_tokens",
        doc="bans the end of sequence until so many tokens are out",
        faults=(Fault(below(0), "SGLang raises ValueError: min_new_tokens must not be negative; 0 is off"),),
    ),
)

SETTINGS = table(
    *NUMBERS,
    *(
        Setting(name, None, off=falsy, source=f"SamplingParams.{name}", doc="allows what a grammar allows")
        for name in ("json_schema", "regex", "ebnf", "structural_tag")
    ),
    Setting(
        "logit_bias",
        None,
        off=either(none, empty),
        safe="None",
        source="SamplingParams.logit_bias",
        doc="adds a bias to tokens",
    ),
    Setting(
        "custom_logit_processor",
        None,
        off=none,
        source="Engine.generate(custom_logit_processor=)",
        doc="code that edits the logits",
    ),
    Setting("watermark", None, off=falsy, source="SamplingParams.watermark", doc="biases the draw by a key"),
    Setting(
        "beam_width",
        None,
        off=one_of(None, 1),
        source="SamplingParams.beam_width",
        doc="searches with beams",
    ),
    Setting("ignore_eos", False, source="SamplingParams.ignore_eos"),
    Setting("max_new_tokens", 128, source="SamplingParams.max_new_tokens"),
    Setting("n", 1, source="SamplingParams.n"),
    *harmless(
        "stop stop_token_ids stop_regex skip_special_tokens spaces_between_special_tokens no_stop_trim "
        "stream_interval sampling_seed custom_params prompt sampling_params input_ids return_logprob "
        "logprob_start_len top_logprobs_num token_ids_logprob lora_path stream",
        source="SamplingParams, Engine.generate",
    ),
)


class Sglang(Engine):
    """SGLang's native engine: sampling parameters stand alone."""

    def resolve(
        self,
        layers: Sequence[Layer],
        versions: Mapping[str, str],
        *,
        kind: SiteKind,
        class_name: str = "",
        facts: Mapping[str, Value] = NOTHING,
    ) -> Resolved:
        """What is in force: the parameters given, else the defaults; the checkpoint is not asked."""
        return super().resolve(of_kind(layers, LayerKind.KWARGS, LayerKind.OBJECT), versions, kind=kind)

    def sampling(self, values: Mapping[str, Value], versions: Mapping[str, str] = NOTHING) -> bool | None:
        """Whether tokens are drawn at random: not below a temperature of 1e-6."""
        greedy = verdict(values.get("temperature"), below(GREEDY_BELOW))
        return None if greedy is None else not greedy


SGLANG = Sglang(
    name="sglang",
    packages=("sglang",),
    sites={
        "SamplingParams": SiteKind.SAMPLING_PARAMS,
        "generate": SiteKind.GENERATE,
        "async_generate": SiteKind.GENERATE,
    },
    settings=SETTINGS,
    orders={"generate": ("prompt", "sampling_params"), "async_generate": ("prompt", "sampling_params")},
)
