"""Command lines: argparse, parsers that fill dataclasses, and functions whose parameters are options.

A value that a command line may replace keeps its default and a step that says so (`HopKind.ARGPARSE`): it
is what a run without flags uses, but no branch is decided by it. Arguments that the code itself gives to
`parse_args` are applied by argparse, with conversion left to the model.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any, NoReturn

from klguard.read.python import nodes
from klguard.read.python.calls import Arguments
from klguard.read.python.containers import NOT_PLAIN
from klguard.read.python.control import Frame
from klguard.read.python.models import Models
from klguard.read.python.state import State
from klguard.read.python.values import (
    MISSING,
    Abstract,
    Const,
    DictObj,
    Ext,
    ListObj,
    Missing,
    Ref,
    Step,
    Tup,
    Unk,
    join,
    members,
    with_step,
)
from klguard.settings import HopKind, Reason

PARSERS = frozenset(
    {
        "argparse.ArgumentParser",
        "configargparse.ArgumentParser",
        "configargparse.ArgParser",
        "jsonargparse.ArgumentParser",
        "simple_parsing.ArgumentParser",
        "rich_argparse.ArgumentParser",
    }
)

_DECORATION = frozenset(
    "description prog formatter_class epilog usage add_help allow_abbrev parents exit_on_error".split()
)
"""Arguments of ArgumentParser that leave the values of options as they are, or are followed."""

_ACTIONS = frozenset("store store_const store_true store_false append extend count".split())


class _Given:
    """A `const=` of an option, handed through argparse."""

    def __init__(self, value: Abstract) -> None:
        self.value = value


class _Rejected(Exception):
    """The arguments do not fit the options."""


class _Strict(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _Rejected(message)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise _Rejected(message)


class CommandLines(Models):
    """Models of command-line parsers."""

    # -- argparse --------------------------------------------------------------------------------------------

    def make_parser(self, args: Arguments, node: nodes.Call, state: State) -> Ref:
        """An ArgumentParser: its options by name, and what was said of each in order."""
        odd = set(args.keywords) - _DECORATION or args.rest is not None
        doubt = (
            Unk(Reason.RUNTIME, self.text(node))
            if args.rest is not None or "argument_default" in args.keywords
            else None
        )
        options, specs = self.new_dict({}, state, doubt), self.new(ListObj(None if odd else ()), state)
        parts = {"options": options, "specs": specs, "preset": self.new_dict({}, state)}
        parser = self.new_instance("argparse.ArgumentParser", parts, state, text=self.text(node))
        if (parents := args.keywords.get("parents")) is not None:
            self._inherit(parser, self.items_of(parents, state), state)
        return parser

    def _parser_parts(self, parser: Ref, state: State) -> dict[Any, Ref] | None:
        """What is known of a parser; None once code that is not visible may have changed all of it."""
        obj = state.heap[parser.oid]
        attrs = self.dict_of(Ref(obj.attrs), state)  # type: ignore[union-attr]
        assert attrs is not None
        parts = {name: value for name, value in attrs.entries.items() if isinstance(value, Ref)}
        return parts if {"options", "specs", "preset"} <= parts.keys() else None

    def _inherit(self, parser: Ref, parents: tuple[Abstract, ...] | None, state: State) -> None:
        mine = self._parser_parts(parser, state)
        assert mine is not None, "a parser that is being made"
        for parent in parents or (None,):
            is_parser = isinstance(parent, Ref) and self.kind_of(parent, state) == "argparse.ArgumentParser"
            theirs = self._parser_parts(parent, state) if is_parser else None  # type: ignore[arg-type]
            if theirs is None:
                self.forget_parser(parser, state)
                continue
            self.merge_into(mine["options"], theirs["options"], state, "parents=")
            both = [self.items_of(mine["specs"], state), self.items_of(theirs["specs"], state)]
            state.heap[mine["specs"].oid] = ListObj(
                None if None in both else (*(both[0] or ()), *(both[1] or ()))
            )

    def forget_parser(self, parser: Abstract, state: State) -> None:
        """Code that is not visible may have added options."""
        if isinstance(parser, Ref) and self.kind_of(parser, state) == "argparse.ArgumentParser":
            parts = self._parser_parts(parser, state)
            if parts is None:
                return
            options = self.dict_of(parts["options"], state) or DictObj()
            state.heap[parts["options"].oid] = replace(
                options, rest=Unk(Reason.RUNTIME, "a command-line option")
            )
            state.heap[parts["specs"].oid] = ListObj(None)

    def parser_method(
        self, owner: Ref, name: str, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        """A call of a method of an ArgumentParser or one of its groups."""
        parts = self._parser_parts(owner, state)
        unknown = Unk(Reason.RUNTIME, self.text(node), oid=("call", next(self._fresh)))
        if parts is None:
            return unknown
        if name == "add_argument":
            self._add_argument(parts, args, node, state, frame)
            return unknown
        if name in ("add_argument_group", "add_mutually_exclusive_group"):
            return owner
        if name == "add_subparsers":
            return self._subparsers(owner, parts, args, node, state)
        if name == "set_defaults":
            for key, value in args.keywords.items():
                self.set_item(parts["preset"], Const(key), value, state)
                self.set_item(
                    parts["options"], Const(key), with_step(value, self.flag_step(node, frame, key)), state
                )
            if args.rest is not None or args.positional:
                self.forget_parser(owner, state)
            return Const(None)
        if name == "get_default" and args.positional:
            return self.get_item(parts["options"], args.positional[0], state, self.text(node))
        if name in ("parse_args", "parse_known_args", "parse_intermixed_args", "parse_known_intermixed_args"):
            return self._parse_arguments(parts, "known" in name, args, node, state, frame)
        if not name.startswith(("print_", "format_", "error", "exit", "get_")):
            self.forget_parser(owner, state)
        return unknown

    def _subparsers(
        self, owner: Ref, parts: dict[Any, Ref], args: Arguments, node: nodes.Call, state: State
    ) -> Abstract:
        state.heap[parts["specs"].oid] = ListObj(None)
        named = args.keywords.get("dest")
        if isinstance(named, Const):
            self.set_item(parts["options"], named, Unk(Reason.RUNTIME, "the subcommand"), state)
        return self.make("subparsers", owner, state, self.text(node))

    def subparser(self, owner: Ref, args: Arguments, node: nodes.Call, state: State) -> Abstract:
        """The parser of a subcommand, whose options are there when it is chosen."""
        parent = self.part(owner, state)
        if not isinstance(parent, Ref) or self.kind_of(parent, state) != "argparse.ArgumentParser":
            return Unk(Reason.RUNTIME, self.text(node), oid=("call", next(self._fresh)))
        parts = self._parser_parts(parent, state)
        if parts is None:
            return Unk(Reason.RUNTIME, self.text(node), oid=("call", next(self._fresh)))
        shared: dict[str, Abstract] = {**parts, "subcommand": Const(True)}
        parser = self.new_instance("argparse.ArgumentParser", shared, state, text=self.text(node))
        if (parents := args.keywords.get("parents")) is not None:
            self._inherit(parser, self.items_of(parents, state), state)
        shared_parts = state.heap[parser.oid]
        home = state.heap[shared_parts.attrs]  # type: ignore[union-attr]
        assert isinstance(home, DictObj)
        state.heap[shared_parts.attrs] = DictObj({**home.entries, "maybe": self.new_dict({}, state)})  # type: ignore[union-attr]
        return parser

    def flag_step(self, node: nodes.Node, frame: Frame, name: str) -> Step:
        """The step that says a command line can change a value."""
        return Step(HopKind.ARGPARSE, frame.unit, node, f"default of the command-line option {name}")

    def _add_argument(
        self, parts: dict[Any, Ref], args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> None:
        options = parts["options"]
        flags = [v.value for v in args.positional if isinstance(v, Const) and isinstance(v.value, str)]
        named = args.keywords.get("dest")
        vague = (
            len(flags) != len(args.positional) or args.rest is not None or args.more_positional is not None
        )
        if vague or (named is not None and not isinstance(named, Const)) or not (flags or named):
            known = self.dict_of(options, state) or DictObj()
            state.heap[options.oid] = replace(known, rest=Unk(Reason.DYNAMIC_KEY, self.text(node)))
            state.heap[parts["specs"].oid] = ListObj(None)
            return
        long = next((flag for flag in flags if flag.startswith("--")), flags[0] if flags else str(named))
        dest = str(named.value) if isinstance(named, Const) else long.lstrip("-").replace("-", "_")
        value = with_step(
            self._default(dest, parts, args, flags, node, state, frame), self.flag_step(node, frame, long)
        )
        self._set_option(dest, value, parts, state)
        specs = state.heap[parts["specs"].oid]
        if isinstance(specs, ListObj) and specs.items is not None:
            spec = Tup(
                (
                    Const(dest),
                    Tup(tuple(Const(flag) for flag in flags)),
                    self.new_dict(dict(args.keywords), state),
                )
            )
            state.heap[parts["specs"].oid] = ListObj((*specs.items, spec))

    def _set_option(self, dest: str, value: Abstract, parts: dict[Any, Ref], state: State) -> None:
        """Where two options have one name, the first one's default holds; that of a subcommand may not
        be there."""
        options, preset = self.dict_of(parts["options"], state), self.dict_of(parts["preset"], state)
        assert options is not None and preset is not None
        old = options.entries.get(dest)
        if "maybe" in parts:
            value = join((value, MISSING if old is None else old))
        elif old is not None and dest not in preset.entries:
            return
        self.set_item(parts["options"], Const(dest), value, state)

    def _default(
        self,
        dest: str,
        parts: dict[Any, Ref],
        args: Arguments,
        flags: list[str],
        node: nodes.Call,
        state: State,
        frame: Frame,
    ) -> Abstract:
        """What an option is when the command line does not give it."""
        action, default = args.keywords.get("action"), args.keywords.get("default")
        preset = self.dict_of(parts["preset"], state)
        if default is None and preset is not None:
            default = preset.entries.get(dest)
        required, nargs = args.keywords.get("required"), args.keywords.get("nargs")
        positional = bool(flags) and not flags[0].startswith("-")
        optional = isinstance(nargs, Const) and nargs.value in ("?", "*")
        if (positional and not optional) or (isinstance(required, Const) and required.value):
            return Unk(Reason.RUNTIME, f"the command-line argument {flags[-1] if flags else dest}")
        if isinstance(default, Ext) and default.name.endswith("SUPPRESS"):
            return join((Unk(Reason.RUNTIME, f"the command-line option {dest}"), MISSING))
        if default is not None:
            return self._typed(default, args.keywords.get("type"), node, state, frame)
        if isinstance(action, Const) and action.value in ("store_true", "store_false"):
            return Const(action.value == "store_false")
        return (
            self.new(ListObj(()), state)
            if positional and isinstance(nargs, Const) and nargs.value == "*"
            else Const(None)
        )

    def _typed(
        self, default: Abstract, kind: Abstract | None, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        """argparse passes a default through `type` when it is a string."""
        if kind is None:
            return default
        return join(
            self._converted(member, kind, node, state, frame)
            if isinstance(member, Const) and isinstance(member.value, str)
            else member
            for member in members(default)
        )

    def _converted(
        self, value: Const, kind: Abstract, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        call = nodes.Call(func=nodes.Name(value="type"), args=(nodes.Arg(value=node, keyword=None, star=""),))
        if isinstance(kind, Ext) and kind.name == "builtins.str":
            return value
        result = self.call(kind, Arguments([value]), call, state, frame)
        return result if not isinstance(result, Unk) else replace(result, detail=self.text(node))

    # -- arguments that are given ----------------------------------------------------------------------------

    def _parse_arguments(
        self,
        parts: dict[Any, Ref],
        known: bool,
        args: Arguments,
        node: nodes.Call,
        state: State,
        frame: Frame,
    ) -> Abstract:
        found = self.dict_of(parts["options"], state) or DictObj()
        given, extra = args.get("args", 0), Unk(Reason.RUNTIME, "unparsed arguments")
        left: Abstract = extra
        entries, rest = dict(found.entries), found.rest
        if (
            "namespace" in args.keywords
            or len(args.positional) > 1
            or args.rest is not None
            or args.more_positional
        ):
            self.escape(args.all(), f"passed to {self.text(node.func)}()", state)
            entries, rest = self._all_unknown(entries, node), Unk(Reason.RUNTIME, self.text(node))
        elif not self.from_outside(given):
            words = self.plain(given, state) if given is not None else NOT_PLAIN
            applied = self._apply(parts, words, known, node, state, frame)
            if applied is None:
                entries = self._all_unknown(entries, node)
            else:
                entries, rest = self._replaced(entries, applied[0]), None
                left = self.new(ListObj(tuple(Const(word) for word in applied[1])), state)
        namespace = self.new_instance("namespace", entries, state, rest=rest, text=self.text(node))
        return Tup((namespace, left)) if known else namespace

    def from_outside(self, given: Abstract | None) -> bool:
        """Whether the arguments are those of the process: none, None, `sys.argv[1:]`, or a caller's who
        is not seen."""
        return given is None or all(
            (isinstance(m, Const) and m.value is None)
            or (isinstance(m, Unk) and (m.reason is Reason.PARAMETER or "argv" in m.detail))
            for m in members(given)
        )

    def _all_unknown(self, entries: dict[Any, Abstract], node: nodes.Call) -> dict[Any, Abstract]:
        return {
            key: Unk(Reason.RUNTIME, f"{key} of {self.text(node)}", value.steps)
            for key, value in entries.items()
        }

    def _replaced(self, entries: dict[Any, Abstract], given: dict[str, Abstract]) -> dict[Any, Abstract]:
        """The options after arguments that are known: nothing about them depends on a command line any
        more."""
        hard: dict[Any, Abstract] = {}
        for key, value in {**entries, **given}.items():
            present = [m for m in members(value) if not isinstance(m, Missing)]
            if key not in given and len(present) < len(members(value)):
                continue
            hard[key] = join(
                replace(m, steps=tuple(s for s in m.steps if s.kind is not HopKind.ARGPARSE))
                for m in members(value)
            )
        return hard

    def _apply(
        self, parts: dict[Any, Ref], words: Any, known: bool, node: nodes.Call, state: State, frame: Frame
    ) -> tuple[dict[str, Abstract], list[str]] | None:
        """(the options that the arguments set, the arguments left over); None when that cannot be known."""
        specs = self.items_of(parts["specs"], state)
        if (
            specs is None
            or not isinstance(words, (list, tuple))
            or not all(isinstance(word, str) for word in words)
        ):
            return None
        parser, kinds, defaults = _Strict(add_help=False), {}, {}
        for spec in specs:
            dest, flags, keywords = self._spec(spec, state)
            options = self._action(keywords, state)
            if options is None:
                return None
            if not flags or flags[0].startswith("-"):
                options["dest"] = dest
            kinds.setdefault(dest, keywords.get("type"))
            defaults.setdefault(dest, (options.get("action"), keywords.get("default")))
            try:
                parser.add_argument(*flags, **options)
            except (ValueError, TypeError, argparse.ArgumentError):
                return None
        try:
            namespace, left = parser.parse_known_args(list(words))
        except (_Rejected, argparse.ArgumentError):
            return None
        if left and not known:
            return None
        set_by: dict[str, Abstract] = {}
        for dest, raw in vars(namespace).items():
            value = self._given_value(raw, kinds.get(dest), node, state, frame)
            set_by[dest] = self._added(value, *defaults[dest], node, state)
        return set_by, left

    def _spec(self, spec: Abstract, state: State) -> tuple[str, list[str], dict[Any, Abstract]]:
        assert isinstance(spec, Tup)
        dest, flags, keywords = spec.items
        contents = self.dict_of(keywords, state)
        assert isinstance(dest, Const) and isinstance(flags, Tup) and contents is not None
        return dest.value, [flag.value for flag in flags.items if isinstance(flag, Const)], contents.entries

    def _action(self, keywords: dict[Any, Abstract], state: State) -> dict[str, Any] | None:
        """The arguments of the real `add_argument`; None for an action of the program's own."""
        action = keywords.get("action", Const("store"))
        options: dict[str, Any] = {"default": argparse.SUPPRESS}
        if isinstance(action, Ext) and action.name.endswith("BooleanOptionalAction"):
            options["action"] = argparse.BooleanOptionalAction
        elif isinstance(action, Const) and action.value in _ACTIONS:
            options["action"] = action.value
        else:
            return None
        if "nargs" in keywords:
            options["nargs"] = self.plain(keywords["nargs"], state)
            if options["nargs"] is NOT_PLAIN:
                return None
        if "const" in keywords:
            options["const"] = _Given(keywords["const"])
        return options

    def _given_value(
        self, raw: Any, kind: Abstract | None, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        if isinstance(raw, list):
            return self.new(
                ListObj(tuple(self._given_value(r, kind, node, state, frame) for r in raw)), state
            )
        if isinstance(raw, _Given):
            return raw.value
        steps = (Step(HopKind.KWARG, frame.unit, node, f"given to {self.text(node.func)}()"),)
        value = Const(raw, steps)
        return (
            self._converted(value, kind, node, state, frame)
            if kind is not None and isinstance(raw, str)
            else value
        )

    def _added(
        self, value: Abstract, action: Any, default: Abstract | None, node: nodes.Call, state: State
    ) -> Abstract:
        """What `append`, `extend` and `count` make of a default."""
        empty = default is None or (isinstance(default, Const) and default.value is None)
        if action not in ("append", "extend", "count") or empty:
            return value
        if action == "count":
            both = self.plain(value, state), self.plain(default, state)  # type: ignore[arg-type]
            return Const(sum(both)) if NOT_PLAIN not in both else Unk(Reason.RUNTIME, self.text(node))
        parts = [self.items_of(default, state), self.items_of(value, state)]  # type: ignore[arg-type]
        return self.new(ListObj(None if None in parts else (*(parts[0] or ()), *(parts[1] or ()))), state)
