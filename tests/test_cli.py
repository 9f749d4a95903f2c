"""The command line: options, exit status, streams."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from klguard import __version__
from klguard.cli import cli
from klguard.guard.catalogue import BY_CODE
from klguard.rules import RULES
from klguard.rules.programs import ppo

NEUTRAL = "do_sample=True, top_k=0, top_p=1.0, temperature=1.0, repetition_penalty=1.0, max_new_tokens=32"
CLEAN = ppo(NEUTRAL)
BAD = ppo(NEUTRAL.replace("top_k=0", "top_k=50"))


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def klguard(*arguments: str, input: str | bytes | None = None) -> Result:
    result = CliRunner().invoke(cli, list(arguments), input=input, prog_name="klguard")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-m", "klguard", *arguments], **environment)


def python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-c", program, *arguments])


# --- exit status ----------------------------------------------------------------------------------


def test_status_0_without_findings():
    Path("train.py").write_text(CLEAN)
    result = klguard("check")
    assert result.exit_code == 0
    assert result.output.startswith("Nothing found: 1 file checked, ")


def test_status_1_with_findings_and_0_where_that_is_asked_for():
    Path("train.py").write_text(BAD)
    assert klguard("check").exit_code == 1
    result = klguard("check", "--exit-zero")
    assert result.exit_code == 0
    assert "KLG101 [top-k]" in result.output


def test_notes_alone_do_not_fail():
    Path("train.py").write_text(CLEAN.replace("temperature=1.0", "temperature=float(input())"))
    result = klguard("check")
    assert "KLG003 [unresolved-settings] note" in result.output
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("gone.py",), "gone.py: no such file or directory"),
        (("--select", "top-q"), "did you mean `top-p`?"),
        (("--ignore", "KLG999"), "unknown rule `KLG999`"),
        (("--context", "training"), "'training' is not one of"),
        (("--target-version", "transformers"), "LIB=VERSION"),
        (("--target-version", "transfomers=5"), "did you mean `transformers`?"),
        (("--config", "gone.toml"), "gone.toml"),
        (("--statistics", "--output-format", "json"), "--statistics"),
        (("--jobs", "0"), "0"),
        (("-", "train.py"), "on its own"),
        (("--no-such-option",), "--no-such-option"),
    ],
)
def test_status_2_when_klguard_cannot_run_as_asked(arguments: tuple[str, ...], says: str):
    Path("train.py").write_text(BAD)
    result = klguard("check", *arguments)
    assert result.exit_code == 2
    assert says in result.stderr and "KLG101" not in result.output


def test_status_2_for_a_configuration_that_cannot_be_used():
    Path("klguard.toml").write_text('selct = ["top-k"]\n')
    Path("train.py").write_text(BAD)
    result = klguard("check")
    assert result.exit_code == 2
    assert "klguard.toml:1:1: KLG005 [invalid-config]" in result.stderr and "`select`" in result.stderr
    assert result.stdout == ""
    found = json.loads(klguard("check", "--output-format", "json").stdout)["findings"]
    assert [finding["code"] for finding in found] == ["KLG005"]


def test_status_2_and_a_traceback_for_a_fault_of_klguards_own():
    program = "import klguard.check, klguard.cli; klguard.check.check_paths = None; klguard.cli.main()"
    done = python(program, "check")
    assert done.returncode == 2
    assert "TypeError" in done.stderr and "please report" in done.stderr


def test_an_interruption_is_not_taken_for_findings():
    program = (
        "import klguard.check, klguard.cli\n"
        "def interrupted(*_, **__): raise KeyboardInterrupt\n"
        "klguard.check.check_paths = interrupted\n"
        "klguard.cli.main()\n"
    )
    done = python(program, "check")
    assert done.returncode == 130
    assert done.stderr.split() == ["klguard:", "interrupted"]


def test_a_named_file_that_is_no_configuration_of_ours_is_checked_all_the_same():
    """A hook hands over whatever YAML was changed."""
    Path("ci.yaml").write_text("on: push\n")
    assert klguard("check", "ci.yaml").exit_code == 0
    assert klguard("check", "-", "--stdin-filename", "ci.yaml", input="on: push\n").exit_code == 0
    assert klguard("check", ".").exit_code == 3


def test_a_named_configuration_that_cannot_be_read_is_told():
    Path("run.yaml").symlink_to("nowhere.yaml")
    result = klguard("check", "run.yaml", "--output-format", "concise")
    assert result.exit_code == 1 and "KLG002" in result.stdout and "link to nothing" in result.stdout


def test_status_3_when_nothing_was_checked():
    Path("notes.txt").write_text("generate")
    result = klguard("check")
    assert result.exit_code == 3
    assert "no Python file or notebook" in result.stderr
    assert klguard("check", "--exit-zero").exit_code == 3
    assert klguard("sites").exit_code == 3


def test_excluded_files_are_checked_when_they_are_named_unless_exclusion_is_forced():
    Path("klguard.toml").write_text('exclude = ["old/"]\n')
    Path("old").mkdir()
    Path("old/train.py").write_text(BAD)
    assert klguard("check", "old/train.py").exit_code == 1
    result = klguard("check", "--force-exclude", "old/train.py")
    assert result.exit_code == 0
    assert "excluded" in result.stderr


# --- selection ------------------------------------------------------------------------------------


def codes(*arguments: str) -> set[str]:
    result = klguard("check", "--output-format", "json", *arguments)
    return {finding["code"] for finding in json.loads(result.stdout)["findings"]}


def test_rules_are_chosen_by_code_name_or_prefix_with_commas_or_repeated():
    Path("train.py").write_text(ppo("do_sample=False, top_k=50, min_length=5"))
    everything = codes()
    assert {"KLG201", "KLG301", "KLG304"} <= everything
    assert codes("--select", "greedy,min-length") == {"KLG201", "KLG301"}
    assert codes("--select", "KLG2", "--select", "KLG301") == {"KLG201", "KLG301"}
    assert codes("--select", "klg3", "--ignore", "implicit-length") == {"KLG301"}
    assert codes("--select", "greedy", "--extend-select", "KLG301") == {"KLG201", "KLG301"}
    Path("klguard.toml").write_text('select = ["greedy"]\n')
    assert codes("--extend-select", "min-length") == {"KLG201", "KLG301"}
    assert codes("--config", "pyproject.toml") == everything


def test_contexts_widen_what_is_reported():
    source = """\
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("gpt2")
def demo(inputs):
    print(model.generate(**inputs, do_sample=True, top_k=40, max_new_tokens=9))
"""
    Path("demo.py").write_text(source)
    assert "KLG101" not in codes()
    assert "KLG101" in codes("--context", "all")
    assert "KLG101" in codes("--context", "inference", "--context", "evaluation")
    assert "KLG101" not in codes("--context", "evaluation")


def test_versions_can_be_set_by_hand():
    Path("train.py").write_text(CLEAN)
    result = klguard("sites", "--output-format", "full", "--target-version", "transformers==4.40.0")
    assert "transformers 4.40.0" in result.output


# --- input and output -----------------------------------------------------------------------------


def test_standard_input_goes_by_the_name_it_is_given():
    result = klguard("check", "--output-format", "concise", "-", input=BAD)
    assert result.exit_code == 1
    assert result.output.startswith("<stdin>:")
    result = klguard("check", "--output-format", "concise", "--stdin-filename", "src/train.py", input=BAD)
    assert result.output.startswith("src/train.py:")


def test_standard_input_may_be_a_notebook():
    notebook = json.dumps({"cells": [{"cell_type": "code", "source": BAD}], "metadata": {}, "nbformat": 4})
    result = klguard(
        "check", "--output-format", "concise", "--stdin-filename", "a.ipynb", "-", input=notebook
    )
    assert result.output.startswith("a.ipynb:cell 0:")


def test_concise_output_is_a_line_per_finding_and_a_summary():
    Path("train.py").write_text(BAD)
    *found, last = klguard("check", "--output-format", "concise", "--select", "top-k").output.splitlines()
    assert len(found) == 1 and found[0].startswith("train.py:9:")
    assert last.startswith("Found 1 error: 1 file checked")


def test_statistics_replace_the_findings():
    Path("train.py").write_text(BAD)
    output = klguard("check", "--statistics", "--select", "top-k").output
    assert output.splitlines()[0] == "1  KLG101  top-k  error"
    assert "-->" not in output


def test_colour_is_asked_for_or_follows_the_environment(monkeypatch: pytest.MonkeyPatch):
    Path("train.py").write_text(BAD)
    assert "\x1b[" not in klguard("check").output
    assert "\x1b[31;1m" in klguard("check", "--color", "always").output
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" in klguard("check").output
    assert "\x1b[" not in klguard("check", "--color", "never").output


def test_sites_are_shown_with_all_contexts_in_words_and_as_json():
    Path("train.py").write_text(BAD)
    output = klguard("sites").output
    assert "ppo_trainer.generate(...)" in output and "top_k" in output and "rollout" in output
    document = json.loads(klguard("sites", "--output-format", "json").stdout)
    assert document["schema"] == 1
    (generate,) = [site for site in document["sites"] if site["kind"] == "generate"]
    assert generate["settings"]["top_k"]["value"] == 50
    assert generate["findings"] == ["KLG101"]
    assert klguard("sites").exit_code == 0
    assert "0 sites" in klguard("sites", "--context", "inference").output


def test_a_rule_is_explained_by_code_or_name():
    assert klguard("rule", "KLG101").output == klguard("rule", "top-k").output
    assert klguard("rule", "top-k").output.startswith("# top-k (KLG101)")
    result = klguard("rule", "topk")
    assert result.exit_code == 2 and "did you mean `top-k`?" in result.stderr
    assert klguard("rule", "top-k", "--all").exit_code == 2
    assert klguard("rule", "KLG831").output == klguard("rule", "first-ratio").output
    assert klguard("rule", "first-ratio").output.startswith("# first-ratio (KLG831)")
    assert "did you mean `first-ratio`?" in klguard("rule", "frist-ratio").stderr


def test_all_rules_are_listed_in_words_and_as_json():
    lines = klguard("rule", "--all").output.splitlines()
    assert [line.split()[0] for line in lines] == [*RULES, *BY_CODE]
    assert klguard("rule").output.splitlines() == lines
    document = json.loads(klguard("rule", "--all", "--output-format", "json").stdout)
    assert [rule["code"] for rule in document["rules"]] == [*RULES, *BY_CODE]
    (one,) = json.loads(klguard("rule", "KLG101", "--output-format", "json").stdout)["rules"]
    assert one["name"] == "top-k" and one["explanation"] and one["examples"]["invalid"]


# --- the cache ------------------------------------------------------------------------------------


def test_answers_are_kept_in_the_project_or_elsewhere_or_not_at_all(tmp_path: Path):
    Path("train.py").write_text(BAD)
    klguard("check", "--no-cache")
    assert not Path(".klguard_cache").exists()
    klguard("check", "--cache-dir", "kept")
    assert Path("kept").is_dir() and not Path(".klguard_cache").exists()
    first = klguard("check").output
    assert Path(".klguard_cache").is_dir()
    assert klguard("check").output == first


# --- as a process ---------------------------------------------------------------------------------


def test_it_says_its_version_and_imports_nothing_heavy_for_it():
    done = process("--version")
    assert done.stdout == f"klguard {__version__}\n"
    heavy = ("torch", "yaml", "pathspec", "klguard.read.python")
    program = f"import sys, klguard.cli; print([m for m in {heavy} if m in sys.modules])"
    assert python(program).stdout == "[]\n"


def test_a_run_without_a_site_never_imports_the_reader():
    Path("a.py").write_text("x = 1\n")
    reader = ("klguard.read.python.nodes", "klguard.engines", "klguard.rules")
    program = (
        "import sys, klguard.cli\n"
        "try: klguard.cli.main()\n"
        f"finally: print([m for m in {reader} if m in sys.modules])\n"
    )
    done = python(program, "check")
    assert done.stdout.splitlines() == ["Nothing found: 1 file checked, 0 rollouts among 0 sites.", "[]"]


def test_a_reader_that_has_seen_enough_is_no_error():
    Path("train.py").write_text(BAD)
    for arguments in ("check", "sites --output-format json", "rule --all --output-format json"):
        pipe = f"$PYTHON -m klguard {arguments} | head -c 1; echo $'\\n'${{PIPESTATUS[0]}}"
        done = run(["bash", "-c", pipe], PYTHON=sys.executable)
        assert done.stderr == ""
        assert done.stdout.splitlines()[-1] == ("1" if arguments == "check" else "0")


def test_any_character_can_be_printed_on_any_terminal():
    Path("caf\u00e9.py").write_text(
        BAD.replace("top_k=50", "top_k=50,  # \u540d\u524d \U0001f642\n  "), encoding="utf-8"
    )
    done = process("check", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 1
    assert "caf\\xe9.py" in done.stdout


def test_the_order_does_not_depend_on_the_number_of_processes():
    for number in range(6):
        Path(f"train{number}.py").write_text(BAD + "\n# filler" * 10_000)
    one, three = (process("check", "--no-cache", "--jobs", jobs) for jobs in ("1", "3"))
    assert one.returncode == three.returncode == 1
    assert one.stdout == three.stdout
