#!/usr/bin/env python3
"""Asks three releases of transformers whether the tables about them are right.

    python benchmarks/oracle_transformers.py [--draws 2000] [--environments DIR]

The three merge configurations by different rules. For each, a virtual environment of its own is made (kept in
DIR, if one is given) and `tests/engines/transformers_oracle.py` is run in it: random settings as keyword
arguments, as an object and in the checkpoint, of which library and engine have to make the same. Exits
with 1 on a disagreement; results go to benchmarks/results/oracle_transformers.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "tests" / "engines" / "transformers_oracle.py"
RESULTS = ROOT / "benchmarks" / "results" / "oracle_transformers.json"
RELEASES = ("4.49.0", "4.57.6", "5.23.0")
BESIDE = ("torch==2.13.0", "numpy")


def environment(folder: Path, release: str) -> Path:
    """The Python of a virtual environment with this release of transformers, which is made if need be."""
    home = folder / f"transformers-{release}"
    python = home / "bin" / "python"
    if not (home / "complete").exists():
        venv.create(home, with_pip=True, clear=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, *BESIDE, f"transformers=={release}"], check=True)
        (home / "complete").touch()
    return python


def ask(python: Path, draws: int, seed: int) -> dict[str, Any]:
    """What the oracle found in that environment."""
    start = time.perf_counter()
    done = subprocess.run(
        [python, PROGRAM, "--draws", str(draws), "--seed", str(seed)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    if not done.stdout:
        sys.exit(f"{python}: {done.stderr[-2000:]}")
    return {**json.loads(done.stdout), "seconds": round(time.perf_counter() - start, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--releases", nargs="*", default=RELEASES)
    parser.add_argument("--environments", type=Path, help="where to keep the environments")
    args = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for release in args.releases:
            python = environment(args.environments or Path(scratch), release)
            result = ask(python, args.draws, args.seed)
            found.append(result)
            print(
                f"transformers {release}: {result['draws']} draws, {result['refused']} refused, "
                f"{result['values']} values, {sum(result['built'].values())} processors, "
                f"{result['untouched']} neutral; {len(result['disagreements'])} disagreements"
            )
            print(*result["disagreements"][:5], sep="\n", end="")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"seed": args.seed, "releases": found}, indent=1) + "\n")
    return int(any(result["disagreements"] for result in found))


if __name__ == "__main__":
    sys.exit(main())
