"""A CUDA device for machines without one: tensors that say they are on it, and computations that know the rules.

    with Pretend() as device:
        device.move(model)
        ...
    assert device.waits == []

Everything runs on the CPU, with real numbers. A tensor is on the device when it was made there (`device="cuda"`, or by
code outside klguard without a device, as under `torch.set_default_device`), moved there, or computed from one that is.
As on the real device, tensors of two devices do not mix (RuntimeError), but for numbers of the CPU in a computation on
the device; and what makes the host wait is written down, with the lines of klguard that asked for it. What autograd
makes carries no mark until it is read from `.grad`, and mixes with both.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
FACTORIES = frozenset(
    "empty zeros ones full arange tensor as_tensor rand randn randint randperm eye linspace from_numpy scalar_tensor"
    " empty_strided asarray".split()
)
WAITS = frozenset(
    "item tolist __bool__ __float__ __int__ __index__ __len__ __contains__ __repr__ __format__ numpy nonzero argwhere"
    " masked_select unique unique_consecutive bincount equal allclose is_nonzero __array__".split()
) - {"__len__"}
MOVES = frozenset("to cpu cuda type_as copy_ set_ _has_compatible_shallow_copy_type".split())


@dataclass(frozen=True)
class Wait:
    """What made the host wait, and the functions of klguard on the way there, innermost first."""

    what: str
    places: tuple[str, ...]
    functions: tuple[str, ...]


def mark_of(tensor: Tensor) -> str | None:
    return tensor.__dict__.get("pretended")


def marked(tensor: Tensor, mark: str | None) -> None:
    if mark is not None:
        tensor.__dict__["pretended"] = mark


def guards_frames() -> list[tuple[str, str]]:
    """(place, function) of each frame of klguard's guard on the stack, innermost first."""
    found, frame = [], sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if "/klguard/guard/" in path:
            found.append((f"{path.rsplit('/klguard/guard/')[1]}:{frame.f_lineno}", frame.f_code.co_name))
        frame = frame.f_back
    return found


def called_by_guard() -> bool:
    """Is the code that calls torch klguard's own? (What it calls in turn, a model say, is not.)"""
    frame = sys._getframe(1)
    while frame is not None and (
        "/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__
    ):
        frame = frame.f_back
    return frame is not None and "/klguard/guard/" in frame.f_code.co_filename


class Pretend(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Wait] = []

    def move(self, module: nn.Module) -> None:
        for each in (*module.parameters(), *module.buffers()):
            marked(each, "cuda")

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        owner = getattr(getattr(func, "__self__", None), "__name__", "")
        if name == "__get__":
            return self._read(owner, func, args, kwargs)
        if name == "__set__":
            if owner in ("data", "grad") and args[1] is not None and mark_of(args[1]) is not None:
                marked(args[0], mark_of(args[1]))
            return func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if name in ("to", "cpu", "cuda"):
            return self._moved(func, name, args, kwargs)
        asked = self._asked(kwargs)
        kwargs.pop("pin_memory", None)
        if name == "pin_memory":
            return args[0]
        if name not in MOVES:
            self._together(name, tensors)
        on_device = any(mark_of(t) == "cuda" for t in tensors)
        if on_device and self._waits(name, args):
            self._note(name)
        result = func(*args, **kwargs)
        if name == "copy_":
            if {mark_of(t) for t in tensors} == {"cuda", "cpu"} and not kwargs.get("non_blocking"):
                self._note("copy_ between devices")
            return result
        if name in FACTORIES and asked is None and not (name in ("as_tensor", "asarray") and tensors):
            asked = "cpu" if called_by_guard() or name == "from_numpy" else "cuda"
        elif (
            name in ("tensor", "as_tensor", "asarray")
            and asked == "cuda"
            and not tensors
            and called_by_guard()
        ):
            self._note(f"{name}(..., device='cuda')")
        mark = asked or ("cuda" if on_device else self._all_marks(tensors))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and mark_of(leaf) is None:
                marked(leaf, mark)
        return result

    @staticmethod
    def _all_marks(tensors: list[Tensor]) -> str | None:
        """The CPU's where all that went in is there."""
        return "cpu" if tensors and all(mark_of(t) == "cpu" for t in tensors) else None

    def _read(self, attribute: str, func: Any, args: tuple, kwargs: dict) -> Any:
        tensor = args[0]
        if attribute == "device" and mark_of(tensor) == "cuda":
            return CUDA
        if attribute == "is_cuda":
            return mark_of(tensor) == "cuda"
        if attribute == "is_cpu":
            return mark_of(tensor) != "cuda"
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and mark_of(result) is None:
            marked(result, mark_of(tensor))
        return result

    @staticmethod
    def _asked(kwargs: dict) -> str | None:
        """The device asked for by keyword, which is taken out."""
        if kwargs.get("device") is None:
            return None
        wanted = torch.device(kwargs.pop("device")).type
        return "cuda" if wanted == "cuda" else "cpu"

    def _moved(self, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
        tensor, given = args[0], [*args[1:], *kwargs.values()]
        target = {"cpu": "cpu", "cuda": "cuda"}.get(name)
        rest = []
        for each in given:
            if isinstance(each, (torch.device, str)):
                target = "cuda" if torch.device(each).type == "cuda" else "cpu"
            elif isinstance(each, Tensor):
                target = mark_of(each)
                rest.append(each.dtype)
            elif isinstance(each, torch.dtype):
                rest.append(each)
        source = mark_of(tensor)
        crosses = target is not None and source is not None and target != source
        if crosses and not kwargs.get("non_blocking"):
            self._note(f"{name} from {source} to {target}")
        result = tensor.clone() if crosses or kwargs.get("copy") else tensor
        for dtype in rest:
            result = result.to(dtype)
        if mark_of(result) is None or crosses:
            marked(result, target or source)
        return result

    @staticmethod
    def _together(name: str, tensors: list[Tensor]) -> None:
        marks = {mark_of(t) for t in tensors if t.dim() > 0}
        if (
            any(mark_of(t) == "cuda" for t in tensors)
            and "cpu" in marks
            and name not in ("__getitem__", "__setitem__")
        ):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but {name} got cuda:0 and cpu"
            )

    @staticmethod
    def _waits(name: str, args: tuple) -> bool:
        if name in WAITS:
            return True
        if name == "where" and len(args) == 1:
            return True
        if name == "repeat_interleave":
            return any(isinstance(a, Tensor) for a in args[1:])
        if name in ("__getitem__", "__setitem__"):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(
                isinstance(i, list) or (isinstance(i, Tensor) and mark_of(i) == "cpu" and i.dim())
                for i in index
            ):
                return True
            masks = any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in index)
            return masks and (name == "__getitem__" or (isinstance(args[2], Tensor) and args[2].dim() > 0))
        return False

    def _note(self, what: str) -> None:
        if called_by_guard():
            frames = guards_frames()
            self.waits.append(
                Wait(what, tuple(place for place, _ in frames), tuple(name for _, name in frames))
            )


class Generator:
    """`torch.Generator`, also for the device."""

    def __new__(cls, device: Any = "cpu") -> torch.Generator:
        return REAL_GENERATOR("cpu")


REAL_GENERATOR = torch.Generator


class Event:
    """A CUDA event that has always happened."""

    def record(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...


def pretended(monkeypatch: Any) -> Iterator[Pretend]:
    """The device, with what of torch.cuda is asked for beside it; for a fixture."""
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(torch.cuda, "Event", lambda *a, **k: Event())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *a: None)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda *a: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *a: None)
    with Pretend() as device:
        yield device
