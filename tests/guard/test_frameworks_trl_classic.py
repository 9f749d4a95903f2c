"""The guard on the classic PPOTrainer.step of TRL up to 0.11, which needs transformers 4 and so an environment of
its own: tests/environments/trl_classic.sh makes it and runs these tests in it.
"""

from __future__ import annotations

import warnings

import pytest

torch = pytest.importorskip("torch")
trl = pytest.importorskip("trl", reason="TRL is not installed")
from packaging.version import Version  # noqa: E402

if Version(trl.__version__) >= Version("0.12"):
    pytest.skip(
        f"TRL {trl.__version__} has no PPOTrainer.step: see tests/environments/trl_classic.sh",
        allow_module_level=True,
    )

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer

import klguard  # noqa: E402
from klguard.guard import Violation  # noqa: E402
from tests.guard import trl_setup as setup  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

PURE = dict(do_sample=True, top_k=0, top_p=1.0, max_new_tokens=12, pad_token_id=setup.PAD)
EXERCISED = {
    "KLG603", "KLG703", "KLG705", "KLG801", "KLG802", "KLG803", "KLG805", "KLG811", "KLG812", "KLG816", "KLG817",
    "KLG821", "KLG824", "KLG825", "KLG826", "KLG827", "KLG831", "KLG832", "KLG833", "KLG834", "KLG836", "KLG838",
    "KLG841", "KLG842", "KLG845", "KLG853", "KLG861", "KLG862", "KLG864", "KLG866", "KLG867", "KLG868", "KLG869",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trainer_of(policy=None, reference=None, **config):
    plain = dict(
        batch_size=32,
        mini_batch_size=16,
        ppo_epochs=2,
        learning_rate=1e-4,
        seed=0,
        log_with=None,
    )
    policy = AutoModelForCausalLMWithValueHead.from_pretrained(policy or setup.policy())
    return PPOTrainer(PPOConfig(**{**plain, **config}), policy, reference, setup.tokenizer())


def train(trainer, steps=3, between=None, **settings):
    """A loop as TRL's documentation writes it."""
    words = trainer.tokenizer
    queries = [torch.tensor(words(text)["input_ids"]) for text in setup.prompts(32)]
    for _ in range(steps):
        responses = trainer.generate(queries, return_prompt=False, batch_size=16, **{**PURE, **settings})
        texts = [words.decode(response, skip_special_tokens=True) for response in responses]
        scores = [torch.tensor(float(score)) for score in setup.reward(texts)]
        trainer.step(queries, responses, scores)
        if between is not None:
            between()


def guarded(trainer, steps=3, between=None, guard=None, **settings):
    guard = guard or klguard.guard_trainer(trainer, on_violation="record", strict=True)
    with guard:
        train(trainer, steps, between, **settings)
    return guard


def codes(guard):
    return {finding.code for finding in guard.findings}


def of(guard, code):
    found = [finding for finding in guard.findings if finding.code == code]
    assert found, f"{code} is not among {[(f.code, f.message) for f in guard.findings]}"
    return found[0]


def test_a_safe_run_passes_with_its_checks_exercised():
    guard = guarded(trainer_of())
    assert [(f.code, f.message) for f in guard.findings] == []
    assert guard.exercised >= EXERCISED
    assert guard.metrics["klguard/tokens"] > 500


def test_steps_are_told_of_without_a_with_statement():
    trainer = trainer_of()
    guard = klguard.guard_trainer(trainer, on_violation="record", strict=True)
    train(trainer, 2, top_k=10)
    assert {"KLG101", "KLG701"} <= codes(guard)


@pytest.mark.parametrize(
    ("settings", "code", "cause"),
    [
        ({"top_k": 10}, "KLG101", "top_k=10"),
        ({"min_new_tokens": 8}, None, "eos_suppressed"),
        ({"temperature": 0.6}, None, "temperature"),
    ],
)
def test_settings_are_named(settings, code, cause):
    guard = guarded(trainer_of(), **settings)
    (name,) = settings
    if code:
        assert of(guard, code).setting == name
    named = [f.measured.cause for f in guard.findings if f.measured] + [f.setting for f in guard.findings]
    assert any(one and (one.startswith(cause) or one == name) for one in named)


def test_a_repetition_penalty_of_the_checkpoint_is_named():
    policy = setup.policy()
    policy.generation_config.repetition_penalty = 1.3
    guard = guarded(trainer_of(policy))
    assert any(f.setting == "repetition_penalty" for f in guard.findings)
    assert of(guard, "KLG701").measured.cause.startswith("repetition_penalty")


def test_a_generate_for_evaluation_is_left_alone():
    trainer = trainer_of()
    words = trainer.tokenizer
    queries = [torch.tensor(words(text)["input_ids"]) for text in setup.prompts(4)]

    def evaluate():
        trainer.generate(queries, return_prompt=False, do_sample=False, max_new_tokens=12, pad_token_id=0)

    guard = guarded(trainer, between=evaluate)
    assert [(f.code, f.message) for f in guard.findings] == []


def test_trl_clips_the_gradient_of_its_first_update_alone():
    """`self.model_params` is an iterator, used up by the first clip_grad_norm_."""
    found = of(guarded(trainer_of(max_grad_norm=0.5), steps=2), "KLG843")
    assert "max_grad_norm is 0.5" in found.message


def test_dropout_in_rollouts_is_named():
    guard = guarded(trainer_of(setup.policy(dropout=0.2)), steps=3)
    assert any("train mode" in f.message for f in guard.findings)


def test_an_aliased_reference_is_named():
    trainer = trainer_of()
    trainer.ref_model = trainer.model
    guard = klguard.guard_trainer(trainer)
    with pytest.raises(Violation) as caught, guard:
        train(trainer, 1)
    assert caught.value.code == "KLG803"


def test_a_reference_that_is_trained_is_named():
    trainer = trainer_of()

    def follow():
        with torch.no_grad():
            for one, other in zip(trainer.ref_model.parameters(), trainer.model.parameters(), strict=True):
                one.lerp_(other, 0.5)

    assert "KLG802" in codes(guarded(trainer, between=follow))


class WholeMask(PPOTrainer):
    """Counts the padding behind a response as part of it."""

    def batched_forward_pass(self, model, queries, responses, model_inputs, *args, **kwargs):
        result = super().batched_forward_pass(model, queries, responses, model_inputs, *args, **kwargs)
        masks = (result[3].cumsum(1) > 0).long()
        return (*result[:3], masks)


def test_a_mask_that_covers_padding_is_named():
    policy = AutoModelForCausalLMWithValueHead.from_pretrained(setup.policy())
    config = PPOConfig(batch_size=32, mini_batch_size=16, ppo_epochs=1, learning_rate=1e-4)
    words = setup.tokenizer()
    words.padding_side = "right"
    trainer = WholeMask(config, policy, None, words)
    assert "KLG811" in codes(guarded(trainer))


def test_the_weights_are_the_same_with_and_without_a_guard():
    weights = []
    for watched in (False, True):
        trainer = trainer_of()
        torch.manual_seed(5)
        if watched:
            guarded(trainer, steps=2)
        else:
            train(trainer, 2)
        weights.append({k: v.clone() for k, v in trainer.model.state_dict().items()})
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
