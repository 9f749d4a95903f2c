"""Files that are Python to somebody: exported notebooks with their shell commands, f-strings of Python 3.12."""

from __future__ import annotations

import ast
import sys

import pytest

from klguard.check import check_source
from klguard.read.f_strings import with_empty_f_strings
from klguard.read.notebook import without_shell_commands

ROLLOUT = """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

policy = AutoModelForCausalLM.from_pretrained("gpt2")
tokenizer = AutoTokenizer.from_pretrained("gpt2")
optimizer = torch.optim.AdamW(policy.parameters())
inputs = tokenizer("Once", return_tensors="pt")
drawn = policy.generate(**inputs, do_sample=True, top_k=40, max_new_tokens=8)
logits = policy(drawn).logits
loss = -torch.log_softmax(logits, -1).gather(-1, drawn[..., None]).mean()
loss.backward()
optimizer.step()
"""


def codes(text: str) -> set[str]:
    return {finding.code for finding in check_source(text, "train.py")}


@pytest.mark.parametrize(
    "lines",
    [
        "!pip install trl\n",
        "%cd work\n%matplotlib inline\n",
        "files = !ls\n",
        "if True:\n    !pip install \\\n        trl\n",
    ],
)
def test_an_exported_notebook_is_checked_without_its_shell_commands(lines: str):
    told = codes(lines + ROLLOUT)
    assert "KLG101" in told
    assert "KLG001" not in told


@pytest.mark.parametrize(
    "lines", ["!pip install trl\nx = (\n", "x = 1 +\n", "helps?\n", "/f x\n", "!ls\n  x = 1\n"]
)
def test_what_no_reading_makes_python_stays_an_error(lines: str):
    assert codes(lines + ROLLOUT) == {"KLG001"}


def test_lines_of_expressions_and_strings_are_no_commands():
    text = 'x = (7\n    % 4)\ns = """\n!pip install trl\n"""\n'
    assert without_shell_commands(text) == text


@pytest.mark.parametrize(
    "line",
    [
        'print(f"{row["text"]}")',
        'print(f"{row.get("a", "")} of {names["b"]!r:>{width["c"]}} é {row["é"]}")',
        "print(rf'\\d{row['a']}', f'{{literal}} {row['b']}')",
        'print(f"{f"{row["deep"]}"}")',
        'print(f"""{row["text"]} and {row["""x"""]}""")',
        'print(f"{\', \'.join(names)} {row["a"]}")',
    ],
)
def test_quotes_inside_the_braces_of_an_f_string(line: str):
    told = codes(line + "\n" + ROLLOUT)
    assert "KLG101" in told
    assert "KLG001" not in told
    plain = with_empty_f_strings(line)
    assert len(plain) == len(line)
    ast.parse(plain)


@pytest.mark.parametrize(
    "text",
    [
        "f\"{row['a']}\"",
        "f'{{not a field}}' '\\'' \"#\"  # it's a comment",
        "x = prefix['f'] + \"f'{\" + 'it\\'s'",
        '"""doc f"{a["b"]}" """\n',
    ],
)
def test_other_strings_are_left_as_they_are(text: str):
    assert with_empty_f_strings(text) == text


def test_places_behind_such_a_string_are_those_of_the_file():
    line = 'name = f"é{row["é"]}"; ' + "drawn = policy.generate(**inputs, do_sample=True, top_k=40)\n"
    text = ROLLOUT.replace(
        "drawn = policy.generate(**inputs, do_sample=True, top_k=40, max_new_tokens=8)\n", line
    )
    found = next(f for f in check_source(text, "train.py") if f.code == "KLG101")
    row = text.split("\n")[found.place.line - 1]
    assert row[found.place.column - 1 :].startswith(("40", "top_k=40"))


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python 3.12 names other errors")
def test_the_error_that_is_told_is_that_of_the_file():
    text = 'x = f"{row["a"]}"\ny = (\n'
    found = next(f for f in check_source(text, "train.py") if f.code == "KLG001")
    assert found.place.line == 1
