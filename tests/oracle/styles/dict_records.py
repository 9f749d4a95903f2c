"""Dicts from records, namespaces, command lines and documents."""

from __future__ import annotations

import json

import yaml

from ..scope import MAPPINGS, SETTINGS, Dict, Scope
from .imports import reach
from .pieces import (
    elsewhere,
    hold,
    items,
    key,
    keywords,
    literal,
    method_text,
    plain_braces,
    unsure,
    write_members,
)


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
        write_members(top, *fields)
        if s.chance(40):
            target = s.choices.pick(chosen)
            write_members(
                top, "", method_text("__post_init__(self)", f"self.{target} = {literal(s, SETTINGS[target])}")
            )
        write_members(
            top,
            "",
            method_text(
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
