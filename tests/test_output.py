"""What findings and sites look like on a terminal and in JSON."""

from __future__ import annotations

import io
import json
import math
import signal
import time
from pathlib import Path

import pytest

from klguard.check import Sources
from klguard.findings import Applicability, Confidence, Edit, Finding, Fix, Severity, SiteRef
from klguard.literals import json_value, source_text, value_text
from klguard.output import concise, text
from klguard.output import json as json_output
from klguard.output import sites as sites_output
from klguard.output.frame import Mark, frame
from klguard.output.groups import grouped, statistics, summary
from klguard.output.progress import Progress
from klguard.output.terminal import clean, painter, wants_color, width
from klguard.settings import (
    Context,
    Default,
    Hop,
    HopKind,
    Known,
    Layer,
    LayerKind,
    OneOf,
    Opaque,
    Place,
    Reason,
    Settings,
    Site,
    SiteKind,
    Unknown,
)

PLAIN = painter(False)
SOURCE = """\
generation_kwargs = {
    "do_sample": True,
    "top_k": 50,
}

for query in queries:
    response = trainer.generate(query, **generation_kwargs)
    again = trainer.generate(
        query,
        **generation_kwargs,
    )
""".split("\n")


def span(line: int, column: int, length: int, path: str = "train.py", cell: int | None = None) -> Place:
    return Place(path, cell, line, column, line, column + length)


VALUE = span(3, 14, 2)
CALL = span(7, 16, 44)
SPLAT = Hop(HopKind.SPLAT, span(7, 43, 19), "passed by **generation_kwargs")


def finding(place: Place = VALUE, site: Place | None = CALL, **changes) -> Finding:
    hops = (Hop(HopKind.LITERAL, place, "written here"), SPLAT)
    ref = site and SiteRef(
        site, "trainer.generate", "transformers", Context.ROLLOUT, "", "reaches trainer.step"
    )
    fields = dict(
        code="KLG101",
        name="top-k",
        severity=Severity.ERROR,
        confidence=Confidence.HIGH,
        message="top_k=50 cuts the tail",
        place=place,
        help="write `top_k=0`",
        site=ref,
        setting="top_k",
        value="50",
        origin=hops if site else (),
    )
    return Finding(**{**fields, **changes})


def shown(*findings: Finding, source: list[str] = SOURCE) -> str:
    return "\n".join(text.render(grouped(findings), lambda path, cell: source, PLAIN))


def test_full_output_underlines_the_value_and_shows_the_site_the_origin_and_the_help():
    assert (
        shown(finding())
        == """\
KLG101 [top-k] error: top_k=50 cuts the tail
 --> train.py:3:14
  |
1 | generation_kwargs = {
2 |     "do_sample": True,
3 |     "top_k": 50,
  |              ^^
4 | }
...
7 |     response = trainer.generate(query, **generation_kwargs)
  |                -------------------------------------------- rollout: reaches trainer.step
  |
origin: written here -> passed by **generation_kwargs at train.py:7:43 -> trainer.generate(...)
help: write `top_k=0`
"""
    )


def test_a_value_that_reaches_several_sites_is_shown_once_with_all_of_them():
    other = Place("train.py", None, 8, 13, 11, 6)
    output = shown(finding(), finding(site=other))
    assert output.count("KLG101") == 1
    assert "also reaches: train.py:8:13 trainer.generate(...), rollout: reaches trainer.step" in output
    assert "(reaches 2 sites)" in next(concise.render(grouped([finding(), finding(site=other)]), PLAIN))


def test_other_words_about_the_same_value_are_another_finding():
    assert len(grouped([finding(), finding(message="something else")])) == 2


def test_a_call_of_several_lines_is_underlined_to_the_end_of_its_first():
    place = Place("train.py", None, 8, 13, 11, 6)
    output = shown(finding(place, place))
    assert " 8 |     again = trainer.generate(\n   |             ^^^^^^^^^^^^^^^^^ rollout" in output


def test_what_stands_on_the_call_itself_needs_no_origin():
    assert "origin:" not in shown(finding(span(7, 18, 3), CALL))


def test_a_value_in_another_file_gets_a_frame_of_its_own():
    output = shown(finding(span(3, 14, 2, "settings.py")))
    assert output.index(" --> settings.py:3:14") < output.index(" ::: train.py:7:16")


def test_notes_come_last_and_low_confidence_is_said():
    note = finding(
        span(1, 1, 3), None, severity=Severity.NOTE, confidence=Confidence.LOW, message="who knows"
    )
    output = shown(note, finding())
    assert output.index("KLG101 [top-k] error") < output.index(
        "KLG101 [top-k] note: who knows (low confidence)"
    )


def test_cells_of_notebooks_are_named():
    assert " --> train.ipynb:cell 4:3:14" in shown(finding(span(3, 14, 2, "train.ipynb", 4), None))


def test_a_frame_whose_source_is_gone_still_names_the_place():
    lines = list(frame([Mark(VALUE, primary=True)], lambda path, cell: None, PLAIN, "red"))
    assert lines == [" --> train.py:3:14"]


@pytest.mark.parametrize(
    ("source", "column", "length", "underline"),
    [
        ("\tx = 50", 6, 2, "        ^^"),
        ("名前 = 50", 6, 2, "       ^^"),
        ("e\u0301 = 50", 6, 2, "    ^^"),
        ("x = '\x1b[31m'; y = 50", 18, 2, "                    ^^"),
    ],
)
def test_carets_stand_under_the_value_whatever_is_in_front_of_it(source, column, length, underline):
    lines = list(
        frame([Mark(span(1, column, length), primary=True)], lambda path, cell: [source], PLAIN, "red")
    )
    assert lines[3].removeprefix("  | ") == underline


def test_a_line_of_thousands_of_characters_is_cropped_around_the_value():
    source = "x = [" + "0, " * 5000 + "50]"
    column = source.index("50]") + 1
    lines = list(frame([Mark(span(1, column, 2), primary=True)], lambda path, cell: [source], PLAIN, "red"))
    assert max(map(len, lines)) < 200
    assert lines[2][lines[3].index("^") :].startswith("50]")


def test_nothing_in_source_or_messages_can_move_the_cursor():
    evil = "\x1b]0;title\x07 \u202e drawkcab \r\n\ud800"
    output = shown(finding(message=evil), source=[evil] * 12)
    assert not {"\x1b", "\x07", "\u202e", "\r", "\ud800"} & set(output)
    assert clean("plain") == "plain"


def test_width_counts_columns_of_the_terminal():
    assert [width("ab"), width("名"), width("e\u0301"), width("\u200b")] == [2, 2, 1, 0]


def test_colour_follows_the_choice_then_the_environment_then_the_terminal():
    pipe = io.StringIO()
    assert wants_color("always", pipe, {"NO_COLOR": "1"})
    assert not wants_color("never", pipe, {"FORCE_COLOR": "1"})
    assert wants_color("auto", pipe, {"FORCE_COLOR": "1", "NO_COLOR": "1"})
    assert not wants_color("auto", pipe, {"NO_COLOR": ""})

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert wants_color("auto", Terminal(), {"NO_COLOR": ""})
    assert not wants_color("auto", Terminal(), {"NO_COLOR": "1"})


def test_without_colour_the_coloured_output_is_the_plain_one():
    import re

    coloured = "\n".join(text.render(grouped([finding()]), lambda path, cell: SOURCE, painter(True)))
    assert "\x1b[31;1mKLG101" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == shown(finding())


def test_the_summary_counts_by_severity_and_names_what_was_held_back():
    groups = grouped([finding(), finding(span(2, 1, 1), severity=Severity.WARNING)])
    assert summary(groups, 3, 1, 2, 4) == (
        "Found 1 error, 1 warning: 3 files checked, 1 rollout among 2 sites. 4 suppressed."
    )
    assert summary([], 1, 0, 0, 0) == "Nothing found: 1 file checked, 0 rollouts among 0 sites."


def test_statistics_are_a_line_per_rule_with_the_commonest_first():
    groups = grouped(
        [finding(), *(finding(span(n, 1, 1), code="KLG201", name="greedy") for n in range(1, 11))]
    )
    assert statistics(groups) == ["10  KLG201  greedy  error", " 1  KLG101  top-k   error"]


def test_concise_is_one_line_that_editors_can_parse():
    assert list(concise.render(grouped([finding()]), PLAIN)) == [
        "train.py:3:14: KLG101 [top-k] error: top_k=50 cuts the tail"
    ]


# --- JSON -----------------------------------------------------------------------------------------


def test_json_of_a_finding_has_what_is_promised():
    fix = Fix(Applicability.UNSAFE, (Edit(VALUE, "0"),))
    document = json.loads(json_output.findings([finding(fix=fix)]))
    assert document["schema"] == 1
    (found,) = document["findings"]
    assert found == {
        "code": "KLG101",
        "name": "top-k",
        "severity": "error",
        "confidence": "high",
        "message": "top_k=50 cuts the tail",
        "help": "write `top_k=0`",
        "path": "train.py",
        "cell": None,
        "line": 3,
        "column": 14,
        "end_line": 3,
        "end_column": 16,
        "site": {
            "path": "train.py",
            "cell": None,
            "line": 7,
            "column": 16,
            "call": "trainer.generate",
            "engine": "transformers",
            "context": "rollout",
        },
        "origin": [
            {"path": "train.py", "cell": None, "line": 3, "column": 14, "text": "written here"},
            {
                "path": "train.py",
                "cell": None,
                "line": 7,
                "column": 43,
                "text": "passed by **generation_kwargs",
            },
        ],
        "fix": {
            "applicability": "unsafe",
            "edits": [
                {
                    "path": "train.py",
                    "cell": None,
                    "line": 3,
                    "column": 14,
                    "end_line": 3,
                    "end_column": 16,
                    "content": "0",
                }
            ],
        },
        "url": "",
    }


def test_json_keeps_one_finding_for_each_site():
    other = Place("train.py", None, 8, 13, 11, 6)
    assert len(json.loads(json_output.findings([finding(), finding(site=other)]))["findings"]) == 2


def site(**values) -> Site:
    layers = (Layer(LayerKind.KWARGS, {}, Unknown(Reason.INVISIBLE_CALL, "load()")),)
    settings = Settings(
        "transformers",
        SiteKind.GENERATE,
        values,
        layers,
        {"batched": Known(True)},
        {"temperature": "divided out"},
        {"transformers": "5.23.0"},
        Context.ROLLOUT,
    )
    return Site(CALL, "trainer.generate", settings, "reaches trainer.step", "Loop.run")


VALUES = {
    "top_k": Known(50, (Hop(HopKind.LITERAL, VALUE, "written here"),)),
    "top_p": Default(1.0, "transformers", ">=4.39"),
    "temperature": OneOf((Known(0.7), Unknown(Reason.RUNTIME, "cfg.t"))),
    "min_p": Unknown(Reason.RUNTIME, "cfg.min_p"),
    "logits_processor": Known(Opaque("LogitsProcessorList([Bias()])", "transformers.LogitsProcessorList")),
    "epsilon_cutoff": Known(math.inf),
}


def test_json_of_a_site_has_every_setting_with_its_origin():
    (found,) = json.loads(json_output.sites([site(**VALUES)], {CALL: {"KLG101", "KLG106"}}))["sites"]
    settings = found.pop("settings")
    assert found == {
        "path": "train.py",
        "cell": None,
        "line": 7,
        "column": 16,
        "call": "trainer.generate",
        "kind": "generate",
        "engine": "transformers",
        "context": "rollout",
        "why": "reaches trainer.step",
        "findings": ["KLG101", "KLG106"],
    }
    origin = [{"path": "train.py", "cell": None, "line": 3, "column": 14, "text": "written here"}]
    assert settings["top_k"] == {"value": 50, "origin": origin}
    assert settings["top_p"]["value"] == 1.0
    assert settings["top_p"]["origin"][-1]["text"] == "default of transformers >=4.39"
    assert settings["temperature"]["values"] == [0.7, {"unknown": "cfg.t: known only at run time"}]
    assert settings["min_p"] == {"unknown": "cfg.min_p: known only at run time", "origin": []}
    assert settings["logits_processor"]["value"] == {"expression": "LogitsProcessorList([Bias()])"}
    assert settings["epsilon_cutoff"]["value"] == "inf"


def test_the_site_view_says_what_is_in_force_why_and_where_the_trail_ends():
    output = "\n".join(sites_output.render([site(**VALUES)], {CALL: {"KLG101"}}, PLAIN))
    for piece in (
        "train.py:7:16 trainer.generate(...)",
        "rollout: reaches trainer.step",
        "generate, transformers 5.23.0, in Loop.run",
        "written here at train.py:3:14",
        "0.7 or unknown (cfg.t: known only at run time)",
        "default of transformers >=4.39: top_p=1.0",
        "harmless: temperature, divided out",
        "also: batched = True",
        "may hold more: load(): the result of code that is not visible",
        "findings: KLG101",
    ):
        assert piece in output
    assert sites_output.summary([site()], 2) == "1 site in 2 files: 1 rollout."


def test_settings_that_one_unknown_dict_decides_are_told_in_one_line():
    dark = dict.fromkeys(
        (f"setting_{number}" for number in range(sites_output.MANY + 1)), Unknown(Reason.RUNTIME, "cfg")
    )
    output = "\n".join(sites_output.render([site(**dark, top_k=Known(50))], {}, PLAIN))
    assert f"{len(dark)} others = unknown (cfg: known only at run time)" in output
    assert "setting_" not in output and "top_k    = 50" in output
    output = "\n".join(sites_output.render([site(**dark)], {}, PLAIN))
    assert f"{len(dark)} settings = unknown" in output


def test_values_are_written_as_python_and_in_a_stable_order():
    assert source_text({"b", "a"}) == "{'a', 'b'}"
    assert source_text(set()) == "set()"
    assert len(source_text("x" * 500)) == 80
    assert value_text(OneOf((Known(1), Default(None, "vllm")))) == "1 or None"


def test_every_plain_value_has_a_form_in_json():
    value = {"a": (1, 2.5, None), 3: {"z", "y"}, "n": float("nan"), "b": b"x", "c": 1j}
    assert json_value(value) == {
        "a": [1, 2.5, None],
        "3": ["y", "z"],
        "n": "nan",
        "b": {"expression": "b'x'"},
        "c": {"expression": "1j"},
    }
    json.dumps(json_value(value), allow_nan=False)


# --- sources and progress -------------------------------------------------------------------------


def test_sources_give_lines_of_files_and_cells_and_none_where_there_are_none(tmp_path: Path):
    notebook = {
        "cells": [
            {"cell_type": "markdown", "source": ["# Title"]},
            {"cell_type": "code", "source": ["%matplotlib inline\n", "x = 1"]},
        ]
    }
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps(notebook))
    sources = Sources(text={"<stdin>": b"a\nb"})
    assert sources.lines("<stdin>", None) == ["a", "b"]
    assert sources.lines(str(path), 1) == ["%matplotlib inline", "x = 1"]
    assert sources.lines(str(path), 0) is None
    assert sources.lines(str(tmp_path / "gone.py"), None) is None


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands where the test puts it."""
    now = [0.0]
    monkeypatch.setattr("klguard.output.progress.time.monotonic", lambda: now[0])
    return now


def test_the_progress_bar_appears_only_after_a_second_and_is_wiped(clock: list[float]):
    stream = FakeTerminal()
    with Progress(stream) as progress:
        progress.update(1, 4)
        assert stream.getvalue() == ""
        clock[0] = 1.5
        progress.update(2, 4)
        assert "2/4 files, 2 s" in stream.getvalue()
    assert stream.getvalue().endswith("\r\x1b[K")


def test_the_progress_bar_keeps_its_clock_going_while_nothing_is_done(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("klguard.output.progress.DELAY", 0.01)
    monkeypatch.setattr("klguard.output.progress.INTERVAL", 0.01)
    stream = FakeTerminal()
    before = signal.getsignal(signal.SIGALRM)
    with Progress(stream):
        end = time.monotonic() + 5
        while not stream.getvalue() and time.monotonic() < end:
            pass
    assert "looking for sites" in stream.getvalue()
    assert signal.getsignal(signal.SIGALRM) == before


def test_no_progress_bar_on_a_pipe(clock: list[float]):
    stream = io.StringIO()
    with Progress(stream) as progress:
        clock[0] = 9.0
        progress.update(2, 4)
    assert stream.getvalue() == ""
