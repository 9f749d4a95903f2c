"""Which files belong to a project: odd ones must not stop a run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from klguard.check import check_paths
from klguard.roots import project_files


def test_links_in_a_circle_beside_a_stray_script_are_left_out(tmp_path: Path):
    script = tmp_path / "train.py"
    script.write_text("model.generate(ids, do_sample=True)\n")
    try:
        os.symlink(tmp_path / "b.py", tmp_path / "a.py")
        os.symlink(tmp_path / "a.py", tmp_path / "b.py")
    except OSError:
        pytest.skip("no links here")
    assert project_files(tmp_path, [script], respect_gitignore=True) == [script]
    assert check_paths([script]).files == 1
