"""Run a generated program for real and collect what generate received."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import types
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from .programs import Source
from .recorder import Observation, make

RUNS = (0, 1, 2, 3)
TIME_LIMIT = 5.0
_CELL = "#cell"


class TooSlow(BaseException):
    """A generated program did not end in time."""


@contextlib.contextmanager
def written(source: Source) -> Iterator[Path]:
    """The program's files in a folder of their own."""
    root = Path(tempfile.mkdtemp(prefix="oracle")).resolve()
    try:
        for path, text in source.files.items():
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        yield root
    finally:
        shutil.rmtree(root)


def observe(root: Path, main: str, seed: int) -> list[Observation]:
    """Run the program once, with the answers of `seed`, and return every call of generate in order.

    File names come back relative to `root`; in a notebook `file` ends in `#cell` and the index of the cell.
    """
    observations: list[Observation] = []
    with _isolated(root, make(seed, observations)), _environment(seed), _lenient(root), _limited():
        if main.endswith(".ipynb"):
            _run_notebook(root / main)
        else:
            _run_script(root / main)
    return [replace(seen, file=str(Path(seen.file).relative_to(root))) for seen in observations]


def _run_script(path: Path) -> None:
    _execute({path: path.read_text(encoding="utf-8")})


def _run_notebook(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    _execute(
        {
            f"{path}{_CELL}{index}": without_magics("".join(cell["source"]))
            for index, cell in enumerate(cells)
            if cell["cell_type"] == "code"
        }
    )


def without_magics(cell: str) -> str:
    """The Python of a cell, every line at its place."""
    return "\n".join("" if line.startswith(("%", "!")) else line for line in cell.split("\n"))


def _execute(parts: dict[Any, str]) -> None:
    module = types.ModuleType("__main__")
    saved, sys.modules["__main__"] = sys.modules["__main__"], module
    try:
        for name, text in parts.items():
            exec(compile(text, str(name), "exec", dont_inherit=True), module.__dict__)
    finally:
        sys.modules["__main__"] = saved


@contextlib.contextmanager
def _isolated(root: Path, recorder: types.ModuleType) -> Iterator[None]:
    """Imports and files come from `root`, `recorder` is the given module, and nothing printed is shown."""
    before = set(sys.modules)
    path, argv, bytecode, folder = list(sys.path), sys.argv, sys.dont_write_bytecode, os.getcwd()
    disabled = logging.root.manager.disable
    sys.modules["recorder"] = recorder
    sys.path.insert(0, str(root))
    sys.argv, sys.dont_write_bytecode = ["main.py"], True
    logging.disable(logging.CRITICAL)
    os.chdir(root)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        os.chdir(folder)
        sys.path[:], sys.argv, sys.dont_write_bytecode = path, argv, bytecode
        logging.disable(disabled)
        new = {name: sys.modules[name] for name in set(sys.modules) - before}
        for name in [name for name, module in new.items() if name == "recorder" or _lies_in(module, root)]:
            del sys.modules[name]
        for entry in [each for each in sys.path_importer_cache if each.startswith(str(root))]:
            del sys.path_importer_cache[entry]


def _lies_in(module: types.ModuleType, root: Path) -> bool:
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    return any(place is not None and str(place).startswith(str(root)) for place in places)


@contextlib.contextmanager
def _environment(seed: int) -> Iterator[None]:
    """Variables that programs ask for are set in every second run."""
    names = (
        [f"{stem}{count or ''}" for stem in ("ORACLE_FLAG", "ORACLE_VALUE") for count in range(40)]
        if seed % 2
        else []
    )
    os.environ.update(dict.fromkeys(names, "7"))
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]


@contextlib.contextmanager
def _lenient(root: Path) -> Iterator[None]:
    """transformers takes every value of a setting: which ones it refuses is not what is looked at."""
    if not any(b"GenerationConfig" in path.read_bytes() for path in root.rglob("*.[pi]*y*")):
        yield
        return
    config = importlib.import_module("transformers").GenerationConfig
    validate, config.validate = config.validate, lambda *args, **kwargs: None
    try:
        yield
    finally:
        config.validate = validate


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TooSlow

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, TIME_LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
