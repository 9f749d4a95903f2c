"""Dicts under other names: copies, aliases, containers."""

from __future__ import annotations

from ..scope import MAPPINGS, SETTINGS, Dict, Scope
from .pieces import braces, copied, items, merged, names_of


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
