"""The hook, under the real pre-commit, in a scratch repository."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from klguard.rules.programs import ppo

ROOT = Path(__file__).parent.parent
HOOKS = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
NEUTRAL = "do_sample=True, top_p=1.0, temperature=1.0, repetition_penalty=1.0, max_new_tokens=32"
SHARED = 'settings = {"top_k": %d}\n'
TRAIN = "from shared import settings\n" + ppo(f"{NEUTRAL}, **settings")

Git = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Git:
    """A command runner in a new repository that has the hook, as this checkout defines it, installed."""
    repository = tmp_path / "repository"
    repository.mkdir()
    monkeypatch.setenv("PRE_COMMIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "a")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "a@example.org")
    # klguard is installed where the tests run: what is tried is the hook, not pip.
    entry = f"{sys.executable} -m {HOOKS[0]['entry']}"
    hook = {**HOOKS[0], "entry": entry, "language": "system"}
    config = {"repos": [{"repo": "local", "hooks": [hook]}]}
    (repository / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def run(*command: str) -> subprocess.CompletedProcess:
        return subprocess.run(command, cwd=repository, capture_output=True, text=True)

    assert run("git", "init", "-q").returncode == 0
    assert run(sys.executable, "-m", "pre_commit", "install").returncode == 0
    run.repository = repository  # type: ignore[attr-defined]
    return run


def commit(git: Git, **files: str) -> subprocess.CompletedProcess:
    for name, source in files.items():
        (git.repository / f"{name}.py").write_text(source)  # type: ignore[attr-defined]
        git("git", "add", f"{name}.py")
    return git("git", "commit", "-m", "x")


def test_the_hook_is_defined_as_pre_commit_wants_it():
    done = subprocess.run(
        [sys.executable, "-m", "pre_commit", "validate-manifest", str(ROOT / ".pre-commit-hooks.yaml")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    (hook,) = HOOKS
    assert hook["id"] == "klguard" and hook["require_serial"]
    assert hook["types_or"] == ["python", "jupyter", "yaml", "toml", "shell"]


def test_a_commit_with_an_unsafe_setting_is_refused_and_one_without_goes_in(git: Git):
    refused = commit(git, shared=SHARED % 50, train=TRAIN)
    assert refused.returncode == 1
    assert "KLG101 [top-k]" in refused.stderr and "shared.py:1:22" in refused.stderr
    accepted = commit(git, shared=SHARED % 0)
    assert accepted.returncode == 0, accepted.stderr


def test_imports_are_followed_to_files_that_are_not_in_the_commit(git: Git):
    assert git("git", "add", ".pre-commit-config.yaml").returncode == 0
    assert commit(git, shared=SHARED % 50).returncode == 0
    refused = commit(git, train=TRAIN)
    assert refused.returncode == 1
    assert "KLG101 [top-k]" in refused.stderr and "shared.py:1:22" in refused.stderr


def test_excluded_files_are_left_alone_also_when_they_are_all_there_is(git: Git):
    (git.repository / "klguard.toml").write_text('exclude = ["train.py"]\n')  # type: ignore[attr-defined]
    done = commit(git, shared=SHARED % 50, train=TRAIN)
    assert done.returncode == 0, done.stderr
    assert commit(git, train=TRAIN + "\n").returncode == 0


def test_a_commit_of_other_yaml_goes_in(git: Git):
    (git.repository / "ci.yaml").write_text("on: push\n")  # type: ignore[attr-defined]
    git("git", "add", "ci.yaml")
    done = git("git", "commit", "-m", "x")
    assert done.returncode == 0, done.stderr
