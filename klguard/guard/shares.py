"""How the run's false-alarm probability alpha is divided among the tests that share it.

By the union bound the probability that any of them ever alarms in a healthy run is at most alpha.
"""

from __future__ import annotations

import math

EVIDENCE = 0.45
"""For the bank of likelihood ratios (KLG701 to KLG704)."""

CUMULATIVE = 0.45
"""For the cumulative k1 (KLG603)."""

WINDOW = 0.1
"""For the KL over a window falling below its range (KLG604)."""


def threshold(alpha: float, share: float) -> float:
    """The log-evidence, in nats, at which a test with this share alarms: Ville's inequality."""
    return -math.log(alpha * share)
