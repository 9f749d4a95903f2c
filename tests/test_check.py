"""The pipeline: from paths to findings, in one process or several, with and without a cache."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from klguard import reading
from klguard.cache import Cache, Trail, digest, identity
from klguard.check import FOLDER, MissingPaths, Report, check_paths, check_source
from klguard.config import load
from klguard.findings import Severity
from klguard.gate import MARKERS
from klguard.read.python import candidates, sites
from klguard.roots import project_root
from klguard.rules import RULES
from klguard.rules.programs import ppo
from klguard.settings import Context, Known, Opaque

CLEAN = ppo("do_sample=True, top_k=0, top_p=1.0, temperature=1.0, repetition_penalty=1.0, max_new_tokens=32")
BAD = ppo("do_sample=True, top_k=50, top_p=1.0, temperature=1.0, repetition_penalty=1.0, max_new_tokens=32")
IMPORTED = "from shared import settings\n" + ppo("**settings, max_new_tokens=32")
SHARED = 'settings = {"do_sample": True, "top_k": %s, "temperature": 1.0, "repetition_penalty": 1.0}\n'
DEMO = """\
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("gpt2")
def demo(inputs):
    print(model.generate(**inputs, do_sample=True, top_k=40, max_new_tokens=9))
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(root: Path, **files: str) -> None:
    for name, source in files.items():
        path = root / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)


def check(*paths: str, config: str = "", **options) -> Report:
    if config:
        Path("klguard.toml").write_text(config)
    return check_paths(paths or ["."], load(Path.cwd()), **options)


def codes(report: Report) -> list[tuple[str, str]]:
    return [(f.place.path, f.code) for f in report.findings if f.severity is not Severity.NOTE]


# --- findings -------------------------------------------------------------------------------------


def test_one_piece_of_source_is_judged_on_its_own():
    (found,) = [f for f in check_source(BAD) if f.severity is not Severity.NOTE]
    assert (found.name, found.value, found.place.path) == ("top-k", "50", "example.py")
    assert BAD.split("\n")[found.place.line - 1][found.place.column - 1 :].startswith("50")
    assert found.site is not None and found.site.call == "ppo_trainer.generate"
    assert check_source(CLEAN) == []


def test_a_finding_stands_where_the_value_was_written_and_names_each_site_it_reaches(project: Path):
    write(project, shared=SHARED % 50, one=IMPORTED, two=IMPORTED)
    found = check().findings
    assert [(f.place.path, f.code, f.site and f.site.place.path) for f in found if f.code == "KLG101"] == [
        ("shared.py", "KLG101", "one.py"),
        ("shared.py", "KLG101", "two.py"),
    ]


def test_only_rollouts_are_reported_unless_asked(project: Path):
    write(project, demo=DEMO)
    assert codes(check()) == []
    assert ("demo.py", "KLG101") in codes(check(config='context = "all"'))
    assert [site.settings.context for site in check().sites] == [Context.INFERENCE]


def test_imports_are_followed_out_of_the_given_files_but_only_their_sites_are_reported(project: Path):
    write(project, shared=SHARED % 50, train=IMPORTED, other=BAD)
    report = check("train.py")
    assert codes(report) == [("shared.py", "KLG101")]
    assert report.files == 1


def test_a_subdirectory_is_checked_as_part_of_its_project(project: Path):
    write(project, lib__shared=SHARED % 50, app__train=IMPORTED.replace("from shared", "from lib.shared"))
    assert codes(check("app")) == [("lib/shared.py", "KLG101")]


def test_a_file_that_is_no_python_is_a_finding_and_the_rest_is_still_checked(project: Path):
    write(project, a="def f(:\n", b=BAD, c="model.generate(\n", d="x = 1\n")
    (project / "e.ipynb").write_text("{")
    (project / "f.py").write_bytes(b"# caf\xe9\nmodel.generate()\n")
    assert codes(check()) == [
        ("a.py", "KLG001"),
        ("b.py", "KLG101"),
        ("c.py", "KLG001"),
        ("e.ipynb", "KLG002"),
        ("f.py", "KLG002"),
    ]


def test_what_could_not_be_read_is_reported_whatever_is_selected_unless_it_is_ignored(project: Path):
    write(project, a="def f(:\n", b=BAD)
    assert codes(check(config='select = ["greedy"]')) == [("a.py", "KLG001")]
    assert codes(check(config='select = ["greedy"]\nignore = ["KLG001"]')) == []
    assert codes(check(config='select = ["greedy"]\nper-file-ignores = {"a.py" = ["KLG001"]}')) == []


def test_per_file_ignores_count_for_the_file_of_the_value_and_for_that_of_the_site(project: Path):
    write(project, shared=SHARED % 50, train=IMPORTED)
    for name in ("shared.py", "train.py"):
        assert codes(check(config=f'per-file-ignores = {{"{name}" = ["top-k"]}}')) == []


def test_paths_that_do_not_exist_stop_the_run(project: Path):
    with pytest.raises(MissingPaths, match="gone"):
        check("gone")


def test_in_house_functions_are_sites_even_where_no_other_word_is(project: Path):
    source = BAD.replace("ppo_trainer.generate(", "draw(ppo_trainer, ").replace(
        "import score", "import draw, score"
    )
    write(project, train=source.replace("PPOTrainer", "Learner").replace("PPOConfig", "Options"))
    assert check().sites == ()
    found = check(
        config='generate-functions = ["rewards.draw"]\ntrainer-classes = {"trl.Learner" = "PPOTrainer"}'
    )
    assert "draw" in [site.call for site in found.sites]


# --- failures of klguard itself -------------------------------------------------------------------


def test_a_rule_that_breaks_is_one_finding_and_costs_nothing_else(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    def broken(self, settings):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(type(RULES["KLG201"]), "check", broken)
    write(project, one=BAD, two=BAD)
    report = check(config='select = ["KLG1", "KLG2"]')
    (internal,) = [f for f in report.findings if f.code == "KLG006"]
    assert "rule KLG201 [greedy]: ZeroDivisionError: oops" in internal.message
    assert [path for path, code in codes(report) if code == "KLG101"] == ["one.py", "two.py"]
    assert report.fails


def _failing_on(name: str, fail: Callable[[], None]) -> Callable:
    original = sites.SiteReader.read

    def read(self, path, *rest):
        if path == name:
            fail()
        return original(self, path, *rest)

    return read


def test_a_file_that_breaks_the_reader_is_one_finding_and_costs_nothing_else(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail() -> None:
        raise RecursionError

    monkeypatch.setattr(sites.SiteReader, "read", _failing_on("one.py", fail))
    write(project, one=BAD, two=BAD)
    assert codes(check(cache=True)) == [("one.py", "KLG006"), ("two.py", "KLG101")]
    monkeypatch.undo()
    os.chdir(project)
    assert codes(check(cache=True)) == [("one.py", "KLG101"), ("two.py", "KLG101")]


def test_a_process_that_dies_over_one_file_costs_nothing_else(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reading, "SHARE", 2)
    monkeypatch.setattr(sites.SiteReader, "read", _failing_on("one.py", lambda: os._exit(9)))
    write(project, one=BAD, two=BAD, three=BAD)
    assert codes(check(jobs=2)) == [("one.py", "KLG006"), ("three.py", "KLG101"), ("two.py", "KLG101")]


def test_a_process_that_dies_before_all_files_are_handed_out_costs_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    submit, handed = ProcessPoolExecutor.submit, []

    def late(pool, *args):
        handed.append(args)
        if len(handed) == 2:
            raise BrokenProcessPool("a process has died")
        return submit(pool, *args)

    monkeypatch.setattr(reading, "SHARE", 1)
    monkeypatch.setattr(ProcessPoolExecutor, "submit", late)
    write(project, one=BAD, two=BAD, three=BAD)
    found = codes(check(jobs=2))
    assert found == [("one.py", "KLG101"), ("three.py", "KLG101"), ("two.py", "KLG101")]


def test_where_a_project_lies_says_nothing_of_its_rollouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = "out = tokenizer.decode(model.generate(prompt)[0])\n"
    told = {}
    for folder in ("home/eval/demo", "home/work/train"):
        (tmp_path / folder / "tests").mkdir(parents=True)
        (tmp_path / folder / "pyproject.toml").touch()
        (tmp_path / folder / "sample.py").write_text(text)
        (tmp_path / folder / "tests" / "sample.py").write_text(text)
        monkeypatch.chdir(tmp_path)
        for path in (str(tmp_path / folder), folder):
            sites = check_paths([path]).sites
            told[folder, path] = [site.settings.context for site in sites]
    assert set(map(tuple, told.values())) == {(Context.INFERENCE, Context.EVALUATION)}


# --- processes and order --------------------------------------------------------------------------


def test_findings_and_sites_are_the_same_in_any_number_of_processes(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reading, "SHARE", 2)
    write(
        project,
        shared=SHARED % 50,
        demo=DEMO,
        **{f"pkg__m{n}": (IMPORTED, BAD, CLEAN)[n % 3] for n in range(9)},
    )
    alone, several = check(jobs=1), check(jobs=3)
    assert alone.findings and alone.findings == several.findings
    assert alone.sites == several.sites


def test_progress_counts_every_file_with_a_site(project: Path):
    write(project, one=BAD, two=CLEAN, three="x = 1\n")
    seen: list[tuple[int, int]] = []
    check(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 2), (2, 2)]


def test_what_is_not_read_from_disk_belongs_to_the_project_it_is_named_in(project: Path):
    write(project, shared=SHARED % 0, train=CLEAN)
    text = {"train.py": IMPORTED.encode()}
    assert codes(check("train.py", text=text)) == []
    write(project, shared=SHARED % 50)
    report = check("train.py", text=text)
    assert codes(report) == [("shared.py", "KLG101")]
    assert codes(check("new.py", text={"new.py": BAD.encode()})) == [("new.py", "KLG101")]


# --- suppressions ---------------------------------------------------------------------------------


def commented(source: str, comment: str) -> str:
    return source.replace(
        "generation_kwargs = dict(", f"generation_kwargs = dict(  # klguard: {comment}\n    "
    )


def test_suppressed_findings_are_counted_not_shown(project: Path):
    write(project, train=commented(BAD, "ignore[top-k] compared with the paper"))
    report = check()
    assert (codes(report), report.suppressed) == ([], 1)


def test_a_comment_that_holds_nothing_back_is_reported(project: Path):
    write(project, train=commented(CLEAN, "ignore[top-k]"))
    assert codes(check()) == [("train.py", "KLG004")]


def test_a_comment_is_not_called_unused_for_what_this_run_did_not_look_at(project: Path):
    write(project, shared=SHARED.replace("\n", "  # klguard: ignore[top-k]\n") % 50, train=IMPORTED)
    assert codes(check()) == []
    assert codes(check("shared.py")) == []
    write(project, demo=DEMO.replace("max_new_tokens=9))", "max_new_tokens=9))  # klguard: ignore[top-k]"))
    assert codes(check()) == []


# --- the cache ------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths that were really read."""
    seen: list[str] = []
    original = reading.read_share

    def read_share(share, target, project):
        seen.extend(share)
        return original(share, target, project)

    monkeypatch.setattr(reading, "read_share", read_share)
    return seen


def test_a_second_run_reads_nothing_and_says_the_same(project: Path, reads: list[str]):
    write(project, shared=SHARED % 50, train=IMPORTED, other=BAD)
    first = check(cache=True)
    assert set(reads) == {"train.py", "other.py"}
    reads.clear()
    second = check(cache=True)
    assert reads == []
    assert (second.findings, second.sites) == (first.findings, first.sites)
    assert (project / FOLDER / ".gitignore").read_text() == "*\n"


def test_a_change_in_an_imported_file_ends_the_answers_that_used_it(project: Path):
    write(project, shared=SHARED % 50, train=IMPORTED)
    assert codes(check(cache=True)) == [("shared.py", "KLG101")]
    write(project, shared=SHARED % 0)
    assert codes(check(cache=True)) == []


def test_a_new_caller_ends_the_answers_it_could_change(project: Path):
    rollout = BAD.replace("top_k=50", "top_k=top_k").replace(
        "generation_kwargs =", "def train(top_k):\n  pass\nkw ="
    )
    lines = rollout.split("\n")
    start = next(n for n, line in enumerate(lines) if line.startswith("kw ="))
    body = [lines[start].replace("kw =", "generation_kwargs ="), *lines[start + 1 :]]
    source = "\n".join([*lines[: start - 2], "def train(top_k):", *("    " + line for line in body)])
    write(project, loop=source, main="from loop import train\ntrain(0)\n")
    assert codes(check(cache=True)) == []
    write(project, main="from loop import train\ntrain(50)\n")
    assert "KLG101" in [code for _, code in codes(check(cache=True))]
    write(project, main="pass\n")
    check(cache=True)
    write(project, main="from loop import train\ntrain(50)\n")
    assert "KLG101" in [code for _, code in codes(check(cache=True))]


def test_a_file_that_appears_can_change_what_an_import_means(project: Path):
    write(project, train=IMPORTED)
    assert codes(check(cache=True)) == []
    write(project, shared=SHARED % 50)
    assert codes(check(cache=True)) == [("shared.py", "KLG101")]


def test_a_change_in_a_document_that_code_loads_ends_all_answers(project: Path):
    loaded = "import yaml\nsettings = yaml.safe_load(open('rollout.yaml'))\n"
    write(project, train=loaded + ppo("**settings, do_sample=True, max_new_tokens=32"))
    document = "top_k: %d\ntop_p: 1.0\ntemperature: 1.0\nrepetition_penalty: 1.0\n"
    for top_k in (50, 0):
        (project / "rollout.yaml").write_text(document % top_k)
        assert ("KLG101" in [code for _, code in codes(check(cache=True))]) == bool(top_k)


def test_a_stray_script_gets_no_folder_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, train=BAD)
    assert codes(check("train.py", cache=True)) == [("train.py", "KLG101")]
    assert not (tmp_path / FOLDER).exists()


def test_other_versions_are_another_question(project: Path, reads: list[str]):
    write(project, train=CLEAN)
    check(cache=True, config='target-versions = {transformers = "4.40.0"}')
    reads.clear()
    report = check(cache=True, config='target-versions = {transformers = "5.0.0"}')
    assert reads == ["train.py"]
    assert {site.settings.versions["transformers"] for site in report.sites} == {"5.0.0"}


def test_other_rules_are_judged_on_the_same_answers(project: Path, reads: list[str]):
    write(project, train=BAD)
    assert codes(check(cache=True, config='select = ["greedy"]')) == []
    reads.clear()
    assert codes(check(cache=True, config='select = ["top-k"]')) == [("train.py", "KLG101")]
    assert reads == []


def cache_file(project: Path) -> Path:
    (file,) = (path for path in (project / FOLDER).iterdir() if not path.suffix and path.name != ".gitignore")
    return file


@pytest.mark.parametrize(
    "damage", [b"", b"garbage", b"klguard cache 1\n" + b"\0" * 40], ids=["empty", "short", "wrong key"]
)
def test_a_damaged_cache_counts_as_none(project: Path, damage: bytes):
    write(project, train=BAD)
    expected = check(cache=True).findings
    cache_file(project).write_bytes(damage)
    assert check(cache=True).findings == expected


def test_one_flipped_byte_in_a_cache_is_noticed(project: Path):
    write(project, train=BAD)
    expected = check(cache=True).findings
    content = bytearray(cache_file(project).read_bytes())
    content[len(content) // 2] ^= 1
    cache_file(project).write_bytes(content)
    assert check(cache=True).findings == expected


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("pwned",))


def test_a_cache_from_a_stranger_runs_nothing(project: Path):
    body = pickle.dumps(({"a.py": b""}, {"a.py": (Evil(), frozenset(), frozenset(), ())}))
    key = identity("here")
    file = project / "cache"
    file.write_bytes(b"klguard cache 1\n" + key + digest(body) + body)
    cache = Cache(file, key, {"a.py": b""}, lambda path: b"")
    assert cache.get("a.py") is None
    assert not (project / "pwned").exists()


def test_a_cache_that_cannot_be_written_is_done_without(project: Path):
    write(project, train=BAD)
    (project / FOLDER).write_text("a file where the folder should be")
    assert codes(check(cache=True)) == [("train.py", "KLG101")]


def test_answers_hold_any_value_that_settings_can(tmp_path: Path):
    values = (Known({1: [2.5, None]}), Known(frozenset({"a"})), Known(1j), Known(Opaque("f()", "f")))
    files = {"a.py": b"x"}
    first = Cache(tmp_path / "c", identity(), files, lambda path: b"x")
    first.put("a.py", values, Trail(frozenset({"a.py", "gone.json"}), frozenset({"train"})))
    first.save()
    again = Cache(tmp_path / "c", identity(), files, lambda path: b"x")
    assert again.get("a.py") == values
    assert Cache(tmp_path / "c", identity("other"), files, lambda path: b"x").get("a.py") is None


def test_files_outside_the_project_that_an_answer_read_are_compared_too(tmp_path: Path):
    contents = {"a.py": b"x", "config.json": b"1"}
    files = {"a.py": b"x"}
    first = Cache(tmp_path / "c", identity(), files, contents.__getitem__)
    first.put("a.py", 1, Trail(frozenset({"config.json"})))
    first.save()
    contents["config.json"] = b"2"
    assert Cache(tmp_path / "c", identity(), files, contents.__getitem__).get("a.py") is None


# --- where things are -----------------------------------------------------------------------------


def test_the_gate_knows_every_word_the_reader_looks_for():
    words = {"trlx", *candidates.METHODS, *candidates.CLASS_KINDS}
    assert {word.encode() for word in words} <= set(MARKERS)


def test_a_project_begins_at_the_nearest_directory_that_looks_like_one(tmp_path: Path):
    (tmp_path / "repo" / "pkg" / "deep").mkdir(parents=True)
    (tmp_path / "repo" / "setup.py").touch()
    assert project_root([tmp_path / "repo" / "pkg" / "deep" / "a.py"]) == tmp_path / "repo"
    (tmp_path / "repo" / "pkg" / ".git").mkdir()
    assert project_root([tmp_path / "repo" / "pkg" / "deep" / "a.py"]) == tmp_path / "repo" / "pkg"
    assert project_root([tmp_path / "repo" / "pkg" / "a.py", tmp_path / "repo" / "b.py"]) == tmp_path / "repo"


def test_a_home_directory_is_no_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / ".git").mkdir()
    (tmp_path / "scripts").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert project_root([tmp_path / "scripts" / "a.py"]) == tmp_path / "scripts"


def test_outside_a_project_only_neighbours_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, shared=SHARED % 50, train=IMPORTED, far__away="settings = {}\n")
    report = check("train.py")
    assert codes(report) == [("shared.py", "KLG101")]


def test_notebooks_are_reported_by_cell(project: Path):
    cells = [{"cell_type": "markdown", "source": "# PPO"}, {"cell_type": "code", "source": BAD}]
    (project / "train.ipynb").write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4}))
    (found,) = [f for f in check().findings if f.code == "KLG101"]
    assert found.place.cell == 1 and found.place.path == "train.ipynb"
    assert BAD.split("\n")[found.place.line - 1][found.place.column - 1 :].startswith("50")


def test_without_a_configuration_the_nearest_one_is_used(project: Path):
    write(project, train=BAD)
    assert [f.code for f in check_paths(["train.py"]).findings] == ["KLG101"]
    Path("klguard.toml").write_text('ignore = ["top-k"]\n')
    assert check_paths(["train.py"]).findings == ()


def test_what_is_in_force_is_worked_out_only_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(
        "def evaluate(model, x):\n    return model.generate(x, top_k=5)\n\n\n"
        "def train(model, trainer, x):\n"
        "    trainer.step([x], [model.generate(x, top_k=6)], [1.0])\n"
    )
    report = check_paths(["train.py"])
    assert [site.settings.context for site in report.sites] == [Context.EVALUATION, Context.ROLLOUT]
    assert ["top_k" in site.settings.values for site in report.sites] == [False, True]
    every = check_paths(["train.py"], load(tmp_path).override(context=("all",)))
    assert all("top_k" in site.settings.values for site in every.sites)
    assert {finding.place.line for finding in every.findings} > {f.place.line for f in report.findings}


RECIPE = """\
from transformers import HfArgumentParser
from trl import GRPOConfig, GRPOTrainer

(config,) = HfArgumentParser((GRPOConfig,)).parse_yaml_file("recipe.yaml")
GRPOTrainer(model="gpt2", reward_funcs=score, args=config, train_dataset=dataset).train()
"""


def test_a_recipe_that_a_parser_reads_is_judged_at_the_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text("output_dir: out\nbeta: 0.04\ntop_k: 20\n")
    (tmp_path / "train.py").write_text(RECIPE)
    (finding,) = [f for f in check_paths(["train.py"]).findings if f.severity is not Severity.NOTE]
    assert (finding.code, finding.place.path, finding.place.line) == ("KLG101", "recipe.yaml", 3)


def test_what_a_configuration_says_is_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    made = 'config = GRPOConfig(output_dir="out", beta=0.04, top_k=20)\n'
    (tmp_path / "train.py").write_text(
        RECIPE.replace('(config,) = HfArgumentParser((GRPOConfig,)).parse_yaml_file("recipe.yaml")\n', made)
    )
    found = [f.code for f in check_paths(["train.py"]).findings if f.severity is not Severity.NOTE]
    assert found == ["KLG101"]
