"""Suppressions: where a comment may stand, what it may say, and when it is not needed."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klguard.findings import Confidence, Finding, Severity, SiteRef
from klguard.read.files import SourceText, read_text
from klguard.settings import Context, Hop, HopKind, Place
from klguard.suppress import Applied, Suppression, apply, read_suppressions

RULES = {"KLG002": "unreadable-file", "KLG004": "unused-suppression", "KLG101": "top-k", "KLG103": "top-p"}


def source(text: str, path: str = "train.py") -> SourceText:
    read = read_text(text, path)
    assert isinstance(read, SourceText)
    return read


def notebook(*cells: str) -> SourceText:
    made = [{"cell_type": "code", "source": cell} for cell in cells]
    return source(json.dumps({"cells": made}), "train.ipynb")


def place(lines: int | tuple[int, int], path: str = "train.py", cell: int | None = None) -> Place:
    first, last = (lines, lines) if isinstance(lines, int) else lines
    return Place(path, cell, first, 1, last, 80)


def finding(
    where: Place, *, site: Place | None = None, origin: tuple[Place, ...] = (), code: str = "KLG101"
) -> Finding:
    reference = site and SiteRef(site, "model.generate", "transformers", Context.ROLLOUT)
    hops = tuple(Hop(HopKind.LITERAL, hop, "top_k=50") for hop in origin)
    high = Confidence.HIGH
    return Finding(code, RULES[code], Severity.ERROR, high, "message", where, site=reference, origin=hops)


def applied(findings, *sources: SourceText, enabled=frozenset(RULES)) -> Applied:
    return apply(
        findings,
        {read.path: read_suppressions(read) for read in sources},
        rules=RULES,
        checked={read.path for read in sources},
        enabled_for=lambda path: enabled,
    )


def suppresses(text: str, made: Finding) -> bool:
    return applied([made], source(text)).suppressed == 1


# --- where it may stand -----------------------------------------------------------------------------------

CALL = """\
kw = {
    "top_k": 50,
    "top_p": 1.0,
}
x = 1
out = model.generate(
    **kw,
    do_sample=True,
)
y = 2
"""
MADE = finding(place(2), site=place((6, 9)), origin=(place(2), place(7)))


def commented(line: int) -> str:
    lines = CALL.split("\n")
    lines[line - 1] += "  # klguard: ignore[KLG101] intended"
    return "\n".join(lines)


@pytest.mark.parametrize("line", [2, 6, 7, 8, 9])
def test_a_comment_on_any_line_that_the_finding_touches_counts(line):
    assert suppresses(commented(line), MADE)


@pytest.mark.parametrize("line", [1, 4])
def test_a_comment_on_the_first_or_last_line_of_a_statement_counts_for_all_of_it(line):
    assert suppresses(commented(line), MADE)


@pytest.mark.parametrize("line", [3, 5, 10])
def test_a_comment_on_another_line_does_not_count(line):
    assert not suppresses(commented(line), MADE)


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        pytest.param("{}\nout = f(\n  1,\n)\n", True, id="above the statement"),
        pytest.param("{}\n# more\nout = f(\n  1,\n)\n", True, id="above another comment"),
        pytest.param("{}\n\nout = f(\n  1,\n)\n", False, id="above a blank line"),
        pytest.param("if a:\n  {}\n  out = f(\n  1)\n", True, id="in a block"),
        pytest.param("out = g(\n  {}\n  1,\n  2)\n", True, id="above a line inside a statement"),
        pytest.param("out = g(\n  {}\n  # more\n  1,\n  2)\n", True, id="above a comment inside a statement"),
        pytest.param("out = g(\n  0,\n  1,\n  {}\n  2)\n", False, id="below the line"),
        pytest.param("out = f(\n  1,\n)\n{}\n", False, id="below the statement"),
    ],
)
def test_a_comment_on_a_line_of_its_own_counts_for_what_is_below_it(text, counts):
    text = text.format("# klguard: ignore[top-k]")
    line = next(number for number, line in enumerate(text.split("\n"), 1) if "1" in line)
    assert suppresses(text, finding(place(line))) is counts


def test_a_comment_above_a_block_counts_for_its_head_only():
    text = "# klguard: ignore[top-k]\nfor x in y:\n    f(x)\n"
    assert suppresses(text, finding(place(2)))
    assert not suppresses(text, finding(place(3)))


def test_a_comment_where_the_value_was_written_counts_for_a_call_in_another_file():
    constants = source("TOP_K = 50  # klguard: ignore[top-k]\n", "constants.py")
    made = finding(place(3), site=place(3), origin=(place(1, "constants.py"), place(3)))
    assert applied([made], constants).suppressed == 1


def test_a_comment_for_the_file_counts_for_what_is_written_or_called_there():
    constants = source("# klguard: ignore-file[top-k] sweeps\n\nTOP_K = 50\n", "constants.py")
    there = place(3, "constants.py")
    assert applied([finding(there), finding(place(1), site=there)], constants).suppressed == 2
    assert applied([finding(place(1), site=place(1), origin=(there,))], constants).suppressed == 0


def test_a_comment_at_a_related_place_counts():
    made = replace(finding(place(9)), related=(place(1),))
    assert suppresses("ref = model  # klguard: ignore[top-k]\n", made)


def test_in_a_notebook_a_comment_counts_in_its_own_cell():
    read = notebook("x = 1\ny = f(1)  # klguard: ignore[top-k]", "!ls\n# klguard: ignore[top-p]\nz = f(\n1)")
    assert [(s.place.cell, s.place.line, s.lines) for s in read_suppressions(read)] == [
        (0, 2, (2, 2)),
        (1, 2, (2, 4)),
    ]
    made = [
        finding(place(2, "train.ipynb", 0)),
        finding(place(2, "train.ipynb", 1)),
        finding(place(4, "train.ipynb", 1), code="KLG103"),
    ]
    result = applied(made, read)
    assert (result.kept, result.suppressed, result.unused) == ([made[1]], 2, [])


# --- what it may say --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "comment",
    [
        "# klguard: ignore[KLG101]",
        "# klguard: ignore[top-k]",
        "#klguard:ignore[ klg101 ] for the paper",
        "# KLGuard: Ignore [top-p, Top-K] see #12",
        "# noqa: E501  # klguard: ignore[top-k]  # type: ignore",
        "# klguard: ignore[top-p] # klguard: ignore[top-k]",
    ],
)
def test_rules_are_named_by_code_or_name_among_other_comments(comment):
    assert suppresses(f"f()  {comment}\n", finding(place(1)))


def test_the_reason_is_kept():
    [suppression] = read_suppressions(source("f()  # klguard: ignore[top-k] sweep, see #12  # noqa\n"))
    assert suppression.reason == "sweep, see #12"
    assert (suppression.place.column, suppression.place.end_column) == (6, 45)


def test_only_the_rules_that_are_named_are_suppressed():
    made = [finding(place(1)), finding(place(1), code="KLG103")]
    assert applied(made, source("f()  # klguard: ignore[top-k]\n")).kept == made[1:]


@pytest.mark.parametrize(
    "text",
    [
        's = "# klguard: ignore[top-k]"\n',
        'f("""\n# klguard: ignore[top-k]\n""")\n',
        "# the klguard: ignored ones\n",
        "# klguard: see the guide\n",
        "klguard: ignore\n",
    ],
)
def test_strings_and_prose_are_not_instructions(text):
    assert read_suppressions(source(text)) == []


@pytest.mark.parametrize(
    ("comment", "fault"),
    [
        ("# klguard: ignore", "names no rule"),
        ("# klguard: ignore[]", "names no rule"),
        ("# klguard: ignore top-k", "names no rule"),
        ("# klguard: ignore-file", "names no rule"),
        ("# klguard: noqa[top-k]", "is not understood"),
        ("# klguard: ingore[top-k]", "is not understood"),
    ],
)
def test_a_comment_that_names_no_rule_or_says_it_wrongly_suppresses_nothing_and_is_reported(comment, fault):
    made = finding(place(1))
    result = applied([made], source(f"f()  {comment}\n"))
    assert result.kept == [made]
    [unused] = result.unused
    assert unused.message.startswith(f"`{comment}` {fault}: write `# klguard: ignore")
    assert (unused.code, unused.place.line, unused.place.column) == ("KLG004", 1, 6)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("topk", "unknown rule `topk`; did you mean `top-k`?"),
        ("xyz", "unknown rule `xyz`"),
        ("KLG1", "`KLG1` is more than one rule: name each that is meant"),
        ("ALL", "`ALL` is more than one rule: name each that is meant"),
    ],
)
def test_an_unknown_rule_is_reported_with_the_nearest(rule, message):
    result = applied([finding(place(1))], source(f"f()  # klguard: ignore[{rule}]\n"))
    assert [unused.message for unused in result.unused] == [message]


# --- when it is not needed --------------------------------------------------------------------------------


def test_what_suppresses_nothing_is_reported_and_what_is_used_is_not():
    result = applied([finding(place(1))], source("f()  # klguard: ignore[top-k, top-p]\n"))
    assert [(f.code, f.name, f.message) for f in result.unused] == [
        ("KLG004", "unused-suppression", "`top-p` suppresses nothing here")
    ]
    result = applied([], source("# klguard: ignore-file[top-k, KLG103]\n"))
    assert [f.message for f in result.unused] == ["`top-k` and `KLG103` suppress nothing in this file"]


def test_one_comment_may_serve_several_findings_and_several_comments_one():
    text = "f()  # klguard: ignore[top-k]\n# klguard: ignore[top-k]\ng()\n"
    result = applied([finding(place(1), site=place(3)), finding(place(1))], source(text))
    assert (result.suppressed, result.unused) == (2, [])


def test_a_comment_for_a_rule_that_is_not_selected_may_be_needed_in_another_run():
    read = source("f()  # klguard: ignore[top-k]\n")
    assert applied([], read, enabled={"KLG004", "KLG103"}).unused == []
    assert applied([], read, enabled={"KLG101"}).unused == []
    assert len(applied([], read, enabled={"KLG101", "KLG004"}).unused) == 1


def test_the_comments_of_a_file_that_was_not_checked_or_could_not_be_are_not_judged():
    read = source("f()  # klguard: ignore[top-k]\n")
    suppressions = {"train.py": read_suppressions(read)}
    options = {"rules": RULES, "enabled_for": lambda path: set(RULES)}
    assert apply([], suppressions, checked=(), **options).unused == []
    broken = finding(place(1), code="KLG002")
    assert apply([broken], suppressions, checked=["train.py"], **options).unused == []


def test_an_unused_suppression_may_itself_be_suppressed():
    result = applied([], source("f()  # klguard: ignore[top-k, KLG004] comes and goes\n"))
    assert (result.unused, result.suppressed) == ([], 1)
    text = "# klguard: ignore-file[unused-suppression]\n\nf()  # klguard: ignore[top-k]\n"
    result = applied([], source(text))
    assert (result.unused, result.suppressed) == ([], 1)


# --- broken text ------------------------------------------------------------------------------------------


def test_in_text_that_is_not_python_lines_count_for_themselves_and_the_line_below():
    text = "top_k: '50  # klguard: ignore[top-k]\n  # klguard: ignore[top-p]\nx: (\n"
    assert [suppression.lines for suppression in read_suppressions(source(text))] == [(1, 1), (2, 3)]


PIECES = st.sampled_from(
    ["# klguard: ignore[top-k]", "# klguard: ignore", "klguard:", "ignore-file[", "    ", '"""', "if x:"]
    + list("\n()x'\\\x0c\t\u2028é#]")
)


@settings(deadline=None)
@given(st.lists(PIECES, max_size=30).map("".join))
def test_comments_of_any_text_are_read_and_lie_where_they_say(text):
    lines = text.split("\n")
    for suppression in read_suppressions(source(text)):
        where = suppression.place
        written = lines[where.line - 1][where.column - 1 : where.end_column - 1]
        assert re.match(r"(?i)#\s*klguard", written)
        if suppression.lines is not None:
            assert suppression.lines[0] <= where.line <= suppression.lines[1]
    assert isinstance(Suppression(place(1)).covers(place(1)), bool)
