"""vLLM: the fields of SamplingParams, and what LLM.generate() uses when it is given none.

Read from `vllm/sampling_params.py` of 0.6.6, 0.8.5, 0.9.0 and 0.33.0 (`SamplingParams`, `_verify_args`) and
from `vllm/config/model.py` (`ModelConfig.get_diff_sampling_param`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from klguard.engines.engine import NOTHING, Engine, Resolved
from klguard.engines.layers import of_kind, verdict, without
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
from klguard.engines.versions import version_of, within
from klguard.settings import Absent, Layer, LayerKind, SiteKind, Value

GREEDY_BELOW = 1e-5  # _SAMPLING_EPS

BETWEEN_TWO = (Fault(either(below(-2), above(2)), "vLLM raises ValueError: it lies between -2 and 2"),)
WHOLE_VOCABULARY = at_least(LARGER_THAN_ANY_VOCABULARY)

NUMBERS = (
    Setting(
        "temperature",
        1.0,
        off=either(none, about_one),
        safe="1.0",
        source="SamplingParams.temperature",
        doc="divides the logits; below 1e-5 it is greedy search",
        faults=(
            Fault(below(0), "vLLM raises ValueError: the temperature must not be negative"),
            Fault(above(2), "vLLM raises ValueError: the temperature lies between 0 and 2", ">=0.33"),
        ),
    ),
    Setting(
        "top_k",
        (During("<0.9", -1), During(">=0.9", 0)),
        safe="-1",
        sampling_only=True,
        off=(
            During("<0.9", either(one_of(None, -1), WHOLE_VOCABULARY)),
            During(">=0.9", either(one_of(None, -1, 0), WHOLE_VOCABULARY)),
        ),
        source="SamplingParams.top_k",
        doc="keeps the k most likely tokens",
        faults=(
            Fault(one_of(0), "vLLM raises ValueError: before 0.9 -1 turns top-k off, not 0", "<0.9"),
            Fault(below(-1), "vLLM raises ValueError: -1 turns top-k off"),
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
        faults=(Fault(either(at_most(0), above(1)), "vLLM raises ValueError: it is in (0, 1]; 1 is off"),),
    ),
    Setting(
        "min_p",
        0.0,
        off=one_of(None, 0),
        safe="0.0",
        sampling_only=True,
        source="SamplingParams.min_p",
        doc="cuts tokens less likely than a share of the likeliest",
        faults=(Fault(either(below(0), above(1)), "vLLM raises ValueError: min_p lies between 0 and 1"),),
    ),
    Setting(
        "repetition_penalty",
        1.0,
        off=one_of(None, 1),
        safe="1.0",
        source="SamplingParams.repetition_penalty",
        doc="pushes down every token of prompt and output",
        faults=(Fault(at_most(0), "vLLM raises ValueError: the penalty has to be above 0; 1.0 is off"),),
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
        "frequency_penalty",
        0.0,
        off=one_of(None, 0),
        safe="0.0",
        faults=BETWEEN_TWO,
        source="SamplingParams.frequency_penalty",
        doc="pushes down tokens by their count in the output",
    ),
    Setting(
        "min_tokens",
        0,
        off=either(none, at_most(0)),
        safe="0",
        source="SamplingParams.min_tokens",
        doc="bans the end of sequence until so many tokens are out",
        faults=(Fault(below(0), "vLLM raises ValueError: min_tokens must not be negative; 0 is off"),),
    ),
)

TOKENS = (
    Setting(
        "logit_bias",
        None,
        off=either(none, empty),
        safe="None",
        source="SamplingParams.logit_bias",
        doc="adds a bias to tokens",
    ),
    Setting(
        "allowed_token_ids",
        None,
        off=none,
        safe="None",
        source="SamplingParams.allowed_token_ids",
        doc="allows only some tokens",
        faults=(Fault(empty, "vLLM raises ValueError: the list must not be empty; None is off"),),
    ),
    Setting(
        "bad_words",
        None,
        off=either(none, empty),
        safe="None",
        source="SamplingParams.bad_words",
        doc="bans words",
    ),
    Setting(
        "guided_decoding",
        None,
        off=none,
        source="SamplingParams.guided_decoding, up to 0.11",
        doc="allows what a grammar allows",
    ),
    Setting(
        "structured_outputs",
        None,
        off=none,
        source="SamplingParams.structured_outputs",
        doc="allows what a grammar allows",
    ),
    Setting(
        "logits_processors",
        None,
        off=falsy,
        source="SamplingParams.logits_processors, before 0.10",
        doc="code that edits the logits",
    ),
    Setting(
        "watermarking",
        None,
        off=falsy,
        source="SamplingParams.watermarking",
        doc="biases the draw by a key",
    ),
    Setting(
        "thinking_token_budget",
        None,
        off=one_of(None, -1),
        source="SamplingParams.thinking_token_budget",
        doc="forces the end of thinking",
    ),
    Setting(
        "trace_decode_token_ids",
        None,
        off=none,
        source="SamplingParams.trace_decode_token_ids",
        doc="emits a given sequence",
    ),
)

SEARCH = (
    Setting(
        "use_beam_search",
        False,
        off=falsy,
        source="SamplingParams.use_beam_search, before 0.6.3",
        doc="searches with beams",
    ),
    Setting(
        "best_of",
        None,
        off=one_of(None, 1),
        source="SamplingParams.best_of, up to 0.9",
        doc="keeps the likeliest of several samples",
    ),
    Setting(
        "beam_width",
        None,
        off=one_of(None, 1),
        source="BeamSearchParams.beam_width",
        doc="searches with beams",
    ),
)

SETTINGS = table(
    *NUMBERS,
    *TOKENS,
    *SEARCH,
    Setting("ignore_eos", False, source="SamplingParams.ignore_eos"),
    Setting(
        "max_tokens",
        16,
        source="SamplingParams.max_tokens",
        faults=(Fault(below(1), "vLLM raises ValueError: max_tokens has to be at least 1"),),
    ),
    Setting("n", 1, source="SamplingParams.n"),
    *harmless(
        "seed stop stop_token_ids logprobs prompt_logprobs prompt_logprob_token_ids prompt_logprob_start "
        "logprob_token_ids flat_logprobs detokenize skip_special_tokens spaces_between_special_tokens "
        "include_stop_str_in_output truncate_prompt_tokens output_kind stream_interval skip_clone extra_args "
        "skip_reading_prefix_cache repetition_detection routed_experts_prompt_start length_penalty "
        "early_stopping prompts messages sampling_params params use_tqdm lora_request prompt_token_ids "
        "priority",
        source="SamplingParams, LLM.generate",
    ),
)

INHERITED = {
    "repetition_penalty": "repetition_penalty",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "max_new_tokens": "max_tokens",
}
"""generation_config.json -> SamplingParams, as `get_diff_sampling_param` takes it over."""

READS_CHECKPOINT = ">=0.8"  # ModelConfig.generation_config became "auto" in 0.8.0


class Vllm(Engine):
    """vLLM: SamplingParams stand alone; only a call without any takes the checkpoint's values."""

    def resolve(
        self,
        layers: Sequence[Layer],
        versions: Mapping[str, str],
        *,
        kind: SiteKind,
        class_name: str = "",
        facts: Mapping[str, Value] = NOTHING,
    ) -> Resolved:
        """What is in force: the SamplingParams given, else what the checkpoint says, else the defaults."""
        sources = of_kind(layers, LayerKind.KWARGS, LayerKind.OBJECT)
        reads = kind is SiteKind.GENERATE and within(version_of(self.name, versions), READS_CHECKPOINT)
        if reads and not any(self.gives(layer) for layer in sources):
            sources += tuple(inherited(x, versions) for x in of_kind(layers, LayerKind.CHECKPOINT))
        return super().resolve(sources, versions, kind=kind)

    def gives(self, layer: Layer) -> bool:
        """Whether the layer stands for sampling parameters, and not only for other arguments of the call."""
        known = any(name in self.settings and self.settings[name].shown for name in layer.values)
        return layer.kind is LayerKind.OBJECT or layer.rest is not None or known

    def sampling(self, values: Mapping[str, Value], versions: Mapping[str, str] = NOTHING) -> bool | None:
        """Whether tokens are drawn at random: not below a temperature of 1e-5."""
        greedy = verdict(values.get("temperature"), below(GREEDY_BELOW))
        return None if greedy is None else not greedy


def inherited(checkpoint: Layer, versions: Mapping[str, str]) -> Layer:
    """The part of a checkpoint's generation_config that vLLM takes over, under vLLM's names.

    It takes the difference to transformers' defaults, which drops a `top_k` of 50 before transformers 5 and
    keeps it since; None is dropped always.
    """
    taken = {INHERITED[n]: without(v, none) for n, v in checkpoint.values.items() if n in INHERITED}
    if "top_k" in taken and within(version_of("transformers", versions), "<5"):
        taken["top_k"] = without(taken["top_k"], one_of(50))
    return replace(checkpoint, values={n: v for n, v in taken.items() if not isinstance(v, Absent)})


VLLM = Vllm(
    name="vllm",
    packages=("vllm",),
    sites={
        "SamplingParams": SiteKind.SAMPLING_PARAMS,
        "BeamSearchParams": SiteKind.SAMPLING_PARAMS,
        "generate": SiteKind.GENERATE,
        "chat": SiteKind.GENERATE,
        "fast_generate": SiteKind.GENERATE,
        "beam_search": SiteKind.GENERATE,
    },
    settings=SETTINGS,
    orders={
        "SamplingParams": (
            During("<0.10", ("n", "best_of", "presence_penalty", "frequency_penalty")),
            During("", ("n", "presence_penalty", "frequency_penalty", "repetition_penalty", "temperature")),
        ),
        "BeamSearchParams": ("beam_width", "max_tokens", "ignore_eos", "temperature", "length_penalty"),
        "generate": ("prompts", "sampling_params"),
        "chat": ("messages", "sampling_params"),
        "fast_generate": ("prompts", "sampling_params"),
        "beam_search": ("prompts", "params"),
    },
)
