"""The bank: which hypotheses the evidence tries, with which parameters."""

from __future__ import annotations

import math

from klguard.guard.context_rules import EosBoosted, ForcedEos, NoRepeatNgram, PromptFavoured, PromptNgram
from klguard.guard.hypotheses import (
    EosSuppressed,
    EpsilonCutoff,
    GivenLogProbs,
    Greedy,
    Hypothesis,
    MinP,
    Neighbour,
    PitTilt,
    RepetitionPenalty,
    Temperature,
    TopK,
    TopP,
    TypicalP,
)
from klguard.guard.watermark import Watermark


def default_bank() -> tuple[Hypothesis, ...]:
    """The samplers that inference engines and trainers offer, and the ways in which scores go astray."""
    return (
        Greedy(),
        Temperature(
            (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0),
            between=(0.2, 0.4, 0.75, 0.85, 1.2, 3.0),
        ),
        TopK((1, 2, 5, 10, 20, 40, 50, 64, 100, 200), between=(3, 8, 15, 30, 80, 150)),
        TopP((0.5, 0.7, 0.8, 0.9, 0.95, 0.99), between=(0.6, 0.75, 0.85, 0.92, 0.98)),
        MinP((0.01, 0.05, 0.1), between=(0.005, 0.02, 0.03, 0.2, 0.3)),
        TypicalP((0.2, 0.5, 0.9, 0.95), between=(0.3, 0.7, 0.8)),
        EpsilonCutoff((3e-4, 1e-3), between=(2e-3, 5e-3, 1e-2, 2e-2)),
        EosSuppressed(
            (1, 4, 8, 16, 32, 64, 128, 256, math.inf),
            between=(5, 10, 20, 24, 50, 100, 200),
        ),
        RepetitionPenalty((1.05, 1.1, 1.2, 1.3, 1.5), between=(1.02, 1.15, 1.25, 2.0)),
        NoRepeatNgram((2, 3, 4)),
        PromptNgram((1, 2, 3, 4)),
        PromptFavoured((0.8, 0.9, 1.1, 1.2, 1.3, 1.5)),
        EosBoosted((0, 8, 16, 32)),
        ForcedEos(),
        Watermark(),
        GivenLogProbs("reference", 0.03),
        GivenLogProbs("sampler", 0.03),
        GivenLogProbs("stale", 0.03),
        Neighbour(-1),
        Neighbour(+1),
        PitTilt((-4.0, -2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 4.0)),
    )
