"""Which files a name leads to, and how few of them are parsed for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from klguard.read.python import project as project_file
from klguard.read.python.dialects import parse_script
from klguard.read.python.project import COMMON, Project, Use
from klguard.read.python.source import ClassInfo, FunctionInfo


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def project_of(sources: dict[str, str]) -> Project:
    files = {name: Path(name) for name in sources}
    for name, text in sources.items():
        files[name].parent.mkdir(parents=True, exist_ok=True)
        files[name].write_text(text)
    return Project(Path("."), files)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that are parsed from now on."""
    texts: list[str] = []
    monkeypatch.setattr(
        project_file, "parse_script", lambda source: (texts.append(source.text), parse_script(source))[1]
    )
    return texts


def near(project: Project, path: str, word: str, hint: str = "", use: Use = Use.MENTIONED) -> list[str]:
    home = project.module(path)
    assert home is not None
    return [module.path for module in project.near(home, word, use, hint)]


def test_files_that_hold_a_rare_word_are_near_wherever_they_lie():
    project = project_of({"a/one.py": "x = 1", "b/two.py": "roll_out()", "b/three.py": "roll_outs()"})
    assert near(project, "a/one.py", "roll_out") == ["a/one.py", "b/two.py"]


def test_of_a_common_word_only_the_own_folder_and_files_with_the_hint_count(parsed: list[str]):
    far = {f"far/part{i}.py": "update()" for i in range(COMMON + 5)}
    hinted = {"elsewhere/hinted.py": "from a.home import Loop\nLoop().update()", "elsewhere/not.py": "Loop()"}
    project = project_of({"a/home.py": "x = 1", "a/beside.py": "update()", **far, **hinted})
    assert near(project, "a/home.py", "update", "Loop") == ["a/home.py", "elsewhere/hinted.py", "a/beside.py"]
    assert len(parsed) == 3


@pytest.mark.parametrize(
    ("use", "text", "shows"),
    [
        (Use.CALLED, "batch = roll(model)", True),
        (Use.CALLED, "batch = roll (model)", True),
        (Use.CALLED, "pool.map(roll, prompts)", True),
        (Use.CALLED, "run(each=roll)", True),
        (Use.CALLED, "pool.map(\n    roll\n)", True),
        (Use.CALLED, "workers = [start, roll]\nactor.roll.remote(x)", True),
        (Use.CALLED, "def roll(x):\n    return roll(x - 1)", True),
        (Use.CALLED, "def roll(x): ...", False),
        (Use.CALLED, "from rollouts import roll_out as roll_it", False),
        (Use.READ, "print(self.roll)", True),
        (Use.READ, "roll = 1", False),
        (Use.DEFINED, "class A:\n    async def roll(self): ...", True),
        (Use.DEFINED, "roll()", False),
        (Use.INHERITED, "class A(roll): ...", True),
        (Use.INHERITED, "class A(\n    Base,\n    some.roll,\n    metaclass=M,\n): ...", True),
        (Use.INHERITED, "from rolls import roll as Base\nclass A(Base): ...", True),
        (Use.INHERITED, "roll()\nx = {1: 2}", False),
        (Use.MENTIONED, "roll", True),
    ],
)
def test_what_a_file_may_do_with_a_name_is_seen_in_its_bytes(use: Use, text: str, shows: bool):
    project = project_of({"home.py": "x = 1", "other.py": text})
    found = near(project, "home.py", "roll", use=use)
    assert found == ["home.py"] + ["other.py"] * shows


def test_an_answer_depends_on_the_files_that_make_a_word_common():
    far = {f"far/part{i}.py": "update()" for i in range(COMMON + 5)}
    project = project_of({"a/home.py": "x = 1", **far})
    near(project, "a/home.py", "update")
    assert len(project.read_paths & far.keys()) == COMMON + 1 and "update" in project.words


@pytest.mark.parametrize(
    "line",
    [
        "def wanted(): pass",
        "class wanted: pass",
        "async def wanted(): pass",
        "from .leaf import wanted",
        "from .leaf import other as wanted",
        "from .leaf import other, \\\n    wanted",
        "from .leaf import (\n    other,  # not :)\n    wanted,\n)",
        "from .leaf import (other, wanted)",
        "if True:\n    import wanted",
        "from .between import *",
    ],
)
def test_a_name_is_found_behind_star_imports_however_it_is_bound(line: str):
    sources = {
        "main.py": "from pkg import *\n",
        "pkg/__init__.py": "from .middle import *\n",
        "pkg/middle.py": line + "\n",
        "pkg/between.py": "from .leaf import *\nfrom .middle import *\n",
        "pkg/leaf.py": "def other(): pass\ndef wanted(): pass\n",
        "wanted.py": "",
    }
    project = project_of(sources)
    main = project.module("main.py")
    assert main is not None
    found = project.resolve("wanted", main)
    assert isinstance(found, (FunctionInfo, ClassInfo)) or getattr(found, "path", "") == "wanted.py"


def test_files_behind_star_imports_that_do_not_bind_a_name_are_not_parsed(parsed: list[str]):
    leaves = {f"pkg/leaf{i}.py": f"def draw{i}(): return wanted\n" for i in range(50)}
    package = "".join(f"from .leaf{i} import *\n" for i in range(50))
    sources = {"main.py": "from pkg import *\n", "pkg/__init__.py": package, **leaves}
    project = project_of(sources)
    main = project.module("main.py")
    assert main is not None and project.resolve("wanted", main) == "wanted"
    assert len(parsed) == 1
    assert isinstance(project.resolve("draw7", main), FunctionInfo)
    assert len(parsed) == 3
    assert leaves.keys() <= project.read_paths, "a change in any of them may change the answer"
