#!/usr/bin/env python3
"""Compares the tables about TRL's trainers with the sources of its releases.

    python benchmarks/oracle_trl.py [--releases 0.11.4 1.16.0 ...]

Each release is downloaded without its dependencies and read, not imported: for every family of trainers that
it has, the fields in the table must be those of the configuration's class, with the same defaults. Exits
with 1 on a disagreement; results go to benchmarks/results/oracle_trl.json.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from klguard.engines.tables import during  # noqa: E402
from klguard.engines.trl import BECAME_ANOTHER  # noqa: E402
from klguard.engines.trl_families import FAMILIES, Family  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "oracle_trl.json"
RELEASES = (
    "0.7.11 0.8.6 0.9.6 0.10.1 0.11.4 0.12.2 0.13.0 0.14.0 0.15.2 0.16.1 0.17.0 0.18.2 0.19.1 0.20.0 0.21.0 "
    "0.22.2 0.23.1 0.24.0 0.25.1 0.26.2 0.27.2 0.28.0 0.29.1 1.0.0 1.1.0 1.2.0 1.4.0 1.5.1 1.6.0 1.7.1 1.8.0 "
    "1.9.2 1.10.0 1.12.0 1.13.0 1.14.2 1.15.0 1.16.0"
).split()
ABSENT = "absent"


def wheel(release: str, folder: Path) -> zipfile.ZipFile:
    """The wheel of a release."""
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps", "--dest", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "download", *quiet, f"trl=={release}"], check=True)
    return zipfile.ZipFile(next(folder.glob(f"trl-{release}-*.whl")))


def classes(archive: zipfile.ZipFile) -> dict[str, list[ast.ClassDef]]:
    """Every class of the package, by name; moved classes leave a deprecated one of the same name behind."""
    found: dict[str, list[ast.ClassDef]] = {}
    for name in archive.namelist():
        if name.startswith("trl/") and name.endswith(".py"):
            for node in ast.parse(archive.read(name)).body:
                if isinstance(node, ast.ClassDef):
                    found.setdefault(node.name, []).append(node)
    return found


def default_of(statement: ast.AnnAssign) -> Any:
    """The default of a dataclass field: a literal, what a lambda makes, or source text."""
    value = statement.value
    if isinstance(value, ast.Call):
        named = {keyword.arg: keyword.value for keyword in value.keywords}
        value = named.get("default") or getattr(named.get("default_factory"), "body", None)
    try:
        return ast.literal_eval(value)
    except ValueError:
        return ast.unparse(value) if value else None


def fields(name: str, known: dict[str, list[ast.ClassDef]]) -> dict[str, Any]:
    """Fields of a class and of its bases inside the package; the early PPOConfig sets them in __init__."""
    found: dict[str, Any] = {}
    for node in known.get(name, []):
        bases = [ast.unparse(base).lstrip("_").rpartition(".")[2] for base in node.bases]
        for base in bases:
            if base != name:
                found |= fields(base, known)
    for node in known.get(name, []):
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                found[statement.target.id] = default_of(statement)
    return found


def families(release: Version) -> Iterator[tuple[str, Family]]:
    """The configuration classes of a release, and what each means there."""
    for stem, meanings in FAMILIES.items():
        if stem in BECAME_ANOTHER:
            meanings = meanings[:1] if release < Version(BECAME_ANOTHER[stem]) else meanings[1:]
        for family in meanings:
            if family.nearest(release) == release:
                yield f"{stem}Config", family


def compare(release: str, known: dict[str, list[ast.ClassDef]]) -> tuple[int, list[str]]:
    """How many defaults were compared in a release, and those that differ."""
    compared, differ = 0, []
    for name, family in families(Version(release)):
        real = fields(name, known)
        if not real:
            if not name.startswith("PPOv2") or Version(release) < Version("0.12"):
                differ.append(f"trl {release}: {name} is gone, the table has {family.name}")
            continue
        for field, rows in family.fields.items():
            row = during(rows, Version(release))
            expected, actual = row.value if row else ABSENT, real.get(field, ABSENT)
            actual = actual[0] if isinstance(actual, list) and len(actual) == 1 else actual
            compared += 1
            if expected != actual or (expected is None) != (actual is None):
                differ.append(f"trl {release}: {name}.{field} is {actual!r}, not {expected!r}")
    return compared, differ


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--releases", nargs="*", default=RELEASES)
    args = parser.parse_args()
    compared, differ = 0, []
    with tempfile.TemporaryDirectory() as scratch:
        for release in args.releases:
            with wheel(release, Path(scratch)) as archive:
                count, found = compare(release, classes(archive))
            compared, differ = compared + count, differ + found
    print(*differ, sep="\n")
    print(f"{len(args.releases)} releases, {compared} defaults, {len(differ)} disagreements")
    RESULTS.parent.mkdir(exist_ok=True)
    result = {"releases": list(args.releases), "compared": compared, "disagreements": differ}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    return int(bool(differ))


if __name__ == "__main__":
    sys.exit(main())
