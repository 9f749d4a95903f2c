"""On a CUDA device: the guard changes nothing, waits once a step at most, and costs next to nothing.

`python benchmarks/gpu.py` measures the same on larger models, and prints a table.
"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

gpu = pytest.importorskip("benchmarks.gpu", reason="benchmarks are not in the source package")

NO_DEVICE = "no CUDA device: `python benchmarks/gpu.py` on a machine that has one"
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_DEVICE)
SIZE = "0.1b"


@cuda
def test_weights_are_the_same_to_the_bit_under_deterministic_algorithms():
    for variant, found in gpu.identical(SIZE).items():
        assert found["identical"], variant
        assert found["failure"] is None, variant
        assert found["codes"] == [], variant
        assert found["tokens"] > 1000 and found["exercised"] > 15, variant


@cuda
def test_the_host_waits_for_the_device_once_more_in_a_step_at_most():
    plain = gpu.waits(SIZE, "without")
    for variant in gpu.VARIANTS[1:]:
        assert gpu.waits(SIZE, variant) <= plain + 1, variant


@cuda
def test_a_bent_sampler_is_found_one_step_late_at_most():
    loop = gpu.loop_of("tiny", sampling={"top_k": 20}, steps=3)
    guard = loop.guarded(on_violation="record", ignore=["KLG1", "KLG863"])
    steps = []
    loop.run(guard, after_step=lambda loop: steps.append({finding.code for finding in guard.findings}))
    assert "KLG701" in steps[1], "figures are read a step after they were sent"


@cuda
def test_peak_memory_hardly_grows():
    plain = gpu.peak_memory(SIZE, "without")
    for variant in gpu.VARIANTS[1:]:
        assert gpu.peak_memory(SIZE, variant) <= gpu.MEMORY_GOAL * plain, variant


@cuda
@pytest.mark.slow
def test_a_step_takes_hardly_longer():
    made = gpu.ratios(gpu.step_times("0.5b", 8, later=True))
    for variant in gpu.VARIANTS[1:]:
        assert made[variant]["ratio"] <= gpu.TIME_GOAL, variant


@pytest.mark.skipif(torch.cuda.is_available(), reason="the rehearsal is for machines without a CUDA device")
def test_a_rehearsal_on_the_cpu():
    found = gpu.identical("tiny", steps=2)
    assert found.keys() == {"decorator", "by hand"}
    for said in found.values():
        assert said["identical"] and said["failure"] is None and said["codes"] == [] and said["tokens"] > 100
    seconds = {
        variant: [1.0 + extra, 2.0 + extra]
        for variant, extra in zip(gpu.VARIANTS, (0, 0.005, 0.3), strict=True)
    }
    times = gpu.ratios(seconds)
    assert times["without"]["ratio"] == 1.0 and times["decorator"]["ratio"] == pytest.approx(1.00375)
    result = {"size": "tiny", "parameters": 10**9, "identical": found, "step_time_young": times}
    lines, fine = gpu.table(result | {"step_time_later": times})
    assert not fine and sum("missed" in line for line in lines) == 2
    fast = gpu.ratios({variant: [1.0, 2.0] for variant in gpu.VARIANTS})
    bytes_ = dict.fromkeys(gpu.VARIANTS, 100)
    more = {"step_time_young": fast, "step_time_later": fast, "peak_bytes": bytes_}
    assert gpu.table(result | more)[1]
    assert not gpu.table(result | more | {"peak_bytes": bytes_ | {"by hand": 103}})[1]
    assert not gpu.table(
        result | more | {"waits_per_step": {"without": 40.0, "decorator": 41.0, "by hand": 42.0}}
    )[1]


def test_every_size_can_be_made():
    for name, shape in gpu.SHAPES.items():
        with torch.device("meta"):
            model = gpu.AutoModelForCausalLM.from_config(shape())
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        expected = {"tiny": (0, 1), "0.1b": (100, 200), "0.5b": (400, 600), "1b": (1000, 1400)}[name]
        assert expected[0] <= millions <= expected[1], (name, millions)
