"""What an expression can be: the values the interpreter computes with.

A value is never changed and carries the steps of its history. (Its class is not frozen: that would make it three
times as costly to make one, and they are made by the hundred thousand.) Things that can be mutated (dicts,
lists, instances) live in the heap of a `State` and are referred to by `Ref`, so that two names for one dict stay
one dict.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from klguard.settings import MAX_ALTERNATIVES, HopKind, Place, Reason

if TYPE_CHECKING:
    from klguard.read.python import nodes
    from klguard.read.python.source import ClassInfo, Module, Unit

MAX_STEPS = 12


@dataclass(slots=True, eq=False)
class Step:
    """A hop whose place is computed only if somebody prints it (`place` is for documents, which have no node)."""

    kind: HopKind
    unit: Unit | None
    node: nodes.Node | None
    text: str
    place: Place | None = None


Steps = tuple[Step, ...]


@dataclass(slots=True, eq=False)
class Const:
    """Plain Python data: None, bool, int, float, complex, str, bytes, Ellipsis."""

    value: Any
    steps: Steps = ()


@dataclass(slots=True, eq=False)
class Unk:
    """A value that cannot be known. `oid` is its identity, so that attributes set on it can be found again;
    `owner` and `name` say of which object it is an attribute, where it is one."""

    reason: Reason
    detail: str = ""
    steps: Steps = ()
    oid: Any = None
    owner: Abstract | None = None
    name: str = ""


@dataclass(slots=True, eq=False)
class Missing:
    """No entry: a dict key or attribute that is not there on some path."""

    steps: Steps = ()


@dataclass(slots=True, eq=False)
class Alt:
    """One of several values; never nested, at most MAX_ALTERNATIVES."""

    values: tuple[Abstract, ...]

    @property
    def steps(self) -> Steps:
        return self.values[0].steps


@dataclass(slots=True, eq=False)
class Ref:
    """A reference to the heap object `oid`."""

    oid: Any
    steps: Steps = ()


@dataclass(slots=True, eq=False)
class Tup:
    """A tuple. `kind` is "tuple", or "set" and "frozenset", which klguard never sees mutated in place."""

    items: tuple[Abstract, ...]
    steps: Steps = ()


@dataclass(slots=True, eq=False)
class Func:
    """A function or lambda of the project, with the frame it closes over and the object it is bound to."""

    code: Code
    closure: Any
    bound: Abstract | None = None
    steps: Steps = ()


@dataclass(slots=True, eq=False)
class Mod:
    """A module of the project."""

    module: Module
    steps: Steps = ()


@dataclass(slots=True, eq=False)
class Ext:
    """A name from outside the project: `transformers.GenerationConfig`, `builtins.dict`, `copy.deepcopy`."""

    name: str
    steps: Steps = ()


@dataclass(slots=True, eq=False)
class Method:
    """A method of a built-in or library object, waiting to be called: `kw.update`."""

    owner: Abstract
    name: str
    steps: Steps = ()


@dataclass(slots=True, eq=False)
class Partial:
    """functools.partial: a callee with arguments already given."""

    func: Abstract
    args: tuple[Abstract, ...]
    kwargs: Ref
    steps: Steps = ()


@dataclass(slots=True, eq=False)
class Later:
    """A definition or import of a module that nobody has read yet. `what` is a FunctionInfo or ClassInfo, or
    (module, name) of an import; `owner` is the class of a method."""

    kind: str
    module: Module
    what: Any
    owner: Abstract | None = None
    steps: Steps = ()


MISSING = Missing()

Abstract = Later | Const | Unk | Missing | Alt | Ref | Tup | Func | Mod | Ext | Method | Partial


@dataclass(eq=False)
class Code:
    """What a Func runs: parameters, body and defaults, evaluated once where it was defined. `wrapped` names a
    decorator that is not visible."""

    name: str
    qualname: str
    module: Module
    unit: Unit
    params: nodes.Parameters
    body: nodes.Block | nodes.Expression
    defaults: dict[str, Abstract] = field(default_factory=dict)
    owner: Any = None
    is_generator: bool = False
    is_async: bool = False
    decorators: tuple[str, ...] = ()
    info: Any = None
    wrapped: str = ""


# -- the heap ---------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class DictObj:
    """A dict, or the attributes of an instance. `rest` is set when keys that are not listed may be there too."""

    entries: dict[Any, Abstract] = field(default_factory=dict)
    rest: Unk | None = None


@dataclass(slots=True, eq=False)
class ListObj:
    """A list; `items` is None when its length is not known."""

    items: tuple[Abstract, ...] | None = ()


@dataclass(slots=True, eq=False)
class ClassObj:
    """A class of the project after its body ran: its attributes and its bases, most derived first."""

    info: ClassInfo
    attrs: Any
    bases: tuple[Abstract, ...]
    fields: tuple[str, ...] = ()
    flavour: str = ""


@dataclass(slots=True, eq=False)
class InstObj:
    """An instance: of a class of the project (`cls`), or made by a call to `made_by` outside it.

    `attrs` is the oid of the DictObj that holds its attributes, so that vars(x) and x.__dict__ alias it.
    """

    cls: Ref | None
    made_by: str
    attrs: Any
    text: str = ""


Object = DictObj | ListObj | ClassObj | InstObj


# -- small operations -------------------------------------------------------------------------------------------


def members(value: Abstract) -> tuple[Abstract, ...]:
    return value.values if isinstance(value, Alt) else (value,)


def identity(value: Abstract) -> tuple:
    """Equal for values that cannot be told apart; the history does not count."""
    match value:
        case Const():
            return ("const", type(value.value).__name__, repr(value.value))
        case Unk():
            return ("unk", value.reason, value.detail, value.oid)
        case Ref():
            return ("ref", value.oid)
        case Tup():
            return ("tup", *(identity(item) for item in value.items))
        case Alt():
            return ("alt", *(identity(item) for item in value.values))
        case Func():
            return (
                "func",
                id(value.code),
                value.closure,
                None if value.bound is None else identity(value.bound),
            )
        case Mod():
            return ("mod", value.module.path)
        case Ext():
            return ("ext", value.name)
        case Method():
            return ("method", value.name, identity(value.owner))
        case Later():
            return ("later", value.module.path, value.what if value.kind == "import" else id(value.what))
        case Partial():
            return ("partial", identity(value.func), value.kwargs.oid)
        case _:
            return ("missing",)


def join(values: Iterable[Abstract]) -> Abstract:
    """The value where paths meet."""
    seen: dict[tuple, Abstract] = {}
    for value in values:
        for member in members(value):
            seen.setdefault(identity(member), member)
    distinct = tuple(seen.values())
    if len(distinct) == 1:
        return distinct[0]
    if not distinct or len(distinct) > MAX_ALTERNATIVES:
        return Unk(Reason.BUDGET, "", distinct[0].steps if distinct else ())
    return Alt(distinct)


def with_step(value: Abstract, step: Step) -> Abstract:
    """The value one step further on its way."""
    if isinstance(value, Alt):
        return Alt(tuple(with_step(member, step) for member in value.values))
    steps = value.steps
    if len(steps) >= MAX_STEPS:
        steps = steps[: MAX_STEPS // 2] + steps[-(MAX_STEPS // 2 - 1) :]
    return with_steps(value, (*steps, step))


def with_steps(value: Abstract, steps: Steps) -> Abstract:
    """The value with another history: `dataclasses.replace`, in a fraction of its time."""
    match value:
        case Unk():
            return Unk(value.reason, value.detail, steps, value.oid, value.owner, value.name)
        case Const():
            return Const(value.value, steps)
        case Ref():
            return Ref(value.oid, steps)
    return replace(value, steps=steps)
