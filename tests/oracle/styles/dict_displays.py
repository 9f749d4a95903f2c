"""Dicts from displays, constructors, operators and comprehensions."""

from __future__ import annotations

from ..scope import MAPPINGS, SETTINGS, Dict, Scope
from .pieces import braces, hold, items, key, keywords, merged, names_of


@MAPPINGS("display", leaf=True)
def display(s: Scope, depth: int) -> Dict:
    pairs = items(s, depth)
    return hold(s, braces(s, pairs), names_of(pairs))


@MAPPINGS("dict(keywords)", leaf=True)
def dict_keywords(s: Scope, depth: int) -> Dict:
    pairs = items(s, depth)
    return hold(s, f"dict({keywords(pairs)})", names_of(pairs))


@MAPPINGS("dict(pairs)")
def dict_pairs(s: Scope, depth: int) -> Dict:
    pairs = items(s, depth)
    texts = [f"({key(s, name)}, {value})" for name, value in pairs]
    return hold(
        s,
        s.pick("dict([{}])", "dict(({},))", "dict({{}}, **dict([{}]))", "dict([*[{}]])").format(
            ", ".join(texts)
        ),
        names_of(pairs),
    )


@MAPPINGS("zip")
def dict_zip(s: Scope, depth: int) -> Dict:
    pairs = items(s, depth)
    keys = ", ".join(key(s, name) for name, _ in pairs)
    values = ", ".join(value for _, value in pairs)
    form = s.pick(
        "dict(zip([{0}], [{1}]))",
        "dict(zip(({0},), [{1}]))",
        "{{k: v for k, v in zip([{0}], ({1},))}}",
        "dict(zip([{0}], ({1},), strict=True))",
    )
    return hold(s, form.format(keys, values), names_of(pairs))


@MAPPINGS("repeated key", leaf=True)
def repeated_key(s: Scope, depth: int) -> Dict:
    pairs = items(s, depth)
    again = [(pairs[0][0], s.value(SETTINGS[pairs[0][0]], depth))]
    return hold(s, braces(s, pairs + again), names_of(pairs))


@MAPPINGS("empty, then subscripts")
def subscripts(s: Scope, depth: int) -> Dict:
    made = hold(s, s.pick("{}", "dict()"))
    for name, value in items(s, depth):
        s.emit(f"{made.text}[{key(s, name)}] = {value}")
        s.added(made, name)
    return made


@MAPPINGS("fromkeys")
def fromkeys(s: Scope, depth: int) -> Dict:
    kind = s.pick("int", "float", "bool")
    names = s.settings(2, kinds=(kind,))
    listed = ", ".join(f'"{name}"' for name in names)
    return hold(s, f"dict.fromkeys([{listed}], {s.value(kind, depth)})", names)


@MAPPINGS("merge operator")
def merge_operator(s: Scope, depth: int) -> Dict:
    base, pairs = s.mapping(depth), items(s, depth)
    other = braces(s, pairs)
    return merged(
        s,
        s.pick(f"{base.text} | {other}", f"{other} | {base.text}", f"({base.text} | {other}) | {{}}"),
        base,
        pairs,
    )


@MAPPINGS("merge display")
def merge_display(s: Scope, depth: int) -> Dict:
    base, pairs = s.mapping(depth), items(s, depth)
    inner = braces(s, pairs)
    return merged(
        s,
        s.pick(
            f"{{**{base.text}, **{inner}}}",
            f"{{**{inner}, **{base.text}}}",
            f"{{{key(s, pairs[0][0])}: {pairs[0][1]}, **{base.text}, **{inner}}}",
            f"dict({base.text}, {keywords(pairs)})",
            f"dict({base.text}, **{inner})",
            f"dict({{**{base.text}}}, **{inner})",
        ),
        base,
        pairs,
    )


@MAPPINGS("merge of two")
def merge_two(s: Scope, depth: int) -> Dict:
    a, b = s.mapping(depth), s.mapping(depth)
    s.uses("import functools", "import collections", "import itertools")
    return merged(
        s,
        s.pick(
            f"{{**{a.text}, **{b.text}}}",
            f"{a.text} | {b.text}",
            f"dict({a.text}, **{b.text})",
            f"functools.reduce(lambda x, y: x | y, [{a.text}, {b.text}])",
            f"{{k: v for d in ({a.text}, {b.text}) for k, v in d.items()}}",
            f"dict([*{a.text}.items(), *{b.text}.items()])",
            f"dict(itertools.chain({a.text}.items(), {b.text}.items()))",
            f"dict(collections.ChainMap({b.text}, {a.text}))",
            f"dict(list({a.text}.items()) + list({b.text}.items()))",
        ),
        a,
        b,
    )


@MAPPINGS("other dict type")
def other_type(s: Scope, depth: int) -> Dict:
    base, pairs = s.mapping(depth), items(s, depth)
    s.uses("import collections", "import types")
    form = s.pick(
        "collections.OrderedDict({0})",
        "collections.defaultdict(int, {0})",
        "dict(types.MappingProxyType({0}))",
        "collections.OrderedDict({0}.items())",
    )
    made = merged(s, form.format(base.text), base)
    s.emit(f"{made.text}[{key(s, pairs[0][0])}] = {pairs[0][1]}")
    s.added(made, pairs[0][0])
    return made


@MAPPINGS("dict subclass")
def dict_subclass(s: Scope, depth: int) -> Dict:
    name, base = s.unique("Settings"), s.mapping(depth)
    with s.top() as top:
        top.emit(
            f"class {name}(dict):",
            *s.pick(
                ("    pass",),
                ("    def __setitem__(self, key, value):", "        super().__setitem__(key, value)"),
                (
                    "    def __getattr__(self, key):",
                    "        if key in self:",
                    "            return self[key]",
                    "        raise AttributeError(key)",
                ),
                ("    def with_more(self, **more):", "        self.update(more)", "        return self"),
            ),
        )
    return merged(s, f"{name}({base.text})", base)


@MAPPINGS("comprehension over items")
def comprehension(s: Scope, depth: int) -> Dict:
    base = s.mapping(depth)
    name = s.settings(1)[0]
    text = s.pick(
        f'{{k: v for k, v in {base.text}.items() if k != "{name}"}}',
        f"{{k: v for k, v in {base.text}.items() if v is not None}}",
        f'{{k: v for k, v in {base.text}.items() if k in ("{name}", "top_k", "top_p")}}',
        f'{{k: v for k, v in {base.text}.items() if not k.startswith("top_")}}',
        f"{{k: (v + 1 if isinstance(v, int) else v) for k, v in {base.text}.items()}}",
        f"{{key: {base.text}[key] for key in sorted({base.text}) if key.endswith('k') or len(key) > 6}}",
        f"{{k: v for k, v in {base.text}.items() if v}}",
        f'dict((k, v) for k, v in {base.text}.items() if k != "{name}")',
        f"dict(filter(lambda pair: pair[1] is not None, {base.text}.items()))",
        f'{{k: {base.text}[k] for k in {base.text}.keys() - {{"{name}"}}}}',
        f"{{k: v for k, v in {base.text}.items() if type(v) in (int, float)}}",
        f"dict(map(lambda pair: (pair[0], pair[1]), {base.text}.items()))",
    )
    return hold(s, text, may=s.may(base))


@MAPPINGS("comprehension over names")
def comprehension_names(s: Scope, depth: int) -> Dict:
    kind = s.pick("int", "float")
    names = s.settings(3, kinds=(kind,))
    listed = ", ".join(f'"{name}"' for name in names)
    value = s.value(kind, depth)
    text = s.pick(
        f"{{key: {value} for key in [{listed}]}}",
        f"{{key: len(key) for key in ({listed},)}}",
        f"{{key: i for i, key in enumerate([{listed}])}}",
        f"{{key: {value} * i for i, key in enumerate(({listed},), 1)}}",
        f"{{key: {value} for key in {{{listed}}}}}",
        f"{{key: x for key in [{listed}] for x in (1, {value})}}",
        f'{{key: {value} for key in [{listed}] if key != "top_k"}}',
        f"{{key: {value} for key in '{' '.join(names)}'.split()}}",
    )
    return hold(s, text, may=names)


@MAPPINGS("prefixed keys")
def prefixed(s: Scope, depth: int) -> Dict:
    pairs, flat = items(s, depth), s.fresh("flat")
    listed = ", ".join(f'"gen_{name}": {value}' for name, value in pairs)
    s.emit(f'{flat} = {{{listed}, "steps": 10}}')
    text = s.pick(
        f'{{k.removeprefix("gen_"): v for k, v in {flat}.items() if k.startswith("gen_")}}',
        f'{{k[4:]: v for k, v in {flat}.items() if k[:4] == "gen_"}}',
        f'{{k.replace("gen_", ""): v for k, v in {flat}.items() if "gen_" in k}}',
        f'{{k.split("_", 1)[1]: v for k, v in {flat}.items() if "_" in k}}',
    )
    return hold(s, text, names_of(pairs))
