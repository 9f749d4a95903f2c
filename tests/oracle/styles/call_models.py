"""Calls whose settings lie in objects: a GenerationConfig, the model's own one, a partial of its method."""

from __future__ import annotations

import importlib.util

from ..scope import MAPPINGS, SETTINGS, SITES, Dict, Scope
from .calls import emit_call
from .imports import reach
from .pieces import elsewhere, held, items, keywords, literal, unsure

TRANSFORMERS = importlib.util.find_spec("transformers") is not None
TYPER = importlib.util.find_spec("typer") is not None


@SITES("partial of generate")
def partial_generate(s: Scope, depth: int, made: Dict) -> None:
    name = s.fresh("sample")
    s.uses("import functools", "from functools import partial", "from recorder import ids, model")
    value = s.value("int", depth)
    s.emit(
        s.pick(
            f"{name} = functools.partial(model.generate, **{made.text})\n{name}(ids)",
            f"{name} = partial(model.generate, ids, **{made.text})\n{name}(num_beams={value})",
            f"{name} = partial(model.generate, num_beams={value})\n{name}(ids, **{made.text})",
            f"{name} = partial(partial(model.generate, ids), **{made.text})\n{name}()",
            f"partial(model.generate, ids, **{made.text})()",
        )
    )
    if s.chance(30):
        s.change(made, 0)
        s.emit(f"{name} = partial(model.generate, ids)\n{name}(**{made.text})")


@SITES("splat of attributes")
def splat_of_attributes(s: Scope, depth: int, made: Dict) -> None:
    space, (setting, value) = s.fresh("args"), items(s, depth, 1)[0]
    s.uses("import argparse", "from types import SimpleNamespace", "from recorder import ids, model")
    s.emit(f"{space} = {s.pick('argparse.Namespace', 'SimpleNamespace')}(**{made.text})")
    if s.chance(50):
        s.emit(s.pick(f"{space}.{setting} = {value}", f'setattr({space}, "{setting}", {value})'))
    emit_call(
        s,
        "model.generate(ids, **"
        + s.pick(
            f"vars({space})",
            f"{space}.__dict__",
            f"{{k: getattr({space}, k) for k in vars({space})}}",
            f"dict(vars({space}), num_beams=1)",
        )
        + ")",
    )


@SITES("asynchronous context")
def asynchronous(s: Scope, depth: int, made: Dict) -> None:
    work, manager = s.unique("sample_all"), s.unique("Session")
    with s.top() as top:
        top.uses("import asyncio", "from recorder import ids, model")
        top.emit(
            f"class {manager}:",
            "    def __init__(self, kw):",
            "        self.kw = kw",
            "",
            "    async def __aenter__(self):",
            f'        self.kw["top_k"] = {literal(s, "int")}',
            "        return self",
            "",
            "    async def __aexit__(self, *exc):",
            f"        self.kw.pop('{s.settings(1)[0]}', None)",
        )
        with top.nested(f"async def {work}(kw):", closure=False) as body:
            with body.block(
                s.pick(f"async with {manager}(kw):", f"async with {manager}(dict(kw)) as session:")
            ) as arm:
                arm.site(unsure("kw"), 0)
            body.emit(
                s.pick("await asyncio.sleep(0)", "pass", "await asyncio.gather(asyncio.sleep(0))"),
                "return model.generate(ids, **kw)",
            )
    s.shared(made)
    s.uses("import asyncio")
    later = s.fresh("later")
    s.emit(
        s.pick(
            f"asyncio.run({work}({made.text}))",
            f"{later} = {work}({made.text})\nasyncio.run({later})",
            f'{later} = {work}({made.text})\n{made.text}["top_p"] = 0.25\nasyncio.run({later})',
        )
    )


@SITES("several threads", opaque=True)
def threads(s: Scope, depth: int, made: Dict) -> None:
    work = s.unique("in_thread")
    with s.top() as top, top.nested(f"def {work}(kw):", closure=False) as body:
        body.site(unsure("kw"), 0)
    s.shared(made)
    s.uses("import concurrent.futures", "import threading")
    s.emit(
        s.pick(
            f"with concurrent.futures.ThreadPoolExecutor(1) as pool:\n    list(pool.map({work}, [{made.text}]))",
            f"with concurrent.futures.ThreadPoolExecutor(1) as pool:\n    pool.submit({work}, {made.text}).result()",
            f"thread = threading.Thread(target={work}, args=({made.text},))\nthread.start()\nthread.join()",
        )
    )


if TRANSFORMERS:

    @SITES("GenerationConfig")
    def generation_config(s: Scope, depth: int, made: Dict) -> None:
        file, maker, config = elsewhere(s), s.unique("make_config"), s.fresh("config")
        with s.top(file) as top:
            top.uses("from transformers import GenerationConfig")
            with top.nested(f"def {maker}(kw):", closure=False) as body:
                body.emit(
                    s.pick(
                        "return GenerationConfig(**kw)",
                        "return GenerationConfig.from_dict(dict(kw))",
                        "config = GenerationConfig()\nconfig.update(**kw)\nreturn config",
                        "config = GenerationConfig()\nfor name, value in kw.items():\n"
                        "    setattr(config, name, value)\nreturn config",
                    )
                )
        s.emit(f"{config} = {reach(s, file, maker)}({made.text})")
        (setting, value), (second, other) = items(s, depth, 1)[0], items(s, 0, 1)[0]
        s.uses("import copy", "from recorder import ids, model")
        for _ in range(s.choices.below(3)):
            s.emit(
                s.pick(
                    f"{config}.{setting} = {value}",
                    f"{config}.update({setting}={value}, {second + 'x'}=1)"
                    if setting == second
                    else f"{config}.update({setting}={value}, {second}={other})",
                    f'setattr({config}, "{setting}", {value})',
                    f"{config} = copy.deepcopy({config})\n{config}.{setting} = {value}",
                    f"{config} = type({config})(**{{{chr(34)}{setting}{chr(34)}: {value}}})",
                )
            )
        more = s.pick("", "", f", {keywords(items(s, 0, 2))}")
        emit_call(s, f"model.generate(ids, generation_config={config}{more})")

    @SITES("the model's own config")
    def own_config(s: Scope, depth: int, made: Dict) -> None:
        policy, pairs = s.fresh("policy"), items(s, depth)
        s.uses("import recorder", "from recorder import ids")
        s.emit(f"{policy} = recorder.{s.pick('Model()', 'from_pretrained(chr(103))')}")
        for setting, value in pairs:
            s.emit(
                s.pick(
                    f"{policy}.generation_config.{setting} = {value}",
                    f'setattr({policy}.generation_config, "{setting}", {value})',
                    f"{policy}.generation_config.update({setting}={value})",
                    f"own = {policy}.generation_config\nown.{setting} = {value}",
                )
            )
        if s.chance(30):
            with s.block(f"if {s.condition(0)}:") as arm:
                arm.emit(f"{policy}.generation_config.{pairs[0][0]} = {literal(s, SETTINGS[pairs[0][0]])}")
        emit_call(s, f"{policy}.generate(ids, **{made.text})")
        if s.chance(40):
            s.emit(f"{policy}.generation_config.{pairs[-1][0]} = {literal(s, SETTINGS[pairs[-1][0]])}")
            emit_call(s, f"{policy}.generate(ids)")

    @MAPPINGS("GenerationConfig as a dict")
    def config_dict(s: Scope, depth: int) -> Dict:
        s.uses("from transformers import GenerationConfig")
        config, base, (setting, value) = s.fresh("config"), s.mapping(depth), items(s, 0, 1)[0]
        s.emit(f"{config} = GenerationConfig(**{base.text})")
        if s.chance(50):
            s.emit(f"{config}.{setting} = {value}")
        made = s.pick(
            f'{{"{setting}": {config}.{setting}}}',
            f'{{n: getattr({config}, n) for n in ("top_k", "{setting}")}}',
            f'{{k: v for k, v in {config}.to_dict().items() if k in ("top_k", "{setting}")}}',
            f'{{k: v for k, v in {config}.to_diff_dict().items() if k in ("top_k", "{setting}")}}',
        )
        return held(s, f"{{k: v for k, v in {made}.items() if v is not None}}")


if TYPER:

    @SITES("typer command")
    def typer_command(s: Scope, depth: int, made: Dict) -> None:
        app, name, chosen = s.unique("app"), s.unique("entry"), s.settings(2, kinds=("int", "float"))
        with s.top() as top:
            top.uses("import typer", "from recorder import ids, model")
            top.emit(f"{app} = typer.Typer()")
            listed = ", ".join(
                f"{each}: {SETTINGS[each]} = "
                + s.pick(literal(s, SETTINGS[each]), f"typer.Option({literal(s, SETTINGS[each])})")
                for each in chosen
            )
            top.emit(f"@{app}.command()")
            with top.nested(f"def {name}({listed}):", closure=False) as body:
                own = body.dict("{" + ", ".join(f'"{each}": {each}' for each in chosen) + "}", chosen)
                body.site(own, 0)
        flag = f'"--{chosen[0].replace("_", "-")}"'
        s.emit(f"{app}({s.pick('[]', f'[{flag}, {chr(34)}1{chr(34)}]')}, standalone_mode=False)")
