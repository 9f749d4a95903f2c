"""What the names around a place say about it: evaluation, inference, rollouts.

The weaker evidence, for where the data flow does not decide. The words are those of public RLHF code.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from klguard.read.python.callers import words
from klguard.read.python.source import Module
from klguard.read.python.training import judging
from klguard.settings import Context

EVALUATION_WORDS = frozenset(
    "eval evals evaluate evaluates evaluated evaluation evaluator evaluating evaluations test tests "
    "tester testing validate validation val validator benchmark benchmarks bench win winrate sanity "
    "compare comparison compares metrics metric accuracy baseline probe qualitative before after check "
    "measure mbpp humaneval gsm8k mmlu plot analyze analysis visualize report leaderboard passk "
    "inspect verify diagnose monitor".split()
)
INFERENCE_WORDS = frozenset(
    "chat chatbot serve server serving app api infer inference predict prediction predictor pipeline "
    "demo gradio streamlit interactive playground web endpoint bot dataset datasets data prepare "
    "preference preferences collect collector collection pairs pair dpo judge reward rewards annotate "
    "label labeler critique revise teacher sft distill synthetic ask respond answer example examples "
    "mining mine build create preprocess webui ui quickstart search".split()
)
SOFT_WORDS = frozenset("ask respond answer build create".split())
"""Words of inference that evaluations and policies use as well: any other name that tells goes before."""
DIRECTORY_WORDS = frozenset(
    "eval evals evaluate evaluation evaluations test tests testing benchmark benchmarks inference infer "
    "serve serving demo demos chat app analysis".split()
)
"""What a directory's name may decide: the others are too often the name of the project."""
TRAINING_WORDS = frozenset({"train", "training", "trainer", "ppo", "grpo", "rloo"})
"""Beside these, the words of inference tell nothing (`app_train_loop`)."""
REINFORCE_WORDS = frozenset({"reinforce", "ppo", "grpo", "rloo", "a2c", "gradient"})
"""Beside these, a baseline is what is subtracted from the reward (`reinforce_with_baseline`)."""
REFERENCE_WORDS = frozenset({"ref", "reference", "baseline"})
"""A model to compare with: weak evidence of training is none here."""
ROLLOUT_WORDS = frozenset(
    "rollout rollouts experience experiences trajectory trajectories episode episodes explore".split()
)

AGENT_WORDS = frozenset("episode episodes explore".split())
"""Of these, the ones an agent that never learns has as well."""


@dataclass(frozen=True)
class Scopes:
    """Names around a place, nearest first, each with how it is said."""

    names: tuple[tuple[str, str], ...]

    def tells(self, training: bool = True) -> tuple[Context, str] | None:
        """What the nearest telling name says. Names of rollouts tell only where none says evaluation, and those of
        any agent's life only within `training`."""
        beyond = frozenset() if training else AGENT_WORDS
        return self._tells(SOFT_WORDS | beyond) or self._tells(beyond)

    def tells_plainly(self) -> tuple[Context, str] | None:
        """The same of names that mean one thing."""
        return self._tells(SOFT_WORDS)

    def _tells(self, passed_over: frozenset[str]) -> tuple[Context, str] | None:
        evaluates = self.evaluates()
        for name, said in self.names:
            found = _telling(name, said) - passed_over
            if (found & ROLLOUT_WORDS or name == "respond_to_batch") and not evaluates:
                return Context.ROLLOUT, f"inside {said}, by its name"
            if found & EVALUATION_WORDS:
                return Context.EVALUATION, f"inside {said}"
            if found & INFERENCE_WORDS and not found & TRAINING_WORDS:
                return Context.INFERENCE, f"inside {said}"
        judge = next((said for name, said in self.names if judging(name)), None)
        return (Context.INFERENCE, f"inside {judge}") if judge else None

    def evaluates(self) -> bool:
        """Does any of the names say evaluation?"""
        return any(_telling(name, said) & EVALUATION_WORDS for name, said in self.names)


def _telling(name: str, said: str) -> set[str]:
    """The words of a name that may decide something: of a directory's, a few, at either end of it."""
    if not said.endswith("/"):
        found = words(name)
        return found - {"baseline"} if found & REINFORCE_WORDS else found
    parts = name.lower().replace("-", "_").split("_")
    return {parts[0], parts[-1]} & DIRECTORY_WORDS


def scopes_around(module: Module, node: ast.AST) -> Iterator[tuple[str, str]]:
    """Functions and classes around `node`, innermost first."""
    info = module.enclosing(node)
    cls = None
    while info is not None:
        yield info.name, f"{info.qualname}()"
        cls = info.cls or cls
        info = info.parent
    if cls is not None:
        yield cls.name, f"class {cls.qualname}"


def file_names(module: Module, root: Path) -> Iterator[tuple[str, str]]:
    """The file and the directories it lies in below the root of the project, innermost first. Where the project lies
    says nothing of it."""
    parts = module.path.rsplit(".", 1)[0].split("/")
    below = os.path.relpath(module.path, root).split(os.sep)
    outermost = len(parts) - (1 if ".." in below else len(below))
    for index in range(len(parts) - 1, max(outermost, 0) - 1, -1):
        if parts[index] not in (".", "..", ""):
            said = module.path if index == len(parts) - 1 else "/".join(parts[: index + 1]) + "/"
            yield parts[index], said
