"""`klguard demo`: what it shows, what it leaves behind, and how it refuses."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")
pytest.importorskip("plotly")

from klguard import cli  # noqa: E402
from klguard.guard.journal import read  # noqa: E402
from klguard.lab import demo as laboratory  # noqa: E402
from klguard.lab import settings as settings_module  # noqa: E402
from klguard.lab.experiment import LIMIT, REWARD, Alarm, Outcome  # noqa: E402
from klguard.lab.live import Live, conclusions, frame, record, sparkline  # noqa: E402
from klguard.output.terminal import painter  # noqa: E402

SMALL = {"steps": 3, "reading": 20}


class Terminal(io.StringIO):
    def isatty(self):
        return True

    encoding = "utf-8"


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A short demonstration on a terminal, and one whose output goes to a file."""
    made = {}
    for name, stream in (("terminal", Terminal()), ("file", io.StringIO())):
        output = tmp_path_factory.mktemp(name)
        outcomes = laboratory.demo({"min_new_tokens": 16}, output=output, stream=stream, **SMALL)
        made[name] = (*outcomes, output, stream.getvalue())
    return made


def test_the_unsafe_run_is_stopped_at_once_and_the_safe_one_never(shown):
    safe, unsafe, output, _ = shown["file"]
    assert safe.guard is None and safe.findings == []
    assert unsafe.guard.step == 0 and "KLG302" in unsafe.guard.codes
    assert unsafe.evidence is not None and unsafe.evidence.cause.startswith("eos_suppressed")
    assert set(safe.column("score")) == {REWARD}
    assert unsafe.column("tokens") == sorted(unsafe.column("tokens"))


def test_it_leaves_a_picture_a_page_and_journals(shown):
    _, _, output, text = shown["file"]
    assert (output / "demo.png").read_bytes().startswith(b"\x89PNG")
    page = (output / "demo.html").read_text()
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)[1])
    names = {f"{name}-{run}" for name in ("kl", "reward", "evidence", "causes") for run in ("safe", "unsafe")}
    assert {figure["name"] for figure in figures} == names
    assert all(f'id="plot-{name}"' in page for name in names)
    for name, violations in (("safe", False), ("unsafe", True)):
        journal = read(output / f"{name}.jsonl")
        assert len(journal.steps) == 3 and bool(journal.violations) is violations
    assert f"wrote {output / 'demo.png'}" in text and f"wrote {output / 'demo.html'}" in text


def test_in_a_file_there_are_lines_and_no_control_characters(shown):
    *_, text = shown["file"]
    assert "\x1b" not in text and "\r" not in text
    assert (
        "pure sampling: step 0, KL estimate 0.00, exact KL 0.00, total reward -1.00, true reward -1.00"
        in text
    )
    assert "min_new_tokens=16: the guard stops it after step 0" in text


def test_on_a_terminal_the_table_is_drawn_in_place(shown):
    *_, text = shown["terminal"]
    assert "\x1b[6A" in text and "a small GPT-2 learns the grammar" in text
    assert text.count("\x1b[J") >= 6


def test_the_same_seed_gives_the_same_figures(shown):
    assert shown["file"][1].figures == shown["terminal"][1].figures


def test_a_demonstration_can_be_repeated_and_run_without_a_guard(shown, tmp_path):
    first = shown["file"][1]
    for guarded in (True, False):
        stream = io.StringIO()
        _, unsafe = laboratory.demo(
            {"min_new_tokens": 16}, output=tmp_path, guarded=guarded, stream=stream, **SMALL
        )
        assert unsafe.column("kl") == first.column("kl"), "the guard changes nothing"
    assert unsafe.guard is None and "evidence" not in stream.getvalue() and "guard" not in stream.getvalue()
    assert len(read(tmp_path / "unsafe.jsonl").steps) == 3
    assert (tmp_path / "demo.png").exists() and "evidence-unsafe" not in (tmp_path / "demo.html").read_text()


def test_what_generate_does_not_take_is_said_before_the_work_begins(tmp_path):
    with pytest.raises(ValueError, match="num_beams=4.*"):
        laboratory.demo({"num_beams": 4, "num_return_sequences": 9}, output=tmp_path / "never", **SMALL)
    assert not (tmp_path / "never").exists()


@pytest.mark.slow
def test_the_exploit(tmp_path):
    """The whole demonstration: the estimate falls below zero while the exact KL grows, and the penalty pays for it."""
    safe, unsafe = laboratory.demo({"min_new_tokens": 16}, output=tmp_path, stream=io.StringIO())
    assert min(unsafe.column("kl")) < -2 and min(safe.column("kl")) > -0.5
    assert max(unsafe.column("exact_kl")) > 20 > max(safe.column("exact_kl"))
    assert (
        max(unsafe.column("total_reward")) > REWARD + 0.2 and max(safe.column("total_reward")) < REWARD + 0.05
    )
    assert safe.guard is None and max(safe.column("log_evidence")) < LIMIT
    assert unsafe.guard.step == 0 and unsafe.trl.step > unsafe.guard.step


# -------------------------------------------------------------------------------------------- pieces


def outcome(**changed):
    figures = {"kl": -1.5, "exact_kl": 3.0, "score": -1.0, "total_reward": -0.85, "tokens": 100}
    figures |= {"log_evidence": 20.0, "causes": {"top_k=5": 0.9, "top_k=10": 0.1, "pit": 0.0}}
    made = Outcome({"top_k": 5}, True, [dict(figures, kl=0.0), figures], Alarm(0, 50, ("KLG701",), "top_k=5"))
    made.trl = Alarm(1, 100)
    for name, value in changed.items():
        setattr(made, name, value)
    return made


def test_the_table_says_what_the_evidence_names():
    lines = frame([outcome()], 5, painter(False))
    assert lines[0] == "top_k=5: step 2 of 5"
    assert "-1.50" in lines[1] and "top_k=5 90%, top_k=10 10%" in lines[-1] and "pit" not in lines[-1]
    unguarded = frame([outcome(guarded=False)], 5, painter(False))
    assert len(unguarded) == len(lines) - 1
    assert record(outcome()).endswith("evidence 20.0 nats (top_k=5)")


def test_conclusions_give_steps_and_tokens():
    said = conclusions(outcome(sampling={}, guard=None, trl=None), outcome())
    assert said[0] == "pure sampling: the guard never stops it (evidence at most 20.0 of 14.6 nats)"
    assert "top_k=5: the guard stops it after step 0, 50 tokens: KLG701, top_k=5" in said
    assert "top_k=5: TRL's rule, mean KL below -1 nat, warns after step 1, 100 tokens" in said
    assert "the KL estimate is -1.5 nats per sequence and the exact KL 3.0" in said[-1]


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ([0.0, 1.0], "▁█"),
        ([-1.0, -1.0, -1.0], "▁▁▁"),
        ([100.0, 100.1], "▁▁"),
        ([0.0, float("nan"), 1.0], "▁ █"),
        ([float("inf")], ""),
        ([], ""),
    ],
)
def test_curves(values, drawn):
    assert sparkline(values) == drawn


def test_a_terminal_without_blocks_gets_ascii():
    stream = Terminal()
    stream.encoding = "latin-1"
    Live(stream, steps=2, color="never").update([outcome()])
    assert stream.getvalue().isascii()


# ----------------------------------------------------------------------------------------- command line


def invoke(*arguments):
    result = CliRunner().invoke(cli.cli, ["demo", *arguments])
    return result.exit_code, result.output


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(settings_module, "missing", lambda: ["matplotlib"])
    status, text = invoke()
    assert status == 2 and "matplotlib" in text and "pip install 'klguard[demo]'" in text


def test_what_is_missing_is_what_cannot_be_imported(monkeypatch):
    assert settings_module.missing() == []
    monkeypatch.setattr(settings_module, "NEEDED", ("torch", "no_such_library"))
    assert settings_module.missing() == ["no_such_library"]


def test_a_setting_that_cannot_be_meant_is_refused():
    status, text = invoke("--setting", "topk=5")
    assert status == 2 and "did you mean `top_k`" in text


def test_the_options_reach_the_demonstration(monkeypatch, tmp_path):
    called = {}
    monkeypatch.setattr(
        laboratory, "demo", lambda sampling, **options: called.update(options, sampling=sampling)
    )
    settings = ["--setting", "top_k=5", "--setting", "temperature=0.7"]
    status, _ = invoke(
        *settings, "--guard", "off", "--seed", "3", "--output", str(tmp_path), "--color", "never"
    )
    assert status == 0
    assert called == {
        "sampling": {"top_k": 5, "temperature": 0.7},
        "guarded": False,
        "seed": 3,
        "output": tmp_path,
        "color": "never",
    }
    invoke()
    assert called["sampling"] == {"min_new_tokens": 16} and called["guarded"] is True
    assert called["output"] == Path("klguard-demo")


def test_a_folder_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(laboratory, "READING", 1)
    status, text = invoke("--output", str(tmp_path / "file" / "below"))
    assert status == 2 and "cannot be written" in text
