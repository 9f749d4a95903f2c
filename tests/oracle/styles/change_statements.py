"""Changes of a dict in place by statements, other dicts, aliases and containers."""

from __future__ import annotations

from ..scope import CHANGES, SETTINGS, Dict, Scope
from .pieces import braces, items, key, keywords, names_of, one


@CHANGES("subscript", leaf=True)
def subscript(s: Scope, depth: int, made: Dict) -> None:
    name, value = one(s, depth)
    s.emit(f"{made.text}[{key(s, name)}] = {value}")
    s.added(made, name)


@CHANGES("update", leaf=True)
def update(s: Scope, depth: int, made: Dict) -> None:
    pairs = items(s, depth, 2)
    listed = ", ".join(f"({key(s, name)}, {value})" for name, value in pairs)
    s.emit(
        s.pick(
            f"{made.text}.update({braces(s, pairs)})",
            f"{made.text}.update({keywords(pairs)})",
            f"{made.text}.update([{listed}])",
            f"{made.text}.update(**{braces(s, pairs)})",
            f"{made.text} |= {braces(s, pairs)}"
            if made.text.isidentifier() and not _captured(s, made)
            else f"{made.text}.update({{}}, {keywords(pairs)})",
            f"{made.text}.update(dict({keywords(pairs)}))",
        )
    )
    s.added(made, *names_of(pairs))


def _captured(s: Scope, made: Dict) -> bool:
    """Whether an assignment to the name would make it local to another function."""
    return s.function and not s.owns(made)


@CHANGES("setdefault", leaf=True)
def setdefault(s: Scope, depth: int, made: Dict) -> None:
    name, value = one(s, depth)
    s.emit(
        s.pick(
            f'{made.text}.setdefault("{name}", {value})',
            f'if "{name}" not in {made.text}:\n    {made.text}["{name}"] = {value}',
            f'{made.text}["{name}"] = {made.text}.get("{name}", {value})',
            f'if {made.text}.get("{name}") is None:\n    {made.text}["{name}"] = {value}',
        )
    )
    s.added(made, name)


@CHANGES("removal", leaf=True)
def removal(s: Scope, depth: int, made: Dict) -> None:
    certain = sorted(s.must(made))
    if certain and s.chance(60):
        name = s.choices.pick(certain)
        s.emit(
            s.pick(
                f'del {made.text}["{name}"]', f'{made.text}.pop("{name}")', f'_ = {made.text}.pop("{name}")'
            )
        )
    else:
        name = s.settings(1)[0]
        s.emit(
            s.pick(
                f'{made.text}.pop("{name}", None)',
                f'if "{name}" in {made.text}:\n    del {made.text}["{name}"]',
                f'try:\n    del {made.text}["{name}"]\nexcept KeyError:\n    pass',
                f'if {made.text}.get("{name}") is not None:\n    {made.text}.pop("{name}")',
            )
        )
    s.removed(made, name)


@CHANGES("operation on an entry", leaf=True)
def entry(s: Scope, depth: int, made: Dict) -> None:
    certain = [name for name in sorted(s.must(made)) if SETTINGS[name] in ("int", "float")]
    if certain and s.chance(80):
        name = s.choices.pick(certain)
        old = f'{made.text}["{name}"]'
        s.emit(
            s.pick(
                f"{old} += {s.value('int', 0)}",
                f"{old} *= 2",
                f"{old} = {old} + 1",
                f"{old} = max({old}, 3)",
                f"{old} = {old} if {old} > 1 else {s.value('int', 0)}",
                f"{old} -= 1",
                f"{old} = -{old}",
                f"{old} = float({old})",
            )
        )
        return
    name = s.settings(1, kinds=("int", "float"))[0]
    s.emit(f'{made.text}["{name}"] = {made.text}.get("{name}", {s.value(SETTINGS[name], depth)}) + 1')
    s.added(made, name)


@CHANGES("renamed key", leaf=True)
def renamed(s: Scope, depth: int, made: Dict) -> None:
    kind = s.pick("int", "float", "bool")
    old, new = s.choices.sample([name for name, each in SETTINGS.items() if each == kind], 2)
    s.emit(
        s.pick(
            f'{made.text}["{new}"] = {made.text}.pop("{old}", {s.value(kind, depth)})',
            f'if "{old}" in {made.text}:\n    {made.text}["{new}"] = {made.text}.pop("{old}")',
        )
    )
    s.removed(made, old)
    made.keys.may.add(new)


@CHANGES("clear", leaf=True)
def clear(s: Scope, depth: int, made: Dict) -> None:
    s.emit(f"{made.text}.clear()")
    s.removed(made, *SETTINGS)
    if s.chance(80):
        pairs = items(s, depth)
        s.emit(f"{made.text}.update({keywords(pairs)})")
        s.added(made, *names_of(pairs))


@CHANGES("harmless use", leaf=True)
def harmless(s: Scope, depth: int, made: Dict) -> None:
    s.uses("import logging", "import json")
    s.emit(
        s.pick(
            f"print({made.text})",
            f"logging.info('using %s', {made.text})",
            f"str({made.text})",
            f"sorted({made.text})",
            f"json.dumps(list({made.text}))",
            f"assert isinstance({made.text}, dict)",
            f"len({made.text})",
            f"repr({made.text}.items())",
            f"list({made.text}.values())",
            f"print(f'{{{made.text}}}')" if made.text.isidentifier() else f"bool({made.text})",
        )
    )


@CHANGES("update from another dict")
def update_from(s: Scope, depth: int, made: Dict) -> None:
    other = s.mapping(depth)
    s.emit(
        s.pick(
            f"{made.text}.update({other.text})",
            f"{made.text}.update(**{other.text})",
            f"{made.text}.update({other.text}.items())",
            f"for k, v in {other.text}.items():\n    {made.text}[k] = v",
            f"for k in {other.text}:\n    {made.text}.setdefault(k, {other.text}[k])",
            f"for k, v in sorted({other.text}.items(), key=lambda pair: pair[0]):\n"
            f"    {made.text}.update({{k: v}})",
            f"{made.text}.update({{k: v for k, v in {other.text}.items() if k not in {made.text}}})",
            f"{made.text}.__setitem__({key(s, 'top_k')}, {s.value('int', 0)})",
        )
    )
    made.keys.may.update(SETTINGS)


@CHANGES("rebuilt")
def rebuilt(s: Scope, depth: int, made: Dict) -> None:
    """Entries of the dict replaced through a copy of itself."""
    pairs, copy = items(s, depth, 2), s.fresh("copy_of")
    s.emit(
        f"{copy} = {{**{made.text}, **{braces(s, pairs)}}}",
        f"{made.text}.clear()",
        f"{made.text}.update({copy})",
    )
    s.added(made, *names_of(pairs))


@CHANGES("alias")
def alias(s: Scope, depth: int, made: Dict) -> None:
    other = s.fresh("view")
    s.emit(
        s.pick(
            f"{other} = {made.text}",
            f"{other}, _ = {made.text}, 1",
            f"for {other} in [{made.text}]:\n    pass",
            f"[{other}] = [{made.text}]",
            f'{other} = {{"x": {made.text}}}["x"]',
            f"{other} = {made.text} if recorder.flag() else {made.text}",
        )
    )
    s.uses("import recorder")
    s.change(Dict(other, made.keys), depth)


@CHANGES("copy, left behind")
def copy_changed(s: Scope, depth: int, made: Dict) -> None:
    """A copy is changed; the dict is not."""
    other = s.fresh("scratch")
    s.uses("import copy")
    s.emit(
        f"{other} = "
        + s.pick(
            f"dict({made.text})",
            f"{made.text}.copy()",
            f"copy.deepcopy({made.text})",
            f"{{**{made.text}}}",
            f"{made.text} | {{}}",
        )
    )
    s.change(s.dict(other, s.must(made), s.may(made)), depth)


@CHANGES("container")
def container(s: Scope, depth: int, made: Dict) -> None:
    name, value = one(s, depth)
    held = s.fresh("held")
    s.emit(
        s.pick(
            f'{held} = [{made.text}]\n{held}[0]["{name}"] = {value}',
            f'{held} = {{"kw": {made.text}}}\n{held}["kw"].update({name}={value})',
            f'for {held} in ({made.text}, {{}}):\n    {held}["{name}"] = {value}',
            f'{held} = ({made.text},)\n{held}[-1].setdefault("{name}", {value})',
            f'{held} = {{"kw": {made.text}}}\n{held} = dict({held})\n{held}["kw"]["{name}"] = {value}',
            f"[{held}.update({name}={value}) for {held} in [{made.text}]]",
        )
    )
    made.keys.may.add(name)


@CHANGES("list inside the dict")
def inner_list(s: Scope, depth: int, made: Dict) -> None:
    name = s.fresh("tokens")
    s.emit(f"{name} = [{s.value('int', 0)}, 4]", f'{made.text}["suppress_tokens"] = {name}')
    entry = f'{made.text}["suppress_tokens"]' if made.text.isidentifier() else name
    s.emit(
        s.pick(
            f"{name}.append(9)",
            f"{entry}.append(9)",
            f"{name} = {name} + [9]",
            f"{name} += [9]",
            f"{entry} += [8]",
            f"{name}.clear()",
            f"{name}[0] = 3",
        )
    )
    s.added(made, "suppress_tokens")
