"""Target versions: what the project's files say, and which of them is believed."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packaging.version import Version

from klguard.config import LIBRARIES, Config
from klguard.engines import NEWEST
from klguard.versions import RELEASES, Targets, TargetVersion, plain, target_versions


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch) -> Path:
    """An empty repository as the current directory, with none of the libraries installed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".git").mkdir()

    def nothing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", nothing)
    return tmp_path


def write(name: str, text: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)


def targets(directory: str = ".", **options) -> dict[str, TargetVersion]:
    return dict(Targets(Path("."), Config(Path("."), **options)).for_directory(Path(directory)))


def declared(name: str, text: str) -> dict[str, str]:
    """The versions that one file gives, without those nobody gave."""
    write(name, text)
    return {library: t.version for library, t in targets().items() if t.source != "the newest release known"}


# --- files ------------------------------------------------------------------------------------------------

PIPFILE_LOCK = json.dumps(
    {
        "default": {"trl": {"version": "==0.7.4"}},
        "develop": {"vllm": {"git": "https://host/owner/vllm.git", "ref": "v0.6.3"}},
    }
)

ENVIRONMENT = """
dependencies:
  - conda-forge::transformers=4.30.2=py_0
  - trl=0.7
  - pip:
    - vllm==0.6.3
    - git+https://github.com/x/sglang@v0.4.1
"""

PROJECT = """
[project]
dependencies = ['trl<0.8']
[project.optional-dependencies]
vllm = ['vllm==0.6.3']
[dependency-groups]
dev = ['sglang==0.4.1', {include-group = 'x'}]
"""

POETRY = """
[tool.poetry.dependencies]
trl = '^0.7.2'
vllm = '0.6.3'
sglang = {version = '~0.4.1'}
transformers = {git = 'https://github.com/huggingface/transformers.git', tag = 'v4.40.1'}
"""

UV_SOURCE = """
[project]
dependencies = ['trl']
[tool.uv.sources]
trl = {git = 'git@github.com:huggingface/trl', tag = 'v0.9.4'}
"""

UV_LOCK = """
version = 1
[[package]]
name = "rlhf"
source = { virtual = "." }
dependencies = [
    { name = "trl" },
]

[package.metadata]
requires-dist = [{ name = "trl", specifier = "==0.1.0" }]

[[package]]
name = "transformers"
version = "4.46.3"
source = { registry = "https://packages.example/simple" }

[[package]]
name = "trl"
version = "0.11.4"

[[package]]
name = "vllm"
version = "0.6.3"
resolution-markers = ["sys_platform == 'linux'"]

[[package]]
name = "vllm"
version = "0.6.6.post1"
"""


@pytest.mark.parametrize(
    ("name", "text", "versions"),
    [
        ("uv.lock", UV_LOCK, {"transformers": "4.46.3", "trl": "0.11.4", "vllm": "0.6.6.post1"}),
        ("poetry.lock", '[[package]]\nname = "trl"\nversion = "0.7.4"\ndescription = ""\n', {"trl": "0.7.4"}),
        ("pdm.lock", '[[package]]\r\nname = "trl"\r\nversion = "0.7.4"\r\n', {"trl": "0.7.4"}),
        ("pylock.toml", '[[packages]]\nname = "trl"\nversion = "0.7.4"\n', {"trl": "0.7.4"}),
        ("Pipfile.lock", PIPFILE_LOCK, {"trl": "0.7.4", "vllm": "0.6.3"}),
        (
            "requirements.txt",
            "transformers==4.40.0\ntrl[peft] == 0.8.6  # pinned\n",
            {"transformers": "4.40.0", "trl": "0.8.6"},
        ),
        ("requirements.txt", "TRL==0.8.6 \\\n    --hash=sha256:abc\n", {"trl": "0.8.6"}),
        ("requirements-train.txt", "trl~=0.8.1\n", {"trl": "0.8.6"}),
        ("requirements/base.txt", "trl>=0.8,<0.10\n", {"trl": "0.9.6"}),
        ("dev-requirements.txt", "trl==0.9.*\n", {"trl": "0.9.6"}),
        ("constraints.txt", "trl===0.9.4\n", {"trl": "0.9.4"}),
        ("setup.cfg", "[options]\ninstall_requires =\n    trl==0.7.4\n    torch\n", {"trl": "0.7.4"}),
        ("setup.py", "setup(install_requires=['torch', \"trl>=0.7,<0.8\"], name='trl-x')", {"trl": "0.7.11"}),
        (
            "environment.yml",
            ENVIRONMENT,
            {"transformers": "4.30.2", "trl": "0.7.11", "vllm": "0.6.3", "sglang": "0.4.1"},
        ),
        ("pyproject.toml", PROJECT, {"trl": "0.7.11", "vllm": "0.6.3", "sglang": "0.4.1"}),
        (
            "pyproject.toml",
            POETRY,
            {"trl": "0.7.11", "vllm": "0.6.3", "sglang": "0.4.10.post2", "transformers": "4.40.1"},
        ),
        ("pyproject.toml", "[[tool.poetry.dependencies.trl]]\nversion = '^0.7 || ^0.8'\n", {"trl": "0.8.6"}),
        ("pyproject.toml", UV_SOURCE, {"trl": "0.9.4"}),
    ],
)
def test_each_kind_of_file_is_read(name, text, versions):
    assert declared(name, text) == versions


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("trl @ git+https://github.com/huggingface/trl.git@v0.9.4", "0.9.4"),
        ("git+https://github.com/lvwerra/trl@v0.4.7#egg=trl", "0.4.7"),
        ("-e git+ssh://git@github.com/huggingface/trl.git@0.9.4#egg=trl", "0.9.4"),
        ("trl @ git+https://github.com/me/my-fork@v0.9.4", "0.9.4"),
        ("git+https://github.com/huggingface/trl", NEWEST["trl"]),
        ("git+https://github.com/huggingface/trl@main", NEWEST["trl"]),
        ("git+https://github.com/huggingface/trl@6e88484", None),
        ("https://host/whl/trl-0.9.4-py3-none-any.whl", "0.9.4"),
        ("trl", None),
        ("trl[peft]", None),
        ("trl-extras==1.0", None),
        ("mytrl==1.0", None),
        ("trl==0.9.4; sys_platform == 'linux'", "0.9.4"),
        ("trl==0.9.4; sys_platform == 'win32'", None),
        ("trl==0.9.4; python_version >= '3.8'", "0.9.4"),
        ("trl==0.9.4; python_version < '3.8'", None),
        ("trl>=0.20,!=1.16.0", "1.15.0"),
        ("trl>0.9.4,<0.9.6", "0.9.4"),
        ("trl<=0.9.4,>=0.9.3", "0.9.4"),
        ("trl>=99", "99"),
        ("trl==${VERSION}", None),
        ("# trl==0.9.4", None),
    ],
)
def test_a_requirement_means_a_version_or_nothing(line, version):
    assert declared("requirements.txt", line + "\n") == ({"trl": version} if version else {})


def test_the_newest_release_in_a_range_is_taken_from_those_that_the_tables_know():
    assert targets()["vllm"].version == NEWEST["vllm"]
    assert declared("requirements.txt", "vllm>=0.5")["vllm"] == NEWEST["vllm"]


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_list_of_releases_is_in_order_and_reaches_the_newest(library):
    assert list(RELEASES[library]) == sorted(RELEASES[library], key=Version)
    assert RELEASES[library][-1] == NEWEST[library]


# --- what is believed -------------------------------------------------------------------------------------


def test_every_library_has_a_version_and_a_source():
    found = targets()
    assert {library: target.version for library, target in found.items()} == NEWEST
    assert {target.source for target in found.values()} == {"the newest release known"}


def test_the_configuration_beats_a_lock_a_lock_a_pin_and_a_pin_a_range():
    write("pyproject.toml", "[project]\ndependencies = ['trl>=0.7']")
    assert targets()["trl"].version == NEWEST["trl"]
    write("requirements.txt", "trl==0.8.6")
    assert targets()["trl"] == TargetVersion("0.8.6", "trl==0.8.6 in requirements.txt")
    write("uv.lock", '[[package]]\nname = "trl"\nversion = "0.9.4"\n')
    assert targets()["trl"] == TargetVersion("0.9.4", "trl==0.9.4 in uv.lock")
    found = targets(target_versions={"trl": "0.11"}, file=Path("pyproject.toml"))
    assert found["trl"] == TargetVersion("0.11", "target-versions, pyproject.toml")


def test_the_main_requirements_are_read_before_those_for_a_purpose():
    write("requirements-dev.txt", "trl==0.8.6")
    write("requirements/docs.txt", "trl==0.7.4")
    assert targets()["trl"].version == "0.8.6"
    write("requirements.txt", "trl==0.9.4")
    assert targets()["trl"].version == "0.9.4"


def test_the_projects_environment_counts_where_its_files_say_nothing():
    Path(".venv/lib/python3.11/site-packages/trl-0.9.4.dist-info").mkdir(parents=True)
    Path(".venv/lib/python3.11/site-packages/vllm-0.6.3.dist-info").mkdir(parents=True)
    write("requirements.txt", "trl\nvllm==0.5.5")
    found = targets()
    assert found["trl"] == TargetVersion("0.9.4", "installed in .venv")
    assert found["vllm"].version == "0.5.5"


def test_the_environment_of_klguard_counts_last(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "0.9.4")
    write("requirements.txt", "vllm==0.5.5")
    found = targets()
    assert (found["trl"].version, found["trl"].source) == ("0.9.4", "installed beside klguard")
    assert found["vllm"].version == "0.5.5"


# --- several projects -------------------------------------------------------------------------------------


def test_the_files_nearest_to_a_source_file_decide():
    write("requirements.txt", "trl==0.9.4\nvllm==0.6.3")
    write("a/requirements.txt", "trl==0.7.4")
    write("a/src/deep/x.py", "")
    made = Targets(Path("."), Config(Path(".")))
    assert plain(made.for_file(Path("a/src/deep/x.py"))).items() >= {"trl": "0.7.4", "vllm": "0.6.3"}.items()
    assert made.for_file(Path("b/x.py"))["trl"].version == "0.9.4"
    assert made.for_directory(Path("a/src/deep")) is made.for_directory(Path("a"))


def test_a_lock_of_the_repository_fills_a_range_nearer_by_unless_it_contradicts_it():
    write("uv.lock", '[[package]]\nname = "trl"\nversion = "0.9.4"\n')
    write("a/pyproject.toml", "[project]\ndependencies = ['trl>=0.8']")
    write("b/pyproject.toml", "[project]\ndependencies = ['trl<0.8']")
    assert targets("a")["trl"].version == "0.9.4"
    assert targets("b")["trl"].version == "0.7.11"


def test_what_lies_above_the_repository_does_not_count(project):
    write("requirements.txt", "trl==0.9.4")
    write("inner/.git/HEAD", "")
    assert targets("inner")["trl"].source == "the newest release known"


def test_outside_a_repository_nothing_above_the_root_counts(project):
    (project / ".git").rmdir()
    write("requirements.txt", "trl==0.9.4")
    write("a/b/x.py", "")
    assert target_versions(Path("a"), Config(Path("."))) == NEWEST
    assert targets("a/b")["trl"].version == "0.9.4"


def test_the_root_may_be_a_file():
    write("requirements.txt", "trl==0.9.4")
    write("a/x.py", "")
    assert Targets(Path("a/x.py"), Config(Path("."))).for_file(Path("a/x.py"))["trl"].version == "0.9.4"


# --- nothing breaks it ------------------------------------------------------------------------------------

FILES = "uv.lock Pipfile.lock requirements.txt pyproject.toml setup.cfg setup.py environment.yml".split()
NONSENSE = [b"", b"\xff\xfe trl==0.9", b"trl = [", b"[" * 5000 + b"trl", b'{"default": [1, "trl"]}']


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("data", NONSENSE)
def test_files_that_make_no_sense_say_nothing(name, data):
    Path(name).write_bytes(data)
    assert set(targets()) == set(LIBRARIES)


def test_a_directory_in_place_of_a_file_says_nothing():
    for name in FILES:
        Path(name).mkdir()
    assert plain(targets()) == NEWEST


WORDS = "trl == 0.9.4 git+https://h/o/trl extra [[package]] .whl .* tool.poetry.dependencies git || 1!2"
PIECES = st.sampled_from([*WORDS.split(), *"@;^~'\"[]{}=\n -:,<>", "name = ", "version = "])


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(FILES), st.lists(PIECES, max_size=20).map("".join))
def test_any_text_gives_a_version_for_every_library(name, text):
    for other in FILES:
        Path(other).unlink(missing_ok=True)
    Path(name).write_text("trl " + text)
    assert all(Version(target.version) for target in targets().values())
