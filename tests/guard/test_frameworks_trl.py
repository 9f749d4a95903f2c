"""The guard on the real trainers of TRL: GRPO, RLOO and the experimental PPO, on tiny models."""

from __future__ import annotations

import copy
import logging

import pytest

torch = pytest.importorskip("torch")
trl = pytest.importorskip("trl", reason="TRL is not installed")

import klguard  # noqa: E402
from klguard.guard import Violation  # noqa: E402

if not hasattr(trl, "GRPOTrainer"):
    pytest.skip("this release of TRL has no GRPOTrainer", allow_module_level=True)

from transformers import TrainerCallback  # noqa: E402
from trl import GRPOTrainer  # noqa: E402

from tests.guard import trl_setup as setup  # noqa: E402
from tests.guard.pretend import CUDA, mark_of, pretended  # noqa: E402
from tests.guard.trl_trainers import ALWAYS, GROUPS, codes, of, trained, trainer_of  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

BOTH = pytest.mark.parametrize("kind", ["grpo", "rloo"])


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ppo_of(tmp_path, model=None, ref_model=None, own=None, callbacks=None, **config):
    """An experimental PPO trainer; skips where this release has none."""
    ppo = pytest.importorskip("trl.experimental.ppo", reason="no experimental PPO in this release of TRL")
    from datasets import Dataset

    plain = dict(
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        num_mini_batches=2,
        num_ppo_epochs=2,
        total_episodes=32,
        response_length=12,
        kl_coef=0.05,
        learning_rate=1e-4,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        stop_token="eos",
        num_sample_generations=0,
        gradient_checkpointing=False,
    )
    words = setup.tokenizer()
    data = Dataset.from_dict({"input_ids": [words(text)["input_ids"] for text in setup.prompts()]})
    return (own or ppo.PPOTrainer)(
        args=ppo.PPOConfig(output_dir=str(tmp_path / "out"), **{**plain, **config}),
        processing_class=words,
        model=model or setup.policy(),
        ref_model=ref_model,
        reward_model=setup.scorer(),
        value_model=setup.scorer(),
        train_dataset=data,
        eval_dataset=data,
        callbacks=callbacks,
    )


# -- a safe run -----------------------------------------------------------------------------------------------------


@BOTH
def test_a_safe_run_of_groups_passes_with_its_checks_exercised(kind, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "klguard"):
        guard = trained(trainer_of(kind, tmp_path, max_steps=3), journal=tmp_path / "klguard.jsonl")
    assert [(f.code, f.message) for f in guard.findings] == []
    more = {"KLG602"} if kind == "grpo" else {"KLG834"}
    assert guard.exercised >= ALWAYS | GROUPS | more
    assert guard.metrics["klguard/tokens"] > 600
    assert guard.evidence.log_evidence < 5
    said = "old = new.detach()" in caplog.text
    assert said == (kind == "grpo")


def test_a_safe_run_of_experimental_ppo_passes_with_its_checks_exercised(tmp_path):
    guard = trained(ppo_of(tmp_path, total_episodes=48))
    assert [(f.code, f.message) for f in guard.findings] == []
    more = {"KLG821", "KLG824", "KLG825", "KLG826", "KLG833", "KLG834", "KLG836", "KLG861"}
    assert guard.exercised >= ALWAYS | more
    assert guard.metrics["klguard/tokens"] > 150


@BOTH
def test_several_updates_of_one_rollout_are_no_violation(kind, tmp_path):
    guard = trained(trainer_of(kind, tmp_path, max_steps=8, num_iterations=2, steps_per_generation=4))
    assert [(f.code, f.message) for f in guard.findings] == []
    assert {"KLG831", "KLG832", "KLG868"} <= guard.exercised
    if kind == "grpo":
        assert "KLG833" in guard.exercised


@BOTH
def test_a_temperature_that_the_trainer_divides_by_is_fine(kind, tmp_path):
    guard = trained(trainer_of(kind, tmp_path, temperature=0.7))
    assert [(f.code, f.message) for f in guard.findings] == []
    assert "KLG705" in guard.exercised


def test_the_weights_are_the_same_with_and_without_a_guard(tmp_path):
    weights = []
    for number, watched in enumerate((False, True)):
        trainer = trainer_of("grpo", tmp_path / str(number))
        if watched:
            klguard.guard_trainer(trainer, on_violation="record", strict=True)
        trainer.train()
        weights.append({k: v.clone() for k, v in trainer.model.state_dict().items()})
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


# -- settings -------------------------------------------------------------------------------------------------------


@BOTH
def test_top_k_is_named(kind, tmp_path):
    guard = trained(trainer_of(kind, tmp_path, top_k=10))
    assert of(guard, "KLG101").setting == "top_k"
    assert of(guard, "KLG701").measured.cause == "top_k=10"


@BOTH
def test_min_new_tokens_in_generation_kwargs_is_named(kind, tmp_path):
    guard = trained(trainer_of(kind, tmp_path, generation_kwargs={"min_new_tokens": 8}))
    assert any(finding.setting == "min_new_tokens" for finding in guard.findings)
    assert of(guard, "KLG701").measured.cause.startswith("eos_suppressed")


def test_min_new_tokens_stops_a_run_that_raises(tmp_path):
    trainer = trainer_of("grpo", tmp_path, generation_kwargs={"min_new_tokens": 8})
    klguard.guard_trainer(trainer)
    with pytest.raises(Violation) as caught:
        trainer.train()
    assert caught.value.finding.setting == "min_new_tokens"
    assert trainer.state.global_step == 1


def test_a_repetition_penalty_of_the_checkpoint_reaches_ppo(tmp_path):
    model = setup.policy()
    model.generation_config.repetition_penalty = 1.3
    guard = trained(ppo_of(tmp_path, model=model, num_ppo_epochs=1))
    found = next(f for f in guard.findings if f.setting == "repetition_penalty")
    assert any("generation config of" in hop.text for hop in found.origin)
    assert "KLG831" in codes(guard)


def test_a_repetition_penalty_of_the_checkpoint_does_not_reach_grpo_which_sets_its_own(tmp_path):
    guard = trained(trainer_of("grpo", tmp_path, generation={"repetition_penalty": 1.3}))
    assert codes(guard) == set()


def test_what_grpo_does_not_set_comes_from_the_checkpoint(tmp_path):
    guard = trained(trainer_of("grpo", tmp_path, generation={"no_repeat_ngram_size": 2}))
    found = next(f for f in guard.findings if f.setting == "no_repeat_ngram_size")
    assert any("generation config of" in hop.text for hop in found.origin)


def test_a_repetition_penalty_of_the_trainer_is_named(tmp_path):
    guard = trained(trainer_of("grpo", tmp_path, repetition_penalty=1.3))
    assert any(f.setting == "repetition_penalty" for f in guard.findings)
    assert of(guard, "KLG701").measured.cause.startswith("repetition_penalty")


# -- an engine of its own --------------------------------------------------------------------------------------------


class DocumentedVllm:
    """What TRL's trainers ask of vLLM in colocate mode: ids, and the processed log-prob of each sampled token."""

    mode = "colocate"

    def __init__(self, trainer, draw):
        self.trainer, self.draw = trainer, draw

    def sync_weights(self):
        """The engine is the policy itself."""

    def generate(self, prompts, images, num_generations, profiler=None):
        answers, logprobs = [], []
        policy, length = self.trainer.model, self.trainer.max_completion_length
        for prompt in prompts:
            ids, values = list(prompt), []
            for _ in range(length):
                with torch.no_grad():
                    log_probs = self.draw(policy(torch.tensor([ids])).logits[0, -1])
                ids.append(int(torch.multinomial(log_probs.exp(), 1)))
                values.append([float(log_probs[ids[-1]])])
                if ids[-1] == setup.EOS:
                    break
            answers.append(ids[len(prompt) :])
            logprobs.append(values)
        return prompts, answers, logprobs, None


def with_engine(trainer, draw):
    trainer.use_vllm, trainer._last_loaded_step = True, -1
    trainer.vllm_generation = DocumentedVllm(trainer, draw)
    return trainer


def top_ten(logits):
    floor = logits.topk(10).values[-1]
    return logits.masked_fill(logits < floor, -torch.inf).log_softmax(-1)


def test_log_probs_of_vllm_are_compared_with_those_of_the_trainer(tmp_path):
    engine = with_engine(trainer_of("grpo", tmp_path, max_steps=1), lambda logits: logits.log_softmax(-1))
    guard = trained(engine)
    assert [(f.code, f.message) for f in guard.findings] == []
    assert {"KLG702", "KLG851", "KLG831"} <= guard.exercised


def test_a_filter_inside_of_vllm_is_named_by_its_log_probs(tmp_path):
    guard = trained(with_engine(trainer_of("grpo", tmp_path, max_steps=1), top_ten))
    assert {"KLG701", "KLG702"} & codes(guard)
    assert "KLG101" not in codes(guard)  # the trainer asked for none


def test_a_filter_that_the_trainer_asks_of_vllm_is_judged(tmp_path):
    assert (
        of(trained(with_engine(trainer_of("grpo", tmp_path, top_k=10), top_ten)), "KLG101").setting == "top_k"
    )


# -- models ---------------------------------------------------------------------------------------------------------


@BOTH
def test_dropout_is_named(kind, tmp_path):
    guard = trained(trainer_of(kind, tmp_path, model=setup.policy(dropout=0.2)))
    assert {"KLG805", "KLG831"} <= codes(guard)
    assert "train mode" in of(guard, "KLG805").message


def test_dropout_that_the_trainer_switches_off_is_fine(tmp_path):
    guard = trained(trainer_of("grpo", tmp_path, model=setup.policy(dropout=0.2), disable_dropout=True))
    assert codes(guard) == set()


@BOTH
def test_an_aliased_reference_is_named_before_training(kind, tmp_path):
    trainer = trainer_of(kind, tmp_path)
    trainer.ref_model = trainer.model
    klguard.guard_trainer(trainer)
    with pytest.raises(Violation) as caught:
        trainer.train()
    assert caught.value.code == "KLG803"
    assert trainer.state.global_step == 0


class Follow(TrainerCallback):
    """Drags the reference behind the policy."""

    def __init__(self):
        self.pair = None

    def on_step_end(self, args, state, control, **kwargs):
        model, reference = self.pair
        with torch.no_grad():
            for ours, theirs in zip(reference.parameters(), model.parameters(), strict=True):
                ours.lerp_(theirs, 0.5)


@pytest.mark.parametrize("kind", ["grpo", "rloo", "ppo"])
def test_a_reference_that_is_trained_is_named(kind, tmp_path):
    follow = Follow()
    if kind == "ppo":
        trainer = ppo_of(tmp_path, callbacks=[follow], num_ppo_epochs=1)
        follow.pair = trainer.policy_model, trainer.ref_model
    else:
        trainer = trainer_of(kind, tmp_path, callbacks=[follow], max_steps=3)
        follow.pair = trainer.model, trainer.ref_model
    assert "KLG802" in codes(trained(trainer))


def test_a_reference_that_is_meant_to_follow_is_left_alone(tmp_path):
    config = dict(sync_ref_model=True, ref_model_sync_steps=1, max_steps=3)
    assert "KLG802" not in codes(trained(trainer_of("grpo", tmp_path, **config)))


def test_ppo_with_a_reference_that_shares_layers_with_the_policy_is_named(tmp_path):
    policy = setup.policy()
    reference = copy.copy(policy)
    reference._modules = dict(policy._modules)
    trainer = ppo_of(tmp_path, model=policy, ref_model=reference)
    klguard.guard_trainer(trainer)
    with pytest.raises(Violation) as caught:
        trainer.train()
    assert caught.value.code == "KLG803"


# -- masks ----------------------------------------------------------------------------------------------------------


class WholeMask(GRPOTrainer):
    """Masks nothing behind the end of a response."""

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        return {**output, "completion_mask": torch.ones_like(output["completion_mask"])}


def test_a_mask_that_covers_padding_is_named(tmp_path):
    guard = trained(trainer_of("grpo", tmp_path, own=WholeMask))
    assert "after the first stop" in of(guard, "KLG811").message
    assert "KLG701" not in codes(guard)


class AttendsToPadding(GRPOTrainer):
    """Scores with an attention mask of ones."""

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, *args, **kwargs):
        whole = torch.ones_like(attention_mask)
        return super()._get_per_token_logps_and_entropies(model, input_ids, whole, *args, **kwargs)


def test_a_pass_that_attends_to_padding_is_named(tmp_path):
    guard = trained(trainer_of("grpo", tmp_path, own=AttendsToPadding))
    assert "attends to" in of(guard, "KLG814").message


def test_learned_positions_are_shifted_by_padding_in_trl_itself(tmp_path):
    """TRL passes no position_ids, which rotary positions forgive and learned ones do not."""
    guard = trained(trainer_of("grpo", tmp_path, model=setup.absolute()))
    assert "position_ids" in of(guard, "KLG814").message


def test_ppo_with_a_pad_token_that_stops_loses_the_stop(tmp_path):
    trainer = ppo_of(tmp_path, num_ppo_epochs=1)
    trainer.processing_class.pad_token_id = setup.EOS
    assert {"KLG812", "KLG816"} & codes(trained(trainer))


# -- the guard itself -----------------------------------------------------------------------------------------------


def test_a_checkpoint_carries_the_guard(tmp_path):
    trainer = trainer_of("grpo", tmp_path, save_strategy="steps", save_steps=1, save_only_model=False)
    guard = trained(trainer)
    later = trainer_of("grpo", tmp_path, max_steps=3)
    again = klguard.guard_trainer(later, on_violation="record", strict=True)
    later.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert again.metrics["klguard/tokens"] > guard.metrics["klguard/tokens"]


def test_a_guard_is_put_on_once_and_only_on_trainers(tmp_path):
    trainer = trainer_of("grpo", tmp_path)
    klguard.guard_trainer(trainer)
    with pytest.raises(ValueError, match="already"):
        klguard.guard_trainer(trainer)
    with pytest.raises(TypeError, match="no trainer that klguard knows"):
        klguard.guard_trainer(object())


def test_a_failure_of_the_adapter_does_not_end_the_run(tmp_path, monkeypatch):
    from klguard.guard.frameworks.trl_groups import Groups

    def broken(self, *args):
        raise ValueError("broken on purpose")

    monkeypatch.setattr(Groups, "_rolled_out", broken)
    trainer = trainer_of("grpo", tmp_path)
    guard = klguard.guard_trainer(trainer)
    trainer.train()
    assert trainer.state.global_step == 2
    assert isinstance(guard.failure, ValueError)


@pytest.mark.parametrize("kind, top_k", [("grpo", 0), ("grpo", 10), ("rloo", 0)])
def test_beside_tensors_of_an_accelerator(kind, top_k, tmp_path, monkeypatch):
    """The device is a pretended one: devices are not mixed, and nothing waits for it while the trainer trains."""
    trainer = trainer_of(kind, tmp_path, top_k=top_k)
    own = type(trainer.args).device
    monkeypatch.setattr(type(trainer.args), "device", property(lambda args: own.fget(args) and CUDA))
    monkeypatch.setattr(type(trainer.accelerator), "device", property(lambda accelerator: CUDA))
    for device in pretended(monkeypatch):
        for model in (trainer.model, getattr(trainer, "ref_model", None)):
            if model is not None:
                device.move(model)
        guard = trained(trainer, ignore=["KLG1"])
        assert {mark_of(each) for each in trainer.model.parameters()} == {"cuda"}
        assert [wait for wait in device.waits if "copies" not in wait.functions] == []
    assert guard.failure is None and guard.evidence.tokens > 300 and guard.exercised >= ALWAYS - {"KLG703"}
    assert codes(guard) == ({"KLG701"} if top_k else set())
