"""The log-probs that an engine returns with its tokens, where the code around takes them up."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from klguard.read.python.project import Project
from klguard.read.python.source import Module, dotted
from klguard.read.python.trees import walk_level
from klguard.read.python.wiring.neighbours import related
from klguard.read.python.wiring.words import LOG_PROB
from klguard.settings import Hop, HopKind, Known, Value

MODES = ("logprobs_mode", "logprobs-mode", "processed_logprobs")
RAW = re.compile(r"""logprobs_mode=["']raw_logprobs["']""")


def engine_logprobs(project: Project, module: Module) -> Value | None:
    """Known('raw') where a program takes up the log-probs of a vLLM engine under the name of log-probs, or returns them,
    and makes every engine in sight with the raw ones, or without a word about which ones it returns."""
    program = related(project, module)
    if any(word in RAW.sub("", where.text) for where in program for word in MODES):
        return None
    made = [(where, node) for where in program for node in where.calls.get("LLM", ())]
    if not made or any(k.arg is None for _, node in made for k in node.keywords):
        return None
    if not any(_takes_up(value) for where in program if ".logprob" in where.text for value in _kept(where)):
        return None
    where, node = made[0]
    return Known("raw", (Hop(HopKind.LITERAL, where.ast_place(node), where.segment(node)),))


def _kept(module: Module) -> Iterator[ast.expr]:
    """What is assigned or appended under the name of log-probs, or returned."""
    yield from (node.value for node in module.of(ast.Return) if node.value is not None)
    for node in module.of(ast.Assign):
        if LOG_PROB.search(dotted(node.targets[0]).rpartition(".")[2]):
            yield node.value
    for node in (*module.calls.get("append", ()), *module.calls.get("extend", ())):
        owner = dotted(node.func).rpartition(".")[0]
        if LOG_PROB.search(owner.rpartition(".")[2]):
            yield from node.args


def _takes_up(value: ast.expr) -> bool:
    """Whether the `logprob` of one token of an output is in an expression."""
    return any(isinstance(node, ast.Attribute) and node.attr == "logprob" for node in walk_level(value))
