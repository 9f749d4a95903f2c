"""The generator itself: its programs run, differ, and use every style."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings

from .programs import STYLES, programs, seeded
from .runner import RUNS, observe, written

SEEDS = range(300)
LEAST = 1


@pytest.fixture(scope="module")
def sources():
    return [seeded(seed) for seed in SEEDS]


def test_every_program_runs_and_calls_generate(sources):
    silent = []
    for seed, source in zip(SEEDS, sources, strict=True):
        with written(source) as root:
            observations = [each for run in RUNS for each in observe(root, source.main, run)]
        if not observations:
            silent.append(seed)
    assert len(silent) < len(SEEDS) / 10


@settings(
    max_examples=30, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
@given(programs())
def test_programs_drawn_by_hypothesis_run(source):
    with written(source) as root:
        observe(root, source.main, 2)


def test_every_style_is_exercised(sources):
    used = Counter(style for source in sources for style in set(source.styles))
    assert {style.name: used[style.name] for style in STYLES if used[style.name] < LEAST} == {}


def test_a_seed_gives_the_same_program_again(sources):
    assert seeded(7) == sources[7]


def test_a_run_is_repeatable_and_leaves_no_modules_behind(sources):
    import sys

    before = set(sys.modules)
    source = next(each for each in sources if len(each.files) > 2)
    with written(source) as root:
        assert observe(root, source.main, 3) == observe(root, source.main, 3)
    assert not {
        name for name in set(sys.modules) - before if name == "recorder" or name.startswith("project")
    }


def test_programs_come_in_several_files_and_as_notebooks(sources):
    assert sum(len(source.files) > 1 for source in sources) > 100
    assert sum(any("/" in path for path in source.files) for source in sources) > 50
    assert sum(source.main.endswith(".ipynb") for source in sources) > 30
