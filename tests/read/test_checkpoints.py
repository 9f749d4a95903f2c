"""The generation_config.json of a folder beside the code is in force as that of a published checkpoint is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from klguard.check import check_paths
from klguard.read.checkpoints import checkpoint_layer
from klguard.settings import HopKind, Known

SAVED = {
    "_from_model_config": True,
    "do_sample": True,
    "eos_token_id": [1, 2],
    "temperature": 0.6,
    "top_k": None,
    "transformers_version": "4.51.0",
}
LOOP = """\
from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer

model = AutoModelForCausalLMWithValueHead.from_pretrained("out/sft")
trainer = PPOTrainer(PPOConfig(), model, None, tokenizer)
for batch in trainer.dataloader:
    responses = trainer.generate(batch["q"], do_sample=True, top_k=0, top_p=1.0, %smax_new_tokens=32)
    trainer.step(batch["q"], responses, rewards)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out/sft").mkdir(parents=True)
    (tmp_path / "out/sft/generation_config.json").write_text(json.dumps(SAVED, indent=2))
    return tmp_path


def test_what_a_folder_brings_along(folder: Path):
    layer = checkpoint_layer("out/sft", [folder])
    assert layer is not None and layer.version == "4.51.0"
    assert {name: value.value for name, value in layer.values.items() if isinstance(value, Known)} == {
        "do_sample": True,
        "eos_token_id": [1, 2],
        "temperature": 0.6,
    }
    (hop,) = layer.values["temperature"].hops
    assert hop.kind is HopKind.CHECKPOINT and hop.place is not None and hop.place.line == 8


def test_a_folder_comes_before_a_published_checkpoint_of_its_name(folder: Path):
    name = "Qwen/Qwen2.5-7B-Instruct"
    published = checkpoint_layer(name, [folder])
    assert published is not None and "repetition_penalty" in published.values
    (folder / name).mkdir(parents=True)
    assert checkpoint_layer(name, [folder]) is None, "its own file is what counts, and there is none"
    (folder / name / "generation_config.json").write_text('{"temperature": 0.9}')
    own = checkpoint_layer(name, [folder])
    assert own is not None and own.values.keys() == {"temperature"}


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": 1' + "," * 9, "\x00\x80"])
def test_a_file_that_cannot_be_read_sets_nothing(folder: Path, content: str):
    (folder / "out/sft/generation_config.json").write_text(content)
    assert checkpoint_layer("out/sft", [folder]) is None


@pytest.mark.parametrize("name", ["", "a\0b", "~nobody-of-this-name/x", "x" * 5000, "no/such/folder"])
def test_a_name_that_is_no_folder_brings_nothing(folder: Path, name: str):
    (folder / "generation_config.json").unlink(missing_ok=True)
    assert checkpoint_layer(name, [folder]) is None


def test_a_rollout_that_leaves_the_saved_settings_alone_is_told_so(folder: Path):
    (folder / "train.py").write_text(LOOP % "")
    (finding,) = [f for f in check_paths(["train.py"]).findings if f.code == "KLG501"]
    assert "`temperature=0.6`" in finding.message and finding.place.path == "out/sft/generation_config.json"
    (folder / "train.py").write_text(LOOP % "temperature=1.0, ")
    assert not check_paths(["train.py"]).findings


def test_a_program_in_a_folder_of_its_own_may_be_run_from_there(folder: Path):
    (folder / "ppo").mkdir()
    (folder / "pyproject.toml").write_text("")
    (folder / "out").rename(folder / "ppo/out")
    (folder / "ppo/train.py").write_text(LOOP % "")
    assert "KLG501" in {finding.code for finding in check_paths(["ppo/train.py"]).findings}
