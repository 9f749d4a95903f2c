"""The models of a loop written by hand: one object as both, a reference that learns, a checkpoint with dropout."""

import pytest

from klguard.check import check_source
from klguard.rules.programs import by_hand

PURE = "do_sample=True, top_k=0, max_new_tokens=32"
REFERENCE = 'AutoModelForCausalLM.from_pretrained("gpt2").eval().requires_grad_(False)'


def codes(source):
    return {f.code for f in check_source(source)}


def with_reference(made, more=""):
    return by_hand(PURE, before=more).replace(REFERENCE, made)


@pytest.mark.parametrize("made", ["policy", "policy.eval()"])
def test_one_object_as_policy_and_reference_is_told(made):
    assert codes(with_reference(made)) == {"KLG401"}


@pytest.mark.parametrize(
    "source",
    [
        with_reference("copy.deepcopy(policy)"),
        with_reference(REFERENCE),
        with_reference("load()"),
        with_reference("policy").replace("policy.generate", "reference.generate"),
        with_reference("policy", "with policy.disable_adapter():\n    start = score(prompts)"),
        with_reference("policy", "reference = AutoModelForCausalLM.from_pretrained('gpt2')"),
    ],
)
def test_two_objects_and_what_may_be_two_are_not(source):
    assert "KLG401" not in codes(source)


def test_a_reference_that_is_only_handed_on_may_learn():
    source = with_reference(REFERENCE.removesuffix(".requires_grad_(False)"), "reference.train()")
    handed_on = source.replace("reference(tokens).logits", "score_with(reference, tokens)")
    assert "KLG406" in codes(source) & codes(handed_on)


@pytest.mark.parametrize(
    ("checkpoint", "expected"),
    [
        ("gpt2-large", True),
        ("facebook/opt-1.3b", True),
        ("EleutherAI/pythia-410m", False),
        ("my/gpt2-copy", False),
    ],
)
def test_the_dropout_of_a_checkpoint_counts_in_train_mode(checkpoint, expected):
    assert ("KLG407" in codes(by_hand(PURE, checkpoint=checkpoint, before="policy.train()"))) is expected
    assert "KLG407" not in codes(by_hand(PURE, checkpoint=checkpoint))
    assert "KLG407" not in codes(by_hand(PURE, checkpoint=checkpoint, before="policy.train()\npolicy.eval()"))


@pytest.mark.parametrize(
    "source",
    [
        by_hand(PURE, before="disable_dropout_in_model(policy)\npolicy.train()"),
        by_hand(PURE, policy=", config=config", before="policy.train()"),
        by_hand(PURE, policy=", attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0", before="policy.train()"),
    ],
)
def test_dropout_that_is_spoken_of_is_left_to_what_is_said(source):
    assert "KLG407" not in codes(source)
