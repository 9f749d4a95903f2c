"""Notebooks: what of a cell is Python, and that no line or column moves."""

from __future__ import annotations

import ast
import json
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from klguard.read.notebook import NotANotebook, keep_python, parse


def notebook(*cells: str | dict, **metadata) -> str:
    made = [c if isinstance(c, dict) else {"cell_type": "code", "source": c.splitlines(True)} for c in cells]
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": made})


needs_digit_limit = pytest.mark.skipif(
    not hasattr(sys, "get_int_max_str_digits"), reason="this Python converts integers of any length"
)

MARKDOWN = {"cell_type": "markdown", "source": ["# Title\n", "%time is not code here"]}


# --- magics -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        pytest.param("%matplotlib inline\n", "pass\n", id="a line magic"),
        pytest.param("!pip install trl\n", "pass\n", id="a shell command"),
        pytest.param("!!ls\n", "pass\n", id="a shell command that captures"),
        pytest.param("?print\n", "pass\n", id="help before a name"),
        pytest.param("print?\n", "pass\n", id="help after a name"),
        pytest.param("model.generate??\n", "pass\n", id="source of an attribute"),
        pytest.param("%pip?\n", "pass\n", id="help on a magic"),
        pytest.param("if x:\n    !ls\n", "if x:\n    pass\n", id="indentation is kept"),
        pytest.param("!pip install \\\n  trl \\\n  vllm\nx\n", "pass\n\n\nx\n", id="a continued command"),
        pytest.param("files = !ls\n", "files = get_ipython()\n", id="the output of a command"),
        pytest.param("out = %sql select 1\n", "out = get_ipython()\n", id="the value of a magic"),
        pytest.param("self.x[0] =!ls\n", "self.x[0] =get_ipython()\n", id="into an attribute"),
        pytest.param("%time kw['top_k'] = 5\n", "pass; kw['top_k'] = 5\n", id="%time keeps its statement"),
        pytest.param("%timeit -n 10 -r3 f(x)\n", "pass;             f(x)\n", id="options of %timeit"),
        pytest.param("%time for x in y: f(x)\n", "pass\n", id="%time of a compound statement"),
        pytest.param("%time\n", "pass\n", id="%time alone"),
    ],
)
def test_what_only_ipython_understands_becomes_a_statement_of_as_many_lines(source, kept):
    assert keep_python(source) == kept


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("x = (a\n% b)\n", id="inside brackets"),
        pytest.param("x = '''\n%time\n!ls\n'''\n", id="inside a triple-quoted string"),
        pytest.param('x = """a \\""" b\n!ls"""\n', id="after an escaped quote"),
        pytest.param("x = a \\\n% b\n", id="after a backslash"),
        pytest.param("x = f(')')  # (\ny = [1,\n%\n2]\n", id="brackets in strings and comments do not count"),
        pytest.param("print('100%=!')\nx != y\nx %= 3\n", id="operators"),
        pytest.param("# why?\n", id="a question in a comment"),
        pytest.param("x = '%time' # %time\n", id="the words in a string and a comment"),
    ],
)
def test_python_that_looks_like_a_magic_is_kept(source):
    assert keep_python(source) == source


@pytest.mark.parametrize("magic", ["%%time", "%%capture out", "%%timeit -n 1", "%%prun"])
def test_the_body_of_a_cell_magic_that_runs_python_is_kept(magic):
    assert keep_python(f"\n# a title\n{magic}\nx = 1\n") == "\n# a title\n\nx = 1\n"


@pytest.mark.parametrize("magic", ["%%bash", "%%writefile train.py", "%%html", "%%!", "%%javascript"])
def test_the_body_of_any_other_cell_magic_is_left_blank(magic):
    assert keep_python(f"{magic}\nx = 1\ny = 2\n") == "\n\n\n"


def test_cell_magics_may_follow_each_other():
    assert keep_python("%%time\n%%capture\n!ls\nx = 1\n") == "\n\npass\nx = 1\n"
    assert keep_python("%%time\n%%bash\nls\n") == "\n\n\n"


PIECES = st.sampled_from(
    [*"%!?=\\\n ()[]'\"#;,xé\x0c\u2028", "%%", "    ", '"""', "'''", "time", "bash", "if 1:", "f'{", "}'"]
)


@settings(deadline=None)
@given(st.lists(PIECES, max_size=40).map("".join))
def test_no_cell_loses_or_gains_a_line(source):
    assert keep_python(source).count("\n") == source.count("\n")


@pytest.mark.filterwarnings("ignore")
@settings(deadline=None)
@given(st.lists(PIECES, max_size=40).map("".join))
@example("    \fx")
def test_a_cell_that_is_python_stays_as_it_is(source):
    try:
        ast.parse(source)
    except (SyntaxError, ValueError):
        return
    assert keep_python(source) == source


# --- the document -----------------------------------------------------------------------------------------


def test_cells_are_joined_in_order_and_found_again_by_their_index_among_all_cells():
    read = parse(notebook("a = 1", MARKDOWN, "b = 2\nc = 3\n", {"cell_type": "raw", "source": "d"}, "e = 5"))
    assert read.text == "a = 1\nb = 2\nc = 3\ne = 5\n"
    assert [(c.index, c.first_line, c.lines) for c in read.cells] == [(0, 1, 1), (2, 2, 2), (4, 4, 1)]


def test_a_cell_that_is_not_python_is_left_blank_and_reported_and_the_others_still_count():
    read = parse(notebook("a = 1", "x = 1\nprint 'two'\n", "b = 2"))
    assert read.text == "a = 1\n\n\nb = 2\n"
    assert read.original == "a = 1\nx = 1\nprint 'two'\nb = 2\n"
    assert [(bad.cell, bad.line) for bad in read.bad] == [(1, 2)]


@pytest.mark.parametrize(
    "source",
    ["await model.generate()", "async with a as b: pass", "match x:\n    case 1: pass"],
)
def test_an_await_at_the_top_level_and_newer_statements_are_python(source):
    assert not parse(notebook(source)).bad


def test_a_cell_in_the_grammar_of_a_newer_python_costs_that_cell_only():
    read = parse(notebook("a = 1", "type X = int", "b = 2"))
    assert [bad.cell for bad in read.bad] == ([] if sys.version_info >= (3, 12) else [1])
    assert read.text.startswith("a = 1\n") and read.text.endswith("b = 2\n")
    ast.parse(read.text)


@pytest.mark.parametrize("source", ["(" * 3000, "x = " + "[" * 500 + "]" * 500, "\0", "\t\x0c)", "x = 'a"])
def test_whatever_is_in_a_cell_ends_in_an_answer(source):
    read = parse(notebook(source))
    assert read.text.count("\n") == 1


def test_a_cell_is_a_string_or_a_list_of_lines_and_ends_lines_as_it_likes():
    cells = [{"cell_type": "code", "source": source} for source in ("a = 1\r\nb = 2\rc = 3", ["d\n", "e"])]
    assert parse(notebook(*cells)).text == "a = 1\nb = 2\nc = 3\nd\ne\n"


def test_half_a_surrogate_pair_does_not_reach_the_text():
    assert parse(notebook("x = '\ud800'")).text == "x = '?'\n"


@pytest.mark.parametrize("source", [None, 3, {"a": 1}, [1, None]])
def test_a_cell_without_text_is_an_empty_line(source):
    assert parse(notebook({"cell_type": "code", "source": source})).text == "\n"


def test_version_3_keeps_cells_in_worksheets_and_says_input():
    code = {"cell_type": "code", "input": ["a = 1\n"], "language": "python"}
    cells = [{"cell_type": "heading", "source": "t"}, code]
    read = parse(json.dumps({"nbformat": 3, "worksheets": [{"cells": cells}]}))
    assert (read.text, read.cells[0].index) == ("a = 1\n", 1)


@pytest.mark.parametrize(
    "metadata",
    [{"language_info": {"name": "R"}}, {"kernelspec": {"language": "julia"}}],
)
def test_a_notebook_in_another_language_has_no_python(metadata):
    assert parse(notebook("x <- 1 +", **metadata)).text == "\n"
    assert not parse(notebook("x <- 1 +", **metadata)).bad


def test_a_cell_in_another_language_has_no_python():
    shell = {"cell_type": "code", "source": "ls -l", "metadata": {"vscode": {"languageId": "shellscript"}}}
    assert parse(notebook(shell, "a = 1")).text == "\na = 1\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ('{\n"cells": [,]}', 2),
        ("[]", 1),
        ("null", 1),
        ("{}", 1),
        ('{"cells": 3}', 1),
        ('{"worksheets": [3]}', 1),
        ('{"worksheets": 3}', 1),
        ("[" * 100_000, 1),
        pytest.param('{"cells": [' + "9" * 5000 + "]}", 1, marks=needs_digit_limit),
    ],
)
def test_what_is_not_a_notebook_is_refused_with_a_place(text, line):
    with pytest.raises(NotANotebook) as error:
        parse(text)
    assert error.value.line == line


KEYS = st.sampled_from("cells cell_type source metadata worksheets input language_info name vscode".split())
JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.just("code"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=6,
)


@settings(deadline=None)
@given(st.dictionaries(KEYS, JSON | st.lists(st.dictionaries(KEYS, JSON, max_size=4), max_size=3)))
def test_any_json_is_a_notebook_or_is_refused(document):
    try:
        read = parse(json.dumps(document))
    except NotANotebook:
        return
    assert read.text.count("\n") == read.original.count("\n") == sum(cell.lines for cell in read.cells)
    ast.parse(read.text)


@pytest.mark.parametrize(
    "source, kept",
    [
        ("    x = 1\n    y = 2\n", "x = 1\ny = 2\n"),
        ("\n  if x:\n      y = 1\nz = 2\n", "\nif x:\n    y = 1\nz = 2\n"),
        ("\tx = 1\n", "x = 1\n"),
        ("if x:\n    y = 1\n", "if x:\n    y = 1\n"),
        ("    # a remark\nx = 1\n", "    # a remark\nx = 1\n"),
        ("    #", "    #"),
    ],
)
def test_a_cell_that_is_indented_as_a_whole_is_python(source, kept):
    assert keep_python(source) == kept


def test_quotes_inside_the_braces_of_an_f_string_are_no_mistake_of_a_cell():
    """An interpreter before 3.12 does not read them; klguard does under each, with the places of the cell."""
    cell = "print(f'{row['text']}')\nmodel.generate(ids, do_sample=True)\n"
    found = parse(json.dumps({"cells": [{"cell_type": "code", "source": cell}], "metadata": {}}))
    assert found.bad == ()
    assert found.text.splitlines()[1] == cell.splitlines()[1]
    assert found.original == cell
