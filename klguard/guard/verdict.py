"""What the evidence says, in the words of a finding."""

from __future__ import annotations

import re
from dataclasses import dataclass

from klguard.guard import shares
from klguard.guard.evidence import Evidence
from klguard.guard.invariants.invariant import Breach
from klguard.rules import RULES

_CODES = {
    "shift+1": "KLG703",
    "shift-1": "KLG703",
    "sampler": "KLG702",
    "stale": "KLG704",
    "reference": "KLG603",
}

_SETTINGS = {
    "temperature": ("KLG106", "temperature"),
    "greedy": ("KLG201", "do_sample"),
    "top_k": ("KLG101", "top_k"),
    "top_p": ("KLG103", "top_p"),
    "min_p": ("KLG104", "min_p"),
    "typical_p": ("KLG105", "typical_p"),
    "epsilon_cutoff": ("KLG105", "epsilon_cutoff"),
    "eos_suppressed": ("KLG302", "min_new_tokens"),
    "repetition_penalty": ("KLG107", "repetition_penalty"),
    "banned_token": ("KLG109", "suppress_tokens"),
    "biased_token": ("KLG109", "sequence_bias"),
    "no_repeat_ngram": ("KLG108", "no_repeat_ngram_size"),
    "eos_boosted": ("KLG308", "exponential_decay_length_penalty"),
    "encoder_repetition_penalty": ("KLG107", "encoder_repetition_penalty"),
    "encoder_no_repeat_ngram": ("KLG108", "encoder_no_repeat_ngram_size"),
    "forced_eos": ("KLG110", "forced_eos_token_id"),
    "watermark": ("KLG111", "watermarking_config"),
}
"""The rule, and the setting, that a cause corresponds to, by the word its name begins with."""

_HELP = {
    "pit": "look for what stands between the logits that are scored and the draw: a logits processor, an adapter or"
    " dropout that is on in one of the two, another precision, a sampler with rules of its own",
    "repetition_penalty": "remove the repetition penalty: a trainer cannot undo it in the logits it scores",
    "eos_suppressed": "remove min_length and min_new_tokens: the policy is never told what it costs not to stop",
    "no_repeat_ngram": "remove no_repeat_ngram_size: the policy is scored as if it could still repeat itself",
    "encoder_repetition_penalty": "remove encoder_repetition_penalty: a trainer cannot undo it in the logits it scores",
    "encoder_no_repeat_ngram": "remove encoder_no_repeat_ngram_size: the policy is scored as if it could still repeat"
    " the prompt",
    "forced_eos": "remove forced_eos_token_id, or mask the token at the last position: the policy never chose it",
    "watermark": "remove watermarking_config from the rollouts: the logits that are scored have no watermark",
    "eos_boosted": "remove what makes the stop token likelier as the response grows"
    " (exponential_decay_length_penalty, a logits processor), or cut responses at max_new_tokens instead",
    "banned_token": "remove what suppresses the token (suppress_tokens, bad_words_ids, a grammar), or set its logit to"
    " -inf in the logits that are scored too",
    "biased_token": "remove the bias on the token (sequence_bias, logit_bias), or add it to the logits that are"
    " scored too",
}
"""What to do about a cause, where it is something else than for the rest of the code."""

_SURE = 0.9
"""Posterior weight below which the runner-up is named too."""

_WORDS = {
    "shift+1": "the logits at the next position are the ones that predicted them: they were shifted once too often",
    "shift-1": "the logits at the position before are the ones that predicted them: they were not shifted",
    "sampler": "the engine's own log-probabilities describe them better",
    "stale": "the earlier weights describe them better",
    "watermark": "they prefer the green lists of transformers' default key",
    "pit": "they fit no sampler of the list",
}


@dataclass(frozen=True)
class Verdict:
    """The policy is rejected as the sampler: with which code, which cause, how sure of the cause, and which
    setting (of the settings readers) the cause corresponds to, "" for none."""

    code: str
    breach: Breach
    cause: str
    weight: float
    setting: str


def verdict(evidence: Evidence, alpha: float) -> Verdict | None:
    """What to report once the evidence has crossed its threshold; None before."""
    limit = shares.threshold(alpha, shares.EVIDENCE)
    if evidence.log_evidence < limit:
        return None
    (cause, weight), second = list(evidence.causes.items())[:2]
    family = re.match(r"\w+(?:[+-]1)?", cause).group()
    rule, setting = _SETTINGS.get(family, ("", ""))
    like = _WORDS.get(cause, f"they look drawn with `{cause}`")
    also = "" if weight >= _SURE else f"; `{second[0]}` has {second[1]:.2f}"
    see = f"; see {rule} [{RULES[rule].name}]" if rule in RULES else ""
    return Verdict(
        _CODES.get(cause, "KLG701"),
        Breach(
            f"the tokens were not drawn from the policy that scored them: {like} (posterior {weight:.2f}{also}). The"
            f" evidence is {evidence.log_evidence:.1f} nats after {evidence.tokens:,} tested tokens; under pure"
            f" sampling it reaches {limit:.1f} with probability below {alpha:g}{see}",
            value=evidence.log_evidence,
            limit=limit,
            help=_HELP.get(family, ""),
        ),
        cause,
        weight,
        setting,
    )
