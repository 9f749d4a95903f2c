"""Runs in which little or nothing changed: which files are opened again, and that answers stay right."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import klguard
from klguard import check, seen
from klguard.check import Report, check_paths
from klguard.config import load
from klguard.rules.programs import ppo

BAD = ppo("do_sample=True, top_k=50, top_p=1.0, temperature=1.0, repetition_penalty=1.0, max_new_tokens=32")
GOOD = BAD.replace("top_k=50", "top_k=0 ")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "train.py").write_text(BAD)
    for index in range(5):
        (tmp_path / f"other{index}.py").write_text(f"x = {index}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check, "FEW", 1)
    monkeypatch.setattr(seen, "SETTLED", 0)
    return tmp_path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    load_file = seen.load

    def counting(path: Path, **options: int):
        found.append(Path(path).name)
        return load_file(path, **options)

    monkeypatch.setattr(seen, "load", counting)
    return found


def run(**options: object) -> Report:
    return check_paths(["."], load(Path.cwd()), cache=True, **options)  # type: ignore[arg-type]


def codes(report: Report) -> list[tuple[str, str]]:
    return [(f.place.path, f.code) for f in report.findings if f.code in ("KLG001", "KLG101")]


def test_a_second_run_opens_no_source_file(project: Path, opened: list[str]):
    first = run()
    assert len(opened) == 6
    opened.clear()
    assert run().findings == first.findings
    assert opened == []


def test_only_what_changed_is_opened_again(project: Path, opened: list[str]):
    run()
    opened.clear()
    (project / "other3.py").write_text("x = 33\n")
    assert codes(run()) == [("train.py", "KLG101")]
    assert set(opened) == {"other3.py"}


def test_a_change_that_keeps_size_and_time_is_noticed(project: Path):
    assert codes(run()) == [("train.py", "KLG101")]
    before = os.stat("train.py")
    Path("train.py").write_text(GOOD)
    os.utime("train.py", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len(GOOD) == len(BAD) and codes(run()) == []


def test_a_file_that_has_just_changed_is_not_relied_on(
    project: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(seen, "SETTLED", 10**15)
    run()
    opened.clear()
    run()
    assert {"train.py", "other0.py"} <= set(opened)


def test_a_file_that_begins_to_hold_a_site_is_read(project: Path):
    run()
    Path("other1.py").write_text(BAD)
    assert codes(run()) == [("other1.py", "KLG101"), ("train.py", "KLG101")]


def test_what_is_no_python_is_reported_every_time(project: Path):
    Path("other2.py").write_text("def f(:\n")
    assert codes(run()) == codes(run()) == [("other2.py", "KLG001"), ("train.py", "KLG101")]


def test_another_version_of_klguard_looks_anew(
    project: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
):
    run()
    opened.clear()
    monkeypatch.setattr(klguard, "__version__", "99.0")
    run()
    assert len(set(opened)) == 6


def test_a_pin_that_changes_is_another_answer(project: Path):
    versions = []
    for pin in ("4.40.0", "5.0.0"):
        Path("requirements.txt").write_text(f"transformers=={pin}\n")
        versions.append({site.settings.versions["transformers"] for site in run().sites})
    assert versions == [{"4.40.0"}, {"5.0.0"}]


def test_a_damaged_file_counts_as_none(project: Path):
    expected = run().findings
    (kept,) = (project / check.FOLDER).glob("*.files")
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content)
    assert run().findings == expected
