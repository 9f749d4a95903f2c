"""The judge: the truth passes, planted errors are caught, and unknown is never wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from klguard.settings import (
    Absent,
    Known,
    Layer,
    LayerKind,
    OneOf,
    Opaque,
    Place,
    Reason,
    Settings,
    Site,
    SiteKind,
    Unknown,
    join,
)

from .compare import compare, judge
from .programs import Source, seeded
from .recorder import Observation
from .runner import RUNS, observe

UNKNOWN = Unknown(Reason.RUNTIME, "x")
ROOT = Path("/nowhere")


def site(values, rest=None, line=3, end_line=5, path="main.py", cell=None):
    layer = Layer(LayerKind.KWARGS, values, rest)
    settings = Settings("transformers", SiteKind.GENERATE, layers=(layer,))
    return Site(Place(path, cell, line, 1, end_line, 2), "model.generate", settings)


def seen(line=4, file="main.py", **kwargs):
    return Observation(file, line, kwargs)


def wrong(values, *observations, rest=None):
    return [each.setting for each in compare([site(values, rest)], observations, ROOT).wrong]


@pytest.mark.parametrize(
    "claim, passed, refuted",
    [
        (Known(5), {"top_k": 5}, {"top_k": 6}),
        (Known(5), {"top_k": 5}, {}),
        (Known(1), {"top_k": 1}, {"top_k": True}),
        (Known(1), {"top_k": 1}, {"top_k": 1.0}),
        (Known([1, 2]), {"top_k": [1, 2]}, {"top_k": (1, 2)}),
        (Known({"a": 1}), {"top_k": {"a": 1}}, {"top_k": {"a": True}}),
        (Known(None), {"top_k": None}, {}),
        (Absent(), {}, {"top_k": 5}),
        (OneOf((Known(1), Known(2))), {"top_k": 2}, {"top_k": 3}),
        (OneOf((Known(1), Absent())), {}, {"top_k": 3}),
        (Known(Opaque("f()")), {"top_k": object()}, {"top_k": None}),
    ],
)
def test_a_claim_holds_for_what_it_names_and_for_nothing_else(claim, passed, refuted):
    assert wrong({"top_k": claim}, seen(**passed)) == []
    assert wrong({"top_k": claim}, seen(**refuted)) == ["top_k"]


def test_one_refuting_call_among_many_is_enough():
    assert wrong({"top_k": Known(5)}, seen(top_k=5), seen(top_k=5), seen(top_k=6)) == ["top_k"]


def test_a_setting_that_is_not_listed_must_not_be_passed():
    assert wrong({}, seen(top_k=5)) == ["top_k"]
    assert wrong({}, seen(top_k=5), rest=UNKNOWN) == []


def test_unknown_is_never_wrong_and_is_counted():
    verdict = compare([site({"top_k": UNKNOWN, "top_p": Known(1.0)})], [seen(top_k=5, top_p=1.0)], ROOT)
    assert (verdict.wrong, verdict.settings, verdict.unknown) == ([], 2, 1)


def test_claims_wider_than_the_runs_are_counted():
    assert compare([site({"top_k": OneOf((Known(1), Known(2)))})], [seen(top_k=1)], ROOT).wide == 1


def test_a_call_without_a_site_is_missed_not_wrong():
    verdict = compare([site({"top_k": Known(1)})], [seen(line=9, top_k=5)], ROOT)
    assert (verdict.missed, verdict.sites, verdict.wrong) == (1, 1, [])


def test_notebook_cells_have_their_own_lines():
    in_cell = site({"top_k": Known(1)}, path="main.ipynb", cell=2)
    assert compare([in_cell], [seen(file="main.ipynb#cell2", top_k=1)], ROOT).sites == 1
    assert compare([in_cell], [seen(file="main.ipynb#cell1", top_k=1)], ROOT).missed == 1


def told(root, source):
    """The sites of a reader that was told what happens."""
    calls: dict[tuple[str, int], list[dict]] = {}
    for run in RUNS:
        for each in observe(root, source.main, run):
            calls.setdefault((each.file, each.line), []).append(each.kwargs)
    for (file, line), shown in calls.items():
        path, _, cell = file.partition("#cell")
        names = {name for kwargs in shown for name in kwargs}
        values = {}
        for name in names:
            found = [Known(kwargs[name]) if name in kwargs else Absent() for kwargs in shown]
            values[name] = join(found)
        yield site(values, line=line, end_line=line, path=path, cell=int(cell) if cell else None)


@pytest.mark.parametrize("seed", range(20))
def test_on_generated_programs_the_truth_passes_and_a_planted_error_does_not(seed):
    source = seeded(seed)
    truth = judge(source, lambda root, paths: told(root, source))
    assert truth.wrong == [] and truth.missed == 0

    def lying(root, paths):
        for each in told(root, source):
            layer = each.settings.layers[0]
            yield site(
                {**layer.values, "top_k": Known("planted")},
                line=each.place.line,
                end_line=each.place.end_line,
                path=each.place.path,
                cell=each.place.cell,
            )

    lies = judge(source, lying)
    assert len(lies.wrong) == lies.sites == truth.sites


def test_a_reader_that_knows_nothing_is_never_wrong():
    source = seeded(3)

    def humble(root, paths):
        return [
            site(
                {},
                rest=UNKNOWN,
                line=each.place.line,
                end_line=each.place.end_line,
                path=each.place.path,
                cell=each.place.cell,
            )
            for each in told(root, source)
        ]

    verdict = judge(source, humble)
    assert verdict.wrong == [] and verdict.unknown == verdict.settings > 0


def test_a_program_reads_as_its_files():
    source = Source({"main.py": "x = 1\n", "project/a.py": "y = 2\n"}, "main.py", (), False)
    assert str(source).count("# ----") == 2
