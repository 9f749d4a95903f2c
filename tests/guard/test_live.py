"""Live objects read as Settings: the same codes as from source, with the caller's line as origin."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch import nn  # noqa: E402

from klguard.check import check_source  # noqa: E402
from klguard.guard.caller import caller, spot  # noqa: E402
from klguard.guard.frameworks.capture import Capture, Prepared  # noqa: E402
from klguard.guard.live import Call, dropout, findings, in_force, read_generate, read_object  # noqa: E402
from klguard.guard.plain import as_ids, plain  # noqa: E402
from klguard.settings import Context, Default, HopKind, Known, Opaque, Place, Site, SiteKind  # noqa: E402

torch.set_num_threads(1)
FIVE = int(transformers.__version__.split(".")[0]) >= 5
PLACE = Place("loop.py", None, 12, 5, 12, 40)
PROMPTS = torch.full((4, 3), 7)
PURE = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "repetition_penalty": 1.0}


def model(**checkpoint: Any) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=60,
        n_positions=64,
        n_embd=8,
        n_layer=1,
        n_head=1,
        bos_token_id=2,
        eos_token_id=2,
        attn_pdrop=0.2,
    )
    policy = transformers.GPT2LMHeadModel(config).eval()
    if checkpoint:
        policy.generation_config = transformers.GenerationConfig(**checkpoint, eos_token_id=2)
    return policy


def read(policy: nn.Module, *args: Any, prompts: Any = PROMPTS, **kwargs: Any) -> Site:
    """The site of one call of generate(), as the watcher reads it."""
    given = {"attention_mask": torch.ones_like(prompts), "pad_token_id": 0, "max_new_tokens": 3, **kwargs}
    prepared = Prepared()
    capture = Capture(policy, prepared)
    capture.begin()
    policy.generate(prompts, *args, **given)
    capture.end()
    call = Call.of(policy, (prompts, *args), given)
    return read_generate(
        policy, prepared.config, prepared.processors, prepared.criteria, place=PLACE, call=call
    )


def codes(site: Site) -> set[str]:
    return {finding.code for finding in findings(site)}


# -- the same codes as from source -----------------------------------------------------------------------------

SOURCE = """\
import torch
from rewards import prompts, score
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

tokenizer = AutoTokenizer.from_pretrained("gpt2", padding_side="left")
policy = AutoModelForCausalLM.from_pretrained("gpt2")
reference = AutoModelForCausalLM.from_pretrained("gpt2").eval().requires_grad_(False)
optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6)
for prompt in prompts:
    inputs = tokenizer(prompt, return_tensors="pt")
    tokens = policy.generate(**inputs, {settings}max_new_tokens=3, pad_token_id=0)
    logprobs = policy(tokens).logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])
    ref_logprobs = reference(tokens).logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])
    kl = logprobs - ref_logprobs
    loss = -(logprobs * (score(tokens) - 0.1 * kl.detach())).mean()
    loss.backward()
    optimizer.step()
"""

CALLS = [
    PURE,
    {"do_sample": True},
    {},
    {"do_sample": False},
    {**PURE, "top_k": 50},
    {**PURE, "top_k": None},
    {**PURE, "top_p": 0.9},
    {**PURE, "temperature": 0.7},
    {**PURE, "min_p": 0.05},
    {**PURE, "typical_p": 0.9},
    {**PURE, "epsilon_cutoff": 3e-4},
    {**PURE, "repetition_penalty": 1.2},
    {**PURE, "no_repeat_ngram_size": 3},
    {**PURE, "suppress_tokens": [5]},
    {**PURE, "bad_words_ids": [[7]]},
    {**PURE, "min_new_tokens": 2},
    {**PURE, "min_length": 6},
    {**PURE, "forced_eos_token_id": 2},
    {**PURE, "exponential_decay_length_penalty": (1, 1.1)},
    {**PURE, "num_beams": 2},
    {**PURE, "renormalize_logits": True, "num_return_sequences": 2},
    {"do_sample": True, "top_p": 0.9, "temperature": 0.7, "min_new_tokens": 2},
    {"do_sample": False, "repetition_penalty": 1.3},
]


@pytest.mark.parametrize(
    "written", CALLS, ids=lambda w: ",".join(f"{k}={v}" for k, v in w.items() if PURE.get(k) != v)
)
def test_the_codes_are_those_of_the_static_reader(written):
    if not all(hasattr(transformers.GenerationConfig(), name) for name in written):
        pytest.skip("this release has no such setting")
    settings = "".join(f"{name}={value!r}, " for name, value in written.items())
    versions = {"transformers": transformers.__version__}
    from_source = {f.code for f in check_source(SOURCE.replace("{settings}", settings), versions=versions)}
    site = read(model(), **written)
    assert codes(site) == from_source
    if written == PURE:
        assert not from_source


@pytest.mark.parametrize("written", [*CALLS[:5], *CALLS[6:8]])
def test_an_object_gives_the_codes_of_keyword_arguments(written):
    config = transformers.GenerationConfig(**written, max_new_tokens=3, pad_token_id=0, eos_token_id=2)
    through_object = read(model(), config, max_new_tokens=3)
    expected = codes(read(model(), **written))
    if not FIVE and written.get("top_k") == 50:
        expected = {"KLG102"}  # a field equal to the library's default looks like one left alone
    assert codes(through_object) == expected


# -- whose value it is ---------------------------------------------------------------------------------------------


def test_the_origin_of_each_value():
    policy = model(repetition_penalty=1.05, temperature=0.6)
    site = read(policy, do_sample=True, temperature=1.0, top_p=0.9)
    values = site.settings.values
    assert [hop.kind for hop in values["top_p"].hops] == [HopKind.KWARG, HopKind.LIVE]
    assert [hop.kind for hop in values["repetition_penalty"].hops] == [HopKind.CHECKPOINT, HopKind.LIVE]
    assert isinstance(values["top_k"], Default) and values["top_k"].value == 50
    assert values["temperature"].value == 1.0
    assert values["top_p"].hops[-1].text == "in force in generate() at loop.py:12"
    found = {finding.code: finding for finding in findings(site)}
    assert found.keys() == {"KLG102", "KLG103", "KLG501"}
    assert "`repetition_penalty=1.05`" in found["KLG501"].message
    assert {finding.place for finding in found.values()} == {PLACE}
    assert {finding.site.context for finding in found.values()} == {Context.ROLLOUT}
    assert "scored by the policy" in found["KLG103"].site.why


def test_fields_of_an_object():
    policy = model()
    config = transformers.GenerationConfig(do_sample=True, top_k=0, temperature=0.5)
    value = read(policy, config).settings.values["temperature"]
    assert value.value == 0.5 and value.hops[0].kind is HopKind.ATTRIBUTE
    assert "generation_config passed to generate()" in value.hops[0].text


def test_the_checkpoint_is_named(monkeypatch):
    policy = model(top_p=0.8, do_sample=True, top_k=0)
    policy.config._name_or_path = "acme/tiny"
    site = read(policy)
    assert site.settings.facts["checkpoint"] == Known("acme/tiny", site.settings.facts["checkpoint"].hops)
    (finding,) = findings(site)
    assert finding.code == "KLG501" and "generation config of `acme/tiny` sets `top_p=0.8`" in finding.message


def test_the_live_object_is_right_where_it_differs():
    """A subclass that has its own way of preparing the settings: no argument explains the temperature."""

    class Heated(transformers.GPT2LMHeadModel):
        def _prepare_generation_config(self, *args: Any, **kwargs: Any) -> Any:
            config, rest = super()._prepare_generation_config(*args, **kwargs)
            config.temperature = 1.7
            return config, rest

    policy = Heated(model().config).eval()
    site = read(policy, **PURE)
    value = site.settings.values["temperature"]
    assert value.value == 1.7 and [hop.kind for hop in value.hops] == [HopKind.LIVE]
    assert codes(site) == codes(read(model(), **{**PURE, "temperature": 1.7})) == {"KLG106"}


def test_without_a_capture_the_tables_say_what_comes_of_the_arguments():
    policy = model(temperature=0.6, do_sample=True)
    call = Call.of(
        policy, (PROMPTS,), {"top_p": 0.9, "attention_mask": torch.ones_like(PROMPTS), "pad_token_id": 0}
    )
    site = read_generate(policy, None, None, None, place=PLACE, call=call)
    known = in_force(site)
    assert (known.temperature, known.top_p, known.top_k, known.do_sample) == (0.6, 0.9, 50, True)
    assert {"KLG102", "KLG103", "KLG501"} <= codes(site)


# -- logits processors -------------------------------------------------------------------------------------------


class Ban:
    """A logits processor of the project's own."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        scores = scores.clone()
        scores[:, 5] = -float("inf")
        return scores


def processor_list(*processors: Any) -> Any:
    return transformers.LogitsProcessorList(processors)


def test_a_processor_of_the_callers_own_is_named():
    site = read(model(), **PURE, logits_processor=processor_list(Ban()))
    value = site.settings.values["logits_processor"]
    assert value.value == Opaque("[Ban()]")
    assert value.hops[0].kind is HopKind.KWARG
    (finding,) = findings(site)
    assert finding.code == "KLG111" and finding.severity.value == "warning" and "Ban()" in finding.message


def test_a_processor_of_the_library_passed_by_hand():
    site = read(model(), **PURE, logits_processor=processor_list(transformers.TopKLogitsWarper(5)))
    (finding,) = findings(site)
    assert finding.code == "KLG111" and finding.severity.value == "error" and "top_k=5" in finding.message


def test_processors_that_a_setting_explains_or_that_do_nothing():
    assert codes(read(model(), **PURE, logits_processor=processor_list())) == set()
    neutral = processor_list(transformers.InfNanRemoveLogitsProcessor())
    assert codes(read(model(), **PURE, logits_processor=neutral)) == set()
    assert codes(read(model(), **PURE, renormalize_logits=True, remove_invalid_values=True)) == set()
    site = read(model(), **{**PURE, "top_k": 5, "min_new_tokens": 2}, logits_processor=neutral)
    assert "KLG111" not in codes(site) and {"KLG101"} < codes(site)


def test_a_processor_that_the_model_adds_by_itself():
    class Adds(transformers.GPT2LMHeadModel):
        def _get_logits_processor(self, *args: Any, **kwargs: Any) -> Any:
            return processor_list(*super()._get_logits_processor(*args, **kwargs), Ban())

    site = read(Adds(model().config).eval(), **PURE)
    assert codes(site) == {"KLG111"}
    assert site.settings.values["logits_processor"].hops[0].kind is HopKind.LIVE


def test_a_function_that_restricts_tokens():
    site = read(model(), **PURE, prefix_allowed_tokens_fn=lambda row, ids: [3, 4, 5])
    assert codes(site) == {"KLG111"}


# -- facts -----------------------------------------------------------------------------------------------------------


def test_facts():
    policy = model()
    facts = read(policy, **PURE).settings.facts
    plain_facts = {name: value.value for name, value in facts.items()}
    assert plain_facts == {
        "train_mode": False,
        "dropout": 0.0,
        "checkpointing": False,
        "encoder_decoder": False,
        "batched": True,
        "attention_mask": True,
    }
    site = read(policy, prompts=PROMPTS[:1], **PURE, attention_mask=None)
    facts = site.settings.facts
    assert facts["batched"].value is False and facts["attention_mask"].value is False and not codes(site)
    assert codes(read(policy, **PURE, attention_mask=None)) == {"KLG307"}
    assert codes(read(policy, **PURE, pad_token_id=None)) == {"KLG305"}


def test_train_mode_with_dropout_is_found():
    policy = model().train()
    site = read(policy, **PURE)
    (finding,) = findings(site)
    assert finding.code == "KLG407" and "dropout of 0.2" in finding.message
    for module in policy.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert codes(read(policy, **PURE)) == set()


def test_dropout_that_is_handed_to_a_function():
    config = transformers.LlamaConfig(
        vocab_size=60,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        attention_dropout=0.3,
    )
    policy = transformers.LlamaForCausalLM(config)
    assert not any(isinstance(m, nn.Dropout) for m in policy.modules()), "a float on the attention module"
    assert dropout(policy.train()) == 0.3 and dropout(policy.eval()) == 0.0
    assert dropout(nn.Sequential(nn.Dropout(0.5), nn.LSTM(2, 2, dropout=0.0))) == 0.5
    assert dropout(nn.Sequential(nn.Dropout(0.5).eval(), nn.Linear(2, 2))) == 0.0


def test_what_the_caller_knows_besides():
    policy = model()
    call = dataclasses.replace(Call.of(policy, (PROMPTS,), PURE), facts={"padding_side": Known("right")})
    site = read_generate(policy, None, [], [], place=PLACE, call=call)
    assert "KLG306" in codes(site)


# -- settings objects -------------------------------------------------------------------------------------------------


def test_a_generation_config():
    site = read_object(transformers.GenerationConfig(do_sample=True, top_p=0.9), place=PLACE)
    assert site.settings.kind is SiteKind.GENERATION_CONFIG and site.settings.engine == "transformers"
    assert codes(site) == {"KLG102", "KLG103"}
    assert codes(read_object(transformers.GenerationConfig(**PURE), place=PLACE)) == set()


class SamplingParams:
    """Of vLLM's or SGLang's shape."""

    def __init__(self, **fields: Any) -> None:
        vars(self).update(fields, _private=object())


def test_sampling_params_by_their_shape():
    vllm = SamplingParams(temperature=0.7, top_k=-1, top_p=1.0, max_tokens=64, min_tokens=0, seed=None)
    site = read_object(vllm, place=PLACE)
    assert site.settings.engine == "vllm" and codes(site) == {"KLG106"}
    assert site.settings.values["temperature"].hops[0].place == PLACE
    sglang = SamplingParams(temperature=1.0, top_k=1 << 30, top_p=0.9, max_new_tokens=64)
    site = read_object(sglang, place=PLACE)
    assert site.settings.engine == "sglang" and codes(site) == {"KLG103"}


def test_a_struct_with_slots_and_a_package_of_the_right_name():
    fields = {"__slots__": ("temperature", "top_k"), "__struct_fields__": ("temperature", "top_k")}
    params = type("SamplingParams", (), {**fields, "__module__": "vllm.sampling_params"})()
    params.temperature, params.top_k = 1.0, 20
    site = read_object(params, place=PLACE)
    assert site.settings.engine == "vllm" and codes(site) == {"KLG101"}


def test_dicts():
    assert codes(read_object({"do_sample": True, "top_k": 5}, place=PLACE)) == {"KLG101"}
    assert read_object({"temperature": 1.0, "max_tokens": 4}, place=PLACE).settings.engine == "vllm"
    assert codes(read_object({"temperature": 0.5, "top_p": 1.0}, place=PLACE, engine="sglang")) == {"KLG106"}
    with pytest.raises(
        ValueError, match='fits transformers and sglang: say which with `engine="transformers"`'
    ):
        read_object({"temperature": 0.5, "max_new_tokens": 3}, place=PLACE)
    with pytest.raises(TypeError, match="fits no engine: klguard reads a GenerationConfig"):
        read_object({"temprature": 0.5}, place=PLACE)
    with pytest.raises(ValueError, match="has no settings object; write one of transformers, vllm, sglang"):
        read_object({}, place=PLACE, engine="trl")


@pytest.mark.parametrize("other", [object(), 3, None, model, nn.Linear(1, 1)])
def test_other_objects(other):
    with pytest.raises(TypeError, match="is no settings object that klguard knows: klguard reads"):
        read_object(other, place=PLACE)


# -- findings, places, plain data ---------------------------------------------------------------------------------------


def test_findings_can_be_ignored_by_code_or_name():
    site = read(model(), do_sample=True, top_p=0.9)
    assert codes(site) == {"KLG102", "KLG103"}
    assert [f.code for f in findings(site, ignore=["klg102"])] == ["KLG103"]
    assert [f.code for f in findings(site, ignore={"top-p"})] == ["KLG102"]


def test_the_caller_is_the_users_line():
    def inside() -> tuple[Place, Any]:
        return caller(), spot()

    place, where = inside()
    line = sys._getframe().f_lineno
    assert place.path.endswith("tests/guard/test_live.py") and not place.path.startswith("..")
    assert line - 5 < place.line < line and where.enclosing == "test_the_caller_is_the_users_line.inside"
    if sys.version_info >= (3, 11):
        assert place.column == 16 and where.call == "spot"


def test_frames_of_libraries_are_passed_over():
    @torch.no_grad()
    def here() -> Place:
        space: dict[str, Any] = {"__name__": "trl.trainer", "caller": caller}
        exec("def deep():\n    return caller()\n", space)
        return space["deep"]()

    place = here()
    assert place.path.endswith("test_live.py")


def test_a_path_below_the_working_directory_is_relative(tmp_path, monkeypatch):
    file = tmp_path / "loops" / "a.py"
    file.parent.mkdir()
    file.write_text("import x\nplace = (\n    'ä', caller(\n    ))\n")
    space: dict[str, Any] = {"__name__": "loop", "caller": caller}
    code = compile(file.read_text().replace("import x", ""), str(file), "exec")
    monkeypatch.chdir(tmp_path)
    exec(code, space)
    place = space["place"][1]
    assert place.path == "loops/a.py" and place.line == 3
    if sys.version_info >= (3, 11):
        assert (place.column, place.end_line, place.end_column) == (10, 4, 6), "columns in characters"
    monkeypatch.chdir(file.parent)
    monkeypatch.chdir("/")
    exec(code, space)
    assert space["place"][1].path == str(file).lstrip("/")


def test_plain_data():
    import numpy

    assert plain({"a": [1, (2.5, None)]}) == {"a": [1, (2.5, None)]}
    assert plain(numpy.float32(0.5)) == 0.5 and plain(numpy.arange(2)) == [0, 1]
    assert plain(torch.tensor([1, 2])) == Opaque("Tensor(2,)", "torch.Tensor")
    assert isinstance(plain([torch.tensor(1)]), Opaque)
    assert plain(Ban()).text == "Ban()" and plain(Ban).text == "Ban"
    assert as_ids(5) == (5,) and as_ids([1, 2]) == (1, 2) and as_ids(None) is None


def test_reading_waits_for_no_device():
    """Tensors among the arguments are not looked into: on the meta device that would raise."""
    policy = model()
    meta = torch.ones(4, 3, dtype=torch.int64, device="meta")
    call = Call.of(policy, (meta,), {"attention_mask": meta, "eos_token_id": meta[0], **PURE})
    site = read_generate(policy, None, None, None, place=PLACE, call=call)
    assert call.batch_size == 4 and call.prompt_length == 3
    assert site.settings.facts["batched"].value is True
