"""`klguard report`: what it prints of a journal, and its exit status. The page has tests of its own."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from klguard.cli import cli
from klguard.findings import Confidence, Finding, Measured, Severity
from klguard.guard.journal import Journal, read
from klguard.output.terminal import painter, width
from klguard.report import plot, summary, table, terminal
from klguard.report.figures import figures
from klguard.report.html import MissingPlotly
from klguard.report.violations import violations
from klguard.settings import Hop, HopKind, Place

ROOT = Path(__file__).parent.parent
PLAIN = painter(False)
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def klguard(*arguments: str) -> Result:
    result = CliRunner().invoke(cli, list(arguments), prog_name="klguard")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def finding(code: str = "KLG701", severity: Severity = Severity.ERROR, **changes: Any) -> Finding:
    given: dict[str, Any] = {
        "code": code,
        "name": "not-the-policy",
        "severity": severity,
        "confidence": Confidence.HIGH,
        "message": "the tokens were not drawn from the policy that scored them",
        "place": Place("train.py", None, 3, 5, 3, 13),
        "help": "write `top_k=0`\nor leave it out",
        "origin": (
            Hop(HopKind.LIVE, None, "written here"),
            Hop(HopKind.KWARG, Place("a.py", None, 9, 2, 9, 4), "passed"),
        ),
        "measured": Measured(30, "top_k=50", 0.973, -0.42, 0.051, 0.021),
    }
    return Finding(**(given | changes))


def write(
    path: str = "run.jsonl",
    *,
    steps: int = 40,
    found: tuple[Finding, ...] = (),
    close: bool = True,
    **more: Any,
) -> Path:
    """A run whose KL and reward rise; `found` are its violations."""
    Path("train.py").write_text("import trl\n\n    top_k=50,\n", encoding="utf-8")
    journal = Journal(path, settings={"alpha": 1e-6, "kl_range": (0.0, 10.0)})
    for step in range(steps):
        journal.step(
            {
                "step": step,
                "seconds": 60.0 * step,
                "tokens": 1024 * (step + 1),
                "ranks": 4,
                "sequences": 32,
                "kl_per_sequence": 0.1 * step,
                "kl_standard_error": 0.05,
                "reward": step / 10 - 2,
                "log_evidence": -2.0,
                "causes": {"top_k=50": 0.25},
                **more,
            }
        )
    for one in found:
        journal.violation(one)
    if close:
        journal.close()
    return Path(path)


def lines(path: Path, columns: int = 80, using: plot.Alphabet = plot.BRAILLE) -> list[str]:
    run = read(path)
    return list(terminal.render(run, violations(run), width=columns, paint=PLAIN, using=using))


# --- exit status ----------------------------------------------------------------------------------


def test_status_0_without_violations():
    write()
    result = klguard("report", "run.jsonl")
    assert result.exit_code == 0
    assert result.output.splitlines()[-1] == "Nothing found: 40 steps."


def test_status_1_with_a_violation():
    write(found=(finding(),))
    result = klguard("report", "run.jsonl")
    assert result.exit_code == 1
    assert result.output.splitlines()[-1] == "Found 1 error: 40 steps."


def test_notes_alone_do_not_fail():
    write(found=(finding(severity=Severity.NOTE),))
    result = klguard("report", "run.jsonl")
    assert result.exit_code == 0 and result.output.splitlines()[-1] == "Found 1 note: 40 steps."


def test_status_2_for_a_file_that_is_missing_or_no_journal():
    Path("train.log").write_text("loss 1.0\n")
    Path("run.jsonl").write_bytes(write("good.jsonl").read_bytes() + b"[]\n")
    for path, words in (
        ("nowhere.jsonl", "nowhere.jsonl: No such file or directory"),
        (".", ".: Is a directory"),
        ("train.log", "train.log:1: not a klguard journal: it does not begin with a `run` record"),
        (
            "run.jsonl",
            "run.jsonl:43: not a record of a klguard journal: an object with a `kind` was expected",
        ),
    ):
        result = klguard("report", path)
        assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"klguard: {words}\n")


def test_status_3_without_a_step():
    write(steps=0)
    result = klguard("report", "run.jsonl")
    assert result.exit_code == 3 and result.stderr == "klguard: run.jsonl has no step\n"
    Path("empty.jsonl").write_text("")
    assert klguard("report", "empty.jsonl").exit_code == 3


def test_a_violation_before_the_first_step_is_a_violation():
    write(steps=0, found=(finding(),))
    result = klguard("report", "run.jsonl")
    assert result.exit_code == 1 and "KLG701" in result.output


# --- what is said ---------------------------------------------------------------------------------


def test_what_run_it_is_and_how_it_ended():
    text = "\n".join(lines(write()))
    assert "steps 0 to 39, 39 min 0 s, 4 ranks, 40,960 tokens tested, 1,280 sequences" in text
    assert "KL of 0 to 10 nats per sequence, evidence below 14.61 nats (alpha 1e-06)" in text
    assert "ended     in good order" in text
    killed = lines(write("killed.jsonl", close=False))
    assert "  ended     no end record: the run was killed, or is still going" in killed
    assert (
        killed[-1]
        == "Nothing found: 40 steps. The journal has no end record: the run was killed, or is still going."
    )


def test_an_exception_that_ended_the_run_is_named():
    with pytest.raises(ZeroDivisionError), Journal("run.jsonl") as journal:
        journal.step({"step": 0})
        raise ZeroDivisionError
    assert "  ended     stopped by ZeroDivisionError" in lines(Path("run.jsonl"))


def test_resumptions_and_torn_lines_are_told():
    path = write(close=False)
    path.write_bytes(path.read_bytes()[:-10])
    with Journal(path) as journal:
        journal.step({"step": 39, "kl_per_sequence": 1.0, "seconds": 30.0})
    shown = lines(path)
    assert any("steps 0 to 39, 38 min 30 s" in line for line in shown)  # 38 minutes to step 38, and then 30 s
    assert "  journal   resumed 1 time, at step 39" in shown
    assert "  journal   1 line cut off by a kill and left out: line 41" in shown


def test_a_violation_reads_like_a_finding_of_check():
    shown = lines(write(found=(finding(),)))
    start = next(index for index, line in enumerate(shown) if line.startswith("KLG701"))
    assert shown[start : start + 12] == [
        "KLG701 [not-the-policy] error: the tokens were not drawn from the policy that scored them",
        " --> train.py:3:5",
        "  |",
        "3 |     top_k=50,",
        "  |     ^^^^^^^^",
        "  |",
        "step: 30",
        "cause: top_k=50 (posterior weight 0.973)",
        "harm: -0.42 ± 0.051 nats per sequence, worth +0.021 reward to the policy",
        "origin: written here -> passed at a.py:9:2",
        "help: write `top_k=0`",
        "      or leave it out",
    ]


def test_the_line_of_source_is_the_one_the_run_saw():
    path = write(found=(finding(),))
    Path("train.py").write_text("changed\n" * 5, encoding="utf-8")
    assert "3 |     top_k=50," in lines(path)


def test_a_report_opens_no_file_that_a_journal_names():
    Path("secret").write_text("token = 'abc'\n")
    path = write(found=(finding(place=Place("secret", None, 1, 1, 1, 6)),))
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        if record["kind"] == "violation":
            record["place"]["source"] = ""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    shown = "\n".join(lines(path))
    assert "--> secret:1:1" in shown and "abc" not in shown


def test_a_violation_without_a_place_cause_or_harm():
    bare = finding(place=Place("<unknown>", None, 1, 1, 1, 1), origin=(), measured=Measured(30))
    shown = "\n".join(lines(write(found=(bare,))))
    assert "step: 30" in shown
    for word in ("-->", "cause:", "harm:", "origin:", "unknown"):
        assert word not in shown


def test_the_same_violation_at_many_steps_is_one():
    many = tuple(finding(measured=Measured(step, "top_k=50", step / 100)) for step in (5, 9, 30))
    shown = lines(write(found=(*many, finding(code="KLG604"))))
    assert shown[-1] == "Found 2 errors: 40 steps."
    assert "step: 5 to 30, 3 times; in the words of the last" in shown
    assert "cause: top_k=50 (posterior weight 0.3)" in shown


def test_nothing_in_a_journal_moves_the_cursor():
    hostile = "\x1b[2J\x1b[31mred\r\n\u202egnp\x07"
    odd = finding(
        code=hostile,
        name=hostile,
        message=hostile,
        help=hostile,
        place=Place(hostile, None, 1, 1, 1, 1),
        origin=(Hop(HopKind.LIVE, Place(hostile, None, 1, 1, 1, 1), hostile),),
        measured=Measured(30, hostile, 0.9),
    )
    path = write(found=(odd,), causes={hostile: 0.9})
    for line in lines(path):
        assert not re.search(r"[\x00-\x1f\x7f\u202a-\u202e\u2028]", line), line


# --- the table ------------------------------------------------------------------------------------


def rows(path: Path, columns: int) -> list[str]:
    run = read(path)
    return list(table.render(run, violations(run), columns, PLAIN))


def test_a_long_run_shows_its_first_and_last_step_some_between_and_those_with_a_violation():
    path = write(steps=5000, found=(finding(measured=Measured(1234)), finding(measured=Measured(6000))))
    shown = rows(path, 80)
    steps = [int(line.split()[0]) for line in shown[2:]]
    assert steps[0] == 0 and 4999 in steps and steps == sorted(steps) and len(steps) == table.SAMPLES + 2
    assert [line for line in shown if "KLG701" in line] == [
        line for line in shown if line.split()[0] in ("1234", "6000")
    ]


def test_a_table_of_violations_at_every_step_has_an_end():
    many = tuple(finding(measured=Measured(step)) for step in range(300))
    shown = rows(write(steps=300, found=many), 80)
    assert len(shown) < 90 and shown[-1] == "and 250 more steps with a violation"


@pytest.mark.parametrize("columns", [40, 60, 80, 120, 160])
def test_a_table_fits_and_a_wider_one_says_more(columns: int):
    more = {column.field: 123456.789 for column in table.COLUMNS}
    path = write(found=(finding(),), **more)
    shown = rows(path, columns)
    assert max(map(width, shown)) <= columns
    heads = len(shown[1].split())
    assert (
        columns == 40 or heads > len(rows(path, columns - 20)[1].split()) or heads == len(table.COLUMNS) + 3
    )
    assert all(max(map(width, lines(path, wide))) <= max(wide, 95) for wide in (80, 100))


def test_points_stand_below_each_other():
    assert table.figures([1.5, None, -12.25, math.nan, math.inf]) == ["1.50", "", "-12.25", "nan", "inf"]
    assert table.figures([0.001, 0.01234]) == ["0.0010", "0.0123"]
    assert table.figures([1024.0, 2048000.0]) == ["1,024", "2,048,000"]
    assert table.figures([1e-9, 5e-7]) == ["1.00e-09", "5.00e-07"]
    assert table.figures([0.125, 1.0], share=True) == ["12.5%", "100.0%"]
    assert table.figures([0.0, None]) == ["0", ""]


# --- plots ----------------------------------------------------------------------------------------


def drawn(points: list[tuple[int, float]], **options: Any) -> list[str]:
    return list(plot.draw(points, paint=PLAIN, **options))


def test_a_plot_in_ascii():
    points = [(step, float(step)) for step in range(31)]
    assert drawn(points, band=(0.0, 10.0), marks=[15], width=36, height=7, using=plot.ASCII) == [
        "30 +                             ***",
        "   |                        *****",
        "20 +                   *****",
        "   |             ******",
        "10 +--------*****-------------------",
        "   |   *****",
        " 0 +***-----------------------------",
        "   +----------------^---------------",
        "    0                             30",
    ]


def test_dots_are_where_the_values_are():
    (top, *_, bottom, _, _) = drawn([(0, 0.0), (1, 1.0)], width=20, height=4)
    assert bottom.split("┤")[1][0] == "⡀" or bottom.split("┤")[1].startswith("⣀")
    assert top.rstrip()[-1] in "⠈⠉⠁"


def test_a_value_that_is_not_finite_leaves_a_gap():
    points = [(step, math.nan if 10 <= step < 20 else 1.0) for step in range(30)]
    (line,) = [line for line in drawn(points, width=36, height=3, using=plot.ASCII) if "*" in line]
    assert re.search(r"\*{9,} {9,}\*{9,}", line)
    assert drawn([(0, math.nan), (1, math.inf)]) == []
    assert drawn([]) == []


def test_flagged_values_are_red():
    points = [(0, 5.0), (1, 5.0), (2, 30.0)]
    painted = "".join(plot.draw(points, flagged={2}, width=30, height=8, paint=painter(True)))
    assert painted.count("\x1b[31;1m") == 1 and "\x1b[36m" in painted
    assert "\x1b[31;1m" not in "".join(plot.draw(points, width=30, height=8, paint=painter(True)))


def test_a_step_is_outside_of_the_band_only_beyond_three_standard_errors():
    with Journal("run.jsonl", settings={"kl_range": (0.0, 10.0)}) as journal:
        for step, (kl, error) in enumerate(
            [(-0.5, 0.2), (-0.7, 0.2), (10.5, 0.2), (10.7, 0.2), (-0.1, None), (5, 9)]
        ):
            journal.step({"step": step, "kl_per_sequence": kl, "kl_standard_error": error})
    assert summary.outside(read("run.jsonl")) == {1, 3, 4}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-(2**53), 2**53), st.floats(allow_nan=True, allow_infinity=True)), max_size=30
    ),
    st.sampled_from([None, (0.0, 10.0), (-math.inf, 3.0), (0.0, 1e308)]),
    st.integers(20, 120),
    st.integers(2, 12),
    st.sampled_from([plot.BRAILLE, plot.ASCII]),
)
def test_any_values_are_drawn_within_the_width(
    points: list[tuple[int, float]],
    band: tuple[float, float] | None,
    columns: int,
    rows: int,
    using: plot.Alphabet,
):
    points = sorted(points, key=lambda point: point[0])
    shown = drawn(points, band=band, width=columns, height=rows, using=using)
    if not any(math.isfinite(value) for _, value in points):
        assert shown == []
        return
    assert len(shown) == rows + 2
    body = shown[:-1]  # the numbers of steps below may be long
    assert max(map(width, body)) <= max(columns, 24)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "nonsense", None])
def test_an_encoding_without_braille_gets_ascii(encoding: str | None):
    assert plot.alphabet(encoding) is plot.ASCII
    assert all(line.isascii() for line in lines(write(found=(finding(),)), using=plot.ASCII))


def test_an_encoding_with_braille_gets_it():
    assert plot.alphabet("utf-8") is plot.BRAILLE
    assert any("⣀" <= char <= "⣿" for line in lines(write()) for char in line)


# --- as a program ---------------------------------------------------------------------------------


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, "-m", "klguard", *arguments], capture_output=True, env=environment)


def test_a_pipe_in_latin_1_and_one_in_utf_8():
    write(found=(finding(),))
    plain = process("report", "run.jsonl", PYTHONIOENCODING="latin-1")
    assert plain.returncode == 1 and plain.stdout.isascii()
    rich = process("report", "run.jsonl", PYTHONIOENCODING="utf-8").stdout.decode()
    assert "▲" in rich and not ESCAPE.search(rich)


def test_colour_is_given_on_demand_and_changes_no_word():
    write(found=(finding(),))
    plain, colored = (klguard("report", "run.jsonl", "--color", when).output for when in ("never", "always"))
    assert not ESCAPE.search(plain) and ESCAPE.search(colored)
    assert ESCAPE.sub("", colored) == plain


def test_the_width_is_that_of_the_terminal():
    write(**{column.field: 1.5 for column in table.COLUMNS})
    narrow, wide = (process("report", "run.jsonl", COLUMNS=columns).stdout for columns in ("80", "140"))
    assert max(len(line) for line in narrow.decode().splitlines()[7:30]) <= 80
    assert 80 < max(len(line) for line in wide.decode().splitlines()[7:30]) <= 140


def test_json_is_strict_and_sums_the_run_up():
    write(found=(finding(),), reward=math.nan, loss=math.inf)
    result = klguard("report", "run.jsonl", "--output-format", "json")

    def refuse(token: str) -> None:
        raise AssertionError(token)

    document = json.loads(result.output, parse_constant=refuse)
    assert result.exit_code == 1 and document["schema"] == 1
    assert (document["outcome"], document["ended"], document["steps"]) == ("violations", "finished", 40)
    assert (document["first_step"], document["last_step"]) == (0, 39)
    kl = document["figures"]["kl_per_sequence"]
    assert (kl["first"], kl["lowest"], kl["not_finite"]) == (0.0, 0.0, 0)
    assert kl["highest"] == kl["last"] == pytest.approx(3.9) and kl["mean"] == pytest.approx(1.95)
    assert document["figures"]["reward"] == {
        "first": None, "last": None, "lowest": None, "highest": None, "mean": None, "not_finite": 40
    }  # fmt: skip
    (violation,) = document["violations"]
    assert violation["harm"]["nats_per_sequence"] == -0.42 and violation["cause"] == "top_k=50"


def test_with_a_page_only_the_last_word_is_printed():
    pytest.importorskip("plotly", reason="plotly (the report extra) is not installed")
    write(found=(finding(),))
    result = klguard("report", "run.jsonl", "--html", "page.html")
    assert result.exit_code == 1 and result.stderr == "klguard: wrote page.html\n"
    assert (
        result.stdout.splitlines()[-1] == "Found 1 error: 40 steps." and len(result.stdout.splitlines()) == 7
    )
    assert "not-the-policy" in Path("page.html").read_text(encoding="utf-8")


def test_without_plotly_one_error_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    write()
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    result = klguard("report", "run.jsonl", "--html", "page.html")
    assert result.exit_code == 2 and result.stdout == "" and not Path("page.html").exists()
    assert result.stderr == (
        "klguard: a page needs plotly, which is not installed: pip install 'klguard[report]'\n"
    )
    assert issubclass(MissingPlotly, RuntimeError)


def test_a_page_that_cannot_be_written_is_one_error():
    pytest.importorskip("plotly", reason="plotly (the report extra) is not installed")
    write()
    result = klguard("report", "run.jsonl", "--html", "nowhere/page.html")
    assert result.exit_code == 2
    assert result.stderr == "klguard: nowhere/page.html: cannot be written: No such file or directory\n"


# --- anything at all ------------------------------------------------------------------------------

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
STEP_FIELDS = st.sampled_from([*(column.field for column in table.COLUMNS), "causes", "seconds", "ranks"])
VIOLATION_FIELDS = st.sampled_from(
    [
        "step",
        "code",
        "name",
        "severity",
        "confidence",
        "message",
        "help",
        "cause",
        "weight",
        "harm",
        "place",
        "origin",
    ]
)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["alpha", "kl_range", "seed"]), ANYTHING),
    st.lists(st.dictionaries(STEP_FIELDS, ANYTHING, max_size=5), max_size=4),
    st.lists(st.dictionaries(VIOLATION_FIELDS, ANYTHING, max_size=8), max_size=3),
)
def test_no_journal_however_odd_breaks_a_report(
    tmp_path_factory: pytest.TempPathFactory, header: dict, steps: list[dict], found: list[dict]
):
    path = tmp_path_factory.mktemp("odd") / "run.jsonl"
    records = [
        {"kind": "run", "schema": 1, "settings": header, "started": header.get("seed")},
        *({**step, "kind": "step", "step": number} for number, step in enumerate(steps)),
        *({**one, "kind": "violation"} for one in found),
        {"kind": "end", "outcome": header.get("seed")},
    ]
    path.write_text(
        "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records), encoding="utf-8"
    )
    for line in lines(path):
        line.encode("utf-8", errors="backslashreplace")
    status = klguard("report", str(path), "--output-format", "json").exit_code
    assert status == (3 if not steps and not found else status)
    assert status in (0, 1, 3)
    run = read(path)
    json.dumps(figures(run, violations(run)), allow_nan=False)
