"""The module `recorder` that generated programs import: what no reader can see into.

It is made anew for each run. `model.generate` notes who called it, and with which settings; everything else
answers differently from run to run.
"""

from __future__ import annotations

import contextlib
import copy
import random
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .scope import SETTINGS

_INTS = [name for name, kind in SETTINGS.items() if kind == "int"]


@dataclass(frozen=True)
class Observation:
    """One call of generate: where it stands and what it received."""

    file: str
    line: int
    kwargs: dict[str, Any]
    own: dict[str, Any] = field(default_factory=dict)


class OwnConfig(types.SimpleNamespace):
    """Stands for `model.generation_config`: holds what the program sets."""

    def update(self, **kwargs: Any) -> None:
        """As in transformers."""
        vars(self).update(kwargs)


class Model:
    """Stands for a language model: `generate` notes its keyword arguments, and what its own config holds."""

    def __init__(self, observations: list[Observation]) -> None:
        self._observations = observations
        self.generation_config = OwnConfig()

    def eval(self) -> Model:
        """As in torch: returns the model itself."""
        return self

    def generate(self, *args: Any, **kwargs: Any) -> list[int]:
        """Note the caller and a copy of the settings."""
        frame = sys._getframe(1)
        self._observations.append(
            Observation(
                frame.f_code.co_filename,
                frame.f_lineno,
                copy.deepcopy(kwargs),
                copy.deepcopy(vars(self.generation_config)),
            )
        )
        return [1, 2]


def make(seed: int, observations: list[Observation]) -> types.ModuleType:
    """A fresh `recorder` module. Seed 0 answers every flag with True, seed 1 with False, others at random."""
    module = types.ModuleType("recorder")
    chance = random.Random(seed)
    kept: list[dict] = []
    callbacks: list[Callable] = []
    state = {"turns": 0, "shaking": False}

    def flag() -> bool:
        return seed == 0 or (seed > 1 and chance.random() < 0.5)

    def more() -> bool:
        state["turns"] += 1
        return state["turns"] % 3 != 0 and flag()

    def number() -> int:
        return chance.randrange(1_000_000, 2_000_000)

    def tweak(kw: Any) -> Any:
        if isinstance(kw, dict):
            kw["top_k"] = number()
            name = chance.choice(list(SETTINGS))
            if name in kw:
                del kw[name]
            kw[chance.choice(_INTS)] = number()
        return kw

    def tweak_all(many: Any) -> None:
        for each in many:
            tweak(each)

    def shake() -> None:
        if state["shaking"]:
            return
        state["shaking"] = True
        try:
            for each in [*kept, getattr(helper, "kw", None), getattr(module, "slot", None)]:
                tweak(each)
            for function in [*callbacks, getattr(helper, "on_step", None)]:
                if function is not None:
                    function()
            if getattr(helper, "on_step_kw", None) is not None:
                helper.on_step_kw({"top_k": number()})
        finally:
            state["shaking"] = False

    def may_raise() -> None:
        if flag():
            raise RuntimeError("raised by the recorder")

    def call(fn: Callable, *args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    def hook(function: Callable) -> Callable:
        def around(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            return tweak(result)

        return around

    @contextlib.contextmanager
    def context(*held: Any):
        tweak_all(held)
        yield module

    class Helper:
        def tweak(self, kw: dict) -> dict:
            return tweak(kw)

    class Base:
        def __init__(self, kw: dict | None = None) -> None:
            self.kw = tweak(dict(kw or getattr(self, "kw", {})))

    class TrainerBase:
        def train(self) -> None:
            self.setup({"top_k": number()})
            self.step(max_new_tokens=number())

    helper = Helper()
    model = Model(observations)
    module.__dict__.update(
        model=model,
        engine=types.SimpleNamespace(model=model),
        load=lambda name: model,
        Model=lambda: Model(observations),
        from_pretrained=lambda name: Model(observations),
        ids=[3, 1, 2],
        flag=flag,
        more=more,
        number=number,
        fraction=lambda: number() + 0.5,
        name=lambda: chance.choice(list(SETTINGS)),
        names=lambda: chance.sample(list(SETTINGS), 3),
        int_name=lambda: chance.choice(_INTS),
        items=lambda: [1] * chance.randrange(3),
        opaque=lambda value: value,
        unknown_dict=lambda: {chance.choice(_INTS): number()},
        unknown_beside=lambda: {"guidance_scale": number()},
        tweak=tweak,
        tweak_all=tweak_all,
        tweak_nested=lambda tree: tweak(tree["a"]["b"]),
        keep=kept.append,
        shake=shake,
        register=lambda function: (callbacks.append(function), function)[1],
        call=call,
        call_twisted=lambda function: function({"top_k": number()}),
        may_raise=may_raise,
        hook=hook,
        context=context,
        helper_object=helper,
        Base=Base,
        TrainerBase=TrainerBase,
    )
    return module
