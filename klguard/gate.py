"""The first look at a file: by its bytes alone, whether it can hold a site at all.

Most files of a project hold none, and to find that out by parsing them would cost fifty times as much. First
the words decide without which there is no site; where one of them is there, what is left of the file without
comments and strings decides, since most of these words stand in documentation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from klguard.read.files import DEFAULT_LIMIT, Failure, load, read_bytes, reported

MARKERS = tuple(
    b"generate respond_to_batch trlx BeamSearchParams GRPOConfig GRPOTrainer GenerationConfig"
    b" NashMDConfig NashMDTrainer OnlineDPOConfig OnlineDPOTrainer PPOConfig PPOTrainer PPOv2Config"
    b" PPOv2Trainer RLOOConfig RLOOTrainer SamplingParams TRLConfig XPOConfig XPOTrainer".split()
)
"""Words without one of which a file holds no site: those that the reader of Python looks for, written out,
since most runs end here and importing the reader would take them longer than all the rest."""

CONFIG_MARKERS = tuple(
    b"actor_infer actor_rollout_ref gconfig gen_kwargs generation generation_kwargs grpo_fast"
    b" grpo_full_finetune grpo_vllm kl_coeff length_params num_generations open_instruct/grpo"
    b" open_instruct/ppo _target_ policy ppo_full_finetune reward_funcs rlhf-type rlhf_type rollout"
    b" rollout-batch-size rollout_batch_size sampling. sampling] sampling_params stage train_ppo verl.trainer".split()
)
"""Words without one of which a file is no configuration of a training framework: those of the reader of
configurations, likewise."""

LAUNCH_MARKERS = (
    b"main_ppo",
    b"train_ppo",
    b"actor_rollout_ref",
    b"rollout-batch-size",
    b"rlhf_type",
    b"rlhf-type",
    b"grpo_fast",
    b"grpo_vllm",
    b"trl grpo",
)
"""Words without one of which Python starts no training framework, likewise."""

METHODS = (b"generate", b"respond_to_batch")
"""Those of the words that are functions. A call of one is written with the very word, while a class may be
called by a longer one, that of a subclass."""

_SUBCLASS = re.compile(rb"(?:GRPO|PPO|RLOO|OnlineDPO)\w+Trainer\b")
"""Classes of the project's own that sound as if they inherited from one of the trainers (GRPOMultiTurnTrainer)."""

_STRINGS_AND_COMMENTS = (
    rb'""'
    rb'(?:"[^"\\]*(?:(?:\\.|"(?!""))[^"\\]*)*""")?'
    rb"|''(?:'[^'\\]*(?:(?:\\.|'(?!''))[^'\\]*)*''')?"
    rb'|"[^"\\\n]*(?:\\.[^"\\\n]*)*"'
    rb"|'[^'\\\n]*(?:\\.[^'\\\n]*)*'"
    rb"|#[^\n]*"
)
"""Triple-quoted strings, the empty ones, the others, and comments, as Python 3.11 finds them. In the f-strings
of 3.12 that nest a quote in itself the nested part counts as code, which is on the safe side."""

_FORMATTED = rb"""[fF][rR]?(?:'''|\"{3}|["'][^\n]*(?:%b))""" % b"|".join(MARKERS)
"""An f-string that may hold the word of a site: what is between its braces is code."""

_WORD = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")

SUPPRESSION = b"klguard"
"""In every comment that holds findings back, and in few other files."""

SYNTAX_BUDGET = 1_000_000
"""Bytes of source without a site that are parsed all the same, in the order of their paths, to report what
is not Python: all of an ordinary project, and the first files of a very large one."""


@dataclass(frozen=True, slots=True)
class Look:
    """What the bytes of one file say."""

    path: str
    has_site: bool = False
    has_launch: bool = False
    has_suppression: bool = False
    failures: tuple[Failure, ...] = ()


@dataclass
class Gate:
    """Looks at files one after the other. `markers` as the function of that name gives them."""

    markers: tuple[bytes, ...]
    limit: int = DEFAULT_LIMIT
    _budget: int = field(default=SYNTAX_BUDGET)

    def look(self, file: Path) -> Look:
        content = load(file, limit=self.limit)
        if isinstance(content, Failure):
            return Look(content.path, failures=(content,))
        return self.look_at(content, reported(file))

    def look_at(self, content: bytes, path: str) -> Look:
        has_site = self.has_site(content, path)
        failures = () if has_site else self._failures(content, path)
        return Look(path, has_site, self.has_launch(content), self.has_suppression(content), failures)

    def has_suppression(self, content: bytes) -> bool:
        return SUPPRESSION in content

    def affords(self, size: int) -> bool:
        """Whether the budget allows for a file of this size without a site to be parsed."""
        return size <= self._budget

    def spend(self, size: int) -> None:
        self._budget -= size

    def has_site(self, content: bytes, path: str = "") -> bool:
        """Whether the file may hold a site. `path` says whether it is Python or a notebook."""
        found = [marker for marker in self.markers if marker in content]
        found += {*_SUBCLASS.findall(content)} if b"Trainer" in content else ()
        if not found or path.endswith(".ipynb"):
            return bool(found)
        return _in_code(content, found, self._functions)

    def has_launch(self, content: bytes) -> bool:
        """Whether a file of Python may hold the command line of a training framework."""
        return any(marker in content for marker in LAUNCH_MARKERS)

    def has_config(self, content: bytes, path: str) -> bool:
        """Whether a file that is no Python may be the configuration of a training framework."""
        if path.endswith("generation_config.json"):
            return True
        return any(marker in content for marker in CONFIG_MARKERS)

    @cached_property
    def _functions(self) -> frozenset[bytes]:
        """The markers that are functions: methods, and in-house ones."""
        return frozenset((*METHODS, *(m for m in self.markers[len(MARKERS) :] if not m[:1].isupper())))

    def _failures(self, content: bytes, path: str) -> tuple[Failure, ...]:
        """Why a file without a site is no Python, as long as the budget lasts."""
        if not self.affords(len(content)):
            return ()
        self.spend(len(content))
        source = read_bytes(content, path)
        if isinstance(source, Failure):
            return (source,)
        if source.cells is not None:
            return source.failures
        from klguard.read.python.dialects import parse_script

        try:
            parse_script(source)
        except SyntaxError as error:
            return (_syntax_error(error, path),)
        return ()


def _in_code(content: bytes, found: list[bytes], functions: frozenset[bytes]) -> bool:
    """Whether one of the words in `found` is used outside comments and strings, or is a string by itself."""
    if b"generation_config" not in content and not any(
        _is_used(content, word) if word in functions else True for word in found
    ):
        return False
    if re.search(_FORMATTED, content):
        return True
    code = re.sub(_STRINGS_AND_COMMENTS, b" ", content, flags=re.DOTALL)
    if b'"' in code or b"'" in code:
        return True  # a string without end: whoever parses the file will say so
    if any(_is_used(code, word) if word in functions else word in code for word in found):
        return True
    if b"generation_config" in code and any(word in code for word in found):
        return True
    return any(quote + word + quote in content for word in found for quote in (b"'", b'"'))


def _is_used(code: bytes, word: bytes) -> bool:
    """Whether `word` stands in `code` as a whole word other than the name of a function that is defined."""
    start = code.find(word)
    while start >= 0:
        end = start + len(word)
        if (start == 0 or code[start - 1] not in _WORD) and (end == len(code) or code[end] not in _WORD):
            if code[start - 4 : start] != b"def ":
                return True
        start = code.find(word, end)
    return False


def _syntax_error(error: SyntaxError, path: str) -> Failure:
    line, column = max(error.lineno or 1, 1), max(error.offset or 1, 1)
    return Failure("KLG001", error.msg or "invalid syntax", path, None, line, column)


def markers(names: Iterable[str]) -> tuple[bytes, ...]:
    """MARKERS, and the last part of each of `names` (dotted ones of in-house functions and classes)."""
    return (*MARKERS, *(name.rpartition(".")[2].encode() for name in names))
