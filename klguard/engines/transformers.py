"""transformers: the fields of GenerationConfig and the arguments of generate().

Conditions are those under which 4.49.0, 4.57.6 and 5.23.0 build a processor or choose a decoding mode, read
from `generation/utils.py` (`_get_logits_processor`, `_sample`), `generation/configuration_utils.py`
(`GenerationConfig`, `get_generation_mode`, `_get_default_generation_params`) and
`generation/logits_process.py`. `benchmarks/oracle_transformers.py` asks the libraries themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

from klguard.engines.engine import NOTHING, Engine, Resolved
from klguard.engines.layers import verdict
from klguard.engines.precedence import Merge
from klguard.engines.predicates import (
    LARGER_THAN_ANY_VOCABULARY,
    about_one,
    above,
    at_least,
    at_most,
    below,
    both,
    either,
    empty,
    falsy,
    harmless_processors,
    negate,
    none,
    not_a_float,
    not_an_int,
    one_of,
    outside,
    truthy,
)
from klguard.engines.tables import During, Fault, Setting, harmless, table
from klguard.engines.versions import version_of
from klguard.settings import Layer, LayerKind, SiteKind, Value

WHOLE_VOCABULARY = both(at_least(LARGER_THAN_ANY_VOCABULARY), negate(not_an_int))
OTHER_INT = both(not_a_float, negate(one_of(1)))
OTHER_FLOAT = both(not_an_int, negate(one_of(0)))

WARPERS = (
    Setting(
        "temperature",
        1.0,
        off=either(none, about_one),
        safe="1.0",
        sampling_only=True,
        source="TemperatureLogitsWarper",
        doc="divides the logits",
        faults=(
            Fault(at_most(0), "transformers raises ValueError: it is above 0; do_sample=False is greedy"),
            Fault(OTHER_INT, "transformers raises ValueError: the temperature has to be a float, not an int"),
        ),
    ),
    Setting(
        "top_k",
        50,
        off=either(one_of(None, 0), WHOLE_VOCABULARY),
        safe="0",
        sampling_only=True,
        source="TopKLogitsWarper",
        doc="keeps the k most likely tokens",
        faults=(
            Fault(below(0), "transformers raises ValueError: here 0 turns top-k off, not -1"),
            Fault(OTHER_FLOAT, "transformers raises ValueError: top_k has to be an int"),
        ),
    ),
    Setting(
        "top_p",
        1.0,
        off=either(none, at_least(1)),
        safe="1.0",
        sampling_only=True,
        source="TopPLogitsWarper",
        doc="keeps the nucleus of mass p",
        faults=(
            Fault(below(0), "transformers raises ValueError: top_p lies between 0 and 1"),
            Fault(one_of(0), "0 does not turn top-p off: it keeps one token, which is greedy; 1.0 is off"),
        ),
    ),
    Setting(
        "min_p",
        None,
        off=one_of(None, 0),
        safe="None",
        sampling_only=True,
        versions=">=4.41",
        source="MinPLogitsWarper",
        doc="cuts tokens less likely than a share of the likeliest",
        faults=(Fault(either(below(0), above(1)), "transformers raises ValueError: it is between 0 and 1"),),
    ),
    Setting(
        "top_h",
        None,
        off=none,
        safe="None",
        sampling_only=True,
        versions=">=5",
        source="TopHLogitsWarper",
        doc="keeps tokens up to a share of the entropy, never more than 100",
        faults=(
            Fault(one_of(1), "1.0 does not turn top-h off: at most 100 tokens are kept; None is off"),
            Fault(either(at_most(0), above(1)), "transformers raises ValueError: top_h lies in (0, 1]"),
        ),
    ),
    Setting(
        "typical_p",
        1.0,
        off=either(none, at_least(1)),
        safe="1.0",
        sampling_only=True,
        source="TypicalLogitsWarper",
        doc="keeps tokens of typical information, at times not the likeliest",
        faults=(Fault(at_most(0), "transformers raises ValueError: typical_p is above 0; 1.0 is off"),),
    ),
    Setting(
        "epsilon_cutoff",
        0.0,
        off=either(none, outside(0, 1)),
        safe="0.0",
        sampling_only=True,
        source="EpsilonLogitsWarper",
        doc="cuts tokens below a probability",
    ),
    Setting(
        "eta_cutoff",
        0.0,
        off=either(none, outside(0, 1)),
        safe="0.0",
        sampling_only=True,
        source="EtaLogitsWarper",
        doc="cuts tokens below a probability that depends on the entropy",
    ),
)

PENALTY = (
    Fault(OTHER_INT, "transformers raises ValueError: the penalty has to be a float, not an int"),
    Fault(at_most(0), "transformers raises ValueError: the penalty has to be above 0; 1.0 is off"),
)
WHOLE_NUMBER = (Fault(both(not_an_int, above(0)), "transformers raises ValueError: it has to be an int"),)
NOT_EMPTY = (Fault(empty, "transformers raises ValueError: it must not be empty; None is off"),)

PROCESSORS = (
    Setting(
        "repetition_penalty",
        1.0,
        off=one_of(None, 1),
        safe="1.0",
        faults=PENALTY,
        source="RepetitionPenaltyLogitsProcessor",
        doc="pushes down every token of prompt and output",
    ),
    Setting(
        "encoder_repetition_penalty",
        1.0,
        off=one_of(None, 1),
        safe="1.0",
        faults=PENALTY,
        source="EncoderRepetitionPenaltyLogitsProcessor",
        doc="pushes the tokens of the prompt up or down",
    ),
    Setting(
        "no_repeat_ngram_size",
        0,
        off=either(none, at_most(0)),
        safe="0",
        faults=WHOLE_NUMBER,
        source="NoRepeatNGramLogitsProcessor",
        doc="bans n-grams that stand in prompt or output",
    ),
    Setting(
        "encoder_no_repeat_ngram_size",
        0,
        off=either(none, at_most(0)),
        safe="0",
        faults=WHOLE_NUMBER,
        source="EncoderNoRepeatNGramLogitsProcessor",
        doc="bans n-grams that stand in the prompt",
    ),
    Setting(
        "bad_words_ids",
        None,
        off=none,
        safe="None",
        faults=NOT_EMPTY,
        source="NoBadWordsLogitsProcessor",
        doc="bans token sequences",
    ),
    Setting(
        "suppress_tokens",
        None,
        off=either(none, empty),
        safe="None",
        source="SuppressTokensLogitsProcessor",
        doc="bans tokens",
    ),
    Setting(
        "begin_suppress_tokens",
        None,
        off=either(none, empty),
        safe="None",
        source="SuppressTokensAtBeginLogitsProcessor",
        doc="bans tokens at the first position",
    ),
    Setting(
        "sequence_bias",
        None,
        off=none,
        safe="None",
        versions=">=4.29",
        faults=NOT_EMPTY,
        source="SequenceBiasLogitsProcessor",
        doc="adds a bias to token sequences",
    ),
    Setting(
        "exponential_decay_length_penalty",
        None,
        off=none,
        safe="None",
        source="ExponentialDecayLengthPenalty",
        doc="pushes up the end of sequence as the text grows",
    ),
    Setting(
        "min_length",
        0,
        off=either(none, at_most(0)),
        safe="0",
        faults=WHOLE_NUMBER,
        source="MinLengthLogitsProcessor",
        doc="bans the end of sequence until prompt and output are so long",
    ),
    Setting(
        "min_new_tokens",
        None,
        off=either(none, at_most(0)),
        safe="None",
        faults=WHOLE_NUMBER,
        source="MinNewTokensLengthLogitsProcessor",
        doc="bans the end of sequence until so many are out",
    ),
    Setting(
        "forced_bos_token_id",
        None,
        off=none,
        safe="None",
        source="ForcedBOSTokenLogitsProcessor",
        doc="forces the first token",
    ),
    Setting(
        "forced_eos_token_id",
        None,
        off=none,
        safe="None",
        source="ForcedEOSTokenLogitsProcessor",
        doc="forces the last token at max_length",
    ),
    Setting(
        "forced_decoder_ids",
        None,
        off=either(none, empty),
        safe="None",
        versions="<5",
        source="ForceTokensLogitsProcessor",
        doc="forces tokens at positions",
    ),
    Setting(
        "guidance_scale",
        None,
        off=one_of(None, 1),
        safe="None",
        versions=">=4.31",
        source="UnbatchedClassifierFreeGuidanceLogitsProcessor",
        doc="mixes in a second distribution",
    ),
    Setting(
        "watermarking_config",
        None,
        off=none,
        safe="None",
        versions=">=4.42",
        source="WatermarkLogitsProcessor",
        doc="adds a bias to a keyed part of the vocabulary",
    ),
    Setting(
        "token_healing",
        (During("<5", False), During("", None)),
        off=falsy,
        safe="False",
        versions=">=4.41",
        source="GenerationMixin.heal_tokens",
        doc="rewrites the end of the prompt",
    ),
)

MODES = (
    Setting(
        "do_sample",
        False,
        off=truthy,
        safe="True",
        source="GenerationMixin._sample, which asks for its truth",
        doc="draws tokens at random",
    ),
    Setting(
        "num_beams",
        1,
        off=one_of(None, 1),
        safe="1",
        source="get_generation_mode",
        doc="searches with beams",
    ),
    Setting(
        "num_beam_groups",
        1,
        off=either(none, at_most(1)),
        safe="1",
        source="get_generation_mode",
        doc="searches with groups of beams",
    ),
    Setting(
        "diversity_penalty",
        0.0,
        off=either(none, at_most(0)),
        safe="0.0",
        source="HammingDiversityLogitsProcessor",
        doc="pushes groups of beams apart",
    ),
    Setting(
        "penalty_alpha",
        None,
        off=either(none, at_most(0)),
        safe="None",
        source="get_generation_mode",
        doc="contrastive search, where do_sample is off and top_k above 1",
    ),
    Setting(
        "dola_layers",
        None,
        off=none,
        safe="None",
        versions=">=4.43",
        source="get_generation_mode",
        doc="contrasts the layers of the model",
    ),
    Setting(
        "constraints",
        None,
        off=none,
        safe="None",
        source="get_generation_mode",
        doc="searches with beams under constraints",
    ),
    Setting(
        "force_words_ids",
        None,
        off=none,
        safe="None",
        source="get_generation_mode",
        doc="searches with beams that hold given words",
    ),
    Setting(
        "assistant_ensemble_weight",
        None,
        off=none,
        safe="None",
        versions=">=5.1",
        source="GenerationConfig.assistant_ensemble_weight",
        doc="accepts drafted tokens too readily",
    ),
)

LENGTHS = (
    Setting("max_length", 20, source="MaxLengthCriteria"),
    Setting(
        "max_new_tokens",
        None,
        source="GenerationMixin._prepare_generated_length",
        faults=(Fault(at_most(0), "transformers raises ValueError: it has to be above 0"),),
    ),
    Setting("eos_token_id", None, source="EosTokenCriteria"),
    Setting("pad_token_id", None, source="GenerationMixin._prepare_special_tokens"),
    *harmless("max_time stop_strings bos_token_id decoder_start_token_id", source="GenerationConfig"),
)

HARMLESS = (
    Setting("early_stopping", False, shown=False, source="beam search only"),
    Setting("length_penalty", 1.0, shown=False, source="beam search only"),
    Setting("renormalize_logits", False, shown=False, source="LogitNormalization"),
    Setting("remove_invalid_values", False, shown=False, source="InfNanRemoveLogitsProcessor"),
    Setting("num_return_sequences", 1, shown=False),
    Setting("use_cache", True, shown=False),
    *harmless(
        "num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold "
        "assistant_lookbehind target_lookbehind cache_implementation cache_config return_legacy_cache "
        "prefill_chunk_size max_cache_len low_memory use_mtp output_attentions output_hidden_states "
        "output_scores output_logits return_dict_in_generate is_assistant prompt_lookup_num_tokens "
        "max_matching_ngram_size assistant_early_exit speculation_type compile_config disable_compile "
        "continuous_batching_config generation_kwargs transformers_version begin_index _from_model_config",
        source="GenerationConfig",
    ),
)

ARGUMENTS = (
    Setting(
        "logits_processor",
        None,
        off=harmless_processors,
        safe="None",
        argument=True,
        source="generate(logits_processor=)",
        doc="code that edits the logits",
    ),
    Setting(
        "logits_warper",
        None,
        off=harmless_processors,
        safe="None",
        argument=True,
        versions="<4.46",
        source="sample(logits_warper=)",
        doc="code that edits the logits",
    ),
    Setting(
        "prefix_allowed_tokens_fn",
        None,
        off=none,
        safe="None",
        argument=True,
        source="PrefixConstrainedLogitsProcessor",
        doc="allows only some tokens at each step",
    ),
    Setting(
        "custom_generate",
        None,
        off=none,
        safe="None",
        argument=True,
        versions=">=4.52",
        source="generate(custom_generate=)",
        doc="replaces the decoding loop",
    ),
    *harmless(
        "inputs input_ids attention_mask position_ids inputs_embeds decoder_input_ids generation_config "
        "stopping_criteria synced_gpus assistant_model streamer negative_prompt_ids "
        "negative_prompt_attention_mask use_model_defaults tokenizer assistant_tokenizer trust_remote_code "
        "past_key_values encoder_outputs pixel_values token_type_ids",
        argument=True,
        source="generate()",
    ),
)

SETTINGS = table(*MODES, *WARPERS, *PROCESSORS, *LENGTHS, *HARMLESS, *ARGUMENTS)

GENERATE_ORDER = (
    "inputs",
    "generation_config",
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "synced_gpus",
    "assistant_model",
    "streamer",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
)


class Transformers(Engine):
    """generate() and GenerationConfig."""

    def resolve(
        self,
        layers: Sequence[Layer],
        versions: Mapping[str, str],
        *,
        kind: SiteKind,
        class_name: str = "",
        facts: Mapping[str, Value] = NOTHING,
    ) -> Resolved:
        """What is in force: keyword arguments, object, checkpoint and library, as the version weighs them."""
        configuration = kind is SiteKind.GENERATION_CONFIG
        if configuration:  # the keyword arguments of a constructor are the fields of an object
            layers = [replace(x, kind=LayerKind.OBJECT) if x.kind is LayerKind.KWARGS else x for x in layers]
        merge = Merge.of(layers, cache(lambda name: self.default(name, versions)))
        effective = merge.rule(version_of(self.name, versions))
        values = {name: effective(name) for name in self.listed(layers, arguments=not configuration)}
        return Resolved(values, facts=merge.notes.facts())

    def sampling(self, values: Mapping[str, Value], versions: Mapping[str, str] = NOTHING) -> bool | None:
        """Whether tokens are drawn at random: `_sample` and `_beam_search` ask for the truth of do_sample."""
        return verdict(values.get("do_sample"), truthy)

    def active(
        self, setting: str, values: Mapping[str, Value], versions: Mapping[str, str] = NOTHING
    ) -> bool | None:
        """Whether `setting` is listened to: warpers only when sampling, contrastive search only when not."""
        if setting != "penalty_alpha":
            return super().active(setting, values, versions)
        drawn = self.sampling(values, versions)
        single = verdict(values.get("top_k"), either(none, at_most(1)))
        return False if drawn or single else True if drawn is False and single is False else None


TRANSFORMERS = Transformers(
    name="transformers",
    packages=("transformers",),
    sites={"generate": SiteKind.GENERATE, "GenerationConfig": SiteKind.GENERATION_CONFIG},
    settings=SETTINGS,
    orders={"generate": GENERATE_ORDER},
)
