"""Changes of a dict by functions, methods and code that is not visible."""

from __future__ import annotations

from ..scope import CHANGES, SETTINGS, Dict, Scope
from .imports import reach
from .pieces import elsewhere, items, keywords, literal, one, unsure


@CHANGES("function")
def function(s: Scope, depth: int, made: Dict) -> None:
    file, name = elsewhere(s), s.unique("adjust")
    with s.top(file) as top, top.nested(f"def {name}(kw, times=1, **more):", closure=False) as body:
        target = unsure("kw")
        if s.chance(30):
            body.emit(f"if {body.condition(0)}:", f"    {s.pick('return', 'return None', 'return kw')}")
        body.change(target, depth)
        if s.chance(20):
            body.emit(s.pick("kw = dict(kw)", "kw = {}", "kw = {**kw, **more}"))
            body.change(target, 0)
        if s.chance(30):
            body.emit(s.pick("kw.update(more)", "return kw", "for k, v in more.items():\n    kw[k] = v"))
    s.shared(made)
    call = reach(s, file, name)
    for _ in range(s.pick(1, 1, 2)):
        s.emit(
            s.pick(
                f"{call}({made.text})",
                f"{call}(kw={made.text})",
                f"{call}({made.text}, {keywords(items(s, 0, 2))})",
                f"{call}(*[{made.text}])",
                f'{call}(**{{"kw": {made.text}}})',
                f"_ = {call}({made.text}, 2)",
                f"list(map({call}, [{made.text}]))",
                f"[{call}(each) for each in ({made.text},)]",
            )
        )


@CHANGES("nested function")
def nested_function(s: Scope, depth: int, made: Dict) -> None:
    name = s.fresh("apply")
    s.shared(made)
    with s.nested(f"def {name}(value={s.value('int', 0)}):") as body:
        body.change(made, depth)
        body.emit(f'{made.text}["top_k"] = value')
    for _ in range(s.pick(1, 0, 2)):
        s.emit(f"{name}({s.pick('', s.value('int', depth))})")


@CHANGES("lambda")
def lambda_change(s: Scope, depth: int, made: Dict) -> None:
    name, value = one(s, depth)
    f = s.fresh("put")
    s.shared(made)
    s.emit(
        s.pick(
            f"{f} = lambda: {made.text}.update({name}={value})\n{f}()",
            f'{f} = lambda d, v: d.__setitem__("{name}", v)\n{f}({made.text}, {value})',
            f"(lambda **more: {made.text}.update(more))({name}={value})",
            f'{f} = {made.text}.update\n{f}({{"{name}": {value}}})',
            f'{f} = {made.text}.setdefault\n{f}("{name}", {value})',
            f"{f} = lambda: {made.text}.clear()",
        )
    )


@CHANGES("method")
def method(s: Scope, depth: int, made: Dict) -> None:
    name, cls = s.settings(1)[0], s.unique("Editor")
    value = literal(s, SETTINGS[name])
    with s.top() as top:
        top.emit(
            f"class {cls}:",
            "    def __init__(self, target):",
            "        self.target = target",
            "",
            "    def edit(self, **more):",
            f'        self.target["{name}"] = {value}',
            "        self.target.update(more)",
            "        return self",
            "",
            "    @staticmethod",
            "    def reset(target):",
            f'        target["{name}"] = {value}',
        )
    s.shared(made)
    s.emit(
        s.pick(
            f"{cls}({made.text}).edit()",
            f"{cls}({made.text}).edit().edit({keywords(items(s, depth, 2))})",
            f"{cls}.reset({made.text})",
            f"{cls}.edit({cls}({made.text}))",
            f"editor = {cls}({made.text})\neditor.edit()",
            f"{cls}({{}}).reset({made.text})",
            f"{cls}(dict({made.text})).edit()",
        )
    )


@CHANGES("invisible function", leaf=True, opaque=True)
def invisible(s: Scope, depth: int, made: Dict) -> None:
    s.uses("import recorder")
    s.shared(made)
    s.emit(
        s.pick(
            f"recorder.tweak({made.text})",
            f"recorder.tweak_all([{made.text}])",
            f"recorder.tweak_all(({made.text}, 1))",
            f'recorder.tweak_all({{"kw": {made.text}}}.values())',
            f"recorder.helper_object.tweak({made.text})",
            f"list(map(recorder.tweak, [{made.text}]))",
            f"recorder.keep({made.text})\nrecorder.shake()",
            f"recorder.call(lambda: {made.text}.update(top_k=recorder.number()))",
            f"recorder.tweak(kw={made.text})",
            f"with recorder.context({made.text}):\n    pass",
            f"recorder.helper_object.kw = {made.text}\nrecorder.shake()",
            f"recorder.opaque({made.text}).update(top_k=recorder.number())",
            f"for recorder.slot in [{made.text}]:\n    recorder.shake()",
            f"recorder.tweak_nested({{'a': {{'b': {made.text}}}}})",
        )
    )


@CHANGES("runtime key", leaf=True, opaque=True)
def runtime_key(s: Scope, depth: int, made: Dict) -> None:
    s.uses("import recorder")
    value = s.value("int", depth)
    s.emit(
        s.pick(
            f"{made.text}[recorder.int_name()] = {value}",
            f"{made.text}.pop(recorder.name(), None)",
            f"{made.text}.update({{recorder.int_name(): {value}}})",
            f"{made.text}.update(recorder.unknown_dict())",
            f"{made.text}.setdefault(recorder.int_name(), {value})",
            f"for name in recorder.names():\n    {made.text}.pop(name, None)",
        )
    )
    made.keys.must.clear()
    made.keys.may.update(SETTINGS)


@CHANGES("invisible callback", opaque=True)
def callback(s: Scope, depth: int, made: Dict) -> None:
    name = s.fresh("callback")
    s.uses("import recorder")
    s.shared(made)
    with s.nested(f"def {name}(*args, **kwargs):") as body:
        body.change(made, depth)
    s.emit(
        s.pick(
            f"recorder.call({name})",
            f"recorder.call(fn={name})",
            f"recorder.helper_object.on_step = {name}\nrecorder.shake()",
            f"@recorder.register\ndef {name}_again():\n    {name}()\n\nrecorder.shake()",
        )
    )
