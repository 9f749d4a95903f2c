"""Styles of getting a dict from objects: attributes, inheritance, dataclasses, namespaces, argparse."""

from __future__ import annotations

import json

import yaml

from .functions import elsewhere, held, unsure
from .mappings import braces, hold, items, key, keywords, plain_braces
from .modules import reach
from .scope import MAPPINGS, SETTINGS, Dict, Scope
from .values import literal


def _body(top: Scope, *lines: str) -> None:
    """Write class members."""
    for line in lines:
        top.emit(*("    " + each for each in line.split("\n")))


def _change_text(s: Scope, target: str) -> str:
    """One statement that changes the dict `target`, without anything written before it."""
    name, other = s.settings(1)[0], s.settings(1)[0]
    value = literal(s, SETTINGS[name])
    return s.pick(
        f'{target}["{name}"] = {value}',
        f"{target}.update({name}={value})",
        f'{target}.pop("{other}", None)',
        f'{target}.setdefault("{name}", {value})',
        f'{target} = {{**{target}, "{name}": {value}}}',
        f"{target} = dict({target}, {name}={value})",
        f'{target} |= {{"{name}": {value}}}',
        f'if "{other}" in {target}:\n    del {target}["{other}"]',
        f"{target} = {{}}",
    )


def _method(header: str, *lines: str) -> str:
    body = "\n".join("    " + each for line in lines for each in line.split("\n"))
    return f"def {header}:\n{body}\n"


# --- attributes ----------------------------------------------------------------------------------
@MAPPINGS("attribute of self")
def self_attribute(s: Scope, depth: int) -> Dict:
    file, name = elsewhere(s), s.unique("Sampler")
    with s.top(file) as top:
        store = s.pick(
            "self.kw = kw",
            "self.kw = dict(kw)",
            "self.kw = {**kw}",
            "self.kw = kw or {}",
            "self.kw = {}\nself.kw.update(kw)",
            'setattr(self, "kw", kw)',
            "self.kw: dict = kw",
            "self.kw, self.steps = kw, 10",
            "self._prepare(kw)",
        )
        constructor = _method(
            "__init__(self, kw)", store, _change_text(s, "self.kw") if s.chance(30) else "pass"
        )
        members = [
            constructor,
            _method("change(self)", _change_text(s, "self.kw"), "return self"),
            _method("put(self, name, value)", "self.kw[name] = value"),
            _method(
                "get(self)",
                s.pick("return self.kw", "return dict(self.kw)", "result = self.kw\nreturn result"),
            ),
            _method("_prepare(self, kw)", "self.kw = kw"),
            "@property\n" + _method("current(self)", s.pick("return self.kw", "return {**self.kw}")),
        ]
        top.emit(f"class {name}{s.pick('', '()', '(object)')}:")
        _body(top, *members)
    return _use_object(s, depth, reach(s, file, name))


def _use_object(s: Scope, depth: int, class_text: str) -> Dict:
    """Make an object around a dict, perhaps change it, and go on with the dict it gives."""
    base = s.shared(s.mapping(depth))
    made = s.fresh("sampler")
    s.emit(f"{made} = {class_text}({s.pick('', 'kw=')}{base.text})")
    for _ in range(s.choices.below(3)):
        name = s.settings(1)[0]
        value = s.value(SETTINGS[name], 0)
        s.emit(
            s.pick(
                f"{made}.change()",
                f'{made}.put("{name}", {value})',
                f'{made}.kw["{name}"] = {value}',
                f'{made}.kw = {{**{made}.kw, "{name}": {value}}}',
                f'{base.text}["{name}"] = {value}',
                f'setattr({made}, "kw", dict({made}.kw, {name}={value}))',
                f'{made}.get()["{name}"] = {value}',
            )
        )
    if s.chance(20):
        return base
    return unsure(
        s.pick(
            f"{made}.kw", f"{made}.get()", f"{made}.current", f'getattr({made}, "kw")', f"vars({made})['kw']"
        )
    )


@MAPPINGS("class attribute")
def class_attribute(s: Scope, depth: int) -> Dict:
    name, setting = s.unique("Presets"), s.settings(1)[0]
    with s.top() as top:
        display = braces(top, items(top, 0))
        top.emit(f"class {name}:")
        _body(top, f"kw = {display}", "")
        _body(
            top,
            _method("change(self)", f'self.kw["{setting}"] = {literal(s, SETTINGS[setting])}'),
            _method("own(self)", s.pick("self.kw = dict(self.kw)", "self.kw = {}"), "return self"),
            "@classmethod\n" + _method("get(cls)", s.pick("return cls.kw", "return dict(cls.kw)")),
            "@staticmethod\n" + _method("make(**more)", f"return {{**{name}.kw, **more}}"),
        )
    first, second = s.fresh("preset_object"), s.fresh("preset_object")
    s.emit(f"{first} = {name}()", f"{second} = {name}()")
    for _ in range(s.choices.below(3)):
        s.emit(
            s.pick(
                f"{first}.change()",
                f"{first}.own()",
                f"{second}.change()",
                f'{name}.kw["top_k"] = {s.value("int", 0)}',
                f"{name}.kw = dict({name}.kw)",
                f'{first}.kw["top_p"] = {s.value("float", 0)}',
            )
        )
    return unsure(
        s.pick(
            f"{first}.kw",
            f"{second}.kw",
            f"{name}.kw",
            f"{name}.get()",
            f"{name}.make(top_k=3)",
            f"{first}.get()",
        )
    )


@MAPPINGS("inheritance")
def inheritance(s: Scope, depth: int) -> Dict:
    file, base, middle, child = (
        elsewhere(s),
        s.unique("BaseSampler"),
        s.unique("MixinSampler"),
        s.unique("ChildSampler"),
    )
    with s.top(file) as top:
        top.emit(f"class {base}:")
        _body(
            top,
            "shared = {"
            + ", ".join(f'"{n}": {v}' for n, v in [(n, literal(s, SETTINGS[n])) for n in s.settings(2)])
            + "}",
            _method("__init__(self, kw)", "self.kw = kw", "self.finish()"),
            _method("finish(self)", "pass"),
            _method("change(self)", _change_text(s, "self.kw")),
            _method("put(self, name, value)", "self.kw[name] = value"),
            _method("get(self)", "return self.kw"),
            "@property\n" + _method("current(self)", "return self.get()"),
        )
        top.emit(f"class {middle}:")
        _body(top, _method("finish(self)", _change_text(s, "self.kw"), s.pick("super().finish()", "pass")))
    text = reach(s, file, base)
    mixin = reach(s, file, middle)
    with s.top() as top:
        if file is not s.file and "importlib" not in text and "importlib" not in mixin and s.function:
            # An import inside the function does not reach the module's top level.
            top.uses(f"from {file.module} import {base}, {middle}")
            text, mixin = base, middle
        top.emit(f"class {child}({s.pick(text, f'{mixin}, {text}', text)}):")
        _body(
            top,
            *s.choices.sample(
                (
                    _method("finish(self)", _change_text(s, "self.kw")),
                    _method(
                        "__init__(self, kw)",
                        s.pick(
                            "super().__init__(dict(kw))",
                            "super().__init__({**self.shared, **kw})",
                            f"{text}.__init__(self, kw)",
                            f"super({child}, self).__init__(kw=kw)",
                        ),
                        _change_text(s, "self.kw"),
                    ),
                    _method(
                        "get(self)",
                        s.pick(
                            "return dict(super().get(), top_k=4)",
                            "return {**self.shared, **self.kw}",
                            "return super().get()",
                        ),
                    ),
                    'shared = {"top_k": 9}\n',
                    _method("change(self)", "super().change()", _change_text(s, "self.kw")),
                ),
                3,
            ),
        )
    return _use_object(s, depth, child)


@MAPPINGS("property")
def property_dict(s: Scope, depth: int) -> Dict:
    name = s.unique("Lazy")
    chosen = s.settings(2)
    with s.top() as top:
        top.emit(f"class {name}:")
        _body(
            top,
            _method(
                "__init__(self)",
                "self._kw = None",
                *(f"self.{each} = {literal(s, SETTINGS[each])}" for each in chosen),
            ),
            "@property\n"
            + _method(
                "kw(self)",
                *s.pick(
                    ("return {" + ", ".join(f'"{each}": self.{each}' for each in chosen) + "}",),
                    (
                        "if self._kw is None:",
                        "    self._kw = dict(" + ", ".join(f"{e}=self.{e}" for e in chosen) + ")",
                        "return self._kw",
                    ),
                ),
            ),
            "@kw.setter\n" + _method("kw(self, value)", s.pick("self._kw = value", "self._kw = dict(value)")),
        )
    made = s.fresh("lazy")
    s.emit(f"{made} = {name}()")
    if s.chance(50):
        s.emit(f"{made}.{chosen[0]} = {s.value(SETTINGS[chosen[0]], depth)}")
    if s.chance(30):
        s.emit(f"{made}.kw = {s.shared(s.mapping(depth)).text}")
    if s.chance(30):
        s.emit(f'{made}.kw["top_p"] = {s.value("float", 0)}')
    return unsure(f"{made}.kw")


@MAPPINGS("callable object")
def callable_object(s: Scope, depth: int) -> Dict:
    name, base = s.unique("Builder"), s.mapping(depth)
    s.shared(base)
    with s.top() as top:
        top.emit(f"class {name}:")
        _body(
            top,
            _method("__init__(self, **kw)", "self.kw = kw"),
            _method(
                "__call__(self, **more)",
                s.pick("return {**self.kw, **more}", "self.kw.update(more)\nreturn self.kw"),
            ),
            _method("__getitem__(self, name)", "return self.kw"),
            _method(
                "with_more(self, **more)",
                s.pick("self.kw.update(more)\nreturn self", f"return {name}(**{{**self.kw, **more}})"),
            ),
        )
    more = keywords(items(s, depth, 2))
    made = s.fresh("builder")
    s.emit(f"{made} = {name}(**{base.text})")
    if s.chance(40):
        s.emit(f"{made}.with_more({more})")
    return held(
        s,
        s.pick(
            f"{made}({more})",
            f"{made}()",
            f"{made}.with_more({more}).kw",
            f'{made}["x"]',
            f"{made}.with_more({more}).with_more(top_k=2)()",
        ),
    )


# --- records -------------------------------------------------------------------------------------
@MAPPINGS("dataclass")
def dataclass_dict(s: Scope, depth: int) -> Dict:
    file, name = elsewhere(s), s.unique("GenerationArguments")
    chosen = s.settings(3)
    with s.top(file) as top:
        top.uses("import dataclasses", "from dataclasses import asdict, dataclass, field")
        fields = [
            f"{each}: object = "
            + (
                f"field(default_factory=lambda: {literal(s, 'ints')})"
                if SETTINGS[each] == "ints"
                else s.pick("{0}", "field(default={0})").format(top.value(SETTINGS[each], 0))
            )
            for each in chosen
        ]
        top.emit(
            f"@{s.pick('dataclass', 'dataclasses.dataclass', 'dataclass(kw_only=True)', 'dataclass()')}",
            f"class {name}:",
        )
        _body(top, *fields)
        if s.chance(40):
            target = s.choices.pick(chosen)
            _body(top, "", _method("__post_init__(self)", f"self.{target} = {literal(s, SETTINGS[target])}"))
        _body(
            top,
            "",
            _method(
                "to_dict(self)",
                s.pick(
                    "return asdict(self)",
                    "return dict(vars(self))",
                    "return self.__dict__",
                    "return {" + ", ".join(f'"{e}": self.{e}' for e in chosen) + "}",
                ),
            ),
        )
        if s.chance(30):
            extra = s.settings(1)[0]
            child = name + "Child"
            default = (
                "field(default_factory=list)" if SETTINGS[extra] == "ints" else literal(s, SETTINGS[extra])
            )
            top.emit("@dataclass", f"class {child}({name}):", f"    {extra}: object = {default}")
            name = child
    made, text = s.fresh("arguments"), reach(s, file, name)
    given = [(each, s.value(SETTINGS[each], depth)) for each in s.choices.sample(chosen, s.choices.below(3))]
    s.emit(f"{made} = {text}({keywords(given)})")
    s.uses("import dataclasses")
    if s.chance(40):
        each = s.choices.pick(chosen)
        value = s.value(SETTINGS[each], depth)
        s.emit(
            s.pick(
                f"{made}.{each} = {value}",
                f"{made} = dataclasses.replace({made}, {each}={value})",
                f'setattr({made}, "{each}", {value})',
            )
        )
    return hold(
        s,
        s.pick(
            f"dataclasses.asdict({made})",
            f"vars({made})",
            f"{made}.to_dict()",
            f"{made}.__dict__",
            f"dict({chosen[0]}={made}.{chosen[0]})",
            f"dict(vars({made}))",
            f"{{f.name: getattr({made}, f.name) for f in dataclasses.fields({made})}}",
        ),
        may=SETTINGS,
    )


@MAPPINGS("dataclass with a dict field")
def dataclass_field(s: Scope, depth: int) -> Dict:
    name = s.unique("RunArguments")
    base = s.shared(s.mapping(depth))
    with s.top() as top:
        top.uses("import dataclasses", "from dataclasses import dataclass, field")
        single = plain_braces(items(top, 0, 2))
        top.emit(
            "@dataclass",
            f"class {name}:",
            f"    kw: dict = field(default_factory=lambda: {single})",
            "    steps: int = 10",
        )
    made = s.fresh("run")
    s.emit(f"{made} = {name}({s.pick('', base.text, f'kw={base.text}', f'dict({base.text}), 20')})")
    if s.chance(50):
        s.emit(
            s.pick(
                f'{made}.kw["top_k"] = {s.value("int", 0)}',
                f"{made} = dataclasses.replace({made}, steps=1)",
                f"{made} = {name}()",
            )
        )
    s.uses("import dataclasses")
    return unsure(s.pick(f"{made}.kw", f'dataclasses.asdict({made})["kw"]', f'vars({made})["kw"]'))


@MAPPINGS("named tuple")
def named_tuple(s: Scope, depth: int) -> Dict:
    name, chosen = s.unique("Record"), s.settings(3)
    with s.top() as top:
        if s.chance(50):
            top.uses("from typing import NamedTuple")
            top.emit(
                f"class {name}(NamedTuple):",
                *(f"    {each}: object = {literal(s, SETTINGS[each])}" for each in chosen),
            )
        else:
            top.uses("from collections import namedtuple")
            top.emit(
                f"{name} = namedtuple({name!r}, {' '.join(chosen)!r}, "
                f"defaults=({', '.join(literal(s, SETTINGS[each]) for each in chosen)},))"
            )
    made = s.fresh("record")
    s.emit(f"{made} = {name}({s.pick('', f'{chosen[0]}={s.value(SETTINGS[chosen[0]], depth)}')})")
    if s.chance(40):
        s.emit(f"{made} = {made}._replace({chosen[-1]}={s.value(SETTINGS[chosen[-1]], depth)})")
    return hold(
        s,
        s.pick(
            f"{made}._asdict()",
            f"dict(zip({made}._fields, {made}))",
            "{" + ", ".join(f'"{e}": {made}.{e}' for e in chosen) + "}",
        ),
        chosen,
    )


@MAPPINGS("simple namespace")
def namespace(s: Scope, depth: int) -> Dict:
    made, pairs = s.fresh("space"), items(s, depth)
    s.uses("from types import SimpleNamespace", "import types")
    base = s.mapping(depth)
    s.emit(
        f"{made} = {s.pick('SimpleNamespace', 'types.SimpleNamespace')}("
        f"{s.pick(keywords(pairs), f'**{base.text}', '')})"
    )
    setting = s.settings(1)[0]
    value = s.value(SETTINGS[setting], depth)
    s.emit(
        s.pick(
            f"{made}.{setting} = {value}",
            f'setattr({made}, "{setting}", {value})',
            f"vars({made}).update({setting}={value})",
            f'{made}.__dict__["{setting}"] = {value}',
        )
    )
    return hold(
        s,
        s.pick(
            f"vars({made})",
            f"{made}.__dict__",
            f"dict({setting}={made}.{setting})",
            f"{{k: v for k, v in vars({made}).items() if k != 'kw'}}",
            f'{{k: v for k, v in {made}.__dict__.items() if not k.startswith("k")}}',
        ),
        may=SETTINGS,
    )


@MAPPINGS("attributes by name")
def attributes(s: Scope, depth: int) -> Dict:
    name, pairs, made = s.unique("Empty"), items(s, depth), s.fresh("empty")
    with s.top() as top:
        top.emit(f"class {name}:", "    pass")
    s.emit(f"{made} = {name}()")
    for setting, value in pairs:
        s.emit(
            s.pick(
                f"{made}.{setting} = {value}",
                f"setattr({made}, {key(s, setting)}, {value})",
                f"{made}.__dict__.update({setting}={value})",
            )
        )
    names = [setting for setting, _ in pairs]
    if s.chance(30):
        gone = names.pop()
        s.emit(s.pick(f"del {made}.{gone}", f'delattr({made}, "{gone}")'))
    listed = ", ".join(f'"{each}"' for each in [*names, "top_k"])
    return hold(
        s,
        s.pick(
            f"vars({made})",
            f"dict({made}.__dict__)",
            f"{{n: getattr({made}, n) for n in [{listed}] if hasattr({made}, n)}}",
            f"{{n: getattr({made}, n, 1) for n in [{listed}]}}",
        ),
        may=SETTINGS,
    )


@MAPPINGS("enum")
def enum_dict(s: Scope, depth: int) -> Dict:
    name = s.unique("Mode")
    with s.top() as top:
        single = plain_braces(items(top, 0, 2))
        top.uses("import enum", "from enum import Enum")
        top.emit(
            f"class {name}({s.pick('Enum', 'enum.Enum')}):",
            f"    TRAIN = {single}",
            '    EVAL = {"top_k": 1}',
        )
    if s.chance(30):
        s.emit(f'{name}.TRAIN.value["top_p"] = {s.value("float", depth)}')
    return unsure(s.pick(f"{name}.TRAIN.value", f'{name}["TRAIN"].value', f"dict({name}.TRAIN.value)"))


# --- command line --------------------------------------------------------------------------------
@MAPPINGS("argparse")
def argparse_dict(s: Scope, depth: int) -> Dict:
    chosen = [each for each in s.settings(3) if SETTINGS[each] not in ("ints", "maybe")] or ["top_k"]
    parser, made = s.fresh("parser"), s.fresh("options")
    s.uses("import argparse")
    options = s.pick("", 'description="run"', "allow_abbrev=False")
    s.emit(f"{parser} = argparse.ArgumentParser({options})")
    given, help_text = [], ', help="text"'
    for each in chosen:
        kind = SETTINGS[each]
        flag = s.pick(f"--{each}", f"--{each.replace('_', '-')}")
        if kind == "bool":
            s.emit(f'{parser}.add_argument("{flag}", action="{s.pick("store_true", "store_false")}")')
            given.append([flag])
            continue
        default = literal(s, kind) if kind == "str" else s.value(kind, 0)
        convert = {"int": ", type=int", "float": ", type=float"}.get(kind, "")
        s.emit(f'{parser}.add_argument("{flag}"{convert}, default={default}{s.pick("", help_text)})')
        given.append(s.pick([flag, "3"], [f"{flag}=4"]))
    command = s.pick("[]", "[]", "", str(given[0]), str(sum(given, [])))
    s.emit(f"{made} = {s.pick(f'{parser}.parse_args({command})', f'{parser}.parse_known_args([])[0]')}")
    if s.chance(30):
        s.emit(f"{made}.{chosen[0]} = {s.value(SETTINGS[chosen[0]], depth)}")
    listed = ", ".join(f'"{each}": {made}.{each}' for each in chosen)
    text = s.pick(
        f"vars({made})",
        f"{{{listed}}}",
        f"dict(vars({made}))",
        f"dict({made}._get_kwargs())",
        f"{{k: v for k, v in vars({made}).items() if v is not None}}",
    )
    return hold(s, text, may=chosen)


@MAPPINGS("parser in a function")
def parser_function(s: Scope, depth: int) -> Dict:
    name, chosen = s.unique("parse_options"), s.settings(2, kinds=("int", "float"))
    with s.top() as top:
        top.uses("import argparse")
        with top.nested(f"def {name}(argv=None):", closure=False) as body:
            body.emit("parser = argparse.ArgumentParser()")
            if s.chance(40):
                body.emit('group = parser.add_argument_group("generation")')
            group = "group" if body.lines[-1].strip().startswith("group") else "parser"
            for each in chosen:
                body.emit(
                    f'{group}.add_argument("--{each}", default={literal(s, SETTINGS[each])}, type=float)'
                )
            body.emit("return parser.parse_args(argv)")
    made = s.fresh("options")
    s.emit(f"{made} = {name}({s.pick('[]', '', f'[{chr(34)}--{chosen[0]}{chr(34)}, {chr(34)}3{chr(34)}]')})")
    return hold(
        s, s.pick(f"vars({made})", "{" + ", ".join(f'"{e}": {made}.{e}' for e in chosen) + "}"), chosen
    )


@MAPPINGS("JSON text")
def json_text(s: Scope, depth: int) -> Dict:
    name = s.unique("DOCUMENT")
    with s.top() as top:
        top.uses("import json")
        top.emit(f'{name} = \'{{"top_k": 7, "temperature": 0.5, "do_sample": true}}\'')
    s.uses("import json", "import ast")
    return hold(
        s,
        s.pick(
            f"json.loads({name})",
            f"json.loads(json.dumps({s.mapping(depth).text}))",
            """ast.literal_eval("{'top_p': 0.4}")""",
        ),
        may=SETTINGS,
    )


@MAPPINGS("JSON or YAML file")
def document(s: Scope, depth: int) -> Dict:
    written = {name: json.loads(_JSON[SETTINGS[name]]) for name in s.settings(3)}
    nested = s.chance(40)
    suffix = s.pick("json", "json", "yaml")
    path = f"{s.unique('run')}.{suffix}"
    content = {"steps": 10, "generation": written} if nested else written
    s.program.documents[path] = json.dumps(content, indent=2) if suffix == "json" else yaml.safe_dump(content)
    s.uses("import json", "import yaml", "from pathlib import Path")
    load = "json.load" if suffix == "json" else "yaml.safe_load"
    loads = "json.loads" if suffix == "json" else "yaml.safe_load"
    loaded = s.fresh("loaded")
    s.emit(
        s.pick(
            f'with open("{path}") as handle:\n    {loaded} = {load}(handle)',
            f'{loaded} = {load}(open("{path}"))',
            f'{loaded} = {loads}(Path("{path}").read_text())',
            f'with Path("{path}").open() as handle:\n    {loaded} = {loads}(handle.read())',
        )
    )
    if nested:
        return hold(s, s.pick(f'{loaded}["generation"]', f'dict({loaded}.get("generation", {{}}))'), written)
    return s.dict(loaded, written)


_JSON = {"int": "30", "float": "0.6", "bool": "true", "str": '"static"', "ints": "[4, 2]", "maybe": "null"}


# --- objects of invisible classes -------------------------------------------------------------------
@MAPPINGS("invisible base class", opaque=True)
def invisible_base(s: Scope, depth: int) -> Dict:
    name, base = s.unique("Derived"), s.shared(s.mapping(depth))
    with s.top() as top:
        top.uses("import recorder")
        top.emit(f"class {name}(recorder.Base):")
        _body(
            top,
            _method(
                "__init__(self, kw)",
                s.pick(
                    "super().__init__()\nself.kw = kw",
                    "self.kw = kw\nsuper().__init__()",
                    "super().__init__(kw)",
                ),
            ),
        )
    made = s.fresh("derived")
    s.emit(f"{made} = {name}({base.text})")
    return unsure(s.pick(f"{made}.kw", base.text))


@MAPPINGS("invisible decorator", opaque=True)
def invisible_decorator(s: Scope, depth: int) -> Dict:
    name = s.unique("hooked")
    with s.top() as top:
        top.uses("import recorder")
        top.emit("@recorder.hook")
        with top.nested(f"def {name}(**more):", closure=False) as body:
            made = body.shared(body.mapping(depth))
            body.emit(f"return {{**{made.text}, **more}}")
    return held(s, f"{name}({s.pick('', keywords(items(s, 0, 2)))})")
