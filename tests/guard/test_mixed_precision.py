"""The precision that accelerate gives a prepared model, which nothing outside of the model shows."""

from __future__ import annotations

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from accelerate import Accelerator  # noqa: E402
from accelerate.state import AcceleratorState  # noqa: E402

from klguard import Guard  # noqa: E402
from klguard.guard.frameworks.accelerate import mixed_precision  # noqa: E402
from klguard.guard.listening import HALF_PRECISION, SINGLE_PRECISION  # noqa: E402


@pytest.fixture
def accelerator(request):
    AcceleratorState._reset_state(True)
    yield Accelerator(cpu=True, mixed_precision=request.param)
    AcceleratorState._reset_state(True)


@pytest.mark.parametrize(
    ("accelerator", "dtype", "eps"),
    [("bf16", torch.bfloat16, HALF_PRECISION), ("no", torch.float32, SINGLE_PRECISION)],
    indirect=["accelerator"],
)
def test_the_tolerance_is_that_of_the_prepared_model(accelerator, dtype, eps):
    policy = accelerator.prepare(torch.nn.Linear(3, 5))
    logits = policy(torch.ones(2, 4, 3))
    assert logits.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    guard = Guard(policy)
    assert guard._precision(logits) == dtype
    assert guard._eps(guard._precision(logits), False) == eps


def test_nothing_is_known_without_an_accelerator():
    AcceleratorState._reset_state(True)
    assert mixed_precision() is None


def test_accelerate_is_not_imported_for_it():
    program = (
        "import sys, torch\n"
        "from klguard.guard.frameworks.accelerate import mixed_precision\n"
        "sys.exit(mixed_precision() is not None or 'accelerate' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(("word", "dtype"), [("fp16", torch.float16), ("fp8", torch.bfloat16), ("odd", None)])
def test_the_words_of_accelerate(word, dtype, monkeypatch):
    monkeypatch.setattr(AcceleratorState, "_shared_state", {"_mixed_precision": word})
    assert mixed_precision() == dtype
    monkeypatch.setattr(AcceleratorState, "_shared_state", None)
    assert mixed_precision() is None
