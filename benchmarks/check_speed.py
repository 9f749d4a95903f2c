"""What `klguard check` costs beside other tools, in CPU seconds of the process and its children.

    python benchmarks/check_speed.py --peers /path/to/venv [--corpus SITE_PACKAGES] [--repeat 3]

The corpus is the installed packages transformers and trl (of `--corpus`, by default those of this interpreter).
Each command is run `--repeat` times, the commands taking turns, so that a machine that gets busy slows all of
them alike; what is compared are medians. A peer that is not installed under `--peers` (or on the path) is
skipped, with the reason in the result. Writes results/check_speed.json.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from machine import record

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("transformers", "trl")

RULE = """\
rules:
- id: top-k
  pattern: $MODEL.generate(..., top_k=$K, ...)
  message: top_k
  languages: [python]
  severity: WARNING
"""

BYTES = """\
import os, sys
found = 0
for top in sys.argv[1:]:
    for folder, _, names in os.walk(top):
        for name in names:
            if name.endswith('.py'):
                with open(os.path.join(folder, name), 'rb') as file:
                    found += b'generate' in file.read()
"""

GOALS = (
    ("klguard cold, whole", "ruff, whole", 1.5),
    ("klguard cold, whole", "semgrep, whole", 1 / 5),
    ("klguard cold, trl", "flake8 with TorchFix, trl", 1 / 30),
    ("klguard cold, trl", "fixit, trl", 1 / 15),
    ("klguard, ten files without a site", "python with click", 2.0),
)
"""(ours, theirs, at most so many times theirs)."""

WARM_GOAL = 0.5
"""CPU seconds of a run over the whole corpus in which nothing changed."""


@dataclass
class Command:
    """One command and what it cost, run by run."""

    name: str
    words: list[str]
    folder: Path
    accepted: tuple[int, ...] = (0, 1)
    seconds: list[float] = field(default_factory=list)

    def run(self) -> None:
        start = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(self.words, cwd=self.folder, env=environment(), capture_output=True, text=True)
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode not in self.accepted:
            raise SystemExit(f"{self.name} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        self.seconds.append(end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime)


def environment() -> dict[str, str]:
    """Compiled modules are kept, as they are in an installation."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    paths = os.pathsep.join([str(ROOT), *filter(None, [kept.get("PYTHONPATH", "")])])
    return {**kept, "PYTHONPATH": paths, "SEMGREP_ENABLE_VERSION_CHECK": "0"}


def ours(corpus: Path, scratch: Path) -> list[Command]:
    klguard = [sys.executable, "-m", "klguard", "check"]
    kept, empty = scratch / "kept", scratch / "ten"
    empty.mkdir()
    (empty / "pyproject.toml").write_text("")
    for index in range(10):
        (empty / f"module{index}.py").write_text(
            f"import os\n\n\ndef f{index}(x):\n    return os.path.join(x)\n"
        )
    files = [file.name for file in sorted(empty.glob("*.py"))]
    return [
        Command("klguard cold, whole", [*klguard, *PACKAGES, "--no-cache"], corpus),
        Command("klguard cold, trl", [*klguard, "trl", "--no-cache"], corpus),
        Command("klguard warm, whole", [*klguard, *PACKAGES, "--cache-dir", str(kept)], corpus),
        Command("klguard warm, trl", [*klguard, "trl", "--cache-dir", str(kept)], corpus),
        Command("klguard, ten files without a site", [*klguard, *files], empty),
        Command("python with click", [sys.executable, "-c", "import click"], empty),
        Command("bytes read and searched, whole", [sys.executable, "-c", BYTES, *PACKAGES], corpus),
    ]


def peers(corpus: Path, scratch: Path, prefix: Path | None) -> tuple[list[Command], dict[str, str]]:
    """The commands of the other tools that are installed, and the reason for each that is left out."""
    rule = scratch / "rule.yml"
    rule.write_text(RULE)
    semgrep = [
        "scan",
        "--metrics",
        "off",
        "--disable-version-check",
        "--no-git-ignore",
        "--config",
        str(rule),
    ]
    fixit = scratch / "fixit"
    wanted: list[tuple[str, str, list[str]]] = [
        ("ruff, whole", "ruff", ["check", "--no-cache", *PACKAGES]),
        ("ruff, trl", "ruff", ["check", "--no-cache", "trl"]),
        ("semgrep, whole", "semgrep", [*semgrep, *PACKAGES]),
        ("semgrep, trl", "semgrep", [*semgrep, "trl"]),
        ("flake8 with TorchFix, trl", "flake8", ["--isolated", "--select=TOR", "trl"]),
        (
            "fixit, trl",
            "fixit",
            ["--rules", "fixit.rules.no_static_if_condition", "lint", str(fixit / "trl")],
        ),
        ("rg -c, whole", "rg", ["-c", "generate", *PACKAGES]),
    ]
    found, skipped = [], {}
    for name, tool, words in wanted:
        program = _program(tool, prefix)
        if program is None:
            skipped[name] = f"{tool} is not installed"
        elif tool == "flake8" and "torchfix" not in _output([program, "--version"]).lower():
            skipped[name] = "flake8 has no TorchFix"
        else:
            found.append(Command(name, [program, *words], corpus))
    if not any("fixit" in command.name for command in found):
        return found, skipped
    # Fixit looks for its configuration upwards from each file: a copy outside other projects is read as it is.
    shutil.copytree(corpus / "trl", fixit / "trl", ignore=shutil.ignore_patterns("__pycache__"))
    return found, skipped


def _program(tool: str, prefix: Path | None) -> str | None:
    inside = prefix / "bin" / tool if prefix else None
    return str(inside) if inside and inside.exists() else shutil.which(tool)


def _output(words: list[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, env=environment())
    return " ".join((done.stdout or done.stderr).split())


def ratios(medians: dict[str, float]) -> list[dict[str, Any]]:
    return [
        {
            "of": one,
            "to": other,
            "ratio": round(medians[one] / medians[other], 4),
            "goal": round(goal, 4),
            "reached": medians[one] <= goal * medians[other],
        }
        for one, other, goal in GOALS
        if one in medians and other in medians
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, help="a site-packages with transformers and trl")
    parser.add_argument("--peers", type=Path, help="prefix of an environment with the other tools")
    parser.add_argument(
        "--without-whole", action="store_true", help="leave out what runs over the whole corpus: trl alone"
    )
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    corpus = (options.corpus or _installed()).resolve()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        others, skipped = peers(corpus, scratch, options.peers)
        commands = [*ours(corpus, scratch), *others]
        if options.without_whole:
            skipped |= {c.name: "left out on request" for c in commands if c.name.endswith(", whole")}
            commands = [command for command in commands if command.name not in skipped]
        for command in [command for command in commands if command.name.startswith("klguard")]:
            command.run()  # fills the cache, and compiles what is imported
            command.seconds.clear()
        for _ in range(options.repeat):
            for command in commands:
                command.run()
    medians = {command.name: round(statistics.median(command.seconds), 4) for command in commands}
    warm = medians.get("klguard warm, whole")
    result = {
        "corpus": {p: _version(corpus, p) for p in PACKAGES},
        "runs": options.repeat,
        "cpu_seconds": medians,
        "ratios": ratios(medians),
        "warm": {"seconds": warm, "goal": WARM_GOAL, "reached": warm is not None and warm <= WARM_GOAL},
        "skipped": skipped,
        "versions": {c.words[0].rpartition("/")[2]: _output([c.words[0], "--version"]) for c in others},
    }
    print(record("check_speed", result))


def _installed() -> Path:
    import importlib.util

    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        raise SystemExit("trl is not installed here: name a site-packages with --corpus")
    return Path(spec.origin).parents[1]


def _version(corpus: Path, package: str) -> str:
    found = sorted(corpus.glob(f"{package}-*.dist-info"))
    if not found or not (corpus / package).is_dir():
        raise SystemExit(f"{corpus} has no {package}")
    return found[-1].name.removesuffix(".dist-info").partition("-")[2]


if __name__ == "__main__":
    main()
