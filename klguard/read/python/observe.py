"""Sites as the interpreter meets them: which calls are sites, and which settings arrive there."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from klguard.engines import ENGINES
from klguard.read.python import nodes
from klguard.read.python.arrivals import Arrivals, join_layers
from klguard.read.python.calls import Arguments
from klguard.read.python.candidates import CLASS_KINDS, ENGINE_METHODS, METHODS
from klguard.read.python.control import Frame
from klguard.read.python.source import ClassInfo, FunctionInfo, Module, Unit
from klguard.read.python.state import State
from klguard.read.python.trees import walk_level
from klguard.read.python.values import (
    Abstract,
    ClassObj,
    DictObj,
    Ext,
    Func,
    InstObj,
    ListObj,
    Method,
    Partial,
    Ref,
    Unk,
    members,
)
from klguard.settings import Layer, LayerKind, Reason, SiteKind, Unknown, Value

if TYPE_CHECKING:
    from klguard.read.python.project import Project


FOREIGN_ARGUMENTS = frozenset(
    "prompt prompts messages text texts query queries tokens input_ gconfig gen_config max_tokens max_gen_len "
    "max_len max_length_sample seq_len num_micro_batches length_params use_tqdm params generator rng key "
    "num_samples n_samples group_size request_id eos_token pad_token".split()
)
"""Keywords that transformers' generate() does not have: with one of them the call is somebody else's."""

FOR_TOKENIZER = frozenset({"stop_strings", "assistant_model", "assistant_tokenizer", "generation_config"})
"""What transformers' generate() wants a tokenizer for; beside none of these, somebody else wants it."""

TOKENS = re.compile(r"input|ids|token|prompt|quer|seq|tensor|enc|context|obs|idx", re.IGNORECASE)
"""The name of the only argument of a generate() that may still be that of transformers."""

OBJECTS = re.compile(r"config|cfg|gen_?kw|settings", re.IGNORECASE)
"""The name of a second positional argument that may be transformers' generation_config."""


ASSIGNED = "generation_config"
"""In place of a class name: the site is an assignment to one field of a model's own config."""

MODEL_LIBRARIES = frozenset({"transformers", "trl", "peft", "unsloth"})
"""Packages whose model classes bring transformers' generate()."""

MAX_RIVALS = 40
"""Files searched for samplers of the project's own."""

Key = tuple[str, int, int, int, int]
"""Path and span of a call."""


@dataclass(eq=False)
class Observation:
    """One visit of the interpreter to a site: what was in force there, and the chain of calls that led to it."""

    module: Module
    span: tuple[int, int, int, int]
    call: str
    kind: SiteKind
    engine: str
    class_name: str
    layers: tuple[Layer, ...]
    chain: tuple[Any, ...]
    dead: bool
    facts: dict[str, Value] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        return (self.module.path, *self.span)


class Observer(Arrivals):
    """The interpreter, with eyes for sites."""

    def __init__(
        self,
        project: Project,
        functions: frozenset[str] = frozenset(),
        trainers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(project)
        self.functions = functions
        self.trainers = dict(trainers or {})
        self.observations: dict[Key, list[Observation]] = {}
        self._count = 0
        self._latest: list[Observation] = []
        self._behind: dict[nodes.Call, FunctionInfo | None] = {}
        self._samplers: list[ClassInfo] | None = None
        self.used_partials: set[Key] = set()
        self._partial_keys: dict[Any, Key] = {}
        self.config_readers: dict[Key, dict[Key, SiteKind]] = {}
        self._config_writers: dict[Any, list[Key]] = {}

    # -- which calls are sites ---------------------------------------------------------------------------------

    def observe(  # type: ignore[override]
        self, node: nodes.Call, callee: Abstract, arguments: Arguments, state: State, frame: Frame
    ) -> tuple[int, Observation | None]:
        found = self._recognise(node, callee, arguments, state, frame) if frame.unit is not None else None
        if found is not None:
            self._record(found)
            self._note_readers(found, callee, arguments)
        return len(self._latest), found

    def _note_readers(self, found: Observation, callee: Abstract, arguments: Arguments) -> None:
        """A site that samples with a model reads what was assigned to the model's generation_config before."""
        if not self._config_writers or found.kind not in (SiteKind.GENERATE, SiteKind.TRAINER):
            return
        owners = [m.owner for m in members(callee) if isinstance(m, (Unk, Method)) and m.owner is not None]
        for value in (*owners, *arguments.all()):
            for member in members(value):
                oid = member.oid if isinstance(member, (Unk, Ref)) else None
                for key in self._config_writers.get(oid, ()) if oid is not None else ():
                    self.config_readers.setdefault(key, {})[found.key] = found.kind

    def observed(  # type: ignore[override]
        self,
        token: tuple[int, Observation | None],
        node: nodes.Call,
        callee: Abstract,
        arguments: Arguments,
        state: State,
        frame: Frame,
    ) -> None:
        """A call of the project's own generate() that ends in a library's: what is in force there is in force here."""
        start, outer = token
        if outer is None or outer.engine != "local" or outer.kind is not SiteKind.GENERATE:
            return
        inner = [o for o in self._latest[start:] if o.kind is SiteKind.GENERATE and o.engine != "local"]
        if inner and len({o.key for o in inner}) == 1:
            outer.engine, outer.class_name = inner[0].engine, inner[0].class_name
            outer.layers = join_layers([o.layers for o in inner])

    def _record(self, found: Observation) -> None:
        self.observations.setdefault(found.key, []).append(found)
        self._latest.append(found)
        if len(self._latest) > 2000:
            del self._latest[:1000]

    def _recognise(
        self, node: nodes.Call, callee: Abstract, arguments: Arguments, state: State, frame: Frame
    ) -> Observation | None:
        if isinstance(callee, Ext) and callee.name == "functools.partial" and arguments.positional:
            callee, *rest = arguments.positional
            arguments = replace(arguments, positional=rest)
        for option in members(callee):
            name, engine, kind, class_name = self._identify(option, node, arguments, state, frame)
            if kind is None:
                continue
            assert frame.unit is not None
            layers = self._layers(engine, kind, class_name or name, option, node, arguments, state)
            return Observation(
                frame.module,
                self._span(frame.unit, node),
                self.text(node.func),
                kind,
                engine,
                class_name,
                layers,
                frame.chain,
                frame.dead,
            )
        return None

    def _partial(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        made = super()._partial(args, node, state, frame)
        if isinstance(made, Partial) and frame.unit is not None:
            self._partial_keys[made.kwargs.oid] = (frame.module.path, *self._span(frame.unit, node))
        return made

    def _call_partial(
        self, callee: Partial, arguments: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        """What a partial holds is in force where it is called, together with what the call adds."""
        if (key := self._partial_keys.get(callee.kwargs.oid)) is not None:
            self.used_partials.add(key)
        return super()._call_partial(callee, arguments, node, state, frame)

    def _span(self, unit: Unit, node: nodes.Node) -> tuple[int, int, int, int]:
        try:
            return unit.span(node)
        except KeyError:
            return (0, 0, 0, 0)

    def _identify(
        self, callee: Abstract, node: nodes.Call, arguments: Arguments, state: State, frame: Frame
    ) -> tuple[str, str, SiteKind | None, str]:
        """(bare name, engine, kind, dotted class name) of what is called; kind None where it is no site."""
        if isinstance(callee, Ext):
            return self._external(callee.name, arguments, state)
        obj = state.heap.get(callee.oid) if isinstance(callee, Ref) else None
        if isinstance(obj, ClassObj):
            return self._project_class(callee, obj, state)
        if isinstance(callee, Func):
            return self._project_function(callee)
        if isinstance(callee, (Unk, Method)):
            return self._method_site(callee, node, arguments, state, frame)
        return "", "", None, ""

    def _external(
        self, name: str, arguments: Arguments, state: State
    ) -> tuple[str, str, SiteKind | None, str]:
        package, last = name.split(".")[0], name.rpartition(".")[2]
        if name in self.functions or last in self.functions:
            return last, "transformers", SiteKind.GENERATE, name
        if name in self.trainers or last in self.trainers:
            return last, "trl", SiteKind.TRAINER, self.trainers.get(name, self.trainers.get(last, last))
        if package == "trlx" and last == "train":
            return last, "trlx", SiteKind.TRAINER, name
        if last in CLASS_KINDS or last in METHODS:
            for engine in ENGINES.values():
                kind = engine.sites.get(last)
                if kind is not None and (
                    package in engine.packages or (package == "sgl" and engine.name == "sglang")
                ):
                    return last, engine.name, kind, name
            kind = CLASS_KINDS.get(last, SiteKind.GENERATE)
            if package in ("unsloth", "swift", "rl4lms") and kind is not SiteKind.GENERATE:
                return last, "trl", kind, f"trl.{last}"
            return last, "local", kind, name
        return last, "", None, ""

    def _project_class(
        self, callee: Abstract, obj: ClassObj, state: State
    ) -> tuple[str, str, SiteKind | None, str]:
        inherited = None
        for base in self.mro(callee, state)[1:]:
            if isinstance(base, Ext):
                name, engine, kind, class_name = self._external(base.name, Arguments(), state)
                if kind is not None and engine != "local":
                    return obj.info.name, engine, kind, class_name
                inherited = inherited or kind
        name = obj.info.name
        if name in self.trainers:
            return name, "trl", SiteKind.TRAINER, self.trainers[name]
        kind = CLASS_KINDS.get(name, inherited)
        return name, "local", kind, name

    def _project_function(self, callee: Func) -> tuple[str, str, SiteKind | None, str]:
        name = callee.code.name
        if name in self.functions or f"{callee.code.module.name}.{name}" in self.functions:
            return name, "transformers", SiteKind.GENERATE, name
        if name in METHODS or name in CLASS_KINDS:
            return name, "local", CLASS_KINDS.get(name, SiteKind.GENERATE), name
        return name, "", None, ""

    def _method_site(
        self, callee: Unk | Method, node: nodes.Call, arguments: Arguments, state: State, frame: Frame
    ) -> tuple[str, str, SiteKind | None, str]:
        name = callee.name or node.name
        if name in ("remote", "options") and isinstance(callee, Unk) and isinstance(callee.owner, Unk):
            name = callee.owner.name
        text = self.text(node.func)
        if name in self.functions or text in self.functions:
            return name, "transformers", SiteKind.GENERATE, text
        if name in CLASS_KINDS and callee.owner is None:
            return self._unbound_class(name, frame)
        owner = callee.owner
        if name in ENGINE_METHODS:
            engine = self._engine_of(owner, node, arguments, state, frame)
            return name, engine, SiteKind.GENERATE if engine == "vllm" else None, name
        if name not in METHODS:
            return name, "", None, ""
        if (
            owner is not None
            and isinstance(owner, Ref)
            and isinstance(state.heap.get(owner.oid), (DictObj, ListObj))
        ):
            return name, "", None, ""
        engine = self._engine_of(owner, node, arguments, state, frame)
        return name, engine, SiteKind.GENERATE, self._trainer_class(owner, state) or name

    def _unbound_class(self, name: str, frame: Frame) -> tuple[str, str, SiteKind | None, str]:
        """A class nobody visibly imports: a star import of its library explains it, else it is not the real one."""
        for star in frame.module.star_imports:
            for engine in ENGINES.values():
                if star.split(".")[0] in engine.packages and name in engine.sites:
                    return name, engine.name, engine.sites[name], f"{star}.{name}"
        return name, "local", CLASS_KINDS[name], name

    def _trainer_class(self, owner: Abstract | None, state: State) -> str:
        obj = state.heap.get(owner.oid) if isinstance(owner, Ref) else None
        return obj.made_by if isinstance(obj, InstObj) and obj.made_by.startswith("trl") else ""

    def _engine_of(
        self, owner: Abstract | None, node: nodes.Call, arguments: Arguments, state: State, frame: Frame
    ) -> str:
        makers = [self._maker(owner, state)] if owner is not None else []
        makers += [self._maker(value, state) for value in arguments.all()]
        for maker in makers:
            if maker.endswith(".VLLMClient"):  # TRL's: plain numbers over HTTP, with defaults of its own
                return "local"
            if maker.startswith("vllm"):
                return "vllm"
            if maker.startswith(("sglang", "sgl.")):
                return "sglang"
        known = makers[0] if makers and makers[0].split(".")[0] in MODEL_LIBRARIES else ""
        if "sampling_params" in arguments.keywords:
            value = arguments.keywords["sampling_params"]
            if not known and "length_params" in arguments.keywords:  # NeMo's and Megatron's
                return "local"
            return "sglang" if self.dict_of(value, state) is not None else "vllm"
        if not known and node.name == "generate" and self._is_foreign(node, arguments):
            return "local"
        if not known and isinstance(owner, (Unk, type(None))):
            behind = self._method_behind(node, frame) or self._method_promised(owner)
            if behind is not None:
                return "transformers" if _passes_on(behind.node) else "local"
            if self._is_import(node, frame) or self._has_own_generate(frame.module, owner):
                return "local"
        return "transformers"

    def _is_foreign(self, node: nodes.Call, arguments: Arguments) -> bool:
        """Whether a `generate` on an object nobody knows is called as transformers' is not.

        What is left out of such a call cannot be held against it: its defaults are those of somebody else.
        """
        names = arguments.keywords.keys()
        if FOREIGN_ARGUMENTS & names or ("tokenizer" in names and not FOR_TOKENIZER & names):
            return True
        first, *others = [arg.value for arg in node.args if not arg.star and arg.keyword is None] or [None]
        if isinstance(first, nodes.Tuple) or len(others) > 1:
            return True
        if others and not OBJECTS.search(self.text(others[0])):
            return True
        if names or any(arg.star for arg in node.args):
            return False
        return first is None or not TOKENS.search(self.text(first))

    def _is_import(self, node: nodes.Call, frame: Frame) -> bool:
        """`module.generate(...)`: a function of a module is no model's method."""
        func = node.func
        return (
            isinstance(func, nodes.Attribute)
            and isinstance(func.value, nodes.Name)
            and (func.value.value in frame.module.imports)
        )

    def _rival(self, node: nodes.Call) -> ClassInfo | None:
        """A class of the project with a generate() of its own whose name speaks of the receiver (`self.policy` and
        `ActorPolicy`): where the receiver is not known, its defaults may be in force instead of the library's."""
        receiver = node.func.value if isinstance(node.func, nodes.Attribute) else None
        name = receiver.attr if isinstance(receiver, nodes.Attribute) else getattr(receiver, "value", "")
        if not isinstance(name, str) or len(name) < 4 or name in ("self", "model"):
            return None
        if self._samplers is None:
            found = (
                info
                for module in islice(self.project.mentioning(r"def\s+generate\b", "generate"), MAX_RIVALS)
                for info in module.classes.values()
                if "generate" in info.methods
            )
            self._samplers = [info for info in found if not _passes_on(info.methods["generate"].node)]
        words = {word for word in name.lower().split("_") if len(word) > 3}
        return next(
            (info for info in self._samplers if any(word in info.name.lower() for word in words)), None
        )

    def _method_behind(self, node: nodes.Call, frame: Frame) -> FunctionInfo | None:
        """The generate() of the project that a call enters although the interpreter does not know the receiver: the
        call graph infers classes from all assignments there are."""
        from klguard.read.python.context import analysis_of

        if node not in self._behind:
            self._behind[node] = None
            call = node.origin
            if call is not None and isinstance(call.func, ast.Attribute) and call.func.attr == "generate":
                graph = analysis_of(self.project).graph
                entered, found = (
                    graph.target(frame.module, call),
                    graph.class_of(frame.module, call.func.value),
                )
                if isinstance(entered, FunctionInfo) and entered.name == "generate":
                    self._behind[node] = entered
                elif isinstance(found, ClassInfo):
                    self._behind[node] = found.methods.get("generate")
        return self._behind[node]

    def _method_promised(self, owner: Abstract | None) -> FunctionInfo | None:
        """The generate() of the class that a function was to return which took too long to follow."""
        from klguard.read.python.context import analysis_of

        info = self.unfollowed.get(owner.oid) if isinstance(owner, Unk) else None
        found = analysis_of(self.project).graph.class_returned(info) if info is not None else None
        return found.methods.get("generate") if isinstance(found, ClassInfo) else None

    def _maker(self, value: Abstract, state: State) -> str:
        """Dotted name of the library class that made an object, "" where that is not known."""
        for member in members(value):
            if isinstance(member, Unk) and member.owner is not None:
                return self._maker(member.owner, state)
            obj = state.heap.get(member.oid) if isinstance(member, Ref) else None
            if isinstance(obj, InstObj) and obj.made_by:
                return obj.made_by
        return ""

    def _has_own_generate(self, module: Module, owner: Abstract | None) -> bool:
        """Whether a class that this file defines or imports has a generate() of its own, not passed on to a library."""
        if owner is None:
            return True
        for info in self._visible_classes(module):
            method = info.methods.get("generate")
            if method is not None and not _passes_on(method.node):
                return True
        return False

    def _visible_classes(self, module: Module) -> list[Any]:
        found = list(module.classes.values())
        for name in module.imports:
            target = self.project.resolve(name, module)
            if hasattr(target, "methods"):
                found.append(target)
        return found

    def _added_on_the_way(self, node: nodes.Call, callee: Abstract, state: State) -> Unknown | None:
        """Why more may be in force than what a call passes: a generate() of the project stands between."""
        if node.name in ("remote", "options"):
            return Unknown(Reason.INVISIBLE_CALL, "what the remote generate() adds")
        owner = callee.owner if isinstance(callee, Unk) else None
        obj = state.heap.get(owner.oid) if isinstance(owner, Ref) else None
        if isinstance(obj, InstObj) and isinstance(obj.cls, Ref):
            bases = [base.name for base in self.mro(obj.cls, state) if isinstance(base, Ext)]
            if not any(name.split(".")[0] in MODEL_LIBRARIES for name in bases):
                return Unknown(Reason.INVISIBLE_CALL, "what an inherited generate() adds")
        if (behind := self._behind.get(node)) is not None:
            return Unknown(Reason.INVISIBLE_CALL, f"what {behind.qualname}() adds")
        if (
            isinstance(callee, Unk)
            and not self._maker(callee, state)
            and (rival := self._rival(node)) is not None
        ):
            return Unknown(Reason.INVISIBLE_CALL, f"whether this is {rival.name}.generate()")
        return None

    def note_assignment(
        self, target: nodes.Attribute, owner: Abstract, value: Abstract, state: State, frame: Frame
    ) -> None:
        """`x.generation_config.top_k = 5` fixes a setting."""
        inner = target.value
        if (
            not (isinstance(inner, nodes.Attribute) and inner.attr == "generation_config")
            or frame.unit is None
        ):
            return
        others = Unknown(Reason.RUNTIME, self.text(inner))
        layer = Layer(LayerKind.OBJECT, {target.attr: self.to_value(value, state)}, others)
        found = Observation(
            frame.module,
            self._span(frame.unit, target),
            self.text(target),
            SiteKind.GENERATION_CONFIG,
            "transformers",
            ASSIGNED,
            (layer,),
            frame.chain,
            frame.dead,
        )
        self._record(found)
        model = self.eval(inner.value, state.copy(), frame) if isinstance(inner.value, nodes.Name) else None
        models = members(model) if model is not None else (owner.owner if isinstance(owner, Unk) else None,)
        for member in models:
            if isinstance(member, (Unk, Ref)) and member.oid is not None:
                self._config_writers.setdefault(member.oid, []).append(found.key)


def _passes_on(node: Any) -> bool:
    """Whether a generate() hands its **kwargs to another generate()."""
    return any(
        isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "generate"
        for call in walk_level(node)
    )
