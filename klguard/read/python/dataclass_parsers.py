"""Parsers that fill dataclasses, functions whose parameters are options, settings from the environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from klguard.read.python import nodes
from klguard.read.python.calls import Arguments
from klguard.read.python.command_lines import CommandLines
from klguard.read.python.containers import (
    NOT_PLAIN,
)
from klguard.read.python.control import Frame
from klguard.read.python.state import State
from klguard.read.python.values import (
    Abstract,
    ClassObj,
    Const,
    DictObj,
    Ext,
    Func,
    InstObj,
    Missing,
    Ref,
    Tup,
    Unk,
    with_step,
)
from klguard.settings import Reason


class DataclassParsers(CommandLines):
    """Models of HfArgumentParser, TrlParser, tyro, typer, fire and pydantic's BaseSettings."""

    def dataclass_parser(
        self, obj: InstObj, name: str, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        """A method of transformers' HfArgumentParser or trl's TrlParser."""
        attrs = self.dict_of(Ref(obj.attrs), state)
        assert attrs is not None
        types = attrs.entries.get("types", Unk(Reason.RUNTIME, self.text(node)))
        unknown = Unk(Reason.RUNTIME, self.text(node), oid=("call", next(self._fresh)))
        if name in ("add_argument", "add_argument_group", "set_defaults"):
            state.heap[obj.attrs] = DictObj({**attrs.entries, "extended": Const(True)})
            return unknown
        items = self.items_of(types, state) if not self._is_class(types, state) else (types,)
        if items is None or not name.startswith("parse_"):
            return unknown
        if name in ("parse_dict", "parse_yaml_file", "parse_json_file"):
            contents = self._given_contents(name, args, node, state, frame)
            if contents is not None:
                return Tup(tuple(self._filled(kind, contents, node, state, frame) for kind in items))
        elif name not in ("parse_args_into_dataclasses", "parse_args_and_config"):
            return unknown
        made = [self.from_command_line(kind, args.get("args", 0), node, state, frame) for kind in items]
        remaining = args.keywords.get("return_remaining_strings")
        if "extended" in attrs.entries or (
            remaining is not None and not (isinstance(remaining, Const) and not remaining.value)
        ):
            made.append(unknown)
        return Tup(tuple(made))

    def _given_contents(
        self, name: str, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract | None:
        first = args.positional[0] if args.positional else next(iter(args.keywords.values()), None)
        if name == "parse_dict" or first is None:
            return first if first is not None else Unk(Reason.RUNTIME, self.text(node))
        if not isinstance(first, Const) or not isinstance(first.value, str):
            return None
        return self.read_document(first, "yaml" if "yaml" in name else "json", state, frame)

    read_document: Any

    def _filled(
        self, kind: Abstract, contents: Abstract, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        """An instance whose fields a dict gives."""
        source = self.dict_of(contents, state) or DictObj({}, Unk(Reason.RUNTIME, self.text(node)))
        cls = state.heap.get(kind.oid) if isinstance(kind, Ref) else None
        fields = cls.fields if isinstance(cls, ClassObj) and not self.has_foreign_base(kind, state) else None
        given = {
            k: v for k, v in source.entries.items() if isinstance(k, str) and (fields is None or k in fields)
        }
        return self._call_one(kind, Arguments(keywords=given, rest=source.rest), node, state, frame)

    def _is_class(self, value: Abstract, state: State) -> bool:
        return isinstance(value, Ext) or (
            isinstance(value, Ref) and isinstance(state.heap.get(value.oid), ClassObj)
        )

    def from_command_line(
        self, kind: Abstract, given: Abstract | None, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        """An instance whose fields the command line may replace, or arguments that the code gives."""
        instance = self._call_one(kind, Arguments(), node, state, frame)
        obj = state.heap.get(instance.oid) if isinstance(instance, Ref) else None
        if not isinstance(obj, InstObj):
            return instance
        if self.from_outside(given):
            self._soften(obj, node, state, frame)
        else:
            self._blur(obj, self.plain(given, state) if given is not None else NOT_PLAIN, node, state)
        return instance

    def _blur(self, obj: InstObj, words: Any, node: nodes.Call, state: State) -> None:
        """Fields that known arguments mention are unknown; with arguments that are not known all are."""
        attrs = state.heap.get(obj.attrs)
        if not isinstance(attrs, DictObj):
            return
        names = _mentioned(words) if isinstance(words, (list, tuple)) else None
        blurred = {
            key: Unk(Reason.RUNTIME, f"{key} of {self.text(node)}", value.steps)
            if names is None or any(str(key).startswith(name) for name in names)
            else value
            for key, value in attrs.entries.items()
        }
        state.heap[obj.attrs] = DictObj(blurred, attrs.rest)

    def _soften(self, obj: InstObj, node: nodes.Call, state: State, frame: Frame) -> None:
        attrs = state.heap.get(obj.attrs)
        if not isinstance(attrs, DictObj):
            return
        soft: dict[Any, Abstract] = {}
        for name, value in attrs.entries.items():
            inner = state.heap.get(value.oid) if isinstance(value, Ref) else None
            if isinstance(inner, InstObj):
                self._soften(inner, node, state, frame)
            soft[name] = (
                value
                if isinstance(value, Missing)
                else with_step(value, self.flag_step(node, frame, f"--{name}"))
            )
        state.heap[obj.attrs] = DictObj(soft, attrs.rest)

    # -- functions and settings classes ----------------------------------------------------------------------

    def option(self, args: Arguments, node: nodes.Call, frame: Frame) -> Abstract:
        """`typer.Option(5)` as a default."""
        default = args.get("default", 0)
        if default is None or (isinstance(default, Const) and default.value is ...):
            return Unk(Reason.RUNTIME, self.text(node))
        return with_step(default, self.flag_step(node, frame, self.text(node)))

    def run_command(self, function: Func, node: nodes.Call, state: State, frame: Frame) -> Abstract:
        """Run a function whose parameters are command-line options."""
        code = replace(function.code)
        code.defaults = {
            name: with_step(value, self.flag_step(node, frame, f"--{name}"))
            for name, value in function.code.defaults.items()
        }
        return self.invoke(replace(function, code=code), Arguments(), node, state, frame)

    def instantiate(
        self,
        cls: Ref,
        obj: ClassObj,
        arguments: Arguments,
        node: nodes.Call | None,
        state: State,
        frame: Frame,
    ) -> Abstract:
        """Fields of pydantic's BaseSettings that a call leaves out come from the environment."""
        made = super().instantiate(cls, obj, arguments, node, state, frame)
        settings = any(
            isinstance(base, Ext) and base.name.endswith("BaseSettings") for base in self.mro(cls, state)
        )
        inst = state.heap.get(made.oid) if isinstance(made, Ref) else None
        attrs = state.heap.get(inst.attrs) if isinstance(inst, InstObj) else None
        if not settings or not isinstance(inst, InstObj) or not isinstance(attrs, DictObj):
            return made
        where = node if node is not None else nodes.Name(value=obj.info.name)
        entries = {
            key: value
            if key in arguments.keywords or isinstance(value, Missing)
            else with_step(value, self.flag_step(where, frame, f"{key} (environment)"))
            for key, value in attrs.entries.items()
        }
        state.heap[inst.attrs] = DictObj(entries, attrs.rest)
        return made


def _mentioned(words: Sequence[Any]) -> list[str] | None:
    """Names of fields that arguments set; argparse also takes the beginning of one. None when a file may
    be among them."""
    names: list[str] = []
    for word in words:
        if not isinstance(word, str) or (
            not word.startswith("-") and word.endswith((".json", ".yaml", ".args"))
        ):
            return None
        if word.startswith("--"):
            name = word[2:].split("=")[0].replace("-", "_")
            names += [name, name.removeprefix("no_")]
        elif word.startswith("-") and not word[1:2].isdigit():
            return None
    return names
