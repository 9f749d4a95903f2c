"""The laboratory's loop is correct by everything the guard can look at, and each piece can be seen to be."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from klguard.guard import Violation  # noqa: E402
from klguard.guard.catalogue import CATALOGUE  # noqa: E402
from klguard.lab import loop as loop_module  # noqa: E402
from klguard.lab.grammar import END, PAD, WORDS  # noqa: E402
from klguard.lab.loop import PPO  # noqa: E402
from tests.lab.runs import differing, short, weights  # noqa: E402

NOT_HERE = {
    "KLG602": "the loop's estimator is k1",
    "KLG701": "reads the settings' evidence, which has no flag of its own",
    "KLG702": "no other engine samples",
    "KLG704": "no earlier weights are scored",
    "KLG804": "no adapter",
    "KLG822": "no groups",
    "KLG823": "no groups",
    "KLG827": "no adaptive controller",
    "KLG835": "the KL is in the reward",
    "KLG851": "no other engine samples",
    "KLG852": "no other engine samples",
    "KLG865": "nothing is packed",
}
"""What the loop cannot exercise, and why."""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_is_clean_and_every_check_that_applies_looked_at_it(precision):
    loop = short(micro_batch=2, precision=precision, whiten=True)
    guard = loop.guarded(on_violation="raise", strict=True)
    loop.run(guard)
    assert guard.findings == [] and len(loop.logs) == 3
    known = {entry.code for entry in CATALOGUE if entry.code[3] in "678"}
    assert known - guard.exercised <= NOT_HERE.keys()
    assert len(guard.exercised) >= 44
    assert set(guard.evidence.blind) <= {"sampler", "stale"}
    assert guard.evidence.tokens > 100


@pytest.mark.parametrize("options", [{}, {"micro_batch": 2, "precision": "bf16"}])
def test_the_guard_changes_nothing(options):
    alone, watched = short(**options), short(**options)
    alone.run()
    guard = watched.guarded(on_violation="raise", strict=True)
    watched.run(guard)
    assert differing(weights(alone), weights(watched)) == []
    assert alone.logs == watched.logs
    assert len(guard.exercised) > 40


def test_the_seed_decides_everything():
    one, same, other = short(), short(), short(seed=1)
    for loop in (one, same, other):
        loop.run()
    assert one.logs == same.logs and differing(weights(one), weights(same)) == []
    assert one.logs != other.logs


def test_micro_batches_add_up_to_the_gradient_of_the_minibatch():
    gradients = []
    for micro_batch in (None, 3, 1):
        loop = short(micro_batch=micro_batch)
        torch.manual_seed(0)
        batch = loop.collect(loop_module.Silent(), torch.Generator().manual_seed(0))
        rows = batch.numbers.split(micro_batch or 8)
        loop.backward(batch, rows, loop_module.Silent(), epoch=0)
        gradients.append(torch.cat([p.grad.flatten() for p in loop.parameters]))
    assert gradients[0].norm() > 1e-3
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-4, atol=1e-6)


def test_it_learns():
    loop = short(steps=12, rows=32, learning_rate=1e-3, kl_coef=0.01)
    loop.run()
    first, last = (sum(log["score"] for log in part) / 3 for part in (loop.logs[:3], loop.logs[-3:]))
    assert last > first + 0.1


ARCHITECTURES = {
    "llama": ("LlamaConfig", {"num_key_value_heads": 1}),
    "qwen2": ("Qwen2Config", {"num_key_value_heads": 1}),
    "neox": ("GPTNeoXConfig", {}),
    "opt": ("OPTConfig", {"ffn_dim": 32, "word_embed_proj_dim": 16}),
    "bloom": ("BloomConfig", {"n_head": 2}),  # no position ids
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_any_causal_model_will_do(name):
    made, own = ARCHITECTURES[name]
    size = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"intermediate_size": 32, "max_position_embeddings": 64, "pad_token_id": PAD, "eos_token_id": END}
    torch.manual_seed(0)
    config = getattr(transformers, made)(**size | more | {"bos_token_id": END} | own)
    policy = transformers.AutoModelForCausalLM.from_config(config)
    loop = short(policy=policy, steps=2)
    guard = loop.guarded(on_violation="raise", strict=True, ignore=["KLG863"])  # it seldom ends by itself
    loop.run(guard)
    assert guard.evidence.tokens > 50 and len(guard.exercised) > 40


# ------------------------------------------------------------------------------- mistakes made on purpose


def broken(name, function):
    """The loop with one of its functions exchanged."""
    patch = pytest.MonkeyPatch()
    patch.setattr(loop_module, name, function)
    return patch


def codes(**options):
    loop = short(**options)
    guard = loop.guarded(on_violation="record", strict=True)
    loop.run(guard)
    return {finding.code for finding in guard.findings}


def test_a_mask_over_the_padding_is_found():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_module, "response_mask", lambda ids, stops: torch.ones_like(ids, dtype=torch.bool))
        assert "KLG811" in codes()


def test_a_penalty_with_the_wrong_sign_is_found():
    right = loop_module.token_rewards
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_module, "token_rewards", lambda scores, kl, mask, c: right(scores, kl, mask, -c))
        assert "KLG826" in codes(kl_coef=0.5, learning_rate=1e-3)


def test_whitening_over_the_padding_is_found():
    def everywhere(values, mask, total):
        return (values - values.mean()) / values.std() * mask

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_module, "whitened", everywhere)
        assert "KLG821" in codes()


def test_dropout_is_switched_off_and_would_be_found():
    from klguard.lab.student import untrained

    policy = untrained()
    for module in policy.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.2
    loop = short(policy=policy)
    loop.run(loop.guarded(on_violation="raise", strict=True, ignore=["KLG863"]))

    class Dropping(PPO):
        def collect(self, tell, generator):
            self.policy.train()
            return super().collect(tell, generator)

    loop = short(Dropping, policy=policy)
    guard = loop.guarded(on_violation="record", strict=True)
    loop.run(guard)
    assert {finding.code for finding in guard.findings} & {"KLG407", "KLG805", "KLG831"}


def test_a_bent_sampler_is_stopped_after_the_first_rollout():
    loop = short(sampling={"top_k": 3}, rows=16)
    guard = loop.guarded(ignore=["KLG1"])
    with pytest.raises(Violation) as caught:
        loop.run(guard)
    assert caught.value.code == "KLG701" and loop.number == 0
    assert caught.value.cause == "top_k=3"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"steps": 0}, "steps=0"),
        ({"rows": 10, "minibatches": 4}, "minibatches=4"),
        ({"precision": "fp8"}, "'fp32' or 'bf16'"),
        ({"lam": 1.5}, "lam=1.5"),
        ({"kl_coef": -0.1}, "kl_coef=-0.1"),
        ({"micro_batch": 0}, "micro_batch=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
    ],
)
def test_settings_that_make_no_run_are_refused(given, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        short(**given)
