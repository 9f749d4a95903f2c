"""Execution as the oracle, at length: N generated programs, and the reader's answers held against the runs.

    python benchmarks/oracle_execution.py [N] [--first SEED] [--aside STATEMENTS] [--jobs J] [--output FILE]

Writes JSON: how many programs, sites and settings; wrong values (must be 0); the share of unknown, overall
and in programs written in each style. Programs in which code takes part that no reader can see are counted
apart: there, unknown is the right answer. A wrong value ends in status 1, with the smallest program found
that shows it.

With `--aside 1` the reader follows no function behind which there is no site, as it does where they are long:
what these may change has to be unknown then.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from oracle.compare import judge  # noqa: E402
from oracle.minimise import minimise  # noqa: E402
from oracle.programs import Source, seeded  # noqa: E402
from oracle.runner import TooSlow  # noqa: E402

from klguard.read.python import functions  # noqa: E402
from klguard.read.python.memo import forget  # noqa: E402

SHOWN = 3
COUNTS = ("sites", "missed", "settings", "unknown", "wide")


def measure(seed: int) -> dict:
    """One program: its styles, and what the judge says."""
    source = seeded(seed)
    result = {"seed": seed, "styles": sorted(set(source.styles)), "opaque": source.opaque}
    forget()
    try:
        verdict = judge(source)
    except (
        Exception,
        TooSlow,
    ) as error:  # the reader must survive every program; what it raised is the result
        return {**result, "crash": f"{type(error).__name__}: {error}"}
    return {
        **result,
        "wrong": [str(each) for each in verdict.wrong],
        "counts": {name: getattr(verdict, name) for name in COUNTS},
        "reasons": dict(verdict.reasons),
    }


def summary(results: list[dict], seconds: float) -> dict:
    """What the JSON file holds."""
    judged = [each for each in results if "crash" not in each]
    total: Counter = Counter()
    for each in judged:
        total.update(each["counts"])
    plain = [each for each in judged if not each["opaque"]]
    hidden = [each for each in judged if each["opaque"]]
    reasons: Counter = Counter()
    for each in plain:
        reasons.update(each["reasons"])
    return {
        "programs": len(results),
        "seconds": round(seconds, 1),
        "crashes": len(results) - len(judged),
        "wrong_programs": sum(bool(each["wrong"]) for each in judged),
        "wrong_values": sum(len(each["wrong"]) for each in judged),
        **total,
        "unknown_share": share(plain),
        "unknown_share_where_code_is_not_visible": share(hidden),
        "unknown_share_by_style": by_style(plain),
        "commonest_reasons": dict(reasons.most_common(40)),
        "failing_seeds": [each["seed"] for each in results if "crash" in each or each["wrong"]],
    }


def share(results: list[dict]) -> float:
    """Unknown settings among all settings."""
    settings = sum(each["counts"]["settings"] for each in results)
    return round(sum(each["counts"]["unknown"] for each in results) / max(1, settings), 4)


def by_style(results: list[dict]) -> dict[str, float]:
    """The share of unknown in the programs that use a style, largest first."""
    used: dict[str, list[dict]] = {}
    for each in results:
        for style in each["styles"]:
            used.setdefault(style, []).append(each)
    shares = {style: share(each) for style, each in used.items()}
    return dict(sorted(shares.items(), key=lambda pair: (-pair[1], pair[0])))


def follow(aside: int | None) -> None:
    """Set how far functions are followed behind which there is no site."""
    if aside is not None:
        functions.ASIDE_BUDGET = aside


def fails(source: Source) -> bool:
    """Whether the program shows a wrong value."""
    return bool(judge(source).wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("programs", type=int, nargs="?", default=5000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--aside", type=int, help="statements to follow of functions without a site")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/oracle_execution.json")
    options = parser.parse_args()
    started = time.perf_counter()
    seeds = range(options.first, options.first + options.programs)
    follow(options.aside)
    with ProcessPoolExecutor(options.jobs, initializer=follow, initargs=(options.aside,)) as pool:
        results = list(pool.map(measure, seeds, chunksize=20))
    found = summary(results, time.perf_counter() - started)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    short = {name: value for name, value in found.items() if not isinstance(value, (dict, list))}
    print(json.dumps(short, indent=2))
    wrong = [each for each in results if each.get("wrong")]
    for each in wrong[:SHOWN]:
        print(f"\nseed {each['seed']}:", *each["wrong"], minimise(seeded(each["seed"]), fails), sep="\n")
    return 1 if wrong or found["crashes"] else 0


if __name__ == "__main__":
    sys.exit(main())
