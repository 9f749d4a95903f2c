"""The first look: which files are opened by the reader at all, and what a run without a site imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import klguard
from klguard.gate import MARKERS, Gate, markers
from klguard.read.python.project import Project
from klguard.reading import Target, project_of, read_share


def has_site(source: str, *names: str, path: str = "a.py") -> bool:
    return Gate(markers(names)).has_site(source.encode(), path)


@pytest.mark.parametrize(
    "source",
    [
        '"""Call model.generate() to sample."""\n',
        "'''One ' and '' inside: generate(x)'''\n",
        'def f():\n    r"""Ends in \\""""\n    # then generate(x)\n',
        "x = 1  # model.generate(x)\n",
        "# This file was automatically generated from src/modular.py\n",
        "def generate(self, prompt):\n    return prompt\n",
        "raise ValueError('call generate() first')\n",
        'x = "a \\" b"; y = "generate(x)"\n',
        "regenerate(x)\nmodel.generate_all(x)\n",
        "text = '''\nGRPOTrainer(model)\n'''\n",
    ],
)
def test_words_in_documentation_are_no_site(source: str):
    assert not has_site(source)


@pytest.mark.parametrize(
    "source",
    [
        "model.generate(x)\n",
        '"""Text."""\nmodel . generate (x)\n',
        "x = ''; model.generate(x); y = ''\n",
        'x = ""\nmodel.generate(x)\ny = ""\n',
        'x = """a"""; model.generate(x); y = """b"""\n',
        "x = 'it\\'s'; model.generate(x); y = 'it'\n",
        "x = '# no comment'; model.generate(x)\n",
        "call = model.generate\ncall(x)\n",
        "getattr(model, 'generate')(x)\n",
        "print(f'{model.generate(x)}')\n",
        'print(f"""\n{model.generate(x)}\n""")\n',
        "def generate(self):\n    return self.model.generate()\n",
        "from mine import OwnGRPOTrainer\nOwnGRPOTrainer(model)\n",
        "from mine import GRPOMultiTurnTrainer\nGRPOMultiTurnTrainer(model)\n",
        "class A:\n    def generate(self):\n        self.model.generation_config.top_k = 5\n",
        "x = 'never closed\nmodel.generate(x)\n",
    ],
)
def test_words_in_code_may_be_a_site(source: str):
    assert has_site(source)


def test_in_house_names_count_like_klguards_own():
    assert has_site("draw(model)\n", "mine.draw") and not has_site("# draw(model)\n", "mine.draw")
    assert has_site("OwnLearner(model)\n", "mine.Learner")


def test_a_notebook_is_searched_as_it_is():
    assert has_site('{"cells": [{"source": ["model.generate(x)"]}]}', path="a.ipynb")


def test_every_word_of_the_reader_opens_a_file():
    for word in MARKERS:
        assert has_site(f"x = {word.decode()}(model)\n"), word


ROOT = Path(klguard.__file__).parents[1]

HEAVY = (
    "yaml",
    "packaging",
    "pathspec",
    "difflib",
    "multiprocessing",
    "concurrent",
    "json",
    "tomllib",
)


def test_a_run_without_a_site_imports_nothing_that_only_sites_need(tmp_path: Path):
    (tmp_path / "a.py").write_text("x = 1\n")
    program = (
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from klguard.cli import cli\n"
        "try:\n    cli(['check', 'a.py'], standalone_mode=False)\nexcept SystemExit as error:\n    print(error.code)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-2:] == ["0", "[]"], done.stdout + done.stderr


def test_only_files_that_an_answer_depends_on_are_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    sources = {
        "train.py": "from settings import KW\n\n\ndef sample(model, x):\n    return model.generate(x, **KW)\n",
        "settings.py": "KW = {'do_sample': True, 'top_k': 5}\n",
        "caller.py": "from train import sample\nsample(None, None)\n",
        **{f"other{i}.py": "import os\n" for i in range(20)},
    }
    for name, source in sources.items():
        (tmp_path / name).write_text(source)
    opened: list[str] = []
    module = Project.module
    monkeypatch.setattr(Project, "module", lambda self, path: (opened.append(path), module(self, path))[1])
    target = Target(
        tmp_path,
        {name: tmp_path / name for name in sources},
        {"train.py": {"transformers": "5.0.0"}},
        {},
        (),
        {},
        10**6,
    )
    answer, _ = read_share(("train.py",), target, project_of(target))
    assert len(answer.sites) == 1
    assert set(opened) == {"train.py", "settings.py", "caller.py"}
