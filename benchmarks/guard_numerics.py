#!/usr/bin/env python3
"""The guard's KL, entropy and log-probs against float64, and what the usual formulas make of the same input.

    python benchmarks/guard_numerics.py [--rows 4] [--no-timing]

Three parts. Over the vocabulary: exact KL, its variance, entropy and token log-probs on 50,257 and 151,936
entries, for hard logits (up to 1e4, ties, nearly equal models, -inf) in fp32, bf16 and fp16. Estimators: k1, k2
and k3 for every difference a 16-bit type can hold and for millions in fp32. Timing: the passes by the number of
rows in a chunk, with reused buffers and with fresh temporaries. Float64 works on the same rounded inputs, so
every error is the arithmetic's own. Exits with 1 if a bound is missed; results go to
benchmarks/results/guard_numerics.json.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.machine import record  # noqa: E402
from klguard.guard import kl, vocabulary  # noqa: E402

VOCABULARIES = (50_257, 151_936)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
INF = math.inf
BOUNDS = {"kl": 1e-6, "variance": 2e-6, "entropy": 1e-6, "log_probs": 1e-5}
"""Largest error allowed: absolute below 1, relative above. Log-probs are torch's own log-softmax, bit by bit."""


# ------------------------------------------------------------------------------------------ float64


def exact(logits: Tensor, reference_logits: Tensor) -> dict[str, Tensor]:
    """KL, Var_p[log p - log q] and entropy of rows (n, V) by definition, in float64, over the support of p."""
    log_p, log_q = logits.double().log_softmax(-1), reference_logits.double().log_softmax(-1)
    p, support = log_p.exp(), log_p > -INF
    difference = torch.where(support, log_p - log_q, 0.0)
    value = torch.where(support & (log_q == -INF), INF, p * difference).sum(-1)
    variance = (p * (difference - value[:, None]).square()).sum(-1)
    entropy = -torch.where(support, p * log_p, 0.0).sum(-1)
    return {"kl": value, "variance": torch.where(value == INF, INF, variance), "entropy": entropy}


def k3_in_float64(d: Tensor) -> Tensor:
    """exp(d) - 1 - d: 30 terms of its series where |d| < 1, else as written."""
    d = d.double()
    near = torch.where(d.abs() < 1, d, 0.0)
    series = sum(near**power / float(math.factorial(power)) for power in range(2, 32))
    return torch.where(d.abs() < 1, series, torch.exp(d) - 1 - d)


def error(measured: Tensor, oracle: Tensor) -> float:
    """Largest error, absolute below 1 and relative above; inf where one is not finite and the other differs."""
    measured = measured.double()
    same = (measured == oracle) | (measured.isnan() & oracle.isnan())
    gap = (measured - oracle).abs() / oracle.abs().clamp(min=1)
    return float(torch.where(same, 0.0, gap.nan_to_num(nan=INF)).max())


# ------------------------------------------------------------------------------------------ over the vocabulary


def cases(rows: int, size: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Names and pairs of fp32 logits (rows, size) that are hard on a KL."""
    generator = torch.Generator().manual_seed(size)

    def normal(scale: float) -> Tensor:
        return torch.randn(rows, size, generator=generator) * scale

    base, other = normal(3.0), normal(3.0)
    yield "ordinary", base, other
    yield "nearly equal", base, base + 1e-3 * other
    yield "equal", base, base.clone()
    yield "peaked", base * 10, base * 10 + 0.1 * other
    yield "flat", 1e-3 * base, 1e-3 * other
    large = normal(1.0).clamp(-4, 4) * 2_500
    yield "logits up to 1e4", large, large + normal(1.0)
    yield "1e4 apart", large, normal(1.0).clamp(-4, 4) * 2_500
    yield "offset by 1e4", base + 1e4, other - 1e4
    yield "ties", normal(1.0).round(), normal(1.0).round()
    holes = base.clone()
    holes[:, ::3] = -INF
    flat = torch.zeros_like(base)
    flat[:, 7] = 10
    yield "nearly flat", flat + 0.0078 * (base > 0), flat
    yield "-inf in both", holes, holes + 0.1 * other
    yield "-inf in the policy", holes, other
    yield "-inf in the reference", other, holes


def naive_kl(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """The usual line, in the dtype of the logits."""
    log_p, log_q = logits.log_softmax(-1), reference_logits.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def over_the_vocabulary(rows: int) -> list[dict[str, Any]]:
    """One record per vocabulary, case and dtype: errors of ours and of the naive KL."""
    records = []
    for size in VOCABULARIES:
        tokens = torch.randint(size, (rows,), generator=torch.Generator().manual_seed(1))
        for name, first, second in cases(rows, size):
            for dtype_name, dtype in DTYPES.items():
                logits, reference_logits = first.to(dtype), second.to(dtype)
                oracle = exact(logits, reference_logits)
                measured = kl.exact_kl(logits, reference_logits)
                moments = kl.exact_kl_moments(
                    logits.float().log_softmax(-1), reference_logits.float().log_softmax(-1)
                )
                log_probs = logits.double().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
                naive = naive_kl(logits, reference_logits)
                in_parts = kl.exact_kl(logits, reference_logits, budget=2**17)
                records.append(
                    {
                        "vocabulary": size,
                        "case": name,
                        "dtype": dtype_name,
                        "kl_nats": round(float(oracle["kl"].mean()), 6)
                        if oracle["kl"].isfinite().all()
                        else "inf",
                        "kl": max(error(measured, oracle["kl"]), error(in_parts, oracle["kl"])),
                        "variance": error(moments[1], oracle["variance"]),
                        "entropy": error(kl.entropy(logits), oracle["entropy"]),
                        "log_probs": error(kl.token_log_probs(logits, tokens), log_probs),
                        "smallest_kl": float(measured.min()),
                        "naive_kl": error(naive, oracle["kl"]),
                        "naive_smallest_kl": float(naive.min()),
                    }
                )
    return records


# ------------------------------------------------------------------------------------------ estimators


def differences(dtype: torch.dtype) -> Tensor:
    """Every finite value of a 16-bit dtype up to 80 nats; for fp32 eight million bit patterns of all exponents."""
    if dtype == torch.float32:
        values = torch.arange(-(2**31), 2**31, 509, dtype=torch.int64).to(torch.int32).view(dtype)
    else:
        values = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    return values[values.isfinite() & (values.abs() <= 80)]


def estimators() -> list[dict[str, Any]]:
    """Relative error of each estimator, and the smallest k3, ours and by the textbook, for each dtype."""
    records = []
    for name, dtype in DTYPES.items():
        d = differences(dtype)
        zero = torch.zeros_like(d)
        oracle = k3_in_float64(d)
        ours = kl.k3(zero, d)
        normal = oracle > 1e-37  # below, fp32 itself has fewer digits
        textbook = torch.exp(d) - 1 - d
        small = d.abs() < 1
        squared = d.double().square() / 2
        records.append(
            {
                "dtype": name,
                "differences": len(d),
                "k1": float((kl.k1(zero, d).double() + d.double()).abs().max()),
                "k2": float(((kl.k2(zero, d).double() - squared).abs() / squared)[squared > 1e-37].max()),
                "k3": float(((ours.double() - oracle).abs() / oracle)[normal].max()),
                "k3_below_zero": int((ours < 0).sum()),
                "textbook_k3_error_below_1_nat": float((textbook.double() - oracle).abs()[small].max()),
                "textbook_k3_smallest": float(textbook[small].min()),
                "textbook_k3_below_zero": int((textbook < 0).sum()),
                "expm1_in_this_dtype_smallest": float((torch.expm1(d) - d)[small].min()),
            }
        )
    return records


def log_probs_from_half_precision(rows: int) -> dict[str, float]:
    """How far log-probs are off when the log-softmax itself is taken in bf16 or fp16, nats."""
    found = {}
    for name, dtype in DTYPES.items():
        worst = 0.0
        for size in VOCABULARIES:
            logits = next(cases(rows, size))[1].to(dtype)
            gap = logits.log_softmax(-1).double() - logits.double().log_softmax(-1)
            worst = max(worst, float(gap.abs().max()))
        found[name] = worst
    return found


def gradients_that_leave(size: int = 1_000) -> int:
    """How many of the guard-side statistics carry a graph, given logits that require a gradient: none may."""
    logits = torch.randn(2, 3, size, requires_grad=True)
    other = torch.randn(2, 3, size, requires_grad=True)
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    with torch.no_grad():
        log_probs = kl.token_log_probs(logits, tokens)
    results = [kl.exact_kl(logits, other), kl.entropy(logits), log_probs]
    results += kl.exact_kl_moments(logits.log_softmax(-1), other.log_softmax(-1))
    return sum(result.requires_grad or result.grad_fn is not None for result in results)


# ------------------------------------------------------------------------------------------ timing


def fastest(work: Callable[[], object], repeats: int = 7) -> float:
    """Milliseconds of the fastest of some runs."""
    best = INF
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return round(best * 1e3, 1)


def fresh_temporaries(logits: Tensor, reference_logits: Tensor, rows: int) -> Tensor:
    """The exact KL in chunks, as one writes it: with temporaries of its own for each chunk."""
    parts = []
    for start in range(0, len(logits), rows):
        log_p = logits[start : start + rows].log_softmax(-1)
        log_q = reference_logits[start : start + rows].log_softmax(-1)
        parts.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return torch.cat(parts)


def timing(n: int = 256, size: int = 50_257) -> list[dict[str, Any]]:
    """Milliseconds for n rows by rows per chunk, one thread: the constants of klguard/guard/vocabulary.py."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logits, reference_logits = torch.randn(n, size), torch.randn(n, size)
    tokens = torch.randint(size, (n,))
    records = []
    chosen, cache = vocabulary.rows_per_chunk(size, 4, copies=3), vocabulary.CACHE_PER_THREAD
    for rows in (1, 2, 4, 8, 16, 32, 64, n):
        vocabulary.CACHE_PER_THREAD = rows * size * 4
        budget = 12 * rows * size
        records.append(
            {
                "rows": rows,
                "default": rows == chosen,
                "log_probs_ms": fastest(lambda: kl.token_log_probs(logits, tokens, budget=budget)),  # noqa: B023
                "exact_kl_ms": fastest(lambda: kl.exact_kl(logits, reference_logits, budget=budget)),  # noqa: B023
                "fresh_temporaries_ms": fastest(lambda: fresh_temporaries(logits, reference_logits, rows)),  # noqa: B023
            }
        )
    vocabulary.CACHE_PER_THREAD = cache
    torch.set_num_threads(threads)
    return records


# ------------------------------------------------------------------------------------------ the report


def table(records: list[dict[str, Any]]) -> None:
    """Prints records with the same keys as a table."""
    columns = list(records[0])
    text = [
        [f"{v:.1e}" if isinstance(v, float) and "ms" not in k else str(v) for k, v in r.items()]
        for r in records
    ]
    widths = [max(len(name), *(len(row[i]) for row in text)) for i, name in enumerate(columns)]
    for row in [columns, *text]:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    print()


def missed(result: dict[str, Any]) -> list[str]:
    """The bounds that do not hold, in words."""
    found = [
        f"{r['case']}, {r['dtype']}, V={r['vocabulary']}: {key} is off by {r[key]:.1e}"
        for r in result["over_the_vocabulary"]
        for key, bound in BOUNDS.items()
        if not r[key] <= bound
    ]
    found += [
        f"{r['case']}, {r['dtype']}, V={r['vocabulary']}: exact KL {r['smallest_kl']:.1e} is below -1e-5"
        for r in result["over_the_vocabulary"]
        if not r["smallest_kl"] >= -1e-5
    ]
    for r in result["estimators"]:
        if r["k3_below_zero"] or r["k1"] or not max(r["k2"], r["k3"]) < 3e-6:
            found.append(f"an estimator in {r['dtype']} misses its bound: {r}")
    if result["gradients_that_leave"]:
        found.append("a statistic of the guard carries a graph")
    return found


def finite(value: Any) -> Any:
    """`value` with infinities and NaN as words, for JSON."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.3g}") if math.isfinite(value) else str(value)
    return value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4, help="rows of logits in each case")
    parser.add_argument(
        "--no-timing", action="store_true", help="leave the timing out, and the results file alone"
    )
    args = parser.parse_args()
    result: dict[str, Any] = {
        "bounds": BOUNDS,
        "over_the_vocabulary": over_the_vocabulary(args.rows),
        "estimators": estimators(),
        "log_probs_in_the_dtype_of_the_logits": log_probs_from_half_precision(args.rows),
        "gradients_that_leave": gradients_that_leave(),
    }
    table(result["over_the_vocabulary"])
    table(result["estimators"])
    print("log-softmax in the dtype of the logits, largest error in nats:", end=" ")
    print(
        ", ".join(
            f"{name} {gap:.1e}" for name, gap in result["log_probs_in_the_dtype_of_the_logits"].items()
        ),
        "\n",
    )
    if not args.no_timing:
        result["timing_256_rows_of_50257_one_thread"] = timing()
        table(result["timing_256_rows_of_50257_one_thread"])
    result["missed"] = missed(result)
    print(*result["missed"], f"{len(result['missed'])} bounds missed", sep="\n")
    if not args.no_timing:
        record("guard_numerics", finite(result))
    return int(bool(result["missed"]))


if __name__ == "__main__":
    sys.exit(main())
