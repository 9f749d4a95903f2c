"""Pure sampling: complete, accepted by the libraries, and nothing for the rules to find."""

from __future__ import annotations

import subprocess
import sys

import pytest
from packaging.version import Version

import klguard
from klguard.engines import ENGINES, NEWEST
from klguard.engines.tables import shaping
from klguard.engines.versions import within
from klguard.judge import judge
from klguard.pure import pure_sampling
from klguard.rules import RULES
from klguard.settings import Context, Known, Layer, LayerKind, Place, Settings, Site, SiteKind

PLACE = Place("loop.py", None, 3, 1, 3, 9)
LENGTHS = {
    "transformers": {"max_new_tokens": 64, "pad_token_id": 0},
    "vllm": {"max_tokens": 64},
    "sglang": {"max_new_tokens": 64},
}
RELEASES = [
    *[("transformers", v) for v in ("4.40.0", "4.46.3", "4.49.0", "4.50.0", "4.57.6", "5.0.0", "5.23.0")],
    *[("vllm", v) for v in ("0.6.6", "0.8.5", "0.9.0", "0.33.0")],
    *[("sglang", v) for v in ("0.4.6", "0.5.23")],
]
ARGUMENTS = {"logits_processor", "logits_warper", "prefix_allowed_tokens_fn", "custom_generate"}
BENT = {
    "transformers": {
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 20,
        "repetition_penalty": 1.05,
        "min_length": 56,
        "forced_eos_token_id": 2,
    },
    "vllm": {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.05},
    "sglang": {},
}


def site(engine: str, version: str, written: dict) -> Site:
    """A rollout with these keyword arguments, over a checkpoint that bends what it can."""
    checkpoint = {name: Known(value) for name, value in BENT[engine].items()}
    layers = (
        Layer(LayerKind.KWARGS, {name: Known(value) for name, value in written.items()}),
        Layer(LayerKind.CHECKPOINT, checkpoint, version=version if engine == "transformers" else "4.40.0"),
    )
    versions = {**NEWEST, engine: version}
    resolved = ENGINES[engine].resolve(layers, versions, kind=SiteKind.GENERATE)
    facts = {name: Known(value) for name, value in resolved.facts.items()}
    settings = Settings(
        engine, SiteKind.GENERATE, resolved.values, layers, facts, {}, versions, Context.ROLLOUT
    )
    return Site(PLACE, "generate", settings)


@pytest.mark.parametrize(("engine", "version"), RELEASES)
def test_the_rules_find_nothing_over_the_worst_checkpoint(engine, version):
    written = pure_sampling(engine, version, **LENGTHS[engine])
    assert list(judge([site(engine, version, written)], RULES.values())) == []


@pytest.mark.parametrize(("engine", "version"), [row for row in RELEASES if row[0] == "transformers"])
def test_every_entry_counts(engine, version):
    """Where the checkpoint bends a setting, leaving its entry out is found."""
    whole = pure_sampling(engine, version, **LENGTHS[engine])
    for name in BENT[engine].keys() - {"do_sample"}:
        written = {key: value for key, value in whole.items() if key != name}
        found = list(judge([site(engine, version, written)], RULES.values()))
        assert any(name in finding.setting for finding in found), name


@pytest.mark.parametrize(("engine", "version"), RELEASES)
def test_it_is_complete(engine, version):
    written, owner = pure_sampling(engine, version), ENGINES[engine]
    versions = {engine: version}
    left_out = [
        name
        for name, setting in owner.settings.items()
        if name not in written and within(Version(version), setting.versions) and not setting.argument
    ]
    assert all(owner.is_off(name, owner.default(name, versions).value, versions) for name in left_out)
    assert shaping(owner.settings) & owner.neutral(versions).keys() - ARGUMENTS <= written.keys()
    assert all(owner.is_off(name, value, versions) for name, value in written.items())
    assert not any(owner.error(name, value, versions) for name, value in written.items())


def test_releases_have_their_own_settings():
    assert "top_h" in pure_sampling(version="5.23.0") and "top_h" not in pure_sampling(version="4.57.6")
    assert "forced_decoder_ids" in pure_sampling(version="4.46.3")
    assert "forced_decoder_ids" not in pure_sampling(version="5.0.0")
    assert pure_sampling("vllm")["top_k"] == pure_sampling("sglang")["top_k"] == -1
    assert pure_sampling(version="5.23.0")["top_k"] == 0


def test_the_installed_release_is_meant_when_none_is_given(monkeypatch):
    from klguard import pure

    monkeypatch.setattr(pure.metadata, "version", lambda name: "4.46.3")
    assert pure_sampling() == pure_sampling(version="4.46.3") != pure_sampling(version="5.23.0")

    def missing(name: str) -> str:
        raise pure.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(pure.metadata, "version", missing)
    assert pure_sampling() == pure_sampling(version=NEWEST["transformers"])


def test_lengths_pass_through_under_the_engines_names():
    given = {"max_new_tokens": 9, "eos_token_id": [1, 2], "pad_token_id": 0, "num_return_sequences": 4}
    assert pure_sampling(version="5.23.0", **given).items() >= given.items()
    assert pure_sampling("vllm", max_tokens=9, n=4, stop=["\n"])["stop"] == ["\n"]
    first, second = pure_sampling(), pure_sampling()
    first["top_k"] = 50
    assert second["top_k"] == 0, "each call gives a dict of its own"


@pytest.mark.parametrize(
    ("engine", "lengths", "words"),
    [
        ("transformers", {"top_k": 50}, "`top_k` bends the distribution"),
        ("transformers", {"top_k": 0}, "stays at `top_k=0`"),
        ("transformers", {"min_new_tokens": 4}, "bends"),
        ("transformers", {"logits_processor": []}, "bends"),
        ("transformers", {"max_tokens": 4}, "`max_tokens` is not a setting of transformers"),
        ("transformers", {"max_new_token": 4}, "did you mean `max_new_tokens`"),
        ("transformers", {"max_new_tokens": 0}, "above 0"),
        ("vllm", {"max_new_tokens": 4}, "not a setting of vllm"),
        ("vllm", {"structured_outputs": {}}, "it is off"),
        ("sglang", {"min_new_tokens": 1}, "bends"),
        ("trl", {}, "'trl' draws no tokens"),
        ("vLLM", {}, "write one of 'transformers', 'vllm', 'sglang'"),
    ],
)
def test_what_is_refused(engine, lengths, words):
    with pytest.raises(ValueError) as error:
        pure_sampling(engine, **lengths)
    assert words in str(error.value)


@pytest.mark.parametrize("version", ["latest", "", 5])
def test_a_version_that_is_none(version):
    with pytest.raises(ValueError, match="is not a version; write one such as"):
        pure_sampling("transformers", version)


def test_it_needs_no_torch():
    code = "import sys, klguard; klguard.pure_sampling('vllm'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert klguard.pure_sampling is pure_sampling


# -- the library itself: what it builds and how it decodes, over a checkpoint that bends what it can --------------


@pytest.fixture(scope="module")
def model():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=200, n_positions=64, n_embd=8, n_layer=1, n_head=1, bos_token_id=3, eos_token_id=3
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    model.generation_config = transformers.GenerationConfig(
        **BENT["transformers"], no_repeat_ngram_size=2, suppress_tokens=[5], num_beams=4, eos_token_id=3
    )
    return model


def generate(model, **kwargs):
    """The mode of decoding, the processors built, and the tokens."""
    import torch

    built, modes = [], []

    def watched(build):
        def watch(*args, **given):
            config = given.get("generation_config", args[0] if args else None)
            modes.append(config.get_generation_mode().value)
            processors = build(*args, **given)
            built.extend(processors)
            return processors

        return watch

    # before 4.46 the warpers are a list of their own
    builders = [n for n in ("_get_logits_processor", "_get_logits_warper") if hasattr(model, n)]
    try:
        for name in builders:
            setattr(model, name, watched(getattr(model, name)))
        ids = torch.full((64, 2), 7)
        tokens = model.generate(ids, attention_mask=torch.ones_like(ids), **kwargs)
    finally:
        for name in builders:
            delattr(model, name)
    return modes[0], [type(processor).__name__ for processor in built], tokens[:, 2:]


def test_it_samples_and_builds_no_processor(model):
    mode, built, tokens = generate(model, **pure_sampling(max_new_tokens=8, pad_token_id=0))
    assert (mode, built) == ("sample", [])
    assert tokens.unique().numel() > 64, "nearly uniform over 200 tokens"


@pytest.mark.filterwarnings("ignore:Unfeasible length")
def test_the_checkpoint_would_have_bent_it(model):
    mode, built, _ = generate(model, max_new_tokens=8, pad_token_id=0)
    assert mode != "sample" and len(built) > 4


@pytest.mark.parametrize(
    "name", ["top_k", "temperature", "repetition_penalty", "min_length", "suppress_tokens"]
)
@pytest.mark.filterwarnings("ignore:Unfeasible length")
def test_no_entry_is_idle(model, name):
    written = pure_sampling(max_new_tokens=8, pad_token_id=0)
    del written[name]
    assert generate(model, **written)[1]
