"""Every mistake in shape, dtype or device has its own message, and a correct call none."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from klguard.guard.kl import estimate, masked_mean  # noqa: E402
from klguard.guard.shapes import check_log_probs, check_shapes  # noqa: E402


def logits(batch=2, time=5, vocabulary=11, **how):
    return torch.zeros(batch, time, vocabulary, **how)


def tokens(batch=2, time=5, dtype=torch.int64, **how):
    return torch.zeros(batch, time, dtype=dtype, **how)


MISTAKES = {
    "logits are a list": ([[[0.0]]], tokens(), None, None, TypeError, "logits is a list"),
    "logits transposed": (logits(5, 2), tokens(), None, None, ValueError, "batch and time are exchanged"),
    "logits of rank 2": (torch.zeros(2, 11), tokens(), None, None, ValueError, "batch, time, vocabulary"),
    "logits are integers": (logits(dtype=torch.int64), tokens(), None, None, TypeError, "logits have dtype"),
    "logits are complex": (
        logits(dtype=torch.complex64),
        tokens(),
        None,
        None,
        TypeError,
        "logits have dtype",
    ),
    "logits not shifted": (
        logits(time=6),
        tokens(),
        None,
        None,
        ValueError,
        r"exactly one.*logits\[:, :-1\]",
    ),
    "tokens not shifted": (logits(time=4), tokens(), None, None, ValueError, r"exactly one.*tokens\[:, 1:\]"),
    "logits of the prompt": (logits(time=9), tokens(), None, None, ValueError, "the times differ, 9 and 5"),
    "another batch": (logits(3), tokens(), None, None, ValueError, "batch sizes differ, 3 and 2"),
    "no vocabulary": (logits(vocabulary=0), tokens(), None, None, ValueError, "vocabulary is empty"),
    "tokens are floats": (logits(), tokens(dtype=torch.float32), None, None, TypeError, "tokens have dtype"),
    "tokens are bools": (logits(), tokens(dtype=torch.bool), None, None, TypeError, "tokens have dtype"),
    "tokens of rank 1": (logits(), tokens()[0], None, None, ValueError, "tokens has 1 dimension, "),
    "tokens of rank 3": (logits(), tokens()[..., None], None, None, ValueError, "tokens has 3 dimensions"),
    "tokens elsewhere": (logits(), tokens(device="meta"), None, None, ValueError, "tokens are on meta"),
    "mask one longer": (logits(), tokens(), tokens(time=6), None, ValueError, r"exactly one.*mask\[:, 1:\]"),
    "mask of the prompt": (
        logits(),
        tokens(),
        tokens(time=9),
        None,
        ValueError,
        "mask.*times differ, 9 and 5",
    ),
    "mask of another batch": (logits(), tokens(), tokens(4), None, ValueError, "mask.*batch sizes differ"),
    "mask of rank 4": (
        logits(),
        tokens(),
        torch.zeros(2, 1, 5, 5),
        None,
        ValueError,
        "one entry for each token",
    ),
    "mask is complex": (logits(), tokens(), tokens(dtype=torch.complex64), None, TypeError, "mask has dtype"),
    "mask is a list": (logits(), tokens(), [[1]], None, TypeError, "mask is a list"),
    "mask elsewhere": (logits(), tokens(), tokens(device="meta"), None, ValueError, "mask are on meta"),
    "another vocabulary": (logits(), tokens(), None, logits(vocabulary=16), ValueError, "11 entries.*16"),
    "reference not shifted": (
        logits(),
        tokens(),
        None,
        logits(time=6),
        ValueError,
        "shifted and the other not",
    ),
    "reference of another batch": (
        logits(),
        tokens(),
        None,
        logits(3),
        ValueError,
        "reference_logits.*batch sizes",
    ),
    "reference of rank 2": (
        logits(),
        tokens(),
        None,
        torch.zeros(2, 11),
        ValueError,
        "reference_logits has 2",
    ),
    "reference of integers": (
        logits(),
        tokens(),
        None,
        logits(dtype=torch.int32),
        TypeError,
        "reference_logits",
    ),
    "reference elsewhere": (
        logits(),
        tokens(),
        None,
        logits(device="meta"),
        ValueError,
        "logits are on meta",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_named(name):
    *arguments, error, message = MISTAKES[name]
    with pytest.raises(error, match=message):
        check_shapes(*arguments)


def test_messages_tell_the_mistakes_apart():
    messages = set()
    for *arguments, error, _ in MISTAKES.values():
        with pytest.raises(error) as caught:
            check_shapes(*arguments)
        messages.add(str(caught.value))
    assert len(messages) == len(MISTAKES)


def test_a_model_output_is_told_to_hand_over_its_logits():
    class Output:
        logits = torch.zeros(1)

    with pytest.raises(TypeError, match=r"pass logits\.logits"):
        check_shapes(Output(), tokens())


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int64, torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("token_dtype", [torch.int64, torch.int32, torch.uint8])
def test_a_correct_call_passes(mask_dtype, token_dtype):
    check_shapes(
        logits(dtype=torch.bfloat16),
        tokens(dtype=token_dtype),
        tokens(dtype=mask_dtype),
        logits(dtype=torch.float32),
    )


def test_values_are_never_looked_at():
    """Tensors without storage pass: nothing is read, so nothing waits for the device."""
    check_shapes(logits(device="meta"), tokens(device="meta"), tokens(device="meta"), logits(device="meta"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(2, 5), torch.zeros(2, 6)), ValueError, "exactly one.*shifted and the other not"),
        ((torch.zeros(2, 5), torch.zeros(2, 5, 1)), ValueError, "same tokens"),
        ((torch.zeros(2, 5), torch.zeros(2, 5).long()), TypeError, "reference_logprobs have dtype"),
        ((torch.zeros(2, 5).long(), torch.zeros(2, 5)), TypeError, "logprobs have dtype"),
        ((torch.zeros(2, 5), torch.zeros(2, 5), torch.zeros(2, 4)), ValueError, r"mask\[:, 1:\]"),
        ((torch.zeros(2, 5), [1.0]), TypeError, "reference_logprobs is a list"),
        ((torch.zeros(2, 5), torch.zeros(2, 5, device="meta")), ValueError, "on meta"),
    ],
)
def test_log_probs_that_do_not_go_together(arguments, error, message):
    with pytest.raises(error, match=message):
        check_log_probs(*arguments)
    if len(arguments) == 3 or error is ValueError:
        with pytest.raises(error, match=message):
            estimate(*arguments)


def test_reductions_refuse_a_mask_that_would_broadcast():
    with pytest.raises(ValueError, match="mask"):
        masked_mean(torch.zeros(2, 5), torch.ones(1, 5))
