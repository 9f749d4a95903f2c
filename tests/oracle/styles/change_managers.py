"""Changes of a dict by what runs when a block is entered or left: managers, exceptions, early returns."""

from __future__ import annotations

from ..scope import CHANGES, MAPPINGS, SETTINGS, Dict, Scope
from .pieces import held, literal, one, unsure


@CHANGES("class with __exit__")
def manager_class(s: Scope, depth: int, made: Dict) -> None:
    name, (setting, value), second = s.unique("Override"), one(s, 0), s.settings(1)[0]
    ends = s.pick("return None", "return False", "return True", "return bool(exc[0])")
    with s.top() as top:
        top.emit(
            f"class {name}:",
            "    def __init__(self, kw, **more):",
            "        self.kw, self.more, self.saved = kw, more, dict(kw)",
            "",
            "    def __enter__(self):",
            s.pick(
                "        self.kw.update(self.more)",
                f'        self.kw["{second}"] = {top.value(SETTINGS[second], 0)}',
            ),
            f"        return {s.pick('self', 'self.kw', 'dict(self.kw)')}",
            "",
            "    def __exit__(self, *exc):",
            *s.pick(
                ("        self.kw.clear()", "        self.kw.update(self.saved)"),
                (f'        self.kw["{second}"] = {top.value(SETTINGS[second], 0)}',),
                (
                    "        if exc[0] is None:",
                    f'            self.kw["{second}"] = {top.value(SETTINGS[second], 0)}',
                ),
                ("        self.kw.pop('top_k', None)",),
            ),
            f"        {ends}",
        )
    s.shared(made)
    s.uses("import recorder")
    with s.block("try:") as attempt:
        with attempt.block(f"with {name}({made.text}, {setting}={value}):") as arm:
            if s.chance(60):
                arm.change(made, 0)
            if s.chance(40):
                arm.site(made, 0)
            arm.emit(s.pick("pass", "recorder.may_raise()", "raise RuntimeError('stop')"))
    with s.block("except RuntimeError:") as arm:
        arm.site(made, 0)


@CHANGES("exit stack")
def exit_stack(s: Scope, depth: int, made: Dict) -> None:
    name, setting = s.unique("scoped"), s.settings(1)[0]
    with s.top() as top:
        top.uses("import contextlib")
        value = top.value(SETTINGS[setting], 0)
        top.emit("@contextlib.contextmanager")
        with top.nested(f"def {name}(kw):", closure=False) as body:
            body.emit(f'kw["{setting}"] = {value}', "yield kw", 'kw.pop("top_k", None)')
    s.shared(made)
    s.uses("import contextlib")
    with s.block("with contextlib.ExitStack() as stack:") as arm:
        arm.emit(
            s.pick(
                f"stack.enter_context({name}({made.text}))",
                f"stack.callback({made.text}.update, top_k=3)",
                f"stack.push({name}({made.text}).__exit__) if False else None",
            )
        )
        if s.chance(50):
            arm.change(made, 0)


@CHANGES("manager left early")
def left_early(s: Scope, depth: int, made: Dict) -> None:
    name, work, setting = s.unique("temporarily"), s.unique("inside"), s.settings(1)[0]
    with s.top() as top:
        top.uses("import contextlib", "import recorder")
        value = top.value(SETTINGS[setting], 0)
        top.emit("@contextlib.contextmanager")
        with top.nested(f"def {name}(kw, **more):", closure=False) as body:
            body.emit(
                s.pick(
                    "saved = dict(kw)\nkw.update(more)\ntry:\n    yield\nfinally:\n    kw.clear()\n    kw.update(saved)",
                    f'kw.update(more)\nyield kw\nkw["{setting}"] = {value}',
                    "try:\n    yield kw\nexcept RuntimeError:\n    kw.update(more)",
                    f"if {body.condition(0)}:\n    kw.update(more)\n    yield kw\nelse:\n    yield kw\n"
                    "kw.pop('top_p', None)",
                )
            )
        with top.nested(f"def {work}(kw):", closure=False) as body:
            with body.block("for turn in range(2):", repeats=True) as loop:
                with loop.block(f"with {name}(kw, {setting}={literal(s, SETTINGS[setting])}):") as arm:
                    if s.chance(50):
                        arm.change(unsure("kw"), 0)
                    ends = s.pick("return kw", "break", "continue", "pass", "recorder.may_raise()")
                    if s.chance(50):
                        with arm.block(f"if {arm.condition(0)}:") as inner:
                            inner.emit(ends)
                    else:
                        arm.emit(ends)
                loop.change(unsure("kw"), 0)
            body.emit("return kw")
    s.shared(made)
    s.emit("try:", f"    {work}({made.text})", "except RuntimeError:", "    pass")


@CHANGES("finally")
def finally_block(s: Scope, depth: int, made: Dict) -> None:
    s.uses("import recorder")
    with s.block("try:") as outer:
        with outer.block("try:") as arm:
            arm.change(made, 0)
            arm.emit(s.pick("raise ValueError('stop')", "recorder.may_raise()", "pass"))
        if s.chance(40):
            with outer.block("except KeyError:") as arm:
                arm.change(made, 0)
        with outer.block("finally:") as arm:
            arm.change(made, depth)
    with s.block("except (ValueError, RuntimeError):") as arm:
        if s.chance(50):
            arm.change(made, 0)


@CHANGES("early return")
def early_return(s: Scope, depth: int, made: Dict) -> None:
    name = s.unique("adjust")
    with s.top() as top, top.nested(f"def {name}(kw, deep=False):", closure=False) as body:
        target = unsure("kw")
        body.emit(
            s.pick(
                'if "top_k" in kw:\n    return kw',
                "if not kw:\n    return None",
                f"if {body.condition(0)}:\n    return",
                "if deep:\n    return kw",
            )
        )
        body.change(target, depth)
        with body.block(f"if {body.condition(0)}:") as arm:
            arm.change(target, 0)
            arm.emit("return kw")
        if s.chance(60):
            body.change(target, 0)
        body.emit("return kw")
    s.shared(made)
    s.emit(f"{name}({made.text}{s.pick('', ', True', ', deep=False')})")


@MAPPINGS("project exception")
def project_exception(s: Scope, depth: int) -> Dict:
    name, thrower, made = s.unique("Stop"), s.unique("throw"), s.fresh("kw")
    base = s.shared(s.mapping(depth))
    with s.top() as top:
        top.emit(
            f"class {name}(Exception):",
            *s.pick(
                ("    def __init__(self, kw):", "        super().__init__('stop')", "        self.kw = kw"),
                ("    def __init__(self, kw):", "        self.kw = dict(kw)"),
            ),
        )
        with top.nested(f"def {thrower}(kw):", closure=False) as body:
            if s.chance(40):
                body.change(unsure("kw"), 0)
            body.emit(f"raise {name}(kw)")
    s.emit("try:", f"    {thrower}({base.text})", f"except {name} as stop:", f"    {made} = stop.kw")
    return unsure(made)


@MAPPINGS("returned early")
def returned_early(s: Scope, depth: int) -> Dict:
    name = s.unique("choose_kw")
    with s.top() as top, top.nested(f"def {name}(mode='train', **more):", closure=False) as body:
        first = body.shared(body.mapping(depth))
        body.emit(
            s.pick(
                f"if mode == 'train':\n    return {first.text}",
                f"if mode != 'train':\n    return {first.text}",
                f"for each in more:\n    return {first.text}",
                f"while {body.condition(0)}:\n    return {first.text}",
                f"try:\n    return {first.text}\nfinally:\n    {first.text}.update(more)",
            )
        )
        second = body.shared(body.mapping(0))
        body.emit(f"return {{**{second.text}, **more}}")
    return held(s, f"{name}({s.pick('', chr(34) + 'eval' + chr(34), 'top_k=4', 'mode=None')})")
