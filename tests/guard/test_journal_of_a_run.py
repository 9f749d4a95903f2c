"""A guarded loop, its journal, and the report of it: what the guard measures is what the report shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from klguard.cli import cli
from klguard.guard.journal import read

torch = pytest.importorskip("torch")

ROWS, TIME, VOCABULARY = 8, 12, 50


def loop(journal: Path, *, steps: int, top_k_from: int, logger: object = None) -> None:
    """Random policies that are scored as they are, and sampled with top-5 from step `top_k_from` on."""
    import klguard

    torch.set_num_threads(1)
    draws = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=draws)

    with klguard.Guard(on_violation="record", journal=journal, kl_coef=0.1, logger=logger) as guard:
        for step in range(steps):
            logits = 2 * normal(ROWS, TIME, VOCABULARY)
            kept = logits.topk(5 if step >= top_k_from else VOCABULARY).values[..., -1:]
            weights = torch.where(logits >= kept, logits, -torch.inf).softmax(-1).flatten(0, 1)
            tokens = torch.multinomial(weights, 1, generator=draws).view(ROWS, TIME)
            reference = logits + 0.1 * normal(ROWS, TIME, VOCABULARY)
            guard.logprobs(
                logits, tokens, torch.ones(ROWS, TIME, dtype=torch.bool), reference_logits=reference
            )
            guard.step(rewards=normal(ROWS), loss=torch.tensor(0.25))


def test_the_report_of_a_healthy_run_is_clean(tmp_path: Path):
    path, history = tmp_path / "run.jsonl", {}
    loop(path, steps=12, top_k_from=99, logger=history)
    run = read(path)
    assert [record["step"] for record in run.steps] == list(range(12)) and not run.violations
    for record in run.steps:
        assert record["loss"] == 0.25 and record["ranks"] == 1 and record["exact_kl_per_token"] > 0
    assert run.steps[-1]["tokens"] == 12 * ROWS * TIME
    assert run.settings["alpha"] == 1e-6 and run.settings["kl_range"] == [0.0, 10.0]
    assert [value for _, value in history["klguard/kl_per_sequence"]] == pytest.approx(
        [record["kl_per_sequence"] for record in run.steps], rel=1e-6
    )
    result = CliRunner().invoke(cli, ["report", str(path)])
    assert result.exit_code == 0 and "Nothing found: 12 steps." in result.output


def test_the_report_names_the_cause_that_was_planted(tmp_path: Path):
    path = tmp_path / "run.jsonl"
    loop(path, steps=20, top_k_from=10)
    (violation,) = read(path).violations
    assert (violation["code"], violation["cause"]) == ("KLG701", "top_k=5") and 10 <= violation["step"] < 14
    assert Path(violation["place"]["path"]).name == Path(__file__).name
    assert "guard.step(" in violation["place"]["source"]
    result = CliRunner().invoke(cli, ["report", str(path)])
    assert result.exit_code == 1
    assert (
        "cause: top_k=5 (posterior weight 1)" in result.output and "Found 1 error: 20 steps." in result.output
    )
