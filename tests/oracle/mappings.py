"""Styles of building a dict of settings from expressions and statements."""

from __future__ import annotations

from collections.abc import Iterable

from .modules import helper, reach
from .scope import MAPPINGS, NOWHERE, SETTINGS, Dict, Keys, Scope

Items = list[tuple[str, str]]


# --- pieces --------------------------------------------------------------------------------------
def items(s: Scope, depth: int, count: int = 3) -> Items:
    """Setting names with the texts of their values."""
    return [(name, s.value(SETTINGS[name], depth)) for name in s.settings(count)]


def key(s: Scope, name: str) -> str:
    """The text of a key: mostly a literal, sometimes folded from constants."""
    if not s.chance(12):
        return f'"{name}"'
    head, tail = name[:3], name[3:]
    if s.chance(30):
        constant = s.unique("KEY")
        with s.top() as top:
            top.emit(f'{constant} = "{name}"')
        return s.pick(constant, f"str({constant})")
    return s.pick(
        f"'{name}'",
        f"f\"{head}{{'{tail}'}}\"",
        f'"{head}" + "{tail}"',
        f'"{head}" "{tail}"',
        f'"{name.upper()}".lower()',
        f'"{name}-".rstrip("-")',
        f'"{name.replace("_", "-")}".replace("-", "_")',
        f'"%s{tail}" % "{head}"',
        f'"{{}}{tail}".format("{head}")',
        f'"".join(["{head}", "{tail}"])',
        f'("other", "{name}")[1]',
    )


def braces(s: Scope, pairs: Items) -> str:
    """A dict display."""
    if s.chance(20):
        return "{\n" + "".join(f"    {key(s, name)}: {value},\n" for name, value in pairs) + "}"
    return "{" + ", ".join(f"{key(s, name)}: {value}" for name, value in pairs) + "}"


def plain_braces(pairs: Items) -> str:
    """A dict display on one line, its keys as literals."""
    return "{" + ", ".join(f'"{name}": {value}' for name, value in pairs) + "}"


def keywords(pairs: Items) -> str:
    """Keyword arguments."""
    return ", ".join(f"{name}={value}" for name, value in pairs)


def names_of(pairs: Items) -> list[str]:
    """The setting names of the pairs."""
    return [name for name, _ in pairs]


def hold(s: Scope, text: str, must: Iterable[str] = (), may: Iterable[str] = ()) -> Dict:
    """Assign the dict to a fresh name."""
    name = s.fresh("kw")
    s.emit(s.pick(f"{name} = {text}", f"{name}: dict = {text}") if s.chance(20) else f"{name} = {text}")
    return s.dict(name, set(must), set(may))


def merged(s: Scope, text: str, *parts: Dict | Items) -> Dict:
    """A new dict with the keys of all the parts."""
    must: set[str] = set()
    may: set[str] = set()
    for part in parts:
        must |= s.must(part) if isinstance(part, Dict) else set(names_of(part))
        may |= s.may(part) if isinstance(part, Dict) else set(names_of(part))
    return hold(s, text, must, may)


def copied(s: Scope, made: Dict) -> str:
    """An expression for a copy of the dict."""
    s.uses("import copy")
    return s.pick(
        f"dict({made.text})",
        f"{made.text}.copy()",
        f"{{**{made.text}}}",
        f"copy.copy({made.text})",
        f"copy.deepcopy({made.text})",
        f"dict(**{made.text})",
        f"({made.text} | {{}})",
        f"dict({made.text}.items())",
        f"{{k: v for k, v in {made.text}.items()}}",
        f"dict(list({made.text}.items()))",
        f"{{k: {made.text}[k] for k in {made.text}}}",
    )


# --- displays and constructors -------------------------------------------------------------------
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


# --- copies and aliases --------------------------------------------------------------------------
@MAPPINGS("alias")
def alias(s: Scope, depth: int) -> Dict:
    base, other = s.mapping(depth), s.fresh("same")
    s.emit(
        s.pick(
            f"{other} = {base.text}",
            f"{other}, _ = {base.text}, None",
            f"{other} = again = {base.text}",
            f"({other} := {base.text})",
            f"for {other} in [{base.text}]:\n    pass",
        )
    )
    return _one_changed(s, base, Dict(other, base.keys), depth)


def _one_changed(s: Scope, first: Dict, second: Dict, depth: int) -> Dict:
    """Perhaps change one of two dicts, and go on with either."""
    if s.chance(60):
        s.change(s.choices.pick((first, second)), depth)
    return s.choices.pick((second, first))


@MAPPINGS("copy")
def copy(s: Scope, depth: int) -> Dict:
    base = s.mapping(depth)
    other = merged(s, copied(s, base), base)
    return _one_changed(s, base, other, depth)


@MAPPINGS("old name rebound")
def rebound(s: Scope, depth: int) -> Dict:
    base, other = s.mapping(depth), s.fresh("kept")
    if not base.text.isidentifier() or s.function and not s.owns(base):
        return base
    s.emit(f"{other} = {base.text}")
    kept = Dict(other, base.keys)
    new = s.mapping(depth)
    s.emit(f"{base.text} = {new.text}")
    return s.choices.pick((kept, Dict(base.text, new.keys)))


@MAPPINGS("walrus")
def walrus(s: Scope, depth: int) -> Dict:
    base, name = s.mapping(depth), s.fresh("named")
    s.emit(
        s.pick(
            f"if ({name} := {base.text}):\n    pass",
            f"print(len({name} := {base.text}))",
            f"while ({name} := {base.text}) is None:\n    pass",
        )
    )
    return Dict(name, base.keys)


# --- containers ----------------------------------------------------------------------------------
@MAPPINGS("nested dict")
def nested(s: Scope, depth: int) -> Dict:
    base, outer = s.mapping(depth), s.fresh("config")
    s.emit(
        s.pick(
            f'{outer} = {{"gen": {base.text}, "name": "run"}}',
            f"{outer} = dict(gen={base.text}, steps=10)",
            f'{outer} = {{}}\n{outer}["gen"] = {base.text}',
            f'{outer} = {{"gen": None}}\n{outer}.update(gen={base.text})',
            f'{outer} = {{}}\n{outer}.setdefault("gen", {base.text})',
        )
    )
    inner = Dict(f'{outer}["gen"]', base.keys)
    if s.chance(30):
        return _one_changed(s, base, inner, depth)
    if s.chance(40):
        other = s.fresh("config")
        s.uses("import copy")
        if s.chance(50):
            s.emit(f"{other} = {s.pick(f'copy.copy({outer})', f'dict({outer})', f'{{**{outer}}}')}")
            return _one_changed(s, base, Dict(f'{other}["gen"]', base.keys), depth)
        s.emit(f"{other} = copy.deepcopy({outer})")
        return _one_changed(s, base, s.dict(f'{other}["gen"]', s.must(base), s.may(base)), depth)
    name = s.fresh("kw")
    s.emit(
        s.pick(
            f'{name} = {outer}["gen"]',
            f'{name} = {outer}.get("gen", {{}})',
            f'{name} = {outer}.get("gen")',
            f'{name} = {outer}.pop("gen")',
            f'{name} = {outer}.get("gen") or {{}}',
            f'match {outer}:\n    case {{"gen": {name}}}:\n        pass',
            f'{name} = {{**{outer}}}["gen"]',
        )
    )
    return s.shared(base, name)


@MAPPINGS("deep nesting")
def deep(s: Scope, depth: int) -> Dict:
    outer, pairs = s.fresh("tree"), items(s, depth)
    s.emit(f'{outer} = {{"train": {{"rollout": {{"kwargs": {braces(s, pairs)}}}, "steps": [1, 2]}}}}')
    path = s.dict(f'{outer}["train"]["rollout"]["kwargs"]', names_of(pairs))
    name = s.settings(1)[0]
    value = s.value(SETTINGS[name], depth)
    s.emit(
        s.pick(
            f'{path.text}["{name}"] = {value}',
            f'{outer}["train"]["rollout"]["kwargs"].update({name}={value})',
            f'{outer}["train"]["rollout"] = {{"kwargs": {{**{path.text}, "{name}": {value}}}}}',
            f'section = {outer}["train"]\nsection["rollout"]["kwargs"]["{name}"] = {value}',
        )
    )
    s.added(path, name)
    return path


@MAPPINGS("in a list")
def in_list(s: Scope, depth: int) -> Dict:
    base, other = s.mapping(depth), s.mapping(0)
    name, held = s.fresh("kw"), s.fresh("all_kw")
    s.emit(f"{held} = {s.pick(f'[{other.text}, {base.text}]', f'({other.text}, {base.text})')}")
    s.emit(
        s.pick(
            f"{name} = {held}[1]",
            f"{name} = {held}[-1]",
            f"_, {name} = {held}",
            f"*_, {name} = {held}",
            f"for {name} in {held}:\n    pass",
            f"{name} = list({held}).pop()",
            f"{name} = {held}[1:][0]",
            f"for index, {name} in enumerate({held}):\n    if index == 1:\n        break",
            f"{name} = list(reversed({held}))[0]",
            f"{name} = max({held}, key=id) and {held}[1]",
            f"{name} = {{1: {held}[1]}}[1]",
            f"{name} = [each for each in {held}][1]",
        )
    )
    return s.shared(base, name)


@MAPPINGS("list of dicts changed")
def list_changed(s: Scope, depth: int) -> Dict:
    base, other, held = s.mapping(depth), s.mapping(0), s.fresh("all_kw")
    s.emit(f"{held} = [{base.text}]", f"{held}.append({other.text})")
    setting = s.settings(1)[0]
    value = s.value(SETTINGS[setting], depth)
    s.emit(
        s.pick(
            f'for each in {held}:\n    each["{setting}"] = {value}',
            f'{held}[0]["{setting}"] = {value}',
            f"{held}[-1].update({setting}={value})",
            f"{held} = [dict(each, {setting}={value}) for each in {held}]",
            f"{held}.reverse()",
            f"{held}[0], {held}[1] = {held}[1], {held}[0]",
            f"{held}.insert(0, {{}})",
            f"{held} *= 2",
            f'[each.pop("{setting}", None) for each in {held}]',
        )
    )
    s.shared(other)
    return s.shared(base, f"{held}[{s.pick(0, 1, -1)}]")


# --- comprehensions ------------------------------------------------------------------------------
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


# --- branches ------------------------------------------------------------------------------------
@MAPPINGS("conditional expression")
def conditional(s: Scope, depth: int) -> Dict:
    a, b = s.mapping(depth), s.mapping(depth)
    test, name = s.condition(depth), s.fresh("kw")
    s.emit(
        s.pick(
            f"{name} = {a.text} if {test} else {b.text}",
            f"{name} = ({a.text}, {b.text})[bool({test})]",
            f"{name} = {a.text} or {b.text}",
            f"{name} = {{True: {a.text}, False: {b.text}}}[bool({test})]",
            f"{name} = ({test}) and {a.text} or {b.text}",
        )
    )
    s.shared(a)
    return s.shared(b, name)


@MAPPINGS("conditional part")
def conditional_part(s: Scope, depth: int) -> Dict:
    base, pairs, test = s.mapping(depth), items(s, depth, 2), s.condition(depth)
    inner = braces(s, pairs)
    return hold(
        s,
        s.pick(
            f"{{**{base.text}, **({inner} if {test} else {{}})}}",
            f"{base.text} | ({inner} if {test} else {{}})",
            f"dict({base.text}, **(({test}) and {inner} or {{}}))",
            f'{{({key(s, pairs[0][0])} if {test} else "top_k"): {s.value("int", 0)}, **{base.text}}}'
            if SETTINGS[pairs[0][0]] == "int"
            else f"{{**({inner} if {test} else {base.text})}}",
        ),
        may=s.may(base) | set(names_of(pairs)) | {"top_k"},
    )


@MAPPINGS("if statement")
def if_statement(s: Scope, depth: int) -> Dict:
    name, test = s.fresh("kw"), s.condition(depth)
    with s.block(f"if {test}:") as arm:
        arm.emit(f"{name} = {arm.shared(arm.mapping(depth)).text}")
    for header in ([f"elif {s.condition(0)}:"] if s.chance(30) else []) + ["else:"]:
        with s.block(header) as arm:
            arm.emit(f"{name} = {arm.shared(arm.mapping(depth)).text}")
    return s.shared(s.dict(name))


@MAPPINGS("match statement")
def match_statement(s: Scope, depth: int) -> Dict:
    name, subject = s.fresh("kw"), s.value("int", 0)
    s.uses("import recorder")
    s.emit(s.pick(f"match {subject}:", "match recorder.name():", "match (recorder.flag(), 1):"))
    outer = s.depth
    s.depth += 1
    for header in s.pick(
        ("case 1:", "case _:"),
        ("case 0 | 1 | 5:", "case int(number) if number > 3:", "case _:"),
        ('case "top_k":', "case str():", "case _:"),
        ("case (True, 1):", "case _:"),
    ):
        with s.block(header) as arm:
            arm.emit(f"{name} = {arm.shared(arm.mapping(depth)).text}")
    s.depth = outer
    return s.shared(s.dict(name))


@MAPPINGS("try statement")
def try_statement(s: Scope, depth: int) -> Dict:
    name = s.fresh("kw")
    s.uses("import recorder")
    with s.block("try:") as arm:
        made = arm.mapping(depth)
        arm.emit(f"{name} = {made.text}")
        arm.emit(
            s.pick("recorder.may_raise()", "pass", "raise RuntimeError('stop')", f"{made.text}['missing']")
        )
        arm.change(made, depth)
        arm.shared(made)
    with s.block(
        s.pick("except (RuntimeError, KeyError):", "except Exception:", "except BaseException as error:")
    ) as arm:
        arm.emit(f"{name} = {arm.shared(arm.mapping(0)).text}")
    result = s.shared(s.dict(name))
    if s.chance(30):
        with s.block("else:") as arm:
            arm.change(result, depth)
    if s.chance(30):
        with s.block("finally:") as arm:
            arm.change(result, depth)
    return result


# --- module-level dicts --------------------------------------------------------------------------
@MAPPINGS("module dict")
def module_dict(s: Scope, depth: int) -> Dict:
    name = s.unique("GENERATION")
    with s.top() as top:
        made = top.mapping(depth)
        top.emit(f"{name} = {made.text}")
        keys = top.shared(made).keys
        if s.chance(30):
            top.change(Dict(name, keys), depth)
    s.program.shared.append((s.file, name, keys))
    return Dict(name, keys)


@MAPPINGS("imported dict")
def imported_dict(s: Scope, depth: int) -> Dict:
    file, name = helper(s), s.unique("PRESET")
    with s.top(file) as top:
        made = top.mapping(depth)
        top.emit(f"{name} = {made.text}")
        keys = top.shared(made).keys
        if s.chance(30):
            with top.block("if __name__ == '__main__':") as main:
                main.change(Dict(name, keys), 0)
    s.program.shared.append((file, name, keys))
    return Dict(reach(s, file, name), keys)


@MAPPINGS("shared dict again")
def shared_again(s: Scope, depth: int) -> Dict:
    files = s.program.files
    visible = [each for each in s.program.shared if files.index(each[0]) >= files.index(s.file)]
    if not visible:
        return module_dict(s, depth)
    file, name, keys = s.choices.pick(visible)
    return Dict(reach(s, file, name), keys)


@MAPPINGS("rebound global")
def rebound_global(s: Scope, depth: int) -> Dict:
    file = helper(s) if s.chance(50) else s.file
    name, setter = s.unique("ACTIVE"), s.unique("activate")
    with s.top(file) as top:
        top.emit(f"{name} = {top.shared(top.mapping(0)).text}")
        with top.nested(f"def {setter}():", closure=False) as body:
            body.emit(f"global {name}")
            new = body.shared(body.mapping(depth))
            body.emit(f"{name} = {s.pick(new.text, f'{{**{name}, **{new.text}}}')}")
    made = Dict(reach(s, file, name), Keys(set(), set(SETTINGS), NOWHERE, 0))
    if s.chance(70):
        s.emit(f"{reach(s, file, setter)}()")
    return made


# --- known only at run time ----------------------------------------------------------------------
@MAPPINGS("invisible function", opaque=True)
def invisible(s: Scope, depth: int) -> Dict:
    s.uses("import recorder")
    text = s.pick(
        "recorder.unknown_dict()",
        f"{{**recorder.unknown_dict(), **{s.mapping(depth).text}}}",
        f"dict({s.mapping(depth).text}, **recorder.unknown_dict())",
        f"recorder.opaque({s.shared(s.mapping(depth)).text})",
    )
    return s.shared(hold(s, text))


@MAPPINGS("runtime key", opaque=True)
def runtime_key(s: Scope, depth: int) -> Dict:
    s.uses("import recorder")
    base, value = s.mapping(depth), s.value("int", depth)
    return hold(
        s,
        s.pick(
            f"{{**{base.text}, recorder.int_name(): {value}}}",
            f"{base.text} | {{recorder.int_name(): {value}}}",
            f"{{k: v for k, v in {base.text}.items() if k != recorder.name()}}",
            f"dict([*{base.text}.items(), (recorder.int_name(), {value})])",
        ),
        may=SETTINGS,
    )
