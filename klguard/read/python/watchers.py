"""What is looked for along a data flow: training, a call that samples, a trainer being run."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass

from klguard.read.python.callers import CallGraph, callee, callee_name, words
from klguard.read.python.scopes import FUNCTIONS, scopes_of
from klguard.read.python.source import ClassInfo, FunctionInfo, Module, depth, dotted
from klguard.read.python.spots import Frame, Path, Spot
from klguard.read.python.training import (
    ADDING,
    BUFFERS,
    ELEMENTWISE,
    GENERATORS,
    HOOKS,
    LOOKING_HOOKS,
    OFFLINE_TRAINERS,
    OUTPUTS,
    PAIRS,
    PROMPTS,
    SAMPLING,
    SCALARS,
    SENDING,
    TRAINING_CALLS,
    backward_operand,
    judging,
    receiver_words,
    scores_tokens,
    trains_by_step,
)

MAX_SAMPLERS = 12
"""Calls that sample with one settings object of which the contexts are joined."""

EVALUATING = frozenset("eval evaluate evaluation validate validation benchmark".split())
"""Words in the name of a function that is not visible which say that it evaluates."""

MAX_WRITTEN = 40
"""Nesting of an expression that is quoted in a reason."""


@dataclass(frozen=True)
class Hit:
    """A place where the flow met training.

    Weak: code that scores or stores tokens, which evaluation does as well.
    """

    text: str
    module: Module
    node: ast.AST
    frame: Frame
    weak: bool = False


class TokenWatcher:
    """Follows sampled tokens (and text) to the place that trains on them.

    `enough` says of a hit that is not weak whether it answers the question; the flow ends with the first that does.
    """

    def __init__(self, graph: CallGraph, enough: Callable[[Hit], bool] = lambda hit: True) -> None:
        self.graph = graph
        self.settled = False
        self._enough = enough
        self.hits: list[Hit] = []
        self.shown: list[tuple[Module, ast.AST]] = []
        self.judged: list[tuple[Module, ast.AST]] = []
        self.compared: list[tuple[Module, ast.AST]] = []
        self.rewarded: list[Spot] = []
        self.uncalled_functions: list[FunctionInfo] = []

    def keeps(self, name: str) -> bool:
        return not judging(name)

    def transparent(self, name: str) -> bool:
        return True

    def scores(self, call: ast.Call) -> bool:
        return scores_tokens(call)

    def _hit(self, spot: Spot, node: ast.AST, text: str, weak: bool = False) -> None:
        hit = Hit(text, spot.module, node, spot.frame, weak)
        self.hits.append(hit)
        self.settled = self.settled or (not weak and self._enough(hit))

    def argument(self, spot: Spot, call: ast.Call, slot: int | str | None, value: ast.expr) -> bool:
        name = callee_name(call)
        called = written(spot.module, callee(call))
        if name not in SCALARS and isinstance(comparison := spot.module.parents.get(call), ast.Compare):
            self.compare(spot, comparison)  # a parser that gives `yes` or `no` has nothing of the text in it
        if judging(name):
            self.rewarded.append(Spot(spot.module, call, (), spot.frame))
        if backward_operand(call) or trains_by_step(call, slot, value):
            self._hit(spot, call, f"the tokens reach {called}()")
            return True
        if TRAINING_CALLS.search(name) and not name[:1].isupper() and not self._beside_tokens(slot, value):
            visible = isinstance(self.graph.target(spot.module, call), FunctionInfo)
            self._hit(
                spot,
                call,
                f"the tokens reach {called}()",
                weak=visible or without_gradient(spot.module, call),
            )
            return False
        if name in GENERATORS:
            return True
        if OUTPUTS.search(name) and not _numeric(call):
            self.shown.append((spot.module, call))
            return True
        if name in SCALARS and isinstance(callee(call), ast.Name):
            return True
        if scores_tokens(call):
            self._hit(spot, call, f"the tokens are scored by {called}()", weak=True)
        elif name in SENDING and "cache" not in receiver_words(call):
            self._hit(spot, call, f"the tokens are sent to another process by {called}()", weak=True)
        elif name in ADDING and BUFFERS.search(called.rpartition(".")[0]):
            self._hit(spot, call, f"the tokens are stored by {called}()", weak=True)
        return False

    def _beside_tokens(self, slot: int | str | None, value: ast.expr) -> bool:
        text = slot if isinstance(slot, str) else dotted(value).rsplit(".", 1)[-1]
        return judging(text) or bool(PROMPTS.search(text))

    def method(self, spot: Spot, call: ast.Call) -> bool:
        name = callee_name(call)
        if name == "backward":
            self._hit(spot, call, f"the tokens reach {written(spot.module, call)}")
            return True
        if OUTPUTS.search(name) and not _numeric(call):
            self.shown.append((spot.module, call))
            return True
        if scores_tokens(call):
            self._hit(spot, call, f"the tokens are scored by .{name}()", weak=True)
        return name in SCALARS - ELEMENTWISE

    def compare(self, spot: Spot, node: ast.Compare) -> None:
        """Text held against the right answer: `parse(text) == example["label"]`."""
        equal = all(isinstance(operator, (ast.Eq, ast.NotEq)) for operator in node.ops)
        labels = any(LABELS.search(written(spot.module, side)) for side in (node.left, *node.comparators))
        if equal and labels and not spot.scored:
            self.compared.append((spot.module, node))

    def result(self, spot: Spot, call: ast.Call, path: Path) -> bool:
        if not spot.scored and judging(callee_name(call)) and not (path and self.keeps(path[0])):
            self.judged.append((spot.module, call))
            return True
        return False

    def returned(self, spot: Spot, info: FunctionInfo) -> bool:
        if info.cls is None:
            return False
        if info.name in ("training_step", "compute_loss"):
            self._hit(spot, spot.node, f"the tokens reach the loss that {info.qualname}() returns")
            return True
        return False

    def uncalled(self, spot: Spot, info: FunctionInfo) -> None:
        """Nobody visible calls the function: it may be one that a trainer's base class calls."""
        self.uncalled_functions.append(info)
        if _is_overridden_hook(self.graph, info):
            self._hit(spot, spot.node, f"{info.qualname}() hands the tokens to the trainer it overrides")


def overridden_hook(graph: CallGraph, module: Module, call: ast.Call) -> str | None:
    """The method around a call whose result a trainer's base class consumes, by its name."""
    info = module.enclosing(call)
    while info is not None and info.parent is not None:
        info = info.parent
    return info.qualname if info is not None and _is_overridden_hook(graph, info) else None


def _is_overridden_hook(graph: CallGraph, info: FunctionInfo) -> bool:
    if info.cls is None or not HOOKS.search(info.name) or LOOKING_HOOKS.search(info.name):
        return False
    bases = graph.external_bases(info.cls)
    if any(OFFLINE_TRAINERS.search(name) for name in (info.cls.name, *bases)):
        return False
    return any(base.endswith("Trainer") for base in bases)


class SettingsWatcher:
    """Follows a settings object to the calls that sample with it."""

    def __init__(self, graph: CallGraph) -> None:
        self.graph = graph
        self.samplers: list[tuple[Module, ast.Call, Frame]] = []
        self.wrappers: list[tuple[Module, ast.Call, Frame]] = []
        self.trainers: list[tuple[Module, ast.Call]] = []
        self.evaluators: list[tuple[Module, ast.Call]] = []
        self.evaluations: list[tuple[Module, ast.Call]] = []
        """Calls of code that is not visible which evaluates by its name."""
        self.uncalled_functions: list[FunctionInfo] = []

    @property
    def settled(self) -> bool:
        return len(self.samplers) >= MAX_SAMPLERS

    def keeps(self, name: str) -> bool:
        return True

    def scores(self, call: ast.Call) -> bool:
        return False

    def transparent(self, name: str) -> bool:
        """Only calls that make other settings of these pass them on."""
        return name.endswith(("SamplingParams", "GenerationConfig")) or name in (
            "partial",
            "replace",
            "from_dict",
            "deepcopy",
        )

    def argument(self, spot: Spot, call: ast.Call, slot: int | str | None, value: ast.expr) -> bool:
        name = callee_name(call)
        settings = slot in ("generation_config", "sampling_params")
        if re.search(r"Trainer$", name) or (
            name.endswith(("Config", "Arguments")) and re.search("generation|sampling", str(slot))
        ):
            (self.evaluators if self._supervised(spot, call) else self.trainers).append((spot.module, call))
            return False
        visible = isinstance(self.graph.target(spot.module, call), FunctionInfo)
        by_name = SAMPLING.search(name) and not self.transparent(name) and not visible
        if name in GENERATORS or (settings or by_name) and not name[:1].isupper():
            (self.wrappers if visible else self.samplers).append((spot.module, call, spot.frame))
            return not visible
        if not visible and not name[:1].isupper() and words(name) & EVALUATING:
            self.evaluations.append((spot.module, call))
        return False

    def _supervised(self, spot: Spot, call: ast.Call) -> bool:
        """Is it a trainer that learns from a data set, and samples to evaluate if at all?"""
        if isinstance(self.graph.target(spot.module, call), ClassInfo):
            return False
        name = dotted(callee(call))
        meant = self.graph.lookup(spot.module, call, name) if name else ""
        of_transformers = isinstance(meant, str) and meant.startswith("transformers.")
        return of_transformers or bool(OFFLINE_TRAINERS.search(name))

    def compare(self, spot: Spot, node: ast.Compare) -> None:
        """Settings are compared to no end."""

    def method(self, spot: Spot, call: ast.Call) -> bool:
        if callee_name(call) in GENERATORS and spot.path[:1] == ("generation_config",):
            self.samplers.append((spot.module, call, spot.frame))
        return True

    def result(self, spot: Spot, call: ast.Call, path: Path) -> bool:
        return False

    def returned(self, spot: Spot, info: FunctionInfo) -> bool:
        return False

    def uncalled(self, spot: Spot, info: FunctionInfo) -> None:
        self.uncalled_functions.append(info)


class PairlessWatcher(TokenWatcher):
    """As TokenWatcher, but blind to what passes through records of better and worse answers."""

    def keeps(self, name: str) -> bool:
        return super().keeps(name) and not PAIRS.search(name)


LABELS = re.compile(
    r"label|gold|answer|target|truth|expected|correct|solution|\bgt(_|\b)|_gt\b", re.IGNORECASE
)
"""What the right answer is called."""

TRAINS = re.compile(r"(^|_)(train|training|step|learn|fit|run|update|optimi[sz]e|loop)(_|$)")
SAMPLES = re.compile(r"generate|respond|sample")


class RewardWatcher(TokenWatcher):
    """Follows text that was judged: does the number made of it become a reward?"""

    def keeps(self, name: str) -> bool:
        return True

    def result(self, spot: Spot, call: ast.Call, path: Path) -> bool:
        return False

    def argument(self, spot: Spot, call: ast.Call, slot: int | str | None, value: ast.expr) -> bool:
        if callee_name(call) == "step" and len(call.args) >= 2:
            self._hit(spot, call, f"the tokens reach {written(spot.module, callee(call))}()")
            return True
        return super().argument(spot, call, slot, value)


class TrainerWatcher(SettingsWatcher):
    """Follows a trainer, or the configuration of one, to what is done with the trainer."""

    def __init__(self, graph: CallGraph) -> None:
        super().__init__(graph)
        self.trained: list[tuple[Module, ast.Call]] = []
        self.sampled: list[tuple[Module, ast.Call]] = []

    @property
    def settled(self) -> bool:
        return bool(self.trained)

    def transparent(self, name: str) -> bool:
        return name != "from_pretrained"

    def argument(self, spot: Spot, call: ast.Call, slot: int | str | None, value: ast.expr) -> bool:
        name = callee_name(call)
        if re.search(r"Trainer$|^trlx?$|PPO|GRPO|RLOO", name) or words(name) & {"trainer"}:
            self.trainers.append((spot.module, call))
            return False
        if TRAINS.search(name) and name.islower():
            self.trained.append((spot.module, call))
            return False
        return bool(OUTPUTS.search(name)) or name in SCALARS

    def method(self, spot: Spot, call: ast.Call) -> bool:
        name = callee_name(call)
        if TRAINS.search(name):
            self.trained.append((spot.module, call))
        elif SAMPLES.search(name):
            self.sampled.append((spot.module, call))
        return True


def written(module: Module, expr: ast.expr) -> str:
    """The source of an expression, or its last name where it is too deep to be written out."""
    if depth(expr, MAX_WRITTEN) <= MAX_WRITTEN:
        return module.segment(expr)
    return callee_name(expr) if isinstance(expr, ast.Call) else getattr(expr, "attr", "...")


def _numeric(call: ast.Call) -> bool:
    """`torch.log(x)` is arithmetic, `logger.log(x)` is output."""
    return callee_name(call) == "log" and bool(
        receiver_words(call) & {"torch", "np", "numpy", "jnp", "mx", "f", "math"}
    )


def without_gradient(module: Module, node: ast.AST) -> bool:
    """Does `node` stand inside `torch.no_grad()` or `inference_mode()`, as a block or a decorator?"""
    for _, parent in scopes_of(module).ancestry(node):
        exprs: list[ast.expr] = []
        if isinstance(parent, (ast.With, ast.AsyncWith)):
            exprs = [item.context_expr for item in parent.items]
        elif isinstance(parent, FUNCTIONS):
            exprs = parent.decorator_list
        for expr in exprs:
            name = dotted(expr.func if isinstance(expr, ast.Call) else expr)
            if name.endswith(("no_grad", "inference_mode")):
                return True
    return False
