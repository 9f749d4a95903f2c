"""Is the output of a sampling call trained on?

By data flow first: the tokens reach a trainer's step, a loss that is differentiated, a rollout buffer. By
scope second, where the flow does not decide: names of functions, classes and files, and what became of the
text.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from klguard.read.python.callers import CallGraph, callee, callee_name, words
from klguard.read.python.dataflow import Flow
from klguard.read.python.naming import (
    REFERENCE_WORDS,
    ROLLOUT_WORDS,
    TRAINING_WORDS,
    Scopes,
    file_names,
    scopes_around,
)
from klguard.read.python.project import Project
from klguard.read.python.scopes import scopes_of
from klguard.read.python.source import FunctionInfo, Module, dotted
from klguard.read.python.spots import CallSite, Spot
from klguard.read.python.training import GRADIENTS, OPTIMIZERS, PAIRS, STEPS, receiver_words
from klguard.read.python.trees import walk_level
from klguard.read.python.watchers import (
    MAX_SAMPLERS,
    Hit,
    PairlessWatcher,
    RewardWatcher,
    SettingsWatcher,
    TokenWatcher,
    TrainerWatcher,
    overridden_hook,
    written,
)
from klguard.settings import Context, SiteKind

MAX_CALLERS = 3
"""Levels of callers that are searched for the step after a backward pass."""

Chain = tuple[CallSite, ...]
"""Calls by which a function is reached, innermost first."""


@dataclass(frozen=True)
class Verdict:
    """What happens to the output of a call, and the reason in words."""

    context: Context
    why: str
    named: bool = field(default=False, compare=False)
    """Whether only a name says so, and nothing on the way there speaks of training."""
    pairs: bool = False
    """Whether what is trained on are pairs of answers, under a loss as DPO's, which asks for no sample of the policy."""


EVALUATION_HOOKS = frozenset({"prediction_step", "evaluation_loop", "prediction_loop", "evaluate", "predict"})
"""Methods that transformers' Trainer calls to evaluate, and nothing else."""
PAIR_HOOKS = frozenset({"get_batch_samples", "generate_from_model_and_ref"})
"""Those of TRL's trainers on pairs, for their `generate_during_eval`: the former until TRL 0.12, the latter since. To
transformers' Trainer get_batch_samples gives batches to train on."""
PAIR_TRAINERS = re.compile(r"(DPO|KTO|ORPO|CPO|BCO)Trainer$")


def never_runs(module: Module, node: ast.AST) -> bool:
    """Does the statement of `node`, or a block around it, follow a `raise` or `return` in its own block?"""
    for child, parent in scopes_of(module).ancestry(node):
        for block in (getattr(parent, name, None) for name in ("body", "orelse", "finalbody")):
            if isinstance(block, list) and child in block:
                before = block[: block.index(child)]
                if any(isinstance(s, (ast.Raise, ast.Return, ast.Continue, ast.Break)) for s in before):
                    return True
    return False


def expected_to_fail(module: Module, node: ast.AST) -> bool:
    """Does `node` stand inside `with pytest.raises(...)` or `self.assertRaises(...)`?"""
    return any(
        callee_name(item.context_expr) in ("raises", "assertRaises", "assertRaisesRegex")
        for _, parent in scopes_of(module).ancestry(node)
        if isinstance(parent, (ast.With, ast.AsyncWith))
        for item in parent.items
        if isinstance(item.context_expr, ast.Call)
    )


def _around(module: Module, node: ast.AST) -> ast.AST:
    """The function around `node`, or at the top level of a file the statement that holds it."""
    info = module.enclosing(node)
    if info is not None:
        return info.node
    return next((child for child, parent in scopes_of(module).ancestry(node) if parent is module.tree), node)


def compares_pairs(graph: CallGraph, module: Module, node: ast.AST) -> bool:
    """Is the loss at `node` one over pairs of answers alone, as DPO's: `logsigmoid(chosen - rejected)`?

    Looked for in the code around it, and in the visible functions of a loss that are called there. Beside advantages
    it is a term of a policy gradient's loss.
    """
    around = _around(module, node)
    losses = [c for c in walk_level(around) if isinstance(c, ast.Call) and "loss" in callee_name(c).lower()]
    called = (graph.target(module, call) for call in losses)
    scopes = [around, *(info.node for info in called if isinstance(info, FunctionInfo))]
    names = {
        found
        for scope in scopes
        for each in walk_level(scope)
        for found in [getattr(each, "id", None) or getattr(each, "attr", None) or getattr(each, "arg", None)]
        if isinstance(found, str)
    }
    if not names & {"logsigmoid", "log_sigmoid"} or any("advantage" in name.lower() for name in names):
        return False
    return any(PAIRS.search(name) for name in names)


def optimized(module: Module, call: ast.Call) -> bool:
    """Are the parameters of the object that `call` samples with given to an optimizer in this file?"""
    func = callee(call)
    receiver = dotted(func.value).removesuffix(".module") if isinstance(func, ast.Attribute) else ""
    if not receiver:
        return False
    own = module.enclosing(call)
    for parameters in module.calls.get("parameters", ()):
        if not isinstance(parameters.func, ast.Attribute) or dotted(parameters.func.value) != receiver:
            continue
        there = module.enclosing(parameters)
        if receiver.startswith("self.") and (own is None or there is None or own.cls is not there.cls):
            continue
        above = (parent for _, parent in scopes_of(module).ancestry(parameters))
        if any(isinstance(p, ast.Call) and OPTIMIZERS.search(callee_name(p)) for p in above):
            return True
    return False


def loops_around(module: Module, call: ast.Call, hit: Hit) -> tuple[set[ast.AST], set[ast.AST]]:
    """The loops in which `call` samples, and those in which what it sampled is trained on at `hit`."""
    starts = [*hit.frame.climbed, (module, call)]
    ends = [*hit.frame.entered, (hit.module, hit.node)]
    sampling = {loop for m, node in starts for loop in scopes_of(m).loops(node)}
    return sampling, {loop for m, node in ends for loop in scopes_of(m).loops(node)}


def share_a_loop(module: Module, call: ast.Call, hit: Hit) -> bool:
    """Is it sampled and trained in turns?"""
    sampling, training = loops_around(module, call, hit)
    return bool(sampling & training)


def trains(module: Module) -> bool:
    """Does the file train: a backward pass, a loss for a base class, a trainer's step or train()?"""
    if "backward" in module.calls or "value_and_grad" in module.calls:
        return True
    if any(cls.methods.keys() & {"compute_loss", "training_step"} for cls in module.classes.values()):
        return True
    if any(len(c.args) >= 2 for c in module.calls.get("step", ()) if "env" not in receiver_words(c)):
        return True
    return any(
        "trainer" in receiver_words(c) or "trlx" in receiver_words(c) for c in module.calls.get("train", ())
    )


class ContextAnalysis:
    """Contexts of the calls of one project; remembers what it has found."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.graph = CallGraph(project)
        self._verdicts: dict[tuple, Verdict] = {}

    def classify(self, module: Module, call: ast.Call, kind: SiteKind) -> Verdict:
        """The context of `call`, joined over everything that calls the function around it."""
        return self.classify_through(module, call, kind, ())

    def classify_through(self, module: Module, call: ast.Call, kind: SiteKind, chain: Chain) -> Verdict:
        """The context of `call` when its function is entered by the calls of `chain`, innermost first."""
        key = (id(call), kind, tuple(id(c) for _, c in chain))
        if key not in self._verdicts:
            self._verdicts[key] = Verdict(Context.UNKNOWN, "it depends on itself")
            self._verdicts[key] = self._classify(module, call, kind, chain)
        return self._verdicts[key]

    def _classify(self, module: Module, call: ast.Call, kind: SiteKind, chain: Chain) -> Verdict:
        if kind is SiteKind.GENERATE:
            return self._tokens(module, call, chain)
        if kind in (SiteKind.GENERATION_CONFIG, SiteKind.SAMPLING_PARAMS):
            return self._settings(module, call, chain)
        return self._trainer(module, call, kind, chain)

    # -- tokens ----------------------------------------------------------------------------------------------

    def _tokens(self, module: Module, call: ast.Call, chain: Chain) -> Verdict:
        if never_runs(module, call):
            return Verdict(Context.UNKNOWN, "the call stands behind a raise or return and never runs")
        watcher = TokenWatcher(self.graph, lambda hit: not compares_pairs(self.graph, hit.module, hit.node))
        Flow(self.graph, watcher, chain).run(Spot(module, call))
        strong = [hit for hit in watcher.hits if not hit.weak]
        if strong:
            return self._trained_on(module, call, chain, strong[0], pairs=not watcher.settled)
        reference = bool(receiver_words(call) & REFERENCE_WORDS)
        weak = next((h for h in watcher.hits if not reference and self._counts(module, call, chain, h)), None)
        if weak is not None:
            where = _where(weak.module, weak.node, module)
            return Verdict(Context.ROLLOUT, f"{weak.text} {where}, in code that trains")
        if (learns := self._learns(module, call, chain, watcher)) is not None:
            return learns
        by_name = self._by_name(module, call, chain)
        if by_name is not None and not (reference and by_name.context is Context.ROLLOUT):
            return by_name
        return self._by_fate(module, call, chain, watcher)

    def _trained_on(self, module: Module, call: ast.Call, chain: Chain, hit: Hit, pairs: bool) -> Verdict:
        """`pairs`: the flow met none but losses over pairs."""
        where = _where(hit.module, hit.node, module)
        if self._offline(module, call, chain, hit):
            return Verdict(
                Context.INFERENCE, f"its text becomes preference data before the training {where} begins"
            )
        if pairs:
            why = f"its texts become pairs for the preference loss {where}"
            return Verdict(Context.ROLLOUT, why, pairs=True)
        if self._measures(module, call, chain, hit):
            why = f"its gradient is only looked at, {where}: nothing in sight takes a step with it"
            return Verdict(Context.EVALUATION, why)
        through = f", through the call {_where(*hit.frame.climbed[-1], module)}" if hit.frame.climbed else ""
        return Verdict(Context.ROLLOUT, f"{hit.text} {where}{through}")

    def _measures(self, module: Module, call: ast.Call, chain: Chain, hit: Hit) -> bool:
        """Is a gradient read after the backward pass, while no file on the way, or that calls into it, takes a step?"""
        if not isinstance(hit.node, ast.Call) or callee_name(hit.node) != "backward":
            return False
        own = self.graph.own_class(hit.module, hit.node)
        if own is not None and any(base.endswith("Trainer") for base in self.graph.external_bases(own)):
            return False  # the base class takes the step
        level = [(module, call), (hit.module, hit.node), *chain, *hit.frame.climbed, *hit.frame.entered]
        near = {id(m): m for m, _ in level}
        for _ in range(MAX_CALLERS):
            infos = {id(info): info for m, node in level if (info := m.enclosing(node)) is not None}
            level = [caller for info in infos.values() for caller in self.graph.callers(info)]
            near.update({id(m): m for m, _ in level})
        read = any(GRADIENTS.search(name) for m in near.values() for name in (*m.calls, *m.mentions))
        return read and not any(STEPS.search(name) for m in near.values() for name in m.calls)

    def _counts(self, module: Module, call: ast.Call, chain: Chain, hit: Hit) -> bool:
        """Does scoring or storing tokens mean training here?

        Yes where a file on the way trains and no name on the way says otherwise.
        """
        places = [(module, call), *(chain or hit.frame.climbed), (hit.module, hit.node)]
        if not any(trains(m) for m, _ in places):
            return False
        names = [name for m, node in places for name in scopes_around(m, node)]
        names += [next(file_names(m, self.project.root)) for m, _ in places]
        told = Scopes(tuple(names)).tells_plainly()
        return told is None or told[0] is Context.ROLLOUT

    def _offline(self, module: Module, call: ast.Call, chain: Chain, hit: Hit) -> bool:
        """Are preference pairs sampled first, all of them, and trained on afterwards?"""
        sampling, training = loops_around(module, call, hit)
        if not sampling or sampling & training:
            return False
        pairless = PairlessWatcher(self.graph)
        Flow(self.graph, pairless, chain).run(Spot(module, call))
        return all(other.weak for other in pairless.hits)

    def _by_name(self, module: Module, call: ast.Call, chain: Chain) -> Verdict | None:
        """What the names say: around the call, around the calls it is reached by, of the files."""
        if (base := self._evaluates_for(module, call)) is not None:
            return Verdict(Context.EVALUATION, f"called by the evaluation of its base class, {base}")
        names = list(scopes_around(module, call))
        info = module.enclosing(call)
        climbed = chain if chain or info is None else tuple(self.graph.callers(info)[:1])
        for caller in climbed:
            names += scopes_around(*caller)
        on_the_way = (module, *(m for m, _ in climbed))
        training = any(trains(each) for each in on_the_way)
        if training:
            names += _assigned(module, call)
        inner = Scopes(tuple(names)).tells(training)
        for each in on_the_way:
            names += file_names(each, self.project.root)
        told = Scopes(tuple(names)).tells(training)
        if told is None or (told[0] is Context.ROLLOUT and told != inner and not training):
            return None  # where nothing trains, a file's name makes no rollout
        training = training or any(words(name) & TRAINING_WORDS for name, _ in names)
        return Verdict(*told, named=not training)

    def _evaluates_for(self, module: Module, call: ast.Call) -> str | None:
        """The trainer outside the project whose evaluation calls the method around `call`."""
        info, cls = module.enclosing(call), self.graph.own_class(module, call)
        if info is None or cls is None:
            return None
        while info.parent is not None:
            info = info.parent
        for base in self.graph.external_bases(cls):
            name = base.rpartition(".")[2]
            hooks = EVALUATION_HOOKS | (PAIR_HOOKS if PAIR_TRAINERS.match(name) else frozenset())
            if name.endswith("Trainer") and info.name in hooks:
                return name
        return None

    def _by_fate(self, module: Module, call: ast.Call, chain: Chain, watcher: TokenWatcher) -> Verdict:
        """What became of the text, where neither training nor a name was met."""
        if watcher.judged:
            return self._judged(module, call, chain, watcher)
        if watcher.shown:
            context = Context.EVALUATION if trains(module) else Context.INFERENCE
            return Verdict(context, f"its text is only shown or saved, {_where(*watcher.shown[0], module)}")
        if watcher.uncalled_functions:
            return Verdict(
                Context.UNKNOWN, f"{watcher.uncalled_functions[0].qualname}() has no visible caller"
            )
        if watcher.compared:
            return Verdict(
                Context.EVALUATION, f"it is compared with a label, {_where(*watcher.compared[0], module)}"
            )
        return Verdict(Context.INFERENCE, "its output reaches nothing that trains")

    def _learns(self, module: Module, call: ast.Call, chain: Chain, watcher: TokenWatcher) -> Verdict | None:
        """A rollout all the same: the model that samples is in an optimizer, and the text's reward is in the loss.

        Such code scores other tokens than those that were drawn, or the flow between them was lost. The samples of a
        baseline have rewards in the loss as well; they stand beside others, that are trained on.
        """
        if not optimized(module, call):
            return None
        if not watcher.rewarded or any(
            other is not call
            and dotted(callee(other)) == dotted(callee(call))
            and self._settles(module, other)
            for other in module.calls.get(callee_name(call), ())
        ):
            return None
        for verdict in watcher.rewarded:
            reward = RewardWatcher(self.graph)
            Flow(self.graph, reward, chain).run(verdict)
            hit = next((h for h in reward.hits if not h.weak), None)
            if hit is not None and share_a_loop(module, call, hit):
                made = _where(verdict.module, verdict.node, module)
                used = f"{made} and reach training {_where(hit.module, hit.node, module)}"
                return Verdict(Context.ROLLOUT, f"its rewards are made {used}, of the model that samples")
        return None

    def _settles(self, module: Module, call: ast.Call) -> bool:
        """Are the tokens of `call` trained on, by some path?"""
        watcher = TokenWatcher(self.graph)
        Flow(self.graph, watcher).run(Spot(module, call))
        return watcher.settled

    def _judged(self, module: Module, call: ast.Call, chain: Chain, watcher: TokenWatcher) -> Verdict:
        """The text is made into a number: a reward within training, else a measurement."""
        where = _where(*watcher.judged[0], module)
        reward = RewardWatcher(self.graph)
        Flow(self.graph, reward, chain).run(Spot(module, call))
        hit = next((h for h in reward.hits if not h.weak), None)
        if hit is None:
            return Verdict(Context.EVALUATION, f"its text is only judged, {where}")
        used = _where(hit.module, hit.node, module)
        return Verdict(Context.INFERENCE, f"its text is judged {where} and only the verdict is used, {used}")

    # -- settings objects ------------------------------------------------------------------------------------

    def _settings(self, module: Module, call: ast.Call, chain: Chain) -> Verdict:
        """The context of the calls that sample with the object; of several, a rollout decides."""
        watcher = SettingsWatcher(self.graph)
        Flow(self.graph, watcher, chain).run(Spot(module, call))
        verdicts = []
        for m, sampler, frame in (watcher.samplers or watcher.wrappers)[:MAX_SAMPLERS]:
            way = (*reversed(frame.entered), *chain[len(frame.climbed) :])
            verdict = self.classify_through(m, sampler, SiteKind.GENERATE, way)
            where = _where(m, sampler, module)
            verdicts.append(replace(verdict, why=f"used by the call {where}: {verdict.why}"))
            if verdict.context is Context.ROLLOUT and not verdict.pairs:
                break
        for context in (Context.ROLLOUT, Context.EVALUATION, Context.INFERENCE):
            found = [v for v in verdicts if v.context is context]
            if found:
                return min(found, key=lambda verdict: verdict.pairs)
        if watcher.trainers:
            return Verdict(Context.ROLLOUT, f"passed to a trainer {_where(*watcher.trainers[0], module)}")
        if verdicts:
            return verdicts[0]
        if watcher.evaluators:
            where = _where(*watcher.evaluators[0], module)
            return Verdict(Context.EVALUATION, f"passed to a trainer that samples only to evaluate {where}")
        if watcher.evaluations:
            m, evaluation = watcher.evaluations[0]
            where = _where(m, evaluation, module)
            return Verdict(
                Context.EVALUATION, f"passed to {written(m, callee(evaluation))}() {where}, by its name"
            )
        hook = overridden_hook(self.graph, module, call)
        if hook is not None:
            return Verdict(
                Context.ROLLOUT, f"made in {hook}(), which hands tokens to the trainer it overrides"
            )
        unknown = Verdict(Context.UNKNOWN, "no call that samples with it is visible")
        return self._by_name(module, call, chain) or unknown

    # -- trainers --------------------------------------------------------------------------------------------

    def _trainer(self, module: Module, call: ast.Call, kind: SiteKind, chain: Chain) -> Verdict:
        """A trainer trains on what it samples, unless nothing here trains it; likewise its configuration."""
        if expected_to_fail(module, call):
            return Verdict(Context.UNKNOWN, "a test that expects it to fail")
        if any(word.arg == "learning_rate" and _is_zero(word.value) for word in call.keywords):
            return Verdict(Context.EVALUATION, "it runs with learning_rate=0, which trains nothing")
        name = callee_name(call)
        origin = self.project.resolve(dotted(callee(call)), module) if dotted(callee(call)) else ""
        if isinstance(origin, str) and origin.startswith("trlx"):
            return Verdict(Context.ROLLOUT, f"trlx trains with its {name}")
        watcher = TrainerWatcher(self.graph)
        Flow(self.graph, watcher, chain).run(Spot(module, call))
        if watcher.trained:
            m, training = watcher.trained[0]
            return Verdict(
                Context.ROLLOUT, f"trained by {written(m, callee(training))}() {_where(m, training, module)}"
            )
        if trains(module) and (not watcher.sampled or self._trained_beside(module, call)):
            return Verdict(Context.ROLLOUT, f"{name} in a file that trains")
        if watcher.sampled:
            sampled = f"only used to sample, {_where(*watcher.sampled[0], module)}; nothing here trains it"
            return self._by_name(module, call, chain) or Verdict(Context.UNKNOWN, sampled)
        if kind is SiteKind.TRAINER or watcher.trainers:
            return Verdict(Context.ROLLOUT, f"{name} is made to train on what it samples")
        if watcher.uncalled_functions:
            return Verdict(Context.ROLLOUT, f"{name} is handed out for training")
        return Verdict(Context.UNKNOWN, f"no trainer that uses this {name} is visible")

    def _trained_beside(self, module: Module, call: ast.Call) -> bool:
        """Is another trainer of this kind, in the same file, trained?"""
        kind = callee_name(call).replace("Config", "Trainer")
        for other in module.calls.get(kind, ()):
            watcher = TrainerWatcher(self.graph)
            Flow(self.graph, watcher).run(Spot(module, other))
            if watcher.trained:
                return True
        return False


def _is_zero(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in (int, float) and node.value == 0


def _assigned(module: Module, call: ast.Call) -> Iterator[tuple[str, str]]:
    """The variable that takes what `call` returns, where its name is that of a rollout: `episodes = ...`."""
    for _, parent in scopes_of(module).ancestry(call):
        if isinstance(parent, ast.stmt):
            targets = parent.targets if isinstance(parent, ast.Assign) else []
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            yield from ((name, f"the assignment to {name}") for name in names if words(name) & ROLLOUT_WORDS)
            return


def _where(module: Module, node: ast.AST, here: Module) -> str:
    """`at line 12`, with the file where it is another one, and the cell in a notebook."""
    place = module.ast_place(node)  # type: ignore[arg-type]
    cell = f"cell {place.cell}, " if place.cell is not None else ""
    other = "" if module is here else f" of {module.path}"
    return f"at {cell}line {place.line}{other}"


def analysis_of(project: Project) -> ContextAnalysis:
    """The analysis of `project`, made once and kept with it."""
    kept = project.__dict__.get("_contexts")
    if kept is None:
        kept = project.__dict__["_contexts"] = ContextAnalysis(project)
    return kept


def classify(project: Project, module: Module, call: ast.Call, kind: SiteKind) -> Verdict:
    """The context of `call` and why."""
    return analysis_of(project).classify(module, call, kind)


def classify_through(
    project: Project, module: Module, call: ast.Call, kind: SiteKind, caller: Chain
) -> Verdict:
    """The context of `call` when its function is reached through this chain of calls, innermost first."""
    return analysis_of(project).classify_through(module, call, kind, caller)
