"""Iterators, the functions that make or use them, and comprehensions over dicts of which not all is known."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from klguard.read.python import nodes
from klguard.read.python.calls import Arguments
from klguard.read.python.containers import NOT_PLAIN, SETS
from klguard.read.python.control import Frame
from klguard.read.python.memory import MAX_ITEMS
from klguard.read.python.methods import Methods
from klguard.read.python.state import State, join_states, truth
from klguard.read.python.values import (
    MISSING,
    Abstract,
    Alt,
    Code,
    Const,
    DictObj,
    Func,
    InstObj,
    Later,
    ListObj,
    Missing,
    Ref,
    Tup,
    Unk,
    join,
    members,
)
from klguard.settings import Reason

Model = Callable[..., "Abstract | None"]
Items = tuple[Abstract, ...]


class Iteration(Methods):
    """Models of `iter`, `next`, `map`, `zip`, `sorted`, `itertools` and their kin."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._library: dict[str, Model] = {
            "builtins.iter": self._iter,
            "builtins.next": self._next,
            "builtins.map": self._map,
            "builtins.filter": self._filter,
            "builtins.zip": self._zip,
            "builtins.enumerate": self._enumerate,
            "builtins.reversed": self._reversed,
            "builtins.sorted": self._sorted,
            "builtins.any": self._any,
            "builtins.all": self._all,
            "builtins.set": self._make_set,
            "builtins.frozenset": self._make_frozenset,
            "functools.reduce": self._reduce,
            "itertools.chain": self._chain,
            "itertools.chain.from_iterable": self._chain_from,
            "itertools.product": self._product,
            "itertools.islice": self._islice,
            "itertools.zip_longest": self._zip_longest,
            "itertools.repeat": self._repeat_item,
            "itertools.starmap": self._starmap,
            "itertools.permutations": self._combine_items,
            "itertools.combinations": self._combine_items,
            "operator.itemgetter": self._itemgetter,
            "operator.attrgetter": self._attrgetter,
        }

    def call_method(
        self, function: Abstract, values: Sequence[Abstract], node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        """Call a function that other code calls, with these values."""
        return self.call(function, Arguments(list(values)), node, state, frame)

    def iterator(self, items: Iterable[Abstract] | None, node: nodes.Node, state: State) -> Abstract:
        """An iterator over known items; None makes an unknown value."""
        found = None if items is None else tuple(itertools.islice(items, 4 * MAX_ITEMS + 1))
        if found is None or len(found) > 4 * MAX_ITEMS:
            return Unk(Reason.RUNTIME, self.text(node))
        return self.make("iterator", Tup(found), state, self.text(node))

    def sequence(self, args: Arguments, state: State) -> Items | None:
        """The items of the first argument."""
        if args.more_positional is not None or not args.positional:
            return None
        return self.items_of(args.positional[0], state)

    # -- making iterators ------------------------------------------------------------------------------------

    def _iter(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        if len(args.positional) != 1:
            return None
        if self.kind_of(args.positional[0], state) == "iterator":
            return args.positional[0]
        items = self.sequence(args, state)
        return None if items is None else self.iterator(items, node, state)

    def _enumerate(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        items = self.sequence(args, state)
        start = args.get("start", 1) or Const(0)
        if items is None or not isinstance(start, Const):
            return None
        return self.iterator(
            (Tup((Const(start.value + i), item)) for i, item in enumerate(items)), node, state
        )

    def _columns(self, args: Arguments, state: State) -> list[Items] | None:
        """The items of every positional argument."""
        columns = [self.items_of(value, state) for value in args.positional]
        known = [column for column in columns if column is not None]
        return None if args.more_positional is not None or len(known) < len(columns) else known

    def _zip(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        columns = self._columns(args, state)
        return (
            None
            if not columns
            else self.iterator((Tup(row) for row in zip(*columns, strict=False)), node, state)
        )

    def _zip_longest(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        columns = self._columns(args, state)
        fill = args.keywords.get("fillvalue", Const(None))
        if not columns:
            return None
        return self.iterator(
            (Tup(row) for row in itertools.zip_longest(*columns, fillvalue=fill)), node, state
        )

    def _reversed(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        items = self.sequence(args, state)
        return None if items is None else self.iterator(reversed(items), node, state)

    def _chain(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        columns = self._columns(args, state)
        return None if columns is None else self.iterator(itertools.chain(*columns), node, state)

    def _chain_from(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        parts = self.sequence(args, state)
        return None if parts is None else self._chain(Arguments(list(parts)), node, state, frame)

    def _product(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        columns = self._columns(args, state)
        repeat = self.plain(args.keywords.get("repeat", Const(1)), state)
        if columns is None or type(repeat) is not int or not 0 < repeat <= 4:
            return None
        return self.iterator((Tup(row) for row in itertools.product(*columns, repeat=repeat)), node, state)

    def _combine_items(
        self, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract | None:
        items, length = self.sequence(args, state), args.get("r", 1)
        if (
            items is None
            or not isinstance(length, Const)
            or type(length.value) is not int
            or length.value < 0
        ):
            return None
        make = itertools.permutations if "permutations" in self.text(node.func) else itertools.combinations
        return self.iterator((Tup(row) for row in make(items, length.value)), node, state)

    def _islice(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        items = self.sequence(args, state)
        bounds = [self.plain(value, state) for value in args.positional[1:]]
        if items is None or not bounds or not all(b is None or (type(b) is int and b >= 0) for b in bounds):
            return None
        return self.iterator(itertools.islice(items, *bounds), node, state)

    def _repeat_item(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        times = args.get("times", 1)
        if not args.positional or not isinstance(times, Const) or type(times.value) is not int:
            return None
        return self.iterator(
            itertools.repeat(args.positional[0], min(times.value, 5 * MAX_ITEMS)), node, state
        )

    def _map(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        if not args.positional or args.more_positional is not None:
            return None
        columns = self._columns(Arguments(args.positional[1:]), state)
        rows = None if columns is None else [list(row) for row in zip(*columns, strict=False)]
        results = self.lazily(args.positional[0], rows, node, state, frame)
        return self.iterator(results, node, state)

    def _starmap(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        if len(args.positional) != 2 or args.more_positional is not None:
            return None
        items = self.items_of(args.positional[1], state)
        rows = None if items is None else [self.items_of(item, state) for item in items]
        if rows is not None and any(row is None for row in rows):
            rows = None
        return self.iterator(self.lazily(args.positional[0], rows, node, state, frame), node, state)

    def _filter(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        if len(args.positional) != 2 or args.more_positional is not None:
            return None
        test, items = args.positional[0], self.items_of(args.positional[1], state)
        answers: Sequence[Abstract] | None = items
        if not (isinstance(test, Const) and test.value is None):
            answers = self.lazily(
                test, None if items is None else [[item] for item in items], node, state, frame
            )
        kept = [None] if items is None or answers is None else [truth(answer, state) for answer in answers]
        if items is None or None in kept:
            # What comes out of it is changed under another name.
            self.escape(args.positional[1:], f"passed to {self.text(node)}", state)
            return Unk(Reason.RUNTIME, self.text(node))
        return self.iterator((item for item, keep in zip(items, kept, strict=False) if keep), node, state)

    def lazily(
        self,
        function: Abstract,
        rows: Sequence[Sequence[Abstract]] | None,
        node: nodes.Call,
        state: State,
        frame: Frame,
    ) -> list[Abstract] | None:
        """What a function gives for each row, some time later; None unless it leaves everything as it is.

        When it does not, it may have run by the next line or not, so both is assumed.
        """
        if rows is None or len(rows) > MAX_ITEMS:
            unknown = Unk(Reason.RUNTIME, f"an item of {self.text(node)}")
            rows, certain = [[unknown]], False
        else:
            certain = True
        branch, written = state.copy(), set[Any]()
        state.heap.watchers.append(written)
        try:
            results = [self.call_method(function, row, node, branch, frame) for row in rows]
        finally:
            state.heap.watchers[:] = [watcher for watcher in state.heap.watchers if watcher is not written]
        touched = any(oid in state.heap for oid in written)
        if touched or any(_rebound(names, branch.variables(key)) for key, names in state.frames.items()):
            merged = join_states([state, branch])
            assert merged is not None
            state.become(merged)
            return None
        state.become(branch)
        return results if certain else None

    def _eval_GeneratorExp(self, node: nodes.GeneratorExp, state: State, frame: Frame) -> Abstract:
        result = super()._eval_GeneratorExp(node, state, frame)
        return self.iterator(result.items, node, state) if isinstance(result, Tup) else result

    def _run_generator(self, code: Code, arguments: Arguments, state: State, inner: Frame) -> Abstract:
        """What a generator gives can be taken once; a context manager is entered instead."""
        result = super()._run_generator(code, arguments, state, inner)
        entered = any("contextmanager" in decorator for decorator in code.decorators)
        return (
            result
            if entered or not isinstance(result, Tup)
            else self.make("iterator", result, state, code.name)
        )

    # -- using them ------------------------------------------------------------------------------------------

    def _next(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        source, default = args.get("", 0), args.get("", 1)
        obj = state.heap.get(source.oid) if isinstance(source, Ref) else None
        if isinstance(obj, InstObj) and obj.cls is not None and isinstance(source, Ref):
            method = self.class_attribute(obj.cls, "__next__", state)
            return (
                self.call_method(self.bound(method, source), [], node, state, frame)
                if isinstance(method, Func)
                else None
            )
        if isinstance(source, Tup) and source.items:
            # A generator of the project, of which it is not known how much has been used.
            return join(source.items)
        unknown = Unk(Reason.RUNTIME, self.text(node), oid=("call", next(self._fresh)))
        if self.kind_of(source, state) != "iterator" if source is not None else True:
            if isinstance(source, Alt):
                self.items_of(source, state)
            return unknown if default is None else join((default, unknown))
        assert isinstance(source, Ref)
        part = self.part(source, state)
        if isinstance(part, Tup) and part.items:
            self.set_part(source, Tup(part.items[1:]), state)
            return part.items[0]
        if isinstance(part, Tup):
            return default if default is not None else unknown
        return unknown if default is None else join((default, unknown))

    def bound(self, method: Func, owner: Ref) -> Func:
        """A method of an instance."""
        return Func(method.code, method.closure, owner, method.steps)

    def _reduce(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        items = self.items_of(args.positional[1], state) if len(args.positional) in (2, 3) else None
        if items is None or args.more_positional is not None or len(items) > MAX_ITEMS:
            self.escape(args.all(), f"passed to {self.text(node.func)}()", state)
            return None
        values = [*args.positional[2:], *items]
        if not values:
            return None
        result = values[0]
        for value in values[1:]:
            result = self.call_method(args.positional[0], [result, value], node, state, frame)
        return result

    def _sorted(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        items = self.unordered(args.positional[0], state) if args.positional else None
        rest = Arguments([], args.keywords, None, args.rest)
        return self.new(ListObj(self.sort_items(items, rest, node, state, frame)), state)

    def sort_items(
        self, items: Items | None, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Items | None:
        """The items in order, when it is known."""
        key, reverse = args.keywords.get("key"), self.plain(args.keywords.get("reverse", Const(False)), state)
        if items is None or len(items) > MAX_ITEMS:
            if key is not None:
                self.escape([key], f"passed to {self.text(node.func)}()", state)
            return None
        keys = list(items)
        if key is not None and not (isinstance(key, Const) and key.value is None):
            keys = [self.call_method(key, [item], node, state, frame) for item in items]
        plain = [self.plain(value, state) for value in keys]
        if reverse is NOT_PLAIN or args.rest is not None or set(args.keywords) - {"key", "reverse"}:
            return None
        if any(value is NOT_PLAIN for value in plain):
            plain = [_first_of(value, self.plain, state) for value in keys]
            if any(value is NOT_PLAIN for value in plain) or len(set(map(repr, plain))) < len(plain):
                return None
        try:
            order = sorted(range(len(items)), key=plain.__getitem__, reverse=bool(reverse))
        except TypeError:
            return None
        return tuple(items[index] for index in order)

    def _any(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        return self._quantify(args, state, True)

    def _all(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        return self._quantify(args, state, False)

    def _quantify(self, args: Arguments, state: State, wanted: bool) -> Abstract | None:
        items = self.unordered(args.positional[0], state) if args.positional else None
        if items is None:
            return None
        soft = self.soft_steps(items, state)
        answers = [truth(item, state) for item in items]
        if wanted in answers:
            return Const(wanted, soft)
        return None if None in answers else Const(not wanted, soft)

    def _make_set(
        self, args: Arguments, node: nodes.Call, state: State, frame: Frame, kind: str = "set"
    ) -> Abstract:
        elements = {} if not args.positional and args.more_positional is None else None
        if len(args.positional) == 1 and args.more_positional is None:
            elements = self.elements_of(args.positional[0], state)
        return self.make_set(elements, state, self.text(node), kind)

    def _make_frozenset(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract:
        return self._make_set(args, node, state, frame, "frozenset")

    # -- getters ---------------------------------------------------------------------------------------------

    def _itemgetter(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        known = args.positional and args.more_positional is None
        return self.make("itemgetter", Tup(tuple(args.positional)), state, self.text(node)) if known else None

    def _attrgetter(self, args: Arguments, node: nodes.Call, state: State, frame: Frame) -> Abstract | None:
        known = args.positional and all(
            isinstance(a, Const) and isinstance(a.value, str) for a in args.positional
        )
        if not known or args.more_positional is not None:
            return None
        return self.make("attrgetter", Tup(tuple(args.positional)), state, self.text(node))

    def call_getter(
        self, callee: Ref, kind: str, args: Arguments, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract | None:
        """`operator.itemgetter("a", "b")(x)` and `operator.attrgetter("a.b")(x)`."""
        wanted = self.part(callee, state)
        if not isinstance(wanted, Tup) or len(args.positional) != 1:
            return None
        found = [self._get_by(kind, args.positional[0], key, node, state, frame) for key in wanted.items]
        return found[0] if len(found) == 1 else Tup(tuple(found))

    def _get_by(
        self, kind: str, owner: Abstract, key: Abstract, node: nodes.Call, state: State, frame: Frame
    ) -> Abstract:
        if kind == "itemgetter":
            return self.get_item(owner, key, state, self.text(node))
        assert isinstance(key, Const)
        for name in key.value.split("."):
            owner = self.get_attribute(owner, name, state, frame, node)
        return owner

    # -- comprehensions --------------------------------------------------------------------------------------

    def _eval_DictComp(self, node: nodes.DictComp, state: State, frame: Frame) -> Abstract:
        """Over a dict with entries that may be missing, or a set in whatever order, where the plain way
        gives up."""
        clause = node.for_in
        if clause.inner_for_in is not None or clause.asynchronous:
            return super()._eval_DictComp(node, state, frame)
        ref = self.new_dict({}, state, steps=self._literal(node, frame))
        by_key = (
            isinstance(clause.target, nodes.Name)
            and isinstance(node.key, nodes.Name)
            and (clause.target.value == node.key.value)
        )
        inner = self._comprehension_frame(frame)
        rows, rest = self.rows_of(self.eval(clause.iter, state, frame), by_key, state)
        if rows is None:
            self._one_round(
                clause,
                node,
                Unk(Reason.RUNTIME, f"an item of {self.text(clause.iter)}"),
                ref,
                True,
                state,
                inner,
            )
            rest = Unk(Reason.RUNTIME, f"an item of {self.text(clause.iter)}")
        for item, certain in rows or ():
            self._one_round(clause, node, item, ref, not certain, state, inner)
        if rest is not None:
            obj = state.heap[ref.oid]
            assert isinstance(obj, DictObj)
            doubt = Unk(rest.reason, self.text(node))
            wanted = self._wanted_keys(node, state, inner)
            if rows is None:
                entries = {}
            elif self._keeps_keys(node):
                entries = obj.entries
            else:
                entries = {k: join((v, doubt)) for k, v in obj.entries.items()}
            if wanted is not None:
                entries = {**dict.fromkeys(wanted, join((MISSING, doubt))), **entries}
            state.heap[ref.oid] = DictObj(entries, doubt if wanted is None else None)
        state.frames.pop(inner.id, None)
        return ref

    def _keeps_keys(self, node: nodes.DictComp) -> bool:
        """`{k: ... for k, v in ...}`: an item that is not known cannot give a key that another one gives."""
        target = node.for_in.target
        first = target.elements[0] if isinstance(target, nodes.Tuple) and target.elements else target
        return (
            isinstance(first, nodes.Name)
            and isinstance(node.key, nodes.Name)
            and first.value == node.key.value
        )

    def _wanted_keys(self, node: nodes.DictComp, state: State, frame: Frame) -> Sequence[Any] | None:
        """The keys that `{k: ... for k, v in ... if k in ("a", "b")}` can have; None where any may be there."""
        for condition in node.for_in.ifs if isinstance(node.key, nodes.Name) else ():
            if (
                isinstance(condition, nodes.Comparison)
                and isinstance(condition.left, nodes.Name)
                and condition.left.value == node.key.value
                and [part.operator for part in condition.comparisons] == ["In"]
            ):
                keys = self.unordered(self.eval(condition.comparisons[0].comparator, state, frame), state)
                plain = None if keys is None else [self.plain(key, state) for key in keys]
                if plain is not None and all(isinstance(key, str) for key in plain):
                    return plain
        return None

    def _comprehension_frame(self, frame: Frame) -> Frame:
        inner = Frame(("comp", next(self._fresh)), (), frame.module, frame.unit, frame.chain, frame.code)
        inner.outer, inner.returns, inner.loops = dict(frame.outer), frame.returns, frame.loops
        inner.yields, inner.dead, inner.captured = frame.yields, frame.dead, frame.captured
        inner.scopes = (inner.id, *frame.scopes)
        return inner

    def rows_of(  # type: ignore[override]
        self, iterable: Abstract, by_key: bool, state: State
    ) -> tuple[list[tuple[Abstract, bool]] | None, Unk | None]:
        """What a comprehension runs over: (items, each with whether it is certainly there), and what
        else may be."""
        if by_key and self.kind_of(iterable, state) in SETS:
            items = self.unordered(iterable, state)
        else:
            items = self.items_of(iterable, state)
        if items is not None:
            return ([(item, True) for item in items], None) if len(items) <= MAX_ITEMS else (None, None)
        kinds = {self.kind_of(member, state) for member in members(iterable)}
        owner = iterable
        if kinds <= {"dict_keys", "dict_items"} and len(kinds) == 1:
            owner = join(self.part(m, state) for m in members(iterable) if isinstance(m, Ref))
        elif kinds != {""}:
            return None, None
        obj = self.dict_of(owner, state)
        if obj is None or any(isinstance(key, tuple) for key in obj.entries):
            return None, None
        rows: list[tuple[Abstract, bool]] = []
        for key, value in obj.entries.items():
            present = [m for m in members(value) if not isinstance(m, Missing)]
            item: Abstract = Const(key)
            if present:
                pair = Tup((item, join(present)))
                rows.append((pair if kinds == {"dict_items"} else item, len(present) == len(members(value))))
        return rows, obj.rest

    def _one_round(
        self,
        clause: nodes.CompFor,
        node: nodes.DictComp,
        item: Abstract,
        ref: Ref,
        weak: bool,
        state: State,
        frame: Frame,
    ) -> None:
        """One round of a comprehension, as if its conditions held; on a path of its own where that is
        not certain."""
        self.spend()
        self.assign(clause.target, item, state, frame)
        target, certain = state, not weak
        if weak:
            target = state.copy()
        for condition in clause.ifs:
            answer = truth(self.eval(condition, target, frame), target)
            if answer is False:
                break
            if answer is None:
                target = target.copy() if target is state else target
                certain = False
                self.narrow(condition, True, target, frame)
        else:
            key = self.eval(node.key, target, frame)
            self.set_item(ref, key, self.eval(node.value, target, frame), target)
        if not certain:
            merged = join_states([state, target])
            assert merged is not None
            state.become(merged)

    def _eval_SetComp(self, node: nodes.SetComp, state: State, frame: Frame) -> Abstract:
        found: list[Abstract] = []
        certain = self._comprehend(
            node.for_in, lambda s, f: found.append(self.eval(node.elt, s, f)), state, frame
        )
        elements = self.elements_of(Tup(tuple(found)), state) if certain else None
        return self.make_set(elements, state, self.text(node))


def _rebound(before: dict[str, Abstract], after: dict[str, Abstract]) -> bool:
    """Whether a variable got another value; a definition that was waiting to be read is none."""
    return before is not after and any(
        after.get(name) is not value and not isinstance(value, Later) for name, value in before.items()
    )


def _first_of(value: Abstract, plain: Callable[..., Any], state: State) -> Any:
    """The first part of a tuple, which decides the order where no two are the same."""
    return plain(value.items[0], state) if isinstance(value, Tup) and value.items else NOT_PLAIN


__all__ = ["MISSING", "Iteration"]
