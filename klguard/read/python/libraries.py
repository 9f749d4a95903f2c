"""What the libraries that carry settings do: configuration files, the objects of transformers, harmless
calls."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from klguard.engines import ENGINES, NEWEST
from klguard.read.python import nodes
from klguard.read.python.calls import Arguments
from klguard.read.python.command_lines import PARSERS
from klguard.read.python.control import Frame
from klguard.read.python.conversions import TEXT_READERS
from klguard.read.python.dataclass_parsers import DataclassParsers
from klguard.read.python.documents import load_document
from klguard.read.python.generators import STACKS
from klguard.read.python.methods import READING
from klguard.read.python.quiet import ECHOES, QUIET_METHODS, QUIET_PACKAGES
from klguard.read.python.state import State, join_states, reachable, truth
from klguard.read.python.values import (
    MISSING,
    Abstract,
    ClassObj,
    Const,
    DictObj,
    Ext,
    Func,
    InstObj,
    ListObj,
    Method,
    Ref,
    Step,
    Tup,
    Unk,
    join,
    members,
)
from klguard.settings import MAX_ALTERNATIVES, HopKind, Reason

DATACLASS_PARSERS = frozenset(
    {
        "transformers.HfArgumentParser",
        "transformers.hf_argparser.HfArgumentParser",
        "trl.TrlParser",
        "trl.scripts.utils.TrlParser",
        "trl.commands.cli_utils.TrlParser",
    }
)

DATACLASS_CLIS = frozenset(
    {"tyro.cli", "simple_parsing.parse", "draccus.parse", "pyrallis.parse", "jsonargparse.CLI"}
)

FUNCTION_CLIS = frozenset({"fire.Fire", "typer.run", "tyro.cli", "jsonargparse.CLI", "defopt.run"})

OPTIONS = frozenset({"typer.Option", "typer.Argument"})

LOADERS = {
    "yaml.safe_load": "yaml",
    "yaml.load": "yaml",
    "yaml.full_load": "yaml",
    "json.load": "json",
    "toml.load": "toml",
    "tomllib.load": "toml",
    "omegaconf.OmegaConf.load": "yaml",
}

SETTINGS_OBJECTS = frozenset({"GenerationConfig", "SamplingParams", "BeamSearchParams"})
"""Classes whose fields are settings of generation."""

SETTING_NAMES = frozenset(name for engine in ENGINES.values() for name in engine.settings)

_STEADY = frozenset(
    {"open", "path", "field", "dataclass-field", "nullcontext", "dict_keys", "dict_items", "dict_values"}
)
"""Kinds of objects whose methods do not change them."""

_CHANGES = re.compile(
    r"_*(set|update|merge|load|reset|clear|pop|apply|override|remove|delete|add|register|assign|insert|append|extend)"
)
"""Beginnings of the names of methods that change the object they belong to."""

MAX_DOCUMENTS = 40
"""Configuration files of the project that are opened where code does not say which one it loads."""


class Libraries(DataclassParsers):
    """Calls of library functions."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._documents: dict[str, list[Any]] = {}

    def library_call(  # type: ignore[override]
        self, callee: Ext, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract | None:
        name = callee.name
        if name in PARSERS:
            return self.make_parser(args, node, state)
        for value in args.positional:
            self.forget_parser(value, state)
        if name in DATACLASS_PARSERS or name.endswith((".HfArgumentParser", ".TrlParser")):
            types = args.get("dataclass_types", 0) or Unk(Reason.RUNTIME, self.text(node))
            return self.new_instance(
                "transformers.HfArgumentParser", {"types": types}, state, text=self.text(node)
            )
        if name in FUNCTION_CLIS and args.positional and isinstance(args.positional[0], Func):
            return self.run_command(args.positional[0], node, state, frame)
        if name in DATACLASS_CLIS and args.positional:
            return self.from_command_line(args.positional[0], args.get("args"), node, state, frame)
        if name == "pathlib.Path" and len(args.positional) == 1 and isinstance(args.positional[0], Const):
            return self.new_instance("path", {"path": args.positional[0]}, state, text=self.text(node))
        if name in TEXT_READERS and args.positional:
            kind = self.kind_of(args.positional[0], state)
            if kind == "json-text":
                return self.duplicate(self.part(args.positional[0], state), state, {}, deep=True)  # type: ignore[arg-type]
            if kind != "text-of-file" and name not in LOADERS:
                return None
            return self._load(name, args, node, state, frame)
        if name == "klguard.pure_sampling":
            return self._pure_sampling(args, node, state, frame)
        if name in OPTIONS:
            return self.option(args, node, frame)
        if name in LOADERS:
            return self._load(name, args, node, state, frame)
        if name.endswith("GenerationConfig.from_dict") and args.positional:
            return self._object("transformers.GenerationConfig", args.positional[0], node, state)
        if name.startswith("omegaconf.OmegaConf."):
            return self._omegaconf(name.rpartition(".")[2], args, node, state)
        return self._foreign_instance(callee, args, node, state, frame)

    def _pure_sampling(
        self, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract | None:
        """The dict that klguard itself makes: every setting at its neutral value, and what it is given beside it."""
        from klguard.pure import SAMPLERS, pure_sampling

        engine = args.get("engine", 0) or Const("transformers")
        if not isinstance(engine, Const) or engine.value not in SAMPLERS or args.more_positional is not None:
            return None
        steps = (Step(HopKind.LITERAL, frame.unit, node, "neutral, by klguard.pure_sampling"),)
        neutral = pure_sampling(engine.value, NEWEST[engine.value])
        entries: dict[Any, Abstract] = {name: Const(value, steps) for name, value in neutral.items()}
        entries |= {k: v for k, v in args.keywords.items() if k not in ("engine", "version")}
        return self.new_dict(entries, state, args.rest, steps=steps)

    def _omegaconf(self, name: str, args: Arguments, node: nodes.Call, state: State) -> Abstract | None:
        """OmegaConf.merge, to_container, structured; what else may change a configuration makes it
        unknown."""
        if name == "merge" and args.positional and args.more_positional is None:
            merged: Abstract = self.new_dict({}, state)
            for source in args.positional:
                merged = self._merged(merged, source, self.text(node), state)
            return self.dict_like(merged, state)
        if name in ("to_container", "to_object") and args.positional:
            return self._plain_dict(args.positional[0], state)
        if name == "update":
            self.escape(args.positional[:1], f"{self.text(node.func)}()", state)
        elif name == "resolve":
            self._resolve_interpolations(args.positional[:1], f"{self.text(node.func)}()", state)
        return Const(None) if name in ("update", "resolve", "set_struct", "clear_resolvers") else None

    def _resolve_interpolations(self, values: Sequence[Abstract], where: str, state: State) -> None:
        """What is written as `${another.value}` becomes that value; all else stays."""
        for oid in list(reachable(values, state)):
            obj = state.heap[oid]
            if isinstance(obj, DictObj):
                entries = {
                    key: Unk(Reason.ESCAPED, where) if _has_interpolation(value) else value
                    for key, value in obj.entries.items()
                }
                state.heap[oid] = DictObj(entries, obj.rest)
            elif isinstance(obj, ListObj) and any(map(_has_interpolation, obj.items or ())):
                state.heap[oid] = ListObj(None)

    def _merged(self, left: Abstract, right: Abstract, text: str, state: State) -> Abstract:
        """A dict with the contents of both, the right one's first, level by level."""
        mine, theirs = self.dict_of(left, state), self.dict_of(right, state)
        ref = self.new_dict(
            dict(mine.entries) if mine is not None else {}, state, mine.rest if mine is not None else None
        )
        if theirs is None:
            self.merge_into(ref, right, state, text)
            return ref
        entries = {
            key: self._merged(mine.entries[key], value, text, state)
            if mine is not None
            and self.dict_of(mine.entries.get(key, value), state) is not None
            and key in mine.entries
            and self.dict_of(value, state) is not None
            else value
            for key, value in theirs.entries.items()
        }
        self.merge_into(ref, self.new_dict(entries, state, theirs.rest), state, text)
        return ref

    def _plain_dict(self, value: Abstract, state: State) -> Abstract | None:
        """A copy of a configuration as plain dicts."""
        obj = self.dict_of(value, state)
        if obj is None:
            return None
        return self.new_dict(
            {key: self._plain_entry(inner, state) for key, inner in obj.entries.items()}, state, obj.rest
        )

    def _plain_entry(self, value: Abstract, state: State) -> Abstract:
        nested = isinstance(value, Ref) and self.dict_of(value, state) is not None
        plain = self._plain_dict(value, state) if nested else None
        return plain if plain is not None else self.duplicate(value, state, {}, deep=True)

    # -- instances of library classes ------------------------------------------------------------------------

    def _foreign_instance(
        self, callee: Ext, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract | None:
        package, _, last = callee.name.rpartition(".")
        maker = (
            package.rpartition(".")[2]
            if last in ("from_pretrained", "from_config", "from_model_config")
            else last
        )
        if not maker[:1].isupper() or package == "builtins":
            return None
        made_by = callee.name if last == maker else package
        if made_by.endswith(".GenerationConfig"):
            made_by = "transformers.GenerationConfig"
        text = self.text(node)
        if not self.harmless(callee, text):
            self.escape(args.all(), f"passed to {text}", state)
        known = dict(args.keywords) if last == maker else {}
        settings = maker in SETTINGS_OBJECTS
        rest = args.rest if last == maker else None
        if rest is None and not settings:
            rest = Unk(Reason.RUNTIME, text)
        steps = (Step(HopKind.LITERAL, frame.unit, node, "made here"),)
        return self.new_instance(made_by, known, state, rest=rest, text=text, steps=steps)

    def _object(self, made_by: str, contents: Abstract, node: nodes.Call, state: State) -> Abstract:
        ref = self.new_dict({}, state)
        self.merge_into(ref, contents, state, self.text(node))
        return self.new(InstObj(None, made_by, ref.oid, self.text(node)), state)

    def object_method(  # type: ignore[override]
        self, callee: Method, obj: Any, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract | None:
        if not isinstance(obj, InstObj) or not isinstance(callee.owner, Ref):
            return None
        if obj.made_by == "argparse.ArgumentParser":
            return self.parser_method(callee.owner, callee.name, args, node, state, frame)
        if obj.made_by == "subparsers":
            known = callee.name == "add_parser"
            return (
                self.subparser(callee.owner, args, node, state)
                if known
                else Unk(Reason.RUNTIME, self.text(node))
            )
        if obj.made_by == "transformers.HfArgumentParser":
            return self.dataclass_parser(obj, callee.name, args, node, state, frame)
        if obj.made_by in ("transformers.GenerationConfig", "dict-like") and callee.name == "to_dict":
            attrs = self.dict_of(Ref(obj.attrs), state) or DictObj()
            # A GenerationConfig lists every field it has, with None or a default by version.
            unset = None if obj.made_by == "dict-like" else Unk(Reason.RUNTIME, self.text(node))
            return self.new_dict(dict(attrs.entries), state, attrs.rest or unset)
        if obj.made_by == "transformers.GenerationConfig" and callee.name == "to_diff_dict":
            attrs = self.dict_of(Ref(obj.attrs), state) or DictObj()
            entries = {k: join((v, MISSING)) if _is_a_default(v) else v for k, v in attrs.entries.items()}
            return self.new_dict(entries, state, attrs.rest or Unk(Reason.RUNTIME, self.text(node)))
        if obj.made_by == "transformers.GenerationConfig" and callee.name == "update":
            self.merge_keywords(Ref(obj.attrs), args, state)
            return Const(None)
        if (obj.made_by, callee.name) in (("open", "read"), ("path", "read_text"), ("path", "open")):
            path = self._path_of(callee.owner, state)
            return self.make("text-of-file", path or Unk(Reason.RUNTIME, "a path"), state, self.text(node))
        return self.object_call(callee, obj.made_by, args, node, state)

    def enter(self, value: Abstract, state: State, frame: Frame) -> Abstract:  # type: ignore[override]
        """What `with value as x` binds."""
        obj = state.heap.get(value.oid) if isinstance(value, Ref) else None
        if isinstance(obj, InstObj) and obj.cls is not None:
            method = self.class_attribute(obj.cls, "__enter__", state)
            if not isinstance(method, Func):
                method = self.class_attribute(obj.cls, "__aenter__", state)
            if isinstance(method, Func):
                return self.invoke(replace(method, bound=value), Arguments(), None, state, frame)
        if isinstance(obj, InstObj) and obj.made_by == "nullcontext":
            return self.get_attribute(value, "enter_result", state, frame)
        if isinstance(value, Tup) and len(value.items) == 1:
            return value.items[0]
        return value

    def leaves_quietly(self, manager: Abstract, state: State) -> bool:  # type: ignore[override]
        """Whether nothing of the project runs when a `with` over this value ends."""
        return all(
            self._exit_of(member, state) is None and self.kind_of(member, state) not in STACKS
            for member in members(manager)
        )

    def leave(  # type: ignore[override]
        self, manager: Abstract, raised: bool, state: State, frame: Frame
    ) -> bool | None:
        """Run `__exit__`, with an exception or without: whether it swallows it, None where that is not known."""
        told: Abstract = Unk(Reason.RUNTIME, "the exception") if raised else Const(None)
        answers, states = [], []
        for member in members(manager):
            branch = state.copy()
            method = self._exit_of(member, state)
            result: Abstract = Const(None)
            if isinstance(member, Ref) and self.kind_of(member, state) in STACKS:
                self._unwind(member, branch, frame)
                result = Unk(Reason.RUNTIME, "whether an exception is swallowed")
            if isinstance(method, Func):
                arguments = Arguments([told] * 3)
                result = self.invoke(replace(method, bound=member), arguments, None, branch, frame)
            answers.append(truth(result, branch))
            states.append(branch)
        merged = join_states(states)
        assert merged is not None
        state.become(merged)
        return answers[0] if len(set(answers)) == 1 else None

    def _stack_method(
        self, owner: Ref, name: str, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract | None:
        """`ExitStack.enter_context`, `push` and `callback`: something runs when the stack is left."""
        if name in ("close", "pop_all", "aclose"):
            self._unwind(owner, state, frame)
        if name not in ("enter_context", "push", "callback") or not args.positional:
            return None
        first, *rest = args.positional
        kept = self._stacked.setdefault(owner.oid, [])
        kept.append((name, first, replace(args, positional=rest), node))
        return self.enter(first, state, frame) if name == "enter_context" else first

    def _unwind(self, stack: Ref, state: State, frame: Frame) -> None:
        """What a stack was given runs, as far as this path has given it."""
        for name, first, args, node in reversed(self._stacked.get(stack.oid, [])):
            branch = state.copy()
            if name == "callback":
                self.call(first, args, node, branch, frame)
            else:
                self.resume(first, branch)
                if not self.leaves_quietly(first, branch):
                    self.leave(first, False, branch, frame)
                elif name == "push":
                    self.escape([first], "changed when the stack is left", branch)
            merged = join_states([state, branch])
            assert merged is not None
            state.become(merged)

    def is_made_of(self, value: Abstract, wanted: Ref, state: State) -> bool | None:  # type: ignore[override]
        """Whether a value is an instance of a class of the project, None where that is not known."""
        obj = state.heap.get(value.oid) if isinstance(value, Ref) else None
        made_of = obj.cls if isinstance(obj, InstObj) else value if isinstance(obj, ClassObj) else None
        if isinstance(value, Ext) or (isinstance(obj, InstObj) and obj.cls is None):
            return False
        if not isinstance(made_of, Ref) or isinstance(obj, ClassObj):
            return None
        return any(isinstance(base, Ref) and base.oid == wanted.oid for base in self.mro(made_of, state))

    def _exit_of(self, manager: Abstract, state: State) -> Abstract | None:
        obj = state.heap.get(manager.oid) if isinstance(manager, Ref) else None
        if not isinstance(obj, InstObj) or obj.cls is None:
            return None
        for name in ("__exit__", "__aexit__"):
            if isinstance(method := self.class_attribute(obj.cls, name, state), Func):
                return method
        return None

    # -- configuration files ---------------------------------------------------------------------------------

    def _load(self, name: str, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract:
        unknown = Unk(Reason.RUNTIME, self.text(node), oid=("call", next(self._fresh)))
        kind = LOADERS.get(name) or TEXT_READERS[name]
        path = self._path_of(args.get("stream", 0), state)
        if path is not None:
            contents = self.read_document(path, kind, state, frame)
        else:
            contents = self._any_document(kind, unknown, node, state, frame)
        if contents is None:
            return unknown
        return self.dict_like(contents, state) if "OmegaConf" in name else contents

    def _any_document(
        self, kind: str, unknown: Unk, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract | None:
        """A file named only at run time: one of the project's whose top-level keys this module asks for,
        or another."""
        if kind != "yaml":
            return None
        found = [
            item
            for item in self._project_documents(kind)
            if isinstance(item.value, dict)
            and item.value
            and any(re.search(rf"\b{re.escape(str(key))}\b", frame.module.text) for key in item.value)
        ]
        if not found or len(found) > MAX_ALTERNATIVES - 1:
            return None
        soft = (self.flag_step(node, frame, "that names the file"),)
        return self._one_of_documents(found, unknown, soft, state)

    def _one_of_documents(
        self, items: list[Any], unknown: Unk, soft: tuple[Step, ...], state: State
    ) -> Abstract:
        """The join of several documents, key by key: each value is one of theirs, or unknown."""
        dicts = [item for item in items if isinstance(item.value, dict)]
        if len(dicts) < len(items):
            return join(
                [*(self._from_document(item, soft, state) for item in items), replace(unknown, oid=None)]
            )
        entries: dict[Any, Abstract] = {}
        for key in dict.fromkeys(key for item in dicts for key in item.value):
            detail = replace(unknown, detail=f"{key} in {unknown.detail}", oid=None)
            entries[key] = self._one_of_documents(
                [d.value[key] for d in dicts if key in d.value], detail, soft, state
            )
        return self.new_dict(entries, state, replace(unknown, oid=None))

    def _project_documents(self, kind: str) -> list[Any]:
        if kind not in self._documents:
            files = sorted(
                file
                for ending in ("*.yaml", "*.yml")
                for file in islice(self.project.root.rglob(ending), MAX_DOCUMENTS)
                if not any(
                    part.startswith(".") or part in ("node_modules", "site-packages") for part in file.parts
                )
            )
            loaded = (load_document(file, kind) for file in files[:MAX_DOCUMENTS])
            self._documents[kind] = [item for item in loaded if item is not None]
        return self._documents[kind]

    def _path_of(self, source: Abstract | None, state: State) -> Const | None:
        """The path behind a file, a Path, or the text read from them."""
        for _ in range(3):
            obj = state.heap.get(source.oid) if isinstance(source, Ref) else None
            if not isinstance(source, Ref) or not isinstance(obj, InstObj):
                break
            if obj.made_by == "text-of-file":
                source = self.part(source, state)
            elif obj.made_by in ("open", "path"):
                attrs = self.dict_of(Ref(obj.attrs), state)
                source = attrs.entries.get("path") if attrs else None
        return source if isinstance(source, Const) and isinstance(source.value, str) else None

    def read_document(self, path: Const, kind: str, state: State, frame: Frame) -> Abstract | None:
        """The contents of a configuration file of the project, looked for where the program would find it."""
        here = self.project.paths.get(frame.module.path, Path(frame.module.path)).parent
        for base in dict.fromkeys((self.project.root, Path("."), here, *list(here.parents)[:3])):
            file = base / path.value
            if file.is_file():
                contents = load_document(file, kind)
                soft = tuple(step for step in path.steps if step.kind is HopKind.ARGPARSE)
                return None if contents is None else self._from_document(contents, soft, state)
        return None

    def _from_document(self, item: Any, soft: tuple[Step, ...], state: State) -> Abstract:
        step = Step(HopKind.DOCUMENT, None, None, f"read from {item.place.path}", item.place)
        if isinstance(item.value, dict):
            entries = {key: self._from_document(value, soft, state) for key, value in item.value.items()}
            return self.new_dict(entries, state, steps=(step, *soft))
        if isinstance(item.value, list):
            return self.new(
                ListObj(tuple(self._from_document(v, soft, state) for v in item.value)), state, (step,)
            )
        return Const(item.value, (step, *soft))

    def instance_attribute(  # type: ignore[override]
        self, owner: Ref, obj: Any, name: str, state: State, frame: Frame
    ) -> Abstract:
        """A field of a settings object that was not given holds None or a default, by version."""
        found = super().instance_attribute(owner, obj, name, state, frame)
        made_by = obj.made_by.rpartition(".")[2] if isinstance(obj, InstObj) and obj.cls is None else ""
        if made_by in SETTINGS_OBJECTS and isinstance(found, Method) and name in SETTING_NAMES:
            return Unk(Reason.RUNTIME, f"{obj.text}.{name}")
        return found

    def model_call(  # type: ignore[override]
        self, callee: Abstract, arguments: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract | None:
        """`model.generation_config.update(top_k=0)` sets fields of an object that is not visible."""
        stack = callee.owner if isinstance(callee, Unk) else None
        if isinstance(stack, Ref) and isinstance(callee, Unk) and self.kind_of(stack, state) in STACKS:
            return self._stack_method(stack, callee.name, arguments, node, state, frame)
        owner = callee.owner if isinstance(callee, Unk) and callee.name == "update" else None
        if not isinstance(owner, Unk) or owner.name != "generation_config" or owner.oid is None:
            return super().model_call(callee, arguments, node, state, frame)
        home = ("overlay", owner.oid)
        known = state.heap.get(home)
        state.heap[home] = known if isinstance(known, DictObj) else DictObj()
        self.merge_keywords(Ref(home), arguments, state)
        return Unk(Reason.RUNTIME, self.text(node))

    # -- what code that is not visible does ------------------------------------------------------------------

    def harmless(self, callee: Abstract, text: str) -> bool:  # type: ignore[override]
        """Whether a call that is not visible leaves the dicts it is given as they are."""
        options = members(callee)
        return all(self._harmless_one(option) for option in options)

    def _harmless_one(self, callee: Abstract) -> bool:
        if isinstance(callee, Ext):
            package = callee.name.split(".")[0]
            return package in QUIET_PACKAGES or callee.name.rpartition(".")[2] in ECHOES
        if isinstance(callee, (Unk, Method)) and callee.owner is not None:
            return callee.name in QUIET_METHODS
        return False

    def is_quiet(self, kind: str, method: str) -> bool:  # type: ignore[override]
        """Whether a method of a library object leaves what is known of the object as it is."""
        if method in QUIET_METHODS or method in READING:
            return True
        return kind.split(".")[0] in QUIET_PACKAGES and _CHANGES.match(method) is None or kind in _STEADY


def _has_interpolation(value: Abstract) -> bool:
    """Whether a value may be text with an OmegaConf interpolation in it."""
    return any(isinstance(m, Const) and isinstance(m.value, str) and "${" in m.value for m in members(value))


def _is_a_default(value: Abstract) -> bool:
    """Whether a field of a GenerationConfig may hold this by default in some version: those are left out of a diff."""
    known = [member.value for member in members(value) if isinstance(member, Const)]
    return len(known) < len(members(value)) or any(
        v is not True and v in (None, 0, 1, 5, 20, 50) for v in known
    )
