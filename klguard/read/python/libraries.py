"""What the libraries that carry settings do: command lines, configuration files, and the objects of transformers.

A value that a command line may replace keeps its default and a step that says so (`HopKind.ARGPARSE`): it is what a
run without flags uses, but no branch is decided by it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import libcst as cst

from klguard.read.python.calls import Arguments
from klguard.read.python.documents import load_document
from klguard.read.python.flow import Frame
from klguard.read.python.models import Models
from klguard.read.python.values import (
    Abstract, ClassObj, Const, DictObj, Ext, Func, InstObj, ListObj, Method, Missing, Ref, State, Step, Tup, Unk,
    join, members, with_step,
)
from klguard.settings import MAX_ALTERNATIVES, HopKind, Reason

PARSERS = frozenset({"argparse.ArgumentParser", "configargparse.ArgumentParser", "configargparse.ArgParser"})

DATACLASS_PARSERS = frozenset({
    "transformers.HfArgumentParser", "transformers.hf_argparser.HfArgumentParser", "trl.TrlParser",
    "trl.scripts.utils.TrlParser", "trl.commands.cli_utils.TrlParser",
})

DATACLASS_CLIS = frozenset({"tyro.cli", "simple_parsing.parse", "draccus.parse", "pyrallis.parse", "jsonargparse.CLI"})

FUNCTION_CLIS = frozenset({"fire.Fire", "typer.run", "tyro.cli", "jsonargparse.CLI", "defopt.run"})

OPTIONS = frozenset({"typer.Option", "typer.Argument"})

LOADERS = {
    "yaml.safe_load": "yaml", "yaml.load": "yaml", "yaml.full_load": "yaml", "json.load": "json", "toml.load": "toml",
    "tomllib.load": "toml", "omegaconf.OmegaConf.load": "yaml",
}

ECHOES = frozenset("print json.dump json.dumps yaml.dump pprint.pprint len repr str".split())

QUIET_PACKAGES = frozenset(
    "builtins torch transformers trl trlx vllm sglang peft accelerate datasets numpy np pandas pd wandb logging json "
    "yaml os sys time re math random copy pathlib shutil typing tqdm rich pprint matplotlib seaborn evaluate deepspeed "
    "bitsandbytes huggingface_hub safetensors tensorboard tensorboardX mlflow comet_ml swanlab hydra omegaconf gc "
    "collections functools itertools dataclasses argparse warnings datetime statistics string uuid hashlib pickle "
    "joblib scipy sklearn nltk rouge_score tiktoken sentencepiece ray unsloth loguru structlog click typer gradio "
    "streamlit fastapi flask requests httpx openai anthropic google einops jax flax optax mlx mlx_lm".split()
)
"""Packages whose functions read the dicts they are given and leave them as they are."""

QUIET_METHODS = frozenset(
    "log info debug warning warn error exception critical print write append add update_config define_metric "
    "set_postfix set_description generate step train eval to forward put get send save save_pretrained "
    "from_pretrained from_config init watch record emit dump dumps log_metrics log_params log_param track report".split()
)
"""Methods of objects that are not visible which, by their name, only read what they are given."""


MAX_DOCUMENTS = 40
"""Configuration files of the project that are opened where code does not say which one it loads."""


class Libraries(Models):
    """Calls of library functions."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._documents: dict[str, list[Any]] = {}

    def library_call(  # type: ignore[override]
        self, callee: Ext, args: Arguments, node: cst.Call, state: State, frame: Frame
    ) -> Abstract | None:
        name = callee.name
        if name in PARSERS:
            options = self.new_dict({}, state)
            return self.new_instance("argparse.ArgumentParser", {"options": options}, state, text=self.text(node))
        if name in DATACLASS_PARSERS or name.endswith((".HfArgumentParser", ".TrlParser")):
            types = args.get("dataclass_types", 0) or Unk(Reason.RUNTIME, self.text(node))
            return self.new_instance("transformers.HfArgumentParser", {"types": types}, state, text=self.text(node))
        if name in FUNCTION_CLIS and args.positional and isinstance(args.positional[0], Func):
            return self.run_command(args.positional[0], node, state, frame)
        if name in DATACLASS_CLIS and args.positional:
            return self._from_command_line(args.positional[0], node, state, frame)
        if name in OPTIONS:
            return self._option(args, node, frame)
        if name in LOADERS:
            return self._load(name, args, node, state, frame)
        if name.endswith("GenerationConfig.from_dict") and args.positional:
            return self._object("transformers.GenerationConfig", args.positional[0], node, state)
        return self._foreign_instance(callee, args, node, state, frame)

    # -- instances of library classes --------------------------------------------------------------------------

    def _foreign_instance(
        self, callee: Ext, args: Arguments, node: cst.Call, state: State, frame: Frame
    ) -> Abstract | None:
        package, _, last = callee.name.rpartition(".")
        maker = package.rpartition(".")[2] if last in ("from_pretrained", "from_config", "from_model_config") else last
        if not maker[:1].isupper() or package == "builtins":
            return None
        made_by = callee.name if last == maker else package
        if made_by.endswith(".GenerationConfig"):
            made_by = "transformers.GenerationConfig"
        text = self.text(node)
        if not self.harmless(callee, text):
            self.escape(args.all(), f"passed to {text}", state)
        known = dict(args.keywords) if last == maker else {}
        settings = maker in ("GenerationConfig", "SamplingParams", "BeamSearchParams")
        rest = args.rest if settings and last == maker else Unk(Reason.RUNTIME, text)
        steps = (Step(HopKind.LITERAL, frame.unit, node, "made here"),)
        return self.new_instance(made_by, known, state, rest=rest, text=text, steps=steps)

    def _object(self, made_by: str, contents: Abstract, node: cst.Call, state: State) -> Abstract:
        ref = self.new_dict({}, state)
        self.merge_into(ref, contents, state, self.text(node))
        return self.new(InstObj(None, made_by, ref.oid, self.text(node)), state)

    def object_method(  # type: ignore[override]
        self, callee: Method, obj: Any, args: Arguments, node: cst.Call, state: State, frame: Frame
    ) -> Abstract | None:
        if not isinstance(obj, InstObj) or not isinstance(callee.owner, Ref):
            return None
        if obj.made_by == "argparse.ArgumentParser":
            return self._parser_method(callee.owner, obj, callee.name, args, node, state, frame)
        if obj.made_by == "transformers.HfArgumentParser":
            return self._dataclass_parser(obj, callee.name, node, state, frame)
        if obj.made_by in ("transformers.GenerationConfig", "dict-like") and callee.name == "to_dict":
            attrs = self.dict_of(Ref(obj.attrs), state) or DictObj()
            return self.new_dict(dict(attrs.entries), state, attrs.rest)
        if obj.made_by == "transformers.GenerationConfig" and callee.name == "update":
            self._merge_keywords(Ref(obj.attrs), args, state)
            return Const(None)
        if obj.made_by == "open" and callee.name in ("read", "readlines"):
            return Unk(Reason.RUNTIME, self.text(node))
        return None

    def enter(self, value: Abstract, state: State, frame: Frame) -> Abstract:  # type: ignore[override]
        """What `with value as x` binds."""
        obj = state.heap.get(value.oid) if isinstance(value, Ref) else None
        if isinstance(obj, InstObj) and obj.cls is not None:
            method = self.class_attribute(obj.cls, "__enter__", state)
            if isinstance(method, Func):
                return self.invoke(replace(method, bound=value), Arguments(), None, state, frame)
        if isinstance(value, Tup) and len(value.items) == 1:
            return value.items[0]
        return value

    # -- argparse ----------------------------------------------------------------------------------------------

    def _parser_method(
        self, owner: Ref, obj: InstObj, name: str, args: Arguments, node: cst.Call, state: State, frame: Frame
    ) -> Abstract:
        options = self.dict_of(Ref(obj.attrs), state).entries["options"]  # type: ignore[union-attr]
        assert isinstance(options, Ref)
        if name == "add_argument":
            self._add_argument(options, args, node, state, frame)
            return Const(None)
        if name in ("add_argument_group", "add_mutually_exclusive_group", "add_parser"):
            return owner
        if name == "set_defaults":
            for key, value in args.keywords.items():
                self.set_item(options, Const(key), with_step(value, self._flag(node, frame, key)), state)
            return Const(None)
        if name in ("parse_args", "parse_known_args", "parse_intermixed_args"):
            found = self.dict_of(options, state) or DictObj()
            namespace = self.new_instance("namespace", found.entries, state, rest=found.rest, text=self.text(node))
            return Tup((namespace, Unk(Reason.RUNTIME, "unparsed arguments"))) if "known" in name else namespace
        return Unk(Reason.RUNTIME, self.text(node), oid=("call", next(self._fresh)))

    def _flag(self, node: cst.CSTNode, frame: Frame, name: str) -> Step:
        return Step(HopKind.ARGPARSE, frame.unit, node, f"default of the command-line option {name}")

    def _add_argument(self, options: Ref, args: Arguments, node: cst.Call, state: State, frame: Frame) -> None:
        flags = [v.value for v in args.positional if isinstance(v, Const) and isinstance(v.value, str)]
        if len(flags) != len(args.positional) or args.rest is not None or not flags:
            state.heap[options.oid] = replace(
                state.heap[options.oid], rest=Unk(Reason.DYNAMIC_KEY, self.text(node)))  # type: ignore[arg-type]
            return
        named = args.keywords.get("dest")
        long = next((flag for flag in flags if flag.startswith("--")), flags[0])
        dest = str(named.value) if isinstance(named, Const) else long.lstrip("-").replace("-", "_")
        value = self._default(args, flags, node, state)
        self.set_item(options, Const(dest), with_step(value, self._flag(node, frame, long)), state)

    def _default(self, args: Arguments, flags: list[str], node: cst.Call, state: State) -> Abstract:
        action = args.keywords.get("action")
        default = args.keywords.get("default")
        if default is not None:
            return self._typed(default, args.keywords.get("type"), node)
        if isinstance(action, Const) and action.value in ("store_true", "store_false"):
            return Const(action.value == "store_false")
        required = args.keywords.get("required")
        if not flags[0].startswith("-") or (isinstance(required, Const) and required.value):
            return Unk(Reason.RUNTIME, f"the command-line argument {flags[-1]}")
        return Const(None)

    def _typed(self, default: Abstract, kind: Abstract | None, node: cst.Call) -> Abstract:
        """argparse passes a default through `type` when it is a string."""
        if not (isinstance(default, Const) and isinstance(default.value, str)) or kind is None:
            return default
        convert = {"builtins.int": int, "builtins.float": float, "builtins.str": str}.get(
            kind.name if isinstance(kind, Ext) else "")
        try:
            return replace(default, value=convert(default.value)) if convert else Unk(Reason.RUNTIME, self.text(node))
        except ValueError:
            return Unk(Reason.RUNTIME, self.text(node))

    # -- other command lines -----------------------------------------------------------------------------------

    def _dataclass_parser(self, obj: InstObj, name: str, node: cst.Call, state: State, frame: Frame) -> Abstract:
        types = self.dict_of(Ref(obj.attrs), state).entries["types"]  # type: ignore[union-attr]
        items = self.items_of(types, state) if not self._is_class(types, state) else (types,)
        if items is None:
            return Unk(Reason.RUNTIME, self.text(node), oid=("call", next(self._fresh)))
        made = tuple(self._from_command_line(kind, node, state, frame) for kind in items)
        if name in ("parse_args_into_dataclasses", "parse_args_and_config", "parse_dict", "parse_yaml_file",
                    "parse_json_file"):
            return Tup(made)
        return Unk(Reason.RUNTIME, self.text(node))

    def _is_class(self, value: Abstract, state: State) -> bool:
        return isinstance(value, Ext) or (isinstance(value, Ref) and isinstance(state.heap.get(value.oid), ClassObj))

    def _from_command_line(self, kind: Abstract, node: cst.Call, state: State, frame: Frame) -> Abstract:
        """An instance whose fields the command line may replace."""
        instance = self._call_one(kind, Arguments(), node, state, frame)
        obj = state.heap.get(instance.oid) if isinstance(instance, Ref) else None
        if isinstance(obj, InstObj):
            self._soften(obj, node, state, frame)
        return instance

    def _soften(self, obj: InstObj, node: cst.Call, state: State, frame: Frame) -> None:
        attrs = state.heap.get(obj.attrs)
        if not isinstance(attrs, DictObj):
            return
        soft: dict[Any, Abstract] = {}
        for name, value in attrs.entries.items():
            inner = state.heap.get(value.oid) if isinstance(value, Ref) else None
            if isinstance(inner, InstObj):
                self._soften(inner, node, state, frame)
            soft[name] = value if isinstance(value, Missing) else with_step(value, self._flag(node, frame, f"--{name}"))
        state.heap[obj.attrs] = DictObj(soft, attrs.rest)

    def _option(self, args: Arguments, node: cst.Call, frame: Frame) -> Abstract:
        default = args.get("default", 0)
        if default is None or (isinstance(default, Const) and default.value is ...):
            return Unk(Reason.RUNTIME, self.text(node))
        return with_step(default, self._flag(node, frame, self.text(node)))

    def run_command(self, function: Func, node: cst.Call, state: State, frame: Frame) -> Abstract:
        """Run a function whose parameters are command-line options."""
        code = replace(function.code)
        code.defaults = {
            name: with_step(value, self._flag(node, frame, f"--{name}")) for name, value in function.code.defaults.items()
        }
        return self.invoke(replace(function, code=code), Arguments(), node, state, frame)

    # -- configuration files -----------------------------------------------------------------------------------

    def _load(self, name: str, args: Arguments, node: cst.Call, state: State, frame: Frame) -> Abstract:
        unknown = Unk(Reason.RUNTIME, self.text(node), oid=("call", next(self._fresh)))
        path = self._path_of(args.get("stream", 0), state)
        if path is not None:
            contents = self._read_document(path, LOADERS[name], state, frame)
        else:
            contents = self._any_document(LOADERS[name], unknown, node, state, frame)
        if contents is None:
            return unknown
        return self.dict_like(contents, state) if "OmegaConf" in name else contents

    def _any_document(self, kind: str, unknown: Unk, node: cst.Call, state: State, frame: Frame) -> Abstract | None:
        """A file named only at run time: one of the project's whose top-level keys this module asks for, or another."""
        if kind != "yaml":
            return None
        found = [
            item for item in self._project_documents(kind)
            if isinstance(item.value, dict) and item.value
            and any(re.search(rf"\b{re.escape(str(key))}\b", frame.module.text) for key in item.value)
        ]
        if not found or len(found) > MAX_ALTERNATIVES - 1:
            return None
        soft = (self._flag(node, frame, "that names the file"),)
        return self._one_of_documents(found, unknown, soft, state)

    def _one_of_documents(self, items: list[Any], unknown: Unk, soft: tuple[Step, ...], state: State) -> Abstract:
        """The join of several documents, key by key: each value is one of theirs, or unknown."""
        dicts = [item for item in items if isinstance(item.value, dict)]
        if len(dicts) < len(items):
            return join([*(self._from_document(item, soft, state) for item in items), replace(unknown, oid=None)])
        entries: dict[Any, Abstract] = {}
        for key in dict.fromkeys(key for item in dicts for key in item.value):
            detail = replace(unknown, detail=f"{key} in {unknown.detail}", oid=None)
            entries[key] = self._one_of_documents([d.value[key] for d in dicts if key in d.value], detail, soft, state)
        return self.new_dict(entries, state, replace(unknown, oid=None))

    def _project_documents(self, kind: str) -> list[Any]:
        if kind not in self._documents:
            files = sorted(
                file for ending in ("*.yaml", "*.yml") for file in islice(self.project.root.rglob(ending), MAX_DOCUMENTS)
                if not any(part.startswith(".") or part in ("node_modules", "site-packages") for part in file.parts)
            )
            loaded = (load_document(file, kind) for file in files[:MAX_DOCUMENTS])
            self._documents[kind] = [item for item in loaded if item is not None]
        return self._documents[kind]

    def _path_of(self, source: Abstract | None, state: State) -> Const | None:
        obj = state.heap.get(source.oid) if isinstance(source, Ref) else None
        if isinstance(obj, InstObj) and obj.made_by == "open":
            attrs = self.dict_of(Ref(obj.attrs), state)
            source = attrs.entries.get("path") if attrs else None
        return source if isinstance(source, Const) and isinstance(source.value, str) else None

    def _read_document(self, path: Const, kind: str, state: State, frame: Frame) -> Abstract | None:
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
            return self.new(ListObj(tuple(self._from_document(v, soft, state) for v in item.value)), state, (step,))
        return Const(item.value, (step, *soft))

    # -- what code that is not visible does --------------------------------------------------------------------

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

