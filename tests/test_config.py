"""Configuration: where it is found, what it may say, and what is said about what it may not."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klguard.config import ALL_CONTEXTS, Config, ConfigError, find, known_rules, load, load_file, matching
from klguard.settings import Context

RULES = {
    "KLG001": "syntax-error",
    "KLG004": "unused-suppression",
    "KLG101": "top-k",
    "KLG103": "top-p",
    "KLG201": "greedy",
}


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(text: str, file: str = "pyproject.toml") -> Config:
    """The configuration in `text`, where a pyproject.toml begins with the table."""
    header = "[tool.klguard]\n" if file == "pyproject.toml" else ""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(header + text)
    return load(Path(file).parent, rules=RULES)


def problems(text: str, file: str = "klguard.toml") -> list[str]:
    with pytest.raises(ConfigError) as error:
        config(text, file)
    assert {finding.code for finding in error.value.findings} == {"KLG005"}
    return [f"{f.place.line}:{f.place.column} {f.message}" for f in error.value.findings]


# --- finding it -------------------------------------------------------------------------------------------


def test_without_a_file_everything_is_selected_and_rollouts_are_reported():
    made = load(Path("."), rules=RULES)
    assert made.file is None
    assert made.enabled == set(RULES)
    assert made.contexts == {Context.ROLLOUT}
    assert pickle.loads(pickle.dumps(made)) == made


def test_the_nearest_file_with_the_table_counts(project):
    (project / "pkg" / "sub").mkdir(parents=True)
    (project / "pyproject.toml").write_text("[tool.klguard]\n")
    (project / "pkg" / "pyproject.toml").write_text("[project]\nname = 'klguard-user'\n")
    assert find(project / "pkg" / "sub" / "train.py") == project / "pyproject.toml"
    (project / "pkg" / "klguard.toml").touch()
    assert find(project / "pkg" / "sub") == project / "pkg" / "klguard.toml"


def test_a_pyproject_that_is_broken_elsewhere_is_not_klguards_business():
    Path("pyproject.toml").write_text("[project\nname = klguard")
    assert load(Path("."), rules=RULES).file is None


def test_a_configuration_that_is_not_toml_is_refused_with_its_place():
    [problem] = problems('select = ["KLG101"]\nignore = [', "pyproject.toml")
    assert re.match(r"3:\d+ is not valid TOML: ", problem)


def test_a_configuration_that_is_not_text_is_refused():
    Path("klguard.toml").write_bytes(b"select = ['\xff']")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load(Path("."), rules=RULES)


def test_a_file_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="No such file"):
        load_file(Path("gone.toml"), rules=RULES)


def test_a_byte_order_mark_does_no_harm():
    Path("klguard.toml").write_text("\ufeffselect = ['top-k']")
    assert load(Path("."), rules=RULES).enabled == {"KLG101"}


# --- rules ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "enabled"),
    [
        ("select = ['KLG101']", {"KLG101"}),
        ("select = ['top-k', 'klg201']", {"KLG101", "KLG201"}),
        ("select = ['KLG1']", {"KLG101", "KLG103"}),
        ("select = ['ALL']\nignore = ['KLG0']", {"KLG101", "KLG103", "KLG201"}),
        ("select = []", set()),
        ("select = ['KLG2']\nextend-select = ['top-p']", {"KLG201", "KLG103"}),
        ("ignore = ['KLG']", set()),
        ("select = ['top-k']\nignore = ['KLG1']", {"KLG101"}),
        ("select = ['KLG1']\nignore = ['KLG101']", {"KLG103"}),
        ("select = ['KLG101']\nignore = ['top-k']", set()),
    ],
)
def test_a_narrower_selector_beats_a_wider_one_and_ignore_beats_select(options, enabled):
    assert config(options).enabled == enabled


def test_an_unknown_rule_is_refused_where_it_stands_with_the_nearest_one():
    assert problems('select = [\n  "KLG101",\n  "topk",\n]') == [
        "3:3 `select`: unknown rule `topk`; did you mean `top-k`?"
    ]
    assert problems('ignore = ["KLG1O1"]') == ["1:11 `ignore`: unknown rule `KLG1O1`; did you mean `KLG101`?"]
    assert problems('ignore = ["top-k", "prefix"]') == ["1:20 `ignore`: unknown rule `prefix`"]


def test_every_rule_there_is_has_a_code_and_a_name_of_its_own():
    rules = known_rules()
    assert rules["KLG005"] == "invalid-config"
    assert list(rules) == sorted(rules)
    assert len(set(rules.values())) == len(rules)
    assert all(matching(name, rules) == matching(code, rules) == {code} for code, name in rules.items())


def test_files_may_have_rules_of_their_own(project):
    text = "[per-file-ignores]\n'tests/' = ['KLG1']\n'*_demo.py' = ['top-k']\n'!src/' = ['greedy']"
    made = config(text, "klguard.toml")
    assert made.enabled_for("src/train.py") == set(RULES)
    assert made.enabled_for("src/a_demo.py") == set(RULES) - {"KLG101"}
    assert made.enabled_for("tests/a.py") == set(RULES) - {"KLG101", "KLG103", "KLG201"}
    assert made.enabled_for(str(project / "src" / "train.py")) == set(RULES)


def test_patterns_are_relative_to_the_configuration(project, monkeypatch):
    made = config("[per-file-ignores]\n'/sub/' = ['top-k']", "klguard.toml")
    (project / "sub").mkdir()
    monkeypatch.chdir(project / "sub")
    assert "KLG101" not in made.enabled_for("train.py")


# --- the command line -------------------------------------------------------------------------------------


def test_a_selection_on_the_command_line_replaces_the_one_in_the_file():
    made = config("select = ['KLG1']\nignore = ['KLG2', 'top-p']", "klguard.toml")
    assert made.enabled == {"KLG101"}
    assert made.override(select=["KLG2"]).enabled == {"KLG201"}
    assert made.override(extend_select=["greedy"]).enabled == {"KLG101", "KLG201"}
    assert made.override(ignore=["top-k"]).enabled == set()
    assert made.override().enabled == {"KLG101"}


def test_other_options_of_the_command_line_come_on_top():
    made = config("exclude = ['old/']\ntarget-versions = {trl = '0.9', vllm = '0.6'}", "klguard.toml")
    made = made.override(
        context="all", exclude=["new/"], target_versions={"trl": "0.12"}, force_exclude=True, cache_dir=None
    )
    assert made.contexts == ALL_CONTEXTS
    assert made.exclude == ("old/", "new/")
    assert made.target_versions == {"trl": "0.12", "vllm": "0.6"}
    assert made.force_exclude


def test_an_unknown_rule_on_the_command_line_is_refused():
    with pytest.raises(ConfigError) as error:
        Config(Path("."), rules=RULES).override(select=["KLG101", "grebdy"])
    assert str(error.value) == "<command line>:1:1: `select`: unknown rule `grebdy`; did you mean `greedy`?"


# --- values -----------------------------------------------------------------------------------------------


def test_every_option_is_read(project):
    made = config(
        """
        exclude = ["third_party/"]
        force-exclude = true
        respect-gitignore = false
        context = ["rollout", "unknown"]
        generate-functions = ["sample", "my.engine.rollout"]
        cache-dir = ".cache/klguard"
        max-file-size = 5_000_000
        [tool.klguard.target-versions]
        transformers = "4.46.3"
        [tool.klguard.trainer-classes]
        "my.Trainer" = "trl.PPOTrainer"
        """
    )
    assert made.root == project
    assert made.file == project / "pyproject.toml"
    assert made.exclude == ("third_party/",)
    assert (made.force_exclude, made.respect_gitignore) == (True, False)
    assert made.contexts == {Context.ROLLOUT, Context.UNKNOWN}
    assert made.generate_functions == ("sample", "my.engine.rollout")
    assert made.cache_dir == project / ".cache" / "klguard"
    assert made.max_file_size == 5_000_000
    assert made.target_versions == {"transformers": "4.46.3"}
    assert made.trainer_classes == {"my.Trainer": "trl.PPOTrainer"}


def test_trainers_may_be_a_list_of_names():
    assert config("trainer-classes = ['MyTrainer']").trainer_classes == {"MyTrainer": ""}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("selct = []", "1:1 unknown option `selct`; did you mean `select`?"),
        ("per_file_ignores = {}", "1:1 unknown option `per_file_ignores`; did you mean `per-file-ignores`?"),
        ("[Target-Version]", "1:2 unknown option `Target-Version`; did you mean `target-versions`?"),
        ("zzz = 1", "1:1 unknown option `zzz`"),
        ("select = 'KLG101'", "1:1 `select`: expected a list of strings, found a string"),
        ("select = [1]", "1:11 `select`: expected a list of strings, found a number in it"),
        ("ignore = {a = 1}", "1:1 `ignore`: expected a list of strings, found a table"),
        ("exclude = 1979-05-27", "1:1 `exclude`: expected a list of strings, found a date or time"),
        ("exclude = ['a', '!']", "1:17 `exclude`: `!` is not a pattern as in a .gitignore"),
        ("exclude = ['a[n-f]']", "1:12 `exclude`: `a[n-f]` is not a pattern as in a .gitignore"),
        ("force-exclude = 1", "1:1 `force-exclude`: expected true or false, found a number"),
        ("max-file-size = '10 MB'", "1:1 `max-file-size`: expected a number of bytes above 0"),
        ("max-file-size = true", "1:1 `max-file-size`: expected a number of bytes above 0"),
        ("cache-dir = 3", "1:1 `cache-dir`: expected a string, found a number"),
        ("context = 'rolout'", "1:11 `context`: unknown context `rolout`; did you mean `rollout`?"),
        ("context = []", "1:1 `context`: names no context; expected one of all, rollout, evaluation"),
        (
            "generate-functions = ['a b']",
            "1:23 `generate-functions`: `a b` is not the name of a function or class, bare or dotted",
        ),
        ("[trainer-classes]\n'a.B' = 1", "1:2 `trainer-classes`: expected a string, found a number"),
        (
            "[per-file-ignores]\n'a.py' = ['greedyy']",
            "2:11 `per-file-ignores`: unknown rule `greedyy`; did you mean `greedy`?",
        ),
        ("per-file-ignores = 3", "1:1 `per-file-ignores`: expected a table, found a number"),
        (
            "[target-versions]\ntransformer = '4.4'",
            "2:1 `target-versions`: unknown library `transformer`; did you mean `transformers`?",
        ),
        ("[target-versions]\nverl = '1'", "2:1 `target-versions`: unknown library `verl`"),
        (
            "target-versions.trl = 'new'",
            "1:23 `target-versions`: trl needs a version such as \"4.57.1\", found 'new'",
        ),
        (
            "target-versions.trl = 0.9",
            '1:23 `target-versions`: trl needs a version such as "4.57.1", found 0.9',
        ),
    ],
)
def test_what_is_wrong_is_named_where_it_stands(text, problem):
    [found] = problems(text)
    assert found.startswith(problem)


def test_everything_that_is_wrong_is_reported_at_once():
    assert len(problems("selct = []\nexclude = 3\ncontext = 'none'")) == 3


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[tool.klguard]\n\n  selct = []\n", (3, 3)),
        ("[tool.klguard.selct]\na = 1\n", (1, 2)),
        ("[tool]\nklguard.selct = 1\n", (2, 1)),
        ("[other]\nselct = 1\n[tool.klguard] # here\n'selct' = 1\n", (4, 1)),
        ("tool.klguard.selct = 1\n", (1, 1)),
        ("[tool]\nklguard = 3\n", (2, 1)),
    ],
)
def test_places_are_found_in_every_spelling_of_toml(text, place):
    Path("pyproject.toml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load(Path("."), rules=RULES)
    [finding] = error.value.findings
    assert (finding.place.path, finding.place.line, finding.place.column) == ("pyproject.toml", *place)


VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(["KLG101", "all"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
OPTIONS = st.sampled_from(
    "select per-file-ignores exclude context target-versions trainer-classes max-file-size cache-dir".split()
)


@settings(deadline=None)
@given(OPTIONS, VALUES)
def test_any_value_is_read_or_refused(option, value):
    from klguard.config import _Reader

    try:
        _Reader(None, "", RULES).options({option: value})
    except ConfigError as error:
        assert all(finding.message for finding in error.findings)


def test_a_directory_that_may_not_be_looked_into_is_passed_over(monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    Path("pyproject.toml").write_text("[tool.klguard]\n")
    monkeypatch.setattr(os, "stat", refuse)
    assert find(Path("pkg")) is None
