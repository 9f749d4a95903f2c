"""A judged step as a record for the journal and for the loop's logger."""

from __future__ import annotations

import math
from typing import Any

from klguard.findings import Finding
from klguard.guard.invariants import Run
from klguard.guard.works import Outcome, Works

_TOP = 5


def settings(
    run: Run, ranks: int, reaction: Any, sample_tokens: int, tolerance: float | None
) -> dict[str, Any]:
    """What the run is judged by, for the journal's header."""
    return {
        "alpha": run.alpha,
        "kl_range": list(run.kl_range),
        "kl_coef": run.kl_coef,
        "tolerance": tolerance,
        "sample_tokens": sample_tokens,
        "seed": run.seed,
        "on_violation": reaction if isinstance(reaction, str) else "a function",
        "eos_token_id": list(run.stop_ids) if run.stop_ids else None,
        "policy": type(run.policy).__name__ if run.policy is not None else None,
        "reference": type(run.reference).__name__ if run.reference is not None else None,
        "ranks": ranks,
    }


def step_record(works: Works, outcome: Outcome, seconds: float) -> dict[str, Any]:
    """The figures of a step; those that were not measured are None. `seconds` is the guard's own time so far.

    KL is k1, in nats; its standard error is over the sequences of the step.
    """
    readings, run, evidence = outcome.readings, works.run, works.evidence
    kl = readings.of("KLG605")
    mean = kl.mean("all_k1", "sequences")
    error = None
    if mean is not None:
        spread = max(kl["all_squares"] / kl["sequences"] - mean**2, 0.0)
        error = math.sqrt(spread / kl["sequences"])
    harm = run.harm
    return {
        "step": outcome.step,
        "tokens": evidence.tokens,
        "sequences": kl["sequences"] or None,
        "kl_per_token": kl.mean("all_k1", "tokens"),
        "kl_per_sequence": mean,
        "kl_standard_error": error,
        "exact_kl_per_token": kl.mean("exact", "tested"),
        "entropy": evidence.entropy,
        "log_evidence": evidence.log_evidence,
        "causes": dict(list(evidence.causes.items())[:_TOP]),
        "bias_per_sequence": harm.nats_per_sequence if harm else None,
        "bias_standard_error": harm.standard_error if harm else None,
        "weights_version": run.version,
        "ranks": works.ranks.size,
        "guard_seconds": seconds,
        "reward": readings.mean("rewards.sum", "rewards.count"),
        "response_length": readings.mean("lengths.sum", "lengths.count"),
        "truncated_share": readings.mean("truncated.sum", "truncated.count"),
        **{n: readings.mean(f"{n}.sum", f"{n}.count") for n in ("loss", "grad_norm", "explained_variance")},
    }


def violation_record(finding: Finding) -> dict[str, Any]:
    """What the guard measured, beside the finding itself."""
    measured = finding.measured
    if measured is None:
        return {}
    return {
        "step": measured.step,
        "cause": measured.cause or None,
        "weight": measured.weight,
        "harm": {
            "nats_per_sequence": measured.nats_per_sequence,
            "standard_error": measured.standard_error,
            "reward": measured.reward,
        },
        "value": measured.value,
        "limit": measured.limit,
    }
