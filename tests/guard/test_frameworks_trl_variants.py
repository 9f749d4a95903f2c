"""GRPO and RLOO as people run them: adapters, checkpointing, autocast, losses, several updates of one rollout, and
checkpoints with generation configs of their own. A safe run is silent, and top_k is named in each."""

from __future__ import annotations

import logging

import pytest

torch = pytest.importorskip("torch")
trl = pytest.importorskip("trl", reason="TRL is not installed")

if not hasattr(trl, "GRPOTrainer"):
    pytest.skip("this release of TRL has no GRPOTrainer", allow_module_level=True)

from trl import GRPOTrainer, RLOOTrainer  # noqa: E402

import klguard  # noqa: E402
from tests.guard import trl_setup as setup  # noqa: E402
from tests.guard.trl_trainers import ALWAYS, GROUPS, codes, of, trained, trainer_of  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

BOTH = pytest.mark.parametrize("kind", ["grpo", "rloo"])
OF_BOTH = {
    "checkpointing": dict(gradient_checkpointing=True),
    "reentrant checkpointing": dict(
        gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True}
    ),
    "autocast": dict(bf16=True),
    "autocast and checkpointing": dict(bf16=True, gradient_checkpointing=True),
    "bf16 weights": dict(bf16=True, model_init_kwargs={"dtype": "bfloat16"}),
    "two iterations": dict(num_iterations=2, max_steps=4),
    "two iterations in autocast": dict(num_iterations=2, max_steps=4, bf16=True),
    "no reference": dict(beta=0.0),
    "four minibatches": dict(steps_per_generation=4, max_steps=4),
    "no accumulation": dict(gradient_accumulation_steps=1, max_steps=3),
    "compiled": dict(torch_compile=True, torch_compile_backend="eager"),
}
OF_GRPO = {
    **{f"loss {name}": dict(loss_type=name) for name in ("grpo", "dr_grpo", "dapo", "bnpo", "cispo")},
    "sequence ratios": dict(importance_sampling_level="sequence", num_iterations=2, max_steps=4),
    "no scaling": dict(scale_rewards="none"),
    "scaling by batch": dict(scale_rewards="batch"),
    "part of the tokens": dict(top_entropy_quantile=0.5),
}
WAYS = [
    *(
        pytest.param(kind, way, id=f"{kind}-{name}")
        for name, way in OF_BOTH.items()
        for kind in ("grpo", "rloo")
    ),
    *(pytest.param("grpo", way, id=f"grpo-{name}") for name, way in OF_GRPO.items()),
]
OF_THE_REFERENCE = {"KLG801", "KLG802", "KLG803"}
"""Checks that need a reference."""


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def said(guard):
    return [(finding.code, finding.message) for finding in guard.findings]


@pytest.mark.parametrize(("kind", "way"), WAYS)
def test_a_safe_run_is_silent_with_its_checks_exercised(kind, way, tmp_path):
    guard = trained(trainer_of(kind, tmp_path, **way))
    assert said(guard) == []
    without = {"KLG603", *OF_THE_REFERENCE, "KLG837"} if way.get("beta") == 0 else set()
    assert guard.exercised >= (ALWAYS | GROUPS) - without
    assert guard.metrics["klguard/tokens"] > 250


@pytest.mark.parametrize(("kind", "way"), WAYS)
def test_top_k_is_named(kind, way, tmp_path):
    guard = trained(trainer_of(kind, tmp_path, top_k=10, **way))
    assert of(guard, "KLG101").setting == "top_k"
    assert of(guard, "KLG701").measured.cause == "top_k=10"


# -- checkpoints as they are -----------------------------------------------------------------------------------------


@BOTH
def test_a_checkpoint_with_more_stop_tokens_than_its_tokenizer_is_fine(kind, tmp_path):
    """The trainer gives its tokenizer's own to each generate(), so that the others are not in force."""
    stops = {
        "eos_token_id": [setup.EOS, setup.PAD],
        "top_k": 20,
        "top_p": 0.8,
        "temperature": 0.7,
        "do_sample": True,
    }
    guard = trained(trainer_of(kind, tmp_path, generation=stops))
    assert said(guard) == []
    assert "KLG817" in guard.exercised


@BOTH
def test_stop_tokens_that_the_trainers_mask_does_not_know_are_named(kind, tmp_path):
    more = {"eos_token_id": [setup.EOS, 7]}
    guard = trained(trainer_of(kind, tmp_path, generation_kwargs=more))
    assert "tokens 1, 7" in of(guard, "KLG817").message


@BOTH
def test_padding_with_the_end_of_sequence_is_fine(kind, tmp_path):
    words = setup.tokenizer()
    words.pad_token = words.eos_token
    guard = trained(trainer_of(kind, tmp_path, words=words))
    assert said(guard) == []


@BOTH
def test_rewards_that_are_missing_for_some_are_fine(kind, tmp_path):
    def sparse(completions, **_):
        return [None if n % 3 == 0 else float(len(text)) for n, text in enumerate(completions)]

    assert said(trained(trainer_of(kind, tmp_path, reward=[setup.reward, sparse]))) == []


# -- adapters of PEFT ------------------------------------------------------------------------------------------------


def lora(**more):
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    shape = dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "dense"], task_type="CAUSAL_LM")
    return peft.LoraConfig(**{**shape, **more})


ADAPTERS = pytest.mark.parametrize(
    "way",
    [
        {},
        dict(bf16=True, gradient_checkpointing=True),
        dict(num_iterations=2, max_steps=4),
        dict(max_steps=6, learning_rate=1e-3),
    ],
    ids=["plain", "autocast", "two iterations", "longer"],
)


@ADAPTERS
@BOTH
def test_a_safe_run_of_an_adapter_is_silent(kind, way, tmp_path):
    """The reference is the policy with its adapter disabled; it shares the base, and is trained by nobody."""
    guard = trained(trainer_of(kind, tmp_path, peft_config=lora(), **way))
    assert said(guard) == []
    assert {"KLG603", "KLG703", "KLG801", "KLG804", "KLG831", "KLG842"} <= guard.exercised


@ADAPTERS
@BOTH
def test_top_k_is_named_with_an_adapter(kind, way, tmp_path):
    guard = trained(trainer_of(kind, tmp_path, peft_config=lora(), top_k=10, **way))
    assert of(guard, "KLG101").setting == "top_k"
    assert of(guard, "KLG701").measured.cause == "top_k=10"


@BOTH
def test_a_model_that_carries_an_adapter_of_its_own_is_fine(kind, tmp_path):
    config = lora()

    def adapted(path):
        from peft import get_peft_model
        from transformers import AutoModelForCausalLM

        model = get_peft_model(AutoModelForCausalLM.from_pretrained(path), config)
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.02, generator=draw)
        return model

    assert said(trained(trainer_of(kind, tmp_path, wrapped=adapted))) == []


@BOTH
def test_dropout_of_an_adapter_is_named(kind, tmp_path):
    guard = trained(
        trainer_of(kind, tmp_path, peft_config=lora(lora_dropout=0.2), learning_rate=1e-3, max_steps=3)
    )
    assert {"KLG407", "KLG831"} <= codes(guard)


# -- masks -----------------------------------------------------------------------------------------------------------


def with_mask(trainer_class, change):
    """A trainer that changes the mask of each rollout."""

    class Changed(trainer_class):
        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            return {**output, "completion_mask": change(output["completion_mask"], output["completion_ids"])}

    return Changed


@pytest.mark.parametrize(("kind", "trainer"), [("grpo", GRPOTrainer), ("rloo", RLOOTrainer)])
@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda mask, ids: torch.ones_like(mask), "KLG811"),
        (lambda mask, ids: mask | mask.roll(1, 1), "KLG811"),
        (lambda mask, ids: mask * (ids != setup.EOS), "KLG812"),
    ],
    ids=["all ones", "one too many", "without the stop"],
)
def test_a_wrong_mask_is_named(kind, trainer, change, code, tmp_path):
    guard = trained(trainer_of(kind, tmp_path, own=with_mask(trainer, change)))
    assert code in codes(guard)
    if code == "KLG811":
        assert "KLG701" not in codes(guard)  # padding is no evidence about the sampler


# -- what is not seen ------------------------------------------------------------------------------------------------


def test_the_fused_loss_of_liger_is_said_to_be_unseen(tmp_path, caplog):
    pytest.importorskip("triton", reason="liger-kernel needs triton")
    pytest.importorskip("liger_kernel.chunked_loss", reason="liger-kernel is not installed")
    with caplog.at_level(logging.WARNING, "klguard"):
        guard = trained(trainer_of("grpo", tmp_path, use_liger_kernel=True))
    assert said(guard) == []
    assert "the sampler is not tested" in caplog.text


def test_a_run_without_logits_says_that_its_sampler_is_not_tested(tmp_path, caplog, monkeypatch):
    from klguard.guard.frameworks.trl_groups import Groups

    monkeypatch.setattr(Groups, "passed", lambda *args: None)
    with caplog.at_level(logging.WARNING, "klguard"):
        klguard.guard_trainer(trainer := trainer_of("grpo", tmp_path), strict=True)
        trainer.train()
    assert "no logits of the policy were seen" in caplog.text


# -- a head that is fused with the log-softmax -----------------------------------------------------------------------


def fused(trainer_class):
    """A trainer whose policy is never called as a whole in the loss, as those of later releases are not."""

    class Fused(trainer_class):
        def _get_per_token_logps_and_entropies(
            self, model, input_ids, attention_mask, logits_to_keep, *args, **more
        ):
            whole = self.accelerator.unwrap_model(model)
            hidden = whole.base_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            logits = whole.lm_head(hidden[:, :-1][:, -logits_to_keep:]) / self.temperature
            logprobs = logits.float().log_softmax(-1)
            tokens = input_ids[:, -logits_to_keep:, None]
            return logprobs.gather(-1, tokens)[..., 0], -(logprobs.exp() * logprobs).sum(-1), None

    return Fused


FUSED = pytest.mark.parametrize(("kind", "trainer"), [("grpo", GRPOTrainer), ("rloo", RLOOTrainer)])


@FUSED
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_safe_run_with_a_fused_head_is_tested_and_silent(kind, trainer, temperature, tmp_path):
    guard = trained(trainer_of(kind, tmp_path, own=fused(trainer), temperature=temperature))
    assert said(guard) == []
    assert guard.metrics["klguard/tokens"] > 250


@FUSED
def test_top_k_is_named_with_a_fused_head(kind, trainer, tmp_path):
    guard = trained(trainer_of(kind, tmp_path, own=fused(trainer), top_k=10))
    assert of(guard, "KLG701").measured.cause == "top_k=10"


def test_of_a_large_vocabulary_the_first_positions_are_tested(tmp_path, monkeypatch):
    from klguard.guard.frameworks import fused_head

    whole = trained(trainer_of("grpo", tmp_path / "whole", own=fused(GRPOTrainer), max_steps=3))
    monkeypatch.setattr(fused_head, "HEAD_BUDGET", 4 * 16 * setup.VOCABULARY * 8)  # 8 positions of 16 rows
    part = trained(trainer_of("grpo", tmp_path / "part", own=fused(GRPOTrainer), max_steps=3))
    assert said(part) == []
    assert 0 < part.metrics["klguard/tokens"] < whole.metrics["klguard/tokens"]


def test_a_head_that_scales_its_logits_is_said_to_be_unseen(tmp_path, caplog):
    trainer = trainer_of("grpo", tmp_path, own=fused(GRPOTrainer))
    trainer.model.config.logit_scale = 0.5
    with caplog.at_level(logging.WARNING, "klguard"):
        guard = trained(trainer)
    assert said(guard) == []
    assert "no logits of the policy were seen" in caplog.text
