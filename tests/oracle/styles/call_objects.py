"""Calls of generate in methods, and by code that is not visible."""

from __future__ import annotations

from ..scope import SETTINGS, SITES, Dict, Scope
from .calls import emit_call
from .imports import reach
from .pieces import elsewhere, items, keywords, literal, plain_braces, unsure


@SITES("method")
def method(s: Scope, depth: int, made: Dict) -> None:
    file, name = elsewhere(s), s.unique("Policy")
    with s.top(file) as top:
        top.uses("from recorder import ids, model")
        top.emit(f"class {name}:")
        inner = Scope(s.program, top.file, top.lines, top.names, 1, top.home, top.arm)
        with inner.nested("def __init__(self, kw):", closure=False) as body:
            body.emit("self.model = model", s.pick("self.kw = kw", "self.kw = dict(kw)", "self.kw = {**kw}"))
            if s.chance(30):
                body.change(unsure("self.kw"), 0)
        with inner.nested("def change(self):", closure=False) as body:
            body.change(unsure("self.kw"), 0)
        with inner.nested("def run(self, **more):", closure=False) as body:
            if s.chance(30):
                body.change(unsure("self.kw"), 0)
            model = s.pick("self.model", "model")
            emit_call(
                body,
                s.pick(
                    f"{model}.generate(ids, **self.kw)",
                    f"{model}.generate(ids, **{{**self.kw, **more}})",
                    f"{model}.generate(ids, **dict(self.kw, **more))",
                ),
            )
    policy, text = s.fresh("policy"), reach(s, file, name)
    s.shared(made)
    s.emit(f"{policy} = {text}({made.text})")
    for _ in range(s.choices.below(4)):
        s.emit(
            s.pick(
                f"{policy}.change()",
                f"{policy}.run()",
                f"{policy}.run({keywords(items(s, 0, 2))})",
                f'{policy}.kw["top_k"] = {s.value("int", 0)}',
                f'{made.text}["top_p"] = {s.value("float", 0)}',
                f"{policy}.kw = {s.mapping(0).text}",
            )
        )
    s.emit(f"{policy}.run()")
    if s.chance(30):
        s.emit(f"{text}({s.mapping(0).text}).run()")


@SITES("inherited method")
def inherited(s: Scope, depth: int, made: Dict) -> None:
    base, child = s.unique("BasePolicy"), s.unique("ChildPolicy")
    setting = s.settings(1)[0]
    with s.top() as top:
        top.uses("from recorder import ids, model")
        value, pairs = top.value(SETTINGS[setting], 0), items(top, 0)
        top.emit(
            f"class {base}:",
            f"    defaults = {plain_braces(pairs)}",
            "",
            "    def __init__(self, **kw):",
            "        self.kw = {**self.defaults, **kw}",
            "",
            "    def settings(self):",
            "        return self.kw",
            "",
            "    def run(self, **kw):",
            "        return model.generate(ids, **{**self.settings(), **kw})",
            "",
        )
        top.emit(
            f"class {child}({base}):",
            *s.pick(
                (f'    defaults = {{"{setting}": {value}}}',),
                ("    def settings(self):", f'        return {{**super().settings(), "{setting}": {value}}}'),
                (
                    "    def run(self, **kw):",
                    f'        kw["{setting}"] = {value}',
                    "        return super().run(**kw)",
                ),
                (
                    "    def __init__(self, **kw):",
                    "        super().__init__(**kw)",
                    f'        self.kw["{setting}"] = {value}',
                ),
                ("    def run(self, **kw):", "        return model.generate(ids, **self.settings(), **{})"),
                ("    pass",),
            ),
        )
    s.emit(f"{s.pick(child, child, base)}(**{made.text}).run({s.pick('', keywords(items(s, 0, 2)))})")
    if s.chance(40):
        s.emit(f"{s.pick(base, child)}().run()")


@SITES("own generate method")
def own_generate(s: Scope, depth: int, made: Dict) -> None:
    name, pairs = s.unique("WrappedModel"), items(s, 0, 2)
    own = plain_braces([(each, literal(s, SETTINGS[each])) for each, _ in pairs])
    with s.top() as top:
        top.uses("from recorder import ids, model")
        top.emit(
            f"class {name}:",
            "    def __init__(self, inner):",
            "        self.inner = inner",
            "",
            "    def generate(self, prompts, **kwargs):",
            *s.pick(
                ("        return self.inner.generate(prompts, **kwargs)",),
                (f"        return self.inner.generate(prompts, **{{**{own}, **kwargs}})",),
                (f"        kwargs.update({own})", "        return self.inner.generate(prompts, **kwargs)"),
                (
                    "        kwargs.pop('top_k', None)",
                    "        return self.inner.generate(prompts, **kwargs)",
                ),
            ),
        )
    s.uses("from recorder import ids, model")
    s.emit(f"{name}(model).generate(ids, **{made.text})")
    if s.chance(40):
        s.emit(f"{name}({name}(model)).generate(ids, {keywords(items(s, depth))})")


@SITES("static and class methods")
def class_methods(s: Scope, depth: int, made: Dict) -> None:
    name = s.unique("Tools")
    with s.top() as top:
        top.uses("from recorder import ids, model")
        top.emit(
            f"class {name}:",
            "    @staticmethod",
            "    def run(kw):",
            "        return model.generate(ids, **kw)",
            "",
            "    @classmethod",
            "    def run_with(cls, **kw):",
            s.pick("        return cls.run(kw)", "        return cls.run({**kw, 'top_k': 2})"),
        )
    s.emit(
        s.pick(f"{name}.run({made.text})", f"{name}().run({made.text})", f"{name}.run_with(**{made.text})")
    )
    if s.chance(30):
        s.emit(f"{name}.run_with({keywords(items(s, depth))})")


@SITES("invisible caller", opaque=True)
def invisible_caller(s: Scope, depth: int, made: Dict) -> None:
    name = s.unique("on_batch")
    with s.top() as top:
        if s.chance(30):
            top.uses("import recorder")
            top.emit("@recorder.hook")
        with top.nested(f"def {name}(kw):", closure=False) as body:
            body.site(unsure("kw"), 0)
    s.uses("import recorder")
    s.shared(made)
    s.emit(
        s.pick(
            f"recorder.call({name}, {made.text})",
            f"recorder.call_twisted({name})",
            f"recorder.call(fn={name}, kw={made.text})",
            f"recorder.helper_object.on_step_kw = {name}\nrecorder.shake()",
            f"recorder.call({name}, {made.text})\n{name}({made.text})",
            f"{name}({made.text})\nrecorder.call_twisted({name})",
        )
    )


@SITES("invisible base class", opaque=True)
def invisible_base(s: Scope, depth: int, made: Dict) -> None:
    name = s.unique("Trainer")
    with s.top() as top:
        top.uses("import recorder", "from recorder import ids, model")
        top.emit(
            f"class {name}(recorder.TrainerBase):",
            "    kw = {}",
            "",
            "    def setup(self, kw):",
            "        self.kw = kw",
            "",
            "    def step(self, **more):",
            "        return model.generate(ids, **{**self.kw, **more})",
        )
    trainer = s.fresh("trainer")
    s.shared(made)
    s.emit(
        f"{trainer} = {name}()",
        f"{trainer}.setup({made.text})",
        s.pick(f"{trainer}.step()", f"{trainer}.train()", f"{trainer}.step()\n{trainer}.train()"),
    )


@SITES("invisible wrapper", opaque=True)
def invisible_wrapper(s: Scope, depth: int, made: Dict) -> None:
    s.uses("import recorder", "from recorder import ids, model")
    s.emit(
        s.pick(
            f"model.generate(ids, **recorder.opaque({s.shared(made).text}))",
            f"model.generate(ids, **{{**{made.text}, **recorder.unknown_dict()}})",
            f"model.generate(ids, **{{**recorder.unknown_dict(), **{made.text}}})",
            f"model.generate(ids, **dict({made.text}, **{{recorder.int_name(): 3}}))",
            f"model.generate(ids, **recorder.unknown_beside(), **{made.text})",
        )
    )
