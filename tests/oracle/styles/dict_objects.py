"""Dicts from objects: attributes, inheritance, properties, callables."""

from __future__ import annotations

from ..scope import MAPPINGS, SETTINGS, Dict, Scope
from .imports import reach
from .pieces import braces, elsewhere, held, items, keywords, literal, method_text, unsure, write_members


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
        constructor = method_text(
            "__init__(self, kw)", store, _change_text(s, "self.kw") if s.chance(30) else "pass"
        )
        members = [
            constructor,
            method_text("change(self)", _change_text(s, "self.kw"), "return self"),
            method_text("put(self, name, value)", "self.kw[name] = value"),
            method_text(
                "get(self)",
                s.pick("return self.kw", "return dict(self.kw)", "result = self.kw\nreturn result"),
            ),
            method_text("_prepare(self, kw)", "self.kw = kw"),
            "@property\n" + method_text("current(self)", s.pick("return self.kw", "return {**self.kw}")),
        ]
        top.emit(f"class {name}{s.pick('', '()', '(object)')}:")
        write_members(top, *members)
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
        write_members(top, f"kw = {display}", "")
        write_members(
            top,
            method_text("change(self)", f'self.kw["{setting}"] = {literal(s, SETTINGS[setting])}'),
            method_text("own(self)", s.pick("self.kw = dict(self.kw)", "self.kw = {}"), "return self"),
            "@classmethod\n" + method_text("get(cls)", s.pick("return cls.kw", "return dict(cls.kw)")),
            "@staticmethod\n" + method_text("make(**more)", f"return {{**{name}.kw, **more}}"),
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
        write_members(
            top,
            "shared = {"
            + ", ".join(f'"{n}": {v}' for n, v in [(n, literal(s, SETTINGS[n])) for n in s.settings(2)])
            + "}",
            method_text("__init__(self, kw)", "self.kw = kw", "self.finish()"),
            method_text("finish(self)", "pass"),
            method_text("change(self)", _change_text(s, "self.kw")),
            method_text("put(self, name, value)", "self.kw[name] = value"),
            method_text("get(self)", "return self.kw"),
            "@property\n" + method_text("current(self)", "return self.get()"),
        )
        top.emit(f"class {middle}:")
        write_members(
            top, method_text("finish(self)", _change_text(s, "self.kw"), s.pick("super().finish()", "pass"))
        )
    text = reach(s, file, base)
    mixin = reach(s, file, middle)
    with s.top() as top:
        if file is not s.file and s.function:
            # An import inside the function does not reach the module's top level.
            top.uses(f"from {file.module} import {base}, {middle}")
            text, mixin = base, middle
        top.emit(f"class {child}({s.pick(text, f'{mixin}, {text}', text)}):")
        write_members(
            top,
            *s.choices.sample(
                (
                    method_text("finish(self)", _change_text(s, "self.kw")),
                    method_text(
                        "__init__(self, kw)",
                        s.pick(
                            "super().__init__(dict(kw))",
                            "super().__init__({**self.shared, **kw})",
                            f"{text}.__init__(self, kw)",
                            f"super({child}, self).__init__(kw=kw)",
                        ),
                        _change_text(s, "self.kw"),
                    ),
                    method_text(
                        "get(self)",
                        s.pick(
                            "return dict(super().get(), top_k=4)",
                            "return {**self.shared, **self.kw}",
                            "return super().get()",
                        ),
                    ),
                    'shared = {"top_k": 9}\n',
                    method_text("change(self)", "super().change()", _change_text(s, "self.kw")),
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
        write_members(
            top,
            method_text(
                "__init__(self)",
                "self._kw = None",
                *(f"self.{each} = {literal(s, SETTINGS[each])}" for each in chosen),
            ),
            "@property\n"
            + method_text(
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
            "@kw.setter\n"
            + method_text("kw(self, value)", s.pick("self._kw = value", "self._kw = dict(value)")),
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
        write_members(
            top,
            method_text("__init__(self, **kw)", "self.kw = kw"),
            method_text(
                "__call__(self, **more)",
                s.pick("return {**self.kw, **more}", "self.kw.update(more)\nreturn self.kw"),
            ),
            method_text("__getitem__(self, name)", "return self.kw"),
            method_text(
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


@MAPPINGS("invisible base class", opaque=True)
def invisible_base(s: Scope, depth: int) -> Dict:
    name, base = s.unique("Derived"), s.shared(s.mapping(depth))
    with s.top() as top:
        top.uses("import recorder")
        top.emit(f"class {name}(recorder.Base):")
        write_members(
            top,
            method_text(
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
