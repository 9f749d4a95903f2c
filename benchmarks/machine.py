"""What a benchmark ran on, and where its result is written."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def processor() -> str:
    """The name of the CPU, as the system gives it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def installed(name: str) -> str | None:
    """The installed version of a library."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def describe() -> dict[str, Any]:
    """CPU, threads, accelerator and versions: what a figure of this run depends on."""
    try:
        import torch
    except ImportError:  # klguard check needs none
        torch = None
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads() if torch else None,
        "accelerator": torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": installed("torch"),
        "transformers": installed("transformers"),
    }


def record(name: str, result: dict[str, Any]) -> Path:
    """Writes results/<name>.json, with a line about the machine first."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": describe(), **result}, indent=1) + "\n")
    return path
