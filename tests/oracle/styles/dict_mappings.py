"""Dicts from objects that behave like one, and from chains of calls."""

from __future__ import annotations

from ..scope import MAPPINGS, SETTINGS, Dict, Scope
from .pieces import held, hold, items, keywords, literal, one, plain_braces


@MAPPINGS("chain map")
def chain_map(s: Scope, depth: int) -> Dict:
    a, b = s.mapping(depth), s.mapping(0)
    s.uses("import collections")
    s.shared(a), s.shared(b)
    name, (setting, value) = s.fresh("chained"), one(s, 0)
    s.emit(f"{name} = collections.ChainMap({s.pick('', '{}, ')}{a.text}, {b.text})")
    s.emit(
        s.pick(
            "pass",
            f'{name}["{setting}"] = {value}',
            f'{name} = {name}.new_child({{"{setting}": {value}}})',
            f'{b.text}["{setting}"] = {value}',
        )
    )
    return held(s, s.pick(f"dict({name})", f"{{**{name}}}", f"dict({name}.items())"))


@MAPPINGS("mapping class")
def mapping_class(s: Scope, depth: int) -> Dict:
    name, base = s.unique("Options"), s.shared(s.mapping(depth))
    with s.top() as top:
        top.emit(
            f"class {name}:",
            "    def __init__(self, kw):",
            f"        self.kw = {s.pick('kw', 'dict(kw)')}",
            "",
            "    def keys(self):",
            f"        return {s.pick('self.kw.keys()', 'list(self.kw)')}",
            "",
            "    def __getitem__(self, key):",
            "        return self.kw[key]",
        )
    return held(s, s.pick(f"dict({name}({base.text}))", f"{{**{name}({base.text})}}"))


@MAPPINGS("builder")
def builder(s: Scope, depth: int) -> Dict:
    name, base, pairs = s.unique("Builder"), s.shared(s.mapping(depth)), items(s, depth)
    with s.top() as top:
        top.emit(
            f"class {name}:",
            "    def __init__(self, kw=None):",
            "        self.kw = dict(kw or {})",
            "",
            "    def set(self, key, value):",
            "        self.kw[key] = value",
            "        return self",
            "",
            "    def drop(self, *keys):",
            "        for key in keys:",
            "            self.kw.pop(key, None)",
            "        return self",
            "",
            "    @classmethod",
            "    def of(cls, **kw):",
            "        return cls(kw)",
            "",
            "    def build(self):",
            f"        return {s.pick('self.kw', 'dict(self.kw)')}",
        )
    start = s.pick(f"{name}({base.text})", f"{name}()", f"{name}.of(**{base.text})", f"{name}.of(top_k=9)")
    steps = [f'.set("{each}", {value})' for each, value in pairs]
    if s.chance(40):
        steps.append(f'.drop("{s.settings(1)[0]}", "top_p")')
    return held(s, f"{start}{''.join(steps)}.build()")


@MAPPINGS("mixins")
def mixins(s: Scope, depth: int) -> Dict:
    base, first, last = s.unique("Base"), s.unique("FirstMixin"), s.unique("Policy")
    with s.top() as top:
        pairs, more = items(top, 0), items(top, 0, 2)
        top.emit(
            f"class {base}:",
            f"    kw = {plain_braces(pairs)}",
            "",
            "    def settings(self):",
            "        return dict(self.kw)",
            "",
            f"class {first}({base}):",
            "    def settings(self):",
            f"        return {{**super().settings(), **{plain_braces(more)}}}",
            "",
            f"class {first}Other({base}):",
            "    def settings(self):",
            *s.pick(
                ("        kw = super().settings()", "        kw.pop('top_k', None)", "        return kw"),
                ("        return {'top_p': 0.3}",),
                (f"        return {base}.settings(self)",),
            ),
            "",
            f"class {last}({first}, {first}Other):",
            s.pick("    pass", f"    kw = {plain_braces(items(top, 0, 2))}"),
        )
    return held(s, f"{last}().settings()")


@MAPPINGS("options popped from keywords")
def popped(s: Scope, depth: int) -> Dict:
    name, chosen = s.unique("Runner"), s.settings(3)
    with s.top() as top:
        top.emit(
            f"class {name}:",
            "    def __init__(self, **kwargs):",
            *(f'        self.{each} = kwargs.pop("{each}", {literal(s, SETTINGS[each])})' for each in chosen),
            "        self.rest = kwargs",
            "",
            "    def settings(self):",
            "        return {" + ", ".join(f'"{each}": self.{each}' for each in chosen) + ", **self.rest}",
        )
    base = s.mapping(depth)
    given = s.pick("", f"**{base.text}", keywords(items(s, depth)))
    made = s.fresh("runner")
    s.emit(f"{made} = {name}({given})")
    if s.chance(40):
        s.emit(f"{made}.{chosen[0]} = {s.value(SETTINGS[chosen[0]], depth)}")
    return held(s, f"{made}.settings()")


@MAPPINGS("descriptor and attribute hooks")
def hooks(s: Scope, depth: int) -> Dict:
    name, (setting, value) = s.unique("Lazy"), one(s, 0)
    base = s.shared(s.mapping(depth))
    with s.top() as top:
        top.emit(
            f"class {name}:",
            "    def __init__(self, kw):",
            "        self.hidden = kw",
            "",
            *s.pick(
                ("    def __getattr__(self, key):", "        return self.hidden"),
                ("    @property", "    def kw(self):", "        return {**self.hidden}"),
                (
                    "    @property",
                    "    def kw(self):",
                    "        return self.hidden",
                    "",
                    "    @kw.setter",
                    "    def kw(self, value):",
                    "        self.hidden = dict(value)",
                ),
            ),
        )
    made = s.fresh("lazy")
    s.emit(f"{made} = {name}({base.text})")
    if s.chance(40):
        s.emit(f'{made}.hidden["{setting}"] = {value}')
    return held(s, f"{made}.kw")


@MAPPINGS("grid")
def grid(s: Scope, depth: int) -> Dict:
    s.uses("import itertools")
    name = s.fresh("grid")
    a, b = s.settings(2, kinds=("int",)), s.settings(1, kinds=("float",))
    first, second = a[0], b[0]
    s.emit(
        s.pick(
            f'{name} = [{{"{first}": x, "{second}": y}} for x, y in '
            f"itertools.product((1, 2), (0.5, {s.value('float', 0)}))]",
            f'{name} = [dict(zip(("{first}", "{second}"), row)) for row in zip((1, 2), (0.1, 0.2))]',
            f'{name} = [{{"{first}": x}} | {{"{second}": y}} for x in (3, 4) for y in (0.3,) if x != 3]',
            f'{name} = list(map(lambda x: {{"{first}": x}}, range({s.pick(2, 3)})))',
        )
    )
    return held(s, s.pick(f"{name}[0]", f"{name}[-1]", f"next(iter({name}))", f"{name}.pop()"))


@MAPPINGS("loop that collects")
def collected(s: Scope, depth: int) -> Dict:
    base, made = s.shared(s.mapping(depth)), s.fresh("kw")
    s.emit(
        f"{made} = {{}}",
        s.pick(
            f"for name, value in {base.text}.items():\n    if value is not None:\n        {made}[name] = value",
            f'for name in ("top_k", "top_p", "temperature"):\n    if name in {base.text}:\n'
            f"        {made}[name] = {base.text}[name]",
            f'for name in ("top_k", "top_p"):\n    {made}.setdefault(name, {base.text}.get(name, 1))',
            f"for name in {base.text}:\n    {made}[name] = {base.text}[name]",
            f"for pair in zip({base.text}, {base.text}.values()):\n    {made}[pair[0]] = pair[1]",
            f"for index, name in enumerate({base.text}):\n    {made}.update({{name: {base.text}[name]}})",
        ),
    )
    return held(s, made)


@MAPPINGS("comprehension with conditions")
def conditioned(s: Scope, depth: int) -> Dict:
    base = s.mapping(depth)
    return hold(
        s,
        s.pick(
            f"{{k: v for k, v in {base.text}.items() if v is not None and k != 'top_k'}}",
            f"{{k: (v if k != 'top_k' else 7) for k, v in {base.text}.items()}}",
            f"{{k: v for k in ('top_k', 'top_p') if (v := {base.text}.get(k)) is not None}}",
            f"{{k: v for d in ({base.text}, {{'top_k': 2}}) for k, v in d.items()}}",
            f"dict((k, v) for k, v in {base.text}.items() if not isinstance(v, bool))",
            f"dict(filter(lambda pair: pair[0] != 'top_p', {base.text}.items()))",
            f"dict(sorted({base.text}.items()))",
            f"{{k: {base.text}[k] for k in {base.text}.keys() & {{'top_k', 'top_p'}}}}",
        ),
        may=SETTINGS,
    )


@MAPPINGS("reduced")
def reduced(s: Scope, depth: int) -> Dict:
    a, b = s.mapping(depth), s.mapping(0)
    s.uses("import functools", "import operator", "import itertools")
    return hold(
        s,
        s.pick(
            f"functools.reduce(operator.or_, [{a.text}, {b.text}])",
            f"functools.reduce(lambda x, y: {{**x, **y}}, [{a.text}, {b.text}], {{}})",
            f"dict(itertools.chain({a.text}.items(), {b.text}.items()))",
            f"{{k: v for d in [{a.text}, {b.text}] for k, v in d.items()}}",
        ),
        may=SETTINGS,
    )
