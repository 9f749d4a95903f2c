"""Entry points: functions that nobody visible calls, run with the default or an unknown value for every parameter."""

from __future__ import annotations

import ast
from dataclasses import replace

from klguard.read.python.calls import Arguments
from klguard.read.python.control import Frame
from klguard.read.python.memo import remembered
from klguard.read.python.modules import Modules
from klguard.read.python.source import FunctionInfo
from klguard.read.python.state import State
from klguard.read.python.trees import walk_level
from klguard.read.python.values import (
    Abstract,
    ClassObj,
    Code,
    DictObj,
    Func,
    InstObj,
    Ref,
    Unk,
    join,
)
from klguard.settings import Reason

MAX_WRITERS = 6
"""Other methods run for the attributes they set."""

MAX_CONSTRUCTIONS = 4
"""Visible constructor calls for which a method without visible callers is run."""


class Roots(Modules):
    """Running a function from outside."""

    def run_root(self, info: FunctionInfo) -> None:
        """Run a function nobody visible calls, with the default or an unknown value for every parameter."""
        state = self.module_state(info.module)
        frame = Frame(("root",), (("module", info.module.path),), info.module, None)
        unknown = Arguments(rest=Unk(Reason.PARAMETER, ""), more_positional=Unk(Reason.PARAMETER, ""))
        made = self.constructions.get(info.cls, []) if info.cls is not None else []
        for arguments, snapshot in made[:MAX_CONSTRUCTIONS] or [(unknown, None)]:
            current = state.copy()
            if snapshot is not None:
                current.absorb(snapshot)
            owner = self._root_self(info, arguments, current)
            callee = self.function_of(info, current, owner)
            if callee is not None:
                self.invoke(callee, unknown, None, current, frame)

    def function_of(self, info: FunctionInfo, state: State, owner: Abstract | None) -> Func | None:
        """The Func of a top-level function or method, found where its definition left it."""
        home = ("module", info.module.path)
        if info.parent is not None:
            return None
        if info.cls is None:
            value = self.lookup(home, info.name, state)
        else:
            cls = self.class_of(info.cls, state)
            value = self.class_attribute(cls, info.name, state) if cls is not None else None
        if not isinstance(value, Func) or value.code.info is not info:
            value = self.load_function(info, state)
        if isinstance(value, Func) and owner is not None and not _is_static(value.code):
            return replace(value, bound=owner)
        return value if isinstance(value, Func) else None

    def _root_self(self, info: FunctionInfo, arguments: Arguments, state: State) -> Abstract | None:
        if info.cls is None:
            return None
        cls = self.class_of(info.cls, state)
        if cls is None:
            return Unk(Reason.PARAMETER, "self", oid=("self", info.cls.qualname))
        obj = state.heap[cls.oid]
        assert isinstance(obj, ClassObj)
        frame = Frame(("root", "init"), (("module", info.module.path),), info.module, None)
        if info.name == "__init__":
            return self.new_instance("", {}, state, cls=cls, rest=Unk(Reason.RUNTIME, "self"))
        instance = self.instantiate(cls, obj, arguments, None, state, frame)
        self._other_writes(info, instance, state)
        return instance

    def _other_writes(self, info: FunctionInfo, instance: Abstract, state: State) -> None:
        """Attributes that other methods set: run those methods, as if each may have run before this one or not."""
        obj = state.heap.get(instance.oid) if isinstance(instance, Ref) else None
        if not isinstance(obj, InstObj) or info.cls is None:
            return
        wanted = _self_attributes(info.node, ast.Load)
        unknown = Arguments(rest=Unk(Reason.PARAMETER, ""), more_positional=Unk(Reason.PARAMETER, ""))
        frame = Frame(("root", "other"), (("module", info.module.path),), info.module, None)
        writers = [
            method
            for name, method in info.cls.methods.items()
            if name not in ("__init__", "__post_init__", info.name)
            and _self_attributes(method.node, ast.Store) & wanted
        ]
        for method in writers[:MAX_WRITERS]:
            callee = self.function_of(method, state, instance)
            if callee is None:
                continue
            branch = state.copy()
            link = (callee.code, None, info.module, None)
            self._invoke_aside(callee, unknown, link, branch, frame)
            before, after = state.heap.get(obj.attrs), branch.heap.get(obj.attrs)
            if isinstance(before, DictObj) and isinstance(after, DictObj):
                fresh = {name: value for name, value in after.entries.items() if name not in before.entries}
                merged = {n: join((v, after.entries.get(n, v))) for n, v in before.entries.items()}
                state.absorb(branch)
                state.heap[obj.attrs] = DictObj({**merged, **fresh}, before.rest)


@remembered
def _self_attributes(node: ast.AST, context: type) -> set[str]:
    """Names of `self.x` that a method reads or sets; a call of another method of its own reads what that one reads."""
    return {
        inner.attr
        for inner in walk_level(node)
        if isinstance(inner, ast.Attribute)
        and isinstance(inner.value, ast.Name)
        and inner.value.id == "self"
        and isinstance(inner.ctx, context)
    }


def _is_static(code: Code) -> bool:
    return any(d == "staticmethod" for d in code.decorators)
