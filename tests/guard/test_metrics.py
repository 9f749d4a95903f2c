"""The figures of a step for the logger the loop already has: doubles that record how they are called, and the
real trackers where they are installed."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from klguard.guard.metrics import emit, flat, sink

METRICS = {"klguard/kl_per_sequence": 0.5, "klguard/causes/top_k_50": 0.9}


# --- figures --------------------------------------------------------------------------------------


def test_a_record_becomes_flat_numbers():
    record = {
        "kind": "step",
        "step": 3,
        "time": 1795382383.893,
        "kl_per_sequence": 0.5,
        "tokens": 1024,
        "reward": math.nan,
        "loss": None,
        "words": "left out",
        "causes": {"top_k=50": 0.9, "shift+1": 0.1},
    }
    figures = flat(record)
    assert math.isnan(figures.pop("klguard/reward"))
    assert figures == {
        "klguard/kl_per_sequence": 0.5,
        "klguard/tokens": 1024.0,
        "klguard/causes/top_k_50": 0.9,
        "klguard/causes/shift_1": 0.1,
    }
    assert all(type(value) is float for value in figures.values())


def test_a_violation_counts_as_one():
    assert flat({"kind": "violation", "code": "KLG701", "step": 3}) == {"klguard/violations/KLG701": 1.0}


def test_names_are_those_tensorboard_takes_unchanged():
    (name,) = flat({"causes": {"eos suppressed<16 (π)": 1.0}})
    assert name == "klguard/causes/eos_suppressed_16__π_"


# --- doubles --------------------------------------------------------------------------------------


class Recorder:
    """Remembers the calls of one method, with the signature that the real one has."""

    def __init__(self) -> None:
        self.calls: list[Any] = []


class WandbLike(Recorder):
    def log(self, data: dict[str, Any], step: int | None = None, commit: bool | None = None) -> None:
        self.calls.append((dict(data), step))
        data["_timestamp"] = 0  # real ones do such things


class AcceleratorLike(Recorder):
    def log(self, values: dict, step: int | None = None, log_kwargs: dict | None = None) -> None:
        self.calls.append((values, step))


class WriterLike(Recorder):
    def add_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        self.calls.append((tag, scalar_value, global_step))


def test_a_run_of_wandb_its_module_and_an_accelerator_get_a_dict_and_the_step():
    run, accelerator = WandbLike(), AcceleratorLike()
    for logger in (run, SimpleNamespace(log=run.log), accelerator):
        emit(logger, METRICS, 7)
    assert run.calls == [(METRICS, 7)] * 2 and accelerator.calls == [(METRICS, 7)]
    assert "_timestamp" not in METRICS


def test_a_summary_writer_gets_one_scalar_at_a_time():
    writer = WriterLike()
    emit(writer, METRICS, 7)
    assert writer.calls == [(name, value, 7) for name, value in METRICS.items()]


def test_a_logger_of_the_standard_library_gets_a_line(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "training"):
        emit(logging.getLogger("training"), METRICS, 7)
    assert caplog.messages == ["klguard step 7: kl_per_sequence=0.5 causes/top_k_50=0.9"]


def test_a_function_gets_the_dict_and_the_step():
    calls: list[Any] = []
    emit(lambda metrics, step: calls.append((metrics, step)), METRICS, 7)
    assert calls == [(METRICS, 7)]


def test_a_dict_collects_steps_and_values():
    history: dict[str, Any] = {}
    emit(history, METRICS, 7)
    emit(history, {"klguard/kl_per_sequence": 0.6}, 8)
    assert history == {"klguard/kl_per_sequence": [(7, 0.5), (8, 0.6)], "klguard/causes/top_k_50": [(7, 0.9)]}


@pytest.mark.parametrize("logger", [None, 3, "wandb", object(), []])
def test_anything_else_is_refused_before_training(logger: object):
    with pytest.raises(TypeError, match="klguard cannot log to a .*; give a torch SummaryWriter, a W&B run"):
        sink(logger)


def test_a_class_in_place_of_its_object_is_refused():
    with pytest.raises(TypeError, match="the class WandbLike: give an object of it"):
        sink(WandbLike)


# --- the real ones --------------------------------------------------------------------------------


def test_the_real_accelerator_passes_it_on_to_its_trackers(tmp_path: Path):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    tracking = pytest.importorskip("accelerate.tracking")
    calls: list[Any] = []

    class Tracker(tracking.GeneralTracker):
        name, requires_logging_directory, tracker = "ours", False, None

        @tracking.on_main_process
        def __init__(self) -> None:
            super().__init__()

        def store_init_configuration(self, values: dict) -> None:
            pass

        @tracking.on_main_process
        def log(self, values: dict, step: int | None = None, **_: Any) -> None:
            calls.append((values, step))

    accelerator = accelerate.Accelerator(cpu=True, log_with=Tracker())
    accelerator.init_trackers("run")
    emit(accelerator, METRICS, 7)
    emit(accelerator.get_tracker("ours"), METRICS, 8)
    assert calls == [(METRICS, 7), (METRICS, 8)]


def test_the_real_summary_writer_writes_what_is_read_back(tmp_path: Path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    writer_of = pytest.importorskip("torch.utils.tensorboard").SummaryWriter
    accumulator_of = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator
    with writer_of(str(tmp_path)) as writer:
        emit(writer, METRICS, 7)
    events = accumulator_of(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == METRICS.keys()
    (event,) = events.Scalars("klguard/causes/top_k_50")
    assert event.step == 7 and event.value == pytest.approx(0.9)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_real_module_takes_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = pytest.importorskip(name, reason=f"{name} is not installed")
    import inspect

    # Logging for real needs a run and, for some, a network: the signature is what emit relies on.
    inspect.signature(module.log).bind(METRICS, step=7)
    calls: list[Any] = []
    monkeypatch.setattr(module, "log", lambda data, step=None: calls.append((data, step)))
    emit(module, METRICS, 7)
    assert calls == [(METRICS, 7)]
