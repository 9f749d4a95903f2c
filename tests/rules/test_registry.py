"""The registry: every rule is found by itself, and has what users are promised of it."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from pathlib import Path

import pytest

from klguard.findings import Severity
from klguard.rules import RULES, find, page
from klguard.rules.pages import pages

CODES = {
    "KLG001": "syntax-error",
    "KLG002": "unreadable-file",
    "KLG003": "unresolved-settings",
    "KLG004": "unused-suppression",
    "KLG005": "invalid-config",
    "KLG101": "top-k",
    "KLG102": "implicit-top-k",
    "KLG103": "top-p",
    "KLG104": "min-p",
    "KLG105": "entropy-cutoff",
    "KLG106": "temperature",
    "KLG107": "repetition-penalty",
    "KLG108": "ngram-ban",
    "KLG109": "token-ban",
    "KLG110": "forced-token",
    "KLG111": "logits-processor",
    "KLG112": "raw-logprobs",
    "KLG201": "greedy",
    "KLG202": "beam-search",
    "KLG203": "contrastive",
    "KLG204": "fixed-seed",
    "KLG301": "min-length",
    "KLG302": "min-new-tokens",
    "KLG303": "eos-ignored",
    "KLG304": "implicit-length",
    "KLG305": "pad-token",
    "KLG306": "padding-side",
    "KLG307": "attention-mask",
    "KLG308": "length-decay",
    "KLG309": "pad-is-eos-mask",
    "KLG310": "unshifted-log-probs",
    "KLG401": "reference-is-policy",
    "KLG402": "no-reference",
    "KLG403": "kl-coefficient",
    "KLG404": "kl-target",
    "KLG405": "kl-estimator",
    "KLG406": "trainable-reference",
    "KLG407": "dropout",
    "KLG408": "kl-twice",
    "KLG409": "group-of-one",
    "KLG410": "turned-objective",
    "KLG411": "adapter-reference",
    "KLG501": "inherited-settings",
    "KLG502": "checkpoint-config",
    "KLG503": "overwritten-settings",
    "KLG504": "unknown-setting",
    "KLG505": "wrong-off-value",
    "KLG506": "framework-defaults",
}
HEADINGS = ["What it does", "Why it breaks the KL", "Example", "Use instead", "References"]
SEVERITIES = {
    "KLG003": Severity.NOTE, "KLG004": Severity.WARNING, "KLG112": Severity.WARNING, "KLG204": Severity.WARNING,
    "KLG303": Severity.NOTE,
    "KLG304": Severity.WARNING,
    "KLG305": Severity.WARNING, "KLG307": Severity.WARNING, "KLG309": Severity.WARNING,
    "KLG310": Severity.WARNING,
    "KLG404": Severity.WARNING, "KLG405": Severity.WARNING, "KLG407": Severity.WARNING,
    "KLG408": Severity.WARNING, "KLG409": Severity.WARNING, "KLG410": Severity.WARNING, "KLG411": Severity.NOTE,
    "KLG504": Severity.WARNING,
}  # fmt: skip

every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.code)


def test_every_rule_of_the_tables_exists_under_its_name():
    assert {code: rule.name for code, rule in RULES.items()} == CODES


def test_codes_come_in_order_and_names_are_unique():
    assert list(RULES) == sorted(RULES)
    assert len({rule.name for rule in RULES.values()}) == len(RULES)


def test_severities_are_those_of_the_tables():
    assert {c: r.severity for c, r in RULES.items() if r.severity is not Severity.ERROR} == SEVERITIES


@every_rule
def test_a_name_is_in_kebab_case_and_names_the_file(rule):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", rule.name)
    assert type(rule).__module__ == f"klguard.rules.{rule.name.replace('-', '_')}"


@every_rule
def test_a_page_has_every_heading_once_and_in_order(rule):
    assert re.findall(r"^## (.+)$", page(rule), re.MULTILINE) == HEADINGS


@every_rule
def test_a_page_opens_with_one_sentence_and_has_no_empty_section(rule):
    text = inspect.cleandoc(rule.__doc__)
    assert re.match(r"(?:[^.]|\.(?=\w))*\.\n\n## What it does\n", text)
    assert all(section.strip() for section in re.split(r"^## .+$", text, flags=re.MULTILINE))


@every_rule
def test_the_code_on_a_page_is_python(rule):
    for block in re.findall(r"```python\n(.*?)```", page(rule), re.DOTALL):
        ast.parse(textwrap.dedent(block))


@every_rule
def test_a_rule_has_programs_that_pass_and_programs_that_do_not(rule):
    assert rule.VALID and rule.INVALID


@every_rule
def test_example_programs_are_small_and_parse(rule):
    for example in (*rule.VALID, *rule.INVALID):
        assert example.source.count("\n") <= 25
        if example.filename.endswith(".py") and rule.code != "KLG001":
            ast.parse(example.source)


def test_find_takes_codes_and_names_in_any_case():
    assert find("KLG101") is find("klg101") is find("top-k") is find(" Top-K ") is RULES["KLG101"]
    assert find("KLG999") is None and find("") is None


def test_the_committed_pages_are_the_generated_ones():
    folder = Path(__file__).parents[2] / "docs" / "rules"
    committed = {file.name: file.read_text(encoding="utf-8") for file in folder.glob("*.md")}
    assert committed == pages(), "run `python -m klguard.rules.pages docs/rules`"
