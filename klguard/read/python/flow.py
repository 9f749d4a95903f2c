"""Statements: how the state changes from line to line, through branches, loops, exceptions and matches.

`Flow` executes statements on a `State`. Where the code may go either way both ways are taken and the states
are joined; a loop over unknown items runs until nothing new appears, and what still changes then is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from klguard.read.python import nodes
from klguard.read.python.control import Catcher, Frame, Loop, arrive
from klguard.read.python.source import shorten
from klguard.read.python.state import State, truth
from klguard.read.python.values import (
    Abstract,
    Alt,
    Const,
    Ext,
    Func,
    ListObj,
    Missing,
    Mod,
    Ref,
    Step,
    Tup,
    Unk,
    join,
    members,
    with_step,
)
from klguard.settings import HopKind, Reason

if TYPE_CHECKING:
    pass

_EFFECTIVE = (
    nodes.Assign, nodes.AnnAssign, nodes.AugAssign, nodes.Expr, nodes.Del, nodes.Return, nodes.Assert
)  # fmt: skip
"""Statements after which the state may differ; the compound ones are made of these."""


class Flow:
    """Execution of statements. Expressions and calls are the subclasses' business."""

    eval: Callable[[nodes.Expression, State, Frame], Abstract]
    define: Callable[..., Abstract]
    define_class: Callable[..., Abstract]
    import_name: Callable[..., Abstract]
    enter: Callable[..., Abstract]
    new: Callable[..., Ref]
    escape: Callable[..., None]
    get_item: Callable[..., Abstract]
    set_item: Callable[..., None]
    set_attribute: Callable[..., None]
    delete_item: Callable[..., None]
    items_of: Callable[..., tuple[Abstract, ...] | None]
    binary: Callable[..., Abstract]
    spend: Callable[[], None]
    settle_imports: Callable[[str, State], None]
    harmless: Callable[..., bool]
    call_back: Callable[..., None]

    def __init__(self) -> None:
        self.catchers: list[Catcher] = []
        self._texts: dict[nodes.Node, str] = {}

    # -- blocks ------------------------------------------------------------------------------------------------

    def run_block(self, body: Sequence[nodes.Statement], state: State, frame: Frame) -> bool:
        """Execute statements in order; False when control does not arrive at their end.

        What stands behind a return or raise is still looked at, on a copy, so that its sites are seen.
        """
        alive = True
        for index, statement in enumerate(body):
            self.spend()
            if isinstance(statement, nodes.SimpleStatement):
                self.spend()
            handler = getattr(self, "_run_" + type(statement).__name__, None)
            alive = handler(statement, state, frame) if handler else True
            if self.catchers and isinstance(statement, _EFFECTIVE):
                for catcher in self.catchers:
                    catcher.see(state)
            if not alive:
                self.run_dead(body[index + 1 :], state, frame)
                return False
        return alive

    def run_dead(self, body: Sequence[Any], state: State, frame: Frame) -> None:
        """Look at code that is not reached: its sites are recorded, its effects are dropped."""
        if frame.dead or not body:
            return
        frame.dead = True
        saved = (self.catchers, frame.loops, frame.returns, frame.yields)
        self.catchers, frame.loops, frame.returns = [], [Loop()], []
        try:
            self.run_block(body, state.copy(), frame)
        finally:
            self.catchers, frame.loops, frame.returns, frame.yields = saved
            frame.dead = False

    def run_suite(self, suite: nodes.Block, state: State, frame: Frame) -> bool:
        return self.run_block(suite.body, state, frame)

    # -- simple statements -------------------------------------------------------------------------------------

    def _run_Expr(self, node: nodes.Expr, state: State, frame: Frame) -> bool:
        self.eval(node.value, state, frame)
        return not _is_exit(node.value)

    def _run_Assign(self, node: nodes.Assign, state: State, frame: Frame) -> bool:
        value = self.eval(node.value, state, frame)
        for target in node.targets:
            self.assign(target, value, state, frame)
        return True

    def _run_AnnAssign(self, node: nodes.AnnAssign, state: State, frame: Frame) -> bool:
        if node.value is not None:
            self.assign(node.target, self.eval(node.value, state, frame), state, frame)
        return True

    def _run_AugAssign(self, node: nodes.AugAssign, state: State, frame: Frame) -> bool:
        current = self.eval(node.target, state, frame)
        operand = self.eval(node.value, state, frame)
        result = self.binary(node.operator, current, operand, node, state, frame, in_place=True)
        self.assign(node.target, result, state, frame)
        return True

    def _run_Return(self, node: nodes.Return, state: State, frame: Frame) -> bool:
        value = self.eval(node.value, state, frame) if node.value is not None else Const(None)
        frame.returns.append((state.copy(), value))
        return False

    def _run_Raise(self, node: nodes.Raise, state: State, frame: Frame) -> bool:
        raised = self.eval(node.exc, state, frame) if node.exc is not None else None
        if isinstance(node.exc, nodes.Call) and isinstance(node.exc.func, (nodes.Name, nodes.Attribute)):
            made_by = self.eval(node.exc.func, state, frame)
            raised = made_by if isinstance(made_by, Ext) else raised
        if self.catchers:
            left = state.copy()
            for catcher in self.catchers:
                catcher.see(state)
                catcher.raised.append((raised, left))
        return False

    def _run_Break(self, node: nodes.Break, state: State, frame: Frame) -> bool:
        if frame.loops:
            frame.loops[-1].breaks.append(state.copy())
        return False

    def _run_Continue(self, node: nodes.Continue, state: State, frame: Frame) -> bool:
        if frame.loops:
            frame.loops[-1].continues.append(state.copy())
        return False

    def _run_Assert(self, node: nodes.Assert, state: State, frame: Frame) -> bool:
        self.eval(node.test, state, frame)
        self.narrow(node.test, True, state, frame)
        return True

    def _run_Del(self, node: nodes.Del, state: State, frame: Frame) -> bool:
        for target in node.targets:
            if isinstance(target, nodes.Name):
                state.unbind(self._frame_of(target.value, frame), target.value)
            elif isinstance(target, nodes.Subscript):
                owner = self.eval(target.value, state, frame)
                self.delete_item(owner, self.subscript_key(target, state, frame), state)
            elif isinstance(target, nodes.Attribute):
                owner = self.eval(target.value, state, frame)
                self.set_attribute(owner, target.attr, Missing(), state)
        return True

    def _run_Global(self, node: nodes.Global, state: State, frame: Frame) -> bool:
        for name in node.names:
            frame.outer[name] = frame.scopes[-1]
            self.settle_imports(name, state)
        return True

    def _run_Nonlocal(self, node: nodes.Nonlocal, state: State, frame: Frame) -> bool:
        for name in node.names:
            holders = [scope for scope in frame.scopes[1:-1] if name in state.variables(scope)]
            if holders:
                frame.outer[name] = holders[0]
        return True

    def _run_Import(self, node: nodes.Import, state: State, frame: Frame) -> bool:
        for alias in node.names:
            if alias.asname is not None:
                self.bind(alias.asname, self.import_name(alias.name, "", state, frame), state, frame)
            else:
                head = alias.name.split(".")[0]
                self.import_name(alias.name, "", state, frame)
                self.bind(head, self.import_name(head, "", state, frame), state, frame)
        return True

    def _run_ImportFrom(self, node: nodes.ImportFrom, state: State, frame: Frame) -> bool:
        for alias in node.names:
            if alias.name == "*":
                self.import_star(node.source, state, frame)
            else:
                value = self.import_name(node.source, alias.name, state, frame)
                self.bind(alias.asname or alias.name, value, state, frame)
        return True

    def import_star(self, base: str, state: State, frame: Frame) -> None:
        source = self.import_name(base, "", state, frame)
        if isinstance(source, Mod):
            for name, value in state.variables(("module", source.module.path)).items():
                if not name.startswith("_"):
                    self.bind(name, value, state, frame)

    # -- definitions -------------------------------------------------------------------------------------------

    def _run_FunctionDef(self, node: nodes.FunctionDef, state: State, frame: Frame) -> bool:
        self.bind(node.name, self.define(node, state, frame), state, frame)
        return True

    def _run_ClassDef(self, node: nodes.ClassDef, state: State, frame: Frame) -> bool:
        self.bind(node.name, self.define_class(node, state, frame), state, frame)
        return True

    # -- branches ----------------------------------------------------------------------------------------------

    def _run_If(self, node: nodes.If, state: State, frame: Frame) -> bool:
        taken = self.decide(self.eval(node.test, state, frame), state)
        arrived: list[State] = []
        for polarity, branch in ((True, node.body), (False, node.orelse)):
            if taken is not None and taken is not polarity:
                if branch is not None:
                    self.run_dead(branch.body, state, frame)
                continue
            branch_state = state.copy()
            self.narrow(node.test, polarity, branch_state, frame)
            if branch is None or self.run_suite(branch, branch_state, frame):
                arrived.append(branch_state)
        return arrive(state, arrived)

    def decide(self, value: Abstract, state: State) -> bool | None:
        """Whether a condition is certain. One that a command line can change is not."""
        if any(step.kind is HopKind.ARGPARSE for member in members(value) for step in member.steps):
            return None
        return truth(value, state)

    def narrow(self, test: nodes.Expression, polarity: bool, state: State, frame: Frame) -> None:
        """Drop the alternatives of a variable that a condition rules out: `x is None`, `x`, `not x`, `x == 1`, and."""
        match test:
            case nodes.UnaryOperation(operator="Not"):
                self.narrow(test.expression, not polarity, state, frame)
            case nodes.BooleanOperation(operator="And") if polarity:
                self.narrow(test.left, True, state, frame)
                self.narrow(test.right, True, state, frame)
            case nodes.BooleanOperation(operator="Or") if not polarity:
                self.narrow(test.left, False, state, frame)
                self.narrow(test.right, False, state, frame)
            case nodes.Name():
                self._keep(test, lambda v: truth(v, state) is not (not polarity), state, frame)
            case nodes.Comparison(
                left=nodes.Name() as name, comparisons=(nodes.ComparisonTarget() as target,)
            ):
                self._narrow_comparison(name, target, polarity, state, frame)

    def _narrow_comparison(
        self, name: nodes.Name, target: nodes.ComparisonTarget, polarity: bool, state: State, frame: Frame
    ) -> None:
        if target.operator in ("IsNot", "NotEqual"):
            polarity = not polarity
        elif target.operator not in ("Is", "Equal"):
            return
        wanted = self.eval(target.comparator, state, frame)
        if not isinstance(wanted, Const):
            return

        def possible(value: Abstract) -> bool:
            if isinstance(value, Const):
                same = type(value.value) is type(wanted.value) and value.value == wanted.value
                return same is polarity or (
                    type(value.value) is not type(wanted.value) and value.value == wanted.value
                )
            certainly_other = isinstance(value, (Ref, Tup, Func, Mod)) and wanted.value is None
            return not (certainly_other and polarity)

        self._keep(name, possible, state, frame)

    def _keep(
        self, name: nodes.Name, possible: Callable[[Abstract], bool], state: State, frame: Frame
    ) -> None:
        home = self._frame_of(name.value, frame)
        value = state.variables(home).get(name.value)
        if isinstance(value, Alt):
            kept = tuple(member for member in value.values if possible(member))
            if kept and len(kept) < len(value.values):
                state.bind(home, name.value, join(kept))

    # -- targets -----------------------------------------------------------------------------------------------

    def bind(self, name: str, value: Abstract, state: State, frame: Frame) -> None:
        state.bind(self._frame_of(name, frame), name, value)

    def _frame_of(self, name: str, frame: Frame) -> Any:
        return frame.outer.get(name, frame.id)

    def assign(self, target: nodes.Expression, value: Abstract, state: State, frame: Frame) -> None:
        match target:
            case nodes.Name():
                self.bind(target.value, value, state, frame)
            case nodes.Attribute():
                step = Step(HopKind.ATTRIBUTE, frame.unit, target, f"assigned to {self.text(target)}")
                owner = self.eval(target.value, state, frame)
                self.set_attribute(owner, target.attr, with_step(value, step), state)
                if isinstance(owner, Ext) and not self.harmless(owner, ""):
                    self.call_back(value, state, frame, False)
                self.note_assignment(target, owner, value, state, frame)
            case nodes.Subscript():
                step = Step(HopKind.UPDATE, frame.unit, target, f"stored as {self.text(target)}")
                owner = self.eval(target.value, state, frame)
                self.set_item(owner, self.subscript_key(target, state, frame), with_step(value, step), state)
            case nodes.Tuple() | nodes.List():
                self._unpack(target.elements, value, state, frame)

    def note_assignment(
        self, target: nodes.Attribute, owner: Abstract, value: Abstract, state: State, frame: Frame
    ) -> None:
        """Hook: `x.generation_config.top_k = 5` is a site of its own."""

    def _unpack(self, elements: Sequence[Any], value: Abstract, state: State, frame: Frame) -> None:
        items = self.items_of(value, state)
        starred = next((i for i, e in enumerate(elements) if isinstance(e, nodes.Starred)), None)
        if items is None or (
            len(items) < len(elements) - 1 if starred is not None else len(items) != len(elements)
        ):
            for index, element in enumerate(elements):
                oid = ("item", value.oid, index) if isinstance(value, Unk) and value.oid else None
                unknown = Unk(Reason.RUNTIME, f"part of {_detail(value)}", value.steps, oid)
                target = element.value if isinstance(element, nodes.Starred) else element
                self.assign(target, unknown, state, frame)
            return
        if starred is None:
            for element, item in zip(elements, items, strict=False):
                self.assign(element, item, state, frame)
            return
        tail = len(elements) - starred - 1
        middle = items[starred : len(items) - tail]
        for element, item in zip(elements[:starred], items, strict=False):
            self.assign(element, item, state, frame)
        self.assign(elements[starred].value, self.new(ListObj(tuple(middle)), state), state, frame)
        for element, item in zip(elements[starred + 1 :], items[len(items) - tail :], strict=False):
            self.assign(element, item, state, frame)

    def subscript_key(self, node: nodes.Subscript, state: State, frame: Frame) -> Abstract:
        if len(node.slice) == 1 and not isinstance(node.slice[0], nodes.Slice):
            return self.eval(node.slice[0], state, frame)
        return Unk(Reason.DYNAMIC_KEY, self.text(node))

    def text(self, node: nodes.Node) -> str:
        """The source text of a node, on one line, shortened."""
        found = self._texts.get(node)
        if found is None:
            found = self._texts[node] = shorten(node.text())
        return found


def _is_exit(node: nodes.Expression) -> bool:
    """`sys.exit()` and its kin do not come back."""
    return isinstance(node, nodes.Call) and _dotted(node.func) in ("sys.exit", "exit", "quit", "os._exit")


def _dotted(node: nodes.Expression) -> str:
    parts: list[str] = []
    while isinstance(node, nodes.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, nodes.Name):
        return ""
    return ".".join([node.value, *reversed(parts)])


def _detail(value: Abstract) -> str:
    return value.detail if isinstance(value, Unk) else "a value"
